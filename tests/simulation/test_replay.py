# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.errors import InvalidInput
from simulation.draw import draw_scenario
from simulation.run import run
from simulation.scenario import MAX_MEMBERS, TRAITS, Crash, Scenario, read_scenario, scenario_json

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from simulation.draw import draw_scenario
from simulation.run import run
print(run(draw_scenario({})).trace)
"""


@pytest.mark.parametrize(("seed", "members"), [(11, 4), (6, None), (21, 4), (190, 7), (3, 13)])
def test_a_seed_replays_to_the_byte(seed: int, members: int | None) -> None:
    first, second = run(draw_scenario(seed, members)), run(draw_scenario(seed, members))
    assert first == second
    assert first.events > 100


def test_a_seed_replays_to_the_byte_in_another_process_with_other_hashes() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(11)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = run(draw_scenario(11))
    assert outcome.epochs > 1
    assert done.stdout.strip() == outcome.trace


def test_seeds_differ() -> None:
    assert run(draw_scenario(1, 4)).trace != run(draw_scenario(2, 4)).trace


def test_a_scenario_replays_from_its_text() -> None:
    for seed in range(200):
        scenario = draw_scenario(seed)
        assert read_scenario(scenario_json(scenario)) == scenario
    assert run(read_scenario(scenario_json(draw_scenario(5)))) == run(draw_scenario(5))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "no scenario"),
        ('{"seed":1,"no_such_field":2}', "no_such_field"),
        ('{"seed":1,"members":32}', "members"),
        ('{"seed":1,"traits":["rude"]}', "rude"),
        ('{"seed":1,"byzantine":4}', "leave one"),
        (scenario_json(Scenario(seed=1, crashes=(Crash(4, 1, 2),))), "replica 4 does not exist"),
        (scenario_json(Scenario(seed=1, members=2, powers=(1, 0, 1))), "power"),
        (scenario_json(Scenario(seed=1, members=2, keyblock_ms=100, powers=(0, 0))), "nobody mines"),
    ],
)
def test_a_text_that_is_no_scenario_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_scenario(text)


def test_seeds_draw_every_kind_of_fault_and_never_more_than_f_liars() -> None:
    scenarios = [draw_scenario(seed) for seed in range(1_000)]
    for scenario in scenarios:
        assert 3 * scenario.byzantine < scenario.members
        assert 3 * scenario.byzantine < scenario.seats
    assert {trait for scenario in scenarios for trait in scenario.traits} == set(TRAITS)
    assert {4, 7, 13, MAX_MEMBERS} <= {scenario.members for scenario in scenarios}
    for kind in ("crashes", "partitions", "clock_jumps", "full_disks", "newcomers", "observers", "keyblock_ms"):
        assert 50 < sum(bool(getattr(scenario, kind)) for scenario in scenarios) < 1_000, kind
    at_most = [s for s in scenarios if s.byzantine and s.byzantine == (s.members - 1) // 3]
    assert len(at_most) > 100


def test_a_size_can_be_chosen() -> None:
    assert {draw_scenario(seed, 13).members for seed in range(50)} == {13}
