# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API needs of a node; `node.service.NodeService` provides it."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from consensus.standings import Standings
from ledger.genesis import Genesis
from ledger.store import Store
from ledger.transition import Receipt
from node.api.served_contracts import ServedContracts
from node.events import BlockEvent
from node.mining import MiningDesk
from node.service import SubmitOutcome
from node.status import NodeStatus
from node.wire import Relayed


class Proxies(Protocol):
    """The way to the proxies of grants."""

    async def deliver(self, sealed: Sequence[bytes]) -> list[tuple[bytes, Relayed]]:
        """Bring sealed key fragments to their proxies; returns each proxy's answer. Raises `InvalidInput`."""
        ...

    async def ask_proxies(self, raw: bytes, wanted: tuple[bytes, ...]) -> list[tuple[bytes, Relayed]]:
        """Bring a request to proxies of its grant, to all when none is `wanted`. Raises `InvalidInput`, `NotFound`."""
        ...

    async def ask_log(self, raw: bytes) -> tuple[bytes, Relayed]:
        """Bring a query to the proxy that it names. Raises `InvalidInput`."""
        ...


class Served(Protocol):
    """A node as the API sees it. All calls come from the thread of the event loop, as the store wants it."""

    @property
    def genesis(self) -> Genesis:
        """The network's genesis."""
        ...

    @property
    def chain_id(self) -> bytes:
        """Identifier of the chain."""
        ...

    @property
    def store(self) -> Store:
        """What is committed."""
        ...

    @property
    def mining(self) -> MiningDesk:
        """Where miners get work and hand in results."""
        ...

    @property
    def proxying(self) -> Proxies:
        """The way to the proxies of grants."""
        ...

    @property
    def offchain(self) -> ServedContracts:
        """Off-chain contracts: operators, published data, states."""
        ...

    @property
    def standings(self) -> Standings:
        """Who has which reputation, as of the newest keyblock that the store holds."""
        ...

    def status(self) -> NodeStatus:
        """Return how the node is."""
        ...

    async def submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        """Take signed transactions; one outcome each, in their order."""
        ...

    async def wait(self, ids: Sequence[bytes], timeout_s: float) -> dict[bytes, Receipt]:
        """Return the receipts of those transactions that are committed within the time."""
        ...

    def next_nonce(self, address: bytes) -> int:
        """Return the nonce for an account's next transaction, after those under way."""
        ...

    async def put_blob(self, blob: bytes) -> bytes:
        """Keep a blob; returns its identifier. Raises `InvalidInput`, `StoreError`."""
        ...

    async def get_blob(self, blob_id: bytes) -> bytes:
        """Return a blob from here or from a peer; raises `NotFound`."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[BlockEvent]]:
        """Give a channel of committed microblocks; it ends when the subscriber is too slow."""
        ...
