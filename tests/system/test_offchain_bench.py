# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of off-chain operations runs from end to end; its times are nothing for a test to judge, its counts are."""

import json
import subprocess
import sys

import pytest

from tests.system.kit import PATIENCE_S, ROOT

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

POSITIVE = {
    "operations_per_s",
    "receipt_p50_ms",
    "receipt_p99_ms",
    "answer_p50_ms",
    "answer_p99_ms",
    "commit_p50_ms",
    "final_p50_ms",
    "batches",
    "chain_bytes_per_operation",
    "direct_bytes_per_operation",
    "bytes_ratio",
    "chain_us_per_operation",
    "direct_us_per_operation",
    "cpu_ratio",
    "data_bytes_per_operation",
    "cores",
}
USERS, OPERATIONS, RATE, SECONDS = 20, 5, 200, 2


def test_the_benchmark_of_off_chain_operations_prints_one_object_and_every_operation_becomes_final() -> None:
    short = (
        *("--users", str(USERS), "--rate", str(RATE), "--seconds", str(SECONDS), "--operations", str(OPERATIONS)),
        *("--direct-rate", "20", "--direct-seconds", "1", "--json"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.offchain", *short],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(result[key] > 0 for key in POSITIVE)
    assert [stage["stage"] for stage in result["stages"]] == ["submitted", "receipted", "committed", "final"]
    assert {stage["operations"] for stage in result["stages"]} == {RATE * SECONDS}
    assert (result["refused"], result["broken_receipts"], result["agreed"]) == (0, 0, True)
    assert (result["nodes"], result["watchers_followed"]) == (4, 4)
    # What it counts on the chain is not touched by what else the machine does.
    assert result["offchain_chain"]["operations"] == RATE * SECONDS
    assert result["direct_chain"]["operations"] == 20
