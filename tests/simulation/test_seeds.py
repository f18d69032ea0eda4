# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole networks under seeded faults: all invariants hold in each run, and after the faults everything commits and epochs go on.

A sample of what `spchain simulate` runs by the thousand.
"""

import pytest

from simulation import clients
from simulation.draw import draw_scenario
from simulation.run import run
from simulation.scenario import Crash, FullDisk, Scenario

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


def test_a_member_whose_certified_tip_is_beside_the_others_chain_is_given_what_ends_its_epoch() -> None:
    # Found by seed 5745: its requests after its tip and after its head came in step with the throttle, so one kind never left.
    full_disks = (FullDisk(replica=0, from_ms=6559, until_ms=8535, safety=True),)
    crashes = (Crash(1, 4492, 8131), Crash(2, 3852, 5984), Crash(0, 1328, 5097))
    beside = Scenario(
        seed=5745,
        members=2,
        newcomers=2,
        seats=4,
        external_percent=20,
        keyblock_ms=1500,
        term_microblocks=32,
        transactions=1,
        faults_ms=6825,
        loss_percent=10,
        duplicate_percent=30,
        delay_ms=1,
        slow_percent=5,
        crashes=crashes,
        full_disks=full_disks,
    )
    assert run(beside).epochs > 0


def test_clients_make_a_transaction_again_that_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    # Found by seed 6113: a liar's contract drove a lone member past every client's expiry.
    monkeypatch.setattr(clients, "EXPIRY_MICROBLOCKS", 4)
    for seed in range(20):
        run(draw_scenario(seed))
