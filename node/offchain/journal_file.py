# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators' journal on disk: what was promised, where executing it again begins, and what the state was there.

R1 `append` returns when all of its lines survive a loss of power; it writes all of them or none.
R2 A place of a batch is written once: a second line for it is an error, whatever it says.
R3 The *border* is a batch, all before which the chain has committed. The state at it is a table with what the last batches before it have
   changed laid over; these changes are *folded* into the table piece by piece. So coming back executes the open batches only, however
   long the window is, and no line waits for a whole state.
R4 Lines before the border stay until they are trimmed, for those who ask what became of their requests.

One file for all contracts, so that one sync serves all of them. All calls block; they are safe from several worker threads.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Self

import msgspec

from contracts.journal import Accepted, Cut, JournalEntry, decode_entry, encode_entry
from contracts.operator import Start
from contracts.state_map import Changes
from ledger.codec import decoder, encode
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import BatchCommitment
from records.sqlite_file import SqliteFile

PAGE_LINES = 512
"""Lines read in one transaction: appends of other contracts wait no longer than this takes."""
ROWS_AT_ONCE = 128
"""Rows that one statement writes. After each statement the thread has to get the interpreter back, and a busy event loop takes its
milliseconds: row by row a group of lines would wait so long for each of them, and the lines of others behind it."""
FOLDED_AT_ONCE = 256
"""Entries of a state that one transaction writes: lines wait for it some milliseconds, and not for thousands of entries."""
TRIMMED_LINES = 256
"""Lines that one transaction forgets, for the same reason."""
MAX_CHANGES_BYTES = 512 * 1024 * 1024
"""What one batch may have changed: far beyond a batch of the shipped machines, within what SQLite holds in one value."""

_FORMAT = 1
_SCHEMA = """
CREATE TABLE contracts (
    id INTEGER PRIMARY KEY,
    contract_id BLOB NOT NULL UNIQUE,
    number INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    root BLOB NOT NULL,
    forced_count INTEGER NOT NULL
);
CREATE TABLE state (
    contract INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (contract, key)
) WITHOUT ROWID;
CREATE TABLE requests (
    contract INTEGER NOT NULL,
    number INTEGER NOT NULL,
    place INTEGER NOT NULL,
    sender BLOB,
    first_sequence INTEGER,
    content BLOB NOT NULL
);
CREATE UNIQUE INDEX requests_by_place ON requests (contract, number, place);
CREATE INDEX requests_by_sender ON requests (contract, sender, first_sequence) WHERE sender IS NOT NULL;
CREATE TABLE batches (
    contract INTEGER NOT NULL,
    number INTEGER NOT NULL,
    content BLOB NOT NULL,
    changes BLOB,
    PRIMARY KEY (contract, number)
);
CREATE INDEX batches_unfolded ON batches (contract, number) WHERE changes IS NOT NULL
"""
# A write-ahead log takes one sync for a group of lines; FULL syncs it before the transaction counts as committed.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL")
_decode_changes = decoder(Changes, MAX_CHANGES_BYTES, name="changes of a batch", own=True)


class Border(msgspec.Struct, frozen=True):
    """Where executing a contract's journal again begins."""

    number: int
    """The batch that comes next; the chain has committed all before."""
    time_ms: int
    """End of the batch before, in milliseconds since 1970 (UTC)."""
    root: bytes
    """Root of the state there."""
    forced_count: int
    """Forced requests that the batches before answer for."""


class Line(msgspec.Struct, frozen=True):
    """One entry of the journal, with what it is found by."""

    contract_id: bytes
    """The contract."""
    entry: JournalEntry
    """The entry."""
    sender: bytes | None = None
    """Of a request that has taken its sender's numbers, the sender's address."""
    first_sequence: int | None = None
    """Of such a request, the number of its first operation."""
    changes: Changes = ()
    """Of a cut, what the batch has changed."""


class Unfolded(msgspec.Struct, frozen=True):
    """What the last batches before the border have changed, together."""

    before: int
    """The batch after the last of them; 0 when there is none."""
    changes: Changes
    """Each changed key once, with its last value, in the order of the keys."""


class JournalFile:
    """The journal of all contracts that one key operates; one process at a time."""

    def __init__(self, path: Path, *, chain_id: bytes) -> None:
        """Open or create the file; its folder exists. Raises `StoreError`, see `SqliteFile`."""
        self._path = path
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)
        self._rows: dict[bytes, int] = {}

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ contracts

    def open_contract(self, contract_id: bytes, time_ms: int) -> None:
        """Begin the journal of a new contract, with no batch and no state; `time_ms` is when the chain opened it. Raises `StoreError`."""
        with self._file.transaction() as connection:
            connection.execute(
                "INSERT INTO contracts (contract_id, number, time_ms, root, forced_count) VALUES (?, 0, ?, ?, 0)",
                (contract_id, time_ms, ZERO_DIGEST),
            )

    def border(self, contract_id: bytes) -> Border | None:
        """Return a contract's border, None when nothing is known of the contract. Raises `StoreError`."""
        with self._file.transaction() as connection:
            return _border(connection, contract_id)

    def start(self, contract_id: bytes) -> Start:
        """Return the state at a contract's border. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            border = _border(connection, contract_id)
            row = self._row(connection, contract_id)
            state: dict[bytes, bytes | None] = dict(
                connection.execute("SELECT key, value FROM state WHERE contract = ?", (row,)).fetchall()
            )
            unfolded = self._unfolded(connection, row)
        assert border is not None, "a contract with a row has a border"
        # Pieces of them may be in the table already: the same values.
        state.update(unfolded.changes)
        entries = sorted((key, value) for key, value in state.items() if value is not None)
        return Start(border.number, border.time_ms, tuple(entries))

    def state_value(self, contract_id: bytes, key: bytes) -> bytes | None:
        """Return what a state key had after the last batch that is folded, or later. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT value FROM state WHERE contract = ? AND key = ?", (self._row(connection, contract_id), key)
            ).fetchone()
        return None if found is None else bytes(found[0])

    # ------------------------------------------------------------ lines

    def append(self, lines: Iterable[Line]) -> None:
        """Write lines of any contracts durably, all or none. Raises `NotFound`, `StoreError`."""
        requests: list[tuple[object, ...]] = []
        batches: list[tuple[object, ...]] = []
        with self._file.transaction() as connection:
            for line in lines:
                row, entry = self._row(connection, line.contract_id), line.entry
                content = encode_entry(entry)
                if isinstance(entry, Accepted):
                    requests.append((row, entry.number, entry.index, line.sender, line.first_sequence, content))
                else:
                    batches.append((row, entry.commitment.number, content, encode(line.changes)))
            _write_rows(connection, "INSERT INTO requests", requests)
            _write_rows(connection, "INSERT INTO batches", batches)

    def entries(self, contract_id: bytes) -> Iterator[JournalEntry]:
        """Yield the entries from the border on, in the order in which things happened. Raises `NotFound`, `StoreError`."""
        border = self.border(contract_id)
        if border is None:
            raise NotFound(f"no contract {contract_id.hex()} is in {self._path}")
        number = border.number
        while True:
            place = -1
            while page := self._requests(contract_id, number, place):
                yield from page
                place = page[-1].index
            cut = self.cut(contract_id, number)
            if cut is None:
                return
            yield Cut(cut)
            number += 1

    def cut(self, contract_id: bytes, number: int) -> BatchCommitment | None:
        """Return what was written as a batch's commitment, while its lines are kept. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT content FROM batches WHERE contract = ? AND number = ?",
                (self._row(connection, contract_id), number),
            ).fetchone()
        if found is None:
            return None
        entry = self._decode(found[0])
        if not isinstance(entry, Cut):
            raise self._damaged(f"batch {number} has another entry instead of its commitment")
        return entry.commitment

    def find(self, contract_id: bytes, sender: bytes, sequence: int) -> Accepted | None:
        """Return the request that holds a sender's operation, while its lines are kept. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT first_sequence, content FROM requests WHERE contract = ? AND sender = ? AND first_sequence <= ?"
                " ORDER BY first_sequence DESC LIMIT 1",
                (self._row(connection, contract_id), sender, sequence),
            ).fetchone()
        if found is None:
            return None
        entry = self._decode(found[1])
        if not isinstance(entry, Accepted):
            raise self._damaged("a request's line holds another entry")
        return entry if sequence < found[0] + len(entry.outcomes) else None

    # ------------------------------------------------------------ moving on

    def advance(self, contract_id: bytes, number: int) -> None:
        """Move the border past a batch that the chain has committed, and the state with it. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            row, border = self._row(connection, contract_id), _border(connection, contract_id)
            assert border is not None, "a contract with a row has a border"
            assert border.number == number, f"batch {number} is not the next one after the border at {border.number}"
            found = connection.execute(
                "SELECT content, changes FROM batches WHERE contract = ? AND number = ?", (row, number)
            ).fetchone()
            if found is None:
                raise self._damaged(f"batch {number}, which the chain has committed, is not in it")
            entry = self._decode(found[0])
            self._decode_changes(found[1])
            if not isinstance(entry, Cut) or entry.commitment.previous_root != border.root:
                raise self._damaged(f"batch {number} does not follow from the state before")
            commitment = entry.commitment
            connection.execute(
                "UPDATE contracts SET number = ?, time_ms = ?, root = ?, forced_count = ? WHERE id = ?",
                (
                    number + 1,
                    commitment.until_ms,
                    commitment.new_root,
                    border.forced_count + len(commitment.forced),
                    row,
                ),
            )

    def unfolded(self, contract_id: bytes) -> Unfolded:
        """Return what batches before the border have changed and the state's table may lack. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            return self._unfolded(connection, self._row(connection, contract_id))

    def fold(self, contract_id: bytes, changes: Changes) -> None:
        """Put a piece of what `unfolded` gave into the table: at most `FOLDED_AT_ONCE`. Raises `NotFound`, `StoreError`."""
        assert len(changes) <= FOLDED_AT_ONCE, f"{len(changes)} entries in one piece"
        with self._file.transaction() as connection:
            row = self._row(connection, contract_id)
            connection.executemany(
                "DELETE FROM state WHERE contract = ? AND key = ?",
                [(row, key) for key, value in changes if value is None],
            )
            rows = [(row, key, value) for key, value in changes if value is not None]
            _write_rows(connection, "INSERT OR REPLACE INTO state", rows)

    def folded(self, contract_id: bytes, before: int) -> None:
        """Forget what the batches before another one have changed: all of it is in the table. Raises `NotFound`, `StoreError`."""
        with self._file.transaction() as connection:
            connection.execute(
                "UPDATE batches SET changes = NULL WHERE contract = ? AND number < ? AND changes IS NOT NULL",
                (self._row(connection, contract_id), before),
            )

    def trim(self, contract_id: bytes, before: int) -> bool:
        """Forget lines of the oldest batch if it is before another batch and folded; tells whether there were any.

        Raises `NotFound`, `StoreError`.
        """
        with self._file.transaction() as connection:
            row, border = self._row(connection, contract_id), _border(connection, contract_id)
            assert border is not None, "a contract with a row has a border"
            assert before <= border.number, (
                f"batches before {before} are wanted again: the border is at {border.number}"
            )
            oldest = connection.execute(
                "SELECT number, changes IS NULL FROM batches WHERE contract = ? ORDER BY number LIMIT 1", (row,)
            ).fetchone()
            if oldest is None or oldest[0] >= before or not oldest[1]:
                return False
            gone = connection.execute(
                "DELETE FROM requests WHERE rowid IN"
                " (SELECT rowid FROM requests WHERE contract = ? AND number = ? ORDER BY place DESC LIMIT ?)",
                (row, oldest[0], TRIMMED_LINES),
            ).rowcount
            if gone < TRIMMED_LINES:
                connection.execute("DELETE FROM batches WHERE contract = ? AND number = ?", (row, oldest[0]))
        return True

    # ------------------------------------------------------------ inside

    def _unfolded(self, connection: Connection, row: int) -> Unfolded:
        rows = connection.execute(
            "SELECT number, changes FROM batches WHERE contract = ? AND changes IS NOT NULL"
            " AND number < (SELECT number FROM contracts WHERE id = ?) ORDER BY number",
            (row, row),
        ).fetchall()
        changes: dict[bytes, bytes | None] = {}
        for _, content in rows:
            changes.update(self._decode_changes(content))
        # Sorted, so that neighbours share a page while it is at hand.
        return Unfolded(rows[-1][0] + 1 if rows else 0, tuple(sorted(changes.items())))

    def _row(self, connection: Connection, contract_id: bytes) -> int:
        row = self._rows.get(contract_id)
        if row is None:
            found = connection.execute("SELECT id FROM contracts WHERE contract_id = ?", (contract_id,)).fetchone()
            if found is None:
                raise NotFound(f"no contract {contract_id.hex()} is in {self._path}")
            # Never removed, so it stays true.
            row = self._rows[contract_id] = int(found[0])
        return row

    def _requests(self, contract_id: bytes, number: int, after: int) -> list[Accepted]:
        with self._file.transaction() as connection:
            found = connection.execute(
                "SELECT place, content FROM requests WHERE contract = ? AND number = ? AND place > ? ORDER BY place LIMIT ?",
                (self._row(connection, contract_id), number, after, PAGE_LINES),
            ).fetchall()
        entries = []
        for place, content in found:
            entry = self._decode(content)
            if not isinstance(entry, Accepted) or (entry.number, entry.index) != (number, place):
                raise self._damaged(f"the line at place {place} of batch {number} holds another entry")
            entries.append(entry)
        return entries

    def _decode(self, content: bytes) -> JournalEntry:
        try:
            return decode_entry(content)
        except InvalidInput as error:
            raise self._damaged(str(error)) from error

    def _decode_changes(self, content: bytes | None) -> Changes:
        try:
            return _decode_changes(content or b"")
        except InvalidInput as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._path} is damaged: {what}; restore the newest copy, never an older one")


def _write_rows(connection: Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    for at in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[at : at + ROWS_AT_ONCE]
        places = f"({', '.join('?' * len(part[0]))})"
        connection.execute(f"{into} VALUES {', '.join([places] * len(part))}", [value for row in part for value in row])


def _border(connection: Connection, contract_id: bytes) -> Border | None:
    found = connection.execute(
        "SELECT number, time_ms, root, forced_count FROM contracts WHERE contract_id = ?", (contract_id,)
    ).fetchone()
    return None if found is None else Border(*found)
