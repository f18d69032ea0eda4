# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings an operator's batches to the chain, in order, and the journal after them: published, committed, moved past, trimmed.

Each step is durable before the next begins and may be done twice: publishing is by digest, the chain takes each number once, and the
journal's border tells which batches it has passed.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

import msgspec
import structlog
import trio

from contracts.operator import Batch
from ledger.bodies import Body
from ledger.contract_bodies import CommitBatch
from ledger.contract_queries import batch_at, contract_at, final_count
from ledger.contract_state import Contract, is_settled
from ledger.errors import StoreError
from ledger.offchain import BatchCommitment
from ledger.store import Store
from node.offchain.journal_file import FOLDED_AT_ONCE, JournalFile
from node.offchain.recovering import OtherOperator
from node.submission import SubmitOutcome

log = structlog.get_logger()

RETRY_S = 1.0
"""Between two looks at whether batches have been committed, and after the disk or the network refused one."""
KEPT_FINAL_BATCHES = 64
"""Final batches whose lines stay in the journal: so long a user can ask for a receipt again and where a request stands."""
FOLD_BATCHES = 8
"""Batches whose changes are folded into the journal's state together: what they have all changed is written once."""
TRIMMED_AT_ONCE = 8
"""Times that lines are deleted before others get their turn at the disk."""


class Sender(Protocol):
    """The part of `node.own_transactions.OwnTransactions` that is needed here."""

    async def send(self, purpose: Hashable, body: Body) -> SubmitOutcome:
        """Sign and submit a transaction."""

    def is_under_way(self, purpose: Hashable) -> bool:
        """Tell whether what was sent still waits to be committed."""

    def forget(self, purpose: Hashable) -> None:
        """The purpose is fulfilled."""


class Committing:
    """One contract's batches between their cut and the end of their window."""

    def __init__(
        self,
        *,
        contract_id: bytes,
        store: Store,
        journal: JournalFile,
        publish: Callable[[bytes, bytes], None],
        transactions: Sender,
        is_behind: Callable[[], bool],
        disk: trio.CapacityLimiter,
        most_under_way: int,
    ) -> None:
        """`publish` keeps data durably under its digest, so that others can fetch it; it blocks and raises `StoreError`."""
        self._contract_id = contract_id
        self._store = store
        self._journal = journal
        self._publish = publish
        self._transactions = transactions
        self._is_behind = is_behind
        self._disk = disk
        self._most_under_way = most_under_way
        self._ready: dict[int, Batch] = {}
        self._news = trio.Event()
        self._border = 0
        self._checked = 0
        self._trouble = ""

    def begin(self, border: int, batches: Sequence[Batch]) -> None:
        """Take what a recovered journal holds: its border, and the batches cut since."""
        self._border = self._checked = border
        # Whatever was not folded before is folded first.
        self._folded = border - FOLD_BATCHES
        self._ready = {batch.commitment.number: batch for batch in batches}
        self.wake()

    def add(self, batch: Batch) -> None:
        """Take a batch whose cut is durable."""
        self._ready[batch.commitment.number] = batch
        self.wake()

    def wake(self) -> None:
        """Look at the chain again."""
        self._news.set()

    def check(self, contract: Contract, following: int) -> None:
        """Compare new batches on the chain with those of the journal, whose next is `following`. Raises `OtherOperator`."""
        if contract.batch_count > following:
            raise OtherOperator(
                f"contract {self._contract_id.hex()} has {contract.batch_count} batches on the chain, this journal {following}"
            )
        for number in range(self._checked, contract.batch_count):
            committed, own = batch_at(self._store, contract, number), self._ready.get(number)
            assert committed is not None, f"batch {number} of {contract.batch_count} is in the state"
            # None: its cut is not durable yet, so it was not sent from here.
            if own is None or committed.commitment != own.commitment:
                raise OtherOperator(
                    f"contract {self._contract_id.hex()} has another batch {number} on the chain than in this journal"
                )
            self._checked = number + 1

    async def run(self) -> None:
        """Publish, send, move on, until cancelled. Raises `StoreError` when the journal fails."""
        while True:
            self._news = trio.Event()
            contract = contract_at(self._store, self._contract_id)
            if contract is not None and contract.status == "open":
                if not self._is_behind():
                    await self._send(contract)
                await self._move_on(contract)
            with trio.move_on_after(RETRY_S):
                await self._news.wait()

    async def _send(self, contract: Contract) -> None:
        """Publish and send all batches that the chain does not have, unless they are under way."""
        first = contract.batch_count
        for number in range(first, first + self._most_under_way):
            purpose = _purpose(self._contract_id, number)
            if self._transactions.is_under_way(purpose):
                continue
            # Before each attempt: what has waited for long may have been dropped by who keeps the data.
            commitment = await self._publish_batch(number)
            if commitment is None:
                return
            outcome = await self._transactions.send(purpose, CommitBatch(commitment))
            if not outcome.accepted:
                # Those after it would be refused for coming too early.
                self._warn(f"batch {number} cannot be committed yet: {outcome.detail}")
                return
        self._trouble = ""

    async def _publish_batch(self, number: int) -> BatchCommitment | None:
        """Publish a batch's data; None when there is no such batch or its data cannot be kept now."""
        batch = self._ready.get(number)
        if batch is None:
            # The chain had it already and was replaced since: it was published then, and its lines are still here.
            if number >= self._border:
                return None
            return await trio.to_thread.run_sync(self._journal.cut, self._contract_id, number, limiter=self._disk)
        commitment = batch.commitment
        try:
            await trio.to_thread.run_sync(self._publish, commitment.data_digest, batch.data, limiter=self._disk)
        except StoreError as error:
            self._warn(f"the data of batch {number} cannot be published: {error}")
            return None
        return commitment

    async def _move_on(self, contract: Contract) -> None:
        """Move the journal's border to what the chain has, and forget what is final for long."""
        while self._border < min(contract.batch_count, self._checked):
            number = self._border
            await trio.to_thread.run_sync(self._journal.advance, self._contract_id, number, limiter=self._disk)
            self._border += 1
            self._ready.pop(number, None)
            self._transactions.forget(_purpose(self._contract_id, number))
        if self._border - self._folded >= FOLD_BATCHES:
            await self._fold()
        await self._trim(contract)

    async def _fold(self) -> None:
        """Fold into the journal's state what the batches before the border have changed, in pieces between which lines are written."""
        found = await trio.to_thread.run_sync(self._journal.unfolded, self._contract_id, limiter=self._disk)
        for start in range(0, len(found.changes), FOLDED_AT_ONCE):
            piece = found.changes[start : start + FOLDED_AT_ONCE]
            await trio.to_thread.run_sync(self._journal.fold, self._contract_id, piece, limiter=self._disk)
        if found.before:
            await trio.to_thread.run_sync(self._journal.folded, self._contract_id, found.before, limiter=self._disk)
        self._folded = self._border

    async def _trim(self, contract: Contract) -> bool:
        """Delete lines of some batches that are final for long; tells whether there may be more."""
        before = min(self._border, self._final_count(contract) - KEPT_FINAL_BATCHES)
        if before <= 0:
            return False
        for _ in range(TRIMMED_AT_ONCE):
            trim = partial(self._journal.trim, self._contract_id, before)
            if not await trio.to_thread.run_sync(trim, limiter=self._disk):
                return False
        return True

    async def run_down(self) -> None:
        """After the contract's end, delete what becomes final until it is settled. Raises `StoreError`."""
        border = await trio.to_thread.run_sync(self._journal.border, self._contract_id, limiter=self._disk)
        if border is None:
            return
        self._border = border.number
        self._folded = self._border - FOLD_BATCHES
        while True:
            self._news = trio.Event()
            contract = contract_at(self._store, self._contract_id)
            if contract is not None:
                await self._check_rest(contract)
                await self._move_on(contract)
                if await self._trim(contract):
                    continue
            if contract is not None and is_settled(contract, self._store.head().height):
                return
            await self._news.wait()

    async def _check_rest(self, contract: Contract) -> None:
        """After the end, compare with the journal what was committed last; what differs is not moved past."""
        self._ready.clear()
        self._checked = self._border
        for number in range(self._border, contract.batch_count):
            committed = batch_at(self._store, contract, number)
            own = await trio.to_thread.run_sync(self._journal.cut, self._contract_id, number, limiter=self._disk)
            if own is None or committed is None or committed.commitment != own:
                return
            self._checked = number + 1

    def _final_count(self, contract: Contract) -> int:
        window = self._store.genesis.parameters.contracts.window_microblocks
        height = self._store.head().height
        return final_count(contract, lambda number: batch_at(self._store, contract, number), height, window)

    def _warn(self, trouble: str) -> None:
        if trouble != self._trouble:  # once, not at each attempt
            log.warning("a contract's batches wait", contract=self._contract_id.hex(), why=trouble)
        self._trouble = trouble


class _Purpose(msgspec.Struct, frozen=True):
    """What a transaction is for."""

    contract_id: bytes
    """The contract."""
    number: int
    """The batch."""


def _purpose(contract_id: bytes, number: int) -> Hashable:
    return _Purpose(contract_id, number)
