# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes batches of own transactions: durable here, gossiped, and acknowledged by enough others to outlive f crashes."""

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
import trio

from ledger.contract_bodies import CommitBatch
from ledger.errors import StoreError
from ledger.load import cost_of
from ledger.transactions import CheckedTransaction, batch_digest, encode_batch
from node.batches import MAX_BATCH_DATA_BYTES, Batch, BatchPool

LINGER_S = 0.003
"""How long a batch waits for company: short against a commit, long enough to fill batches under load."""
BATCH_BYTES = 192 * 1024
"""Gossip costs about 1 ms per message and 0.03 ms per KB: beyond this size larger batches gain little and delay votes."""
BATCH_COST = 750
"""In transfers (`ledger.load`): a microblock takes two full batches, and a batch with one transaction too many for this still fits."""
QUEUE_TRANSACTIONS = 20_000
"""More wait in front of `submit`, where their senders feel it."""
RETRY_S = 1.0
"""Pause before accepted transactions are stored again after the disk refused them."""


class _Queued(msgspec.Struct, frozen=True, gc=False):
    """A transaction that waits for its batch."""

    checked: CheckedTransaction
    """The transaction."""
    again: bool
    """Whether it was accepted before and is ordered once more."""


class Batcher:
    """One queue of admitted transactions, cut into batches."""

    def __init__(
        self,
        *,
        pool: BatchPool,
        publish: Callable[[bytes], Awaitable[None]],
        made: Callable[[Batch], None],
        failed: Callable[[Sequence[CheckedTransaction]], None],
    ) -> None:
        """`made` is told of each batch once it is durable here, `failed` of transactions that cannot be stored."""
        self._pool = pool
        self._publish = publish
        self._made = made
        self._failed = failed
        self.copies_needed = 0
        """Members that must acknowledge a batch, beside this node: the committee's f."""
        self._queue: deque[_Queued] = deque()
        self._filled = trio.Event()
        self._drained = trio.Event()
        # Both hold own transactions only, until enough nodes have them or they are settled: the mempool bounds them.
        self._unsafe: dict[bytes, list[Ticket]] = {}
        self._acks: dict[bytes, tuple[set[bytes], Batch]] = {}

    async def room(self) -> None:
        """Wait while the queue is full."""
        while len(self._queue) >= QUEUE_TRANSACTIONS:
            await self._drained.wait()

    def put(self, transactions: Sequence[CheckedTransaction]) -> None:
        """Queue transactions that were just admitted."""
        for checked in transactions:
            self._unsafe.setdefault(checked.id, [])
        self._put(transactions, again=False)

    def requeue(self, transactions: Sequence[CheckedTransaction]) -> None:
        """Queue own transactions again; they were admitted, so the mempool bounds them."""
        self._put(transactions, again=True)

    def ticket(self, identifiers: Collection[bytes]) -> "Ticket":
        """Return the wait until all of these are safe; also for those queued by an earlier submission."""
        unsafe = {identifier for identifier in identifiers if identifier in self._unsafe}
        ticket = Ticket(unsafe)
        for identifier in unsafe:
            self._unsafe[identifier].append(ticket)
        return ticket

    def drop_ticket(self, ticket: "Ticket") -> None:
        """Forget a wait that is over."""
        for identifier in ticket.missing:
            waiting = self._unsafe.get(identifier)
            if waiting is not None:
                waiting.remove(ticket)

    def is_unsafe(self, identifier: bytes) -> bool:
        """Tell whether too few nodes hold a transaction that was queued here."""
        return identifier in self._unsafe

    def acknowledged(self, digest: bytes, member: bytes) -> None:
        """A committee member has made a batch durable."""
        waiting = self._acks.get(digest)
        if waiting is None:
            return
        members, _ = waiting
        members.add(member)
        if len(members) >= self.copies_needed:
            self.settled(digest)

    def settled(self, digest: bytes) -> None:
        """A batch is safe: acknowledged by enough members, or committed."""
        waiting = self._acks.pop(digest, None)
        if waiting is not None:
            self._safe(waiting[1])

    def dropped(self, batch: Batch) -> None:
        """A batch will never commit; whoever still waits for it runs out of time."""
        self._acks.pop(batch.digest, None)
        for checked in batch.transactions:
            self._unsafe.pop(checked.id, None)

    async def run(self) -> None:
        """Make batches for ever."""
        while True:
            await self._filled.wait()
            await trio.sleep(LINGER_S)
            while self._queue:
                await self._make(self._take())
            self._filled = trio.Event()

    def _put(self, transactions: Sequence[CheckedTransaction], *, again: bool) -> None:
        self._queue.extend(_Queued(checked, again) for checked in transactions)
        if transactions:
            self._filled.set()

    def _take(self) -> list[_Queued]:
        taken: list[_Queued] = []
        size = cost = data_bytes = 0
        while self._queue and size < BATCH_BYTES and cost < BATCH_COST:
            # Commitments get batches of their own: those wait for published data, and nobody else shall wait with them.
            published = _published_bytes(self._queue[0])
            data_bytes += published
            if taken and (bool(published) != bool(_published_bytes(taken[0])) or data_bytes > MAX_BATCH_DATA_BYTES):
                break
            item = self._queue.popleft()
            taken.append(item)
            size += len(item.checked.raw)
            cost += cost_of(item.checked.transaction)
        self._drained.set()
        self._drained = trio.Event()
        return taken

    async def _make(self, taken: list[_Queued]) -> None:
        transactions = tuple(item.checked for item in taken)
        if any(item.again for item in taken):
            transactions = _in_order_of_nonces(transactions)
        batch = _batch_of(transactions)
        # A batch is ordered once. The same transactions, ordered again, need another name: one of them stands in it twice then.
        while self._pool.is_committed(batch.digest):
            transactions = (*transactions, transactions[0])
            batch = _batch_of(transactions)
        try:
            self._pool.add_own(batch)
        except StoreError as error:
            await self._not_stored(taken, error)
            return
        if self.copies_needed:
            self._acks.setdefault(batch.digest, (set(), batch))
        else:
            self._safe(batch)
        await self._publish(batch.raw)
        self._made(batch)

    async def _not_stored(self, taken: list[_Queued], error: StoreError) -> None:
        """Give back what nobody was promised; what was accepted before stays until the disk takes it."""
        lost = [item.checked for item in taken if not item.again]
        for checked in lost:
            for ticket in self._unsafe.pop(checked.id, ()):
                ticket.fail(checked.id, str(error))
        self._failed(lost)
        kept = [item for item in taken if item.again]
        self._queue.extendleft(reversed(kept))
        if kept:
            await trio.sleep(RETRY_S)

    def _safe(self, batch: Batch) -> None:
        for checked in batch.transactions:
            for ticket in self._unsafe.pop(checked.id, ()):
                ticket.safe(checked.id)


def _published_bytes(item: _Queued) -> int:
    body = item.checked.transaction.body
    return body.commitment.data_bytes if isinstance(body, CommitBatch) else 0


def _batch_of(transactions: tuple[CheckedTransaction, ...]) -> Batch:
    raw = encode_batch([checked.raw for checked in transactions])
    return Batch(batch_digest([checked.id for checked in transactions]), raw, transactions)


def _in_order_of_nonces(transactions: Sequence[CheckedTransaction]) -> tuple[CheckedTransaction, ...]:
    """Return the transactions with each sender's in order of their nonces, in the places that the sender had."""
    of_sender: defaultdict[bytes, list[CheckedTransaction]] = defaultdict(list)
    for checked in transactions:
        of_sender[checked.sender].append(checked)
    ordered = {sender: iter(sorted(own, key=_nonce)) for sender, own in of_sender.items()}
    return tuple(next(ordered[checked.sender]) for checked in transactions)


def _nonce(checked: CheckedTransaction) -> int:
    return checked.transaction.nonce


class Ticket:
    """The wait of one submission."""

    def __init__(self, missing: set[bytes]) -> None:
        self.missing = missing
        """Transactions that are not safe yet."""
        self.errors: dict[bytes, str] = {}
        """Why transactions could not be stored."""
        self._done = trio.Event()
        self._end()

    def safe(self, identifier: bytes) -> None:
        """One of its transactions is safe."""
        self.missing.discard(identifier)
        self._end()

    def fail(self, identifier: bytes, error: str) -> None:
        """One of its transactions is not stored."""
        self.errors[identifier] = error
        self.missing.discard(identifier)
        self._end()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until all are safe; False when time runs out or storing failed."""
        with trio.move_on_after(timeout_s):
            await self._done.wait()
        return self._done.is_set() and not self.errors

    def _end(self) -> None:
        if not self.missing:
            self._done.set()
