# SPDX-License-Identifier: GPL-3.0-or-later
"""One LMDB environment in a directory of its own: lock, growth, refusal of what is foreign or damaged, recovery.

LMDB writes changed pages beside the old ones and flips a root page last, so kill -9 or power loss at any point leaves the
content before or after a transaction, never between; nothing is repaired at start. What we add: a lock of our own (LMDB
allows many processes, our promise is one), growth of the map, texts with a remedy, and a fresh environment after a failed
write.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import lmdb

from ledger.errors import StoreError

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]
    Database = lmdb._Database  # noqa: SLF001 -- a type without a public name

T = TypeVar("T")

MAP_BYTES = 64 * 1024**2
"""First size of the map: a devnet's first hour. It is address space, the file grows with its content only."""
MAP_BOUND_BYTES = 1024**4
"""Bound of the map's growth by doubling: a terabyte, far below the 47 bits of address space of a process."""
_LITTLE_SPACE_BYTES = 1024**2
"""With less than this a failed write is put down to the full disk."""
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.PanicError,
)
_LOCK_FILE_BYTES = 8192
"""LMDB's table of 127 readers; we have one."""
_TRUNCATION_TOLERANCE_BYTES = 1024**2
"""LMDB need not write the last pages that it has numbered; more missing than this means that the file was cut."""


class Environment:
    """Named databases under one lock; the first of them is the one that `read` uses without a name."""

    def __init__(
        self,
        directory: Path,
        databases: Sequence[str],
        *,
        map_bytes: int = MAP_BYTES,
        map_bound_bytes: int = MAP_BOUND_BYTES,
    ) -> None:
        """Open the directory, and make it if there is none. Raises `StoreError`."""
        self.directory = directory
        self._names = tuple(databases)
        self._map_bytes, self._map_bound_bytes = map_bytes, map_bound_bytes
        self._lock = _lock_directory(directory)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        self._env = _open_environment(self.directory, self._map_bytes, len(self._names))
        try:
            with self._env.begin() as txn:
                found = set(txn.cursor().iternext(values=False))
            if not found <= {name.encode() for name in self._names}:
                raise damaged(self.directory, "data.mdb belongs to another program or a later version")
            self.db = {name: self._env.open_db(name.encode()) for name in self._names}
            self._begin()
        except lmdb.Error as error:
            self._env.close()
            raise self._failure(error) from error
        except StoreError:
            self._env.close()
            raise

    def _begin(self) -> None:
        self.read = self._env.begin(db=self.db[self._names[0]])
        """The read transaction, renewed after every write."""

    def get(self, name: str, key: bytes) -> bytes | None:
        """Return a committed value; a key that LMDB cannot hold (empty, over 511 bytes) has none."""
        try:
            return self.read.get(key, None, self.db[name])
        except lmdb.BadValsizeError:
            return None
        except lmdb.Error as error:
            raise self._failure(error) from error

    @contextmanager
    def reading(self) -> Iterator["Txn"]:
        """Give the read transaction for a few calls, of which none lies behind a `yield`. Raises `StoreError`."""
        try:
            yield self.read
        except lmdb.Error as error:
            raise self._failure(error) from error

    def write(self, work: Callable[["Txn"], T]) -> T:
        """Run `work` in one durable transaction, again with a larger map when it is full.

        `work` must not keep anything for itself, since it may run more than once. Raises `StoreError`; then nothing is
        written, and later calls may succeed.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    result = work(txn)
            except lmdb.MapFullError:
                self._grow()
                continue
            except lmdb.Error as error:
                self._recover(error)
            # A reader that outlives a commit keeps its pages from being used again.
            self.read.abort()
            self._begin()
            return result

    def _grow(self) -> None:
        size = self._env.info()["map_size"]
        if size >= self._map_bound_bytes:
            detail = f"the store in {self.directory} has reached its bound of {self._map_bound_bytes} bytes"
            raise StoreError(f"{detail}, nothing was written; raise the bound or prune old blocks")
        # The map can move, so nothing may be reading.
        self.read.abort()
        self._map_bytes = min(2 * size, self._map_bound_bytes)
        try:
            self._env.set_mapsize(self._map_bytes)
        except lmdb.Error as error:
            self._recover(error)
        self._begin()

    def _recover(self, error: lmdb.Error) -> NoReturn:
        """Open the environment afresh after a failed write: LMDB may refuse every later one otherwise."""
        self.read.abort()
        self._env.close()
        self._open()
        raise self._failure(error) from error

    def _failure(self, error: lmdb.Error) -> StoreError:
        if isinstance(error, _DAMAGE):
            return damaged(self.directory, str(error))
        disk = os.statvfs(self.directory)
        # A write that is cut short by a full disk arrives as an input/output error.
        if isinstance(error, lmdb.DiskError) or disk.f_bavail * disk.f_frsize < _LITTLE_SPACE_BYTES:
            return StoreError(f"no space left in {self.directory}, nothing was written; free some and try again")
        detail = f"{self.directory} cannot be used, nothing was written: {error}"
        return StoreError(f"{detail}; check the disk, permissions and limits of memory")

    def close(self) -> None:
        """Release all files; further calls are errors of ours."""
        self.read.abort()
        self._env.close()
        os.close(self._lock)


def damaged(directory: Path, what: str) -> StoreError:
    """Return the error for content that cannot be read."""
    return StoreError(
        f"the store in {directory} is damaged or of another format: {what}; move the directory away and let the "
        "node fetch the chain again, or restore a copy"
    )


def _lock_directory(directory: Path) -> int:
    """Take the directory for this process. The kernel frees the lock when the process ends, however it ends."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        detail = f"directory {directory} cannot be used: {error.strerror}"
        raise StoreError(f"{detail}; give the node's user write permission and space, or choose another") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        detail = f"directory {directory} is in use by process {holder}"
        raise StoreError(f"{detail}; stop that node or choose another directory") from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except OSError:
        # The process id only helps an operator; a full disk must not keep a node from reading.
        return lock
    return lock


def _reserve_lock_file(directory: Path) -> None:
    # LMDB maps its table of readers; on a full disk a hole in that file would kill the process at the first write to it.
    file = os.open(directory / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, _LOCK_FILE_BYTES)
    finally:
        os.close(file)


def _open_environment(directory: Path, map_bytes: int, databases: int) -> lmdb.Environment:
    data = directory / "data.mdb"
    try:
        used = data.stat().st_size if data.exists() else 0
        _reserve_lock_file(directory)
        environment = lmdb.open(
            str(directory),
            map_size=max(map_bytes, used),
            mode=0o600,
            max_dbs=databases,
            max_spare_txns=2,
            readahead=False,  # keys are hashes: what lies beside a page is not needed next
            lib_version=0,  # the format of LMDB 0.9, which every tool reads
        )
    except (lmdb.ReadonlyError, lmdb.DiskError, OSError) as error:
        raise StoreError(f"{data} cannot be opened: {error}; check permissions and free space") from error
    except lmdb.Error as error:
        raise damaged(directory, str(error)) from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    missing = needed - data.stat().st_size if used else 0
    if missing > _TRUNCATION_TOLERANCE_BYTES:
        environment.close()
        raise damaged(directory, f"data.mdb is {missing} bytes shorter than its own index says")
    if missing > 0:
        # Reading a mapped page beyond the end of the file would kill the process; a page of zeros is an error.
        os.truncate(data, needed)
    return environment
