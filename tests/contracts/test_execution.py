# SPDX-License-Identifier: GPL-3.0-or-later
"""Execution of one request: limits are rules that the judge can follow, refusals change nothing."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import execution
from contracts.execution import COUNT_KEY, MACHINE_PREFIX, BoundMachine, execute, sequence_key
from contracts.machine import MAX_ENTRIES_PER_OPERATION, Context, Machine, Outcome, View, done, refused
from contracts.machines.micro_fees import Pay, balance_key
from contracts.operator import Start
from contracts.registry import Registry
from contracts.requests import CheckedRequest, sign_request
from contracts.state_map import StateMap
from ledger.codec import Uint, Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.fraud import check_fraud
from ledger.offchain import MAX_FRAUD_PROOF_BYTES, InvalidRequest, Place, PreState, WrongExecution
from ledger.partial_tree import MAX_WITNESS_ENTRIES, PartialTree
from ledger.testing import key
from tests.contracts import kit


class Touch(Wire, frozen=True):
    """Writes one value under some keys, and may do wrong things afterwards."""

    first: Uint
    """Number of the first key."""
    count: Uint
    """How many keys."""
    size: Uint
    """Size of the value; 0 deletes."""
    end: str
    """How it ends."""


def apply(view: View, context: Context[Touch], operation: Touch) -> Outcome:
    for number in range(operation.first, operation.first + operation.count):
        if operation.size:
            view.put(b"k%d" % number, bytes(operation.size))
        else:
            view.delete(b"k%d" % number)
    match operation.end:
        case "refused":
            return refused("not_today")
        case "error":
            raise ValueError("a mistake")
        case "nothing left":
            next(iter(()))
        case "no such name":
            del context
            done(encode(context))  # type: ignore[misc]
        case "wrong form":
            msgspec.msgpack.decode(b"\xc1")
        case "code":
            return refused("No Such Code" * 9)
        case "none":
            return None  # type: ignore[return-value]
    return done(encode(operation.count))


def swallowing(view: View, context: Context[Touch], operation: Touch) -> Outcome:
    try:
        apply(view, context, operation)
    except Exception:  # noqa: BLE001 -- what a careless machine does
        return done()
    return done()


NOTHING = Touch(0, 0, 0, "")
TOUCHING = Machine("touching", 1, Touch, Touch, apply)
SWALLOWING = Machine("swallowing", 1, Touch, Touch, swallowing)


def bound(machine: Machine[Any, Any]) -> BoundMachine:
    terms = msgspec.structs.replace(kit.TERMS, machine=machine.name, parameters=encode(NOTHING))
    return Registry([machine]).bind(terms)


def run(
    state: PreState,
    *operations: Touch | bytes,
    first: int = 0,
    machine: Machine[Any, Any] = TOUCHING,
    forced: bool = False,
) -> execution.Executed:
    raw = tuple(item if isinstance(item, bytes) else encode(item) for item in operations)
    request = CheckedRequest(bytes(32), b"", key(1).address, first, raw)
    return execute(bound(machine), Place(0, 0, 1, is_forced=forced), request, state)


def codes(executed: execution.Executed) -> list[str]:
    return [outcome.code for outcome in executed.outcomes]


@pytest.mark.parametrize("machine", [TOUCHING, SWALLOWING], ids=["careful", "swallows errors"])
@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (Touch(0, MAX_ENTRIES_PER_OPERATION + 1, 1, ""), "too_many_entries"),
        (Touch(0, 1, 1025, ""), "entry_too_large"),
        (Touch(2**63 - 1, 1, 1025, ""), "entry_too_large"),
    ],
)
def test_an_operation_that_runs_into_a_limit_is_refused_whatever_the_machine_returns(
    machine: Machine[Any, Any], operation: Touch, code: str
) -> None:
    executed = run(StateMap(), Touch(50, 1, 1, ""), operation, Touch(51, 1, 1, ""), machine=machine)
    assert codes(executed) == ["", code, ""]
    changed = [name for name, _ in executed.replay.changes]
    assert changed == sorted([b"mk50", b"mk51", COUNT_KEY, sequence_key(key(1).address)])


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("refused", "not_today"),
        *((end, "machine_failed") for end in ("error", "nothing left", "no such name", "wrong form", "code", "none")),
    ],
)
def test_a_refused_operation_changes_nothing_and_is_recorded(end: str, code: str) -> None:
    executed = run(StateMap(), Touch(0, 2, 3, end), b"\xc1")
    assert codes(executed) == [code, "malformed_operation"]
    assert executed.replay.changes == ((COUNT_KEY, encode(1)), (sequence_key(key(1).address), encode(2)))
    assert executed.replay.operation_count == 2


def test_operations_see_what_those_before_them_have_written() -> None:
    state = StateMap([(b"mk0", b"old"), (COUNT_KEY, encode(1))])
    executed = run(state, Touch(0, 2, 0, ""), Touch(1, 1, 4, ""), Touch(1, 1, 9, "refused"))
    changes = {b"mk0": None, b"mk1": bytes(4), sequence_key(key(1).address): encode(3), COUNT_KEY: encode(2)}
    assert dict(executed.replay.changes) == changes
    assert state.get(b"mk0") == b"old"


def test_a_gap_in_the_numbers_may_not_be_in_a_batch() -> None:
    with pytest.raises(InvalidRequest, match="the next is 0"):
        run(StateMap(), NOTHING, first=1)


class Watched:
    """A state that remembers what was read."""

    def __init__(self, state: PreState) -> None:
        self.state = state
        self.read: list[bytes] = []

    def get(self, name: bytes) -> bytes | None:
        self.read.append(name)
        return self.state.get(name)

    def steps(self, name: bytes) -> int:
        self.read.append(name)
        return self.state.steps(name)


touches = st.builds(
    Touch,
    st.integers(0, 40),
    st.integers(0, 18),
    st.sampled_from([0, 1, 300, 1024]),
    st.sampled_from(["", "", "refused", "error"]),
)


@given(st.lists(touches, min_size=1, max_size=12), st.sampled_from([2_000, 5_000, execution.MAX_METERED_BYTES]))
@settings(max_examples=60)
def test_proofs_of_what_was_touched_are_all_that_the_judge_needs_however_heavy_a_request_is(
    operations: list[Touch], room: int
) -> None:
    state = StateMap((b"mk%d" % number, bytes(200)) for number in range(0, 60, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "MAX_METERED_BYTES", room)
        watched = Watched(state)
        executed = run(watched, *operations)
        assert set(watched.read) == set(executed.touched)
        witness = state.witness(executed.touched)
        assert run(PartialTree(state.root(), witness), *operations) == executed
    assert sum(len(encode(entry)) for entry in witness) <= room + execution.MAX_ENTRY_PROOF_BYTES


def test_more_keys_than_a_witness_holds_are_refused_and_not_read() -> None:
    operations = [Touch(16 * number, 16, 0, "") for number in range(20)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "MAX_METERED_BYTES", 10**6)
        executed = run(StateMap(), *operations)
    assert codes(executed)[:15] == [""] * 15
    assert codes(executed)[16:] == ["request_too_heavy"] * 4
    assert len(executed.touched) <= MAX_WITNESS_ENTRIES


def account(number: int) -> bytes:
    return tagged_hash(Tag.ADDRESS, number.to_bytes(8, "big"))[:20]


def test_the_heaviest_request_in_a_large_state_can_be_challenged() -> None:
    entries = [(MACHINE_PREFIX + balance_key(account(number)), encode(1_000)) for number in range(3_000)]
    entries.append((MACHINE_PREFIX + balance_key(key(1).address), encode(10**6)))
    start = Start(0, 0, tuple(entries))
    desk = kit.Desk(start=start)
    payments = [Pay(account(17 * number), 1, bytes(32)) for number in range(64)]
    answer = desk.send(sign_request(kit.CHAIN_ID, key(1), kit.CONTRACT, 0, payments))
    outcomes = {outcome.code for outcome in answer.outcomes}
    assert outcomes == {"", "request_too_heavy"}
    honest = desk.cut()
    lie = kit.rebuilt(honest, lambda items: [msgspec.structs.replace(items[0], outcomes_digest=bytes(32))])
    watcher = kit.watcher(start=start)
    proof = watcher.follow(lie.commitment, lie.data)
    assert isinstance(proof, WrongExecution)
    assert len(encode(proof)) <= MAX_FRAUD_PROOF_BYTES
    assert "outcomes" in check_fraud(kit.CHAIN_ID, kit.TERMS, lie.commitment, proof, kit.REGISTRY)
    true = msgspec.structs.replace(
        proof, disputed=msgspec.structs.replace(proof.disputed, leaf=answer.signed.receipt.leaf)
    )
    with pytest.raises(InvalidInput, match="is what its request comes to"):
        check_fraud(kit.CHAIN_ID, kit.TERMS, honest.commitment, true, kit.REGISTRY)
    assert watcher.follow(honest.commitment, honest.data) is None


def test_an_entry_is_never_heavier_than_it_is_counted() -> None:
    state = StateMap((b"mk%d" % number, bytes(number * 3)) for number in range(300))
    for name in [b"mk%d" % number for number in range(0, 400, 7)]:
        (entry,) = state.witness([name])
        assert len(encode(entry)) <= execution.weight_of(name, entry.value, state.steps(name))


def test_a_full_state_takes_nothing_more_but_what_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "MAX_STATE_ENTRIES", 4)
    state, name = StateMap(), sequence_key(key(1).address)
    state.apply(run(state, Touch(0, 2, 1, "")).replay.changes)
    operations = (Touch(0, 1, 5, ""), Touch(2, 2, 1, ""))
    over = run(state, *operations, first=1)
    assert codes(over) == ["state_full"] * 2, "a request is refused as a whole"
    assert over.replay.changes == ((name, encode(3)),), "it serves once all the same"
    assert run(PartialTree(state.root(), state.witness(over.touched)), *operations, first=1) == over
    state.apply(over.replay.changes)
    state.apply(run(state, Touch(2, 1, 1, ""), first=3).replay.changes)
    assert state.get(COUNT_KEY) == encode(4)
    assert codes(run(state, Touch(0, 3, 9, ""), first=4)) == [""], "what is there can be changed"
    state.apply(run(state, Touch(9, 1, 1, ""), first=4, forced=True).replay.changes)
    assert state.get(COUNT_KEY) == encode(5)
    assert codes(run(state, Touch(9, 1, 0, ""), first=5)) == [""], "and go"
    assert codes(run(state, Touch(0, 0, 0, ""), Touch(10, 1, 1, ""), first=5)) == ["state_full"] * 2


def test_a_full_state_takes_no_further_senders_but_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "MAX_STATE_ENTRIES", 1)
    state = StateMap([(b"mk0", b"old"), (COUNT_KEY, encode(1))])
    with pytest.raises(InvalidRequest, match="full: 1 entries"):
        run(state, Touch(0, 1, 1, ""))
    with pytest.raises(InvalidRequest, match="full: 1 entries"):
        run(PartialTree(state.root(), state.witness(execution.keys_of(key(1).address))), Touch(0, 1, 1, ""))
    assert codes(run(state, Touch(0, 1, 1, ""), forced=True)) == [""]
