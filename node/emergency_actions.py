# SPDX-License-Identifier: GPL-3.0-or-later
"""Emergencies, each step in one call: a sleeping grant's grantee opens one, proxies approve, the grantee reads, the patient reviews.

A patient makes the sleeping grant beforehand, as any other grant with `emergency_approvals` above 0.
"""

from dataclasses import dataclass

from ledger.bodies import ApproveEmergency, OpenEmergency, ReviewEmergency
from ledger.emergency import Reason
from ledger.errors import NotFound, SpchainError
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed
from node.api import sharing_models as answers
from node.client import NodeClient


@dataclass(frozen=True, slots=True)
class Opened:
    """An emergency that was opened."""

    number: int
    """Which of the patient's emergencies it is."""
    emergency: answers.Emergency
    """What the chain says of it."""
    committed: Committed
    """Where it stands."""


def open_emergency(
    actor: Actor, grant_id: bytes, reason: Reason, until_ms: int, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Opened:
    """As the grantee of a sleeping grant, ask its proxies to wake it. Raises `Rejection`."""
    patient = actor.client.consent.grant(grant_id).patient
    committed = actor.commit(OpenEmergency(grant_id, reason, until_ms), timeout_s)
    opened = [one for one in actor.client.consent.emergencies(patient) if one.grant_id == grant_id]
    if not opened:
        raise SpchainError(
            f"the node shows no emergency of grant {grant_id.hex()} that was just committed; ask another node"
        )
    return Opened(opened[-1].number, opened[-1], committed)


def approve(actor: Actor, patient: bytes, number: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """As a proxy of the grant, approve an emergency. Raises `Rejection`."""
    return actor.commit(ApproveEmergency(patient, number), timeout_s)


def review(
    actor: Actor, patient: bytes, number: int, *, is_justified: bool, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Committed:
    """As the patient, or a delegate who may review, say whether an emergency was right; "unjustified" ends it. Raises `Rejection`."""
    return actor.commit(ReviewEmergency(patient, number, is_justified), timeout_s)


def emergency_of(client: NodeClient, patient: bytes, number: int) -> answers.Emergency:
    """Return one of a patient's emergencies. Raises `NotFound`."""
    found = next(client.consent.emergencies(patient, number), None)
    if found is None or found.number != number:
        raise NotFound(f"patient {patient.hex()} has no emergency {number}; spchain emergency list shows them")
    return found


def waiting_for(client: NodeClient, proxy: bytes, now_ms: int) -> list[answers.Emergency]:
    """Return the emergencies that are under way and could be approved by a proxy."""
    grants = {
        grant.grant_id: grant.patient
        for grant in client.consent.account_grants(proxy, "proxy")
        if grant.emergency_approvals and grant.revoked_height is None
    }
    return [
        emergency
        for patient in sorted(set(grants.values()))
        for emergency in client.consent.emergencies(patient)
        if emergency.grant_id in grants
        and emergency.until_ms > now_ms
        and proxy not in [approval.institution for approval in emergency.approvals]
    ]
