# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's own chain: registration, who may write, records."""

import msgspec

from ledger.acts import Act, require_institution, require_patient
from ledger.bodies import AuthoriseAuthor, CommitRecord, RegisterPatient
from ledger.crypto.mountain_range import append
from ledger.errors import Rejection, RejectionReason
from ledger.patients import (
    FRESH_STATUSES,
    KeyGeneration,
    KeyHolder,
    Patient,
    Record,
    patient_keyblock_hash,
    record_id,
)
from ledger.state import (
    AUTHORISATIONS,
    INSTITUTIONS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    PATIENTS,
    RECORDS,
    Authorisation,
    numbered_key,
)


def register_patient(act: Act, body: RegisterPatient) -> None:
    """Register a patient, authorise the registering institution as an author and fund the patient's account."""
    state, height, keyblock = act.state, act.context.height, body.keyblock
    require_institution(state, act.sender)
    if keyblock.institution != act.sender:
        detail = f"the keyblock names institution {keyblock.institution.hex()}, the sender is {act.sender.hex()}"
        raise Rejection(RejectionReason.SENDER_MISMATCH, detail)
    patient = keyblock.patient
    if state.get(KEY_HOLDERS, patient) is not None:
        raise Rejection(RejectionReason.PATIENT_EXISTS, f"the key of {patient.hex()} is or was a patient's already")
    if state.get(INSTITUTIONS, patient) is not None:
        raise Rejection(RejectionReason.PATIENT_EXISTS, f"account {patient.hex()} is an institution")
    act.require_credits(body.allowance_microcredit)
    act.pay(patient, body.allowance_microcredit)
    digest = patient_keyblock_hash(keyblock)
    entry = Patient(
        keyblock=keyblock,
        keyblock_hash=digest,
        registered_height=height,
        grant_count=0,
        emergency_count=0,
        record_count=0,
        last_record=digest,
        record_peaks=(),
    )
    state.put(PATIENTS, patient, entry)
    state.put(KEY_HOLDERS, patient, KeyHolder(patient, 0))
    generation = KeyGeneration(keyblock, digest, body.patient_signature, height)
    state.put(KEY_GENERATIONS, numbered_key(patient, 0), generation)
    # Who registers a patient treats the patient; the patient may withdraw this at any time.
    state.put(AUTHORISATIONS, patient + act.sender, Authorisation(allowed=True, changed_height=height))


def authorise_author(act: Act, body: AuthoriseAuthor) -> None:
    """Allow or forbid an institution to append to a patient's chain."""
    act.require_power(body.patient, "authorise")
    require_institution(act.state, body.institution)
    entry = Authorisation(body.allowed, act.context.height)
    act.state.put(AUTHORISATIONS, body.patient + body.institution, entry)


def commit_record(act: Act, body: CommitRecord) -> None:
    """Append a record to a patient's chain."""
    state, context = act.state, act.context
    link, envelope = body.microblock, body.envelope
    if link.author != act.sender or envelope.author != act.sender:
        raise Rejection(RejectionReason.SENDER_MISMATCH, f"the record's author must be the sender {act.sender.hex()}")
    require_institution(state, act.sender)
    patient = require_patient(state, link.patient)
    authorisation = state.get(AUTHORISATIONS, link.patient + act.sender)
    if authorisation is None or not authorisation.allowed:
        detail = f"patient {link.patient.hex()} does not authorise {act.sender.hex()} as an author"
        raise Rejection(RejectionReason.NOT_AUTHORISED, detail)
    if link.patient_keyblock != patient.keyblock_hash:
        detail = (
            f"made for keyblock {link.patient_keyblock.hex()}, the patient's newest is {patient.keyblock_hash.hex()}"
        )
        raise Rejection(RejectionReason.WRONG_GENERATION, f"{detail}: encrypt the record to the newest key")
    if link.sequence != patient.record_count:
        raise Rejection(
            RejectionReason.WRONG_SEQUENCE, f"sequence {link.sequence}; the patient's next is {patient.record_count}"
        )
    if link.previous != patient.last_record:
        detail = f"previous {link.previous.hex()}; the patient's last is {patient.last_record.hex()}"
        raise Rejection(RejectionReason.WRONG_PREVIOUS, detail)
    if envelope.status not in FRESH_STATUSES or envelope.label or envelope.replaced_by:
        raise Rejection(
            RejectionReason.MALFORMED, f"a new record is {' or '.join(FRESH_STATUSES)}, without label or replacement"
        )
    identifier = record_id(link)
    entry = Record(
        record_id=identifier,
        microblock=link,
        generation=patient.keyblock.generation,
        envelope=envelope,
        opening=body.opening,
        label_count=0,
        may_erase=False,
        committed_height=context.height,
        committed_timestamp_ms=context.timestamp_ms,
    )
    state.put(RECORDS, numbered_key(link.patient, link.sequence), entry)
    count = patient.record_count
    updated = msgspec.structs.replace(
        patient,
        record_count=count + 1,
        last_record=identifier,
        record_peaks=append(patient.record_peaks, count, identifier),
    )
    state.put(PATIENTS, link.patient, updated)
