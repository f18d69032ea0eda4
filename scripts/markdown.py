# SPDX-License-Identifier: GPL-3.0-or-later
"""What all generated pages are made of."""

GENERATED = "<!-- Written by scripts/docs from the source. Do not edit: change the source and run scripts/docs. -->"


def cell(text: str) -> str:
    """Return text as it may stand in a table: on one line, without column marks."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table and an empty one after it."""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join([' --- '] * len(head))}|"]
    return [*lines, *(f"| {' | '.join(cell(text) for text in row)} |" for row in rows), ""]


def page(lines: list[str]) -> str:
    """Return the text of a page with exactly one line end at its end."""
    return "\n".join(lines).rstrip("\n") + "\n"
