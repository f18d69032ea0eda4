# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding peers on the local network by multicast DNS.

The library (libp2p 0.8.1) fills its peerstore from a thread and dials nobody; registering blocks for a second. Here it
runs in threads and what it finds goes into the address book, checked like any other hearsay.
"""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.discovery.mdns.mdns import MDNSDiscovery
from libp2p.peer.peerinfo import PeerInfo

from ledger.errors import InvalidInput
from p2p.addresses import Address, parse_address
from p2p.host import QuietHost

MAX_ADDRESSES = 8
"""Addresses looked at per announcement."""
_limiter = trio.CapacityLimiter(2)

log = structlog.get_logger("p2p.mdns")


@asynccontextmanager
async def local_discovery(
    host: QuietHost, network_id: bytes, port: int, heard: Callable[[list[Address]], None]
) -> AsyncIterator[None]:
    """Announce this node and report others of the same network to `heard` while inside."""
    token = trio.lowlevel.current_trio_token()
    # A service of its own per network; a service's name has at most 15 characters.
    service = f"_p2p-{network_id.hex()[:8]}._udp.local."
    stopped = threading.Event()

    def found(info: PeerInfo) -> None:
        # Called in a thread of zeroconf, for every announcement that any node in this process hears.
        addresses = []
        for dial in info.addrs[:MAX_ADDRESSES]:
            try:
                addresses.append(parse_address(f"{dial}/p2p/{info.peer_id}"))
            except InvalidInput as error:
                log.debug("announcement not understood", error=str(error)[:200])
        if addresses and not stopped.is_set():
            token.run_sync_soon(heard, addresses)

    def start() -> MDNSDiscovery:
        service_here = MDNSDiscovery(host.get_network(), port=port, service_type=service, host=host)
        service_here.broadcaster.register()
        return service_here

    def stop(service_here: MDNSDiscovery) -> None:
        service_here.listener.stop()
        service_here.zeroconf.close()

    peerDiscovery.register_peer_discovered_handler(found)
    try:
        running = await trio.to_thread.run_sync(start, limiter=_limiter)
    except OSError as error:
        log.warning("no multicast here; peers on the local network are not looked for", error=str(error))
        peerDiscovery.unregister_peer_discovered_handler(found)
        yield
        return
    try:
        yield
    finally:
        stopped.set()
        peerDiscovery.unregister_peer_discovered_handler(found)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stop, running, limiter=_limiter)
