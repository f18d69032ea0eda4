# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts as a part of a node: its parts, put together.

Data of batches: `readiness` holds batches back, `availability` fetches and gives, `keeping` drops and repairs. For operators: `operating`
takes requests, writes them down, answers, and brings batches to the chain. Against them: `watching` executes their batches again.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import msgspec
import trio

from contracts.operator import Start
from contracts.shipped import MACHINES
from ledger.crypto.keys import PrivateKey
from ledger.store import Store
from node.clock import now_ms
from node.driver import Committed
from node.offchain.availability import Availability
from node.offchain.challenging import OPEN_STAGES, Fault
from node.offchain.contract_states import METHODS as STATE_METHODS
from node.offchain.files import OffchainFiles
from node.offchain.journal_file import JournalFile
from node.offchain.keeping import Keeping
from node.offchain.operating import Operating
from node.offchain.readiness import Readiness
from node.offchain.relayed import METHODS as RELAYED_METHODS
from node.offchain.relaying import Relaying
from node.offchain.senders import Senders
from node.offchain.watched import WatchedHead
from node.offchain.watching import Watching, WatchingPorts
from node.own_transactions import OwnTransactions
from node.status import OffchainStatus
from node.sync import Asker
from node.wire import REQUEST_BATCH_DATA
from p2p.errors import UnknownMethod

METHODS = frozenset((REQUEST_BATCH_DATA, *STATE_METHODS, *RELAYED_METHODS))
"""Requests of peers that are answered here."""
MAX_ALARMS = 16
"""What a status shows at most of what is wrong."""
_UNWATCHED = frozenset(("data_missing", "no_state", "too_large", "unreadable"))


class OffchainPorts(msgspec.Struct, frozen=True):
    """What off-chain contracts need of the node."""

    store: Store
    """The chain."""
    network: Asker
    """The peers."""
    peers: Callable[[], Mapping[bytes, str]]
    """Connected peers' identifiers by account address."""
    committee: Callable[[], Collection[bytes]]
    """Addresses of the committee's members."""
    key: PrivateKey
    """The node's key, which operates its contracts."""
    transactions: OwnTransactions
    """Sends from the account of this key."""
    checkers: trio.CapacityLimiter
    """Limits the threads that check signatures."""
    rng: random.Random
    """Spreads work over nodes; nothing secret."""
    changed: Callable[[], None]
    """Told when batches of transactions became ready to be ordered or voted for."""
    is_behind: Callable[[], bool]
    """Whether others may have committed what is not here."""


class Offchain:
    """One node's off-chain contracts."""

    def __init__(
        self,
        ports: OffchainPorts,
        files: OffchainFiles,
        readiness: Readiness,
        *,
        copies: int,
        watches: bool,
        senders: Senders,
    ) -> None:
        """Put the parts together.

        Args:
            ports: what they need of the node.
            files: their files.
            readiness: holds batches back.
            copies: how many nodes keep the data of final batches.
            watches: whether to execute what others commit.
            senders: from whom this node's operator takes requests.
        """
        self._data = files.data
        self._readiness = readiness
        self.availability = Availability(
            store=ports.store,
            data=files.data,
            readiness=readiness,
            network=ports.network,
            peers=ports.peers,
            committee=ports.committee,
            copies=copies,
            changed=ports.changed,
        )
        self.watching = Watching(
            store=ports.store,
            own_key=ports.key.public_key,
            machines=MACHINES,
            snapshots=files.snapshots,
            receipts=files.receipts,
            ports=WatchingPorts(
                network=ports.network,
                peers=lambda: tuple(ports.peers().values()),
                fetch=self.availability.fetch,
                fetch_for_client=self.availability.fetch_for_client,
                transactions=ports.transactions,
                checkers=ports.checkers,
                is_behind=ports.is_behind,
                operated_start=partial(_start_of, files.journal),
            ),
            rng=ports.rng,
            enabled=watches,
        )
        self.keeping = Keeping(
            store=ports.store,
            data=files.data,
            readiness=readiness,
            availability=self.availability,
            address=ports.key.address,
            committee=ports.committee,
            copies=copies,
            is_followed=self.watching.is_followed,
            is_behind=ports.is_behind,
        )
        self._own = Operating(
            store=ports.store,
            key=ports.key,
            machines=MACHINES,
            journal=files.journal,
            publish=files.data.put,
            transactions=ports.transactions,
            is_behind=ports.is_behind,
            clock_ms=now_ms,
            senders=senders,
        )
        self.operating = Relaying(
            own=self._own, store=ports.store, network=ports.network, peers=ports.peers, checkers=ports.checkers
        )

    async def run(self) -> None:
        """Do the standing work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.availability.run)
            nursery.start_soon(self.keeping.run)
            nursery.start_soon(self.operating.run)
            nursery.start_soon(self.watching.run)

    def committed(self, committed: Committed) -> None:
        """A microblock is stored."""
        self._readiness.committed(committed.transactions)
        self.keeping.committed(committed.transactions)
        self.operating.committed(committed.transactions)
        self.watching.committed(committed.transactions)

    def named(self, digests: tuple[bytes, ...]) -> None:
        """A microblock names batches for which this node does not vote yet: what they publish is wanted at once."""
        self._readiness.named(digests)

    async def answer(self, peer_id: str, method: str, payload: bytes) -> bytes:
        """Answer a peer's request; raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        if method == REQUEST_BATCH_DATA:
            return await self.availability.answer(payload)
        if method in STATE_METHODS:
            return await self.watching.answer(method, payload)
        if method in RELAYED_METHODS:
            return await self.operating.answer(peer_id, method, payload)
        raise UnknownMethod(f"{peer_id} asks for {method!r}, which is no request about off-chain contracts")

    def status(self) -> OffchainStatus:
        """Return how off-chain contracts are here."""
        heads = self.watching.heads()
        return OffchainStatus(
            data_bytes=self._data.total_bytes,
            data=self.availability.trouble or "ok",
            batches_lost=self.keeping.lost,
            operated=self._own.count,
            watched=sum(head.stage != "ended" for head in heads),
            alarms=alarms_of(self._own.troubles(), heads, self.watching.faults()),
        )


def alarms_of(troubles: Mapping[bytes, str], heads: Sequence[WatchedHead], faults: Sequence[Fault]) -> tuple[str, ...]:
    """Return what somebody should look at, what is most urgent first: there may be many frauds of others that are over."""
    alarms = [f"contract {contract_id.hex()} is not operated: {trouble}" for contract_id, trouble in troubles.items()]
    newest_first = faults[::-1]
    told = [
        f"contract {fault.contract_id.hex()}, batch {fault.number}: fraud, {fault.trouble or fault.stage}"
        for fault in sorted(newest_first, key=lambda fault: fault.stage not in OPEN_STAGES)
    ]
    unwatched = [
        f"contract {head.contract_id.hex()} is not watched after batch {head.number}: {head.detail or head.stage}"
        for head in heads
        if head.stage in _UNWATCHED or (head.stage == "wrong" and not head.fault)
    ]
    return tuple([*alarms, *unwatched, *told][:MAX_ALARMS])


def _start_of(journal: JournalFile, contract_id: bytes) -> Start | None:
    """Return the state at the border of a contract's journal, None when this node does not operate it; blocks."""
    return None if journal.border(contract_id) is None else journal.start(contract_id)
