# SPDX-License-Identifier: GPL-3.0-or-later
"""Own transactions become batches, each ordered once under its name, and are safe only when enough members have them."""

from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from ledger import testing
from ledger.contract_bodies import ChallengeBatch, CommitBatch
from ledger.errors import StoreError
from ledger.load import load_of
from ledger.memory_store import MemoryStore
from ledger.offchain import (
    MAX_DATA_BYTES,
    BatchCommitment,
    BrokenReceipt,
    RequestLeaf,
    RequestReceipt,
    SignedReceipt,
)
from ledger.transactions import CheckedTransaction, decode_batch
from node import batcher as module
from node.batcher import Batcher
from node.batches import Batch, BatchPool
from tests.node.kit import CHAIN, GENESIS, paid, until

PATIENCE_S = 0.05


class FlakyStore(MemoryStore):
    """Refuses to keep batches while `full`."""

    full = False

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        if self.full:
            raise StoreError("no space left")
        super().put_batches(batches)


class World:
    """A batcher and what it did."""

    def __init__(self, nursery: trio.Nursery, copies_needed: int) -> None:
        self.store = FlakyStore(GENESIS)
        self.pool = BatchPool(self.store)
        self.published: list[bytes] = []
        self.made: list[Batch] = []
        self.failed: list[CheckedTransaction] = []
        self.batcher = Batcher(
            pool=self.pool,
            publish=self._publish,
            made=self.made.append,
            failed=self.failed.extend,
        )
        self.batcher.copies_needed = copies_needed
        nursery.start_soon(self.batcher.run)

    async def _publish(self, raw: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append(raw)

    def commit(self, batch: Batch) -> None:
        testing.commit(self.store, decode_batch(batch.raw))
        self.pool.remove([batch.digest])
        self.batcher.settled(batch.digest)


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
def world(nursery: trio.Nursery) -> World:
    return World(nursery, copies_needed=1)


async def test_a_batch_is_durable_before_anyone_hears_of_it_and_safe_when_acknowledged(world: World) -> None:
    world.batcher.put([paid(0, 0), paid(0, 1)])
    ticket = world.batcher.ticket([paid(0, 0).id, paid(0, 1).id])
    await until(lambda: world.made)
    (batch,) = world.made
    assert world.published == [batch.raw]
    assert world.store.batch(batch.digest) == batch.raw
    assert not await ticket.wait(PATIENCE_S)
    world.batcher.acknowledged(b"?" * 32, b"member")
    assert not await ticket.wait(PATIENCE_S)
    world.batcher.acknowledged(batch.digest, b"member")
    assert await ticket.wait(1)


async def test_one_member_counts_once(nursery: trio.Nursery) -> None:
    world = World(nursery, copies_needed=2)
    world.batcher.put([paid(0, 0)])
    ticket = world.batcher.ticket([paid(0, 0).id])
    await until(lambda: world.made)
    for _ in range(3):
        world.batcher.acknowledged(world.made[0].digest, b"one")
    assert not await ticket.wait(PATIENCE_S)
    world.batcher.acknowledged(world.made[0].digest, b"two")
    assert await ticket.wait(1)


async def test_alone_in_the_network_a_batch_is_safe_once_durable(nursery: trio.Nursery) -> None:
    world = World(nursery, copies_needed=0)
    world.batcher.put([paid(0, 0)])
    assert await world.batcher.ticket([paid(0, 0).id]).wait(60)
    await until(lambda: world.made)
    assert world.store.batch(world.made[0].digest)


async def test_a_second_submission_waits_for_the_same_copies(world: World) -> None:
    world.batcher.put([paid(0, 0)])
    first, second = (world.batcher.ticket([paid(0, 0).id]) for _ in range(2))
    await until(lambda: world.made)
    assert not await second.wait(PATIENCE_S)
    world.batcher.drop_ticket(first)
    world.batcher.acknowledged(world.made[0].digest, b"member")
    assert await second.wait(1)
    assert await world.batcher.ticket([paid(0, 0).id]).wait(1)


async def test_what_is_committed_is_safe_though_nobody_acknowledged_it_and_nothing_is_left(world: World) -> None:
    world.batcher.put([paid(0, 0)])
    ticket = world.batcher.ticket([paid(0, 0).id])
    await until(lambda: world.made)
    world.commit(world.made[0])
    assert await ticket.wait(1)
    assert not world.batcher._acks
    assert not world.batcher._unsafe


async def test_what_was_dropped_leaves_nothing_behind(world: World) -> None:
    world.batcher.put([paid(0, 0)])
    ticket = world.batcher.ticket([paid(0, 0).id])
    await until(lambda: world.made)
    world.batcher.dropped(world.made[0])
    assert not await ticket.wait(PATIENCE_S)
    world.batcher.drop_ticket(ticket)
    assert not world.batcher._acks
    assert not world.batcher._unsafe


async def test_a_full_disk_fails_new_transactions_and_keeps_accepted_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    world.store.full = True
    world.batcher.requeue([paid(1, 0)])
    world.batcher.put([paid(0, 0)])
    ticket = world.batcher.ticket([paid(0, 0).id])
    assert not await ticket.wait(5)
    assert ticket.errors == {paid(0, 0).id: "no space left"}
    assert world.failed == [paid(0, 0)]
    assert not world.batcher.is_unsafe(paid(0, 0).id)
    world.store.full = False
    await until(lambda: world.made)
    assert decode_batch(world.made[0].raw) == (paid(1, 0).raw,)


async def test_a_lone_transaction_that_was_overtaken_is_ordered_under_another_name(world: World) -> None:
    late = paid(0, 1)
    world.batcher.put([late])
    digests: set[bytes] = set()
    for _ in range(3):
        await until(lambda: len(world.made) > len(digests))
        world.commit(world.made[-1])
        receipt = world.store.receipt(late.id)
        assert receipt is not None
        assert receipt.reason == "nonce_gap"
        digests.add(world.made[-1].digest)
        world.batcher.requeue([late])
    assert len(digests) == 3


async def test_what_is_pending_already_is_published_but_kept_once(world: World) -> None:
    world.batcher.put([paid(0, 0)])
    world.batcher.put([])
    await until(lambda: len(world.made) == 1)
    world.batcher.put([paid(0, 0)])
    ticket = world.batcher.ticket([paid(0, 0).id])
    await until(lambda: len(world.made) == 2)
    assert len(world.pool) == 1
    world.batcher.acknowledged(world.made[0].digest, b"member")
    assert await ticket.wait(1)


async def test_transactions_ordered_again_stand_in_the_order_of_their_nonces(world: World) -> None:
    jumbled = [paid(0, 2), paid(1, 7), paid(0, 0), paid(1, 5), paid(0, 1)]
    world.batcher.requeue(jumbled)
    await until(lambda: world.made)
    assert [t.transaction.nonce for t in world.made[0].transactions] == [0, 5, 1, 7, 2]
    assert {t.id for t in world.made[0].transactions} == {t.id for t in jumbled}


async def test_a_full_queue_makes_submissions_wait_and_is_cut_into_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_TRANSACTIONS", 4)
    monkeypatch.setattr(module, "BATCH_COST", 3)
    world.batcher.put([paid(0, nonce) for nonce in range(4)])
    with trio.fail_after(60):
        await world.batcher.room()
    assert len(world.batcher._queue) < 4
    await until(lambda: sum(len(batch.transactions) for batch in world.made) == 4)
    assert [len(batch.transactions) for batch in world.made] == [3, 1]


async def test_what_costs_as_much_as_many_transfers_fills_a_batch_like_them(world: World) -> None:
    receipt = RequestReceipt(bytes(32), 0, 0, RequestLeaf(bytes(32), 0, 1, bytes(32), bytes(32)))
    body = ChallengeBatch(bytes(32), 0, BrokenReceipt(SignedReceipt(receipt, bytes(64)), None))
    raws = [testing.signed(CHAIN, testing.key(2), body, nonce) for nonce in range(5)]
    world.batcher.put(testing.check(CHAIN, raws))
    await until(lambda: sum(len(batch.transactions) for batch in world.made) == 5)
    assert [len(batch.transactions) for batch in world.made] == [4, 1]
    assert all(load_of(batch.transactions).fits for batch in world.made)


async def test_commitments_have_batches_of_their_own(world: World) -> None:
    digest = bytes(32)
    commitment = BatchCommitment(digest, 0, digest, digest, digest, 1, 1, digest, 1, 0, 0, ())
    raws = [testing.signed(CHAIN, testing.key(2), CommitBatch(commitment), nonce) for nonce in range(2)]
    commits = testing.check(CHAIN, raws)
    world.batcher.put([paid(0, 0), paid(0, 1), *commits, paid(1, 0)])
    await until(lambda: len(world.made) == 3)
    assert [[checked.id for checked in batch.transactions] for batch in world.made] == [
        [paid(0, 0).id, paid(0, 1).id],
        [checked.id for checked in commits],
        [paid(1, 0).id],
    ]


async def test_a_batch_commits_to_no_more_data_than_others_take(world: World) -> None:
    digest = bytes(32)
    largest = BatchCommitment(digest, 0, digest, digest, digest, 1, 1, digest, MAX_DATA_BYTES, 0, 0, ())
    raws = [testing.signed(CHAIN, testing.key(2), CommitBatch(largest), nonce) for nonce in range(6)]
    world.batcher.put(testing.check(CHAIN, raws))
    await until(lambda: sum(len(batch.transactions) for batch in world.made) == 6)
    assert [len(batch.transactions) for batch in world.made] == [4, 2]
