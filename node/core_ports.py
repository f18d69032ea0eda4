# SPDX-License-Identifier: GPL-3.0-or-later
"""What the consensus core makes a node do: the part of the service that is `node.driver.Ports`."""

import structlog
import trio

from consensus.epoch import Epoch
from consensus.messages import Message
from ledger.codec import encode
from ledger.errors import RejectionReason, StoreError
from ledger.evidence import Evidence
from ledger.transition import Receipt
from node.driver import Committed
from node.erasing import Erasing
from node.events import BlockEvent, Events
from node.handlers import NetworkHandlers
from node.mempool import Mempool
from node.mining_desk import NodeMiningDesk
from node.offchain.access_feed import AccessFeed
from node.reporter import Reporter
from node.wire import KIND_CONSENSUS
from p2p.network import Network

log = structlog.get_logger()

EXPIRY_INTERVAL_BLOCKS = 64


class CorePorts(NetworkHandlers):
    """Carries out what the core decides; `node.service.NodeService` provides the parts."""

    _erasing: Erasing
    _events: Events
    _feed: AccessFeed
    _mempool: Mempool
    _mining: NodeMiningDesk
    _network: Network
    _outbox: trio.MemorySendChannel[Message]
    _reporter: Reporter

    def send(self, address: bytes, message: Message) -> None:
        """Send a consensus message to one member; lost when it is not connected, as on any network."""
        peer_id = self._peers.peer_of(address)
        if peer_id is not None:
            self._network.send(peer_id, KIND_CONSENSUS, encode(message))

    def broadcast(self, message: Message) -> None:
        """Send a consensus message to all."""
        try:
            self._outbox.send_nowait(message)
        except trio.WouldBlock:
            log.warning("consensus message dropped: gossip is stuck", kind=type(message).__name__)

    def request_batches(self, digests: tuple[bytes, ...]) -> None:
        """Fetch batches that a microblock names, and the data that they publish."""
        self._sync.want_batches(digests)
        self.offchain.named(digests)

    def request_chain(self, after_height: int) -> None:
        """Fetch microblocks; after which height, `node.sync` knows better when its turn comes."""
        del after_height
        self.want_chain()

    def report(self, evidence: Evidence) -> None:
        """Bring a proof of misbehaviour to the chain."""
        self._reporter.report(evidence)

    def committed(self, committed: Committed) -> None:
        """A microblock is stored: settle what waited for it and tell everyone."""
        head, execution = committed.head, committed.execution
        if committed.epoch is not None:
            self._begin_epoch(committed.epoch)
        self._pool.writes_work()
        for digest in committed.batches:
            self._batcher.settled(digest)
        receipts = [receipt for _, receipt in execution.receipts]
        awaited = [identifier for identifier, _ in execution.receipts if self._events.is_awaited(identifier)]
        own = {identifier for identifier in awaited if self._mempool.is_own(identifier)}
        again = self._mempool.settle(committed.transactions, receipts)
        if again:
            self._batcher.requeue(again)
        for identifier in awaited:
            final = self.store.receipt(identifier)
            given_up = identifier in own and not self._mempool.is_own(identifier)
            if final is not None and (given_up or not self._may_change(identifier, final)):
                self._events.resolve(identifier, final)
        effective = sum(not receipt.reason for receipt in receipts)
        reasons = tuple((identifier, receipt.reason) for identifier, receipt in execution.receipts)
        event = BlockEvent(
            head.height, head.block_hash, head.timestamp_ms, effective, len(receipts) - effective, reasons
        )
        self._events.publish(event)
        self._proxying.committed(committed.transactions)
        self._feed.committed(committed.transactions)
        self._erasing.committed(committed.transactions)
        self.offchain.committed(committed)
        if head.height % EXPIRY_INTERVAL_BLOCKS == 0:
            self._drop_expired(head.height)

    def _drop_expired(self, height: int) -> None:
        try:
            expired = self._pool.drop_expired(height, self._driver.named_batches())
        except StoreError as error:
            log.warning("expired batches could not be dropped; later blocks try again", error=str(error))
            return
        for batch in expired:
            self._mempool.forget(batch.transactions)
            self._batcher.dropped(batch)

    def _may_change(self, identifier: bytes, receipt: Receipt) -> bool:
        """Tell whether a receipt may be followed by another: the node that accepted a transaction orders it again."""
        return receipt.reason == RejectionReason.NONCE_GAP or (
            receipt.reason != "" and self._mempool.is_own(identifier)
        )

    def _begin_epoch(self, epoch: Epoch) -> None:
        members = len(epoch.committee.members)
        self._pool.members = members
        self._batcher.copies_needed = epoch.committee.faults
        self._mining.epoch_began()
        log.info("epoch begins", epoch=epoch.number, keyblock=epoch.record.keyblock.hex(), members=members)
