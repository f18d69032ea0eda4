# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports are valid FHIR R4 and say what chain and log say."""

import base64
import json
from typing import Any, Literal

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from fhir.resources.R4B.consent import Consent
from fhir.resources.R4B.provenance import Provenance
from pydantic import BaseModel

from ledger import testing
from ledger.codec import encode
from ledger.labels import Label, LabelPermission, labelled
from ledger.state import RECORDS, numbered_key
from records.access_entries import SignedEntry
from records.answers import decode_answer
from records.fhir_export import audit_event, consent, instant, provenance, to_json
from records.requests import RefusalReason, SignedRequest
from records.strict_json import JsonObject, parse_object
from tests.records.world import World

PROXY = testing.key(1).address


def exported(model: type[BaseModel], resource: JsonObject) -> dict[str, Any]:
    """Check an export with the FHIR models and as strict JSON; return it as a reader sees it."""
    raw = to_json(resource)
    model.model_validate_json(raw)
    parse_object(raw, 1 << 20)
    found: dict[str, Any] = json.loads(raw)
    return found


def asked(world: World, signed: SignedRequest) -> SignedEntry:
    raw = world.desks[PROXY].answer(encode(signed), world.view())
    assert raw is not None
    return decode_answer(raw).entry


def values(references: list[dict[str, Any]]) -> list[str]:
    return [reference["identifier"]["value"] for reference in references]


def test_a_grant_is_a_consent(world: World) -> None:
    prepared = world.grant(records=(0, 2), purposes=("TREAT", "HRESCH"))
    found = exported(Consent, consent(world.chain, world.granted(prepared), world.now_ms()))
    assert (found["status"], found["id"]) == ("active", prepared.grant_id.hex())
    assert found["patient"]["identifier"]["value"] == world.patient.address.hex()
    provision = found["provision"]
    assert [purpose["code"] for purpose in provision["purpose"]] == ["HRESCH", "TREAT"]
    assert values([actor["reference"] for actor in provision["actor"]]) == [
        address.hex() for address in (world.grantee.address, *prepared.terms.proxies)
    ]
    assert values([data["reference"] for data in provision["data"]]) == [
        f"{world.patient.address.hex()}/{sequence}" for sequence in (0, 2)
    ]
    assert provision["period"] == {
        "start": instant(prepared.terms.from_ms),
        "end": instant(prepared.terms.until_ms - 1),
    }
    assert world.chain.hex() in found["identifier"][0]["system"]


def test_a_grant_of_all_records_names_none_and_a_grant_that_is_over_is_inactive(world: World) -> None:
    prepared = world.grant()
    grant = world.granted(prepared)
    assert "data" not in exported(Consent, consent(world.chain, grant, 0))["provision"]
    assert exported(Consent, consent(world.chain, grant, prepared.terms.until_ms))["status"] == "inactive"
    world.revoke(prepared)
    assert exported(Consent, consent(world.chain, world.granted(prepared), 0))["status"] == "inactive"


def test_a_re_encryption_is_an_audit_event(world: World) -> None:
    prepared = world.grant()
    entry = asked(world, world.request(prepared, [0, 1]))
    found = exported(AuditEvent, audit_event(world.chain, entry))
    assert (found["outcome"], found["outcomeDesc"], found["action"]) == ("0", "re-encrypted", "R")
    assert values([agent["who"] for agent in found["agent"]]) == [world.grantee.address.hex(), PROXY.hex()]
    assert [agent["requestor"] for agent in found["agent"]] == [True, False]
    assert found["purposeOfEvent"][0]["coding"][0]["code"] == "TREAT"
    assert values([entity["what"] for entity in found["entity"]]) == [
        world.patient.address.hex(),
        prepared.grant_id.hex(),
        f"{world.patient.address.hex()}/0",
        f"{world.patient.address.hex()}/1",
    ]
    assert found["recorded"] == instant(entry.entry.timestamp_ms)


def test_refusals_are_audit_events_with_their_reason(world: World) -> None:
    prepared = world.grant()
    for signed, reason in (
        (world.request(prepared, purpose="x9"), RefusalReason.WRONG_PURPOSE),
        (world.request(world.prepare()), RefusalReason.UNKNOWN_GRANT),
    ):
        found = exported(AuditEvent, audit_event(world.chain, asked(world, signed)))
        assert (found["outcome"], found["outcomeDesc"]) == ("4", f"refused: {reason.value}")


@pytest.mark.parametrize(("status", "code"), [("amended", "UPDATE"), ("entered-in-error", "NULLIFY")])
def test_a_label_is_a_provenance(world: World, status: Literal["amended", "entered-in-error"], code: str) -> None:
    records = [world.state().get(RECORDS, numbered_key(world.patient.address, sequence)) for sequence in (0, 1)]
    wrong, right = records
    assert wrong is not None
    assert right is not None
    permission = LabelPermission(
        patient=world.patient.address,
        record=wrong.record_id,
        sequence=0,
        number=0,
        institution=PROXY,
        status=status,
        label="wrong patient",
        replaced_by=right.record_id if status == "amended" else b"",
        replacement_sequence=1 if status == "amended" else 0,
        may_erase=False,
        expiry_height=9,
    )
    label = Label(
        permission=permission,
        signer=world.patient.public_key,
        signature=b"s" * 64,
        previous=wrong.envelope,
        envelope=labelled(wrong.envelope, permission),
        proof=bytes(256),
        institution=PROXY,
        committed_height=7,
        committed_timestamp_ms=world.now_ms(),
    )
    found = exported(Provenance, provenance(world.chain, label))
    targets = [f"{world.patient.address.hex()}/{sequence}" for sequence in ((0, 1) if status == "amended" else (0,))]
    assert values(found["target"]) == targets
    assert found["activity"]["coding"][0]["code"] == code
    assert found["reason"][0]["text"] == "wrong patient"
    assert base64.b64decode(found["signature"][0]["data"]) == b"s" * 64
    assert values([found["entity"][0]["what"]]) == [wrong.envelope.blob_id.hex()]


def test_instants_are_exact_to_the_millisecond() -> None:
    assert instant(0) == "1970-01-01T00:00:00.000Z"
    assert instant(1_767_225_600_007) == "2026-01-01T00:00:00.007Z"
    assert instant(253_402_300_799_999) == instant(2**63 - 1) == "9999-12-31T23:59:59.999Z"
