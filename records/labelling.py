# SPDX-License-Identifier: GPL-3.0-or-later
"""Labelling off the chain: an institution asks, the patient permits and lends the trapdoor, the institution proves and labels.

    institution                          patient (or a delegate who may permit labels)
    LabelRequest, signed      →          reads what is wanted and why
                              ←          PermissionDocument: permission, signature, trapdoor sealed to the institution
    LabelRecord, with proof   → chain

The trapdoor is that of the record's generation of keys. It proves any envelope for any record of that generation, and that is harmless:
the chain takes a label only with the patient's signature under exactly this label. It is sealed together with the digest of
the permission, so that nobody can hand an institution a trapdoor that belongs to something else.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import msgspec

from ledger.bodies import LabelRecord
from ledger.codec import Digest, PublicKeyBytes, SignatureBytes, Uint256, Wire, decoder, encode
from ledger.crypto import chameleon
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.reencryption import (
    CAPSULE_BYTES,
    CIPHERTEXT_OVERHEAD_BYTES,
    DecryptionFailed,
    ReencryptionKey,
    encrypt,
)
from ledger.errors import InvalidInput
from ledger.labels import LabelPermission, labelled, permission_digest
from ledger.patients import Record, envelope_digest

MAX_LABEL_REQUEST_BYTES = 8 * 1024
"""A note of 1 000 characters has at most 4 000 bytes."""
MAX_PERMISSION_BYTES = 2 * 1024
"""A permission document has about 750 bytes."""


class LabelProver(Protocol):
    """Who proves that a chameleon hash opens to another message: `records.chameleon_prover.Prover`."""

    def adapt(self, trapdoor: bytes, public_key: bytes, chameleon_hash: bytes, message_digest: bytes) -> bytes:
        """Return the proof, verified; raises `InvalidInput`."""
        ...


class LabelRequest(Wire, frozen=True):
    """What an institution asks a patient to permit; nothing of it goes on the chain."""

    permission: LabelPermission
    """The permission that is wanted, word for word."""
    note: Annotated[str, msgspec.Meta(max_length=1_000)]
    """Why, for the patient."""
    signature: SignatureBytes
    """The institution's signature of permission and note on this chain."""


class SealedTrapdoor(Wire, frozen=True):
    """What is sealed to the institution."""

    permission_digest: Digest
    """Digest of the permission that the trapdoor is for."""
    trapdoor: Uint256
    """Secret of the chameleon hash."""


class PermissionDocument(Wire, frozen=True):
    """What a patient hands to an institution: leave to label one record, and the means."""

    permission: LabelPermission
    """What is permitted."""
    signer: PublicKeyBytes
    """Key that signs: the patient's, or that of a delegate who may permit labels."""
    signature: SignatureBytes
    """Signature of `permission_digest`."""
    capsule: Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
    """Umbral capsule, to the institution's `encryption_key`."""
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=CIPHERTEXT_OVERHEAD_BYTES, max_length=256)]
    """The encoded `SealedTrapdoor`, encrypted and authenticated."""


@dataclass(frozen=True, slots=True)
class OpenedPermission:
    """A permission whose signature was verified, with its trapdoor. Only `open_permission` makes them."""

    permission: LabelPermission
    """What is permitted."""
    signer: bytes
    """Key that signed it."""
    signature: bytes
    """The signature."""
    trapdoor: bytes = field(repr=False)
    """32 secret bytes."""


def permission_for(
    record: Record,
    *,
    institution: bytes,
    status: Literal["amended", "entered-in-error"],
    label: str,
    replacement: Record | None,
    may_erase: bool,
    expiry_height: int,
) -> LabelPermission:
    """Return the permission for the next label of a record as it stands on the chain. Raises `InvalidInput`."""
    if replacement is not None and replacement.microblock.patient != record.microblock.patient:
        raise InvalidInput("the record that replaces another one must be the same patient's")
    if replacement is not None and replacement.record_id == record.record_id:
        raise InvalidInput("a record cannot replace itself")
    permission = LabelPermission(
        patient=record.microblock.patient,
        record=record.record_id,
        sequence=record.microblock.sequence,
        number=record.label_count,
        institution=institution,
        status=status,
        label=label,
        replaced_by=b"" if replacement is None else replacement.record_id,
        replacement_sequence=0 if replacement is None else replacement.microblock.sequence,
        may_erase=may_erase,
        expiry_height=expiry_height,
    )
    return _decode_label_permission(encode(permission))


def request_label(chain_id: bytes, key: PrivateKey, permission: LabelPermission, note: str) -> bytes:
    """Return, as the institution, a signed request for a permission. Raises `InvalidInput` for a note that is too long."""
    raw = encode(LabelRequest(permission, note, key.sign(_request_digest(chain_id, permission, note))))
    decode_label_request(raw)
    return raw


def read_request(chain_id: bytes, raw: bytes, institution_key: bytes) -> LabelRequest:
    """Return, as the patient, what an institution asks for.

    Args:
        chain_id: the chain.
        raw: the request.
        institution_key: account key of the institution that the permission would be for, from the chain.

    Raises:
        InvalidInput: no request, or not signed by that institution.
    """
    request = decode_label_request(raw)
    digest = _request_digest(chain_id, request.permission, request.note)
    if not verify(institution_key, digest, request.signature):
        raise InvalidInput(f"the request is not signed by institution {request.permission.institution.hex()}")
    return request


def permit(
    chain_id: bytes, key: PrivateKey, permission: LabelPermission, trapdoor: bytes, encryption_key: bytes
) -> bytes:
    """Return, as the patient, the signed permission with the trapdoor sealed to the institution.

    Args:
        chain_id: the chain.
        key: the patient's key, or that of a delegate who may permit labels.
        permission: what is permitted.
        trapdoor: chameleon secret of the generation of keys that the record is under.
        encryption_key: registered key of the institution that the permission names.

    Raises:
        InvalidInput: the encryption key is none.
    """
    digest = permission_digest(chain_id, permission)
    sealed = encrypt(encryption_key, encode(SealedTrapdoor(digest, trapdoor)))
    return encode(PermissionDocument(permission, key.public_key, key.sign(digest), *sealed))


def open_permission(chain_id: bytes, raw: bytes, encryption: ReencryptionKey) -> OpenedPermission:
    """Verify, as the institution, a permission, and open its trapdoor.

    That the signer may act for the patient is for the chain to say.

    Raises:
        InvalidInput: no permission document, not signed by its signer, or the trapdoor is for another permission; or its kind
            `DecryptionFailed`: sealed to another institution, or changed.
    """
    document = _decode_permission(raw)
    digest = permission_digest(chain_id, document.permission)
    if not verify(document.signer, digest, document.signature):
        raise InvalidInput(f"the permission is not signed by {document.signer.hex()} for this chain")
    try:
        opened = encryption.decrypt(document.capsule, document.ciphertext)
    except DecryptionFailed as error:
        institution = document.permission.institution.hex()
        raise DecryptionFailed(
            f"only institution {institution} can open this permission, unless it was changed"
        ) from error
    sealed = _decode_trapdoor(opened)
    if sealed.permission_digest != digest:
        raise InvalidInput("the trapdoor inside was sealed for another permission; ask the patient again")
    return OpenedPermission(document.permission, document.signer, document.signature, sealed.trapdoor)


def build_label(
    opened: OpenedPermission, record: Record, chameleon_key: bytes, head_height: int, prover: LabelProver
) -> LabelRecord:
    """Prove the labelled envelope and return the transaction's body; takes a tenth of a second.

    Args:
        opened: the permission.
        record: the record as it stands on the chain.
        chameleon_key: public key of the record's generation of keys, from the chain.
        head_height: height that is committed.
        prover: makes the proof.

    Raises:
        InvalidInput: the permission is for another record, was used already, or is over; or the trapdoor is not the record's.
    """
    permission = opened.permission
    if (permission.patient, permission.record) != (record.microblock.patient, record.record_id):
        raise InvalidInput(f"the permission is for record {permission.record.hex()}, not for {record.record_id.hex()}")
    if permission.number != record.label_count:
        raise InvalidInput(
            f"the permission is for label {permission.number} of the record, which has {record.label_count} already: "
            "it serves once; ask the patient for a new one"
        )
    if head_height >= permission.expiry_height:
        raise InvalidInput(
            f"the permission was for heights up to {permission.expiry_height}, and {head_height} is committed; "
            "ask the patient for a new one"
        )
    if chameleon.public_key(opened.trapdoor) != chameleon_key:
        raise InvalidInput("the trapdoor is not that of the record's keys; ask the patient for that of its generation")
    envelope = labelled(record.envelope, permission)
    chameleon_hash = record.microblock.chameleon_hash
    proof = prover.adapt(opened.trapdoor, chameleon_key, chameleon_hash, envelope_digest(envelope))
    return LabelRecord(
        permission=permission,
        signer=opened.signer,
        signature=opened.signature,
        chameleon_key=chameleon_key,
        chameleon_hash=chameleon_hash,
        envelope=envelope,
        proof=proof,
    )


def _request_digest(chain_id: bytes, permission: LabelPermission, note: str) -> bytes:
    return tagged_hash(Tag.LABEL_REQUEST, chain_id, encode((permission, note)))


decode_label_request = decoder(LabelRequest, MAX_LABEL_REQUEST_BYTES)
"""Decode a request without checking who it is from; raises `InvalidInput`."""
_decode_permission = decoder(PermissionDocument, MAX_PERMISSION_BYTES)
_decode_label_permission = decoder(LabelPermission, MAX_PERMISSION_BYTES)
_decode_trapdoor = decoder(SealedTrapdoor, 128)
