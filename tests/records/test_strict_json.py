# SPDX-License-Identifier: GPL-3.0-or-later
"""Strict JSON: everything that two readers could read differently is refused, with the path to it."""

import json
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidInput
from records.strict_json import MAX_DEPTH, MAX_VALUES, JsonValue, parse_object, path, quoted

LIMIT = 1 << 20

JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_what_json_writes_is_read_back(value: dict[str, JsonValue]) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    assert parse_object(text, LIMIT) == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(InvalidInput):
        assert isinstance(parse_object(data, LIMIT), dict)


@given(st.data())
def test_a_damaged_text_is_read_or_refused(data: st.DataObject) -> None:
    text = bytearray(b'{"a": [1, 2.5e3, {"b": "\xc3\xa9\\u00e9"}], "c": null, "d": true}')
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] = data.draw(st.integers(0, 255))
    with suppress(InvalidInput):
        parse_object(bytes(text), LIMIT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", r"damaged at line 1, column 1"),
        (b'{"a": 1', r"damaged at line 1, column 8"),
        (b'{"a": 1} {}', "damaged"),
        (b"\xef\xbb\xbf{}", "damaged"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', r"\$\.a has the key 'b' twice"),
        (b'{"a": 1, "\\u0061": 2}', r"\$ has the key 'a' twice"),
        (b'{"a": [0, NaN]}', r"\$\.a\[1\] is not a finite number"),
        (b'{"a": -Infinity}', r"\$\.a is not a finite number"),
        (b'{"a": 1e999}', r"\$\.a is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (b'{"a": "\\ud800"}', r"\$\.a has half of a surrogate pair"),
        (b"[]", "holds an array; an object is expected"),
        (b"null", "holds null; an object"),
        (b'"x"', "holds a string; an object"),
        (b"true", "holds true or false; an object"),
        (b'{"a": ' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper than 32"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", r"\$\.a(\[0\])+ is nested deeper than 32"),
        (b'{"a": ' + b"[" * 100_000, "nested deeper than 32|damaged"),
    ],
)
def test_each_fault_is_named_with_its_place(text: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_object(text, LIMIT)


def test_the_deepest_allowed_text_is_read() -> None:
    assert parse_object(b'{"a": ' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, LIMIT)


def test_a_text_over_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    assert parse_object(b'{"a": 1}', 8) == {"a": 1}
    with pytest.raises(InvalidInput, match="has 9 bytes; at most 8"):
        parse_object(b'{"a": 10}', 8)


def test_many_tiny_values_are_refused_before_they_are_built() -> None:
    text = b'{"a":[' + b"[]," * MAX_VALUES + b"[]]}"
    with pytest.raises(InvalidInput, match="at most 500000"):
        parse_object(text, 16 << 20)


def test_values_are_not_in_the_text_of_an_error() -> None:
    for text in (b'{"name": "Ana Mar\\ud800"}', b'{"name": "Ana Mar', b'{"name": "Ana Mar" "x"}'):
        with pytest.raises(InvalidInput) as caught:
            parse_object(text, LIMIT)
        assert "Ana" not in str(caught.value)


def test_strange_names_in_a_path_are_quoted_and_cut() -> None:
    assert path(("entry", 3, "resource", "_birthDate")) == "$.entry[3].resource._birthDate"
    assert path(("\x1b[2J", "né")) == r"$['\x1b[2J']['n\xe9']"
    assert quoted("x" * 1000) == "'" + "x" * 40 + "...'"
    assert path(()) == "$"


def test_finite_floats_stay_floats() -> None:
    value = parse_object(b'{"a": 1e-400, "b": 0.1}', LIMIT)
    assert value == {"a": 0.0, "b": 0.1}


@pytest.mark.parametrize(
    "text", ["[" * 500_000, '{"a":' * 400_000, '{"x":"\\"' + '\\"' * 1_000_000, '{"a":"[[' + "[" * 10**6]
)
def test_no_nesting_and_no_endless_string_harms_the_process_whatever_its_recursion_limit(text: str) -> None:
    """Libraries raise the interpreter's limit (py_ecc sets 100 000); the parser would then overflow the C stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(InvalidInput):
            parse_object(text.encode(), 16 << 20)
    finally:
        sys.setrecursionlimit(before)


def test_brackets_inside_strings_are_no_nesting() -> None:
    assert parse_object(json.dumps({"a": "[" * 1000 + '"\\' + "{" * 1000}).encode(), 1 << 20)
