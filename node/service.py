# SPDX-License-Identifier: GPL-3.0-or-later
"""The node from inside: what the HTTP API asks of it, and what the network tells it.

client ─submit─▶ mempool ─▶ batcher ─gossip─▶ pool ─▶ core ─▶ driver ─▶ store ─▶ events ─▶ client
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec
import trio

from consensus.block_tree import CertifiedMicroblock
from consensus.events import PayloadChanged, ReceivedChain
from consensus.messages import Message
from consensus.standings import Standings
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.errors import RejectionReason
from ledger.genesis import Genesis
from ledger.store import Store
from ledger.transition import Receipt
from node.batcher import Batcher
from node.batches import BatchPool
from node.blobs import Blobs
from node.clock import now_ms
from node.core_ports import CorePorts
from node.driver import Driver
from node.erasing import Erasing
from node.events import BlockEvent, Events
from node.intake import Intake
from node.joining import Joining, JoinPorts
from node.mempool import Mempool
from node.mining import MiningDesk
from node.mining_desk import NodeMiningDesk
from node.offchain.access_feed import AccessFeed
from node.offchain.files import OffchainFiles
from node.offchain.offchain import Offchain, OffchainPorts
from node.offchain.readiness import Readiness
from node.offchain.senders import Senders
from node.own_transactions import OwnTransactions
from node.peers import PeerDirectory
from node.proxying import Proxying
from node.reporter import Reporter
from node.standing import StandingWork
from node.status import NodeStatus, PeerStatus
from node.submission import Submission, SubmitOutcome
from node.sync import Asker, Sync
from node.version import VERSION
from node.wire import (
    KIND_CONSENSUS,
    KIND_STORED,
    TOPIC_BATCHES,
    Digests,
)
from p2p.network import Network
from records.blob_store import BlobStore
from records.proxy_desk import ProxyDesk

__all__ = ["NodeService", "SubmitOutcome"]

OUTBOX_MESSAGES = 256
"""Consensus messages waiting for gossip: a few rounds. When they pile up, time-outs repair what was dropped."""


class ServiceSettings(msgspec.Struct, frozen=True):
    """What the operator of a node decides about its services."""

    copies: int
    """Nodes that keep a copy of each blob, and of the data of each final off-chain batch."""
    erase_labelled: bool
    """Whether the ciphertext of labelled records is erased."""
    watches: bool
    """Whether the batches of off-chain contracts are executed again."""
    contract_senders: Senders
    """Whose requests to this node's contracts are taken."""
    access_log_contract: str
    """Where accesses are logged; see `AccessFeed`."""
    stale_ms: int
    """A head that is older shows that this node is cut off: its proxy then re-encrypts nothing."""


class NodeService(CorePorts):
    """One running node. Made by `node.run`; also the network's `Handlers`."""

    def __init__(
        self,
        *,
        name: str,
        genesis: Genesis,
        store: Store,
        pool: BatchPool,
        mempool: Mempool,
        peers: PeerDirectory,
        events: Events,
        key: PrivateKey,
        rng: random.Random,
        readiness: Readiness,
    ) -> None:
        """Take what needs no network; `readiness` is also the pool's rule about data."""
        self.name = name
        self.genesis = genesis
        self.chain_id = peers.chain_id
        self.store = store
        self._pool = pool
        self._mempool = mempool
        self._peers = peers
        self._events = events
        self._key = key
        self._transactions = OwnTransactions(store=store, key=key, next_nonce=mempool.next_nonce, submit=self.submit)
        self._reporter = Reporter(store=store, transactions=self._transactions, rng=rng)
        self._rng = rng
        self._readiness = readiness
        self._started_ms = now_ms()
        # Two threads check signatures: more would only take turns on the machines this runs on.
        self._checkers = trio.CapacityLimiter(2)
        # Peers may connect before the node is composed; their messages wait for it.
        self._attached = trio.Event()
        self._outbox, self._outgoing = trio.open_memory_channel[Message](OUTBOX_MESSAGES)

    def attach(
        self,
        *,
        driver: Driver,
        network: Network,
        blobs: BlobStore,
        files: OffchainFiles,
        desk: ProxyDesk,
        joining: Joining,
        settings: ServiceSettings,
        set_voting: Callable[[bool], None],
    ) -> None:
        """Connect what exists only when the network is open. `set_voting` gives the core its key or takes it away."""
        self._driver = driver
        self._stale_ms = settings.stale_ms
        self._joining = joining
        self._network = network
        self.blobs = Blobs(store=blobs, network=network, peers=self._peers.by_address, copies=settings.copies)
        self._attach_offchain(files, settings)
        self._attach_batches()
        self._sync = self._new_sync(network, self._peers.peer_ids)
        joining.attach(
            JoinPorts(
                network=network,
                peers=self._peers.peer_ids,
                set_voting=set_voting,
                sync_from=lambda asker: self._new_sync(asker, lambda: ("chain",)),
                certified_tail=driver.certified_tail,
                checkers=self._checkers,
                at_home=self._sync.want_chain,
            )
        )
        self._proxying = Proxying(
            desk=desk,
            store=self.store,
            chain_id=self.chain_id,
            network=network,
            peers=self._peers.by_address,
            is_catching_up=self._is_behind,
            transactions=self._transactions,
        )
        self._feed = AccessFeed(
            access_log=desk.log,
            store=self.store,
            chain_id=self.chain_id,
            key=self._key,
            operators=self.offchain.operating,
            fetch=self.offchain.availability.fetch,
            hold=self.offchain.watching.hold_receipt,
            configured=settings.access_log_contract,
        )
        self._erasing = Erasing(self.store, blobs, self._transactions, self._is_behind, enabled=settings.erase_labelled)
        self._mining = NodeMiningDesk(
            driver=driver,
            broadcast=self.broadcast,
            send=lambda peer_id, message: network.send(peer_id, KIND_CONSENSUS, encode(message)),
            peers=self._peers.peer_ids,
            joining=lambda: joining.doing,
        )
        self._standing = StandingWork(
            driver=driver, network=network, pool=self._pool, peers=self._peers, outgoing=self._outgoing
        )
        self._begin_epoch(driver.core.epoch)
        self.want_chain()
        self._attached.set()

    def _attach_offchain(self, files: OffchainFiles, settings: ServiceSettings) -> None:
        driver = self._driver
        ports = OffchainPorts(
            store=self.store,
            network=self._network,
            peers=self._peers.by_address,
            committee=lambda: [member.address for member in driver.core.epoch.committee.members],
            key=self._key,
            transactions=self._transactions,
            checkers=self._checkers,
            rng=self._rng,
            changed=self._payload_changed,
            is_behind=self._is_behind,
        )
        self.offchain = Offchain(
            ports,
            files,
            self._readiness,
            copies=settings.copies,
            watches=settings.watches,
            senders=settings.contract_senders,
        )

    def _attach_batches(self) -> None:
        driver = self._driver
        self._batcher = Batcher(
            pool=self._pool,
            publish=self._publish_batch,
            made=lambda _batch: self._payload_changed(),
            failed=self._mempool.forget,
        )
        self._submission = Submission(
            store=self.store,
            pool=self._pool,
            mempool=self._mempool,
            batcher=self._batcher,
            checkers=self._checkers,
            holds_data=self.offchain.availability.holds,
        )
        self._intake = Intake(
            pool=self._pool,
            mempool=self._mempool,
            store=self.store,
            peers=self._peers,
            checkers=self._checkers,
            committee=lambda: driver.core.epoch.committee,
            named=driver.named_batches,
            acknowledge=self._acknowledge,
            changed=self._payload_changed,
        )

    def _new_sync(self, network: Asker, peers: Callable[[], Sequence[str]]) -> Sync:
        driver = self._driver
        return Sync(
            network=network,
            peers=peers,
            prefers=self._intake.is_member,
            pool=self._pool,
            store=self.store,
            take_chain=self._take_chain,
            certified_tail=driver.certified_tail,
            epoch=lambda: driver.core.epoch.number,
            take_batches=self._intake.take_answer,
            rng=self._rng,
        )

    async def run(self) -> None:
        """Do the node's standing work until cancelled."""
        self._driver.handle(PayloadChanged())
        async with trio.open_nursery() as nursery:
            for task in (
                self._batcher.run,
                self._joining.run,
                self._sync.run_chain,
                self._sync.run_batches,
                self._sync.run_announced,
                self._reporter.run,
                self._proxying.run,
                self._feed.run,
                self._erasing.run,
                self.offchain.run,
                self._standing.run,
            ):
                nursery.start_soon(task)

    # ------------------------------------------------------------------ for the API

    @property
    def mining(self) -> MiningDesk:
        """Where miners get work and hand in results."""
        return self._mining

    @property
    def proxying(self) -> Proxying:
        """Re-encryption by this node's institution, and the way to the proxies of others."""
        return self._proxying

    @property
    def standings(self) -> Standings:
        """Who has which reputation, as of the newest pinned keyblock."""
        return self._driver.standings

    def status(self) -> NodeStatus:
        """Return how the node is."""
        core, head = self._driver.core, self.store.head()
        return NodeStatus(
            node=self.name,
            network=self.genesis.network,
            chain_id=self.chain_id,
            version=VERSION,
            address=self._peers.own_address,
            peer_id=self._network.peer_id,
            p2p_addresses=tuple(self._network.addresses),
            height=head.height,
            round=core.round,
            term=core.term,
            epoch=core.epoch.number,
            keyblock=core.epoch.record.keyblock,
            leader=core.leader_address() or b"",
            block_hash=head.block_hash,
            state_digest=head.state_digest,
            committee_size=len(core.epoch.committee.members),
            is_member=core.epoch.committee.index_of(self._peers.own_address) is not None,
            mempool_transactions=len(self._mempool),
            pending_batches=len(self._pool),
            transactions=head.transaction_count,
            records=head.record_count,
            synchronising=self._is_synchronising(),
            peers=tuple(
                PeerStatus(info.peer_id, info.name, info.addresses, info.score, info.latency_ms)
                for info in self._network.peers()
            ),
            started_ms=self._started_ms,
            agreement=self._driver.disagreement or "ok",
            storage=self._driver.halted or self._pool.trouble or "ok",
            joining=self._joining.doing,
            access_log=self._feed.status(),
            offchain=self.offchain.status(),
        )

    async def submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        """Check transactions and hand the right ones to the network; returns when enough nodes hold them, in the order given."""
        if self._driver.halted:
            detail = f"this node cannot write: {self._driver.halted}; use another node"
            return [SubmitOutcome(b"", accepted=False, reason=RejectionReason.STORAGE, detail=detail) for _ in raws]
        return await self._submission.submit(raws)

    async def wait(self, ids: Sequence[bytes], timeout_s: float) -> dict[bytes, Receipt]:
        """Return the receipts of those transactions that are committed within the time."""
        waiter = self._events.wait_for(ids)
        try:
            for identifier in tuple(waiter.missing):
                receipt = self.store.receipt(identifier)
                if receipt is not None and not self._may_change(identifier, receipt):
                    self._events.resolve(identifier, receipt)
            with trio.move_on_after(timeout_s):
                await waiter.wait()
        finally:
            self._events.forget(waiter)
        for identifier in waiter.missing:
            receipt = self.store.receipt(identifier)
            if receipt is not None and not self._mempool.is_own(identifier):
                waiter.receipts[identifier] = receipt
        return waiter.receipts

    def next_nonce(self, address: bytes) -> int:
        """Return the nonce for an account's next transaction, after those under way."""
        return self._mempool.next_nonce(address)

    async def put_blob(self, blob: bytes) -> bytes:
        """Keep a blob here and at its holders; returns its identifier. Raises `InvalidInput`, `StoreError`."""
        return await self.blobs.put(blob)

    async def get_blob(self, blob_id: bytes) -> bytes:
        """Return a blob from here or from a peer; raises `NotFound`."""
        return await self.blobs.get(blob_id)

    def subscribe(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[BlockEvent]]:
        """Give a channel of committed microblocks; it ends when the subscriber is too slow."""
        return self._events.subscribe()

    # ------------------------------------------------------------------ inside

    def _is_synchronising(self) -> bool:
        return self._sync.catching_up or bool(self._joining.doing)

    def _is_behind(self) -> bool:
        """Tell whether others may have committed what is not here: until a microblock is newer than this start, and when none comes."""
        head_ms = self.store.head().timestamp_ms
        return self._is_synchronising() or head_ms < self._started_ms or now_ms() - head_ms > self._stale_ms

    async def _publish_batch(self, raw: bytes) -> None:
        await self._network.publish(TOPIC_BATCHES, raw)

    def _payload_changed(self) -> None:
        self._driver.handle(PayloadChanged())

    def _acknowledge(self, peer_id: str, digests: tuple[bytes, ...]) -> None:
        self._network.send(peer_id, KIND_STORED, encode(Digests(digests)))

    async def _take_chain(self, blocks: tuple[CertifiedMicroblock, ...]) -> str:
        refused = self._driver.handle(ReceivedChain(blocks))
        await trio.lowlevel.checkpoint()
        return "" if refused is None else refused.reason
