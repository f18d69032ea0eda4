# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's own chain: one keyblock at registration, then one microblock per record.

Each microblock links to the patient's keyblock and to the patient's previous record, so that a patient's history is
read in the order of its own length, whatever the length of the ledger (SPChain: keyblocks and microblocks for patients).
"""

from typing import Annotated, Literal

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Uint256, Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.mountain_range import MAX_PEAKS

FRESH_STATUSES = ("preliminary", "final")
"""FHIR statuses a record may be committed with; the others are reached by a label only."""


class PatientKeyblock(Wire, frozen=True):
    """A patient's keys: the registration, or a change of all keys at once (rotation, recovery) that links to the one before."""

    patient: Address
    """The patient's identifier for good: the address of the first keyblock's signing key."""
    generation: Uint
    """0 at the registration, one more with each change of keys."""
    previous: Digest
    """Hash of the keyblock before; of the first one 32 zero bytes."""
    signing_key: PublicKeyBytes
    """secp256k1 key that signs the patient's transactions and permissions from now on."""
    reencryption_key: PublicKeyBytes
    """Umbral public key that the records of this generation are encrypted to."""
    chameleon_key: Uint256
    """Public key of the chameleon hash of this generation's records: a BN254 field element."""
    institution: Address
    """The institution that registered the patient."""


class PatientMicroblock(Wire, frozen=True):
    """A record as a link of its patient's chain; its hash is the record's identifier and never changes."""

    patient: Address
    """The patient's address."""
    patient_keyblock: Digest
    """Hash of the patient's newest keyblock: under which keys the record is encrypted and hashed."""
    previous: Digest
    """Identifier of the patient's previous record; for the first record the hash of the patient's newest keyblock."""
    sequence: Uint
    """Position in the patient's chain; the first record has 0."""
    author: Address
    """The institution that wrote the record; it must be the transaction's sender."""
    chameleon_hash: Uint256
    """Chameleon hash of the digest of the record's envelope: a BN254 field element."""


class RecordEnvelope(Wire, frozen=True):
    """What the chameleon hash hides: where the record's ciphertext is and how the record is to be read."""

    blob_id: Digest
    """Content address of the ciphertext."""
    capsule_digest: Digest
    """Hash of the Umbral capsule inside the blob, so that a proxy can check a capsule without the blob."""
    blob_bytes: Uint
    """Size of the blob in bytes."""
    author: Address
    """The institution that wrote the record."""
    status: Literal["preliminary", "final", "amended", "entered-in-error"]
    """FHIR status of the record."""
    label: Annotated[str, msgspec.Meta(max_length=128)]
    """Why a labelled record was labelled; empty for a fresh one. At most 128 characters: a code, not a note."""
    replaced_by: Annotated[bytes, msgspec.Meta(max_length=32)]
    """Identifier of the record that replaces this one; empty when there is none."""


def patient_keyblock_hash(keyblock: PatientKeyblock) -> bytes:
    """Return the 32-byte identifier of a patient's keyblock."""
    return tagged_hash(Tag.PATIENT_KEYBLOCK, encode(keyblock))


def patient_keyblock_signing_digest(chain_id: bytes, keyblock: PatientKeyblock) -> bytes:
    """Return the digest that the patient signs to consent to the registration on this chain."""
    return tagged_hash(Tag.PATIENT_KEYBLOCK_SIGNATURE, chain_id, encode(keyblock))


def record_id(microblock: PatientMicroblock) -> bytes:
    """Return the 32-byte identifier of a record."""
    return tagged_hash(Tag.PATIENT_MICROBLOCK, encode(microblock))


def envelope_digest(envelope: RecordEnvelope) -> bytes:
    """Return the 32-byte digest of an envelope: the message of the chameleon hash."""
    return tagged_hash(Tag.RECORD_ENVELOPE, encode(envelope))


class KeyGeneration(Wire, frozen=True):
    """State: one generation of a patient's keys, kept for good: records and grants of its time refer to it."""

    keyblock: PatientKeyblock
    """The keyblock as it was committed."""
    keyblock_hash: Digest
    """Hash of the keyblock."""
    keyblock_signature: SignatureBytes
    """Signature of the keyblock by its own signing key."""
    committed_height: Uint
    """Height of the microblock that committed the keyblock."""


class KeyHolder(Wire, frozen=True):
    """State: an account whose key is or was a patient's signing key."""

    patient: Address
    """The patient."""
    generation: Uint
    """Generation of the key; only that of the newest keyblock acts as the patient."""


class Patient(Wire, frozen=True):
    """State: a registered patient."""

    keyblock: PatientKeyblock
    """The newest keyblock."""
    keyblock_hash: Digest
    """Hash of the newest keyblock."""
    registered_height: Uint
    """Height of the microblock that committed the registration."""
    grant_count: Uint
    """Number of grants ever made; the next one takes this number."""
    emergency_count: Uint
    """Number of emergency accesses ever asked for; the next one takes this number."""
    record_count: Uint
    """Number of records; the next record takes this sequence number."""
    last_record: Digest
    """Identifier of the newest record; of a patient without records the hash of the newest keyblock."""
    record_peaks: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_PEAKS)]
    """Peaks of the Merkle mountain range over the identifiers of all records, largest first: proves that a list is complete."""


class Record(Wire, frozen=True):
    """State: a committed record."""

    record_id: Digest
    """Hash of the patient microblock."""
    microblock: PatientMicroblock
    """The link of the patient's chain."""
    generation: Uint
    """Generation of the patient's keys that the microblock refers to."""
    envelope: RecordEnvelope
    """The envelope as it is now: the original one, or that of the newest label."""
    opening: Uint256
    """Opening of the chameleon hash for the original envelope: a BN254 field element."""
    label_count: Uint
    """Number of labels; the history is in `ledger.labels.Label`."""
    may_erase: bool
    """Whether one of the labels allows nodes to erase the record's ciphertext."""
    committed_height: Uint
    """Height of the microblock that committed the record."""
    committed_timestamp_ms: Uint
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
