# SPDX-License-Identifier: GPL-3.0-or-later
"""What the network tells a node: the part of the service that is `p2p.config.Handlers`."""

from contextlib import suppress

import trio

from consensus.events import Received
from consensus.messages import decode_message
from ledger.errors import InvalidInput
from ledger.store import Store
from node.answers import answer
from node.batcher import Batcher
from node.batches import BatchPool
from node.blobs import Blobs
from node.driver import Driver
from node.intake import Intake
from node.joining import Joining
from node.offchain.offchain import METHODS as OFFCHAIN_METHODS
from node.offchain.offchain import Offchain
from node.peers import PeerDirectory
from node.proxying import METHODS, Proxying
from node.sync import Sync
from node.wire import (
    KIND_CONSENSUS,
    KIND_HAVE,
    KIND_STORED,
    REQUEST_BLOB,
    REQUEST_KEEP_BLOB,
    TOPIC_CONSENSUS,
    decode_digests,
)
from p2p.errors import NotAvailable, UnknownMethod


class NetworkHandlers:
    """Takes what peers say and answers what they ask; `node.service.NodeService` provides the parts."""

    name: str
    """Name for people."""
    store: Store
    """What is committed."""
    blobs: Blobs
    """Encrypted records."""
    offchain: Offchain
    """Off-chain contracts."""
    _attached: trio.Event
    _batcher: Batcher
    _driver: Driver
    _intake: Intake
    _joining: Joining
    _peers: PeerDirectory
    _proxying: Proxying
    _pool: BatchPool
    _sync: Sync

    def hello(self) -> bytes:
        """Say who runs this node."""
        return self._peers.statement(self.name, self.store.head().height)

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        """Check who a peer says it is; raises `InvalidInput`."""
        return self._peers.authenticate(peer_id, hello).name or peer_id

    def on_peer(self, peer_id: str, connected: bool) -> None:
        """A peer came or went."""
        if connected:
            height = self._peers.admit(peer_id)
            if self._attached.is_set():
                self._joining.peer_came(height)
                if height > self.store.head().height:
                    self.want_chain()
        else:
            self._peers.remove(peer_id)

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None:
        """Take a batch or a consensus message; raises `InvalidInput` for what is wrong for ever."""
        await self._attached.wait()
        if topic == TOPIC_CONSENSUS:
            self.take_message(payload)
            return
        refused = await self._intake.take_gossip(origin, payload)
        if refused:
            raise InvalidInput(refused)

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None:
        """Take a direct message; raises `InvalidInput`."""
        await self._attached.wait()
        if kind == KIND_CONSENSUS:
            with suppress(NotAvailable):  # late or early: there is nobody to pass it on to
                self.take_message(payload)
        elif kind == KIND_STORED:
            account = self._peers.address_of(peer_id)
            digests = decode_digests(payload).digests
            # Identities cost nothing: only members' copies count.
            if account is not None and self._intake.is_member(peer_id):
                for digest in digests:
                    self._batcher.acknowledged(digest, account)
        elif kind == KIND_HAVE:
            digests = decode_digests(payload).digests
            if self._pool.has_room(self._intake.source_of(peer_id)):
                self._sync.announced(peer_id, digests)
        else:
            raise InvalidInput(f"no direct message of kind {kind} is known")

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        """Answer a request; raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        await self._attached.wait()
        driver = self._driver
        found = answer(method, payload, store=self.store, tail=driver.certified_tail, weight=driver.weight)
        if found is not None:
            return found
        if method == REQUEST_BLOB:
            return await self.blobs.answer(payload)
        if method in METHODS:
            return await self._proxying.answer(method, payload)
        if method in OFFCHAIN_METHODS:
            return await self.offchain.answer(peer_id, method, payload)
        if method == REQUEST_KEEP_BLOB:
            if not self._intake.is_known(peer_id):
                raise NotAvailable("blobs are kept for accredited institutions and committee members only")
            return await self.blobs.keep(peer_id, payload)
        raise UnknownMethod(f"no request {method!r} is known")

    def want_chain(self) -> None:
        """Fetch microblocks, as soon as it is known from whom."""
        if self._joining.is_home():
            self._sync.want_chain()
        else:
            self._joining.behind()

    def take_message(self, payload: bytes) -> None:
        """Give a consensus message to the core; raises `InvalidInput` for a wrong one, `NotAvailable` for one of no use now."""
        if self._joining.holds:
            raise NotAvailable("this node has not chosen its chain yet")
        if self._driver.halted:
            raise NotAvailable("this node cannot write now: it looks at nothing, and passes nothing on")
        refused = self._driver.handle(Received(decode_message(payload)))
        if refused is not None:
            raise InvalidInput(refused.reason) if refused.at_fault else NotAvailable(refused.reason)
