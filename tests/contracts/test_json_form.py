# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations, parameters and state keys as JSON: what goes out comes back, and whatever is wrong is refused by its name."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.json_form import (
    entry_kinds,
    key_from_text,
    key_to_text,
    operation_from_json,
    operation_kinds,
    operation_to_json,
    operations_from_json,
    operations_to_json,
    parameters_from_json,
    plain,
    result_to_json,
    struct_from_json,
    value_to_json,
)
from contracts.machine import Machine, done
from contracts.machines import SHIPPED, access_log, appointments, micro_fees, vital_signs
from contracts.machines.micro_fees import MICRO_FEES
from ledger.codec import Address, Uint, Wire, encode
from ledger.errors import InvalidInput
from ledger.offchain import Deposit
from tests.contracts.kit import OPERATIONS, PARAMETERS

BY_NAME = {machine.name: machine for machine in SHIPPED}
A, B, D = b"\xaa" * 20, b"\xbb" * 20, b"\xdd" * 32

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["pay", "measure", "offer_slot", "log_access", "recipient", "slot", "values", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@given(data=st.data())
def test_what_goes_out_comes_back(name: str, data: st.DataObject) -> None:
    machine = BY_NAME[name]
    operation = data.draw(OPERATIONS[name])
    text = msgspec.json.encode(operation_to_json(operation))
    assert operation_from_json(machine, msgspec.json.decode(text)) == operation
    assert operations_to_json(machine, [encode(operation)]) == [operation_to_json(operation)]
    assert parameters_from_json(machine, plain(PARAMETERS[name])) == encode(PARAMETERS[name])


@pytest.mark.parametrize("name", sorted(BY_NAME))
@given(value=json_values)
def test_whatever_comes_in_is_an_operation_or_refused(name: str, value: object) -> None:
    machine = BY_NAME[name]
    reads: tuple[Callable[..., object], ...] = (operation_from_json, operations_from_json, parameters_from_json)
    for read in reads:
        outcome = _outcome_of(read, machine, value)
        assert len(outcome) < 1_000 if isinstance(outcome, str) else encode(outcome)


def _outcome_of(read: Callable[..., object], machine: Machine[Any, Any], value: object) -> object:
    try:
        return read(machine, value)
    except InvalidInput as error:
        return str(error)


def test_users_cannot_write_the_chain_s_own_operations() -> None:
    assert Deposit not in operation_kinds(MICRO_FEES)
    with pytest.raises(InvalidInput, match="spchain contract fund"):
        operation_from_json(MICRO_FEES, {"deposit": {"account": A.hex(), "amount_microcredit": 1}})
    # Read back from a batch, they are shown like all others.
    assert operations_to_json(MICRO_FEES, [encode(Deposit(A, 1))]) == [
        {"deposit": {"account": A.hex(), "amount_microcredit": 1}}
    ]
    assert operations_to_json(MICRO_FEES, [b"\xc1rubbish"]) == [b"\xc1rubbish".hex()]


class Odd(Wire, frozen=True, tag=1):
    """Types that no shipped machine has."""

    text: Annotated[str, msgspec.Meta(max_length=4)]
    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]+\Z")]
    choice: Literal["one", "two"]
    maybe: Address | None
    inner: Deposit
    many: tuple[Deposit, ...]
    positive: Annotated[int, msgspec.Meta(gt=0, lt=10)]
    optional: Uint = 7


GOOD = {
    "text": "äöüß",
    "name": "abc",
    "choice": "two",
    "maybe": None,
    "inner": {"account": "aa" * 20, "amount_microcredit": 1},
    "many": [{"account": "bb" * 20, "amount_microcredit": 2}],
    "positive": 9,
}


def test_all_kinds_of_fields_are_read() -> None:
    made = struct_from_json(Odd, GOOD, "odd")
    assert made == Odd("äöüß", "abc", "two", None, Deposit(A, 1), (Deposit(B, 2),), 9)
    assert struct_from_json(Odd, {**GOOD, "maybe": "aa" * 20, "optional": 1}, "odd").maybe == A


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("text", "abcde", "odd.text is 'abcde'; write text of at most 4 characters"),
        ("text", 5, "odd.text is 5"),
        ("name", "ABC", "odd.name is 'ABC', which does not match"),
        ("choice", "three", 'odd.choice is \'three\'; write one of "one", "two"'),
        ("choice", True, "odd.choice is true"),
        ("maybe", "aa", "odd.maybe is 'aa'; write 20 bytes as 40 hexadecimal digits"),
        ("maybe", "ag" * 20, "odd.maybe"),
        ("maybe", "aa " * 20, "odd.maybe"),
        ("inner", None, "odd.inner is null; it is an object with account, amount_microcredit"),
        ("inner", {"account": "aa" * 20}, "odd.inner.amount_microcredit is missing"),
        ("many", {}, "odd.many is an object; write a list"),
        ("many", [GOOD["inner"], 5], r"odd.many\[1\] is 5"),
        ("positive", 0, "odd.positive is 0; write a whole number from 1 to 9"),
        ("positive", 10, "odd.positive is 10"),
        ("positive", 1.0, "odd.positive is 1.0"),
        ("positive", "1", "odd.positive is '1'"),
        ("positive", False, "odd.positive is false"),
        ("other", 1, "odd.other is unknown; there are: text, name"),
        ("x" * 10_000, 1, r"odd.x{80}… is unknown"),
        ("maybe", "a" * 10_001, r"odd.maybe is 'a{80}…'"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_takes(field: str, value: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        struct_from_json(Odd, {**GOOD, field: value}, "odd")


def test_an_operation_that_is_too_large_is_refused_before_it_is_signed() -> None:
    class Long(Wire, frozen=True, tag=1):
        many: tuple[Address, ...]

    machine: Machine[Any, Any] = Machine("long", 1, micro_fees.MicroFeesParameters, Long, lambda *_: done())
    with pytest.raises(InvalidInput, match="at most 1024 are allowed"):
        operation_from_json(machine, {"long": {"many": ["aa" * 20] * 50}})


# ---------------------------------------------------------------- state keys


@pytest.mark.parametrize(
    ("machine", "key", "text"),
    [
        ("micro_fees", b"m" + micro_fees.balance_key(A), f"balance:{A.hex()}"),
        ("micro_fees", b"m" + micro_fees.withdrawn_key(A), f"withdrawn:{A.hex()}"),
        ("micro_fees", b"m" + micro_fees.paid_key(A, B), f"paid:{A.hex()}:{B.hex()}"),
        ("micro_fees", b"s" + A, f"sequence:{A.hex()}"),
        ("access_log", b"m" + A, f"accesses:{A.hex()}"),
        ("appointments", b"m" + appointments.slot_key(7), "slot:7"),
        ("appointments", b"m" + appointments.acknowledgement_key(A, D), f"acknowledgement:{A.hex()}:{D.hex()}"),
        ("vital_signs", b"m" + vital_signs.window_key(A, 3, 9), f"window:{A.hex()}:3:9"),
        ("vital_signs", b"m" + vital_signs.series_key(A, 65_535), f"newest:{A.hex()}:65535"),
    ],
)
def test_the_names_of_keys_are_those_that_the_machines_use(machine: str, key: bytes, text: str) -> None:
    assert key_to_text(BY_NAME[machine], key) == text
    assert key_from_text(BY_NAME[machine], text) == key
    assert key_from_text(BY_NAME[machine], key.hex()) == key


@pytest.mark.parametrize("machine", SHIPPED, ids=lambda machine: machine.name)
@given(key=st.binary(min_size=1, max_size=64))
def test_any_key_has_a_name_that_leads_back(machine: Machine[Any, Any], key: bytes) -> None:
    assert key_from_text(machine, key_to_text(machine, key)) == key


def test_no_two_kinds_of_entries_share_a_key() -> None:
    for machine in SHIPPED:
        kinds = entry_kinds(machine)
        for kind in kinds:
            key = kind.prefix + bytes(sum(part.size_bytes for part in kind.parts))
            fitting = [other.name for other in kinds if key_to_text(machine, key).split(":")[0] == other.name]
            assert fitting == [kind.name]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no state key"),
        (
            "wealth",
            "write one as balance:ACCOUNT, withdrawn:ACCOUNT, paid:PAYER:RECIPIENT, sequence:ACCOUNT, entries, or",
        ),
        ("balance", "write it as balance:ACCOUNT"),
        ("balance:aa", "account 'aa' is not 40 hexadecimal digits"),
        (f"balance:{A.hex()}:{A.hex()}", "write it as"),
        ("zz", "no state key"),
    ],
)
def test_a_wrong_key_is_refused_with_the_right_form(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        key_from_text(MICRO_FEES, text)
    for number in ("-1", "65536", "9" * 30, "１"):
        with pytest.raises(InvalidInput, match="is no number from 0 to 65535"):
            key_from_text(vital_signs.VITAL_SIGNS, f"newest:{A.hex()}:{number}")


def test_values_are_read_by_the_kind_of_their_key() -> None:
    head = access_log.AccessHead(3, 1, 0, 5, D)
    assert value_to_json(access_log.ACCESS_LOG, b"m" + A, encode(head))["count"] == 3
    assert value_to_json(MICRO_FEES, b"mb" + A, encode(7)) == 7
    assert value_to_json(MICRO_FEES, b"mb" + A, b"\xff\xff") == "ffff"
    assert value_to_json(MICRO_FEES, b"unknown", encode(7)) == "07"


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (b"", None),
        (encode(5), 5),
        (encode(D), D.hex()),
        (b"\xc1", "c1"),
        (b"\x91\x01", "9101"),
        (encode(1.5), encode(1.5).hex()),
        (b"\xd6\xff\x00\x00\x00\x01", "d6ff00000001"),
        (b"\x91" * 64, "91" * 64),
        (b"\xa1\xff", "a1ff"),
    ],
)
def test_results_are_shown_as_numbers_texts_and_bytes_only(result: bytes, shown: object) -> None:
    assert result_to_json(result) == shown
