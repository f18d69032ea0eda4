# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge: does a proof of fraud convict the operator of a committed batch?

Pure. What it costs is bounded by the types: one signature, at most 256 state proofs and 64 operations, about 10 ms in all. An honest
operator cannot be convicted: a leaf that execution gives is never another one, and a receipt is signed only for a leaf that is kept.
"""

from ledger.errors import InvalidInput
from ledger.offchain import (
    BatchCommitment,
    BrokenReceipt,
    ContractTerms,
    FraudProof,
    InvalidRequest,
    LeafProof,
    MachineRegistry,
    Place,
    RequestLeaf,
    WrongEnd,
    WrongExecution,
    WrongForced,
    holds_leaf,
    is_forced,
    is_signed_receipt,
    request_digest,
)
from ledger.partial_tree import InsufficientProof, PartialTree


def check_fraud(
    chain_id: bytes, terms: ContractTerms, commitment: BatchCommitment, proof: FraudProof, machines: MachineRegistry
) -> str:
    """Return in words what the proof convicts the operator of; raises `InvalidInput` when it proves nothing."""
    if commitment.contract_id != terms.contract_id:
        raise InvalidInput(f"fraud: the batch is of contract {commitment.contract_id.hex()}, not of the one disputed")
    match proof:
        case WrongExecution():
            return _check_execution(chain_id, terms, commitment, proof, machines)
        case WrongEnd():
            return _check_end(commitment, proof)
        case WrongForced():
            return _check_forced(commitment, proof)
        case BrokenReceipt():
            return _check_receipt(chain_id, terms, commitment, proof)


def _check_execution(
    chain_id: bytes, terms: ContractTerms, commitment: BatchCommitment, proof: WrongExecution, machines: MachineRegistry
) -> str:
    index, leaf = proof.disputed.index, proof.disputed.leaf
    _require_leaf(commitment, proof.disputed)
    root, total, earliest_ms = _before(commitment, proof)
    if request_digest(proof.request) != leaf.request_digest:
        raise InvalidInput(f"fraud: leaf {index} is about another request than the one given")
    if not earliest_ms <= leaf.time_ms <= commitment.until_ms:
        return f"leaf {index} has the time {leaf.time_ms}, outside {earliest_ms} to {commitment.until_ms}"
    tree = PartialTree(root, proof.witness)
    place = Place(commitment.number, index, leaf.time_ms, is_forced(commitment, index, leaf.request_digest))
    try:
        replay = machines.replay(chain_id, terms, place, proof.request, tree)
    except InvalidRequest as error:
        return f"leaf {index} holds a request that may not be there: {error}"
    if tree.was_insufficient:
        # A machine must not hide it; a challenger who leaves entries out gets no verdict, whatever the machine does.
        raise InsufficientProof(f"fraud: the proofs of leaf {index} lack entries that its request touches")
    for key, value in replay.changes:
        if value is None:
            tree.delete(key)
        else:
            tree.put(key, value)
    right = RequestLeaf(
        leaf.request_digest, leaf.time_ms, total + replay.operation_count, replay.outcomes_digest, tree.root()
    )
    if right == leaf:
        raise InvalidInput(f"fraud: leaf {index} is what its request comes to")
    return f"leaf {index} is not what its request comes to: " + _difference(right, leaf)


def _difference(right: RequestLeaf, found: RequestLeaf) -> str:
    if right.outcomes_digest != found.outcomes_digest:
        return f"outcomes {found.outcomes_digest.hex()}, not {right.outcomes_digest.hex()}"
    if right.root != found.root:
        return f"root {found.root.hex()}, not {right.root.hex()}"
    return f"{found.operation_total} operations so far, not {right.operation_total}"


def _before(commitment: BatchCommitment, proof: WrongExecution) -> tuple[bytes, int, int]:
    """Return root, operations and time before the disputed leaf."""
    index, previous = proof.disputed.index, proof.previous
    if previous is None:
        if index != 0:
            raise InvalidInput(f"fraud: the leaf before leaf {index} is missing")
        return commitment.previous_root, 0, commitment.from_ms
    if previous.index != index - 1:
        raise InvalidInput(f"fraud: leaf {previous.index} is not the one before leaf {index}")
    _require_leaf(commitment, previous)
    return previous.leaf.root, previous.leaf.operation_total, previous.leaf.time_ms


def _check_end(commitment: BatchCommitment, proof: WrongEnd) -> str:
    last = proof.last
    _require_leaf(commitment, last)
    if last.index != commitment.leaf_count - 1:
        raise InvalidInput(f"fraud: leaf {last.index} is not the last of {commitment.leaf_count}")
    if last.leaf.root != commitment.new_root:
        return f"the last leaf has the root {last.leaf.root.hex()}, the commitment {commitment.new_root.hex()}"
    if last.leaf.operation_total != commitment.operation_count:
        return (
            f"{last.leaf.operation_total} operations by the last leaf, {commitment.operation_count} by the commitment"
        )
    raise InvalidInput("fraud: the commitment ends as its last leaf does")


def _check_forced(commitment: BatchCommitment, proof: WrongForced) -> str:
    if proof.entry >= len(commitment.forced):
        raise InvalidInput(f"fraud: the commitment has no forced entry {proof.entry}")
    claimed = commitment.forced[proof.entry]
    found = _leaf_at(commitment, claimed.index, proof.found)
    if found is None:
        return f"a forced request is claimed at place {claimed.index} of {commitment.leaf_count}"
    if found.request_digest == claimed.request_digest:
        raise InvalidInput(f"fraud: the forced request stands at place {claimed.index} as claimed")
    return (
        f"at place {claimed.index} stands {found.request_digest.hex()}, not the forced {claimed.request_digest.hex()}"
    )


def _check_receipt(chain_id: bytes, terms: ContractTerms, commitment: BatchCommitment, proof: BrokenReceipt) -> str:
    receipt = proof.receipt.receipt
    if (receipt.contract_id, receipt.number) != (commitment.contract_id, commitment.number):
        raise InvalidInput(f"fraud: the receipt is about batch {receipt.number} of {receipt.contract_id.hex()}")
    if not is_signed_receipt(chain_id, terms.operator, proof.receipt):
        raise InvalidInput(f"fraud: operator {terms.operator.hex()} has not signed the receipt")
    found = _leaf_at(commitment, receipt.index, proof.found)
    if found is None:
        return f"a receipt promises place {receipt.index} of a batch of {commitment.leaf_count}"
    if found == receipt.leaf:
        raise InvalidInput(f"fraud: the batch holds what the receipt promises at place {receipt.index}")
    return f"at place {receipt.index} stands another leaf than the one promised"


def _leaf_at(commitment: BatchCommitment, index: int, found: LeafProof | None) -> RequestLeaf | None:
    """Return the proved leaf at a place, None where the batch ends before it."""
    if found is None:
        if index < commitment.leaf_count:
            raise InvalidInput(f"fraud: the leaf at place {index} is missing")
        return None
    if found.index != index:
        raise InvalidInput(f"fraud: leaf {found.index} is given, place {index} is meant")
    _require_leaf(commitment, found)
    return found.leaf


def _require_leaf(commitment: BatchCommitment, proof: LeafProof) -> None:
    if not holds_leaf(commitment, proof):
        raise InvalidInput(f"fraud: the leaf at place {proof.index} is not in the batch")
