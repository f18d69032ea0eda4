# SPDX-License-Identifier: GPL-3.0-or-later
"""The safety record on disk: two slots written in turn, one synchronous write per promise.

A slot is `sequence (8) ‖ length (4) ‖ SHA-256 of both and the payload ‖ payload`. A crash can tear only the slot being written; the other
holds the promise before it, and the message that rests on the torn one has not left. See docs/decisions for why not LMDB.
"""

import errno
import hashlib
import os
from pathlib import Path
from typing import Annotated

import msgspec

from consensus.messages import Proposal
from consensus.safety import SafetyRecord
from ledger.codec import Wire, decode, encode
from ledger.errors import InvalidInput, StoreError

SLOT_BYTES = 2 * 1024 * 1024
"""Room for the record and `MAX_PROPOSALS` of the largest size (25 KB with a committee of 64)."""
MAX_PROPOSALS = 64
"""A working network keeps three or four; those of a long outage are fetched again."""
_HEADER_BYTES = 8 + 4 + 32


class SafetySnapshot(Wire, frozen=True):
    """All that a member must remember."""

    record: SafetyRecord
    """Its promises."""
    proposals: Annotated[tuple[Proposal, ...], msgspec.Meta(max_length=MAX_PROPOSALS)]
    """Proposals that it voted for and that are not committed yet."""


class SafetyFile:
    """A file of two slots; `save` returns when the snapshot is durable."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; raises `StoreError` when it is damaged beyond one torn slot."""
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._reserve()
            self._load()
        except OSError as error:
            os.close(self._file)
            raise self._unusable(error) from error
        except StoreError:
            os.close(self._file)
            raise

    def _reserve(self) -> None:
        """Take the room for both slots, also when an earlier start was interrupted here: no promise fails for lack of it."""
        if os.fstat(self._file).st_size < 2 * SLOT_BYTES:
            os.posix_fallocate(self._file, 0, 2 * SLOT_BYTES)
            os.fsync(self._file)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _load(self) -> None:
        slots = [self._read(slot) for slot in (0, 1)]
        found = [slot for slot in slots if slot is not None]
        newest = max(found, key=_sequence_of, default=None)
        self._sequence = 0 if newest is None else newest[0]
        self.snapshot: SafetySnapshot | None = None if newest is None else newest[1]
        # Slot 1 is written first. As long as slot 0 is blank, a torn slot 1 is a first promise that was never kept nor told.
        if not found and any(os.pread(self._file, _HEADER_BYTES, 0)):
            raise StoreError(
                f"{self._path}: both copies of the safety record are damaged; voting without it could break agreement. "
                "Restore the file, or run this node as an observer with a new key"
            )

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(f"{self._path}: cannot open the safety record: {error.strerror}; check space and permissions")

    def save(self, snapshot: SafetySnapshot) -> None:
        """Write a snapshot durably; raises `StoreError` and then the previous one still stands."""
        payload = encode(snapshot)
        assert len(payload) <= SLOT_BYTES - _HEADER_BYTES, "MAX_PROPOSALS bounds the snapshot"
        sequence = self._sequence + 1
        prefix = sequence.to_bytes(8, "big") + len(payload).to_bytes(4, "big")
        digest = hashlib.sha256(prefix + payload).digest()
        try:
            written = os.pwrite(self._file, prefix + digest + payload, (sequence % 2) * SLOT_BYTES)
            if written != _HEADER_BYTES + len(payload):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._file)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot write the safety record: {error.strerror}") from error
        self._sequence, self.snapshot = sequence, snapshot

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read(self, slot: int) -> tuple[int, SafetySnapshot] | None:
        raw = os.pread(self._file, SLOT_BYTES, slot * SLOT_BYTES)
        prefix, digest = raw[:12], raw[12:_HEADER_BYTES]
        length = int.from_bytes(prefix[8:12], "big")
        payload = raw[_HEADER_BYTES : _HEADER_BYTES + length]
        if len(payload) != length or hashlib.sha256(prefix + payload).digest() != digest:
            return None
        try:
            return int.from_bytes(prefix[:8], "big"), decode(SafetySnapshot, payload, SLOT_BYTES)
        except InvalidInput:
            return None


def _sequence_of(found: tuple[int, SafetySnapshot]) -> int:
    return found[0]
