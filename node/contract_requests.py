# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to the operators of off-chain contracts, each in one call: sign, send, follow, force.

Operations are signed here, and every receipt is checked here before anybody is told of it: the node between is not trusted.
"""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Literal

import msgspec

from contracts.reading import decode_outcomes
from contracts.requests import sign_request
from ledger.codec import Digest, Wire, decode, decoder
from ledger.contract_bodies import ForceOperation
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, NotFound, RejectionReason, SpchainError
from ledger.offchain import (
    MAX_OUTCOMES_BYTES,
    BatchCommitment,
    LeafProof,
    RequestBytes,
    RequestReceipt,
    SignedReceipt,
    holds_leaf,
    is_signed_receipt,
    request_digest,
)
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed, rejection
from node.api import contract_models as models
from node.client import NodeClient
from node.http_client import ApiError, NodeUnreachable
from node.offchain.statuses import RESTS_ON, RequestStage

MAX_COMMITMENT_BYTES = 1024
"""A commitment takes 190 bytes, and 36 more for each forced request that it answers for."""
MAX_PROOF_BYTES = 1024
"""A leaf with its path takes about 530 bytes."""
MAX_ANSWER_BYTES = 24 * 1024
"""A request, its receipt and its outcomes."""
PAUSE_S = 0.2
_AGAIN_S = 1.0
Goal = Literal["included", "committed", "final"]
_RUNGS: tuple[models.Rung, ...] = ("received", "included", "committed", "final")


class NotFarEnough(SpchainError):
    """A request has not come as far as was waited for."""


class Unanswered(SpchainError):
    """Nobody has answered a request, which may have been executed all the same."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, prepared: "Prepared", error: ApiError | NodeUnreachable) -> None:
        super().__init__(
            f"{error}. Repeat the same operations with --sequence {prepared.first_sequence}: with this number they count once, also if "
            "they were taken this time"
        )
        self.reason = error.reason if isinstance(error, ApiError) else "no_answer"
        self.details = {"first_sequence": prepared.first_sequence}


class Voided(SpchainError):
    """A request has lost its place: the contract ended without its batch."""

    reason = "voided"


class KeptAnswer(Wire, frozen=True):
    """What a user keeps of a request: with it anybody can hold the operator to its word, and prove what came of it."""

    magic: Literal["spchain-receipt"]
    """What this is."""
    version: Literal[1]
    """Version of the format."""
    contract_id: Digest
    """The contract."""
    request: RequestBytes
    """The request."""
    signed: SignedReceipt
    """The operator's promise."""
    outcomes: bytes
    """Encoded outcomes of its operations."""


decode_answer = decoder(KeptAnswer, MAX_ANSWER_BYTES, name="receipt file")
"""Read a kept answer; raises `InvalidInput`. What it says is checked by `check_answer`."""


class Prepared(msgspec.Struct, frozen=True):
    """A signed request that is not sent yet."""

    contract: models.Contract
    """The contract."""
    sender: bytes
    """Address of the sender."""
    first_sequence: int
    """Number of its first operation among the sender's."""
    operations: tuple[msgspec.Struct, ...]
    """The operations."""
    raw: bytes
    """Its bytes."""


def prepare(
    actor: Actor,
    contract: models.Contract,
    operations: Sequence[msgspec.Struct],
    sequence: int | None = None,
    timeout_s: float = 0,
) -> Prepared:
    """Sign operations as the sender's next ones; without `sequence` the operator is asked for their number, for a while if it is away.

    Raises `InvalidInput`; `Rejection` for a contract that has ended; `NotFound` when nobody knows the next number.
    """
    if contract.status != "open":
        raise rejection(RejectionReason.CONTRACT_ENDED, f"contract {contract.contract_id.hex()} is {contract.status}")
    key = actor.identity.signing
    if sequence is None:
        sequence = _next_sequence(actor.client, contract.contract_id, key.address, time.monotonic() + timeout_s)
    raw = sign_request(actor.rules.chain_id, key, contract.contract_id, sequence, operations)
    return Prepared(contract, key.address, sequence, tuple(operations), raw)


def _next_sequence(client: NodeClient, contract_id: bytes, address: bytes, deadline: float) -> int:
    while True:
        following = client.contracts.account(contract_id, address).next_sequence
        if following is not None:
            return following
        if time.monotonic() >= deadline:
            raise NotFound(
                "the contract's operator cannot be asked for the number of the next operation: name it with --sequence"
            )
        time.sleep(_AGAIN_S)


def send(client: NodeClient, chain_id: bytes, prepared: Prepared, timeout_s: float = 0) -> KeptAnswer:
    """Bring a request to the operator, again and again for a while if it does not answer, and check what it answers.

    Raises:
        Rejection, ApiError: the operator does not take it; the reason says why.
        Unanswered: nobody has answered in time, so nobody knows whether it was taken.
        InvalidInput: the answer does not hold: nothing was promised.
    """
    (outcome,) = _send_until(client, prepared, time.monotonic() + timeout_s)
    if not outcome.accepted or outcome.receipt is None or outcome.outcomes is None:
        raise rejection(outcome.reason or "unanswered", outcome.detail or "the operator gave no receipt")
    return checked_answer(chain_id, prepared.contract, prepared.raw, outcome.receipt, outcome.outcomes)


def _send_until(client: NodeClient, prepared: Prepared, deadline: float) -> tuple[models.RequestOutcome, ...]:
    """Send the same bytes until somebody answers: the request counts once, and its receipt stays the same."""
    while True:
        try:
            return client.contracts.send(prepared.contract.contract_id, [prepared.raw])
        except (ApiError, NodeUnreachable) as error:
            if not _passes(error):
                raise
            if time.monotonic() >= deadline:
                raise Unanswered(prepared, error) from error
            time.sleep(_AGAIN_S)


def checked_answer(
    chain_id: bytes, contract: models.Contract, request: bytes, receipt: bytes, outcomes: bytes
) -> KeptAnswer:
    """Return an answer that the operator has signed and that fits the request. Raises `InvalidInput`."""
    signed = decode(SignedReceipt, receipt, models.MAX_RECEIPT_BYTES)
    answer = KeptAnswer("spchain-receipt", 1, contract.contract_id, request, signed, outcomes)
    check_answer(chain_id, contract, answer)
    return answer


def check_answer(chain_id: bytes, contract: models.Contract, answer: KeptAnswer) -> None:
    """Check that an answer is the operator's own and fits its request and outcomes. Raises `InvalidInput`."""
    receipt = answer.signed.receipt
    if not is_signed_receipt(chain_id, contract.operator, answer.signed):
        raise InvalidInput(f"the receipt is not signed by operator {contract.operator.hex()}; trust nothing of it")
    if {answer.contract_id, receipt.contract_id} != {contract.contract_id}:
        raise InvalidInput(f"the receipt is about contract {receipt.contract_id.hex()}; trust nothing of it")
    if receipt.leaf.request_digest != request_digest(answer.request):
        raise InvalidInput("the receipt is about another request than the one that was sent")
    if len(answer.outcomes) > MAX_OUTCOMES_BYTES:
        raise InvalidInput(f"the outcomes have {len(answer.outcomes)} bytes; at most {MAX_OUTCOMES_BYTES} are possible")
    if receipt.leaf.outcomes_digest != tagged_hash(Tag.OFFCHAIN_OUTCOMES, answer.outcomes):
        raise InvalidInput("the receipt is about other outcomes than those that came with it")
    decode_outcomes(answer.outcomes)


def wait_for(
    look: Callable[[], models.RequestStatus],
    goal: Goal,
    timeout_s: float,
    seen: Callable[[models.RequestStatus], None] = lambda _: None,
) -> models.RequestStatus:
    """Look how far a request is until it has come so far; `seen` is told of each change.

    A node or operator that is away for a while is asked again. Raises `NotFarEnough`, `Voided`, and what `look` raises.
    """
    deadline = time.monotonic() + timeout_s
    last: str | None = None
    while True:
        status = _look_within(look, deadline)
        if status.status != last:
            seen(status)
            last = status.status
        if status.status == "voided":
            raise Voided(f"the request has lost its place; it rests on {status.rests_on}")
        if _RUNGS.index(status.status) >= _RUNGS.index(goal):
            return status
        if time.monotonic() >= deadline:
            raise NotFarEnough(
                f"the request is {status.status}, not {goal}, after {timeout_s:g} s; it goes on by itself: "
                "spchain contract status tells how far it is"
            )
        time.sleep(PAUSE_S)


def _look_within(look: Callable[[], models.RequestStatus], deadline: float) -> models.RequestStatus:
    while True:
        try:
            return look()
        except (ApiError, NodeUnreachable) as error:
            if not _passes(error) or time.monotonic() >= deadline:
                raise
            time.sleep(PAUSE_S)


def _passes(error: ApiError | NodeUnreachable) -> bool:
    """Tell whether what failed may succeed when it is tried again."""
    return isinstance(error, NodeUnreachable) or error.status == HTTPStatus.SERVICE_UNAVAILABLE


def status_by_receipt(client: NodeClient, contract_id: bytes, answer: KeptAnswer) -> models.RequestStatus:
    """Return how far a request has come by its receipt and the chain alone; the operator is not asked.

    Raises `InvalidInput` when the batch has another leaf than the operator has promised.
    """
    contract, receipt = client.contracts.contract(contract_id), answer.signed.receipt
    number, index = receipt.number, receipt.index
    batch = client.contracts.batch(contract.contract_id, number) if number < contract.batch_count else None
    if batch is not None:
        _require_kept(client, contract, receipt)
    stage: RequestStage = "included" if contract.status == "open" else "voided"
    if batch is not None:
        stage = "final" if batch.status == "final" else "committed"
    return models.RequestStatus(
        status=stage,
        rests_on=RESTS_ON[stage],
        batch=number,
        index=index,
        height=None if batch is None else batch.height,
        final_height=None if batch is None else batch.final_height,
        cost=client.contracts.cost(contract.contract_id),
    )


def _require_kept(client: NodeClient, contract: models.Contract, receipt: RequestReceipt) -> None:
    """Check that a batch holds what a receipt promises. Raises `InvalidInput`."""
    broken = InvalidInput(
        f"batch {receipt.number} does not hold what the receipt promises: "
        f"spchain contract challenge {contract.contract_id.hex()} --receipt …"
    )
    commitment = decode(
        BatchCommitment, client.contracts.batch(contract.contract_id, receipt.number).commitment, MAX_COMMITMENT_BYTES
    )
    if receipt.index >= commitment.leaf_count:
        raise broken
    given = client.contracts.request_proof(contract.contract_id, receipt.number, receipt.index)
    proof = decode(LeafProof, given.proof, MAX_PROOF_BYTES)
    if proof.index != receipt.index or not holds_leaf(commitment, proof):
        raise InvalidInput(f"the node's proof of a place in batch {receipt.number} does not hold; use another node")
    if proof.leaf != receipt.leaf:
        raise broken


def force(actor: Actor, contract_id: bytes, raw: bytes, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """Put a signed request before the operator on the chain."""
    return actor.commit(ForceOperation(contract_id, raw), timeout_s)
