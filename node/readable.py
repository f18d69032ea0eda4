# SPDX-License-Identifier: GPL-3.0-or-later
"""Wire types as JSON for people: fields by name, byte strings as hexadecimal."""

from collections.abc import Mapping
from typing import Any

import msgspec


def readable(value: msgspec.Struct) -> dict[str, Any]:
    """Return a struct's fields by name, ready for JSON."""
    return {field: readable_value(getattr(value, field)) for field in value.__struct_fields__}


def readable_value(value: object) -> object:
    """Return a value of a field ready for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return readable(value)
    if isinstance(value, tuple):
        return [readable_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: readable_value(item) for name, item in value.items()}
    return value
