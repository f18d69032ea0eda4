# SPDX-License-Identifier: GPL-3.0-or-later
"""The feed of the access log: every entry once, through crashes between any two steps, refusals, lies."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.machine import Outcome
from contracts.machines.access_log import LogAccess
from contracts.requests import sign_request
from ledger.errors import NotFound, StoreError
from node.config import NodeConfig
from node.offchain.access_feed import OFF, Trouble
from node.offchain.statuses import SendOutcome, refused
from records.access_log import AccessLog
from records.feed_cursor import FeedState, UnderWay
from tests.node.access_kit import H1, H2, PATIENTS, READER, Hospital, access, all_logged, hospital, logged, world
from tests.node.kit import until
from tests.node.offchain_kit import CHAIN, CONTRACT, World

# ------------------------------------------------------------------ the ordinary way


async def test_every_entry_is_logged_once_and_in_order(world: World, hospital: Hospital) -> None:
    hospital.append(150, patients=3)
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        assert len(hospital.way.sent) == 3, "64 entries go in one request"
        assert len(hospital.held) == 3, "a watcher gets the receipts"
        assert hospital.feed.status() == "ok"
        hospital.append(1)
        await hospital.feed_all()
        await hospital.feed_all()
        assert len(hospital.way.sent) == 4
        await all_logged(world, hospital)
    refusals = [operation.is_refused for _, operation in logged(world)]
    assert refusals == [number % 3 == 2 for number in range(151)]
    assert {operation.reader for _, operation in logged(world)} == {READER.address}


async def test_the_standing_task_sends_by_itself_and_goes_on_after_a_pause(world: World, hospital: Hospital) -> None:
    async with world.node(), trio.open_nursery() as nursery:
        await world.ready()
        nursery.start_soon(hospital.feed.run)
        await trio.sleep(0.1)
        hospital.append(2)
        await until(lambda: hospital.feed.waiting == 0)
        hospital.way.instead = lambda _raw: [refused("busy", "too much", 10)]
        hospital.append(1)
        await until(lambda: "1 entries wait: the operator does not take them: busy" in hospital.feed.status())
        hospital.way.instead = lambda _raw: None
        await until(lambda: hospital.feed.status() == "ok")
        await all_logged(world, hospital)
        nursery.cancel_scope.cancel()


async def test_many_patients_are_spread_over_requests_that_can_be_challenged(world: World, hospital: Hospital) -> None:
    hospital.append(64, patients=40)
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        await all_logged(world, hospital)
    assert len(hospital.way.sent) == 6


async def test_two_institutions_feed_one_contract(world: World, hospital: Hospital, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = Hospital(tmp_path / "second", world, H2)
    hospital.append(5)
    other.append(7)
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        await other.feed_all()
        await world.all_committed()
    other.log.close()
    by_writer = [writer for writer, _ in logged(world)]
    assert (by_writer.count(H1.address), by_writer.count(H2.address)) == (5, 7)


__all__ = ["hospital", "world"]


# ------------------------------------------------------------------ crashes


class Killed(BaseException):
    """What a test raises in the place of a power cut."""


@pytest.mark.parametrize("step", ["begin", "send", "sent", "accept"])
@pytest.mark.parametrize("operator_too", [False, True])
async def test_a_crash_between_any_two_steps_neither_loses_nor_doubles(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch, step: str, operator_too: bool
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    hospital.append(70)
    cursor = hospital.log.cursor
    async with world.node():
        await world.ready()
        if step == "begin":
            monkeypatch.setattr(cursor, "begin", killed)
        elif step == "send":
            hospital.way.instead = killed
        elif step == "sent":
            hospital.way.after = killed
        else:
            monkeypatch.setattr(cursor, "accept", killed)
        with pytest.raises(Killed):
            await hospital.feed_all()
        monkeypatch.undo()
        hospital.way.instead, hospital.way.after = (lambda _raw: None), (lambda: None)
        first = list(hospital.way.sent)
        hospital.restarted()
        if not operator_too:
            await hospital.feed_all()
            await all_logged(world, hospital)
    if operator_too:
        async with world.node():
            await world.ready()
            await hospital.feed_all()
            await all_logged(world, hospital)
    if first:
        assert hospital.way.sent[len(first)] == first[0], "the same bytes are sent again"


async def test_a_disk_that_fails_stops_the_feed_and_nothing_is_lost(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StoreError("input/output error")

    hospital.append(4)
    async with world.node():
        await world.ready()
        for method in ("begin", "accept"):
            monkeypatch.setattr(hospital.log.cursor, method, fails)
            with pytest.raises(StoreError):
                await hospital.feed_all()
            monkeypatch.undo()
        await hospital.feed_all()
        await all_logged(world, hospital)


async def test_a_request_whose_receipt_the_operator_no_longer_has_is_found_in_its_batch(
    world: World, hospital: Hospital
) -> None:
    hospital.append(4)

    def killed() -> None:
        raise Killed

    hospital.way.after = killed
    async with world.node():
        await world.ready()
        with pytest.raises(Killed):
            await hospital.feed_all()
        hospital.way.after = lambda: None
        await world.all_committed()
        hospital.restarted()
        hospital.way.instead = lambda _raw: [refused("already_accepted", "earlier than memory reaches")]
        with pytest.raises(Trouble):
            await hospital.feed.step()
        assert hospital.feed.waiting == 0
        hospital.way.instead = lambda _raw: None
        await hospital.feed_all()
        await all_logged(world, hospital)


async def test_the_institutions_own_hand_may_use_the_contract_beside_the_feed(world: World, hospital: Hospital) -> None:
    """Its number is taken by another request: the feed signs its own anew, and logs it once."""
    hospital.append(2)
    hospital.way.instead = lambda _raw: [refused("busy", "too much", 10)]
    by_hand = LogAccess(PATIENTS[5], READER.address, b"e" * 32, is_refused=False)
    async with world.node():
        await world.ready()
        with pytest.raises(Trouble, match="busy"):
            await hospital.feed_all()
        (outcome,) = await world.operating.send(CONTRACT, [sign_request(CHAIN, H1, CONTRACT, 0, [by_hand])])
        assert outcome.accepted
        hospital.way.instead = lambda _raw: None
        await hospital.persist()
        await world.all_committed()
    assert [operation.entry for _, operation in logged(world)] == [b"e" * 32, *hospital.digests()]


# ------------------------------------------------------------------ operators that refuse, lie, or are gone


@pytest.mark.parametrize("reason", ["busy", "stopped", "unreachable"])
async def test_what_passes_is_sent_again_as_it_was(world: World, hospital: Hospital, reason: str) -> None:
    hospital.append(3)
    hospital.way.instead = lambda _raw: [refused(reason, "later", 5)]
    async with world.node():
        await world.ready()
        for _ in range(3):
            with pytest.raises(Trouble, match=reason):
                await hospital.feed.step()
        hospital.way.instead = lambda _raw: None
        await hospital.feed_all()
        await all_logged(world, hospital)
    assert len(set(hospital.way.sent)) == 1


async def test_an_operator_that_is_away_is_waited_for(world: World, hospital: Hospital) -> None:
    hospital.append(3)
    async with world.node():
        await world.ready()
    with pytest.raises(NotFound):
        await hospital.feed.step()
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        await all_logged(world, hospital)


@pytest.mark.parametrize("lie", ["request", "outcomes", "signature", "contract", "count"])
async def test_a_receipt_for_something_else_takes_nothing_off(world: World, hospital: Hospital, lie: str) -> None:
    hospital.append(3)

    def changed(outcome: SendOutcome) -> SendOutcome:
        answer = outcome.answer
        assert answer is not None
        signed, receipt, outcomes = answer.signed, answer.signed.receipt, answer.outcomes
        if lie == "request":
            receipt = msgspec.structs.replace(
                receipt, leaf=msgspec.structs.replace(receipt.leaf, request_digest=bytes(32))
            )
        elif lie == "contract":
            receipt = msgspec.structs.replace(receipt, contract_id=bytes(32))
        elif lie == "outcomes":
            outcomes = (Outcome("not_a_writer", b""), *outcomes[1:])
        elif lie == "count":
            outcomes = outcomes[1:]
        signature = bytes(64) if lie == "signature" else signed.signature
        signed = msgspec.structs.replace(signed, receipt=receipt, signature=signature)
        return msgspec.structs.replace(
            outcome, answer=msgspec.structs.replace(answer, signed=signed, outcomes=outcomes)
        )

    async with world.node():
        await world.ready()
        hospital.way.instead = lambda _raw: [refused("busy", "", 5)]
        with pytest.raises(Trouble):
            await hospital.feed_all()
        (true,) = await world.operating.send(CONTRACT, hospital.way.sent[:1])
        hospital.way.instead = lambda _raw: [changed(true)]
        with pytest.raises(Trouble, match="not for what was sent"):
            await hospital.feed_all()
        assert hospital.feed.waiting == 3
        assert hospital.held == []
        hospital.way.instead = lambda _raw: None
        await hospital.feed_all()
        await all_logged(world, hospital)


async def test_what_the_contract_refuses_is_owed_and_tried_in_smaller_requests(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a request that is too heavy to be challenged is refused in part."""
    hospital.append(8)
    begin = hospital.log.cursor.begin
    sizes: list[int] = []

    def counted(state: FeedState, under_way: UnderWay) -> FeedState:
        sizes.append(len(under_way.numbers))
        return begin(state, under_way)

    monkeypatch.setattr(hospital.log.cursor, "begin", counted)
    async with world.node():
        await world.ready()
        hospital.feed._check_answer = lambda *_: None  # type: ignore[method-assign]
        send = hospital.way.send

        async def refuses_half(contract_id: bytes, raws: Sequence[bytes]) -> list[SendOutcome]:
            (outcome,) = await send(contract_id, raws)
            assert outcome.answer is not None
            count = len(outcome.answer.outcomes)
            if count < 3:
                return [outcome]
            outcomes = tuple(
                one if place % 2 else Outcome("request_too_heavy", b"")
                for place, one in enumerate(outcome.answer.outcomes)
            )
            return [msgspec.structs.replace(outcome, answer=msgspec.structs.replace(outcome.answer, outcomes=outcomes))]

        monkeypatch.setattr(hospital.way, "send", refuses_half)
        await hospital.persist()
    assert sizes == [8, 4, 2]
    assert hospital.log.cursor.owed(1) == ()


# ------------------------------------------------------------------ the file


def test_a_log_of_an_earlier_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with AccessLog(path, chain_id=CHAIN, key=H1) as log:
        log.append(access(PATIENTS[0]))
    with sqlite3.connect(path) as connection:
        for table in ("feed", "feed_owed", "feed_sent"):
            connection.execute(f"DROP TABLE {table}")
    connection.close()
    with AccessLog(path, chain_id=CHAIN, key=H1) as log:
        assert log.cursor.state().next_number == 0
        assert log.verify() == 1


def test_the_configuration_takes_an_identifier_off_or_nothing() -> None:
    for right in ("", OFF, "ab" * 32):
        assert NodeConfig(data_dir=Path("d"), access_log_contract=right).access_log_contract == right
    for wrong in ("on", "ab", "zz" * 32):
        with pytest.raises(ValueError, match="access_log_contract"):
            NodeConfig(data_dir=Path("d"), access_log_contract=wrong)
