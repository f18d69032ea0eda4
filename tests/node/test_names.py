# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of keys and nodes: what a greeting cannot carry is refused before it keeps a node from its peers."""

from pathlib import Path

import pytest

from ledger.errors import InvalidInput
from node.config import load_config
from node.identity import Identity
from node.names import MAX_NAME_CHARACTERS, check_name
from node.run import shown_name
from node.wire import check_statement, make_statement

CHAIN = bytes(32)
LONGEST = "ä" * MAX_NAME_CHARACTERS


@pytest.mark.parametrize("name", ["", "St. Anna's (Graz)", LONGEST])
def test_peers_take_every_name_that_is_right(name: str) -> None:
    check_name(name)
    owner = Identity(bytes(range(32)))
    raw = make_statement(CHAIN, owner.signing, owner.peer_id, name, 0)
    assert check_statement(CHAIN, owner.peer_id, raw)[0].name == name


@pytest.mark.parametrize("name", [LONGEST + "x", "two\nlines", "\x1b[31m"])
def test_peers_refuse_what_is_refused_here(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        check_name(name)
    owner = Identity(bytes(range(32)))
    with pytest.raises(InvalidInput):
        check_statement(CHAIN, owner.peer_id, make_statement(CHAIN, owner.signing, owner.peer_id, name, 0))


def test_a_node_with_an_old_key_file_asks_for_a_name_that_peers_take(tmp_path: Path) -> None:
    owner = Identity(bytes(range(32)), LONGEST + "x")
    with pytest.raises(InvalidInput, match=r"set `name` in .*config.toml"):
        shown_name(load_config(tmp_path, {}), owner)
    assert shown_name(load_config(tmp_path, {}, {"name": "ward-a"}), owner) == "ward-a"
