# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does with what miners hand in. A real node, alone."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.messages import Message, Offer, Reveal
from node import mining_desk
from node.clock import now_ms
from node.mining import NoChainYet, StaleWork
from node.mining_desk import NodeMiningDesk
from tests.node.kit import mined
from tests.node.networks import MEMBERS, Net

MINER, RIVAL = MEMBERS[:2]


class Desk:
    """A desk whose words are noted."""

    def __init__(self, net: Net) -> None:
        self.told: list[Message] = []
        self.sent: list[tuple[str, Message]] = []
        self.joining = ""
        self.desk = NodeMiningDesk(
            driver=net.nodes[0].service._driver,
            broadcast=self.told.append,
            send=lambda peer, message: self.sent.append((peer, message)),
            peers=lambda: ("one", "two"),
            joining=lambda: self.joining,
        )


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Desk]:
    async with Net(directory, count=1) as net:
        yield Desk(net)


async def test_a_keyblock_is_told_to_all_and_repeated_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as it:
        monkeypatch.setattr(mining_desk, "REPEAT_S", 3_600.0)
        signed = mined(it.desk.work(MINER.public.public_key), MINER, now_ms())
        for _ in range(4):
            it.desk.offer(signed)
        assert it.told == [Offer(signed)]
        # However often a client says it, peers hear no more of it.
        assert it.sent == [("one", Offer(signed)), ("two", Offer(signed))]
        with pytest.raises(StaleWork, match="came first"):
            it.desk.offer(mined(it.desk.work(RIVAL.public.public_key), RIVAL, now_ms()))


async def test_who_says_two_things_in_turn_is_repeated_no_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miner offers its next keyblock while it still reveals the seed of its last one; and anybody can repeat both."""
    async with opened(tmp_path) as it:
        monkeypatch.setattr(mining_desk, "REPEAT_S", 3_600.0)
        monkeypatch.setattr(mining_desk, "check_reveal", lambda *_: None)
        signed, reveal = mined(it.desk.work(MINER.public.public_key), MINER, now_ms()), Reveal(0, bytes(96))
        for _ in range(4):
            it.desk.offer(signed)
            it.desk.reveal(reveal.epoch, reveal.signature)
        assert it.told == [Offer(signed), reveal]
        assert it.sent == [(peer, message) for message in (Offer(signed), reveal) for peer in ("one", "two")]


async def test_nothing_is_told_before_the_chain_is_chosen(tmp_path: Path) -> None:
    async with opened(tmp_path) as it:
        signed = mined(it.desk.work(MINER.public.public_key), MINER, now_ms())
        it.joining = "replaying a chain"
        calls: list[Callable[[], object]] = [
            lambda: it.desk.work(MINER.public.public_key),
            lambda: it.desk.offer(signed),
            lambda: it.desk.reveal(0, bytes(96)),
        ]
        for call in calls:
            with pytest.raises(NoChainYet, match="replaying a chain"):
                call()
        assert it.told == []
        assert it.sent == []
