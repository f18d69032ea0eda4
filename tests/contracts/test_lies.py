# SPDX-License-Identifier: GPL-3.0-or-later
"""Lying operators: every lie is found by a watcher, or by who holds a receipt, and the judge convicts on the proof.

The lies are consistent wherever they can be: digests, Merkle roots and commitment are right for what the liar publishes.
"""

from collections.abc import Callable

import msgspec
import pytest

from contracts import operator
from contracts.batch_data import BatchItem, check_data, prove_leaf
from contracts.execution import MACHINE_PREFIX, sequence_key
from contracts.machines.micro_fees import Pay, balance_key
from contracts.operator import Batch
from contracts.requests import CheckedRequest, Operations, SignedOperations, check_request, sign_request
from ledger.codec import decode, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.fraud import check_fraud
from ledger.offchain import (
    MAX_FRAUD_PROOF_BYTES,
    BrokenReceipt,
    ForcedPlace,
    FraudProof,
    SignedReceipt,
    WrongEnd,
    WrongExecution,
    WrongForced,
    deposit_request,
    request_digest,
)
from ledger.testing import key
from tests.contracts import kit
from tests.contracts.kit import Items

HONEST, _, PAID = kit.paid_batch()
LEAVES = PAID.commitment.leaf_count
OTHER = tagged_hash(Tag.BLOB, b"another digest")
REFERENCE = tagged_hash(Tag.BLOB, b"what it is for")
places = pytest.mark.parametrize("place", range(LEAVES))
replace = msgspec.structs.replace


def judge(batch: Batch, proof: FraudProof) -> str:
    """Judge a proof as it comes from the wire."""
    raw = encode(proof)
    assert len(raw) <= MAX_FRAUD_PROOF_BYTES
    return check_fraud(kit.CHAIN_ID, kit.TERMS, batch.commitment, decode(type(proof), raw, len(raw)), kit.REGISTRY)


def caught(batch: Batch) -> str:
    """Let watchers find the lie and the judge convict; returns the verdict. The watchers go on with the honest batch.

    One computes the root after each request, the other at first the last one only, as of a large batch: they find the same.
    """
    proofs = []
    for thorough_leaves in (LEAVES + 1, 0):
        watcher = kit.watcher(thorough_leaves=thorough_leaves)
        root = watcher.state.root()
        proof = watcher.follow(batch.commitment, batch.data)
        assert proof is not None, "the lie went unnoticed"
        assert watcher.state.root() == root, "the watcher has taken the lie over"
        # The same proof says nothing about the honest batch.
        with pytest.raises(InvalidInput):
            judge(PAID, proof)
        assert watcher.follow(PAID.commitment, PAID.data) is None
        proofs.append(proof)
    assert proofs[0] == proofs[1]
    return judge(batch, proofs[0])


def at(place: int, change: Callable[[BatchItem], BatchItem]) -> Callable[[Items], Items]:
    return lambda items: [*items[:place], change(items[place]), *items[place + 1 :]]


@places
def test_a_wrong_outcome_is_caught(place: int) -> None:
    verdict = caught(kit.rebuilt(PAID, at(place, lambda item: replace(item, outcomes_digest=OTHER))))
    assert verdict.startswith(f"leaf {place} is not what its request comes to: outcomes")


@places
def test_a_wrong_root_is_caught(place: int) -> None:
    lie = kit.rebuilt(PAID, at(place, lambda item: replace(item, root=OTHER)))
    proof = kit.watcher().follow(lie.commitment, lie.data)
    assert proof is not None
    assert judge(lie, proof).startswith(f"leaf {place} is not what its request comes to: root")


def test_in_a_large_batch_a_wrong_root_is_caught_at_its_end_and_harmless_before_it() -> None:
    desk, sender, first = kit.paid_batch()
    desk.send(sender.request(1, Pay(key(3).address, 7, REFERENCE)), 1_300)
    second = desk.cut(1_400)
    for place in range(LEAVES):
        lie = kit.rebuilt(first, at(place, lambda item: replace(item, root=OTHER)))
        watcher = kit.watcher(thorough_leaves=LEAVES - 1)
        proof = watcher.follow(lie.commitment, lie.data)
        if place == LEAVES - 1:
            assert proof is not None
            assert judge(lie, proof).startswith(f"leaf {place} is not what its request comes to: root")
            continue
        # The state is what the published requests come to, and the next batch begins at it; so does who checks each root.
        assert proof is None
        assert watcher.state.root() == first.commitment.new_root == second.commitment.previous_root
        assert watcher.follow(second.commitment, second.data) is None


@places
def test_wrong_roots_in_the_middle_hide_no_other_lie(place: int) -> None:
    def lie(items: Items) -> Items:
        items = [replace(item, root=OTHER) for item in items[:-1]] + items[-1:]
        return at(place, lambda item: replace(item, outcomes_digest=OTHER))(items)

    assert caught(kit.rebuilt(PAID, lie)).startswith("leaf 0 is not what its request comes to")


@places
def test_a_wrong_count_of_operations_is_caught(place: int) -> None:
    verdict = caught(kit.rebuilt(PAID, at(place, lambda item: replace(item, operation_total=99))))
    assert "99 operations so far" in verdict


@places
def test_a_time_outside_of_the_batch_is_caught(place: int) -> None:
    late = kit.rebuilt(PAID, at(place, lambda item: replace(item, time_ms=PAID.commitment.until_ms + 1)))
    assert f"leaf {place} has the time" in caught(late)


@pytest.mark.parametrize("place", range(1, LEAVES))
def test_a_time_that_runs_backwards_is_caught(place: int) -> None:
    assert f"leaf {place} has the time 0" in caught(kit.rebuilt(PAID, at(place, lambda item: replace(item, time_ms=0))))


@places
def test_a_doubled_request_is_caught(place: int) -> None:
    doubled = kit.rebuilt(PAID, lambda items: [*items[: place + 1], *items[place:]])
    assert f"leaf {place + 1} holds a request that may not be there" in caught(doubled)


@places
def test_a_dropped_request_is_caught_where_others_rest_on_it_and_by_its_receipt(place: int) -> None:
    dropped = kit.rebuilt(PAID, lambda items: items[:place] + items[place + 1 :])
    if place < LEAVES - 1:
        assert f"leaf {place} " in caught(dropped)
    assert convicted_by_receipt(dropped, HONEST.answers[place].signed)


@pytest.mark.parametrize("place", range(LEAVES - 1))
def test_reordered_requests_are_caught(place: int) -> None:
    def swap(items: Items) -> Items:
        return [*items[:place], items[place + 1], items[place], *items[place + 2 :]]

    assert f"leaf {place} " in caught(kit.rebuilt(PAID, swap))


def convicted_by_receipt(batch: Batch, signed: SignedReceipt) -> str:
    proof = kit.watcher().broken_receipt(signed, batch.commitment, batch.data)
    assert proof is not None, "the broken promise went unnoticed"
    return judge(batch, proof)


def test_a_batch_that_is_right_but_not_what_was_promised_breaks_its_receipts() -> None:
    promised, sender = kit.Desk(), kit.Sender()
    requests = [sender.request(user, Pay(key(9).address, 1, REFERENCE)) for user in (1, 2, 3)]
    answers = [promised.send(raw) for raw in requests]
    promised.cut()
    for order, kept in (([2, 1, 0], {1}), ([0, 1], {0, 1}), ([0, 2], {0}), ([1, 2], set())):
        liar = kit.Desk()
        for number in order:
            liar.send(requests[number])
        batch = liar.cut()
        check_data(batch.commitment, batch.data)
        assert kit.watcher().follow(batch.commitment, batch.data) is None, "nothing but the receipts shows it"
        for number, answer in enumerate(answers):
            broken = kit.watcher().broken_receipt(answer.signed, batch.commitment, batch.data)
            if number in kept and order.index(number) == number:
                assert broken is None or number == 1
            else:
                assert convicted_by_receipt(batch, answer.signed)


def test_two_receipts_for_one_place_cannot_both_be_kept() -> None:
    one, other = kit.Desk(), kit.Desk()
    answers = [
        desk.send(kit.Sender().request(user, Pay(key(9).address, 1, REFERENCE))).signed
        for desk, user in ((one, 1), (other, 2))
    ]
    batch = one.cut()
    assert kit.watcher().broken_receipt(answers[0], batch.commitment, batch.data) is None
    assert convicted_by_receipt(batch, answers[1])


def lax_check(chain_id: bytes, contract_id: bytes, raw: bytes) -> CheckedRequest:
    """What a liar checks: nothing."""
    content = decode(SignedOperations, raw, 2**20).content
    sender = tagged_hash(Tag.ADDRESS, content.sender)[:20]
    return CheckedRequest(request_digest(raw), raw, sender, content.first_sequence, content.operations)


def stolen(user: int, chain_id: bytes = kit.CHAIN_ID, contract_id: bytes = kit.CONTRACT) -> bytes:
    """Return a request that pays the operator from a user's balance, signed by the operator."""
    payment = encode(Pay(kit.OPERATOR.address, 900, REFERENCE))
    content = Operations(contract_id, key(user).public_key, 0, (payment,))
    return encode(SignedOperations(content, kit.OPERATOR.sign(tagged_hash(Tag.BLOB, encode(content)))))


@pytest.mark.parametrize(
    "forged",
    [
        stolen(3),
        sign_request(bytes(32), key(3), kit.CONTRACT, 0, [Pay(key(9).address, 1, REFERENCE)]),
        sign_request(kit.CHAIN_ID, key(3), OTHER, 0, [Pay(key(9).address, 1, REFERENCE)]),
    ],
    ids=["signed by another", "of another chain", "of another contract"],
)
def test_a_request_that_was_never_signed_for_this_contract_is_caught(
    forged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = kit.Desk()
    for user in (1, 2):
        liar.send(kit.Sender().request(user, Pay(key(9).address, 1, REFERENCE)))
    with monkeypatch.context() as patch:
        patch.setattr(operator, "check_request", lax_check)
        liar.send(forged)
    batch = liar.cut()
    check_data(batch.commitment, batch.data)
    proof = kit.watcher().follow(batch.commitment, batch.data)
    assert isinstance(proof, WrongExecution)
    assert "leaf 2 holds a request that may not be there" in judge(batch, proof)


@places
def test_bytes_that_are_no_request_are_caught(place: int) -> None:
    assert "cannot be decoded" in caught(kit.rebuilt(PAID, at(place, lambda item: replace(item, request=b"\xc1"))))


def test_credits_that_the_chain_has_not_deposited_are_caught() -> None:
    invented = deposit_request(kit.CONTRACT, 2, kit.OPERATOR.address, 10**9)
    claimed = kit.rebuilt(PAID, lambda items: [*items, replace(items[-1], request=invented)])
    assert "count only where" in caught(claimed)


@pytest.mark.parametrize("wrong", [0, 2], ids=["an old one", "one that leaves a gap"])
def test_a_deposit_out_of_order_is_caught_though_forced(wrong: int) -> None:
    # The chain forces each deposit once; who changes the order would make one of them void.
    liar, sender = kit.Desk(), kit.Sender()
    liar.send(sender.deposit(key(1).address, 5), is_forced=True)
    batch = liar.cut()
    second = deposit_request(kit.CONTRACT, wrong, key(1).address, 7)
    items = [*kit.data_of(batch).items, replace(kit.data_of(batch).items[0], request=second, operation_total=2)]
    lie = kit.rebuilt(batch, lambda _: items)
    lie = kit.recommitted(lie, forced=(*lie.commitment.forced, ForcedPlace(request_digest(second), 1)))
    check_data(lie.commitment, lie.data)
    proof = kit.watcher().follow(lie.commitment, lie.data)
    assert isinstance(proof, WrongExecution)
    assert "the next is 1" in judge(lie, proof)


@pytest.mark.parametrize("place", range(LEAVES))
def test_a_state_that_nobody_has_brought_about_is_caught(place: int) -> None:
    liar = kit.Desk()
    for number, entry in enumerate(kit.accepted(HONEST.entries())):
        if number == place:
            liar.operator.state.put(MACHINE_PREFIX + balance_key(kit.OPERATOR.address), encode(10**9))
        liar.send(entry.request, entry.leaf.time_ms, is_forced=entry.is_forced)
    batch = liar.cut(PAID.commitment.until_ms)
    check_data(batch.commitment, batch.data)
    assert f"leaf {place} is not what its request comes to: root" in caught(batch)


def test_a_sequence_number_that_was_set_back_is_caught() -> None:
    liar, sender = kit.Desk(), kit.Sender()
    raw = sender.request(1, Pay(key(2).address, 1, REFERENCE))
    first = liar.send(raw)
    liar.operator.state.delete(sequence_key(key(1).address))
    liar.operator._remembered.clear()
    liar.send(raw)
    batch = liar.cut()
    proof = kit.watcher().follow(batch.commitment, batch.data)
    assert "leaf 1 holds a request that may not be there" in judge(
        batch, proof or WrongEnd(prove_leaf(kit.data_of(batch), 1))
    )
    assert kit.watcher().broken_receipt(first.signed, batch.commitment, batch.data) is None


def test_a_commitment_that_ends_otherwise_than_its_last_leaf_is_caught() -> None:
    for lie in (kit.recommitted(PAID, new_root=OTHER), kit.recommitted(PAID, operation_count=LEAVES + 20)):
        with pytest.raises(InvalidInput):
            check_data(lie.commitment, lie.data)
        assert "by the commitment" in caught(lie) or "the commitment" in caught(lie)


def test_a_forced_request_that_is_not_where_it_is_claimed_is_caught() -> None:
    first, second = PAID.commitment.forced
    for claims in ((first, second, ForcedPlace(OTHER, 3)), (first, second, ForcedPlace(OTHER, LEAVES))):
        lie = kit.recommitted(PAID, forced=claims)
        with pytest.raises(InvalidInput):
            check_data(lie.commitment, lie.data)
        proof = kit.watcher().follow(lie.commitment, lie.data)
        assert isinstance(proof, WrongForced)
        assert judge(lie, proof)


def test_a_lie_in_the_second_batch_is_caught_on_the_state_of_the_first() -> None:
    desk, sender, first = kit.paid_batch()
    for user in (1, 2, 1):
        desk.send(sender.request(user, Pay(key(3).address, 7, REFERENCE)), 1_300)
    second = desk.cut(1_400)
    for place in range(3):
        lie = kit.rebuilt(second, at(place, lambda item: replace(item, root=OTHER)))
        watcher = kit.watcher()
        assert watcher.follow(first.commitment, first.data) is None
        proof = watcher.follow(lie.commitment, lie.data)
        assert proof is not None
        assert f"leaf {place} " in judge(lie, proof)
        assert watcher.follow(second.commitment, second.data) is None


def test_false_accusations_are_refused() -> None:
    signed = HONEST.answers[2].signed
    found = prove_leaf(kit.data_of(PAID), 2)
    item = kit.data_of(PAID).items[3]
    disputed, previous = prove_leaf(kit.data_of(PAID), 3), prove_leaf(kit.data_of(PAID), 2)
    lie = kit.rebuilt(PAID, at(3, lambda item: replace(item, root=OTHER)))
    proof = kit.watcher().follow(lie.commitment, lie.data)
    assert isinstance(proof, WrongExecution)
    false: list[FraudProof] = [
        BrokenReceipt(signed, found),
        BrokenReceipt(signed, None),
        BrokenReceipt(replace(signed, signature=bytes(64)), disputed),
        BrokenReceipt(replace(signed, receipt=replace(signed.receipt, number=1)), found),
        BrokenReceipt(signed, disputed),
        WrongExecution(item.request, None, disputed, proof.witness),
        WrongExecution(item.request, prove_leaf(kit.data_of(PAID), 1), disputed, proof.witness),
        WrongExecution(b"another", previous, disputed, proof.witness),
        WrongExecution(item.request, previous, proof.disputed, proof.witness),
        WrongExecution(item.request, previous, disputed, ()),
        WrongExecution(item.request, previous, disputed, proof.witness),
        WrongEnd(previous),
        WrongEnd(prove_leaf(kit.data_of(PAID), LEAVES - 1)),
        WrongForced(0, prove_leaf(kit.data_of(PAID), 0)),
        WrongForced(0, None),
        WrongForced(5, None),
    ]
    for accusation in false:
        with pytest.raises(InvalidInput):
            judge(PAID, accusation)
    other = replace(kit.TERMS, contract_id=OTHER)
    with pytest.raises(InvalidInput, match="of contract"):
        check_fraud(kit.CHAIN_ID, other, PAID.commitment, proof, kit.REGISTRY)


def test_an_honest_check_of_a_request_names_what_is_wrong() -> None:
    for wrong in (stolen(1), b"", b"\xc1", bytes(9000)):
        with pytest.raises(InvalidInput):
            check_request(kit.CHAIN_ID, kit.CONTRACT, wrong)
