# SPDX-License-Identifier: GPL-3.0-or-later
"""Small plots: bars, sparklines and curves of text for the terminal, and curves as an SVG file."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_BAR_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f00", "#7f7f7f")
"""Told apart also by those who see colours otherwise (after Okabe and Ito)."""
_LEAST_BAR, _WIDEST_BAR = 6, 50
_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 48, 52
_LEGEND_ROW = 18
_GRID_LINES = 5

Curve = Sequence[tuple[int, float]]
"""Points (epoch, value), by epoch."""


def bar(share: float, width: int) -> str:
    """Return a bar for a share between 0 and 1, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_BAR_EIGHTHS[rest] if rest else "")


def bar_column(
    others: Sequence[tuple[str, Sequence[str]]], shares: Sequence[float], width: int
) -> tuple[str, list[str]]:
    """Return title and cells of a column of bars that fills a table of so many characters; the title is its scale."""
    taken = sum(2 + max(len(title), *map(len, cells)) for title, cells in others)
    room = min(max(width - taken, _LEAST_BAR), _WIDEST_BAR)
    return f"0{'':{room - 2}}1", [bar(share, room) for share in shares]


def bounds(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return a range that holds all values and is at least so wide."""
    low, high = min(values), max(values)
    missing = max(0.0, least - (high - low)) / 2
    return low - missing, high + missing


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Return one character per value, higher for higher ones; the lowest still shows."""
    span = (high - low) or 1.0
    return "".join(_EIGHTHS[1 + round((value - low) / span * 7)] for value in values)


def curve(points: Curve, width: int, height: int, least: float) -> list[str]:
    """Return the lines of a plot of at most so many columns for the curve, one each for its newest points."""
    shown = points[-width:]
    values = [value for _, value in shown]
    low, high = bounds(values, least)
    # An eighth above the axis: the lowest value still shows.
    fills = [1 + round((value - low) / ((high - low) or 1.0) * (height * 8 - 1)) for value in values]
    margin = 9
    lines = []
    for row in range(height - 1, -1, -1):
        label = {height - 1: f"{high:.6f}", 0: f"{low:.6f}"}.get(row, "")
        cells = "".join(_EIGHTHS[min(max(fill - row * 8, 0), 8)] for fill in fills)
        lines.append(f"{label:>{margin}} ┤{cells}".rstrip() if label else f"{'':{margin}} │{cells}".rstrip())
    first, last = str(shown[0][0]), str(shown[-1][0])
    lines.append(f"{'':{margin}} └" + "─" * len(shown))
    gap = max(1, len(shown) - len(first) - len(last))
    lines.append(
        f"{'epoch':>{margin}}  {first}{' ' * gap}{last}" if len(shown) > 1 else f"{'epoch':>{margin}}  {first}"
    )
    return lines


def svg(title: str, curves: Mapping[str, Curve], least: float) -> str:
    """Return an SVG document of curves over epochs, named in a legend."""
    values = [value for points in curves.values() for _, value in points]
    epochs = [epoch for points in curves.values() for epoch, _ in points]
    low, high = bounds(values, least)
    first, last = min(epochs), max(epochs)
    bottom = _HEIGHT - _BOTTOM
    height = _HEIGHT + _LEGEND_ROW * len(curves)

    def x(epoch: float) -> float:
        return _LEFT + (epoch - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low) / ((high - low) or 1.0) * (bottom - _TOP)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(title)}</text>',
    ]
    for line in range(_GRID_LINES):
        value = low + (high - low) * line / (_GRID_LINES - 1)
        lines.append(f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.6f}</text>')
    for epoch in sorted({first + (last - first) * tick // 4 for tick in range(5)}):
        lines.append(f'<path d="M{x(epoch):.1f} {bottom}v5" stroke="#333333"/>')
        lines.append(f'<text x="{x(epoch):.1f}" y="{bottom + 20}" text-anchor="middle">{epoch}</text>')
    lines.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#333333"/>')
    lines.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{bottom + 40}" text-anchor="middle">epoch</text>')
    for index, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        # A reputation is constant during an epoch: a staircase, not a slope.
        path = "".join(f"H{x(epoch):.1f}V{y(value):.1f}" for epoch, value in points[1:])
        start = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"
        lines.append(f'<path d="{start}{path}h0.1" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = _HEIGHT + _LEGEND_ROW * index
        lines.append(f'<path d="M{_LEFT} {row - 4}h24" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{_LEFT + 32}" y="{row}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])
