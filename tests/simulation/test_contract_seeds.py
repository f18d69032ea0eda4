# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts under seeded faults, lies and abuse (I12): a sample of what `spchain simulate --contracts` runs by the thousand."""

import json
import re
from collections import Counter

import msgspec
import pytest
from typer.testing import CliRunner

from simulation.cli import app
from simulation.contract_plan import LIES, ContractPlan
from simulation.draw import draw_scenario
from simulation.run import Failure, run
from simulation.scenario import Scenario, check_scenario, read_scenario, scenario_json
from simulation.shrink import shrink
from simulation.trace import Trace
from simulation.world import SimulatedWorld

SEEDS = 100
CHUNK = 10
MARKET = Scenario(
    seed=0,
    transactions=1,
    faults_ms=6_000,
    patience_ms=240_000,
    contracts=(ContractPlan(requests=20, batch_ms=300, forced=5),),
)
replace = msgspec.structs.replace


def lying(lie: str, *, late: int = 0, seed: int = 0) -> Scenario:
    plan = replace(MARKET.contracts[0], lie=lie, lie_batch=1 if lie else 0)
    return replace(MARKET, seed=seed, contracts=(plan,), late_watchers=late)


def world_of(scenario: Scenario) -> SimulatedWorld:
    world = SimulatedWorld(scenario, Trace())
    world.run()
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_neither_lies_nor_faults_violate_an_invariant(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run(draw_scenario(seed, contracts=True))


def test_a_challenge_waits_behind_what_waits_already() -> None:
    # Microblocks of four batches, and so many waiting when the network heals that they fill the window.
    run(draw_scenario(148, contracts=True))


def test_seeds_draw_every_lie_and_replay_from_their_text() -> None:
    scenarios = [draw_scenario(seed, contracts=True) for seed in range(400)]
    for scenario in scenarios:
        check_scenario(scenario)
        assert read_scenario(scenario_json(scenario)) == scenario
    plans = [plan for scenario in scenarios for plan in scenario.contracts]
    assert {plan.lie for plan in plans} == {"", *LIES}
    assert {scenario.late_watchers for scenario in scenarios} == {0, 1, 2}
    assert sum(plan.torn_per_mille > 0 for plan in plans) > 50


def test_a_few_of_all_seeds_have_contracts_and_the_others_are_what_they_were() -> None:
    scenarios = [draw_scenario(seed) for seed in range(1_000)]
    assert 10 < sum(bool(scenario.contracts) for scenario in scenarios) < 100
    plain = replace(draw_scenario(4), contracts=())
    assert scenario_json(plain) == scenario_json(replace(draw_scenario(4, contracts=False), contracts=()))


def test_a_run_with_contracts_replays_to_the_byte() -> None:
    scenario = draw_scenario(16, contracts=True)
    assert run(scenario) == run(scenario)


def test_an_honest_contract_ends_empty_with_every_receipt_kept() -> None:
    world = world_of(replace(MARKET, vandals=20))
    (stall,) = world._bazaar._stalls
    facts = world.judge.chain.contracts.contracts[stall.contract_id]
    assert (facts.status, facts.bond, facts.escrow, facts.is_convicted) == ("closed", 0, 0, False)
    assert len(facts.batches) > 2
    assert len(stall.receipts) >= 20
    assert not stall.complaints
    paid = sum(facts.withdrawn.values()) + len(facts.settled)
    assert paid > 0


@pytest.mark.parametrize(
    "lie", ["forge_root", "forge_outcome", "forge_state", "last_leaf", "drop", "reorder", "replace", "equivocate"]
)
def test_whoever_lies_about_a_batch_is_convicted(lie: str) -> None:
    ends = Counter[bool]()
    for seed in range(3):
        world = world_of(lying(lie, seed=seed))
        (stall,) = world._bazaar._stalls
        facts = world.judge.chain.contracts.contracts[stall.contract_id]
        assert facts.is_convicted or not stall.complaints, "who holds a broken receipt convicts by it"
        ends[facts.is_convicted] += 1
    # A promise whose receipt was lost on its way is missed by nobody.
    assert ends[True] >= (1 if lie in {"drop", "reorder", "replace", "equivocate"} else 3)


def test_who_goes_on_with_another_batch_takes_again_what_was_forced_since() -> None:
    for seed in (396, 401):
        run(draw_scenario(seed, contracts=True))


@pytest.mark.parametrize("lie", ["withhold_all", "ignore_forced", "stop"])
def test_whoever_does_not_answer_is_frozen_and_everybody_paid(lie: str) -> None:
    world = world_of(lying(lie))
    facts = world.judge.chain.contracts.contracts[world._bazaar._stalls[0].contract_id]
    assert (facts.status, facts.bond, facts.escrow, facts.is_convicted) == ("frozen", 0, 0, False)


@pytest.mark.parametrize("lie", ["wrong_end", "wrong_data"])
def test_what_its_data_does_not_bear_out_never_comes_onto_the_chain(lie: str) -> None:
    world = world_of(lying(lie))
    (stall,) = world._bazaar._stalls
    facts = world.judge.chain.contracts.contracts[stall.contract_id]
    assert not any(batch.replayed.wrong for batch in facts.batches)
    assert world._bazaar._stalls[0].operator._tries > 0  # type: ignore[attr-defined]  # it was sent


def test_a_challenge_in_the_last_microblock_convicts_and_one_after_it_is_refused() -> None:
    convicted: Counter[int] = Counter()
    for seed in range(12):
        world = world_of(lying("forge_root", late=1 + seed // 10, seed=seed))
        reference = world.judge.chain.contracts
        facts = reference.contracts[world._bazaar._stalls[0].contract_id]
        for margin in reference.margins[:1]:
            convicted[margin] += 1
            assert facts.is_convicted == (margin >= 1), f"{margin} microblocks were left"
    assert convicted[1] > 0
    assert any(margin < 1 for margin in convicted)


def test_a_failing_contract_gets_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contracts.watcher.Watcher.broken_receipt", lambda *_: None)
    crowded = replace(
        lying("equivocate"), vandals=6, contracts=(*lying("equivocate").contracts, *MARKET.contracts), loss_percent=2
    )
    with pytest.raises(Failure) as caught:
        run(crowded)
    found = shrink(caught.value, 60)
    assert found.failure.invariant == "I12"
    assert len(found.scenario.contracts) == 1
    assert found.scenario.contracts[0].lie == "equivocate"
    assert (found.scenario.vandals, found.scenario.loss_percent) == (0, 0)


def test_the_command_runs_seeds_with_contracts() -> None:
    done = CliRunner().invoke(app, ["simulate", "--seeds", "3..5", "--contracts", "--jobs", "1", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["runs"], answer["contracts"], answer["violations"]) == (3, True, [])
    assert re.fullmatch(r"[0-9a-f]{64}", answer["trace"])
    plain = CliRunner().invoke(app, ["simulate", "--seeds", "3..5", "--jobs", "1", "--json"])
    assert json.loads(plain.stdout)["trace"] != answer["trace"]
