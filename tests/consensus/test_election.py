# SPDX-License-Identifier: GPL-3.0-or-later
from collections import Counter
from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import election
from consensus.committee import CommitteeMember
from consensus.election import (
    Schedule,
    draw_below,
    is_reveal,
    next_seed,
    opened_term,
    reveal,
    reveal_message,
)
from ledger.crypto.hashing import Tag
from ledger.crypto.unique_signature import keygen
from ledger.genesis import genesis_seed

SEED = genesis_seed(bytes(32))
DRAWS = 100_000
SEEDS = st.binary(min_size=32, max_size=32)
SIGNATURES = st.binary(min_size=96, max_size=96)
WEIGHTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=13)
PAPER = [15, 10, 10, 9, 8, 7, 6, 6, 5, 4, 3, 3, 3]


def members(weights: list[int]) -> list[CommitteeMember]:
    return [CommitteeMember(bytes([i]) * 33, bytes([i]) * 20, weight) for i, weight in enumerate(weights)]


def shares(weights: list[int]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def counted(indexes: list[int], size: int) -> list[float]:
    counts = Counter(indexes)
    return [counts[index] / len(indexes) for index in range(size)]


# ---------------------------------------------------------------- R1


@given(SEEDS, WEIGHTS, st.integers(0, 2**40), st.integers(0, 30))
def test_r1_equal_arguments_give_equal_leaders(seed: bytes, weights: list[int], opened: int, lost: int) -> None:
    first, second = Schedule(seed, members(weights)), Schedule(bytes(seed), members(list(weights)))
    assert first.leader(opened + lost, opened, None) == second.leader(opened + lost, opened, None)
    assert first.leader(opened, opened, None) == second.drawn(opened)


def test_r1_the_draws_of_a_known_seed_never_change() -> None:
    schedule = Schedule(SEED, members([1, 2, 3, 4]))
    assert SEED.hex().startswith("cff750ec36030b70")
    assert [schedule.drawn(term) for term in range(12)] == [2, 3, 3, 0, 2, 3, 0, 1, 2, 3, 2, 3]
    assert schedule.succession(7, 2) == (2, 3, 1, 0)


# ---------------------------------------------------------------- R2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_r2_each_member_holds_exactly_its_share_of_the_numbers(weights: list[int]) -> None:
    schedule = Schedule(SEED, members(weights))
    held = Counter(schedule.holder(number) for number in range(sum(weights)))
    assert [held[index] for index in range(len(weights))] == weights


@pytest.mark.parametrize("weights", [PAPER, [1, 1, 1, 1], [60, 20, 10, 10], [10**9, 1, 10**9, 333_333_333]])
def test_r2_over_100_000_terms_each_member_leads_its_share_within_one_per_cent(weights: list[int]) -> None:
    schedule = Schedule(SEED, members(weights))
    led = counted([schedule.leader(term, term, None) for term in range(DRAWS)], len(weights))
    assert led == pytest.approx(shares(weights), abs=0.01)
    # Sharper than the requirement: five standard deviations of a fair draw, which small shares and biased draws do not hide in.
    for counted_share, share in zip(led, shares(weights), strict=True):
        assert abs(counted_share - share) <= 5 * sqrt(share * (1 - share) / DRAWS) + 1 / DRAWS


def test_r2_the_successor_of_a_lost_leader_is_drawn_in_proportion_among_the_others() -> None:
    schedule = Schedule(SEED, members([50, 30, 15, 5]))
    next_ones = [schedule.leader(opened + 1, opened, 0) for opened in range(20_000)]
    assert counted(next_ones, 4) == pytest.approx([0, 0.6, 0.3, 0.1], abs=0.015)


@given(SEEDS, st.integers(1, 2**256), st.integers(0, 2**63))
def test_r2_a_draw_lies_below_its_bound(seed: bytes, bound: int, term: int) -> None:
    assert 0 <= draw_below(bound, seed, term, 0) < bound


def test_r2_numbers_beyond_the_last_multiple_are_drawn_again_and_not_folded() -> None:
    # With a bound of three quarters of the range a plain remainder would fall into the lowest third two times of four.
    bound = 3 << 254
    low = sum(draw_below(bound, SEED, term, 0) < bound // 3 for term in range(20_000))
    assert low / 20_000 == pytest.approx(1 / 3, abs=0.015)


def test_r2_a_hash_that_never_falls_under_the_limit_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []

    def highest(_tag: Tag, where: bytes) -> bytes:
        tried.append(where)
        return b"\xff" * 32

    monkeypatch.setattr(election, "tagged_hash", highest)
    with pytest.raises(AssertionError, match="never falls under the limit"):
        draw_below(3 << 254, SEED, 7, 1)
    assert len(set(tried)) == len(tried) == 1024, "each attempt hashes something else"
    assert {len(where) for where in tried} == {32 + 8 + 2 + 2}


# ---------------------------------------------------------------- R3


@given(SEEDS, SEEDS, SIGNATURES, SIGNATURES)
def test_r3_a_seed_depends_on_the_signature_the_keyblock_and_the_seed_before(
    previous: bytes, keyblock: bytes, one: bytes, other: bytes
) -> None:
    seed = next_seed(previous, keyblock, one)
    assert (seed == next_seed(previous, keyblock, other)) == (one == other)
    assert seed != next_seed(previous, keyblock, None)
    changed = bytes([keyblock[0] ^ 1]) + keyblock[1:]
    for with_signature in (one, None):
        assert next_seed(previous, keyblock, with_signature) != next_seed(previous, changed, with_signature)
        assert next_seed(previous, keyblock, with_signature) != next_seed(seed, keyblock, with_signature)


def test_r3_whoever_lacks_the_signature_learns_nothing_about_the_leaders() -> None:
    """All else known, the unknown signature spreads the leader of a given term over all members in proportion."""
    committee = members([50, 30, 15, 5])
    seeds = [next_seed(SEED, bytes(32), i.to_bytes(96)) for i in range(20_000)]
    leaders = [Schedule(seed, committee).drawn(4) for seed in seeds]
    assert counted(leaders, 4) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


@settings(max_examples=10)
@given(SEEDS, SEEDS, SEEDS, st.integers(0, 96 * 8 - 1))
def test_r3_a_creator_can_reveal_one_signature_only(
    key_seed: bytes, previous: bytes, keyblock: bytes, bit: int
) -> None:
    secret, public = keygen(key_seed)
    signature = reveal(secret, previous, keyblock)
    assert is_reveal(public, previous, keyblock, signature)
    assert not is_reveal(public, previous, keyblock, (int.from_bytes(signature) ^ 1 << bit).to_bytes(96))
    changed = bytes([keyblock[0] ^ 1]) + keyblock[1:]
    assert not is_reveal(public, previous, changed, signature)
    assert not is_reveal(public, changed, keyblock, signature)
    assert reveal_message(previous, keyblock) != reveal_message(keyblock, previous) or previous == keyblock


# ---------------------------------------------------------------- R4


@given(SEEDS, WEIGHTS, st.integers(0, 2**40), st.integers(0, 100), st.data())
def test_r4_in_any_row_of_lost_terms_all_members_lead_before_anyone_does_again(
    seed: bytes, weights: list[int], opened: int, start: int, data: st.DataObject
) -> None:
    schedule, size = Schedule(seed, members(weights)), len(weights)
    incumbent = data.draw(st.none() | st.integers(0, size - 1))
    row = [schedule.leader(opened + start + i, opened, incumbent) for i in range(size)]
    assert sorted(row) == list(range(size))
    if incumbent is not None:
        assert schedule.leader(opened, opened, incumbent) == incumbent


@given(SEEDS, WEIGHTS, st.data())
def test_r4_silent_members_cost_at_most_one_time_out_each(seed: bytes, weights: list[int], data: st.DataObject) -> None:
    """Whoever is silent never finishes a term: each row of losses is at most as long as there are silent members."""
    schedule, size, cap = Schedule(seed, members(weights)), len(weights), 8
    silent = data.draw(st.sets(st.integers(0, size - 1), max_size=(size - 1) // 3))
    parent_round, done = cap - 1, [0]
    for term in range(1, 60):
        opened = opened_term(parent_round, cap)
        if schedule.leader(term, opened, None) not in silent:
            parent_round = term * cap + cap - 1
            done.append(term)
    assert len(done) > 1
    assert all(after - before <= len(silent) + 1 for before, after in pairwise(done))


@given(st.integers(0, 2**40), st.integers(2, 2**20), st.integers(0, 2**20))
def test_r4_the_opened_term_is_read_from_the_parents_round(term: int, cap: int, place: int) -> None:
    place %= cap
    assert opened_term(term * cap + place, cap) == (term + 1 if place == cap - 1 else term)


def test_the_smallest_reputation_still_has_its_turn_and_none_at_all_is_our_own_bug() -> None:
    assert sorted(Schedule(SEED, members([1, 10**9, 10**9])).succession(1, 1)) == [0, 1, 2]
    with pytest.raises(AssertionError, match="some reputation"):
        Schedule(SEED, members([1, 0, 1]))
