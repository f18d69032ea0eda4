# SPDX-License-Identifier: GPL-3.0-or-later
"""The walks of claims about off-chain contracts: what a final batch says of a request, or of a key of the contract's state.

    keyblock's state ── contract, batch ── root of leaves ── leaf ── request, outcomes
                                       └─ new root of the state ── key, value

A batch that can still be challenged proves nothing yet: such a claim is refused as pending.
"""

import json
from collections.abc import Sequence
from typing import Any

from ledger.contract_state import CommittedBatch, Contract, contract_key
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.offchain import holds_leaf, request_digest
from ledger.state import CONTRACT_BATCHES, CONTRACTS
from ledger.state_tree import verify_state_proof
from records.claims import (
    ContractReader,
    ContractValueClaim,
    EvidenceRefused,
    Fault,
    Found,
    Moment,
    OperationClaim,
    Scene,
    Walk,
    counted,
    present,
    require,
    when,
)

_LATER = "what the contract did after batch {}"


def walk_operation(scene: Scene, claim: OperationClaim, moment: Moment) -> Walk[Found]:
    """Check that a request was executed with these outcomes, in a final batch."""
    reader = _reader(scene)
    contract, batch = yield from _final_batch(scene, claim.contract_id, claim.number, moment)
    proof, leaf = claim.proof, claim.proof.leaf
    require(holds_leaf(batch.commitment, proof), f"the leaf is not at place {proof.index} of batch {claim.number}")
    require(
        request_digest(claim.request) == leaf.request_digest,
        f"the leaf at place {proof.index} is about another request than the one in the file",
    )
    require(
        tagged_hash(Tag.OFFCHAIN_OUTCOMES, claim.outcomes) == leaf.outcomes_digest,
        f"the request at place {proof.index} had other outcomes than those in the file",
    )
    try:
        request = reader.read_request(scene.chain.id, contract.terms, claim.request)
        outcomes = reader.read_outcomes(claim.outcomes)
    except InvalidInput as error:
        raise EvidenceRefused(Fault.MALFORMED, str(error)) from error
    author = (
        "the chain itself: a deposit"
        if request.sender is None
        else f"account {request.sender.hex()}, which signed it: the signature is in this file and was checked"
    )
    return Found(
        proven=(
            *_batch_words(contract, batch),
            (
                f"it executed, at place {proof.index} and {when(leaf.time_ms)} by the operator's clock, a request of "
                f"{counted(len(request.operations), 'operation')} by {author}"
            ),
            *_outcome_words(request.first_sequence, request.operations, outcomes),
        ),
        not_proven=(
            "that what the operations speak of is so: the contract takes their senders' word",
            "that the operator's clock was right",
            _LATER.format(claim.number),
        ),
        facts={
            "contract": contract,
            "batch": batch,
            "leaf": leaf,
            "index": proof.index,
            "sender": request.sender,
            "first_sequence": request.first_sequence,
            "operations": request.operations,
            "outcomes": tuple({"code": code, "result": result} for code, result in outcomes),
        },
    )


def walk_contract_value(scene: Scene, claim: ContractValueClaim, moment: Moment) -> Walk[Found]:
    """Check that a contract's state had a value at the end of a final batch."""
    reader = _reader(scene)
    contract, batch = yield from _final_batch(scene, claim.contract_id, claim.number, moment)
    entry = claim.entry
    if not verify_state_proof(batch.commitment.new_root, entry.key, entry.value, entry.proof):
        detail = f"key {entry.key.hex()} is not proved to be as it is given under the root of batch {claim.number}"
        raise EvidenceRefused(Fault.WRONG_PROOF, detail)
    name, value = reader.read_entry(contract.terms, entry.key, entry.value)
    says = f"there was no {name}" if entry.value is None else f"{name} was {json.dumps(value, ensure_ascii=False)}"
    return Found(
        proven=(*_batch_words(contract, batch), f"in the contract's state at the end of the batch, {says}"),
        not_proven=(_LATER.format(claim.number),),
        facts={"contract": contract, "batch": batch, "entry": entry, "name": name, "value": value},
    )


def _reader(scene: Scene) -> ContractReader:
    if scene.reader is None:
        raise EvidenceRefused(Fault.NOT_SO, "the claim is about an off-chain contract, which nothing here can read")
    return scene.reader


def _final_batch(
    scene: Scene, contract_id: bytes, number: int, moment: Moment
) -> Walk[tuple[Contract, CommittedBatch]]:
    """Ask for a contract and a batch that counts and that nobody can challenge any more."""
    contract = yield from present(CONTRACTS, contract_id, f"contract {contract_id.hex()}")
    name = f"batch {number} of contract {contract_id.hex()}"
    if number >= contract.batch_count:
        detail = (
            f"{name} does not count: there are {contract.batch_count} that do, and the contract is {contract.status}"
        )
        raise EvidenceRefused(Fault.NOT_SO, f"{detail}; what was committed lately is there after two more keyblocks")
    batch = yield from present(CONTRACT_BATCHES, contract_key(contract_id, number), name)
    final = batch.height + scene.genesis.parameters.contracts.window_microblocks
    if moment.height < final:
        detail = f"{name} was committed in microblock {batch.height} and can be challenged until microblock {final}"
        raise EvidenceRefused(Fault.PENDING, f"{detail}; the keyblock stands for the state at {moment.height}")
    return contract, batch


def _batch_words(contract: Contract, batch: CommittedBatch) -> tuple[str, str]:
    terms, commitment = contract.terms, batch.commitment
    return (
        f"contract {terms.contract_id.hex()} runs machine {terms.machine} {terms.version}, operated by key {terms.operator.hex()}",
        (
            f"batch {commitment.number} of it was committed in microblock {batch.height}, was not proved wrong within the window, "
            "and is final"
        ),
    )


def _outcome_words(first: int, operations: Sequence[Any], outcomes: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    if len(outcomes) != len(operations):
        # A forced request that had come the ordinary way before is answered for as a whole.
        return tuple(f"the request as a whole was refused: {code}" for code, _ in outcomes)
    return tuple(
        # As `spchain contract send` takes it.
        f"operation {number}: {json.dumps(operation, ensure_ascii=False)}: "
        + (f"refused: {code}" if code else "done" + ("" if result is None else f", answered {result}"))
        for number, (operation, (code, result)) in enumerate(zip(operations, outcomes, strict=True), first)
    )
