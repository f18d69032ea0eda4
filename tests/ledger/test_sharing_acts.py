# SPDX-License-Identifier: GPL-3.0-or-later
"""Grants, revocations and confirmed deletions: every rule, and who is refused for which reason."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import AppointGuardians, ConfirmDeletion, DelegatePowers, GrantAccess, RevokeAccess
from ledger.crypto.keys import PrivateKey
from ledger.errors import RejectionReason
from ledger.guardianship import Power
from ledger.sharing import Grant, GrantTerms, Listed, covers, fragment_digest, grant_id, is_within
from ledger.state import (
    ACCOUNTS,
    DELETIONS_OWED,
    GRANTEE_GRANTS,
    GRANTS,
    PATIENT_GRANTS,
    PATIENTS,
    PROXY_GRANTS,
    Account,
    State,
    numbered_key,
)
from ledger.testing_patients import YEAR_MS, backup_digest, change_keys, grant_terms, next_keyblock
from tests.ledger.acts_kit import (
    ALICE,
    BOB,
    CAROL,
    CHAIN,
    CLINIC,
    FRESH_INSTITUTION,
    HEIGHT,
    HOSPITAL,
    KEYBLOCK,
    NOW_MS,
    PROXIES,
    STRANGER,
    act,
    refuse,
    world,
)

END_MS = testing.GENESIS_TIMESTAMP_MS + YEAR_MS


def terms(number: int = 0, **changes: object) -> GrantTerms:
    proxies = [proxy.address for proxy in PROXIES[:3]]
    made = grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), proxies, number=number)
    return msgspec.structs.replace(made, **changes)


TERMS = terms()
ID = grant_id(TERMS)


def granted(state: State, identifier: bytes = ID) -> Grant:
    grant = state.get(GRANTS, identifier)
    assert grant is not None
    return grant


def delegate(state: State, delegate_: PrivateKey, *powers: Power, until_ms: int = END_MS) -> None:
    act(state, ALICE, DelegatePowers(ALICE.address, delegate_.address, powers, until_ms))


def owed(state: State, proxy: PrivateKey, identifier: bytes = ID) -> bool:
    return state.get(DELETIONS_OWED, proxy.address + identifier) is not None


def listed(state: State, proxy: PrivateKey, identifier: bytes = ID) -> bool:
    return state.get(PROXY_GRANTS, proxy.address + identifier) is not None


# ---------------------------------------------------------------- granting


def test_a_grant_is_kept_with_who_signed_it_and_is_found_from_patient_grantee_and_proxies() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    assert granted(state) == Grant(
        number=0,
        terms=TERMS,
        verifying_key=ALICE.public_key,
        granted_height=HEIGHT,
        granted_timestamp_ms=NOW_MS,
        revoked_height=0,
        deletions=(0, 0, 0),
        emergency_count=0,
        newest_emergency=0,
    )
    assert state.get(PATIENT_GRANTS, numbered_key(ALICE.address, 0)) == Listed(ID)
    assert state.get(GRANTEE_GRANTS, CLINIC.address + ID) == Listed(ID)
    assert [listed(state, proxy) for proxy in PROXIES] == [True, True, True, False]
    assert not any(owed(state, proxy) for proxy in PROXIES)
    patient = state.get(PATIENTS, ALICE.address)
    assert patient is not None
    assert patient.grant_count == 1


def test_grants_are_numbered_in_order_and_each_is_made_once() -> None:
    state = world()
    for number in range(3):
        act(state, ALICE, GrantAccess(terms(number)))
        assert granted(state, grant_id(terms(number))).number == number
        assert state.get(PATIENT_GRANTS, numbered_key(ALICE.address, number)) == Listed(grant_id(terms(number)))
    assert "was made already" in refuse(state, RejectionReason.GRANT_EXISTS, ALICE, GrantAccess(terms(1)))


def test_a_revoked_grant_cannot_be_made_again_with_the_same_fragments() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    act(state, ALICE, RevokeAccess(ID))
    refuse(state, RejectionReason.GRANT_EXISTS, ALICE, GrantAccess(TERMS))


def test_another_patient_may_be_the_grantee_and_so_may_the_patient() -> None:
    state = world()
    for patient, number in ((BOB, 21), (ALICE, 20)):
        made = terms(number, grantee=patient.address, receiving_key=testing.encryption_key(number))
        act(state, ALICE, GrantAccess(made))
        assert state.get(GRANTEE_GRANTS, patient.address + grant_id(made)) is not None


@pytest.mark.parametrize("sender", [HOSPITAL, CLINIC, BOB, STRANGER, PROXIES[0]])
def test_nobody_else_grants_for_a_patient(sender: PrivateKey) -> None:
    refuse(world(), RejectionReason.NOT_PERMITTED, sender, GrantAccess(TERMS))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patient": STRANGER.address}, RejectionReason.PATIENT_UNKNOWN),
        ({"patient": BOB.address}, RejectionReason.NOT_PERMITTED),
        ({"generation": 1}, RejectionReason.WRONG_GENERATION),
        ({"grantee": STRANGER.address}, RejectionReason.PARTY_UNKNOWN),
        ({"grantee": FRESH_INSTITUTION.address}, RejectionReason.PARTY_UNKNOWN),
        ({"receiving_key": testing.encryption_key(2)}, RejectionReason.WRONG_GENERATION),
        ({"grantee": BOB.address}, RejectionReason.WRONG_GENERATION),
        ({"until_ms": NOW_MS}, RejectionReason.WRONG_PERIOD),
        ({"all_records": False, "records": (0, 3)}, RejectionReason.RECORD_UNKNOWN),
        ({"all_records": False, "records": (2**63 - 1,)}, RejectionReason.RECORD_UNKNOWN),
        (
            {"proxies": (PROXIES[0].address, PROXIES[1].address, FRESH_INSTITUTION.address)},
            RejectionReason.INSTITUTION_UNKNOWN,
        ),
        ({"proxies": (PROXIES[0].address, PROXIES[1].address, BOB.address)}, RejectionReason.INSTITUTION_UNKNOWN),
    ],
)
def test_terms_that_do_not_fit_the_state_are_refused(changes: dict[str, object], reason: RejectionReason) -> None:
    refuse(world(), reason, ALICE, GrantAccess(terms(0, **changes)))


def test_an_end_just_after_the_block_and_a_beginning_in_the_future_are_allowed() -> None:
    state = world()
    act(state, ALICE, GrantAccess(terms(1, until_ms=NOW_MS + 1)))
    act(state, ALICE, GrantAccess(terms(2, from_ms=END_MS - 1)))


def test_records_may_be_chosen_and_must_be_of_the_generation() -> None:
    state = world()
    act(state, ALICE, GrantAccess(terms(1, all_records=False, records=(0, 2))))
    new_key = testing.key(30)
    keyblock = next_keyblock(KEYBLOCK, new_key, 30)
    act(state, ALICE, change_keys(CHAIN, keyblock, new_key))
    follower = testing.record_body(HOSPITAL.address, keyblock, 3, patient_last(state), content=3)
    act(state, HOSPITAL, follower)
    act(state, new_key, GrantAccess(terms(2, all_records=False, records=(0, 1, 2))))
    act(state, new_key, GrantAccess(terms(3, generation=1, all_records=False, records=(3,))))
    act(state, new_key, GrantAccess(terms(4, generation=1)))
    detail = refuse(
        state, RejectionReason.WRONG_GENERATION, new_key, GrantAccess(terms(5, all_records=False, records=(2, 3)))
    )
    assert "record 3 is of generation 1" in detail
    refuse(
        state,
        RejectionReason.WRONG_GENERATION,
        new_key,
        GrantAccess(terms(6, generation=1, all_records=False, records=(2,))),
    )
    refuse(state, RejectionReason.WRONG_GENERATION, new_key, GrantAccess(terms(7, generation=2)))


def patient_last(state: State) -> bytes:
    patient = state.get(PATIENTS, ALICE.address)
    assert patient is not None
    return patient.last_record


# ---------------------------------------------------------------- delegates


def test_a_delegate_grants_and_revokes_within_its_powers_and_signs_the_fragments() -> None:
    state = world()
    delegate(state, STRANGER, "grant")
    act(state, STRANGER, GrantAccess(TERMS))
    assert granted(state).verifying_key == STRANGER.public_key
    detail = refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, RevokeAccess(ID))
    assert "'revoke'" in detail
    delegate(state, STRANGER, "revoke")
    act(state, STRANGER, RevokeAccess(ID))
    refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, GrantAccess(terms(1)))


def test_a_delegation_ends_with_its_time_and_when_it_is_taken_back() -> None:
    state = world()
    delegate(state, STRANGER, "grant", until_ms=NOW_MS + 10)
    act(state, STRANGER, GrantAccess(terms(1)), time_ms=NOW_MS + 9)
    refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, GrantAccess(terms(2)), time_ms=NOW_MS + 10)
    delegate(state, STRANGER, "grant")
    act(state, STRANGER, GrantAccess(terms(2)), time_ms=NOW_MS + 10)
    delegate(state, STRANGER)
    refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, GrantAccess(terms(3)))


def test_a_delegate_acts_for_its_own_patient_only_and_cannot_pass_powers_on() -> None:
    state = world()
    delegate(state, BOB, "authorise", "grant", "label", "review", "revoke")
    act(state, BOB, GrantAccess(TERMS))
    refuse(state, RejectionReason.NOT_PERMITTED, BOB, GrantAccess(terms(1, patient=CAROL.address)))
    passed_on = DelegatePowers(ALICE.address, STRANGER.address, ("grant",), END_MS)
    refuse(state, RejectionReason.NOT_PERMITTED, BOB, passed_on)
    guardians = AppointGuardians(ALICE.address, tuple(sorted((BOB.address, CAROL.address))), 2, backup_digest())
    refuse(state, RejectionReason.NOT_PERMITTED, BOB, guardians)


def test_a_delegate_who_changed_keys_acts_with_the_new_one_only() -> None:
    state = world()
    delegate(state, BOB, "grant")
    new_key = testing.key(31)
    keyblock = next_keyblock(testing.patient_keyblock(BOB, HOSPITAL.address, 21), new_key, 31)
    act(state, BOB, change_keys(CHAIN, keyblock, new_key))
    state.put(ACCOUNTS, BOB.address, Account(1, 10**6))  # such as the fees of a keyblock mined with the old key
    refuse(state, RejectionReason.NOT_PERMITTED, BOB, GrantAccess(TERMS))
    act(state, new_key, GrantAccess(TERMS))
    assert granted(state).verifying_key == new_key.public_key


# ---------------------------------------------------------------- revoking and deleting


def test_a_revocation_is_for_good_and_every_proxy_owes_a_deletion() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    act(state, ALICE, RevokeAccess(ID), height=HEIGHT + 5)
    assert granted(state).revoked_height == HEIGHT + 5
    assert [owed(state, proxy) for proxy in PROXIES] == [True, True, True, False]
    assert "revoked at height 15" in refuse(state, RejectionReason.GRANT_REVOKED, ALICE, RevokeAccess(ID))


def test_a_grant_that_is_over_can_still_be_revoked_so_that_deletions_are_owed() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    act(state, PROXIES[0], ConfirmDeletion(ID), time_ms=END_MS)
    act(state, ALICE, RevokeAccess(ID), time_ms=END_MS + 1)
    assert [owed(state, proxy) for proxy in PROXIES] == [False, True, True, False]


@pytest.mark.parametrize("sender", [HOSPITAL, CLINIC, BOB, STRANGER, PROXIES[0]])
def test_nobody_else_revokes(sender: PrivateKey) -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    refuse(state, RejectionReason.NOT_PERMITTED, sender, RevokeAccess(ID))


def test_what_was_never_granted_is_neither_revoked_nor_deleted() -> None:
    state = world()
    refuse(state, RejectionReason.GRANT_UNKNOWN, ALICE, RevokeAccess(bytes(32)))
    refuse(state, RejectionReason.GRANT_UNKNOWN, PROXIES[0], ConfirmDeletion(bytes(32)))


def test_each_proxy_confirms_once_and_is_done() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    act(state, ALICE, RevokeAccess(ID))
    act(state, PROXIES[1], ConfirmDeletion(ID), height=HEIGHT + 7)
    assert granted(state).deletions == (0, HEIGHT + 7, 0)
    assert [owed(state, proxy) for proxy in PROXIES[:3]] == [True, False, True]
    assert [listed(state, proxy) for proxy in PROXIES[:3]] == [True, False, True]
    refuse(state, RejectionReason.ALREADY_CONFIRMED, PROXIES[1], ConfirmDeletion(ID))
    act(state, PROXIES[0], ConfirmDeletion(ID))
    act(state, PROXIES[2], ConfirmDeletion(ID))
    assert granted(state).deletions == (HEIGHT, HEIGHT + 7, HEIGHT)
    assert not any(owed(state, proxy) or listed(state, proxy) for proxy in PROXIES)


def test_only_proxies_of_the_grant_confirm_and_only_after_its_end() -> None:
    state = world()
    act(state, ALICE, GrantAccess(TERMS))
    refuse(state, RejectionReason.GRANT_NOT_REVOKED, PROXIES[0], ConfirmDeletion(ID))
    refuse(state, RejectionReason.GRANT_NOT_REVOKED, PROXIES[0], ConfirmDeletion(ID), time_ms=END_MS - 1)
    act(state, PROXIES[0], ConfirmDeletion(ID), time_ms=END_MS)
    assert not listed(state, PROXIES[0])
    act(state, ALICE, RevokeAccess(ID))
    for stranger in (PROXIES[3], CLINIC, HOSPITAL, STRANGER, ALICE):
        refuse(state, RejectionReason.NOT_A_PROXY, stranger, ConfirmDeletion(ID))


# ---------------------------------------------------------------- any order


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["grant", "revoke", "confirm"]), st.integers(0, 3), st.integers(0, 3)), max_size=25
    )
)
def test_indexes_always_say_what_the_grants_say(steps: list[tuple[str, int, int]]) -> None:
    state = world(0)
    for kind, number, place in steps:
        identifier = grant_id(terms(number))
        before = state.get(GRANTS, identifier)
        if kind == "grant" and before is None:
            act(state, ALICE, GrantAccess(terms(number)))
        elif kind == "revoke" and before is not None and not before.revoked_height:
            act(state, ALICE, RevokeAccess(identifier))
        elif kind == "confirm" and before is not None and before.revoked_height and not (*before.deletions, 1)[place]:
            act(state, PROXIES[place], ConfirmDeletion(identifier))
    grants = dict(state.entries(GRANTS))
    assert {entry.grant_id for _, entry in state.entries(PATIENT_GRANTS)} == grants.keys()
    assert sorted(grant.number for grant in grants.values()) == list(range(len(grants)))
    held = {
        proxy + name
        for name, grant in grants.items()
        for proxy, deleted in zip(grant.terms.proxies, grant.deletions, strict=True)
        if not deleted
    }
    assert {key for key, _ in state.entries(PROXY_GRANTS)} == held
    revoked = {name for name, grant in grants.items() if grant.revoked_height}
    assert {key for key, _ in state.entries(DELETIONS_OWED)} == {key for key in held if key[20:] in revoked}


# ---------------------------------------------------------------- terms


def test_a_grant_covers_all_records_or_those_it_names_within_its_time() -> None:
    chosen = terms(all_records=False, records=(0, 5))
    assert [covers(chosen, sequence) for sequence in (0, 1, 5, 6)] == [True, False, True, False]
    assert covers(TERMS, 2**63 - 1)
    assert [is_within(chosen, time) for time in (chosen.from_ms - 1, chosen.from_ms, END_MS - 1, END_MS)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_grant_is_named_by_all_of_its_terms() -> None:
    changed = {
        "patient": BOB.address,
        "generation": 1,
        "grantee": HOSPITAL.address,
        "receiving_key": testing.encryption_key(5),
        "all_records": False,
        "records": (1,),
        "purposes": ("ETREAT",),
        "from_ms": 0,
        "until_ms": END_MS + 1,
        "threshold": 3,
        "proxies": tuple(proxy.address for proxy in PROXIES[1:]),
        "fragment_digests": tuple(fragment_digest(bytes([number])) for number in range(3)),
        "emergency_approvals": 2,
    }
    assert set(changed) == set(GrantTerms.__struct_fields__)
    names = {grant_id(msgspec.structs.replace(TERMS, **{name: value})) for name, value in changed.items()}
    assert len(names | {ID}) == len(changed) + 1
