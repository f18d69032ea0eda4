# SPDX-License-Identifier: GPL-3.0-or-later
"""What ended an epoch may take more microblocks than one answer holds; whoever is behind gets past them all the same."""

from collections import deque
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio

from consensus import block_tree
from consensus.block_tree import CertifiedMicroblock
from consensus.events import Received, ReceivedChain
from consensus.executor import Executor
from consensus.messages import Reveal
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.memory_store import MemoryStore
from node.answers import answer, answer_chain
from node.chain_peers import ChainPeers
from node.chains import group_chains
from node.clock import now_ms
from node.replay import Replay, TrialRules
from node.scout import Scout
from node.wire import (
    MAX_CHAIN_BLOCKS,
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    REQUEST_HASHES,
    REQUEST_SUMMARY,
    ChainRequest,
    decode_chain_answer,
)
from tests.consensus.chains import ChainMaker
from tests.node.joining_kit import (
    GENESIS,
    ClosingMaker,
    JoinNet,
    history,
    idle,
    made,
)
from tests.node.kit import ScriptedNetwork, until
from tests.node.test_contest import NO_CHECKPOINT, World

CLOSING = 150
"""Takes three answers."""
PINNED = 3
"""Height of the first microblock that pins a keyblock."""


def long_closing(closing: int = CLOSING) -> ClosingMaker:
    """Return a chain of two keyblocks, the end of whose epochs it took many lost terms to settle."""
    maker = ClosingMaker(MemoryStore(GENESIS), closing)
    for step in history(0, 1):
        maker.take(step)
    return maker


LONG = long_closing()


def heights(blocks: tuple[CertifiedMicroblock, ...]) -> list[int]:
    return [block.signed.microblock.header.height for block in blocks]


def asked(maker: ChainMaker, epoch: int, after_height: int, limit: int = MAX_CHAIN_BLOCKS) -> list[int]:
    raw = answer_chain(maker.store, tuple, encode(ChainRequest(epoch, after_height, limit)))
    return heights(decode_chain_answer(raw).blocks)


def test_an_answer_leaves_out_what_the_asker_has_of_a_closing() -> None:
    rising = list(range(PINNED, PINNED + MAX_CHAIN_BLOCKS))
    assert asked(LONG, 0, PINNED - 1) == rising
    assert asked(LONG, 0, PINNED) == [height + 1 for height in rising]
    assert asked(LONG, 0, PINNED + 63) == [height + 64 for height in rising]
    # The last of them, then the next epoch from its beginning: what it is about is now known.
    assert asked(LONG, 0, PINNED + CLOSING - 1)[:3] == [PINNED + CLOSING, PINNED + 1, PINNED + 2]
    assert asked(LONG, 0, PINNED + CLOSING)[0] == PINNED + 1
    # In the epoch after, the same heights are other microblocks.
    assert asked(LONG, 1, PINNED)[:3] == [PINNED + 1, PINNED + 2, PINNED + 3]
    assert asked(LONG, 0, PINNED - 1, limit=1) == [PINNED]


async def test_a_chain_of_long_closings_can_be_put_to_the_test(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    world.peer("one", LONG)
    world.peer("two", LONG)
    world.peer("other", made(*idle(9)))
    assert await world.winning_tip() == LONG.store.head().block_hash
    assert world.network.penalties == []


async def test_who_was_away_gets_past_a_long_closing(tmp_path: Path) -> None:
    before = long_closing()
    behind = ClosingMaker(MemoryStore(GENESIS), 1)
    for commit, transactions, batches in before.commits[: PINNED - 1]:
        behind.executor.commit(commit, transactions)
        behind.commits.append((commit, transactions, batches))
    async with JoinNet(tmp_path) as net:
        ahead = await net.start("ahead", before)
        node = await net.start("node", behind, [ahead.address])
        await until(lambda: node.has(before), 120)
        assert node.score("ahead") == 0


class Scripted:
    """A trial that has taken another closing than the one that the peers have."""

    def __init__(self, directory: Path, peer: ChainMaker, beside: ChainMaker) -> None:
        self.network = ScriptedNetwork()
        for method in (REQUEST_SUMMARY, REQUEST_HASHES, REQUEST_CHAIN, REQUEST_BATCHES):
            self.network.script("peer", method, partial(self._reply, method))
        self._peer, self._beside = peer, beside
        rules = TrialRules(GENESIS, made().store.head(), NO_CHECKPOINT, limit_bytes=1 << 30)
        self.replay = Replay(directory / "trial", rules, trio.CapacityLimiter(1))
        self.scout = Scout(self.network, GENESIS, NO_CHECKPOINT)

    def _reply(self, method: str, payload: bytes) -> bytes:
        found = answer(
            method, payload, store=self._peer.store, tail=tuple, weight=Executor(self._peer.store, MACHINES).weight
        )
        assert found is not None
        return found

    async def peers(self) -> ChainPeers:
        """Take what is beside the chain; returns those who have the chain."""
        raw = answer_chain(self._beside.store, tuple, encode(ChainRequest(0, 0, PINNED + 9)))
        assert await self.replay._take_chain(decode_chain_answer(raw).blocks) == ""
        (group,) = group_chains((await self.scout.look(["peer"])).chains)
        return ChainPeers(
            network=self.network,
            scout=self.scout,
            group=group,
            witnesses=group.peers.keys,
            known=self.replay.known,
        )


async def test_certified_microblocks_beside_a_long_closing_do_not_stand_in_its_way(
    tmp_path: Path, autojump_clock: object
) -> None:
    """One that nobody else knew of, and newer than what one answer tells."""
    beside = ClosingMaker(MemoryStore(GENESIS), CLOSING, lost=10)
    for step in history(0, 1):
        beside.take(step)
    scripted = Scripted(tmp_path, LONG, beside)
    assert scripted.replay.store.head().height == 0
    try:
        await scripted.replay.run(await scripted.peers())
        assert len(scripted.replay.certified_tail()) == 0 or scripted.replay.store.head().height > PINNED
        assert scripted.replay.store.head().height >= LONG.store.head().height - 1
    finally:
        scripted.replay.close()


async def test_who_shows_only_what_closes_an_epoch_has_shown_something(tmp_path: Path, autojump_clock: object) -> None:
    scripted = Scripted(tmp_path, LONG, LONG)
    try:
        peers = await scripted.peers()
        raw = await peers.request("chain", REQUEST_CHAIN, encode(ChainRequest(0, PINNED + 9, 8)), timeout_s=1)
        assert heights(decode_chain_answer(raw).blocks) == list(range(PINNED + 10, PINNED + 18))
        assert peers.claimants(0) == {"peer": False}
        await peers.blame_claimants(0, scripted.replay.store.head())
        assert scripted.network.penalties == []
    finally:
        scripted.replay.close()


async def test_a_closing_that_never_ends_keeps_nobody_from_a_true_one(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a committee's keys that have leaked since: as many certified microblocks behind a pin as a tree may hold."""
    true = long_closing(3)
    endless = ClosingMaker(MemoryStore(GENESIS), 60, lost=10)
    for step in history(0):
        endless.take(step)
    scripted = Scripted(tmp_path, true, endless)
    monkeypatch.setattr(block_tree, "MAX_UNCOMMITTED", 40)
    try:
        peers = await scripted.peers()
        for after_height in range(PINNED + 9, PINNED + 50, 10):
            raw = answer_chain(endless.store, tuple, encode(ChainRequest(0, after_height, 10)))
            assert await scripted.replay._take_chain(decode_chain_answer(raw).blocks) == ""
        assert len(scripted.replay.certified_tail()) == 39
        await scripted.replay.run(peers)
        assert scripted.replay.store.head().height >= true.store.head().height - 1
    finally:
        scripted.replay.close()


async def test_a_core_by_itself_gets_past_a_long_closing_with_answers_of_any_size(tmp_path: Path) -> None:
    """As in the simulator: it asks, and gets a few microblocks at a time."""
    rules = TrialRules(GENESIS, made().store.head(), NO_CHECKPOINT, limit_bytes=1 << 30)
    replay = Replay(tmp_path / "trial", rules, trio.CapacityLimiter(1))
    driver, asked, ticks = replay._driver, deque[int](), count(now_ms(), 60_000)
    driver._ports = msgspec.structs.replace(driver._ports, request_chain=asked.append)
    driver._clock_ms = partial(next, ticks)
    try:
        for _ in range(100):
            # Somebody is in the next epoch, which is news as often as it is said.
            driver.handle(Received(Reveal(1, bytes(96))))
            while asked:
                raw = answer_chain(
                    LONG.store, tuple, encode(ChainRequest(driver.core.epoch.number, asked.popleft(), 8))
                )
                driver.handle(ReceivedChain(decode_chain_answer(raw).blocks))
        assert driver.core.epoch.number == 1
    finally:
        replay.close()
