# SPDX-License-Identifier: GPL-3.0-or-later
"""Reputation: Algorithm 2 of RepuCoin in integers, incremental.

For a miner with k_i keyblocks in chunk i of c keyblocks, a chain of L keyblocks in t = ⌈L/c⌉ chunks, and N terms as leader with m_j
of at most m microblocks each:

    mean_k = Σ k_i / L            s_k = √((1/t) Σ (k_i/c − mean_k)²)         y1 = mean_k / (1 + s_k)
    mean_m = (1/N) Σ m_j/m        s_m = √((1/N) Σ (m_j/m − mean_m)²)         y2 = mean_m / (1 + s_m), 1 without a term
    x = y1 · y2 · L               f(x) = ½ (1 + (x − a) / (λ + |x − a|))      R = min(1, H · (Ext + f(x)))

Requirements:
R1 (determinism) integers only: sums of k_i and k_i² carry the history, square roots are `math.isqrt`, divisions round down.
R2 (accuracy) R differs from the exact value by at most 2·10⁻⁹.
R3 (bounded growth) f′(x) ≤ 1/(2λ) and x ≤ Σk: k keyblocks buy at most k/(2λ), whatever computing power found them. (A short last
   chunk counts as irregular in Algorithm 2: R dips when a chunk begins and recovers until it is full, below this bound.)
R4 (cost) a keyblock, or any number of terms, changes one history in O(1); R is computed from a history in O(1), whatever the length
   of the chain.

Source: Yu, Kozhaya, Decouchant, Esteves-Verissimo, RepuCoin, IEEE Transactions on Computers 2019, section 4 and Algorithm 2.
"""

from math import isqrt

import msgspec

from ledger.miners import MinerHistory, TermTally
from ledger.rules import REPUTATION_UNIT, ReputationRules

_SCALE = 10**18
"""Fixed point inside the computation: nine digits more than the result keeps."""


def after_keyblock(history: MinerHistory, position: int, rules: ReputationRules) -> MinerHistory:
    """Return the history after the miner's keyblock at a position (the first keyblock of the chain has 0)."""
    chunk = position // rules.chunk_keyblocks
    assert chunk >= history.chunk or history.keyblocks == 0, "keyblocks come in the order of the chain"
    closed, current = history.closed_chunk_squares, history.chunk_keyblocks
    if chunk != history.chunk:
        closed, current = closed + current * current, 0
    return msgspec.structs.replace(
        history,
        keyblocks=history.keyblocks + 1,
        closed_chunk_squares=closed,
        chunk=chunk,
        chunk_keyblocks=current + 1,
    )


def after_terms(history: MinerHistory, tally: TermTally) -> MinerHistory:
    """Return the history after finished terms as leader."""
    return msgspec.structs.replace(
        history,
        terms=history.terms + tally.terms,
        microblocks=history.microblocks + tally.microblocks,
        microblock_squares=history.microblock_squares + tally.microblock_squares,
    )


class Explanation(msgspec.Struct, frozen=True):
    """A reputation with everything that it comes from; fixed-point values are in 10⁻⁹."""

    mean_keyblocks_nano: int
    """mean_k: share of the chain's keyblocks."""
    keyblock_deviation_nano: int
    """s_k: irregularity of mining over the chunks."""
    mean_microblocks_nano: int
    """mean_m: how full its terms were; 10⁹ without a term."""
    microblock_deviation_nano: int
    """s_m: irregularity over its terms."""
    x_nano: int
    """x = y1 · y2 · L."""
    earned_nano: int
    """f(x)."""
    external_nano: int
    """Ext."""
    is_honest: bool
    """H."""
    reputation_nano: int
    """R."""


def explain(history: MinerHistory, keyblocks: int, term_microblocks: int, rules: ReputationRules) -> Explanation:
    """Compute the reputation on a chain of so many keyblocks, with the cap m of microblocks per term."""
    mean_k, s_k, steady_keyblocks = _keyblock_part(history, keyblocks, rules.chunk_keyblocks)
    mean_m, s_m, y2 = _microblock_part(history, term_microblocks)
    x = steady_keyblocks * y2 // _SCALE
    earned = _earned(x, rules)
    reputation = _reputation(history, earned)
    return Explanation(
        mean_keyblocks_nano=_nano(mean_k),
        keyblock_deviation_nano=_nano(s_k),
        mean_microblocks_nano=_nano(mean_m),
        microblock_deviation_nano=_nano(s_m),
        x_nano=_nano(x),
        earned_nano=_nano(earned),
        external_nano=history.external_nano,
        is_honest=history.is_honest,
        reputation_nano=_nano(reputation),
    )


def reputation_nano(history: MinerHistory, keyblocks: int, term_microblocks: int, rules: ReputationRules) -> int:
    """Return R in 10⁻⁹; the same as `explain` tells, without the telling."""
    steady_keyblocks = _keyblock_part(history, keyblocks, rules.chunk_keyblocks)[2]
    x = steady_keyblocks * _microblock_part(history, term_microblocks)[2] // _SCALE
    return _nano(_reputation(history, _earned(x, rules)))


def ceiling_nano(history: MinerHistory, term_microblocks: int, rules: ReputationRules) -> int:
    """Return the R, in 10⁻⁹, that the history would give with s_k = 0: its R on a chain of any length is at most this."""
    x = history.keyblocks * _microblock_part(history, term_microblocks)[2]
    return _nano(_reputation(history, _earned(x, rules)))


def _earned(x: int, rules: ReputationRules) -> int:
    """Return f(x), scaled; monotone, rounding included."""
    distance = x - rules.midpoint_keyblocks * _SCALE
    # Division of a negative number rounds down too, on every platform.
    return _SCALE // 2 + distance * _SCALE // (2 * (rules.flatness_keyblocks * _SCALE + abs(distance)))


def _reputation(history: MinerHistory, earned: int) -> int:
    external = history.external_nano * (_SCALE // REPUTATION_UNIT)
    return min(_SCALE, external + earned) if history.is_honest else 0


def _keyblock_part(history: MinerHistory, length: int, chunk: int) -> tuple[int, int, int]:
    """Return mean_k, s_k and y1 · L, scaled."""
    if length == 0:
        return 0, 0, 0
    chunks = -(-length // chunk)
    total = history.keyblocks
    squares = history.closed_chunk_squares + history.chunk_keyblocks * history.chunk_keyblocks
    # t c² L² s_k² = L² Σk_i² − 2 c L (Σk_i)² + t c² (Σk_i)², exactly.
    numerator = squares * length**2 - 2 * chunk * length * total**2 + chunks * chunk**2 * total**2
    deviation = isqrt(numerator * _SCALE**2 // (chunks * chunk**2 * length**2))
    return total * _SCALE // length, deviation, total * _SCALE * _SCALE // (_SCALE + deviation)


def _microblock_part(history: MinerHistory, term_microblocks: int) -> tuple[int, int, int]:
    """Return mean_m, s_m and y2, scaled; 1, 0, 1 without a term."""
    terms = history.terms
    if terms == 0:
        return _SCALE, 0, _SCALE
    full = terms * term_microblocks
    mean = history.microblocks * _SCALE // full
    # (N m s_m)² = N Σm_j² − (Σm_j)², exactly.
    deviation = isqrt((terms * history.microblock_squares - history.microblocks**2) * _SCALE**2 // full**2)
    return mean, deviation, mean * _SCALE // (_SCALE + deviation)


def _nano(scaled: int) -> int:
    return scaled * REPUTATION_UNIT // _SCALE
