# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels on the chain: with the patient's permission for exactly this label, and a proof that was checked before.

A label touches the record's entry in the state and nothing else of the record: its identifier, the patient's chain and mountain
range, and every block hash stay as they are (I11).
"""

import msgspec

from ledger.acts import Act, may_act, require_institution, require_patient
from ledger.bodies import ConfirmErasure, LabelRecord
from ledger.errors import Rejection, RejectionReason
from ledger.labels import Erasure, Label, LabelPermission, labelled
from ledger.patients import Patient, Record
from ledger.state import ERASURES, KEY_GENERATIONS, LABELS, RECORDS, State, numbered_key


def label_record(act: Act, body: LabelRecord) -> None:
    """Put a label on a record; permission's signature and proof were checked before."""
    state, context, permission = act.state, act.context, body.permission
    if permission.institution != act.sender:
        detail = f"the permission is for institution {permission.institution.hex()}, the sender is {act.sender.hex()}"
        raise Rejection(RejectionReason.SENDER_MISMATCH, detail)
    require_institution(state, act.sender)
    patient = require_patient(state, permission.patient)
    if not may_act(state, patient, body.signer, "label", context.timestamp_ms):
        detail = f"the permission is signed by {body.signer.hex()}: neither the newest key of the patient nor that of"
        raise Rejection(RejectionReason.NOT_PERMITTED, f"{detail} a delegate with the power 'label'; ask the patient")
    if context.height > permission.expiry_height:
        detail = f"the permission was valid to height {permission.expiry_height}, this is {context.height}"
        raise Rejection(RejectionReason.PERMISSION_EXPIRED, f"{detail}; ask the patient for a new one")
    record = _require_record(state, permission.patient, permission.sequence)
    if record.record_id != permission.record:
        detail = f"record {permission.sequence} is {record.record_id.hex()}, the permission is for"
        raise Rejection(RejectionReason.RECORD_UNKNOWN, f"{detail} {permission.record.hex()}")
    if permission.number != record.label_count:
        detail = f"the permission is for label {permission.number}, the record's next is {record.label_count}"
        raise Rejection(RejectionReason.PERMISSION_USED, f"{detail}; ask the patient for a new one")
    _check_replacement(state, permission)
    _check_statement(state, patient, record, body)
    label = Label(
        permission=permission,
        signer=body.signer,
        signature=body.signature,
        previous=record.envelope,
        envelope=body.envelope,
        proof=body.proof,
        institution=act.sender,
        committed_height=context.height,
        committed_timestamp_ms=context.timestamp_ms,
    )
    state.put(LABELS, numbered_key(permission.patient, permission.sequence, permission.number), label)
    updated = msgspec.structs.replace(
        record,
        envelope=body.envelope,
        label_count=record.label_count + 1,
        may_erase=record.may_erase or permission.may_erase,
    )
    state.put(RECORDS, numbered_key(permission.patient, permission.sequence), updated)


def _check_replacement(state: State, permission: LabelPermission) -> None:
    if not permission.replaced_by:
        return
    sequence = permission.replacement_sequence
    record = _require_record(state, permission.patient, sequence)
    if record.record_id != permission.replaced_by:
        detail = f"record {sequence} is {record.record_id.hex()}, the permission names {permission.replaced_by.hex()}"
        raise Rejection(RejectionReason.RECORD_UNKNOWN, f"{detail} as the replacement")


def _check_statement(state: State, patient: Patient, record: Record, body: LabelRecord) -> None:
    """Check that what was proved is about this record, and that it opens to what is permitted."""
    address = patient.keyblock.patient
    generation = state.get(KEY_GENERATIONS, numbered_key(address, record.generation))
    assert generation is not None, f"record of generation {record.generation}, which patient {address.hex()} never had"
    if body.chameleon_hash != record.microblock.chameleon_hash:
        detail = f"the proof is about chameleon hash {body.chameleon_hash.hex()}, the record's is"
        raise Rejection(RejectionReason.WRONG_PROOF, f"{detail} {record.microblock.chameleon_hash.hex()}")
    if body.chameleon_key != generation.keyblock.chameleon_key:
        detail = f"the proof is about chameleon key {body.chameleon_key.hex()}, that of the record's generation is"
        raise Rejection(RejectionReason.WRONG_PROOF, f"{detail} {generation.keyblock.chameleon_key.hex()}")
    if body.envelope != labelled(record.envelope, body.permission):
        detail = (
            "the new envelope must be the record's present one with status, label and replacement of the permission"
        )
        raise Rejection(RejectionReason.NOT_PERMITTED, detail)


def confirm_erasure(act: Act, body: ConfirmErasure) -> None:
    """Note that an institution holds the ciphertext of a record no more, as a label has allowed."""
    state = act.state
    require_institution(state, act.sender)
    record = _require_record(state, body.patient, body.sequence)
    if not record.label_count:
        raise Rejection(RejectionReason.NOT_LABELLED, f"record {body.sequence} has no label: its ciphertext is needed")
    if not record.may_erase:
        detail = f"no label of record {body.sequence} allows to erase its ciphertext"
        raise Rejection(RejectionReason.NOT_PERMITTED, detail)
    key = numbered_key(body.patient, body.sequence) + act.sender
    known = state.get(ERASURES, key)
    if known is not None:
        detail = f"{act.sender.hex()} confirmed the erasure at height {known.height} already"
        raise Rejection(RejectionReason.ALREADY_CONFIRMED, detail)
    state.put(ERASURES, key, Erasure(act.context.height))


def _require_record(state: State, patient: bytes, sequence: int) -> Record:
    record = state.get(RECORDS, numbered_key(patient, sequence))
    if record is None:
        raise Rejection(RejectionReason.RECORD_UNKNOWN, f"patient {patient.hex()} has no record {sequence}")
    return record
