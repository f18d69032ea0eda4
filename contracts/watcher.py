# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher of a contract: executes what an operator has published, and makes the proof when a leaf is wrong.

It needs the state at the end of the last right batch, and nobody's help. The first wrong leaf is the one to dispute: all before it are
right, so its pre-state is known, and the judge needs no more than that.
"""

from collections.abc import Sequence

from contracts.batch_data import BatchData, leaf_of, open_data, prove_leaf
from contracts.execution import execute, sequence_key
from contracts.operator import Start
from contracts.registry import Registry
from contracts.requests import check_request
from contracts.state_map import Changes, StateMap
from ledger.errors import InvalidInput
from ledger.offchain import (
    BatchCommitment,
    BrokenReceipt,
    ContractTerms,
    FraudProof,
    InvalidRequest,
    Place,
    RequestLeaf,
    SignedReceipt,
    WrongEnd,
    WrongExecution,
    WrongForced,
    is_forced,
    is_signed_receipt,
)


class Watcher:
    """Follows one contract, batch by batch."""

    def __init__(self, chain_id: bytes, terms: ContractTerms, registry: Registry, start: Start | None = None) -> None:
        """Take where to begin; raises `InvalidInput` for terms that nobody can execute."""
        start = start or Start()
        self._chain_id, self._terms = chain_id, terms
        self._bound = registry.bind(terms)
        self.state = StateMap(start.entries)
        self.number, self._time_ms = start.number, start.time_ms

    def start(self) -> Start:
        """Return the state at the end of the last right batch: where an operator or another watcher may begin."""
        return Start(self.number, self._time_ms, tuple(self.state.entries()))

    def follow(self, commitment: BatchCommitment, raw: bytes) -> FraudProof | None:
        """Execute the next batch; returns the proof if it is wrong, and then stays at the end of the batch before.

        Raises `InvalidInput` for a batch that is not the next one, or data that is not what the commitment binds: members of the committee
        vote for no commitment without its data, so it is the data that has to be asked for again.
        """
        place = (self._terms.contract_id, self.number, self.state.root(), self._time_ms)
        if (commitment.contract_id, commitment.number, commitment.previous_root, commitment.from_ms) != place:
            detail = f"batch {commitment.number} does not follow from batch {self.number} with root {place[2].hex()}"
            raise InvalidInput(f"{detail} at {self._time_ms} ms")
        data = open_data(commitment, raw)
        undo: list[Changes] = []
        wrong = self._wrong_leaf(commitment, data, undo) or _wrong_commitment(commitment, data)
        if wrong is not None:
            for changes in reversed(undo):
                self.state.apply(changes)
            return wrong
        self.number += 1
        self._time_ms = commitment.until_ms
        return None

    def _wrong_leaf(self, commitment: BatchCommitment, data: BatchData, undo: list[Changes]) -> WrongExecution | None:
        """Execute all leaves up to the first wrong one; notes in `undo` what takes it back."""
        earliest_ms, total = commitment.from_ms, 0
        for index, item in enumerate(data.items):
            leaf = leaf_of(item)
            if not earliest_ms <= leaf.time_ms <= commitment.until_ms:
                return self._dispute(data, index, ())
            try:
                request = check_request(self._chain_id, self._terms.contract_id, item.request)
            except InvalidRequest:
                return self._dispute(data, index, ())
            forced = is_forced(commitment, index, request.digest)
            try:
                executed = execute(
                    self._bound, Place(commitment.number, index, leaf.time_ms, forced), request, self.state
                )
            except InvalidRequest:
                return self._dispute(data, index, (sequence_key(request.sender),))
            replay = executed.replay
            changes = self.state.apply(replay.changes)
            total += replay.operation_count
            right = RequestLeaf(request.digest, leaf.time_ms, total, replay.outcomes_digest, self.state.root())
            if right != leaf:
                # The tree is a function of its content: taken back, it proves what was before.
                self.state.apply(changes)
                return self._dispute(data, index, executed.touched)
            undo.append(changes)
            earliest_ms = leaf.time_ms
        return None

    def _dispute(self, data: BatchData, index: int, touched: Sequence[bytes]) -> WrongExecution:
        previous = prove_leaf(data, index - 1) if index else None
        return WrongExecution(data.items[index].request, previous, prove_leaf(data, index), self.state.witness(touched))

    def broken_receipt(self, signed: SignedReceipt, commitment: BatchCommitment, raw: bytes) -> BrokenReceipt | None:
        """Return the proof that a batch breaks a receipt; None if it keeps it, or the receipt is about something else."""
        receipt = signed.receipt
        if (receipt.contract_id, receipt.number) != (self._terms.contract_id, commitment.number):
            return None
        if not is_signed_receipt(self._chain_id, self._terms.operator, signed):
            return None
        data = open_data(commitment, raw)
        if receipt.index >= len(data.items):
            return BrokenReceipt(signed, None)
        if leaf_of(data.items[receipt.index]) == receipt.leaf:
            return None
        return BrokenReceipt(signed, prove_leaf(data, receipt.index))


def _wrong_commitment(commitment: BatchCommitment, data: BatchData) -> WrongEnd | WrongForced | None:
    """Compare a commitment with its leaves, which are right."""
    last = data.items[-1]
    if (last.root, last.operation_total) != (commitment.new_root, commitment.operation_count):
        return WrongEnd(prove_leaf(data, len(data.items) - 1))
    for entry, place in enumerate(commitment.forced):
        if place.index >= len(data.items):
            return WrongForced(entry, None)
        if leaf_of(data.items[place.index]).request_digest != place.request_digest:
            return WrongForced(entry, prove_leaf(data, place.index))
    return None
