# SPDX-License-Identifier: GPL-3.0-or-later
"""Algorithm 2 of RepuCoin as it is printed: a scan of the whole history, in exact fractions and roots of 60 digits."""

from collections.abc import Sequence
from decimal import Decimal, getcontext
from fractions import Fraction

from ledger.rules import ReputationRules

getcontext().prec = 60


def exact(
    positions: Sequence[int], terms: Sequence[int], length: int, cap: int, rules: ReputationRules, external: Fraction
) -> Decimal:
    """Return R of an honest miner with keyblocks at these positions and terms of so many microblocks each."""
    chunks = -(-length // rules.chunk_keyblocks)
    per_chunk = [sum(1 for p in positions if p // rules.chunk_keyblocks == i) for i in range(chunks)]
    return exact_by_chunks(per_chunk, terms, length, cap, rules, external)


def exact_by_chunks(
    per_chunk: Sequence[int], terms: Sequence[int], length: int, cap: int, rules: ReputationRules, external: Fraction
) -> Decimal:
    """Return the same for so many keyblocks in each chunk; the last chunk may be short."""
    chunk = rules.chunk_keyblocks
    assert len(per_chunk) == -(-length // chunk), "t = ⌈L/c⌉"
    y1 = Decimal(0)
    if length:
        mean_k = Fraction(sum(per_chunk), length)
        s_k = _root(_mean([(Fraction(k, chunk) - mean_k) ** 2 for k in per_chunk]))
        y1 = decimal(mean_k) / (1 + s_k)
    y2 = Decimal(1)
    if terms:
        mean_m = _mean([Fraction(m, cap) for m in terms])
        s_m = _root(_mean([(Fraction(m, cap) - mean_m) ** 2 for m in terms]))
        y2 = decimal(mean_m) / (1 + s_m)
    distance = y1 * y2 * length - rules.midpoint_keyblocks
    f = (1 + distance / (rules.flatness_keyblocks + abs(distance))) / 2
    return min(Decimal(1), decimal(external) + f)


def decimal(value: Fraction) -> Decimal:
    """Return a fraction with 60 digits."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def _mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def _root(value: Fraction) -> Decimal:
    return decimal(value).sqrt()
