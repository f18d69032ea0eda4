# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts as a part of a node: its parts, put together.

data of batches    `readiness` holds batches back, `availability` fetches and gives, `keeping` drops and repairs
"""

from collections.abc import Callable, Collection, Mapping

import trio

from ledger.store import Store
from node.driver import Committed
from node.offchain.availability import Availability
from node.offchain.data_store import DataStore
from node.offchain.keeping import Keeping
from node.offchain.readiness import Readiness
from node.sync import Asker
from node.wire import REQUEST_BATCH_DATA
from p2p.errors import UnknownMethod


class Offchain:
    """One node's off-chain contracts."""

    def __init__(
        self,
        *,
        store: Store,
        data: DataStore,
        readiness: Readiness,
        network: Asker,
        address: bytes,
        peers: Callable[[], Mapping[bytes, str]],
        committee: Callable[[], Collection[bytes]],
        copies: int,
        changed: Callable[[], None],
        is_behind: Callable[[], bool],
    ) -> None:
        """Take what the node has; see `Availability` and `Keeping`."""
        self.data = data
        self._readiness = readiness
        self.availability = Availability(
            store=store,
            data=data,
            readiness=readiness,
            network=network,
            peers=peers,
            committee=committee,
            copies=copies,
            changed=changed,
        )
        self.keeping = Keeping(
            store=store,
            data=data,
            readiness=readiness,
            availability=self.availability,
            address=address,
            committee=committee,
            copies=copies,
            is_followed=lambda _contract_id, _number: True,
            is_behind=is_behind,
        )

    async def run(self) -> None:
        """Do the standing work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.availability.run)
            nursery.start_soon(self.keeping.run)

    def committed(self, committed: Committed) -> None:
        """A microblock is stored."""
        self._readiness.committed(committed.transactions)
        self.keeping.committed(committed.transactions)

    def named(self, digests: tuple[bytes, ...]) -> None:
        """A microblock names batches for which this node does not vote yet: what they publish is wanted at once."""
        self._readiness.named(digests)

    async def answer(self, peer_id: str, method: str, payload: bytes) -> bytes:
        """Answer a peer's request; raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        if method == REQUEST_BATCH_DATA:
            return await self.availability.answer(payload)
        raise UnknownMethod(f"{peer_id} asks for {method!r}, which is no request about off-chain contracts")

    @property
    def trouble(self) -> str:
        """Why this node cannot keep data, so that it votes for no commitments; empty while it can."""
        return self.availability.trouble
