# SPDX-License-Identifier: GPL-3.0-or-later
"""Guardians, new keys and delegates: what keeps a lost or stolen key from being the end, and from being misused."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import (
    AppointGuardians,
    AuthoriseAuthor,
    Body,
    ChangeKeys,
    DelegatePowers,
    RegisterInstitution,
    RegisterPatient,
    Transfer,
)
from ledger.crypto.keys import PrivateKey
from ledger.errors import RejectionReason
from ledger.guardianship import Delegation, Guardians, Power
from ledger.patients import (
    KeyGeneration,
    KeyHolder,
    Patient,
    PatientKeyblock,
    patient_keyblock_hash,
    patient_keyblock_signing_digest,
    record_id,
)
from ledger.state import (
    ACCOUNTS,
    DELEGATIONS,
    GUARDIANS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    PATIENTS,
    RECORDS,
    Account,
    State,
    numbered_key,
)
from ledger.testing import FEE_MICROCREDIT as FEE
from ledger.testing_patients import backup_digest, change_keys, next_keyblock
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
    credits_in,
    keyblock_of,
    refuse,
    world,
)
from tests.ledger.acts_kit import RECORDS as BODIES

NEW, NEWER = testing.key(30), testing.key(31)
SECOND = next_keyblock(KEYBLOCK, NEW, 30)
THIRD = next_keyblock(SECOND, NEWER, 31)
LATER_MS = NOW_MS + 1_000_000
ALLOWANCE = 10**9


def appoint(*guardians: PrivateKey, needed: int = 2, patient: PrivateKey = ALICE) -> AppointGuardians:
    return AppointGuardians(
        patient.address, tuple(sorted(guardian.address for guardian in guardians)), needed, backup_digest()
    )


def guarded(needed: int = 2) -> State:
    state = world()
    act(state, ALICE, appoint(BOB, CAROL, CLINIC, needed=needed))
    return state


def change(*guardians: PrivateKey, keyblock: PatientKeyblock = SECOND, signing: PrivateKey = NEW) -> ChangeKeys:
    return change_keys(CHAIN, keyblock, signing, guardians)


def alice(state: State) -> Patient:
    patient = state.get(PATIENTS, ALICE.address)
    assert patient is not None
    return patient


# ---------------------------------------------------------------- guardians


def test_guardians_are_chosen_and_chosen_anew_by_the_patient() -> None:
    state = guarded()
    expected = tuple(sorted((BOB.address, CAROL.address, CLINIC.address)))
    assert state.get(GUARDIANS, ALICE.address) == Guardians(expected, 2, backup_digest(), HEIGHT)
    act(state, ALICE, appoint(BOB, PROXIES[0]), height=HEIGHT + 1)
    found = state.get(GUARDIANS, ALICE.address)
    assert found is not None
    assert (found.guardians, found.changed_height) == (tuple(sorted((BOB.address, PROXIES[0].address))), HEIGHT + 1)


@pytest.mark.parametrize("sender", [HOSPITAL, BOB, STRANGER])
def test_nobody_else_chooses_guardians(sender: PrivateKey) -> None:
    refuse(world(), RejectionReason.NOT_PERMITTED, sender, appoint(CAROL, CLINIC))


@pytest.mark.parametrize("guardian", [STRANGER, FRESH_INSTITUTION, NEW])
def test_a_guardian_without_a_registered_key_could_not_hold_a_share(guardian: PrivateKey) -> None:
    refuse(world(), RejectionReason.PARTY_UNKNOWN, ALICE, appoint(BOB, guardian))


def test_who_is_no_patient_has_no_guardians() -> None:
    refuse(world(), RejectionReason.PATIENT_UNKNOWN, STRANGER, appoint(BOB, CAROL, patient=STRANGER))


# ---------------------------------------------------------------- new keys by the old ones


def test_new_keys_make_a_new_generation_and_the_identifier_stays() -> None:
    state = world()
    body = change()
    act(state, ALICE, body, height=HEIGHT + 3)
    patient = alice(state)
    digest = patient_keyblock_hash(SECOND)
    assert (patient.keyblock, patient.keyblock_hash, patient.registered_height) == (SECOND, digest, HEIGHT)
    assert state.get(KEY_GENERATIONS, numbered_key(ALICE.address, 1)) == KeyGeneration(
        SECOND, digest, body.patient_signature, HEIGHT + 3
    )
    first = state.get(KEY_GENERATIONS, numbered_key(ALICE.address, 0))
    assert first is not None
    assert first.keyblock == KEYBLOCK
    assert state.get(KEY_HOLDERS, ALICE.address) == KeyHolder(ALICE.address, 0)
    assert state.get(KEY_HOLDERS, NEW.address) == KeyHolder(ALICE.address, 1)
    assert state.get(PATIENTS, NEW.address) is None


def test_the_whole_balance_moves_to_the_new_key() -> None:
    state = world()
    act(state, STRANGER, Transfer(NEW.address, 7))
    before = credits_in(state)
    act(state, ALICE, change())
    assert state.account(ALICE.address) == Account(1, 0)
    assert state.account(NEW.address) == Account(0, ALLOWANCE - FEE + 7)
    assert credits_in(state) == before - FEE
    act(state, NEW, Transfer(STRANGER.address, 5))
    refuse(state, RejectionReason.INSUFFICIENT_BALANCE, ALICE, Transfer(STRANGER.address, 0))


def test_credits_for_the_identifier_or_a_former_key_reach_the_newest_key() -> None:
    state = world()
    act(state, ALICE, change())
    act(state, NEW, change(keyblock=THIRD, signing=NEWER))
    held = state.account(NEWER.address).balance_microcredit
    for recipient in (ALICE, NEW, NEWER):
        act(state, STRANGER, Transfer(recipient.address, 100))
    assert state.account(NEWER.address).balance_microcredit == held + 300
    assert (state.account(ALICE.address), state.account(NEW.address)) == (Account(1, 0), Account(1, 0))
    act(state, NEWER, Transfer(ALICE.address, 100))
    assert state.account(NEWER.address) == Account(1, held + 300 - FEE)


def test_the_chain_of_records_goes_on_under_the_new_keys() -> None:
    state = world(2)
    act(state, ALICE, change())
    stale = BODIES[2]
    assert "encrypt the record to the newest key" in refuse(state, RejectionReason.WRONG_GENERATION, HOSPITAL, stale)
    follower = testing.record_body(HOSPITAL.address, SECOND, 2, record_id(BODIES[1].microblock), content=2)
    act(state, HOSPITAL, follower)
    generations = []
    for sequence in range(3):
        record = state.get(RECORDS, numbered_key(ALICE.address, sequence))
        assert record is not None
        generations.append(record.generation)
    assert generations == [0, 0, 1]
    assert alice(state).record_count == 3


def test_the_first_record_follows_the_newest_keyblock() -> None:
    state = world(0)
    act(state, ALICE, change())
    assert alice(state).last_record == patient_keyblock_hash(SECOND)
    refuse(state, RejectionReason.WRONG_GENERATION, HOSPITAL, BODIES[0])
    act(state, HOSPITAL, testing.record_body(HOSPITAL.address, SECOND))


def test_a_replaced_key_is_nobodys() -> None:
    state = world()
    act(state, ALICE, change())
    state.put(ACCOUNTS, ALICE.address, Account(1, 10**6))  # such as the fees of a keyblock mined with the old key
    bodies: tuple[Body, ...] = (
        AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=True),
        appoint(BOB, CAROL),
        DelegatePowers(ALICE.address, STRANGER.address, ("grant",), LATER_MS),
        change(keyblock=THIRD, signing=NEWER),
    )
    for body in bodies:
        refuse(state, RejectionReason.NOT_PERMITTED, ALICE, body)
        act(state, NEW, body)


def test_authorisations_and_delegations_outlive_a_change_of_keys() -> None:
    state = world()
    act(state, ALICE, AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=True))
    act(state, ALICE, DelegatePowers(ALICE.address, BOB.address, ("authorise",), LATER_MS))
    act(state, ALICE, change())
    act(state, CLINIC, testing.record_body(CLINIC.address, SECOND, 3, alice(state).last_record, content=3))
    act(state, BOB, AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=False))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"generation": 2}, RejectionReason.WRONG_GENERATION),
        ({"previous": bytes(32)}, RejectionReason.WRONG_GENERATION),
        ({"patient": STRANGER.address}, RejectionReason.PATIENT_UNKNOWN),
        ({"patient": NEW.address}, RejectionReason.PATIENT_UNKNOWN),
        ({"institution": CLINIC.address}, RejectionReason.SENDER_MISMATCH),
        ({"reencryption_key": KEYBLOCK.reencryption_key}, RejectionReason.KEY_IN_USE),
        ({"chameleon_key": KEYBLOCK.chameleon_key}, RejectionReason.KEY_IN_USE),
        ({"signing_key": ALICE.public_key}, RejectionReason.KEY_IN_USE),
        ({"signing_key": BOB.public_key}, RejectionReason.KEY_IN_USE),
        ({"signing_key": CLINIC.public_key}, RejectionReason.KEY_IN_USE),
    ],
)
def test_a_keyblock_that_does_not_follow_is_refused(fields: dict[str, object], reason: RejectionReason) -> None:
    body = ChangeKeys(msgspec.structs.replace(SECOND, **fields), bytes(64), ())
    refuse(world(), reason, ALICE, body)


def test_a_key_of_any_former_generation_stays_taken() -> None:
    state = world()
    act(state, ALICE, change())
    back = next_keyblock(SECOND, ALICE, 32)
    refuse(state, RejectionReason.KEY_IN_USE, NEW, change(keyblock=back, signing=ALICE))
    other = next_keyblock(keyblock_of(BOB, 21), NEW, 33)
    refuse(state, RejectionReason.KEY_IN_USE, BOB, change(keyblock=other, signing=NEW))
    again = testing.patient_keyblock(NEW, HOSPITAL.address, 34)
    consent = NEW.sign(patient_keyblock_signing_digest(CHAIN, again))
    refuse(state, RejectionReason.PATIENT_EXISTS, HOSPITAL, RegisterPatient(again, consent, 0))


def test_a_later_key_of_a_patient_becomes_no_institution() -> None:
    state = world()
    body = change_keys(CHAIN, next_keyblock(KEYBLOCK, FRESH_INSTITUTION, 30), FRESH_INSTITUTION)
    act(state, ALICE, body)
    refuse(
        state,
        RejectionReason.PATIENT_EXISTS,
        FRESH_INSTITUTION,
        RegisterInstitution("Late", "AT", testing.encryption_key(6)),
    )


@pytest.mark.parametrize("sender", [HOSPITAL, BOB, STRANGER])
def test_nobody_else_changes_keys_without_guardians(sender: PrivateKey) -> None:
    refuse(guarded(), RejectionReason.NOT_PERMITTED, sender, change())


# ---------------------------------------------------------------- recovery


@pytest.mark.parametrize("sender", [STRANGER, BOB, HOSPITAL])
def test_enough_guardians_give_new_keys_and_anybody_pays(sender: PrivateKey) -> None:
    state = guarded()
    before = credits_in(state)
    held = state.account(ALICE.address).balance_microcredit
    act(state, sender, change(BOB, CLINIC))
    assert alice(state).keyblock == SECOND
    assert state.account(NEW.address) == Account(0, held)
    assert state.account(ALICE.address) == Account(1, 0)
    assert credits_in(state) == before - FEE


def test_the_new_key_itself_may_pay_for_the_recovery() -> None:
    state = guarded()
    act(state, STRANGER, Transfer(NEW.address, 3 * FEE))
    held = state.account(ALICE.address).balance_microcredit
    act(state, NEW, change(CAROL, CLINIC))
    assert state.account(NEW.address) == Account(1, held + 2 * FEE)


def test_a_patient_without_credits_recovers_as_well() -> None:
    state = guarded()
    act(state, ALICE, Transfer(STRANGER.address, state.account(ALICE.address).balance_microcredit - FEE))
    act(state, STRANGER, change(BOB, CAROL))
    assert state.account(NEW.address) == Account(0, 0)


def test_too_few_foreign_or_unknown_guardians_give_nothing() -> None:
    state = guarded()
    assert "1 guardians approve; 2 are needed" in refuse(
        state, RejectionReason.TOO_FEW_APPROVALS, STRANGER, change(BOB)
    )
    for foreign in (HOSPITAL, STRANGER, ALICE, NEW):
        refuse(state, RejectionReason.NOT_A_GUARDIAN, STRANGER, change(BOB, CAROL, foreign))
    for needed in (2, 3):
        state = guarded(needed)
        refuse(state, RejectionReason.TOO_FEW_APPROVALS, STRANGER, change(*(BOB, CAROL, CLINIC)[: needed - 1]))
        act(state, STRANGER, change(*(BOB, CAROL, CLINIC)[:needed]))
    refuse(world(), RejectionReason.GUARDIANS_UNKNOWN, STRANGER, change(BOB, CAROL))


def test_even_the_patients_own_key_needs_all_approvals_that_it_brings_to_be_right() -> None:
    refuse(guarded(), RejectionReason.TOO_FEW_APPROVALS, ALICE, change(BOB))


def test_a_recovery_is_not_replayed() -> None:
    state = guarded()
    body = change(BOB, CAROL)
    act(state, STRANGER, body)
    refuse(state, RejectionReason.WRONG_GENERATION, STRANGER, body)
    act(state, NEW, change(keyblock=THIRD, signing=NEWER))
    refuse(state, RejectionReason.WRONG_GENERATION, STRANGER, body)


def test_former_guardians_have_no_say() -> None:
    state = guarded()
    act(state, ALICE, appoint(CLINIC, PROXIES[0]))
    refuse(state, RejectionReason.NOT_A_GUARDIAN, STRANGER, change(BOB, CAROL))
    act(state, STRANGER, change(CLINIC, PROXIES[0]))


def test_a_guardian_who_changed_keys_approves_with_the_new_one_only_and_counts_once() -> None:
    state = guarded()
    bobs = next_keyblock(keyblock_of(BOB, 21), NEWER, 31)
    act(state, BOB, change(keyblock=bobs, signing=NEWER))
    refuse(state, RejectionReason.NOT_A_GUARDIAN, STRANGER, change(BOB, CAROL))
    refuse(state, RejectionReason.NOT_A_GUARDIAN, STRANGER, change(BOB, NEWER))
    act(state, STRANGER, change(NEWER, CAROL))


def test_guardians_stay_after_a_recovery() -> None:
    state = guarded()
    act(state, STRANGER, change(BOB, CAROL))
    act(state, STRANGER, change(BOB, CLINIC, keyblock=THIRD, signing=NEWER))
    assert alice(state).keyblock.generation == 2


# ---------------------------------------------------------------- delegates


def test_a_delegation_is_kept_and_replaced() -> None:
    state = world()
    powers: tuple[Power, ...] = ("grant", "label")
    act(state, ALICE, DelegatePowers(ALICE.address, BOB.address, powers, LATER_MS))
    assert state.get(DELEGATIONS, ALICE.address + BOB.address) == Delegation(powers, LATER_MS, HEIGHT)
    act(state, ALICE, DelegatePowers(ALICE.address, BOB.address, (), 0), height=HEIGHT + 1)
    assert state.get(DELEGATIONS, ALICE.address + BOB.address) == Delegation((), 0, HEIGHT + 1)


@pytest.mark.parametrize("sender", [HOSPITAL, BOB, STRANGER])
def test_nobody_else_delegates(sender: PrivateKey) -> None:
    refuse(
        world(),
        RejectionReason.NOT_PERMITTED,
        sender,
        DelegatePowers(ALICE.address, sender.address, ("grant",), LATER_MS),
    )


def test_a_delegation_must_not_be_over_when_it_is_made() -> None:
    state = world()
    for until_ms in (0, NOW_MS):
        body = DelegatePowers(ALICE.address, BOB.address, ("grant",), until_ms)
        refuse(state, RejectionReason.WRONG_PERIOD, ALICE, body)
    act(state, ALICE, DelegatePowers(ALICE.address, BOB.address, ("grant",), NOW_MS + 1))


def test_a_delegate_is_named_by_its_identifier_and_never_by_a_later_key() -> None:
    state = world()
    bobs = next_keyblock(keyblock_of(BOB, 21), NEWER, 31)
    act(state, BOB, change(keyblock=bobs, signing=NEWER))
    detail = refuse(
        state,
        RejectionReason.PARTY_UNKNOWN,
        ALICE,
        DelegatePowers(ALICE.address, NEWER.address, ("authorise",), LATER_MS),
    )
    assert BOB.address.hex() in detail
    act(state, ALICE, DelegatePowers(ALICE.address, BOB.address, ("authorise",), LATER_MS))
    act(state, NEWER, AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=True))


@given(st.sets(st.sampled_from(["authorise", "grant", "label", "review", "revoke"])), st.integers(0, 2))
@settings(max_examples=40)
def test_authorising_takes_the_power_and_time(powers: set[Power], moment: int) -> None:
    state = world(0)
    if powers:
        act(state, ALICE, DelegatePowers(ALICE.address, STRANGER.address, tuple(sorted(powers)), NOW_MS + 1))
    body = AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=True)
    if "authorise" in powers and moment == 0:
        act(state, STRANGER, body)
    else:
        refuse(state, RejectionReason.NOT_PERMITTED, STRANGER, body, time_ms=NOW_MS + moment)
