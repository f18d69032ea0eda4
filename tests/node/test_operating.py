# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator at a node, on a real disk and a chain in the process: what users, the chain and a broken disk may do to it."""

from pathlib import Path

import pytest
import trio

from contracts.operator import OperatorLimits
from contracts.requests import sign_request
from ledger import testing
from ledger.codec import encode
from ledger.contract_bodies import CloseContract, CommitBatch
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import deposit_request
from node.offchain import committing, serving
from tests.node.kit import until
from tests.node.offchain_kit import (
    CHAIN,
    CONTRACT,
    LIMITS,
    OPENED,
    OPERATOR,
    RULES,
    World,
    accepted,
    pay,
    request,
)

SLOW = OperatorLimits(batch_age_ms=10**9)
"""Cuts nothing by itself."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---------------------------------------------------------------- requests


async def test_requests_of_one_call_are_executed_in_their_order_and_reach_the_chain(world: World) -> None:
    world.chain.open()
    async with world.node() as operating:
        world.chain.fund(1)
        await world.ready()
        raws = [request(1, number) for number in range(20)]
        answers = await world.answered(raws)
        places = [(answer.signed.receipt.number, answer.signed.receipt.index) for answer in answers]
        assert places == sorted(places)
        assert operating.next_sequence(CONTRACT, testing.key(1).address) == 20
        await world.all_committed()
        world.check([answer.signed for answer in answers])


async def test_a_contract_that_is_opened_while_the_node_runs_is_served(world: World) -> None:
    async with world.node():
        world.chain.open()
        await world.ready()
        await world.answered([request(1, 0)])


async def test_the_same_request_gets_the_same_receipt_also_after_a_restart_and_beyond_memory(world: World) -> None:
    world.chain.open()
    raws = [request(1, number) for number in range(6)]
    forgetful = OperatorLimits(batch_age_ms=40, remembered_bytes=3_000)
    async with world.node(limits=forgetful):
        await world.ready()
        first = [encode(answer.signed) for answer in await world.answered(raws)]
        again = await world.answered([*raws, raws[0], raws[0]])
        assert [encode(answer.signed) for answer in again] == [*first, first[0], first[0]]
        await world.all_committed()
    async with world.node(limits=forgetful):
        await world.ready()
        assert [encode(answer.signed) for answer in await world.answered(raws)] == first
        assert world.chain.contract().batch_count == len(world.chain.batches())
        assert sum(batch.commitment.leaf_count for batch in world.chain.batches()) == 6


async def test_one_request_sent_by_many_at_once_is_executed_once(world: World) -> None:
    world.chain.open()
    async with world.node():
        await world.ready()
        raw, got = request(1, 0), []

        async def send() -> None:
            got.append(encode((await world.answered([raw]))[0].signed))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(send)
        assert len(set(got)) == 1
        await world.all_committed()
        assert sum(batch.commitment.leaf_count for batch in world.chain.batches()) == 1


async def test_what_cannot_be_accepted_is_refused_by_name_and_holds_up_nobody(world: World) -> None:
    world.chain.open()
    async with world.node() as operating:
        await world.ready()
        good = request(1, 0)
        foreign = sign_request(CHAIN, testing.key(2), bytes(32), 0, [pay()])
        outcomes = await operating.send(
            CONTRACT,
            [
                b"",
                b"\xc1",
                bytes(9_000),
                good[:-1] + bytes([good[-1] ^ 1]),
                foreign,
                deposit_request(CONTRACT, 0, testing.key(1).address, 5),
                request(3, 4),
                good,
                request(1, 0, pay(2)),
            ],
        )
        assert [outcome.reason for outcome in outcomes] == [
            *["invalid_request"] * 6,
            "wrong_sequence",
            "",
            "already_accepted",
        ]
        assert all(outcome.detail and outcome.answer is None for outcome in outcomes if not outcome.accepted)
        assert "the sender's next is 0" in outcomes[6].detail
        unknown = await operating.send(bytes(32), [good])
        assert [outcome.reason for outcome in unknown] == ["contract_unknown"]
        assert await operating.send(CONTRACT, []) == []
        with pytest.raises(NotFound):
            operating.next_sequence(bytes(32), testing.key(1).address)


async def test_more_than_the_intake_holds_is_refused_with_a_hint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_INTAKE", 10)
    world.chain.open()
    async with world.node() as operating:
        await world.ready()
        outcomes = await operating.send(CONTRACT, [request(1, number) for number in range(11)])
        assert {(outcome.reason, outcome.retry_ms) for outcome in outcomes} == {("busy", serving.BUSY_MS)}
        await world.answered([request(1, 0)])


# ---------------------------------------------------------------- the chain


async def test_a_slow_chain_makes_the_operator_busy_and_loses_nothing(world: World) -> None:
    world.chain.open()
    async with world.node(commits=False, limits=OperatorLimits(batch_age_ms=10, batch_requests=2)) as operating:
        await world.ready()
        outcomes = await operating.send(CONTRACT, [request(1, number) for number in range(12)])
        # Two batches wait for the chain, and one is open: the bound that the rule on forced requests gives.
        # Those that follow a refused one are refused for now as well, not for coming too early.
        assert [outcome.reason for outcome in outcomes] == [""] * 6 + ["busy"] * 6
        assert {outcome.retry_ms for outcome in outcomes[6:]} == {serving.BUSY_MS}
        receipts = [accepted(outcome).signed for outcome in outcomes[:6]]
        for _ in range(4):
            await until(lambda: world.chain.waiting or operating._desks[CONTRACT].is_drained())
            world.chain.commit()
        await world.answered([request(1, 6)])
        await until(lambda: world.chain.waiting)
        world.chain.commit()
        await until(operating._desks[CONTRACT].is_drained)
        world.check(receipts)


async def test_a_contract_is_closed_after_all_that_was_promised_stands_on_the_chain(world: World) -> None:
    world.chain.open()
    async with world.node() as operating:
        await world.ready()
        world.chain.fund(1)
        receipts = [answer.signed for answer in await world.answered([request(1, 0), request(1, 1)])]
        assert operating.count == 1
        outcome = await operating.close(CONTRACT)
        assert outcome.accepted
        contract = world.chain.contract()
        assert (contract.status, contract.answered_count) == ("closed", 1)
        world.check(receipts)
        await until(operating._desks[CONTRACT].has_ended)
        assert operating.count == 0
        (late,) = await operating.send(CONTRACT, [request(1, 2)])
        assert (late.reason, late.retry_ms) == ("contract_ended", 0)
        with pytest.raises(InvalidInput, match="closed"):
            await operating.close(CONTRACT)
    async with world.node() as operating:
        await until(lambda: operating._desks and operating._desks[CONTRACT].has_ended())
        status = await operating.status_of(CONTRACT, testing.key(1).address, 1)
        assert status is not None
        assert status.status == "committed"


async def test_closing_that_is_given_up_lets_users_go_on(world: World) -> None:
    world.chain.open()
    async with world.node(commits=False) as operating:
        await world.ready()
        await world.answered([request(1, 0)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operating.close, CONTRACT)
            await until(lambda: operating._desks[CONTRACT].is_closing)
            # It is not certain yet that the contract ends.
            (meanwhile,) = await operating.send(CONTRACT, [request(1, 1)])
            assert (meanwhile.reason, meanwhile.retry_ms) == ("closing", serving.WAIT_MS)
            nursery.cancel_scope.cancel()
        await world.answered([request(1, 1)])


async def test_what_a_contract_ends_without_is_voided(world: World) -> None:
    world.chain.open()
    async with world.node(limits=SLOW) as operating:
        await world.ready()
        await world.answered([request(1, 0)])
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        await until(operating._desks[CONTRACT].has_ended)
        status = await operating.status_of(CONTRACT, testing.key(1).address, 0)
        assert status is not None
        assert (status.status, status.number, status.index) == ("voided", 0, 0)


async def test_after_the_end_lines_of_final_batches_go_and_what_was_voided_stays_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "KEPT_FINAL_BATCHES", 0)
    monkeypatch.setattr(committing, "FOLD_BATCHES", 1)
    world.chain.open()
    user = testing.key(1).address
    async with world.node(limits=OperatorLimits(batch_requests=2, batch_age_ms=10**9)) as operating:
        await world.ready()
        await world.answered([request(1, 0), request(1, 1), request(1, 2)])
        await until(lambda: world.chain.contract().batch_count == 1)
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        await until(operating._desks[CONTRACT].has_ended)
    for _ in range(2):
        async with world.node() as operating:
            for _ in range(RULES.window_microblocks):
                world.chain.commit()
            await until(lambda: world.operating.operates(CONTRACT) and world.journal.cut(CONTRACT, 0) is None)
            old, voided = [await operating.status_of(CONTRACT, user, number) for number in (0, 2)]
            assert old is not None
            assert voided is not None
            assert (old.status, old.number) == ("final", None)
            assert (voided.status, voided.number) == ("voided", 1)
            assert await operating.status_of(CONTRACT, user, 3) is None


async def test_while_the_node_catches_up_nothing_is_taken_cut_or_sent(world: World) -> None:
    world.chain.open()
    async with world.node(limits=OperatorLimits(batch_age_ms=1)) as operating:
        await world.ready()
        world.is_behind = True
        world.chain.fund(1)
        (outcome,) = await operating.send(CONTRACT, [request(1, 0)])
        assert (outcome.reason, outcome.retry_ms) == ("catching_up", serving.WAIT_MS)
        await trio.sleep(0.1)
        assert not world.chain.waiting
        assert world.chain.contract().batch_count == 0
        world.is_behind = False
        world.chain.commit()
        await world.all_committed()
        assert world.chain.contract().answered_count == 1


# ---------------------------------------------------------------- statuses


async def test_a_request_climbs_the_ladder(world: World) -> None:
    world.chain.open()
    user = testing.key(1).address
    async with world.node(commits=False) as operating:
        await world.ready()
        assert await operating.status_of(CONTRACT, user, 0) is None

        seen = []
        raw = request(1, 0, pay(), pay())

        def note(name: str) -> None:
            if name == "before append":
                trio.from_thread.run(look)

        async def look() -> None:
            seen.append(await operating.status_of(CONTRACT, user, 1))

        world.journal.step = note
        await world.answered([raw])
        world.journal.step = lambda _name: None
        assert seen[0] is not None
        assert (seen[0].status, seen[0].number, seen[0].index) == ("received", 0, 0)
        status = await operating.status_of(CONTRACT, user, 1)
        assert status is not None
        assert (status.status, status.number, status.committed_height) == ("included", 0, None)
        assert await operating.status_of(CONTRACT, user, 2) is None

        await until(lambda: world.chain.waiting)
        world.chain.commit()
        height = world.chain.store.head().height
        for passed in range(RULES.window_microblocks + 1):
            status = await operating.status_of(CONTRACT, user, 0)
            assert status is not None
            assert status.status == ("final" if passed == RULES.window_microblocks else "committed")
            assert (status.committed_height, status.final_height) == (height, height + RULES.window_microblocks)
            assert status.rests_on
            world.chain.commit()


async def test_lines_of_final_batches_are_trimmed_and_their_requests_stay_final(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "KEPT_FINAL_BATCHES", 1)
    monkeypatch.setattr(committing, "FOLD_BATCHES", 1)
    world.chain.open()
    user = testing.key(1).address
    async with world.node() as operating:
        await world.ready()
        for number in range(4):
            await world.answered([request(1, number)])
            await world.all_committed()
        for _ in range(RULES.window_microblocks + 1):
            world.chain.commit()
        await until(lambda: world.journal.cut(CONTRACT, 2) is None)
        status = await operating.status_of(CONTRACT, user, 0)
        assert status is not None
        assert (status.status, status.number) == ("final", None)
        status = await operating.status_of(CONTRACT, user, 3)
        assert status is not None
        assert (status.status, status.number) == ("final", 3)
        (old,) = await operating.send(CONTRACT, [request(1, 0)])
        assert accepted(old).signed.receipt.number == 0  # still in memory
    async with world.node() as operating:
        await world.ready()
        (old,) = await operating.send(CONTRACT, [request(1, 0)])
        assert old.reason == "already_accepted"
        await world.answered([request(1, 4)])
        await world.all_committed()
        world.check([])


# ---------------------------------------------------------------- failures


async def test_a_disk_that_refuses_a_line_costs_the_answer_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.offchain.desk.RECOVER_S", 0.01)
    world.chain.open()
    async with world.node() as operating:
        await world.ready()
        first = await world.answered([request(1, 0)])
        broken = True

        def fail(name: str) -> None:
            if name == "before append" and broken:
                raise StoreError("the disk is full")

        world.journal.step = fail
        outcomes = await operating.send(CONTRACT, [request(1, 1), request(2, 0)])
        assert {outcome.reason for outcome in outcomes} == {"stopped"}
        assert all(outcome.retry_ms for outcome in outcomes)
        broken = False
        await world.ready()
        second = await world.answered([request(1, 1), request(2, 0)])
        await world.all_committed()
        world.check([answer.signed for answer in (*first, *second)])


async def test_data_that_cannot_be_published_is_not_committed_until_it_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "RETRY_S", 0.01)
    world.chain.open()
    world.published.trouble = "no room"
    async with world.node():
        await world.ready()
        receipts = [answer.signed for answer in await world.answered([request(1, 0)])]
        await trio.sleep(0.1)
        assert not world.chain.waiting
        world.published.trouble = ""
        await world.all_committed()
        world.check(receipts)


async def test_an_old_copy_of_the_journal_promises_nothing(world: World) -> None:
    world.chain.open()
    async with world.node():
        await world.ready()
        await world.answered([request(1, 0)])
        await world.all_committed()
        await until(lambda: (border := world.journal.border(CONTRACT)) is not None and border.number == 1)
    old = world.path.with_name("old")
    old.write_bytes(world.path.read_bytes())
    async with world.node():
        await world.ready()
        await world.answered([request(1, 1)])
        await world.all_committed()
    for path in (old, world.path.with_name("gone")):
        async with world.node(path=path) as operating:
            await until(operating.troubles)
            (outcome,) = await operating.send(CONTRACT, [request(1, 2)])
            assert outcome.reason == "not_operating"
            with trio.fail_after(60), pytest.raises(InvalidInput, match="not operated"):
                await operating.close(CONTRACT)
            assert world.chain.contract().batch_count == 2
    async with world.node():
        await world.ready()
        await world.answered([request(1, 2)])


async def test_a_contract_whose_journal_is_gone_is_no_trouble_any_more_once_it_has_ended(world: World) -> None:
    world.chain.open()
    async with world.node():
        await world.ready()
        await world.answered([request(1, 0)])
        await world.all_committed()
    async with world.node(path=world.path.with_name("gone")) as operating:
        await until(operating.troubles)
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        await until(lambda: not operating.troubles())
        (outcome,) = await operating.send(CONTRACT, [request(1, 1)])
        assert outcome.reason == "contract_ended"


async def test_two_contracts_share_the_journal_and_not_their_failures(world: World) -> None:
    world.chain.open()
    second = world.chain.open(OPENED.__class__(1, "micro_fees", 1, OPENED.parameters, 20_000)).terms.contract_id
    async with world.node(limits=LIMITS):
        for contract_id in (CONTRACT, second):
            await world.ready(contract_id)
        async with trio.open_nursery() as nursery:
            for contract_id in (CONTRACT, second):
                raws = [request(1, number, contract_id=contract_id) for number in range(10)]
                nursery.start_soon(world.answered, raws, contract_id)
        for contract_id in (CONTRACT, second):
            await world.all_committed(contract_id)
            world.check([], contract_id)
    commits = [checked for checked, _ in world.chain.receipts if isinstance(checked.transaction.body, CommitBatch)]
    assert len(commits) == world.chain.contract().batch_count + world.chain.contract(second).batch_count
