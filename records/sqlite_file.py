# SPDX-License-Identifier: GPL-3.0-or-later
"""A small SQLite database of one process: opened for this chain and no other, written durably, its errors typed.

SQLite rather than LMDB: what is kept here is written rarely, read by several columns, and must be easy to inspect and to back up.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ledger.errors import StoreError
from records.blob_store import StorageFull

_META = "CREATE TABLE meta (chain_id BLOB NOT NULL, format INTEGER NOT NULL)"


class SqliteFile:
    """One database file; safe to call from several threads, one transaction at a time."""

    def __init__(
        self, path: Path, *, chain_id: bytes, table_format: int, schema: str, pragmas: tuple[str, ...]
    ) -> None:
        """Open or create the file, for this process alone.

        Args:
            path: the file; its folder exists.
            chain_id: the chain that the content belongs to.
            table_format: raised whenever `schema` changes.
            schema: statements that create the tables, separated by semicolons.
            pragmas: how the file is written.

        Raises:
            StoreError: in use by another process, of another chain or format, damaged, or not to be opened.
        """
        self._path = path
        self._mutex = threading.Lock()
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened: {error}; check the path and its owner") from error
        try:
            with _typed_errors(path):
                for pragma in ("locking_mode = EXCLUSIVE", "trusted_schema = OFF", *pragmas):
                    self._connection.execute(f"PRAGMA {pragma}")
            self._prepare(chain_id, table_format, schema)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let another process open the file; everything was durable already."""
        with self._mutex:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements that take effect together, durably, when the block ends without an error.

        Raises:
            StorageFull: the disk is full. Nothing was changed.
            StoreError: the file is damaged or the disk fails. Nothing was changed.
        """
        with self._mutex, _typed_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself ends it when the disk is full
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _prepare(self, chain_id: bytes, table_format: int, schema: str) -> None:
        with self.transaction() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in (_META, *filter(None, (part.strip() for part in schema.split(";")))):
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES (?, ?)", (chain_id, table_format))
            found = connection.execute("SELECT chain_id, format FROM meta").fetchall()
        if found != [(chain_id, table_format)]:
            raise StoreError(
                f"{self._path} belongs to another chain or release; move it away, or start with the data folder it came from"
            )


@contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        # What has no code, such as a call after `close`, is a fault of ours. The low byte is the kind of error.
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            raise
        if code & 0xFF == sqlite3.SQLITE_FULL:
            raise StorageFull(f"no room on the disk of {path}: free it") from error
        if code & 0xFF == sqlite3.SQLITE_BUSY:
            raise StoreError(f"{path} is in use by another process; stop that one first") from error
        raise StoreError(
            f"{path} cannot be used: {error}; check the disk, or restore the file from a backup"
        ) from error
