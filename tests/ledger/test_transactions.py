# SPDX-License-Identifier: GPL-3.0-or-later
"""The two checks of a transaction that need no state, and batches."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import Body, RegisterInstitution, RegisterPatient, ReportMisbehaviour, Transfer
from ledger.codec import encode
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ContractBody,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.crypto.chameleon import FIELD_ORDER
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.evidence import ConflictingMicroblocks
from ledger.genesis import chain_id
from ledger.offchain import (
    MAX_FRAUD_PROOF_BYTES,
    MAX_REQUEST_BYTES,
    BatchCommitment,
    ForcedPlace,
    LeafProof,
    RequestLeaf,
    WrongExecution,
)
from ledger.partial_tree import WitnessEntry
from ledger.patients import patient_keyblock_signing_digest
from ledger.state_tree import ProofStep, StateProof
from ledger.transactions import (
    MAX_BATCH_BYTES,
    MAX_BATCH_TRANSACTIONS,
    MAX_CHALLENGE_BYTES,
    MAX_TRANSACTION_BYTES,
    SignedTransaction,
    batch_digest,
    check_shape,
    check_transaction,
    decode_batch,
    encode_batch,
    transaction_id,
)

CHAIN = chain_id(testing.genesis())


def witness_entry(steps: int, value_bytes: int = 0) -> WitnessEntry:
    proof = StateProof(tuple(ProofStep(bit % 256, bytes(32)) for bit in range(steps)), (bytes(32), bytes(32)))
    return WitnessEntry(b"\xff" * 64, b"\xff" * value_bytes, proof)


def fraud_proof(*witness: WitnessEntry) -> WrongExecution:
    disputed = LeafProof(0, RequestLeaf(bytes(32), 0, 1, bytes(32), bytes(32)), ())
    return WrongExecution(b"\xff" * MAX_REQUEST_BYTES, None, disputed, witness)


def contract_bodies() -> list[ContractBody]:
    """Return one of each kind; that they make sense together is for the state to say."""
    name, who = bytes(32), bytes(20)
    times = (2**40, 2**40 + 1)
    commitment = BatchCommitment(name, 3, name, name, name, 2, 9, name, 900, *times, (ForcedPlace(name, 1),))
    return [
        OpenContract(7, "micro_fees", 1, b"\x91\x01", 10**9),
        FundContract(name, who, 1),
        CommitBatch(commitment),
        ChallengeBatch(name, 3, fraud_proof(witness_entry(2, 5))),
        ForceOperation(name, b"\xff" * 100),
        FreezeContract(name),
        CloseContract(name),
        ClaimBalance(name, who, 3, (witness_entry(3),)),
        ReclaimDeposit(name, 0),
        ReleaseBond(name),
    ]


SENDER, OTHER, PATIENT = testing.key(0), testing.key(1), testing.key(20)
RAW = testing.transfer(CHAIN, SENDER, OTHER.address, 5)
KINDS = {
    "transfer": RAW,
    "institution": testing.register_institution(CHAIN, SENDER),
    "patient": testing.register_patient(CHAIN, SENDER, PATIENT),
    "authorisation": testing.authorise_author(CHAIN, PATIENT, OTHER.address),
    "record": testing.commit_record(CHAIN, SENDER, PATIENT, SENDER.address),
    "votes": testing.report_misbehaviour(CHAIN, SENDER, testing.votes_evidence(CHAIN, 1)),
    "microblocks": testing.report_misbehaviour(CHAIN, SENDER, testing.microblocks_evidence(CHAIN, 1)),
    **{type(body).__name__: testing.signed(CHAIN, SENDER, body) for body in contract_bodies()},
}


def reason_of(raw: bytes, chain: bytes = CHAIN) -> RejectionReason:
    with pytest.raises(Rejection) as caught:
        check_transaction(raw, testing.rules_of(chain))
    assert caught.value.detail
    assert str(caught.value) == f"{caught.value.reason.value}: {caught.value.detail}"
    return caught.value.reason


@pytest.mark.parametrize("raw", KINDS.values(), ids=KINDS.keys())
def test_every_kind_passes_and_keeps_its_bytes(raw: bytes) -> None:
    checked = check_transaction(raw, testing.rules_of(CHAIN))
    assert checked.raw == raw
    assert checked.id == transaction_id(raw) == tagged_hash(Tag.TRANSACTION, raw)
    assert checked.sender == (PATIENT if raw is KINDS["authorisation"] else SENDER).address
    assert check_shape(raw, CHAIN).transaction == checked.transaction


@pytest.mark.parametrize("raw", KINDS.values(), ids=KINDS.keys())
def test_a_transaction_of_another_chain_is_refused_even_if_the_prefix_agrees(raw: bytes) -> None:
    assert reason_of(raw, chain_id(testing.genesis(network="other"))) is RejectionReason.WRONG_CHAIN
    twin = CHAIN[:4] + bytes(28)
    assert reason_of(raw, twin) is RejectionReason.BAD_SIGNATURE


@settings(max_examples=300)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_no_changed_byte_survives_the_checks(kind: str, data: st.DataObject) -> None:
    raw = bytearray(KINDS[kind])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Rejection):
        check_transaction(bytes(raw), testing.rules_of(CHAIN))


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_no_shortened_or_lengthened_transaction_survives_the_checks(kind: str, data: st.DataObject) -> None:
    raw = KINDS[kind]
    cut = data.draw(st.integers(0, len(raw) - 1))
    assert reason_of(raw[:cut]) is RejectionReason.MALFORMED
    assert reason_of(raw + data.draw(st.binary(min_size=1, max_size=9))) is RejectionReason.MALFORMED


@given(st.binary(max_size=400))
def test_random_bytes_are_malformed(raw: bytes) -> None:
    assert reason_of(raw) is RejectionReason.MALFORMED


def test_size_is_checked_before_anything_else() -> None:
    assert reason_of(bytes(MAX_CHALLENGE_BYTES + 1)) is RejectionReason.TOO_LARGE
    assert reason_of(bytes(MAX_CHALLENGE_BYTES)) is RejectionReason.MALFORMED


def challenge(witness: tuple[WitnessEntry, ...]) -> bytes:
    return testing.signed(CHAIN, SENDER, ChallengeBatch(bytes(32), 2**63 - 1, fraud_proof(*witness)), 2**63 - 1)


def test_a_challenge_may_be_as_large_as_any_proof_of_fraud_and_nothing_else_may() -> None:
    room = (*(witness_entry(256, 1024) for _ in range(3)), witness_entry(256))
    largest = challenge(room)
    assert MAX_FRAUD_PROOF_BYTES < len(largest) <= MAX_CHALLENGE_BYTES
    checked = check_transaction(largest, testing.rules_of(CHAIN))
    assert check_shape(largest, CHAIN).transaction == checked.transaction
    assert decode_batch(encode_batch([largest] * (MAX_BATCH_BYTES // len(largest))))
    assert reason_of(challenge((*room, witness_entry(20)))) is RejectionReason.TOO_LARGE
    entries = (witness_entry(256), msgspec.structs.replace(witness_entry(256), key=b"k"))
    claim = testing.signed(CHAIN, SENDER, ClaimBalance(bytes(32), bytes(20), 0, entries))
    assert MAX_TRANSACTION_BYTES < len(claim) < MAX_CHALLENGE_BYTES
    assert reason_of(claim) is RejectionReason.TOO_LARGE


def test_every_kind_of_contracts_transaction_is_among_those_checked_here() -> None:
    assert {type(body) for body in contract_bodies()} == set(get_args(ContractBody))


def test_a_signature_by_another_key_or_of_another_content_is_refused() -> None:
    signed = msgspec.msgpack.decode(RAW, type=SignedTransaction)
    digest = tagged_hash(Tag.TRANSACTION_SIGNATURE, CHAIN, encode(signed.transaction))
    for signature in (OTHER.sign(digest), SENDER.sign(bytes(32)), bytes(64), b"\xff" * 64):
        assert reason_of(encode(SignedTransaction(signed.transaction, signature))) is RejectionReason.BAD_SIGNATURE


def test_a_sender_that_is_no_point_is_refused() -> None:
    signed = msgspec.msgpack.decode(RAW, type=SignedTransaction)
    transaction = msgspec.structs.replace(signed.transaction, sender=b"\x02" + b"\xff" * 32)
    assert reason_of(encode(SignedTransaction(transaction, signed.signature))) is RejectionReason.BAD_SIGNATURE


def patient_body(**fields: object) -> RegisterPatient:
    keyblock = msgspec.structs.replace(testing.patient_keyblock(PATIENT, SENDER.address), **fields)
    return RegisterPatient(keyblock, PATIENT.sign(patient_keyblock_signing_digest(CHAIN, keyblock)), 0)


NO_POINT = b"\x02" + b"\xff" * 32
RECORD = testing.record_body(SENDER.address, testing.patient_keyblock(PATIENT, SENDER.address))
VOTES = testing.votes_evidence(CHAIN, 1)
BODIES: list[tuple[str, Body, RejectionReason]] = [
    ("re-encryption key", patient_body(reencryption_key=bytes(33)), RejectionReason.MALFORMED),
    ("chameleon key", patient_body(chameleon_key=FIELD_ORDER.to_bytes(32, "big")), RejectionReason.MALFORMED),
    (
        "signing key",
        patient_body(signing_key=NO_POINT, patient=address_of(NO_POINT)),
        RejectionReason.BAD_SIGNATURE,
    ),
    ("another's identifier", patient_body(patient=OTHER.address), RejectionReason.MALFORMED),
    ("generation", patient_body(generation=1), RejectionReason.MALFORMED),
    ("predecessor", patient_body(previous=b"\1" + bytes(31)), RejectionReason.MALFORMED),
    (
        "patient's signature",
        msgspec.structs.replace(patient_body(), patient_signature=SENDER.sign(bytes(32))),
        RejectionReason.BAD_SIGNATURE,
    ),
    ("encryption key", RegisterInstitution("H", "AT", bytes(33)), RejectionReason.MALFORMED),
    ("no name", RegisterInstitution("", "AT", testing.encryption_key(0)), RejectionReason.MALFORMED),
    ("long name", RegisterInstitution("H" * 129, "AT", testing.encryption_key(0)), RejectionReason.MALFORMED),
    ("country", RegisterInstitution("H", "at", testing.encryption_key(0)), RejectionReason.MALFORMED),
    ("country with a line", RegisterInstitution("H", "AT\n", testing.encryption_key(0)), RejectionReason.MALFORMED),
    ("opening", msgspec.structs.replace(RECORD, opening=bytes(32)), RejectionReason.WRONG_OPENING),
    (
        "envelope",
        msgspec.structs.replace(RECORD, envelope=msgspec.structs.replace(RECORD.envelope, blob_bytes=1)),
        RejectionReason.WRONG_OPENING,
    ),
    ("amount", Transfer(OTHER.address, 2**63), RejectionReason.MALFORMED),
    ("negative amount", Transfer(OTHER.address, -1), RejectionReason.MALFORMED),
    ("recipient", Transfer(bytes(19), 1), RejectionReason.MALFORMED),
    ("offender", ReportMisbehaviour(msgspec.structs.replace(VOTES, offender=bytes(32))), RejectionReason.MALFORMED),
    ("round", ReportMisbehaviour(msgspec.structs.replace(VOTES, round=-1)), RejectionReason.MALFORMED),
    ("vote", ReportMisbehaviour(msgspec.structs.replace(VOTES, first_hash=b"")), RejectionReason.MALFORMED),
]


@pytest.mark.parametrize(("body", "reason"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_a_body_that_is_wrong_by_itself_is_refused(body: Body, reason: RejectionReason) -> None:
    assert reason_of(testing.signed(CHAIN, SENDER, body)) is reason


def test_evidence_is_not_judged_before_it_commits_so_that_a_lie_costs_something() -> None:
    lie = testing.report_misbehaviour(CHAIN, SENDER, msgspec.structs.replace(VOTES, round=VOTES.round + 1))
    assert check_transaction(lie, testing.rules_of(CHAIN)).raw == lie


def test_largest_evidence_fits_a_transaction_with_room_to_spare() -> None:
    header = msgspec.structs.replace(
        testing.microblocks_evidence(CHAIN, 1).first,
        **dict.fromkeys(("height", "epoch", "term", "round", "timestamp_ms"), 2**63 - 1),
    )
    evidence = ConflictingMicroblocks(OTHER.public_key, header, bytes(64), header, bytes(64))
    raw = testing.report_misbehaviour(CHAIN, SENDER, evidence)
    assert 4 * len(raw) < MAX_TRANSACTION_BYTES
    assert check_transaction(raw, testing.rules_of(CHAIN)).raw == raw


def test_consent_of_a_patient_is_for_one_chain() -> None:
    other = chain_id(testing.genesis(network="other"))
    body = msgspec.msgpack.decode(testing.register_patient(other, SENDER, PATIENT), type=SignedTransaction)
    assert reason_of(testing.signed(CHAIN, SENDER, body.transaction.body)) is RejectionReason.BAD_SIGNATURE


# ---------------------------------------------------------------- batches


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=30))
def test_batch_comes_back_as_it_was_made(raws: list[bytes]) -> None:
    assert decode_batch(encode_batch(raws)) == tuple(raws)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (encode_batch([]), "no transactions"),
        (encode_batch([b""] * (MAX_BATCH_TRANSACTIONS + 1)), "length <= 4096"),
        (bytes(MAX_BATCH_BYTES + 1), "at most 524288"),
        (b"\xdc\x00\x01\xc4\x00", "canonical"),
        (b"\xdd\xff\xff\xff\xff", "batch cannot be decoded"),
        (b"\x91\xa1a", "bytes"),
        (b"", "batch"),
    ],
)
def test_batch_out_of_bounds_or_form_is_refused(raw: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        decode_batch(raw)


def test_largest_batch_is_accepted() -> None:
    assert len(decode_batch(encode_batch([b""] * MAX_BATCH_TRANSACTIONS))) == MAX_BATCH_TRANSACTIONS


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20, unique=True), st.data())
def test_digest_of_a_batch_depends_on_order_and_content(ids: list[bytes], data: st.DataObject) -> None:
    other = data.draw(st.permutations(ids) | st.lists(st.sampled_from(ids), min_size=1, max_size=21))
    assert (batch_digest(ids) == batch_digest(other)) == (ids == other)
