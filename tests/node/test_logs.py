# SPDX-License-Identifier: GPL-3.0-or-later
"""A log that cannot be written costs its lines and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import structlog
from node.logs import configure_logs
configure_logs("info", {form!r})
structlog.get_logger().warning("storage refuses to write", error="no space left")
print("went on")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_full_disk_under_the_log_does_not_end_the_node(form: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(form=form)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert done.stdout == "went on\n"


def test_a_line_tells_time_level_event_and_values() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(form="console")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "[warning  ] storage refuses to write" in done.stderr
    assert "error='no space left'" in done.stderr
