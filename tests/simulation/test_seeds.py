# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole networks under seeded faults: all invariants hold in each run, and after the faults everything commits and epochs go on.

A sample of what `spchain simulate` runs by the thousand.
"""

import pytest

from simulation.draw import draw_scenario
from simulation.run import run

SEEDS = 520
CHUNK = 13


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_fault_violates_an_invariant_and_everything_commits_afterwards(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run(draw_scenario(seed))


@pytest.mark.parametrize(("members", "seeds"), [(4, 40), (7, 16), (13, 8), (31, 2)])
def test_committees_of_each_size_stand_f_faults(members: int, seeds: int) -> None:
    faulty = (scenario for scenario in (draw_scenario(seed, members) for seed in range(10_000)) if scenario.byzantine)
    most = (scenario for scenario in faulty if scenario.byzantine == (members - 1) // 3)
    assert sum(run(next(most)).epochs for _ in range(seeds)) > 0
