# SPDX-License-Identifier: GPL-3.0-or-later
"""Mining, from the node's side: what a miner is told, and what it hands in.

The miner is a process of its own (`node.miner`) and reaches its node over the HTTP API (`node.api.mining`).
"""

from typing import Protocol

import msgspec

from consensus.epoch import Epoch
from consensus.retarget import earliest_timestamp_ms
from ledger.blocks import SignedKeyblock
from ledger.codec import RevealBytes, Uint, Wire
from ledger.errors import InvalidInput, SpchainError

MAX_KEYBLOCK_BYTES = 512
"""A signed keyblock takes at most 341."""
MAX_REVEAL_BYTES = 128
"""A `SeedReveal` takes at most 108."""


class StaleWork(InvalidInput):
    """It was right once, but another epoch runs by now."""


class NoChainYet(SpchainError):
    """The node has not chosen the chain that it follows: work on any other is lost."""


class SeedReveal(Wire, frozen=True):
    """What the creator of a pinned keyblock hands in, so that the epoch's leaders can be drawn."""

    epoch: Uint
    """Epoch that the keyblock began."""
    signature: RevealBytes
    """The creator's unique signature (see `consensus.election`)."""


class RevealWanted(msgspec.Struct, frozen=True):
    """A seed that only the miner asked about can reveal."""

    previous_seed: bytes
    """Seed of the epoch before."""
    keyblock_hash: bytes
    """The miner's keyblock, which began the running epoch."""


class MiningWork(msgspec.Struct, frozen=True):
    """All that one miner needs in the running epoch; constant as long as the epoch runs, but for `reveal`."""

    chain_id: bytes
    """Identifier of the chain; part of what the miner signs."""
    epoch: int
    """Number of the running epoch; a keyblock that is pinned ends it."""
    previous: bytes
    """Hash of the keyblock that began the epoch; the chain's identifier in epoch 0."""
    microblock: bytes
    """Hash of the microblock that pinned it."""
    state_root: bytes
    """Root of the authenticated state after that microblock."""
    target: bytes
    """The puzzle's hash must be below this number."""
    reputation_nano: int
    """The miner's reputation as of the epoch's beginning, in 10⁻⁹."""
    earliest_timestamp_ms: int
    """Earliest time that the keyblock may state, in milliseconds since 1970 (UTC)."""
    reveal: RevealWanted | None
    """What the miner shall reveal now, if anything."""


class MiningDesk(Protocol):
    """Where miners get work and hand in results. All calls come from the thread of the event loop."""

    def work(self, miner: bytes) -> MiningWork:
        """Return the work of a miner, by public key. Raises `NoChainYet`."""
        ...

    async def changed(self, epoch: int, wait_s: float) -> None:
        """Return when another epoch than this one runs, at the latest after so many seconds."""
        ...

    def offer(self, signed: SignedKeyblock) -> None:
        """Check a keyblock and tell everyone of it. Raises `NoChainYet`, `StaleWork`, `InvalidInput`, `StoreError`."""
        ...

    def reveal(self, epoch: int, signature: bytes) -> None:
        """Check a reveal and tell everyone of it. Raises `NoChainYet`, `StaleWork`, `InvalidInput`, `StoreError`."""
        ...


def work_in(epoch: Epoch, miner: bytes, *, is_open: bool) -> MiningWork:
    """Return a miner's work in an epoch; `is_open` tells that its leaders' seed is fixed, or its reveal known here already."""
    record = epoch.record
    wanted = None
    if epoch.number > 0 and record.miner == miner and not is_open:
        wanted = RevealWanted(previous_seed=epoch.root.seed, keyblock_hash=record.keyblock)
    return MiningWork(
        chain_id=epoch.chain_id,
        epoch=epoch.number,
        previous=record.keyblock,
        microblock=record.root_hash,
        state_root=epoch.state_root,
        target=record.target,
        reputation_nano=epoch.reputation_of(miner),
        earliest_timestamp_ms=earliest_timestamp_ms(epoch.timestamps_ms, epoch.root.timestamp_ms),
        reveal=wanted,
    )


def check_offer(epoch: Epoch, signed: SignedKeyblock, now_ms: int) -> None:
    """Check a keyblock for the running epoch, also against one's own clock. Raises `StaleWork`, `InvalidInput`."""
    if signed.keyblock.previous != epoch.record.keyblock:
        raise StaleWork(
            f"keyblock follows keyblock {signed.keyblock.previous.hex()}; epoch {epoch.number} began with "
            f"{epoch.record.keyblock.hex()}: get new work"
        )
    epoch.check_keyblock(signed)
    epoch.check_not_ahead(signed, now_ms)


def check_reveal(epoch: Epoch, number: int, signature: bytes) -> None:
    """Check a reveal for the running epoch. Raises `StaleWork`, `InvalidInput`."""
    if number != epoch.number:
        raise StaleWork(f"reveal is for epoch {number}; epoch {epoch.number} runs: get new work")
    if not epoch.is_reveal(signature):
        raise InvalidInput(
            f"reveal is not the signature of the creator of keyblock {epoch.record.keyblock.hex()}: sign with the reveal key "
            "that the keyblock names"
        )
