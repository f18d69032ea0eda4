# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator: receipts rest on something durable, crashes leave the old or the new state, queues are bounded.

Crashes are tried out at every point between two durable steps, with every beginning of what was on its way to the disk.
"""

from collections.abc import Iterator

import msgspec
import pytest

from contracts.batch_data import check_data
from contracts.execution import WRONG_SEQUENCE, next_sequence
from contracts.journal import Accepted, Cut, JournalEntry, decode_entry, encode_entry
from contracts.machines.micro_fees import Pay
from contracts.operator import AlreadyAccepted, Answer, Batch, Busy, Operator, OperatorLimits, Start
from contracts.requests import sign_request
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, StoreError
from ledger.offchain import MAX_FORCED, InvalidRequest, deposit_request, is_signed_receipt
from ledger.testing import key
from tests.contracts import kit

REFERENCE = tagged_hash(Tag.BLOB, b"what it is for")


def payment(amount: int = 1) -> Pay:
    return Pay(key(9).address, amount, REFERENCE)


def fresh(limits: OperatorLimits | None = None) -> Operator:
    return Operator(kit.CHAIN_ID, kit.TERMS, kit.OPERATOR, kit.REGISTRY, limits)


# ---------------------------------------------------------------- receipts


def test_a_receipt_leaves_only_when_its_entry_is_durable() -> None:
    operator, sender = fresh(), kit.Sender()
    tickets = [operator.accept(sender.request(1, payment()), 5) for _ in range(3)]
    assert [(ticket.position, len(ticket.entries), ticket.answer) for ticket in tickets] == [
        (0, 1, None),
        (1, 1, None),
        (2, 1, None),
    ]
    assert operator.durable(0).answers == ()
    assert [position for position, _ in operator.durable(2).answers] == [0, 1]
    ((position, answer),) = operator.durable(3).answers
    assert position == 2
    assert is_signed_receipt(kit.CHAIN_ID, kit.OPERATOR.public_key, answer.signed)
    assert answer.signed.receipt.index == 2
    assert operator.durable(3).answers == ()


def test_a_request_that_comes_again_gets_the_receipt_it_had() -> None:
    operator, sender = fresh(), kit.Sender()
    raw = sender.request(1, payment())
    ticket = operator.accept(raw, 5)
    again = operator.accept(raw, 9)
    assert (again.position, again.entries, again.answer) == (ticket.position, (), None)
    ((_, answer),) = operator.durable(1).answers
    operator.accept(sender.request(1, payment()), 10)
    assert operator.accept(raw, 11).answer == answer
    assert isinstance(ticket.entries[0], Accepted)
    assert operator.answer_of(ticket.entries[0]) == answer
    assert operator.appended == 2


def test_numbers_that_are_used_or_leave_a_gap_are_refused_and_change_nothing() -> None:
    operator, sender = fresh(), kit.Sender()
    operator.accept(sender.request(1, payment(), payment()), 5)
    root = operator.state.root()
    twice = kit.Sender()
    with pytest.raises(AlreadyAccepted, match="the next is 2"):
        operator.accept(twice.request(1, payment(2), payment()), 5)
    twice.next[1] = 3
    with pytest.raises(InvalidRequest, match="the next is 2"):
        operator.accept(twice.request(1, payment()), 5)
    assert (operator.state.root(), operator.appended) == (root, 1)
    assert next_sequence(operator.state, key(1).address) == 2


def test_an_older_receipt_than_memory_holds_is_asked_of_the_journal() -> None:
    operator, sender = fresh(OperatorLimits(remembered_bytes=3_500)), kit.Sender()
    requests = [sender.request(1, payment()) for _ in range(3)]
    entries = [operator.accept(raw, 5).entries[0] for raw in requests]
    released = operator.durable(3).answers
    with pytest.raises(AlreadyAccepted):
        operator.accept(requests[0], 5)
    assert isinstance(entries[0], Accepted)
    assert operator.answer_of(entries[0]) == released[0][1]
    assert operator.accept(requests[1], 5).answer == released[1][1]


def test_a_request_that_is_forced_beside_the_ordinary_way_is_answered_for_and_has_no_effect() -> None:
    desk, sender = kit.Desk(), kit.Sender()
    raw = sender.request(1, payment())
    first = desk.send(raw)
    desk.cut()
    forced = desk.send(raw, is_forced=True)
    assert [outcome.code for outcome in forced.outcomes] == [WRONG_SEQUENCE]
    assert desk.send(raw) == first
    batch = desk.cut()
    assert [place.index for place in batch.commitment.forced] == [0]
    watcher = kit.watcher()
    assert [watcher.follow(batch.commitment, batch.data) for batch in desk.batches] == [None, None]


def test_the_chains_own_operations_cannot_come_from_a_user() -> None:
    with pytest.raises(InvalidRequest, match="count only"):
        fresh().accept(kit.Sender().deposit(key(1).address, 5), 5)


def test_an_operator_needs_the_contracts_key_and_machine() -> None:
    with pytest.raises(InvalidInput, match="another key"):
        Operator(kit.CHAIN_ID, kit.TERMS, key(1), kit.REGISTRY)
    for change in ({"machine": "unknown"}, {"version": 2}, {"parameters": b"\xc0"}):
        with pytest.raises(InvalidInput):
            Operator(kit.CHAIN_ID, msgspec.structs.replace(kit.TERMS, **change), kit.OPERATOR, kit.REGISTRY)


# ---------------------------------------------------------------- batches and bounds


def test_a_batch_is_cut_when_it_is_old_or_full_and_never_empty() -> None:
    operator, sender = fresh(OperatorLimits(batch_requests=3, batch_age_ms=100)), kit.Sender()
    assert operator.cut(5) is None
    assert not operator.is_due(10**9)
    operator.accept(sender.request(1, payment()), 50)
    assert not operator.is_due(149)
    assert operator.is_due(150)
    for _ in range(2):
        operator.accept(sender.request(1, payment()), 60)
    assert operator.is_due(60)
    entries = operator.accept(sender.request(1, payment()), 70).entries
    assert [type(entry) for entry in entries] == [Cut, Accepted]
    assert isinstance(entries[0], Cut)
    assert entries[0].commitment.leaf_count == 3


def test_a_batch_stays_within_its_bytes() -> None:
    desk, sender = kit.Desk(limits=OperatorLimits(batch_bytes=2_000)), kit.Sender()
    for user in (1, 2, 3) * 8:
        desk.send(sender.request(user, *[payment()] * 5))
    desk.cut()
    assert len(desk.batches) > 5
    for batch in desk.batches:
        assert len(batch.data) <= 2_000
        check_data(batch.commitment, batch.data)


def test_forced_requests_beyond_what_a_batch_answers_for_go_into_the_next() -> None:
    desk, sender = kit.Desk(), kit.Sender()
    for _ in range(MAX_FORCED + 2):
        desk.send(sender.deposit(key(1).address, 1), is_forced=True)
    desk.cut()
    assert [len(batch.commitment.forced) for batch in desk.batches] == [MAX_FORCED, 2]
    watcher = kit.watcher()
    assert [watcher.follow(batch.commitment, batch.data) for batch in desk.batches] == [None, None]


def test_an_operator_whose_chain_is_slow_says_that_it_is_busy_and_goes_on_later() -> None:
    operator, sender = fresh(OperatorLimits(batch_requests=2, waiting_batches=2)), kit.Sender()
    for _ in range(6):
        operator.accept(sender.request(1, payment()), 5)
    root, refused = operator.state.root(), sender.request(1, payment())
    with pytest.raises(Busy):
        operator.accept(refused, 5)
    with pytest.raises(Busy):
        operator.cut(5)
    assert operator.state.root() == root
    operator.committed(0)
    assert [type(entry) for entry in operator.accept(refused, 5).entries] == [Cut, Accepted]


def test_an_operator_whose_disk_is_slow_says_that_it_is_busy() -> None:
    operator, sender = fresh(OperatorLimits(waiting_entries=3)), kit.Sender()
    for _ in range(3):
        operator.accept(sender.request(1, payment()), 5)
    last = sender.request(1, payment())
    with pytest.raises(Busy):
        operator.accept(last, 5)
    operator.durable(1)
    assert operator.accept(last, 5).entries


def test_time_never_falls_even_if_the_clock_does() -> None:
    desk, sender = kit.Desk(), kit.Sender()
    times = [desk.send(sender.request(1, payment()), now_ms).signed.receipt.leaf.time_ms for now_ms in (9, 5, 12)]
    assert times == [9, 9, 12]
    desk.cut(3)
    assert desk.batches[0].commitment.until_ms == 12
    assert desk.send(sender.request(1, payment()), 1).signed.receipt.leaf.time_ms == 12


# ---------------------------------------------------------------- crashes


class Crash(Exception):
    """The process is gone."""


class Disk:
    """A journal that loses what is not synced, and a process that dies at its n-th step."""

    def __init__(self, steps: int, kept: list[bytes]) -> None:
        self.steps = steps
        self.synced = kept
        self.buffer: list[bytes] = []

    def step(self) -> None:
        if not self.steps:
            raise Crash
        self.steps -= 1

    def write(self, entries: tuple[JournalEntry, ...]) -> None:
        for entry in entries:
            self.step()
            self.buffer.append(encode_entry(entry))

    def sync(self) -> None:
        self.step()
        self.synced, self.buffer = self.synced + self.buffer, []


class World:
    """What has left the operator's process: receipts with users, batches with the network."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {}
        self.batches: dict[int, Batch] = {}

    def take(self, raws: dict[int, bytes], disk: Disk, operator: Operator, count: int) -> None:
        released = operator.durable(count)
        for position, answer in released.answers:
            disk.step()
            self.answers[raws[position]] = answer
        for batch in released.batches:
            disk.step()
            self.batches[batch.commitment.number] = batch


REQUESTS = [
    (raw, is_forced)
    for sender in [kit.Sender()]
    for raw, is_forced in [
        (sender.deposit(key(1).address, 50), True),
        (sender.request(1, payment(3)), False),
        (sender.request(2, payment(), payment()), False),
        (sender.request(1, payment(60)), False),
        (sender.request(1, payment(4)), False),
        (sender.deposit(key(2).address, 9), True),
        (sender.request(2, payment(2)), False),
    ]
]
LIMITS = OperatorLimits(batch_requests=3)


def work(operator: Operator, disk: Disk, world: World) -> None:
    """Accept all requests that are not accepted yet, in groups of two per sync, and cut at the end."""
    raws: dict[int, bytes] = {}
    before = operator.appended
    forced = sum(isinstance(entry, Accepted) and entry.is_forced for entry in map(decode_entry, disk.synced))
    for number, (raw, is_forced) in enumerate(REQUESTS):
        if is_forced and forced:
            forced -= 1
            continue
        ticket = operator.accept(raw, 100 + number, is_forced=is_forced)
        if ticket.answer is not None:
            world.answers[raw] = ticket.answer
        raws[ticket.position] = raw
        disk.write(ticket.entries)
        if number % 2:
            disk.sync()
            world.take(raws, disk, operator, operator.appended)
    cut = operator.cut(200)
    disk.write((cut,) if cut else ())
    disk.sync()
    world.take(raws, disk, operator, operator.appended)
    assert operator.appended >= before


def crashes() -> Iterator[tuple[list[bytes], World]]:
    """Yield what is durable, and what has left, for a crash at every step and every part of the buffer that reached the disk."""
    for steps in range(1_000):
        world = World()
        disk = Disk(steps, [])
        try:
            work(fresh(LIMITS), disk, world)
        except Crash:
            for kept in range(len(disk.buffer) + 1):
                yield disk.synced + disk.buffer[:kept], world
            continue
        yield disk.synced, world
        return
    raise AssertionError("the work does not end")


def roots_by_length() -> list[bytes]:
    """Return the state root after each number of journal entries of a run without crashes."""
    disk = Disk(10**6, [])
    work(fresh(LIMITS), disk, World())
    roots = []
    for length in range(len(disk.synced) + 1):
        operator = fresh(LIMITS)
        operator.recover(map(decode_entry, disk.synced[:length]))
        roots.append(operator.state.root())
    return roots


def test_every_crash_leaves_the_old_or_the_new_state_and_no_receipt_that_is_not_kept() -> None:
    roots = roots_by_length()
    tried = 0
    for durable, left in crashes():
        tried += 1
        operator = fresh(LIMITS)
        released = operator.recover(map(decode_entry, durable))
        assert operator.state.root() == roots[len(durable)]
        # Whatever left before the crash is what leaves after it, to the byte.
        assert all(answer in [again for _, again in released.answers] for answer in left.answers.values())
        again = {batch.commitment.number: batch for batch in released.batches}
        assert all(again[number] == batch for number, batch in left.batches.items())

        world = World()
        world.batches.update(again)
        work(operator, Disk(10**6, durable), world)
        watcher = kit.watcher()
        for number in range(operator.number):
            batch = world.batches[number]
            assert watcher.follow(batch.commitment, batch.data) is None
            for answer in [*left.answers.values(), *world.answers.values()]:
                assert watcher.broken_receipt(answer.signed, batch.commitment, batch.data) is None
        promised = [answer.signed.receipt.number for answer in [*left.answers.values(), *world.answers.values()]]
        assert max(promised) < operator.number
        assert watcher.state.root() == operator.state.root() == roots[-1]
    assert tried > 30


@pytest.mark.parametrize("change", ["dropped", "swapped", "foreign"])
def test_a_damaged_journal_is_told_from_a_crash(change: str) -> None:
    disk = Disk(10**6, [])
    work(fresh(LIMITS), disk, World())
    entries = [decode_entry(raw) for raw in disk.synced]
    for place in range(len(entries) - 1):
        damaged = list(entries)
        if change == "dropped":
            del damaged[place]
        elif change == "swapped":
            damaged[place], damaged[place + 1] = damaged[place + 1], damaged[place]
        else:
            entry = entries[place]
            if isinstance(entry, Cut):
                continue
            damaged[place] = msgspec.structs.replace(entry, leaf=msgspec.structs.replace(entry.leaf, root=bytes(32)))
        with pytest.raises(StoreError, match="journal"):
            fresh(LIMITS).recover(damaged)


def test_hostile_bytes_in_a_journal_are_a_typed_error() -> None:
    for raw in (b"", b"\xc1", bytes(40_000), b"\x92\x03\xc0"):
        with pytest.raises(InvalidInput, match="journal entry"):
            decode_entry(raw)


def test_a_start_from_a_state_that_is_not_the_journals_is_told() -> None:
    disk = Disk(10**6, [])
    work(fresh(LIMITS), disk, World())
    start = Start(1, 0, ((b"mother", b"state"),))
    operator = Operator(kit.CHAIN_ID, kit.TERMS, kit.OPERATOR, kit.REGISTRY, LIMITS, start)
    with pytest.raises(StoreError):
        operator.recover(map(decode_entry, disk.synced))


def test_strangers_whose_requests_come_to_nothing_fill_no_more_than_half_of_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("contracts.operator.MAX_STATE_ENTRIES", 8)
    desk, idle = kit.Desk(), payment(5)

    def request(user: int, *operations: object) -> bytes:
        return sign_request(kit.CHAIN_ID, key(user), kit.CONTRACT, 0, operations)

    for user in range(10, 14):
        assert desk.send(request(user, idle)).outcomes[0].code == "insufficient_balance"
    with pytest.raises(InvalidRequest, match="insufficient_balance: none of its operations takes effect"):
        desk.send(request(14, idle))
    assert len(desk.operator.state) == 5, "four senders and their count"
    desk.send(deposit_request(kit.CONTRACT, 0, key(14).address, 50), is_forced=True)
    assert desk.send(request(14, idle)).outcomes[0].is_done, "nobody is shut out who has something to do here"
    assert desk.send(request(15, idle), is_forced=True).outcomes[0].code == "insufficient_balance"
