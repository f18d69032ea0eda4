# SPDX-License-Identifier: GPL-3.0-or-later
"""Look-ups across tables, and proofs of a transaction's place."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import queries, testing
from ledger.codec import decode, encode
from ledger.crypto.merkle import merkle_proof, merkle_root
from ledger.errors import InvalidInput, NotFound
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.patients import PatientKeyblock
from ledger.queries import (
    MAX_TRANSACTION_PROOF_BYTES,
    TransactionProof,
    find_transaction,
    prove_transaction,
    verify_transaction_proof,
)
from ledger.state import Account
from ledger.store import Store
from ledger.transactions import transaction_id
from ledger.transition import Receipt

HOSPITAL, OTHER, PATIENT, PAYER = testing.key(0), testing.key(1), testing.key(20), testing.key(5)
GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
KEYBLOCK: PatientKeyblock = testing.patient_keyblock(PATIENT, HOSPITAL.address)
RECORDS = testing.record_chain(HOSPITAL.address, KEYBLOCK, 7)
OPENING = [
    testing.register_institution(CHAIN, HOSPITAL),
    testing.register_institution(CHAIN, OTHER),
    testing.register_patient(CHAIN, HOSPITAL, PATIENT, 1),
]


def filled(store: Store) -> Store:
    testing.commit(store, OPENING)
    testing.commit(store, [testing.signed(CHAIN, HOSPITAL, body, 2 + number) for number, body in enumerate(RECORDS)])
    return store


def test_accounts_institutions_and_patients_are_found(store: Store) -> None:
    filled(store)
    assert queries.account(store, PATIENT.address) == Account(0, 10**6)
    assert queries.account(store, testing.key(99).address) == Account(0, 0)
    assert queries.institution(store, OTHER.address).public_key == OTHER.public_key
    assert queries.patient(store, PATIENT.address).record_count == 7
    assert [address for address, _ in queries.institutions(store)] == sorted([HOSPITAL.address, OTHER.address])
    first = min(HOSPITAL.address, OTHER.address)
    assert [address for address, _ in queries.institutions(store, limit=1)] == [first]
    assert [address for address, _ in queries.institutions(store, start=first + b"\0")] != [first]


def test_what_is_not_there_is_said_so(store: Store) -> None:
    with pytest.raises(NotFound, match=r"patient .* is not registered"):
        queries.patient(store, HOSPITAL.address)
    with pytest.raises(NotFound, match=r"institution .* is not registered"):
        queries.institution(store, PATIENT.address)
    with pytest.raises(NotFound, match="no committed microblock holds transaction 0000"):
        find_transaction(store, bytes(32))
    with pytest.raises(NotFound):
        prove_transaction(store, bytes(32))
    assert list(queries.patient_records(store, PATIENT.address)) == []


def test_records_of_a_patient_come_in_order_and_by_page(store: Store) -> None:
    filled(store)
    everything = list(queries.patient_records(store, PATIENT.address))
    assert [record.microblock for record in everything] == [body.microblock for body in RECORDS]
    assert list(queries.patient_records(store, PATIENT.address, 2, 3)) == everything[2:5]
    assert list(queries.patient_records(store, PATIENT.address, 7)) == []
    assert list(queries.patient_records(store, PATIENT.address, limit=10**9)) == everything


def test_a_transaction_is_found_with_its_last_effect(store: Store) -> None:
    good = testing.transfer(CHAIN, PAYER, OTHER.address, 1)
    late = testing.transfer(CHAIN, PAYER, OTHER.address, 1, nonce=9)
    testing.commit(store, [late], [good, late])
    testing.commit(store, [good])
    assert find_transaction(store, transaction_id(good)).raw == good
    assert find_transaction(store, transaction_id(good)).receipt == Receipt(1, 1, "")
    assert find_transaction(store, transaction_id(good)).block_hash == store.block_hash(1)
    assert find_transaction(store, transaction_id(late)).receipt == Receipt(1, 2, "nonce_gap")


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_every_transaction_of_a_block_has_a_proof_for_it_and_for_no_other(sizes: list[int]) -> None:
    store = MemoryStore(GENESIS)
    nonces = iter(range(100))
    batches = [[testing.transfer(CHAIN, PAYER, OTHER.address, 1, next(nonces)) for _ in range(size)] for size in sizes]
    head = testing.commit(store, *batches)
    ids = [transaction_id(raw) for batch in batches for raw in batch]
    proofs = [prove_transaction(store, identifier) for identifier in ids]
    for identifier, proof in zip(ids, proofs, strict=True):
        raw = encode(proof)
        assert decode(TransactionProof, raw, MAX_TRANSACTION_PROOF_BYTES) == proof
        assert verify_transaction_proof(head.block_hash, identifier, proof)
        assert not verify_transaction_proof(bytes(32), identifier, proof)
        assert not verify_transaction_proof(head.block_hash, bytes(32), proof)
    if len(ids) > 1:
        assert not verify_transaction_proof(head.block_hash, ids[0], proofs[1])


@settings(max_examples=200)
@given(st.data())
def test_no_altered_proof_verifies(data: st.DataObject) -> None:
    store = MemoryStore(GENESIS)
    batches = [[testing.transfer(CHAIN, PAYER, OTHER.address, 1, 3 * part + n) for n in range(3)] for part in range(3)]
    head = testing.commit(store, *batches)
    identifier = transaction_id(batches[1][2])
    raw = bytearray(encode(prove_transaction(store, identifier)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        forged = decode(TransactionProof, bytes(raw), MAX_TRANSACTION_PROOF_BYTES)
    except InvalidInput:
        return
    assert not verify_transaction_proof(head.block_hash, identifier, forged)


def test_a_batch_digest_does_not_pass_for_a_transaction() -> None:
    store = MemoryStore(GENESIS)
    batches = [[testing.transfer(CHAIN, PAYER, OTHER.address, 1, n)] for n in range(2)]
    head = testing.commit(store, *batches)
    honest = prove_transaction(store, transaction_id(batches[0][0]))
    digests = [testing.batch(CHAIN, raws)[0] for raws in batches]
    forged = msgspec.structs.replace(
        honest,
        transaction_count=2,
        transactions_root=merkle_root(digests),
        transaction_index=0,
        transaction_path=merkle_proof(digests, 0),
    )
    assert not verify_transaction_proof(head.block_hash, digests[0], forged)


def test_a_store_that_contradicts_itself_is_our_own_fault(chain: bytes) -> None:
    store = MemoryStore(GENESIS)
    raw = testing.transfer(chain, PAYER, OTHER.address)
    testing.commit(store, [raw])
    store._receipts[b"i" * 32] = Receipt(1, 1, "")
    store._receipts[b"j" * 32] = Receipt(9, 0, "")
    store._receipts[b"k" * 32] = Receipt(0, 0, "")
    for name, text in ((b"i", "behind the end"), (b"j", "beyond the head"), (b"k", "without its microblock")):
        with pytest.raises(AssertionError, match=text):
            find_transaction(store, name * 32)
    store._batches.clear()
    with pytest.raises(AssertionError, match="without its batch"):
        find_transaction(store, transaction_id(raw))
