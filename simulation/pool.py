# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica's batches: kept in its durable store, checked once, offered to the core in order of arrival."""

from collections.abc import Collection, Sequence
from functools import lru_cache

from ledger.chain import Chain, chain_of
from ledger.memory_store import MemoryStore
from ledger.transactions import (
    CheckedTransaction,
    batch_digest,
    check_transaction,
    decode_batch,
)


# A pure function that every replica of a run would repeat at 60 µs per transaction.
@lru_cache(maxsize=4096)
def read_batch(raw: bytes, chain: Chain) -> tuple[bytes, tuple[CheckedTransaction, ...]]:
    """Return digest and checked transactions of a batch; raises `InvalidInput`."""
    transactions = tuple(check_transaction(transaction, chain) for transaction in decode_batch(raw))
    return batch_digest([transaction.id for transaction in transactions]), transactions


class Pool:
    """Implements `consensus.events.Payload` over a store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._chain = chain_of(store.genesis)
        self._pending = dict.fromkeys(digest for digest, _ in store.pending_batches())

    def add(self, raw: bytes) -> bytes:
        """Keep a batch and return its digest; raises `InvalidInput`."""
        digest, _ = read_batch(raw, self._chain)
        self._store.put_batches([(digest, raw)])
        if not self.is_committed(digest):
            self._pending.setdefault(digest)
        return digest

    def pending(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return digest and encoding of the batches that wait to be ordered."""
        return tuple((digest, self._raw(digest)) for digest in self._pending)

    def transactions(self, digest: bytes) -> tuple[CheckedTransaction, ...]:
        """Return the transactions of a batch that is here."""
        return read_batch(self._raw(digest), self._chain)[1]

    def _raw(self, digest: bytes) -> bytes:
        raw = self._store.batch(digest)
        assert raw is not None, "what waits or is committed is here"
        return raw

    def committed(self, digests: Sequence[bytes]) -> None:
        """Note that batches were ordered."""
        for digest in digests:
            self._pending.pop(digest, None)

    def missing(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests whose batches are not here."""
        return tuple(digest for digest in digests if self._store.batch(digest) is None)

    def not_ready(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests for which a replica does not vote yet: nothing here publishes data beside the chain."""
        return self.missing(digests)

    def select(self, excluded: Collection[bytes], limit: int) -> tuple[bytes, ...]:
        """Return up to `limit` pending digests that are not excluded, in order of arrival."""
        chosen = [digest for digest in self._pending if digest not in excluded]
        return tuple(chosen[:limit])

    def is_committed(self, digest: bytes) -> bool:
        """Tell whether a committed microblock names the batch."""
        return self._store.batch_height(digest) is not None
