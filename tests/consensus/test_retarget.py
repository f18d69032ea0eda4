# SPDX-License-Identifier: GPL-3.0-or-later
"""The retarget under constant power, bursts and lying clocks; the times that keyblocks may state."""

import random
from collections.abc import Callable
from fractions import Fraction
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import retarget
from consensus.work import encode_target
from ledger.errors import InvalidInput
from ledger.rules import MAIN_PARAMETERS, WorkRules

LIMIT = 2**240
RULES = WorkRules(encode_target(LIMIT), 15_000, 20)
E_MS = RULES.window_keyblocks * RULES.interval_ms
TARGETS = st.integers(1, LIMIT)
TIMES = st.integers(0, 2**63 - 1)
FAIR = 2**200
"""The target at which the power of these tests finds a keyblock per wanted interval."""


def following(target: int, span_ms: int, rules: WorkRules = RULES) -> int:
    return retarget.next_target(target, 10**12, 10**12 + span_ms, rules.window_keyblocks, rules)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("first_s", "last_s", "target", "shift", "expected"),
    [
        # Bitcoin Core's pow_tests, heights 32 255 and 68 543; its compact form keeps the upper digits only.
        (1261130161, 1262152739, 0xFFFF << 208, 208, 0xD86A),
        (1279008237, 1279297671, 0x05A3F4 << 200, 200, 0x0168FD),
    ],
)
def test_the_retarget_is_that_of_bitcoin(first_s: int, last_s: int, target: int, shift: int, expected: int) -> None:
    rules = WorkRules(encode_target(0xFFFF << 208), 600_000, 2_016)
    found = retarget.next_target(target, first_s * 1_000, last_s * 1_000, 2_016, rules)
    assert found >> shift == expected


@pytest.mark.parametrize(
    ("target", "span_ms", "expected"),
    [
        (FAIR, E_MS, FAIR),
        (FAIR, 2 * E_MS, 2 * FAIR),
        (FAIR, 0, FAIR // 4),
        (FAIR, -(10**11), FAIR // 4),
        (FAIR, 10**11, 4 * FAIR),
        (FAIR, E_MS - 1, FAIR * (E_MS - 1) // E_MS),
        (LIMIT, 2 * E_MS, LIMIT),
        (LIMIT // 3, 4 * E_MS, LIMIT),
        (1, 0, 1),
        (3, 0, 1),
        (1, 4 * E_MS, 4),
    ],
)
def test_the_next_target_is_fixed(target: int, span_ms: int, expected: int) -> None:
    assert following(target, span_ms) == expected


# ---------------------------------------------------------------- R1 to R3


@given(TARGETS, TIMES, TIMES, st.integers(1, 2**20))
def test_r1_the_next_target_is_the_exact_formula_rounded_down(
    target: int, first_ms: int, last_ms: int, keyblocks: int
) -> None:
    factor = min(max(Fraction(last_ms - first_ms, keyblocks * RULES.interval_ms), Fraction(1, 4)), Fraction(4))
    exact = min(Fraction(LIMIT), max(Fraction(1), target * factor))
    assert retarget.next_target(target, first_ms, last_ms, keyblocks, RULES) == exact.__floor__()


@given(TARGETS, TIMES, TIMES, st.integers(1, 2**20))
def test_r2_a_window_changes_the_target_by_a_factor_of_four_at_most_and_never_beyond_its_bounds(
    target: int, first_ms: int, last_ms: int, keyblocks: int
) -> None:
    found = retarget.next_target(target, first_ms, last_ms, keyblocks, RULES)
    assert max(1, target // 4) <= found <= min(LIMIT, 4 * target)


@given(TARGETS, TARGETS, st.integers(-(2**50), 2**50), st.integers(-(2**50), 2**50))
def test_r3_longer_spans_and_larger_targets_never_give_smaller_ones(one: int, other: int, a_ms: int, b_ms: int) -> None:
    assert following(min(one, other), min(a_ms, b_ms)) <= following(max(one, other), max(a_ms, b_ms))


# ---------------------------------------------------------------- R4: convergence


def find_times(dice: random.Random, fair: int, target: int, count: int) -> list[int]:
    """Return how long, in milliseconds, constant power takes for each of so many keyblocks."""
    return [round(dice.expovariate(1) * RULES.interval_ms * fair / target) for _ in range(count)]


@pytest.mark.parametrize("start", [FAIR, 1_000 * FAIR, FAIR // 1_000])
@pytest.mark.parametrize("seed", range(3))
def test_r4_the_mean_interval_comes_within_ten_per_cent_of_the_wanted_one(start: int, seed: int) -> None:
    dice = random.Random(seed)
    target, now_ms, means = start, 0, []
    for _ in range(110):
        began_ms = now_ms
        now_ms += sum(find_times(dice, FAIR, target, RULES.window_keyblocks))
        means.append((now_ms - began_ms) / RULES.window_keyblocks)
        target = retarget.next_target(target, began_ms, now_ms, RULES.window_keyblocks, RULES)
    # Ten windows cover a factor of a thousand (4^5 already does) and settle; a hundred leave 2 % of chance in the mean.
    assert fmean(means[10:]) == pytest.approx(RULES.interval_ms, rel=0.1)


def test_r4_ten_times_the_power_is_met_after_a_few_windows() -> None:
    dice = random.Random(1)
    target = FAIR
    for _ in range(8):
        span_ms = sum(find_times(dice, FAIR // 10, target, RULES.window_keyblocks))
        target = following(target, span_ms)
    assert FAIR / 10 / 2 < target < FAIR / 10 * 2


# ---------------------------------------------------------------- R5: lying clocks

ERRORS_MS = st.lists(st.integers(0, E_MS // 5), min_size=1, max_size=60)
"""What the stated time of each window's end adds to the truth, up to an unimportant constant; δ = E/5."""


def targets_under(errors_ms: list[int], start: int) -> list[int]:
    """Return the targets when constant power takes exactly its mean time and the ends of windows lie so."""
    target, true_ms, stated_ms, found = start, 0, errors_ms[0], []
    for error_ms in errors_ms[1:]:
        true_ms += E_MS * FAIR // target
        target = retarget.next_target(target, stated_ms, true_ms + error_ms, RULES.window_keyblocks, RULES)
        stated_ms = true_ms + error_ms
        found.append(target)
    return found


@given(ERRORS_MS)
def test_r5_lies_within_delta_never_lift_the_target_above_the_bound(errors_ms: list[int]) -> None:
    # 1/(1 − 1/5) = 5/4; a millionth covers the rounding of whole milliseconds.
    assert all(target <= FAIR * 5 // 4 * (1 + Fraction(1, 10**6)) for target in targets_under(errors_ms, FAIR))


@given(ERRORS_MS)
def test_r5_nor_do_they_hold_it_far_below(errors_ms: list[int]) -> None:
    # 1 − ε/(1−ε) = 3/4 with ε = 1/5.
    assert all(target >= FAIR * 3 // 4 * (1 - Fraction(1, 10**6)) for target in targets_under(errors_ms, FAIR))


def test_r5_without_the_bound_on_lies_the_target_would_grow_without_end() -> None:
    # Murch-Zawy: one window's end is held back by twenty windows, and then each claims four times the wanted span.
    errors_ms = [0] * 20 + [-20 * E_MS] + [-20 * E_MS + 3 * E_MS * i for i in range(1, 6)]
    assert max(targets_under(errors_ms, FAIR)) > 50 * FAIR


def test_r5_the_times_that_this_takes_are_refused_though_the_median_lets_them_pass() -> None:
    held_back = [10**12 + i for i in range(20)]
    now_ms = 10**12 + 20 * E_MS
    assert retarget.median_ms(held_back) < held_back[-1] + 1
    with pytest.raises(InvalidInput, match="mined on"):
        retarget.check_not_early(held_back[-1] + 1, held_back, now_ms)


# ---------------------------------------------------------------- R6: times


@given(st.lists(TIMES, min_size=1, max_size=30))
def test_r6_the_median_is_of_the_last_eleven(times_ms: list[int]) -> None:
    last = times_ms[-11:]
    median = retarget.median_ms(times_ms)
    assert median in last
    assert sum(time <= median for time in last) > len(last) // 2
    assert sum(time >= median for time in last) * 2 >= len(last)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=15), st.integers(0, 50), st.integers(0, 60))
def test_r6_exactly_the_times_from_the_earliest_on_pass(times_ms: list[int], microblock_ms: int, time_ms: int) -> None:
    allowed = time_ms > sorted(times_ms[-11:])[len(times_ms[-11:]) // 2] and time_ms > microblock_ms
    assert allowed == (time_ms >= retarget.earliest_timestamp_ms(times_ms, microblock_ms))
    if allowed:
        retarget.check_not_early(time_ms, times_ms, microblock_ms)
    else:
        with pytest.raises(InvalidInput):
            retarget.check_not_early(time_ms, times_ms, microblock_ms)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_r6_the_median_never_runs_backwards(steps_ms: list[int]) -> None:
    times_ms, medians = [0], [0]
    for step_ms in steps_ms:
        times_ms.append(retarget.earliest_timestamp_ms(times_ms, 0) + step_ms)
        medians.append(retarget.median_ms(times_ms))
    assert medians == sorted(medians)


def _not_early(time_ms: int) -> None:
    retarget.check_not_early(time_ms, [10, 20, 30], 25)


def _not_ahead(time_ms: int) -> None:
    retarget.check_not_ahead(time_ms, 1_000, 500)


@pytest.mark.parametrize(
    ("check", "passes", "fails", "says"),
    [
        (_not_early, 26, 25, "25 ms is not later than 25 ms, the time of the microblock"),
        (_not_early, 26, 20, "20 ms is not later than 20 ms, the median"),
        (_not_ahead, 1_500, 1_501, "1501 ms is 501 ms ahead of this clock; at most 500 ms"),
    ],
)
def test_r6_a_refusal_says_the_value_and_the_remedy(
    check: Callable[[int], None], passes: int, fails: int, says: str
) -> None:
    check(passes)
    with pytest.raises(InvalidInput, match=says) as refusal:
        check(fails)
    assert "correct the" in str(refusal.value)


def test_the_main_profile_stays_within_its_limit() -> None:
    rules = MAIN_PARAMETERS.work
    limit = int.from_bytes(rules.limit, "big")
    assert following(limit, 10**15, rules) == limit
