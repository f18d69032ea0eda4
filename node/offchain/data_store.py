# SPDX-License-Identifier: GPL-3.0-or-later
"""The published data of batches that this node keeps: by digest, bounded, and which batches rest on each.

R1 `put` returns when the data survives a loss of power: an operator submits a commitment, and a member votes for it, only then.
R2 What is read is what was put: its digest is checked on every read, and damaged data is removed, so that it is fetched again.

All calls block; they are safe from several worker threads.
"""

import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import msgspec
import structlog

from ledger.offchain import MAX_DATA_BYTES, data_digest
from records.blob_store import StorageFull
from records.sqlite_file import SqliteFile

log = structlog.get_logger()

_FORMAT = 1
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
                if use is not None and use.number <= _MAX_NUMBER:
                    place = (digest, use.contract_id, use.number)
                    connection.execute("INSERT OR IGNORE INTO uses VALUES (?, ?, ?)", place)
            if known is None:
                self._total_bytes += len(data)

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
            with self._file.transaction() as connection:
                for key in keys:
                    found = connection.execute("SELECT size FROM kept WHERE digest = ?", key).fetchone()
                    freed += found[0] if found is not None else 0
                    for table in ("data", "kept", "uses"):
                        connection.execute(f"DELETE FROM {table} WHERE digest = ?", key)  # noqa: S608 -- our own names
            self._total_bytes -= freed

    def lacking(self, digests: Collection[bytes]) -> set[bytes]:
        """Return those of the digests whose data is not here. Raises `StoreError`."""
        with self._file.transaction() as connection:
            found = "SELECT 1 FROM kept WHERE digest = ?"
            return {digest for digest in digests if connection.execute(found, (digest,)).fetchone() is None}

    def due(self, height: int, limit: int) -> list[Kept]:
        """Return up to `limit` data that is to be looked at up to a height. Raises `StoreError`."""
        rows = "SELECT digest, since_height FROM kept WHERE look_height <= ? ORDER BY look_height LIMIT ?"
        uses = "SELECT contract_id, number FROM uses WHERE digest = ?"
        with self._file.transaction() as connection:
            return [
                Kept(
                    bytes(digest),
                    since,
                    tuple(Use(bytes(contract), number) for contract, number in connection.execute(uses, (digest,))),
                )
                for digest, since in connection.execute(rows, (height, limit)).fetchall()
            ]

    def looked(self, looks: Iterable[Look]) -> None:
        """Note what looks have shown. Raises `StoreError`."""
        with self._file.transaction() as connection:
            for look in looks:
                row = (look.since_height, look.next_height, look.digest)
                connection.execute("UPDATE kept SET since_height = ?, look_height = ? WHERE digest = ?", row)
