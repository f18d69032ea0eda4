# SPDX-License-Identifier: GPL-3.0-or-later
"""Standing work of a node: the core's timer, its outbox, announcements of batches, further attempts after a fault of the disk."""

import trio

from consensus.events import Tick
from consensus.messages import Message
from ledger.codec import encode
from node.batches import BatchPool
from node.clock import now_ms
from node.driver import Driver
from node.peers import PeerDirectory
from node.wire import KIND_HAVE, MAX_DIGESTS, TOPIC_CONSENSUS, Digests
from p2p.network import Network

TICK_S = 0.05
"""Resolution of the core's timer: fine against a second's patience."""
HAVE_INTERVAL_S = 0.4
"""Batches that are still unordered then are announced again: before those who have them lose patience with a leader who has not."""
RESUME_INTERVAL_S = 2.0


class StandingWork:
    """What is done as long as the node runs, whatever happens."""

    def __init__(
        self,
        *,
        driver: Driver,
        network: Network,
        pool: BatchPool,
        peers: PeerDirectory,
        outgoing: trio.MemoryReceiveChannel[Message],
    ) -> None:
        """`outgoing` gives the consensus messages that are for all."""
        self._driver = driver
        self._network = network
        self._pool = pool
        self._peers = peers
        self._outgoing = outgoing

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (self._run_outbox, self._run_timer, self._run_announcements, self._run_resume):
                nursery.start_soon(task)

    async def _run_outbox(self) -> None:
        async for message in self._outgoing:
            await self._network.publish(TOPIC_CONSENSUS, encode(message))

    async def _run_timer(self) -> None:
        while True:
            self._driver.check()
            wait_s = (self._driver.core.next_tick_ms() - now_ms()) / 1000
            if wait_s <= 0:
                self._driver.handle(Tick())
            await trio.sleep(min(max(wait_s, TICK_S / 5), TICK_S))

    async def _run_announcements(self) -> None:
        """Tell everyone of batches that stay unordered: some peer may have missed the gossip."""
        before: set[bytes] = set()
        while True:
            await trio.sleep(HAVE_INTERVAL_S)
            now = [batch.digest for batch in self._pool]
            old = [digest for digest in now if digest in before][:MAX_DIGESTS]
            before = set(now)
            if old:
                payload = encode(Digests(tuple(old)))
                for peer_id in self._peers.peer_ids():
                    self._network.send(peer_id, KIND_HAVE, payload)

    async def _run_resume(self) -> None:
        while True:
            await trio.sleep(RESUME_INTERVAL_S)
            self._driver.resume()
