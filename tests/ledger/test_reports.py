# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of misbehaviour on the chain: a true one marks the offender once, a false one costs its sender, all others are free."""

import msgspec
import pytest

from ledger import testing
from ledger.acts import BlockContext
from ledger.bodies import ReportMisbehaviour
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection, RejectionReason
from ledger.evidence import Evidence
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.miners import Offence
from ledger.state import ACCOUNTS, MINERS, OFFENCES, SUPPLY, Account, State, Supply, scan
from ledger.store import Store
from ledger.transactions import check_transaction, transaction_id
from ledger.transition import Receipt, apply_transaction

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
CONTEXT = BlockContext(
    10, testing.GENESIS_TIMESTAMP_MS + 5, GENESIS.parameters, CHAIN, epoch=4, machines=testing.NO_MACHINES
)
FEE, BALANCE = testing.FEE_MICROCREDIT, testing.BALANCE_MICROCREDIT
PENALTY = GENESIS.parameters.false_evidence_microcredit
MINTED = BALANCE * len(GENESIS.allocations)
REPORTER, OTHER, NOBODY = testing.key(5), testing.key(6), testing.key(99)
OFFENDER = testing.key(1)
TRUE = (testing.votes_evidence(CHAIN, 1, 3, 77), testing.microblocks_evidence(CHAIN, 1, 3, 77))
VOTES = TRUE[0]
FALSE: dict[str, Evidence] = {
    "not signed": msgspec.structs.replace(VOTES, round=78),
    "offender is no miner": testing.votes_evidence(CHAIN, 5),
    "offender is no point": msgspec.structs.replace(VOTES, offender=b"\x02" + b"\xff" * 32),
    "of another chain": testing.microblocks_evidence(chain_id(testing.genesis(network="other")), 1),
}


def report(
    state: State, evidence: Evidence, sender: PrivateKey = REPORTER, fee_microcredit: int = FEE
) -> Rejection | None:
    nonce = state.account(sender.address).nonce
    raw = testing.signed(CHAIN, sender, ReportMisbehaviour(evidence), nonce, fee_microcredit=fee_microcredit)
    return apply_transaction(state, CONTEXT, check_transaction(raw, testing.rules_of(CHAIN)))


def fresh() -> State:
    return State(MemoryStore(GENESIS))


@pytest.mark.parametrize("evidence", TRUE)
def test_true_evidence_is_written_down_at_once_and_costs_the_fee(evidence: Evidence) -> None:
    state = fresh()
    assert report(state, evidence) is None
    assert state.changes() == (
        (b"a" + REPORTER.address, encode(Account(1, BALANCE - FEE))),
        (b"o" + OFFENDER.public_key, encode(Offence(10, 3, 77, REPORTER.address, None))),
    )


def test_reputation_is_lost_with_the_next_keyblock_and_not_before() -> None:
    state = fresh()
    before = state.get(MINERS, OFFENDER.public_key)
    report(state, VOTES)
    assert before is not None
    assert before.is_honest
    assert state.get(MINERS, OFFENDER.public_key) == before


@pytest.mark.parametrize("evidence", FALSE.values(), ids=FALSE.keys())
def test_false_evidence_passes_the_first_checks_and_costs_fee_and_penalty(evidence: Evidence) -> None:
    state = fresh()
    refused = report(state, evidence)
    assert refused is not None
    assert refused.reason is RejectionReason.FALSE_EVIDENCE
    assert refused.detail.startswith("evidence: ")
    assert state.changes() == (
        (b"a" + REPORTER.address, encode(Account(1, BALANCE - FEE - PENALTY))),
        (b"s", encode(Supply(MINTED, PENALTY, 0, 0))),
    )


def test_an_offender_is_reported_once_and_later_reports_are_free_whatever_they_hold() -> None:
    state = fresh()
    report(state, TRUE[0])
    before = state.changes()
    for evidence in (*TRUE, msgspec.structs.replace(VOTES, round=78)):
        with pytest.raises(Rejection, match="reported at height 10 already") as caught:
            report(state, evidence, OTHER)
        assert caught.value.reason is RejectionReason.ALREADY_PUNISHED
        assert state.changes() == before


def test_miners_are_punished_one_by_one_and_an_offender_may_report_itself() -> None:
    state = fresh()
    report(state, VOTES, OFFENDER)
    report(state, testing.microblocks_evidence(CHAIN, 2), OTHER)
    assert state.get(OFFENCES, OFFENDER.public_key) == Offence(10, 3, 77, OFFENDER.address, None)
    assert state.get(OFFENCES, testing.key(2).public_key) == Offence(10, 0, 1, OTHER.address, None)


@pytest.mark.parametrize("evidence", [VOTES, FALSE["not signed"]])
def test_who_could_not_pay_the_penalty_cannot_report_even_the_truth(evidence: Evidence) -> None:
    state = fresh()
    state.put(ACCOUNTS, REPORTER.address, Account(0, FEE + PENALTY - 1))
    before = state.changes()
    with pytest.raises(Rejection, match=f"does not cover {PENALTY}, the penalty for false evidence") as caught:
        report(state, evidence)
    assert caught.value.reason is RejectionReason.INSUFFICIENT_BALANCE
    assert state.changes() == before
    state.put(ACCOUNTS, REPORTER.address, Account(0, FEE + PENALTY))
    refused = report(state, evidence)
    assert state.account(REPORTER.address) == Account(1, PENALTY if refused is None else 0)


def test_a_penalty_adds_to_what_was_burnt_and_leaves_the_other_sums() -> None:
    state = fresh()
    state.put(SUPPLY, b"", Supply(MINTED, 7, 11, 0))
    report(state, FALSE["not signed"])
    assert state.supply() == Supply(MINTED, 7 + PENALTY, 11, 0)


def credits_in(store: Store) -> int:
    return sum(account.balance_microcredit for _, account in scan(store, ACCOUNTS, b"", b"", 1000))


def test_i7_holds_over_a_block_with_true_false_and_late_reports(store: Store) -> None:
    raws = [
        testing.report_misbehaviour(CHAIN, REPORTER, FALSE["not signed"], 0),
        testing.report_misbehaviour(CHAIN, REPORTER, VOTES, 1),
        testing.report_misbehaviour(CHAIN, OTHER, VOTES, 0),
        testing.transfer(CHAIN, OTHER, NOBODY.address, FEE, 0),
        testing.report_misbehaviour(CHAIN, NOBODY, VOTES, 0),
    ]
    head = testing.commit(store, raws)
    reasons = ["false_evidence", "", "already_punished", "", "insufficient_balance"]
    assert [store.receipt(transaction_id(raw)) for raw in raws] == [
        Receipt(1, place, reason) for place, reason in enumerate(reasons)
    ]
    assert head.transaction_count == 2
    supply = State(store).supply()
    assert supply == Supply(MINTED, PENALTY, 3 * FEE, 0)
    assert supply.minted_microcredit - supply.burnt_microcredit - supply.fees_in_flight_microcredit == credits_in(store)
    assert State(store).account(REPORTER.address) == Account(2, BALANCE - 2 * FEE - PENALTY)


def test_a_false_report_that_comes_again_costs_once_and_its_receipt_stays(store: Store) -> None:
    raw = testing.report_misbehaviour(CHAIN, REPORTER, FALSE["not signed"])
    testing.commit(store, [raw, raw])
    testing.commit(store, [testing.transfer(CHAIN, OTHER, NOBODY.address), raw])
    assert store.receipt(transaction_id(raw)) == Receipt(1, 0, "false_evidence")
    assert State(store).account(REPORTER.address) == Account(1, BALANCE - FEE - PENALTY)
    assert State(store).supply().burnt_microcredit == PENALTY


def test_a_report_is_for_one_chain(store: Store) -> None:
    other = chain_id(testing.genesis(network="other"))
    raw = testing.report_misbehaviour(other, REPORTER, testing.votes_evidence(other, 1))
    with pytest.raises(Rejection) as caught:
        check_transaction(raw, testing.rules_of(CHAIN))
    assert caught.value.reason is RejectionReason.WRONG_CHAIN
    # Taken out and sent as one's own, it is a lie here.
    testing.commit(store, [testing.report_misbehaviour(CHAIN, REPORTER, testing.votes_evidence(other, 1))])
    assert State(store).get(OFFENCES, OFFENDER.public_key) is None
    assert State(store).supply().burnt_microcredit == PENALTY
