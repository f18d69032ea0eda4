# SPDX-License-Identifier: GPL-3.0-or-later
"""What users are told: what became of a request that they send, and how far one has come, with what that rests on.

    received → included → committed → final
         └──────────┴────────────┴──→ voided

Pure functions over what the journal and the chain say.
"""

from typing import Literal

import msgspec

from contracts.operator import Answer
from ledger.contract_state import CommittedBatch, Contract

RequestStage = Literal["received", "included", "committed", "final", "voided"]
"""How far a request has come."""

RESTS_ON: dict[RequestStage, str] = {
    "received": "nothing yet: the operator is writing it down",
    "included": "the operator's word: its receipt is signed and durable, and the bond answers for it",
    "committed": "the chain, unless a challenge succeeds within the window",
    "final": "the chain alone: the window for challenges has passed",
    "voided": "nothing any more: the contract has ended without this batch; send the operations again in another way",
}
"""What each stage rests on, for people."""


class SendOutcome(msgspec.Struct, frozen=True):
    """What became of a request at the operator."""

    accepted: bool
    """True: the operator has signed for it, and the request is durable with it."""
    answer: Answer | None = None
    """The receipt and what became of the operations; of an accepted request."""
    reason: str = ""
    """Why it was not accepted: a stable name."""
    detail: str = ""
    """What was wrong and what to do, for people."""
    retry_ms: int = 0
    """For a refusal that passes: after how many milliseconds the same request may be sent again; 0 for one that does not."""


class RequestStatus(msgspec.Struct, frozen=True):
    """How far a request has come."""

    status: RequestStage
    """How far."""
    rests_on: str
    """What that rests on, for people."""
    number: int | None = None
    """Its batch; None for a final one that is longer ago than the operator remembers."""
    index: int | None = None
    """Its place in the batch."""
    committed_height: int | None = None
    """Height of the microblock that committed the batch."""
    final_height: int | None = None
    """Height from which the batch is final."""


def refused(reason: str, detail: str, retry_ms: int = 0) -> SendOutcome:
    """Return the outcome of a request that was not accepted."""
    return SendOutcome(accepted=False, reason=reason, detail=detail, retry_ms=retry_ms)


def status_at(
    number: int, index: int, contract: Contract | None, batch: CommittedBatch | None, *, height: int, window: int
) -> RequestStatus:
    """Return how far a durable request has come.

    Args:
        number: its batch.
        index: its place there.
        contract: the contract as the chain has it; None when the chain does not have it (yet).
        batch: the batch as the chain has it; None when it does not count (yet).
        height: the newest microblock.
        window: microblocks after which a batch is final.
    """
    if batch is not None:
        final_height = batch.height + window
        stage: RequestStage = "final" if final_height <= height else "committed"
        return RequestStatus(stage, RESTS_ON[stage], number, index, batch.height, final_height)
    stage = "included" if contract is None or contract.status == "open" else "voided"
    return RequestStatus(stage, RESTS_ON[stage], number, index)


def received(number: int, index: int) -> RequestStatus:
    """Return the status of a request that is being written down."""
    return RequestStatus("received", RESTS_ON["received"], number, index)


def long_final() -> RequestStatus:
    """Return the status of a request that is final since longer than its lines are kept."""
    return RequestStatus("final", RESTS_ON["final"])
