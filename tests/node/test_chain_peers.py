# SPDX-License-Identifier: GPL-3.0-or-later
"""One chain's peers keep watch on each other: what one of them gives is compared with what the others have. Virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.chain_peers import MUTE_S, ChainPeers, Split
from node.chains import group_chains
from node.replay import Replay
from node.wire import REQUEST_CHAIN, REQUEST_HASHES
from tests.consensus.chains import Step
from tests.node.joining_kit import idle, made
from tests.node.test_contest import World

HONEST = made(*idle(200))
PARTED = made(*idle(70), Step(later_ms=1_500), *idle(129))
"""The same first seventy microblocks, then others, by the same keys."""


class Watch:
    """A liar that says to have the honest chain and gives another, and an honest peer that is asked about it."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.world.peer("liar", HONEST, gives=PARTED)
        self.world.peer("honest", HONEST)
        self.replay = Replay(directory / "trial", self.world.rules, trio.CapacityLimiter(1))

    async def run(self) -> ChainPeers:
        """Replay what the liar gives."""
        (group,) = group_chains((await self.world.scout.look(["liar"])).chains)
        peers = ChainPeers(
            network=self.world.network,
            scout=self.world.scout,
            group=group,
            witnesses=lambda: ("liar", "honest"),
            known=self.replay.known,
        )
        await self.replay.run(peers)
        return peers

    def hush(self, is_silent: Callable[[int], bool]) -> list[float]:
        """Make the honest peer silent for some of the questions about hashes, by their number; notes when it was asked."""
        given = self.world.network.answers["honest", REQUEST_HASHES]
        asked: list[float] = []

        def run(payload: bytes) -> object:
            asked.append(trio.current_time())
            return None if is_silent(len(asked)) else given(payload)

        self.world.network.script("honest", REQUEST_HASHES, run)  # type: ignore[arg-type]
        return asked


@asynccontextmanager
async def watch(directory: Path) -> AsyncIterator[Watch]:
    made = Watch(directory)
    try:
        yield made
    finally:
        made.replay.close()


async def test_what_others_have_committed_otherwise_is_not_taken(tmp_path: Path, autojump_clock: object) -> None:
    async with watch(tmp_path) as it:
        peers = await it.run()
        assert peers.split is not None
        assert peers.split == Split(71, frozenset({"liar"}), frozenset({"honest"}))
        assert it.replay.reached() <= 70


async def test_a_witness_that_is_busy_for_a_moment_is_asked_again(tmp_path: Path, autojump_clock: object) -> None:
    async with watch(tmp_path) as it:
        it.hush(lambda number: number in (2, 3))
        peers = await it.run()
        assert peers.split is not None
        assert it.replay.reached() <= 70


async def test_a_witness_that_says_nothing_costs_some_time_and_is_heard_when_it_speaks(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with watch(tmp_path) as it:
        it.world.slow.delays["liar", REQUEST_CHAIN] = 9.0
        it.world.peer("liar", HONEST)
        asked = it.hush(lambda number: number <= 4)
        start_s = trio.current_time()
        peers = await it.run()
        assert peers.split is None
        assert it.replay.reached() >= 199
        # Three times at once; then it was left alone.
        assert len(asked) == 3
        assert asked[2] + MUTE_S > trio.current_time()
        assert trio.current_time() - start_s < 90
