# SPDX-License-Identifier: GPL-3.0-or-later
"""What `spchain reputation` says in words: whoever reads it can work the numbers out again."""

import random
import re
from math import sqrt

import pytest

from ledger import testing
from ledger.memory_store import MemoryStore
from node.api.reputation import _explanation
from node.cli.explained import amount, paragraphs
from tests.consensus.chains import PARAMETERS, ChainMaker


@pytest.fixture(scope="module")
def chain() -> ChainMaker:
    made, rng = ChainMaker(MemoryStore(testing.genesis(4, parameters=PARAMETERS))), random.Random(5)
    while len(made.epochs) <= 2 * PARAMETERS.reputation.chunk_keyblocks + 3:
        made.take(made.wander(rng))
    return made


def numbers(text: str, pattern: str) -> list[int]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [int(digits) for digits in re.findall(r"\d+", found[1])]


@pytest.mark.parametrize(
    "epoch", [1, PARAMETERS.reputation.chunk_keyblocks, 2 * PARAMETERS.reputation.chunk_keyblocks + 3]
)
def test_irregularity_follows_from_the_chunks_that_are_told(chain: ChainMaker, epoch: int) -> None:
    shown = 0
    for number in range(4):
        found = _explanation(chain.store, testing.key(number).public_key, epoch)
        if not found.mining.keyblocks:
            continue
        text = paragraphs(found)["keyblocks"]
        assert "s_k = √(Σ (k_i / c − mean_k)² / t) = " in text
        (chunks,), (size,) = numbers(text, r"t = (\d+)"), numbers(text, r"c = (\d+)")
        per_chunk = numbers(text, r"k_i = ([\d, ]+) of")
        assert (len(per_chunk), sum(per_chunk)) == (chunks, found.mining.keyblocks)
        mean = sum(per_chunk) / epoch
        deviation = sqrt(sum((keyblocks / size - mean) ** 2 for keyblocks in per_chunk) / chunks)
        assert f" = {deviation:.6f} (0 is" in text
        assert f"y1 = mean_k / (1 + s_k) = {mean / (1 + deviation):.6f}" in text
        shown += 1
    assert shown, "somebody has mined"


def test_the_spread_of_terms_is_told_by_its_formula(chain: ChainMaker) -> None:
    told = [_explanation(chain.store, testing.key(number).public_key, chain.epoch.number) for number in range(4)]
    led = [found for found in told if found.leading.terms]
    assert led, "somebody has led a term"
    for found in led:
        text = paragraphs(found)["terms"]
        assert f"m = {PARAMETERS.term_microblocks} microblocks" in text
        assert f"s_m = √(Σ (m_j / m − mean_m)² / N) = {amount(found.leading.deviation_nano)}" in text
