# SPDX-License-Identifier: GPL-3.0-or-later
"""The kit's part about what patients decide: keys, guardians, grants and labels. As in `ledger.testing`, all keys are known."""

from collections.abc import Sequence

import msgspec

from ledger import testing
from ledger.bodies import ChangeKeys, CommitRecord, LabelRecord
from ledger.crypto.chameleon_proof import PROOF_BYTES
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.guardianship import GuardianApproval, recovery_digest
from ledger.labels import LabelPermission, labelled, permission_digest
from ledger.patients import (
    PatientKeyblock,
    patient_keyblock_hash,
    patient_keyblock_signing_digest,
    record_id,
)
from ledger.sharing import GrantTerms, fragment_digest

YEAR_MS = 365 * 24 * 3_600_000
NO_PROOF = bytes(PROOF_BYTES)
"""Stands for a proof where none is checked."""


def next_keyblock(keyblock: PatientKeyblock, signing: PrivateKey, number: int) -> PatientKeyblock:
    """Return the keyblock that follows another one; `number` names its re-encryption and chameleon keys."""
    return PatientKeyblock(
        patient=keyblock.patient,
        generation=keyblock.generation + 1,
        previous=patient_keyblock_hash(keyblock),
        signing_key=signing.public_key,
        reencryption_key=testing.encryption_key(number),
        chameleon_key=testing.chameleon_trapdoor(number)[1],
        institution=keyblock.institution,
    )


def change_keys(
    chain: bytes, keyblock: PatientKeyblock, signing: PrivateKey, guardians: Sequence[PrivateKey] = ()
) -> ChangeKeys:
    """Return a change to a keyblock, signed by its own key and approved by guardians."""
    digest = recovery_digest(chain, patient_keyblock_hash(keyblock))
    approvals = sorted(
        (GuardianApproval(guardian.public_key, guardian.sign(digest)) for guardian in guardians),
        key=lambda approval: approval.guardian,
    )
    consent = signing.sign(patient_keyblock_signing_digest(chain, keyblock))
    return ChangeKeys(keyblock, consent, tuple(approvals))


def grant_terms(
    patient: bytes,
    grantee: bytes,
    receiving_key: bytes,
    proxies: Sequence[bytes],
    *,
    from_ms: int = testing.GENESIS_TIMESTAMP_MS,
    until_ms: int = testing.GENESIS_TIMESTAMP_MS + YEAR_MS,
    number: int = 0,
) -> GrantTerms:
    """Return a grant of all records of the first generation, for treatment, by way of two of the proxies.

    The fragments' digests stand for no fragments; `number` makes them different.
    """
    digests = [fragment_digest(number.to_bytes(8, "big") + proxy) for proxy in proxies]
    return GrantTerms(
        patient=patient,
        generation=0,
        grantee=grantee,
        receiving_key=receiving_key,
        all_records=True,
        records=(),
        purposes=("TREAT",),
        from_ms=from_ms,
        until_ms=until_ms,
        threshold=2,
        proxies=tuple(proxies),
        fragment_digests=tuple(digests),
        emergency_approvals=0,
    )


def permission(record: CommitRecord, institution: bytes, *, number: int = 0) -> LabelPermission:
    """Return what a patient signs to have a record marked as entered in error."""
    return LabelPermission(
        patient=record.microblock.patient,
        record=record_id(record.microblock),
        sequence=record.microblock.sequence,
        number=number,
        institution=institution,
        status="entered-in-error",
        label="misdiagnosis",
        replaced_by=b"",
        replacement_sequence=0,
        may_erase=False,
        expiry_height=testing.EXPIRY_HEIGHT,
    )


def label(
    chain: bytes,
    record: CommitRecord,
    keyblock: PatientKeyblock,
    permitted: LabelPermission,
    signer: PrivateKey,
    proof: bytes = NO_PROOF,
) -> LabelRecord:
    """Return the label that a permission allows; the record's envelope is the one that `record` has."""
    return LabelRecord(
        permission=permitted,
        signer=signer.public_key,
        signature=signer.sign(permission_digest(chain, permitted)),
        chameleon_key=keyblock.chameleon_key,
        chameleon_hash=record.microblock.chameleon_hash,
        envelope=labelled(record.envelope, permitted),
        proof=proof,
    )


def relabelled(record: CommitRecord, permitted: LabelPermission) -> CommitRecord:
    """Return a record as it looks after a label, to make the next one."""
    return msgspec.structs.replace(record, envelope=labelled(record.envelope, permitted))


def backup_digest(number: int = 0) -> bytes:
    """Return the content address of a backup that is nowhere."""
    return tagged_hash(Tag.BLOB, f"spchain test kit: backup {number}".encode())
