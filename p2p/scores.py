# SPDX-License-Identifier: GPL-3.0-or-later
"""Penalty points per peer: they decay, and at the limit the peer is banned for a time.

Judging peers is our own affair: the library's gossip score is not applied to single-topic delivery, so a peer it has
graylisted still delivers (libp2p 0.8.1, `Pubsub.push_msg`).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

HALF_LIFE_S = 300.0
"""Points halve in five minutes: a burst of faults counts, an odd one is forgiven within the hour."""
MAX_SUBJECTS = 4096
"""Peers remembered; identities cost nothing, so the memory of them must be bounded. The longest untouched goes first."""


@dataclass
class _Record:
    points: float
    updated_s: float
    banned_until_s: float


class Scores:
    """The points of all peers; `clock` gives seconds that never run back."""

    def __init__(self, ban_points: int, ban_s: float, clock: Callable[[], float]) -> None:
        self._ban_points = ban_points
        self._ban_s = ban_s
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def add(self, peer_id: str, points: int) -> bool:
        """Add points; return whether the peer became banned by this."""
        assert points >= 0, f"penalties are not negative, {points} is"
        now = self._clock()
        record = self._records.pop(peer_id, None) or _Record(0.0, now, 0.0)
        record.points = min(self._decayed(record, now) + points, float(self._ban_points))
        record.updated_s = now
        self._records[peer_id] = record
        while len(self._records) > MAX_SUBJECTS:
            self._records.popitem(last=False)
        if record.points < self._ban_points or now < record.banned_until_s:
            return False
        record.banned_until_s = now + self._ban_s
        # After the ban the peer starts half way: one more serious fault and it is out again.
        record.points = self._ban_points / 2
        record.updated_s = record.banned_until_s
        return True

    def points(self, peer_id: str) -> int:
        """Return the present points, whole."""
        record = self._records.get(peer_id)
        if record is None:
            return 0
        now = self._clock()
        return self._ban_points if now < record.banned_until_s else round(self._decayed(record, now))

    def ban_left_s(self, peer_id: str) -> float:
        """Return how long the peer stays banned; 0 if it is not."""
        record = self._records.get(peer_id)
        return 0.0 if record is None else max(0.0, record.banned_until_s - self._clock())

    def _decayed(self, record: _Record, now: float) -> float:
        return float(record.points * 0.5 ** (max(0.0, now - record.updated_s) / HALF_LIFE_S))
