# SPDX-License-Identifier: GPL-3.0-or-later
"""The book of peers met."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.identity import Identity
from node.peer_book import bootstrap_addresses, keep_peers, load_peers
from p2p.config import PeerInfo


def address(number: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{4000 + number}/p2p/{Identity(bytes([number]) * 32).peer_id}"


def peer(number: int) -> PeerInfo:
    text = address(number)
    return PeerInfo(text.rpartition("/")[2], "", (text,), "outbound", 0.0, 0, None, 0, 0)


async def test_peers_met_are_found_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    book = tmp_path / "peers.json"
    connected = [peer(1), peer(2)]
    with trio.move_on_after(1):
        await keep_peers(book, lambda: connected)
    assert set(load_peers(book)) == {address(1), address(2)}


async def test_losing_all_peers_does_not_empty_the_book(tmp_path: Path, autojump_clock: MockClock) -> None:
    book = tmp_path / "peers.json"
    connected = [peer(1)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_peers, book, lambda: connected)
        await trio.sleep(1)
        connected.clear()
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert load_peers(book) == (address(1),)


@pytest.mark.parametrize("text", ["", "{", '["/ip4/0.0.0.0/tcp/1/p2p/x"]', "[1]", "\xff", "[" * 9999])
def test_a_damaged_book_counts_as_none(tmp_path: Path, text: str) -> None:
    book = tmp_path / "peers.json"
    book.write_text(text, encoding="latin-1")
    assert load_peers(book) == ()


def test_the_operators_choice_comes_first_and_nobody_twice() -> None:
    own = Identity(bytes([9]) * 32).peer_id
    chosen = bootstrap_addresses([address(1)], [address(2), address(1), address(9)], own)
    assert chosen == (address(1), address(2))
