# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that outlive us, known by a pid file; a number that the system has given to another process is never signalled."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ledger.errors import InvalidInput
from node.files import read_file, replace_file

MAX_LOG_BYTES = 16 * 1024 * 1024
"""A log beyond this is set aside at the next start; the one before it is dropped."""
_POLL_S = 0.05
_STAT_START_TIME = 22 - 3  # field of /proc/<pid>/stat, counted from behind the name


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process for ever: its number, its start and the boot it ran in."""

    pid: int
    """Number of the process."""
    start_ticks: int
    """Its start, in clock ticks since the boot."""
    boot: str
    """Identifier of the boot."""


class Keeper:
    """Starts, finds and ends one process by its pid file."""

    def __init__(self, pid_file: Path, log_file: Path) -> None:
        self._pid_file, self._log_file = pid_file, log_file
        # Ours as long as we live: it must be reaped, or it stays a zombie.
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The number of the running process; None when it does not run."""
        # Our own child runs until it can be reaped: its first thread may be a zombie while others still hold its files.
        if self._child is not None and self._child.poll() is None:
            return self._child.pid
        mark = self._read()
        return mark.pid if mark is not None and mark_of(mark.pid) == mark else None

    def start(self, arguments: Sequence[str], environment: dict[str, str], directory: Path) -> int:
        """Start the process in a session of its own, with both outputs appended to its log."""
        if self.pid is not None:
            raise InvalidInput(f"process {self.pid} of {self._pid_file} runs already; stop it first")
        if self._log_file.exists() and self._log_file.stat().st_size > MAX_LOG_BYTES:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        with self._log_file.open("ab") as log:
            self._child = subprocess.Popen(
                list(arguments),
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        mark = mark_of(self._child.pid)
        if mark is not None:
            replace_file(self._pid_file, json.dumps(asdict(mark)).encode())
        return self._child.pid

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; tells whether the process was there."""
        pid = self.pid
        if pid is None:
            return False
        try:
            # A descriptor names the process itself: between the check below and the signal its number cannot change hands.
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if self.pid != pid:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; tells whether it came in time."""
        deadline = time.monotonic() + timeout_s
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self._pid_file.unlink(missing_ok=True)
        return True

    def stop(self, grace_s: float) -> bool:
        """End the process: SIGTERM, and SIGKILL after `grace_s`; tells whether it ended by itself."""
        if not self.signal(signal.SIGTERM) or self.wait(grace_s):
            self._pid_file.unlink(missing_ok=True)
            return True
        self.signal(signal.SIGKILL)
        self.wait(grace_s)
        return False

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        try:
            with self._log_file.open("rb") as stream:
                stream.seek(max(0, self._log_file.stat().st_size - 16 * 1024))
                return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _read(self) -> ProcessMark | None:
        """Return the pid file's content; a missing or damaged one means that nothing of ours runs."""
        try:
            document = json.loads(read_file(self._pid_file, 4096, "pid file"))
            return ProcessMark(int(document["pid"]), int(document["start_ticks"]), str(document["boot"]))
        except (InvalidInput, ValueError, TypeError, KeyError):
            return None


def mark_of(pid: int) -> ProcessMark | None:
    """Return the mark of a living process; None when there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else ProcessMark(pid, int(fields[_STAT_START_TIME]), boot)
