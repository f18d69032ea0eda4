# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip: nothing lost in bursts, nobody blocked by the slow, nothing believed unsigned."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.abc import INetStream
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from ledger.errors import InvalidInput
from p2p import outbox
from p2p.errors import ProtocolViolation
from p2p.messages import MAX_RECENT_BYTES, MAX_SEEN, RecentMessages, SeenMessages, cut_frame
from tests.p2p.kit import Node, World, stop_reading


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up no peer that reads: to a node, a machine that stalls for two seconds is one that reads nothing."""
    monkeypatch.setattr(outbox, "STALLED_S", 60.0)
    monkeypatch.setattr(outbox, "DRIP_S", 60.0)


@pytest.mark.parametrize(("count", "size"), [(2000, 1024), (100, 256 * 1024), (8, 1024 * 1024)])
async def test_a_burst_reaches_everyone_whole_and_once(
    count: int, size: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    nodes = await world.mesh(4)
    publisher, *receivers = nodes
    for number in range(count):
        await publisher.net.publish("batches", number.to_bytes(4, "big") + bytes(size - 4))
    await world.until(lambda: all(len(node.recorder.gossip) >= count for node in receivers))
    for node in receivers:
        assert {topic for topic, _, _ in node.recorder.gossip} == {"batches"}
        assert {origin for _, origin, _ in node.recorder.gossip} == {publisher.net.peer_id}
        assert {len(payload) for _, _, payload in node.recorder.gossip} == {size}
        assert sorted(payload[:4] for _, _, payload in node.recorder.gossip) == [
            number.to_bytes(4, "big") for number in range(count)
        ]
    assert publisher.recorder.gossip == []
    assert all(info.lost == 0 for node in nodes for info in node.net.peers())


async def test_all_publish_at_once_and_all_receive_all(world: World) -> None:
    nodes = await world.mesh(4)
    async with trio.open_nursery() as nursery:
        for node in nodes:

            async def publish(node: Node = node) -> None:
                for number in range(100):
                    await node.net.publish("blocks", b"%s %d" % (node.net.peer_id.encode(), number))

            nursery.start_soon(publish)
    await world.until(lambda: all(len(node.recorder.gossip) == 300 for node in nodes))
    assert all(len(set(node.recorder.gossip)) == 300 for node in nodes)


async def test_messages_travel_over_nodes_in_between(world: World) -> None:
    """A line one – two – three, without discovery: what one publishes reaches three through two."""
    one = await world.node("one", exchange_interval_s=1000.0, max_peers=1)
    two = await world.node("two", bootstrap=(one.address,), exchange_interval_s=1000.0)
    await world.until(lambda: one.connected_to(two))
    three = await world.node("three", bootstrap=(two.address,), exchange_interval_s=1000.0, max_peers=1)
    await world.until(lambda: three.connected_to(two))
    await world.until(lambda: len(two.net.gossip_service.peer_queues) == 2 and one.net.gossip_service.peer_queues)
    await one.net.publish("blocks", b"far")
    await world.until(lambda: three.recorder.gossip == [("blocks", one.net.peer_id, b"far")])


async def test_what_the_application_refuses_is_not_forwarded_and_costs_points(world: World) -> None:
    one = await world.node("one", exchange_interval_s=1000.0, max_peers=1)
    two = await world.node("two", bootstrap=(one.address,), exchange_interval_s=1000.0)
    await world.until(lambda: one.connected_to(two))
    three = await world.node("three", bootstrap=(two.address,), exchange_interval_s=1000.0, max_peers=1)
    await world.until(lambda: three.connected_to(two))
    await world.until(lambda: len(two.net.gossip_service.peer_queues) == 2 and one.net.gossip_service.peer_queues)

    async def picky(topic: str, origin: str, payload: bytes) -> None:
        if payload == b"bad":
            raise InvalidInput("bad batch")

    two.recorder.gossip_gate = picky
    await one.net.publish("blocks", b"bad")
    await one.net.publish("blocks", b"good")
    await world.until(lambda: three.recorder.gossip)
    assert [payload for _, _, payload in three.recorder.gossip] == [b"good"]
    assert two.info(one.net.peer_id).score > 0


async def test_a_handler_that_fails_costs_the_message_and_not_the_node(world: World) -> None:
    one, two = await world.pair()
    await world.until(lambda: one.net.gossip_service.peer_queues)

    async def fail(topic: str, origin: str, payload: bytes) -> None:
        if payload == b"1":
            raise RuntimeError("our own fault")

    two.recorder.gossip_gate = fail
    await one.net.publish("blocks", b"1")
    await one.net.publish("blocks", b"2")
    await world.until(lambda: [payload for _, _, payload in two.recorder.gossip] == [b"2"])


async def test_a_slow_handler_slows_publishers_down_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    one, two = await world.pair()
    await world.until(lambda: one.net.gossip_service.peer_queues)
    gate = trio.Event()

    async def wait(topic: str, origin: str, payload: bytes) -> None:
        await gate.wait()

    two.recorder.gossip_gate = wait
    # More than one inbox (16 MiB), less than inbox, window and outbox together.
    count = 80
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            for number in range(count):
                await one.net.publish("batches", number.to_bytes(4, "big") + bytes(256 * 1024))

        nursery.start_soon(publish)
        await world.until(lambda: one.info(two.net.peer_id).queued_bytes > 1024 * 1024)
        gate.set()
    await world.until(lambda: len(two.recorder.gossip) == count)
    assert one.info(two.net.peer_id).lost == 0


async def test_a_topic_that_stands_still_does_not_hold_another_topics_messages_of_other_peers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    nodes = await world.mesh(3)
    one, two, three = nodes
    gate = trio.Event()

    async def wait(topic: str, origin: str, payload: bytes) -> None:
        if topic == "batches":
            await gate.wait()

    three.recorder.gossip_gate = wait
    for _ in range(40):
        await one.net.publish("batches", bytes(256 * 1024))
    await two.net.publish("consensus", b"vote")
    await world.until(lambda: ("consensus", two.net.peer_id, b"vote") in three.recorder.gossip)
    gate.set()
    await world.until(lambda: len(three.recorder.gossip) == 41)


async def test_who_leaves_while_an_inbox_is_full_leaves_nothing_behind_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.messages.MAX_INBOX_MESSAGES", 3)
    one = await world.node("one")
    before = trio.lowlevel.current_statistics().tasks_living
    gate = trio.Event()

    async def wait_for_gate(topic: str, origin: str, payload: bytes) -> None:
        await gate.wait()

    one.recorder.gossip_gate = wait_for_gate
    two = await world.node("two", bootstrap=(one.address,))
    await world.until(lambda: two.net.gossip_service.peer_queues)
    for number in range(10):
        await two.net.publish("blocks", b"%d" % number)
    seen = one.net.gossip_service.seen_messages
    inbox = one.net.gossip_service._inboxes["blocks"]
    # One is with the handler, three wait in the inbox, one waits for room there.
    await world.until(lambda: len(seen._ids) == 5 and len(inbox._messages) == 3)
    await two.stop()
    await world.until(lambda: trio.lowlevel.current_statistics().tasks_living <= before)
    assert len(seen._ids) == 4, "another peer may bring the one that found no room"
    gate.set()
    await world.until(lambda: len(one.recorder.gossip) == 4)


async def test_a_peer_that_never_reads_does_not_stop_a_publisher(world: World) -> None:
    one, two = await world.pair()
    attacker = await world.attacker()
    attacker.serve("/meshsub/1.1.0", hold_stream)
    connection = await attacker.connect_and_greet(one)
    await world.until(lambda: len(one.net.gossip_service.peer_queues) == 2)
    # From now on the attacker's socket is not read; its queue, window and socket buffer take some megabytes.
    stop_reading(connection)
    with trio.fail_after(120):
        for number in range(100):
            await one.net.publish("batches", number.to_bytes(4, "big") + bytes(512 * 1024))
    await world.until(lambda: len(two.recorder.gossip) == 100)


async def test_a_payload_over_the_limit_and_an_unlisted_topic_are_refused(world: World) -> None:
    one = await world.node("one")
    with pytest.raises(InvalidInput, match="at most"):
        await one.net.publish("blocks", bytes(one.config.max_gossip_bytes + 1))
    with pytest.raises(InvalidInput, match="topic"):
        await one.net.publish("weather", b"")


async def hold_stream(stream: INetStream) -> None:
    await trio.sleep_forever()


@given(st.binary(max_size=300), st.integers(min_value=1, max_value=50))
def test_frames_are_cut_whatever_the_chunks(body: bytes, size: int) -> None:
    stream = (encode_uvarint(len(body)) + body) * 3
    buffer = bytearray()
    cut = []
    for at in range(0, len(stream), size):
        buffer += stream[at : at + size]
        while (frame := cut_frame(buffer, 300)) is not None:
            cut.append(frame)
    assert cut == [body] * 3
    assert buffer == b""


@given(st.binary(max_size=100))
def test_no_bytes_break_the_cutting_of_frames(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        while cut_frame(buffer, 50) is not None:
            pass
    except ProtocolViolation:
        pass


def test_memory_of_seen_messages_is_bounded() -> None:
    seen = SeenMessages()
    for number in range(MAX_SEEN + 5):
        assert seen.add(b"%d" % number)
    assert not seen.has(b"0")
    assert not seen.add(b"%d" % (MAX_SEEN + 4))


def test_memory_of_recent_messages_is_bounded_and_moves_on() -> None:
    recent = RecentMessages()
    for number in range(40):
        recent.put(rpc_pb2.Message(data=bytes(1024 * 1024), topicIDs=["t"], from_id=b"o", seqno=b"%08d" % number))
    assert len(recent.msgs) == MAX_RECENT_BYTES // (1024 * 1024)
    for _ in range(5):
        recent.shift()
    assert recent.msgs == {}
    recent.put(rpc_pb2.Message(data=bytes(10), topicIDs=["t"], from_id=b"o", seqno=b"n"))
    assert len(recent.msgs) == 1
