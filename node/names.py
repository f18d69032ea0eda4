# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that people give to keys and nodes: other nodes and terminals show them, so their length and characters are bounded."""

from ledger.errors import InvalidInput

MAX_NAME_CHARACTERS = 64
"""A line of a terminal holds a name of this length beside other columns; a longer one would not fit into a node's greeting."""


def check_name(name: str) -> None:
    """Check the name of a key or node; an empty one is right. Raises `InvalidInput`."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidInput(f"a name of {len(name)} characters; at most {MAX_NAME_CHARACTERS} are possible: shorten it")
    if not name.isprintable():
        raise InvalidInput(f"the name {name!r} has characters that cannot be shown; leave them out")
