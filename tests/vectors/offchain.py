# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts for the golden vectors: a short history of each machine that ships, and a proof of each kind of fraud."""

from typing import Any

import msgspec

from contracts.batch_data import prove_leaf
from contracts.machines.access_log import LogAccess, ReviewAccesses
from contracts.machines.appointments import Acknowledge, BookSlot, CancelSlot, CloseSlot, OfferSlot
from contracts.machines.micro_fees import Pay, Refund, Withdraw
from contracts.machines.vital_signs import Measure
from contracts.operator import Batch
from ledger.codec import Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.fraud import check_fraud
from ledger.offchain import (
    BrokenReceipt,
    ChainOperations,
    Deposit,
    ForcedPlace,
    FraudProof,
    WrongEnd,
    WrongExecution,
    WrongForced,
)
from ledger.testing import key
from tests.contracts import kit

DIGEST = tagged_hash(Tag.BLOB, b"a digest")
FIRST, SECOND = key(1).address, key(2).address

HISTORIES: dict[str, list[tuple[int, list[object]]]] = {
    "access_log": [
        (1, [LogAccess(SECOND, FIRST, DIGEST, is_refused=False), LogAccess(SECOND, FIRST, DIGEST, is_refused=True)]),
        (2, [ReviewAccesses(2), ReviewAccesses(3)]),
    ],
    "appointments": [
        (1, [OfferSlot(7, 5_000, 6_000), OfferSlot(8, 7_000, 9_000), OfferSlot(7, 1, 2)]),
        (2, [BookSlot(7, DIGEST), BookSlot(9, DIGEST), Acknowledge(DIGEST)]),
        (1, [CloseSlot(7, was_there=True), CancelSlot(8)]),
    ],
    "micro_fees": [
        (1, [Pay(SECOND, 300, DIGEST), Pay(SECOND, 9_000, DIGEST)]),
        (2, [Refund(FIRST, 100), Withdraw(150), Withdraw(51)]),
    ],
    "vital_signs": [
        (1, [Measure(3, 400, 500, (36, -2, 37)), Measure(3, 1_000, 1, (1,))]),
        (2, [Measure(3, 1_000, 1, (72, 75))]),
    ],
}
"""For each machine who sends which operations."""


def batch_of(machine: str) -> tuple[kit.Desk, Batch]:
    """Return the operator and the batch of a machine's history, which begins with a deposit that the chain has forced."""
    desk, sender = kit.Desk(kit.terms_of(machine)), kit.Sender()
    desk.send(sender.deposit(FIRST, 1_000), 2_000, is_forced=True)
    for number, (user, operations) in enumerate(HISTORIES[machine], 1):
        desk.send(sender.request(user, *operations), 2_000 + 10 * number)
    return desk, desk.cut(3_000)


def frauds() -> list[tuple[Batch, FraudProof]]:
    """Return a lying batch and its proof for each kind of fraud."""
    desk, batch = batch_of("micro_fees")

    def wrong_root(items: kit.Items) -> kit.Items:
        return [*items[:1], msgspec.structs.replace(items[1], root=DIGEST), *items[2:]]

    wrong = kit.rebuilt(batch, wrong_root)
    lies = [
        wrong,
        kit.recommitted(batch, operation_count=7),
        kit.recommitted(batch, forced=(*batch.commitment.forced, ForcedPlace(DIGEST, 1))),
    ]
    found: list[tuple[Batch, FraudProof]] = []
    for lie in lies:
        proof = kit.watcher().follow(lie.commitment, lie.data)
        assert proof is not None, "a lie"
        found.append((lie, proof))
    found.append((wrong, BrokenReceipt(desk.answers[1].signed, prove_leaf(kit.data_of(wrong), 1))))
    return found


def offchain_structs() -> list[Wire]:
    """Return an example of each struct of `ledger/offchain.py` and of what it is made of."""
    desk, batch = batch_of("micro_fees")
    signed = desk.answers[1].signed
    proofs = [proof for _, proof in frauds()]
    execution = proofs[0]
    assert isinstance(execution, WrongExecution)
    deposit = Deposit(FIRST, 1_000)
    return [
        kit.TERMS,
        deposit,
        ChainOperations(kit.CONTRACT, 3, (encode(deposit),)),
        batch.commitment,
        batch.commitment.forced[0],
        signed,
        signed.receipt,
        signed.receipt.leaf,
        execution.disputed,
        execution.witness[0],
        *proofs,
    ]


def offchain() -> list[dict[str, Any]]:
    """Return the vectors."""
    vectors: list[dict[str, Any]] = []
    for machine in sorted(HISTORIES):
        desk, batch = batch_of(machine)
        vectors.append(
            {
                "kind": "batch",
                "machine": machine,
                "chain_id": kit.CHAIN_ID.hex(),
                "terms": encode(kit.terms_of(machine)).hex(),
                "requests": [entry.request.hex() for entry in kit.accepted(desk.entries())],
                "outcomes": [
                    [[outcome.code, outcome.result.hex()] for outcome in answer.outcomes] for answer in desk.answers
                ],
                "receipts": [encode(answer.signed).hex() for answer in desk.answers],
                "commitment": encode(batch.commitment).hex(),
                "data": batch.data.hex(),
                "state": [[name.hex(), value.hex()] for name, value in desk.operator.state.entries()],
            }
        )
    for lie, proof in frauds():
        verdict = check_fraud(kit.CHAIN_ID, kit.TERMS, lie.commitment, proof, kit.REGISTRY)
        assert isinstance(proof, WrongExecution | WrongEnd | WrongForced | BrokenReceipt)
        vectors.append(
            {
                "kind": "fraud",
                "chain_id": kit.CHAIN_ID.hex(),
                "terms": encode(kit.TERMS).hex(),
                "commitment": encode(lie.commitment).hex(),
                "proof": encode(proof).hex(),
                "verdict": verdict,
            }
        )
    return vectors
