# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API answers, as types: the node builds them, the client reads them back, the OpenAPI document describes them.

Byte strings are lower-case hexadecimal in JSON and `bytes` in Python.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

MAX_SUBMIT_BYTES = 4 * 1024 * 1024
"""Largest body of a submission: eight of the largest batches."""
MAX_SUBMIT_TRANSACTIONS = 4096
"""Most transactions per submission; as many as a batch may hold."""
MAX_WAIT_MS = 60_000
"""Longest wait for receipts; proxies cut connections off that are silent for longer."""
MAX_PAGE = 1000
"""Most entries per answer; a thousand records take about 1 MB."""
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


def _from_hex(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not _HEX.fullmatch(value):
        raise ValueError("not hexadecimal")
    return bytes.fromhex(value)


Hex = Annotated[
    bytes,
    BeforeValidator(_from_hex),
    PlainSerializer(bytes.hex, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{2})*$"}),
]
"""Bytes, written as hexadecimal."""


class Model(BaseModel):
    """Base of all answers. Unknown fields are ignored, so that an older client understands a newer node."""

    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)


class Receipt(Model):
    """What became of a transaction in a committed microblock."""

    height: int
    """Height of the microblock."""
    position: int
    """Place among the microblock's transactions."""
    reason: str
    """Empty when it took effect; else why it did not."""


class Outcome(Model):
    """What became of one submitted transaction."""

    id: Hex
    """Identifier; empty when the bytes are no transaction."""
    accepted: bool
    """True: enough nodes hold it durably to survive the crash of as many as the committee tolerates."""
    reason: str
    """Why it was refused; empty when it was not."""
    detail: str
    """What was wrong and what to do."""
    receipt: Receipt | None = None
    """Where it was committed, if it was in time."""


class SubmitResult(Model):
    """What became of a submission, in its order."""

    outcomes: tuple[Outcome, ...]
    """One per transaction."""


class Submission(Model):
    """A submission as JSON."""

    transactions: tuple[Hex, ...]
    """Signed transactions, at most 4096."""
    wait_ms: int = 0
    """How long to wait for receipts, in milliseconds, at most 60000."""


class Transaction(Model):
    """A transaction of a committed microblock."""

    id: Hex
    """Identifier."""
    block_hash: Hex
    """Hash of the microblock."""
    receipt: Receipt
    """What became of it."""
    kind: str
    """What it does, as in `transfer`."""
    sender: Hex
    """Address of the sender."""
    nonce: int
    """Number of the sender's transactions before it."""
    fee_microcredit: int
    """Fee in millionths of a credit."""
    expiry_height: int
    """Last height at which it could commit."""
    body: dict[str, Any]
    """The fields of its kind (docs/reference)."""
    raw: Hex
    """The signed bytes."""


class BlockTransaction(Model):
    """A transaction as listed in its microblock."""

    id: Hex
    """Identifier."""
    position: int
    """Place among the microblock's transactions."""
    reason: str
    """Empty when it took effect here; `superseded` when its receipt belongs to another microblock."""


class BlockTransactions(Model):
    """A part of a microblock's transactions."""

    height: int
    """Height of the microblock."""
    transactions: tuple[BlockTransaction, ...]
    """In the order of execution."""
    next_start: int | None
    """`start` of the next part; null at the end."""


class Block(Model):
    """A committed microblock."""

    height: int
    """Number of the microblock; the genesis has 0."""
    block_hash: Hex
    """Its hash."""
    epoch: int
    """Number of keyblocks pinned before it."""
    term: int
    """Number of the leader's term in the epoch."""
    round: int
    """Consensus round."""
    parent: Hex
    """Hash of the previous microblock."""
    keyblock: Hex
    """Hash of the newest keyblock pinned before it, or of the genesis."""
    seed: Hex
    """Seed of the epoch's leaders."""
    leader: Hex
    """Address of the member that proposed it."""
    timestamp_ms: int
    """The leader's time, in milliseconds since 1970 (UTC)."""
    batches_root: Hex
    """Merkle root of the batch digests."""
    batches: tuple[Hex, ...]
    """Digests of its batches, in the order of execution."""
    pinned: Hex
    """Hash of the keyblock that it pins; empty when it pins none."""
    executed_height: int
    """The microblock whose state the header states."""
    executed_state_digest: Hex
    """Running state digest after that microblock."""
    state_digest: Hex
    """Running state digest after this microblock."""
    signature: Hex
    """The leader's signature; empty for the genesis."""
    certificate: Hex
    """The committee's certificate, encoded; empty for the genesis."""


class Account(Model):
    """An account; one that was never touched is empty."""

    address: Hex
    """Its address."""
    nonce: int
    """Number of its committed transactions."""
    next_nonce: int
    """Nonce for its next transaction, after those under way at this node."""
    balance_microcredit: int
    """Balance in millionths of a credit."""
    is_accredited: bool
    """Whether it may register as an institution."""
    is_institution: bool
    """Whether it is a registered institution."""
    is_patient: bool
    """Whether it is the identifier of a registered patient: the account of the first keys, not of those that replaced them."""


class Institution(Model):
    """A registered institution."""

    address: Hex
    """Its account."""
    name: str
    """Name as shown to people."""
    country: str
    """ISO 3166-1 alpha-2 code."""
    public_key: Hex
    """Key of its account."""
    encryption_key: Hex
    """Umbral public key that records are shared to."""
    registered_height: int
    """Height of the microblock that committed the registration."""


class Institutions(Model):
    """A part of the registered institutions, by address."""

    institutions: tuple[Institution, ...]
    """In the order of addresses."""
    next_start: Hex | None
    """`start` of the next part; null at the end."""


class Author(Model):
    """An institution that a patient has decided on."""

    institution: Hex
    """Its address."""
    allowed: bool
    """Whether it may append records."""
    changed_height: int
    """Height at which the patient last decided."""


class Patient(Model):
    """A registered patient."""

    address: Hex
    """The patient's identifier: the address of the first signing key."""
    generation: int
    """How often the patient has changed keys."""
    signing_key: Hex
    """Key that signs the patient's transactions."""
    reencryption_key: Hex
    """Umbral public key that records are encrypted to."""
    chameleon_key: Hex
    """Public key of the patient's chameleon hash."""
    institution: Hex
    """The institution that registered the patient."""
    keyblock_hash: Hex
    """Hash of the patient's newest keyblock: new records refer to it."""
    registered_height: int
    """Height of the microblock that committed the registration."""
    record_count: int
    """Number of records; the next one takes this sequence number."""
    last_record: Hex
    """Identifier of the newest record; without records the hash of the newest keyblock."""
    record_peaks: tuple[Hex, ...]
    """Peaks of the Merkle mountain range over the identifiers of all records, largest first."""
    authors: tuple[Author, ...]
    """Institutions that the patient has decided on, at most 1000."""


class Envelope(Model):
    """Where a record's ciphertext is and how the record is to be read."""

    blob_id: Hex
    """Content address of the ciphertext."""
    capsule_digest: Hex
    """Hash of the capsule inside the blob."""
    blob_bytes: int
    """Size of the blob in bytes."""
    author: Hex
    """The institution that wrote the record."""
    status: str
    """FHIR status."""
    label: str
    """Why it was labelled; empty when it was not."""
    replaced_by: Hex
    """Identifier of the record that replaces it; empty when there is none."""


class Record(Model):
    """A committed record."""

    record_id: Hex
    """Identifier: hash of the patient microblock."""
    patient: Hex
    """The patient's address."""
    patient_keyblock: Hex
    """Hash of the patient's keyblock: under which keys the record is encrypted and hashed."""
    generation: int
    """Generation of that keyblock."""
    previous: Hex
    """Identifier of the record before; for the first one the hash of the keyblock."""
    sequence: int
    """Position in the patient's chain, from 0."""
    author: Hex
    """The institution that wrote it."""
    chameleon_hash: Hex
    """Chameleon hash of the envelope's digest."""
    envelope: Envelope
    """The envelope as it is now: the original one, or that of the newest label."""
    opening: Hex
    """Opening of the chameleon hash for the original envelope."""
    label_count: int
    """Number of labels."""
    may_erase: bool
    """Whether a label has allowed nodes to erase the ciphertext."""
    committed_height: int
    """Height of the microblock that committed it."""
    committed_timestamp_ms: int
    """Time of that microblock, in milliseconds since 1970 (UTC)."""


class Records(Model):
    """A part of a patient's records."""

    records: tuple[Record, ...]
    """In the order of the patient's chain."""
    next_start: int | None
    """`start` of the next part; null at the end."""


class BlobPut(Model):
    """A blob that was taken."""

    blob_id: Hex
    """Its content address."""
    size_bytes: int
    """Its size."""


class StateAt(Model):
    """The agreed state at a height, as digests."""

    height: int
    """The height."""
    block_hash: Hex
    """Hash of the microblock at it."""
    state_digest: Hex
    """Running digest of all state changes up to it."""
    state_root: Hex | None
    """Root of the authenticated state; known for the newest height only, else null."""


class GenesisInfo(Model):
    """The network's genesis."""

    chain_id: Hex
    """Its hash: the chain's identifier."""
    genesis: dict[str, Any]
    """Its fields, readable."""
    raw: Hex
    """Its canonical encoding: the bytes of a `genesis.msgpack`."""
