# SPDX-License-Identifier: GPL-3.0-or-later
"""State of miners and epochs: what reputation, committees and rewards rest on. Who decides by it is in `consensus`."""

from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, Uint, Uint256, Wire
from ledger.rules import MAX_COMMITTEE, REPUTATION_UNIT

MEDIAN_KEYBLOCKS = 11
"""Times of keyblocks kept for the median, as in Bitcoin: six of eleven miners must lie before it does."""

Nano = Annotated[int, msgspec.Meta(ge=0, le=REPUTATION_UNIT)]
"""A reputation or share, in 10⁻⁹."""


class MinerHistory(Wire, frozen=True):
    """State: all that a miner's reputation rests on; of constant size."""

    keyblocks: Uint = 0
    """Σ k_i: pinned keyblocks of the miner."""
    closed_chunk_squares: Uint = 0
    """Σ k_i² over the chunks before `chunk`."""
    chunk: Uint = 0
    """Chunk of the miner's newest keyblock."""
    chunk_keyblocks: Uint = 0
    """The miner's keyblocks in that chunk."""
    terms: Uint = 0
    """N: finished terms as leader."""
    microblocks: Uint = 0
    """Σ m_j: committed microblocks in these terms."""
    microblock_squares: Uint = 0
    """Σ m_j²."""
    is_honest: bool = True
    """H: false for good once evidence of misbehaviour is on the chain."""
    external_nano: Nano = 0
    """Ext, in 10⁻⁹; counts only while honest."""


class Offence(Wire, frozen=True):
    """State: proof of misbehaviour is on the chain."""

    height: Uint
    """Microblock that committed the first report."""
    epoch: Uint
    """Epoch of the offence."""
    round: Uint
    """Round of the offence."""
    reporter: Address
    """Who reported it first."""
    contract_id: Digest | None
    """The contract that it operated as a fraud, proved by a challenge, in round 0; nil for what it signed as a member of a committee."""


class TermTally(Wire, frozen=True):
    """State: a leader's finished terms of the running epoch; they enter its history when the epoch ends."""

    terms: Uint
    """Number of terms."""
    microblocks: Uint
    """Σ m_j."""
    microblock_squares: Uint
    """Σ m_j²."""


class MicroblockFees(Wire, frozen=True):
    """State: fees of one microblock of the running epoch; a row of an older epoch is void and will be overwritten."""

    epoch: Uint
    """Epoch of the microblock."""
    leader: Address
    """Who proposed it."""
    fees_microcredit: Uint
    """Its fees, in millionths of a credit."""


class Seat(Wire, frozen=True):
    """A place in a committee."""

    public_key: PublicKeyBytes
    """Key of the member."""
    reputation_nano: Nano
    """Its weight: reputation as of the epoch's keyblock, in 10⁻⁹."""


class EpochRecord(Wire, frozen=True):
    """State: how an epoch began; never changes. That of epoch 0 follows from the genesis and is not stored."""

    keyblock: Digest
    """Hash of the keyblock that began it; the chain's identifier for epoch 0."""
    root_height: Uint
    """Height of the microblock that pinned the keyblock; 0 for epoch 0."""
    root_hash: Digest
    """Hash of that microblock."""
    root_round: Uint
    """Round before the epoch's first one; it begins a term. 0 for epoch 0."""
    miner: Annotated[bytes, msgspec.Meta(max_length=33)]
    """Key of the keyblock's creator; empty for epoch 0."""
    reveal_key: Annotated[bytes, msgspec.Meta(max_length=48)]
    """The creator's BLS key; empty for epoch 0."""
    reputation_nano: Nano
    """The creator's reputation, as stated in the keyblock."""
    fee_start: Digest
    """Hash of the keyblock's signature: where the creator's share of the epoch's fees starts."""
    target: Uint256
    """Target of the keyblock that will end the epoch."""
    timestamp_ms: Uint
    """Time of the keyblock that began it, in milliseconds since 1970 (UTC)."""
    seats: Annotated[tuple[Seat, ...], msgspec.Meta(min_length=1, max_length=MAX_COMMITTEE)]
    """The committee, best first."""


class EpochProgress(Wire, frozen=True):
    """State: what the running epoch has come to."""

    epoch: Uint
    """Number of the running epoch: keyblocks pinned so far (L)."""
    seed: Digest
    """Seed of its leaders; that of the epoch before until its first microblock is committed."""
    microblocks: Uint
    """Committed microblocks of the epoch."""
    round: Uint
    """Round of the newest committed microblock; `EpochRecord.root_round` before the first one."""
    leader: Address
    """Leader of that microblock; 20 zero bytes before the first one."""
    term_microblocks: Uint
    """Committed microblocks of that leader's term so far."""
    window_start_ms: Uint
    """Time from which the running retarget window is measured."""
    window_keyblocks: Uint
    """Keyblocks in that window so far."""
    timestamps_ms: Annotated[tuple[Uint, ...], msgspec.Meta(min_length=1, max_length=MEDIAN_KEYBLOCKS)]
    """Times of the newest keyblocks, oldest first; the first one is the genesis'."""


def inverted(epoch: int) -> bytes:
    """Return 8 bytes that order epochs from the newest to the oldest."""
    return (2**64 - 1 - epoch).to_bytes(8, "big")
