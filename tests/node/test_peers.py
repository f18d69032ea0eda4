# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs which peer: proved by a signature of the account, one place per connection."""

import pytest

from ledger import testing
from ledger.codec import decode, encode
from ledger.errors import InvalidInput
from node.peers import _MAX_CLAIMS, PeerDirectory
from node.wire import STATEMENT_VERSION, NodeStatement, check_statement, make_statement
from tests.node.kit import CHAIN

KEY = testing.key(0)


@pytest.fixture
def directory() -> PeerDirectory:
    return PeerDirectory(CHAIN, testing.key(9), "me")


def test_a_statement_binds_the_account_to_the_peer_on_this_chain() -> None:
    raw = make_statement(CHAIN, KEY, "peer", "Hôpital", 7)
    statement, account = check_statement(CHAIN, "peer", raw)
    assert (statement.name, statement.height, account) == ("Hôpital", 7, KEY.address)
    for chain, peer in ((CHAIN, "another"), (bytes(32), "peer")):
        with pytest.raises(InvalidInput, match="not signed"):
            check_statement(chain, peer, raw)


def _altered(**changes: object) -> bytes:
    statement = decode(NodeStatement, make_statement(CHAIN, KEY, "peer", "name", 7), 512)
    values = {field: getattr(statement, field) for field in statement.__struct_fields__} | changes
    return encode(tuple(values.values()))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        bytes(600),
        _altered(version=STATEMENT_VERSION + 1),
        _altered(public_key=b"\x05" * 33),
        _altered(signature=bytes(64)),
        _altered(name="x" * 65),
        _altered(name="two\nlines"),
        _altered(name="\x1b[2Jcleared"),
        _altered(height=-1),
    ],
)
def test_a_wrong_statement_is_refused(directory: PeerDirectory, raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        directory.authenticate("peer", raw)
    assert directory.admit("peer") == 0
    assert directory.peer_ids() == ()


def test_peers_are_found_by_account_and_back(directory: PeerDirectory) -> None:
    directory.authenticate("peer", make_statement(CHAIN, KEY, "peer", "one", 7))
    assert directory.peer_of(KEY.address) is None, "checked is not yet connected"
    assert directory.admit("peer") == 7
    assert directory.peer_of(KEY.address) == "peer"
    assert directory.address_of("peer") == KEY.address
    assert directory.by_address() == {KEY.address: "peer"}
    directory.remove("peer")
    directory.remove("peer")
    assert directory.peer_ids() == ()
    assert directory.by_address() == {}


def test_the_newest_statement_of_a_peer_counts(directory: PeerDirectory) -> None:
    for height in (1, 2):
        directory.authenticate("peer", make_statement(CHAIN, KEY, "peer", "one", height))
    assert directory.admit("peer") == 2


def test_of_two_nodes_of_an_account_the_other_is_found_when_one_leaves(directory: PeerDirectory) -> None:
    for peer in ("first", "second"):
        directory.authenticate(peer, make_statement(CHAIN, KEY, peer, "one", 7))
        directory.admit(peer)
    directory.remove("second")
    assert directory.peer_of(KEY.address) == "first"
    directory.remove("first")
    assert directory.peer_of(KEY.address) is None


def test_claims_that_never_connect_are_bounded(directory: PeerDirectory) -> None:
    for number in range(_MAX_CLAIMS + 10):
        peer = f"peer {number}"
        directory.authenticate(peer, make_statement(CHAIN, KEY, peer, "one", number))
    assert len(directory._claims) == _MAX_CLAIMS
    assert directory.admit("peer 0") == 0
    assert directory.admit(f"peer {_MAX_CLAIMS + 9}") == _MAX_CLAIMS + 9
