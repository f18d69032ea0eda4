# SPDX-License-Identifier: GPL-3.0-or-later
"""Every credit leaves a contract once, to whom it belongs: bonds, deposits, claims."""

import msgspec
import pytest

from contracts.machines.micro_fees import Withdraw, payable_keys
from ledger import testing
from ledger.bodies import RegisterInstitution, RegisterPatient
from ledger.codec import encode
from ledger.contract_bodies import (
    ClaimBalance,
    CloseContract,
    FreezeContract,
    FundContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import Claimed, claim_key
from ledger.errors import RejectionReason
from ledger.offchain import deposit_request
from ledger.patients import patient_keyblock_signing_digest
from ledger.state import CLAIMS
from ledger.testing_patients import change_keys, next_keyblock
from tests.contracts import kit
from tests.ledger.contracts_kit import (
    ALICE,
    BOB,
    BOND,
    CAROL,
    CHAIN,
    DIGEST,
    FEE,
    IDENTIFIER,
    NEGLECT,
    OPEN_LOG,
    OPERATOR,
    PAY,
    STRANGER,
    WINDOW,
    Desk,
    force,
    fund,
    opened,
    paid,
)

RELEASE = ReleaseBond(IDENTIFIER)


# ---------------------------------------------------------------- bond and deposits


def test_the_bond_comes_back_once_and_not_before_all_can_be_contested_no_more() -> None:
    world, _, _ = paid()
    world.refuse(RejectionReason.CONTRACT_OPEN, OPERATOR, RELEASE, "its operator may close it")
    assert world.act(OPERATOR, CloseContract(IDENTIFIER)) is None
    world.height = world.contract.settles_height - 1
    world.refuse(RejectionReason.NOT_SETTLED, OPERATOR, RELEASE, f"from height {world.height + 1} on")
    world.height += 1
    was = world.balance(OPERATOR)
    assert world.act(STRANGER, RELEASE) is None
    assert world.balance(OPERATOR) == was + BOND
    world.refuse(RejectionReason.NOTHING_TO_CLAIM, OPERATOR, RELEASE, "was burnt or paid back")
    world.check_i7()


def test_deposits_that_no_batch_took_up_come_back_once() -> None:
    world, desk, _ = paid()
    assert world.act(CAROL, FundContract(IDENTIFIER, BOB.address, 40)) is None
    force(world, desk.sign(ALICE, PAY))
    world.refuse(RejectionReason.CONTRACT_OPEN, BOB, ReclaimDeposit(IDENTIFIER, 1))
    world.height += NEGLECT
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None
    world.refuse(RejectionReason.NOT_SETTLED, BOB, ReclaimDeposit(IDENTIFIER, 1))
    world.height += WINDOW
    was = world.balance(BOB)
    assert world.act(STRANGER, ReclaimDeposit(IDENTIFIER, 1)) is None
    assert world.balance(BOB) == was + 40
    for number in (0, 1, 2, 3):
        world.refuse(RejectionReason.NOTHING_TO_CLAIM, BOB, ReclaimDeposit(IDENTIFIER, number), "1 are answered")
    world.check_i7()


# ---------------------------------------------------------------- claims


def test_what_was_withdrawn_is_paid_by_final_batches_while_the_contract_lives() -> None:
    world, desk, _ = paid()
    desk.accept(desk.sign(BOB, Withdraw(200)))
    desk.commit()
    claim = desk.claim(BOB.address, 1)
    world.height += WINDOW - 1
    world.refuse(RejectionReason.BATCH_NOT_FINAL, BOB, claim, "is final from height")
    world.height += 1
    was = world.balance(BOB)
    assert world.act(STRANGER, claim) is None
    assert world.balance(BOB) == was + 200
    world.refuse(RejectionReason.NOTHING_TO_CLAIM, BOB, claim, "was paid 200")
    world.refuse(RejectionReason.NOTHING_TO_CLAIM, BOB, desk.claim(BOB.address, 0))
    world.refuse(RejectionReason.NOTHING_TO_CLAIM, CAROL, desk.claim(CAROL.address, 1))
    desk.accept(desk.sign(BOB, Withdraw(30)))
    desk.commit()
    world.height += WINDOW
    assert world.act(BOB, desk.claim(BOB.address, 2)) is None
    assert world.balance(BOB) == was + 230 - FEE
    assert world.state.get(CLAIMS, claim_key(IDENTIFIER, BOB.address)) == Claimed(230, is_settled=False)
    assert world.contract.escrow_microcredit == 770
    world.check_i7()


def test_after_the_end_everybody_gets_all_and_the_escrow_is_empty() -> None:
    world, desk, _ = paid()
    desk.accept(desk.sign(BOB, Withdraw(200)))
    desk.commit()
    assert world.act(OPERATOR, CloseContract(IDENTIFIER)) is None
    whole = {user: desk.claim(user.address, 1, with_balance=True) for user in (ALICE, BOB)}
    world.height += WINDOW - 1
    world.refuse(RejectionReason.BATCH_NOT_FINAL, ALICE, whole[ALICE])
    world.height += 1
    world.refuse(RejectionReason.WRONG_PROOF, BOB, desk.claim(BOB.address, 1), "are needed now, in this order")
    world.refuse(RejectionReason.WRONG_BATCH, BOB, desk.claim(BOB.address, 0, with_balance=True), "prove by that one")
    was = {user: world.balance(user) for user in whole}
    for user, amount in ((ALICE, 700), (BOB, 300)):
        assert world.act(STRANGER, whole[user]) is None
        assert world.balance(user) == was[user] + amount
        world.refuse(RejectionReason.NOTHING_TO_CLAIM, user, whole[user], "was paid all")
    nothing = desk.claim(CAROL.address, 1, with_balance=True)
    world.refuse(RejectionReason.NOTHING_TO_CLAIM, CAROL, nothing)
    assert world.contract.escrow_microcredit == 0
    world.check_i7()


def test_claims_need_the_right_proofs() -> None:
    world, desk, _ = paid()
    desk.accept(desk.sign(BOB, Withdraw(200)))
    desk.commit()
    world.height += WINDOW
    claim = desk.claim(BOB.address, 1)
    entry = claim.entries[0]

    def replaced(**changes: object) -> ClaimBalance:
        return msgspec.structs.replace(claim, **changes)

    more = msgspec.structs.replace(entry, value=encode(300))
    older = desk.claim(BOB.address, 0).entries
    whole = desk.claim(BOB.address, 1, with_balance=True)
    wrong = RejectionReason.WRONG_PROOF
    for body, match in (
        (replaced(entries=(more,)), "does not hold"),
        (replaced(entries=(msgspec.structs.replace(entry, value=None),)), "does not hold"),
        (replaced(entries=older), "does not hold"),
        (replaced(entries=whole.entries), "are needed now"),
        (replaced(entries=whole.entries[1:]), "are needed now"),
        (replaced(account=ALICE.address), "are needed now"),
    ):
        world.refuse(wrong, BOB, body, match)
    world.refuse(RejectionReason.MALFORMED, BOB, replaced(entries=(entry, entry)), "two proofs of one state key")
    world.refuse(RejectionReason.BATCH_UNKNOWN, BOB, replaced(number=2))
    world.refuse(RejectionReason.CONTRACT_UNKNOWN, BOB, replaced(contract_id=DIGEST))


def test_a_contract_without_credits_pays_none() -> None:
    world, desk = opened(OPEN_LOG)
    claim = ClaimBalance(IDENTIFIER, BOB.address, 0, kit.watcher().state.witness([payable_keys(BOB.address).withdrawn]))
    world.refuse(RejectionReason.NO_DEPOSITS, BOB, claim, "which holds no credits")
    assert desk.terms.machine == "access_log"


def test_who_has_new_keys_is_paid_there() -> None:
    world, desk = opened()
    hospital, patient, lost_to = testing.key(0), testing.key(20), testing.key(40)
    keyblock = testing.patient_keyblock(patient, hospital.address, 20)
    consent = patient.sign(patient_keyblock_signing_digest(CHAIN, keyblock))
    assert world.act(hospital, RegisterInstitution("Hospital", "AT", testing.encryption_key(0))) is None
    assert world.act(hospital, RegisterPatient(keyblock, consent, 10**6)) is None
    fund(world, desk, patient, 500)
    desk.accept(desk.sign(patient, Withdraw(120)))
    desk.commit()
    assert world.act(ALICE, FundContract(IDENTIFIER, patient.address, 7)) is None
    assert world.act(patient, change_keys(CHAIN, next_keyblock(keyblock, lost_to, 40), lost_to)) is None
    world.height += WINDOW
    was = world.balance(lost_to)
    assert world.act(STRANGER, desk.claim(patient.address, 0)) is None
    assert world.balance(lost_to) == was + 120
    assert world.act(STRANGER, FreezeContract(IDENTIFIER)) is None
    world.height += WINDOW
    assert world.act(STRANGER, desk.claim(patient.address, 0, with_balance=True)) is None
    assert world.act(STRANGER, ReclaimDeposit(IDENTIFIER, 1)) is None
    assert (world.balance(lost_to), world.balance(patient)) == (was + 500 + 7, 0)
    assert world.contract.escrow_microcredit == 0
    world.check_i7()


def forged(desk: Desk, user: bytes, value: bytes) -> None:
    """Make the operator believe in a state that nothing has led to."""
    desk.operator.state.put(payable_keys(user).withdrawn, value)
    desk.operator.state.put(b"m" + payable_keys(user).withdrawn, value)


@pytest.mark.parametrize(
    ("value", "reason", "match"),
    [
        (encode(1_001), RejectionReason.INSUFFICIENT_BALANCE, "the escrow of contract"),
        (encode(2**63 - 1), RejectionReason.INSUFFICIENT_BALANCE, "the escrow of contract"),
        (b"\xc0", RejectionReason.WRONG_PROOF, "holds no amount"),
        (encode(-5), RejectionReason.WRONG_PROOF, "holds no amount"),
        (b"\xcd\x00\x05", RejectionReason.WRONG_PROOF, "holds no amount"),
        (bytes(1_000), RejectionReason.WRONG_PROOF, "holds no amount"),
    ],
)
def test_a_fraud_that_nobody_challenged_pays_no_more_than_there_is(
    value: bytes, reason: RejectionReason, match: str
) -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    forged(desk, BOB.address, value)
    desk.accept(desk.sign(ALICE, PAY))
    desk.commit()
    world.height += WINDOW
    world.refuse(reason, BOB, desk.claim(BOB.address, 0), match)
    world.check_i7()


def test_a_deposit_request_is_what_the_operators_core_makes_of_it() -> None:
    world, desk, batch = paid()
    assert batch.commitment.forced[0].index == 0
    assert deposit_request(IDENTIFIER, 0, ALICE.address, 1_000) in batch.data
    assert world.contract.answered_count == 1
    assert desk.states[0].root() == world.contract.root
