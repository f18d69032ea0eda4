# SPDX-License-Identifier: GPL-3.0-or-later
"""A failing schedule gets smaller, and what is left of it still fails in the same way."""

import msgspec
import pytest

import consensus.core
import simulation.shrink
from simulation.draw import draw_scenario
from simulation.pool import Pool
from simulation.run import Failure, Outcome, run
from simulation.scenario import ClockJump, Crash, FullDisk, Partition, Scenario, check_scenario
from simulation.shrink import shrink
from simulation.trace import Trace
from simulation.violation import Violation

CROWDED = Scenario(
    seed=0,
    members=7,
    newcomers=2,
    observers=1,
    traits=("garbage", "replay"),
    byzantine=2,
    keyblock_ms=1_000,
    powers=(1, 2, 3, 1, 1, 1, 1, 1, 1),
    transactions=9,
    loss_percent=10,
    duplicate_percent=5,
    slow_percent=5,
    torn_per_mille=2,
    skew_ms=100,
    crashes=tuple(Crash(number, 1_000 * number, 1_000 * number + 800) for number in range(7)),
    partitions=(Partition((0, 1, 2), 2_000, 4_000), Partition((5,), 5_000, 7_000)),
    clock_jumps=(ClockJump(1, 3_000, 2_000), ClockJump(2, 4_000, -2_000)),
    full_disks=(FullDisk(0, 2_000, 3_000, safety=False), FullDisk(3, 4_000, 6_000, safety=True)),
)


def failing(scenario: Scenario) -> Failure:
    with pytest.raises(Failure) as caught:
        run(scenario)
    return caught.value


def test_a_bug_that_needs_no_fault_is_left_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "is_committed", lambda _pool, _digest: False)
    monkeypatch.setattr(Pool, "committed", lambda _pool, _digests: None)
    found = shrink(failing(CROWDED))
    small = found.scenario
    assert found.failure.invariant == "I2"
    assert (small.members, small.newcomers, small.observers, small.byzantine, small.keyblock_ms) == (1, 0, 0, 0, 0)
    assert _faults(small) == small.loss_percent == 0
    assert failing(small).detail == found.failure.detail
    assert found.runs <= simulation.shrink.BUDGET_RUNS


def test_a_bug_that_needs_faults_keeps_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus.core, "on_chain", lambda *_: None)
    failure = next(failure for failure in map(_failure, range(50)) if failure is not None)
    small = shrink(failure).scenario
    assert _faults(small) < _faults(failure.scenario)
    assert failing(small).invariant == "I5"


def _failure(seed: int) -> Failure | None:
    try:
        run(draw_scenario(seed, 4))
    except Failure as failure:
        return failure
    return None


def _faults(scenario: Scenario) -> int:
    return sum(
        len(faults) for faults in (scenario.crashes, scenario.partitions, scenario.clock_jumps, scenario.full_disks)
    )


def pretending(needed: object, seeds: range) -> object:
    """Return a run that fails whenever a field contains what is needed, and only with some seeds."""

    def pretend(scenario: Scenario) -> Outcome:
        check_scenario(scenario)
        if scenario.seed in seeds and needed in scenario.crashes:
            raise Failure(scenario, Violation("I1", "as agreed"), Trace())
        return Outcome(scenario, "", 0, 0, 0)

    return pretend


def test_the_one_fault_that_matters_is_found_and_everything_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.shrink, "run", pretending(CROWDED.crashes[3], range(3)))
    failure = Failure(CROWDED, Violation("I1", "as agreed"), Trace())
    small = shrink(failure).scenario
    assert small.crashes == (CROWDED.crashes[3],)
    assert (small.replicas, small.byzantine, small.traits, small.transactions) == (4, 0, (), 1)
    assert not any((small.partitions, small.full_disks, small.clock_jumps, small.skew_ms))


def test_a_smaller_scenario_may_need_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.shrink, "run", pretending(CROWDED.crashes[0], range(2, 3)))
    failure = Failure(CROWDED, Violation("I1", "as agreed"), Trace())
    small = shrink(failure).scenario
    assert small.seed == 2
    assert small.members == 1


def test_the_budget_of_runs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.shrink, "run", pretending(CROWDED.crashes[3], range(3)))
    failure = Failure(CROWDED, Violation("I1", "as agreed"), Trace())
    found = shrink(failure, budget_runs=3)
    assert found.runs == 3
    assert found.scenario == CROWDED or _faults(found.scenario) <= _faults(CROWDED)


def test_another_violation_is_not_taken_for_the_one_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.shrink, "run", pretending(CROWDED.crashes[3], range(3)))
    failure = Failure(CROWDED, Violation("I5", "something else"), Trace())
    assert shrink(failure).scenario == CROWDED


def test_the_time_to_wait_is_never_shortened() -> None:
    for reducer in simulation.shrink.REDUCERS:
        for candidate in reducer(CROWDED):
            assert candidate.patience_ms == CROWDED.patience_ms
            assert msgspec.structs.replace(candidate, seed=0) != CROWDED
            check_scenario(candidate)
