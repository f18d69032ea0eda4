# SPDX-License-Identifier: GPL-3.0-or-later
"""What a judge raises."""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


def require(invariant: str, holds: bool, detail: str) -> None:
    """Raise `Violation` unless an invariant holds."""
    if not holds:
        raise Violation(invariant, detail)
