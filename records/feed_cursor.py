# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a proxy's access log was brought to a contract off the chain; in the log's own file, so that both stay together.

A request is written down before it is sent, and taken off with what became of it: after a crash the same bytes are sent again, and
the operator answers them as it did. An entry whose batch fraud has undone is owed again. All calls block; safe from several threads.
"""

from collections.abc import Iterable, Sequence

import msgspec

from ledger.codec import Digest, Uint, Wire, decoder, encode
from records.sqlite_file import SqliteFile

# Files of before had no such tables; nothing else in them has changed.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS feed (only INTEGER PRIMARY KEY CHECK (only = 0), state BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS feed_owed (number INTEGER PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS feed_sent (batch INTEGER NOT NULL, first INTEGER PRIMARY KEY, last INTEGER NOT NULL)",
)


class UnderWay(Wire, frozen=True):
    """A request that was written down to be sent."""

    first_sequence: Uint
    """Number of its first operation."""
    numbers: tuple[Uint, ...]
    """The entries that it logs, one for each operation, in their order."""
    request: bytes
    """Its bytes."""


class FeedState(Wire, frozen=True):
    """Where the feed is."""

    contract_id: Digest
    """The contract; 32 zero bytes while there was none."""
    next_number: Uint
    """First entry that no request has taken up."""
    under_way: UnderWay | None
    """The request that waits for its receipt."""


_decode_state = decoder(FeedState, 64 * 1024, own=True)
_BEGINNING = FeedState(bytes(32), 0, None)


class FeedCursor:
    """The cursor of one access log."""

    def __init__(self, file: SqliteFile) -> None:
        """Use a file that is open. Raises `StoreError`."""
        self._file = file
        with file.transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)

    def state(self) -> FeedState:
        """Return where the feed is. Raises `StoreError`."""
        with self._file.transaction() as connection:
            row = connection.execute("SELECT state FROM feed").fetchone()
        return _BEGINNING if row is None else _decode_state(row[0])

    def owed(self, limit: int) -> tuple[int, ...]:
        """Return entries that have to be sent again, the oldest first. Raises `StoreError`."""
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT number FROM feed_owed ORDER BY number LIMIT ?", (limit,)).fetchall()
        return tuple(number for (number,) in rows)

    def begin(self, state: FeedState, under_way: UnderWay) -> FeedState:
        """Write a request down before it is sent; returns the state then. Raises `StoreError`, and then nothing has changed."""
        next_number = max(state.next_number, under_way.numbers[-1] + 1)
        return self._save(
            msgspec.structs.replace(state, next_number=next_number, under_way=under_way),
            taken=under_way.numbers,
        )

    def drop(self, state: FeedState) -> FeedState:
        """Take off a request that the operator has not accepted and will not; its entries are owed. Raises `StoreError`."""
        numbers = () if state.under_way is None else state.under_way.numbers
        return self._save(msgspec.structs.replace(state, under_way=None), owed=numbers)

    def accept(self, state: FeedState, batch: int, refused: Sequence[int] = ()) -> FeedState:
        """Take off a request that has its receipt; entries whose operation was refused are owed. Raises `StoreError`."""
        assert state.under_way is not None, "there is a request that was accepted"
        logged = [number for number in state.under_way.numbers if number not in set(refused)]
        sent = [(batch, first, last) for first, last in _ranges(logged)]
        return self._save(msgspec.structs.replace(state, under_way=None), owed=refused, sent=sent)

    def settle(self, final_count: int) -> None:
        """Forget where entries stand in batches that are final. Raises `StoreError`."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM feed_sent WHERE batch < ?", (final_count,))

    def move(self, state: FeedState, contract_id: bytes, batch_count: int) -> FeedState:
        """Go on with another contract; what the former one has not kept is owed to this one. Raises `StoreError`.

        `batch_count` is the number of batches of the former contract that count.
        """
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT first, last FROM feed_sent WHERE batch >= ?", (batch_count,)).fetchall()
        owed = [number for first, last in rows for number in range(first, last + 1)]
        owed += () if state.under_way is None else state.under_way.numbers
        return self._save(FeedState(contract_id, state.next_number, None), owed=owed, forget=True)

    def _save(
        self,
        state: FeedState,
        *,
        owed: Iterable[int] = (),
        taken: Iterable[int] = (),
        sent: Iterable[tuple[int, int, int]] = (),
        forget: bool = False,
    ) -> FeedState:
        with self._file.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO feed VALUES (0, ?)", (encode(state),))
            connection.executemany("DELETE FROM feed_owed WHERE number = ?", [(number,) for number in taken])
            connection.executemany("INSERT OR IGNORE INTO feed_owed VALUES (?)", [(number,) for number in owed])
            if forget:
                connection.execute("DELETE FROM feed_sent")
            connection.executemany("INSERT OR REPLACE INTO feed_sent VALUES (?, ?, ?)", list(sent))
        return state


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
