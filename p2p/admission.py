# SPDX-License-Identifier: GPL-3.0-or-later
"""Who becomes a peer and when it stops being one.

Every connection is greeted within a time or ends. A peer begins with its first greeted connection and ends with its last,
or when its process was restarted: then what is left of the old one is dropped. One that dials again, because it has lost its
connection, has a new one in its place.
"""

import itertools
import math
import secrets
from collections.abc import Callable

import structlog
import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr

from ledger.errors import InvalidInput, SpchainError
from p2p import hello
from p2p.addresses import Address, is_loopback_host, parse_address
from p2p.config import Handlers, NetworkConfig
from p2p.direct import DirectLink
from p2p.errors import NotAvailable, PeerRefused
from p2p.host import QuietHost, reset_stream
from p2p.muxer import BoundedYamux
from p2p.peers import Peer, PeerTable
from p2p.scores import Scores

REFUSAL_S = 1.0
"""How long a refused peer may take to read why before it is disconnected."""
_POINTS_STATEMENT = 40
"""Points for a greeting that is malformed or whose statement is not accepted."""

log = structlog.get_logger("p2p.admission")


class _Notifee(INotifee):
    """Hands the swarm's connection events on."""

    def __init__(self, connected: Callable[[SwarmConn], None], disconnected: Callable[[SwarmConn], None]) -> None:
        self._connected = connected
        self._disconnected = disconnected

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not needed."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not needed."""

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """A connection is up."""
        assert isinstance(conn, SwarmConn), f"a connection is a {type(conn)}"
        self._connected(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """A connection is down."""
        assert isinstance(conn, SwarmConn), f"a connection is a {type(conn)}"
        self._disconnected(conn)

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not needed."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not needed."""


class Admission:
    """Greets, admits and drops peers."""

    def __init__(
        self,
        config: NetworkConfig,
        handlers: Handlers,
        host: QuietHost,
        nursery: trio.Nursery,
        peers: PeerTable,
        scores: Scores,
        *,
        own_addresses: Callable[[], list[str]],
        penalise: Callable[[str, int, str], None],
        on_admitted: Callable[[Peer], None],
        on_gone: Callable[[Peer], None],
    ) -> None:
        self._config = config
        self._handlers = handlers
        self._host = host
        self._nursery = nursery
        self._peers = peers
        self._scores = scores
        self._own_addresses = own_addresses
        self._penalise = penalise
        self._on_admitted = on_admitted
        self._on_gone = on_gone
        self._instance = secrets.token_bytes(8)
        self._numbers = itertools.count()
        self._stopping = False
        self._greeted: set[SwarmConn] = set()
        host.set_stream_handler(hello.PROTOCOL, self._on_hello_stream)
        host.swarm.register_notifee(_Notifee(self._on_connected, self._on_disconnected))

    def stop(self) -> None:
        """Admit nobody any more and drop everybody; connections are closed by the host."""
        self._stopping = True
        for peer in self._peers.all():
            self._drop(peer)

    def _on_connected(self, connection: SwarmConn) -> None:
        if not self._stopping:
            self._nursery.start_soon(self._greet, connection)

    async def _greet(self, connection: SwarmConn) -> None:
        peer_id = str(connection.muxed_conn.peer_id)
        with trio.move_on_after(self._config.hello_timeout_s):
            try:
                if self._scores.ban_left_s(peer_id) > 0:
                    log.info("banned peer disconnected", peer=peer_id)
                elif connection.direction == Direction.OUTBOUND:
                    await self._greet_first(connection, peer_id)
                else:
                    # The dialler greets, and the stream handler admits or closes; here only time passes.
                    await connection.event_closed.wait()
            except PeerRefused as error:
                log.warning("peer refused us", peer=peer_id, reason=str(error))
            except InvalidInput as error:
                self._penalise(peer_id, _POINTS_STATEMENT, f"greeting: {error}")
            except Exception as error:  # noqa: BLE001 -- the library raises many kinds when a stream or connection ends
                log.info("greeting failed", peer=peer_id, error=repr(error)[:200])
        if connection not in self._greeted:
            await self._host.swarm.close_connection(connection)

    async def _greet_first(self, connection: SwarmConn, peer_id: str) -> None:
        stream = await self._host.open_stream(connection, hello.PROTOCOL)
        try:
            await hello.write_hello(stream, self._own_hello())
            theirs = await hello.read_hello(stream, self._config.max_statement_bytes)
            refusal = self._admit(connection, peer_id, theirs)
            if refusal is not None:
                log.info("peer not admitted", peer=peer_id, reason=refusal)
        finally:
            await reset_stream(stream)

    async def _on_hello_stream(self, stream: INetStream) -> None:
        connection = next(
            (
                connection
                for connection in self._host.swarm.get_connections(stream.muxed_conn.peer_id)
                if connection.muxed_conn is stream.muxed_conn
            ),
            None,
        )
        if not isinstance(connection, SwarmConn) or connection in self._greeted:
            await reset_stream(stream)
            return
        peer_id = str(stream.muxed_conn.peer_id)
        refusal: str | None = "the greeting was not understood"
        try:
            with trio.move_on_after(self._config.hello_timeout_s):
                theirs = await hello.read_hello(stream, self._config.max_statement_bytes)
                refusal = self._admit(connection, peer_id, theirs)
        except InvalidInput as error:
            self._penalise(peer_id, _POINTS_STATEMENT, f"greeting: {error}")
            refusal = str(error)
        except SpchainError as error:
            refusal = str(error)
        with trio.move_on_after(self._config.hello_timeout_s):
            if refusal is None:
                await hello.write_hello(stream, self._own_hello())
                await stream.close()
                return
            log.info("peer not admitted", peer=peer_id, reason=refusal)
            await hello.write_refusal(stream, refusal)
            await stream.close()
            # It disconnects by itself when it has read the reason.
            with trio.move_on_after(REFUSAL_S):
                await connection.event_closed.wait()
        await self._host.swarm.close_connection(connection)

    def _own_hello(self) -> hello.Hello:
        statement = self._handlers.hello()
        assert len(statement) <= self._config.max_statement_bytes, f"our statement has {len(statement)} bytes"
        addresses = tuple(self._own_addresses()[: hello.MAX_ADDRESSES])
        return hello.Hello(self._config.network_id, self._instance, addresses, statement)

    def _admit(self, connection: SwarmConn, peer_id: str, theirs: hello.Hello) -> str | None:
        """Admit a peer by its greeting; returns why not. Raises `InvalidInput` for what costs points."""
        if self._stopping:
            return "this node is stopping"
        if theirs.network_id != self._config.network_id:
            ours = self._config.network_id.hex()[:16]
            return f"another network: yours is {theirs.network_id.hex()[:16]}…, this is {ours}…"
        ban_left_s = self._scores.ban_left_s(peer_id)
        if ban_left_s > 0:
            return f"banned for another {ban_left_s:.0f} s"
        addresses = self._addresses_of(connection, peer_id, theirs)
        known = self._peers.get(peer_id)
        if known is not None and known.instance == theirs.instance:
            self._close_dialled_before(connection)
            self._greeted.add(connection)
            return None
        outbound = connection.direction == Direction.OUTBOUND
        if known is None and self._is_full(outbound=outbound):
            return f"full: {len(self._peers)} of {self._config.max_peers} peers are connected"
        name = self._authenticate(peer_id, theirs.statement)
        if known is not None:
            # It restarted: what is left of the process before is dead, even if TCP does not know yet.
            self._drop(known)
        self._greeted.add(connection)
        for other in self._host.swarm.get_connections(connection.muxed_conn.peer_id):
            if other is not connection and other in self._greeted:
                self._nursery.start_soon(self._host.swarm.close_connection, other)
        peer = Peer(
            key=connection.muxed_conn.peer_id,
            peer_id=peer_id,
            instance=theirs.instance,
            name=name,
            addresses=addresses,
            outbound=outbound,
            connected_since_s=trio.current_time(),
            link=DirectLink(peer_id, self._config.max_direct_bytes, self._numbers),
            asking=trio.Semaphore(self._config.requests_per_peer),
        )
        self._peers.add(peer)
        log.info("peer connected", peer=peer_id, name=name, outbound=peer.outbound)
        self._on_admitted(peer)
        self._tell(peer_id, connected=True)
        return None

    def _close_dialled_before(self, connection: SwarmConn) -> None:
        """Close what a peer dialled before this connection; so it holds one, and one more when we dialled it at the same moment."""
        # Who dials has no connection: what it dialled before is dead, even if TCP does not know yet.
        for other in self._host.swarm.get_connections(connection.muxed_conn.peer_id):
            if other in self._greeted and other.direction == connection.direction == Direction.INBOUND:
                self._nursery.start_soon(self._host.swarm.close_connection, other)

    def _is_full(self, *, outbound: bool) -> bool:
        if len(self._peers) >= self._config.max_peers:
            return True
        # A quarter of the places is for peers we chose: those who dial us must not be all whom we know (eclipse).
        inbound = sum(1 for peer in self._peers.all() if not peer.outbound)
        return not outbound and inbound >= math.ceil(self._config.max_peers * 3 / 4)

    def _authenticate(self, peer_id: str, statement: bytes) -> str:
        try:
            return self._handlers.authenticate(peer_id, statement)
        except SpchainError:
            raise
        except Exception:
            # Our own fault, but a peer's greeting must never stop the node (invariant I13).
            log.exception("authenticate failed", peer=peer_id)
            raise NotAvailable("the node failed inside; its log tells more") from None

    def _tell(self, peer_id: str, *, connected: bool) -> None:
        try:
            self._handlers.on_peer(peer_id, connected)
        except Exception:
            # Our own fault; the table of peers must stay right nevertheless.
            log.exception("on_peer failed", peer=peer_id, connected=connected)

    def _addresses_of(self, connection: SwarmConn, peer_id: str, theirs: hello.Hello) -> tuple[Address, ...]:
        addresses = tuple(parse_address(text) for text in theirs.addresses)
        if any(address.peer_id != peer_id for address in addresses):
            raise InvalidInput("greeting gives an address of another peer")
        local = is_loopback_host(remote_host(connection))
        return tuple(address for address in addresses if local or not address.is_loopback)

    def _on_disconnected(self, connection: SwarmConn) -> None:
        self._greeted.discard(connection)
        peer = self._peers.get(str(connection.muxed_conn.peer_id))
        if peer is None or self._host.swarm.live_connection(peer.key) is not None:
            return
        self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if not self._peers.remove(peer):
            return
        peer.scope.cancel()
        lost = peer.link.give_up()
        self._on_gone(peer)
        log.info("peer disconnected", peer=peer.peer_id, name=peer.name, direct_messages_lost=lost)
        self._tell(peer.peer_id, connected=False)


def remote_host(connection: SwarmConn) -> str:
    """Return the IP address at the other end."""
    remote = connection.muxed_conn.get_remote_address() if isinstance(connection.muxed_conn, BoundedYamux) else None
    return remote[0] if remote else ""
