# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: what a node keeps, behind one protocol with two twins (memory here, LMDB in `ledger.lmdb_store`).

A committed microblock is written with everything that belongs to it (state, indexes, head) in one transaction, so that a crash leaves
the whole block or nothing of it. Batches are stored when they arrive, before any block names them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from ledger.blocks import microblock_hash
from ledger.codec import Digest, Uint, Wire
from ledger.errors import RejectionReason, SnapshotGone
from ledger.genesis import Genesis, genesis_block
from ledger.state import Change, StateReader
from ledger.state_tree import StateProof
from ledger.transition import Receipt


class Head(Wire, frozen=True):
    """The newest committed microblock."""

    height: Uint
    """Its height."""
    block_hash: Digest
    """Its hash."""
    round: Uint
    """Its consensus round."""
    timestamp_ms: Uint
    """Its time, in milliseconds since 1970 (UTC)."""
    state_digest: Digest
    """Running digest of all state changes up to it."""
    transaction_count: Uint
    """Number of transactions that took effect up to it."""
    record_count: Uint
    """Number of records committed up to it."""


class BlockUpdate(msgspec.Struct, frozen=True):
    """All that one committed microblock changes."""

    head: Head
    """The head after it."""
    microblock: bytes
    """Encoding of the signed microblock."""
    certificate: bytes
    """Encoding of the certificate of the microblock."""
    batches: tuple[bytes, ...]
    """Digests of the microblock's batches: from now on they are kept for good."""
    changes: tuple[Change, ...]
    """State changes in the order of their keys."""
    receipts: tuple[tuple[bytes, Receipt], ...]
    """Transaction identifiers and receipts; see `keeps_receipt` for those that are known already."""
    closing: bytes = b""
    """For a microblock that pins a keyblock: encoding of the certified microblocks that prove its commit, no part of the chain."""
    weight: bytes = b""
    """This node's measure of the chain up to the microblock, for its owner to decode; empty leaves the former one."""
    keeps_root: bool = False
    """Whether the root of the authenticated state after this microblock is kept, for `Store.root_at` and `Store.snapshot_at`."""


KEPT_ROOTS = 2
"""Snapshots that a store keeps: a pinned keyblock carries the root of the beginning of the epoch that it ended, and the next one that
of the beginning of the running epoch."""


class Snapshot(Protocol):
    """The state as it was after a block of the past. It holds until the store keeps its second root after that block."""

    height: int
    """Height of the block."""
    root: bytes
    """Root of the authenticated state after it."""

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value that a state key had. Raises `SnapshotGone`."""

    def prove(self, key: bytes) -> StateProof:
        """Return the proof under `root` of the value that a state key had, or of its absence. Raises `SnapshotGone`."""


class Store(StateReader, Protocol):
    """What a node keeps. Calls come from one thread at a time; a call that fails changes nothing."""

    @property
    def genesis(self) -> Genesis:
        """The genesis that the store was made for."""

    def head(self) -> Head:
        """Return the newest committed microblock; the genesis block at first."""

    def commit(self, update: BlockUpdate) -> None:
        """Write one microblock durably; it must follow the head.

        Raises `StoreError` (disk full, a batch of the block is not stored) and then changes nothing.
        """

    def block_hash(self, height: int) -> bytes | None:
        """Return the hash of the committed microblock at a height."""

    def state_digest(self, height: int) -> bytes | None:
        """Return the running state digest after the committed microblock at a height (0 is the genesis)."""

    def microblock(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed signed microblock."""

    def certificate(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed microblock's certificate."""

    def closing(self, block_hash: bytes) -> bytes | None:
        """Return the `BlockUpdate.closing` of a committed microblock that has one."""

    def weight(self) -> bytes | None:
        """Return the newest `BlockUpdate.weight`."""

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        """Return what became of a transaction, if it stood in a committed microblock."""

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep batches (digest, encoding) durably; known ones stay as they are. Raises `StoreError`."""

    def batch(self, digest: bytes) -> bytes | None:
        """Return the encoding of a batch."""

    def batch_height(self, digest: bytes) -> int | None:
        """Return the height of the microblock that committed a batch."""

    def pending_batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield digest and encoding of the batches that no committed microblock names, in order of arrival."""

    def drop_batches(self, digests: Iterable[bytes]) -> None:
        """Forget pending batches; committed ones stay."""

    def state_root(self) -> bytes:
        """Return the root of the authenticated state at the head (see `ledger.state_tree`)."""

    def root_at(self, height: int) -> bytes | None:
        """Return the root after a microblock that was committed with `keeps_root`; that of the genesis is always there."""

    def state_proof(self, key: bytes) -> StateProof:
        """Return the proof of a state key's value, or of its absence, under `state_root`."""

    def snapshot_at(self, root: bytes) -> Snapshot:
        """Return the state under one of the last two kept roots, that of the genesis among them. Raises `SnapshotGone`."""

    def close(self) -> None:
        """Release all files; further calls are errors of ours."""


_FINAL_REASONS = frozenset({"", RejectionReason.FALSE_EVIDENCE.value, RejectionReason.FALSE_CHALLENGE.value})
"""Such a transaction has used its nonce: any later receipt only says that it came again."""


def genesis_head(genesis: Genesis, state_digest: bytes) -> Head:
    """Return the head of a store that no microblock has been committed to."""
    block_hash = microblock_hash(genesis_block(genesis, state_digest).header)
    return Head(0, block_hash, 0, genesis.timestamp_ms, state_digest, 0, 0)


def keeps_receipt(known: Receipt | None, new: Receipt) -> bool:
    """Tell whether a new receipt replaces the known one: what took effect once stays so, and what cost its sender once too."""
    return known is None or known.reason not in _FINAL_REASONS or new.reason == ""


def snapshot_gone(root: bytes, kept: Sequence[bytes]) -> SnapshotGone:
    """Return the error for a state that is not among those kept."""
    roots = " and ".join(known.hex() for known in kept)
    return SnapshotGone(
        f"the state under root {root.hex()} is not kept here, only those under {roots}; a state is kept from the beginning of an epoch "
        "until two more have begun: take the newest pinned keyblock"
    )
