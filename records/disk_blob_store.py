# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs on disk: content-addressed, one file each, checked on every read.

    <root>/lock             held while a process has the store open
    <root>/blobs/3f/3f09…   256 folders by the first byte; at a million blobs each has 4 000 files
    <root>/incoming/        files being written; whatever is left here by a crash is removed when the store opens
    <root>/quarantine/      damaged files, the newest few, for the operator

Promises:
R1 `put` returns only when the blob survives a loss of power: file, then name, are synced.
R2 a name in `blobs/` always has a whole blob, as far as we wrote it: names appear by rename.
R3 `get` returns the very bytes that were put, or raises: what the disk damaged is set aside and reported as `BlobCorrupt`,
   so that the node can fetch it from another holder and put it again.
R4 a full disk or a reached capacity leaves everything as it was. Some space is left to others on the same disk: the
   consensus safety record must never be the one that finds it full.

All calls block (a put takes two syncs), and all are safe to call from several worker threads.
"""

import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from ledger.crypto.hashing import DIGEST_BYTES
from ledger.errors import StoreError
from records.blob_store import BlobCorrupt, StorageFull, Usage, address, check_capacity, check_named, not_found
from records.limits import MAX_BLOB_BYTES

RESERVE_BYTES = 256 << 20
"""Free space that is left on the disk: at least a minute of a chain at its full rate, time enough for an alarm."""
QUARANTINE_FILES = 16
"""Damaged files that are kept, at most 128 MiB: enough to see a pattern, and a failing disk cannot fill itself."""

_BLOB_NAME = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")
_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskBlobStore:
    """A store in a folder of its own; one process at a time."""

    def __init__(self, root: Path, capacity_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        """Open or create the store and remove what a crash left half-written; takes the same time however full it is.

        Raises:
            StoreError: the folder cannot be used, or another process has it open.
        """
        self._capacity_bytes = capacity_bytes
        self._reserve_bytes = reserve_bytes
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        self._quarantine = root / "quarantine"
        self._sequence = 0
        # Guards names and the count. Data are written and synced outside, so that puts overlap.
        self._mutex = threading.Lock()
        # Counted at the first need (seconds for a million blobs): a node must serve at once, however many it keeps. It
        # calls `usage` in a worker thread once it serves, so that no put has to wait for the count.
        self._counted: tuple[int, int] | None = None
        try:
            _make_folders(root, self._blobs, self._incoming, self._quarantine)
            self._lock = _lock(root / "lock")
            try:
                for leftover in self._incoming.iterdir():
                    leftover.unlink()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise StoreError(f"blob store {root} cannot be opened: {error}; check the path and its owner") from error

    def close(self) -> None:
        """Let another process open the store; every blob was already durable."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, blob_id: bytes, blob: bytes) -> None:
        """See `BlobStore`."""
        check_named(blob_id, blob)
        target = self._file(blob_id)
        try:
            if not self.has(blob_id):
                self._write(target, blob)
            # Also when it was here: another thread may have named it and not yet synced the name.
            _sync_folder(target.parent)
        except OSError as error:
            if error.errno in _DISK_IS_FULL:
                raise StorageFull(
                    f"no room for a blob of {len(blob)} bytes: {error.strerror}; free the disk"
                ) from error
            raise StoreError(f"blob {blob_id.hex()} cannot be written: {error}") from error

    def get(self, blob_id: bytes) -> bytes:
        """See `BlobStore`."""
        file = self._file(blob_id)
        try:
            with file.open("rb") as stream:
                blob = stream.read(MAX_BLOB_BYTES + 1)
        except FileNotFoundError as error:
            raise not_found(blob_id) from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise StoreError(f"blob {blob_id.hex()} cannot be read: {error}") from error
            blob = b""  # a bad sector; only this blob is lost
        if address(blob) == blob_id:
            return blob
        self._set_aside(blob_id)
        raise BlobCorrupt(
            f"blob {blob_id.hex()} ({len(blob)} bytes) is damaged and was set aside; fetch it from another holder"
        )

    def has(self, blob_id: bytes) -> bool:
        """See `BlobStore`."""
        return self._file(blob_id).exists()

    def delete(self, blob_id: bytes) -> bool:
        """See `BlobStore`.

        The file system frees the blocks and does not wipe them: what can still be read there is ciphertext.
        """
        file = self._file(blob_id)
        try:
            with self._mutex:
                gone = self._remove(file, None)
            if gone:
                _sync_folder(file.parent)
        except OSError as error:
            raise StoreError(f"blob {blob_id.hex()} cannot be deleted: {error}") from error
        return gone

    def iterate(self) -> Iterator[bytes]:
        """See `BlobStore`."""
        for folder in _folders(self._blobs):
            try:
                # A folder's names are taken at once: 4 000 of them at a million blobs.
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries)
            except OSError as error:
                raise StoreError(f"blobs cannot be listed: {error}") from error
            for name in names:
                if _is_blob_name(folder, name):
                    yield bytes.fromhex(name)

    def usage(self) -> Usage:
        """See `BlobStore`."""
        try:
            with self._mutex:
                return self._usage()
        except OSError as error:
            raise StoreError(f"blobs cannot be counted: {error}") from error

    def _file(self, blob_id: bytes) -> Path:
        assert len(blob_id) == DIGEST_BYTES, f"a blob id has 32 bytes, not {len(blob_id)}"
        name = blob_id.hex()
        return self._blobs / name[:2] / name

    def _usage(self) -> Usage:
        if self._counted is None:
            self._counted = _count(self._blobs)
        blobs, total_bytes = self._counted
        return Usage(blobs=blobs, total_bytes=total_bytes, capacity_bytes=self._capacity_bytes)

    def _add(self, blobs: int, size_bytes: int) -> None:
        if self._counted is not None:
            self._counted = (self._counted[0] + blobs, self._counted[1] + size_bytes)

    def _check_disk(self, size_bytes: int) -> None:
        disk = os.statvfs(self._incoming)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes - size_bytes < self._reserve_bytes:
            raise StorageFull(
                f"no room for a blob of {size_bytes} bytes: the disk has {free_bytes} bytes free, of which "
                f"{self._reserve_bytes} stay for the chain; free the disk or move the store"
            )

    def _write(self, target: Path, blob: bytes) -> None:
        with self._mutex:
            check_capacity(self._usage(), len(blob))
            self._check_disk(len(blob))
            self._sequence += 1
            temporary = self._incoming / f"{self._sequence}-{target.name}"
        try:
            _write_synced(temporary, blob)
            with self._mutex:
                self._publish(temporary, target, len(blob))
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _publish(self, temporary: Path, target: Path, size_bytes: int) -> None:
        """Give the written file its name, under the mutex: checks again, for other puts ran meanwhile."""
        if target.exists():
            temporary.unlink()
            return
        check_capacity(self._usage(), size_bytes)
        temporary.rename(target)
        self._add(1, size_bytes)

    def _set_aside(self, blob_id: bytes) -> None:
        file = self._file(blob_id)
        try:
            with self._mutex:
                # Another thread may have set it aside, and even put it again: look once more under the mutex.
                with suppress(OSError), file.open("rb") as stream:
                    if address(stream.read(MAX_BLOB_BYTES + 1)) == blob_id:
                        return
                self._remove(file, self._quarantine / file.name)
                kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_ctime_ns)
                for oldest in kept[:-QUARANTINE_FILES]:
                    oldest.unlink()
        except OSError as error:
            raise StoreError(f"damaged blob {blob_id.hex()} cannot be set aside: {error}; check the disk") from error

    def _remove(self, file: Path, destination: Path | None) -> bool:
        """Unlink or move a file, under the mutex, and correct the count; tell whether it was there."""
        try:
            size_bytes = file.stat().st_size
            if destination is None:
                file.unlink()
            else:
                file.rename(destination)
        except FileNotFoundError:
            return False
        self._add(-1, -size_bytes)
        return True


def _make_folders(root: Path, blobs: Path, incoming: Path, quarantine: Path) -> None:
    for folder in (root, blobs, incoming, quarantine):
        # Ciphertext, but nobody else's business.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = [folder for folder in _folders(blobs) if not folder.is_dir()]
    for folder in missing:
        folder.mkdir(mode=0o700, exist_ok=True)
    if missing:
        for folder in (blobs, root, root.parent):
            _sync_folder(folder)


def _folders(blobs: Path) -> Iterator[Path]:
    return (blobs / f"{first:02x}" for first in range(256))


def _lock(file: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(f"blob store {file.parent} is in use by another process; stop that one first") from error
    return descriptor


def _is_blob_name(folder: Path, name: str) -> bool:
    return _BLOB_NAME.fullmatch(name) is not None and name.startswith(folder.name)


def _count(blobs: Path) -> tuple[int, int]:
    count = total_bytes = 0
    for folder in _folders(blobs):
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_blob_name(folder, entry.name):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        count += 1
                        total_bytes += status.st_size
    return count, total_bytes


def _write_synced(file: Path, data: bytes) -> None:
    with file.open("xb", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
