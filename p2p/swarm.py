# SPDX-License-Identifier: GPL-3.0-or-later
"""The library's swarm (libp2p 0.8.1) without the parts that decide for us.

What it would do, and what happens here instead:

1. An accepted connection keeps its place among the inbound ones until the swarm stops, not until it ends: after as many
   connections as there are places a node accepts nobody any more. Here the place is free when the connection ends, and
   handshakes have places of their own, so that silent diallers never take those of peers.
2. Opening a stream to a peer without a connection dials it, and gossip does that for whoever has left. Here only the
   redial loop dials (`p2p.discovery`), address by address: the library's `dial_peer` waits 250 ms even after success and
   remembers a failure for 60 s.
3. The auto-connector dials whatever stands in the peerstore and remembers every identity that ever left.
4. `close()` closes connections one after the other, 0.2 s each. Here at once.
5. The resource manager admits one connection fewer than told and leaks counts on denial: it is not used, the muxer, the
   places and the greeting bound everything.
"""

from collections import Counter
from contextlib import suppress
from typing import Any

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr

from p2p.muxer import BoundedYamux

MAX_HANDSHAKES = 64
"""Inbound handshakes at once; one costs about 3 ms of CPU and some kilobytes."""
MAX_HANDSHAKES_PER_HOST = 16
"""Of these from one host: an attacker needs four addresses to hold all of them, and then only until the time-out."""

log = structlog.get_logger("p2p.swarm")


class _NoAutoConnector(AutoConnector):
    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Start nothing."""

    async def maybe_connect(self) -> None:
        """Dial nobody."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Remember nobody."""


class ManagedSwarm(Swarm):
    """Connections that only this package opens; see the module's text."""

    max_inbound: int
    """Inbound connections held at once, greeted or not."""

    def use(self, max_inbound: int) -> None:
        """Set the limits; once, before the swarm runs."""
        self.max_inbound = max_inbound
        self.auto_connector = _NoAutoConnector(self)
        self._handshakes: Counter[str] = Counter()

    def live_connection(self, peer_id: ID) -> SwarmConn | None:
        """Return an open connection to the peer, the oldest of several, or None."""
        for connection in self.connections.get(peer_id, ()):
            if not connection.is_closed and not connection.muxed_conn.is_closed:
                assert isinstance(connection, SwarmConn), f"a connection is a {type(connection)}"
                return connection
        return None

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Return the present connection; never dials."""
        connection = self.live_connection(peer_id)
        if connection is None:
            raise SwarmException(f"not connected to {peer_id}; only the redial loop dials")
        return [connection]

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        remote = read_write_closer.get_remote_address()
        host = remote[0] if remote else ""
        inbound = sum(1 for connection in self.get_connections() if _is_inbound(connection))
        if (
            self._handshakes.total() >= MAX_HANDSHAKES
            or self._handshakes[host] >= MAX_HANDSHAKES_PER_HOST
            or inbound + self._handshakes.total() >= self.max_inbound + MAX_HANDSHAKES_PER_HOST
        ):
            log.info("connection refused: no place", remote=host, handshakes=self._handshakes.total(), inbound=inbound)
            await read_write_closer.close()
            return
        self._handshakes[host] += 1
        handshaking = True
        raw = RawConnection(read_write_closer, initiator=False)
        try:
            muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            self._handshake_done(host)
            handshaking = False
            assert isinstance(muxed, BoundedYamux), f"only the bounded muxer is offered, got {type(muxed)}"
            await muxed.event_closed.wait()
        except Exception as error:  # noqa: BLE001 -- whatever a stranger sends ends his connection and nothing else
            log.debug("inbound connection failed", remote=host, error=repr(error)[:200])
        finally:
            if handshaking:
                self._handshake_done(host)
            with trio.CancelScope(shield=True), suppress(Exception):
                await raw.close()

    def _handshake_done(self, host: str) -> None:
        self._handshakes[host] -= 1
        if self._handshakes[host] <= 0:
            del self._handshakes[host]

    async def close_connection(self, connection: INetConn) -> None:
        """Close one connection, whatever state it is in."""
        try:
            await connection.close()
        except Exception as error:  # noqa: BLE001 -- a connection that cannot even be closed is gone
            log.debug("closing a connection failed", error=repr(error)[:200])

    async def close(self) -> None:
        """Close all connections together, then the rest."""
        async with trio.open_nursery() as nursery:
            for connection in self.get_connections():
                nursery.start_soon(self.close_connection, connection)
        await super().close()

    async def notify_opened_stream(self, stream: INetStream) -> None:
        """Tell nobody: nobody here listens, and the library starts a nursery of tasks to find that out."""

    async def notify_closed_stream(self, stream: INetStream) -> None:
        """Tell nobody."""

    def _schedule_prune(self) -> None:
        """Prune nothing: the greeting decides who stays."""


def _is_inbound(connection: Any) -> bool:  # noqa: ANN401 -- the library's list is typed by an interface without it
    return getattr(connection, "direction", None) == Direction.INBOUND
