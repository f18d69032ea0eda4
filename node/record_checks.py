# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client checks of a record that a node shows: that link, chameleon hash, envelope and labels belong together.

A fresh envelope is opened by the author's opening. A labelled one is reached step by step from the original: each label by a permission
that somebody has signed for exactly it, the newest one also by its proof. Whether that somebody was the patient or a delegate at the
time, consensus has checked; against a node that makes up a whole state there is evidence (`node.proving`).
"""

from http import HTTPStatus

from ledger.chain import chain_of
from ledger.crypto import chameleon
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.keys import verify
from ledger.errors import InvalidInput, NotFound
from ledger.genesis import decode_genesis
from ledger.labels import LabelPermission, labelled, permission_digest
from ledger.patients import PatientMicroblock, RecordEnvelope, envelope_digest, record_id
from node.api import models
from node.api import sharing_models as answers
from node.client import NodeClient
from node.http_client import ApiError
from records.envelope import Blob, check_blob


def link_of(shown: models.Record) -> PatientMicroblock:
    """Return a record's link as the chain has it."""
    return PatientMicroblock(
        patient=shown.patient,
        patient_keyblock=shown.patient_keyblock,
        previous=shown.previous,
        sequence=shown.sequence,
        author=shown.author,
        chameleon_hash=shown.chameleon_hash,
    )


def envelope_of(shown: models.Envelope) -> RecordEnvelope:
    """Return an envelope as the chain has it."""
    return RecordEnvelope(**shown.model_dump())


def check_record(client: NodeClient, record: models.Record) -> None:
    """Check a record; for a labelled one the node is asked for the history. Raises `InvalidInput`, `ApiError`."""
    name = record.record_id.hex()
    if record_id(link_of(record)) != record.record_id:
        raise InvalidInput(f"record {name} does not hash to its identifier; ask another node")
    if record.label_count:
        _check_labels(client, record)
    elif not _opens(record, record.envelope):
        raise InvalidInput(f"the envelope of record {name} is not the committed one; ask another node")


def fetch_blob(client: NodeClient, record: models.Record) -> Blob:
    """Return a record's ciphertext, checked. Raises `NotFound` with the reason when it was erased, `InvalidInput`, `ApiError`."""
    envelope = record.envelope
    try:
        raw = client.get_blob(envelope.blob_id)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND and record.may_erase:
            raise NotFound(
                f"the ciphertext of record {record.sequence} was erased, as its label {envelope.label!r} allows; "
                "its replacement and history stand on the chain: spchain label history"
            ) from error
        raise
    return check_blob(raw, envelope.blob_id, envelope.capsule_digest)


def _check_labels(client: NodeClient, record: models.Record) -> None:
    chain = chain_of(decode_genesis(client.genesis().raw))
    labels = client.consent.labels(record.patient, record.sequence).labels
    if len(labels) != record.label_count or not _opens(record, labels[0].previous):
        raise _broken(record, "its history does not begin with the envelope that was committed")
    envelope = envelope_of(labels[0].previous)
    for number, label in enumerate(labels):
        permission = permission_of(label.permission)
        place = (permission.patient, permission.record, permission.sequence, permission.number)
        if place != (record.patient, record.record_id, record.sequence, number):
            raise _broken(record, f"label {number} was permitted for something else")
        if not verify(label.signer, permission_digest(chain.id, permission), label.signature):
            raise _broken(record, f"the permission of label {number} is not signed by {label.signer.hex()}")
        if envelope_of(label.previous) != envelope or envelope_of(label.envelope) != labelled(envelope, permission):
            raise _broken(record, f"label {number} changes more than was permitted")
        envelope = labelled(envelope, permission)
    if envelope != envelope_of(record.envelope):
        raise _broken(record, "its envelope is not that of its newest label")
    keys = {entry.generation: entry.chameleon_key for entry in client.consent.keys(record.patient)}
    statement = (keys.get(record.generation, b""), record.chameleon_hash, envelope_digest(envelope))
    if not verify_proof(VerifyingKey.decode(chain.verifying_key), *statement, labels[-1].proof):
        raise _broken(record, "the proof of its newest label does not verify")


def permission_of(shown: answers.Permission) -> LabelPermission:
    """Return a permission as it was signed. Raises `InvalidInput` for a status that no label gives."""
    if shown.status not in ("amended", "entered-in-error"):
        raise InvalidInput(f"a label of status {shown.status!r} cannot be; ask another node")
    return LabelPermission(**shown.model_dump())


def _opens(record: models.Record, envelope: models.Envelope) -> bool:
    return chameleon.check_opening(record.chameleon_hash, envelope_digest(envelope_of(envelope)), record.opening)


def _broken(record: models.Record, what: str) -> InvalidInput:
    return InvalidInput(f"record {record.record_id.hex()}: {what}; ask another node")
