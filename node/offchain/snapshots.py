# SPDX-License-Identifier: GPL-3.0-or-later
"""States of contracts at the border of two batches, on the disk: where a watcher goes on after a restart.

R1 `put` returns when the snapshot survives a loss of power; it is there whole or not at all.
R2 A snapshot that is read is one that was written: who takes it compares its root with the chain's, and a damaged one is removed.

All calls block; they are safe from several worker threads.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Self

import msgspec

from contracts.operator import Start
from node.offchain.contract_states import StateHead, entries_of, pages_of
from records.sqlite_file import SqliteFile

_FORMAT = 1
_SCHEMA = """
CREATE TABLE snapshots (
    contract_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    pages INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (contract_id, number)
) WITHOUT ROWID;
CREATE TABLE pages (
    contract_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    page INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (contract_id, number, page)
)
"""
# Written once, megabytes at a time: a write-ahead log would write it twice.
_PRAGMAS = ("journal_mode = TRUNCATE", "synchronous = FULL")


class SnapshotHead(msgspec.Struct, frozen=True):
    """What is known of a snapshot without reading it."""

    number: int
    """The batch that comes next."""
    pages: int
    """Pages."""
    entries: int
    """Entries of the state."""
    size: int
    """Bytes of the pages."""

    @property
    def head(self) -> StateHead:
        """The same as peers are told it."""
        return StateHead(self.number, self.pages, self.entries, self.size)


class Snapshots:
    """Snapshots in one file; one process at a time."""

    def __init__(self, path: Path, *, chain_id: bytes) -> None:
        """Open or create the file, whose folder exists. Raises `StoreError`; see `SqliteFile`."""
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, contract_id: bytes, start: Start) -> SnapshotHead:
        """Keep a state durably; again is no change. Raises `StorageFull`, `StoreError`; nothing was changed then."""
        pages = pages_of(start.entries)
        head = SnapshotHead(start.number, len(pages), len(start.entries), sum(map(len, pages)))
        row = (contract_id, head.number, start.time_ms, head.pages, head.entries, head.size)
        with self._file.transaction() as connection:
            if connection.execute("INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
                places = ((contract_id, start.number, page, data) for page, data in enumerate(pages))
                connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", places)
        return head

    def heads(self, contract_id: bytes) -> list[SnapshotHead]:
        """Return what is kept of a contract, the oldest first. Raises `StoreError`."""
        rows = "SELECT number, pages, entries, size FROM snapshots WHERE contract_id = ? ORDER BY number"
        with self._file.transaction() as connection:
            return [SnapshotHead(*row) for row in connection.execute(rows, (contract_id,))]

    def get(self, contract_id: bytes, number: int) -> Start | None:
        """Return a snapshot. Raises `StoreError`, and `InvalidInput` for one that is damaged."""
        place = (contract_id, number)
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT time_ms, entries FROM snapshots WHERE contract_id = ? AND number = ?", place
            ).fetchone()
            rows = connection.execute(
                "SELECT data FROM pages WHERE contract_id = ? AND number = ? ORDER BY page", place
            )
            pages = [bytes(data) for (data,) in rows]
        return None if found is None else Start(number, found[0], entries_of(pages, found[1]))

    def page(self, contract_id: bytes, number: int, page: int) -> bytes | None:
        """Return one page of a snapshot. Raises `StoreError`."""
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT data FROM pages WHERE contract_id = ? AND number = ? AND page = ?", (contract_id, number, page)
            ).fetchone()
        return None if found is None else bytes(found[0])

    def remove(self, contract_id: bytes, numbers: Collection[int]) -> None:
        """Let go of snapshots. Raises `StoreError`; nothing was changed then."""
        places = [(contract_id, number) for number in numbers]
        with self._file.transaction() as connection:
            connection.executemany("DELETE FROM snapshots WHERE contract_id = ? AND number = ?", places)
            connection.executemany("DELETE FROM pages WHERE contract_id = ? AND number = ?", places)

    def contracts(self) -> list[bytes]:
        """Return the contracts of which something is kept. Raises `StoreError`."""
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT DISTINCT contract_id FROM snapshots")
            return [bytes(contract_id) for (contract_id,) in rows]
