# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for the tests of what patients decide: seven institutions, three patients with records, one block at a time."""

import msgspec
import pytest

from ledger import testing
from ledger.acts import BlockContext
from ledger.bodies import Body, RegisterInstitution, RegisterPatient
from ledger.codec import encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection, RejectionReason
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.patients import PatientKeyblock, patient_keyblock_signing_digest
from ledger.state import ACCOUNTS, State
from ledger.transactions import CheckedTransaction, Transaction
from ledger.transition import apply_transaction

GENESIS = testing.genesis(n_members=7)
CHAIN = chain_id(GENESIS)
HEIGHT = 10
NOW_MS = testing.GENESIS_TIMESTAMP_MS + 60_000
CONTEXT = BlockContext(HEIGHT, NOW_MS, GENESIS.parameters, CHAIN, epoch=0, machines=testing.NO_MACHINES)
HOSPITAL, CLINIC, *PROXIES = (testing.key(number) for number in range(6))
"""HOSPITAL registers the patients and writes; CLINIC reads; the four others are proxies."""
FRESH_INSTITUTION = testing.key(6)
"""Accredited, and not registered."""
ALICE, BOB, CAROL = (testing.key(number) for number in (20, 21, 22))
"""Patients."""
STRANGER = testing.key(8)
"""Has credits, and is nothing else."""
KEYBLOCK = testing.patient_keyblock(ALICE, HOSPITAL.address, 20)
RECORDS = testing.record_chain(HOSPITAL.address, KEYBLOCK, 4)


def keyblock_of(patient: PrivateKey, number: int) -> PatientKeyblock:
    return testing.patient_keyblock(patient, HOSPITAL.address, number)


def world(n_records: int = 3) -> State:
    """Institutions `key(0)` to `key(5)` with encryption keys of their number, patients 20 to 22, records of the first."""
    state = State(MemoryStore(GENESIS))
    for number in range(6):
        body = RegisterInstitution(f"Institution {number}", "AT", testing.encryption_key(number))
        act(state, testing.key(number), body)
    for number in (20, 21, 22):
        patient = testing.key(number)
        keyblock = keyblock_of(patient, number)
        consent = patient.sign(patient_keyblock_signing_digest(CHAIN, keyblock))
        act(state, HOSPITAL, RegisterPatient(keyblock, consent, 10**9))
    for record in RECORDS[:n_records]:
        act(state, HOSPITAL, record)
    return state


def act(
    state: State, sender: PrivateKey, body: Body, *, time_ms: int = NOW_MS, height: int = HEIGHT
) -> Rejection | None:
    """Apply a body as it is after the checks that need no state; those have tests of their own."""
    content = Transaction(
        chain_prefix=CHAIN[:4],
        sender=sender.public_key,
        nonce=state.account(sender.address).nonce,
        fee_microcredit=testing.FEE_MICROCREDIT,
        expiry_height=height,
        body=body,
    )
    identifier = tagged_hash(Tag.TRANSACTION, encode(content))
    context = msgspec.structs.replace(CONTEXT, timestamp_ms=time_ms, height=height)
    return apply_transaction(state, context, CheckedTransaction(identifier, b"", sender.address, content))


def refuse(
    state: State,
    reason: RejectionReason,
    sender: PrivateKey,
    body: Body,
    *,
    time_ms: int = NOW_MS,
    height: int = HEIGHT,
) -> str:
    """Apply a body, expect the reason and that nothing has changed; return what the sender is told."""
    before = state.changes()
    with pytest.raises(Rejection) as caught:
        act(state, sender, body, time_ms=time_ms, height=height)
    assert caught.value.reason is reason, caught.value
    assert state.changes() == before
    return caught.value.detail


def credits_in(state: State) -> int:
    return sum(account.balance_microcredit for _, account in state.entries(ACCOUNTS))
