# SPDX-License-Identifier: GPL-3.0-or-later
"""How contracts end: fraud, neglect, their operator's wish; and that every credit leaves them once, to whom it belongs."""

from collections.abc import Callable

import msgspec
import pytest

from contracts.batch_data import prove_leaf
from contracts.machines.micro_fees import Pay, Withdraw, payable_keys
from contracts.operator import Batch
from contracts.shipped import MACHINES
from ledger import testing
from ledger.bodies import RegisterInstitution, RegisterPatient
from ledger.codec import encode
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ForceOperation,
    FreezeContract,
    FundContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import Claimed, claim_key
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import RejectionReason
from ledger.memory_store import MemoryStore
from ledger.miners import Offence
from ledger.offchain import BrokenReceipt, ForcedPlace, SignedReceipt, WrongForced, deposit_request
from ledger.patients import patient_keyblock_signing_digest
from ledger.state import ACCOUNTS, CLAIMS, OFFENCES, Account, State
from ledger.testing_patients import change_keys, next_keyblock
from ledger.transactions import transaction_id
from ledger.transition import Receipt
from tests.contracts import kit
from tests.ledger.contracts_kit import (
    ALICE,
    BALANCE,
    BOB,
    BOND,
    CAROL,
    CHAIN,
    DIGEST,
    DRIFT_MS,
    FEE,
    GENESIS,
    IDENTIFIER,
    NEGLECT,
    OPEN,
    OPEN_LOG,
    OPERATOR,
    PENALTY,
    RULES,
    STRANGER,
    Desk,
    Items,
    World,
    force,
    fund,
    lying,
    opened,
    rebuilt,
)

WINDOW = RULES.window_microblocks
PAY = Pay(BOB.address, 300, DIGEST)
RELEASE = ReleaseBond(IDENTIFIER)


def paid() -> tuple[World, Desk, Batch]:
    """Alice has paid in 1 000, and Bob 300 of it; the first batch waits to be final."""
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    desk.accept(desk.sign(ALICE, PAY))
    return world, desk, desk.commit()


def lied() -> tuple[World, Desk, Batch]:
    """After a first batch that is right and final there is a second one that lies."""
    world, desk, _ = paid()
    world.height += WINDOW
    desk.accept(desk.sign(ALICE, PAY))
    lie = lying(desk.cut())
    assert world.act(OPERATOR, CommitBatch(lie.commitment)) is None
    return world, desk, lie


# ---------------------------------------------------------------- challenge


def test_fraud_sets_back_to_the_last_final_batch_and_costs_the_bond() -> None:
    world, desk, lie = lied()
    fund(world, desk, CAROL, 70)
    before, was = world.contract, world.balance(STRANGER)
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, desk.proof(lie))) is None
    contract = world.contract
    first = desk.batches[0].commitment
    assert (contract.status, contract.batch_count, contract.root) == ("frozen", 1, first.new_root)
    assert (contract.until_ms, contract.last_height) == (first.until_ms, world.batch_height(0))
    assert (contract.answered_count, contract.forced_count) == (1, 2)
    assert (contract.escrow_microcredit, contract.bond_microcredit) == (before.escrow_microcredit, 0)
    assert world.balance(STRANGER) == was - FEE + BOND // 2
    assert world.state.supply().burnt_microcredit == BOND - BOND // 2
    assert world.state.get(OFFENCES, OPERATOR.public_key) == Offence(world.height, 2, 0, STRANGER.address, IDENTIFIER)
    assert world.is_settled
    world.check_i7()


def test_fraud_in_the_first_batch_leaves_a_contract_without_any() -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    lie = lying(desk.cut())
    assert world.act(OPERATOR, CommitBatch(lie.commitment)) is None
    opened_ms, opened_height = lie.commitment.from_ms, world.height
    world.height += 1
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 0, desk.proof(lie))) is None
    contract = world.contract
    assert (contract.batch_count, contract.root, contract.answered_count) == (0, ZERO_DIGEST, 0)
    assert (contract.until_ms, contract.last_height) == (opened_ms, opened_height)
    claim = ClaimBalance(
        IDENTIFIER, ALICE.address, 0, kit.watcher().state.witness([payable_keys(ALICE.address).withdrawn])
    )
    world.refuse(RejectionReason.BATCH_UNKNOWN, ALICE, claim, "0 count")
    was = world.balance(ALICE)
    assert world.act(STRANGER, ReclaimDeposit(IDENTIFIER, 0)) is None
    assert world.balance(ALICE) == was + 1_000
    assert world.contract.escrow_microcredit == 0


def test_right_batches_that_follow_a_wrong_one_do_not_count_either() -> None:
    world, desk, lie = lied()
    proof = desk.proof(lie)
    honest = desk.batches[1].commitment
    following = msgspec.structs.replace(
        honest, number=2, previous_root=lie.commitment.new_root, from_ms=lie.commitment.until_ms
    )
    assert world.act(OPERATOR, CommitBatch(following)) is None
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, proof)) is None
    assert world.contract.batch_count == 1
    world.refuse(RejectionReason.BATCH_UNKNOWN, CAROL, ChallengeBatch(IDENTIFIER, 1, proof), "has no batch 1; 1 count")
    world.refuse(RejectionReason.CONTRACT_ENDED, OPERATOR, CommitBatch(honest), "is frozen and takes nothing more")


def test_of_many_challenges_in_one_microblock_none_is_judged_after_the_one_that_convicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, desk, lie = lied()
    proof, judged = desk.proof(lie), []

    def judge(*case: object) -> str:
        judged.append(case)
        return "a lie"

    monkeypatch.setattr("ledger.contract_ends.check_fraud", judge)
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, proof)) is None
    for number in range(3):
        world.refuse(RejectionReason.BATCH_UNKNOWN, CAROL, ChallengeBatch(IDENTIFIER, 1 + number, proof), "1 count")
    assert len(judged) == 1


def test_a_challenge_in_the_last_block_of_the_window_counts_and_one_later_is_free_of_effect_and_cost() -> None:
    world, desk, lie = lied()
    proof = desk.proof(lie)
    world.height += WINDOW
    world.refuse(RejectionReason.BATCH_FINAL, STRANGER, ChallengeBatch(IDENTIFIER, 1, proof), "is final since height")
    world.height -= 1
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, proof)) is None
    assert world.contract.status == "frozen"


def test_a_false_challenge_costs_fee_and_penalty_and_changes_nothing_else() -> None:
    world, desk, lie = lied()
    proof, was = desk.proof(lie), world.balance(STRANGER)
    honest = desk.batches[1]
    other, other_desk, _ = paid()
    other.height += WINDOW
    other_desk.accept(other_desk.sign(ALICE, PAY))
    assert other.act(OPERATOR, CommitBatch(honest.commitment)) is None
    contract = other.contract
    refused = other.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, proof))
    assert refused is not None
    assert refused.reason is RejectionReason.FALSE_CHALLENGE
    assert other.contract == contract
    assert other.balance(STRANGER) == was - FEE - PENALTY
    assert other.state.supply().burnt_microcredit == PENALTY
    assert other.state.account(STRANGER.address).nonce == 1
    assert other.state.get(OFFENCES, OPERATOR.public_key) is None
    other.check_i7()


def test_who_could_not_pay_the_penalty_cannot_challenge() -> None:
    world, desk, lie = lied()
    body = ChallengeBatch(IDENTIFIER, 1, desk.proof(lie))
    nonce = world.state.account(STRANGER.address).nonce
    world.state.put(ACCOUNTS, STRANGER.address, Account(nonce, FEE + PENALTY - 1))
    world.refuse(RejectionReason.INSUFFICIENT_BALANCE, STRANGER, body, "the penalty for a false challenge")


def test_a_challenge_names_a_contract_and_a_batch_that_are() -> None:
    world, desk, lie = lied()
    body = ChallengeBatch(IDENTIFIER, 1, desk.proof(lie))
    changed = msgspec.structs.replace(body, contract_id=DIGEST)
    world.refuse(RejectionReason.CONTRACT_UNKNOWN, STRANGER, changed)
    world.refuse(RejectionReason.BATCH_UNKNOWN, STRANGER, msgspec.structs.replace(body, number=2))
    world.refuse(RejectionReason.BATCH_FINAL, STRANGER, msgspec.structs.replace(body, number=0))


def test_a_known_offender_keeps_the_first_report() -> None:
    world, desk, lie = lied()
    known = Offence(3, 1, 5, BOB.address, None)
    world.state.put(OFFENCES, OPERATOR.public_key, known)
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, desk.proof(lie))) is None
    assert world.state.get(OFFENCES, OPERATOR.public_key) == known


def wrong_end(batch: Batch) -> Batch:
    return Batch(msgspec.structs.replace(batch.commitment, new_root=DIGEST), batch.data)


def wrong_count(batch: Batch) -> Batch:
    return Batch(msgspec.structs.replace(batch.commitment, operation_count=9), batch.data)


def wrong_place(batch: Batch) -> Batch:
    place = ForcedPlace(batch.commitment.forced[0].request_digest, 1)
    return Batch(msgspec.structs.replace(batch.commitment, forced=(place,)), batch.data)


def unasked_deposit(batch: Batch) -> Batch:
    """The deposit stands in the batch and is not cited: as if the operator had made it up."""
    return rebuilt(batch, list, forced=())


def twice(batch: Batch) -> Batch:
    def change(items: Items) -> Items:
        again = msgspec.structs.replace(items[1], operation_total=3)
        return [*items, again]

    return rebuilt(batch, change)


@pytest.mark.parametrize("lie", [lying, wrong_end, wrong_count, wrong_place, unasked_deposit, twice])
def test_every_kind_of_lie_is_convicted_by_what_a_watcher_finds(lie: Callable[[Batch], Batch]) -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    desk.accept(desk.sign(ALICE, PAY))
    told = lie(desk.cut())
    assert world.act(OPERATOR, CommitBatch(told.commitment)) is None
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 0, desk.proof(told))) is None
    assert world.contract.status == "frozen"
    world.check_i7()


def test_a_broken_receipt_convicts() -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    ticket = desk.operator.accept(desk.sign(ALICE, PAY), world.time_ms)
    honest = desk.operator.cut(world.time_ms)
    assert honest is not None
    released = desk.operator.durable(3)
    signed: SignedReceipt = dict(released.answers)[ticket.position].signed
    batch = released.batches[0]
    dropped = rebuilt(batch, lambda items: items[:1])
    assert world.act(OPERATOR, CommitBatch(dropped.commitment)) is None
    assert world.act(ALICE, ChallengeBatch(IDENTIFIER, 0, BrokenReceipt(signed, None))) is None
    assert world.contract.status == "frozen"
    other, _ = opened()
    assert other.act(OPERATOR, CommitBatch(msgspec.structs.replace(batch.commitment, forced=()))) is None
    kept = BrokenReceipt(signed, prove_leaf(kit.data_of(batch), 1))
    refused = other.act(ALICE, ChallengeBatch(IDENTIFIER, 0, kept))
    assert refused is not None
    assert refused.reason is RejectionReason.FALSE_CHALLENGE


@pytest.mark.parametrize("end", ["close", "freeze"])
def test_an_ended_contract_can_be_challenged_until_it_is_settled(end: str) -> None:
    world, desk, lie = lied()
    proof = desk.proof(lie)
    if end == "close":
        assert world.act(OPERATOR, CloseContract(IDENTIFIER)) is None
    else:
        force(world, desk.sign(BOB, PAY))
        world.height += NEGLECT
        assert world.act(STRANGER, FreezeContract(IDENTIFIER)) is None
    assert world.contract.settles_height == world.height + WINDOW
    world.height = world.batch_height(1) + WINDOW - 1
    assert world.act(STRANGER, ChallengeBatch(IDENTIFIER, 1, proof)) is None
    assert world.contract.status == "frozen"
    assert world.contract.settles_height == world.height
    assert world.contract.bond_microcredit == 0


# ---------------------------------------------------------------- neglect and closing


def test_neglect_is_counted_from_the_request_or_the_last_batch_whichever_is_later() -> None:
    world, desk, _ = paid()
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER), "has answered all 1 forced requests")
    world.height += 3
    force(world, desk.sign(ALICE, PAY))
    due_ms = world.time_ms + RULES.neglect_ms
    world.height += NEGLECT - 1
    told = f"from {due_ms} ms \\(UTC\\) on, if no batch comes; the time of this microblock is {world.time_ms} ms"
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER), told)
    desk.accept(desk.sign(BOB, Pay(ALICE.address, 1, DIGEST)))
    desk.commit()
    world.height += NEGLECT - 1
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.height += 1
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None
    contract = world.contract
    assert (contract.status, contract.settles_height) == ("frozen", world.height + WINDOW)
    assert (contract.bond_microcredit, contract.batch_count) == (BOND, 2)
    world.refuse(RejectionReason.CONTRACT_ENDED, BOB, FreezeContract(IDENTIFIER))


def test_neglect_is_time_however_fast_or_slow_microblocks_come() -> None:
    world, desk, _ = paid()
    force(world, desk.sign(ALICE, PAY))
    row = world.forced_rows()[-1][1]
    assert (row.height, row.time_ms) == (world.height, world.time_ms)
    due_ms = world.time_ms + RULES.neglect_ms
    # A chain under load: an operator that is restarted meanwhile is not dead.
    world.pass_blocks(RULES.neglect_ms // 50 - 1, 50)
    assert world.time_ms == due_ms - 50
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.pass_blocks(1, 49)
    assert world.time_ms == due_ms - 1
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.pass_blocks(1, 1)
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None


def test_an_idle_chain_needs_one_microblock_to_call_an_operator_dead() -> None:
    world, _ = opened()
    assert world.act(ALICE, FundContract(IDENTIFIER, ALICE.address, 5)) is None
    world.pass_blocks(1, RULES.neglect_ms - 1)
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.pass_blocks(1, 1)
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None


def test_an_operator_delays_its_end_by_the_drift_at_most() -> None:
    world, desk, _ = paid()
    force(world, desk.sign(ALICE, PAY))
    desk.accept(desk.sign(BOB, Pay(ALICE.address, 1, DIGEST)))
    ahead = CommitBatch(desk.cut(world.time_ms + DRIFT_MS + 1).commitment)
    world.refuse(RejectionReason.WRONG_BATCH, OPERATOR, ahead, "send it again later")
    world.pass_blocks(1, 1)
    assert world.act(OPERATOR, ahead) is None
    world.pass_blocks(1, RULES.neglect_ms + DRIFT_MS - 1)
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.pass_blocks(1, 1)
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None


def test_a_batch_that_ended_before_the_request_delays_nothing() -> None:
    world, desk, _ = paid()
    desk.accept(desk.sign(BOB, Pay(ALICE.address, 1, DIGEST)))
    world.height += 1
    old = CommitBatch(desk.cut().commitment)
    world.height += 1
    force(world, desk.sign(ALICE, PAY))
    due_ms = world.time_ms + RULES.neglect_ms
    world.height += 2
    assert world.act(OPERATOR, old) is None
    assert world.contract.until_ms < due_ms - RULES.neglect_ms
    world.pass_blocks(1, due_ms - 1 - world.time_ms)
    world.refuse(RejectionReason.NOT_OVERDUE, BOB, FreezeContract(IDENTIFIER))
    world.pass_blocks(1, 1)
    assert world.time_ms == due_ms
    assert world.act(BOB, FreezeContract(IDENTIFIER)) is None


def test_only_the_operator_closes_and_only_after_all_answers() -> None:
    world, desk, _ = paid()
    world.refuse(RejectionReason.NOT_PERMITTED, ALICE, CloseContract(IDENTIFIER))
    fund(world, desk, ALICE, 5)
    world.refuse(RejectionReason.ANSWER_OWED, OPERATOR, CloseContract(IDENTIFIER), "1 forced requests")
    desk.commit()
    assert world.act(OPERATOR, CloseContract(IDENTIFIER)) is None
    ended = RejectionReason.CONTRACT_ENDED
    world.refuse(ended, OPERATOR, CloseContract(IDENTIFIER), "is closed")
    world.refuse(ended, ALICE, FundContract(IDENTIFIER, ALICE.address, 1))
    world.refuse(ended, ALICE, ForceOperation(IDENTIFIER, desk.sign(ALICE, PAY)))
    desk.accept(desk.sign(BOB, PAY))
    world.refuse(ended, OPERATOR, CommitBatch(desk.cut().commitment))


@pytest.mark.parametrize("body", [CloseContract, FreezeContract, ReleaseBond, lambda name: ReclaimDeposit(name, 0)])
def test_what_was_never_opened_cannot_end(body: Callable[[bytes], CloseContract]) -> None:
    World().refuse(RejectionReason.CONTRACT_UNKNOWN, OPERATOR, body(IDENTIFIER), IDENTIFIER.hex())


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


def test_a_false_challenge_that_comes_again_costs_once_and_its_receipt_stays() -> None:
    store = MemoryStore(GENESIS)
    testing.commit(store, [testing.signed(CHAIN, OPERATOR, OPEN)], machines=MACHINES)
    commitment = msgspec.structs.replace(
        kit.paid_batch()[2].commitment, contract_id=IDENTIFIER, forced=(), from_ms=store.head().timestamp_ms
    )
    commitment = msgspec.structs.replace(commitment, until_ms=commitment.from_ms)
    testing.commit(store, [testing.signed(CHAIN, OPERATOR, CommitBatch(commitment), 1)], machines=MACHINES)
    lie = ChallengeBatch(IDENTIFIER, 0, WrongForced(0, None))
    raw = testing.signed(CHAIN, STRANGER, lie)
    testing.commit(store, [raw, raw], machines=MACHINES)
    testing.commit(store, [testing.transfer(CHAIN, ALICE, BOB.address), raw], machines=MACHINES)
    assert store.receipt(transaction_id(raw)) == Receipt(3, 0, "false_challenge")
    assert State(store).account(STRANGER.address) == Account(1, BALANCE - FEE - PENALTY)
    assert State(store).supply().burnt_microcredit == PENALTY
    assert State(store).supply().contracts_microcredit == BOND


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
