# SPDX-License-Identifier: GPL-3.0-or-later
"""What a chain's transactions cost a node: the microblocks that a network has made are checked, executed and stored once more, timed.

Timed is processor time, so that neither waiting for the disk nor what else the machine does is in it: checking transactions (shape and
signatures), checking the published data of commitments as a member does before it votes, and executing and storing the microblocks.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from consensus.block_tree import CertifiedMicroblock
from consensus.events import Commit
from consensus.executor import Executor
from consensus.restart import decode_certificate, decode_closing, decode_signed
from contracts.batch_data import check_data
from contracts.shipped import MACHINES
from ledger.chain import chain_of
from ledger.contract_bodies import CommitBatch
from ledger.lmdb_store import LmdbStore, open_store
from ledger.offchain import BatchCommitment
from ledger.store import Store
from ledger.transactions import CheckedTransaction, check_transaction, decode_batch

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Part:
    """A part of a chain: the microblocks after one height up to another."""

    after: int
    """Height before the first."""
    upto: int
    """Height of the last."""


@dataclass(frozen=True)
class Cost:
    """What a part of a chain takes."""

    microblocks: int
    """Its microblocks."""
    transactions: int
    """Transactions that took effect."""
    operations: int
    """What users did by them: one for each transaction, and for a commitment all operations of its batch."""
    chain_bytes: int
    """Microblocks, certificates and batches of transactions, as stored."""
    data_bytes: int
    """Data published for its commitments: no part of the chain, kept until they are final and for a time after."""
    check_us: float
    """Processor time to check its transactions, in microseconds."""
    data_us: float
    """Processor time to check the data of its commitments."""
    execute_us: float
    """Processor time to execute and store its microblocks."""

    @property
    def bytes_per_operation(self) -> float:
        """Bytes on the chain per operation."""
        return self.chain_bytes / self.operations

    @property
    def us_per_operation(self) -> float:
        """Processor time of the chain per operation, in microseconds."""
        return (self.check_us + self.data_us + self.execute_us) / self.operations


class _Meter:
    """Adds up one part."""

    def __init__(self) -> None:
        self.microblocks = self.transactions = self.operations = self.chain_bytes = self.data_bytes = 0
        self.check_ns = self.data_ns = self.execute_ns = 0

    def cost(self) -> Cost:
        return Cost(
            self.microblocks,
            self.transactions,
            self.operations,
            self.chain_bytes,
            self.data_bytes,
            self.check_ns / 1000,
            self.data_ns / 1000,
            self.execute_ns / 1000,
        )


def replay(source: Store, directory: Path, parts: Sequence[Part], data: Mapping[bytes, bytes]) -> list[Cost]:
    """Execute a chain from its genesis in a store of its own, and return what its parts took.

    `data` is what their commitments publish, by digest.
    """
    meters = [_Meter() for _ in parts]
    store = open_store(directory, source.genesis)
    try:
        replaying = _Replaying(source, store, data)
        for height in range(1, max(part.upto for part in parts) + 1):
            found = (meter for meter, part in zip(meters, parts, strict=True) if part.after < height <= part.upto)
            replaying.take(height, next(found, None))
    finally:
        store.close()
    return [meter.cost() for meter in meters]


class _Replaying:
    """A chain that is executed once more."""

    def __init__(self, source: Store, store: LmdbStore, data: Mapping[bytes, bytes]) -> None:
        self._source, self._store, self._data = source, store, data
        self._executor, self._chain = Executor(store, MACHINES), chain_of(source.genesis)

    def take(self, height: int, meter: _Meter | None) -> None:
        """Check, execute and store the next microblock; what goes before and between the parts is in no meter."""
        source = self._source
        block_hash = _there(source.block_hash(height))
        raw, certificate = _there(source.microblock(block_hash)), _there(source.certificate(block_hash))
        signed = decode_signed(raw)
        digests = signed.microblock.batches
        batches = [_there(source.batch(digest)) for digest in digests]
        closing = source.closing(block_hash)
        block = CertifiedMicroblock(signed, decode_certificate(certificate))
        commit = Commit(signed, block_hash, block, decode_closing(closing) if closing else ())
        self._store.put_batches(list(zip(digests, batches, strict=True)))
        transactions, check_ns = _timed(lambda: self._checked(batches))
        done, execute_ns = _timed(lambda: self._executor.commit(commit, transactions))
        assert done.head.state_digest == source.state_digest(height), f"microblock {height} comes to the same state"
        if meter is None:
            return
        meter.microblocks += 1
        meter.chain_bytes += len(raw) + len(certificate) + sum(map(len, batches))
        meter.check_ns += check_ns
        meter.execute_ns += execute_ns
        for checked, (_, receipt) in zip(transactions, done.execution.receipts, strict=True):
            body = checked.transaction.body
            if isinstance(body, CommitBatch):
                self._check_data(body.commitment, meter)
            if not receipt.reason:
                meter.transactions += 1
                meter.operations += body.commitment.operation_count if isinstance(body, CommitBatch) else 1

    def _checked(self, batches: Sequence[bytes]) -> list[CheckedTransaction]:
        return [check_transaction(item, self._chain) for batch in batches for item in decode_batch(batch)]

    def _check_data(self, commitment: BatchCommitment, meter: _Meter) -> None:
        published = self._data[commitment.data_digest]
        _, spent_ns = _timed(lambda: check_data(commitment, published))
        meter.data_ns += spent_ns
        meter.data_bytes += len(published)


def _there(found: bytes | None) -> bytes:
    assert found is not None, "the chain is complete"
    return found


def _timed(work: Callable[[], _Result]) -> tuple[_Result, int]:
    begun = time.process_time_ns()
    result = work()
    return result, time.process_time_ns() - begun
