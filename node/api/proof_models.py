# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of proofs on the HTTP API."""

from node.api.models import Hex, Model

MAX_PROOF_KEYS = 64
"""Keys of one request: at a million entries about 6 ms of the node's time, and a line of 9 KB."""
MAX_KEY_BYTES = 64
"""The longest state key, that of an index of grants, has 53 bytes."""


class ProvedEntry(Model):
    """What the state says under a key, with its proof."""

    key: Hex
    """The state key."""
    value: Hex | None
    """Its encoded value; null when there is none, which is proved as well."""
    proof: Hex
    """Encoded state proof (docs/reference/protocol.md) under the keyblock's state root."""


class Proofs(Model):
    """Entries of the state that the newest pinned keyblock stands for."""

    keyblock_hash: Hex
    """Hash of the keyblock."""
    keyblock: Hex
    """The signed keyblock, encoded."""
    epoch: int
    """Number of the epoch that the keyblock began; the state is that of the beginning of the epoch before."""
    height: int
    """Height of the microblock after which the state was so."""
    entries: tuple[ProvedEntry, ...]
    """One for each key asked for, in their order."""
