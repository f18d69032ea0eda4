# SPDX-License-Identifier: GPL-3.0-or-later
"""A kept process is found, signalled and ended; a number that is somebody else's by now is left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.errors import InvalidInput
from node.processes import Keeper, mark_of

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "node.pid", tmp_path / "node.log")


def started(keeper: Keeper, directory: Path, arguments: list[str]) -> int:
    pid = keeper.start(arguments, dict(os.environ), directory)
    while "up" not in keeper.log_tail():
        assert keeper.pid is not None, keeper.log_tail()
    return pid


def test_a_process_is_started_found_by_another_keeper_and_stopped(keeper: Keeper, tmp_path: Path) -> None:
    pid = started(keeper, tmp_path, SLEEP)
    other = Keeper(tmp_path / "node.pid", tmp_path / "node.log")
    assert [keeper.pid, other.pid] == [pid, pid]
    with pytest.raises(InvalidInput, match="runs already"):
        other.start(SLEEP, {}, tmp_path)
    assert keeper.stop(60)
    assert [keeper.pid, other.pid] == [None, None]
    assert not (tmp_path / "node.pid").exists()
    assert keeper.stop(60)  # again is no change


def test_a_process_that_ignores_sigterm_is_killed(keeper: Keeper, tmp_path: Path) -> None:
    pid = started(keeper, tmp_path, STUBBORN)
    assert not keeper.stop(0.2)
    assert mark_of(pid) is None


def test_a_killed_child_counts_as_gone_before_it_is_reaped(keeper: Keeper, tmp_path: Path) -> None:
    pid = started(keeper, tmp_path, SLEEP)
    os.kill(pid, signal.SIGKILL)
    assert keeper.wait(60)
    assert not keeper.signal(signal.SIGTERM)


def test_a_recycled_number_is_never_signalled(keeper: Keeper, tmp_path: Path) -> None:
    # Somebody else's process under the number that the pid file names, but started at another time.
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as stranger:
        mark = mark_of(stranger.pid)
        assert mark is not None
        for changed in ({"start_ticks": mark.start_ticks - 1}, {"boot": "another"}):
            document = {"pid": mark.pid, "start_ticks": mark.start_ticks, "boot": mark.boot} | changed
            (tmp_path / "node.pid").write_text(json.dumps(document))
            assert keeper.pid is None
            assert not keeper.signal(signal.SIGKILL)
            assert keeper.stop(60)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("content", [b"", b"17", b"[]", b"{}", b'{"pid": "x"}', b"\xff", b"x" * 9999, b'{"pid": -1}'])
def test_a_damaged_pid_file_means_that_nothing_runs(keeper: Keeper, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.pid").write_bytes(content)
    assert keeper.pid is None
    assert not keeper.signal(signal.SIGKILL)


def test_a_long_log_is_set_aside(keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.processes.MAX_LOG_BYTES", 10)
    (tmp_path / "node.log").write_text("the log of before\n")
    started(keeper, tmp_path, SLEEP)
    keeper.stop(60)
    assert (tmp_path / "node.log.1").read_text() == "the log of before\n"


def test_a_process_runs_until_its_last_thread_has_ended(keeper: Keeper, tmp_path: Path) -> None:
    # A killed process of many threads looks like this for a moment: its first thread is a zombie, its locks are still held.
    program = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
        "print('up', flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    pid = started(keeper, tmp_path, [sys.executable, "-c", program])
    while mark_of(pid) is not None:
        os.sched_yield()
    while_zombie = keeper.pid
    assert while_zombie == pid
    assert keeper.stop(60)
    assert keeper.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
