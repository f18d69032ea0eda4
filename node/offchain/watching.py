# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher: executes what the operators of all contracts have committed, and challenges what is wrong, without anybody's help.

    a batch commits ─▶ data, from here or a peer ─▶ executed in a thread ─▶ right: on to the next, a snapshot now and then
                                                                        └▶ wrong: a challenge, until the operator is convicted

R1 What is not final is executed here before it is, as long as its data is to be had; then a fraud is challenged within the window.
R2 After a restart the watcher goes on from its newest snapshot; so the data of final batches is needed only from there on.
R3 A watcher that was away so long that data is gone takes a state from a peer, after a final batch only, and by the chain's root.
R4 Memory, snapshots, receipts and threads have bounds; what does not fit is not watched, and says so.

Contracts that this node operates are not executed a second time: whoever has the key has no use for a proof against it.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import msgspec
import structlog
import trio

from contracts.operator import Start
from contracts.registry import Registry
from contracts.watcher import Watcher
from ledger.contract_bodies import ChallengeBatch, CloseContract, CommitBatch, FreezeContract, OpenContract
from ledger.contract_queries import batch_at, contract_at, contracts_from
from ledger.contract_state import CommittedBatch, Contract, contract_id_of
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.genesis import chain_id
from ledger.offchain import SignedReceipt
from ledger.partial_tree import WitnessEntry
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.offchain.challenging import Challenging, Fault
from node.offchain.contract_proofs import ContractProofs, ProvedRequest
from node.offchain.contract_states import StateHead
from node.offchain.following import PAUSE_S, RETRY_S, Following
from node.offchain.promises import Promises
from node.offchain.receipt_file import ReceiptFile
from node.offchain.replaying import Fetch, Replaying
from node.offchain.snapshots import Snapshots
from node.offchain.state_exchange import StateExchange
from node.offchain.watched import Watched, WatchedHead
from node.own_transactions import OwnTransactions
from node.sync import Asker

log = structlog.get_logger()

WORKERS = 4
"""Contracts that are worked on at once, so that one whose data is hard to get holds up no other."""
PAGE_CONTRACTS = 256
"""Contracts looked at in one go at the start."""
MEMORY_BYTES = 384 * 1024 * 1024
"""States in memory: about half a million entries of all contracts together."""


class WatchingPorts(msgspec.Struct, frozen=True):
    """What the watcher has of the rest of the node."""

    network: Asker
    """Asks peers for states, and holds it against them when these are wrong."""
    peers: Callable[[], Sequence[str]]
    """Connected peers."""
    fetch: Fetch
    """Gives the data of a batch, from here or from a peer; raises `NotFound`."""
    fetch_for_client: Fetch
    """The same for proofs and receipts, which whoever asks may ask for as often as it likes."""
    transactions: OwnTransactions
    """Sends challenges."""
    checkers: trio.CapacityLimiter
    """Limits the threads that check signatures."""
    is_behind: Callable[[], bool]
    """While the node catches up, nothing is executed and nobody challenged."""
    operated_start: Callable[[bytes], Start | None] = lambda _contract_id: None
    """A state of a contract that this node operates, for proofs of it; may block."""


class Watching:
    """One node's watcher."""

    def __init__(
        self,
        *,
        store: Store,
        own_key: bytes,
        machines: Registry,
        snapshots: Snapshots,
        receipts: ReceiptFile,
        ports: WatchingPorts,
        rng: random.Random,
        enabled: bool = True,
        watch_own: bool = False,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Take what the node has.

        Contracts that `own_key`, the node's public key, operates are followed only with `watch_own`, and never challenged. Without
        `enabled` nothing is followed; proofs are still made, as far as data is to be had. `memory_bytes` bounds all states in memory.
        """
        chain = chain_id(store.genesis)
        is_behind = ports.is_behind
        self._store = store
        self._own_key = own_key
        self._fetch_for_client = ports.fetch_for_client
        self._enabled = enabled
        self._watch_own = watch_own
        self._memory_bytes = memory_bytes
        self._replaying = Replaying(
            store=store,
            machines=machines,
            snapshots=snapshots,
            fetch=ports.fetch_for_client,
            checkers=ports.checkers,
            operated_start=ports.operated_start,
        )
        self._exchange = StateExchange(snapshots=snapshots, network=ports.network, peers=ports.peers)
        self._challenging = Challenging(
            store=store, machines=machines, transactions=ports.transactions, is_behind=is_behind, rng=rng
        )
        self._promises = Promises(chain, receipts)
        self._following = Following(
            store=store,
            own_key=own_key,
            snapshots=snapshots,
            fetch=ports.fetch,
            replaying=self._replaying,
            exchange=self._exchange,
            challenging=self._challenging,
            promises=self._promises,
            is_behind=is_behind,
            memory_bytes=memory_bytes,
        )
        self._proofs = ContractProofs(
            store=store, replaying=self._replaying, fetch=ports.fetch_for_client, live=self._live
        )
        self._watched: dict[bytes, Watched] = {}
        self._is_behind = is_behind
        # When each contract is to be looked at, and the same in order; what was planned anew stands there twice.
        self._due: dict[bytes, float] = {}
        self._order: list[tuple[float, bytes]] = []
        self._again: set[bytes] = set()
        self._at_work: set[bytes] = set()
        self._wake = trio.Event()
        # Receipts about batches that are committed already take the whole data each: one at a time.
        self._comparing = trio.Lock()

    # ------------------------------------------------------------------ for others

    def committed(self, transactions: Sequence[CheckedTransaction]) -> None:
        """A microblock is stored: the contracts that it has moved are looked at."""
        for checked in transactions:
            body = checked.transaction.body
            if isinstance(body, CommitBatch):
                self._plan(body.commitment.contract_id, 0)
            elif isinstance(body, ChallengeBatch | CloseContract | FreezeContract):
                self._plan(body.contract_id, 0)
            elif isinstance(body, OpenContract):
                self._plan(contract_id_of(checked.transaction.sender, body.number), 0)

    def heads(self) -> tuple[WatchedHead, ...]:
        """Return how far each contract is followed."""
        return tuple(map(self._head_of, self._watched.values()))

    def head(self, contract_id: bytes) -> WatchedHead | None:
        """Return how far a contract is followed; None for one that is not."""
        watched = self._watched.get(contract_id)
        return None if watched is None else self._head_of(watched)

    def _head_of(self, watched: Watched) -> WatchedHead:
        fault = self._challenging.fault_of(watched.contract_id)
        verdict = "" if fault is None else fault.verdict
        return WatchedHead(watched.contract_id, watched.number, watched.stage, watched.detail, verdict)

    def faults(self) -> tuple[Fault, ...]:
        """Return the frauds that were found, and what became of them."""
        return self._challenging.faults()

    def is_followed(self, contract_id: bytes, number: int) -> bool:
        """Tell whether the data of a final batch is needed here no more: it lies before a snapshot, or nobody follows the contract here."""
        if not self._enabled:
            return True
        contract = contract_at(self._store, contract_id)
        if contract is None or not self._is_watched(contract):
            return True
        watched = self._watched.get(contract_id)
        if watched is None:
            return False  # not looked at yet
        return watched.stage == "too_large" or number < watched.base(self._following.final(contract))

    async def prove_key(self, contract_id: bytes, number: int, key: bytes) -> WitnessEntry:
        """Return what a state key holds after a batch, with its proof; raises `NotFound`, `InvalidInput`. See `ContractProofs`."""
        return await self._proofs.prove_key(contract_id, number, key)

    async def prove_request(self, contract_id: bytes, number: int, index: int) -> ProvedRequest:
        """Return a request of a batch with its leaf and path; raises `NotFound`."""
        return await self._proofs.prove_request(contract_id, number, index)

    async def hold_receipt(self, signed: SignedReceipt) -> None:
        """Compare a receipt with its batch, now or when that commits; a broken one is challenged.

        It is held over a restart of the node, too.

        Raises:
            InvalidInput: the receipt is of no use.
            NotFound: the batch's data is not to be had now.
            StoreError: the disk fails, and the receipt is not held.
        """
        receipt = signed.receipt
        contract = contract_at(self._store, receipt.contract_id)
        if contract is None:
            raise InvalidInput(f"there is no contract {receipt.contract_id.hex()}")
        if not self._enabled or not self._is_watched(contract):
            raise InvalidInput("this node does not watch this contract; hand the receipt to another one")
        await self._promises.check(contract.terms, signed)
        batch = batch_at(self._store, contract, receipt.number)
        if batch is None:
            if contract.status != "open":
                raise InvalidInput(f"the contract has ended without batch {receipt.number}")
            await self._promises.hold(signed, contract.batch_count)
        elif receipt.number < self._following.final(contract):
            raise InvalidInput(f"batch {receipt.number} is final; the receipt can be held against nobody any more")
        else:
            await self._compare(contract, batch, [signed])

    async def _compare(self, contract: Contract, batch: CommittedBatch, receipts: Sequence[SignedReceipt]) -> bool:
        """Compare checked receipts with their batch, which is committed; tells whether it breaks one, which is challenged then."""
        async with self._comparing:
            raw = await self._fetch_for_client(batch.commitment)
            broken = await self._promises.broken(receipts, batch.commitment, raw)
        if broken is not None:
            await self._following.accuse(contract, batch, broken[1])
            await self._promises.keep(broken[0])
        return broken is not None

    async def states(self, contract_id: bytes) -> tuple[StateHead, ...]:
        """Return the states of a contract that are kept here, the oldest first. Raises `StoreError`."""
        return await self._exchange.heads(contract_id)

    async def state_page(self, contract_id: bytes, number: int, page: int) -> bytes:
        """Return a page of the state that is kept before batch `number`. Raises `NotFound`, `StoreError`."""
        found = await self._exchange.page(contract_id, number, page)
        if found is None:
            raise NotFound(f"no page {page} of a state before batch {number} of contract {contract_id.hex()} is here")
        return found

    async def answer(self, method: str, payload: bytes) -> bytes:
        """Answer a peer's request for a contract's state (`METHODS`); raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        return await self._exchange.answer(method, payload)

    # ------------------------------------------------------------------ standing work

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._challenging.run)
            if self._enabled:
                await self._find_all()
                nursery.start_soon(self._restore_receipts)
                for _ in range(WORKERS):
                    nursery.start_soon(self._work)

    async def _restore_receipts(self) -> None:
        """After a restart, hold again what was handed in before, and compare what was perhaps not compared yet."""
        try:
            waiting = deque((await self._promises.restore()).items())
        except StoreError as error:
            log.warning("receipts that were handed in before cannot be read", error=str(error))
            return
        while waiting:
            place, receipts = waiting.popleft()
            try:
                await self._restore_batch(place, receipts)
            except (NotFound, StoreError):
                waiting.append((place, receipts))
                await trio.sleep(RETRY_S)
            except InvalidInput as error:
                log.warning("receipts cannot be compared with their batch", contract=place[0].hex(), why=str(error))

    async def _restore_batch(self, place: tuple[bytes, int], receipts: Sequence[SignedReceipt]) -> None:
        contract = contract_at(self._store, place[0])
        if contract is None or not self._is_watched(contract):
            return  # they stay on the disk: the chain may not have come there yet
        batch = batch_at(self._store, contract, place[1])
        if batch is None and contract.status == "open":
            self._promises.hold_restored(receipts)
            return
        is_over = batch is None or place[1] < self._following.final(contract)
        if batch is None or is_over or not await self._compare(contract, batch, receipts):
            await self._promises.forget(*place)

    async def _find_all(self) -> None:
        start = b""
        while page := list(contracts_from(self._store, start, PAGE_CONTRACTS)):
            for contract in page:
                self._plan(contract.terms.contract_id, 0)
            start = page[-1].terms.contract_id + b"\0"
            await trio.lowlevel.checkpoint()

    def _plan(self, contract_id: bytes, delay_s: float) -> None:
        """Have a contract looked at; the earlier of two times counts."""
        at_s = trio.current_time() + delay_s
        if self._enabled and at_s < self._due.get(contract_id, float("inf")):
            self._due[contract_id] = at_s
            heappush(self._order, (at_s, contract_id))
            self._wake.set()

    def _next(self) -> tuple[float, bytes] | None:
        """Return the contract that is due first and when, None when none is; those that are being worked on come again afterwards."""
        while self._order:
            at_s, contract_id = self._order[0]
            if self._due.get(contract_id) == at_s:
                if contract_id not in self._at_work:
                    return at_s, contract_id
                self._again.add(contract_id)
                del self._due[contract_id]
            heappop(self._order)
        return None

    async def _work(self) -> None:
        while True:
            if self._is_behind():
                await trio.sleep(RETRY_S)
                continue
            found = self._next()
            if found is None or found[0] > trio.current_time():
                if self._wake.is_set():  # all workers wait for one
                    self._wake = trio.Event()
                with trio.move_on_at(float("inf") if found is None else found[0]):
                    await self._wake.wait()
                continue
            contract_id = found[1]
            heappop(self._order)
            del self._due[contract_id]
            self._at_work.add(contract_id)
            try:
                again_s = await self._look(contract_id)
            finally:
                self._at_work.discard(contract_id)
            if contract_id in self._again:
                self._again.discard(contract_id)
                again_s = 0
            if again_s is not None:
                self._plan(contract_id, again_s)

    async def _look(self, contract_id: bytes) -> float | None:
        """Do the next thing for a contract; returns after which time to look again, None if only when something commits."""
        contract = contract_at(self._store, contract_id)
        if contract is None or not self._is_watched(contract):
            return None
        watched = self._watched.setdefault(contract_id, Watched(contract_id))
        if watched.stage == "too_large":
            return None
        try:
            async with watched.lock:
                again_s = await self._following.advance(watched, contract)
            await self._make_room(watched)
        except InvalidInput as error:  # no machine of this version here: this program is older than the network's rules
            return self._following.stuck(watched, "unreadable", str(error))
        except StoreError as error:
            log.warning("snapshots cannot be read", contract=contract_id.hex(), error=str(error))
            return PAUSE_S
        return again_s

    async def _make_room(self, busy: Watched) -> None:
        """Drop from memory what has not moved for longest, as long as all states together are too large; a snapshot stays."""
        loaded = [watched for watched in self._watched.values() if watched.live is not None]
        size = sum(watched.live.state.memory_bytes for watched in loaded if watched.live is not None)
        for watched in sorted(loaded, key=lambda watched: watched.used_s):
            if size <= self._memory_bytes:
                return
            contract = contract_at(self._store, watched.contract_id)
            if watched is busy or contract is None or watched.lock.locked():
                continue
            async with watched.lock:
                if watched.live is None:
                    continue
                size -= watched.live.state.memory_bytes
                if watched.unsaved_batches:
                    await self._following.save(watched, contract)
                watched.live = None

    def _is_watched(self, contract: Contract) -> bool:
        return self._watch_own or contract.terms.operator != self._own_key

    def _live(self, contract_id: bytes, number: int) -> Watcher | None:
        """Return the running watcher of a contract if it stands before a batch and does not move."""
        watched = self._watched.get(contract_id)
        if watched is None or watched.live is None or watched.lock.locked() or watched.live.number != number:
            return None
        return watched.live
