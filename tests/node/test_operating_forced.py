# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain forces on an operator: deposits and requests, answered in order, in time, one after the other."""

from pathlib import Path

import pytest
import trio
from trio.abc import Instrument

from contracts.operator import OperatorLimits
from ledger import testing
from ledger.contract_bodies import ForceOperation
from ledger.offchain import MAX_FORCED
from ledger.store import Store
from ledger.transactions import check_transaction
from node.offchain import forced as forced_module
from node.offchain import serving
from node.offchain.statuses import refused
from tests.node.kit import until
from tests.node.offchain_kit import (
    CHAIN,
    CONTRACT,
    World,
    accepted,
    pay,
    request,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_deposits_and_forced_requests_are_answered_for_in_the_chains_order(world: World) -> None:
    world.chain.open()
    async with world.node():
        await world.ready()
        world.chain.fund(1, 100)
        world.chain.force(request(1, 0, pay(30)))
        world.chain.fund(2, 50)
        await world.all_committed()
        assert world.chain.contract().answered_count == 3
        cited = [place for batch in world.chain.batches() for place in batch.commitment.forced]
        assert len(cited) == 3
        watcher = world.check([])
        # The forced payment of 30 took effect: its sender's next number is 1, and 70 are left.
        assert watcher.state.root() == world.operating._desks[CONTRACT]._serving.operator.state.root()  # type: ignore[union-attr]


async def test_what_was_forced_while_the_operator_was_down_is_answered_once(world: World) -> None:
    world.chain.open()
    async with world.node():
        await world.ready()
        world.chain.fund(1)
        await world.answered([request(1, 0)])
    world.chain.fund(2)
    world.chain.force(request(1, 1))
    # Sent the ordinary way already: it is answered for, without effect.
    world.chain.force(request(1, 0))
    for _ in range(2):
        async with world.node():
            await world.ready()
            await world.all_committed()
            assert world.chain.contract().answered_count == 4
    assert sum(len(batch.commitment.forced) for batch in world.chain.batches()) == 4
    world.check([])


async def test_what_is_forced_while_the_chain_is_slow_and_all_is_full_is_not_answered_too_late(world: World) -> None:
    """The chain refuses a batch that leaves a forced request unanswered beyond its term, so one late answer would stop all."""
    world.chain.open()
    limits = OperatorLimits(batch_age_ms=10**9, batch_requests=MAX_FORCED)
    async with world.node(commits=False, limits=limits) as operating:
        await world.ready()
        world.chain.holds = True
        outcomes = await operating.send(CONTRACT, [request(1, number) for number in range(MAX_FORCED * 8)])
        receipts = [accepted(outcome).signed for outcome in outcomes if outcome.accepted]
        assert 0 < len(receipts) < len(outcomes)
        for number in range(2 * MAX_FORCED + 3):
            world.chain.fund(1 + number % 3, 1)
        world.chain.holds = False
        desk = operating._desks[CONTRACT]
        late = refused("", "")
        while not desk.is_drained():
            await until(lambda: world.chain.waiting)
            world.chain.commit()
            if not late.accepted:
                (late,) = await operating.send(CONTRACT, [request(5, 0)])
            desk.set_closing(late.accepted)  # cuts what is open, at once
            await trio.sleep(0.01)
        assert [receipt.reason for _, receipt in world.chain.receipts if receipt.reason] == []
        assert world.chain.contract().answered_count == 2 * MAX_FORCED + 3
        world.check([*receipts, accepted(late).signed])


class Steps(Instrument):
    """Counts the forced requests that one step of a task has executed while everything else in the event loop waited."""

    def __init__(self, world: World) -> None:
        self._world, self._before, self.most = world, 0, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._before = self._executed()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self._executed() - self._before)

    def _executed(self) -> int:
        desk = self._world.operating._desks.get(CONTRACT)
        return 0 if desk is None or desk._serving is None else desk._serving._forced


async def test_a_flood_of_forced_requests_holds_up_nothing_else_on_the_node(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.chain.open()
    flood = 600
    forced = [request(1, number) for number in range(flood)]
    key, first = testing.key(8), world.chain.mempool.next_nonce(testing.key(8).address)
    expiry = world.chain.store.head().height + 50
    raws = [
        testing.signed(CHAIN, key, ForceOperation(CONTRACT, raw), first + number, expiry_height=expiry)
        for number, raw in enumerate(forced)
    ]
    world.chain.commit(*(check_transaction(raw, testing.rules_of(CHAIN)) for raw in raws))
    assert world.chain.contract().forced_count == flood
    looked: list[int] = []
    look = forced_module._transactions_at

    def noted(store: Store, height: int) -> list[bytes]:
        looked.append(height)
        return look(store, height)

    monkeypatch.setattr(forced_module, "_transactions_at", noted)
    async with world.node(commits=False):
        steps = Steps(world)
        trio.lowlevel.add_instrument(steps)
        await until(lambda: steps._executed() >= 2 * MAX_FORCED)
        trio.lowlevel.remove_instrument(steps)
    assert 0 < steps.most <= serving.EXECUTED_AT_ONCE
    assert len(looked) == 1, "a microblock full of them is looked into once"


async def feed_nothing(*_: object) -> bool:
    await trio.lowlevel.checkpoint()
    return False


async def test_nobody_overtakes_what_was_forced_and_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.chain.open()
    async with world.node() as operating:
        await world.ready()
        (before,) = await world.answered([request(1, 0)])
        with monkeypatch.context() as patch:
            patch.setattr(serving.Serving, "_feed", feed_nothing)
            world.chain.fund(2)
            await until(lambda: _serving(world)._is_owing)
            outcomes = await operating.send(CONTRACT, [request(1, 0), request(1, 1), request(1, 2)])
            # What was accepted before has its receipt; what is new comes later.
            assert [outcome.reason for outcome in outcomes] == ["", "busy", "busy"]
            assert accepted(outcomes[0]).signed == before.signed
        world.chain.commit()
        await until(lambda: not _serving(world)._is_owing)
        after = await world.answered([request(1, 1)])
        await world.all_committed()
        world.check([answer.signed for answer in (before, *after)])
        assert world.chain.contract().answered_count == 1


def _serving(world: World) -> serving.Serving:
    found = world.operating._desks[CONTRACT]._serving
    assert found is not None
    return found
