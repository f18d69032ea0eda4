# SPDX-License-Identifier: GPL-3.0-or-later
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2

from p2p.outbox import BATCH_BYTES, DRIP_S, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES, STALLED_S, Outbox


async def test_frames_come_out_in_order_and_small_ones_together() -> None:
    outbox = Outbox(1000)
    frames = [b"%05d" % number for number in range(1000)]
    for frame in frames:
        assert outbox.offer(frame)
    batch = await outbox.next_batch()
    assert batch == b"".join(frames)
    assert outbox.queued_bytes == len(batch), "until it is written it counts"
    outbox.wrote(batch)
    assert outbox.queued_bytes == 0


async def test_a_batch_is_no_longer_than_one_muxer_frame_unless_one_message_is() -> None:
    outbox = Outbox(1000)
    for size in (BATCH_BYTES * 3, 10, BATCH_BYTES - 10, 1):
        assert outbox.offer(bytes(size))
    sizes = []
    for _ in range(3):
        batch = await outbox.next_batch()
        assert batch is not None
        sizes.append(len(batch))
    assert sizes == [BATCH_BYTES * 3, BATCH_BYTES, 1]


async def test_the_queue_is_bounded_in_bytes_and_in_messages() -> None:
    outbox = Outbox(1000)
    assert sum(outbox.offer(bytes(1_000_000)) for _ in range(20)) == MAX_QUEUED_BYTES // 1_000_000
    outbox = Outbox(1000)
    assert sum(outbox.offer(b"x") for _ in range(MAX_QUEUED_MESSAGES + 10)) == MAX_QUEUED_MESSAGES


async def test_an_empty_queue_takes_a_message_of_any_length() -> None:
    assert Outbox(1000).offer(bytes(MAX_QUEUED_BYTES + 1))


async def test_a_publisher_waits_for_room(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    outbox = Outbox(1000)
    assert outbox.offer(bytes(MAX_QUEUED_BYTES))

    async def write_slowly() -> None:
        await trio.sleep(STALLED_S * 0.9)
        batch = await outbox.next_batch()
        assert batch is not None
        outbox.wrote(batch)

    nursery.start_soon(write_slowly)
    assert await outbox.put(b"later")
    assert outbox.lost == 0


async def test_nobody_waits_twice_for_a_peer_that_stands_still(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox(1000)
    outbox.offer(bytes(MAX_QUEUED_BYTES))
    started = trio.current_time()
    assert not await outbox.put(b"first")
    assert trio.current_time() - started == STALLED_S
    started = trio.current_time()
    for _ in range(10):
        assert not await outbox.put(b"more")
    assert trio.current_time() == started
    assert outbox.lost == 11


async def test_who_waits_is_woken_when_the_peer_is_gone(nursery: trio.Nursery) -> None:
    outbox = Outbox(1000)
    outbox.offer(bytes(MAX_QUEUED_BYTES))
    results: list[object] = []

    async def put() -> None:
        results.append(await outbox.put(b"x"))

    nursery.start_soon(put)
    await trio.testing.wait_all_tasks_blocked()
    outbox.close()
    await trio.testing.wait_all_tasks_blocked()
    assert results == [False]
    assert await outbox.next_batch() is None
    assert outbox.offer(b"y") is False
    assert outbox.lost == 2


async def test_control_messages_carry_no_address_record() -> None:
    outbox = Outbox(1000)
    assert outbox.push(rpc_pb2.RPC(senderRecord=b"record", subscriptions=[rpc_pb2.RPC.SubOpts(topicid="t")]))
    batch = await outbox.next_batch()
    assert batch is not None
    rpc = rpc_pb2.RPC.FromString(batch[1:])
    assert not rpc.HasField("senderRecord")
    assert rpc.subscriptions[0].topicid == "t"


async def test_a_peer_that_drips_does_not_throttle_everybody_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """One that makes a little room just before patience ends, again and again."""
    outbox = Outbox(1000)
    while outbox.offer(bytes(BATCH_BYTES)):
        pass
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            while True:
                await trio.sleep(STALLED_S * 0.9)
                batch = await outbox.next_batch()
                assert batch is not None
                outbox.wrote(batch)

        nursery.start_soon(drip)
        started = trio.current_time()
        for _ in range(100):
            await outbox.put(bytes(BATCH_BYTES))
        assert trio.current_time() - started < DRIP_S + 2 * STALLED_S
        nursery.cancel_scope.cancel()


async def test_a_queue_that_has_drained_is_waited_for_again(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox(1000)
    outbox.offer(bytes(MAX_QUEUED_BYTES))
    assert not await outbox.put(b"lost")
    batch = await outbox.next_batch()
    assert batch is not None
    outbox.wrote(batch)
    assert await outbox.put(b"kept")
