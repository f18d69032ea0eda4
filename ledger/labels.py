# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels: an institution marks a record as wrong or amended, with the patient's permission, and no hash changes.

The record's chameleon hash h stays; a Groth16 proof shows that it also opens to the labelled envelope. The trapdoor alone labels
nothing, for consensus demands the patient's signed permission for exactly this label; and a permission alone labels nothing without
the trapdoor.
"""

from typing import Annotated, Literal

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, encode
from ledger.crypto.chameleon_proof import PROOF_BYTES
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.patients import RecordEnvelope

ProofBytes = Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
"""A Groth16 proof over BN254, see `ledger.crypto.chameleon_proof`."""


class LabelPermission(Wire, frozen=True):
    """What a patient signs to let one institution put one label on one record, once."""

    patient: Address
    """Whose record."""
    record: Digest
    """Identifier of the record."""
    sequence: Uint
    """Place of the record in the patient's chain."""
    number: Uint
    """Labels that the record has before this one: a permission serves once, and for nothing that was labelled meanwhile."""
    institution: Address
    """The institution that may label."""
    status: Literal["amended", "entered-in-error"]
    """FHIR status that the record gets."""
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    """Why: a code or a few words, readable by everybody."""
    replaced_by: Annotated[bytes, msgspec.Meta(max_length=32)]
    """Identifier of the record of the same patient that replaces this one; empty when there is none."""
    replacement_sequence: Uint
    """Place of that record in the patient's chain; 0 when there is none."""
    may_erase: bool
    """Whether nodes may erase the record's ciphertext afterwards."""
    expiry_height: Uint
    """Last microblock height at which the label may commit."""


class Label(Wire, frozen=True):
    """State: one label of a record; the history of a record are its labels in order."""

    permission: LabelPermission
    """The patient's permission."""
    signer: PublicKeyBytes
    """Key that signed it: the patient's at that time, or a delegate's."""
    signature: SignatureBytes
    """Signature of the permission."""
    previous: RecordEnvelope
    """The envelope before the label."""
    envelope: RecordEnvelope
    """The envelope after it."""
    proof: ProofBytes
    """Proof that the chameleon hash opens to `envelope`."""
    institution: Address
    """Who labelled."""
    committed_height: Uint
    """Height of the microblock that committed the label."""
    committed_timestamp_ms: Uint
    """Time of that microblock, in milliseconds since 1970 (UTC)."""


class Erasure(Wire, frozen=True):
    """State: an institution has confirmed that it holds the ciphertext of a labelled record no more."""

    height: Uint
    """Height of the microblock that committed the confirmation."""


def permission_digest(chain_id: bytes, permission: LabelPermission) -> bytes:
    """Return the digest that the patient signs."""
    return tagged_hash(Tag.LABEL_PERMISSION, chain_id, encode(permission))


def labelled(envelope: RecordEnvelope, permission: LabelPermission) -> RecordEnvelope:
    """Return the envelope that a permission makes of another one: status, label and replacement change, nothing else."""
    return msgspec.structs.replace(
        envelope, status=permission.status, label=permission.label, replaced_by=permission.replaced_by
    )
