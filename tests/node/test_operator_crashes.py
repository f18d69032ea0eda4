# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator that dies between any two durable steps: the old or the new state, every receipt kept, nothing twice."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from contracts.journal import Accepted
from contracts.operator import OperatorLimits
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch
from ledger.errors import StoreError
from ledger.offchain import SignedReceipt, request_digest
from node.offchain import committing
from node.offchain.journal_file import JournalFile
from node.offchain.recovering import recover
from tests.node.kit import until
from tests.node.offchain_kit import CHAIN, CONTRACT, OPERATOR, RULES, World, accepted, pay, request

LIMITS = OperatorLimits(batch_age_ms=10**9, batch_requests=3)
"""Cut by their size only, so that every run has the same batches."""
FORCED = request(3, 0, pay(7))
SENT = [[request(1, 0, pay(3)), request(2, 0, pay(), pay())], [request(1, 1, pay(4))], [request(2, 2, pay(600))]]


class Crash(BaseException):
    """The process is gone."""


class Kill:
    """Kills the process when it comes to a step for the n-th time, any step or one kind; nothing durable happens in it after that."""

    def __init__(self, at: int, only: str = "") -> None:
        self._left, self._only = at, only
        self._is_dead = False

    def __call__(self, name: str) -> None:
        if name.startswith(self._only):
            self._is_dead = self._is_dead or not self._left
            self._left -= 1
        if self._is_dead:
            raise Crash(name)


class Users:
    """What users and others do, in order, each once on the chain; whoever has no receipt sends again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.receipts: dict[bytes, SignedReceipt] = {}
        self.done = 0
        self.acts: list[Callable[[], Awaitable[None]]] = [
            self.act(0, lambda: world.chain.fund(1)),
            self.send(SENT[0]),
            self.act(1, lambda: world.chain.force(FORCED)),
            self.send(SENT[1]),
            self.act(2, lambda: world.chain.fund(2)),
            self.send(SENT[2]),
            self.end,
        ]

    def act(self, number: int, what: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            # The chain outlives the operator: what it has forced before a crash is forced.
            if self.world.chain.contract().forced_count == number:
                what()
            # Every run has the same order: what was forced is taken over before the next request comes.
            await until(lambda: _forced(self.world) == number + 1)

        return run

    def send(self, raws: list[bytes]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            for raw, outcome in zip(raws, await self.world.operating.send(CONTRACT, raws), strict=True):
                if outcome.reason == "stopped":
                    await trio.sleep_forever()  # the process dies, and this task with it
                signed = accepted(outcome).signed
                assert self.receipts.setdefault(raw, signed) == signed

        return run

    async def end(self) -> None:
        """Have all committed, final and trimmed."""
        chain, desk = self.world.chain, self.world.operating._desks[CONTRACT]
        desk.set_closing(closing=True)  # cuts what is open
        await until(desk.is_drained)
        for _ in range(RULES.window_microblocks + 1):
            chain.commit()
        await until(lambda: all(self.world.journal.cut(CONTRACT, number) is None for number in range(3)))
        desk.set_closing(closing=False)

    async def run(self) -> None:
        await self.world.ready()
        while self.done < len(self.acts):
            await self.acts[self.done]()
            self.done += 1


def _forced(world: World) -> int:
    serving = world.operating._desks[CONTRACT]._serving
    return -1 if serving is None else serving._forced


async def live(world: World, users: Users, kill: Kill) -> bool:
    """Run the operator's node until its end or its death; tells whether it died."""
    world.step = kill
    died = False
    try:
        async with world.node(limits=LIMITS):
            await users.run()
    except* Crash:
        died = True
    return died


def durable_root(world: World) -> bytes:
    """Return the state that the disk gives."""
    with JournalFile(world.path, chain_id=CHAIN) as journal:
        found = recover(
            journal, chain_id=CHAIN, contract=world.chain.contract(), key=OPERATOR, machines=MACHINES, limits=LIMITS
        )
        return found.operator.state.root()


def check_end(world: World, users: Users, roots: list[bytes]) -> None:
    """Check all that must hold after whatever crashes."""
    assert len(users.receipts) == sum(map(len, SENT))
    watcher = world.check(list(users.receipts.values()))
    assert watcher.state.root() == roots[-1]
    batches = world.chain.batches()
    executed = Counter(request_digest(item.request) for batch in batches for item in world.data(batch.commitment).items)
    assert set(executed.values()) == {1}, "something was executed twice"
    assert len(executed) == sum(map(len, SENT)) + 3
    committed = [
        checked
        for checked, receipt in world.chain.receipts
        if isinstance(checked.transaction.body, CommitBatch) and not receipt.reason
    ]
    assert len(committed) == len(batches) == world.chain.contract().batch_count
    assert world.chain.contract().answered_count == 3


async def reference(folder: Path) -> list[bytes]:
    """Return the roots after each request of a life without crashes."""
    world = new_world(folder)
    users = Users(world)
    assert not await live(world, users, Kill(10**9))
    roots = [bytes(32)]
    for batch in world.chain.batches():
        roots += [item.root for item in world.data(batch.commitment).items]
    check_end(world, users, roots)
    return roots


def new_world(folder: Path) -> World:
    folder.mkdir()
    world = World(folder)
    world.chain.open()
    return world


@pytest.fixture(autouse=True)
def _trim_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "KEPT_FINAL_BATCHES", 0)
    monkeypatch.setattr(committing, "FOLD_BATCHES", 1)
    monkeypatch.setattr(committing, "FOLDED_AT_ONCE", 2)
    monkeypatch.setattr(committing, "RETRY_S", 0.02)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["append", "publish", "submit", "commit", "told", "advance", "fold", "folded", "trim"])
async def test_whatever_step_an_operator_dies_at_it_comes_back_and_keeps_its_word(
    tmp_path: Path, when: str, what: str
) -> None:
    roots = await reference(tmp_path / "reference")
    assert len(set(roots)) == len(roots) == 8
    for times in range(100):
        world = new_world(tmp_path / str(times))
        users = Users(world)
        if not await live(world, users, Kill(times, f"{when} {what}")):
            break
        left = dict(users.receipts)
        assert durable_root(world) in roots
        assert not await live(world, users, Kill(10**9))
        check_end(world, users, roots)
        # Whatever left before the crash is what stands after it, to the byte.
        assert all(encode(users.receipts[raw]) == encode(signed) for raw, signed in left.items())
    # Three batches, or as many lines and microblocks as there are at least.
    assert times >= 3


@pytest.mark.parametrize("apart", [1, 2, 3, 5, 8, 13])
async def test_an_operator_that_dies_again_and_again_comes_to_the_same_end(tmp_path: Path, apart: int) -> None:
    roots = await reference(tmp_path / "reference")
    world = new_world(tmp_path / "often")
    users = Users(world)
    lives, steps = 0, apart
    while await live(world, users, Kill(steps)):
        lives += 1
        assert durable_root(world) in roots
        steps += apart if lives % 3 == 0 else 0  # else a life too short for one step forward would be lived for ever
    assert lives > 2
    check_end(world, users, roots)


# ---------------------------------------------------------------- kill -9, and what a disk tears


WRITER = """
import sys
from pathlib import Path
from contracts.operator import OperatorLimits
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.offchain import ContractTerms
from ledger.contract_state import Contract
from ledger.codec import decode
from node.offchain.journal_file import JournalFile, Line
from node.offchain.recovering import recover
from tests.node.offchain_kit import CHAIN, CONTRACT, OPERATOR, pay, request
from contracts.journal import Cut
from contracts.execution import next_sequence
from ledger import testing

contract = decode(Contract, bytes.fromhex(sys.argv[2]), 10_000)
with JournalFile(Path(sys.argv[1]), chain_id=CHAIN) as journal:
    limits = OperatorLimits(batch_requests=20, waiting_batches=10**6, waiting_entries=10**6)
    operator = recover(
        journal, chain_id=CHAIN, contract=contract, key=OPERATOR, machines=MACHINES, limits=limits
    ).operator
    user = testing.key(1)
    while True:
        first = next_sequence(operator.state, user.address)
        ticket = operator.accept(request(1, first, pay()), 10**12 * 2)
        lines = [
            Line(CONTRACT, entry, changes=operator.take_changes(entry.commitment.number))
            if isinstance(entry, Cut)
            else Line(CONTRACT, entry, user.address, first)
            for entry in ticket.entries
        ]
        journal.append(lines)
        print(encode(operator.answer_of(ticket.entries[-1]).signed).hex(), flush=True)
"""
"""A process that runs the journal; prints each receipt after its line is durable."""


@pytest.mark.system
def test_a_killed_process_has_every_receipt_in_its_journal_and_torn_files_give_a_beginning(tmp_path: Path) -> None:
    world = World(tmp_path)
    contract = world.chain.open()
    limits = OperatorLimits(batch_requests=20, waiting_batches=10**6, waiting_entries=10**6)
    received: list[str] = []
    for lines in (1, 30, 55):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(world.path), encode(contract).hex()],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        ) as process:
            assert process.stdout is not None
            received += [process.stdout.readline().strip() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            # What left on its way to us counts as well.
            received += [line.strip() for line in process.stdout.readlines() if line.endswith("\n")]
        wal = world.path.with_name(world.path.name + "-wal")
        assert wal.exists(), "a killed process leaves its write-ahead log"
        copies = [(world.path.read_bytes(), wal.read_bytes())]

    def receipts(database: bytes, log: bytes) -> list[str]:
        """Recover from files; returns the receipts of all requests, in their order."""
        path = tmp_path / "copy"
        path.write_bytes(database)
        path.with_name("copy-wal").write_bytes(log)
        with JournalFile(path, chain_id=CHAIN) as journal:
            found = recover(journal, chain_id=CHAIN, contract=contract, key=OPERATOR, machines=MACHINES, limits=limits)
            entries = [entry for entry in journal.entries(CONTRACT) if isinstance(entry, Accepted)]
            return [encode(found.operator.answer_of(entry).signed).hex() for entry in entries]

    (database, log), full = copies[0], receipts(*copies[0])
    assert [one for one in full if one in received] == received
    # Of each life one request may be durable whose receipt had not left yet.
    assert len(full) - len(received) <= 3
    lengths = []
    for torn in torn_logs(log):
        found = receipts(database, torn)
        assert found == full[: len(found)], "what is left is no beginning"
        lengths.append(len(found))
    assert min(lengths) < len(full)


def torn_logs(log: bytes) -> Iterator[bytes]:
    """Yield what a power cut may leave of a log: cut off anywhere, or with pages that never came."""
    for cut in range(0, len(log), max(1, len(log) // 40)):
        yield log[:cut]
    for place in range(40, len(log), max(1, len(log) // 15)):
        yield log[:place] + bytes(512) + log[place + 512 :]


def test_a_journal_of_another_chain_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with JournalFile(path, chain_id=CHAIN) as journal:
        journal.open_contract(CONTRACT, 5)
        with pytest.raises(StoreError):
            journal.open_contract(CONTRACT, 5)
        with pytest.raises(StoreError, match="in use"):
            JournalFile(path, chain_id=CHAIN)
    with pytest.raises(StoreError, match="another chain"):
        JournalFile(path, chain_id=bytes(32))
    path.write_bytes(b"not a database, whatever its name says" * 200)
    with pytest.raises(StoreError):
        JournalFile(path, chain_id=CHAIN)
