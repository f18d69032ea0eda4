# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON from outside, read strictly: one reading per text, bounded memory, and a path to whatever is wrong.

RFC 8259 leaves open what duplicate keys, NaN and lone surrogates mean. Two programs may then read two different
records out of the same bytes, so all of them are refused. Values never enter an error's text: texts reach logs,
and the values are medical. Field names do, shortened and escaped.
"""

import json
import math
import re
from typing import TypeAlias

from ledger.errors import InvalidInput

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, JsonValue]
Step: TypeAlias = str | int

MAX_DEPTH = 32
"""Nested objects and arrays. Real bundles reach 11; an extension of an extension adds two."""
MAX_VALUES = 500_000
"""Values in one text, counted by their separators. The densest real bundles take 33 bytes a value, which makes
500 000 in 16 MiB. It bounds memory:
a text of nothing but `[[],[],…` would take twenty times its size."""

_PARSER_DEPTH = 256
"""Nesting that is handed to the parser, which recurses on the C stack: far more than is accepted, so that the refusal can name
the place, and far less than overflows any thread's stack. The interpreter's own limit is no help: libraries raise it."""

# Strings are matched whole, also one that never ends, so that the scan is linear whatever the text.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAME_CHARACTERS = 40  # of a field name that is quoted in an error


class _Duplicated(dict[str, JsonValue]):
    """An object in which a key stood twice; the walk, which knows the path, reports it."""

    key = ""


def parse_object(data: bytes, limit_bytes: int) -> JsonObject:
    """Read one JSON object.

    Args:
        data: the text in UTF-8, without a byte order mark.
        limit_bytes: most bytes that are looked at.

    Raises:
        InvalidInput: too long, no UTF-8, no JSON, truncated, too deep, too many values, a key twice in one object, a
            number that is not finite, or not an object.
    """
    if len(data) > limit_bytes:
        raise InvalidInput(f"the JSON text has {len(data)} bytes; at most {limit_bytes} are accepted: split it")
    marks = data.count(b",") + data.count(b"[") + data.count(b"{")
    if marks > MAX_VALUES:
        raise InvalidInput(f"the JSON text has about {marks} values; at most {MAX_VALUES} are accepted: split it")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the JSON text is not UTF-8 at byte {error.start}; encode it as UTF-8") from error
    if _is_deeper(text, _PARSER_DEPTH):
        raise InvalidInput(f"the JSON text is nested deeper than {MAX_DEPTH} levels")
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"the JSON text is damaged at line {error.lineno}, column {error.colno}: {error.msg}; is it complete?"
        ) from error
    except ValueError as error:
        # Of Python's own making: an integer of more than 4 300 digits, whose conversion would take quadratic time.
        raise InvalidInput(
            "the JSON text has an integer of more than 4300 digits, which is no medical value"
        ) from error
    _check(value)
    if not isinstance(value, dict):
        raise InvalidInput(f"the JSON text holds {_KINDS[type(value)]}; an object is expected")
    return value


def path(steps: tuple[Step, ...]) -> str:
    """Write the way to a value, as in `$.entry[3].resource.birthDate`; strange names are quoted and cut."""
    parts = ["$"]
    for step in steps:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_NAME.fullmatch(step):
            parts.append(f".{step}")
        else:
            parts.append(f"[{quoted(step)}]")
    return "".join(parts)


def quoted(name: str) -> str:
    """Quote a name from outside for an error's text: ASCII only, no control characters, cut to 40 characters."""
    cut = name if len(name) <= _NAME_CHARACTERS else name[:_NAME_CHARACTERS] + "..."
    return ascii(cut)


_KINDS = {
    dict: "an object",
    _Duplicated: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _object(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    marked = _Duplicated(result)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            marked.key = key
            break
        seen.add(key)
    return marked


_Trail: TypeAlias = tuple["_Trail", Step] | tuple[()]


def _steps(trail: _Trail) -> tuple[Step, ...]:
    steps: list[Step] = []
    while trail:
        trail, step = trail
        steps.append(step)
    return tuple(reversed(steps))


def _is_deeper(text: str, limit: int) -> bool:
    """Tell whether brackets outside strings are ever nested deeper; looks at no more of the text than it must."""
    depth = 0
    for match in _STRUCTURE.finditer(text):
        mark = text[match.start()]
        if mark in "[{":
            depth += 1
            if depth > limit:
                return True
        elif mark in "]}":
            depth -= 1
    return False


def _check(root: JsonValue) -> None:
    """Visit every value once, without recursion, and raise at the first that is refused."""
    pending: list[tuple[JsonValue, _Trail, int]] = [(root, (), 0)]
    while pending:
        value, trail, depth = pending.pop()
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise InvalidInput(f"{path(_steps(trail))} is nested deeper than {MAX_DEPTH} levels")
            if isinstance(value, _Duplicated):
                raise InvalidInput(f"{path(_steps(trail))} has the key {quoted(value.key)} twice; keep one")
            children = value.items() if isinstance(value, dict) else enumerate(value)
            pending.extend((child, (trail, step), depth + 1) for step, child in children)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidInput(f"{path(_steps(trail))} is not a finite number")
        elif isinstance(value, str) and not value.isascii() and _has_surrogate(value):
            raise InvalidInput(f"{path(_steps(trail))} has half of a surrogate pair, which is no character")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
