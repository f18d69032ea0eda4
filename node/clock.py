# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's clock: the one place that reads it; and what its times are for people."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

LAST_MS = 253_402_300_799_999
"""The end of the year 9999: what dates can say."""


class Clock:
    """UTC that never goes back and never stands still.

    When the system's clock is set back, this one runs at half speed until the two meet: timers go on, and the time in
    microblocks stays within what other nodes accept. When it is set forward, this one follows at once.
    """

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._last_ns = wall_ns()
        self._last_monotonic_ns = monotonic_ns()

    def now_ms(self) -> int:
        """Return milliseconds since 1970 (UTC)."""
        monotonic_ns = self._monotonic_ns()
        passed_ns = monotonic_ns - self._last_monotonic_ns
        self._last_ns = max(self._wall_ns(), self._last_ns + passed_ns // 2)
        self._last_monotonic_ns = monotonic_ns
        return self._last_ns // 1_000_000


_clock = Clock()
now_ms = _clock.now_ms


def moment(timestamp_ms: int) -> str:
    """Return a time for people, in UTC."""
    return datetime.fromtimestamp(min(timestamp_ms, LAST_MS) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
