# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy's access log on disk: signed, chained entries, each durable before the answer that it is about leaves.

What an entry says and what the chains are for stands in `records.access_entries`. Entries are never changed or deleted: the file grows by
about 600 bytes with each answer, and what strangers can add is bounded by `records.proxy_desk`.

All calls block; they are safe from several worker threads.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Self

from ledger.codec import encode
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, StoreError
from records.access_entries import (
    MAX_PAGE_ENTRIES,
    AccessEntry,
    AccessHead,
    AccessPage,
    SignedEntry,
    decode_entry,
    entry_hash,
    head_digest,
    is_entry_signed,
    sign_entry,
)
from records.feed_cursor import FeedCursor
from records.requests import RefusalReason
from records.sqlite_file import SqliteFile

_FORMAT = 1
_SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY,
    patient BLOB NOT NULL,
    patient_number INTEGER NOT NULL,
    raw BLOB NOT NULL
);
CREATE UNIQUE INDEX entries_by_patient ON entries (patient, patient_number)
"""
# A write-ahead log takes one sync for an entry; FULL syncs it before the transaction counts as committed.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL")


class LogDamaged(StoreError):
    """The access log is not what this proxy has written: entries are missing, changed or not signed by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What is to be written down; see the fields of `AccessEntry`."""

    patient: bytes
    """Whose grant it is, or `NO_PATIENT`."""
    grant_id: bytes
    """The grant that the request names."""
    records: tuple[int, ...]
    """Sequence numbers."""
    requester: bytes
    """Key that the request names."""
    purpose: str
    """Purpose of use."""
    emergency: int | None
    """The emergency that the request names."""
    reason: RefusalReason | None
    """None when the records were re-encrypted."""
    request_digest: bytes
    """Digest of the request."""
    fragments_digest: bytes
    """Digest of the capsule fragments."""
    head_height: int
    """Height that was committed."""
    timestamp_ms: int
    """Time by the proxy's clock."""


class AccessLog:
    """One proxy's log in one file; one process at a time."""

    def __init__(self, path: Path, *, chain_id: bytes, key: PrivateKey) -> None:
        """Open or create the log, and check its newest entry; takes the same time however long it is.

        Args:
            path: the file; its folder exists.
            chain_id: the chain that the log is about.
            key: the proxy's account key, which signs.

        Raises:
            LogDamaged: the newest entry is not this proxy's.
            StoreError: see `SqliteFile`.
        """
        self._path = path
        self._chain_id = chain_id
        self._key = key
        # Held over a transaction and what it changes here: the newest entry's number and hash.
        self._mutex = threading.Lock()
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)
        try:
            with self._file.transaction() as connection:
                self._count, self._last = self._newest(connection)
            self.cursor = FeedCursor(self._file)
            """How far the entries have been brought to a contract."""
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let another process open the file; every entry was durable already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def append(self, access: Access) -> SignedEntry:
        """Write an entry and return it, signed; it is durable then. Raises `StoreError`, and then nothing was written."""
        with self._mutex:
            with self._file.transaction() as connection:
                patient_count, patient_last = self._patient_newest(connection, access.patient)
                entry = AccessEntry(
                    proxy=self._key.address,
                    number=self._count,
                    previous=self._last,
                    patient=access.patient,
                    patient_number=patient_count,
                    patient_previous=patient_last,
                    grant_id=access.grant_id,
                    records=access.records,
                    requester=access.requester,
                    purpose=access.purpose,
                    emergency=access.emergency,
                    reason=access.reason,
                    request_digest=access.request_digest,
                    fragments_digest=access.fragments_digest,
                    head_height=access.head_height,
                    timestamp_ms=access.timestamp_ms,
                )
                signed = sign_entry(self._chain_id, self._key, entry)
                connection.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    (entry.number, entry.patient, entry.patient_number, encode(signed)),
                )
            self._count, self._last = self._count + 1, entry_hash(entry)
        return signed

    def page(self, patient: bytes, start: int, timestamp_ms: int, limit: int = MAX_PAGE_ENTRIES) -> AccessPage:
        """Return entries about a patient from `patient_number` start on, and a signed head. Raises `StoreError`."""
        with self._mutex, self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT raw FROM entries WHERE patient = ? AND patient_number >= ? ORDER BY patient_number LIMIT ?",
                (patient, start, min(limit, MAX_PAGE_ENTRIES)),
            ).fetchall()
            patient_count, patient_last = self._patient_newest(connection, patient)
            head = AccessHead(
                self._key.address, self._count, self._last, patient, patient_count, patient_last, timestamp_ms
            )
        entries = tuple(self._decode(raw) for (raw,) in rows)
        return AccessPage(entries, head, self._key.sign(head_digest(self._chain_id, head)))

    def newest(self) -> Iterator[AccessEntry]:
        """Yield all entries, the newest first, reading as many as are taken. Raises `StoreError`."""
        before = self._count
        while before > 0:
            with self._file.transaction() as connection:
                rows = connection.execute(
                    "SELECT raw FROM entries WHERE number < ? ORDER BY number DESC LIMIT ?", (before, MAX_PAGE_ENTRIES)
                ).fetchall()
            for (raw,) in rows:
                yield self._decode(raw).entry
            before -= MAX_PAGE_ENTRIES

    def entries(self, start: int, limit: int = MAX_PAGE_ENTRIES) -> tuple[SignedEntry, ...]:
        """Return entries about everybody from `number` start on, for the operator and auditors. Raises `StoreError`."""
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT raw FROM entries WHERE number >= ? ORDER BY number LIMIT ?", (start, limit)
            ).fetchall()
        return tuple(self._decode(raw) for (raw,) in rows)

    def verify(self) -> int:
        """Check every entry, signature and link; return how many there are. Takes 0.1 ms for each.

        Raises:
            LogDamaged: names the first entry that is wrong.
            StoreError: the disk fails.
        """
        number, previous = 0, ZERO_DIGEST
        patients: dict[bytes, tuple[int, bytes]] = {}
        while batch := self.entries(number):
            for signed in batch:
                entry = signed.entry
                links = (entry.number, entry.previous, entry.patient_number, entry.patient_previous)
                if links != (number, previous, *patients.get(entry.patient, (0, ZERO_DIGEST))):
                    raise LogDamaged(f"{self._path}: entry {number} does not follow the one before")
                self._check_signed(signed)
                number, previous = number + 1, entry_hash(entry)
                patients[entry.patient] = (entry.patient_number + 1, previous)
        if (number, previous) != (self._count, self._last):
            raise LogDamaged(f"{self._path}: {number} entries are left of {self._count}")
        return number

    def _newest(self, connection: Connection) -> tuple[int, bytes]:
        """Return the number of entries and the hash of the newest one, after a look at it."""
        row = connection.execute("SELECT number, raw FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        if row is None:
            return 0, ZERO_DIGEST
        number, raw = row
        signed = self._decode(raw)
        self._check_signed(signed)
        if signed.entry.number != number:
            raise LogDamaged(f"{self._path}: entry {signed.entry.number} stands in the place of {number}")
        return number + 1, entry_hash(signed.entry)

    def _patient_newest(self, connection: Connection, patient: bytes) -> tuple[int, bytes]:
        row = connection.execute(
            "SELECT raw FROM entries WHERE patient = ? ORDER BY patient_number DESC LIMIT 1", (patient,)
        ).fetchone()
        if row is None:
            return 0, ZERO_DIGEST
        entry = self._decode(row[0]).entry
        return entry.patient_number + 1, entry_hash(entry)

    def _check_signed(self, signed: SignedEntry) -> None:
        ours = signed.entry.proxy == self._key.address
        if not ours or not is_entry_signed(self._chain_id, signed, self._key.public_key):
            raise LogDamaged(f"{self._path}: entry {signed.entry.number} was not signed by {self._key.address.hex()}")

    def _decode(self, raw: bytes) -> SignedEntry:
        try:
            return decode_entry(raw)
        except InvalidInput as error:
            raise LogDamaged(f"{self._path}: an entry is damaged: {error}") from error
