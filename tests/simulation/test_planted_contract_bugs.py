# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge is judged, where off-chain contracts are concerned: one bug in handlers, judge, operator, watcher or members is caught."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

import contracts.watcher
import ledger.contract_acts
import ledger.contract_ends
import simulation.watchtower
from consensus.standings import Standings
from contracts.execution import BoundMachine, Executed, execute
from contracts.journal import Accepted, JournalEntry
from contracts.operator import Operator, Released, Ticket
from contracts.requests import CheckedRequest
from contracts.watcher import Watcher
from ledger.acts import Act
from ledger.contract_acts import open_contract
from ledger.contract_bodies import (
    ClaimBalance,
    CloseContract,
    FreezeContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_ends import claim_balance, release_bond
from ledger.contract_state import CommittedBatch, Contract
from ledger.errors import InvalidInput, Rejection
from ledger.fraud import check_fraud
from ledger.offchain import (
    BatchCommitment,
    ContractTerms,
    FraudProof,
    MachineRegistry,
    Place,
    PreState,
    WrongExecution,
)
from ledger.state import CLAIMS, State, Table, V
from ledger.transition import HANDLERS
from simulation.contract_plan import LIES, ContractPlan
from simulation.operators import Reply, SimulatedOperator
from simulation.pool import Pool
from simulation.run import Failure, run
from simulation.scenario import Crash, Scenario

Patch = pytest.MonkeyPatch
SEEDS = 40
"""At most so many runs until a bug must have shown itself."""
CALM = Scenario(
    seed=0,
    transactions=2,
    faults_ms=5_000,
    patience_ms=150_000,
    vandals=20,
    contracts=(ContractPlan(requests=20, forced=6),),
)


def plan(base: Scenario = CALM, *, late: int = 0, **changes: object) -> Scenario:
    """Return a scenario with another contract."""
    changed = msgspec.structs.replace(base.contracts[0], **changes)
    return msgspec.structs.replace(base, contracts=(changed,), late_watchers=late)


STORM = msgspec.structs.replace(
    plan(torn_per_mille=100, requests=40),
    loss_percent=10,
    crashes=tuple(Crash(number, 1_500 + 300 * number, 2_500 + 300 * number) for number in range(4)),
)
PACKED = plan(requests=40, batch_ms=100)


def caught(base: Scenario) -> str:
    """Return by which invariant the planted bug was caught."""
    for seed in range(SEEDS):
        try:
            run(msgspec.structs.replace(base, seed=seed))
        except Failure as failure:
            return failure.invariant
    return "nothing"


def plant(monkeypatch: Patch, kind: type, handler: Callable[[Act, Any], Rejection | None]) -> None:
    monkeypatch.setitem(HANDLERS, kind, handler)


@pytest.mark.parametrize("lie", ["", *LIES])
def test_the_scenarios_are_harmless_without_a_bug(lie: str) -> None:
    for seed, late in ((0, 0), (1, 1)):
        run(msgspec.structs.replace(plan(lie=lie, lie_batch=1, late=late), seed=seed))


def test_storms_are_harmless_without_a_bug() -> None:
    for seed in range(4):
        run(msgspec.structs.replace(STORM, seed=seed))


# ---------------------------------------------------------------- handlers


def test_a_window_that_is_one_microblock_longer(monkeypatch: Patch) -> None:
    original = ledger.contract_ends._final_height
    monkeypatch.setattr(ledger.contract_ends, "_final_height", lambda act, batch: original(act, batch) + 1)
    assert caught(plan(lie="forge_root", late=1)) == "I6"


def test_a_window_that_is_one_microblock_shorter(monkeypatch: Patch) -> None:
    original = ledger.contract_ends._final_height

    def shorter(act: Act, batch: CommittedBatch) -> int:
        return original(act, batch) - 1

    monkeypatch.setattr(ledger.contract_ends, "_final_height", shorter)
    assert caught(plan(lie="forge_root", late=1)) in {"I6", "I12"}


def test_batches_that_need_not_follow_from_the_root_before(monkeypatch: Patch) -> None:
    original = ledger.contract_acts._check_follows

    def lenient(act: Act, contract: Contract, commitment: BatchCommitment) -> None:
        original(act, contract, msgspec.structs.replace(commitment, previous_root=contract.root))

    monkeypatch.setattr(ledger.contract_acts, "_check_follows", lenient)
    assert caught(plan(lie="wrong_link")) in {"I6", "I12"}


def test_forced_requests_answered_in_any_order(monkeypatch: Patch) -> None:
    def lenient(_state: State, contract: Contract, commitment: BatchCommitment) -> int:
        return contract.answered_count + len(commitment.forced)

    monkeypatch.setattr(ledger.contract_acts, "_check_forced", lenient)
    assert caught(plan(lie="wrong_forced")) in {"I6", "I12"}


def test_forced_requests_that_are_never_due(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ledger.contract_acts, "_due_batch", lambda _act, _contract: 10**6)
    assert caught(CALM) == "I12"


def test_a_bond_that_fraud_does_not_burn(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Act, "burn", lambda _act, _amount: None)
    assert caught(plan(lie="forge_root")) == "I7"


def test_a_challenger_who_gets_the_whole_bond(monkeypatch: Patch) -> None:
    credit = Act.credit
    monkeypatch.setattr(Act, "burn", lambda act, amount: credit(act, act.sender, amount))
    assert caught(plan(lie="forge_root")) == "I7"


def test_fraud_that_takes_back_too_little(monkeypatch: Patch) -> None:
    original = ledger.contract_ends._convict

    def lenient(act: Act, contract: Contract) -> None:
        original(act, contract)
        after = ledger.contract_acts.require_contract(act.state, contract.terms.contract_id)
        kept = msgspec.structs.replace(after, batch_count=contract.batch_count, root=contract.root)
        ledger.contract_acts.put_contract(act.state, after, kept)

    monkeypatch.setattr(ledger.contract_ends, "_convict", lenient)
    # The state differs, or the next challenge of the same batch convicts again.
    assert caught(plan(lie="forge_root")) in {"I6", "I12"}


def test_claims_that_are_paid_twice(monkeypatch: Patch) -> None:
    put = State.put

    def forgetful(state: State, table: Table[V], key: bytes, value: V) -> None:
        if table is not CLAIMS:
            put(state, table, key, value)

    monkeypatch.setattr(State, "put", forgetful)
    assert caught(CALM) == "I12"


def test_claims_on_what_can_still_be_challenged(monkeypatch: Patch) -> None:
    def hasty(act: Act, body: ClaimBalance) -> None:
        context = msgspec.structs.replace(act.context, height=act.context.height + 10)
        other = Act(act.state, context, act.sender, act.public_key, act.balance_microcredit)
        claim_balance(other, body)
        act.balance_microcredit = other.balance_microcredit

    plant(monkeypatch, ClaimBalance, hasty)
    assert caught(PACKED) == "I6"


def test_claims_believed_without_proof(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ledger.contract_ends, "verify_state_proof", lambda *_: True)
    assert caught(plan(msgspec.structs.replace(PACKED, vandals=60))) == "I6"


def test_payments_that_leave_the_escrow_as_it_was(monkeypatch: Patch) -> None:
    def generous(act: Act, _contract: Contract, account: bytes, amount: int) -> None:
        act.credit(account, amount)

    monkeypatch.setattr(ledger.contract_ends, "_pay_out", generous)
    assert caught(CALM) == "I7"


def test_deposits_paid_back_that_were_taken_up(monkeypatch: Patch) -> None:
    def careless(act: Act, body: ReclaimDeposit) -> None:
        contract = ledger.contract_ends._require_settled(act, body.contract_id)
        row = ledger.contract_acts.forced_row(act.state, contract, body.number)
        if row is not None and row.account:
            ledger.contract_ends._pay_out(act, contract, row.account, row.amount_microcredit)

    plant(monkeypatch, ReclaimDeposit, careless)
    # Contracts of two, the second of which lives on while vandals are at the first.
    mute = plan(lie="stop", lie_batch=1, requests=20, batch_ms=100)
    assert caught(msgspec.structs.replace(mute, vandals=100, faults_ms=40_000)) in {"I6", "I7", "I12"}


def test_bonds_that_come_back_before_the_end(monkeypatch: Patch) -> None:
    def early(act: Act, body: ReleaseBond) -> None:
        context = msgspec.structs.replace(act.context, height=act.context.height + 10**6)
        other = Act(act.state, context, act.sender, act.public_key, act.balance_microcredit)
        release_bond(other, body)
        act.balance_microcredit = other.balance_microcredit

    plant(monkeypatch, ReleaseBond, early)
    assert caught(CALM) == "I6"


def test_contracts_that_anybody_freezes(monkeypatch: Patch) -> None:
    def rash(act: Act, body: FreezeContract) -> None:
        ledger.contract_ends._end(act, ledger.contract_acts.require_open(act.state, body.contract_id), "frozen")

    plant(monkeypatch, FreezeContract, rash)
    assert caught(CALM) == "I6"


def test_contracts_that_close_while_an_answer_is_owed(monkeypatch: Patch) -> None:
    def careless(act: Act, body: CloseContract) -> None:
        contract = ledger.contract_acts.require_open(act.state, body.contract_id)
        ledger.contract_acts.require_operator(act, contract)
        ledger.contract_ends._end(act, contract, "closed")

    plant(monkeypatch, CloseContract, careless)
    assert caught(plan(lie="ignore_forced")) == "I6"


def test_contracts_that_anybody_closes(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ledger.contract_ends, "require_operator", lambda _act, _contract: None)
    assert caught(CALM) == "I6"


def test_bonds_smaller_than_the_least(monkeypatch: Patch) -> None:
    def lenient(act: Act, body: OpenContract) -> None:
        rules = msgspec.structs.replace(act.context.parameters.contracts, minimum_bond_microcredit=0)
        parameters = msgspec.structs.replace(act.context.parameters, contracts=rules)
        context = msgspec.structs.replace(act.context, parameters=parameters)
        other = Act(act.state, context, act.sender, act.public_key, act.balance_microcredit)
        open_contract(other, body)
        act.balance_microcredit = other.balance_microcredit

    plant(monkeypatch, OpenContract, lenient)
    assert caught(msgspec.structs.replace(CALM, vandals=60)) == "I6"


# ---------------------------------------------------------------- the judge


def judged(change: Callable[[FraudProof, str], bool]) -> Callable[..., str]:
    """Return a judge that acquits or convicts wherever `change` says so."""

    def judge(
        chain_id: bytes, terms: ContractTerms, commitment: BatchCommitment, proof: FraudProof, machines: MachineRegistry
    ) -> str:
        try:
            verdict, is_guilty = check_fraud(chain_id, terms, commitment, proof, machines), True
        except InvalidInput as error:
            verdict, is_guilty = str(error), False
        if is_guilty == change(proof, verdict):
            raise InvalidInput(verdict)
        return verdict

    return judge


def test_a_judge_that_does_not_look_at_outcomes(monkeypatch: Patch) -> None:
    blind = judged(lambda _proof, verdict: ": outcomes" in verdict)
    monkeypatch.setattr(ledger.contract_ends, "check_fraud", blind)
    assert caught(plan(lie="forge_outcome")) == "I12"


def test_a_judge_that_knows_no_receipts(monkeypatch: Patch) -> None:
    blind = judged(lambda _proof, verdict: "another leaf than the one promised" in verdict)
    monkeypatch.setattr(ledger.contract_ends, "check_fraud", blind)
    assert caught(plan(lie="reorder", lie_batch=1)) == "I12"


def test_a_judge_that_takes_missing_proofs_for_guilt(monkeypatch: Patch) -> None:
    def harsh(proof: FraudProof, verdict: str) -> bool:
        return isinstance(proof, WrongExecution) and "no proof of it" in verdict

    monkeypatch.setattr(ledger.contract_ends, "check_fraud", judged(harsh))
    assert caught(msgspec.structs.replace(PACKED, vandals=60)) == "I12"


def test_a_judge_that_believes_receipts_unsigned(monkeypatch: Patch) -> None:
    monkeypatch.setattr("ledger.fraud.is_signed_receipt", lambda *_: True)
    assert caught(msgspec.structs.replace(PACKED, vandals=60)) == "I12"


# ---------------------------------------------------------------- the watcher


def test_a_watcher_that_skips_the_last_leaf(monkeypatch: Patch) -> None:
    original = Watcher.follow

    def hasty(watcher: Watcher, commitment: BatchCommitment, raw: bytes) -> FraudProof | None:
        wrong = original(watcher, commitment, raw)
        is_last = isinstance(wrong, WrongExecution) and wrong.disputed.index == commitment.leaf_count - 1
        return None if is_last else wrong

    monkeypatch.setattr(Watcher, "follow", hasty)
    assert caught(plan(lie="last_leaf")) == "I12"


def test_a_watcher_that_does_not_know_what_is_forced(monkeypatch: Patch) -> None:
    monkeypatch.setattr(contracts.watcher, "is_forced", lambda *_: False)
    assert caught(CALM) == "I12"


def test_a_watcher_that_finds_receipts_kept(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Watcher, "broken_receipt", lambda *_: None)
    assert caught(plan(lie="equivocate", lie_batch=1)) == "I12"


def test_a_watcher_that_never_challenges(monkeypatch: Patch) -> None:
    monkeypatch.setattr(simulation.watchtower.Watchtower, "_accuse", lambda *_: None)
    # The lie has to be told in a network that is whole: what is lost excuses.
    short = msgspec.structs.replace(plan(lie="forge_root", lie_batch=1, batch_ms=1_500), faults_ms=1_000)
    assert caught(short) == "I12"


# ---------------------------------------------------------------- the operator


def test_an_operator_that_answers_before_its_journal_is_durable(monkeypatch: Patch) -> None:
    original = Operator.accept

    def hasty(operator: Operator, raw: bytes, now_ms: int, *, is_forced: bool = False) -> Ticket:
        ticket = original(operator, raw, now_ms, is_forced=is_forced)
        accepted = ticket.entries[-1] if ticket.entries else None
        if not isinstance(accepted, Accepted) or is_forced:
            return ticket
        return msgspec.structs.replace(ticket, answer=operator.answer_of(accepted))

    monkeypatch.setattr(Operator, "accept", hasty)
    monkeypatch.setattr("simulation.operators.SimulatedOperator.receive", hasty_receive)
    assert caught(STORM) == "I12"


def hasty_receive(operator: SimulatedOperator, raw: bytes, reply: Reply) -> None:
    """Answer with what the core gives, and write it down afterwards."""
    if operator.core is not None:
        try:
            ticket = operator.core.accept(raw, operator.home.clock_ms())
        except InvalidInput:
            return
        operator.append(ticket.entries)
        if ticket.answer is not None:
            reply(ticket.answer)


def test_an_operator_that_comes_back_without_its_last_entry(monkeypatch: Patch) -> None:
    original = Operator.recover

    def forgetful(operator: Operator, journal: Sequence[JournalEntry]) -> Released:
        return original(operator, journal[:-1])

    monkeypatch.setattr(Operator, "recover", forgetful)
    # The core itself notices that its journal is longer than what it remembers.
    assert caught(STORM) in {"I12", "I13"}


def test_an_operator_that_executes_wrongly_where_its_judges_do_as_well(monkeypatch: Patch) -> None:
    def wrong(bound: BoundMachine, place: Place, request: CheckedRequest, state: PreState) -> Executed:
        executed = execute(bound, place, request, state)
        changes = executed.replay.changes[1:]
        return msgspec.structs.replace(executed, replay=msgspec.structs.replace(executed.replay, changes=changes))

    for module in ("operator", "watcher", "registry"):
        monkeypatch.setattr(f"contracts.{module}.execute", wrong)
    assert caught(CALM) == "I12"


def test_an_operator_that_takes_what_nobody_has_signed(monkeypatch: Patch) -> None:
    monkeypatch.setattr("contracts.requests.verify", lambda *_: True)
    assert caught(plan(abuse_percent=100)) in {"I12", "I6"}


# ---------------------------------------------------------------- members


def test_members_that_vote_without_the_data(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Pool, "has_data", lambda _pool, _commitments: True)
    assert caught(plan(lie="withhold_all")) == "I12"


def test_members_that_do_not_look_into_the_data(monkeypatch: Patch) -> None:
    def present(pool: Pool, commitments: Sequence[BatchCommitment]) -> bool:
        return all(commitment.data_digest in pool._data for commitment in commitments)

    monkeypatch.setattr(Pool, "has_data", present)
    assert caught(plan(lie="wrong_end")) in {"I12", "I13"}


def test_convicts_that_get_a_history_though_they_never_mined(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Standings, "knows", lambda _standings, _key: True)
    mined = msgspec.structs.replace(plan(lie="forge_root"), keyblock_ms=500)
    assert caught(mined) == "reputation"


def test_convicts_that_keep_their_honesty(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Standings, "knows", lambda _standings, _key: False)
    mined = msgspec.structs.replace(plan(lie="forge_root", is_member=True), keyblock_ms=500)
    assert caught(mined) == "reputation"
