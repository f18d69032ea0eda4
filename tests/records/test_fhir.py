# SPDX-License-Identifier: GPL-3.0-or-later
"""The FHIR gate: valid bundles pass unchanged, faults are named by path, and nothing medical reaches a log."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.errors import InvalidInput
from records import fhir
from records.fhir import PatientSummary, read_bundle, validate_bundle, warm_up
from records.limits import MAX_BUNDLE_BYTES

Edit = Callable[[dict[str, Any]], object]


def edited(bundle: bytes, edit: Edit) -> bytes:
    value = json.loads(bundle)
    edit(value)
    return json.dumps(value).encode()


def with_resource(bundle: bytes, resource: object) -> bytes:
    return edited(bundle, lambda value: value["entry"].append({"resource": resource}))


def test_every_sample_passes_and_is_summarised(bundles: dict[str, bytes]) -> None:
    for name, data in bundles.items():
        summary = validate_bundle(data)
        value = json.loads(data)
        assert summary.bundle_type == ("collection" if name.startswith("n") else "transaction")
        assert summary.size_bytes == len(data)
        assert summary.entry_count == len(value["entry"]) == sum(count for _, count in summary.resource_counts)
        assert dict(summary.resource_counts)["Patient"] == 1
        assert list(summary.resource_counts) == sorted(summary.resource_counts)
        assert summary.patient.reference.endswith(summary.patient.resource_id)


def test_names_outside_ascii_are_kept(bundles: dict[str, bytes]) -> None:
    assert validate_bundle(bundles["p10"]).patient.name == "Bernardo Ordóñez"
    assert validate_bundle(bundles["p25"]).patient.birth_date == "1986-11-27"


def test_the_largest_sample_counts_as_its_index_says(bundles: dict[str, bytes]) -> None:
    assert validate_bundle(bundles["p01"]).entry_count == 1244


def test_the_smallest_bundle_passes(small_bundle: bytes) -> None:
    summary = validate_bundle(small_bundle)
    assert summary.patient.reference == "Patient/p-1"
    assert summary.patient.name == ""
    assert summary.patient.birth_date == "1970-01-31"


@pytest.mark.parametrize("kind", fhir.BUNDLE_TYPES)
def test_each_type_that_carries_resources_passes(small_bundle: bytes, kind: str) -> None:
    assert validate_bundle(edited(small_bundle, lambda value: value.update(type=kind))).bundle_type == kind


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda v: v.update(resourceType="Patient"), r"\$\.resourceType is 'Patient'; a FHIR R4 'Bundle'"),
        (lambda v: v.pop("resourceType"), r"\$\.resourceType is missing"),
        (lambda v: v.update(resourceType=["Bundle"]), r"\$\.resourceType is missing"),
        (lambda v: v.update(type="batch-response"), r"\$\.type is 'batch-response'"),
        (lambda v: v.pop("type"), r"\$\.type is missing"),
        (lambda v: v.pop("entry"), r"\$\.entry is missing"),
        (lambda v: v.update(entry={}), r"\$\.entry is missing or no array"),
        (lambda v: v.update(entry=[]), "no Patient"),
        (lambda v: v.update(bogus=1), r"\$\.bogus is no field of FHIR R4"),
        (lambda v: v["entry"].append(5), r"\$\.entry\[1\] is no object"),
        (lambda v: v["entry"].append({"resource": None}), r"\$\.entry\[1\]\.resource is no object"),
        (lambda v: v["entry"].append({"resource": {}}), r"\$\.entry\[1\]\.resource\.resourceType is missing"),
        (lambda v: v["entry"].append({"request": {"method": 7}}), r"\$\.entry\[1\]\.request\.method"),
        (lambda v: v["entry"].append(v["entry"][0]), r"has 2 Patients \(\$\.entry\[0\], \$\.entry\[1\]\)"),
        (lambda v: v["entry"][0]["resource"].update(bogus=1), r"\$\.entry\[0\]\.resource\.bogus is no field"),
        (lambda v: v["entry"][0]["resource"].update(birthDate="31.1.70"), r"\$\.entry\[0\]\.resource\.birthDate"),
        (lambda v: v["entry"][0]["resource"].update(id="../../etc"), r"\$\.entry\[0\]\.resource\.id"),
        (lambda v: v["entry"][0]["resource"].update(active="yes!"), r"\$\.entry\[0\]\.resource\.active"),
        (lambda v: v["entry"][0]["resource"].update(contained=[{"resourceType": "os"}]), r"entry\[0\]\.resource"),
        (lambda v: v["entry"][0]["resource"].update(contained=[{"resourceType": ["x"]}]), r"entry\[0\]\.resource"),
    ],
)
def test_each_fault_is_named_with_its_path(small_bundle: bytes, edit: Edit, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        validate_bundle(edited(small_bundle, edit))


@pytest.mark.parametrize(
    "kind",
    [
        "Nope",
        "os",
        "Resource",
        "DomainResource",
        "HumanName",
        "Element",
        "",
        "Patient\n",
        "X" * 100_000,
        "../os",
        5,
        None,
    ],
)
def test_types_that_are_no_resources_are_refused(small_bundle: bytes, kind: object) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.entry\[1\]\.resource\.resourceType is ") as caught:
        validate_bundle(with_resource(small_bundle, {"resourceType": kind}))
    assert len(str(caught.value)) < 200


def test_a_resource_of_r5_is_refused(small_bundle: bytes) -> None:
    """R5 renamed Encounter.period to actualPeriod; a gate of the wrong version would let it pass."""
    encounter = {
        "resourceType": "Encounter",
        "status": "completed",
        "class": {"code": "AMB"},
        "actualPeriod": {"start": "2024-01-01"},
    }
    with pytest.raises(InvalidInput, match=r"\$\.entry\[1\]\.resource\.actualPeriod is no field of FHIR R4"):
        validate_bundle(with_resource(small_bundle, encounter))


def test_a_missing_required_field_is_named(small_bundle: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.entry\[1\]\.resource\.status is required and missing"):
        validate_bundle(with_resource(small_bundle, {"resourceType": "Observation", "code": {"text": "x"}}))


def test_an_entry_without_a_resource_counts_as_an_entry(small_bundle: bytes) -> None:
    deletion = {"request": {"method": "DELETE", "url": "Patient/2"}}
    summary = validate_bundle(edited(small_bundle, lambda value: value["entry"].append(deletion)))
    assert summary.entry_count == 2
    assert summary.resource_counts == (("Patient", 1),)


def test_at_most_five_faults_are_told(small_bundle: bytes) -> None:
    bad = {"resourceType": "Observation", "zzz": 1}
    with pytest.raises(InvalidInput) as caught:
        validate_bundle(edited(small_bundle, lambda value: value["entry"].extend([{"resource": bad}] * 500)))
    assert str(caught.value).count("; ") == 4


def test_a_long_chain_of_extensions_is_refused(small_bundle: bytes) -> None:
    chain: dict[str, object] = {"url": "x", "valueString": "y"}
    for _ in range(200):
        chain = {"url": "x", "extension": [chain]}
    with pytest.raises(InvalidInput, match="nested deeper"):
        validate_bundle(edited(small_bundle, lambda v: v["entry"][0]["resource"].update(extension=[chain])))


def test_a_truncated_sample_is_refused(bundles: dict[str, bytes]) -> None:
    data = bundles["p23"]
    for size in (0, 1, 1000, len(data) // 2, len(data) - 1):
        with pytest.raises(InvalidInput, match="damaged"):
            validate_bundle(data[:size])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_sample_with_changed_bytes_passes_or_is_refused(bundles: dict[str, bytes], data: st.DataObject) -> None:
    text = bytearray(bundles["n01"])
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] = data.draw(st.sampled_from(b'"{}[]:,0a\\\x00\xff') | st.integers(0, 255))
    with suppress(InvalidInput):
        assert validate_bundle(bytes(text)).size_bytes == len(text)


def test_nothing_medical_is_in_an_error_or_a_repr(bundles: dict[str, bytes]) -> None:
    def spoil(value: dict[str, Any]) -> None:
        patient = value["entry"][0]["resource"]
        patient["birthDate"] = "SECRET-1"
        patient["gender"] = {"SECRET": "SECRET-2"}
        patient["name"] = "SECRET-3"
        patient["telecom"] = [{"value": ["SECRET-4"]}]

    with pytest.raises(InvalidInput) as caught:
        validate_bundle(edited(bundles["p23"], spoil))
    assert "SECRET-" not in str(caught.value)
    summary = validate_bundle(bundles["p23"])
    for secret in (summary.patient.name, summary.patient.resource_id, summary.patient.birth_date):
        assert secret
        assert secret not in repr(summary)


def test_a_name_cannot_command_a_terminal(small_bundle: bytes) -> None:
    name = [{"family": "\x1b[2JSmith\n", "given": ["A\u202e", None]}, {"family": "Second"}]
    data = edited(small_bundle, lambda v: v["entry"][0]["resource"].update(name=name))
    try:
        shown = validate_bundle(data).patient.name
    except InvalidInput:
        return
    assert shown.isprintable()
    assert "Second" not in shown


def test_a_long_name_is_cut() -> None:
    assert fhir._name([{"family": "x" * 10_000}]) == "x" * 200
    assert fhir._name([{"text": "As written"}]) == "As written"
    assert fhir._name(None) == fhir._name([]) == fhir._name([5]) == ""


def test_a_bundle_over_the_bound_is_refused_and_one_at_the_bound_passes(small_bundle: bytes) -> None:
    padded = small_bundle + b" " * (MAX_BUNDLE_BYTES - len(small_bundle))
    assert validate_bundle(padded).size_bytes == MAX_BUNDLE_BYTES
    with pytest.raises(InvalidInput, match="at most 16777216"):
        validate_bundle(padded + b" ")


def test_threads_validate_side_by_side(bundles: dict[str, bytes]) -> None:
    data = [bundles["p23"], bundles["n01"], bundles["n04"]] * 2
    with ThreadPoolExecutor(3) as pool:
        assert [summary.size_bytes for summary in pool.map(validate_bundle, data)] == [len(each) for each in data]


def test_a_file_is_read_as_it_is(tmp_path: Path, bundles: dict[str, bytes]) -> None:
    file = tmp_path / "bundle.json"
    file.write_bytes(bundles["p24"])
    assert read_bundle(file) == bundles["p24"]


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as stream:
        stream.truncate(200 << 20)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidInput, match="has 209715200 bytes"):
        read_bundle(file)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "grows.json"
    file.write_bytes(b"{}")
    small = file.stat()
    with file.open("wb") as stream:
        stream.truncate(MAX_BUNDLE_BYTES + 1)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: small)
    with pytest.raises(InvalidInput, match="grew"):
        read_bundle(file)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidInput, match="not a regular file"):
            read_bundle(path)
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        read_bundle(tmp_path / "missing")


def test_importing_the_gate_does_not_import_the_models() -> None:
    code = "import sys, records.fhir; print(any(name.startswith(('fhir', 'pydantic')) for name in sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_models_can_be_loaded_ahead() -> None:
    warm_up()
    assert "fhir.resources.R4B" in sys.modules
    assert repr(PatientSummary("a", "b", "c", "d")) == "PatientSummary(<withheld>)"
