# SPDX-License-Identifier: GPL-3.0-or-later
"""When a member loses patience: exponential back-off over time-outs, reset by progress. Local to a node; never agreed on."""

import msgspec


class Timing(msgspec.Struct, frozen=True):
    """A node's own time constants."""

    timeout_ms: int = 1000
    """Patience with a leader while there is work, in milliseconds."""
    heartbeat_ms: int = 10_000
    """Longest time without a microblock when there is nothing to order, in milliseconds."""
    maximum_backoff: int = 5
    """Patience doubles with each lost term up to 2^this: 32 s with the defaults, then a partition heals within a minute."""


class Patience:
    """The timer of one core."""

    def __init__(self, timing: Timing, now_ms: int) -> None:
        self.timing = timing
        self._lost_terms = 0
        self._progress_ms = now_ms
        self._work_since_ms: int | None = None
        self._repeat_ms: int | None = None

    @property
    def wait_ms(self) -> int:
        """Current patience in milliseconds."""
        return self.timing.timeout_ms << min(self._lost_terms, self.timing.maximum_backoff)

    def progress(self, now_ms: int) -> None:
        """A round has moved on."""
        self._progress_ms = now_ms
        self._work_since_ms = None
        self._repeat_ms = None

    def committed(self) -> None:
        """Something was committed: the network works again."""
        self._lost_terms = 0

    def term_lost(self) -> None:
        """A quorum gave up on a term."""
        self._lost_terms += 1

    def heartbeat_due(self, now_ms: int) -> bool:
        """Tell whether a leader without work should propose."""
        return now_ms >= self._progress_ms + self.timing.heartbeat_ms

    def observe_work(self, *, work: bool, now_ms: int) -> None:
        """Start the clock when there is something to wait for, stop it when there is not."""
        if not (work or self.heartbeat_due(now_ms)):
            self._work_since_ms = None
        elif self._work_since_ms is None:
            self._work_since_ms = now_ms

    def expired(self, now_ms: int) -> bool:
        """Tell whether patience has run out, again and again while it stays so."""
        due = self.deadline_ms()
        return due is not None and now_ms >= due

    def repeat(self, now_ms: int) -> None:
        """A time-out was sent: send it again after the base time, for messages get lost."""
        self._repeat_ms = now_ms + self.timing.timeout_ms

    def deadline_ms(self) -> int | None:
        """Return when to look again if nothing arrives; None while nothing is waited for."""
        if self._repeat_ms is not None:
            return self._repeat_ms
        if self._work_since_ms is None:
            return None
        return self._work_since_ms + self.wait_ms

    def next_tick_ms(self) -> int:
        """Return when the core wants its next tick."""
        deadline = self.deadline_ms()
        heartbeat = self._progress_ms + self.timing.heartbeat_ms
        if deadline is None:
            return heartbeat
        return deadline
