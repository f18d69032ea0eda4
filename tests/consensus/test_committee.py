# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import Collection
from fractions import Fraction
from itertools import combinations
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.committee import Committee, CommitteeMember
from ledger.rules import MAX_COMMITTEE, REPUTATION_UNIT

WEIGHTS = st.lists(st.integers(1, REPUTATION_UNIT) | st.integers(1, 5), min_size=1, max_size=7)


def committee(weights: Collection[int]) -> Committee:
    members = [CommitteeMember(bytes([i]) * 33, bytes([i]) * 20, weight) for i, weight in enumerate(weights)]
    return Committee(0, members)


def subsets(n: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(n + 1) for chosen in combinations(range(n), size)]


def dumb_quorum(weights: list[int], chosen: Collection[int]) -> bool:
    n, f = len(weights), (len(weights) - 1) // 3
    share = Fraction(sum(weights[i] for i in chosen), sum(weights))
    return len(chosen) >= ceil(Fraction(n + f + 1, 2)) and share > Fraction(2, 3)


@given(WEIGHTS)
def test_a_quorum_is_what_the_plain_definition_says(weights: list[int]) -> None:
    voters = committee(weights)
    assert voters.faults == (len(weights) - 1) // 3
    for chosen in subsets(len(weights)):
        assert voters.is_quorum(chosen) == dumb_quorum(weights, chosen)


@given(WEIGHTS)
def test_r1_two_quorums_share_an_honest_member_and_more_than_a_third_of_reputation(weights: list[int]) -> None:
    voters = committee(weights)
    quorums = [set(chosen) for chosen in subsets(len(weights)) if voters.is_quorum(chosen)]
    for one in quorums:
        for other in quorums:
            shared = one & other
            assert len(shared) > voters.faults
            assert 3 * sum(weights[i] for i in shared) > sum(weights)


BIG_WEIGHTS = st.lists(st.integers(1, REPUTATION_UNIT) | st.integers(1, 5), min_size=8, max_size=MAX_COMMITTEE)


def smallest_quorum(voters: Committee, order: list[int]) -> set[int]:
    """Members in this order until they decide, and then without all that are not needed: no proper subset decides."""
    chosen: set[int] = set()
    for index in order:
        chosen.add(index)
        if voters.is_quorum(chosen):
            break
    for index in order:
        if voters.is_quorum(chosen - {index}):
            chosen.discard(index)
    return chosen


@settings(max_examples=300)
@given(BIG_WEIGHTS, st.data())
def test_r1_two_quorums_of_a_large_committee_overlap_as_well_however_little_they_try_to(
    weights: list[int], data: st.DataObject
) -> None:
    """The second quorum takes those first who are not in the first one: the least overlap by number, and by reputation."""
    voters, everybody = committee(weights), list(range(len(weights)))
    one = smallest_quorum(voters, data.draw(st.permutations(everybody)))
    heavy = sorted(everybody, key=lambda index: -weights[index])
    shuffled = data.draw(st.permutations(everybody))
    for preferred in (everybody, heavy, heavy[::-1], shuffled):
        avoiding = [i for i in preferred if i not in one] + [i for i in preferred if i in one]
        other = smallest_quorum(voters, avoiding)
        assert voters.is_quorum(one)
        assert voters.is_quorum(other)
        shared = one & other
        assert len(shared) > voters.faults
        assert 3 * sum(weights[i] for i in shared) > sum(weights)
        assert voters.must_hold_honest(shared), "faulty members alone cannot be the overlap"


@settings(max_examples=300)
@given(BIG_WEIGHTS, st.data())
def test_r3_whoever_is_faulty_within_the_bounds_can_neither_decide_nor_make_others_join_nor_block(
    weights: list[int], data: st.DataObject
) -> None:
    """At most f members with less than a third of the reputation: the fault model of I5."""
    voters, faulty = committee(weights), set[int]()
    for index in data.draw(st.permutations(range(len(weights)))):
        within = len(faulty) < voters.faults and 3 * sum(weights[i] for i in {*faulty, index}) < sum(weights)
        if within:
            faulty.add(index)
    honest = set(range(len(weights))) - faulty
    assert not voters.is_quorum(faulty)
    assert not voters.must_hold_honest(faulty)
    assert voters.is_quorum(honest)
    assert voters.must_hold_honest(honest)


@pytest.mark.parametrize("faults", range(1, 21))
def test_r2_of_3f_plus_1_equal_members_a_quorum_has_2f_plus_1(faults: int) -> None:
    voters = committee([REPUTATION_UNIT // 2] * (3 * faults + 1))
    assert voters.quorum_votes == 2 * faults + 1
    assert voters.is_quorum(range(2 * faults + 1))
    assert not voters.is_quorum(range(2 * faults))


@given(WEIGHTS)
def test_r3_a_set_that_must_hold_an_honest_member_has_f_plus_1_and_a_third(weights: list[int]) -> None:
    voters = committee(weights)
    for chosen in subsets(len(weights)):
        share = Fraction(sum(weights[i] for i in chosen), sum(weights))
        assert voters.must_hold_honest(chosen) == (len(chosen) >= voters.faults + 1 and share > Fraction(1, 3))


@given(WEIGHTS)
def test_everybody_together_is_a_quorum_and_without_a_quorum_the_rest_can_join(weights: list[int]) -> None:
    voters = committee(weights)
    assert voters.is_quorum(range(len(weights)))
    for chosen in subsets(len(weights)):
        assert not voters.is_quorum(chosen) or voters.must_hold_honest(chosen)


@pytest.mark.parametrize(("n", "needed"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (13, 9)])
def test_how_many_equal_members_decide(n: int, needed: int) -> None:
    voters = committee([7] * n)
    assert [voters.is_quorum(range(size)) for size in range(n + 1)] == [size >= needed for size in range(n + 1)]


def test_members_have_indexes_and_strangers_have_none() -> None:
    voters = committee([1, 1, 1])
    assert [voters.index_of(bytes([i]) * 20) for i in range(3)] == [0, 1, 2]
    assert voters.index_of(b"stranger") is None


def test_a_member_stands_in_a_committee_once() -> None:
    member = CommitteeMember(bytes(33), bytes(20), 1)
    with pytest.raises(AssertionError, match="one vote"):
        Committee(0, [member, member])
    with pytest.raises(AssertionError, match="needs a committee"):
        Committee(0, [])
