# SPDX-License-Identifier: GPL-3.0-or-later
"""Effects are carried out in order, each once, whatever the disk does, over epochs; a broken core ends the node."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consensus.core import Core
from consensus.events import Effect, Event, PayloadChanged, Received, Refused, Tick
from consensus.executor import Executor
from consensus.messages import Message, Offer, Proposal, Reveal, Vote
from consensus.safety import fresh_record
from consensus.timing import Timing
from contracts.shipped import MACHINES
from ledger import testing
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import StoreError
from ledger.evidence import Evidence, check_evidence
from ledger.genesis import Allocation, Genesis, Member, chain_id
from ledger.memory_store import MemoryStore
from ledger.store import BlockUpdate
from ledger.transactions import check_transaction, encode_batch
from ledger.votes import vote_digest
from node.batches import BatchPool, check_batch
from node.clock import now_ms
from node.driver import Committed, Driver, Ports
from node.identity import Identity
from node.mining import MiningWork, work_in
from node.run import build_core
from node.safety_file import SafetyFile, SafetySnapshot
from tests.node.kit import mined, revealed

MEMBER, STRANGER = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
LONE = Genesis(
    "test",
    testing.GENESIS_TIMESTAMP_MS,
    testing.PARAMETERS,
    (Member(MEMBER.signing.public_key, 10**9),),
    (MEMBER.address,),
    tuple(Allocation(testing.key(number).address, 10**12) for number in range(8)),
    DEVELOPMENT_VERIFYING_KEY,
)
CHAIN = chain_id(LONE)


class FlakyStore(MemoryStore):
    """Refuses as many commits as it is told to."""

    refusals = 0

    def commit(self, update: BlockUpdate) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise StoreError("no space left")
        super().commit(update)


class FlakySafety(SafetyFile):
    """Refuses as many promises as it is told to."""

    refusals = 0

    def save(self, snapshot: SafetySnapshot) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise StoreError("no space left")
        super().save(snapshot)


def core_of(store: MemoryStore, safety: SafetyFile, identity: Identity = MEMBER) -> Core:
    """Return the core of a node that starts on this store."""
    return build_core(Executor(store, MACHINES).epoch, identity, store, safety, BatchPool(store), Timing())


class World:
    """A network of one member, whose driver notes what it was told to do."""

    def __init__(self, directory: Path) -> None:
        self.store, self.safety = FlakyStore(LONE), FlakySafety(directory / "safety")
        self.pool = BatchPool(self.store)
        self.pool.members = 1
        self.executor = Executor(self.store, MACHINES)
        self.sent: list[Message] = []
        self.committed: list[Committed] = []
        self.reported: list[Evidence] = []
        self.on_committed: Callable[[Committed], None] = lambda _: None
        self.now_ms = now_ms()
        core = build_core(self.executor.epoch, MEMBER, self.store, self.safety, self.pool, Timing())
        ports = Ports(
            send=lambda _, message: self.sent.append(message),
            broadcast=self.sent.append,
            request_batches=lambda _: None,
            request_chain=lambda _: None,
            committed=self._committed,
            report=self.reported.append,
        )
        self.driver = Driver(
            core=core,
            executor=self.executor,
            pool=self.pool,
            safety=self.safety,
            ports=ports,
            clock_ms=lambda: self.now_ms,
        )

    def _committed(self, committed: Committed) -> None:
        self.committed.append(committed)
        self.on_committed(committed)

    def step(self, event: Event) -> Refused | None:
        self.now_ms += 100
        return self.driver.handle(event)

    def pay(self, nonce: int) -> None:
        raw = encode_batch([testing.transfer(CHAIN, testing.key(1), testing.key(2).address, 1, nonce)])
        self.pool.add_own(check_batch(raw, testing.rules_of(CHAIN)))
        self.step(PayloadChanged())

    def work(self) -> MiningWork:
        core = self.driver.core
        return work_in(core.epoch, MEMBER.public.public_key, is_open=not core.wants_reveal)

    def mine(self) -> None:
        """As a miner does again and again: reveal if that is wanted, offer a keyblock."""
        work = self.work()
        if work.reveal is not None:
            self.step(Received(Reveal(work.epoch, revealed(work, MEMBER))))
        self.step(Received(Offer(mined(work, MEMBER, self.now_ms))))

    def turn(self) -> None:
        """Begin the next epoch."""
        epoch = self.driver.core.epoch.number
        self.mine()
        assert self.driver.core.epoch.number == epoch + 1

    def tick(self, count: int = 3) -> None:
        for _ in range(count):
            self.now_ms += 60_000
            self.step(Tick())

    def assert_orderly(self) -> None:
        """Every microblock once, in order, and told once."""
        assert [committed.head.height for committed in self.committed] == list(range(1, len(self.committed) + 1))
        assert self.store.head() == (self.committed[-1].head if self.committed else self.store.head())
        proposals = [m.signed.microblock.header.round for m in self.sent if isinstance(m, Proposal)]
        assert proposals == sorted(set(proposals)), "no round is proposed in twice"
        begun = [committed.epoch.number for committed in self.committed if committed.epoch is not None]
        assert begun == list(range(1, self.executor.epoch.number + 1)), "each epoch is told once, in order"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.safety.close()


def test_what_is_ordered_is_committed_and_told_once(world: World) -> None:
    for nonce in range(5):
        world.pay(nonce)
    world.tick()
    world.assert_orderly()
    receipts = [receipt for committed in world.committed for _, receipt in committed.execution.receipts]
    assert [receipt.reason for receipt in receipts] == [""] * 5
    assert world.store.head().transaction_count == 5
    assert len(world.pool) == 0


def test_a_message_leaves_only_after_what_it_rests_on_is_durable(world: World) -> None:
    world.safety.refusals = 1
    world.pay(0)
    assert world.driver.halted == "no space left"
    assert world.sent == []
    assert world.step(Tick()) is None
    assert world.sent == []
    world.driver.resume()
    assert not world.driver.halted
    assert world.sent
    world.tick()
    world.assert_orderly()
    assert world.store.head().transaction_count == 1


def test_a_vote_that_is_not_durable_is_not_shown_in_a_certificate(world: World) -> None:
    world.safety.refusals = 10
    world.pay(0)
    assert world.driver.halted
    assert world.driver.core.certified_tail(), "the member's own vote is a quorum here"
    assert world.driver.certified_tail() == ()


def test_a_refused_commit_waits_with_all_behind_it(world: World) -> None:
    world.store.refusals = 3
    world.pay(0)
    world.tick()
    assert world.driver.halted
    assert world.committed == []
    for _ in range(2):
        world.driver.resume()
        assert world.driver.halted
    world.driver.resume()
    assert not world.driver.halted
    world.tick()
    world.assert_orderly()
    assert world.store.head().transaction_count == 1


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_disk_refuses_nothing_is_lost_or_done_twice(world: World, seed: int) -> None:
    rng = random.Random(seed)
    for nonce in range(10):
        if rng.random() < 0.4:
            world.store.refusals = rng.randrange(3)
        if rng.random() < 0.4:
            world.safety.refusals = rng.randrange(3)
        world.pay(nonce)
        for _ in range(rng.randrange(4)):
            world.driver.resume()
    world.store.refusals = world.safety.refusals = 0
    world.driver.resume()
    world.tick(5)
    world.assert_orderly()
    assert world.store.head().transaction_count == 10


def test_an_event_from_within_a_commit_comes_after_it(world: World) -> None:
    heights: list[int] = []

    def again(committed: Committed) -> None:
        heights.append(committed.head.height)
        world.driver.handle(PayloadChanged())
        assert heights[-1] == committed.head.height, "the next microblock is not told inside this one"

    world.on_committed = again
    for nonce in range(4):
        world.pay(nonce)
    world.tick()
    world.assert_orderly()
    assert heights == sorted(set(heights))


def test_a_batch_that_a_vote_rests_on_is_named_until_it_is_committed(world: World) -> None:
    world.store.refusals = 1
    world.pay(0)
    (digest,) = [batch.digest for batch in world.pool]
    assert digest in world.driver.named_batches()
    assert world.pool.drop_expired(10**6, world.driver.named_batches()) == []
    world.driver.resume()
    world.tick()
    assert world.store.batch_height(digest) is not None
    assert world.driver.named_batches() == set()


def test_a_batch_is_named_while_the_vote_for_it_waits_for_the_disk(world: World) -> None:
    world.safety.refusals = 1
    world.pay(0)
    (digest,) = [batch.digest for batch in world.pool]
    assert world.driver.halted
    assert world.driver.named_batches() == {digest}
    world.driver.resume()
    world.tick()
    assert world.store.batch_height(digest) is not None


def test_a_restarted_member_keeps_its_promises_and_goes_on(world: World, tmp_path: Path) -> None:
    world.pay(0)
    world.tick(1)
    voted = world.safety.snapshot
    assert voted is not None
    again = SafetyFile(tmp_path / "safety")
    core = core_of(world.store, again)
    assert core.record == voted.record
    assert core.committed_height == world.store.head().height
    again.close()


def test_a_member_whose_safety_record_is_gone_does_not_start(world: World, tmp_path: Path) -> None:
    world.pay(0)
    world.tick(1)
    blank = SafetyFile(tmp_path / "blank")
    with pytest.raises(StoreError, match="safety record is gone"):
        core_of(world.store, blank)
    blank.close()


def test_an_observer_whose_safety_record_is_gone_gets_a_new_one(world: World, tmp_path: Path) -> None:
    world.pay(0)
    world.turn()
    blank = SafetyFile(tmp_path / "blank")
    core = core_of(world.store, blank, STRANGER)
    assert core.record is None
    assert blank.snapshot == SafetySnapshot(fresh_record(core.epoch), ())
    assert core.epoch.number == 1
    blank.close()


def test_a_pinned_keyblock_begins_an_epoch_and_work_goes_on_in_it(world: World) -> None:
    world.pay(0)
    world.turn()
    pinning = world.committed[-1]
    assert pinning.epoch is world.driver.core.epoch is world.executor.epoch
    assert pinning.head == world.store.head(), "what made it final is no part of the chain"
    assert world.driver.named_batches() == set(), "nothing of the epoch before is kept"
    world.pay(1)
    assert world.store.head() == pinning.head, "the epoch has no leaders before the seed is revealed"
    work = world.work()
    world.step(Received(Reveal(work.epoch, revealed(work, MEMBER))))
    world.turn()
    world.tick()
    world.assert_orderly()
    assert world.store.head().transaction_count == 2


def test_a_withheld_reveal_costs_a_time_out_and_no_more(world: World) -> None:
    world.turn()
    world.pay(0)
    world.tick()
    assert world.store.head().transaction_count == 1
    assert not world.driver.core.wants_reveal


def test_an_epoch_that_the_disk_refuses_begins_when_the_disk_takes_it(world: World) -> None:
    world.store.refusals = 2
    world.mine()
    assert world.driver.halted
    assert (world.executor.epoch.number, world.store.head().height, world.committed) == (0, 0, [])
    world.mine()
    world.driver.resume()
    assert world.executor.epoch.number == 0
    world.driver.resume()
    assert world.driver.core.epoch is world.executor.epoch is world.committed[-1].epoch
    world.pay(0)
    world.turn()
    world.assert_orderly()
    assert world.store.head().transaction_count == 1


@pytest.mark.parametrize("seed", range(4))
def test_epochs_follow_each_other_whatever_the_disk_refuses(world: World, seed: int) -> None:
    rng = random.Random(seed)
    for nonce in range(12):
        if rng.random() < 0.3:
            world.store.refusals = rng.randrange(3)
        if rng.random() < 0.3:
            world.safety.refusals = rng.randrange(3)
        world.pay(nonce)
        if rng.random() < 0.6:
            world.mine()
        for _ in range(rng.randrange(4)):
            world.driver.resume()
    world.store.refusals = world.safety.refusals = 0
    world.driver.resume()
    world.turn()
    world.mine()
    world.tick(5)
    world.assert_orderly()
    assert world.store.head().transaction_count == 12
    assert world.executor.epoch.number > 1


@pytest.mark.parametrize("is_open", [False, True])
def test_a_member_restarts_in_a_later_epoch(world: World, tmp_path: Path, *, is_open: bool) -> None:
    world.pay(0)
    world.turn()
    if is_open:
        world.step(Received(Reveal(1, revealed(world.work(), MEMBER))))
        world.pay(1)
    again = SafetyFile(tmp_path / "safety")
    core = core_of(world.store, again)
    assert (core.epoch.number, core.committed_height) == (1, world.store.head().height)
    assert core.epoch.committee.members == world.driver.core.epoch.committee.members
    assert core.leader_address() == world.driver.core.leader_address()
    assert core.wants_reveal is not is_open
    if is_open:
        assert core.record == world.driver.core.record
    else:
        assert core.record == fresh_record(core.epoch), "promises of an epoch that is over bind nobody"
    again.close()


def test_proof_of_misbehaviour_is_handed_on_once(world: World) -> None:
    world.pay(0)
    other = b"x" * 32
    signature = MEMBER.signing.sign(vote_digest(CHAIN, 0, 1, other))
    for is_known in (False, True):
        refused = world.step(Received(Vote(0, 1, other, MEMBER.address, signature)))
        assert (refused is not None) == is_known
    (evidence,) = world.reported
    guilt = check_evidence(CHAIN, evidence)
    assert (guilt.offender, guilt.epoch, guilt.round) == (MEMBER.signing.public_key, 0, 1)


def test_late_and_early_messages_are_refused_without_fault_and_wrong_ones_with(world: World) -> None:
    world.turn()
    refused = [world.step(Received(Vote(epoch, 1, b"x" * 32, MEMBER.address, b"s" * 64))) for epoch in (0, 2, 1)]
    assert [item is not None and item.at_fault for item in refused] == [False, False, True]


def test_a_fault_of_ours_breaks_the_node_and_not_only_one_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: object) -> list[Effect]:
        raise ZeroDivisionError

    world.driver.check()
    with monkeypatch.context() as patch:
        patch.setattr(world.driver.core, "step", boom)
        with pytest.raises(ZeroDivisionError):
            world.step(Tick())
    assert world.step(Tick()) is None
    with pytest.raises(ZeroDivisionError):
        world.driver.check()


def test_votes_are_not_repeated_for_messages_that_come_again(world: World) -> None:
    world.pay(0)
    proposals = [message for message in world.sent if isinstance(message, Proposal)]
    before = len(world.sent)
    for proposal in proposals:
        refused = world.step(Received(proposal))
        assert refused is not None
        assert not refused.at_fault
    assert [m for m in world.sent[before:] if isinstance(m, Vote)] == []


def test_a_checked_transaction_is_what_is_executed(world: World) -> None:
    world.pay(0)
    world.tick()
    transactions = [t for committed in world.committed for t in committed.transactions]
    assert transactions == [check_transaction(transactions[0].raw, testing.rules_of(CHAIN))]
