# SPDX-License-Identifier: GPL-3.0-or-later
"""What survives a crash of a replica: its store, and the safety record as `node.safety_file` keeps it, in two slots written in turn."""

from collections.abc import Sequence

from consensus.safety import SafetyRecord
from ledger.codec import decode, encode
from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.memory_store import MemoryStore
from ledger.store import BlockUpdate
from node.safety_file import SLOT_BYTES, SafetySnapshot


class FallibleStore(MemoryStore):
    """A memory store whose disk may be full: then every write fails as a whole."""

    def __init__(self, genesis: Genesis) -> None:
        super().__init__(genesis)
        self.full = False

    def commit(self, update: BlockUpdate) -> None:
        """Write one microblock; raises `StoreError` while the disk is full."""
        self._check_room()
        super().commit(update)

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep batches; raises `StoreError` while the disk is full."""
        self._check_room()
        super().put_batches(batches)

    def _check_room(self) -> None:
        if self.full:
            raise StoreError("the disk is full")


class SafetySlots:
    """The safety record's file: a crash can tear the slot that is being written, never the other one."""

    def __init__(self) -> None:
        self.broken = False
        """Whether writes fail."""
        self.snapshot: SafetySnapshot | None = None
        """The newest snapshot that is durable."""
        self._sequence = 0
        self._slots: list[tuple[int, bytes] | None] = [None, None]

    def load(self) -> None:
        """Read the file anew, as a process does that starts."""
        sequence, raw = max((slot for slot in self._slots if slot is not None), default=(0, b""))
        self._sequence = sequence
        self.snapshot = decode(SafetySnapshot, raw, SLOT_BYTES) if sequence else None

    def save(self, snapshot: SafetySnapshot) -> None:
        """Write a snapshot; raises `StoreError`, and then the previous one still stands."""
        if self.broken:
            raise StoreError("the safety record cannot be written")
        self._sequence += 1
        self._slots[self._sequence % 2] = (self._sequence, encode(snapshot))
        self.snapshot = snapshot

    def tear(self) -> None:
        """The machine dies while the next snapshot is written: its slot cannot be read any more."""
        self._slots[(self._sequence + 1) % 2] = None


class Disk:
    """The durable things of one replica."""

    def __init__(self, genesis: Genesis) -> None:
        self.store = FallibleStore(genesis)
        self.safety = SafetySlots()
        self.data: dict[bytes, bytes] = {}
        """Published data of off-chain batches, by its digest."""

    def record(self) -> SafetyRecord | None:
        """Return the promises that a crash would leave; None before the first one."""
        return None if self.safety.snapshot is None else self.safety.snapshot.record
