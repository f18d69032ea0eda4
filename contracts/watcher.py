# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher of a contract: executes what an operator has published, and makes the proof when a leaf is wrong.

It needs the state at the end of the last right batch, and nobody's help. The first wrong leaf is the one to dispute: all before it are
right, so its pre-state is known, and the judge needs no more than that.

The roots of all leaves cost more than the rest together. So of a large batch only the last root is computed at first, and the leaves are
looked at one by one once anything differs. What escapes then is a wrong root in the middle of a batch whose outcomes and end are right:
nobody is shown a proof under such a root, no later batch begins at it, and nothing else is wrong. See decision 0034.
"""

from collections.abc import Callable, Iterable, Sequence

from contracts.batch_data import BatchData, leaf_of, open_data, prove_leaf
from contracts.execution import execute, keys_of
from contracts.operator import Start
from contracts.registry import Registry
from contracts.requests import CheckedRequest, check_request
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

THOROUGH_LEAVES = 64
"""Up to so many requests the root after each of them is computed in any case: some 20 ms."""
REST_LEAVES = 16
"""Requests between two calls of `Watcher.rest`: some 2 ms of operations."""


def check_all(chain_id: bytes, contract_id: bytes, raws: Iterable[bytes]) -> list[CheckedRequest | InvalidRequest]:
    """Check requests, each by itself; tells of each wrong one what is wrong. Signatures are checked without the interpreter's lock."""
    found: list[CheckedRequest | InvalidRequest] = []
    for raw in raws:
        try:
            found.append(check_request(chain_id, contract_id, raw))
        except InvalidRequest as error:
            found.append(error)
    return found


class Watcher:
    """Follows one contract, batch by batch."""

    def __init__(
        self,
        chain_id: bytes,
        terms: ContractTerms,
        registry: Registry,
        start: Start | None = None,
        *,
        thorough_leaves: int = THOROUGH_LEAVES,
    ) -> None:
        """Take where to begin; raises `InvalidInput` for terms that nobody can execute."""
        start = start or Start()
        self._chain_id, self._terms = chain_id, terms
        self._bound = registry.bind(terms)
        self._thorough_leaves = thorough_leaves
        self.state = StateMap(start.entries)
        self.number, self._time_ms = start.number, start.time_ms
        self.rest: Callable[[], None] = lambda: None
        """Called every `REST_LEAVES` requests, in the thread that executes them: whoever has more urgent work lets that go first."""

    def start(self) -> Start:
        """Return the state at the end of the last right batch: where an operator or another watcher may begin."""
        return Start(self.number, self._time_ms, tuple(self.state.entries()))

    def follow(self, commitment: BatchCommitment, raw: bytes) -> FraudProof | None:
        """Execute the next batch; returns the proof if it is wrong, and then stays at the end of the batch before.

        Raises `InvalidInput` for a batch that is not the next one, or data that is not what the commitment binds: members of the committee
        vote for no commitment without its data, so it is the data that has to be asked for again.
        """
        self._require_next(commitment)
        data = open_data(commitment, raw)
        raws = [item.request for item in data.items]
        return self.follow_checked(commitment, data, check_all(self._chain_id, self._terms.contract_id, raws))

    def follow_checked(
        self, commitment: BatchCommitment, data: BatchData, requests: Sequence[CheckedRequest | InvalidRequest]
    ) -> FraudProof | None:
        """Do as `follow` does with data that was opened for the commitment, and with what `check_all` has found of its requests."""
        self._require_next(commitment)
        assert len(requests) == len(data.items), "all requests of the batch are checked"
        is_thorough = len(data.items) <= self._thorough_leaves
        wrong = self._wrong_batch(commitment, data, requests, each_root=is_thorough)
        if wrong is not None and not is_thorough:
            wrong = self._wrong_batch(commitment, data, requests, each_root=True)
            assert wrong is not None, "what differs with the claimed roots differs with the right ones"
        if wrong is None:
            self.number += 1
            self._time_ms = commitment.until_ms
        return wrong

    def _require_next(self, commitment: BatchCommitment) -> None:
        place = (self._terms.contract_id, self.number, self.state.root(), self._time_ms)
        if (commitment.contract_id, commitment.number, commitment.previous_root, commitment.from_ms) != place:
            detail = f"batch {commitment.number} does not follow from batch {self.number} with root {place[2].hex()}"
            raise InvalidInput(f"{detail} at {self._time_ms} ms")

    def _wrong_batch(
        self,
        commitment: BatchCommitment,
        data: BatchData,
        requests: Sequence[CheckedRequest | InvalidRequest],
        *,
        each_root: bool,
    ) -> FraudProof | None:
        """Execute a batch; takes it back if it is wrong. Without `each_root` only the last root is compared."""
        undo: list[Changes] = []
        wrong = self._wrong_leaf(commitment, data, requests, undo, each_root=each_root) or _wrong_commitment(
            commitment, data
        )
        if wrong is not None:
            for changes in reversed(undo):
                self.state.apply(changes)
        return wrong

    def _wrong_leaf(
        self,
        commitment: BatchCommitment,
        data: BatchData,
        requests: Sequence[CheckedRequest | InvalidRequest],
        undo: list[Changes],
        *,
        each_root: bool,
    ) -> WrongExecution | None:
        """Execute all leaves up to the first wrong one; notes in `undo` what takes it back."""
        earliest_ms, total, last = commitment.from_ms, 0, len(data.items) - 1
        for index, (item, request) in enumerate(zip(data.items, requests, strict=True)):
            leaf = leaf_of(item)
            if not earliest_ms <= leaf.time_ms <= commitment.until_ms or isinstance(request, InvalidRequest):
                return self._dispute(data, index, ())
            forced = is_forced(commitment, index, request.digest)
            place = Place(commitment.number, index, leaf.time_ms, forced)
            try:
                executed = execute(self._bound, place, request, self.state)
            except InvalidRequest:
                return self._dispute(data, index, keys_of(request.sender))
            replay = executed.replay
            changes = self.state.apply(replay.changes)
            total += replay.operation_count
            root = self.state.root() if each_root or index == last else leaf.root
            right = RequestLeaf(request.digest, leaf.time_ms, total, replay.outcomes_digest, root)
            if right != leaf:
                # The tree is a function of its content: taken back, it proves what was before.
                self.state.apply(changes)
                return self._dispute(data, index, executed.touched)
            undo.append(changes)
            earliest_ms = leaf.time_ms
            if index % REST_LEAVES == REST_LEAVES - 1:
                self.rest()
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
        return broken_promise(signed, open_data(commitment, raw))


def broken_promise(signed: SignedReceipt, data: BatchData) -> BrokenReceipt | None:
    """Return the proof that a batch breaks a receipt that the operator has signed for this very batch; None if it keeps it."""
    receipt = signed.receipt
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
