# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark runs from end to end; what it measures is nothing for a test to judge."""

import json
import subprocess
import sys

import pytest

from tests.system.kit import PATIENCE_S, ROOT

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

KEYS = {
    "committed_tps",
    "records_per_s",
    "latency_p50_ms",
    "latency_p99_ms",
    "unloaded_latency_p50_ms",
    "signature_limit_tps",
    "rss_mb_max",
    "nodes",
    "cores",
    "agreed",
}


def test_the_throughput_benchmark_prints_one_object_with_its_figures() -> None:
    short = ("--rates", "40", "--record-rates", "20", "--seconds", "1", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.throughput", *short],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= KEYS
    assert (result["nodes"], result["agreed"]) == (4, True)
    assert all(result[key] > 0 for key in KEYS - {"agreed"})
