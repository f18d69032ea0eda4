# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate for FHIR R4 bundles: bytes in, a summary out, or an error that says where and what is wrong.

It is a gate and nothing else. The model that validates would write the same record with other bytes (`+00:00`
becomes `Z`, milliseconds become microseconds), so what is hashed, compressed and encrypted is always what was
received.

It checks structure: known resource types and fields, cardinalities, primitive types. It checks neither codes
against their value sets nor scripts in narrative HTML: whoever displays a record must not trust its HTML.

Resources are validated one by one, not as one tree: their models are several times as large as the JSON, and
only one is alive at a time. That costs about 0.5 ms a resource of pure Python, which holds the interpreter lock:
callers run it in a worker thread, few at a time. The models take a quarter of a second to import, hence late.

Nothing from a bundle enters an error's text or a summary's `repr` but names of types and fields: both reach logs.
"""

import importlib
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol

from ledger.errors import InvalidInput
from records.limits import MAX_BUNDLE_BYTES
from records.strict_json import JsonObject, JsonValue, Step, parse_object, path, quoted

BUNDLE_TYPES = ("document", "message", "transaction", "batch", "history", "searchset", "collection")
"""Bundles that carry resources. The two response types of FHIR carry outcomes of a server, which are no record."""

_MAX_FAULTS = 5  # reported at once: enough to see a pattern, short enough for a terminal
_KIND_CHARACTERS = 64  # of a resource type; the longest of R4 has 33
_NAME_CHARACTERS = 200  # of a patient's name in a summary

# What the models raise for input they do not foresee (in `contained` a resource type that does not exist: KeyError,
# a list for a type: TypeError; a long chain of extensions: RecursionError). Each means that the input is no FHIR.
_MODEL_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_FAULTS = {
    "extra_forbidden": "is no field of FHIR R4 here",
    "missing": "is required and missing",
    "model_field_validation.missing": "is required and missing",
    "model_validation_format": "is no resource that FHIR R4 allows here",
    "base64_decode": "is no base64",
}
"""The model's codes in our words; its own texts may quote the value."""


@dataclass(frozen=True, slots=True, repr=False)
class PatientSummary:
    """Whom a bundle is about. For the author's screen; its `repr` shows nothing."""

    reference: str
    """How the bundle's resources refer to the patient: the entry's fullUrl, else `Patient/<id>`, or empty."""
    resource_id: str
    """The resource's id in the source system, or empty."""
    name: str
    """The first name listed, for display: control characters replaced, at most 200 characters; or empty."""
    birth_date: str
    """YYYY, YYYY-MM or YYYY-MM-DD, or empty."""

    def __repr__(self) -> str:
        return "PatientSummary(<withheld>)"


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """What a valid bundle contains."""

    bundle_type: str
    """One of `BUNDLE_TYPES`."""
    size_bytes: int
    """Size as received."""
    entry_count: int
    """Entries, with or without a resource."""
    resource_counts: tuple[tuple[str, int], ...]
    """Number of resources by type, sorted by type."""
    patient: PatientSummary
    """The one patient that the bundle is about."""


def read_bundle(file: Path) -> bytes:
    """Read a file of at most 16 MiB; its size is looked at first, so that a larger one is not read at all.

    Raises:
        InvalidInput: no regular file (a pipe or device has no size), too large, or unreadable.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"{file} is not a regular file; save the bundle to one")
        if status.st_size > MAX_BUNDLE_BYTES:
            raise InvalidInput(
                f"{file} has {status.st_size} bytes; a bundle may have {MAX_BUNDLE_BYTES}: split it by encounter"
            )
        with file.open("rb") as stream:
            data = stream.read(MAX_BUNDLE_BYTES + 1)  # it may have grown since
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"{file} grew beyond {MAX_BUNDLE_BYTES} bytes while it was read")
    return data


def validate_bundle(data: bytes) -> BundleSummary:
    """Check a bundle's bytes and tell what is in it; pure, slow (see above), and safe in any thread.

    Raises:
        InvalidInput: more than 16 MiB, no strict JSON (see `records.strict_json`), no FHIR R4 bundle, or not about
            exactly one patient. The text holds JSON paths and no values.
    """
    bundle = parse_object(data, MAX_BUNDLE_BYTES)
    bundle_type = _check_frame(bundle)
    resources = tuple(_resources(bundle))
    patient = _only_patient(resources)
    faults: list[str] = []
    for fault in _faults(bundle, resources):
        faults.append(fault)
        if len(faults) == _MAX_FAULTS:
            break
    if faults:
        raise InvalidInput("no valid FHIR R4 bundle: " + "; ".join(faults))
    entries = bundle["entry"]
    assert isinstance(entries, list)
    counts = Counter(kind for _, kind, _ in resources)
    return BundleSummary(
        bundle_type=bundle_type,
        size_bytes=len(data),
        entry_count=len(entries),
        resource_counts=tuple(sorted(counts.items())),
        patient=_summarise(entries[patient]),
    )


def warm_up() -> None:
    """Import the models now (a quarter of a second), so that the first bundle does not wait for them."""
    _registry()


@cache
def _registry() -> ModuleType:
    # Late on purpose: time and 25 MB that a node needs only once somebody writes a record.
    return importlib.import_module("fhir.resources.R4B")


def _check_frame(bundle: JsonObject) -> str:
    kind = bundle.get("resourceType")
    if kind != "Bundle":
        shown = quoted(kind) if isinstance(kind, str) else "missing"
        raise InvalidInput(f"$.resourceType is {shown}; a FHIR R4 'Bundle' is expected")
    bundle_type = bundle.get("type")
    if not isinstance(bundle_type, str) or bundle_type not in BUNDLE_TYPES:
        shown = quoted(bundle_type) if isinstance(bundle_type, str) else "missing"
        raise InvalidInput(f"$.type is {shown}; one of {', '.join(BUNDLE_TYPES)} is expected")
    if not isinstance(bundle.get("entry"), list):
        raise InvalidInput("$.entry is missing or no array; a record has at least its patient as an entry")
    return bundle_type


def _resources(bundle: JsonObject) -> Iterator[tuple[int, str, JsonObject]]:
    """Yield entry index, type and resource of each entry that carries one; the type exists and is not abstract."""
    entries = bundle["entry"]
    assert isinstance(entries, list)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidInput(f"{path(('entry', index))} is no object")
        if "resource" not in entry:
            continue
        resource = entry["resource"]
        if not isinstance(resource, dict):
            raise InvalidInput(f"{path(('entry', index, 'resource'))} is no object")
        kind = resource.get("resourceType")
        if not isinstance(kind, str) or _model(kind) is None:
            shown = quoted(kind) if isinstance(kind, str) else "missing"
            raise InvalidInput(f"{path(('entry', index, 'resource', 'resourceType'))} is {shown}: no resource of R4")
        yield index, kind, resource


class _Model(Protocol):
    """What we use of a model class."""

    def model_validate(self, value: object) -> object: ...


def _model(kind: str) -> _Model | None:
    """Return the model class of a concrete resource type, or None."""
    if not (kind.isascii() and kind.isalpha() and len(kind) <= _KIND_CHARACTERS) or kind in {
        "Resource",
        "DomainResource",
    }:
        return None
    registry = _registry()
    try:
        model = registry.get_fhir_model_class(kind)
        base = registry.get_fhir_model_class("Resource")
    except _MODEL_ERRORS:
        return None
    found: _Model = model
    return found if issubclass(model, base) else None


def _only_patient(resources: tuple[tuple[int, str, JsonObject], ...]) -> int:
    patients = [index for index, kind, _ in resources if kind == "Patient"]
    if not patients:
        raise InvalidInput("the bundle has no Patient among its entries; a record names its patient")
    if len(patients) > 1:
        where = ", ".join(path(("entry", index)) for index in patients[:_MAX_FAULTS])
        raise InvalidInput(
            f"the bundle has {len(patients)} Patients ({where}); a record is encrypted to one patient: split it"
        )
    return patients[0]


def _faults(bundle: JsonObject, resources: tuple[tuple[int, str, JsonObject], ...]) -> Iterator[str]:
    entries = bundle["entry"]
    assert isinstance(entries, list)
    frame: JsonObject = dict(bundle)
    frame["entry"] = [
        {key: value for key, value in entry.items() if key != "resource"}
        for entry in entries
        if isinstance(entry, dict)
    ]
    yield from _model_faults("Bundle", frame, ())
    for index, kind, resource in resources:
        yield from _model_faults(kind, resource, ("entry", index, "resource"))


def _model_faults(kind: str, value: JsonObject, at: tuple[Step, ...]) -> Iterator[str]:
    model = _model(kind)
    assert model is not None, f"{kind} was looked up before"
    try:
        model.model_validate(value)
    except _MODEL_ERRORS as error:
        details = getattr(error, "errors", None)
        if details is None:
            yield f"{path(at)} ({kind}) holds something unknown to FHIR R4, such as a resource type inside"
            return
        for detail in details(include_url=False, include_context=False, include_input=False)[:_MAX_FAULTS]:
            code = str(detail["type"])
            yield f"{path(at + detail['loc'])} {_FAULTS.get(code, 'is not valid: ' + code.replace('_', ' '))}"


def _summarise(entry: JsonValue) -> PatientSummary:
    assert isinstance(entry, dict)
    resource = entry["resource"]
    assert isinstance(resource, dict)
    resource_id = _text(resource.get("id"))
    return PatientSummary(
        reference=_text(entry.get("fullUrl")) or (f"Patient/{resource_id}" if resource_id else ""),
        resource_id=resource_id,
        name=_name(resource.get("name")),
        birth_date=_text(resource.get("birthDate")),
    )


def _name(names: JsonValue) -> str:
    if not isinstance(names, list) or not names or not isinstance(names[0], dict):
        return ""
    given = names[0].get("given")
    parts = [*(given if isinstance(given, list) else []), names[0].get("family")]
    joined = " ".join(part for part in parts if isinstance(part, str)) or _text(names[0].get("text"))
    # A name reaches terminals: control characters could repaint them.
    return "".join(character if character.isprintable() else "?" for character in joined)[:_NAME_CHARACTERS]


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""
