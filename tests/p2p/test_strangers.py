# SPDX-License-Identifier: GPL-3.0-or-later
"""What strangers do before they are admitted: each ends at worst its own connection (invariant I13)."""

import random
from contextlib import suppress

import msgpack
import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.utils.varint import encode_uvarint

from p2p.addresses import parse_address
from p2p.errors import PeerRefused
from p2p.framing import encode_frame
from tests.p2p.kit import Node, World

NOISE = random.Random(7).randbytes(5000)
HELLO = "/spchain/hello/1"
DIRECT = "/spchain/direct/1"
REQUEST = "/spchain/request/1"
GOSSIP = "/meshsub/1.1.0"


async def is_closed_by_node(stream: trio.SocketStream) -> None:
    with trio.fail_after(60):
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return


# ------------------------------------------------------------ below libp2p


RUBBISH = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    NOISE,
    b"\xff" * 5000,
    b"\x00" * 5000,
    b"\x13/multistream/1.0.0\n" + NOISE[:2000],
    b"\x13/multistream/1.0.0\n\x07/noise\n" + NOISE[:2000],
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x00\x00\x00\xff\xff",
    b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n" + bytes(100),
    b"\x13/multistream/1.0.0\n\x03ls\n" * 3,
)


async def test_rubbish_instead_of_a_handshake_ends_the_connection(hasty: Node) -> None:
    async def talk(data: bytes) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", hasty.port)
        await stream.send_all(data)
        await is_closed_by_node(stream)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for data in RUBBISH:
            nursery.start_soon(talk, data)


async def test_silence_ends_the_connection(hasty: Node) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", hasty.port)
    await is_closed_by_node(stream)
    await stream.aclose()


async def test_silent_diallers_do_not_keep_peers_out(hasty: Node, world: World) -> None:
    streams = [await trio.open_tcp_stream("127.0.0.1", hasty.port) for _ in range(200)]
    late = await world.node("late", bootstrap=(hasty.address,))
    await world.until(lambda: late.connected_to(hasty))
    for stream in streams:
        await stream.aclose()


async def test_connections_that_ended_free_their_place(one: Node, world: World) -> None:
    """The library's swarm counts accepted connections for ever."""
    small = await world.node("small", max_peers=1)
    attacker = await world.attacker()
    for _ in range(12):
        connection = await attacker.connect_and_greet(small)
        await connection.close()
        await world.until(lambda: small.net.peers() == [])


# ------------------------------------------------------------ the greeting


async def test_a_peer_that_never_greets_is_disconnected(hasty: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect(hasty)
    with trio.fail_after(60):
        await connection.event_closed.wait()
    assert len(hasty.net.peers()) == 1


async def test_a_peer_of_another_network_is_told_so(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect(one)
    with pytest.raises(PeerRefused, match="another network"):
        await attacker.greet(connection, network_id=bytes(32))
    with trio.fail_after(60):
        await connection.event_closed.wait()


async def test_two_nodes_of_different_networks_do_not_admit_each_other(one: Node, world: World) -> None:
    stranger = await world.node("stranger", network_id=bytes(32), bootstrap=(one.address,))
    await world.until(lambda: stranger.net._discovery.book.all()[0].failures >= 2)
    assert stranger.net.peers() == []


async def test_a_statement_that_is_not_accepted_is_told_and_costs_points(one: Node, world: World) -> None:
    one.recorder.refuse = True
    attacker = await world.attacker()
    connection = await attacker.connect(one)
    with pytest.raises(PeerRefused, match="not accredited"):
        await attacker.greet(connection)
    assert one.net._scores.points(attacker.peer_id) > 0
    for _ in range(2):
        connection = await attacker.connect(one)
        with pytest.raises((PeerRefused, IOException)):
            await attacker.greet(connection)
    assert one.net._scores.ban_left_s(attacker.peer_id) > 0
    one.recorder.refuse = False


MALFORMED = (
    b"",
    b"\xc1",
    NOISE[:3000],
    encode_frame(1, 1, b"rubbish"),
    encode_frame(9, 1, b""),
    encode_frame(1, 2, b""),
    encode_frame(1, 1, msgpack.packb([bytes(32), b"12345678", [], b"x" * 5000])),
    encode_frame(1, 1, msgpack.packb([bytes(32), b"12345678", ["/ip4/1.2.3.4"], b"x"])),
    encode_frame(1, 1, msgpack.packb([bytes(32), b"12345678", ["x"] * 100, b"x"])),
    encode_frame(1, 1, msgpack.packb([bytes(32), b"12345678", [], "text"])),
    encode_frame(1, 1, msgpack.packb([bytes(32), b"12345678", [], b"x", 1])),
    b"\x93\x01\x01\xc6\x80\x00\x00\x00" + bytes(100_000),
)


async def test_a_malformed_greeting_ends_the_connection(hasty: Node, world: World) -> None:
    async def greet(number: int, frame: bytes) -> None:
        attacker = await world.attacker(f"attacker {number}")
        connection = await attacker.connect(hasty)
        # On a busy machine the node's patience may end before the attacker has begun.
        with suppress(IOException, MuxedStreamError, MultiselectClientError):
            stream = await attacker.stream(connection, HELLO)
            await stream.write(frame)
        with trio.fail_after(60):
            await connection.event_closed.wait()
        assert not hasty.knows(attacker.peer_id)

    async with trio.open_nursery() as nursery:
        for number, frame in enumerate(MALFORMED):
            nursery.start_soon(greet, number, frame)


async def test_an_address_of_another_peer_in_a_greeting_is_refused(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect(one)
    with pytest.raises(PeerRefused, match="another peer"):
        await attacker.greet(connection, addresses=(one.address,))


async def test_a_full_node_says_so_and_keeps_its_peers(one: Node, world: World) -> None:
    full = await world.node("full", max_peers=2)
    for number in range(2):
        await (await world.attacker(f"guest {number}")).connect_and_greet(full)
    attacker = await world.attacker("late")
    with pytest.raises(PeerRefused, match="full"):
        await attacker.greet(await attacker.connect(full))
    assert len(full.net.peers()) == 2


async def test_one_peer_does_not_take_all_places(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connections = [await attacker.connect_and_greet(one) for _ in range(5)]
    await world.until(lambda: [connection.is_closed for connection in connections] == [True] * 4 + [False])
    assert one.knows(attacker.peer_id)


async def test_those_who_dial_us_never_fill_the_last_quarter(one: Node, world: World) -> None:
    node = await world.node("node", max_peers=4)
    for number in range(3):
        await (await world.attacker(f"guest {number}")).connect_and_greet(node)
    with pytest.raises(PeerRefused, match="full"):
        await (await world.attacker("guest 3")).connect_and_greet(node)
    node.net._discovery.heard([parse_address(one.address)])
    await world.until(lambda: node.connected_to(one))


async def test_a_fault_of_our_own_in_a_handler_does_not_stop_the_node(one: Node, world: World) -> None:
    one.recorder.broken = True
    attacker = await world.attacker()
    with pytest.raises(PeerRefused, match="failed inside"):
        await attacker.connect_and_greet(one)
    one.recorder.broken, one.recorder.broken_on_peer = False, True
    await attacker.connect_and_greet(one)
    assert one.knows(attacker.peer_id)


async def test_nothing_is_taken_before_the_greeting(hasty: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect(hasty)
    direct = await attacker.stream(connection, DIRECT)
    await direct.write(encode_frame(1, 0, b"too early"))
    asked = await attacker.stream(connection, REQUEST)
    await asked.write(encode_frame(1, 0, b"echo") + encode_frame(3, 0, b""))
    gossip = await attacker.stream(connection, GOSSIP)
    await gossip.write(encode_uvarint(3) + b"abc")
    with trio.fail_after(60):
        await connection.event_closed.wait()
    assert hasty.recorder.direct == []


async def test_a_second_greeting_on_a_connection_is_reset(one: Node, world: World) -> None:
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    with pytest.raises(IOException):
        await attacker.greet(connection)
    assert one.knows(attacker.peer_id)
