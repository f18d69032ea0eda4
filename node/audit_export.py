# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's audit as FHIR R4 resources: one file for each access, grant and label."""

from collections.abc import Iterator, Sequence

from ledger.labels import Label
from node.actions import Actor
from node.api import sharing_models as answers
from node.clock import now_ms
from node.record_checks import envelope_of, permission_of
from node.sharing_actions import LogOfProxy, grant_of
from records import fhir_export
from records.strict_json import JsonObject


def resources(actor: Actor, patient: bytes, logs: Sequence[LogOfProxy]) -> Iterator[tuple[str, bytes]]:
    """Yield file name and content of every resource about a patient. Raises `InvalidInput` when a node contradicts itself."""
    chain_id = actor.rules.chain_id
    for log in logs:
        for signed in log.entries:
            yield _named(fhir_export.audit_event(chain_id, signed))
    for grant in actor.client.consent.patient_grants(patient):
        yield _named(fhir_export.consent(chain_id, grant_of(grant), now_ms()))
    for record in actor.client.records(patient):
        if record.label_count:
            for label in actor.client.consent.labels(patient, record.sequence).labels:
                yield _named(fhir_export.provenance(chain_id, label_of(label)))


def label_of(shown: answers.Label) -> Label:
    """Return a label as the chain has it, from what a node shows of it."""
    return Label(
        permission=permission_of(shown.permission),
        signer=shown.signer,
        signature=shown.signature,
        previous=envelope_of(shown.previous),
        envelope=envelope_of(shown.envelope),
        proof=shown.proof,
        institution=shown.institution,
        committed_height=shown.committed_height,
        committed_timestamp_ms=shown.committed_timestamp_ms,
    )


def _named(resource: JsonObject) -> tuple[str, bytes]:
    return f"{resource['resourceType']}-{resource['id']}.json", fhir_export.to_json(resource)
