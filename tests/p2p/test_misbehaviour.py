# SPDX-License-Identifier: GPL-3.0-or-later
"""What admitted peers do to us: each ends at worst its own connection (invariant I13)."""

import random
import struct
from contextlib import suppress

import msgpack
import pytest
import trio
from libp2p.abc import INetStream
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA, YAMUX_HEADER_FORMAT
from libp2p.utils.varint import encode_uvarint

from p2p import requests
from p2p.framing import FrameReader, encode_frame
from p2p.muxer import MAX_INBOUND_STREAMS, RECEIVE_WINDOW_BYTES
from tests.p2p.kit import Node, World, muxer_of

NOISE = random.Random(7).randbytes(5000)
HELLO = "/spchain/hello/1"
DIRECT = "/spchain/direct/1"
REQUEST = "/spchain/request/1"
GOSSIP = "/meshsub/1.1.0"


# ------------------------------------------------------------ admitted, then misbehaving


RUBBISH = (
    # On no stream the beginning of anything: no MessagePack, and a length that does not end.
    b"\xc1\xfe\xfe\xfe\xfe" + NOISE,
    b"\xff" * 100,
    b"\x93\x01\x02\xc6\x80\x00\x00\x00" + bytes(3_000_000),
    b"\x93\x01\x02\xa4text" + bytes(200),
    b"\x93" * 3000,
    b"\xff\xff\xff\xff\x0f" + bytes(1000),
)


@pytest.mark.parametrize("protocol", [DIRECT, REQUEST, GOSSIP])
async def test_rubbish_on_a_stream_ends_the_stream_and_costs_points(protocol: str, one: Node, world: World) -> None:
    async def talk(number: int, data: bytes) -> None:
        attacker = await world.attacker(f"attacker {number}")
        connection = await attacker.connect_and_greet(one)
        stream = await attacker.stream(connection, protocol)
        with suppress(Exception):  # the node resets the stream while we write
            await stream.write(data)
        with trio.fail_after(60), suppress(IOException):  # the end of the stream is what is waited for
            while True:
                await stream.read(1000)
        await world.until(lambda: one.net._scores.points(attacker.peer_id) > 0)

    async with trio.open_nursery() as nursery:
        for number, data in enumerate(RUBBISH):
            nursery.start_soon(talk, number, data)


async def test_gossip_that_is_not_signed_or_signed_by_another_is_not_believed(one: Node, world: World) -> None:
    attacker = await world.attacker()
    topic = next(iter(one.net.gossip_service.topic_ids))
    honest = rpc_pb2.Message(
        data=b"forged", topicIDs=[topic], from_id=one.net._host.get_id().to_bytes(), seqno=bytes(8)
    )
    forged = rpc_pb2.Message(
        data=b"forged",
        topicIDs=[topic],
        from_id=next(iter(one.net._peers.all())).key.to_bytes(),
        seqno=bytes(8),
        signature=NOISE[:64],
        key=attacker.host.get_public_key().serialize(),
    )
    for message in (
        honest,
        forged,
        rpc_pb2.Message(data=b"forged", topicIDs=[topic], from_id=b"x" * 40, seqno=bytes(8)),
    ):
        connection = await attacker.connect_and_greet(one)
        stream = await attacker.stream(connection, GOSSIP)
        body = rpc_pb2.RPC(publish=[message]).SerializeToString()
        await stream.write(encode_uvarint(len(body)) + body)
        await connection.close()
        await world.until(lambda: not one.knows(attacker.peer_id))
        if one.net._scores.ban_left_s(attacker.peer_id):
            break
    assert one.recorder.gossip == []


async def test_control_messages_about_thousands_of_topics_leave_nothing_behind(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    stream = await attacker.stream(connection, GOSSIP)
    rpc = rpc_pb2.RPC()
    for number in range(3000):
        rpc.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"topic {number}"))
        rpc.control.graft.append(rpc_pb2.ControlGraft(topicID=f"topic {number}"))
        rpc.control.prune.append(rpc_pb2.ControlPrune(topicID=f"topic {number}", backoff=2**62))
        rpc.control.ihave.append(rpc_pb2.ControlIHave(topicID=f"topic {number}", messageIDs=[b"\xff" * 20]))
    rpc.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=[b"zz"] * 3000))
    body = rpc.SerializeToString()
    await stream.write(encode_uvarint(len(body)) + body)
    direct = await attacker.stream(connection, DIRECT)
    await direct.write(encode_frame(1, 0, b"done"))
    await world.until(lambda: one.recorder.direct)
    gossip = one.net.gossip_service
    assert set(gossip.peer_topics) <= set(gossip.topic_ids)
    assert set(gossip.mesh_router.back_off) <= set(gossip.topic_ids)
    assert all(set(topics) <= set(gossip.topic_ids) for topics in gossip.mesh_router.graft_flood_tracking.values())


async def test_streams_without_end_end_the_connection(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    streams: list[INetStream] = []
    try:
        while len(streams) < 3 * MAX_INBOUND_STREAMS:
            streams.append(await connection.new_stream())
    except Exception:  # noqa: BLE001, S110 -- the node has had enough
        pass
    with trio.fail_after(60):
        await connection.event_closed.wait()


async def test_data_beyond_the_window_ends_the_connection(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    stream = await muxer_of(connection).open_stream()
    chunk = 60_000
    frame = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream.stream_id, chunk) + b"\xff" * chunk
    with trio.fail_after(60):
        for _ in range(4 * RECEIVE_WINDOW_BYTES // chunk + 40):
            if connection.is_closed or connection.muxed_conn.is_closed:
                break
            try:
                await muxer_of(connection)._write_frame(frame)
            except Exception:  # noqa: BLE001 -- the node has had enough
                break
        await connection.event_closed.wait()


async def test_half_open_request_streams_are_bounded_and_let_go(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    server = one.net._server
    try:
        for _ in range(60):
            stream = await attacker.stream(connection, REQUEST)
            await stream.write(encode_frame(1, 0, b"echo"))
            assert server._streams[attacker.peer_id] <= 4 * one.config.requests_per_peer
            assert server._at_work[attacker.peer_id] <= one.config.requests_per_peer
    except (IOException, SwarmException, MultiselectClientError, MuxedStreamError):
        pass  # streams beyond the bound are reset and cost points, in the end the connection
    await connection.close()
    await world.until(lambda: server._streams[attacker.peer_id] == 0 and server._at_work[attacker.peer_id] == 0)


async def test_requests_that_are_begun_and_left_cost_points(
    one: Node, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    with monkeypatch.context() as patch:
        patch.setattr(requests, "RECEIVE_S", 0.1)
        stream = await attacker.stream(connection, REQUEST)
        await stream.write(encode_frame(1, 0, b"echo"))
        await world.until(lambda: one.net._scores.points(attacker.peer_id) > 0)
    assert one.net._server._at_work[attacker.peer_id] == 0


async def test_an_answer_that_is_never_read_lets_its_bytes_go_with_the_peer(one: Node, world: World) -> None:
    async def answer(peer_id: str, method: str, payload: bytes) -> bytes:
        return bytes(4 * 1024 * 1024) if method == "big" else payload

    one.recorder.request_gate = answer
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    stream = await attacker.stream(connection, REQUEST)
    await stream.write(encode_frame(1, 0, b"big") + encode_frame(3, 0, b""))
    server = one.net._server
    await world.until(lambda: server._reply_bytes.total() > 0)
    await connection.close()
    await world.until(lambda: server._reply_bytes.total() == 0)


async def test_a_peer_that_reads_no_answers_leaves_room_for_those_of_others(one: Node, world: World) -> None:
    asked = 0

    async def answer(peer_id: str, method: str, payload: bytes) -> bytes:
        nonlocal asked
        asked += peer_id == attacker.peer_id
        return bytes(one.config.max_response_bytes) if method == "big" else payload

    attacker = await world.attacker()
    one.recorder.request_gate = answer
    connection = await attacker.connect_and_greet(one)
    for _ in range(one.config.requests_per_peer):
        stream = await attacker.stream(connection, REQUEST)
        await stream.write(encode_frame(1, 0, b"big") + encode_frame(3, 0, b""))
    await world.until(lambda: asked == one.config.requests_per_peer)
    other = await world.node("other", bootstrap=(one.address,))
    await world.until(lambda: other.connected_to(one))
    got = await other.net.request(one.net.peer_id, "big", b"", timeout_s=60)
    assert len(got) == one.config.max_response_bytes
    await connection.close()


async def lie(stream: INetStream, answer: bytes) -> None:
    reader = FrameReader(stream, 1_000_000)
    await reader.next()
    await stream.write(answer)
    await trio.sleep_forever()


@pytest.mark.parametrize(
    "answer",
    [
        NOISE[:3000],
        encode_frame(3, 5, b""),
        encode_frame(7, 0, b""),
        encode_frame(2, 0, msgpack.packb(["x"])) + encode_frame(3, 4, b""),
        encode_frame(2, 0, b"x" * 100_000) * 3 + encode_frame(3, 300_000, b""),
    ],
    ids=range(5),
)
async def test_a_lying_answer_to_the_exchange_of_addresses_costs_points(answer: bytes, one: Node, world: World) -> None:
    attacker = await world.attacker()

    async def handler(stream: INetStream) -> None:
        await lie(stream, answer)

    attacker.serve(REQUEST, handler)
    await attacker.connect_and_greet(one)
    await world.until(lambda: one.net._scores.points(attacker.peer_id) > 0)


async def test_an_answer_code_from_the_future_is_a_protocol_failure(one: Node, world: World) -> None:
    attacker = await world.attacker()

    async def handler(stream: INetStream) -> None:
        await lie(stream, encode_frame(4, 999, b"\x1b[31mred\xff"))

    attacker.serve(REQUEST, handler)
    await attacker.connect_and_greet(one)
    with pytest.raises(Exception, match=r"protocol: \?\[31mred") as caught:
        await one.net.request(attacker.peer_id, "echo", b"", timeout_s=60)
    assert "\x1b" not in str(caught.value)


async def test_addresses_from_hearsay_are_dialled_but_never_believed(one: Node, world: World) -> None:
    """An address whose owner turns out to be somebody else leads to no peer."""
    attacker = await world.attacker()
    victim = await world.node("victim")
    liar = attacker.peer_id
    claimed = victim.address.replace(victim.net.peer_id, liar)
    await attacker.connect_and_greet(one, addresses=(claimed,))
    entry = one.net._discovery.book.get(liar)
    assert entry is not None
    for connection in one.net._host.swarm.get_connections():
        if str(connection.muxed_conn.peer_id) == liar:
            await connection.close()
    await world.until(lambda: entry.failures >= 1)
    assert not one.knows(liar)


# ------------------------------------------------------------ judgement


async def test_a_peer_at_the_limit_is_disconnected_and_kept_out_until_its_time_is_over(one: Node, world: World) -> None:
    bad = await world.node("bad", bootstrap=(one.address,))
    await world.until(lambda: one.connected_to(bad))
    one.net.penalise(bad.net.peer_id, 99, "almost")
    assert one.info(bad.net.peer_id).score == 99
    one.net.penalise(bad.net.peer_id, 2, "enough")
    await world.until(lambda: not one.knows(bad.net.peer_id))
    await world.until(lambda: bad.net._discovery.book.all()[0].failures >= 2)
    assert not one.knows(bad.net.peer_id)


async def test_a_banned_peer_comes_back_when_the_ban_is_over(world: World) -> None:
    one = await world.node("one", ban_s=0.5)
    bad = await world.node("bad", bootstrap=(one.address,))
    await world.until(lambda: one.connected_to(bad))
    one.net.penalise(bad.net.peer_id, 100, "enough")
    # Whether anybody looks while it is away is up to the machine.
    await world.until(lambda: [came for _, came in one.recorder.peers] == [True, False, True])
    assert one.connected_to(bad)
