# SPDX-License-Identifier: GPL-3.0-or-later
"""State of off-chain contracts: what the chain keeps of each, of its batches, and of what was forced on it."""

from typing import Annotated, Literal

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, Uint, Wire
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.offchain import BatchCommitment, ContractTerms

ContractStatus = Literal["open", "closed", "frozen"]
"""Open; ended by its operator; ended because of fraud or neglect."""


class Contract(Wire, frozen=True):
    """State: a contract."""

    terms: ContractTerms
    """What never changes."""
    status: ContractStatus
    """How it is."""
    opened_height: Uint
    """Height of the microblock that opened it."""
    bond_microcredit: Uint
    """What fraud would burn, in millionths of a credit; 0 once burnt or paid back."""
    escrow_microcredit: Uint
    """Credits paid in and not paid out, in millionths."""
    batch_count: Uint
    """Batches that count: those committed, or, after fraud, those that were final."""
    root: Digest
    """Root of the contract's state after them; 32 zero bytes before the first."""
    until_ms: Uint
    """End of the last of them, in milliseconds since 1970 (UTC); of the microblock that opened the contract before the first."""
    last_height: Uint
    """Height that committed the last of them; `opened_height` before the first."""
    forced_count: Uint
    """Requests ever forced, deposits included; each has the number that this count was before it."""
    answered_count: Uint
    """Forced requests that these batches answer for: always the first ones, in order."""
    cleared_count: Uint
    """The first ones of them, whose rows are removed because final batches have answered; lags behind those batches."""
    deposit_count: Uint
    """Deposits among the forced requests; the sequence number of the next."""
    settles_height: Uint
    """Once ended: the height from which it is settled, so that claims on all balances are paid; 0 while open."""


class CommittedBatch(Wire, frozen=True):
    """State: a batch on the chain; final once the challenge window after it has passed."""

    commitment: BatchCommitment
    """The batch."""
    height: Uint
    """Height of the microblock that committed it."""
    answered_count: Uint
    """Forced requests answered up to and with this batch."""


class ForcedRequest(Wire, frozen=True):
    """State: a request that the operator must answer for."""

    request_digest: Digest
    """Tagged hash of the request's bytes; the bytes stand in the transaction, or follow from the deposit."""
    height: Uint
    """Height of the microblock that forced it."""
    time_ms: Uint
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    due_batch: Uint
    """Number of the last batch that may answer for it."""
    account: Annotated[bytes, msgspec.Meta(max_length=20)]
    """Of a deposit, the account; else empty."""
    amount_microcredit: Uint
    """Of a deposit, the amount in millionths of a credit; else 0."""
    deposit_sequence: Uint
    """Of a deposit, its number among the deposits; else 0."""


class Claimed(Wire, frozen=True):
    """State: what an account has been paid out of a contract."""

    withdrawn_microcredit: Uint
    """Of what it has withdrawn, in sum."""
    is_settled: bool
    """Whether its balance was paid too, after the end."""


def contract_id_of(operator: PublicKeyBytes, number: int) -> Digest:
    """Return the 32-byte identifier of an operator's contract."""
    return tagged_hash(Tag.OFFCHAIN_CONTRACT, operator, number.to_bytes(8, "big"))


def contract_key(contract_id: bytes, number: int) -> bytes:
    """Return the key of what a contract has by number: a batch, a forced request."""
    return contract_id + number.to_bytes(8, "big")


def is_settled(contract: Contract, height: int) -> bool:
    """Tell whether a contract has ended and its last root can be contested no more."""
    return contract.status != "open" and height >= contract.settles_height


def claim_key(contract_id: bytes, account: Address) -> bytes:
    """Return the key of what an account has claimed."""
    return contract_id + account
