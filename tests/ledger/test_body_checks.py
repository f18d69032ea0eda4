# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused of a body before any state is looked at: parts that contradict each other, wrong signatures, wrong proofs."""

from functools import lru_cache
from typing import get_args

import msgspec
import pytest

from ledger import testing
from ledger.bodies import (
    AppointGuardians,
    ApproveEmergency,
    AuthoriseAuthor,
    Body,
    ChangeKeys,
    ConfirmDeletion,
    ConfirmErasure,
    DelegatePowers,
    GrantAccess,
    LabelRecord,
    OpenEmergency,
    ReviewEmergency,
    RevokeAccess,
)
from ledger.body_checks import CHECKS
from ledger.chain import Chain
from ledger.codec import encode
from ledger.crypto.chameleon import FIELD_ORDER
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import PrivateKey
from ledger.emergency import Reason
from ledger.errors import Rejection, RejectionReason
from ledger.guardianship import MAX_GUARDIANS, POWERS, GuardianApproval
from ledger.labels import LabelPermission, labelled
from ledger.patients import PatientKeyblock, envelope_digest, record_id
from ledger.sharing import MAX_GRANT_RECORDS, MAX_PROXIES, PURPOSES, GrantTerms
from ledger.testing_patients import (
    NO_PROOF,
    backup_digest,
    change_keys,
    grant_terms,
    label,
    next_keyblock,
    permission,
)
from ledger.transactions import MAX_TRANSACTION_BYTES, check_transaction
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from tests.ledger.acts_kit import ALICE, BOB, CAROL, CHAIN, CLINIC, HOSPITAL, KEYBLOCK, PROXIES, RECORDS, STRANGER

RULES = testing.rules_of(CHAIN)
NO_POINT = b"\x02" + b"\xff" * 32
NEW = testing.key(30)
SECOND = next_keyblock(KEYBLOCK, NEW, 30)
TERMS = grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), [proxy.address for proxy in PROXIES])
PERMITTED = permission(RECORDS[0], HOSPITAL.address)
GUARDIANS = tuple(sorted((BOB.address, CAROL.address, CLINIC.address)))
PROVER = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


def reason_of(body: Body, chain: Chain = RULES) -> RejectionReason:
    with pytest.raises(Rejection) as caught:
        check_transaction(testing.signed(CHAIN, STRANGER, body), chain)
    return caught.value.reason


def accept(body: Body) -> None:
    raw = testing.signed(CHAIN, STRANGER, body)
    assert check_transaction(raw, RULES).transaction.body == body


def grant(**changes: object) -> GrantAccess:
    return GrantAccess(msgspec.structs.replace(TERMS, **changes))


# ---------------------------------------------------------------- grants


def test_grants_of_all_records_and_of_chosen_ones_are_accepted() -> None:
    accept(grant())
    accept(grant(all_records=False, records=(0, 1, 7)))
    accept(grant(purposes=PURPOSES[:8], emergency_approvals=4, threshold=4))


@pytest.mark.parametrize(
    "changes",
    [
        {"receiving_key": NO_POINT},
        {"all_records": False},
        {"records": (1,)},
        {"all_records": False, "records": (1, 1)},
        {"all_records": False, "records": (2, 1)},
        {"all_records": False, "records": (-1,)},
        {"purposes": ()},
        {"purposes": ("MARKETING",)},
        {"purposes": ("TREAT", "ETREAT")},
        {"purposes": ("TREAT", "TREAT")},
        {"purposes": PURPOSES},
        {"from_ms": TERMS.until_ms},
        {"threshold": 1},
        {"threshold": 5},
        {"threshold": MAX_PROXIES + 1},
        {"proxies": TERMS.proxies[:3]},
        {"proxies": (*TERMS.proxies[:3], TERMS.proxies[0])},
        {"proxies": (*TERMS.proxies[:3], CLINIC.address)},
        {"proxies": TERMS.proxies[:1], "fragment_digests": TERMS.fragment_digests[:1]},
        {"fragment_digests": (*TERMS.fragment_digests[:3], TERMS.fragment_digests[0])},
        {"emergency_approvals": 5},
        {"emergency_approvals": -1},
    ],
)
def test_terms_that_contradict_themselves_are_malformed(changes: dict[str, object]) -> None:
    assert reason_of(grant(**changes)) is RejectionReason.MALFORMED


def largest_terms() -> GrantTerms:
    proxies = [bytes([number]) * 20 for number in range(MAX_PROXIES)]
    made = grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), proxies)
    return msgspec.structs.replace(
        made,
        all_records=False,
        records=tuple(range(2**63 - MAX_GRANT_RECORDS, 2**63)),
        purposes=PURPOSES[:8],
        generation=2**63 - 1,
        from_ms=2**63 - 2,
        until_ms=2**63 - 1,
        threshold=MAX_PROXIES,
        emergency_approvals=MAX_PROXIES,
    )


def test_the_largest_bodies_fit_a_transaction_several_times_over() -> None:
    guardians = sorted((testing.key(number) for number in range(100, 100 + MAX_GUARDIANS)), key=lambda k: k.public_key)
    largest: list[Body] = [
        GrantAccess(largest_terms()),
        change_keys(CHAIN, SECOND, NEW, guardians),
        AppointGuardians(ALICE.address, tuple(sorted(key.address for key in guardians)), 16, backup_digest()),
        DelegatePowers(ALICE.address, BOB.address, POWERS, 2**63 - 1),
    ]
    for body in largest:
        accept(body)
        assert 3 * len(encode(body)) < MAX_TRANSACTION_BYTES


# ---------------------------------------------------------------- keys


def keyblock(base: PatientKeyblock = SECOND, **changes: object) -> PatientKeyblock:
    return msgspec.structs.replace(base, **changes)


def test_a_change_of_keys_is_signed_by_the_new_key_and_by_each_guardian() -> None:
    accept(change_keys(CHAIN, SECOND, NEW))
    accept(change_keys(CHAIN, SECOND, NEW, [BOB, CAROL]))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (change_keys(CHAIN, keyblock(reencryption_key=NO_POINT), NEW), RejectionReason.MALFORMED),
        (
            change_keys(CHAIN, keyblock(chameleon_key=FIELD_ORDER.to_bytes(32, "big")), NEW),
            RejectionReason.MALFORMED,
        ),
        (change_keys(CHAIN, keyblock(generation=0), NEW), RejectionReason.MALFORMED),
        (change_keys(CHAIN, SECOND, ALICE), RejectionReason.BAD_SIGNATURE),
        (change_keys(CHAIN, keyblock(signing_key=NO_POINT), NEW), RejectionReason.BAD_SIGNATURE),
        (change_keys(bytes(32), SECOND, NEW), RejectionReason.BAD_SIGNATURE),
    ],
)
def test_new_keys_that_are_wrong_by_themselves_are_refused(body: ChangeKeys, reason: RejectionReason) -> None:
    assert reason_of(body) is reason


def test_approvals_are_different_in_order_and_for_this_keyblock_on_this_chain() -> None:
    good = change_keys(CHAIN, SECOND, NEW, [BOB, CAROL])
    first, second = good.approvals
    for approvals in ((first, first), (second, first)):
        assert reason_of(msgspec.structs.replace(good, approvals=approvals)) is RejectionReason.MALFORMED
    wrong = (
        GuardianApproval(first.guardian, second.signature),
        GuardianApproval(NO_POINT, first.signature),
        change_keys(CHAIN, keyblock(previous=ZERO_DIGEST), NEW, [BOB]).approvals[0],
        change_keys(bytes(32), SECOND, NEW, [BOB]).approvals[0],
    )
    for approval in wrong:
        body = msgspec.structs.replace(good, approvals=(approval,))
        assert reason_of(body) is RejectionReason.BAD_SIGNATURE


# ---------------------------------------------------------------- guardians and delegates


@pytest.mark.parametrize(
    "body",
    [
        AppointGuardians(ALICE.address, GUARDIANS[:1], 2, backup_digest()),
        AppointGuardians(ALICE.address, GUARDIANS[:1] * 2, 2, backup_digest()),
        AppointGuardians(ALICE.address, GUARDIANS[::-1], 2, backup_digest()),
        AppointGuardians(ALICE.address, GUARDIANS, 1, backup_digest()),
        AppointGuardians(ALICE.address, GUARDIANS, 4, backup_digest()),
        AppointGuardians(ALICE.address, tuple(sorted((ALICE.address, BOB.address))), 2, backup_digest()),
        AppointGuardians(ALICE.address, GUARDIANS, 2, b""),
        DelegatePowers(ALICE.address, ALICE.address, ("grant",), 1),
        DelegatePowers(ALICE.address, BOB.address, ("label", "grant"), 1),
        DelegatePowers(ALICE.address, BOB.address, ("grant", "grant"), 1),
    ],
)
def test_guardians_and_powers_that_contradict_themselves_are_malformed(body: Body) -> None:
    assert reason_of(body) is RejectionReason.MALFORMED


def test_powers_purposes_and_reasons_are_known_words() -> None:
    for raw in (
        msgspec.msgpack.encode([14, ALICE.address, BOB.address, ["everything"], 1]),
        msgspec.msgpack.encode([15, bytes(32), "boredom", 1]),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(raw, type=DelegatePowers | OpenEmergency)
    for reason in get_args(Reason):
        accept(OpenEmergency(bytes(32), reason, 1))


def test_bodies_that_say_nothing_of_themselves_are_left_to_the_state() -> None:
    bodies: tuple[Body, ...] = (
        AuthoriseAuthor(ALICE.address, CLINIC.address, allowed=True),
        RevokeAccess(bytes(32)),
        ConfirmDeletion(bytes(32)),
        ConfirmErasure(ALICE.address, 0),
        ApproveEmergency(ALICE.address, 0),
        ReviewEmergency(ALICE.address, 0, is_justified=True),
        AppointGuardians(ALICE.address, GUARDIANS, 3, backup_digest()),
        DelegatePowers(ALICE.address, BOB.address, (), 0),
    )
    for body in bodies:
        accept(body)
    assert RevokeAccess not in CHECKS


# ---------------------------------------------------------------- labels


# A proof takes a tenth of a second.
@lru_cache
def proved(permitted: LabelPermission, signer: PrivateKey = ALICE, record: int = 0) -> LabelRecord:
    made = label(CHAIN, RECORDS[record], KEYBLOCK, permitted, signer)
    trapdoor = testing.chameleon_trapdoor(20)[0]
    proof = PROVER.adapt(trapdoor, made.chameleon_key, made.chameleon_hash, envelope_digest(made.envelope))
    return msgspec.structs.replace(made, proof=proof)


def with_permission(**changes: object) -> LabelRecord:
    permitted = msgspec.structs.replace(PERMITTED, **changes)
    return label(CHAIN, RECORDS[0], KEYBLOCK, permitted, ALICE)


def test_a_label_with_permission_and_proof_is_accepted() -> None:
    accept(proved(PERMITTED))
    replaced = msgspec.structs.replace(PERMITTED, replaced_by=record_id(RECORDS[1].microblock), replacement_sequence=1)
    accept(proved(replaced))


def test_who_knows_the_opening_could_prove_too_and_still_needs_the_permission() -> None:
    record = RECORDS[0]
    statement = (KEYBLOCK.chameleon_key, record.microblock.chameleon_hash, envelope_digest(record.envelope))
    proof = PROVER.prove_opening(*statement, record.opening)
    body = msgspec.structs.replace(proved(PERMITTED), envelope=record.envelope, proof=proof)
    accept(body)  # the state then refuses it: the envelope is not the permitted one
    forged = msgspec.structs.replace(body, signer=HOSPITAL.public_key)
    assert reason_of(forged) is RejectionReason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [
        {"replaced_by": bytes(31)},
        {"replaced_by": PERMITTED.record},
        {"replacement_sequence": 1},
        {"status": "final"},
        {"label": ""},
        {"label": "x" * 129},
    ],
)
def test_a_permission_that_contradicts_itself_is_malformed(changes: dict[str, object]) -> None:
    assert reason_of(with_permission(**changes)) is RejectionReason.MALFORMED


def test_a_permission_that_its_signer_has_not_signed_is_refused() -> None:
    good = proved(PERMITTED)
    for body in (
        msgspec.structs.replace(good, signer=BOB.public_key),
        msgspec.structs.replace(good, signer=NO_POINT),
        msgspec.structs.replace(good, signature=bytes(64)),
        msgspec.structs.replace(good, permission=msgspec.structs.replace(PERMITTED, expiry_height=2**63 - 1)),
        label(bytes(32), RECORDS[0], KEYBLOCK, PERMITTED, ALICE),
    ):
        assert reason_of(body) is RejectionReason.BAD_SIGNATURE


def test_a_proof_for_another_statement_is_refused() -> None:
    good = proved(PERMITTED)
    other_record = proved(permission(RECORDS[1], HOSPITAL.address), record=1)
    amended = msgspec.structs.replace(PERMITTED, status="amended")
    for body in (
        msgspec.structs.replace(good, proof=NO_PROOF),
        msgspec.structs.replace(good, proof=good.proof[:-1] + bytes([good.proof[-1] ^ 1])),
        msgspec.structs.replace(good, proof=other_record.proof),
        msgspec.structs.replace(good, chameleon_hash=other_record.chameleon_hash),
        msgspec.structs.replace(good, chameleon_key=testing.chameleon_trapdoor(21)[1]),
        msgspec.structs.replace(good, chameleon_key=FIELD_ORDER.to_bytes(32, "big")),
        msgspec.structs.replace(good, envelope=RECORDS[0].envelope),
        msgspec.structs.replace(label(CHAIN, RECORDS[0], KEYBLOCK, amended, ALICE), proof=good.proof),
    ):
        assert reason_of(body) is RejectionReason.WRONG_PROOF


def test_one_published_label_enables_no_further_edit() -> None:
    # All that the chain shows of the first label, and an adversary who labels as often as it may: every proof is bound to its
    # envelope, so none of them serves for an envelope of the adversary's own.
    labels = [proved(msgspec.structs.replace(PERMITTED, number=number, label=f"label {number}")) for number in range(3)]
    target = labelled(RECORDS[0].envelope, msgspec.structs.replace(PERMITTED, label="forged"))
    for made in labels:
        forged = msgspec.structs.replace(made, envelope=target)
        assert reason_of(forged) is RejectionReason.WRONG_PROOF


def test_a_proof_counts_under_the_networks_own_key_only() -> None:
    raw = testing.signed(CHAIN, STRANGER, proved(PERMITTED))
    other = PROVER_KEY_WITH_ANOTHER_INPUT
    with pytest.raises(Rejection) as caught:
        check_transaction(raw, Chain(CHAIN, other))
    assert caught.value.reason is RejectionReason.WRONG_PROOF


# The points of the second and third public input exchanged: a valid key, of another circuit.
PROVER_KEY_WITH_ANOTHER_INPUT = (
    DEVELOPMENT_VERIFYING_KEY[:-128] + DEVELOPMENT_VERIFYING_KEY[-64:] + DEVELOPMENT_VERIFYING_KEY[-128:-64]
)
