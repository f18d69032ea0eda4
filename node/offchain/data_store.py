# SPDX-License-Identifier: GPL-3.0-or-later
"""The published data of batches that this node keeps: by digest, bounded, which batches rest on each, and how much is whose.

R1 `put` returns when the data survives a loss of power: an operator submits a commitment, and a member votes for it, only then.
R2 What is read is what was put: its digest is checked on every read, and damaged data is removed, so that it is fetched again.

All calls block; they are safe from several worker threads.
"""

import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import msgspec
import structlog

from ledger.offchain import MAX_DATA_BYTES, data_digest
from records.blob_store import StorageFull
from records.sqlite_file import SqliteFile

log = structlog.get_logger()

_FORMAT = 2
# What sums and sweeps read stands apart from the data, and takes 50 bytes.
_SCHEMA = """
CREATE TABLE data (
    digest BLOB PRIMARY KEY,
    data BLOB NOT NULL
);
CREATE TABLE kept (
    digest BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    since_height INTEGER,
    look_height INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX kept_by_look ON kept (look_height, digest);
CREATE TABLE uses (
    digest BLOB NOT NULL,
    contract_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    operator BLOB NOT NULL,
    PRIMARY KEY (digest, contract_id, number)
) WITHOUT ROWID
"""
# Data is written once and megabytes at a time: a write-ahead log would write it twice.
_PRAGMAS = ("journal_mode = TRUNCATE", "synchronous = FULL")
_MAX_NUMBER = 2**63 - 1
"""As large as a number can be in SQLite; a batch of a larger one does not come about."""


class Use(msgspec.Struct, frozen=True):
    """A batch that rests on some data."""

    contract_id: bytes
    """The contract."""
    number: int
    """The batch."""
    operator: bytes
    """Public key of the contract's operator, to whose share the data counts."""


class Kept(msgspec.Struct, frozen=True):
    """Some data that is here, as a sweep sees it."""

    digest: bytes
    """Its digest."""
    since_height: int | None
    """Height at which a sweep first found no committed batch that rests on it; None when none did."""
    uses: tuple[Use, ...]
    """Batches that rest on it, as far as they are known here."""


class Look(msgspec.Struct, frozen=True):
    """What a sweep has seen of some data that stays."""

    digest: bytes
    """Its digest."""
    since_height: int | None
    """As in `Kept`."""
    next_height: int
    """Height at which to look again: nothing changes before."""


class DataStore:
    """Data of batches in one file; one process at a time."""

    def __init__(self, path: Path, *, chain_id: bytes, capacity_bytes: int) -> None:
        """Open or create the file, whose folder exists. Raises `StoreError`; see `SqliteFile`."""
        self.capacity_bytes = capacity_bytes
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)
        # One writer at a time: the sum must be that of the file.
        self._writing = threading.Lock()
        with self._file.transaction() as connection:
            self._total_bytes = int(connection.execute("SELECT coalesce(sum(size), 0) FROM kept").fetchone()[0])
            owned = "SELECT DISTINCT operator, digest FROM uses"
            sums = f"SELECT operator, sum(size) FROM ({owned}) JOIN kept USING (digest) GROUP BY operator"  # noqa: S608 -- our own words
            self._by_operator = Counter({bytes(operator): int(size) for operator, size in connection.execute(sums)})

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes of all data."""
        return self._total_bytes

    def bytes_of(self, operator: bytes) -> int:
        """Return the size of all data that batches of an operator rest on; data that several operators publish counts to each."""
        return self._by_operator[operator]

    def has_room(self, size: int, spare: int = 0) -> bool:
        """Tell whether data of a size would be kept, and leave room to spare."""
        return self._total_bytes + size + spare <= self.capacity_bytes

    def put(self, digest: bytes, data: bytes, use: Use | None = None) -> None:
        """Keep data durably, and note which batch rests on it; again is no change but for the note.

        Raises:
            StorageFull: the capacity is reached, or the disk is full. Nothing was changed.
            StoreError: the disk fails. Nothing was changed.
        """
        assert data_digest(data) == digest, f"{digest.hex()} is not the digest of the data"
        assert len(data) <= MAX_DATA_BYTES, f"{len(data)} bytes of data"
        with self._writing:
            with self._file.transaction() as connection:
                known = connection.execute("SELECT 1 FROM kept WHERE digest = ?", (digest,)).fetchone()
                if known is None:
                    if not self.has_room(len(data)):
                        raise StorageFull(
                            f"{self._total_bytes} bytes of off-chain data are kept here and {len(data)} more exceed "
                            f"{self.capacity_bytes}; raise offchain_data_bytes, or wait until batches are final"
                        )
                    connection.execute("INSERT INTO data VALUES (?, ?)", (digest, data))
                    connection.execute("INSERT INTO kept (digest, size) VALUES (?, ?)", (digest, len(data)))
                charged: bytes | None = None
                if use is not None and use.number <= _MAX_NUMBER:
                    charged = None if use.operator in _owners(connection, digest) else use.operator
                    row = (digest, use.contract_id, use.number, use.operator)
                    connection.execute("INSERT OR IGNORE INTO uses VALUES (?, ?, ?, ?)", row)
            if known is None:
                self._total_bytes += len(data)
            if charged is not None:
                self._by_operator[charged] += len(data)

    def get(self, digest: bytes) -> bytes | None:
        """Return data that is here; None for damaged data too, which is removed. Raises `StoreError`."""
        with self._file.transaction() as connection:
            found = connection.execute("SELECT data FROM data WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            return None
        data = bytes(found[0])
        if data_digest(data) != digest:
            log.error("data of a batch was damaged on the disk; it is removed and fetched again", digest=digest.hex())
            self.remove([digest])
            return None
        return data

    def has(self, digest: bytes) -> bool:
        """Tell whether data is here, without reading it. Raises `StoreError`."""
        with self._file.transaction() as connection:
            return connection.execute("SELECT 1 FROM kept WHERE digest = ?", (digest,)).fetchone() is not None

    def digests(self) -> list[bytes]:
        """Return the digests of all data. Raises `StoreError`."""
        with self._file.transaction() as connection:
            return [bytes(digest) for (digest,) in connection.execute("SELECT digest FROM kept ORDER BY digest")]

    def remove(self, digests: Collection[bytes]) -> None:
        """Let go of data. Raises `StoreError`; nothing was changed then."""
        keys = [(digest,) for digest in digests]
        with self._writing:
            freed = 0
            freed_of: Counter[bytes] = Counter()
            with self._file.transaction() as connection:
                for key in keys:
                    found = connection.execute("SELECT size FROM kept WHERE digest = ?", key).fetchone()
                    size = int(found[0]) if found is not None else 0
                    freed += size
                    freed_of.update(dict.fromkeys(_owners(connection, key[0]), size))
                    for table in ("data", "kept", "uses"):
                        connection.execute(f"DELETE FROM {table} WHERE digest = ?", key)  # noqa: S608 -- our own names
            self._total_bytes -= freed
            self._discharge(freed_of)

    def end_uses(self, digest: bytes, uses: Collection[Use]) -> None:
        """Note that batches rest on some data no more, which stays for others: it counts to their operators only. Raises `StoreError`."""
        with self._writing:
            freed_of: Counter[bytes] = Counter()
            with self._file.transaction() as connection:
                found = connection.execute("SELECT size FROM kept WHERE digest = ?", (digest,)).fetchone()
                before = _owners(connection, digest)
                gone = "DELETE FROM uses WHERE digest = ? AND contract_id = ? AND number = ?"
                for use in uses:
                    connection.execute(gone, (digest, use.contract_id, use.number))
                if found is not None:
                    freed_of.update(dict.fromkeys(before - _owners(connection, digest), int(found[0])))
            self._discharge(freed_of)

    def _discharge(self, freed_of: Counter[bytes]) -> None:
        for operator, size in freed_of.items():
            left = self._by_operator[operator] - size
            if left:
                self._by_operator[operator] = left
            else:
                self._by_operator.pop(operator, None)  # nothing is remembered of who has nothing here

    def lacking(self, digests: Collection[bytes]) -> set[bytes]:
        """Return those of the digests whose data is not here. Raises `StoreError`."""
        with self._file.transaction() as connection:
            found = "SELECT 1 FROM kept WHERE digest = ?"
            return {digest for digest in digests if connection.execute(found, (digest,)).fetchone() is None}

    def due(self, height: int, limit: int) -> list[Kept]:
        """Return up to `limit` data that is to be looked at up to a height. Raises `StoreError`."""
        rows = "SELECT digest, since_height FROM kept WHERE look_height <= ? ORDER BY look_height LIMIT ?"
        uses = "SELECT contract_id, number, operator FROM uses WHERE digest = ?"
        with self._file.transaction() as connection:
            return [
                Kept(
                    bytes(digest),
                    since,
                    tuple(
                        Use(bytes(contract), number, bytes(operator))
                        for contract, number, operator in connection.execute(uses, (digest,))
                    ),
                )
                for digest, since in connection.execute(rows, (height, limit)).fetchall()
            ]

    def looked(self, looks: Iterable[Look]) -> None:
        """Note what looks have shown. Raises `StoreError`."""
        with self._file.transaction() as connection:
            for look in looks:
                row = (look.since_height, look.next_height, look.digest)
                connection.execute("UPDATE kept SET since_height = ?, look_height = ? WHERE digest = ?", row)


def _owners(connection: sqlite3.Connection, digest: bytes) -> set[bytes]:
    """Return the operators whose batches rest on some data."""
    rows = connection.execute("SELECT DISTINCT operator FROM uses WHERE digest = ?", (digest,))
    return {bytes(operator) for (operator,) in rows}
