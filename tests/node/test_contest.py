# SPDX-License-Identifier: GPL-3.0-or-later
"""Several chains put to the test: liars, dawdlers, crowds cost time and their own score; the heaviest shown wins. Virtual time."""

import random
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.executor import Executor
from consensus.weight import FinalPoint
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.store import Store
from node import contest as module
from node import replay as replay_module
from node.answers import answer
from node.chains import group_chains
from node.contest import Arena, Contest
from node.replay import Replay, TrialRules
from node.scout import Scout, Sight
from node.wire import (
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    REQUEST_HASHES,
    REQUEST_KEYBLOCKS,
    REQUEST_SUMMARY,
    ChainAnswer,
    ChainSummary,
    KeyblocksAnswer,
    decode_chain_answer,
    decode_keyblocks_answer,
)
from tests.consensus.chains import ChainMaker, Step
from tests.node.joining_kit import CHAIN, GENESIS, history, idle, made, uncertified
from tests.node.kit import ScriptedNetwork

HONEST = made(*history(0, 1, 2))
POWER = made(*history(4, 5, 6, 4, 5))
METHODS = (REQUEST_SUMMARY, REQUEST_HASHES, REQUEST_KEYBLOCKS, REQUEST_CHAIN, REQUEST_BATCHES)
NO_CHECKPOINT = FinalPoint(0, CHAIN)
HUGE = 2**310


def rewrite(number: int, count: int = 6) -> ChainMaker:
    """Return one of many chains that the founders' keys can make without work."""
    return made(Step(later_ms=1_001 + number), *idle(count - 1))


def weight(maker: ChainMaker) -> int:
    return Executor(maker.store, MACHINES).weight


class Slow:
    """Makes a scripted peer take its time."""

    def __init__(self, network: ScriptedNetwork) -> None:
        self._request = network.request
        self.delays: dict[tuple[str, str], float] = {}

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        await trio.sleep(min(timeout_s, self.delays.get((peer_id, method), 0.0)))
        return await self._request(peer_id, method, payload, timeout_s=timeout_s)


class World:
    """One choice among scripted peers, with real trials."""

    def __init__(self, directory: Path, checkpoint: FinalPoint = NO_CHECKPOINT) -> None:
        self.directory = directory
        self.network = ScriptedNetwork()
        self.slow = Slow(self.network)
        self.network.request = self.slow.request  # type: ignore[method-assign]
        self.peers: list[str] = []
        self.named: frozenset[str] = frozenset()
        self.checkpoint = checkpoint
        self.scout = Scout(self.network, GENESIS, checkpoint)
        self.rules = TrialRules(GENESIS, made().store.head(), checkpoint, limit_bytes=1 << 30)

    def peer(self, name: str, maker: ChainMaker, claim: int | None = None, gives: ChainMaker | None = None) -> None:
        """Add a peer that has a chain; that claims another weight; that gives another chain."""
        self.peers.append(name)
        says, stated = maker.store, weight(maker) if claim is None else claim

        def reply(method: str, store: Store) -> Callable[[bytes], bytes]:
            def run(payload: bytes) -> bytes:
                found = answer(method, payload, store=store, tail=tuple, weight=stated)
                assert found is not None
                return found

            return run

        for method in METHODS:
            of = gives.store if gives is not None and method in (REQUEST_CHAIN, REQUEST_BATCHES) else says
            self.network.script(name, method, reply(method, of))

    def silent(self, name: str, *methods: str) -> None:
        """Make a peer silent when asked for these."""
        for method in methods:
            self.network.script(name, method, lambda _: None)

    async def ahead(self, heights: Collection[int] = ()) -> Sight:
        return await self.scout.look(self.peers, heights)

    async def winner(self) -> Replay | None:
        arena = Arena(
            network=self.network,
            scout=self.scout,
            rules=self.rules,
            named=self.named,
            directory=self.directory / "trial",
            checkers=trio.CapacityLimiter(1),
            ahead=self.ahead,
            tell=lambda _: None,
        )
        return await Contest(arena).winner(group_chains((await self.ahead()).chains, self.named))

    async def winning_tip(self) -> bytes:
        """Return the hash of the winner's newest microblock, its certified one if there is; nothing is left on the disk."""
        replay = await self.winner()
        if replay is None:
            return b""
        tail = replay.certified_tail()
        tip = tail[-1].certificate.block_hash if tail else replay.store.head().block_hash
        replay.close()
        assert left_in(self.directory) == []
        return tip


def left_in(directory: Path) -> list[Path]:
    """Return what lies in a directory."""
    return list(directory.iterdir())


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories of all trials."""
    seen: list[str] = []

    def noted(directory: Path, *rest: object) -> Replay:
        seen.append(directory.name)
        return Replay(directory, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Replay", noted)
    return seen


def tip(maker: ChainMaker) -> bytes:
    return maker.store.head().block_hash


# ---------------------------------------------------------------- who wins


async def test_the_heaviest_wins_in_whatever_order_chains_are_offered(tmp_path: Path, autojump_clock: object) -> None:
    chains = [HONEST, POWER, rewrite(0), made(*history(7))]
    for seed in range(4):
        world, order = World(tmp_path), random.Random(seed).sample(range(4), 4)
        for place, number in enumerate(order):
            world.peer(f"peer {place}", chains[number])
        world.named = frozenset({f"peer {seed}"})
        assert await world.winning_tip() == tip(POWER)
        assert world.network.penalties == []


async def test_work_that_nobody_certified_loses_at_its_first_microblock(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    world.peer("power", uncertified(POWER))
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    assert world.network.blamed() == {"power"}


async def test_fifty_chains_without_work_cost_no_trial(
    tmp_path: Path, autojump_clock: object, trials: list[str]
) -> None:
    world = World(tmp_path)
    for number in range(25):
        world.peer(f"modest {number}", rewrite(number))
        world.peer(f"boast {number}", rewrite(100 + number), claim=HUGE)
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    assert len(trials) == 1
    assert world.network.blamed() == {f"boast {number}" for number in range(25)}


async def test_claims_that_are_left_open_are_tried_last_and_the_honest_chain_first(
    tmp_path: Path, autojump_clock: object, trials: list[str]
) -> None:
    world = World(tmp_path)
    for number in range(12):
        world.peer(f"open {number}", rewrite(number), claim=HUGE)
        world.silent(f"open {number}", REQUEST_KEYBLOCKS)
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    # They could be shown, and are worth nothing.
    assert len(trials) == 13
    assert world.network.asked.index(("honest", REQUEST_CHAIN)) == min(
        place for place, (_, method) in enumerate(world.network.asked) if method == REQUEST_CHAIN
    )
    assert {name for name in world.network.blamed() if name.startswith("open")}


async def test_any_number_of_chains_without_work_leaves_room_for_the_honest_one_though_it_has_not_shown_its_work(
    tmp_path: Path, autojump_clock: object
) -> None:
    world = World(tmp_path)
    for number in range(12):
        world.peer(f"cheap {number}", rewrite(number))
    world.peer("honest", HONEST)
    world.silent("honest", REQUEST_KEYBLOCKS)
    assert await world.winning_tip() == tip(HONEST)


async def test_a_modest_claim_among_honest_ones_does_not_make_their_chain_light(
    tmp_path: Path, autojump_clock: object
) -> None:
    """It is easily shown, while theirs takes longer, and says nothing of how much theirs weighs."""
    world = World(tmp_path)
    world.peer("modest", HONEST, claim=1)
    world.peer("honest", HONEST)
    world.silent("honest", REQUEST_KEYBLOCKS)
    world.peer("cheap", rewrite(0, 130))
    assert await world.winning_tip() == tip(HONEST)


async def test_who_shows_its_work_slowly_does_not_keep_others_from_showing_theirs(
    tmp_path: Path, autojump_clock: object, trials: list[str]
) -> None:
    long = made(*history(*range(4), between=0) * 8)
    world = World(tmp_path)
    world.peer("slow", long, claim=HUGE)
    world.slow.delays["slow", REQUEST_KEYBLOCKS] = 4.9
    world.network.script("slow", REQUEST_KEYBLOCKS, dripping_keyblocks(long))
    world.peer("honest", long)
    world.peer("cheap", rewrite(0, 130))
    assert await world.winning_tip() == tip(long)
    assert len(trials) == 1


def dripping_keyblocks(maker: ChainMaker) -> Callable[[bytes], bytes]:
    """Return answers of one keyblock each."""

    def run(payload: bytes) -> bytes:
        found = answer(REQUEST_KEYBLOCKS, payload, store=maker.store, tail=tuple, weight=0)
        assert found is not None
        return encode(KeyblocksAnswer(decode_keyblocks_answer(found).keyblocks[:1]))

    return run


async def test_a_named_peer_is_tried_first_and_wins_nothing_by_it(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    world.peer("honest", HONEST)
    world.peer("friend", rewrite(0))
    world.named = frozenset({"friend"})
    assert await world.winning_tip() == tip(HONEST)
    given = [peer for peer, method in world.network.asked if method == REQUEST_CHAIN]
    assert given[0] == "friend"


# ---------------------------------------------------------------- peers that lie, dawdle and go


async def test_a_weight_that_the_chain_does_not_have_is_blamed(tmp_path: Path, autojump_clock: object) -> None:
    """Keyblocks are known to all: a liar can show those of another chain."""
    world, light = World(tmp_path), rewrite(0)
    world.peer("liar", light)
    head = light.store.head()
    claim = ChainSummary(head.height, head.block_hash, 3, weight(HONEST).to_bytes(40, "big"))
    world.network.script("liar", REQUEST_SUMMARY, lambda _: encode(claim))
    world.network.script("liar", REQUEST_KEYBLOCKS, _keyblocks_of(HONEST))
    world.peer("honest", HONEST)
    world.named = frozenset({"liar"})
    assert await world.winning_tip() == tip(HONEST)
    assert world.network.blamed() == {"liar"}


async def test_peers_of_one_chain_share_the_load_and_one_that_fails_is_not_missed(
    tmp_path: Path, autojump_clock: object
) -> None:
    long = made(*history(0, 1), *idle(300))
    world = World(tmp_path)
    for name in ("one", "two", "silent", "empty"):
        world.peer(name, long)
    world.silent("silent", REQUEST_CHAIN)
    world.network.script("empty", REQUEST_CHAIN, lambda _: encode(ChainAnswer(())))
    world.peer("other", rewrite(0))
    assert await world.winning_tip() == tip(long)
    asked = [peer for peer, method in world.network.asked if method == REQUEST_CHAIN]
    assert min(asked.count("one"), asked.count("two")) >= 2
    assert asked.count("silent") <= 3
    assert world.network.penalties == []


async def test_liars_inside_a_group_never_bring_it_down(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    for number in range(4):
        world.peer(f"liar {number}", HONEST, gives=rewrite(number, 12))
    world.peer("honest", HONEST)
    world.peer("other", rewrite(9))
    world.named = frozenset({"liar 0", "liar 1"})
    assert await world.winning_tip() == tip(HONEST)
    assert "honest" not in world.network.blamed()


def dripping(maker: ChainMaker) -> Callable[[bytes], bytes]:
    """Return answers of one microblock each."""

    def run(payload: bytes) -> bytes:
        found = answer(REQUEST_CHAIN, payload, store=maker.store, tail=tuple, weight=0)
        assert found is not None
        return encode(ChainAnswer(decode_chain_answer(found).blocks[:1]))

    return run


async def test_a_peer_that_dawdles_is_left_behind(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    for name in ("slow", "quick"):
        world.peer(name, made(*idle(60)), claim=HUGE)
        world.silent(name, REQUEST_KEYBLOCKS)
    world.network.script("slow", REQUEST_CHAIN, dripping(made(*idle(60))))
    world.network.script("quick", REQUEST_CHAIN, dripping(made(*idle(60))))
    world.slow.delays["slow", REQUEST_CHAIN] = 9.0
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    asked = [peer for peer, method in world.network.asked if method == REQUEST_CHAIN]
    assert asked.count("slow") <= 4 < asked.count("quick")


async def test_chains_that_only_drip_end_in_time_and_are_nobodys(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    for number in range(10):
        world.peer(f"slow {number}", rewrite(number, 60), claim=HUGE)
        world.silent(f"slow {number}", REQUEST_KEYBLOCKS)
        world.network.script(f"slow {number}", REQUEST_CHAIN, dripping(rewrite(number, 60)))
        world.slow.delays[f"slow {number}", REQUEST_CHAIN] = 9.0
    start_s = trio.current_time()
    assert await world.winning_tip() == b""
    assert trio.current_time() - start_s < 10 * 60 + 120


async def test_who_comes_during_the_trials_is_heard_before_the_choice(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    world.peer("one", rewrite(0))
    world.peer("two", rewrite(1))
    given = world.network.answers["one", REQUEST_CHAIN]

    def late(payload: bytes) -> bytes | Exception | None:
        if "late" not in world.peers:
            world.peer("late", HONEST)
        return given(payload)

    world.network.script("one", REQUEST_CHAIN, late)
    world.network.script("two", REQUEST_CHAIN, late)
    assert await world.winning_tip() == tip(HONEST)


# ---------------------------------------------------------------- checkpoints and room


async def test_chains_without_the_checkpoint_are_out_before_any_trial(
    tmp_path: Path, autojump_clock: object, trials: list[str]
) -> None:
    keyblock = HONEST.epochs[2].record.keyblock
    world = World(tmp_path, FinalPoint(2, keyblock))
    world.peer("power", POWER)
    world.peer("short", made(*history(0)))
    assert await world.winning_tip() == b""
    assert trials == []
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    assert world.network.penalties == []


async def test_a_heavier_chain_without_what_is_final_here_never_wins(tmp_path: Path, autojump_clock: object) -> None:
    """A node that was stopped half way takes neither another branch nor a chain that ends before its own."""
    world, own = World(tmp_path), made(*history(0, 1)).store.head()
    assert HONEST.store.block_hash(own.height) == own.block_hash
    world.rules = msgspec.structs.replace(world.rules, own=own)
    world.peer("power", POWER)
    world.peer("short", made(*history(0)))
    assert weight(POWER) > weight(HONEST)
    assert await world.winning_tip() == b""
    world.peer("honest", HONEST)
    assert await world.winning_tip() == tip(HONEST)
    assert world.network.penalties == []


async def test_a_chain_that_shows_others_keyblocks_fails_at_the_checkpoint(
    tmp_path: Path, autojump_clock: object
) -> None:
    world = World(tmp_path, FinalPoint(2, HONEST.epochs[2].record.keyblock))
    world.peer("liar", POWER)
    world.network.script("liar", REQUEST_KEYBLOCKS, _keyblocks_of(HONEST))
    said = POWER.store.head()
    claim = ChainSummary(said.height, said.block_hash, 5, weight(HONEST).to_bytes(40, "big"))
    world.network.script("liar", REQUEST_SUMMARY, lambda _: encode(claim))
    assert await world.winning_tip() == b""


def _keyblocks_of(maker: ChainMaker) -> Callable[[bytes], bytes]:
    def run(payload: bytes) -> bytes:
        found = answer(REQUEST_KEYBLOCKS, payload, store=maker.store, tail=tuple, weight=0)
        assert found is not None
        return found

    return run


async def test_a_trial_takes_no_more_room_than_the_node_may(tmp_path: Path, autojump_clock: object) -> None:
    long = made(*idle(150))
    for limit_bytes, wins in ((1 << 30, tip(long)), (200_000, b"")):
        world = World(tmp_path)
        world.rules = msgspec.structs.replace(world.rules, limit_bytes=limit_bytes)
        world.peer("honest", long)
        assert await world.winning_tip() == wins
        assert world.network.penalties == []
        assert left_in(tmp_path) == []


async def test_a_trial_takes_no_more_memory_than_honest_chains_may_need(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    paying = ChainMaker(made(*history(0)).store)
    for number in range(6):
        paying.extend(*(paying.pay(number, 0) for _ in range(5)))
    everything = made(*history(0))
    everything.commits += paying.commits
    everything.store = paying.store
    for limit, wins in ((1 << 20, tip(everything)), (1_000, b"")):
        monkeypatch.setattr(replay_module, "MAX_PENDING_BYTES", limit)
        world = World(tmp_path)
        world.peer("honest", everything)
        assert await world.winning_tip() == wins
        assert world.network.penalties == []


async def test_nothing_is_left_of_a_contest_that_is_cancelled(tmp_path: Path, autojump_clock: object) -> None:
    world = World(tmp_path)
    world.peer("one", HONEST)
    world.named = frozenset({"one"})
    world.peer("two", POWER)
    world.silent("two", REQUEST_CHAIN)
    with trio.move_on_after(15) as scope:
        await world.winner()
    assert scope.cancelled_caught
    assert left_in(tmp_path) == []
