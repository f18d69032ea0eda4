# SPDX-License-Identifier: GPL-3.0-or-later
"""Labelling off the chain: request, permission, proof; and what an institution can do with a permission that is not for this."""

from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import LabelRecord
from ledger.codec import encode
from ledger.crypto import chameleon
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.reencryption import DecryptionFailed, encrypt
from ledger.errors import InvalidInput
from ledger.labels import LabelPermission, permission_digest
from ledger.patients import Record, envelope_digest
from ledger.state import RECORDS, numbered_key
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from records.labelling import (
    PermissionDocument,
    SealedTrapdoor,
    build_label,
    open_permission,
    permission_for,
    permit,
    read_request,
    request_label,
)
from tests.records.world import PATIENT, World, encryption

HOSPITAL = testing.key(0)
TRAPDOOR, CHAMELEON_KEY = testing.chameleon_trapdoor(PATIENT)


def record(world: World, sequence: int) -> Record:
    found = world.state().get(RECORDS, numbered_key(world.patient.address, sequence))
    assert found is not None
    return found


def permission(
    world: World,
    sequence: int = 0,
    status: Literal["amended", "entered-in-error"] = "entered-in-error",
    replacement: int | None = 1,
    expiry_height: int = 1_000,
) -> LabelPermission:
    return permission_for(
        record(world, sequence),
        institution=HOSPITAL.address,
        status=status,
        label="wrong patient's laboratory values",
        replacement=None if replacement is None else record(world, replacement),
        may_erase=True,
        expiry_height=expiry_height,
    )


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


def document(world: World, wanted: LabelPermission, trapdoor: bytes = TRAPDOOR) -> bytes:
    return permit(world.chain, world.patient, wanted, trapdoor, testing.encryption_key(0))


def test_request_permission_and_proof_make_a_label_that_verifies(world: World, prover: Prover) -> None:
    wanted = permission(world)
    asked = request_label(world.chain, HOSPITAL, wanted, "A mix-up in the laboratory.")
    read = read_request(world.chain, asked, HOSPITAL.public_key)
    assert (read.permission, read.note) == (wanted, "A mix-up in the laboratory.")
    opened = open_permission(world.chain, document(world, read.permission), encryption(0))
    assert opened.trapdoor == TRAPDOOR
    assert TRAPDOOR.hex() not in repr(opened)
    body = build_label(opened, record(world, 0), CHAMELEON_KEY, world.store.head().height, prover)
    assert isinstance(body, LabelRecord)
    assert (body.envelope.status, body.envelope.label) == ("entered-in-error", wanted.label)
    assert body.envelope.replaced_by == record(world, 1).record_id
    assert body.envelope.blob_id == record(world, 0).envelope.blob_id
    key = VerifyingKey.decode(DEVELOPMENT_VERIFYING_KEY)
    digest = envelope_digest(body.envelope)
    assert verify_proof(key, body.chameleon_key, body.chameleon_hash, digest, body.proof)


def test_a_label_commits_once_with_its_permission(world: World, prover: Prover) -> None:
    opened = open_permission(world.chain, document(world, permission(world)), encryption(0))
    before = record(world, 0)
    body = build_label(opened, before, CHAMELEON_KEY, world.store.head().height, prover)
    world.submit(HOSPITAL, body)
    after = record(world, 0)
    assert (after.record_id, after.microblock) == (before.record_id, before.microblock)
    assert after.envelope == body.envelope
    with pytest.raises(InvalidInput, match="serves once"):
        build_label(opened, after, CHAMELEON_KEY, world.store.head().height, prover)
    world.submit(HOSPITAL, body, reason="permission_used")


def test_a_permission_is_for_one_record_and_a_time(world: World, prover: Prover) -> None:
    opened = open_permission(world.chain, document(world, permission(world, expiry_height=50)), encryption(0))
    with pytest.raises(InvalidInput, match="is for record"):
        build_label(opened, record(world, 2), CHAMELEON_KEY, 1, prover)
    with pytest.raises(InvalidInput, match="heights up to 50"):
        build_label(opened, record(world, 0), CHAMELEON_KEY, 50, prover)


def test_a_trapdoor_of_other_keys_makes_no_label(world: World, prover: Prover) -> None:
    wrong, _ = testing.chameleon_trapdoor(PATIENT + 1)
    opened = open_permission(world.chain, document(world, permission(world), wrong), encryption(0))
    with pytest.raises(InvalidInput, match="not that of the record's keys"):
        build_label(opened, record(world, 0), CHAMELEON_KEY, 1, prover)


def test_a_permission_opens_for_its_institution_only(world: World) -> None:
    with pytest.raises(DecryptionFailed):
        open_permission(world.chain, document(world, permission(world)), encryption(1))


def test_a_permission_that_was_changed_or_is_for_another_chain_is_refused(world: World) -> None:
    raw = document(world, permission(world))
    with pytest.raises(InvalidInput, match="not signed"):
        open_permission(bytes(32), raw, encryption(0))
    for position in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(InvalidInput):
            open_permission(world.chain, bytes(changed), encryption(0))


def test_a_trapdoor_that_was_sealed_for_another_permission_is_refused(world: World) -> None:
    first, second = permission(world), permission(world, sequence=2)
    digest = permission_digest(world.chain, first)
    other = SealedTrapdoor(permission_digest(world.chain, second), TRAPDOOR)
    mixed = PermissionDocument(
        first,
        world.patient.public_key,
        world.patient.sign(digest),
        *encrypt(testing.encryption_key(0), encode(other)),
    )
    with pytest.raises(InvalidInput, match="sealed for another permission"):
        open_permission(world.chain, encode(mixed), encryption(0))


def test_a_request_shows_who_asks(world: World) -> None:
    raw = request_label(world.chain, HOSPITAL, permission(world), "")
    with pytest.raises(InvalidInput, match="not signed by institution"):
        read_request(world.chain, raw, testing.key(1).public_key)
    with pytest.raises(InvalidInput, match="not signed by institution"):
        read_request(bytes(32), raw, HOSPITAL.public_key)
    with pytest.raises(InvalidInput):
        request_label(world.chain, HOSPITAL, permission(world), "x" * 1_001)
    longest = request_label(world.chain, HOSPITAL, permission(world), "\U0001f600" * 1_000)
    assert read_request(world.chain, longest, HOSPITAL.public_key).note == "\U0001f600" * 1_000


def test_permissions_that_make_no_sense_are_not_made(world: World) -> None:
    with pytest.raises(InvalidInput, match="replace itself"):
        permission(world, replacement=0)
    for label in ("", "x" * 129):
        with pytest.raises(InvalidInput):
            permission_for(
                record(world, 0),
                institution=HOSPITAL.address,
                status="amended",
                label=label,
                replacement=None,
                may_erase=False,
                expiry_height=9,
            )
    elsewhere = record(world, 1)
    link = msgspec.structs.replace(elsewhere.microblock, patient=testing.key(21).address)
    with pytest.raises(InvalidInput, match="same patient"):
        permission_for(
            record(world, 0),
            institution=HOSPITAL.address,
            status="amended",
            label="x",
            replacement=msgspec.structs.replace(elsewhere, microblock=link),
            may_erase=False,
            expiry_height=9,
        )


def test_the_trapdoor_is_the_records_key(world: World) -> None:
    assert chameleon.public_key(TRAPDOOR) == CHAMELEON_KEY


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_permission_and_no_request(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        open_permission(bytes(32), data, encryption(0))
    with pytest.raises(InvalidInput):
        read_request(bytes(32), data, HOSPITAL.public_key)
