# SPDX-License-Identifier: GPL-3.0-or-later
"""News for clients: bounded in subscribers, backlog and waits."""

import pytest
import trio

from ledger.transition import Receipt
from node import events as module
from node.events import EVENT_BUFFER, MAX_SUBSCRIBERS, BlockEvent, Events

RECEIPT = Receipt(1, 0, "")


def event(height: int) -> BlockEvent:
    return BlockEvent(height, b"h" * 32, 0, 0, 0, ())


async def test_a_subscriber_gets_every_microblock_in_order() -> None:
    events = Events()
    async with events.subscribe() as channel:
        for height in range(3):
            events.publish(event(height))
        assert [(await channel.receive()).height for _ in range(3)] == [0, 1, 2]
    events.publish(event(3))
    assert not events._subscribers


async def test_a_slow_subscriber_is_cut_off_after_what_it_may_fall_behind() -> None:
    events = Events()
    async with events.subscribe() as slow, events.subscribe() as quick:
        for height in range(EVENT_BUFFER + 5):
            events.publish(event(height))
            assert (await quick.receive()).height == height
        received = [item.height async for item in slow]
        assert received == list(range(EVENT_BUFFER))


async def test_one_subscriber_too_many_gets_nothing() -> None:
    events = Events()
    contexts = [events.subscribe() for _ in range(MAX_SUBSCRIBERS)]
    for context in contexts:
        await context.__aenter__()
    async with events.subscribe() as channel:
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
    for context in contexts:
        await context.__aexit__(None, None, None)
    async with events.subscribe() as channel:
        events.publish(event(1))
        assert (await channel.receive()).height == 1


async def test_a_wait_ends_with_the_last_receipt_and_leaves_nothing() -> None:
    events = Events()
    first, second = events.wait_for([b"a", b"b", b"a"]), events.wait_for([b"b"])
    assert events.is_awaited(b"a")
    events.resolve(b"b", RECEIPT)
    await second.wait()
    with trio.move_on_after(0) as scope:
        await first.wait()
    assert scope.cancelled_caught
    events.resolve(b"a", RECEIPT)
    await first.wait()
    assert first.receipts == {b"a": RECEIPT, b"b": RECEIPT}
    for waiter in (first, second):
        events.forget(waiter)
    assert not events._waiting
    assert events._awaited == 0


async def test_a_wait_for_nothing_is_over_and_a_forgotten_one_is_gone() -> None:
    events = Events()
    await events.wait_for([]).wait()
    waiter = events.wait_for([b"a"])
    events.forget(waiter)
    events.forget(waiter)
    assert not events.is_awaited(b"a")
    assert events._awaited == 0


async def test_more_waits_than_there_is_room_for_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_AWAITED", 3)
    events = Events()
    held = events.wait_for([b"a", b"b"])
    refused = events.wait_for([b"a", b"c"])
    await refused.wait()
    assert refused.receipts == {}
    events.forget(refused)
    assert events._awaited == 2
    events.forget(held)
    await_more = events.wait_for([b"a", b"b", b"c"])
    assert events._awaited == 3
    events.forget(await_more)
