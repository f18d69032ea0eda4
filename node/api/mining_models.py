# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API answers to miners, as types (see `node.api.models`)."""

from node.api.models import MAX_WAIT_MS, Hex, Model

MAX_MINING_WAIT_S = MAX_WAIT_MS // 1000
"""Longest wait for another epoch."""


class RevealWanted(Model):
    """A seed that only the miner asked about can reveal."""

    previous_seed: Hex
    """Seed of the epoch before."""
    keyblock_hash: Hex
    """The miner's keyblock, which began the running epoch."""


class MiningWork(Model):
    """All that a miner needs in the running epoch; constant as long as the epoch runs, but for `reveal`."""

    chain_id: Hex
    """Identifier of the chain; part of what the miner signs."""
    epoch: int
    """Number of the running epoch; a keyblock that is pinned ends it."""
    previous: Hex
    """Hash of the keyblock that began the epoch; the chain's identifier in epoch 0."""
    microblock: Hex
    """Hash of the microblock that pinned it."""
    state_root: Hex
    """Root of the authenticated state after that microblock."""
    target: Hex
    """The puzzle's hash must be below this number: 32 bytes, big-endian."""
    reputation_nano: int
    """The miner's reputation as of the epoch's beginning, in 10⁻⁹."""
    earliest_timestamp_ms: int
    """Earliest time that the keyblock may state, in milliseconds since 1970 (UTC)."""
    reveal: RevealWanted | None
    """What the miner shall reveal now; null when there is nothing."""


class KeyblockTaken(Model):
    """A keyblock that is right and on its way to all nodes; whether it is pinned shows in the next epoch's work."""

    keyblock_hash: Hex
    """Its hash."""


class RevealTaken(Model):
    """A reveal that is right and on its way to all nodes."""

    epoch: int
    """Epoch whose leaders it draws."""
