# SPDX-License-Identifier: GPL-3.0-or-later
"""One patient among many: what finding and proving the patient's records costs in a store on disk, whatever else is in the ledger.

The patient's records, grant, revocation and label are real transactions, executed by the ledger. The records of everybody else are written
through the store as state entries, without the transactions behind them: looking up and proving read nothing but the state.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from ledger import queries, testing, testing_patients
from ledger.blocks import Keyblock, SignedKeyblock, keyblock_hash, sign_keyblock
from ledger.bodies import ConfirmDeletion, GrantAccess, RevokeAccess
from ledger.codec import encode
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.genesis import chain_id
from ledger.lmdb_store import LmdbStore, open_store
from ledger.patients import PatientMicroblock, Record, RecordEnvelope, envelope_digest, record_id
from ledger.sharing import grant_id
from ledger.state import RECORDS, State, numbered_key
from ledger.store import BlockUpdate
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from records.claims import Claim, GrantClaim, HistoryClaim, LabelClaim, RecordClaim, RevocationClaim
from records.evidence import StateEntry, gather, verify

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
HOSPITAL, PATIENT = testing.key(0), testing.key(10)
PROXIES = tuple(testing.key(number) for number in (1, 2, 3))
RECORDS_PER_PATIENT = 10
"""Of everybody else."""
WRITTEN_AT_ONCE = 10_000
"""Entries per block: one transaction of the store."""


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence file."""

    claim: str
    """What it proves."""
    size_bytes: int
    """Size of the file, genesis included."""
    verify_us: float
    """Median time to verify it, in microseconds."""


@dataclass(frozen=True)
class Retrieval:
    """What is seen at one size of the ledger."""

    records: int
    """Records in the ledger."""
    found: int
    """Records of the patient."""
    retrieve_us: float
    """Median time to read and decode all of the patient's, in microseconds."""
    scan_us: float
    """Time to find the same records by reading and decoding every record of the ledger, in microseconds."""
    evidence: tuple[Evidence, ...]
    """Evidence about the patient, made from this ledger."""


def timed_us(work: Callable[[], object], rounds: int) -> float:
    """Return the median duration of so many calls, in microseconds; one before them warms up."""
    work()
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        work()
        spent.append((time.perf_counter_ns() - begun) / 1000)
    return median(spent)


def grow(
    directory: Path, sizes: Sequence[int], own: int, rounds: int, told: Callable[[str], None] = lambda _text: None
) -> list[Retrieval]:
    """Fill a store up to each size, and measure there; `own` records are the patient's."""
    store = open_store(directory, GENESIS)
    try:
        claims = _patient(store, own)
        dice = random.Random(own)  # noqa: S311 -- the same ledger in each run; nothing is secret
        count, results = own, []
        for size in sorted(sizes):
            while count < size:
                part = min(WRITTEN_AT_ONCE, size - count)
                _write_strangers(store, dice, part)
                count += part
            results.append(_measure(store, size, claims, own, rounds))
            told(f"{size} records: {results[-1].retrieve_us:.0f} µs, scan {results[-1].scan_us / 1000:.0f} ms")
        return results
    finally:
        store.close()


# ---------------------------------------------------------------------- what is in the ledger


def _patient(store: LmdbStore, count: int) -> tuple[Claim, ...]:
    """Give the patient records, a grant that was revoked, and a label; return what can be claimed about them."""
    keyblock = testing.patient_keyblock(PATIENT, HOSPITAL.address)
    _commit(store, [testing.register_institution(CHAIN, key) for key in (HOSPITAL, *PROXIES, testing.key(4))[:4]])
    _commit(store, [testing.register_patient(CHAIN, HOSPITAL, PATIENT, nonce=1)])
    bodies = testing.record_chain(HOSPITAL.address, keyblock, count)
    _commit(store, [testing.signed(CHAIN, HOSPITAL, body, nonce) for nonce, body in enumerate(bodies, 2)])
    terms = testing_patients.grant_terms(
        PATIENT.address,
        PROXIES[0].address,
        testing.encryption_key(0),
        [key.address for key in (HOSPITAL, *PROXIES[1:])],
    )
    _commit(store, [testing.signed(CHAIN, PATIENT, GrantAccess(terms))])
    _commit(store, [testing.signed(CHAIN, PATIENT, RevokeAccess(grant_id(terms)), 1)])
    confirmed = ConfirmDeletion(grant_id(terms))
    _commit(store, [testing.signed(CHAIN, key, confirmed, 1) for key in PROXIES[1:]])
    permission = testing_patients.permission(bodies[0], HOSPITAL.address)
    label = testing_patients.label(CHAIN, bodies[0], keyblock, permission, PATIENT)
    trapdoor, public_key = testing.chameleon_trapdoor(0)
    prover = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)
    proof = prover.adapt(trapdoor, public_key, label.chameleon_hash, envelope_digest(label.envelope))
    _commit(store, [testing.signed(CHAIN, HOSPITAL, msgspec.structs.replace(label, proof=proof), 2 + count)])
    address, identifier = PATIENT.address, grant_id(terms)
    return (
        RecordClaim(address, count - 1),
        HistoryClaim(address),
        GrantClaim(identifier),
        RevocationClaim(identifier),
        LabelClaim(address, 0),
    )


def _commit(store: LmdbStore, raws: Sequence[bytes]) -> None:
    head = testing.commit(store, raws)
    checked = testing.check(CHAIN, raws)
    refused = [receipt for item in checked if (receipt := store.receipt(item.id)) is None or receipt.reason]
    assert not refused, f"at height {head.height}: {refused}"


def _write_strangers(store: LmdbStore, dice: random.Random, count: int) -> None:
    head = store.head()
    changes = []
    for start in range(0, count, RECORDS_PER_PATIENT):
        patient, author, keyblock = dice.randbytes(20), dice.randbytes(20), dice.randbytes(32)
        for sequence in range(min(RECORDS_PER_PATIENT, count - start)):
            record = _record(dice, patient, author, keyblock, sequence)
            changes.append((RECORDS.prefix + numbered_key(patient, sequence), encode(record)))
    store.commit(
        BlockUpdate(
            head=msgspec.structs.replace(
                head,
                height=head.height + 1,
                block_hash=dice.randbytes(32),
                record_count=head.record_count + count,
                transaction_count=head.transaction_count + count,
            ),
            microblock=b"",
            certificate=b"",
            batches=(),
            changes=tuple(sorted(changes)),
            receipts=(),
        )
    )


def _record(dice: random.Random, patient: bytes, author: bytes, keyblock: bytes, sequence: int) -> Record:
    link = PatientMicroblock(
        patient=patient,
        patient_keyblock=keyblock,
        previous=dice.randbytes(32),
        sequence=sequence,
        author=author,
        chameleon_hash=b"\0" + dice.randbytes(31),
    )
    envelope = RecordEnvelope(
        blob_id=dice.randbytes(32),
        capsule_digest=dice.randbytes(32),
        blob_bytes=40_000,
        author=author,
        status="final",
        label="",
        replaced_by=b"",
    )
    return Record(
        record_id=record_id(link),
        microblock=link,
        generation=0,
        envelope=envelope,
        opening=b"\0" + dice.randbytes(31),
        label_count=0,
        may_erase=False,
        committed_height=1,
        committed_timestamp_ms=testing.GENESIS_TIMESTAMP_MS,
    )


# ---------------------------------------------------------------------- what is measured


def _measure(store: LmdbStore, size: int, claims: Sequence[Claim], own: int, rounds: int) -> Retrieval:
    def retrieve() -> list[Record]:
        return list(queries.patient_records(store, PATIENT.address, 0, own))

    begun = time.perf_counter_ns()
    by_scan = _scan(store, PATIENT.address)
    scan_us = (time.perf_counter_ns() - begun) / 1000
    assert by_scan == retrieve(), "the patient's index and a scan of the ledger find the same"
    return Retrieval(
        records=size,
        found=len(by_scan),
        retrieve_us=timed_us(retrieve, rounds),
        scan_us=scan_us,
        evidence=tuple(_evidence(store, claim, rounds) for claim in claims),
    )


def _scan(store: LmdbStore, patient: bytes) -> list[Record]:
    """Return a patient's records as one finds them who has nothing but a list of all records."""
    entries = (record for _, record in State(store).entries(RECORDS))
    return [record for record in entries if record.microblock.patient == patient]


def _evidence(store: LmdbStore, claim: Claim, rounds: int) -> Evidence:
    signed = _keyblock(store)

    def fetch(keys: Sequence[bytes]) -> list[StateEntry]:
        return [StateEntry(key, store.get_state(key), store.state_proof(key)) for key in keys]

    raw, findings = gather(encode(GENESIS), signed, claim, fetch)
    trusted = keyblock_hash(signed.keyblock)
    return Evidence(findings.claim, len(raw), timed_us(lambda: verify(raw, trusted), rounds))


def _keyblock(store: LmdbStore) -> SignedKeyblock:
    """Return a keyblock over the present state, the chain's first one; its puzzle is left out, for evidence does not rest on it."""
    miner = testing.key(0)
    keyblock = Keyblock(
        previous=CHAIN,
        microblock=store.head().block_hash,
        miner=miner.public_key,
        reveal_key=testing.reveal_keys(0)[1],
        reputation_nano=0,
        target=b"\xff" * 32,
        timestamp_ms=store.head().timestamp_ms,
        state_root=store.state_root(),
        nonce=bytes(32),
    )
    return sign_keyblock(CHAIN, miner, keyblock)
