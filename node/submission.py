# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's transactions on their way in: checked, admitted, and answered for when enough nodes hold them."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from ledger.chain import chain_of
from ledger.contract_bodies import CommitBatch
from ledger.errors import Rejection, RejectionReason
from ledger.offchain import BatchCommitment
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from ledger.transition import Receipt
from node.batcher import Batcher
from node.batches import BatchPool, check_all
from node.mempool import Mempool

SAFE_TIMEOUT_S = 10.0
"""How long a submission waits until enough nodes hold it."""


class SubmitOutcome(msgspec.Struct, frozen=True):
    """What became of one submitted transaction at admission."""

    id: bytes
    """Identifier; empty when the bytes are no transaction."""
    accepted: bool
    """True: f+1 nodes hold it durably, so it survives the crash of f."""
    reason: str
    """`RejectionReason` or empty."""
    detail: str
    """What was wrong and what to do."""


class Submission:
    """Takes transactions of clients."""

    def __init__(
        self,
        *,
        store: Store,
        pool: BatchPool,
        mempool: Mempool,
        batcher: Batcher,
        checkers: trio.CapacityLimiter,
        holds_data: Callable[[bytes, BatchCommitment], Awaitable[bool]],
    ) -> None:
        """`holds_data` tells whether the data of a commitment, signed with a public key, is here and fits it."""
        self._chain = chain_of(store.genesis)
        self._store = store
        self._pool = pool
        self._mempool = mempool
        self._batcher = batcher
        self._checkers = checkers
        self._holds_data = holds_data

    async def submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        """Check transactions and queue the right ones; returns when enough nodes hold them, in the order given."""
        checked = await trio.to_thread.run_sync(check_all, raws, self._chain, limiter=self._checkers)
        checked = [await self._with_data(item) for item in checked]
        await self._batcher.room()
        # No await from here to `put`: what is admitted but never queued would block its sender for ever.
        outcomes = []
        admitted: list[CheckedTransaction] = []
        for item in checked:
            outcome, new = self._admit(item)
            outcomes.append(outcome)
            if new is not None:
                admitted.append(new)
        self._batcher.put(admitted)
        ticket = self._batcher.ticket([outcome.id for outcome in outcomes if outcome.accepted])
        try:
            if await ticket.wait(SAFE_TIMEOUT_S):
                return outcomes
        finally:
            self._batcher.drop_ticket(ticket)
        return [self._as_safe(outcome, ticket.errors.get(outcome.id, "")) for outcome in outcomes]

    async def _with_data(self, item: CheckedTransaction | Rejection) -> CheckedTransaction | Rejection:
        """Return a transaction, or why not if it is a commitment whose data is not here: then nobody could fetch it from here."""
        if not isinstance(item, CheckedTransaction) or not isinstance(item.transaction.body, CommitBatch):
            return item
        body = item.transaction.body
        if await self._holds_data(item.transaction.sender, body.commitment):
            return item
        digest, number = body.commitment.data_digest.hex(), body.commitment.number
        return Rejection(
            RejectionReason.DATA_MISSING,
            f"data {digest} of batch {number} is not here or does not fit; submit a commitment to the operator's own node",
        )

    def _admit(self, item: CheckedTransaction | Rejection) -> tuple[SubmitOutcome, CheckedTransaction | None]:
        try:
            if isinstance(item, Rejection):
                raise item
            if self._pool.is_full:
                raise Rejection(RejectionReason.MEMPOOL_FULL, "too many batches wait to be ordered; try again later")
            if _took_effect(self._store.receipt(item.id)):
                return SubmitOutcome(item.id, accepted=True, reason="", detail=""), None
            new = self._mempool.admit(item)
        except Rejection as rejection:
            identifier = item.id if isinstance(item, CheckedTransaction) else b""
            reason, detail = rejection.reason.value, rejection.detail
            return SubmitOutcome(identifier, accepted=False, reason=reason, detail=detail), None
        return SubmitOutcome(item.id, accepted=True, reason="", detail=""), item if new else None

    def _as_safe(self, outcome: SubmitOutcome, error: str) -> SubmitOutcome:
        """Return the outcome, turned into a rejection when too few nodes hold the transaction."""
        if not outcome.accepted or self._store.receipt(outcome.id) is not None:
            return outcome
        if error:
            reason, detail = RejectionReason.STORAGE, f"this node cannot write: {error}; use another node"
        elif self._mempool.is_own(outcome.id) and not self._batcher.is_unsafe(outcome.id):
            return outcome
        else:
            reason = RejectionReason.NOT_REPLICATED
            detail = "too few other nodes hold it yet; it may still commit: ask for its receipt before sending another"
        return SubmitOutcome(outcome.id, accepted=False, reason=reason, detail=detail)


def _took_effect(receipt: Receipt | None) -> bool:
    return receipt is not None and not receipt.reason
