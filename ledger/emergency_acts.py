# SPDX-License-Identifier: GPL-3.0-or-later
"""Emergency access on the chain: opened by a grantee, approved by proxies, reviewed by the patient."""

import msgspec

from ledger.acts import Act, party_of
from ledger.bodies import ApproveEmergency, OpenEmergency, ReviewEmergency
from ledger.emergency import Approval, Emergency, is_approved
from ledger.errors import Rejection, RejectionReason
from ledger.sharing import Grant, Listed, is_within
from ledger.sharing_acts import require_grant, require_not_revoked
from ledger.state import EMERGENCIES, GRANTS, PATIENTS, REVIEWS, State, numbered_key


def open_emergency(act: Act, body: OpenEmergency) -> None:
    """Ask the proxies of a sleeping grant to wake it; one request at a time."""
    state, context, identifier = act.state, act.context, body.grant_id
    grant = require_grant(state, identifier)
    terms = grant.terms
    if party_of(state, act.sender) != terms.grantee:
        detail = f"only grantee {terms.grantee.hex()} may open an emergency; the sender is {act.sender.hex()}"
        raise Rejection(RejectionReason.NOT_PERMITTED, detail)
    if not terms.emergency_approvals:
        detail = f"grant {identifier.hex()} is an ordinary one: read without an emergency"
        raise Rejection(RejectionReason.NOT_PERMITTED, detail)
    require_not_revoked(identifier, grant)
    if not is_within(terms, context.timestamp_ms):
        detail = f"the grant holds from {terms.from_ms} to {terms.until_ms} ms, it is {context.timestamp_ms} ms"
        raise Rejection(RejectionReason.WRONG_PERIOD, detail)
    latest = context.timestamp_ms + context.parameters.emergency_limit_ms
    if not context.timestamp_ms < body.until_ms <= latest:
        detail = (
            f"the emergency ends at {body.until_ms} ms; it must end after {context.timestamp_ms} ms and by {latest} ms"
        )
        raise Rejection(RejectionReason.WRONG_PERIOD, detail)
    _check_former(state, grant, context.timestamp_ms)
    patient = state.get(PATIENTS, terms.patient)
    assert patient is not None, f"grant {identifier.hex()} of somebody who is no patient"
    number = patient.emergency_count
    entry = Emergency(
        grant_id=identifier,
        requester=terms.grantee,
        reason=body.reason,
        opened_height=context.height,
        opened_timestamp_ms=context.timestamp_ms,
        until_ms=body.until_ms,
        approvals=(),
        needed=terms.emergency_approvals,
        verdict="",
        reviewed_height=0,
    )
    state.put(EMERGENCIES, numbered_key(terms.patient, number), entry)
    state.put(PATIENTS, terms.patient, msgspec.structs.replace(patient, emergency_count=number + 1))
    counted = msgspec.structs.replace(grant, emergency_count=grant.emergency_count + 1, newest_emergency=number)
    state.put(GRANTS, identifier, counted)


def _check_former(state: State, grant: Grant, time_ms: int) -> None:
    if not grant.emergency_count:
        return
    former = _require_emergency(state, grant.terms.patient, grant.newest_emergency)
    if time_ms < former.until_ms:
        detail = f"emergency {grant.newest_emergency} of this grant lasts until {former.until_ms} ms; wait, or use it"
        raise Rejection(RejectionReason.EMERGENCY_OPEN, detail)


def approve_emergency(act: Act, body: ApproveEmergency) -> None:
    """Approve as a proxy; the approval that completes the quorum puts the emergency up for review."""
    state, context = act.state, act.context
    emergency = _require_emergency(state, body.patient, body.number)
    grant = require_grant(state, emergency.grant_id)
    if act.sender not in grant.terms.proxies:
        detail = f"{act.sender.hex()} is no proxy of grant {emergency.grant_id.hex()}"
        raise Rejection(RejectionReason.NOT_A_PROXY, detail)
    require_not_revoked(emergency.grant_id, grant)
    if context.timestamp_ms >= emergency.until_ms:
        detail = f"emergency {body.number} ended at {emergency.until_ms} ms, it is {context.timestamp_ms} ms"
        raise Rejection(RejectionReason.EMERGENCY_OVER, detail)
    if any(approval.institution == act.sender for approval in emergency.approvals):
        detail = f"{act.sender.hex()} has approved emergency {body.number} already"
        raise Rejection(RejectionReason.ALREADY_CONFIRMED, detail)
    approvals = (*emergency.approvals, Approval(act.sender, context.height))
    key = numbered_key(body.patient, body.number)
    state.put(EMERGENCIES, key, msgspec.structs.replace(emergency, approvals=approvals))
    if len(approvals) == emergency.needed:
        state.put(REVIEWS, key, Listed(emergency.grant_id))


def review_emergency(act: Act, body: ReviewEmergency) -> None:
    """Say whether an emergency access was right; what was not stays in the queue, for the institutions' review."""
    state, context = act.state, act.context
    act.require_power(body.patient, "review")
    emergency = _require_emergency(state, body.patient, body.number)
    if emergency.verdict:
        detail = f"emergency {body.number} was reviewed at height {emergency.reviewed_height}: {emergency.verdict}"
        raise Rejection(RejectionReason.ALREADY_CONFIRMED, detail)
    if not is_approved(emergency) and context.timestamp_ms < emergency.until_ms:
        detail = f"emergency {body.number} waits for {emergency.needed - len(emergency.approvals)} more approvals"
        raise Rejection(RejectionReason.EMERGENCY_OPEN, f"{detail} until {emergency.until_ms} ms; review it afterwards")
    verdict = "justified" if body.is_justified else "unjustified"
    key = numbered_key(body.patient, body.number)
    reviewed = msgspec.structs.replace(emergency, verdict=verdict, reviewed_height=context.height)
    state.put(EMERGENCIES, key, reviewed)
    if is_approved(emergency) and body.is_justified:
        state.delete(REVIEWS, key)


def _require_emergency(state: State, patient: bytes, number: int) -> Emergency:
    emergency = state.get(EMERGENCIES, numbered_key(patient, number))
    if emergency is None:
        raise Rejection(RejectionReason.EMERGENCY_UNKNOWN, f"patient {patient.hex()} has no emergency {number}")
    return emergency
