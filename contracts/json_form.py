# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations, parameters, results and state keys as JSON, for people and other programs; generic over what a machine declares.

An operation is written `{"pay": {"recipient": "…", "amount_microcredit": 5, "reference": "…"}}`: the struct's name in snake case, its
fields by name, bytes in hexadecimal. Whatever is wrong is refused with the path of the field: `pay.recipient`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from contracts.execution import COUNT_KEY, MACHINE_PREFIX, SEQUENCE_PREFIX
from contracts.machine import EntryKind, KeyPart, Machine
from ledger.codec import Uint, decode, encode
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.errors import InvalidInput
from ledger.offchain import MAX_OPERATION_BYTES, MAX_PARAMETERS_BYTES, Deposit
from ledger.partial_tree import MAX_VALUE_BYTES

S = TypeVar("S", bound=msgspec.Struct)

SEQUENCE = EntryKind("sequence", SEQUENCE_PREFIX, (KeyPart("account", ADDRESS_BYTES),), Uint)
"""What every contract keeps, whatever its machine: the number of an account's next operation."""
COUNT = EntryKind("entries", COUNT_KEY, (), Uint)
"""And the number of all other entries."""

_word = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_is_hex = re.compile(r"(?:[0-9a-fA-F]{2})*").fullmatch
_is_number = re.compile(r"[0-9]{1,20}").fullmatch
_QUOTED_CHARACTERS = 80


# ---------------------------------------------------------------- out


def name_of(kind: type) -> str:
    """Return the name under which a struct stands in JSON."""
    return _word.sub("_", kind.__name__).lower()


def plain(value: object) -> Any:  # noqa: ANN401 -- JSON of any shape
    """Return a decoded value ready for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {field: plain(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def operation_to_json(operation: msgspec.Struct) -> dict[str, Any]:
    """Return an operation."""
    return {name_of(type(operation)): plain(operation)}


def result_to_json(result: bytes) -> Any:  # noqa: ANN401 -- a number, a digest, whatever the machine answers
    """Return what an operation answers: the number, text or bytes that it is in MessagePack, else as it is; None for nothing."""
    if not result:
        return None
    try:
        value = msgspec.msgpack.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return result.hex()
    return plain(value) if isinstance(value, int | str | bytes) else result.hex()


# ---------------------------------------------------------------- in


def operation_kinds(machine: Machine[Any, Any]) -> tuple[type[msgspec.Struct], ...]:
    """Return the operations that users may send; deposits are the chain's."""
    info = inspect.type_info(machine.operations)
    kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
    found = [kind.cls for kind in kinds if isinstance(kind, inspect.StructType)]
    return tuple(kind for kind in found if kind is not Deposit)


def operation_from_json(machine: Machine[Any, Any], value: object) -> msgspec.Struct:
    """Return an operation of a machine. Raises `InvalidInput`, which names the field."""
    kinds = {name_of(kind): kind for kind in operation_kinds(machine)}
    known = f"{machine.name} knows: {', '.join(kinds)}"
    if not isinstance(value, dict) or len(value) != 1:
        raise InvalidInput(f'an operation is an object with one name, as {{"{next(iter(kinds))}": {{…}}}}; {known}')
    ((name, fields),) = value.items()
    if name == name_of(Deposit):
        raise InvalidInput("the chain itself makes deposits: spchain contract fund")
    if name not in kinds:
        raise InvalidInput(f"no operation {_quoted(name)}; {known}")
    made = struct_from_json(kinds[name], fields, name)
    size = len(encode(made))
    if size > MAX_OPERATION_BYTES:
        raise InvalidInput(f"{name}: {size} bytes, at most {MAX_OPERATION_BYTES} are allowed; send several")
    return made


def parameters_from_json(machine: Machine[Any, Any], value: object) -> bytes:
    """Return encoded parameters of a machine. Raises `InvalidInput`, which names the field."""
    raw = encode(struct_from_json(machine.parameters, value, "parameters"))
    if len(raw) > MAX_PARAMETERS_BYTES:
        raise InvalidInput(f"parameters: {len(raw)} bytes, at most {MAX_PARAMETERS_BYTES} are allowed")
    return raw


def struct_from_json(kind: type[S], value: object, where: str) -> S:
    """Return a struct from its fields by name. Raises `InvalidInput`, which names the field by its path from `where`."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType), f"{kind} is no struct"
    made: S = _struct(info, value, where)
    return made


def _struct(info: inspect.StructType, value: object, where: str) -> Any:  # noqa: ANN401 -- the struct's type is in `info`
    names = [field.name for field in info.fields]
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is {_kind(value)}; it is an object with {', '.join(names) or 'no fields'}")
    for name in value:
        if name not in names:
            raise InvalidInput(f"{where}.{_shown(name)} is unknown; there are: {', '.join(names)}")
    made = {}
    for field in info.fields:
        if field.name in value:
            made[field.name] = _value(field.type, value[field.name], f"{where}.{field.name}")
        elif field.required:
            raise InvalidInput(f"{where}.{field.name} is missing: {described(field.type)}")
    return info.cls(**made)


def _value(info: inspect.Type, value: object, where: str) -> Any:  # noqa: ANN401 -- whatever `info` says
    match info:
        case inspect.StructType():
            return _struct(info, value, where)
        case inspect.BytesType():
            if not isinstance(value, str) or not _is_hex(value):
                raise InvalidInput(f"{where} is {_kind(value)}; write {described(info)}")
            return _checked(info, bytes.fromhex(value), where, value)
        case inspect.VarTupleType():
            if not isinstance(value, list):
                raise InvalidInput(f"{where} is {_kind(value)}; write {described(info)}")
            _check_length(info, len(value), where, "entries")
            return tuple(_value(info.item_type, item, f"{where}[{place}]") for place, item in enumerate(value))
        case inspect.UnionType() if value is None and info.includes_none:
            return None
        case inspect.UnionType() if len(info.types) == 1 + info.includes_none:
            (only,) = (kind for kind in info.types if not isinstance(kind, inspect.NoneType))
            return _value(only, value, where)
        case _:
            return _scalar(info, value, where)


def _scalar(info: inspect.Type, value: object, where: str) -> object:
    match info:
        case inspect.BoolType() if isinstance(value, bool):
            return value
        case inspect.IntType() if isinstance(value, int) and not isinstance(value, bool):
            low, high = _bounds(info)
            if (low is not None and value < low) or (high is not None and value > high):
                raise InvalidInput(f"{where} is {value}; write {described(info)}")
            return value
        case inspect.StrType() if isinstance(value, str):
            if info.pattern is not None and not re.search(info.pattern, value):
                raise InvalidInput(f"{where} is {_quoted(value)}, which does not match {info.pattern}")
            return _checked(info, value, where, value)
        case inspect.LiteralType() if value in info.values and not isinstance(value, bool):
            return value
    raise InvalidInput(f"{where} is {_kind(value)}; write {described(info)}")


def _checked(info: inspect.BytesType | inspect.StrType, value: Any, where: str, given: str) -> Any:  # noqa: ANN401 -- bytes or text
    low, high = info.min_length or 0, info.max_length
    if len(value) < low or (high is not None and len(value) > high):
        raise InvalidInput(f"{where} is {_quoted(given)}; write {described(info)}")
    return value


def _check_length(info: inspect.VarTupleType, length: int, where: str, what: str) -> None:
    low, high = info.min_length or 0, info.max_length
    if length < low or (high is not None and length > high):
        raise InvalidInput(f"{where} has {length} {what}; write {described(info)}")


# ---------------------------------------------------------------- types in words


def described(info: inspect.Type) -> str:
    """Return in words what a field takes."""
    match info:
        case inspect.BytesType(min_length=low, max_length=high):
            if low == high and low is not None:
                return f"{low} bytes as {2 * low} hexadecimal digits"
            return "bytes in hexadecimal" + ("" if high is None else f", at most {high} of them")
        case inspect.IntType():
            low, high = _bounds(info)
            return "a whole number" + (f" from {low}" if low is not None else "") + (f" to {high}" if high else "")
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(max_length=high):
            return "text" + ("" if high is None else f" of at most {high} characters")
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(f'"{value}"' for value in values)
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            few = f"{low} to {high}" if low and high else f"up to {high}" if high else ""
            return f"a list{f' of {few}' if few else ''}: each {described(item)}"
        case inspect.UnionType(types=kinds):
            words = [described(kind) for kind in kinds if not isinstance(kind, inspect.NoneType)]
            return " or ".join(words) + (", or null" if info.includes_none else "")
        case inspect.StructType(fields=fields):
            return "an object with " + ", ".join(field.name for field in fields)
    return "a value of the machine's own encoding"


def fields_of(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Yield the name of each field and in words what it takes."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType), f"{kind} is no struct"
    for field in info.fields:
        yield field.name, described(field.type)


def _bounds(info: inspect.IntType) -> tuple[int | None, int | None]:
    low = info.ge if info.ge is not None else None if info.gt is None else info.gt + 1
    high = info.le if info.le is not None else None if info.lt is None else info.lt - 1
    return low, high


def _kind(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _shown(msgspec.json.encode(value).decode())


def _shown(text: object) -> str:
    given = str(text)
    return given if len(given) <= _QUOTED_CHARACTERS else given[:_QUOTED_CHARACTERS] + "…"


def _quoted(text: object) -> str:
    return repr(_shown(text))


# ---------------------------------------------------------------- state keys


def entry_kinds(machine: Machine[Any, Any]) -> tuple[EntryKind, ...]:
    """Return the kinds of a contract's state entries that have names, with prefixes as in the state."""
    own = tuple(msgspec.structs.replace(kind, prefix=MACHINE_PREFIX + kind.prefix) for kind in machine.entries)
    return (*own, SEQUENCE, COUNT)


def key_from_text(machine: Machine[Any, Any], text: str) -> bytes:
    """Return a state key written as `balance:ADDRESS`, or in hexadecimal. Raises `InvalidInput`."""
    kinds = {kind.name: kind for kind in entry_kinds(machine)}
    name, *parts = text.split(":")
    if name not in kinds:
        if text and _is_hex(text):
            return bytes.fromhex(text)
        known = ", ".join(_form(kind) for kind in kinds.values())
        raise InvalidInput(f"no state key {_quoted(text)}; write one as {known}, or in hexadecimal")
    kind = kinds[name]
    if len(parts) != len(kind.parts):
        raise InvalidInput(f"state key {_quoted(text)}; write it as {_form(kind)}")
    return kind.prefix + b"".join(_part(part, given) for part, given in zip(kind.parts, parts, strict=True))


def _form(kind: EntryKind) -> str:
    return ":".join((kind.name, *(part.name.upper() for part in kind.parts)))


def _part(part: KeyPart, text: str) -> bytes:
    if part.is_number:
        if not _is_number(text) or int(text) >= 256**part.size_bytes:
            raise InvalidInput(f"{part.name} {_quoted(text)} is no number from 0 to {256**part.size_bytes - 1}")
        return int(text).to_bytes(part.size_bytes, "big")
    if len(text) != 2 * part.size_bytes or not _is_hex(text):
        raise InvalidInput(f"{part.name} {_quoted(text)} is not {2 * part.size_bytes} hexadecimal digits")
    return bytes.fromhex(text)


def key_to_text(machine: Machine[Any, Any], key: bytes) -> str:
    """Return a state key as people write it; in hexadecimal when no kind of the machine fits."""
    kind = _kind_of(machine, key)
    if kind is None:
        return key.hex()
    parts, rest = [], key[len(kind.prefix) :]
    for part in kind.parts:
        head, rest = rest[: part.size_bytes], rest[part.size_bytes :]
        parts.append(str(int.from_bytes(head, "big")) if part.is_number else head.hex())
    return ":".join((kind.name, *parts))


def value_to_json(machine: Machine[Any, Any], key: bytes, value: bytes) -> Any:  # noqa: ANN401 -- JSON of any shape
    """Return a state value; in hexadecimal when it is of no kind that the machine names."""
    kind = _kind_of(machine, key)
    if kind is None:
        return value.hex()
    try:
        return plain(decode(kind.value, value, MAX_VALUE_BYTES))
    except InvalidInput:
        return value.hex()


def _kind_of(machine: Machine[Any, Any], key: bytes) -> EntryKind | None:
    for kind in entry_kinds(machine):
        if key.startswith(kind.prefix) and len(key) == len(kind.prefix) + sum(part.size_bytes for part in kind.parts):
            return kind
    return None


def operations_from_json(machine: Machine[Any, Any], value: object) -> list[msgspec.Struct]:
    """Return one operation, or a list of them. Raises `InvalidInput`, which names the place and the field."""
    if not isinstance(value, list):
        return [operation_from_json(machine, value)]
    if not value:
        raise InvalidInput("no operations: the list is empty")
    made: list[msgspec.Struct] = []
    for place, item in enumerate(value):
        try:
            made.append(operation_from_json(machine, item))
        except InvalidInput as error:
            raise InvalidInput(f"operation {place}: {error}") from error
    return made


def operations_to_json(machine: Machine[Any, Any], raws: Sequence[bytes]) -> list[Any]:
    """Return encoded operations; one that is none of the machine's in hexadecimal."""
    found: list[Any] = []
    for raw in raws:
        try:
            found.append(operation_to_json(decode(machine.operations, raw, MAX_OPERATION_BYTES)))
        except InvalidInput:
            found.append(raw.hex())
    return found
