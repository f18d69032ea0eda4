# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines that ship: what their users can do, and what they cannot."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.execution import MACHINE_PREFIX
from contracts.machine import MAX_ENTRIES_PER_OPERATION, Outcome
from contracts.machines import SHIPPED
from contracts.machines.access_log import (
    ACCESS_LOG,
    AccessHead,
    AccessLogParameters,
    LogAccess,
    ReviewAccesses,
    apply,
    head_of,
    next_digest,
)
from contracts.machines.appointments import (
    Acknowledge,
    BookSlot,
    CancelSlot,
    CloseSlot,
    OfferSlot,
    acknowledgement_key,
)
from contracts.machines.micro_fees import (
    MAX_CREDITS,
    Pay,
    Refund,
    Withdraw,
    amount_at,
    balance_key,
    paid_key,
    payable_keys,
    withdrawn_key,
)
from contracts.machines.vital_signs import MAX_VALUES, Measure, window_at, window_key
from contracts.operator import Answer
from contracts.requests import check_request
from contracts.state_map import StateMap
from ledger.codec import decode, encode
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.offchain import ContractTerms, Deposit
from ledger.state_tree import verify_state_proof
from ledger.testing import key
from tests.contracts import kit

DIGEST = tagged_hash(Tag.BLOB, b"a digest")
A, B, C = (key(number).address for number in (1, 2, 3))


class Reading:
    """A contract's state as a machine's reading functions take it."""

    def __init__(self, state: StateMap) -> None:
        self.state = state

    def get(self, name: bytes) -> bytes | None:
        return self.state.get(MACHINE_PREFIX + name)

    def put(self, name: bytes, value: bytes) -> None:
        raise AssertionError("only reads")

    def delete(self, name: bytes) -> None:
        raise AssertionError("only reads")


class Contract:
    """One open contract; `do` gives the outcome of an operation."""

    def __init__(self, machine: str, parameters: object | None = None) -> None:
        terms = kit.terms_of(machine)
        if parameters is not None:
            terms = ContractTerms(terms.contract_id, machine, 1, encode(parameters), terms.operator)
        self.desk, self.sender = kit.Desk(terms), kit.Sender()

    @property
    def view(self) -> Reading:
        return Reading(self.desk.operator.state)

    def do(self, user: int, operation: object, now_ms: int = 1_000) -> Outcome:
        answer: Answer = self.desk.send(self.sender.request(user, operation), now_ms)
        return answer.outcomes[0]

    def code(self, user: int, operation: object, now_ms: int = 1_000) -> str:
        return self.do(user, operation, now_ms).code

    def deposit(self, account: bytes, amount: int) -> Outcome:
        return self.desk.send(self.sender.deposit(account, amount), is_forced=True).outcomes[0]


def test_machines_have_names_and_refuse_parameters_that_are_not_theirs() -> None:
    assert len({(machine.name, machine.version) for machine in SHIPPED}) == len(SHIPPED) == 4
    for machine in SHIPPED:
        kit.REGISTRY.check_terms(kit.terms_of(machine))
        with pytest.raises(InvalidInput, match=f"parameters of {machine.name}"):
            kit.REGISTRY.check_terms(ContractTerms(kit.CONTRACT, machine.name, 1, b"\x91\xc1", kit.OPERATOR.public_key))


@pytest.mark.parametrize("machine", sorted(kit.OPERATIONS))
def test_only_the_machine_of_fees_takes_deposits(machine: str) -> None:
    taken = Contract(machine).deposit(A, 5)
    assert taken.is_done == (machine == "micro_fees")


# ---------------------------------------------------------------- access log


def test_an_access_is_answered_with_its_number_and_moves_the_patients_head() -> None:
    contract = Contract("access_log")
    accesses = [LogAccess(A, B, DIGEST, is_refused=False), LogAccess(A, C, DIGEST, is_refused=True)]
    assert [decode(int, contract.do(4, access, 7 + n).result, 9) for n, access in enumerate(accesses)] == [1, 2]
    digest = ZERO_DIGEST
    for number, access in enumerate(accesses):
        digest = next_digest(digest, key(4).address, 7 + number, access)
    assert head_of(contract.view, A) == AccessHead(2, 1, 0, 8, digest)
    assert head_of(contract.view, B).count == 0


def test_only_writers_log_and_only_the_patient_reviews() -> None:
    contract = Contract("access_log", AccessLogParameters((key(4).address,)))
    access = LogAccess(A, B, DIGEST, is_refused=False)
    assert contract.code(1, access) == "not_a_writer"
    assert contract.code(4, access) == ""
    assert contract.code(2, ReviewAccesses(1)) == "nothing_to_review"
    assert [contract.code(1, ReviewAccesses(count)) for count in (2, 0, 1, 1)] == ["nothing_to_review"] * 2 + [
        "",
        "nothing_to_review",
    ]
    assert head_of(contract.view, A).reviewed_count == 1
    assert ACCESS_LOG.apply is apply


@given(st.lists(st.tuples(kit.users, kit.OPERATIONS["access_log"]), max_size=12))
@settings(max_examples=20)
def test_whoever_has_the_published_accesses_recomputes_each_patients_head(sent: list[tuple[int, Any]]) -> None:
    contract = Contract("access_log")
    for number, (user, operation) in enumerate(sent):
        contract.do(user, operation, number)
    if not sent:
        return
    digests: dict[bytes, bytes] = {}
    counts: dict[bytes, int] = {}
    for item in kit.data_of(contract.desk.cut()).items:
        request = check_request(kit.CHAIN_ID, kit.CONTRACT, item.request)
        operation = decode(LogAccess | ReviewAccesses, request.operations[0], 1024)  # type: ignore[arg-type]
        if isinstance(operation, LogAccess):
            before = digests.get(operation.patient, ZERO_DIGEST)
            digests[operation.patient] = next_digest(before, request.sender, item.time_ms, operation)
            counts[operation.patient] = counts.get(operation.patient, 0) + 1
    for patient, digest in digests.items():
        head = head_of(contract.view, patient)
        assert (head.digest, head.count) == (digest, counts[patient])


# ---------------------------------------------------------------- appointments

OFFER = OfferSlot(1, 5_000, 6_000)
BOOK, CANCEL = BookSlot(1, DIGEST), CancelSlot(1)
CAME, MISSED = CloseSlot(1, was_there=True), CloseSlot(1, was_there=False)


@pytest.mark.parametrize(
    ("history", "code"),
    [
        ([(2, OFFER, 1)], "not_the_institution"),
        ([(1, OFFER, 1), (1, OFFER, 1)], "slot_exists"),
        ([(1, OfferSlot(1, 9, 9), 1)], "wrong_period"),
        ([(2, BOOK, 1)], "slot_unknown"),
        ([(2, CANCEL, 1)], "slot_unknown"),
        ([(1, OFFER, 1), (2, BOOK, 1), (3, BOOK, 1)], "slot_taken"),
        ([(1, OFFER, 1), (2, BOOK, 4_901)], "too_late"),
        ([(1, OFFER, 1), (2, BOOK, 4_900)], ""),
        ([(1, OFFER, 1), (2, BOOK, 1), (3, CANCEL, 2)], "not_yours"),
        ([(1, OFFER, 1), (2, CANCEL, 2)], "not_yours"),
        ([(1, OFFER, 1), (2, BOOK, 1), (2, CANCEL, 4_901)], "too_late"),
        ([(1, OFFER, 1), (2, BOOK, 1), (2, CANCEL, 2), (3, BOOK, 3)], ""),
        ([(1, OFFER, 1), (2, BOOK, 1), (1, CANCEL, 2), (3, BOOK, 3)], "slot_taken"),
        ([(1, OFFER, 1), (1, CANCEL, 2), (1, CANCEL, 2)], "slot_closed"),
        ([(1, OFFER, 1), (1, CAME, 5_000)], "not_booked"),
        ([(1, OFFER, 1), (2, BOOK, 1), (1, CAME, 4_999)], "too_early"),
        ([(1, OFFER, 1), (2, BOOK, 1), (2, CAME, 5_000)], "not_the_institution"),
        ([(1, OFFER, 1), (2, BOOK, 1), (1, MISSED, 5_000)], ""),
        ([(1, OFFER, 1), (2, BOOK, 1), (1, CAME, 5_000), (1, MISSED, 5_001)], "not_booked"),
        ([(1, OFFER, 1), (2, BOOK, 1), (1, CAME, 5_000), (1, CANCEL, 5_001)], "slot_closed"),
        ([(2, Acknowledge(DIGEST), 1), (2, Acknowledge(DIGEST), 2)], "already_acknowledged"),
        ([(2, Acknowledge(DIGEST), 1), (3, Acknowledge(DIGEST), 2)], ""),
    ],
)
def test_appointments(history: list[tuple[int, Any, int]], code: str) -> None:
    contract = Contract("appointments")
    *before, last = history
    for user, operation, now_ms in before:
        assert contract.code(user, operation, now_ms) == ""
    assert contract.code(*last) == code


def test_an_acknowledgement_stands_with_its_time() -> None:
    contract = Contract("appointments")
    contract.do(2, Acknowledge(DIGEST), 77)
    assert contract.view.get(acknowledgement_key(B, DIGEST)) == encode(77)


# ---------------------------------------------------------------- micro-fees


@pytest.mark.parametrize(
    ("user", "operation", "code"),
    [
        (1, Pay(B, 500, DIGEST), ""),
        (1, Pay(B, 501, DIGEST), "insufficient_balance"),
        (1, Pay(B, 1_001, DIGEST), "amount_too_large"),
        (1, Pay(A, 1, DIGEST), "same_account"),
        (1, Pay(B, 0, DIGEST), "nothing_to_move"),
        (2, Pay(A, 1, DIGEST), "insufficient_balance"),
        (1, Refund(B, 1), "nothing_to_refund"),
        (1, Withdraw(500), ""),
        (1, Withdraw(501), "insufficient_balance"),
        (1, Withdraw(0), "nothing_to_move"),
        (1, Deposit(A, 500), "not_yours"),
    ],
)
def test_fees(user: int, operation: object, code: str) -> None:
    contract = Contract("micro_fees")
    contract.deposit(A, 500)
    before = dict(contract.desk.operator.state.entries())
    assert contract.code(user, operation) == code
    after = {name: value for name, value in contract.desk.operator.state.entries() if name.startswith(MACHINE_PREFIX)}
    assert bool(code) == (after == {name: value for name, value in before.items() if name.startswith(MACHINE_PREFIX)})


def test_the_chain_finds_what_an_account_may_take_out_and_its_proof() -> None:
    contract = Contract("micro_fees")
    contract.deposit(A, 500)
    contract.do(1, Withdraw(200))
    state, keys = contract.desk.operator.state, kit.REGISTRY.payable_keys(kit.TERMS, A)
    assert keys is not None
    for name, amount in ((keys.withdrawn, 200), (keys.balance, 300)):
        assert state.get(name) == encode(amount)
        assert verify_state_proof(contract.desk.cut().commitment.new_root, name, encode(amount), state.prove(name))
    assert kit.REGISTRY.payable_keys(kit.terms_of("access_log"), A) is None


def test_a_refund_gives_back_at_most_what_was_paid() -> None:
    contract = Contract("micro_fees")
    contract.deposit(A, 500)
    contract.deposit(B, 500)
    assert contract.code(1, Pay(B, 100, DIGEST)) == ""
    assert [contract.code(2, Refund(A, amount)) for amount in (101, 60, 41, 40, 1)] == [
        "nothing_to_refund",
        "",
        "nothing_to_refund",
        "",
        "nothing_to_refund",
    ]
    assert amount_at(contract.view, balance_key(A)) == 500
    assert contract.view.get(paid_key(A, B)) is None


def test_amounts_beyond_what_a_field_holds_are_refused() -> None:
    contract = Contract("micro_fees")
    assert contract.deposit(A, MAX_CREDITS).code == ""
    assert contract.deposit(A, 1).code == "amount_too_large"
    assert contract.deposit(B, 1).code == ""
    assert contract.code(2, Pay(A, 1, DIGEST)) == "amount_too_large"


moves = st.lists(
    st.tuples(st.integers(0, kit.USERS), st.tuples(kit.accounts, kit.amounts), kit.OPERATIONS["micro_fees"]),
    max_size=30,
)


@given(moves)
@settings(max_examples=30)
def test_credits_are_conserved_whatever_is_sent(sent: list[tuple[int, tuple[bytes, int], Any]]) -> None:
    contract = Contract("micro_fees")
    deposited = 0
    for user, (account, amount), operation in sent:
        if user == 0:
            deposited += amount
            contract.deposit(account, amount)
        else:
            contract.do(user, operation)
        held = withdrawn = 0
        for number in range(1, kit.USERS + 1):
            payable = payable_keys(key(number).address)
            assert payable.balance == balance_key(key(number).address)
            assert payable.withdrawn == withdrawn_key(key(number).address)
            held += amount_at(contract.view, payable.balance)
            withdrawn += amount_at(contract.view, payable.withdrawn)
        assert held + withdrawn == deposited


# ---------------------------------------------------------------- vital signs


@pytest.mark.parametrize(
    ("operation", "now_ms", "code"),
    [
        (Measure(1, 1_000, 10, (1, 2)), 1_010, ""),
        (Measure(1, 1_000, 10, (1, 2)), 1_009, "in_the_future"),
        (Measure(1, 1_000, 10, (1, 2)), 101_000, ""),
        (Measure(1, 1_000, 10, (1, 2)), 101_001, "too_old"),
        (Measure(1, 500, 1, (1,)), 1_010, "not_newer"),
        (Measure(2, 500, 1, (1,)), 1_010, ""),
        (Measure(1, 1_000, 1_000, (1,) * (MAX_ENTRIES_PER_OPERATION - 1)), 90_000, ""),
        (Measure(1, 1_000, 1_000, (1,) * MAX_ENTRIES_PER_OPERATION), 90_000, "too_many_entries"),
    ],
)
def test_measurements(operation: Measure, now_ms: int, code: str) -> None:
    contract = Contract("vital_signs")
    assert contract.code(2, Measure(1, 999, 1, (5,)), 999) == ""
    assert contract.code(2, operation, now_ms) == code


def test_values_beyond_their_bounds_are_no_operation() -> None:
    for wrong in (
        Measure(1, 1, 1, (2**31,)),
        Measure(1, 1, 0, (1,)),
        Measure(1, 1, 1, ()),
        Measure(1, 1, 1, (1,) * (MAX_VALUES + 1)),
        Measure(2**16, 1, 1, (1,)),
    ):
        assert Contract("vital_signs").code(1, wrong) == "malformed_operation"


@given(st.lists(kit.OPERATIONS["vital_signs"], max_size=10))
@settings(max_examples=30)
def test_windows_hold_what_a_plain_computation_gives(sent: list[Measure]) -> None:
    contract = Contract("vital_signs")
    plain: dict[tuple[int, int], list[int]] = {}
    for operation in sent:
        if contract.code(1, operation, 10_000):
            continue
        for place, value in enumerate(operation.values):
            time_ms = operation.first_ms + place * operation.interval_ms
            plain.setdefault((operation.series, time_ms // 1_000), []).append(value)
    for (series, number), values in plain.items():
        window = window_at(contract.view, window_key(A, series, number))
        assert window is not None
        assert (window.count, window.total, window.lowest, window.highest) == (
            len(values),
            sum(values),
            min(values),
            max(values),
        )
        assert abs(window.mean() * len(values) - sum(values)) * 2 <= len(values)
