# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of reputation runs from end to end, in memory and through a store; its times are nothing for a test to judge."""

import json
from pathlib import Path

import pytest

from scripts.bench.reputation import SHARES, main
from scripts.bench.stored_chain import MOST_US, Times, grow


def test_it_prints_one_object_with_a_row_per_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--miners", "20", "--keyblocks", "60", "--stored", "40", "--directory", str(tmp_path), "--json")
    assert main(short) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["power"] for row in found["rows"]] == [row["power"] for row in found["stored"]] == list(SHARES)
    for row in found["stored"]:
        assert [mark["keyblocks"] for mark in row["marks"]] == [1, 4, 10, 20, 30, 40]
        assert row["keyblocks"] == 40
        assert 0 < row["reputation_median_us"] <= row["reputation_p99_us"]
        assert 0 < row["commit_median_us"] <= row["commit_p99_us"]
        assert all(mark["anonymous_mb"] > 0 and mark["store_mb"] > 0 for mark in row["marks"])
    assert list(tmp_path.iterdir()) == [], "the store is gone"


def test_it_prints_tables_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--power", "equal", "--miners", "5", "--keyblocks", "20", "--stored", "10", "--directory", str(tmp_path))
    assert main(short) == 0
    text = capsys.readouterr().out
    assert "A stored chain of 10 keyblocks" in text
    assert "restart" in text


def test_a_seed_replays_a_stored_chain(tmp_path: Path) -> None:
    one, other = (grow(tmp_path / name, "skewed", 12, 30, seed=3) for name in ("a", "b"))
    assert (one.miners, one.keyblocks) == (other.miners, other.keyblocks)
    assert [mark.store_mb for mark in one.marks] == [mark.store_mb for mark in other.marks]


def test_times_are_kept_in_bounded_memory_and_tell_their_percentiles() -> None:
    times = Times()
    for spent_us in [*range(1, 100), 10 * MOST_US]:
        times.add(spent_us * 1000)
    assert times.percentile_us(0.5) == 50
    assert times.percentile_us(0.99) == 99
    assert times.percentile_us(1) == MOST_US
    assert times.mean_us() == (4950 + 10 * MOST_US) / 100
