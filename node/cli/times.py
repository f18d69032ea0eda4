# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as people write them: a span from now, or a date."""

import re
from datetime import UTC, datetime

from ledger.errors import InvalidInput
from node.clock import LAST_MS

_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_SPAN = re.compile(r"([0-9]{1,6})([mhdw])")
HELP = "A span as 90m, 12h, 30d or 8w from now, or a date as 2027-01-31 or 2027-01-31T12:00+01:00; without a zone UTC."


def time_in(text: str, now_ms: int, what: str) -> int:
    """Return a time in milliseconds since 1970 (UTC). Raises `InvalidInput`."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        found = now_ms + int(span[1]) * _UNITS_MS[span[2]]
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise InvalidInput(f"{what} {text!r} is no time; write a span as 30d, or a date as 2027-01-31") from error
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        found = round(moment.timestamp() * 1000)
    if not 0 <= found <= LAST_MS:
        raise InvalidInput(f"{what} {text!r} lies outside the years 1970 to 9999")
    return found


def day(timestamp_ms: int) -> str:
    """Return a time for a table, to the minute in UTC."""
    return datetime.fromtimestamp(min(timestamp_ms, LAST_MS) / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def ahead(timestamp_ms: int, now_ms: int) -> str:
    """Return about how far a time is from now, in its largest unit."""
    distance = abs(timestamp_ms - now_ms)
    sizes = sorted(_UNITS_MS.items(), key=lambda item: -item[1])
    unit, size = next(((unit, size) for unit, size in sizes if unit != "w" and distance >= size), ("m", 60_000))
    names = {"m": "minute", "h": "hour", "d": "day"}
    count = (distance + size // 2) // size
    text = f"{count} {names[unit]}" + ("" if count == 1 else "s")
    return f"in {text}" if timestamp_ms >= now_ms else f"{text} ago"
