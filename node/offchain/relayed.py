# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say to an operator's node on behalf of users: requests to execute, and questions about them."""

from typing import Annotated, Literal

import msgspec

from contracts.machine import Outcome
from ledger.codec import Address, Digest, Uint, Wire, decoder
from ledger.offchain import MAX_OPERATIONS, MAX_REQUEST_BYTES, Index, RequestBytes, SignedReceipt

REQUEST_SEND = "contract-send"
"""Request: `RelayedRequests`, answered by `RelayedOutcomes`."""
REQUEST_STATUS = "contract-status"
"""Request: `StatusQuery`, answered by `StatusAnswer`."""
METHODS = (REQUEST_SEND, REQUEST_STATUS)

MAX_RELAYED = 64
"""Requests in one message: half a megabyte at most, and some 20 ms of an operator's work."""
DETAIL_CHARACTERS = 512
"""Room for what a person reads."""


class RelayedRequests(Wire, frozen=True):
    """Requests for one contract, in the order in which they are to be executed."""

    contract_id: Digest
    """The contract."""
    requests: Annotated[tuple[RequestBytes, ...], msgspec.Meta(min_length=1, max_length=MAX_RELAYED)]
    """The requests."""


class RelayedOutcome(Wire, frozen=True):
    """What became of one of them."""

    reason: Annotated[str, msgspec.Meta(max_length=64)]
    """Empty when the operator has accepted it; else why not, one of its stable names."""
    detail: Annotated[str, msgspec.Meta(max_length=DETAIL_CHARACTERS)]
    """What was wrong and what to do, for people."""
    retry_ms: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    """For a refusal that passes: after how many milliseconds to send it again."""
    signed: SignedReceipt | None
    """The receipt, when it was accepted."""
    outcomes: Annotated[tuple[Outcome, ...], msgspec.Meta(max_length=MAX_OPERATIONS)]
    """What became of its operations."""


class RelayedOutcomes(Wire, frozen=True):
    """What became of all, in the order of the requests."""

    outcomes: Annotated[tuple[RelayedOutcome, ...], msgspec.Meta(min_length=1, max_length=MAX_RELAYED)]
    """One for each."""


class StatusQuery(Wire, frozen=True):
    """Asks where a sender's operation stands, and which number comes next."""

    contract_id: Digest
    """The contract."""
    sender: Address
    """The sender."""
    sequence: Uint
    """Number of the operation."""


class RelayedPlace(Wire, frozen=True):
    """What only the operator knows of an accepted operation; how far its batch has come is on the chain."""

    stage: Literal["received", "included", "final"]
    """Being written down; promised; or final since longer than the operator keeps places."""
    number: Uint | None
    """Its batch; nil for the last of these."""
    index: Index | None
    """Its place there; nil for the last of these."""


class StatusAnswer(Wire, frozen=True):
    """What the operator knows."""

    next_sequence: Uint | None
    """Number of the sender's next operation; nil while the contract is not operated."""
    place: RelayedPlace | None
    """Where the operation stands; nil for one that was not accepted."""


# A receipt has about 250 bytes, an outcome at most 110.
_OUTCOME_BYTES = 1_500 + 110 * MAX_OPERATIONS
decode_requests = decoder(RelayedRequests, MAX_RELAYED * (MAX_REQUEST_BYTES + 8) + 64)
decode_outcomes = decoder(RelayedOutcomes, MAX_RELAYED * _OUTCOME_BYTES)
decode_query = decoder(StatusQuery, 128)
decode_status = decoder(StatusAnswer, 128)
