# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator of a contract, without disk, network and clock: requests in, journal entries out, receipts once these are durable.

    accept(request, now) → ticket with entries to append        cut(now) → entry to append
    durable(position)    → receipts to send, batches to commit  committed(number) → room for more
    recover(start, journal) → the operator as it was, and what may have to be sent again

R1 A receipt leaves only after its entry is durable, and a batch only after its cut is; the journal is durable from its beginning on.
R2 Whatever is durable is executed again after a crash and gives the same leaves; whatever is not was promised to nobody.
R3 A request that was accepted before gets the receipt it had.
R4 Every queue has a bound; beyond it the operator says that it is busy.

The state in memory runs ahead of the journal. If an append fails, the operator is discarded and recovered: there is no way back within.
"""

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from contracts.batch_data import ITEM_OVERHEAD_BYTES, BatchItem, commit, item_of
from contracts.execution import MAX_STATE_ENTRIES, WRONG_SEQUENCE, execute, next_sequence, sequence_key
from contracts.journal import Accepted, Cut, JournalEntry
from contracts.machine import Outcome
from contracts.registry import Registry
from contracts.requests import CheckedRequest, check_request
from contracts.state_map import Changes, StateMap
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, StoreError
from ledger.offchain import (
    MAX_BATCH_LEAVES,
    MAX_DATA_BYTES,
    MAX_FORCED,
    BatchCommitment,
    ContractTerms,
    InvalidRequest,
    Place,
    RequestLeaf,
    RequestReceipt,
    SignedReceipt,
    sign_receipt,
)


class OperatorLimits(msgspec.Struct, frozen=True):
    """How much an operator takes before it says that it is busy."""

    batch_requests: int = MAX_BATCH_LEAVES
    """Requests in one batch."""
    batch_bytes: int = MAX_DATA_BYTES
    """Data of one batch."""
    batch_age_ms: int = 1_000
    """Age of its first request at which a batch is cut: what a commitment costs against how long users wait."""
    waiting_batches: int = 8
    """Batches that are cut and not yet committed: with the open one at most 9 MiB of data in memory."""
    waiting_entries: int = 8_192
    """Journal entries that are not yet durable: two full batches, far more than one group commit writes."""
    remembered_bytes: int = 32 * 1024 * 1024
    """Requests whose receipts are given again from memory: some 20 000 of ten operations; older ones are in the journal."""


class Busy(InvalidInput):
    """The operator takes no more now: the chain or the disk is slower than the users. Try again later."""


class AlreadyAccepted(InvalidRequest):
    """The sender's operation of this number was accepted earlier than memory reaches, or as another request."""


class Answer(msgspec.Struct, frozen=True):
    """What a user gets."""

    signed: SignedReceipt
    """The operator's promise."""
    outcomes: tuple[Outcome, ...]
    """What became of the operations."""


class Ticket(msgspec.Struct, frozen=True):
    """What to do with an accepted request."""

    position: int
    """Position in the journal at which its answer is released by `durable`."""
    entries: tuple[JournalEntry, ...]
    """Entries to append, in order; none for a request that was accepted before."""
    answer: Answer | None
    """The answer, when it rests on something durable already."""


class Batch(msgspec.Struct, frozen=True):
    """A batch to publish and to commit."""

    commitment: BatchCommitment
    """What goes on the chain."""
    data: bytes
    """What is published."""


class Released(msgspec.Struct, frozen=True):
    """What may leave now."""

    answers: tuple[tuple[int, Answer], ...]
    """Position in the journal and the answer."""
    batches: tuple[Batch, ...]
    """Batches, in order."""


class Start(msgspec.Struct, frozen=True):
    """A state at the border of two batches, from which an operator or a watcher begins."""

    number: int = 0
    """The batch that comes next."""
    time_ms: int = 0
    """End of the batch before, in milliseconds since 1970 (UTC)."""
    entries: tuple[tuple[bytes, bytes], ...] = ()
    """The contract's state."""


def _memory_of(accepted: Accepted) -> int:
    """Return about what a remembered request takes, with the objects around its bytes."""
    return 1_000 + len(accepted.request) + 150 * len(accepted.outcomes)


class Operator:
    """One contract's operator."""

    def __init__(
        self,
        chain_id: bytes,
        terms: ContractTerms,
        key: PrivateKey,
        registry: Registry,
        limits: OperatorLimits | None = None,
        start: Start | None = None,
    ) -> None:
        """Take the contract's key and where to begin; raises `InvalidInput` for terms that nobody can execute."""
        if key.public_key != terms.operator:
            raise InvalidInput(f"contract {terms.contract_id.hex()} is operated by {terms.operator.hex()}, another key")
        start = start or Start()
        self._chain_id, self._terms, self._key = chain_id, terms, key
        self._bound = registry.bind(terms)
        self.limits = limits or OperatorLimits()
        self.state = StateMap(start.entries)
        self.number = start.number
        self._from_ms = self._time_ms = start.time_ms
        self._batch_root = self.state.root()
        self._items: list[BatchItem] = []
        self._forced: list[int] = []
        self._bytes = 0
        # The list's own head.
        self._batch_room = self.limits.batch_bytes - 8
        self._waiting: dict[int, BatchCommitment] = {}
        self._appended = self._durable = 0
        self._unsent: list[tuple[int, Accepted | Batch]] = []
        self._changed: dict[bytes, bytes | None] = {}
        self._changes: dict[int, Changes] = {}
        self._remembered: OrderedDict[tuple[bytes, int], tuple[int, Accepted]] = OrderedDict()
        self._remembered_bytes = 0

    @property
    def appended(self) -> int:
        """Entries of the journal so far, durable or not."""
        return self._appended

    # ------------------------------------------------------------ requests

    def accept(self, raw: bytes, now_ms: int, *, is_forced: bool = False) -> Ticket:
        """Execute a request and give it its place. Raises `InvalidRequest`, `AlreadyAccepted` or `Busy`, and then nothing has changed.

        What the chain has forced is given here once for each time that it was forced, in the chain's order; after a crash the journal's
        forced entries tell how far that went.
        """
        return self.accept_checked(
            check_request(self._chain_id, self._terms.contract_id, raw), now_ms, is_forced=is_forced
        )

    def accept_checked(self, request: CheckedRequest, now_ms: int, *, is_forced: bool = False) -> Ticket:
        """Do the same for a request that `check_request` has checked for this chain and contract, in a worker thread perhaps."""
        if not is_forced:
            known = self._remembered.get((request.sender, request.first_sequence))
            if known is not None and known[1].request == request.raw:
                return Ticket(known[0], (), self._answer(known[1]) if known[0] < self._durable else None)
            following = next_sequence(self.state, request.sender)
            if request.first_sequence < following:
                detail = f"operation {request.first_sequence} of {request.sender.hex()} was accepted earlier"
                raise AlreadyAccepted(f"{detail}; the next is {following}")
        if self._appended - self._durable >= self.limits.waiting_entries:
            raise Busy(f"{self._appended - self._durable} requests wait for the disk; try again in a moment")
        entries: list[JournalEntry] = []
        time_ms = max(now_ms, self._time_ms)
        if self._is_full(len(request.raw), is_forced):
            # Executed first, on the next batch's place: a request that is refused must not cut anything.
            self._execute(Place(self.number + 1, 0, time_ms, is_forced), request)
            entries.append(self._cut(time_ms))
        accepted = self._take(request, Place(self.number, len(self._items), time_ms, is_forced))
        entries.append(accepted)
        position = self._appended - 1
        self._remember(request, position, accepted)
        return Ticket(position, tuple(entries), None)

    def _is_full(self, request_bytes: int, is_forced: bool) -> bool:
        return (
            len(self._items) >= self.limits.batch_requests
            or (bool(self._items) and self._bytes + request_bytes + ITEM_OVERHEAD_BYTES > self._batch_room)
            or (is_forced and len(self._forced) == MAX_FORCED)
        )

    def _take(self, request: CheckedRequest, place: Place) -> Accepted:
        leaf, outcomes = self._execute(place, request, apply=True)
        accepted = Accepted(place.number, place.index, place.is_forced, request.raw, leaf, outcomes)
        self._items.append(item_of(request.raw, leaf))
        self._bytes += len(request.raw) + ITEM_OVERHEAD_BYTES
        if place.is_forced:
            self._forced.append(place.index)
        self._time_ms = place.time_ms
        self._unsent.append((self._appended, accepted))
        self._appended += 1
        return accepted

    def _execute(
        self, place: Place, request: CheckedRequest, *, apply: bool = False
    ) -> tuple[RequestLeaf, tuple[Outcome, ...]]:
        executed = execute(self._bound, place, request, self.state)
        self._require_effect(place, request, executed.outcomes)
        replay = executed.replay
        total = (self._items[-1].operation_total if place.index else 0) + replay.operation_count
        if apply:
            self.state.apply(replay.changes)
            self._changed.update(replay.changes)
        leaf = RequestLeaf(request.digest, place.time_ms, total, replay.outcomes_digest, self.state.root())
        return leaf, executed.outcomes

    def _require_effect(self, place: Place, request: CheckedRequest, outcomes: tuple[Outcome, ...]) -> None:
        """Refuse what would leave nothing but an entry for its sender, once half of the room is taken: keys cost strangers nothing."""
        is_roomy = len(self.state) <= MAX_STATE_ENTRIES // 2
        if is_roomy or place.is_forced or any(outcome.is_done for outcome in outcomes):
            return
        if self.state.get(sequence_key(request.sender)) is None:
            why = f"{outcomes[0].code}: none of its operations takes effect"
            raise InvalidRequest(f"{why}, and its sender has done nothing in this contract yet")

    def _remember(self, request: CheckedRequest, position: int, accepted: Accepted) -> None:
        if accepted.outcomes[0].code == WRONG_SEQUENCE:
            return  # forced beside the ordinary way: the first answer stands
        self._remembered[request.sender, request.first_sequence] = (position, accepted)
        self._remembered_bytes += _memory_of(accepted)
        while self._remembered_bytes > self.limits.remembered_bytes:
            self._remembered_bytes -= _memory_of(self._remembered.popitem(last=False)[1][1])

    def _answer(self, accepted: Accepted) -> Answer:
        receipt = RequestReceipt(self._terms.contract_id, accepted.number, accepted.index, accepted.leaf)
        return Answer(sign_receipt(self._chain_id, self._key, receipt), accepted.outcomes)

    def answer_of(self, accepted: Accepted) -> Answer:
        """Return the answer to a request that a durable journal entry holds: the same bytes each time. Safe in any thread."""
        return self._answer(accepted)

    # ------------------------------------------------------------ batches

    @property
    def open_since_ms(self) -> int | None:
        """Time of the first request in the open batch; None while it is empty."""
        return self._items[0].time_ms if self._items else None

    def is_due(self, now_ms: int) -> bool:
        """Tell whether the open batch should be cut now."""
        return bool(self._items) and (
            now_ms - self._items[0].time_ms >= self.limits.batch_age_ms
            or self._bytes >= self.limits.batch_bytes * 3 // 4
            or len(self._items) >= self.limits.batch_requests
        )

    def cut(self, now_ms: int) -> Cut | None:
        """Complete the open batch; returns the entry to append, None when there is nothing to cut. Raises `Busy`."""
        return self._cut(max(now_ms, self._time_ms)) if self._items else None

    def _cut(self, until_ms: int) -> Cut:
        if len(self._waiting) >= self.limits.waiting_batches:
            raise Busy(f"{len(self._waiting)} batches wait for the chain; try again in a moment")
        return self._close(until_ms)

    def _close(self, until_ms: int) -> Cut:
        commitment, data = commit(
            self._terms.contract_id,
            self.number,
            self._batch_root,
            self._from_ms,
            until_ms,
            self._items,
            self._forced,
        )
        self._waiting[self.number] = commitment
        self._changes[self.number] = tuple(self._changed.items())
        self._changed = {}
        self._unsent.append((self._appended, Batch(commitment, data)))
        self._appended += 1
        self._items, self._forced, self._bytes = [], [], 0
        self._batch_root = commitment.new_root
        self._from_ms = self._time_ms = until_ms
        self.number += 1
        return Cut(commitment)

    def durable(self, count: int) -> Released:
        """Take note that the first `count` entries of the journal are durable; returns what rests on them."""
        return self._signed(self.release(count))

    def release(self, count: int) -> list[tuple[int, Accepted | Batch]]:
        """Do as `durable` does, for a caller that has the receipts signed elsewhere, by `answer_of`; gives what they are for."""
        assert self._durable <= count <= self._appended, f"{count} entries durable of {self._appended}"
        self._durable = count
        ready = [(position, what) for position, what in self._unsent if position < count]
        del self._unsent[: len(ready)]
        return ready

    def _signed(self, ready: list[tuple[int, Accepted | Batch]]) -> Released:
        return Released(
            tuple((position, self._answer(what)) for position, what in ready if isinstance(what, Accepted)),
            tuple(what for _, what in ready if isinstance(what, Batch)),
        )

    def take_changes(self, number: int) -> Changes:
        """Return what a batch that was cut has changed, once: what moves a stored `Start` on by one batch."""
        return self._changes.pop(number)

    def committed(self, number: int) -> None:
        """Take note that the chain has committed a batch, and with it all before."""
        for waiting in [waiting for waiting in self._waiting if waiting <= number]:
            del self._waiting[waiting]
            self._changes.pop(waiting, None)

    # ------------------------------------------------------------ coming back

    def recover(self, journal: Iterable[JournalEntry]) -> Released:
        """Take the durable journal over into a fresh operator; entries before its start are passed over.

        Returns all answers and batches that may not have left before the crash; sending them twice does no harm. All these batches wait
        for the chain, until `committed` says which of them it has. Positions count from
        the first entry that was taken over. Raises `StoreError` when an entry does not follow from those before: the journal is
        damaged, or the machine is another one than it was.
        """
        return self._signed(self.take_over(journal))

    def take_over(self, journal: Iterable[JournalEntry]) -> list[tuple[int, Accepted | Batch]]:
        """Do as `recover` does, for a caller whose users ask again for their receipts: nothing is signed."""
        assert not self._appended, "only a fresh operator recovers"
        for entry in journal:
            number = entry.number if isinstance(entry, Accepted) else entry.commitment.number
            if number < self.number:
                continue
            try:
                again = self._again(entry)
            except InvalidInput as error:
                raise StoreError(f"the operator's journal cannot be executed again: {error}") from error
            if again != entry:
                raise StoreError(f"the operator's journal does not follow from its beginning at batch {number}")
        self._changes.clear()
        return self.release(self._appended)

    def _again(self, entry: JournalEntry) -> JournalEntry:
        if isinstance(entry, Cut):
            if not self._items:
                raise InvalidInput(f"batch {entry.commitment.number} is cut without requests")
            return self._close(max(entry.commitment.until_ms, self._time_ms))
        request = check_request(self._chain_id, self._terms.contract_id, entry.request)
        time_ms = max(entry.leaf.time_ms, self._time_ms)
        accepted = self._take(request, Place(self.number, len(self._items), time_ms, entry.is_forced))
        self._remember(request, self._appended - 1, accepted)
        return accepted
