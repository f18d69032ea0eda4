# SPDX-License-Identifier: GPL-3.0-or-later
"""One contract's batches, one after the other: fetched, executed, challenged when wrong, and a snapshot now and then."""

from collections.abc import Callable

import structlog
import trio

from contracts.batch_data import BatchData
from contracts.operator import Start
from contracts.watcher import Watcher
from ledger.contract_queries import batch_at, final_count
from ledger.contract_state import CommittedBatch, Contract, is_settled
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import FraudProof
from ledger.store import Store
from node.offchain.challenging import Challenging
from node.offchain.promises import Promises, first_broken
from node.offchain.replaying import Fetch, Replaying
from node.offchain.snapshots import Snapshots
from node.offchain.state_exchange import StateExchange
from node.offchain.watched import Watched, WatchStage, kept_heads

log = structlog.get_logger()

RETRY_S = 0.5
"""After this time data that was not to be had is asked for again, and a contract is looked at whose node was catching up."""
MAX_RETRY_S = 8.0
"""The pause doubles up to this: whoever gets nothing must not keep the others from being followed."""
PAUSE_S = 20.0
"""Between two looks at what cannot go on, and at whether a snapshot is worth writing."""
ENDED_PAUSE_S = 3_600.0
"""Between two looks at whether the last state of an ended contract is still of use."""
ASK_PAUSE_S = 60.0
"""Between two rounds among the peers for a state that none of them had."""
JUMP_BATCHES = 64
"""So many final batches behind, a peer's state comes before executing them all."""


class Following:
    """What is done for one contract at a time; `node.offchain.watching` says when."""

    def __init__(
        self,
        *,
        store: Store,
        own_key: bytes,
        snapshots: Snapshots,
        fetch: Fetch,
        replaying: Replaying,
        exchange: StateExchange,
        challenging: Challenging,
        promises: Promises,
        is_behind: Callable[[], bool],
        memory_bytes: int,
    ) -> None:
        """`own_key` is the node's public key: it challenges nobody with it who is itself. `memory_bytes` bounds one state."""
        self._store = store
        self._own_key = own_key
        self._snapshots = snapshots
        self._fetch = fetch
        self._replaying = replaying
        self._exchange = exchange
        self._challenging = challenging
        self._promises = promises
        self._is_behind = is_behind
        self._memory_bytes = memory_bytes

    def final(self, contract: Contract) -> int:
        """Return how many batches of a contract are final at the head."""
        window = self._store.genesis.parameters.contracts.window_microblocks
        height = self._store.head().height
        return final_count(contract, lambda number: batch_at(self._store, contract, number), height, window)

    async def advance(self, watched: Watched, contract: Contract) -> float | None:
        """Do the next thing for a contract; returns after which time to look again, None if only when something commits.

        Raises `StoreError` when snapshots cannot be read.
        """
        if self._is_behind():
            return RETRY_S
        count = contract.batch_count
        if watched.stage == "ended" and watched.number == count:
            return await self._look_after_ended(watched, contract)
        live = watched.live
        if live is None or live.number > count:  # fraud has taken batches back
            if await self._is_done(watched, contract):
                return await self._at_end(watched, contract)
            live = watched.live = await self._resume(watched, contract)
        watched.number = live.number
        return await (
            self._follow_next(watched, contract, live) if live.number < count else self._at_end(watched, contract)
        )

    async def _is_done(self, watched: Watched, contract: Contract) -> bool:
        """Tell whether nothing has to be loaded: there is a snapshot of the newest state, or nobody has a use for one any more."""
        watched.live = None
        watched.snapshots = tuple(await trio.to_thread.run_sync(self._snapshots.heads, watched.contract_id))
        watched.unsaved_batches = watched.unsaved_bytes = 0
        is_there = any(head.number == contract.batch_count for head in watched.snapshots)
        if is_there or self._is_of_no_use(contract):
            watched.number = contract.batch_count
            return True
        return False

    async def _at_end(self, watched: Watched, contract: Contract) -> float | None:
        """All that is committed is executed."""
        if contract.status != "open":
            return await self._settle(watched, contract)
        watched.note("following")
        if watched.unsaved_batches and watched.number <= self.final(contract):
            await self.save(watched, contract)
        return PAUSE_S if watched.unsaved_batches else None

    async def _resume(self, watched: Watched, contract: Contract) -> Watcher:
        """Return a watcher at the newest snapshot, or at the contract's beginning."""
        live = await self._replaying.newest(contract, contract.batch_count)
        # Damaged ones are gone now.
        watched.snapshots = tuple(await trio.to_thread.run_sync(self._snapshots.heads, watched.contract_id))
        return live or self._replaying.watcher(contract, self._replaying.beginning(contract))

    async def _follow_next(self, watched: Watched, contract: Contract, live: Watcher) -> float:
        number, final = live.number, self.final(contract)
        batch = batch_at(self._store, contract, number)
        assert batch is not None, f"batch {number} of {contract.batch_count} is in the state"
        is_final = number < final
        if is_final and final - number > JUMP_BATCHES and await self._jump(watched, contract, live):
            return 0
        try:
            raw = await self._fetch(batch.commitment)
            # Who is behind hurries.
            is_newest = number + 1 == contract.batch_count
            data, wrong = await self._replaying.follow(live, batch.commitment, raw, restful=is_newest)
        except NotFound as error:
            if not is_final:
                watched.misses += 1
                pause_s = min(RETRY_S * 2.0 ** min(watched.misses - 1, 16), MAX_RETRY_S)
                return self.stuck(watched, "data_missing", str(error), pause_s)
            if await self._jump(watched, contract, live):
                return 0
            return self.stuck(watched, "no_state", f"the data of final batch {number} is gone, and no peer has a state")
        except InvalidInput as error:
            return self.stuck(watched, "unreadable", str(error))
        if wrong is not None:
            return await self._stopped(watched, contract, live, wrong, is_final=is_final)
        watched.followed(len(raw), trio.current_time())
        watched.number = live.number
        await self._compare(contract, batch, data, is_final=is_final)
        if live.state.memory_bytes > self._memory_bytes:
            return await self._give_up(watched, live)
        if watched.is_worth_saving():
            await self.save(watched, contract)
        return 0

    async def _compare(self, contract: Contract, batch: CommittedBatch, data: BatchData, *, is_final: bool) -> None:
        """Compare a right batch with the receipts about it; a final one breaks none that anybody could still be held to."""
        place = (contract.terms.contract_id, batch.commitment.number)
        receipts = self._promises.take(*place)
        if not receipts:
            return
        broken = None if is_final else await trio.to_thread.run_sync(first_broken, receipts, data)
        if broken is None:
            await self._promises.forget(*place)
        else:
            await self.accuse(contract, batch, broken[1])
            # It may have come just before its batch, and not be on the disk yet.
            await self._promises.keep(broken[0])

    async def _stopped(
        self, watched: Watched, contract: Contract, live: Watcher, wrong: FraudProof, *, is_final: bool
    ) -> float:
        """Challenge the next batch, which is wrong, or find a way past it when it is final."""
        batch = batch_at(self._store, contract, live.number)
        assert batch is not None, "it was just executed"
        if is_final:
            if await self._jump(watched, contract, live):
                return 0
            return self.stuck(
                watched, "wrong", f"batch {live.number} is wrong and final: nobody has challenged it in time"
            )
        if not await self.accuse(contract, batch, wrong):
            return self.stuck(watched, "unreadable", f"batch {live.number} seems wrong, but nothing proves it")
        return self.stuck(watched, "wrong", f"batch {live.number} is wrong")

    async def accuse(self, contract: Contract, batch: CommittedBatch, proof: FraudProof) -> bool:
        """Have a batch challenged; tells whether the judge here convicts. This node's own operator is only told of."""
        if contract.terms.operator == self._own_key:
            log.critical(
                "this node's own operator has committed a wrong batch: stop it, and look for the cause",
                contract=contract.terms.contract_id.hex(),
                batch=batch.commitment.number,
            )
            return True
        return await self._challenging.take(contract.terms, batch.commitment, proof) is not None

    def stuck(self, watched: Watched, stage: WatchStage, detail: str, again_s: float | None = None) -> float:
        """Say why a contract is not followed, once; returns when to look again."""
        if watched.note(stage, detail):
            log.warning("a contract is not followed", contract=watched.contract_id.hex(), stage=stage, why=detail)
        return PAUSE_S if again_s is None else again_s

    # ------------------------------------------------------------------ states

    async def _jump(self, watched: Watched, contract: Contract, live: Watcher) -> bool:
        """Go on from a peer's state after a final batch; tells whether there was one."""
        now_s = trio.current_time()
        if watched.asked_s is not None and now_s < watched.asked_s + ASK_PAUSE_S:
            return False
        start = await self._exchange.fetch(
            watched.contract_id,
            after=live.number,
            final=self.final(contract),
            room_bytes=self._memory_bytes,
            batch=lambda number: batch_at(self._store, contract, number),
        )
        if start is None:
            watched.asked_s = now_s
            return False
        watched.live = await trio.to_thread.run_sync(self._replaying.watcher, contract, start)
        watched.number = start.number
        await self.save(watched, contract)
        return True

    async def save(self, watched: Watched, contract: Contract) -> None:
        """Write a snapshot of the running watcher's state, and let go of those that are not worth their room any more."""
        live = watched.live
        assert live is not None, "there is a state to write"
        watched.unsaved_batches = watched.unsaved_bytes = 0
        final = self.final(contract)

        def write() -> Start:
            start = live.start()
            self._snapshots.put(watched.contract_id, start)
            heads = self._snapshots.heads(watched.contract_id)
            keep = kept_heads(heads, final)
            self._snapshots.remove(watched.contract_id, [head.number for head in heads if head.number not in keep])
            watched.snapshots = tuple(head for head in heads if head.number in keep)
            return start

        try:
            await trio.to_thread.run_sync(write)
        except StoreError as error:
            # Nothing is lost but time after a restart, and room: the data since the last snapshot stays.
            log.warning("a snapshot cannot be written", contract=watched.contract_id.hex(), error=str(error))

    async def _settle(self, watched: Watched, contract: Contract) -> float | None:
        """The contract has ended, and everything that counts is executed: its last state stays, for those who claim."""
        number = contract.batch_count
        if number and watched.live is not None and all(head.number != number for head in watched.snapshots):
            await self.save(watched, contract)
        others = [head.number for head in watched.snapshots if head.number != number]
        if others:
            await trio.to_thread.run_sync(self._snapshots.remove, watched.contract_id, others)
            watched.snapshots = tuple(head for head in watched.snapshots if head.number == number)
        watched.live = None
        watched.note("ended", contract.status)
        return await self._look_after_ended(watched, contract)

    def _is_of_no_use(self, contract: Contract) -> bool:
        """Tell whether nothing can be claimed of an ended contract, nor may anybody still want to prove something for the record."""
        retention = self._store.genesis.parameters.contracts.retention_microblocks
        return not contract.escrow_microcredit and is_settled(contract, self._store.head().height - retention)

    async def _look_after_ended(self, watched: Watched, contract: Contract) -> float | None:
        """Let go of receipts once nobody can be challenged, and of the last state once it is of no use."""
        if is_settled(contract, self._store.head().height):
            await self._promises.drop(watched.contract_id)
        if not self._is_of_no_use(contract):
            return ENDED_PAUSE_S
        if watched.snapshots:
            numbers = [head.number for head in watched.snapshots]
            await trio.to_thread.run_sync(self._snapshots.remove, watched.contract_id, numbers)
            watched.snapshots = ()
        return None

    async def _give_up(self, watched: Watched, live: Watcher) -> float:
        """The state is larger than this node has room for."""
        detail = f"its state takes {live.state.memory_bytes} bytes of memory, {self._memory_bytes} are allowed"
        watched.live = None
        await trio.to_thread.run_sync(
            self._snapshots.remove, watched.contract_id, [head.number for head in watched.snapshots]
        )
        watched.snapshots = ()
        return self.stuck(watched, "too_large", detail)
