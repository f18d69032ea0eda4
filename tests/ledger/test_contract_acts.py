# SPDX-License-Identifier: GPL-3.0-or-later
"""Contracts while they live: opened with a bond, funded, given forced requests, committed in order; every refusal is free and says why."""

import msgspec
import pytest

from contracts.machines.micro_fees import Pay
from ledger import testing
from ledger.codec import encode
from ledger.contract_acts import MAX_CLEARED
from ledger.contract_bodies import CommitBatch, ForceOperation, FundContract, OpenContract
from ledger.contract_state import CommittedBatch, contract_id_of, contract_key
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import Rejection, RejectionReason
from ledger.offchain import MAX_FORCED, MAX_OPERATIONS, ForcedPlace, deposit_request, request_digest
from ledger.state import CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS
from ledger.transactions import check_transaction
from tests.ledger.contracts_kit import (
    ALICE,
    BALANCE,
    BOB,
    BOND,
    CHAIN,
    DIGEST,
    DRIFT_MS,
    FEE,
    IDENTIFIER,
    OPEN,
    OPEN_LOG,
    OPERATOR,
    RULES,
    STRANGER,
    Desk,
    World,
    force,
    fund,
    opened,
)

PAY = Pay(BOB.address, 5, DIGEST)


# ---------------------------------------------------------------- open


def test_opening_moves_the_bond_into_the_contract() -> None:
    world, desk = opened()
    contract = world.contract
    assert world.balance(OPERATOR) == BALANCE - FEE - BOND
    assert contract.bond_microcredit == BOND
    assert (contract.status, contract.root, contract.until_ms) == ("open", ZERO_DIGEST, world.time_ms)
    assert desk.terms.operator == OPERATOR.public_key
    world.check_i7()


def test_a_number_serves_once_for_each_operator() -> None:
    world, _ = opened()
    world.refuse(RejectionReason.CONTRACT_EXISTS, OPERATOR, OPEN, "choose another number")
    assert world.act(OPERATOR, msgspec.structs.replace(OPEN, number=1)) is None
    assert world.act(ALICE, OPEN) is None
    known = {contract_id_of(key.public_key, number) for key, number in ((OPERATOR, 0), (OPERATOR, 1), (ALICE, 0))}
    assert {identifier for identifier, _ in world.state.entries(CONTRACTS)} == known
    world.check_i7()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"machine": "no_such_machine"}, "no machine 'no_such_machine'"),
        ({"version": 2}, "of version 2 here"),
        ({"parameters": b""}, "parameters of micro_fees"),
        ({"parameters": OPEN_LOG.parameters}, "parameters of micro_fees"),
    ],
)
def test_only_machines_that_all_nodes_know_can_be_opened(changes: dict[str, object], match: str) -> None:
    body = msgspec.structs.replace(OPEN, **changes)
    World().refuse(RejectionReason.WRONG_TERMS, OPERATOR, body, match)


def test_a_bond_has_a_least_size_and_must_be_there() -> None:
    world, least = World(), RULES.minimum_bond_microcredit
    small = msgspec.structs.replace(OPEN, bond_microcredit=least - 1)
    world.refuse(RejectionReason.BOND_TOO_SMALL, OPERATOR, small, f"at least {least}")
    rich = msgspec.structs.replace(OPEN, bond_microcredit=BALANCE - FEE + 1)
    world.refuse(RejectionReason.INSUFFICIENT_BALANCE, OPERATOR, rich, "the bond")
    assert world.act(OPERATOR, msgspec.structs.replace(OPEN, bond_microcredit=BALANCE - FEE)) is None
    assert world.balance(OPERATOR) == 0


# ---------------------------------------------------------------- fund and force


def test_a_deposit_moves_credits_and_is_forced_with_its_own_number() -> None:
    world, _ = opened()
    for number, amount in enumerate((700, 1)):
        assert world.act(ALICE, FundContract(IDENTIFIER, BOB.address, amount)) is None
        row = world.state.get(FORCED_REQUESTS, contract_key(IDENTIFIER, number))
        assert row is not None
        assert row.request_digest == request_digest(deposit_request(IDENTIFIER, number, BOB.address, amount))
        assert (row.account, row.amount_microcredit, row.deposit_sequence) == (BOB.address, amount, number)
    contract = world.contract
    assert (contract.escrow_microcredit, contract.deposit_count, contract.forced_count) == (701, 2, 2)
    assert world.balance(ALICE) == BALANCE - 2 * FEE - 701
    world.check_i7()


def test_deposits_that_cannot_be() -> None:
    world, _ = opened()
    fund_ = FundContract(IDENTIFIER, ALICE.address, 1)
    world.refuse(RejectionReason.MALFORMED, ALICE, msgspec.structs.replace(fund_, amount_microcredit=0), "at least 1")
    unknown = msgspec.structs.replace(fund_, contract_id=DIGEST)
    world.refuse(RejectionReason.CONTRACT_UNKNOWN, ALICE, unknown, DIGEST.hex())
    much = msgspec.structs.replace(fund_, amount_microcredit=BALANCE - FEE + 1)
    world.refuse(RejectionReason.INSUFFICIENT_BALANCE, ALICE, much)
    world, _ = opened(OPEN_LOG)
    world.refuse(RejectionReason.NO_DEPOSITS, ALICE, fund_, "access_log, which takes no deposits")


def test_anyone_may_force_what_a_user_has_signed() -> None:
    world, desk = opened()
    raw = desk.sign(ALICE, PAY)
    force(world, raw)
    force(world, raw)
    rows = [row for _, row in world.state.entries(FORCED_REQUESTS)]
    assert [row.request_digest for row in rows] == [request_digest(raw)] * 2
    assert [row.account for row in rows] == [b"", b""]
    assert world.contract.deposit_count == 0


def test_what_is_no_request_of_a_user_for_this_contract_cannot_be_forced() -> None:
    world, desk = opened()
    world.refuse(RejectionReason.CONTRACT_UNKNOWN, ALICE, ForceOperation(DIGEST, desk.sign(ALICE, PAY)))
    raw = bytearray(desk.sign(ALICE, PAY))
    raw[-1] ^= 1
    for request, match in ((b"\xc0", "cannot be decoded"), (bytes(raw), "not signed by")):
        world.refuse(RejectionReason.WRONG_REQUEST, ALICE, ForceOperation(IDENTIFIER, request), match)
    elsewhere = Desk(world)
    elsewhere.terms = msgspec.structs.replace(elsewhere.terms, contract_id=DIGEST)
    foreign = ForceOperation(IDENTIFIER, elsewhere.sign(ALICE, PAY))
    world.refuse(RejectionReason.WRONG_REQUEST, ALICE, foreign, "request is for contract")


def test_a_deposit_that_nobody_has_paid_cannot_be_forced() -> None:
    """The chain's own requests are unsigned: whoever could force one would make credits out of nothing."""
    world, _ = opened()
    invented = deposit_request(IDENTIFIER, 0, ALICE.address, 10**9)
    world.refuse(RejectionReason.WRONG_REQUEST, ALICE, ForceOperation(IDENTIFIER, invented), "fund the contract")


def test_a_flood_of_forced_requests_delays_but_never_shuts_out() -> None:
    world, desk = opened()
    for _ in range(3 * MAX_FORCED):
        force(world, desk.sign(ALICE, PAY))
    dues = [row.due_batch for _, row in world.state.entries(FORCED_REQUESTS)]
    first = RULES.forced_batches - 1
    assert dues == [first + number // MAX_FORCED for number in range(3 * MAX_FORCED)]


# ---------------------------------------------------------------- commit


def test_batches_follow_each_other_and_answer_what_was_forced() -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    desk.accept(desk.sign(ALICE, PAY))
    first = desk.commit()
    world.height += 1
    desk.accept(desk.sign(ALICE, PAY))
    second = desk.commit()
    contract = world.contract
    assert (contract.batch_count, contract.root, contract.answered_count) == (2, second.commitment.new_root, 1)
    assert (contract.until_ms, contract.last_height) == (world.time_ms, world.height)
    row = world.state.get(CONTRACT_BATCHES, contract_key(IDENTIFIER, 0))
    assert row == CommittedBatch(first.commitment, world.height - 1, 1)
    world.check_i7()


def test_only_the_operator_commits_and_only_what_comes_next() -> None:
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    good = desk.cut().commitment
    world.refuse(RejectionReason.NOT_PERMITTED, ALICE, CommitBatch(good), OPERATOR.public_key.hex())
    changes: list[tuple[RejectionReason, dict[str, object], str]] = [
        (RejectionReason.CONTRACT_UNKNOWN, {"contract_id": DIGEST}, DIGEST.hex()),
        (RejectionReason.WRONG_BATCH, {"number": 1}, "the next is 0"),
        (RejectionReason.WRONG_BATCH, {"previous_root": DIGEST}, "follows from root"),
        (RejectionReason.WRONG_BATCH, {"from_ms": good.from_ms - 1}, "the one before ended"),
        (RejectionReason.WRONG_BATCH, {"until_ms": world.time_ms + DRIFT_MS + 1}, "send it again later"),
        (RejectionReason.MALFORMED, {"until_ms": good.from_ms - 1}, "before it begins"),
        (RejectionReason.MALFORMED, {"operation_count": MAX_OPERATIONS + 1}, "a request has 1 to 64"),
        (RejectionReason.MALFORMED, {"operation_count": 0}, "a request has 1 to 64"),
        (RejectionReason.MALFORMED, {"forced": (ForcedPlace(DIGEST, 1),)}, "beyond its end"),
    ]
    for reason, change, match in changes:
        world.refuse(reason, OPERATOR, CommitBatch(msgspec.structs.replace(good, **change)), match)
    assert world.act(OPERATOR, CommitBatch(good)) is None
    world.refuse(RejectionReason.WRONG_BATCH, OPERATOR, CommitBatch(good), "the next is 1")
    late = msgspec.structs.replace(good, number=1, previous_root=good.new_root, from_ms=good.until_ms, forced=())
    edge = msgspec.structs.replace(late, until_ms=world.time_ms + DRIFT_MS)
    assert world.act(OPERATOR, CommitBatch(edge)) is None


def test_what_was_forced_is_answered_in_the_chains_order_and_nothing_else_is_cited() -> None:
    world, desk = opened()
    for amount in (500, 600):
        fund(world, desk, ALICE, amount)
    good = desk.cut().commitment
    one, two = good.forced
    wrong: list[tuple[tuple[ForcedPlace, ...], str]] = [
        ((ForcedPlace(two.request_digest, 0), ForcedPlace(one.request_digest, 1)), "the next one is"),
        ((ForcedPlace(two.request_digest, 1),), "the next one is"),
        ((one, ForcedPlace(one.request_digest, 1)), "as number 1"),
        ((ForcedPlace(DIGEST, 0),), DIGEST.hex()),
    ]
    for forced, match in wrong:
        world.refuse(
            RejectionReason.WRONG_BATCH, OPERATOR, CommitBatch(msgspec.structs.replace(good, forced=forced)), match
        )
    assert world.act(OPERATOR, CommitBatch(msgspec.structs.replace(good, forced=(one,)))) is None
    assert world.contract.answered_count == 1
    following = msgspec.structs.replace(good, number=1, previous_root=good.new_root, from_ms=good.until_ms)
    again = CommitBatch(msgspec.structs.replace(following, forced=(one,)))
    world.refuse(RejectionReason.WRONG_BATCH, OPERATOR, again, "as number 1")
    beyond = CommitBatch(
        msgspec.structs.replace(following, leaf_count=3, operation_count=3, forced=(two, ForcedPlace(DIGEST, 2)))
    )
    world.refuse(RejectionReason.WRONG_BATCH, OPERATOR, beyond, "none is left")
    last = msgspec.structs.replace(following, forced=(ForcedPlace(two.request_digest, 0),))
    assert world.act(OPERATOR, CommitBatch(last)) is None
    assert world.contract.answered_count == 2


def test_an_operator_may_leave_a_forced_request_for_some_batches_and_no_longer() -> None:
    world, desk = opened()
    force(world, desk.sign(ALICE, PAY))
    for _ in range(RULES.forced_batches - 1):
        desk.accept(desk.sign(BOB, PAY))
        desk.commit()
    desk.accept(desk.sign(BOB, PAY))
    evasive = desk.cut()
    body = CommitBatch(evasive.commitment)
    world.refuse(RejectionReason.WRONG_BATCH, OPERATOR, body, f"was due by batch {RULES.forced_batches - 1}")


def test_an_operator_that_has_cut_ahead_as_far_as_it_may_can_still_answer() -> None:
    """All but two of `forced_batches` may wait for the chain when something is forced, with a further one full."""
    world, desk = opened()
    ahead = []
    for _ in range(RULES.forced_batches - 2 + 1):
        desk.accept(desk.sign(BOB, PAY))
        ahead.append(desk.cut())
    raw = desk.sign(ALICE, PAY)
    force(world, raw)
    desk.accept(raw, is_forced=True)
    for batch in (*ahead, desk.cut()):
        assert world.act(OPERATOR, CommitBatch(batch.commitment)) is None
    assert world.contract.answered_count == 1


def test_rows_of_forced_requests_go_once_final_batches_have_answered() -> None:
    world, desk = opened()
    for number in range(3):
        fund(world, desk, ALICE, 100 + number)
    desk.commit()
    world.height += RULES.window_microblocks - 1
    desk.accept(desk.sign(ALICE, PAY))
    desk.commit()
    assert world.forced_numbers() == [0, 1, 2]
    fund(world, desk, BOB, 50)
    world.height += 1
    desk.commit()
    assert world.forced_numbers() == [3]
    assert world.contract.cleared_count == 3


def test_a_commitment_removes_a_bounded_number_of_rows_and_catches_up() -> None:
    world, desk = opened()
    answered = 3 * MAX_FORCED
    for _ in range(3):
        for _ in range(MAX_FORCED):
            fund(world, desk, ALICE, 1)
        desk.commit()
    world.height += RULES.window_microblocks
    for cleared in (MAX_CLEARED, answered, answered):
        desk.accept(desk.sign(BOB, PAY))
        desk.commit()
        assert world.contract.cleared_count == cleared
        assert world.forced_numbers() == [*range(cleared, answered)]


def test_the_largest_opening_and_the_largest_forced_request_fit_a_transaction() -> None:
    world = World()
    large = b"\xff" * 1_024
    with pytest.raises(Rejection) as caught:
        world.act(OPERATOR, msgspec.structs.replace(OPEN, parameters=large))
    assert caught.value.reason is RejectionReason.WRONG_TERMS
    raw = testing.signed(CHAIN, STRANGER, ForceOperation(IDENTIFIER, b"\xff" * 8_192))
    check_transaction(raw, testing.rules_of(CHAIN))


def test_an_identifier_is_of_an_operator_and_a_number() -> None:
    assert contract_id_of(OPERATOR.public_key, 0) == IDENTIFIER
    assert len({contract_id_of(key.public_key, n) for key in (ALICE, BOB) for n in (0, 1, 2**63 - 1)}) == 6
    assert isinstance(encode(OpenContract(0, "a", 1, b"", 0)), bytes)
