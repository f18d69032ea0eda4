# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pending batches of transactions rest on published data that is not here: this node neither orders them nor votes for them.

    void     the chain is certain to refuse the commitment: nothing need be published for it
    early    its contract is not open yet, or it is too far ahead: nothing is fetched for anybody who can make up identifiers
    owed     its contract's operator may commit it: its data is fetched, checked, and then the batch is ready

R1 What is ready stays ready, as long as its data is kept: a contract that has ended never opens again, and as long as it is open its
   count of batches only rises. So the members of a committee come to agree, though each judges by the microblocks that it has executed.
R2 Only what an operator with a bond has signed is fetched, and of one contract no more than `MAX_PENDING` at once, unless a microblock
   names it: then other members may have voted for it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import msgspec

from ledger.contract_bodies import CommitBatch, ContractBody, OpenContract
from ledger.contract_queries import contract_at
from ledger.contract_state import Contract, contract_id_of
from ledger.offchain import BatchCommitment
from ledger.state import StateReader
from ledger.transactions import CheckedTransaction
from node.batches import MAX_BATCH_DATA_BYTES, Batch

MAX_PENDING = 16
"""Batches of one contract whose data is fetched before they are committed; an operator makes no more than half as many."""
MAX_AHEAD = 16
"""How many batches after the contract's next one are looked at; those beyond have to wait until others are committed."""
MAX_VERDICTS = 4_096
"""Commitments whose verdict is remembered, about 2 MB; others are judged again."""
MAX_NAMED = 256
"""Commitments that are fetched at once because a microblock names them."""

Standing = Literal["void", "early", "owed"]


class Owed(msgspec.Struct, frozen=True):
    """A commitment whose data should be here."""

    commitment: BatchCommitment
    """The commitment."""
    is_named: bool
    """Whether a microblock names it that waits for votes."""


def standing_of(contract: Contract | None, sender: bytes, commitment: BatchCommitment) -> Standing:
    """Tell what is to be expected of a commitment to a contract that the holder of a public key has signed."""
    if contract is None:
        return "early"
    ended = contract.status != "open"
    if ended or sender != contract.terms.operator or commitment.number < contract.batch_count:
        return "void"
    return "owed" if commitment.number <= contract.batch_count + MAX_AHEAD else "early"


def contracts_of(transactions: Iterable[CheckedTransaction]) -> set[bytes]:
    """Return the contracts that transactions do something with."""
    found: set[bytes] = set()
    for checked in transactions:
        body = checked.transaction.body
        if isinstance(body, OpenContract):
            found.add(contract_id_of(checked.transaction.sender, body.number))
        elif isinstance(body, CommitBatch):
            found.add(body.commitment.contract_id)
        elif isinstance(body, ContractBody):
            found.add(body.contract_id)
    return found


class Readiness:
    """Implements `node.batches.DataRule`; all of it is queries and notes in memory."""

    def __init__(self, store: StateReader) -> None:
        self._store = store
        self.on_owed: Callable[[], None] = lambda: None
        """Called when something more may be owed."""
        # Of pending batches: the commitments in each with their senders, and of those that are not ready what is owed and not judged.
        self._batches: dict[bytes, tuple[tuple[bytes, BatchCommitment], ...]] = {}
        self._unready: dict[bytes, tuple[BatchCommitment, ...]] = {}
        self._by_contract: dict[bytes, dict[bytes, None]] = {}
        # Of all pending batches: how often each commitment, and data for a contract, stands in them; and what is here of each contract.
        self._pending: Counter[BatchCommitment] = Counter()
        self._pending_data: Counter[tuple[bytes, bytes]] = Counter()
        self._held: dict[bytes, set[BatchCommitment]] = {}
        # The newest last.
        self._named: dict[bytes, None] = {}
        self._verdicts: OrderedDict[BatchCommitment, bool] = OrderedDict()

    # ------------------------------------------------------------------ for the pool

    def arrived(self, batch: Batch) -> None:
        """A batch is pending now."""
        found = tuple(
            (checked.transaction.sender, checked.transaction.body.commitment)
            for checked in batch.transactions
            if isinstance(checked.transaction.body, CommitBatch)
        )
        if not found:
            return
        self._batches[batch.digest] = found
        for _, commitment in found:
            self._by_contract.setdefault(commitment.contract_id, {})[batch.digest] = None
            self._pending[commitment] += 1
            self._pending_data[commitment.contract_id, commitment.data_digest] += 1
            self._note_held(commitment)
        self._unready[batch.digest] = ()
        self._judge_batch(batch.digest)
        self.on_owed()

    def left(self, digest: bytes) -> None:
        """A batch is pending no more."""
        found = self._batches.pop(digest, ())
        self._unready.pop(digest, None)
        self._named.pop(digest, None)
        for _, commitment in found:
            self._take_off(commitment)
            others = self._by_contract.get(commitment.contract_id, {})
            others.pop(digest, None)
            if not others:
                self._by_contract.pop(commitment.contract_id, None)
        if found:
            self.on_owed()  # there may be room for another one

    def is_ready(self, digest: bytes) -> bool:
        """Tell whether all that a batch's commitments publish is here, and right in its form."""
        return digest not in self._unready

    # ------------------------------------------------------------------ what is known of data

    def verdict(self, commitment: BatchCommitment) -> bool | None:
        """Return whether a commitment's data is here and right in its form; None when it has not been judged lately."""
        return self._verdicts.get(commitment)

    def judged(self, commitment: BatchCommitment, *, is_good: bool) -> bool:
        """Take a verdict; returns whether a batch became ready by it. A commitment that its own data does not fit never does."""
        self._verdicts[commitment] = is_good
        self._verdicts.move_to_end(commitment)
        self._note_held(commitment)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        return self._judge_contract(commitment.contract_id)

    def forget(self, data_digests: Collection[bytes]) -> None:
        """Data that no pending batch commits to is here no more."""
        gone = [commitment for commitment in self._verdicts if commitment.data_digest in data_digests]
        for commitment in gone:
            del self._verdicts[commitment]

    def committed(self, transactions: Iterable[CheckedTransaction]) -> None:
        """A microblock is stored: what waited for it may be judged otherwise."""
        contracts = contracts_of(transactions)
        # Each batch once, however many of its contracts have moved.
        for digest in {digest for one in contracts for digest in self._by_contract.get(one, ())} & self._unready.keys():
            self._judge_batch(digest)
        if contracts:
            self.on_owed()

    def named(self, digests: Sequence[bytes]) -> None:
        """A microblock that waits for votes names batches."""
        named = [digest for digest in digests if digest in self._unready]
        for digest in named:
            self._named.pop(digest, None)
            self._named[digest] = None
        if named:
            self.on_owed()

    def is_pending(self, contract_id: bytes, data_digest: bytes) -> bool:
        """Tell whether a pending batch commits to data for a contract."""
        return (contract_id, data_digest) in self._pending_data

    def owed(self) -> list[Owed]:
        """Return the commitments whose data should be fetched now, those that microblocks name first."""
        named: dict[BatchCommitment, None] = {}
        for digest in reversed(self._named):
            for commitment in self._unready.get(digest, ()):
                if len(named) < MAX_NAMED:
                    named[commitment] = None
        others: dict[BatchCommitment, None] = {}
        room: dict[bytes, int] = {}
        for commitments in self._unready.values():
            for commitment in commitments:
                if commitment in named or commitment in others:
                    continue
                contract_id = commitment.contract_id
                left = room[contract_id] if contract_id in room else MAX_PENDING - len(self._held.get(contract_id, ()))
                if left > 0:
                    others[commitment] = None
                room[contract_id] = left - 1
        return [*(Owed(one, is_named=True) for one in named), *(Owed(one, is_named=False) for one in others)]

    def _note_held(self, commitment: BatchCommitment) -> None:
        if self._verdicts.get(commitment) and commitment in self._pending:
            self._held.setdefault(commitment.contract_id, set()).add(commitment)

    def _take_off(self, commitment: BatchCommitment) -> None:
        place = (commitment.contract_id, commitment.data_digest)
        self._pending_data[place] -= 1
        if not self._pending_data[place]:
            del self._pending_data[place]
        self._pending[commitment] -= 1
        if not self._pending[commitment]:
            del self._pending[commitment]
            held = self._held.get(commitment.contract_id, set())
            held.discard(commitment)
            if not held:
                self._held.pop(commitment.contract_id, None)

    def _judge_contract(self, contract_id: bytes) -> bool:
        unready = [digest for digest in self._by_contract.get(contract_id, ()) if digest in self._unready]
        became = [self._judge_batch(digest) for digest in unready]
        return any(became)

    def _judge_batch(self, digest: bytes) -> bool:
        """Look again at a batch that is not ready; returns whether it is now."""
        lacking: list[BatchCommitment] = []
        is_blocked = False
        contracts: dict[bytes, Contract | None] = {}
        data_bytes = 0
        for sender, commitment in self._batches[digest]:
            contract_id = commitment.contract_id
            if contract_id not in contracts:
                contracts[contract_id] = contract_at(self._store, contract_id)
            standing = standing_of(contracts[contract_id], sender, commitment)
            verdict = self._verdicts.get(commitment)
            data_bytes += 0 if standing == "void" else commitment.data_bytes
            if standing == "owed" and verdict is None and len(lacking) < MAX_PENDING:
                lacking.append(commitment)  # no more at once: a batch may hold hundreds, which are looked at each time
            elif standing == "early" or (standing == "owed" and not verdict):
                is_blocked = True
        if data_bytes > MAX_BATCH_DATA_BYTES:
            # Members could not fetch so much while a leader waits for their votes; no node makes such a batch.
            lacking, is_blocked = [], True
        if lacking or is_blocked:
            self._unready[digest] = tuple(lacking)
            return False
        del self._unready[digest]
        self._named.pop(digest, None)
        return True
