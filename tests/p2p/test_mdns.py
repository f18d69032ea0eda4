# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding each other on the local network, where the machine has multicast at all."""

import socket

import pytest
import trio
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from tests.p2p.kit import World


def has_multicast() -> bool:
    group = ("224.0.0.251", 5354)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receiver.bind(group)
            membership = socket.inet_aton(group[0]) + bytes(4)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(1)
            sender.sendto(b"anyone?", group)
            return receiver.recv(100) == b"anyone?"
        except OSError:
            return False


@pytest.mark.skipif(not has_multicast(), reason="this machine delivers no multicast")
async def test_two_nodes_without_any_bootstrap_find_each_other_on_the_local_network(world: World) -> None:
    one = await world.node("one", mdns=True)
    two = await world.node("two", mdns=True)
    await world.until(lambda: one.connected_to(two) and two.connected_to(one))


async def test_rubbish_in_an_announcement_is_left_aside(world: World) -> None:
    one = await world.node("one", mdns=True)
    two = await world.node("two")
    key = ID.from_base58(two.net.peer_id)
    port = two.address.split("/")[4]

    def announce() -> None:
        # As zeroconf does, in a thread of its own.
        peerDiscovery.emit_peer_discovered(PeerInfo(ID(b"rubbish"), [Multiaddr("/ip4/127.0.0.1/tcp/1")]))
        peerDiscovery.emit_peer_discovered(PeerInfo(key, [Multiaddr("/unix/x")] * 100))
        peerDiscovery.emit_peer_discovered(PeerInfo(key, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]))

    await trio.to_thread.run_sync(announce)
    await world.until(lambda: one.connected_to(two))
    assert len(one.net._discovery.book.all()) == 1
