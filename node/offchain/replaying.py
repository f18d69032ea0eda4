# SPDX-License-Identifier: GPL-3.0-or-later
"""Execution of published batches in worker threads, and states of the past from the nearest snapshot."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from contracts.batch_data import BatchData, open_data
from contracts.operator import Start
from contracts.registry import Registry
from contracts.requests import CheckedRequest
from contracts.watcher import Watcher, check_all
from ledger.contract_queries import batch_at
from ledger.contract_state import CommittedBatch, Contract
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.genesis import chain_id
from ledger.offchain import BatchCommitment, FraudProof, InvalidRequest
from ledger.store import Store
from node.offchain.snapshots import Snapshots

log = structlog.get_logger()

CHUNK_REQUESTS = 128
"""Requests whose signatures one thread checks in one go: about 6 ms."""
MAX_REPLAYED_BATCHES = 4_096
"""Batches that are executed again for one answer; snapshots are rarely as far apart."""
MAX_REPLAYED_BYTES = 64 * 1024 * 1024
"""Data that is executed again for one answer: some 20 s of a core."""
MAX_REST_S = 0.02
"""Longest rest between some requests, should one of them have taken unusually long."""
KEPT_STATES = 2
"""States of the past that stay in memory: whoever asks for one entry soon asks for the next."""
KEPT_BYTES = 64 * 1024 * 1024
"""Larger ones do not stay."""

Fetch = Callable[[BatchCommitment], Awaitable[bytes]]
"""Gives the data of a batch, from here or from a peer; raises `NotFound`."""


def _go_on() -> None:
    """Rest not at all."""


class _Rest:
    """Rests as long as the thread has computed since the last rest."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def __call__(self) -> None:
        if self._since_s is not None:
            time.sleep(min(time.thread_time() - self._since_s, MAX_REST_S))
        self._since_s = time.thread_time()


class Replaying:
    """Executes batches for the watcher, and again for who asks for a state of the past."""

    def __init__(
        self,
        *,
        store: Store,
        machines: Registry,
        snapshots: Snapshots,
        fetch: Fetch,
        checkers: trio.CapacityLimiter,
        operated_start: Callable[[bytes], Start | None],
    ) -> None:
        """Take what executes and what keeps.

        `fetch` gives what has to be executed again for an answer. `checkers` limits the threads that check signatures. `operated_start`
        gives a state of a contract that this node operates, and may block.
        """
        self._store = store
        self._chain_id = chain_id(store.genesis)
        self._machines = machines
        self._snapshots = snapshots
        self._fetch = fetch
        self._checkers = checkers
        self._operated_start = operated_start
        # One batch after the other: execution holds the interpreter's lock, and the rest of the node needs it, too.
        self._executing = trio.CapacityLimiter(1)
        self._answering = trio.Lock()
        self._kept: OrderedDict[tuple[bytes, bytes], Watcher] = OrderedDict()

    def watcher(self, contract: Contract, start: Start) -> Watcher:
        """Return a watcher that goes on from a state."""
        return Watcher(self._chain_id, contract.terms, self._machines, start)

    def beginning(self, contract: Contract) -> Start:
        """Return the empty state that a contract begins with."""
        first = batch_at(self._store, contract, 0)
        return Start(0, contract.until_ms if first is None else first.commitment.from_ms, ())

    async def follow(
        self, watcher: Watcher, commitment: BatchCommitment, raw: bytes, *, restful: bool = False
    ) -> tuple[BatchData, FraudProof | None]:
        """Execute the next batch; returns its data, and the proof if it is wrong. Raises `InvalidInput`, see `Watcher.follow`.

        With `restful` half of the time at most is taken: there is a window for it, and consensus and users wait for nothing so long.
        """
        data = await trio.to_thread.run_sync(open_data, commitment, raw, limiter=self._executing)
        requests = await self._check(commitment.contract_id, [item.request for item in data.items])
        call = (commitment, data, requests)
        watcher.rest = _Rest() if restful else _go_on
        return data, await trio.to_thread.run_sync(watcher.follow_checked, *call, limiter=self._executing)

    async def _check(self, contract_id: bytes, raws: Sequence[bytes]) -> list[CheckedRequest | InvalidRequest]:
        """Check the requests of a batch, in as many threads as there are for it."""
        chunks = [raws[at : at + CHUNK_REQUESTS] for at in range(0, len(raws), CHUNK_REQUESTS)]
        found: dict[int, list[CheckedRequest | InvalidRequest]] = {}

        async def check(number: int) -> None:
            call = (self._chain_id, contract_id, chunks[number])
            found[number] = await trio.to_thread.run_sync(check_all, *call, limiter=self._checkers)

        async with trio.open_nursery() as nursery:
            for number in range(len(chunks)):
                nursery.start_soon(check, number)
        return [request for number in range(len(chunks)) for request in found[number]]

    async def newest(self, contract: Contract, most: int) -> Watcher | None:
        """Return a watcher at the newest snapshot before batch `most`, None where there is none. Raises `StoreError`.

        A snapshot whose root is not the chain's is damaged, and removed.
        """
        identifier = contract.terms.contract_id
        heads = await trio.to_thread.run_sync(self._snapshots.heads, identifier)
        for head in reversed(heads):
            if head.number > most:
                continue
            try:
                start = await trio.to_thread.run_sync(self._snapshots.get, identifier, head.number)
                watcher = None if start is None else await self._checked(contract, start)
            except InvalidInput as error:
                log.warning(
                    "a snapshot of a contract is damaged and removed", contract=identifier.hex(), why=str(error)
                )
                watcher = None
            if watcher is not None:
                return watcher
            await trio.to_thread.run_sync(self._snapshots.remove, identifier, (head.number,))
        return None

    async def _checked(self, contract: Contract, start: Start) -> Watcher | None:
        """Return a watcher at a state, None if the chain has another one there."""
        watcher = await trio.to_thread.run_sync(self.watcher, contract, start)
        before = batch_at(self._store, contract, start.number - 1) if start.number else None
        if before is None or before.commitment.new_root != watcher.state.root():
            return None
        return watcher

    async def state_after(self, contract: Contract, batch: CommittedBatch) -> Watcher:
        """Return a watcher at the end of a batch, by executing again what follows from the nearest state that is at hand.

        Raises `NotFound` when that is too far, data is gone, or the batch is wrong; the text says which.
        """
        number = batch.commitment.number
        async with self._answering:
            # A state is what its root says, whichever batch has left it.
            kept = (contract.terms.contract_id, batch.commitment.new_root)
            watcher = self._kept.get(kept)
            if watcher is None:
                watcher = await self._nearest(contract, number + 1)
                while watcher.number <= number:
                    await self._replay_one(contract, watcher)
                if watcher.state.root() != batch.commitment.new_root:
                    raise NotFound(f"batch {number} has left another root than its requests come to")
                if watcher.state.memory_bytes > KEPT_BYTES:
                    return watcher
                self._kept[kept] = watcher
            self._kept.move_to_end(kept)
            while len(self._kept) > KEPT_STATES:
                self._kept.popitem(last=False)
            return watcher

    async def _nearest(self, contract: Contract, most: int) -> Watcher:
        identifier = contract.terms.contract_id
        try:
            watcher = await self.newest(contract, most)
            operated = await trio.to_thread.run_sync(self._operated_start, identifier)
        except StoreError as error:
            raise NotFound(f"states of contract {identifier.hex()} cannot be read: {error}") from error
        if operated is not None and (0 if watcher is None else watcher.number) < operated.number <= most:
            watcher = await self._checked(contract, operated) or watcher
        if watcher is None:
            watcher = self.watcher(contract, self.beginning(contract))
        count, size = most - watcher.number, 0
        for number in range(watcher.number, most if count <= MAX_REPLAYED_BATCHES else watcher.number):
            committed = batch_at(self._store, contract, number)
            size += 0 if committed is None else committed.commitment.data_bytes
        if count > MAX_REPLAYED_BATCHES or size > MAX_REPLAYED_BYTES:
            detail = f"{count} batches before batch {most} of contract {identifier.hex()}"
            raise NotFound(f"the nearest state here is {detail}: ask for a newer batch, or another node")
        return watcher

    async def _replay_one(self, contract: Contract, watcher: Watcher) -> None:
        number = watcher.number
        committed = batch_at(self._store, contract, number)
        if committed is None:
            raise NotFound(f"batch {number} of contract {contract.terms.contract_id.hex()} does not count")
        raw = await self._fetch(committed.commitment)
        try:
            _, wrong = await self.follow(watcher, committed.commitment, raw)
        except InvalidInput as error:
            raise NotFound(f"batch {number} cannot be executed here: {error}") from error
        if wrong is not None:
            raise NotFound(f"batch {number} of contract {contract.terms.contract_id.hex()} is wrong")
