# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's file and its writer: all lines of a group or none, each place once, a border that moves with the state."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.journal import Accepted, Cut, JournalEntry
from contracts.operator import Operator, OperatorLimits, Start
from contracts.shipped import MACHINES
from contracts.state_map import StateMap
from ledger import testing
from ledger.errors import NotFound, StoreError
from ledger.offchain import ContractTerms
from node.offchain import group_commit
from node.offchain.group_commit import GroupCommit, Write
from node.offchain.journal_file import JournalFile, Line
from tests.node.offchain_kit import CHAIN, CONTRACT, OPENED, OPERATOR, pay, request

TERMS = ContractTerms(CONTRACT, OPENED.machine, 1, OPENED.parameters, OPERATOR.public_key)
USER = testing.key(1).address


class Written:
    """An operator whose lines are written to a file."""

    def __init__(self, path: Path, batch_requests: int = 3) -> None:
        self.file = JournalFile(path, chain_id=CHAIN)
        self.file.open_contract(CONTRACT, 50)
        limits = OperatorLimits(batch_requests=batch_requests, waiting_batches=10**6)
        self.operator = Operator(CHAIN, TERMS, OPERATOR, MACHINES, limits, Start(0, 50))
        self.entries: list[JournalEntry] = []
        self.roots = [self.operator.state.root()]

    def lines(self, first: int, operations: int = 1) -> list[Line]:
        ticket = self.operator.accept(request(1, first, *[pay()] * operations), 100)
        self.entries += ticket.entries
        lines = []
        for entry in ticket.entries:
            if isinstance(entry, Cut):
                changes = self.operator.take_changes(entry.commitment.number)
                lines.append(Line(CONTRACT, entry, changes=changes))
                self.roots.append(entry.commitment.new_root)
            else:
                lines.append(Line(CONTRACT, entry, USER, first))
        return lines


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "journal")


def test_entries_come_back_in_their_order_also_over_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.offchain.journal_file.PAGE_LINES", 2)
    written = Written(tmp_path / "journal", batch_requests=5)
    for number in range(17):
        written.file.append(written.lines(number))
    assert list(written.file.entries(CONTRACT)) == written.entries


def test_a_group_is_written_as_a_whole_and_a_place_once(written: Written) -> None:
    lines = [line for number in range(2) for line in written.lines(number)]
    written.file.append(lines)
    more = written.lines(2)
    for bad in (lines[0], Line(bytes(32), lines[0].entry)):
        with pytest.raises((StoreError, NotFound)):
            written.file.append([*more, bad])
    assert list(written.file.entries(CONTRACT)) == [line.entry for line in lines]
    written.file.append(more)
    assert len(list(written.file.entries(CONTRACT))) == 3


def test_the_border_moves_with_the_state_and_lines_stay_until_they_are_trimmed(written: Written) -> None:
    file = written.file
    for number in range(10):
        file.append(written.lines(number, 1))
    for number in range(3):
        file.advance(CONTRACT, number)
        border, start = file.border(CONTRACT), file.start(CONTRACT)
        assert border is not None
        assert (border.number, border.time_ms, border.root) == (number + 1, 100, written.roots[number + 1])
        assert StateMap(start.entries).root() == border.root
        assert start.number == number + 1
    assert list(file.entries(CONTRACT)) == written.entries[-1:]
    assert not file.trim(CONTRACT, 2), "what they have changed is not folded"
    fold(file)
    # What is before the border is found, until it is trimmed; batch by batch.
    found = file.find(CONTRACT, USER, 4)
    assert found is not None
    assert (found.number, found.index) == (1, 1)
    assert [file.trim(CONTRACT, 2) for _ in range(3)] == [True, True, False]
    assert file.find(CONTRACT, USER, 4) is None
    assert file.find(CONTRACT, USER, 7) is not None
    assert file.cut(CONTRACT, 1) is None
    assert file.cut(CONTRACT, 2) is not None


def fold(file: JournalFile, pieces: int | None = None, size: int = 2) -> None:
    """Fold what there is, or some pieces of it and no more."""
    found = file.unfolded(CONTRACT)
    parts = [found.changes[at : at + size] for at in range(0, len(found.changes), size)]
    for part in parts[:pieces]:
        file.fold(CONTRACT, part)
    if pieces is None:
        file.folded(CONTRACT, found.before)


def test_the_state_at_the_border_is_the_same_however_far_it_is_folded(written: Written) -> None:
    file = written.file
    for number in range(10):
        file.append(written.lines(number, 1))
    file.advance(CONTRACT, 0)
    fold(file)
    for number in (1, 2):
        file.advance(CONTRACT, number)
    expected = written.roots[3]
    keys = [key for key, _ in file.unfolded(CONTRACT).changes]
    assert len(keys) == len(set(keys)) > 0
    for pieces in (0, 1, None):
        fold(file, pieces, size=1)
        assert StateMap(file.start(CONTRACT).entries).root() == expected
    assert (file.unfolded(CONTRACT).changes, file.unfolded(CONTRACT).before) == ((), 0)
    # What is cut and not committed is no part of it.
    assert file.start(CONTRACT).number == 3


def test_the_lines_of_a_large_batch_are_forgotten_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.offchain.journal_file.TRIMMED_LINES", 2)
    written = Written(tmp_path / "journal", batch_requests=5)
    for number in range(6):
        written.file.append(written.lines(number))
    written.file.advance(CONTRACT, 0)
    fold(written.file)
    left = []
    while written.file.trim(CONTRACT, 1):
        left.append(sum(written.file.find(CONTRACT, USER, number) is not None for number in range(5)))
    assert left == [3, 1, 0]
    assert written.file.cut(CONTRACT, 0) is None
    assert written.file.find(CONTRACT, USER, 5) is not None


def test_an_operation_within_a_request_is_found_and_one_beyond_it_is_not(written: Written) -> None:
    written.file.append(written.lines(0, operations=3))
    assert [written.file.find(CONTRACT, USER, number) is not None for number in range(4)] == [True, True, True, False]
    assert written.file.find(CONTRACT, testing.key(2).address, 0) is None
    with pytest.raises(NotFound):
        written.file.find(bytes(32), USER, 0)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE requests SET content = x'c1' WHERE place = 0",
        "UPDATE requests SET content = (SELECT content FROM batches LIMIT 1) WHERE place = 0",
        "UPDATE requests SET place = 17 WHERE place = 1",
        "UPDATE batches SET content = x'90'",
        "UPDATE batches SET content = (SELECT content FROM requests LIMIT 1)",
    ],
)
def test_a_damaged_line_is_a_typed_error(tmp_path: Path, damage: str) -> None:
    written = Written(tmp_path / "journal")
    for number in range(4):
        written.file.append(written.lines(number))
    written.file.close()
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute(damage)
    connection.close()
    with JournalFile(tmp_path / "journal", chain_id=CHAIN) as file, pytest.raises(StoreError, match="damaged"):
        list(file.entries(CONTRACT))


@pytest.mark.parametrize("damage", ["SET changes = x'c1'", "SET changes = NULL", "SET content = x'90'"])
def test_a_border_does_not_move_over_damage(tmp_path: Path, damage: str) -> None:
    written = Written(tmp_path / "journal")
    for number in range(4):
        written.file.append(written.lines(number))
    written.file.close()
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute(f"UPDATE batches {damage}")
    connection.close()
    with JournalFile(tmp_path / "journal", chain_id=CHAIN) as file:
        with pytest.raises(StoreError, match="damaged"):
            file.advance(CONTRACT, 0)
        border = file.border(CONTRACT)
        assert border is not None
        assert border.number == 0


# ---------------------------------------------------------------- the writer


class Disk:
    """Notes what is written in one sync; fails or waits as told."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.trouble = ""
        self.before: Callable[[], None] = lambda: None

    def append(self, lines: Sequence[Line]) -> None:
        self.before()
        if self.trouble:
            raise StoreError(self.trouble)
        self.groups.append([line.first_sequence or 0 for line in lines])


class Told:
    """What the writer tells."""

    def __init__(self) -> None:
        self.durable: list[int] = []
        self.failed: list[int] = []

    def write(self, number: int, contract_id: bytes = CONTRACT) -> Write:
        ticket = Operator(CHAIN, TERMS, OPERATOR, MACHINES).accept(request(1, 0), 100)
        entry = ticket.entries[0]
        assert isinstance(entry, Accepted)
        return Write(
            contract_id=contract_id,
            lines=(Line(contract_id, entry, USER, number),),
            sign=lambda _entry: msgspec.UNSET,  # type: ignore[arg-type,return-value]
            then=lambda answers: self.durable.extend([number] * len(answers)),
            failed=lambda _error: self.failed.append(number),
        )


async def test_what_comes_while_the_disk_is_busy_is_written_with_one_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "LINGER_S", 0)
    monkeypatch.setattr(group_commit, "GROUP_LINES", 4)
    disk, told = Disk(), Told()
    writer = GroupCommit(disk.append)

    def more() -> None:
        disk.before = lambda: None

        def put() -> None:
            for number in range(1, 7):
                writer.put(told.write(number))

        trio.from_thread.run_sync(put)

    disk.before = more
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(told.write(0))
        await writer.settled(CONTRACT)
        nursery.cancel_scope.cancel()
    assert disk.groups == [[0], [1, 2, 3, 4], [5, 6]]
    assert told.durable == list(range(7))


async def test_a_failed_write_takes_with_it_what_the_same_operators_made_since_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "LINGER_S", 0)
    disk, told, other = Disk(), Told(), bytes(32)
    writer = GroupCommit(disk.append)

    def more() -> None:
        disk.before = lambda: None
        disk.trouble = "torn"

        def put() -> None:
            writer.put(told.write(1))
            writer.put(told.write(2, other))

        trio.from_thread.run_sync(put)

    disk.before = more
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(told.write(0))
        await writer.settled(CONTRACT)
        disk.trouble = ""
        await writer.settled(other)
        writer.put(told.write(3))
        await writer.settled(CONTRACT)
        nursery.cancel_scope.cancel()
    assert told.failed[:2] == [0, 1]
    assert disk.groups[-1] == [3]
    assert 1 not in told.durable


async def test_what_waits_when_the_node_stops_has_failed() -> None:
    disk, told = Disk(), Told()
    writer = GroupCommit(disk.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(told.write(0))
        nursery.cancel_scope.cancel()
    assert told.failed == [0]
    await writer.settled(CONTRACT)
