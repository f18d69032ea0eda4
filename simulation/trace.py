# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in a run: the last events for people, and a hash over all of them to compare runs by."""

import hashlib
from collections import deque

LAST_EVENTS = 60
"""About the last three rounds of four nodes: enough to see how a violation came about."""


class Trace:
    """Events in order; every event enters the hash, so equal hashes mean equal runs."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        self._last: deque[str] = deque(maxlen=LAST_EVENTS)

    def note(self, time_ms: int, text: str, payload: bytes = b"", *, shown: bool = True) -> None:
        """Add an event; the payload is hashed, not shown."""
        line = f"{time_ms:>7} ms  {text}"
        self.count += 1
        self._hash.update(line.encode())
        self._hash.update(payload)
        if shown:
            self._last.append(line)

    def digest(self) -> str:
        """Return the hash over all events so far."""
        return self._hash.hexdigest()

    def last(self) -> str:
        """Return the last events, one a line."""
        return "\n".join(self._last)
