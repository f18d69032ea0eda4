# SPDX-License-Identifier: GPL-3.0-or-later
"""Emergency access: a quorum wakes a sleeping grant for a reason and a time, and the patient has the last word."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import (
    ApproveEmergency,
    ConfirmDeletion,
    DelegatePowers,
    GrantAccess,
    OpenEmergency,
    ReviewEmergency,
    RevokeAccess,
)
from ledger.crypto.keys import PrivateKey
from ledger.emergency import Approval, Emergency, is_approved, is_awake
from ledger.errors import RejectionReason
from ledger.sharing import Listed, grant_id
from ledger.state import ACCOUNTS, EMERGENCIES, GRANTS, PATIENTS, REVIEWS, Account, State, numbered_key
from ledger.testing_patients import change_keys, grant_terms, next_keyblock
from tests.ledger.acts_kit import (
    ALICE,
    BOB,
    CHAIN,
    CLINIC,
    GENESIS,
    HEIGHT,
    HOSPITAL,
    KEYBLOCK,
    NOW_MS,
    PROXIES,
    STRANGER,
    act,
    keyblock_of,
    refuse,
    world,
)

LIMIT_MS = GENESIS.parameters.emergency_limit_ms
END_MS = NOW_MS + 1_000
TERMS = msgspec.structs.replace(
    grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), [proxy.address for proxy in PROXIES[:3]]),
    emergency_approvals=2,
    purposes=("ETREAT",),
)
ID = grant_id(TERMS)
OPEN = OpenEmergency(ID, "unconscious", END_MS)
APPROVE = ApproveEmergency(ALICE.address, 0)


def review(*, is_justified: bool, number: int = 0) -> ReviewEmergency:
    return ReviewEmergency(ALICE.address, number, is_justified)


def asleep() -> State:
    state = world(0)
    act(state, ALICE, GrantAccess(TERMS))
    return state


def opened() -> State:
    state = asleep()
    act(state, CLINIC, OPEN)
    return state


def approved() -> State:
    state = opened()
    for proxy in PROXIES[:2]:
        act(state, proxy, APPROVE)
    return state


def emergency(state: State, number: int = 0) -> Emergency:
    found = state.get(EMERGENCIES, numbered_key(ALICE.address, number))
    assert found is not None
    return found


def in_queue(state: State, number: int = 0) -> bool:
    return state.get(REVIEWS, numbered_key(ALICE.address, number)) is not None


# ---------------------------------------------------------------- opening


def test_the_grantee_opens_an_emergency_that_patient_and_grant_lead_to() -> None:
    state = opened()
    assert emergency(state) == Emergency(
        grant_id=ID,
        requester=CLINIC.address,
        reason="unconscious",
        opened_height=HEIGHT,
        opened_timestamp_ms=NOW_MS,
        until_ms=END_MS,
        approvals=(),
        needed=2,
        verdict="",
        reviewed_height=0,
    )
    patient, grant = state.get(PATIENTS, ALICE.address), state.get(GRANTS, ID)
    assert patient is not None
    assert grant is not None
    assert (patient.emergency_count, grant.emergency_count, grant.newest_emergency) == (1, 1, 0)
    assert not in_queue(state)


@pytest.mark.parametrize("sender", [HOSPITAL, PROXIES[0], PROXIES[3], ALICE, STRANGER])
def test_nobody_but_the_grantee_opens(sender: PrivateKey) -> None:
    refuse(asleep(), RejectionReason.NOT_PERMITTED, sender, OPEN)


def test_an_ordinary_or_unknown_grant_knows_no_emergency() -> None:
    state = asleep()
    ordinary = msgspec.structs.replace(TERMS, emergency_approvals=0)
    act(state, ALICE, GrantAccess(ordinary))
    refuse(state, RejectionReason.NOT_PERMITTED, CLINIC, OpenEmergency(grant_id(ordinary), "trauma", END_MS))
    refuse(state, RejectionReason.GRANT_UNKNOWN, CLINIC, OpenEmergency(bytes(32), "trauma", END_MS))


def test_a_revoked_grant_is_not_woken() -> None:
    state = asleep()
    act(state, ALICE, RevokeAccess(ID))
    refuse(state, RejectionReason.GRANT_REVOKED, CLINIC, OPEN)


def test_an_emergency_lies_within_the_grants_time() -> None:
    state = world(0)
    late = msgspec.structs.replace(TERMS, from_ms=NOW_MS + 1, until_ms=NOW_MS + 2)
    act(state, ALICE, GrantAccess(late))
    body = OpenEmergency(grant_id(late), "stroke", NOW_MS + 100)
    refuse(state, RejectionReason.WRONG_PERIOD, CLINIC, body)
    refuse(state, RejectionReason.WRONG_PERIOD, CLINIC, body, time_ms=NOW_MS + 2)
    act(state, CLINIC, body, time_ms=NOW_MS + 1)


def test_an_emergency_is_limited_in_time() -> None:
    state = asleep()
    for until_ms in (0, NOW_MS, NOW_MS + LIMIT_MS + 1, 2**63 - 1):
        refuse(state, RejectionReason.WRONG_PERIOD, CLINIC, OpenEmergency(ID, "other", until_ms))
    act(state, CLINIC, OpenEmergency(ID, "other", NOW_MS + LIMIT_MS))


def test_one_emergency_at_a_time_and_the_next_needs_new_approvals() -> None:
    state = approved()
    detail = refuse(state, RejectionReason.EMERGENCY_OPEN, CLINIC, OPEN, time_ms=END_MS - 1)
    assert "emergency 0 of this grant" in detail
    act(state, CLINIC, OpenEmergency(ID, "trauma", END_MS + 5), time_ms=END_MS)
    grant = state.get(GRANTS, ID)
    assert grant is not None
    assert (grant.emergency_count, grant.newest_emergency) == (2, 1)
    assert emergency(state, 1).approvals == ()
    assert not is_awake(emergency(state, 1), END_MS + 1)


def test_emergencies_of_different_grants_are_numbered_together() -> None:
    state = opened()
    other = msgspec.structs.replace(TERMS, grantee=HOSPITAL.address, receiving_key=testing.encryption_key(0))
    act(state, ALICE, GrantAccess(other))
    act(state, HOSPITAL, OpenEmergency(grant_id(other), "disaster", END_MS))
    grant = state.get(GRANTS, grant_id(other))
    assert grant is not None
    assert (grant.emergency_count, grant.newest_emergency) == (1, 1)
    assert emergency(state, 1).requester == HOSPITAL.address


def test_a_grantee_who_is_a_patient_opens_with_the_newest_key_only() -> None:
    state = world(0)
    terms = msgspec.structs.replace(TERMS, grantee=BOB.address, receiving_key=testing.encryption_key(21))
    act(state, ALICE, GrantAccess(terms))
    new_key = testing.key(31)
    act(state, BOB, change_keys(CHAIN, next_keyblock(keyblock_of(BOB, 21), new_key, 31), new_key))
    state.put(ACCOUNTS, BOB.address, Account(1, 10**6))  # such as the fees of a keyblock mined with the old key
    body = OpenEmergency(grant_id(terms), "stroke", END_MS)
    refuse(state, RejectionReason.NOT_PERMITTED, BOB, body)
    act(state, new_key, body)
    assert emergency(state).requester == BOB.address


# ---------------------------------------------------------------- approving


def test_a_quorum_wakes_the_grant_until_the_end() -> None:
    state = opened()
    act(state, PROXIES[2], APPROVE, height=HEIGHT + 1)
    assert not is_approved(emergency(state))
    assert not in_queue(state)
    act(state, PROXIES[0], APPROVE, height=HEIGHT + 2)
    found = emergency(state)
    assert found.approvals == (Approval(PROXIES[2].address, HEIGHT + 1), Approval(PROXIES[0].address, HEIGHT + 2))
    assert [is_awake(found, time) for time in (NOW_MS, END_MS - 1, END_MS)] == [True, True, False]
    assert state.get(REVIEWS, numbered_key(ALICE.address, 0)) == Listed(ID)
    act(state, PROXIES[1], APPROVE)
    assert len(emergency(state).approvals) == 3


@pytest.mark.parametrize("sender", [CLINIC, HOSPITAL, PROXIES[3], ALICE, STRANGER])
def test_only_proxies_of_the_grant_approve(sender: PrivateKey) -> None:
    refuse(opened(), RejectionReason.NOT_A_PROXY, sender, APPROVE)


def test_a_proxy_counts_once() -> None:
    state = opened()
    act(state, PROXIES[0], APPROVE)
    refuse(state, RejectionReason.ALREADY_CONFIRMED, PROXIES[0], APPROVE)
    assert not is_approved(emergency(state))


def test_what_is_over_or_revoked_or_was_never_opened_is_not_approved() -> None:
    state = opened()
    refuse(state, RejectionReason.EMERGENCY_OVER, PROXIES[0], APPROVE, time_ms=END_MS)
    for unknown in (ApproveEmergency(ALICE.address, 1), ApproveEmergency(BOB.address, 0)):
        refuse(state, RejectionReason.EMERGENCY_UNKNOWN, PROXIES[0], unknown)
    act(state, ALICE, RevokeAccess(ID))
    refuse(state, RejectionReason.GRANT_REVOKED, PROXIES[0], APPROVE)


# ---------------------------------------------------------------- reviewing


def test_the_patient_reviews_once() -> None:
    state = approved()
    act(state, ALICE, review(is_justified=True), height=HEIGHT + 9)
    assert (emergency(state).verdict, emergency(state).reviewed_height) == ("justified", HEIGHT + 9)
    assert is_awake(emergency(state), NOW_MS)
    assert not in_queue(state)
    detail = refuse(state, RejectionReason.ALREADY_CONFIRMED, ALICE, review(is_justified=False))
    assert "height 19: justified" in detail


def test_an_unjustified_emergency_ends_at_once_and_stays_in_the_queue() -> None:
    state = approved()
    act(state, ALICE, review(is_justified=False))
    assert emergency(state).verdict == "unjustified"
    assert not is_awake(emergency(state), NOW_MS)
    act(state, PROXIES[2], APPROVE)
    assert not is_awake(emergency(state), NOW_MS)
    assert in_queue(state)
    refuse(state, RejectionReason.ALREADY_CONFIRMED, ALICE, review(is_justified=True), time_ms=END_MS)


def test_there_is_something_to_review_once_it_is_approved_or_over() -> None:
    state = opened()
    act(state, PROXIES[0], APPROVE)
    detail = refuse(state, RejectionReason.EMERGENCY_OPEN, ALICE, review(is_justified=True))
    assert "1 more approvals" in detail
    refuse(state, RejectionReason.EMERGENCY_OPEN, ALICE, review(is_justified=True), time_ms=END_MS - 1)
    act(state, ALICE, review(is_justified=True), time_ms=END_MS)
    assert not in_queue(state)


@pytest.mark.parametrize("sender", [CLINIC, HOSPITAL, PROXIES[0], BOB, STRANGER])
def test_nobody_else_reviews(sender: PrivateKey) -> None:
    refuse(approved(), RejectionReason.NOT_PERMITTED, sender, review(is_justified=True))


def test_a_delegate_with_the_power_reviews() -> None:
    state = approved()
    act(state, ALICE, DelegatePowers(ALICE.address, STRANGER.address, ("revoke",), END_MS))
    refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, review(is_justified=True))
    act(state, ALICE, DelegatePowers(ALICE.address, STRANGER.address, ("review",), END_MS))
    act(state, STRANGER, review(is_justified=True))


def test_what_never_was_cannot_be_reviewed() -> None:
    refuse(asleep(), RejectionReason.EMERGENCY_UNKNOWN, ALICE, review(is_justified=True))


def test_a_review_after_a_change_of_keys_is_signed_by_the_new_one() -> None:
    state = approved()
    new_key = testing.key(30)
    act(state, ALICE, change_keys(CHAIN, next_keyblock(KEYBLOCK, new_key, 30), new_key))
    state.put(ACCOUNTS, ALICE.address, Account(2, 10**6))
    refuse(state, RejectionReason.NOT_PERMITTED, ALICE, review(is_justified=True))
    act(state, new_key, review(is_justified=True))


# ---------------------------------------------------------------- any order


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "approve", "revoke", "justified", "unjustified"]), st.integers(0, 4)),
        max_size=14,
    )
)
def test_a_grant_is_awake_only_with_a_quorum_of_different_proxies_in_time(steps: list[tuple[str, int]]) -> None:
    state, time_ms = asleep(), NOW_MS
    approvers: list[set[int]] = []
    ends: list[int] = []
    unjustified: set[int] = set()
    for kind, number in steps:
        time_ms += 100 * number
        grant = state.get(GRANTS, ID)
        assert grant is not None
        newest = len(ends) - 1
        if kind == "open" and not grant.revoked_height and (not ends or time_ms >= ends[-1]):
            act(state, CLINIC, OpenEmergency(ID, "other", time_ms + 300), time_ms=time_ms)
            approvers.append(set())
            ends.append(time_ms + 300)
        elif kind == "approve" and ends and number < 3:
            body = ApproveEmergency(ALICE.address, newest)
            if grant.revoked_height or time_ms >= ends[-1] or number in approvers[-1]:
                with pytest.raises(Exception, match=r"grant_revoked|emergency_over|already_confirmed"):
                    act(state, PROXIES[number], body, time_ms=time_ms)
            else:
                act(state, PROXIES[number], body, time_ms=time_ms)
                approvers[-1].add(number)
        elif kind == "revoke" and not grant.revoked_height:
            act(state, ALICE, RevokeAccess(ID), time_ms=time_ms)
        elif (
            ends
            and kind.endswith("justified")
            and (len(approvers[-1]) >= 2 or time_ms >= ends[-1])
            and not emergency(state, newest).verdict
        ):
            act(state, ALICE, review(is_justified=kind == "justified", number=newest), time_ms=time_ms)
            unjustified |= {newest} if kind == "unjustified" else set()
    for number, end in enumerate(ends):
        awake = [is_awake(emergency(state, number), moment) for moment in (end - 1, end)]
        assert awake == [len(approvers[number]) >= 2 and number not in unjustified, False]
        queued = len(approvers[number]) >= 2 and emergency(state, number).verdict != "justified"
        assert in_queue(state, number) == queued


def test_a_sleeping_grant_is_deleted_like_any_other() -> None:
    state = approved()
    act(state, ALICE, RevokeAccess(ID))
    act(state, PROXIES[0], ConfirmDeletion(ID))
    assert is_awake(emergency(state), NOW_MS)  # the revocation is the grant's, and comes first at every proxy
