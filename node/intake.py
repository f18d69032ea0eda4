# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches of others on their way in: who may have how much room, what is checked, and what their origin is told."""

from collections.abc import Callable, Collection, Sequence

import trio

from consensus.committee import Committee
from ledger.chain import chain_of
from ledger.errors import InvalidInput, StoreError
from ledger.state import ACCREDITATIONS, State
from ledger.store import Store
from node.batches import (
    Batch,
    BatchPool,
    Source,
    accredited_source,
    check_batch,
    member_source,
    open_asked,
    open_certified_batch,
    stranger_source,
)
from node.mempool import Mempool
from node.peers import PeerDirectory
from node.wire import MAX_DIGESTS
from p2p.errors import NotAvailable


class Intake:
    """Takes batches by gossip and as answers; whatever is kept is durable and acknowledged."""

    def __init__(
        self,
        *,
        pool: BatchPool,
        mempool: Mempool,
        store: Store,
        peers: PeerDirectory,
        checkers: trio.CapacityLimiter,
        committee: Callable[[], Committee],
        named: Callable[[], Collection[bytes]],
        acknowledge: Callable[[str, tuple[bytes, ...]], None],
        changed: Callable[[], None],
    ) -> None:
        """`named` gives the batches that consensus needs, `acknowledge` tells a peer what is durable; `changed` follows new batches."""
        self._chain = chain_of(store.genesis)
        self._pool = pool
        self._mempool = mempool
        self._store = store
        self._peers = peers
        self._checkers = checkers
        self._committee = committee
        self._named = named
        self._acknowledge = acknowledge
        self._changed = changed

    async def take_gossip(self, origin: str, raw: bytes) -> str:
        """Take a batch that its origin gossips; returns why it is wrong. Raises `NotAvailable` when it is not taken now."""
        # Signatures come last: what finds no room costs nobody a processor.
        if not self._pool.has_room(self.source_of(origin)):
            raise NotAvailable(f"no room for a batch of {origin}")
        try:
            if not self.is_known(origin):
                opened = await trio.to_thread.run_sync(
                    open_certified_batch, raw, self._chain.id, limiter=self._checkers
                )
                if not any(map(self._mempool.is_payable, opened.transactions)):
                    raise NotAvailable(
                        f"nobody can pay for a transaction in a batch of {origin}, who is not known here"
                    )
            batch = await trio.to_thread.run_sync(check_batch, raw, self._chain, limiter=self._checkers)
        except InvalidInput as error:
            return str(error)
        self._keep([batch], origin)
        if not self._pool.keeps(batch.digest):
            # The origin announces it again while it waits; until then nobody else need hear of it from here.
            raise NotAvailable(f"no room for a batch of {origin}")
        self._acknowledge(origin, (batch.digest,))
        return ""

    async def take_answer(
        self, raws: Sequence[bytes], *, asked: frozenset[bytes], certified: frozenset[bytes], source: str | None
    ) -> str:
        """Check and keep batches that were asked for; see `node.sync.Take`."""
        outcomes = await trio.to_thread.run_sync(
            open_asked, raws, asked, certified, self._chain, limiter=self._checkers
        )
        good = [outcome for outcome in outcomes if isinstance(outcome, Batch)]
        self._keep(good, source)
        if source is None:
            self._make_room({batch.digest for batch in good})
        if source is not None and good:
            here = tuple(batch.digest for batch in good if self._pool.keeps(batch.digest))
            self._acknowledge(source, here[:MAX_DIGESTS])
        return next((str(outcome) for outcome in outcomes if not isinstance(outcome, Batch)), "")

    def _keep(self, batches: Sequence[Batch], source: str | None) -> None:
        """Keep checked batches as far as there is room for those of a peer; `None` for those that a microblock names."""
        if source is not None and not self.is_known(source):
            # An identity costs nothing: its batch must at least hold something that is paid for.
            batches = [batch for batch in batches if any(map(self._mempool.is_payable, batch.transactions))]
        try:
            new = self._pool.add(batches, self.source_of(source) if source is not None else None)
        except StoreError:
            return  # the pool tells the operator
        for batch in new:
            self._mempool.track(batch.transactions)
        if new:
            self._changed()

    def _make_room(self, fresh: Collection[bytes]) -> None:
        """Let go of batches of microblocks that came to nothing; those just fetched are what consensus waits for."""
        try:
            dropped = self._pool.drop_unneeded({*fresh, *self._named()})
        except StoreError:
            return  # the next ones try again
        for batch in dropped:
            # An own transaction may stand in a batch of somebody else, too.
            self._mempool.forget([checked for checked in batch.transactions if not self._mempool.is_own(checked.id)])

    def source_of(self, peer_id: str) -> Source:
        """Return to whom the room for a peer's batches is charged."""
        account = self._peers.address_of(peer_id)
        if account is None or not self.is_known(peer_id):
            return stranger_source(peer_id)
        if self.is_member(peer_id):
            return member_source(account, len(self._committee().members))
        return accredited_source(account)

    def is_member(self, peer_id: str) -> bool:
        """Tell whether a peer is run by a committee member."""
        account = self._peers.address_of(peer_id)
        return account is not None and self._committee().index_of(account) is not None

    def is_known(self, peer_id: str) -> bool:
        """Tell whether a peer is run by a committee member or an accredited institution."""
        account = self._peers.address_of(peer_id)
        if account is None:
            return False
        return self.is_member(peer_id) or State(self._store).get(ACCREDITATIONS, account) is not None
