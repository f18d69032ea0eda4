# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo prints is readable on the terminal that a newcomer has."""

import io

import pytest
from rich.console import Console

from scripts.demo_epochs import reputation_table, sparks


@pytest.mark.parametrize("width", [80, 96, 120])
def test_the_table_of_reputations_fits_a_terminal_of_80_columns_with_nothing_cut_off(width: int) -> None:
    table = reputation_table(40)
    # The widest that a run of minutes gives; a curve has a point for the newest epoch besides.
    widest = ("node-4", "40", "999", "100 %", "0.4167", "0.4256", "100.00 %", "▅" * (sparks(width) + 1))
    table.add_row(*widest)
    printed = io.StringIO()
    Console(file=printed, width=width).print(table)
    for cell in widest:
        assert cell in printed.getvalue()


def test_a_curve_has_no_more_points_than_are_worth_looking_at() -> None:
    assert sparks(1000) == 24
    assert sparks(20) == 1
