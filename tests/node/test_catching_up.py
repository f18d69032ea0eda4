# SPDX-License-Identifier: GPL-3.0-or-later
"""A real core and a real `Sync` behind the others' chain: one honest peer that answers is enough, whatever else is here or said."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from consensus.block_tree import BlockTree, CertifiedMicroblock
from consensus.core import Core
from consensus.desk import MAX_EARLY
from consensus.events import PayloadChanged, Received, ReceivedChain, Tick
from consensus.executor import Executor
from consensus.messages import Reveal
from consensus.restart import committed_head
from consensus.timing import Timing
from consensus.weight import FinalPoint
from contracts.shipped import MACHINES
from ledger import testing
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from node.answers import answer, answer_batches, answer_chain
from node.batches import Batch, BatchPool, open_asked
from node.chain_peers import ChainPeers, known_of, reached_height
from node.chains import group_chains
from node.driver import Driver, Ports
from node.safety_file import SafetyFile
from node.scout import Scout
from node.sync import Asker, Sync
from node.wire import (
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    REQUEST_HASHES,
    REQUEST_SUMMARY,
    ChainAnswer,
    ChainRequest,
    Digests,
    decode_chain_request,
    decode_digests,
)
from tests.consensus.chains import PARAMETERS, Step
from tests.node.joining_kit import ClosingMaker
from tests.node.kit import Answer, ScriptedNetwork, until

GENESIS = testing.genesis(4, parameters=PARAMETERS)
CHAIN = chain_id(GENESIS)
Blocks = tuple[CertifiedMicroblock, ...]


class Maker(ClosingMaker):
    """Makes what is committed, and what was certified and then left."""

    def __init__(self, closing: int = 1) -> None:
        super().__init__(MemoryStore(GENESIS), closing)

    def beside(self, *steps: Step) -> Blocks:
        """Return certified microblocks behind the head, one after the other, that are not committed."""
        head = committed_head(self.store, self.epoch)
        tree, digests, node, known = BlockTree(head.node), dict(head.state_digests), head.node, head.certificate
        blocks: list[CertifiedMicroblock] = []
        for step in steps:
            keyblock = None if step.miner is None else self.mine(step.miner)
            block, node = self._certify(
                tree, node, known, self._microblock(tree, node, digests, step, (), keyblock), None
            )
            known = block.certificate
            blocks.append(block)
        return tuple(blocks)

    def copy(self, closing: int = 1) -> "Maker":
        """Return another one that has committed the same."""
        other = Maker(closing)
        self.replay(other.store)
        other.executor = Executor(other.store, MACHINES)
        other.commits = list(self.commits)
        return other


class TimedNetwork(ScriptedNetwork):
    """Has peers that take their time, too."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: dict[tuple[str, str], Callable[[bytes], Awaitable[bytes]]] = {}

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        script = self.slow.get((peer_id, method))
        if script is None:
            return await super().request(peer_id, method, payload, timeout_s=timeout_s)
        self.asked.append((peer_id, method))
        return await script(payload)


class Node:
    """The part of a node that catches up; an observer, so that nothing but the chain moves it."""

    def __init__(self, directory: Path, before: Maker, peers: Sequence[str], preferred: str = "") -> None:
        self.store, self.network, self.peers = MemoryStore(GENESIS), TimedNetwork(), list(peers)
        before.replay(self.store)
        self.pool, self.executor = BatchPool(self.store), Executor(self.store, MACHINES)
        self.requests: list[int] = []
        epoch = self.executor.epoch
        self.driver = Driver(
            core=Core(
                epoch=epoch,
                payload=self.pool,
                key=None,
                head=committed_head(self.store, epoch),
                record=None,
                proposals=(),
                timing=Timing(),
                now_ms=self.now_ms(),
            ),
            executor=self.executor,
            pool=self.pool,
            safety=SafetyFile(directory / "safety"),
            ports=Ports(
                send=lambda _address, _message: None,
                broadcast=lambda _message: None,
                request_batches=self._request_batches,
                request_chain=self._request_chain,
                committed=lambda _committed: None,
                report=lambda _evidence: None,
            ),
            clock_ms=self.now_ms,
        )
        self.sync = self.new_sync(self.network, lambda: self.peers, preferred)

    def new_sync(self, network: Asker, peers: Callable[[], Sequence[str]], preferred: str = "") -> Sync:
        return Sync(
            network=network,
            peers=peers,
            prefers=lambda peer: peer == preferred,
            pool=self.pool,
            store=self.store,
            take_chain=self.take_chain,
            certified_tail=self.driver.certified_tail,
            epoch=lambda: self.driver.core.epoch.number,
            take_batches=self._take_batches,
            rng=random.Random(7),
        )

    def _request_chain(self, after_height: int) -> None:
        self.requests.append(after_height)
        self.sync.want_chain()

    def _request_batches(self, digests: Sequence[bytes]) -> None:
        self.sync.want_batches(digests)

    def now_ms(self) -> int:
        return testing.GENESIS_TIMESTAMP_MS + 10**9 + int(trio.current_time() * 1000)

    async def take_chain(self, blocks: Blocks) -> str:
        refused = self.driver.handle(ReceivedChain(blocks))
        await trio.lowlevel.checkpoint()
        return "" if refused is None else refused.reason

    async def _take_batches(
        self, raws: Sequence[bytes], *, asked: frozenset[bytes], certified: frozenset[bytes], source: str | None
    ) -> str:
        outcomes = open_asked(raws, asked, certified, testing.rules_of(CHAIN))
        self.pool.add([outcome for outcome in outcomes if isinstance(outcome, Batch)])
        self.driver.handle(PayloadChanged())
        await trio.lowlevel.checkpoint()
        return next((str(outcome) for outcome in outcomes if isinstance(outcome, InvalidInput)), "")

    async def has(self, blocks: Blocks) -> None:
        """Give certified microblocks to the core."""
        assert await self.take_chain(blocks) == ""
        assert self.driver.certified_tail() == blocks

    def serve(self, peer: str, maker: Maker, page: int = 64, batches: int = 64, after_s: float = 0.0) -> None:
        """A peer has a chain, and answers with so many microblocks and batches at once, and after some time."""

        async def give_chain(payload: bytes) -> bytes:
            await trio.sleep(after_s)
            request = decode_chain_request(payload)
            limited = encode(ChainRequest(request.epoch, request.after_height, min(page, request.limit)))
            return answer_chain(maker.store, tuple, limited)

        async def give_batches(payload: bytes) -> bytes:
            await trio.sleep(after_s)
            return answer_batches(maker.store, encode(Digests(decode_digests(payload).digests[:batches])))

        self.network.slow[peer, REQUEST_CHAIN] = give_chain
        self.network.slow[peer, REQUEST_BATCHES] = give_batches
        for method in (REQUEST_SUMMARY, REQUEST_HASHES):
            self.network.script(peer, method, partial(self._answer, maker, method))

    def _answer(self, maker: Maker, method: str, payload: bytes) -> bytes:
        found = answer(method, payload, store=maker.store, tail=tuple, weight=maker.executor.weight)
        assert found is not None
        return found

    def says(self, peer: str, answer: Answer) -> None:
        """A peer gives the same to whatever it is asked."""
        self.network.script(peer, REQUEST_CHAIN, lambda _: answer)

    async def run(self) -> None:
        """Tick and catch up until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sync.run_chain)
            nursery.start_soon(self.sync.run_batches)
            while True:
                wait_ms = self.driver.core.next_tick_ms() - self.now_ms()
                if wait_ms <= 0:
                    self.driver.handle(Tick())
                await trio.sleep(max(wait_ms, 10) / 1000)

    @property
    def height(self) -> int:
        return self.store.head().height


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def made(*steps: Step, before: Maker | None = None, closing: int = 1) -> Maker:
    maker = Maker(closing) if before is None else before.copy(closing)
    for step in steps:
        maker.take(step)
    return maker


def lost(*terms: int) -> tuple[Step, ...]:
    return tuple(Step(lost=number) for number in terms)


COMMON = made(*lost(0, 0, 0))
AHEAD = made(*lost(4, 0, 0, 0, 2, 0, 0), before=COMMON)
EPOCHS = made(*lost(4, 0), Step(miner=0), *lost(0, 0, 0), Step(miner=1), *lost(0, 1, 0, 0), before=COMMON)
"""The same, and two epochs later."""
SLOWLY = made(*lost(1, 1, 1, 1, 1, 1, 1, 1, 0, 0), before=COMMON)
"""Nothing in it is final before the last microblocks."""
LONG = made(before=COMMON)
for _ in range(40):
    LONG.take(Step(raws=(LONG.pay(0, 1),)))
LEFT = {
    "older": COMMON.beside(*lost(1, 1)),
    "higher": COMMON.beside(*lost(*(1,) * 20)),
    "newer": COMMON.beside(*lost(7)),
    "a pin": COMMON.beside(Step(lost=1), Step(lost=1, miner=2), *lost(1)),
}
"""Certified microblocks behind what is common, and left by the others."""
OTHERS = {
    "alone": None,
    "silent": None,
    "empty": encode(ChainAnswer(())),
    "old": encode(ChainAnswer(tuple(commit.block for commit, _, _ in COMMON.commits))),
    "strange": encode(ChainAnswer(tuple(commit.block for commit, _, _ in AHEAD.commits[-2:]))),
    "known": encode(ChainAnswer(LEFT["older"])),
}
"""What peers say that are asked first; no fault can be found with any of it."""


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize(("ahead", "page"), [(AHEAD, 64), (EPOCHS, 3), (SLOWLY, 2)])
async def test_one_honest_peer_brings_who_holds_what_others_have_left(
    tmp_path: Path, autojump_clock: object, nursery: trio.Nursery, others: str, left: str, ahead: Maker, page: int
) -> None:
    bad = [] if others == "alone" else ["bad 1", "bad 2"]
    node = Node(tmp_path, COMMON, [*bad, "good"], preferred="bad 1")
    await node.has(LEFT[left])
    for peer in bad:
        node.says(peer, OTHERS[others])
    node.sync._useless["good"] = 1  # it was slow once
    node.serve("good", ahead, page=page)
    nursery.start_soon(node.run)
    await until(lambda: node.height >= ahead.store.head().height - 1, timeout_s=120)
    assert node.network.penalties == []


@pytest.mark.parametrize("left", LEFT)
async def test_peers_of_a_chain_bring_who_joins_and_holds_what_they_have_left_and_are_not_blamed(
    tmp_path: Path, autojump_clock: object, left: str
) -> None:
    """A leader may keep a certificate to itself and give it to one who is joining."""
    node = Node(tmp_path, COMMON, ["one", "two"])
    await node.has(LEFT[left])
    for peer in node.peers:
        node.serve(peer, EPOCHS)
    scout = Scout(node.network, GENESIS, FinalPoint(0, CHAIN))
    (group,) = group_chains((await scout.look(node.peers)).chains)
    peers = ChainPeers(
        network=node.network,
        scout=scout,
        group=group,
        witnesses=lambda: node.peers,
        known=lambda: known_of(node.store.head().block_hash, node.driver.certified_tail()),
    )

    def reached() -> int:
        return reached_height(node.height, node.driver.certified_tail())

    await peers.bring_all(node.new_sync(peers, lambda: ["chain"]), reached)
    await peers.blame_claimants(reached(), node.store.head())
    assert node.height >= EPOCHS.store.head().height - 1
    assert node.network.penalties == []


async def test_who_says_again_and_again_that_others_are_ahead_keeps_nobody_from_asking_for_the_right_thing(
    tmp_path: Path, autojump_clock: object, nursery: trio.Nursery
) -> None:
    node = Node(tmp_path, COMMON, ["bad", "good"], preferred="bad")
    await node.has(LEFT["older"])

    async def distract(_payload: bytes) -> bytes:
        await trio.sleep(0.1)
        for _ in range(2 * MAX_EARLY + 1):
            node.driver.handle(Received(Reveal(node.driver.core.epoch.number + 1, bytes(96))))
        node.sync.want_chain()
        return encode(ChainAnswer(()))

    node.network.slow["bad", REQUEST_CHAIN] = distract
    node.sync._useless["good"] = 1
    node.serve("good", EPOCHS, page=3)
    nursery.start_soon(node.run)
    await until(lambda: node.height >= EPOCHS.store.head().height - 1, timeout_s=60)


@pytest.mark.parametrize(("page", "batches"), [(1, 64), (64, 1)])
async def test_who_gives_little_for_its_time_keeps_nobody_from_quicker_peers(
    tmp_path: Path, autojump_clock: object, nursery: trio.Nursery, page: int, batches: int
) -> None:
    """As a member could whom all like to ask: so slowly that one never catches up."""
    node = Node(tmp_path, COMMON, ["slow", "good"], preferred="slow")
    node.serve("slow", LONG, page, batches, after_s=9.5)
    node.serve("good", LONG)
    nursery.start_soon(node.run)
    await until(lambda: node.height >= LONG.store.head().height - 1, timeout_s=60)


async def test_a_slow_peer_is_enough(tmp_path: Path, autojump_clock: object, nursery: trio.Nursery) -> None:
    node = Node(tmp_path, COMMON, ["slow"])
    node.serve("slow", AHEAD, page=1, after_s=9.5)
    nursery.start_soon(node.run)
    await until(lambda: node.height >= AHEAD.store.head().height - 1, timeout_s=300)


async def test_who_was_of_no_use_while_others_were_is_asked_after_them(
    tmp_path: Path, autojump_clock: object, nursery: trio.Nursery
) -> None:
    node = Node(tmp_path, COMMON, ["bad", "good"], preferred="bad")
    node.says("bad", encode(ChainAnswer(())))
    node.serve("good", AHEAD)
    nursery.start_soon(node.run)
    node.sync.want_chain()
    await until(lambda: node.height >= AHEAD.store.head().height - 1)
    node.network.asked.clear()
    node.sync.want_chain()
    await until(lambda: node.network.asked)
    assert node.network.asked[0] == ("good", REQUEST_CHAIN)


@pytest.mark.parametrize("others", ["known", "strange"])
async def test_who_is_told_nothing_of_use_is_not_catching_up(
    tmp_path: Path, autojump_clock: object, others: str
) -> None:
    node = Node(tmp_path, COMMON, ["bad", "silent"], preferred="bad")
    await node.has(LEFT["older"])
    seen: list[bool] = []

    def ask(_payload: bytes) -> None:
        seen.append(node.sync.catching_up)

    node.says("bad", OTHERS[others])
    node.network.script("silent", REQUEST_CHAIN, ask)
    await node.sync.catch_up()
    assert seen == [False]
