# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients do with the published data of off-chain contracts: claims for evidence files, and the search for a wrong batch.

Whatever a node gives is checked against commitments, and these, in evidence, against a keyblock. Batches are executed again from the
newest state after a final batch that the node keeps, whose root the chain has: the data of those before may be gone.
"""

from bisect import bisect_right
from collections.abc import Callable
from http import HTTPStatus

import msgspec

from contracts.batch_data import leaves_of, open_data
from contracts.execution import execute, outcomes_digest
from contracts.operator import Start
from contracts.requests import check_request
from contracts.shipped import MACHINES
from contracts.state_map import StateMap
from contracts.watcher import Watcher
from ledger.codec import decode, encode
from ledger.contract_bodies import ChallengeBatch
from ledger.errors import InvalidInput, NotFound, SpchainError
from ledger.offchain import (
    BatchCommitment,
    FraudProof,
    LeafProof,
    Place,
    holds_leaf,
    is_forced,
    request_digest,
)
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed
from node.api import contract_models as models
from node.client import NodeClient
from node.contract_actions import proved_value, terms_of
from node.contract_requests import MAX_COMMITMENT_BYTES, MAX_PROOF_BYTES, KeptAnswer, checked_answer
from node.http_client import ApiError
from node.offchain.contract_states import entries_of, require_full_pages
from node.proving import ProvedState
from records.claims import ContractValueClaim, OperationClaim

NOT_FOUND = HTTPStatus.NOT_FOUND
"""The node's status for what nobody has."""

MAX_STATE_BYTES = 64 * 1024 * 1024
"""Largest state that is taken from a node: more than the entries have that a contract has room for, as far as machines are shipped."""

Told = Callable[[int, int], None]
"""Is told how many batches of how many are executed."""


def commitment_of(batch: models.ContractBatch) -> BatchCommitment:
    """Return a batch's commitment as a node gives it. Raises `InvalidInput`."""
    return decode(BatchCommitment, batch.commitment, MAX_COMMITMENT_BYTES)


def proved_count(client: NodeClient, contract: models.Contract) -> int:
    """Return how many batches of a contract are final in the state that the newest pinned keyblock stands for, as the node says.

    Raises `NothingPinned`, `ApiError`.
    """

    def final_height(number: int) -> int:
        return client.contracts.batch(contract.contract_id, number).final_height

    return bisect_right(range(contract.final_count), ProvedState(client).height, key=final_height)


def value_claim(client: NodeClient, contract: models.Contract, number: int, key: bytes) -> ContractValueClaim:
    """Return the claim that a state key had its value at the end of a batch. Raises `InvalidInput`, `ApiError`."""
    return ContractValueClaim(contract.contract_id, number, proved_value(client, contract, number, key))


def operation_claim(
    client: NodeClient,
    chain_id: bytes,
    contract: models.Contract,
    number: int,
    index: int,
    answer: KeptAnswer | None = None,
    told: Told = lambda _done, _of: None,
) -> OperationClaim:
    """Return the claim that a request was executed with its outcomes, which are asked of whoever may know them.

    The published data holds outcomes by digest only. They come from the answer that the user has kept, else from the operator, which
    answers a request that is sent again as it did at first, else from executing all batches up to there.

    Raises:
        InvalidInput: what the node gives does not fit together.
        NotFound: nobody can tell the outcomes any more.
    """
    commitment = commitment_of(client.contracts.batch(contract.contract_id, number))
    given = client.contracts.request_proof(contract.contract_id, number, index)
    proof = decode(LeafProof, given.proof, MAX_PROOF_BYTES)
    if proof.index != index or not holds_leaf(commitment, proof):
        raise InvalidInput(f"the node's proof of place {index} of batch {number} does not hold; use another node")
    if request_digest(given.request) != proof.leaf.request_digest:
        raise InvalidInput(f"the node gives another request than the one at place {index}; use another node")
    outcomes = _outcomes(client, chain_id, contract, commitment, proof, given.request, answer, told)
    return OperationClaim(contract.contract_id, number, given.request, outcomes, proof)


def _outcomes(
    client: NodeClient,
    chain_id: bytes,
    contract: models.Contract,
    commitment: BatchCommitment,
    proof: LeafProof,
    request: bytes,
    answer: KeptAnswer | None,
    told: Told,
) -> bytes:
    if answer is None:
        answer = _answer_again(client, chain_id, contract, request)
    if answer is not None and answer.signed.receipt.leaf == proof.leaf:
        return answer.outcomes
    try:
        return _executed(client, chain_id, contract, commitment, proof, told)
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        detail = "the outcomes are known by digest only, and the data to execute them again is kept no more"
        raise NotFound(f"{detail}: give the receipt that spchain contract send has saved, with --receipt") from error


def _answer_again(client: NodeClient, chain_id: bytes, contract: models.Contract, request: bytes) -> KeptAnswer | None:
    """Return the operator's answer to a request that it has accepted before, None when it gives none."""
    try:
        (outcome,) = client.contracts.send(contract.contract_id, [request])
        if outcome.receipt is None or outcome.outcomes is None:
            return None
        return checked_answer(chain_id, contract, request, outcome.receipt, outcome.outcomes)
    except SpchainError:
        return None


def _executed(
    client: NodeClient,
    chain_id: bytes,
    contract: models.Contract,
    commitment: BatchCommitment,
    proof: LeafProof,
    told: Told,
) -> bytes:
    """Return outcomes by executing all batches up to a place of one."""
    watcher = _watcher(client, chain_id, contract, commitment.number)
    first = watcher.number
    for batch in client.contracts.batches(contract.contract_id, first):
        told(batch.number - first, commitment.number - first)
        if batch.number == commitment.number:
            break
        if watcher.follow(commitment_of(batch), client.contracts.data(contract.contract_id, batch.number)) is not None:
            raise InvalidInput(
                f"batch {batch.number} is wrong: spchain contract challenge {contract.contract_id.hex()}"
            )
    data = open_data(commitment, client.contracts.data(contract.contract_id, commitment.number))
    bound = MACHINES.bind(terms_of(contract))
    for place, leaf in enumerate(leaves_of(data)):
        request = check_request(chain_id, contract.contract_id, data.items[place].request)
        forced = is_forced(commitment, place, request.digest)
        executed = execute(bound, Place(commitment.number, place, leaf.time_ms, forced), request, watcher.state)
        watcher.state.apply(executed.replay.changes)
        if place == proof.index:
            if outcomes_digest(executed.outcomes) != leaf.outcomes_digest:
                detail = f"place {place} of batch {commitment.number} has other outcomes than its leaf says"
                raise InvalidInput(f"{detail}: spchain contract challenge {contract.contract_id.hex()}")
            return encode(executed.outcomes)
    raise AssertionError("the proof's leaf stands in the batch")


# ---------------------------------------------------------------- wrong batches


class Wrong(msgspec.Struct, frozen=True):
    """A batch that is wrong, and the proof."""

    batch: models.ContractBatch
    """The batch."""
    proof: FraudProof
    """The proof."""


class Searched(msgspec.Struct, frozen=True):
    """What executing a contract's batches again has shown."""

    first: int
    """The first batch that was executed; those before it are final."""
    count: int
    """Batches that were executed and are right."""
    wrong: Wrong | None
    """What is wrong, None for nothing."""


def _watcher(client: NodeClient, chain_id: bytes, contract: models.Contract, most: int) -> Watcher:
    """Return a watcher before batch `most` of those that a contract has, or before an earlier one.

    It begins with the newest state that the node keeps after a final batch, as nobody can contest the root of that any more, else at the
    contract's beginning. Raises `InvalidInput` for a state that is not the chain's, and for a machine that is unknown here.
    """
    terms, last = terms_of(contract), min(most, contract.final_count)
    for state in sorted(client.contracts.states(contract.contract_id), key=lambda state: state.number, reverse=True):
        if 0 < state.number <= last and state.size_bytes <= MAX_STATE_BYTES:
            try:
                return Watcher(chain_id, terms, MACHINES, _start(client, contract, state))
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                # The node has let go of it meanwhile.
    # The first batch begins when the contract was opened: the chain has checked it.
    opened_ms = client.contracts.batch(contract.contract_id, 0).from_ms
    return Watcher(chain_id, terms, MACHINES, Start(time_ms=opened_ms))


def _start(client: NodeClient, contract: models.Contract, state: models.ContractState) -> Start:
    require_full_pages(state.pages, state.size_bytes)
    pages, left = [], state.size_bytes
    for number in range(state.pages):
        pages.append(client.contracts.state_page(contract.contract_id, state.number, number))
        left -= len(pages[-1])
        if left < 0:
            raise InvalidInput(
                f"a state of the contract is larger than the {state.size_bytes} bytes announced; use another node"
            )
    entries = entries_of(pages, state.entries)
    before = client.contracts.batch(contract.contract_id, state.number - 1)
    if StateMap(entries).root() != before.new_root:
        raise InvalidInput(
            f"the node's state after batch {before.number} has another root than the batch; use another node"
        )
    return Start(state.number, before.until_ms, entries)


def search(
    client: NodeClient,
    chain_id: bytes,
    contract: models.Contract,
    answer: KeptAnswer | None = None,
    told: Told = lambda _done, _of: None,
) -> Searched:
    """Execute batches of a contract from their published data, all that are not final among them, up to the first that is wrong.

    With an answer that the operator gave, the batch that it promised is also held against it.

    Raises:
        InvalidInput: what the node gives does not fit the commitments.
        NotFound: the data of a batch is kept no more, so nobody can judge those after it without the state.
    """
    if answer is not None:
        broken = _broken(client, chain_id, contract, answer)
        if broken is not None:
            return Searched(broken.batch.number, 0, broken)
    if not contract.batch_count:
        return Searched(0, 0, None)
    watcher = _watcher(client, chain_id, contract, contract.batch_count)
    first = watcher.number
    for batch in client.contracts.batches(contract.contract_id, first):
        told(batch.number - first, contract.batch_count - first)
        proof = watcher.follow(commitment_of(batch), _data(client, contract, batch))
        if proof is not None:
            return Searched(first, batch.number - first, Wrong(batch, proof))
    return Searched(first, watcher.number - first, None)


def _data(client: NodeClient, contract: models.Contract, batch: models.ContractBatch) -> bytes:
    try:
        return client.contracts.data(contract.contract_id, batch.number)
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        detail = f"no node keeps the data of batch {batch.number} any more, and this one has no state after it"
        raise NotFound(f"{detail}: ask a node that watches the contract, with --node") from error


def _broken(client: NodeClient, chain_id: bytes, contract: models.Contract, answer: KeptAnswer) -> Wrong | None:
    number = answer.signed.receipt.number
    if number >= contract.batch_count:
        return None
    batch = client.contracts.batch(contract.contract_id, number)
    watcher = Watcher(chain_id, terms_of(contract), MACHINES)
    proof = watcher.broken_receipt(answer.signed, commitment_of(batch), _data(client, contract, batch))
    return None if proof is None else Wrong(batch, proof)


def challenge(actor: Actor, wrong: Wrong, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """Bring a proof of fraud to the chain; who brings it gets half of the operator's bond. Raises as `Actor.commit`."""
    commitment = commitment_of(wrong.batch)
    return actor.commit(ChallengeBatch(commitment.contract_id, commitment.number, wrong.proof), timeout_s)
