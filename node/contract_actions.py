# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do with off-chain contracts, each in one call: open, fund, send operations, force, freeze, close, claim.

Operations are signed here, and every receipt is checked here before anybody is told of it: the node between is not trusted.
"""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from contracts.machine import Machine
from contracts.reading import decode_outcomes
from contracts.registry import Registry
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger.bodies import Body
from ledger.codec import Digest, Wire, decode, decoder
from ledger.contract_bodies import (
    ClaimBalance,
    CloseContract,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, NotFound, SpchainError
from ledger.offchain import (
    BatchCommitment,
    ContractTerms,
    LeafProof,
    RequestBytes,
    RequestReceipt,
    SignedReceipt,
    holds_leaf,
    is_signed_receipt,
    request_digest,
)
from ledger.partial_tree import WitnessEntry
from ledger.state_tree import verify_state_proof
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed, rejection
from node.api import contract_models as models
from node.api.models import Hex, Model
from node.client import NodeClient
from node.http_client import ApiError, NodeUnreachable
from node.offchain.statuses import RESTS_ON, RequestStage
from records.claims import MAX_OUTCOMES_BYTES

MAX_COMMITMENT_BYTES = 1024
"""A commitment takes 190 bytes, and 36 more for each forced request that it answers for."""
MAX_PROOF_BYTES = 1024
"""A leaf with its path takes about 530 bytes."""
MAX_ENTRY_BYTES = 16 * 1024
"""A state entry with its proof takes about 1 KB, at most 12."""
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


# ---------------------------------------------------------------- contracts


def machine_named(name: str, version: int | None = None, registry: Registry = MACHINES) -> Machine[Any, Any]:
    """Return a machine by name, the newest version unless one is given. Raises `InvalidInput`."""
    found = [each for each in registry.machines if each.name == name and version in (None, each.version)]
    if not found:
        known = ", ".join(f"{each.name} {each.version}" for each in registry.machines)
        wanted = name if version is None else f"{name} {version}"
        raise InvalidInput(f"no machine {wanted!r} here; there are: {known}")
    return max(found, key=lambda each: each.version)


def terms_of(contract: models.Contract) -> ContractTerms:
    """Return a contract's terms, as the node says them."""
    return ContractTerms(
        contract.contract_id, contract.machine, contract.version, contract.raw_parameters, contract.operator
    )


def machine_of(contract: models.Contract) -> Machine[Any, Any]:
    """Return a contract's machine. Raises `InvalidInput`."""
    return machine_named(contract.machine, contract.version)


class Opened(Model):
    """A contract that was opened."""

    contract_id: Hex
    """Its identifier."""
    transaction_id: Hex
    """The transaction that opened it."""
    height: int
    """Height of the microblock."""


def open_contract(
    actor: Actor, machine: Machine[Any, Any], parameters: bytes, bond_microcredit: int, timeout_s: float
) -> Opened:
    """Open a contract that the actor's key operates. Raises as `Actor.commit`."""
    key = actor.identity.signing
    # A nonce serves once, so it numbers what an account opens.
    number = actor.client.account(key.address).next_nonce
    body = OpenContract(number, machine.name, machine.version, parameters, bond_microcredit)
    done = actor.commit(body, timeout_s)
    return Opened(contract_id=contract_id_of(key.public_key, number), transaction_id=done.id, height=done.height)


def minimum_bond(actor: Actor) -> int:
    """Return the smallest bond that the network takes, in millionths of a credit."""
    return actor.rules.genesis.parameters.contracts.minimum_bond_microcredit


def fund(actor: Actor, contract_id: bytes, account: bytes, amount: int, timeout_s: float) -> Committed:
    """Pay credits into a contract for an account."""
    return actor.commit(FundContract(contract_id, account, amount), timeout_s)


def close(actor: Actor, contract_id: bytes, timeout_s: float) -> int:
    """As the operator, have the own node bring all that was promised to the chain and end a contract; returns the height.

    Raises `ApiError` when the node does not operate it, or is not done in time: then the contract goes on.
    """
    (order,) = actor.sign([CloseContract(contract_id)])
    client = actor.client.contracts
    deadline = time.monotonic() + timeout_s
    closing = client.close(contract_id, order, min(int(timeout_s * 1000), models.MAX_CLOSE_MS))
    if not closing.accepted:
        raise rejection(closing.reason, closing.detail)
    while True:
        found = client.contract(contract_id)
        if found.status != "open":
            return found.settles_height - found.window_microblocks
        if time.monotonic() >= deadline:
            raise NotFarEnough(f"the contract is not closed after {timeout_s:g} s; it may still be")
        time.sleep(PAUSE_S)


def close_at_once(actor: Actor, contract_id: bytes, timeout_s: float) -> int:
    """As the operator, end a contract whatever its node has promised since the last batch; returns the height."""
    return actor.commit(CloseContract(contract_id), timeout_s).height


def freeze(actor: Actor, contract_id: bytes, timeout_s: float) -> Committed:
    """End a contract whose operator leaves a forced request unanswered."""
    return actor.commit(FreezeContract(contract_id), timeout_s)


def release_bond(actor: Actor, contract_id: bytes, timeout_s: float) -> Committed:
    """Have the bond of a settled contract paid back to its operator."""
    return actor.commit(ReleaseBond(contract_id), timeout_s)


# ---------------------------------------------------------------- operations


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
    actor: Actor, contract: models.Contract, operations: Sequence[msgspec.Struct], sequence: int | None = None
) -> Prepared:
    """Sign operations as the sender's next ones. Raises `InvalidInput`; `NotFound` when nobody knows the next number."""
    key = actor.identity.signing
    if sequence is None:
        sequence = actor.client.contracts.account(contract.contract_id, key.address).next_sequence
        if sequence is None:
            raise NotFound(
                "the contract's operator cannot be asked for the number of the next operation: name it with --sequence"
            )
    raw = sign_request(actor.rules.chain_id, key, contract.contract_id, sequence, operations)
    return Prepared(contract, key.address, sequence, tuple(operations), raw)


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
            passes = isinstance(error, NodeUnreachable) or error.status == HTTPStatus.SERVICE_UNAVAILABLE
            if not passes:
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
    client: NodeClient,
    contract_id: bytes,
    sender: bytes,
    sequence: int,
    goal: Goal,
    timeout_s: float,
    seen: Callable[[models.RequestStatus], None] = lambda _: None,
) -> models.RequestStatus:
    """Wait until a request has come so far; `seen` is told of each change. Raises `NotFarEnough`, `Voided`, `ApiError`."""
    deadline = time.monotonic() + timeout_s
    last: str | None = None
    while True:
        status = _status_within(client, contract_id, sender, sequence, deadline)
        if status.status != last:
            seen(status)
            last = status.status
        if status.status == "voided":
            raise Voided(f"operation {sequence} has lost its place; {status.rests_on}")
        if _RUNGS.index(status.status) >= _RUNGS.index(goal):
            return status
        if time.monotonic() >= deadline:
            raise NotFarEnough(
                f"operation {sequence} is {status.status}, not {goal}, after {timeout_s:g} s; it goes on by itself: "
                f"spchain contract status {contract_id.hex()} {sender.hex()} {sequence}"
            )
        time.sleep(PAUSE_S)


def _status_within(
    client: NodeClient, contract_id: bytes, sender: bytes, sequence: int, deadline: float
) -> models.RequestStatus:
    """Return how far a request has come, from an operator that may be away for a while."""
    while True:
        try:
            return client.contracts.status(contract_id, sender, sequence)
        except ApiError as error:
            if error.status != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() >= deadline:
                raise
            time.sleep(PAUSE_S)


def status_by_receipt(client: NodeClient, contract: models.Contract, answer: KeptAnswer) -> models.RequestStatus:
    """Return how far a request has come by its receipt and the chain alone; the operator is not asked.

    Raises `InvalidInput` when the batch has another leaf than the operator has promised.
    """
    receipt = answer.signed.receipt
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


# ---------------------------------------------------------------- credits


class Claimed(Model):
    """What was paid out of a contract to an account."""

    account: Hex
    """The account, which is paid whoever asks."""
    amount_microcredit: int
    """What the state proves to be owed, and untaken deposits, in millionths of a credit."""
    heights: tuple[int, ...]
    """Heights of the microblocks that paid it."""


def claim(actor: Actor, contract: models.Contract, account: bytes, timeout_s: float = DEFAULT_TIMEOUT_S) -> Claimed:
    """Have an account paid all that a contract owes it by now. Raises `NotFound` when that is nothing."""
    client, contract_id = actor.client, contract.contract_id
    keys = MACHINES.payable_keys(terms_of(contract), account)
    if keys is None:
        raise InvalidInput(f"machine {contract.machine} takes no deposits, so nobody can claim anything")
    amount = 0
    bodies: list[Body] = []
    inside = client.contracts.account(contract_id, account)
    number = contract.final_count - 1
    if number >= 0:
        wanted = (keys.withdrawn, keys.balance) if contract.is_settled and not inside.is_settled else (keys.withdrawn,)
        entries = tuple(proved_value(client, contract, number, key) for key in wanted)
        values = [0 if entry.value is None else decode(int, entry.value, 16) for entry in entries]
        owed = values[0] - inside.claimed_microcredit + sum(values[1:])
        if owed:
            amount += owed
            bodies.append(ClaimBalance(contract_id, account, number, entries))
    deposits = [row for row in client.contracts.forced(contract_id) if row.is_reclaimable and row.account == account]
    amount += sum(row.amount_microcredit or 0 for row in deposits)
    bodies += [ReclaimDeposit(contract_id, row.number) for row in deposits]
    if not bodies:
        later = "" if contract.is_settled else "; balances are paid once it has ended and is settled"
        raise NotFound(f"the contract owes account {account.hex()} nothing that can be paid now{later}")
    heights = tuple(actor.commit(body, timeout_s).height for body in bodies)
    return Claimed(account=account, amount_microcredit=amount, heights=heights)


def proved_value(client: NodeClient, contract: models.Contract, number: int, key: bytes) -> WitnessEntry:
    """Return a state entry at the end of a batch, checked against the root that the node says it has. Raises `InvalidInput`."""
    given = client.contracts.value_proof(contract.contract_id, number, key)
    entry = decode(WitnessEntry, given.entry, MAX_ENTRY_BYTES)
    root = client.contracts.batch(contract.contract_id, number).new_root
    if entry.key != key or not verify_state_proof(root, key, entry.value, entry.proof):
        raise InvalidInput(
            f"the node's proof of state key {key.hex()} at batch {number} does not hold; use another node"
        )
    return entry
