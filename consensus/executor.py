# SPDX-License-Identifier: GPL-3.0-or-later
"""Executes and stores what the core commits: transactions, then the epoch's account, then, when a keyblock is pinned, the next epoch.

One store transaction per microblock, and the store is the truth: what is kept in memory here follows from it at any time, so an executor
that takes up a store goes on like one that has lived through the chain. When the store refuses a microblock, nothing changes here either.
"""

from collections.abc import Sequence

import msgspec

from consensus.accounting import account_microblock
from consensus.epoch import Basis, Chain, Epoch
from consensus.events import Commit
from consensus.founding import founding_record
from consensus.pinning import Pinned, pin
from consensus.restart import decode_signed, epoch_record
from consensus.standings import Standings
from consensus.weight import (
    ChainWeight,
    after_keyblock,
    after_microblock,
    certified_share_nano,
    founding_weight,
    weight_of,
)
from ledger.acts import BlockContext
from ledger.blocks import MicroblockHeader
from ledger.bodies import CommitRecord
from ledger.codec import decoder, encode
from ledger.errors import StoreError
from ledger.genesis import chain_id, genesis_block
from ledger.miners import EpochRecord
from ledger.offchain import MachineRegistry
from ledger.state import MINERS, State, scan
from ledger.store import BlockUpdate, Head, Store
from ledger.transactions import CheckedTransaction
from ledger.transition import Execution, apply_transactions, conclude

_decode_weight = decoder(ChainWeight, 256, own=True)


class Done(msgspec.Struct, frozen=True):
    """A microblock that has been executed and stored."""

    head: Head
    """The head after it."""
    execution: Execution
    """What it changed."""
    epoch: Epoch | None
    """The epoch that it began, when it pinned a keyblock."""


class Executor:
    """The committed side of one chain: its store, its running epoch, the standing of its miners."""

    def __init__(self, store: Store, machines: MachineRegistry) -> None:
        """Take up what the store holds, and the machines of off-chain contracts. Raises `StoreError` when the store is incomplete."""
        genesis, progress = store.genesis, State(store).progress()
        parameters = genesis.parameters
        self._store = store
        self._machines = machines
        self._chain = Chain(chain_id(genesis), parameters)
        # Only founders and creators of keyblocks have a history.
        most_miners = len(genesis.committee) + progress.epoch
        miners = scan(store, MINERS, b"", b"", most_miners)
        self.standings = Standings(parameters.reputation, parameters.term_microblocks, progress.epoch, miners)
        """Who has which reputation, as of the newest pinned keyblock."""
        record = self._record(progress.epoch)
        self.epoch = self._begin(progress.epoch, record, self._root_header(record), progress.timestamps_ms)
        """The running epoch."""
        raw, founding_target = store.weight(), int.from_bytes(parameters.work.limit, "big")
        self._weight = founding_weight(founding_target) if raw is None else _decode_weight(raw)

    @property
    def weight(self) -> int:
        """Weight of the chain up to its head, in expected hashes: this node's own judgement."""
        return weight_of(self._weight, self._chain.parameters.weight)

    def commit(self, commit: Commit, transactions: Sequence[CheckedTransaction]) -> Done:
        """Execute and store a committed microblock with its transactions. Raises `StoreError`, and then nothing has changed."""
        block, block_hash = commit.signed.microblock, commit.block_hash
        header, before, epoch, state = block.header, self._store.head(), self.epoch, State(self._store)
        assert header.parent == before.block_hash, "microblocks are committed one after the other"
        context = BlockContext(
            height=header.height,
            timestamp_ms=header.timestamp_ms,
            parameters=epoch.parameters,
            chain_id=epoch.chain_id,
            epoch=epoch.number,
            machines=self._machines,
        )
        applied = apply_transactions(state, context, transactions)
        account_microblock(state, epoch, header, applied.fees_microcredit)
        pinned: Pinned | None = None
        if block.keyblock is not None:
            pinned = pin(state, self.standings, epoch, header, block_hash, block.keyblock)
        execution = conclude(state, before.state_digest, applied.receipts)
        head = _head_after(before, header, block_hash, execution, transactions)
        weight = self._weight_after(commit)
        self._store.commit(
            BlockUpdate(
                head=head,
                microblock=encode(commit.signed),
                certificate=encode(commit.block.certificate),
                batches=block.batches,
                changes=execution.changes,
                receipts=execution.receipts,
                closing=encode(commit.closing) if pinned is not None else b"",
                weight=encode(weight),
                keeps_root=pinned is not None,
            )
        )
        self._weight = weight
        if pinned is None:
            return Done(head, execution, None)
        number = epoch.number + 1
        self.standings.apply(pinned.histories, number)
        self.epoch = self._begin(number, pinned.record, header, pinned.timestamps_ms)
        return Done(head, execution, self.epoch)

    def _weight_after(self, commit: Commit) -> ChainWeight:
        share_nano = certified_share_nano(self.epoch.committee, commit.block.certificate)
        weight, pinned = after_microblock(self._weight, share_nano), commit.signed.microblock.keyblock
        if pinned is None:
            return weight
        return after_keyblock(weight, int.from_bytes(pinned.keyblock.target, "big"), self._chain.parameters.weight)

    def _begin(self, number: int, record: EpochRecord, root: MicroblockHeader, timestamps_ms: tuple[int, ...]) -> Epoch:
        state_root = self._store.root_at(record.root_height)
        if state_root is None:
            raise _incomplete(f"the root of the state after microblock {record.root_height}")
        basis = Basis(number, record, root, state_root, timestamps_ms)
        return Epoch(self._chain, basis, self.standings.reputation_nano)

    def _record(self, number: int) -> EpochRecord:
        if number == 0:
            root_hash = self._store.block_hash(0)
            assert root_hash is not None, "a store begins with the genesis"
            return founding_record(self._store.genesis, root_hash)
        record = epoch_record(self._store, number)
        if record is None:
            raise _incomplete(f"how epoch {number} began")
        return record

    def _root_header(self, record: EpochRecord) -> MicroblockHeader:
        store = self._store
        if record.root_height == 0:
            founding_digest = store.state_digest(0)
            assert founding_digest is not None, "a store begins with the genesis"
            return genesis_block(store.genesis, founding_digest).header
        raw = store.microblock(record.root_hash)
        if raw is None:
            raise _incomplete(f"microblock {record.root_hash.hex()}, which the running epoch began with")
        return decode_signed(raw).microblock.header


def _head_after(
    before: Head,
    header: MicroblockHeader,
    block_hash: bytes,
    execution: Execution,
    transactions: Sequence[CheckedTransaction],
) -> Head:
    effective = [t for t, (_, receipt) in zip(transactions, execution.receipts, strict=True) if not receipt.reason]
    return Head(
        height=header.height,
        block_hash=block_hash,
        round=header.round,
        timestamp_ms=header.timestamp_ms,
        state_digest=execution.state_digest,
        transaction_count=before.transaction_count + len(effective),
        record_count=before.record_count + sum(isinstance(t.transaction.body, CommitRecord) for t in effective),
    )


def _incomplete(what: str) -> StoreError:
    return StoreError(f"the store lacks {what}; restore it, or begin with an empty directory")
