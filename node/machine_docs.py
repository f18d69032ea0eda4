# SPDX-License-Identifier: GPL-3.0-or-later
"""What machines say about themselves: operations and parameters with the explanations that stand beside their fields in the source."""

import ast
import inspect
from functools import cache
from typing import Any

import msgspec

from contracts.json_form import entry_kinds, fields_of, name_of, operation_kinds
from contracts.machine import Machine
from node.api.models import Model


class FieldDoc(Model):
    """A field of an operation or of parameters."""

    name: str
    """Its name."""
    takes: str
    """What it takes, in words."""
    meaning: str
    """What it means."""


class StructDoc(Model):
    """An operation, or the parameters."""

    name: str
    """Its name in JSON."""
    meaning: str
    """What it does."""
    fields: tuple[FieldDoc, ...]
    """Its fields."""


class MachineDoc(Model):
    """A machine."""

    name: str
    """Its name."""
    version: int
    """Its version."""
    meaning: str
    """What it is for."""
    takes_deposits: bool
    """Whether accounts can hold credits in its contracts."""
    parameters: StructDoc
    """What a contract is opened with."""
    operations: tuple[StructDoc, ...]
    """What users may send."""
    state_keys: tuple[str, ...]
    """State keys that can be proved, with what stands in place of the capital words."""


def machine_doc(machine: Machine[Any, Any]) -> MachineDoc:
    """Return what a machine says about itself."""
    module = inspect.getmodule(machine.apply)
    return MachineDoc(
        name=machine.name,
        version=machine.version,
        meaning=_first_paragraph(inspect.getdoc(module) if module else None),
        takes_deposits=machine.payable is not None,
        parameters=_struct(machine.parameters, "parameters"),
        operations=tuple(_struct(kind, name_of(kind)) for kind in operation_kinds(machine)),
        state_keys=tuple(
            ":".join((kind.name, *(part.name.upper() for part in kind.parts))) for kind in entry_kinds(machine)
        ),
    )


def _struct(kind: type[msgspec.Struct], name: str) -> StructDoc:
    meanings = _meanings(kind)
    return StructDoc(
        name=name,
        meaning=_first_paragraph(kind.__doc__),
        fields=tuple(
            FieldDoc(name=field, takes=takes, meaning=meanings.get(field, "")) for field, takes in fields_of(kind)
        ),
    )


@cache
def _meanings(kind: type) -> dict[str, str]:
    """Return the literals below a class's fields; none where the source is not at hand."""
    try:
        (defined,) = ast.parse(inspect.getsource(kind).strip()).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found: dict[str, str] = {}
    field = ""
    for statement in defined.body if isinstance(defined, ast.ClassDef) else ():
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                field = name
            case ast.Expr(value=ast.Constant(value=str() as text)) if field:
                found[field] = " ".join(text.split())
                field = ""
    return found


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().partition("\n\n")[0].split())
