# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bound on Byzantine members is worth: f members that live twice split nothing, one more than f split the chain."""

import msgspec
import pytest

from simulation.run import Failure, run
from simulation.scenario import Partition, Scenario

SPLIT = Scenario(
    seed=0, traits=("twins",), term_microblocks=3, transactions=30, delay_ms=10, faults_ms=6_000, patience_ms=40_000
)


def split(members: int, liars: int, seed: int) -> Scenario:
    """Return a run in which the honest members are cut in two halves that only the twins reach."""
    half = tuple(range((members - liars) // 2))
    cut = Partition(half, 100, SPLIT.faults_ms)
    return msgspec.structs.replace(SPLIT, seed=seed, members=members, byzantine=liars, partitions=(cut,))


@pytest.mark.parametrize(("members", "liars"), [(4, 2), (7, 3), (13, 5), (31, 11)])
def test_one_liar_more_than_f_splits_the_chain_and_the_judge_sees_it(members: int, liars: int) -> None:
    with pytest.raises(Failure, match=r"violates I1: .* commits another microblock") as caught:
        run(split(members, liars, 1))
    assert caught.value.scenario.byzantine == (members - 1) // 3 + 1


@pytest.mark.parametrize(("members", "liars", "seeds"), [(4, 1, 8), (7, 2, 5), (13, 4, 2)])
def test_f_liars_that_live_twice_split_nothing(members: int, liars: int, seeds: int) -> None:
    for seed in range(seeds):
        mined = msgspec.structs.replace(split(members, liars, seed), keyblock_ms=800)
        assert run(mined).epochs > 0
