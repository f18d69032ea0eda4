# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual time: actions happen in the order of their time, those of one time in the order they were asked for."""

import heapq
from collections.abc import Callable


class Scheduler:
    """The clock of a simulated world, in milliseconds since its beginning."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        """Do something at a time; what lies in the past happens next."""
        self._count += 1
        heapq.heappush(self._queue, (max(time_ms, self.now_ms), self._count, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now_ms + delay_ms, action)

    def step(self) -> bool:
        """Do the next thing; False when there is nothing left."""
        if not self._queue:
            return False
        self.now_ms, _, action = heapq.heappop(self._queue)
        action()
        return True
