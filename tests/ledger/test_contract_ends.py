# SPDX-License-Identifier: GPL-3.0-or-later
"""How contracts end: fraud, neglect, their operator's wish."""

from collections.abc import Callable

import msgspec
import pytest

from contracts.batch_data import prove_leaf
from contracts.machines.micro_fees import Pay, payable_keys
from contracts.operator import Batch
from contracts.shipped import MACHINES
from ledger import testing
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
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import RejectionReason
from ledger.memory_store import MemoryStore
from ledger.miners import Offence
from ledger.offchain import BrokenReceipt, ForcedPlace, SignedReceipt, WrongForced
from ledger.state import ACCOUNTS, OFFENCES, Account, State
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
    OPERATOR,
    PAY,
    PENALTY,
    RULES,
    STRANGER,
    WINDOW,
    Desk,
    Items,
    World,
    force,
    fund,
    lying,
    opened,
    paid,
    rebuilt,
)


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
