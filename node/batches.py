# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches that wait to be ordered: checked once, durable, in order of arrival; the core's `Payload`."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import msgspec
import structlog

from ledger.chain import Chain
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, Rejection, StoreError
from ledger.load import Load, check_cost, cost_of, load_of
from ledger.store import Store
from ledger.transactions import (
    CheckedTransaction,
    batch_digest,
    check_shape,
    check_transaction,
    decode_batch,
    transaction_id,
)

log = structlog.get_logger()

MEMBERS_BYTES = 64 * 1024 * 1024
"""Memory for pending batches that come from committee members and from here, in equal shares. With four members a share is
18 000 transfers, about ten seconds of a quarter of the budgeted rate; beyond it a node refuses new ones until blocks catch up."""
ACCREDITED_BYTES = 16 * 1024 * 1024
"""Memory for pending batches of accredited accounts outside the committee together; each may take a quarter."""
STRANGERS_BYTES = 4 * 1024 * 1024
"""Memory for pending batches of everyone else together: identities cost nothing, so one flood shuts out only other strangers."""
NAMED_BYTES = 128 * 1024 * 1024
"""Memory for pending batches that are here because microblocks name them: two of the fullest, or ten as honest leaders make them. Those of
microblocks that came to nothing give way, or a leader could fill all nodes with batches that are never ordered."""
_TRANSACTION_BYTES = 500
"""Memory that a decoded transaction takes beside its bytes, which are kept twice: in the batch and for itself."""
MAX_BATCH_DATA_BYTES = 4 * 1024 * 1024
"""Data that one batch of transactions may publish; nothing is fetched for one that commits to more, and it is never ready."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A batch whose transactions have been checked."""

    digest: bytes
    """Its identifier."""
    raw: bytes
    """Its encoding."""
    transactions: tuple[CheckedTransaction, ...]
    """Its transactions."""


def check_batch(raw: bytes, chain: Chain) -> Batch:
    """Decode a batch and check every transaction's shape and signatures; for worker threads. Raises `InvalidInput`."""
    transactions: list[CheckedTransaction] = []
    cost = 0
    for item in decode_batch(raw):
        checked = check_transaction(item, chain)
        transactions.append(checked)
        # At once: a batch that nobody may order keeps no processor busy to its end.
        cost += cost_of(checked.transaction)
        check_cost(cost)
    return Batch(batch_digest([checked.id for checked in transactions]), raw, tuple(transactions))


class Source(msgspec.Struct, frozen=True):
    """To whom the room that a batch takes is charged."""

    account: bytes
    """The account or network identity that it comes from."""
    account_bytes: int
    """Most that pending batches of the account may take."""
    group: str = "members"
    """Kind of account."""
    group_bytes: int = 2**63
    """Most that pending batches of all accounts of the group may take."""


def member_source(account: bytes, members: int) -> Source:
    """Return the source of a committee member's batches: its share, and what strangers may have it pass on."""
    return Source(account, MEMBERS_BYTES // members + STRANGERS_BYTES)


def accredited_source(account: bytes) -> Source:
    """Return the source of batches of an accredited account outside the committee."""
    return Source(account, ACCREDITED_BYTES // 4, "accredited", ACCREDITED_BYTES)


def stranger_source(peer_id: str) -> Source:
    """Return the source of batches of anyone else."""
    return Source(peer_id.encode(), STRANGERS_BYTES // 4, "strangers", STRANGERS_BYTES)


def open_certified_batch(raw: bytes, chain_id: bytes) -> Batch:
    """Decode a batch whose signatures need no check; raises `InvalidInput`.

    That is so when a certified microblock names it: a quorum has checked these very bytes (the digest covers the signatures).
    """
    transactions = []
    for item in decode_batch(raw):
        transaction = check_shape(item, chain_id).transaction
        sender = address_of(transaction.sender)
        transactions.append(CheckedTransaction(transaction_id(item), item, sender, transaction))
    return Batch(batch_digest([checked.id for checked in transactions]), raw, tuple(transactions))


class DataRule(Protocol):
    """Which batches rest on published data that must be here before they are ordered or voted for; see `node.offchain.readiness`."""

    def arrived(self, batch: Batch) -> None:
        """A batch is pending now."""
        ...

    def left(self, digest: bytes) -> None:
        """A batch is pending no more."""
        ...

    def is_ready(self, digest: bytes) -> bool:
        """Tell whether all data of a pending batch is here."""
        ...


class NoData:
    """The rule of who neither orders nor votes: nothing rests on data."""

    def arrived(self, batch: Batch) -> None:
        """A batch is pending now."""

    def left(self, digest: bytes) -> None:
        """A batch is pending no more."""

    def is_ready(self, digest: bytes) -> bool:
        """Say that all data of a pending batch is here."""
        return True


class BatchPool:
    """Pending batches by digest; everything in it is durable in the store."""

    def __init__(self, store: Store, data: DataRule | None = None) -> None:
        """`data` holds batches back whose published data is not here; without it none is."""
        self._store = store
        self._data = data or NoData()
        self.members = 4
        """Size of the committee, which shares the room."""
        self._pending: dict[bytes, Batch] = {}
        self._loads: dict[bytes, Load] = {}
        # What each pending batch of others is charged to; own ones and those that only microblocks name have none.
        self._sources: dict[bytes, Source] = {}
        self._charged: Counter[bytes | str] = Counter()
        # Those that only microblocks name, oldest first: nobody was promised that they are kept.
        self._named: dict[bytes, None] = {}
        self._named_bytes = 0
        self._own: set[bytes] = set()
        self._own_bytes = 0
        self.trouble = ""
        """Why the store refused the last write; empty while it takes them."""

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._pending.values())

    @property
    def is_full(self) -> bool:
        """Tell whether no further batch may be made here: others would not take it either."""
        return self._own_bytes >= MEMBERS_BYTES // self.members

    def has_room(self, source: Source) -> bool:
        """Tell whether a small batch of the source would be kept."""
        account_full = self._charged[source.account] >= source.account_bytes
        return not account_full and self._charged[source.group] < source.group_bytes

    def add(self, batches: Sequence[Batch], source: Source | None = None) -> list[Batch]:
        """Make new batches durable and keep them; returns those that were new. Raises `StoreError`.

        Without a source they are such as a microblock names; see `drop_unneeded`. With one, those beyond its room are left out.
        """
        new: dict[bytes, Batch] = {}
        for batch in batches:
            if batch.digest in self._named and source is not None and self._charge(batch, source):
                self._forget_named(batch)  # here already, and kept from now on
            known = batch.digest in self._pending or batch.digest in new or self.is_committed(batch.digest)
            if not known and (source is None or self._charge(batch, source)):
                new[batch.digest] = batch
        self._keep(new.values())
        if source is None:
            self._named.update(dict.fromkeys(new))
            self._named_bytes += sum(map(memory_bytes, new.values()))
        return list(new.values())

    def keeps(self, digest: bytes) -> bool:
        """Tell whether a batch is committed, or stays here until it is or none of its transactions can be any more."""
        return digest not in self._named and not self.missing([digest])

    def drop_unneeded(self, needed: Collection[bytes]) -> list[Batch]:
        """Let go of the oldest batches beyond `NAMED_BYTES` that only microblocks name, but for those still needed; returns them.

        Whoever gave them may name or send them again. Raises `StoreError`.
        """
        dropped: list[Batch] = []
        surplus = self._named_bytes - NAMED_BYTES
        for digest in self._named:
            if surplus <= 0:
                break
            if digest not in needed:
                dropped.append(self._pending[digest])
                surplus -= memory_bytes(dropped[-1])
        if dropped:
            self._store.drop_batches([batch.digest for batch in dropped])
            self.remove([batch.digest for batch in dropped])
        return dropped

    def add_own(self, batch: Batch) -> bool:
        """Make a batch of own transactions durable and keep it; False when it is pending or committed already.

        Raises `StoreError`. Own batches are bounded where transactions are admitted, by `is_full`, and never refused here.
        """
        is_new = batch.digest not in self._pending and not self.is_committed(batch.digest)
        if batch.digest in self._named:
            self._forget_named(batch)
        elif not is_new:
            return False
        else:
            self._keep([batch])
        self._own.add(batch.digest)
        self._own_bytes += memory_bytes(batch)
        return is_new

    def restore(self, chain_id: bytes) -> list[Batch]:
        """Take up what was waiting when the node stopped, whose signatures were checked before it was stored; returns it.

        Bounded by the share of all members; what is beyond stays in the store and is fetched when a microblock names it.
        """
        restored: list[Batch] = []
        size = 0
        for _, raw in self._store.pending_batches():
            batch = open_certified_batch(raw, chain_id)
            size += memory_bytes(batch)
            if size > MEMBERS_BYTES:
                break
            self._hold(batch)
            restored.append(batch)
        return restored

    def get(self, digest: bytes) -> Batch | None:
        """Return a pending batch."""
        return self._pending.get(digest)

    def remove(self, digests: Collection[bytes]) -> None:
        """Let go of batches that were committed or dropped."""
        for digest in digests:
            batch = self._pending.pop(digest, None)
            if batch is None:
                continue
            self._data.left(digest)
            del self._loads[digest]
            source = self._sources.pop(digest, None)
            if source is not None:
                self._refund(batch, source)
            elif digest in self._own:
                self._own.discard(digest)
                self._own_bytes -= memory_bytes(batch)
            elif digest in self._named:
                self._forget_named(batch)

    def drop_expired(self, height: int, named: Collection[bytes]) -> list[Batch]:
        """Forget batches none of whose transactions can commit after `height`; returns them. Raises `StoreError`.

        Those that an uncommitted microblock names stay: it may be final somewhere, and then all nodes need them.
        """
        expired = [
            batch
            for digest, batch in self._pending.items()
            if digest not in named and all(_expiry(t) <= height for t in batch.transactions)
        ]
        if expired:
            self._store.drop_batches([batch.digest for batch in expired])
            self.remove([batch.digest for batch in expired])
        return expired

    def writes_work(self) -> None:
        """The store has taken a write."""
        if self.trouble:
            log.info("batches can be stored again")
        self.trouble = ""

    def _keep(self, batches: Collection[Batch]) -> None:
        try:
            if batches:
                self._store.put_batches([(batch.digest, batch.raw) for batch in batches])
                self.writes_work()
        except StoreError as error:
            if not self.trouble:  # once, not per batch: the log may lie on the same full disk
                log.warning("batches cannot be stored", error=str(error))
            self.trouble = str(error)
            for batch in batches:
                source = self._sources.pop(batch.digest, None)
                if source is not None:
                    self._refund(batch, source)
            raise
        for batch in batches:
            self._hold(batch)

    def _hold(self, batch: Batch) -> None:
        self._pending[batch.digest] = batch
        self._loads[batch.digest] = load_of(batch.transactions)
        self._data.arrived(batch)

    def _forget_named(self, batch: Batch) -> None:
        del self._named[batch.digest]
        self._named_bytes -= memory_bytes(batch)

    def _charge(self, batch: Batch, source: Source) -> bool:
        size = memory_bytes(batch)
        used = self._charged[source.account]
        # One batch is always taken while the group has room: the largest is larger than a share of 64 members.
        if (used and used + size > source.account_bytes) or self._charged[source.group] + size > source.group_bytes:
            return False
        self._charged[source.account] += size
        self._charged[source.group] += size
        self._sources[batch.digest] = source
        return True

    def _refund(self, batch: Batch, source: Source) -> None:
        for charged in (source.account, source.group):
            self._charged[charged] -= memory_bytes(batch)
            if not self._charged[charged]:
                del self._charged[charged]

    # ------------------------------------------------------------------ consensus.events.Payload

    def missing(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests whose batches are not here."""
        return tuple(d for d in digests if d not in self._pending and not self.is_committed(d))

    def not_ready(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests whose batches, or the data that they publish, are not here."""
        missing = self.missing(digests)
        return tuple(d for d in digests if d in missing or (d in self._pending and not self._data.is_ready(d)))

    def is_too_much(self, digests: Sequence[bytes]) -> bool:
        """Tell whether those of the batches that are pending here ask for more than a microblock may."""
        return not sum((self._loads[digest] for digest in digests if digest in self._loads), Load()).fits

    def select(self, excluded: Collection[bytes], limit: int) -> tuple[bytes, ...]:
        """Return up to `limit` pending digests that are ready and not excluded, in order of arrival, as many as a microblock may name."""
        chosen: list[bytes] = []
        total = Load()
        for digest, load in self._loads.items():
            # A batch too large by itself must not stand in front of the others; it can come only with a certificate of a faulty quorum.
            if digest in excluded or not load.fits or not self._data.is_ready(digest):
                continue
            total += load
            if len(chosen) >= limit or not total.fits:
                break
            chosen.append(digest)
        return tuple(chosen)

    def is_committed(self, digest: bytes) -> bool:
        """Tell whether a committed microblock names the batch."""
        return self._store.batch_height(digest) is not None


def memory_bytes(batch: Batch) -> int:
    """Return the memory that a pending batch takes, about."""
    return 2 * len(batch.raw) + _TRANSACTION_BYTES * len(batch.transactions)


def _expiry(checked: CheckedTransaction) -> int:
    return checked.transaction.expiry_height


def check_all(raws: Sequence[bytes], chain: Chain) -> list[CheckedTransaction | Rejection]:
    """Check transactions one by one; for worker threads."""
    outcomes: list[CheckedTransaction | Rejection] = []
    for raw in raws:
        try:
            outcomes.append(check_transaction(raw, chain))
        except Rejection as rejection:
            outcomes.append(rejection)
    return outcomes


def open_asked(
    raws: Sequence[bytes], asked: frozenset[bytes], certified: frozenset[bytes], chain: Chain
) -> list[Batch | InvalidInput]:
    """Open what was asked for: signatures are checked unless a quorum has certified the batch. For worker threads."""
    opened: list[Batch | InvalidInput] = []
    for raw in raws:
        try:
            # Its digest first, which is cheap: nobody makes us check signatures that nobody asked for.
            digest = batch_digest([transaction_id(item) for item in decode_batch(raw)])
            if digest not in asked:
                raise InvalidInput(f"batch {digest.hex()} was not asked for")
            opened.append(open_certified_batch(raw, chain.id) if digest in certified else check_batch(raw, chain))
        except InvalidInput as error:
            opened.append(error)
    return opened
