# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever patients, guardians, proxies and strangers do, in any order: credits are conserved (I7), and what is refused changes nothing."""

from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import (
    AppointGuardians,
    ApproveEmergency,
    AuthoriseAuthor,
    Body,
    ConfirmDeletion,
    ConfirmErasure,
    DelegatePowers,
    GrantAccess,
    OpenEmergency,
    ReviewEmergency,
    RevokeAccess,
    Transfer,
)
from ledger.crypto.keys import PrivateKey, address_of
from ledger.crypto.mountain_range import is_complete
from ledger.errors import Rejection
from ledger.patients import Patient, record_id
from ledger.sharing import Grant, grant_id
from ledger.state import (
    ACCOUNTS,
    EMERGENCIES,
    GRANTS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    LABELS,
    PATIENT_GRANTS,
    PATIENTS,
    RECORDS,
    State,
    numbered_key,
)
from ledger.testing_patients import backup_digest, change_keys, grant_terms, label, next_keyblock, permission
from tests.ledger.acts_kit import (
    ALICE,
    BOB,
    CAROL,
    CHAIN,
    CLINIC,
    HEIGHT,
    HOSPITAL,
    KEYBLOCK,
    NOW_MS,
    PROXIES,
    STRANGER,
    act,
    credits_in,
    world,
)
from tests.ledger.acts_kit import RECORDS as BODIES

SPARE = [testing.key(number) for number in range(40, 46)]
"""Keys that patients may change to."""
EVERYBODY = [HOSPITAL, CLINIC, *PROXIES, ALICE, BOB, CAROL, STRANGER, *SPARE]
BY_KEY = {key.public_key: key for key in EVERYBODY}


def patient_of(state: State, n: int) -> Patient:
    patient = state.get(PATIENTS, (ALICE, BOB, CAROL)[n % 3].address)
    assert patient is not None
    return patient


def holder_of(patient: Patient) -> PrivateKey:
    return BY_KEY[patient.keyblock.signing_key]


def some_grant(state: State, n: int) -> tuple[bytes, Grant] | None:
    grants = list(state.entries(GRANTS))
    return grants[n % len(grants)] if grants else None


def transfer(_state: State, n: int) -> tuple[PrivateKey, Body]:
    return EVERYBODY[n % len(EVERYBODY)], Transfer(EVERYBODY[n // 7 % len(EVERYBODY)].address, n * 1_000)


def new_keys(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    spare = SPARE[n // 3 % len(SPARE)]
    body = change_keys(CHAIN, next_keyblock(patient.keyblock, spare, 100 + n % 50), spare)
    return holder_of(patient), body


def recovery(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    spare = SPARE[n // 3 % len(SPARE)]
    guardians = [CLINIC, PROXIES[0], holder_of(patient_of(state, n + 1))][: 1 + n % 3]
    body = change_keys(CHAIN, next_keyblock(patient.keyblock, spare, 100 + n % 50), spare, guardians)
    return (STRANGER, spare, holder_of(patient))[n % 3], body


def guardians(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    chosen = {CLINIC.address, PROXIES[0].address, patient_of(state, n + 1).keyblock.patient}
    return holder_of(patient), AppointGuardians(patient.keyblock.patient, tuple(sorted(chosen)), 2, backup_digest(n))


def delegation(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    delegate = EVERYBODY[n % len(EVERYBODY)].address
    return holder_of(patient), DelegatePowers(patient.keyblock.patient, delegate, ("grant", "label"), NOW_MS + 4 * n)


def author(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    body = AuthoriseAuthor(patient.keyblock.patient, CLINIC.address, allowed=n % 2 == 0)
    return (holder_of(patient), STRANGER)[n % 5 == 0], body


def grant(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    terms = grant_terms(
        patient.keyblock.patient,
        CLINIC.address,
        testing.encryption_key(1),
        [proxy.address for proxy in PROXIES[: 2 + n % 3]],
        number=n % 9,
        until_ms=NOW_MS + n * 5,
    )
    return holder_of(patient), GrantAccess(msgspec.structs.replace(terms, emergency_approvals=n % 3))


def revocation(state: State, n: int) -> tuple[PrivateKey, Body] | None:
    found = some_grant(state, n)
    return found and (holder_of(patient_of(state, n)), RevokeAccess(found[0]))


def deletion(state: State, n: int) -> tuple[PrivateKey, Body] | None:
    found = some_grant(state, n)
    return found and (PROXIES[n % 4], ConfirmDeletion(found[0]))


def emergency(state: State, n: int) -> tuple[PrivateKey, Body] | None:
    found = some_grant(state, n)
    return found and (CLINIC, OpenEmergency(found[0], "other", NOW_MS + 4 * n))


def some_emergency(state: State, n: int) -> tuple[Patient, int] | None:
    found = [key for key, _ in state.entries(EMERGENCIES)]
    if not found:
        return None
    key = found[n % len(found)]
    patient = state.get(PATIENTS, key[:20])
    assert patient is not None
    return patient, int.from_bytes(key[20:], "big")


def approval(state: State, n: int) -> tuple[PrivateKey, Body] | None:
    found = some_emergency(state, n)
    return found and (PROXIES[n // 5 % 4], ApproveEmergency(found[0].keyblock.patient, found[1]))


def review(state: State, n: int) -> tuple[PrivateKey, Body] | None:
    found = some_emergency(state, n)
    if found is None:
        return None
    patient, number = found
    return holder_of(patient), ReviewEmergency(patient.keyblock.patient, number, is_justified=n % 2 == 0)


def labelling(state: State, n: int) -> tuple[PrivateKey, Body]:
    record = state.get(RECORDS, numbered_key(ALICE.address, n % 3))
    assert record is not None
    permitted = permission(BODIES[n % 3], HOSPITAL.address, number=record.label_count)
    body = msgspec.structs.replace(BODIES[n % 3], envelope=record.envelope)
    return HOSPITAL, label(CHAIN, body, KEYBLOCK, msgspec.structs.replace(permitted, may_erase=n % 2 == 0), ALICE)


def erasure(_state: State, n: int) -> tuple[PrivateKey, Body]:
    return EVERYBODY[n % 6], ConfirmErasure(ALICE.address, n % 3)


def record(state: State, n: int) -> tuple[PrivateKey, Body]:
    patient = patient_of(state, n)
    author_ = (HOSPITAL, CLINIC)[n % 2].address
    body = testing.record_body(author_, patient.keyblock, patient.record_count, patient.last_record, content=n % 4)
    return (HOSPITAL, CLINIC)[n % 2], body


KINDS: tuple[Callable[[State, int], tuple[PrivateKey, Body] | None], ...] = (
    *(transfer, new_keys, recovery, guardians, delegation, author, grant, revocation, deletion),
    *(emergency, emergency, approval, approval, approval, review, labelling, erasure, record),
)


@settings(max_examples=120)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2_000)), max_size=40))
def test_i7_credits_are_conserved_and_what_is_refused_changes_nothing(
    steps: list[tuple[Callable[[State, int], tuple[PrivateKey, Body] | None], int]],
) -> None:
    state = world()
    total, fees = credits_in(state), 0
    for kind, n in steps:
        step = kind(state, n)
        if step is None:
            continue
        sender, body = step
        before, account = state.changes(), state.account(sender.address)
        try:
            assert act(state, sender, body, time_ms=NOW_MS + 3 * n, height=HEIGHT + n % 3) is None
        except Rejection:
            assert state.changes() == before
            continue
        fees += testing.FEE_MICROCREDIT
        assert state.account(sender.address).nonce == account.nonce + 1
        assert credits_in(state) == total - fees
    _check_consistency(state)


def _check_consistency(state: State) -> None:
    for _, account in state.entries(ACCOUNTS):
        assert account.balance_microcredit >= 0
    for address, patient in state.entries(PATIENTS):
        generations = [entry for key, entry in state.entries(KEY_GENERATIONS) if key[:20] == address]
        assert [entry.keyblock.generation for entry in generations] == list(range(len(generations)))
        assert generations[-1].keyblock == patient.keyblock
        links = [entry.keyblock.previous for entry in generations]
        assert links == [bytes(32), *(entry.keyblock_hash for entry in generations[:-1])]
        held = {key for key, holder in state.entries(KEY_HOLDERS) if holder.patient == address}
        assert held == {address_of(entry.keyblock.signing_key) for entry in generations}
        records = [entry for key, entry in state.entries(RECORDS) if key[:20] == address]
        assert is_complete(patient.record_peaks, patient.record_count, [entry.record_id for entry in records])
        for entry in records:
            keyblock = generations[entry.generation]
            assert entry.microblock.patient_keyblock == keyblock.keyblock_hash
            assert entry.record_id == record_id(entry.microblock)
        assert patient.grant_count == sum(key[:20] == address for key, _ in state.entries(PATIENT_GRANTS))
        # A key that was replaced holds nothing that a thief could spend.
        for former in held - {address_of(patient.keyblock.signing_key)}:
            assert state.account(former).balance_microcredit == 0
    for key, entry in state.entries(RECORDS):
        labels = [found for name, found in state.entries(LABELS) if name[:28] == key]
        assert entry.label_count == len(labels)
        if labels:
            assert entry.envelope == labels[-1].envelope
    for identifier, grant_ in state.entries(GRANTS):
        assert identifier == grant_id(grant_.terms)
