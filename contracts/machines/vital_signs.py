# SPDX-License-Identifier: GPL-3.0-or-later
"""Vital signs: series of measurements with count, minimum, maximum and mean per window of time, in integers.

Who sends owns the series: a patient, or a device with a key of its own. The unit belongs to the series and is agreed outside (pulse in
beats per minute, temperature in hundredths of a degree). Single values are in the published data only.
"""

from typing import Annotated

import msgspec

from contracts.machine import Context, EntryKind, KeyPart, Machine, Outcome, View, done, refused
from ledger.codec import Uint, Wire, decoder, encode
from ledger.crypto.keys import ADDRESS_BYTES

Value = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""A measured value in the unit of its series."""
Series = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
"""Number of a series of its sender."""
MAX_VALUES = 64
"""Values in one operation: a minute of one per second."""


class VitalSignsParameters(Wire, frozen=True):
    """How series are summed up."""

    window_ms: Annotated[int, msgspec.Meta(ge=1_000, le=7 * 24 * 3600 * 1000)]
    """Length of a window: from a second to a week."""
    late_ms: Uint
    """How old a measurement may be when it arrives."""


class Measure(Wire, frozen=True, tag=1):
    """Values of one series, at equal intervals."""

    series: Series
    """The series."""
    first_ms: Uint
    """Time of the first value, in milliseconds since 1970 (UTC); after all that the series has."""
    interval_ms: Annotated[int, msgspec.Meta(ge=1, le=24 * 3600 * 1000)]
    """Time from one value to the next."""
    values: Annotated[tuple[Value, ...], msgspec.Meta(min_length=1, max_length=MAX_VALUES)]
    """The values."""


class Window(Wire, frozen=True):
    """What is kept of one window."""

    count: Annotated[int, msgspec.Meta(ge=1)]
    """Number of values."""
    total: int
    """Their sum."""
    lowest: Value
    """The least."""
    highest: Value
    """The greatest."""

    def mean(self) -> int:
        """Return the mean, rounded to the nearest integer, halves up."""
        return (2 * self.total + self.count) // (2 * self.count)


_decode_window = decoder(Window, 64, own=True)
_decode_time = decoder(Uint, 16, name="time", own=True)


def window_key(sender: bytes, series: int, number: int) -> bytes:
    """Return the key of a window; its number is its beginning divided by its length."""
    return b"w" + sender + series.to_bytes(2, "big") + number.to_bytes(8, "big")


def series_key(sender: bytes, series: int) -> bytes:
    """Return the key of the time of a series' newest value, in milliseconds."""
    return b"s" + sender + series.to_bytes(2, "big")


def window_at(view: View, key: bytes) -> Window | None:
    """Return a window, None while it has no values."""
    value = view.get(key)
    return None if value is None else _decode_window(value)


def _with(window: Window | None, value: int) -> Window:
    if window is None:
        return Window(1, value, value, value)
    return Window(window.count + 1, window.total + value, min(window.lowest, value), max(window.highest, value))


def apply(view: View, context: Context[VitalSignsParameters], operation: Measure) -> Outcome:
    """Add values to their windows; answered with the number of windows that they fall into."""
    if context.is_chain:
        return refused("not_a_series")
    newest_key = series_key(context.sender, operation.series)
    newest = view.get(newest_key)
    last_ms = operation.first_ms + operation.interval_ms * (len(operation.values) - 1)
    if newest is not None and operation.first_ms <= _decode_time(newest):
        return refused("not_newer")
    if last_ms > context.time_ms:
        return refused("in_the_future")
    if operation.first_ms + context.parameters.late_ms < context.time_ms:
        return refused("too_old")
    windows: dict[int, Window] = {}
    for place, value in enumerate(operation.values):
        number = (operation.first_ms + operation.interval_ms * place) // context.parameters.window_ms
        known = windows.get(number) or window_at(view, window_key(context.sender, operation.series, number))
        windows[number] = _with(known, value)
    for number, window in sorted(windows.items()):
        view.put(window_key(context.sender, operation.series, number), encode(window))
    view.put(newest_key, encode(last_ms))
    return done(encode(len(windows)))


_SERIES = (KeyPart("sender", ADDRESS_BYTES), KeyPart("series", 2, is_number=True))
ENTRIES = (
    EntryKind("window", b"w", (*_SERIES, KeyPart("number", 8, is_number=True)), Window),
    EntryKind("newest", b"s", _SERIES, Uint),
)
"""What is kept of a window; the time of a series' newest value, in milliseconds since 1970 (UTC)."""

VITAL_SIGNS: Machine[VitalSignsParameters, Measure] = Machine(
    "vital_signs", 1, VitalSignsParameters, Measure, apply, entries=ENTRIES
)
"""The machine."""
