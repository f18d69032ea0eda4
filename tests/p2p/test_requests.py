# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and answers, and every way in which one may fail."""

import pytest
import trio

from p2p.errors import RequestFailed, RequestFailure
from tests.p2p.kit import Node, World, muxer_of


@pytest.mark.parametrize("size", [0, 1, 1000, 65_536, 65_537, 131_072, 131_073, 2 * 1024 * 1024])
async def test_a_request_of_any_length_is_answered(size: int, world: World) -> None:
    one, two = await world.pair()
    payload = bytes(range(256)) * (size // 256 + 1)
    assert await one.net.request(two.net.peer_id, "echo", payload[:size], timeout_s=60) == payload[:size]


async def test_an_answer_of_eight_mebibytes_arrives(world: World) -> None:
    one, two = await world.pair()

    async def answer(peer_id: str, method: str, payload: bytes) -> bytes:
        return bytes(8 * 1024 * 1024)

    two.recorder.request_gate = answer
    assert len(await one.net.request(two.net.peer_id, "big", b"", timeout_s=60)) == 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("method", "reason", "detail"),
    [
        ("absent", RequestFailure.NOT_AVAILABLE, "pruned"),
        ("malformed", RequestFailure.INVALID, "negative"),
        ("what", RequestFailure.UNKNOWN_METHOD, "what"),
        ("bug", RequestFailure.INTERNAL, "failed inside"),
    ],
)
async def test_a_refusal_reaches_the_requester_with_its_reason(
    method: str, reason: RequestFailure, detail: str, world: World
) -> None:
    one, two = await world.pair()
    with pytest.raises(RequestFailed, match=detail) as caught:
        await one.net.request(two.net.peer_id, method, b"", timeout_s=60)
    assert caught.value.reason == reason
    assert caught.value.peer_id == two.net.peer_id
    assert await one.net.request(two.net.peer_id, "echo", b"still", timeout_s=60) == b"still"


async def test_our_own_fault_is_not_told_to_the_peer(world: World) -> None:
    one, two = await world.pair()
    with pytest.raises(RequestFailed) as caught:
        await one.net.request(two.net.peer_id, "bug", b"", timeout_s=60)
    assert "our own fault" not in str(caught.value)


async def test_requests_over_the_limit_fail_before_they_are_sent(world: World) -> None:
    one, two = await world.pair(max_request_bytes=1000, max_response_bytes=5000)
    with pytest.raises(RequestFailed) as caught:
        await one.net.request(two.net.peer_id, "echo", bytes(1001), timeout_s=60)
    assert caught.value.reason == RequestFailure.TOO_LARGE


async def test_answers_over_the_limit_are_refused(world: World) -> None:
    one, two = await world.pair(max_response_bytes=5000)
    with pytest.raises(RequestFailed) as caught:
        await one.net.request(two.net.peer_id, "echo", bytes(5001), timeout_s=60)
    assert caught.value.reason == RequestFailure.TOO_LARGE


async def test_a_request_to_a_stranger_fails_at_once(world: World) -> None:
    one = await world.node("one")
    with pytest.raises(RequestFailed) as caught:
        await one.net.request("12D3KooWPcfGdBCrdxX9nqGAdPAdkPMqfKEDjbZWGA4UFBJuY4rP", "echo", b"", timeout_s=60)
    assert caught.value.reason == RequestFailure.NOT_CONNECTED


async def test_a_request_that_is_never_answered_times_out_and_frees_its_place(world: World) -> None:
    one, two = await world.pair(requests_per_peer=1)

    async def never(peer_id: str, method: str, payload: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    two.recorder.request_gate = never
    with pytest.raises(RequestFailed) as caught:
        await one.net.request(two.net.peer_id, "echo", b"", timeout_s=0.2)
    assert caught.value.reason == RequestFailure.TIMEOUT


async def test_a_peer_that_stops_while_asked_fails_the_request(world: World) -> None:
    one, two = await world.pair()
    asked = trio.Event()

    async def never(peer_id: str, method: str, payload: bytes) -> bytes:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    two.recorder.request_gate = never
    failures: list[RequestFailure] = []

    async def ask() -> None:
        with pytest.raises(RequestFailed) as caught:
            await one.net.request(two.net.peer_id, "echo", b"", timeout_s=60)
        failures.append(caught.value.reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await asked.wait()
        await two.stop()
    assert failures == [RequestFailure.CLOSED]


async def test_a_flood_is_answered_busy_beyond_the_places_and_leaves_others_alone(world: World) -> None:
    server = await world.node("server", requests_per_peer=4, exchange_interval_s=1000.0)
    # The flooder does not keep to the places that it is given.
    flooder = await world.node("flooder", bootstrap=(server.address,), requests_per_peer=12, exchange_interval_s=1000.0)
    other = await world.node("other", bootstrap=(server.address,), exchange_interval_s=1000.0)
    await world.until(lambda: flooder.connected_to(server) and other.connected_to(server))
    gate = trio.Event()
    at_work = 0

    async def slow(peer_id: str, method: str, payload: bytes) -> bytes:
        nonlocal at_work
        at_work += 1
        if peer_id == flooder.net.peer_id:
            await gate.wait()
        return payload

    server.recorder.request_gate = slow
    results: list[RequestFailure | bytes] = []

    async def ask() -> None:
        try:
            results.append(await flooder.net.request(server.net.peer_id, "echo", b"x" * 70_000, timeout_s=60))
        except RequestFailed as error:
            results.append(error.reason)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(ask)
        await world.until(lambda: len(results) == 8)
        assert results == [RequestFailure.BUSY] * 8
        assert at_work == 4
        assert await other.net.request(server.net.peer_id, "echo", b"fine", timeout_s=60) == b"fine"
        gate.set()
    assert sorted(map(str, results)) == sorted(map(str, [RequestFailure.BUSY] * 8 + [b"x" * 70_000] * 4))


async def test_more_requests_than_places_wait_for_their_turn(world: World) -> None:
    one, two = await world.pair(requests_per_peer=2)
    answers = []

    async def ask(number: int) -> None:
        answers.append(await one.net.request(two.net.peer_id, "echo", b"%d" % number, timeout_s=60))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
    assert sorted(map(int, answers)) == list(range(50))
    assert one.info(two.net.peer_id).score == 0


async def test_hundreds_of_requests_one_after_the_other_leave_no_stream_behind(world: World) -> None:
    one, two = await world.pair()
    for number in range(300):
        assert await one.net.request(two.net.peer_id, "echo", b"%d" % number, timeout_s=60) == b"%d" % number

    def streams(node: Node) -> int:
        return sum(len(muxer_of(connection).streams) for connection in node.net._host.swarm.get_connections())

    # Two of gossip, two of direct messages, at most one exchange of addresses.
    await world.until(lambda: streams(one) <= 5 and streams(two) <= 5)


async def test_a_cancelled_request_harms_no_other_traffic(world: World) -> None:
    """A write that is cancelled half way would break the whole connection, were it not shielded."""
    one, two = await world.pair()
    for number in range(30):
        with trio.move_on_after(0.0005 * number):
            await one.net.request(two.net.peer_id, "echo", bytes(1_500_000), timeout_s=60)
    assert await one.net.request(two.net.peer_id, "echo", b"fine", timeout_s=60) == b"fine"
    assert two.recorder.peers == [(one.net.peer_id, True)]
