# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica's batches: kept in its durable store, checked once, offered to the core in order of arrival.

A batch of transactions that commits off-chain batches is ready to be voted for only when their data is here, and is what they commit to.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from contracts.batch_data import check_data
from ledger.chain import Chain, chain_of
from ledger.contract_bodies import CommitBatch
from ledger.errors import InvalidInput
from ledger.load import load_of
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment
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


@lru_cache(maxsize=4096)
def commitments_of(raw: bytes, chain: Chain) -> tuple[BatchCommitment, ...]:
    """Return what a batch of transactions commits of off-chain contracts."""
    bodies = (checked.transaction.body for checked in read_batch(raw, chain)[1])
    return tuple(body.commitment for body in bodies if isinstance(body, CommitBatch))


@lru_cache(maxsize=4096)
def bears_out(commitment: BatchCommitment, data: bytes) -> bool:
    """Tell whether published data is what a commitment binds."""
    try:
        check_data(commitment, data)
    except InvalidInput:
        return False
    return True


class Pool:
    """Implements `consensus.events.Payload` over a store, and the published data of off-chain batches."""

    def __init__(self, store: MemoryStore, data: Mapping[bytes, bytes]) -> None:
        self._store = store
        self._data = data
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
        """Return those of the digests whose batches, or the data that they commit, are not here: a replica does not vote for them yet."""
        return tuple(digest for digest in digests if not self._is_here(digest))

    def lacks(self, digest: bytes) -> tuple[bytes, ...]:
        """Return the digests of data that a batch commits and that is not here; nothing for a batch that is not here itself."""
        raw = self._store.batch(digest)
        commitments = () if raw is None else commitments_of(raw, self._chain)
        return tuple(c.data_digest for c in commitments if c.data_digest not in self._data)

    def _is_here(self, digest: bytes) -> bool:
        raw = self._store.batch(digest)
        return raw is not None and self.has_data(commitments_of(raw, self._chain))

    def has_data(self, commitments: Sequence[BatchCommitment]) -> bool:
        """Tell whether data is here that bears out what is committed."""
        found = ((commitment, self._data.get(commitment.data_digest)) for commitment in commitments)
        return all(data is not None and bears_out(commitment, data) for commitment, data in found)

    def is_too_much(self, digests: Sequence[bytes]) -> bool:
        """Tell whether those of the batches that are here ask for more than a microblock may."""
        here = (digest for digest in digests if self._store.batch(digest) is not None)
        return not load_of(checked for digest in here for checked in self.transactions(digest)).fits

    def select(self, excluded: Collection[bytes], limit: int) -> tuple[bytes, ...]:
        """Return up to `limit` pending digests that are here and not excluded, in order of arrival, as many as a microblock may name."""
        chosen: list[bytes] = []
        for digest in self._pending:
            if digest in excluded or not self._is_here(digest):
                continue
            if len(chosen) >= limit or self.is_too_much((*chosen, digest)):
                break
            chosen.append(digest)
        return tuple(chosen)

    def is_committed(self, digest: bytes) -> bool:
        """Tell whether a committed microblock names the batch."""
        return self._store.batch_height(digest) is not None
