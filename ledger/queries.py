# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to a store that need more than one look-up, and the proof that a transaction stands in a microblock."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from ledger.blocks import MAX_MICROBLOCK_BYTES, MicroblockHeader, SignedMicroblock, microblock_hash
from ledger.codec import Address, Digest, Uint, Wire, decoder
from ledger.crypto import mountain_range
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.crypto.merkle import MAX_PROOF_LENGTH, merkle_proof, merkle_root, verify_merkle_proof
from ledger.emergency import Emergency, is_awake
from ledger.errors import NotFound
from ledger.guardianship import Delegation, Guardians
from ledger.labels import Erasure, Label
from ledger.patients import KeyGeneration, KeyHolder, Patient, Record
from ledger.sharing import Grant, Listed
from ledger.state import (
    ACCOUNTS,
    DELEGATIONS,
    DELETIONS_OWED,
    EMERGENCIES,
    ERASURES,
    GRANTEE_GRANTS,
    GRANTS,
    GUARDIANS,
    INSTITUTIONS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    LABELS,
    PATIENT_GRANTS,
    PATIENTS,
    PROXY_GRANTS,
    RECORDS,
    REVIEWS,
    Account,
    Institution,
    StateReader,
    Table,
    V,
    numbered_key,
    scan,
)
from ledger.store import Store
from ledger.transactions import decode_batch, transaction_id
from ledger.transition import Receipt

MAX_PAGE = 1000
"""Most entries of one answer: about half a megabyte of records, at most four of grants."""
MAX_TRANSACTION_PROOF_BYTES = 8 * 1024
"""Bound for decoding: two paths of at most 64 digests, and a header."""

_decode_block = decoder(SignedMicroblock, MAX_MICROBLOCK_BYTES, own=True)
_Path = Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_PROOF_LENGTH)]


class FoundTransaction(msgspec.Struct, frozen=True):
    """A committed transaction."""

    raw: bytes
    """Its signed bytes."""
    receipt: Receipt
    """What became of it."""
    block_hash: bytes
    """The microblock that it stands in."""


class TransactionProof(Wire, frozen=True):
    """Proof that a transaction stands in a microblock. That it took effect is proved by what it did to the state."""

    header: MicroblockHeader
    """The microblock's header."""
    batch_index: Uint
    """Place of the batch in the microblock."""
    batch_path: _Path
    """Siblings from the batch's digest to the header's `batches_root`."""
    transaction_count: Uint
    """Number of transactions in the batch."""
    transactions_root: Digest
    """Merkle root of the identifiers of the batch's transactions."""
    transaction_index: Uint
    """Place of the transaction in the batch."""
    transaction_path: _Path
    """Siblings from the transaction's identifier to `transactions_root`."""


def account(store: StateReader, address: Address) -> Account:
    """Return an account; one that was never touched is empty."""
    return _entry(store, ACCOUNTS, address) or Account(0, 0)


def patient(store: StateReader, address: Address) -> Patient:
    """Return a patient. Raises `NotFound`."""
    found = _entry(store, PATIENTS, address)
    if found is None:
        raise NotFound(f"patient {address.hex()} is not registered on this chain")
    return found


def institution(store: StateReader, address: Address) -> Institution:
    """Return an institution. Raises `NotFound`."""
    found = _entry(store, INSTITUTIONS, address)
    if found is None:
        raise NotFound(f"institution {address.hex()} is not registered on this chain")
    return found


def institutions(
    store: StateReader, start: Address = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Address, Institution]]:
    """Yield institutions in the order of their addresses, from `start` on."""
    return scan(store, INSTITUTIONS, b"", start, min(limit, MAX_PAGE))


def patient_records(store: StateReader, address: Address, start: int = 0, limit: int = MAX_PAGE) -> Iterator[Record]:
    """Yield a patient's records in order, from sequence number `start` on; takes as long as the answer is."""
    for _, record in scan(store, RECORDS, address, numbered_key(address, start), min(limit, MAX_PAGE)):
        yield record


def prove_record(store: StateReader, address: Address, sequence: int) -> tuple[bytes, ...]:
    """Return the siblings that prove a record's place under `Patient.record_peaks`; as long as the patient's chain takes to read.

    Raises `NotFound`.
    """
    identifiers = [
        record.record_id for _, record in scan(store, RECORDS, address, address, patient(store, address).record_count)
    ]
    if not 0 <= sequence < len(identifiers):
        raise NotFound(f"patient {address.hex()} has no record {sequence}; there are {len(identifiers)}")
    return mountain_range.prove(identifiers, sequence)


def record(store: StateReader, address: Address, sequence: int) -> Record:
    """Return one record of a patient. Raises `NotFound`."""
    found = _entry(store, RECORDS, numbered_key(address, sequence))
    if found is None:
        raise NotFound(f"patient {address.hex()} has no record {sequence}")
    return found


def labels(
    store: StateReader, address: Address, sequence: int, start: int = 0, limit: int = MAX_PAGE
) -> Iterator[Label]:
    """Yield the labels of a record in order, from a number on: its history."""
    prefix = numbered_key(address, sequence)
    for _, label in scan(store, LABELS, prefix, numbered_key(address, sequence, start), min(limit, MAX_PAGE)):
        yield label


def erasures(
    store: StateReader, address: Address, sequence: int, start: Address = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Address, Erasure]]:
    """Yield who has confirmed that the ciphertext of a record is erased, in the order of addresses, from `start` on."""
    prefix = numbered_key(address, sequence)
    for key, erasure in scan(store, ERASURES, prefix, prefix + start, min(limit, MAX_PAGE)):
        yield key[len(prefix) :], erasure


def key_generations(
    store: StateReader, address: Address, start: int = 0, limit: int = MAX_PAGE
) -> Iterator[KeyGeneration]:
    """Yield a patient's keyblocks in order, from a generation on."""
    for _, generation in scan(store, KEY_GENERATIONS, address, numbered_key(address, start), min(limit, MAX_PAGE)):
        yield generation


def holder(store: StateReader, address: Address) -> KeyHolder | None:
    """Return whose signing key an account's key is or was, if it is a patient's."""
    return _entry(store, KEY_HOLDERS, address)


def guardians(store: StateReader, address: Address) -> Guardians | None:
    """Return a patient's guardians, if there are any."""
    return _entry(store, GUARDIANS, address)


def delegation(store: StateReader, address: Address, delegate: Address) -> Delegation | None:
    """Return what a patient has delegated to somebody, if anything ever."""
    return _entry(store, DELEGATIONS, address + delegate)


def delegations(
    store: StateReader, address: Address, start: Address = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Address, Delegation]]:
    """Yield a patient's delegations, ended ones too, in the order of the delegates' addresses, from `start` on."""
    for key, found in scan(store, DELEGATIONS, address, address + start, min(limit, MAX_PAGE)):
        yield key[len(address) :], found


def grant(store: StateReader, identifier: Digest) -> Grant:
    """Return a grant. Raises `NotFound`."""
    found = _entry(store, GRANTS, identifier)
    if found is None:
        raise NotFound(f"there is no grant {identifier.hex()} on this chain")
    return found


def patient_grants(
    store: StateReader, address: Address, start: int = 0, limit: int = MAX_PAGE
) -> Iterator[tuple[Digest, Grant]]:
    """Yield identifier and content of a patient's grants, in the order in which they were made, from a number on."""
    return _listed(store, PATIENT_GRANTS, address, numbered_key(b"", start), limit)


def grantee_grants(
    store: StateReader, grantee: Address, start: Digest = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Digest, Grant]]:
    """Yield the grants to somebody in the order of their identifiers, from `start` on; also those that are over."""
    return _listed(store, GRANTEE_GRANTS, grantee, start, limit)


def proxy_grants(
    store: StateReader, proxy: Address, start: Digest = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Digest, Grant]]:
    """Yield the grants of which a proxy holds a fragment, as far as the chain knows, in the order of their identifiers."""
    return _listed(store, PROXY_GRANTS, proxy, start, limit)


def deletions_owed(
    store: StateReader, proxy: Address, start: Digest = b"", limit: int = MAX_PAGE
) -> Iterator[tuple[Digest, Grant]]:
    """Yield the revoked grants whose fragment a proxy has not confirmed to be deleted, in the order of their identifiers."""
    return _listed(store, DELETIONS_OWED, proxy, start, limit)


def emergency(store: StateReader, address: Address, number: int) -> Emergency:
    """Return one of a patient's emergencies. Raises `NotFound`."""
    found = _entry(store, EMERGENCIES, numbered_key(address, number))
    if found is None:
        raise NotFound(f"patient {address.hex()} has no emergency {number}")
    return found


def emergencies(
    store: StateReader, address: Address, start: int = 0, limit: int = MAX_PAGE
) -> Iterator[tuple[int, Emergency]]:
    """Yield a patient's emergencies in order, from a number on."""
    for key, found in scan(store, EMERGENCIES, address, numbered_key(address, start), min(limit, MAX_PAGE)):
        yield int.from_bytes(key[len(address) :], "big"), found


def awake_emergency(store: StateReader, found: Grant, time_ms: int) -> Emergency | None:
    """Return the emergency that keeps a sleeping grant awake at a time, if one does."""
    if not found.emergency_count:
        return None
    newest = emergency(store, found.terms.patient, found.newest_emergency)
    return newest if is_awake(newest, time_ms) else None


def reviews(
    store: StateReader, start: Address = b"", start_number: int = 0, limit: int = MAX_PAGE
) -> Iterator[tuple[Address, int, Emergency]]:
    """Yield patient, number and content of the approved emergencies that no patient has called justified, by patient and number."""
    first = numbered_key(start, start_number) if start else b""
    for key, _ in scan(store, REVIEWS, b"", first, min(limit, MAX_PAGE)):
        address, number = key[:ADDRESS_BYTES], int.from_bytes(key[ADDRESS_BYTES:], "big")
        yield address, number, emergency(store, address, number)


def _listed(
    store: StateReader, index: Table[Listed], owner: Address, start: bytes, limit: int
) -> Iterator[tuple[Digest, Grant]]:
    for _, listed in scan(store, index, owner, owner + start, min(limit, MAX_PAGE)):
        found = _entry(store, GRANTS, listed.grant_id)
        assert found is not None, f"{index.name} leads to grant {listed.grant_id.hex()}, which is not there"
        yield listed.grant_id, found


def _entry(store: StateReader, table: Table[V], key: bytes) -> V | None:
    raw = store.get_state(table.prefix + key)
    return None if raw is None else table.decode(raw)


def find_transaction(store: Store, identifier: bytes) -> FoundTransaction:
    """Return a committed transaction with its receipt. Raises `NotFound`."""
    receipt, block, _, index, raws = _locate(store, identifier)
    return FoundTransaction(raws[index], receipt, microblock_hash(block.microblock.header))


def prove_transaction(store: Store, identifier: bytes) -> TransactionProof:
    """Return the proof that a transaction stands in its microblock. Raises `NotFound`."""
    _, block, batch_index, index, raws = _locate(store, identifier)
    identifiers = [transaction_id(raw) for raw in raws]
    return TransactionProof(
        header=block.microblock.header,
        batch_index=batch_index,
        batch_path=merkle_proof(block.microblock.batches, batch_index),
        transaction_count=len(identifiers),
        transactions_root=merkle_root(identifiers),
        transaction_index=index,
        transaction_path=merkle_proof(identifiers, index),
    )


def verify_transaction_proof(block_hash: bytes, identifier: bytes, proof: TransactionProof) -> bool:
    """Check that the transaction stands in the microblock of that hash."""
    header, count, root = proof.header, proof.transaction_count, proof.transactions_root
    digest = tagged_hash(Tag.BATCH, count.to_bytes(8, "big"), root)
    return (
        microblock_hash(header) == block_hash
        and verify_merkle_proof(root, identifier, proof.transaction_index, count, proof.transaction_path)
        and verify_merkle_proof(header.batches_root, digest, proof.batch_index, header.batch_count, proof.batch_path)
    )


def _locate(store: Store, identifier: bytes) -> tuple[Receipt, SignedMicroblock, int, int, tuple[bytes, ...]]:
    receipt = store.receipt(identifier)
    if receipt is None:
        raise NotFound(f"no committed microblock holds transaction {identifier.hex()}; it may be pending or expired")
    block_hash = store.block_hash(receipt.height)
    assert block_hash is not None, f"receipt of height {receipt.height} beyond the head"
    raw_block = store.microblock(block_hash)
    assert raw_block is not None, f"receipt of height {receipt.height} without its microblock"
    block = _decode_block(raw_block)
    position = receipt.position
    for batch_index, digest in enumerate(block.microblock.batches):
        raw_batch = store.batch(digest)
        assert raw_batch is not None, f"microblock {receipt.height} without its batch {digest.hex()}"
        raws = decode_batch(raw_batch)
        if position < len(raws):
            return receipt, block, batch_index, position, raws
        position -= len(raws)
    raise AssertionError(f"receipt of {identifier.hex()} points behind the end of microblock {receipt.height}")
