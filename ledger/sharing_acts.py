# SPDX-License-Identifier: GPL-3.0-or-later
"""Grants on the chain: made and revoked by the patient or a delegate, their end confirmed by the proxies.

Four indexes lead to a grant: from its patient, its grantee, each proxy that holds a fragment, and each proxy that owes the deletion
of one, so that a proxy that was away finds its work at once.
"""

import msgspec

from ledger.acts import Act, encryption_key_of, require_institution
from ledger.bodies import ConfirmDeletion, GrantAccess, RevokeAccess
from ledger.errors import Rejection, RejectionReason
from ledger.patients import Patient
from ledger.sharing import Grant, GrantTerms, Listed, grant_id
from ledger.state import (
    DELETIONS_OWED,
    GRANTEE_GRANTS,
    GRANTS,
    PATIENT_GRANTS,
    PATIENTS,
    PROXY_GRANTS,
    RECORDS,
    State,
    numbered_key,
)


def grant_access(act: Act, body: GrantAccess) -> None:
    """Make a grant; that its terms fit together was checked before."""
    state, context, terms = act.state, act.context, body.terms
    patient = act.require_power(terms.patient, "grant")
    if terms.until_ms <= context.timestamp_ms:
        detail = f"the grant ends at {terms.until_ms} ms, it is {context.timestamp_ms} ms already; choose a later end"
        raise Rejection(RejectionReason.WRONG_PERIOD, detail)
    identifier = grant_id(terms)
    if state.get(GRANTS, identifier) is not None:
        detail = f"grant {identifier.hex()} was made already; make new key fragments for another one"
        raise Rejection(RejectionReason.GRANT_EXISTS, detail)
    registered = encryption_key_of(state, terms.grantee)
    if terms.receiving_key != registered:
        detail = f"the key fragments are for key {terms.receiving_key.hex()}, that of grantee {terms.grantee.hex()} is"
        raise Rejection(RejectionReason.WRONG_GENERATION, f"{detail} {registered.hex()}")
    for proxy in terms.proxies:
        require_institution(state, proxy)
    _check_records(state, patient, terms)
    number = patient.grant_count
    entry = Grant(
        number=number,
        terms=terms,
        verifying_key=act.public_key,
        granted_height=context.height,
        granted_timestamp_ms=context.timestamp_ms,
        revoked_height=0,
        deletions=(0,) * len(terms.proxies),
        emergency_count=0,
        newest_emergency=0,
    )
    state.put(GRANTS, identifier, entry)
    listed = Listed(identifier)
    state.put(PATIENT_GRANTS, numbered_key(terms.patient, number), listed)
    state.put(GRANTEE_GRANTS, terms.grantee + identifier, listed)
    for proxy in terms.proxies:
        state.put(PROXY_GRANTS, proxy + identifier, listed)
    state.put(PATIENTS, terms.patient, msgspec.structs.replace(patient, grant_count=number + 1))


def _check_records(state: State, patient: Patient, terms: GrantTerms) -> None:
    if terms.generation > patient.keyblock.generation:
        detail = f"generation {terms.generation}; the patient's newest is {patient.keyblock.generation}"
        raise Rejection(RejectionReason.WRONG_GENERATION, detail)
    for sequence in terms.records:
        record = state.get(RECORDS, numbered_key(terms.patient, sequence))
        if record is None:
            detail = f"patient {terms.patient.hex()} has no record {sequence}"
            raise Rejection(RejectionReason.RECORD_UNKNOWN, f"{detail}; there are {patient.record_count}")
        if record.generation != terms.generation:
            detail = f"record {sequence} is of generation {record.generation}, the grant of {terms.generation}"
            raise Rejection(RejectionReason.WRONG_GENERATION, f"{detail}; make one grant for each")


def revoke_access(act: Act, body: RevokeAccess) -> None:
    """End a grant for good; from now on its proxies owe the deletion of their fragments."""
    state, identifier = act.state, body.grant_id
    grant = require_grant(state, identifier)
    act.require_power(grant.terms.patient, "revoke")
    require_not_revoked(identifier, grant)
    state.put(GRANTS, identifier, msgspec.structs.replace(grant, revoked_height=act.context.height))
    for proxy, deleted_height in zip(grant.terms.proxies, grant.deletions, strict=True):
        if not deleted_height:
            state.put(DELETIONS_OWED, proxy + identifier, Listed(identifier))


def confirm_deletion(act: Act, body: ConfirmDeletion) -> None:
    """Note that a proxy holds its fragment no more, after a revocation or the grant's end."""
    state, identifier, sender = act.state, body.grant_id, act.sender
    grant = require_grant(state, identifier)
    if sender not in grant.terms.proxies:
        raise Rejection(RejectionReason.NOT_A_PROXY, f"{sender.hex()} is no proxy of grant {identifier.hex()}")
    if not grant.revoked_height and act.context.timestamp_ms < grant.terms.until_ms:
        detail = f"grant {identifier.hex()} is neither revoked nor over: its fragments are still needed"
        raise Rejection(RejectionReason.GRANT_NOT_REVOKED, detail)
    place = grant.terms.proxies.index(sender)
    if grant.deletions[place]:
        detail = f"{sender.hex()} confirmed the deletion at height {grant.deletions[place]} already"
        raise Rejection(RejectionReason.ALREADY_CONFIRMED, detail)
    deletions = (*grant.deletions[:place], act.context.height, *grant.deletions[place + 1 :])
    state.put(GRANTS, identifier, msgspec.structs.replace(grant, deletions=deletions))
    state.delete(PROXY_GRANTS, sender + identifier)
    if grant.revoked_height:
        state.delete(DELETIONS_OWED, sender + identifier)


def require_grant(state: State, identifier: bytes) -> Grant:
    """Return a grant that was made."""
    grant = state.get(GRANTS, identifier)
    if grant is None:
        raise Rejection(RejectionReason.GRANT_UNKNOWN, f"there is no grant {identifier.hex()}")
    return grant


def require_not_revoked(identifier: bytes, grant: Grant) -> None:
    """Check that a grant is not revoked."""
    if grant.revoked_height:
        detail = f"grant {identifier.hex()} was revoked at height {grant.revoked_height}"
        raise Rejection(RejectionReason.GRANT_REVOKED, detail)
