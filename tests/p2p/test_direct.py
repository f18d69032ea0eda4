# SPDX-License-Identifier: GPL-3.0-or-later
"""Direct messages: order, bounds, back-pressure, broken streams."""

from itertools import count

import pytest
import trio
import trio.testing

from p2p.direct import MAX_INBOX_FRAMES, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, DirectLink
from p2p.framing import encode_frame
from tests.p2p.kit import World


async def test_messages_arrive_in_order_both_ways(world: World) -> None:
    one, two = await world.pair()
    for number in range(1000):
        assert one.net.send(two.net.peer_id, 3, b"%d" % number)
        assert two.net.send(one.net.peer_id, 4, b"%d" % number)
    await world.until(lambda: len(one.recorder.direct) == len(two.recorder.direct) == 1000)
    assert two.recorder.direct == [(one.net.peer_id, 3, b"%d" % number) for number in range(1000)]
    assert one.recorder.direct == [(two.net.peer_id, 4, b"%d" % number) for number in range(1000)]


async def test_the_longest_message_arrives_and_a_longer_one_is_not_taken(world: World) -> None:
    one, two = await world.pair()
    assert one.net.send(two.net.peer_id, 1, bytes(one.config.max_direct_bytes))
    assert not one.net.send(two.net.peer_id, 1, bytes(one.config.max_direct_bytes + 1))
    await world.until(lambda: len(two.recorder.direct) == 1)
    assert len(two.recorder.direct[0][2]) == one.config.max_direct_bytes


async def test_nothing_is_sent_to_a_stranger(world: World) -> None:
    one = await world.node("one")
    assert one.net.send("12D3KooWPcfGdBCrdxX9nqGAdPAdkPMqfKEDjbZWGA4UFBJuY4rP", 1, b"x") is False


async def test_a_slow_handler_slows_its_peer_down_and_nobody_else(world: World) -> None:
    nodes = await world.mesh(3)
    slow, eager, other = nodes
    gate = trio.Event()

    async def wait_for_gate(peer_id: str, kind: int, payload: bytes) -> None:
        if peer_id == eager.net.peer_id:
            await gate.wait()

    slow.recorder.direct_gate = wait_for_gate
    sent = 0
    # Fills the receiver's inbox, the stream's window and the sender's queue: then send() says so.
    while eager.net.send(slow.net.peer_id, 1, b"%08d" % sent + bytes(100_000)):
        sent += 1
        await trio.lowlevel.checkpoint()
        assert sent < 1000, "the queue has no end"
    assert other.net.send(slow.net.peer_id, 2, b"from another")
    assert eager.net.send(other.net.peer_id, 2, b"to another")
    await world.until(lambda: slow.recorder.direct == [(other.net.peer_id, 2, b"from another")])
    await world.until(lambda: other.recorder.direct == [(eager.net.peer_id, 2, b"to another")])
    assert await eager.net.request(slow.net.peer_id, "echo", b"alive", timeout_s=60) == b"alive"
    gate.set()
    await world.until(lambda: len(slow.recorder.direct) == sent + 1)
    numbers = [int(payload[:8]) for peer_id, _, payload in slow.recorder.direct if peer_id == eager.net.peer_id]
    assert numbers == list(range(sent))


async def test_messages_queued_while_the_stream_breaks_arrive_once_and_in_order(world: World) -> None:
    one, two = await world.pair()
    assert one.net.send(two.net.peer_id, 1, b"before")
    await world.until(lambda: two.recorder.direct)
    connection = one.net._host.swarm.live_connection(one.net._peers.all()[0].key)
    assert connection is not None
    stream = next(stream for stream in connection.get_streams() if stream.get_protocol() == "/spchain/direct/1")
    await stream.reset()
    for number in range(50):
        assert one.net.send(two.net.peer_id, 1, b"%d" % number)
    await world.until(lambda: len(two.recorder.direct) == 51)
    assert [payload for _, _, payload in two.recorder.direct[1:]] == [b"%d" % number for number in range(50)]


async def test_a_handler_that_fails_costs_the_message_and_not_the_node(world: World) -> None:
    one, two = await world.pair()

    async def fail(peer_id: str, kind: int, payload: bytes) -> None:
        if kind == 1:
            raise RuntimeError("our own fault")

    two.recorder.direct_gate = fail
    assert one.net.send(two.net.peer_id, 1, b"x")
    assert one.net.send(two.net.peer_id, 2, b"y")
    await world.until(lambda: two.recorder.direct == [(one.net.peer_id, 2, b"y")])


def test_the_queue_is_bounded_in_frames_and_in_bytes() -> None:
    link = DirectLink("p", 2**20, count())
    assert sum(link.send(1, b"") for _ in range(MAX_QUEUED_FRAMES + 10)) == MAX_QUEUED_FRAMES
    assert link.give_up() == MAX_QUEUED_FRAMES
    assert link.lost == MAX_QUEUED_FRAMES
    assert sum(link.send(1, bytes(2**20)) for _ in range(20)) < MAX_QUEUED_BYTES / 2**20


class Pipe:
    """A stream that gives what is put in."""

    def __init__(self) -> None:
        self.put, self._get = trio.open_memory_channel[bytes](100)

    async def read(self, n: int | None = None) -> bytes:
        return await self._get.receive()


async def test_the_inbox_is_bounded_and_then_the_stream_is_not_read(nursery: trio.Nursery) -> None:
    link = DirectLink("p", 1000, count())
    pipe = Pipe()
    nursery.start_soon(link.read_stream, pipe)
    for start in range(0, 100 * MAX_INBOX_FRAMES, MAX_INBOX_FRAMES):
        frames = b"".join(encode_frame(1, start + number, b"") for number in range(MAX_INBOX_FRAMES))
        try:
            pipe.put.send_nowait(frames)
        except trio.WouldBlock:
            break
    await trio.testing.wait_all_tasks_blocked()
    assert len(link._inbox) == MAX_INBOX_FRAMES


async def test_who_leaves_while_its_inbox_is_full_leaves_nothing_behind(world: World) -> None:
    one = await world.node("one")
    attacker = await world.attacker()
    before = trio.lowlevel.current_statistics().tasks_living

    async def wait_for_ever(peer_id: str, kind: int, payload: bytes) -> None:
        await trio.sleep_forever()

    one.recorder.direct_gate = wait_for_ever
    connection = await attacker.connect_and_greet(one)
    stream = await attacker.stream(connection, "/spchain/direct/1")
    await stream.write(b"".join(encode_frame(1, number, b"") for number in range(2 * MAX_INBOX_FRAMES)))
    (peer,) = one.net._peers.all()
    await world.until(lambda: len(peer.link._inbox) == MAX_INBOX_FRAMES)
    await connection.close()
    await world.until(lambda: trio.lowlevel.current_statistics().tasks_living <= before)


async def test_frames_that_were_sent_again_are_taken_once(nursery: trio.Nursery) -> None:
    link = DirectLink("p", 1000, count())
    taken = []

    async def deliver(kind: int, payload: bytes) -> None:
        taken.append(payload)

    nursery.start_soon(link.deliver_loop, deliver, pytest.fail)
    for numbers in ((0, 1, 2), (1, 2, 3), (3, 4)):
        pipe = Pipe()
        nursery.start_soon(link.read_stream, pipe)
        pipe.put.send_nowait(b"".join(encode_frame(1, number, b"%d" % number) for number in numbers))
        await trio.testing.wait_all_tasks_blocked()
    assert taken == [b"0", b"1", b"2", b"3", b"4"]
