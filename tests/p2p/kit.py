# SPDX-License-Identifier: GPL-3.0-or-later
"""Real hosts on loopback in one process, and an attacker that speaks libp2p but none of our manners."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from ledger.errors import InvalidInput
from p2p.addresses import parse_address
from p2p.errors import NotAvailable, UnknownMethod
from p2p.hello import PROTOCOL as HELLO
from p2p.hello import Hello, read_hello, write_hello
from p2p.host import QuietHost, build_host
from p2p.muxer import BoundedYamux
from p2p.network import Network, NetworkConfig, PeerInfo, open_network

NETWORK_ID = hashlib.sha256(b"test network").digest()
PATIENCE_S = 120.0
"""How long a condition may take to come true before a test fails; the machine is shared."""


async def until(condition: Callable[[], Any]) -> None:
    """Return when the condition holds."""
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 -- of many things watched only few have an event
            await trio.sleep(0.01)


@dataclass
class Recorder:
    """Handlers that remember everything and do what a test puts in."""

    name: str
    gossip: list[tuple[str, str, bytes]] = field(default_factory=list)
    direct: list[tuple[str, int, bytes]] = field(default_factory=list)
    peers: list[tuple[str, bool]] = field(default_factory=list)
    statement: bytes = b""
    refuse: bool = False
    broken: bool = False
    broken_on_peer: bool = False
    gossip_gate: Callable[[str, str, bytes], Awaitable[None]] | None = None
    direct_gate: Callable[[str, int, bytes], Awaitable[None]] | None = None
    request_gate: Callable[[str, str, bytes], Awaitable[bytes]] | None = None

    def hello(self) -> bytes:
        return self.statement or self.name.encode()

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        if self.broken:
            raise KeyError("our own fault")
        if self.refuse:
            raise InvalidInput(f"statement {hello!r} is not accredited")
        return hello.decode()

    def on_peer(self, peer_id: str, connected: bool) -> None:
        self.peers.append((peer_id, connected))
        if self.broken_on_peer:
            raise KeyError("our own fault")

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None:
        if self.gossip_gate is not None:
            await self.gossip_gate(topic, origin, payload)
        self.gossip.append((topic, origin, payload))

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None:
        if self.direct_gate is not None:
            await self.direct_gate(peer_id, kind, payload)
        self.direct.append((peer_id, kind, payload))

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        if self.request_gate is not None:
            return await self.request_gate(peer_id, method, payload)
        if method == "echo":
            return payload
        if method == "absent":
            raise NotAvailable("block 7 was pruned")
        if method == "malformed":
            raise InvalidInput("height is negative")
        if method == "bug":
            raise KeyError("our own fault")
        raise UnknownMethod(f"method {method} is not offered")


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class ConfigChanges(TypedDict, total=False):
    """Settings that a test gives in place of `make_config`'s."""

    network_id: bytes
    identity_seed: bytes
    listen: str
    bootstrap: tuple[str, ...]
    mdns: bool
    max_peers: int
    announce: tuple[str, ...]
    topics: tuple[str, ...]
    max_request_bytes: int
    max_response_bytes: int
    requests_per_peer: int
    handshake_timeout_s: float
    hello_timeout_s: float
    exchange_interval_s: float
    ban_s: float


class HelloChanges(TypedDict, total=False):
    """What an attacker says in place of the truth."""

    network_id: bytes
    instance: bytes
    addresses: tuple[str, ...]
    statement: bytes


def make_config(name: str, **changes: Unpack[ConfigChanges]) -> NetworkConfig:
    base = NetworkConfig(
        identity_seed=seed_of(name),
        network_id=NETWORK_ID,
        listen="127.0.0.1:0",
        redial_first_s=0.1,
        redial_max_s=0.5,
        exchange_interval_s=1.0,
    )
    return replace(base, **changes)


class Node:
    """A running network that a test can stop."""

    def __init__(self, recorder: Recorder, config: NetworkConfig) -> None:
        self.recorder = recorder
        self.config = config
        self.net: Network = None  # type: ignore[assignment]  # set before anyone gets the node
        self.ready = trio.Event()
        self._stop = trio.CancelScope()
        self._stopped = trio.Event()

    async def run(self) -> None:
        try:
            with self._stop:
                async with open_network(self.config, self.recorder) as self.net:
                    self.ready.set()
                    await trio.sleep_forever()
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        self._stop.cancel()
        await self._stopped.wait()

    @property
    def address(self) -> str:
        return self.net.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.split("/")[4])

    def connected_to(self, other: "Node") -> bool:
        return any(info.peer_id == other.net.peer_id for info in self.net.peers())

    def info(self, peer_id: str) -> PeerInfo:
        """Return what is reported of an admitted peer."""
        return next(info for info in self.net.peers() if info.peer_id == peer_id)

    def knows(self, peer_id: str) -> bool:
        return any(info.peer_id == peer_id for info in self.net.peers())


class World:
    """Starts nodes and attackers; everything ends with the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    until = staticmethod(until)
    config = staticmethod(make_config)

    async def node(self, name: str, *, recorder: Recorder | None = None, **changes: Unpack[ConfigChanges]) -> Node:
        node = Node(recorder or Recorder(name), make_config(name, **changes))
        self._nursery.start_soon(node.run)
        await node.ready.wait()
        return node

    async def pair(self, **changes: Unpack[ConfigChanges]) -> tuple[Node, Node]:
        one = await self.node("one", **changes)
        changes["bootstrap"] = (one.address,)
        two = await self.node("two", **changes)
        await until(lambda: one.connected_to(two) and two.connected_to(one))
        return one, two

    async def mesh(self, count: int, **changes: Unpack[ConfigChanges]) -> list[Node]:
        nodes = [await self.node("node 0", **changes)]
        for index in range(1, count):
            changes["bootstrap"] = (nodes[0].address,)
            nodes.append(await self.node(f"node {index}", **changes))
        await until(lambda: all(len(node.net.peers()) == count - 1 for node in nodes))
        # Gossip streams are opened on admission; wait until each can reach each.
        await until(lambda: all(len(node.net.gossip_service.peer_queues) == count - 1 for node in nodes))
        return nodes

    async def attacker(self, name: str = "attacker") -> "Attacker":
        attacker = Attacker(name)
        self._nursery.start_soon(attacker.run)
        await attacker.ready.wait()
        return attacker


def muxer_of(connection: INetConn) -> BoundedYamux:
    assert isinstance(connection.muxed_conn, BoundedYamux)
    return connection.muxed_conn


def stop_reading(connection: INetConn) -> None:
    """Leave what arrives in the socket from now on."""
    nursery = muxer_of(connection)._nursery
    assert nursery is not None
    nursery.cancel_scope.cancel()


class Attacker:
    """A libp2p host that says whatever a test wants."""

    def __init__(self, name: str) -> None:
        self.host: QuietHost = build_host(make_config(name))
        self.peer_id = str(self.host.get_id())
        self.ready = trio.Event()

    async def run(self) -> None:
        async with background_trio_service(self.host.swarm):
            await self.host.swarm.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
            try:
                self.ready.set()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self.host.close()

    def serve(self, protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        self.host.set_stream_handler(TProtocol(protocol), handler)

    async def connect(self, node: Node) -> SwarmConn:
        address = parse_address(node.address)
        connection = await self.host.swarm.dial_addr(Multiaddr(address.text), ID.from_base58(address.peer_id))
        assert isinstance(connection, SwarmConn)
        return connection

    async def stream(self, connection: SwarmConn, protocol: str) -> INetStream:
        return await self.host.open_stream(connection, TProtocol(protocol))

    async def greet(self, connection: SwarmConn, **changes: Unpack[HelloChanges]) -> Hello:
        hello = Hello(
            changes.get("network_id", NETWORK_ID),
            changes.get("instance", b"attacker"),
            changes.get("addresses", ()),
            changes.get("statement", b"attacker"),
        )
        stream = await self.host.open_stream(connection, HELLO)
        await write_hello(stream, hello)
        return await read_hello(stream, 4096)

    async def connect_and_greet(self, node: Node, **changes: Unpack[HelloChanges]) -> SwarmConn:
        connection = await self.connect(node)
        await self.greet(connection, **changes)
        return connection
