# SPDX-License-Identifier: GPL-3.0-or-later
"""Reputation against an exact reference and the paper's Table 2."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.reputation import Explanation, after_keyblock, after_terms, ceiling_nano, explain, reputation_nano
from ledger.errors import InvalidInput
from ledger.miners import MinerHistory, TermTally
from ledger.rules import MAIN_PARAMETERS, ReputationRules, check_parameters
from tests.consensus.algorithm2 import exact, exact_by_chunks

KEYBLOCKS_PER_DAY = 6 * 24
# April 2017, per cent of computing power (RepuCoin, section 6).
POWER = [15.1, 10.1, 10.0, 9.5, 8.3, 7.1, 6.4, 5.9, 5.5, 4.0, 2.9, 2.8]
POWER += [2.4, 2.2, 1.7, 1.5, 1.5, 0.7, 0.5, 0.5, 0.3, 0.3, 0.2, 0.2]
# Days → per cent of computing power per band of R; months of 30 days and years of 365, on which two pools at the edge of a band
# depend. Two printed cells do not sum to 100 and are corrected.
TABLE_2 = {
    30: (100, 0, 0, 0, 0),
    180: (64.7, 35.3, 0, 0, 0),
    365: (21.8, 78.2, 0, 0, 0),
    2 * 365: (9.6, 37.1, 38.1, 15.2, 0),
    3 * 365: (5.7, 21.6, 19.5, 38.1, 15.2),
    4 * 365: (2.7, 19.1, 0, 25, 53.2),
    5 * 365: (2.7, 15.1, 4, 17.9, 60.3),
    20 * 365: (0.4, 2.3, 0, 3, 94.3),
}


def history_by_chunks(per_chunk: Sequence[int]) -> MinerHistory:
    """The history of a miner with so many keyblocks in each chunk, the last of which is the newest of the chain."""
    return MinerHistory(
        keyblocks=sum(per_chunk),
        closed_chunk_squares=sum(k * k for k in per_chunk[:-1]),
        chunk=len(per_chunk) - 1,
        chunk_keyblocks=per_chunk[-1],
    )


def history_of(positions: list[int], terms: list[int], rules: ReputationRules, external_nano: int = 0) -> MinerHistory:
    history = MinerHistory(external_nano=external_nano)
    for position in positions:
        history = after_keyblock(history, position, rules)
    return after_terms(history, TermTally(len(terms), sum(terms), sum(m * m for m in terms)))


@settings(max_examples=300)
@given(st.data())
def test_the_integers_stay_within_two_nano_of_the_exact_value(data: st.DataObject) -> None:
    rules = ReputationRules(
        data.draw(st.integers(0, 500)), data.draw(st.integers(1, 500)), data.draw(st.integers(1, 50))
    )
    length = data.draw(st.integers(1, 400))
    positions = sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=length)))
    cap = data.draw(st.integers(1, 64))
    terms = data.draw(st.lists(st.integers(0, cap), max_size=20))
    external_nano = data.draw(st.integers(0, 10**9))
    history = history_of(positions, terms, rules, external_nano)
    expected = exact(positions, terms, length, cap, rules, Fraction(external_nano, 10**9))
    assert abs(Decimal(reputation_nano(history, length, cap, rules)) - expected * 10**9) <= 2


@given(st.lists(st.lists(st.integers(0, 64), max_size=9), max_size=6))
def test_terms_count_the_same_whether_they_are_added_at_once_or_epoch_by_epoch(epochs: list[list[int]]) -> None:
    rules, history = ReputationRules(10, 5, 4), history_of([0, 3], [], ReputationRules(10, 5, 4))
    for terms in epochs:
        history = after_terms(history, TermTally(len(terms), sum(terms), sum(m * m for m in terms)))
    assert history == history_of([0, 3], [m for terms in epochs for m in terms], rules)


@settings(max_examples=100)
@given(st.data())
def test_the_integers_stay_within_two_nano_on_chains_of_many_years_too(data: st.DataObject) -> None:
    """The main profile on up to a hundred years of keyblocks, and terms by the thousand."""
    rules, cap = MAIN_PARAMETERS.reputation, MAIN_PARAMETERS.term_microblocks
    chunk = rules.chunk_keyblocks
    pattern = data.draw(st.lists(st.integers(0, chunk), min_size=1, max_size=8))
    chunks = data.draw(st.integers(1, 2600))
    last = data.draw(st.integers(1, chunk))
    per_chunk = [pattern[i % len(pattern)] for i in range(chunks)]
    per_chunk[-1] = min(per_chunk[-1], last)
    length = (chunks - 1) * chunk + last
    terms = data.draw(st.lists(st.integers(0, cap), max_size=6)) * data.draw(st.integers(1, 2_000))
    history = after_terms(history_by_chunks(per_chunk), TermTally(len(terms), sum(terms), sum(m * m for m in terms)))
    expected = exact_by_chunks(per_chunk, terms, length, cap, rules, Fraction(0))
    assert abs(Decimal(reputation_nano(history, length, cap, rules)) - expected * 10**9) <= 2


RULES = st.builds(
    ReputationRules,
    st.integers(0, 300) | st.just(10_000),
    st.integers(1, 300) | st.just(5_000),
    st.integers(1, 60) | st.just(2_016),
)
HISTORIES = st.tuples(
    st.lists(st.integers(0, 400), unique=True, max_size=200).map(sorted),
    st.lists(st.integers(0, 64), max_size=12),
    st.integers(0, 10**9),
    st.integers(401, 10**6),
)
"""Positions of keyblocks, microblocks of terms, Ext, length of the chain."""

History = tuple[list[int], list[int], int, int]


@settings(max_examples=400)
@given(RULES, HISTORIES, HISTORIES)
def test_r3_f_never_grows_faster_than_the_inverse_of_twice_lambda(
    rules: ReputationRules, one: History, other: History
) -> None:
    """0 ≤ f(x₂) − f(x₁) ≤ (x₂ − x₁) / (2λ), between the x of any two histories; a nano for each of four rounded numbers."""

    def told(history: History) -> Explanation:
        positions, terms, external_nano, length = history
        return explain(history_of(positions, terms, rules, external_nano), length, 64, rules)

    lower, upper = sorted((told(one), told(other)), key=lambda explanation: explanation.x_nano)
    gained, way = upper.earned_nano - lower.earned_nano, upper.x_nano - lower.x_nano
    assert gained + 1 >= 0
    assert gained - 2 <= Fraction(way + 2, 2 * rules.flatness_keyblocks)


@settings(max_examples=400)
@given(RULES, HISTORIES)
def test_r3_no_history_gives_more_than_its_keyblocks_can_buy(rules: ReputationRules, history: History) -> None:
    """R ≤ Ext + f(0) + Σk / (2λ): however they are spread, and whatever power found them, k keyblocks buy at most k / (2λ)."""
    positions, terms, external_nano, length = history
    reputation = reputation_nano(history_of(positions, terms, rules, external_nano), length, 64, rules)
    flatness, midpoint = rules.flatness_keyblocks, rules.midpoint_keyblocks
    newcomer = Fraction(flatness, 2 * (flatness + midpoint))
    bought = Fraction(len(positions), 2 * flatness)
    assert reputation <= external_nano + (newcomer + bought) * 10**9
    assert reputation <= 10**9


@pytest.mark.parametrize("flatness", [50, 500, 5_000])
def test_r3_a_miner_of_all_keyblocks_gains_steeply_nowhere(flatness: int) -> None:
    """With all the power of the network from the start: from keyblock to keyblock at most 1/(2λ), at the midpoint just that."""
    rules = ReputationRules(2 * flatness, flatness, 1)
    history, reputations = MinerHistory(), []
    for position in range(4 * flatness):
        history = after_keyblock(history, position, rules)
        reputations.append(reputation_nano(history, position + 1, 64, rules))
    steps = [after - before for before, after in pairwise(reputations)]
    steepest = Fraction(10**9, 2 * flatness)
    assert all(0 <= step <= steepest + 1 for step in steps)
    assert max(steps) >= steepest * Fraction(98, 100), "the bound is tight"
    assert abs(steps.index(max(steps)) - 2 * flatness) <= 2


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 10**6))
def test_whoever_is_honest_has_some_reputation_under_all_rules_that_a_genesis_may_have(
    midpoint: int, flatness: int, length: int
) -> None:
    rules = ReputationRules(midpoint, flatness, 20)
    newcomer = reputation_nano(MinerHistory(), length, 64, rules)
    try:
        check_parameters(msgspec.structs.replace(MAIN_PARAMETERS, reputation=rules))
    except InvalidInput:
        assert newcomer == 0
    else:
        assert newcomer >= 1


@pytest.mark.parametrize(
    ("positions", "terms", "external_nano", "length", "expected"),
    [
        ([], [], 0, 0, 166_666_666),
        ([], [], 0, 5_000_000, 166_666_666),
        (range(0, 20_000, 2), [], 0, 20_000, 487_906_551),
        (range(0, 20_000, 7), [64, 63, 0, 64], 0, 30_001, 183_781_274),
        (range(1_000, 9_000), [64], 250_000_000, 60_000, 530_631_877),
    ],
)
def test_the_reputations_of_the_main_profile_never_change(
    positions: Sequence[int], terms: list[int], external_nano: int, length: int, expected: int
) -> None:
    """R1: golden values; the digits beyond those of the exact value are part of the protocol."""
    history = history_of(list(positions), terms, MAIN_PARAMETERS.reputation, external_nano)
    assert reputation_nano(history, length, 64, MAIN_PARAMETERS.reputation) == expected


def test_a_miner_with_all_blocks_before_joining_and_none_after_only_decays_in_regularity() -> None:
    rules = ReputationRules(100, 50, 10)
    regular = history_of(list(range(0, 200, 2)), [], rules)
    burst = history_of(list(range(100, 200)), [], rules)
    assert reputation_nano(regular, 200, 64, rules) > reputation_nano(burst, 200, 64, rules)


def test_misbehaviour_takes_everything_for_good() -> None:
    rules = ReputationRules(10, 5, 4)
    honest = history_of(list(range(100)), [64, 64], rules, external_nano=10**9)
    offender = msgspec.structs.replace(honest, is_honest=False)
    assert reputation_nano(honest, 100, 64, rules) == 10**9
    assert reputation_nano(offender, 100, 64, rules) == 0
    assert reputation_nano(after_keyblock(offender, 100, rules), 101, 64, rules) == 0


def test_an_explanation_names_every_factor() -> None:
    rules = ReputationRules(10, 5, 4)
    told = explain(history_of([0, 1, 4, 5], [32], rules, external_nano=5), 8, 64, rules)
    assert told.mean_keyblocks_nano == 500_000_000
    assert told.keyblock_deviation_nano == 0
    assert told.mean_microblocks_nano == 500_000_000
    assert told.x_nano == 2_000_000_000
    assert told.reputation_nano == told.earned_nano + told.external_nano


def found_by(share: float, length: int, chunk: int) -> list[int]:
    """Return the keyblocks per chunk of a pool that finds its share of every interval, chance aside, as the paper's table has it."""
    ends = [*range(0, length, chunk), length]
    found = [round(share * end / sum(POWER)) for end in ends]
    return [after - before for before, after in pairwise(found)]


@pytest.mark.parametrize("days", TABLE_2)
@pytest.mark.parametrize("chunk_days", [1, 5])
def test_table_2_of_the_paper_comes_out(days: int, chunk_days: int) -> None:
    """All its cells, rounded as they are printed; the chunks divide the times, so that no short last one counts as irregular."""
    chunk = chunk_days * KEYBLOCKS_PER_DAY
    rules = msgspec.structs.replace(MAIN_PARAMETERS.reputation, chunk_keyblocks=chunk)
    length = KEYBLOCKS_PER_DAY * days
    bands = [0.0] * 5
    for share in POWER:
        history = history_by_chunks(found_by(share, length, chunk))
        bands[min(4, reputation_nano(history, length, 64, rules) * 5 // 10**9)] += share * 100 / sum(POWER)
    assert bands == pytest.approx(TABLE_2[days], abs=0.05)
    assert sum(TABLE_2[days]) == pytest.approx(100, abs=0.15), "every row is whole"


@pytest.mark.parametrize("days", TABLE_2)
def test_the_main_profile_itself_differs_from_table_2_in_pools_at_the_edge_of_a_band_only(days: int) -> None:
    """With chunks of 2016 a time within a chunk makes s_k larger; what that takes moves two pools over an edge, each by 1 %."""
    rules, length = MAIN_PARAMETERS.reputation, KEYBLOCKS_PER_DAY * days
    for share in POWER:
        history = history_by_chunks(found_by(share, length, rules.chunk_keyblocks))
        without = min(4, ceiling_nano(history, 64, rules) * 5 // 10**9)
        reputation = reputation_nano(history, length, 64, rules)
        band = min(4, reputation * 5 // 10**9)
        if band != without:
            assert band == without - 1
            assert without * 2 * 10**8 - reputation < 10**7
