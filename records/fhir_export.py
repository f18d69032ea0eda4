# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain and the access logs say, as FHIR R4: grants as `Consent`, accesses as `AuditEvent`, labels as `Provenance`.

References are logical (`identifier`, no URL): accounts, records and grants are names on a chain, and no server has to answer for them.
The systems of the identifiers hold the chain's own identifier, so that exports of two networks can stand side by side.
"""

import base64
import json
from datetime import UTC, datetime, timedelta

from ledger.crypto.keys import address_of
from ledger.labels import Label
from ledger.sharing import Grant, grant_id
from records.access_entries import SignedEntry, answer_of, entry_hash
from records.strict_json import JsonObject, JsonValue

_HL7 = "http://terminology.hl7.org/CodeSystem/"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that FHIR can write."""
_ACTIVITIES = {"amended": ("UPDATE", "revise"), "entered-in-error": ("NULLIFY", "nullify")}


def consent(chain_id: bytes, grant: Grant, time_ms: int) -> JsonObject:
    """Return a grant as a `Consent`; active while it is neither revoked nor, at the time given, over."""
    terms, name = grant.terms, _Names(chain_id)
    identifier = grant_id(terms)
    actors: list[JsonValue] = [
        {
            "role": _concept("v3-ParticipationType", "IRCP", "information recipient"),
            "reference": name.account(terms.grantee),
        }
    ]
    custodian = _concept("v3-ParticipationType", "CST", "custodian")
    actors += [{"role": custodian, "reference": name.account(proxy)} for proxy in terms.proxies]
    provision: JsonObject = {
        "type": "permit",
        # FHIR's end belongs to the period, the grant's does not.
        "period": {"start": instant(terms.from_ms), "end": instant(terms.until_ms - 1)},
        "actor": actors,
        "purpose": [_coding("v3-ActReason", purpose) for purpose in terms.purposes],
    }
    if not terms.all_records:
        provision["data"] = [
            {"meaning": "instance", "reference": name.record(terms.patient, sequence)} for sequence in terms.records
        ]
    is_over = grant.revoked_height > 0 or time_ms >= terms.until_ms
    return {
        "resourceType": "Consent",
        "id": identifier.hex(),
        "extension": [
            {"url": name.system("threshold"), "valueUnsignedInt": terms.threshold},
            {"url": name.system("emergency-approvals"), "valueUnsignedInt": terms.emergency_approvals},
        ],
        "identifier": [name.identifier("grant", identifier.hex())],
        "status": "inactive" if is_over else "active",
        "scope": _concept("consentscope", "patient-privacy", "Privacy Consent"),
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0", "display": "Consent Document"}]}],
        "patient": name.patient(terms.patient),
        "dateTime": instant(grant.granted_timestamp_ms),
        "performer": [name.account(address_of(grant.verifying_key))],
        "policyRule": _concept("v3-ActCode", "OPTIN", "opt-in"),
        "provision": provision,
    }


def audit_event(chain_id: bytes, signed: SignedEntry) -> JsonObject:
    """Return an entry of a proxy's access log as an `AuditEvent`; a refusal is a minor failure, with its reason."""
    entry, name = signed.entry, _Names(chain_id)
    entities: list[JsonValue] = [
        {
            "what": name.reference("Consent", "grant", entry.grant_id.hex()),
            "type": _coding("audit-entity-type", "2", "System Object"),
            "role": _coding("object-role", "13", "Security Resource"),
        }
    ]
    if any(entry.patient):
        entities.insert(
            0,
            {
                "what": name.patient(entry.patient),
                "type": _coding("audit-entity-type", "1", "Person"),
                "role": _coding("object-role", "1", "Patient"),
            },
        )
        entities += [
            {
                "what": name.record(entry.patient, sequence),
                "type": _coding("audit-entity-type", "2", "System Object"),
                "role": _coding("object-role", "4", "Domain Resource"),
            }
            for sequence in entry.records
        ]
    return {
        "resourceType": "AuditEvent",
        "id": entry_hash(entry).hex(),
        "type": _coding("iso-21089-lifecycle", "disclose", "Disclose Record Lifecycle Event"),
        "action": "R",
        "recorded": instant(entry.timestamp_ms),
        "outcome": "4" if entry.reason else "0",
        "outcomeDesc": answer_of(entry),
        "purposeOfEvent": [_concept("v3-ActReason", entry.purpose)],
        "agent": [
            {
                "type": _concept("v3-ParticipationType", "IRCP", "information recipient"),
                "who": name.account(address_of(entry.requester)),
                "requestor": True,
            },
            {
                "type": _concept("v3-ParticipationType", "CST", "custodian"),
                "who": name.account(entry.proxy),
                "requestor": False,
            },
        ],
        "source": {"observer": name.account(entry.proxy)},
        "entity": entities,
    }


def provenance(chain_id: bytes, label: Label) -> JsonObject:
    """Return a label as a `Provenance` of the record, with the patient's signature of the permission."""
    permission, name = label.permission, _Names(chain_id)
    code, display = _ACTIVITIES[permission.status]
    targets: list[JsonValue] = [name.record(permission.patient, permission.sequence)]
    if permission.replaced_by:
        targets.append(name.record(permission.patient, permission.replacement_sequence))
    signer = name.account(address_of(label.signer))
    return {
        "resourceType": "Provenance",
        "id": f"{permission.record.hex()[:48]}-{permission.number}",
        "target": targets,
        "recorded": instant(label.committed_timestamp_ms),
        "reason": [{"text": permission.label}],
        "activity": _concept("v3-DataOperation", code, display),
        "agent": [
            {
                "type": _concept("provenance-participant-type", "author", "Author"),
                "who": name.account(label.institution),
                "onBehalfOf": name.patient(permission.patient),
            },
            {"type": _concept("provenance-participant-type", "attester", "Attester"), "who": signer},
        ],
        "entity": [
            {"role": "revision", "what": name.reference("Binary", "blob", label.previous.blob_id.hex())},
        ],
        "signature": [
            {
                "type": [
                    {
                        "system": "urn:iso-astm:E1762-95:2013",
                        "code": "1.2.840.10065.1.12.1.7",
                        "display": "Consent Signature",
                    }
                ],
                "when": instant(label.committed_timestamp_ms),
                "who": signer,
                "sigFormat": "application/octet-stream",
                "data": base64.b64encode(label.signature).decode(),
            }
        ],
    }


def to_json(resource: JsonObject) -> bytes:
    """Return the bytes of a resource; equal resources give equal bytes."""
    return json.dumps(resource, ensure_ascii=False, indent=2, sort_keys=False).encode() + b"\n"


def instant(time_ms: int) -> str:
    """Write a time in UTC with milliseconds; what lies beyond the year 9999 is written as its end."""
    moment = _EPOCH + timedelta(milliseconds=min(time_ms, _LAST_MS))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


class _Names:
    """Identifiers and references on one chain."""

    def __init__(self, chain_id: bytes) -> None:
        self._prefix = f"urn:spchain:{chain_id.hex()}"

    def system(self, kind: str) -> str:
        return f"{self._prefix}:{kind}"

    def identifier(self, kind: str, value: str) -> JsonObject:
        return {"system": self.system(kind), "value": value}

    def reference(self, resource: str, kind: str, value: str) -> JsonObject:
        return {"type": resource, "identifier": self.identifier(kind, value)}

    def account(self, address: bytes) -> JsonObject:
        # An account may be an institution's or a person's; which, the chain knows.
        return {"identifier": self.identifier("account", address.hex())}

    def patient(self, address: bytes) -> JsonObject:
        return self.reference("Patient", "account", address.hex())

    def record(self, patient: bytes, sequence: int) -> JsonObject:
        return self.reference("Bundle", "record", f"{patient.hex()}/{sequence}")


def _coding(system: str, code: str, display: str = "") -> JsonObject:
    coding: JsonObject = {"system": _HL7 + system, "code": code}
    return coding | {"display": display} if display else coding


def _concept(system: str, code: str, display: str = "") -> JsonObject:
    return {"coding": [_coding(system, code, display)]}
