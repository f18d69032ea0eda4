# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening, meeting, leaving, coming back."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID

from ledger.errors import InvalidInput
from p2p.addresses import Standing, parse_address
from p2p.framing import FrameReader, encode_frame
from p2p.muxer import WRITE_DEADLINE_S
from p2p.network import NetworkConfig, open_network
from tests.p2p.kit import Node, Recorder, World, make_config, muxer_of, stop_reading


async def test_two_nodes_meet_and_know_each_others_names(world: World) -> None:
    one, two = await world.pair()
    assert two.info(one.net.peer_id).name == "one"
    assert one.info(two.net.peer_id).name == "two"
    assert two.info(one.net.peer_id).direction == "outbound"
    assert one.info(two.net.peer_id).direction == "inbound"
    assert one.info(two.net.peer_id).addresses == tuple(two.net.addresses)
    await world.until(lambda: one.info(two.net.peer_id).latency_ms is not None)
    assert one.recorder.peers == [(two.net.peer_id, True)]


async def test_all_find_each_other_from_one_bootstrap_address(world: World) -> None:
    nodes = await world.mesh(6)
    for node in nodes:
        assert {info.peer_id for info in node.net.peers()} == {
            other.net.peer_id for other in nodes if other is not node
        }


async def test_a_peer_that_leaves_is_reported_and_its_place_freed(world: World) -> None:
    one, two = await world.pair()
    await two.stop()
    await world.until(lambda: one.recorder.peers == [(two.net.peer_id, True), (two.net.peer_id, False)])
    assert one.net.peers() == []


async def test_a_bootstrap_peer_is_dialled_until_it_comes_up_on_its_port(world: World) -> None:
    one, two = await world.pair()
    port = one.port
    await one.stop()
    await world.until(lambda: two.net.peers() == [])
    again = await world.node("one", listen=f"127.0.0.1:{port}")
    await world.until(lambda: two.connected_to(again) and again.connected_to(two))


async def test_a_node_that_only_knew_the_bootstrap_is_redialled_by_whom_it_met(world: World) -> None:
    one, two = await world.pair()
    port = two.port
    await two.stop()
    again = await world.node("two", listen=f"127.0.0.1:{port}")
    await world.until(lambda: one.connected_to(again) and again.connected_to(one))


async def test_gossip_of_a_quickly_restarted_node_is_delivered(world: World) -> None:
    one = await world.node("one")
    for payload in (b"first life", b"second life", b"third life"):
        two = await world.node("two", bootstrap=(one.address,))
        await world.until(partial(one.connected_to, two))
        await world.until(partial(_can_gossip, two))
        await two.net.publish("blocks", payload)
        await world.until(partial(_has, one, ("blocks", two.net.peer_id, payload)))
        await two.stop()


def _can_gossip(node: Node) -> bool:
    return bool(node.net.gossip_service.peer_queues)


def _has(node: Node, message: tuple[str, str, bytes]) -> bool:
    return message in node.recorder.gossip


async def test_a_restarted_process_replaces_what_is_left_of_the_old(world: World) -> None:
    """The old connection is still up: as after a crash whose TCP connection nobody has noticed."""
    one = await world.node("one")
    before = await world.attacker()
    old = await before.connect_and_greet(one, instance=b"before..")
    after = await world.attacker()
    await after.connect_and_greet(one, instance=b"after...")
    await world.until(lambda: old.is_closed and one.knows(after.peer_id))
    assert one.recorder.peers == [(before.peer_id, True), (before.peer_id, False), (before.peer_id, True)]


async def test_who_restarts_before_its_end_was_noticed_is_heard_whatever_its_last_process_said(world: World) -> None:
    """A new process numbers its direct messages anew, far below those of the one that lost its power."""
    one = await world.node("one")
    before = await world.attacker("two")
    old = await before.connect_and_greet(one, instance=b"before..")
    stream = await before.stream(old, "/spchain/direct/1")
    await stream.write(b"".join(encode_frame(1, number, b"") for number in range(1000)))
    await world.until(lambda: len(one.recorder.direct) == 1000)
    two = await world.node("two", bootstrap=(one.address,))
    await world.until(lambda: two.connected_to(one))
    assert one.recorder.peers == [(two.net.peer_id, came) for came in (True, False, True)]
    assert two.net.send(one.net.peer_id, 1, b"back")
    assert one.net.send(two.net.peer_id, 1, b"welcome")
    await world.until(lambda: one.recorder.direct[1000:] == [(two.net.peer_id, 1, b"back")])
    await world.until(lambda: two.recorder.direct == [(one.net.peer_id, 1, b"welcome")])


async def test_who_comes_back_before_its_end_was_noticed_is_still_heard(world: World) -> None:
    """One side sees the connection end, the other does not: as when a firewall drops what is under way."""
    one, two = await world.pair()
    for number in range(10):
        assert two.net.send(one.net.peer_id, 1, b"%d" % number)
    await world.until(lambda: len(one.recorder.direct) == 10)
    key = ID.from_base58(one.net.peer_id)
    connection = two.net._host.swarm.live_connection(key)
    assert connection is not None
    two.net._host.swarm.connections.pop(key)
    two.net._admission._on_disconnected(connection)
    await world.until(lambda: two.recorder.peers == [(one.net.peer_id, came) for came in (True, False, True)])
    assert one.recorder.peers == [(two.net.peer_id, True)]
    assert two.net.send(one.net.peer_id, 1, b"back")
    await world.until(lambda: one.recorder.direct[10:] == [(two.net.peer_id, 1, b"back")])
    await muxer_of(connection).abort()  # nobody else knows of it any more


async def test_who_dials_again_is_spoken_to_on_its_new_connection(world: World) -> None:
    """It would not dial if it still had the one before; what is written to that one may be lost until a ping has found out."""
    one = await world.node("one")
    peer = await world.attacker()
    heard: list[tuple[object, bytes]] = []

    async def listen(stream: INetStream) -> None:
        reader = FrameReader(stream, 100)
        while True:
            heard.append((stream.muxed_conn, (await reader.next()).payload))

    peer.serve("/spchain/direct/1", listen)
    old = await peer.connect_and_greet(one)
    assert one.net.send(peer.peer_id, 1, b"before")
    await world.until(lambda: heard == [(old.muxed_conn, b"before")])
    new = await peer.connect_and_greet(one)
    await world.until(lambda: old.is_closed)
    assert one.net.send(peer.peer_id, 1, b"after")
    await world.until(lambda: heard[1:] == [(new.muxed_conn, b"after")])
    assert one.recorder.peers == [(peer.peer_id, True)]


async def test_stopping_closes_every_socket_and_leaves_no_task(world: World) -> None:
    def sockets() -> int:
        return sum(1 for fd in Path("/proc/self/fd").iterdir() if fd.is_socket())

    sockets_before, tasks_before = sockets(), trio.lowlevel.current_statistics().tasks_living
    nodes = await world.mesh(4)
    assert sockets() > sockets_before
    for node in nodes:
        with trio.fail_after(60):
            await node.stop()
    await world.until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks_before)
    # What tests before this one have left may be gone by now.
    assert sockets() <= sockets_before


async def test_stopping_does_not_wait_for_a_peer_that_reads_nothing(world: World) -> None:
    one = await world.node("one")
    attacker = await world.attacker()
    connection = await attacker.connect_and_greet(one)
    # The attacker's socket is never read again.
    stop_reading(connection)
    for _ in range(20):
        one.net.send(attacker.peer_id, 1, bytes(400_000))
    # It has closed without waiting for the writer, whose own patience is longer.
    with trio.fail_after(WRITE_DEADLINE_S * 3 / 4):
        await one.stop()


async def test_a_port_in_use_is_an_error_with_its_address(world: World) -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"127.0.0.1:{port}"):
            async with open_network(make_config("one", listen=f"127.0.0.1:{port}"), Recorder("one")):
                pass


async def test_two_nodes_never_share_a_port(world: World) -> None:
    one = await world.node("one")
    with pytest.raises(InvalidInput, match="free port"):
        async with open_network(make_config("two", listen=f"127.0.0.1:{one.port}"), Recorder("two")):
            pass


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "host:1", "127.0.0.1:x", "127.0.0.1:70000", "[::1:5"])
async def test_an_address_that_cannot_be_listened_on_is_refused(listen: str, world: World) -> None:
    with pytest.raises(InvalidInput, match="listen"):
        async with open_network(make_config("one", listen=listen), Recorder("one")):
            pass


@pytest.mark.parametrize(
    "change",
    [{"identity_seed": b"short"}, {"network_id": b""}, {"max_peers": 0}, {"topics": ("a", "a")}],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make_config("one", **change)


async def test_a_bootstrap_address_without_identity_is_refused(world: World) -> None:
    config = make_config("one", bootstrap=("/ip4/127.0.0.1/tcp/4001",))
    with pytest.raises(InvalidInput, match="p2p/<id>"):
        async with open_network(config, Recorder("one")):
            pass


async def test_announced_addresses_are_told_instead_of_the_ones_listened_on(world: World) -> None:
    one = await world.node("one", announce=("/dns4/node.hospital.example/tcp/4001",))
    two = await world.node("two")
    assert one.net.addresses == [f"/dns4/node.hospital.example/tcp/4001/p2p/{one.net.peer_id}"]
    three = await world.node("three", bootstrap=(f"/ip4/127.0.0.1/tcp/{_listening_port(one)}/p2p/{one.net.peer_id}",))
    await world.until(lambda: three.connected_to(one))
    assert three.info(one.net.peer_id).addresses == tuple(one.net.addresses)
    assert two.net.peers() == []


def _listening_port(node: Node) -> int:
    return int(str(node.net._host.get_transport_addrs()[0]).rsplit("/", 1)[1])


async def test_listening_on_all_interfaces_tells_addresses_that_can_be_dialled(world: World) -> None:
    one = await world.node("one", listen="0.0.0.0:0")
    assert one.net.addresses
    # Refuses "all interfaces" as an address to dial.
    assert all(parse_address(address) for address in one.net.addresses)
    two = await world.node("two", bootstrap=tuple(one.net.addresses))
    await world.until(lambda: two.connected_to(one))


async def test_two_that_dial_each_other_at_one_moment_stay_connected(world: World) -> None:
    one = await world.node("one")
    two = await world.node("two")
    async with trio.open_nursery() as nursery:
        for node, other in ((one, two), (two, one)):
            entry_address = parse_address(other.address)
            node.net._discovery.book.learn(entry_address, Standing.BOOTSTRAP, trio.current_time())
            nursery.start_soon(trio.lowlevel.checkpoint)
        one.net._discovery.wake()
        two.net._discovery.wake()
    await world.until(lambda: one.connected_to(two) and two.connected_to(one))
    assert one.net.send(two.net.peer_id, 5, b"hello")
    await world.until(lambda: two.recorder.direct == [(one.net.peer_id, 5, b"hello")])
    assert isinstance(one.config, NetworkConfig)


async def test_what_fails_inside_comes_out_after_the_network_has_closed() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_network(make_config("one"), Recorder("one")):
            raise ZeroDivisionError
