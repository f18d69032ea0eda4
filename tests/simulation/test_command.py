# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain simulate`."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import reduce
from operator import xor
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from simulation.cli import app
from simulation.draw import draw_scenario
from simulation.run import run

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments])


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.replica.Pool.is_committed", lambda _pool, _digest: False)
    monkeypatch.setattr("simulation.replica.Pool.committed", lambda _pool, _digests: None)


def test_a_range_of_seeds_without_a_violation() -> None:
    done = invoke("--seeds", "3..5", "--jobs", "1")
    assert done.exit_code == 0, done.output
    assert re.search(r"3 seeds, \d+ microblocks, \d+ epochs, \d+ events.*; 0 with a violated invariant", done.stdout)


def test_what_a_range_came_to_as_json() -> None:
    done = invoke("--seeds", "3..5", "--jobs", "1", "--nodes", "4", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    outcomes = [run(draw_scenario(seed, 4)) for seed in (3, 4, 5)]
    assert answer["runs"] == 3
    assert answer["nodes"] == 4
    assert answer["microblocks"] == sum(outcome.height for outcome in outcomes)
    assert answer["epochs"] == sum(outcome.epochs for outcome in outcomes)
    assert int(answer["trace"], 16) == reduce(xor, (int(outcome.trace, 16) for outcome in outcomes))
    assert answer["violations"] == []
    assert done.stderr == ""


def test_several_processes_find_the_same_as_one() -> None:
    answers = []
    for jobs in ("1", "2"):
        done = invoke("--seeds", "20..27", "--nodes", "4", "--jobs", jobs, "--json")
        assert done.exit_code == 0, done.output
        answers.append({**json.loads(done.stdout), "seconds": 0})
    assert answers[0] == answers[1]


def test_a_violation_is_told_made_smaller_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    done = invoke("--seeds", "6", "--jobs", "1", "--shrink-runs", "40")
    assert done.exit_code == 1
    assert "seed 6 violates I2" in done.stdout
    assert "a smaller scenario that violates I2" in done.stdout
    commands = re.findall(r"^replay: spchain simulate (.*)$", done.stdout, re.MULTILINE)
    assert len(commands) == 2
    assert len(commands[1]) < len(commands[0])
    again = [invoke(*shlex.split(commands[1])) for _ in range(2)]
    assert again[0].exit_code == 1
    assert "violates I2" in again[0].stdout
    assert re.search(r"^trace [0-9a-f]{64}$", again[0].stdout, re.MULTILINE)
    assert again[0].stdout == again[1].stdout


def test_only_the_first_violation_of_an_invariant_is_told_with_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    done = invoke("--seeds", "6..8", "--jobs", "1", "--shrink-runs", "0")
    assert done.exit_code == 1
    assert done.stdout.count("\nreplay: spchain simulate ") == 3
    assert done.stdout.count("last events:") == 1


def test_a_violation_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    done = invoke("--seeds", "6..7", "--jobs", "1", "--shrink-runs", "20", "--json")
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert {found["invariant"] for found in answer["violations"]} == {"I2"}
    assert [found["seed"] for found in answer["violations"]] == [6, 7]
    assert answer["smaller"][0]["scenario"]["members"] == 1
    assert answer["smaller"][0]["replay"].startswith("spchain simulate --replay ")


def test_a_broken_core_ends_the_search_early(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr("simulation.campaign.MOST_VIOLATIONS", 2)
    done = invoke("--seeds", "0..500", "--jobs", "1", "--nodes", "4", "--shrink-runs", "0")
    assert done.exit_code == 1
    assert "stopping after 2 violations" in done.stderr
    assert "2 with a violated invariant" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "say what to run"),
        (("--seeds", "1", "--replay", "{}"), "say what to run"),
        (("--seeds", "many"), "give two numbers"),
        (("--seeds", "5..3"), "at least the first"),
        (("--replay", "{}"), "no scenario"),
    ],
)
def test_wrong_use_is_told(arguments: tuple[str, ...], why: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 3
    assert why in done.stderr


# Who runs the tests in the background may have had interruptions ignored, which children inherit.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("simulation.cli", run_name="__main__")
"""


def test_an_interruption_ends_all_processes_and_tells_how_far_it_came() -> None:
    program = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        "simulate",
        "--seeds",
        "0..100000",
        "--nodes",
        "7",
        "--jobs",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        program, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert "of 100001 seeds" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted after" in rest
    assert "Traceback" not in rest


def test_the_command_line_has_the_nodes_verbs_too_and_imports_nothing_heavy_for_help() -> None:
    code = "import sys, simulation.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"trio", "consensus", "multiprocessing"}.isdisjoint(done.stdout.split())
    helped = CliRunner().invoke(app, ["--help"])
    assert {"simulate", "node", "devnet"} <= set(helped.stdout.split())
