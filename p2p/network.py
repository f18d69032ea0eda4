# SPDX-License-Identifier: GPL-3.0-or-later
"""The network as the node sees it: open it, publish, send, ask, see and judge peers.

Everything a peer does to us passes the greeting first (`p2p.hello`), is bounded, and ends at worst its own connection.
"""

import ipaddress
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr

from ledger.errors import InvalidInput
from p2p import discovery, requests
from p2p.addresses import Address, is_loopback_host, parse_address
from p2p.admission import Admission, remote_host
from p2p.config import Handlers, NetworkConfig, PeerInfo
from p2p.discovery import Discovery
from p2p.errors import (
    NotAvailable,
    ProtocolViolation,
    RequestFailed,
    RequestFailure,
    UnknownMethod,
)
from p2p.gossip import Gossip
from p2p.host import QuietHost, build_host, reset_stream
from p2p.mdns import local_discovery
from p2p.muxer import BoundedYamux
from p2p.peers import Peer, PeerTable
from p2p.requests import RequestServer
from p2p.scores import Scores

__all__ = [
    "Handlers",
    "Network",
    "NetworkConfig",
    "NotAvailable",
    "PeerInfo",
    "RequestFailed",
    "RequestFailure",
    "UnknownMethod",
    "open_network",
]

DIRECT = TProtocol("/spchain/direct/1")

log = structlog.get_logger("p2p.network")


class Network:
    """An open network; made by `open_network` only."""

    def __init__(self, config: NetworkConfig, handlers: Handlers, host: QuietHost, nursery: trio.Nursery) -> None:
        self._config = config
        self._handlers = handlers
        self._host = host
        self._nursery = nursery
        self._stopping = False
        self._peers = PeerTable()
        self._scores = Scores(config.ban_points, config.ban_s, trio.current_time)
        self.peer_id: str = str(host.get_id())
        """Our identity on the network."""
        self.addresses: list[str] = []
        """Addresses at which we can be dialled, with our identity."""
        # Jitter need not be secret.
        self._random = random.Random(secrets.randbits(64))  # noqa: S311
        self._discovery = Discovery(
            config, host.swarm, self._peers, self._scores, self._ask, self.penalise, self._random
        )
        self._gossip = Gossip(
            host,
            self._peers,
            config.topics,
            config.network_id,
            config.max_gossip_bytes,
            handlers.on_gossip,
            self.penalise,
            lambda peer_id: self._scores.ban_left_s(peer_id) > 0,
            config.hello_timeout_s,
        )
        self._server = RequestServer(
            self._peers,
            self._on_request,
            self.penalise,
            max_request_bytes=config.max_request_bytes,
            max_response_bytes=config.max_response_bytes,
            per_peer=config.requests_per_peer,
            in_total=config.requests_in_total,
            admission_timeout_s=config.hello_timeout_s,
        )
        host.set_stream_handler(DIRECT, self._on_direct_stream)
        host.set_stream_handler(requests.PROTOCOL, self._server.stream_handler)
        self._admission = Admission(
            config,
            handlers,
            host,
            nursery,
            self._peers,
            self._scores,
            own_addresses=lambda: self.addresses,
            penalise=self.penalise,
            on_admitted=self._on_admitted,
            on_gone=self._on_gone,
        )

    # ------------------------------------------------------------ what the node does

    async def publish(self, topic: str, payload: bytes) -> None:
        """Gossip to everyone but ourselves; waits for peers that read slowly, gives up on those that do not read.

        Raises:
            InvalidInput: the topic is not in the settings or the payload is over `max_gossip_bytes`.
        """
        await self._gossip.publish_payload(topic, payload)

    def send(self, peer_id: str, kind: int, payload: bytes) -> bool:
        """Queue a direct message; False if the peer is not connected, the queue full or the payload over the limit.

        True means queued: a connection that breaks loses what was under way (logged and counted in `PeerInfo.lost`).
        """
        peer = self._peers.get(peer_id)
        if peer is None:
            log.debug("not sent: not connected", peer=peer_id, kind=kind)
            return False
        if len(payload) > self._config.max_direct_bytes:
            log.error("not sent: too long", peer=peer_id, kind=kind, bytes=len(payload))
            return False
        queued = peer.link.send(kind, payload)
        if not queued:
            log.warning("not sent: queue is full", peer=peer_id, kind=kind, queued_bytes=peer.link.queued_bytes)
        return queued

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer on a stream of its own and return the answer; raises `RequestFailed`."""
        if len(payload) > self._config.max_request_bytes:
            detail = f"request has {len(payload)} bytes, {self._config.max_request_bytes} are allowed"
            raise RequestFailed(RequestFailure.TOO_LARGE, peer_id, method, detail)
        assert len(method.encode()) <= requests.MAX_METHOD_BYTES, f"method name {method!r} is too long"
        peer = self._peers.get(peer_id)
        connection = None if peer is None else self._host.swarm.live_connection(peer.key)
        if peer is None or connection is None:
            raise RequestFailed(RequestFailure.NOT_CONNECTED, peer_id, method, "no admitted connection")
        with trio.move_on_after(timeout_s):
            # Waits here for a place rather than be told "busy" by a peer with the same settings.
            async with peer.asking:
                return await self._ask_on(connection, peer_id, method, payload)
        raise RequestFailed(RequestFailure.TIMEOUT, peer_id, method, f"no answer within {timeout_s} s")

    def peers(self) -> list[PeerInfo]:
        """Return the admitted peers."""
        return [self._info(peer) for peer in self._peers.all()]

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        """Add penalty points; at the limit the peer is disconnected and banned for a time."""
        banned = self._scores.add(peer_id, points)
        log.info("peer penalised", peer=peer_id, points=points, reason=reason[:300])
        if banned:
            log.warning("peer banned", peer=peer_id, ban_s=self._config.ban_s, reason=reason[:300])
            self._disconnect(peer_id)

    # ------------------------------------------------------------ inside

    def _info(self, peer: Peer) -> PeerInfo:
        connection = self._host.swarm.live_connection(peer.key)
        rtt_s = connection.muxed_conn.rtt() if connection and isinstance(connection.muxed_conn, BoundedYamux) else 0.0
        outbox = self._gossip.outbox_of(peer.key)
        return PeerInfo(
            peer_id=peer.peer_id,
            name=peer.name,
            addresses=tuple(address.text for address in peer.addresses),
            direction="outbound" if peer.outbound else "inbound",
            connected_since_s=peer.connected_since_s,
            score=self._scores.points(peer.peer_id),
            latency_ms=rtt_s * 1000 if rtt_s > 0 else None,
            queued_bytes=peer.link.queued_bytes + (outbox.queued_bytes if outbox else 0),
            lost=peer.link.lost + (outbox.lost if outbox else 0),
        )

    def _disconnect(self, peer_id: str) -> None:
        if self._stopping:
            return
        for connection in self._host.swarm.get_connections(ID.from_base58(peer_id)):
            self._nursery.start_soon(self._host.swarm.close_connection, connection)

    async def _ask(self, peer_id: str, method: str, payload: bytes, timeout_s: float) -> bytes:
        return await self.request(peer_id, method, payload, timeout_s=timeout_s)

    async def _ask_on(self, connection: SwarmConn, peer_id: str, method: str, payload: bytes) -> bytes:
        stream: INetStream | None = None
        try:
            stream = await self._host.start_stream(connection)
            answer = await requests.ask(stream, peer_id, method, payload, self._config.max_response_bytes)
            stream = None
            return answer
        except RequestFailed:
            raise
        except ProtocolViolation as error:
            self.penalise(peer_id, 50, f"answer to {method}: {error}")
            raise RequestFailed(RequestFailure.PROTOCOL, peer_id, method, str(error)) from error
        except Exception as error:
            # The library raises many kinds when a stream or connection ends.
            raise RequestFailed(RequestFailure.CLOSED, peer_id, method, repr(error)[:200]) from error
        finally:
            if stream is not None:
                await reset_stream(stream)

    async def _on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        if method == discovery.METHOD:
            return self._discovery.answer(peer_id, asker_is_local=self._is_local(peer_id))
        return await self._handlers.on_request(peer_id, method, payload)

    def _is_local(self, peer_id: str) -> bool:
        connection = self._host.swarm.live_connection(ID.from_base58(peer_id))
        return connection is not None and is_loopback_host(remote_host(connection))

    # ------------------------------------------------------------ a peer's life

    def _on_admitted(self, peer: Peer) -> None:
        self._discovery.admitted(peer.peer_id, peer.addresses)
        self._gossip.peer_admitted(peer.key)
        self._nursery.start_soon(self._serve_peer, peer)

    def _on_gone(self, peer: Peer) -> None:
        self._gossip.peer_gone(peer.key)
        self._discovery.gone(peer.peer_id)

    async def _serve_peer(self, peer: Peer) -> None:
        async def deliver(kind: int, payload: bytes) -> None:
            await self._handlers.on_direct(peer.peer_id, kind, payload)

        async def open_stream() -> INetStream:
            connection = self._host.swarm.live_connection(peer.key)
            if connection is None:
                raise RequestFailed(RequestFailure.NOT_CONNECTED, peer.peer_id, DIRECT, "no connection")
            return await self._host.open_stream(connection, DIRECT)

        with peer.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.link.write_loop, open_stream, reset_stream)
                nursery.start_soon(
                    peer.link.deliver_loop, deliver, lambda reason: self.penalise(peer.peer_id, 10, reason)
                )
                nursery.start_soon(self._discovery.exchange_loop, peer.peer_id)

    async def _on_direct_stream(self, stream: INetStream) -> None:
        peer_id = str(stream.muxed_conn.peer_id)
        try:
            peer = await self._peers.wait_for(peer_id, self._config.hello_timeout_s)
            if peer is not None:
                await peer.link.read_stream(stream)
        except ProtocolViolation as error:
            self.penalise(peer_id, 50, f"direct stream: {error}")
        finally:
            await reset_stream(stream)

    # ------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Begin to look for peers and to take what they send; the host must listen."""
        own = f"/p2p/{self.peer_id}"
        addresses = self._config.announce or _dialable(self._host)
        self.addresses = [text if "/p2p/" in text else text + own for text in addresses]
        # An interface may have an address that nobody else can dial (one with a zone, say); a peer would refuse it.
        self.addresses = [text for text in self.addresses if _is_dialable(text)]
        await self._gossip.start_topics(self._nursery)
        self._nursery.start_soon(self._discovery.dial_loop)

    @property
    def gossip_service(self) -> Gossip:
        """The gossip service, for `open_network` to run."""
        return self._gossip

    @property
    def heard(self) -> Callable[[list[Address]], None]:
        """Where addresses found on the local network go."""
        return self._discovery.heard

    def stop(self) -> None:
        """Admit nobody and forget everybody; connections are closed by the host."""
        self._stopping = True
        self._admission.stop()


def _is_dialable(text: str) -> bool:
    try:
        parse_address(text)
    except InvalidInput:
        log.info("address is not told to others", address=text)
        return False
    return True


def _dialable(host: QuietHost) -> list[str]:
    """Return the addresses listened on, with every interface in place of "all interfaces"."""
    addresses: list[str] = []
    for address in host.get_transport_addrs():
        text = str(address)
        if "/ip4/0.0.0.0/" in text or "/ip6/::/" in text:
            port = int(text.rsplit("/", 1)[1])
            addresses += [str(found).split("/p2p/")[0] for found in get_available_interfaces(port)]
        else:
            addresses.append(text)
    return list(dict.fromkeys(addresses))


async def _listen_address(listen: str) -> Multiaddr:
    """Parse the address to listen on and see that it is free."""
    host, _, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    hint = f"cannot listen on {listen!r}; give an IP address of this machine and a free port, as in 127.0.0.1:4001"
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if not port.isdecimal() or int(port) >= 2**16 or bracketed != (ip.version == 6):
            raise InvalidInput(hint)
        family = trio.socket.AF_INET6 if bracketed else trio.socket.AF_INET
        with trio.socket.socket(family) as probe:
            # The library listens with SO_REUSEPORT: a second node on the same port would silently get half of the
            # connections. This socket has it not, so it finds the first one.
            probe.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await probe.bind((str(ip), int(port)))
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{hint}: {error}") from error
    return Multiaddr(f"/ip{ip.version}/{ip}/tcp/{port}")


@asynccontextmanager
async def open_network(config: NetworkConfig, handlers: Handlers) -> AsyncIterator[Network]:
    """Run the network while inside; leaving closes every connection within a second.

    Raises:
        InvalidInput: a setting cannot work, or the address cannot be listened on.
    """
    for text in config.bootstrap:
        parse_address(text)
    listen = await _listen_address(config.listen)
    host = build_host(config)
    own = f"/p2p/{host.get_id()}"
    announced = [parse_address(text if "/p2p/" in text else text + own) for text in config.announce]
    if any(not address.text.endswith(own) for address in announced):
        raise InvalidInput(f"announce {config.announce} names another peer; leave /p2p/… out")
    failure: Exception | None = None
    async with background_trio_service(host.swarm):
        try:
            if not await host.swarm.listen(listen):
                raise InvalidInput(f"cannot listen on {config.listen}; the port was taken just now")
            async with trio.open_nursery() as nursery:
                network = Network(config, handlers, host, nursery)
                gossip = network.gossip_service
                async with background_trio_service(gossip.mesh_router), background_trio_service(gossip):
                    await gossip.wait_until_ready()
                    await network.start()
                    try:
                        if config.mdns:
                            port = int(str(host.get_transport_addrs()[0]).rsplit("/", 1)[1])
                            async with local_discovery(host, config.network_id, port, network.heard):
                                yield network
                        else:
                            yield network
                    except Exception as error:  # noqa: BLE001 -- raised again below: the cancellation here would replace it
                        failure = error
                    finally:
                        with trio.CancelScope(shield=True):
                            network.stop()
                            nursery.cancel_scope.cancel()
                            # Leaving `host.run()` would keep connections open in a living process: close first.
                            await host.close()
        finally:
            with trio.CancelScope(shield=True):
                await host.close()
    if failure is not None:
        raise failure
