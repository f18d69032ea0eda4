# SPDX-License-Identifier: GPL-3.0-or-later
"""Operator, watcher and judge agree: an honest operator is never convicted, whatever its users send.

R1 What an operator publishes, the watcher executes to the same state, and finds nothing.
R2 No leaf of an honest batch can be disputed, with whatever state proofs, and every dispute fits into its bound.
R3 After a restart from the journal everything is as it was; so it is from a watcher's state and the rest of the journal.
R4 A lie in any leaf convicts, and does no harm to the watcher.
"""

from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.batch_data import check_data, leaf_of, prove_leaf
from contracts.execution import execute
from contracts.operator import Batch, OperatorLimits, Start
from contracts.requests import check_request
from contracts.state_map import StateMap
from ledger.codec import decode, encode
from ledger.errors import InvalidInput
from ledger.fraud import check_fraud
from ledger.offchain import (
    MAX_FRAUD_PROOF_BYTES,
    BrokenReceipt,
    ContractTerms,
    FraudProof,
    Place,
    WrongEnd,
    WrongExecution,
    WrongForced,
    check_commitment,
    is_forced,
)
from ledger.testing import key
from tests.contracts import kit

MACHINES = sorted(kit.OPERATIONS)
histories = st.lists(st.tuples(kit.users, st.integers(1, 3), st.integers(0, 700), st.integers(0, 6)), max_size=12)


def run(name: str, history: list[tuple[int, int, int, int]], data: st.DataObject) -> kit.Desk:
    """Send random requests, some by way of the chain, in batches of random length; every machine meets deposits too."""
    desk, sender = kit.Desk(kit.terms_of(name), limits=OperatorLimits(batch_requests=5)), kit.Sender()
    now_ms = 1_000
    for user, count, wait_ms, kind in history:
        now_ms += wait_ms
        if kind == 0:
            desk.send(sender.deposit(key(user).address, 500), now_ms, is_forced=True)
        elif kind == 1 and desk.batches:
            desk.cut(now_ms)
        else:
            raw = sender.request(user, *(data.draw(kit.OPERATIONS[name]) for _ in range(count)))
            desk.send(raw, now_ms, is_forced=kind == 2)
            if kind == 3:
                desk.send(raw, now_ms, is_forced=True)
    if desk.journal:
        desk.cut(now_ms)
    return desk


def disputes(terms: ContractTerms, batch: Batch, state: StateMap) -> list[FraudProof]:
    """Return the best possible proof against each leaf of a batch, and leave the state as it is after it."""
    proofs: list[FraudProof] = []
    data = kit.data_of(batch)
    for index, item in enumerate(data.items):
        request = check_request(kit.CHAIN_ID, terms.contract_id, item.request)
        forced = is_forced(batch.commitment, index, request.digest)
        place = Place(batch.commitment.number, index, item.time_ms, forced)
        executed = execute(kit.REGISTRY.bind(terms), place, request, state)
        previous = prove_leaf(data, index - 1) if index else None
        witness = state.witness(executed.touched)
        proofs.append(WrongExecution(item.request, previous, prove_leaf(data, index), witness))
        state.apply(executed.replay.changes)
    proofs.append(WrongEnd(prove_leaf(data, len(data.items) - 1)))
    proofs += [WrongForced(entry, prove_leaf(data, place.index)) for entry, place in enumerate(batch.commitment.forced)]
    return proofs


@pytest.mark.parametrize("name", MACHINES)
@given(histories, st.data())
@settings(max_examples=25)
def test_r1_r2_nobody_finds_anything_in_an_honest_batch(
    name: str, history: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    terms = kit.terms_of(name)
    desk = run(name, history, data)
    watcher, state = kit.watcher(terms), StateMap()
    quick = kit.watcher(terms, thorough_leaves=1)
    for batch in desk.batches:
        check_commitment(batch.commitment)
        check_data(batch.commitment, batch.data)
        assert watcher.follow(batch.commitment, batch.data) is None
        assert quick.follow(batch.commitment, batch.data) is None
        for proof in disputes(terms, batch, state):
            assert len(encode(proof)) <= MAX_FRAUD_PROOF_BYTES
            with pytest.raises(InvalidInput, match=r"^fraud: "):
                check_fraud(kit.CHAIN_ID, terms, batch.commitment, proof, kit.REGISTRY)
        for answer in desk.answers:
            assert watcher.broken_receipt(answer.signed, batch.commitment, batch.data) is None
            if answer.signed.receipt.number == batch.commitment.number:
                found = prove_leaf(kit.data_of(batch), answer.signed.receipt.index)
                broken = BrokenReceipt(answer.signed, found)
                with pytest.raises(InvalidInput, match=r"^fraud: "):
                    check_fraud(kit.CHAIN_ID, terms, batch.commitment, broken, kit.REGISTRY)
    assert watcher.state.root() == quick.state.root() == state.root() == desk.operator.state.root()
    assert dict(watcher.state.entries()) == dict(desk.operator.state.entries())


@pytest.mark.parametrize("name", MACHINES)
@given(histories, st.data())
@settings(max_examples=15)
def test_r3_a_journal_gives_the_operator_back(
    name: str, history: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    terms = kit.terms_of(name)
    desk = run(name, history, data)
    again = kit.Desk(terms, limits=OperatorLimits(batch_requests=5))
    released = again.operator.recover(desk.entries())
    assert [answer for _, answer in released.answers] == desk.answers
    assert list(released.batches) == desk.batches
    assert again.operator.state.root() == desk.operator.state.root()

    watcher = kit.watcher(terms)
    half = desk.batches[: len(desk.batches) // 2]
    for batch in half:
        assert watcher.follow(batch.commitment, batch.data) is None
    later = kit.Desk(terms, limits=OperatorLimits(batch_requests=5), start=watcher.start())
    assert list(later.operator.recover(desk.entries()).batches) == desk.batches[len(half) :]
    assert later.operator.state.root() == desk.operator.state.root()


def _lie(items: kit.Items, place: int, kind: str) -> kit.Items:
    item, others = items[place], items[place + 1 :]
    match kind:
        case "outcome":
            return [*items[:place], msgspec.structs.replace(item, outcomes_digest=bytes(32)), *others]
        case "root":
            return [*items[:place], msgspec.structs.replace(item, root=bytes(32)), *others]
        case "count":
            return [*items[:place], msgspec.structs.replace(item, operation_total=item.operation_total + 1), *others]
        case "doubled":
            return [*items[:place], item, item, *others]
        case "signature" if item.request[1] == 2:
            # The chain's own request has none: that it is what the chain has forced is checked when the commitment is taken.
            return _lie(items, place, "doubled")
        case "signature":
            raw = item.request[:-1] + bytes([item.request[-1] ^ 1])
            return [*items[:place], msgspec.structs.replace(item, request=raw), *others]
    raise AssertionError(kind)


@pytest.mark.parametrize("name", MACHINES)
@given(histories, st.data())
@settings(max_examples=25)
def test_r4_a_lie_in_any_leaf_of_any_machine_is_caught_and_the_watcher_goes_on(
    name: str, history: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    terms = kit.terms_of(name)
    desk = run(name, history, data)
    watcher = kit.watcher(terms)
    for batch in desk.batches:
        place = data.draw(st.integers(0, batch.commitment.leaf_count - 1))
        kind = data.draw(st.sampled_from(["outcome", "root", "count", "doubled", "signature"]))
        lie = kit.rebuilt(batch, partial(_lie, place=place, kind=kind))
        proof = watcher.follow(lie.commitment, lie.data)
        assert proof is not None
        assert check_fraud(kit.CHAIN_ID, terms, lie.commitment, proof, kit.REGISTRY)
        assert len(encode(proof)) <= MAX_FRAUD_PROOF_BYTES
        assert watcher.follow(batch.commitment, batch.data) is None


@given(st.data())
@settings(max_examples=150)
def test_r2_no_changed_byte_of_a_dispute_convicts_an_honest_operator(data: st.DataObject) -> None:
    _, _, batch = PAID
    proof = data.draw(st.sampled_from(disputes(kit.TERMS, batch, StateMap())))
    raw = bytearray(encode(proof))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed: FraudProof = decode(FraudProof, bytes(raw), MAX_FRAUD_PROOF_BYTES)  # type: ignore[arg-type]
        verdict = check_fraud(kit.CHAIN_ID, kit.TERMS, batch.commitment, changed, kit.REGISTRY)
    except InvalidInput:
        return
    pytest.fail(verdict)


def test_r2_a_dispute_without_all_state_proofs_gets_no_verdict() -> None:
    _, _, batch = PAID
    for proof in disputes(kit.TERMS, batch, StateMap()):
        if isinstance(proof, WrongExecution):
            for missing in range(len(proof.witness)):
                witness = proof.witness[:missing] + proof.witness[missing + 1 :]
                less = msgspec.structs.replace(proof, witness=witness)
                with pytest.raises(InvalidInput):
                    check_fraud(kit.CHAIN_ID, kit.TERMS, batch.commitment, less, kit.REGISTRY)


def test_a_watcher_refuses_what_is_not_the_next_batch_or_not_its_data() -> None:
    _, _, batch = PAID
    watcher = kit.watcher()
    assert watcher.follow(batch.commitment, batch.data) is None
    with pytest.raises(InvalidInput, match="does not follow"):
        watcher.follow(batch.commitment, batch.data)
    fresh = kit.watcher()
    for wrong in (batch.data[:-1], batch.data[:-1] + b"\x00", b""):
        with pytest.raises(InvalidInput):
            fresh.follow(batch.commitment, wrong)
    assert fresh.follow(batch.commitment, batch.data) is None
    assert fresh.start() == watcher.start() != Start()


def test_leaves_and_items_are_two_forms_of_one_thing() -> None:
    desk, _, batch = PAID
    leaves = [leaf_of(item) for item in kit.data_of(batch).items]
    assert leaves == [entry.leaf for entry in kit.accepted(desk.entries())]


PAID = kit.paid_batch()
