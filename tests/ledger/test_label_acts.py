# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels: only with the patient's permission for exactly this label, and nothing but the label changes (I11)."""

from functools import partial

import msgspec
import pytest

from ledger import queries, testing
from ledger.bodies import ConfirmErasure, DelegatePowers, LabelRecord
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.errors import RejectionReason
from ledger.genesis import chain_id
from ledger.guardianship import POWERS
from ledger.labels import Erasure, Label, LabelPermission, labelled, permission_digest
from ledger.memory_store import MemoryStore
from ledger.patients import Record, RecordEnvelope, record_id
from ledger.state import ERASURES, LABELS, PATIENTS, RECORDS, State, numbered_key
from ledger.testing_patients import change_keys, label, next_keyblock, permission, relabelled
from tests.ledger.acts_kit import (
    ALICE,
    BOB,
    CHAIN,
    CLINIC,
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
from tests.ledger.acts_kit import RECORDS as BODIES

EXPIRY = testing.EXPIRY_HEIGHT
FIRST = BODIES[0]
PERMITTED = permission(FIRST, HOSPITAL.address)


def permit(**changes: object) -> LabelPermission:
    return msgspec.structs.replace(PERMITTED, **changes)


def body(permitted: LabelPermission = PERMITTED, signer: PrivateKey = ALICE, **changes: object) -> LabelRecord:
    return msgspec.structs.replace(label(CHAIN, FIRST, KEYBLOCK, permitted, signer), **changes)


def record_at(state: State, sequence: int = 0) -> Record:
    record = state.get(RECORDS, numbered_key(ALICE.address, sequence))
    assert record is not None
    return record


def envelope(**changes: object) -> RecordEnvelope:
    return msgspec.structs.replace(labelled(FIRST.envelope, PERMITTED), **changes)


# ---------------------------------------------------------------- labelling


def test_a_label_changes_status_label_and_replacement_and_is_kept_with_its_permission() -> None:
    state = world()
    made = body()
    act(state, HOSPITAL, made, height=HEIGHT + 1)
    assert state.get(LABELS, numbered_key(ALICE.address, 0, 0)) == Label(
        permission=PERMITTED,
        signer=ALICE.public_key,
        signature=made.signature,
        previous=FIRST.envelope,
        envelope=made.envelope,
        proof=made.proof,
        institution=HOSPITAL.address,
        committed_height=HEIGHT + 1,
        committed_timestamp_ms=NOW_MS,
    )
    record = record_at(state)
    assert (record.envelope.status, record.envelope.label) == ("entered-in-error", "misdiagnosis")
    assert (record.label_count, record.may_erase) == (1, False)


def test_i11_a_label_changes_nothing_else_of_the_record_nor_of_the_chain() -> None:
    state = world()
    before, patient_before = record_at(state), state.get(PATIENTS, ALICE.address)
    written = dict(state.changes())
    act(state, HOSPITAL, body(permit(may_erase=True)))
    after = record_at(state)
    assert after == msgspec.structs.replace(before, envelope=after.envelope, label_count=1, may_erase=True)
    assert after.record_id == record_id(after.microblock) == before.record_id
    assert state.get(PATIENTS, ALICE.address) == patient_before
    changed = {key for key, value in state.changes() if written.get(key) != value}
    place = numbered_key(ALICE.address, 0)
    assert changed == {b"r" + place, b"l" + place + bytes(8), b"a" + HOSPITAL.address}


def test_i11_a_label_leaves_every_block_hash_and_the_records_after_it() -> None:
    store = MemoryStore(testing.genesis())
    heights = []
    chain = chain_id(store.genesis)
    keyblock = testing.patient_keyblock(ALICE, HOSPITAL.address)
    records = testing.record_chain(HOSPITAL.address, keyblock, 3)
    testing.commit(
        store,
        [testing.register_institution(chain, HOSPITAL), testing.register_patient(chain, HOSPITAL, ALICE, 1)],
    )
    heights.append(store.head().block_hash)
    testing.commit(store, [testing.signed(chain, HOSPITAL, item, 2 + number) for number, item in enumerate(records)])
    heights.append(store.head().block_hash)
    state = State(store)
    before = [entry for _, entry in state.entries(RECORDS)]
    permitted = permission(records[1], HOSPITAL.address)
    act(state, HOSPITAL, label(chain, records[1], keyblock, permitted, ALICE), height=4)
    for key, value in state.changes():
        store._change(key, value)
    after = list(queries.patient_records(store, ALICE.address))
    assert [entry.record_id for entry in after] == [entry.record_id for entry in before]
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1].microblock == before[1].microblock
    assert [store.block_hash(height) for height in (1, 2)] == heights


def test_a_label_is_superseded_by_a_new_permission_only_and_the_history_stays() -> None:
    state = world()
    act(state, HOSPITAL, body())
    second = permit(number=1, status="amended", label="confirmed after all", institution=CLINIC.address)
    labelled_once = relabelled(FIRST, PERMITTED)
    act(state, CLINIC, label(CHAIN, labelled_once, KEYBLOCK, second, ALICE))
    record = record_at(state)
    assert (record.label_count, record.envelope.status) == (2, "amended")
    history = [state.get(LABELS, numbered_key(ALICE.address, 0, number)) for number in (0, 1, 2)]
    assert [item is None for item in history] == [False, False, True]
    assert history[0] is not None
    assert history[1] is not None
    assert history[1].previous == history[0].envelope
    assert history[0].previous == FIRST.envelope


# ---------------------------------------------------------------- without permission


@pytest.mark.parametrize("signer", [HOSPITAL, CLINIC, BOB, STRANGER])
def test_an_institution_cannot_label_without_the_patients_signature(signer: PrivateKey) -> None:
    refuse(world(), RejectionReason.NOT_PERMITTED, HOSPITAL, body(signer=signer))


@pytest.mark.parametrize("sender", [CLINIC, ALICE, STRANGER])
def test_a_permission_serves_the_institution_that_it_names(sender: PrivateKey) -> None:
    refuse(world(), RejectionReason.SENDER_MISMATCH, sender, body())


def test_only_a_registered_institution_labels() -> None:
    refuse(world(), RejectionReason.INSTITUTION_UNKNOWN, STRANGER, body(permit(institution=STRANGER.address)))


def test_a_permission_expires_with_its_height() -> None:
    state = world()
    refuse(state, RejectionReason.PERMISSION_EXPIRED, HOSPITAL, body(), height=EXPIRY + 1)
    act(state, HOSPITAL, body(), height=EXPIRY)


def test_a_permission_serves_once() -> None:
    state = world()
    act(state, HOSPITAL, body())
    assert "the record's next is 1" in refuse(state, RejectionReason.PERMISSION_USED, HOSPITAL, body())
    again = label(CHAIN, relabelled(FIRST, PERMITTED), KEYBLOCK, PERMITTED, ALICE)
    refuse(state, RejectionReason.PERMISSION_USED, HOSPITAL, again)


def test_a_permission_made_before_another_label_is_void_after_it() -> None:
    state = world()
    other = permit(institution=CLINIC.address, label="wrong patient")
    act(state, CLINIC, body(other))
    refuse(state, RejectionReason.PERMISSION_USED, HOSPITAL, body())
    refuse(world(), RejectionReason.PERMISSION_USED, HOSPITAL, body(permit(number=1)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patient": STRANGER.address}, RejectionReason.PATIENT_UNKNOWN),
        ({"patient": BOB.address}, RejectionReason.NOT_PERMITTED),
        ({"sequence": 1}, RejectionReason.RECORD_UNKNOWN),
        ({"sequence": 3}, RejectionReason.RECORD_UNKNOWN),
        ({"record": record_id(BODIES[1].microblock)}, RejectionReason.RECORD_UNKNOWN),
    ],
)
def test_a_permission_for_another_record_is_none_for_this_one(
    changes: dict[str, object], reason: RejectionReason
) -> None:
    refuse(world(), reason, HOSPITAL, body(permit(**changes)))


def test_another_records_permission_with_this_ones_proof_is_refused() -> None:
    other = permission(BODIES[1], HOSPITAL.address)
    refuse(world(), RejectionReason.WRONG_PROOF, HOSPITAL, body(other))


# ---------------------------------------------------------------- proofs for another statement


def test_a_proof_about_another_hash_or_key_says_nothing_of_the_record() -> None:
    state = world()
    for change in (
        {"chameleon_hash": BODIES[1].microblock.chameleon_hash},
        {"chameleon_hash": bytes(32)},
        {"chameleon_key": keyblock_of(BOB, 21).chameleon_key},
        {"chameleon_key": bytes(32)},
    ):
        refuse(state, RejectionReason.WRONG_PROOF, HOSPITAL, body(PERMITTED, ALICE, **change))


@pytest.mark.parametrize(
    "changes",
    [
        {"blob_id": bytes(32)},
        {"capsule_digest": bytes(32)},
        {"blob_bytes": 1},
        {"author": CLINIC.address},
        {"status": "final"},
        {"status": "amended"},
        {"label": "something else"},
        {"label": ""},
        {"replaced_by": bytes(32)},
    ],
)
def test_an_envelope_that_is_not_what_was_permitted_is_refused(changes: dict[str, object]) -> None:
    refuse(world(), RejectionReason.NOT_PERMITTED, HOSPITAL, body(envelope=envelope(**changes)))


def test_a_second_label_cannot_bring_back_the_first_envelope() -> None:
    state = world()
    act(state, HOSPITAL, body())
    second = permit(number=1, status="amended", label="amended")
    stale = msgspec.structs.replace(labelled(FIRST.envelope, second), blob_bytes=FIRST.envelope.blob_bytes + 1)
    refuse(
        state,
        RejectionReason.NOT_PERMITTED,
        HOSPITAL,
        msgspec.structs.replace(label(CHAIN, FIRST, KEYBLOCK, second, ALICE), envelope=stale),
    )


# ---------------------------------------------------------------- replacements


def test_a_replacement_is_another_record_of_the_same_patient() -> None:
    state = world()
    good = permit(replaced_by=record_id(BODIES[2].microblock), replacement_sequence=2)
    for wrong in (
        {"replacement_sequence": 1},
        {"replacement_sequence": 3},
        {"replacement_sequence": 2**63 - 1},
        {"replaced_by": bytes(32)},
        {"replaced_by": record_id(BODIES[3].microblock), "replacement_sequence": 3},
    ):
        refuse(state, RejectionReason.RECORD_UNKNOWN, HOSPITAL, body(msgspec.structs.replace(good, **wrong)))
    act(state, HOSPITAL, body(good))
    assert record_at(state).envelope.replaced_by == record_id(BODIES[2].microblock)


# ---------------------------------------------------------------- delegates and key generations


def test_a_delegate_with_the_power_permits_and_others_do_not() -> None:
    state = world()
    delegation = partial(DelegatePowers, ALICE.address, BOB.address, until_ms=NOW_MS + 10)
    act(state, ALICE, delegation(tuple(power for power in POWERS if power != "label")))
    refuse(state, RejectionReason.NOT_PERMITTED, HOSPITAL, body(signer=BOB))
    act(state, ALICE, delegation(("label",)))
    refuse(state, RejectionReason.NOT_PERMITTED, HOSPITAL, body(signer=BOB), time_ms=NOW_MS + 10)
    act(state, HOSPITAL, body(signer=BOB), time_ms=NOW_MS + 9)
    kept = state.get(LABELS, numbered_key(ALICE.address, 0, 0))
    assert kept is not None
    assert kept.signer == BOB.public_key


def test_a_change_of_keys_voids_permissions_and_the_records_key_stays_that_of_its_generation() -> None:
    state = world()
    new_key = testing.key(30)
    second = next_keyblock(KEYBLOCK, new_key, 30)
    act(state, ALICE, change_keys(CHAIN, second, new_key))
    refuse(state, RejectionReason.NOT_PERMITTED, HOSPITAL, body())
    wrong = body(signer=new_key, chameleon_key=second.chameleon_key)
    assert "record's generation" in refuse(state, RejectionReason.WRONG_PROOF, HOSPITAL, wrong)
    act(state, HOSPITAL, body(signer=new_key))


# ---------------------------------------------------------------- erasure


def test_erasure_is_confirmed_by_each_institution_once_after_a_label_that_allows_it() -> None:
    state = world()
    confirm = ConfirmErasure(ALICE.address, 0)
    refuse(state, RejectionReason.NOT_LABELLED, HOSPITAL, confirm)
    act(state, HOSPITAL, body())
    refuse(state, RejectionReason.NOT_PERMITTED, HOSPITAL, confirm)
    second = permit(number=1, may_erase=True)
    act(state, HOSPITAL, label(CHAIN, relabelled(FIRST, PERMITTED), KEYBLOCK, second, ALICE))
    act(state, HOSPITAL, confirm)
    act(state, PROXIES[0], confirm, height=HEIGHT + 2)
    key = numbered_key(ALICE.address, 0)
    assert state.get(ERASURES, key + PROXIES[0].address) == Erasure(HEIGHT + 2)
    assert state.get(ERASURES, key + HOSPITAL.address) == Erasure(HEIGHT)
    refuse(state, RejectionReason.ALREADY_CONFIRMED, HOSPITAL, confirm)


def test_what_a_label_allowed_to_erase_a_later_one_does_not_forbid() -> None:
    state = world()
    first = permit(may_erase=True)
    act(state, HOSPITAL, body(first))
    act(state, HOSPITAL, label(CHAIN, relabelled(FIRST, first), KEYBLOCK, permit(number=1), ALICE))
    act(state, CLINIC, ConfirmErasure(ALICE.address, 0))


def test_only_institutions_confirm_and_only_of_records_that_are_there() -> None:
    state = world()
    act(state, HOSPITAL, body(permit(may_erase=True)))
    refuse(state, RejectionReason.INSTITUTION_UNKNOWN, ALICE, ConfirmErasure(ALICE.address, 0))
    refuse(state, RejectionReason.RECORD_UNKNOWN, HOSPITAL, ConfirmErasure(ALICE.address, 3))
    refuse(state, RejectionReason.RECORD_UNKNOWN, HOSPITAL, ConfirmErasure(STRANGER.address, 0))


# ---------------------------------------------------------------- what is signed


def test_a_permission_is_signed_whole_and_for_one_chain() -> None:
    changed = {
        "patient": BOB.address,
        "record": bytes(32),
        "sequence": 1,
        "number": 1,
        "institution": CLINIC.address,
        "status": "amended",
        "label": "other",
        "replaced_by": bytes(32),
        "replacement_sequence": 1,
        "may_erase": True,
        "expiry_height": EXPIRY + 1,
    }
    assert set(changed) == set(LabelPermission.__struct_fields__)
    digests = {permission_digest(CHAIN, permit(**{name: value})) for name, value in changed.items()}
    digests |= {permission_digest(CHAIN, PERMITTED), permission_digest(bytes(32), PERMITTED)}
    assert len(digests) == len(changed) + 2
    assert len(encode(PERMITTED)) < 200
