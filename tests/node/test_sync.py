# SPDX-License-Identifier: GPL-3.0-or-later
"""Catching up: a peer that answers rubbish, nothing, or a made-up chain costs time and its own score, nothing else."""

import random
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from consensus.block_tree import CertifiedMicroblock
from ledger import testing
from ledger.codec import decode, encode
from ledger.errors import InvalidInput
from node import sync as module
from node.batches import Batch, BatchPool, open_asked
from node.sync import Sync
from node.wire import (
    MAX_DIGESTS,
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    BatchesAnswer,
    ChainAnswer,
    ChainRequest,
    decode_digests,
)
from tests.node.kit import (
    CHAIN,
    Answer,
    ScriptedNetwork,
    batch_of,
    chain_of,
    forged,
    memory_store,
    not_available,
    pay,
    until,
)

BATCHES = [batch_of(pay(0, nonce)) for nonce in range(6)]
FORGED = BatchesAnswer((msgspec.msgpack.encode([forged(pay(1, 0))]),))


class TrustingCore:
    """Stands for the core: commits a microblock when its batches are here, refuses what is not on `true_chain`."""

    def __init__(self, true_chain: Sequence[CertifiedMicroblock]) -> None:
        self.store = memory_store()
        self.pool = BatchPool(self.store)
        self._true_chain = list(true_chain)
        self._tail: list[CertifiedMicroblock] = []
        self.sources: list[str | None] = []

    async def take_chain(self, blocks: tuple[CertifiedMicroblock, ...]) -> str:
        await trio.lowlevel.checkpoint()
        for block in blocks:
            height = block.signed.microblock.header.height
            if height <= self.store.head().height + len(self._tail):
                continue  # as the core does: looked at no further
            if block not in self._true_chain:
                return "certificate is not signed"
            self._tail.append(block)
        self.commit()
        return ""

    def tail(self) -> Sequence[CertifiedMicroblock]:
        return tuple(self._tail)

    async def take_batches(
        self, raws: Sequence[bytes], *, asked: frozenset[bytes], certified: frozenset[bytes], source: str | None
    ) -> str:
        await trio.lowlevel.checkpoint()
        self.sources.append(source)
        outcomes = open_asked(raws, asked, certified, testing.rules_of(CHAIN))
        self.pool.add([outcome for outcome in outcomes if isinstance(outcome, Batch)])
        self.commit()
        return next((str(outcome) for outcome in outcomes if isinstance(outcome, InvalidInput)), "")

    def commit(self) -> None:
        while self._tail:
            (digest,) = self._tail[0].signed.microblock.batches
            batch = self.pool.get(digest)
            if batch is None:
                return
            testing.commit(self.store, [batch.transactions[0].raw])
            self.pool.remove([digest])
            self._tail.pop(0)


class World:
    """One node that catches up with scripted peers."""

    def __init__(self, nursery: trio.Nursery, peers: list[str], preferred: str = "") -> None:
        self.network, self.peers = ScriptedNetwork(), peers
        self.core = TrustingCore(chain_of(*BATCHES))
        self.sync = Sync(
            network=self.network,
            peers=lambda: self.peers,
            prefers=lambda peer: peer == preferred,
            pool=self.core.pool,
            store=self.core.store,
            take_chain=self.core.take_chain,
            certified_tail=self.core.tail,
            epoch=lambda: 0,
            take_batches=self.core.take_batches,
            rng=random.Random(7),
        )
        for task in (self.sync.run_chain, self.sync.run_batches, self.sync.run_announced):
            nursery.start_soon(task)

    def honest(self, peer: str, blocks_at_once: int = 2, batches_at_once: int = 2) -> None:
        chain, known = chain_of(*BATCHES), {batch.digest: batch.raw for batch in BATCHES}

        def give_chain(payload: bytes) -> bytes:
            after = decode(ChainRequest, payload, 64).after_height
            return encode(ChainAnswer(chain[after : after + blocks_at_once]))

        def give_batches(payload: bytes) -> bytes:
            found = [known[digest] for digest in decode_digests(payload).digests if digest in known]
            return encode(BatchesAnswer(tuple(found[:batches_at_once])))

        self.network.script(peer, REQUEST_CHAIN, give_chain)
        self.network.script(peer, REQUEST_BATCHES, give_batches)

    def says(self, peer: str, method: str, answer: Answer) -> None:
        self.network.script(peer, method, lambda _: answer)

    @property
    def height(self) -> int:
        return self.core.store.head().height


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def test_an_honest_peer_brings_everything_in_parts(autojump_clock: object, nursery: trio.Nursery) -> None:
    world = World(nursery, ["good"])
    world.honest("good", blocks_at_once=2, batches_at_once=1)
    world.sync.want_chain()
    await until(lambda: world.height == len(BATCHES))
    await until(lambda: not world.sync.catching_up)
    assert world.network.penalties == []


USELESS: dict[str, Callable[[World, str], None]] = {
    "silent": lambda world, peer: world.says(peer, REQUEST_CHAIN, None),
    "refusing": lambda world, peer: world.says(peer, REQUEST_CHAIN, not_available()),
    "empty": lambda world, peer: world.says(peer, REQUEST_CHAIN, encode(ChainAnswer(()))),
    "garbage": lambda world, peer: world.says(peer, REQUEST_CHAIN, b"\xc1rubbish"),
    "huge": lambda world, peer: world.says(peer, REQUEST_CHAIN, bytes(9 * 2**20)),
    "made_up": lambda world, peer: world.says(peer, REQUEST_CHAIN, encode(ChainAnswer(chain_of(batch_of(pay(5, 0)))))),
}


@pytest.mark.parametrize("kind", USELESS)
async def test_useless_peers_only_cost_time(autojump_clock: object, nursery: trio.Nursery, kind: str) -> None:
    world = World(nursery, ["bad 1", "bad 2", "good"], preferred="bad 1")
    USELESS[kind](world, "bad 1")
    USELESS[kind](world, "bad 2")
    world.honest("good")
    world.sync.want_chain()
    await until(lambda: world.height == len(BATCHES), timeout_s=120)
    at_fault = kind in ("garbage", "huge", "made_up")
    assert ("bad 1" in world.network.blamed()) is at_fault
    assert "good" not in world.network.blamed()


async def test_a_peer_that_was_of_no_use_is_asked_last_next_time(autojump_clock: object, nursery: trio.Nursery) -> None:
    world = World(nursery, ["silent", "good"], preferred="silent")
    world.honest("good")
    world.says("silent", REQUEST_CHAIN, None)
    world.sync.want_chain()
    await until(lambda: world.height == len(BATCHES), timeout_s=60)
    await until(lambda: not world.sync.catching_up, timeout_s=60)
    world.network.asked.clear()
    world.sync.want_chain()
    await until(lambda: world.network.asked)
    assert world.network.asked[0] == ("good", REQUEST_CHAIN)


async def test_batches_count_as_certified_only_by_what_the_core_has_checked(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    """The core passes over microblocks that it has; a peer must not smuggle batches in with them."""
    world = World(nursery, ["good"])
    world.honest("good")
    world.sync.want_chain()
    await until(lambda: world.height == len(BATCHES))
    smuggled = batch_of(pay(1, 0))
    old = chain_of(smuggled)[0]
    world.peers[:] = ["evil"]
    world.says("evil", REQUEST_CHAIN, encode(ChainAnswer((old,))))
    world.says("evil", REQUEST_BATCHES, encode(FORGED))
    world.network.asked.clear()
    world.sync.want_chain()
    await until(lambda: ("evil", REQUEST_CHAIN) in world.network.asked)
    await until(lambda: not world.sync.catching_up)
    assert ("evil", REQUEST_BATCHES) not in world.network.asked
    assert len(world.core.pool) == 0


async def test_wrong_and_unasked_batches_are_refused_and_another_peer_is_asked(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    world = World(nursery, ["evil", "good"], preferred="evil")
    world.honest("evil")
    world.says("evil", REQUEST_BATCHES, encode(BatchesAnswer((batch_of(pay(3, 0)).raw, *FORGED.batches))))
    world.honest("good")
    world.sync.want_chain()
    await until(lambda: world.height == len(BATCHES), timeout_s=60)
    assert world.network.blamed() == {"evil"}
    assert len(world.core.pool) == 0


async def test_what_the_core_needs_is_asked_of_everyone(autojump_clock: object, nursery: trio.Nursery) -> None:
    world = World(nursery, ["silent", "empty", "good"])
    world.says("silent", REQUEST_BATCHES, None)
    world.says("empty", REQUEST_BATCHES, encode(BatchesAnswer(())))
    world.honest("good")
    wanted = [batch.digest for batch in BATCHES]
    world.sync.want_batches(wanted)
    await until(lambda: not world.core.pool.missing(wanted), timeout_s=60)
    assert set(world.core.sources) == {None}


async def test_announcements_never_crowd_out_what_the_core_needs(
    autojump_clock: object, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(nursery, ["flood", "good"])
    world.says("flood", REQUEST_BATCHES, None)
    world.honest("good")
    made_up = [bytes([number % 256, number // 256]) * 16 for number in range(2 * module.MAX_WANTED)]
    for start in range(0, len(made_up), MAX_DIGESTS):
        world.sync.announced("flood", made_up[start : start + MAX_DIGESTS])
    for number in range(2 * module.MAX_ANNOUNCERS):
        world.sync.announced(f"stranger {number}", made_up[:1])
    waiting = sum(len(digests) for digests in world.sync._announced.values())
    assert waiting <= module.MAX_ANNOUNCED + module.MAX_ANNOUNCERS
    wanted = [batch.digest for batch in BATCHES]
    world.sync.want_batches(wanted)
    await until(lambda: not world.core.pool.missing(wanted), timeout_s=60)


async def test_announced_batches_are_fetched_from_who_announced_them_at_its_cost(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    world = World(nursery, ["one", "two"])
    world.honest("one")
    world.sync.announced("one", [BATCHES[0].digest])
    await until(lambda: not world.core.pool.missing([BATCHES[0].digest]))
    assert world.network.asked == [("one", REQUEST_BATCHES)]
    assert world.core.sources == ["one"]


async def test_silent_strangers_hold_up_neither_members_nor_each_other_for_long(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    strangers = [f"stranger {number}" for number in range(module.MAX_ANNOUNCERS)]
    world = World(nursery, [*strangers, "member", "honest"], preferred="member")
    world.honest("member")
    world.honest("honest")
    for number, stranger in enumerate(strangers[:-1]):
        world.sync.announced(stranger, [bytes([number]) * 32, BATCHES[2].digest])
    world.sync.announced("honest", [BATCHES[1].digest])
    await wait_all_tasks_blocked()
    for stranger in strangers[-1:] + strangers[: module.MAX_ANNOUNCERS]:
        world.sync.announced(stranger, [BATCHES[0].digest])
    assert len(world.sync._announced) == module.MAX_ANNOUNCERS
    # However many wait, there is room for a member's.
    world.sync.announced("member", [BATCHES[2].digest])
    await until(lambda: not world.core.pool.missing([BATCHES[2].digest]))
    assert autojump_clock.current_time() < module.REQUEST_TIMEOUT_S
    rounds = -(-len(strangers) // module.ANNOUNCERS_ASKED)
    await until(lambda: not world.core.pool.missing([BATCHES[1].digest]), timeout_s=700)
    assert autojump_clock.current_time() <= rounds * module.REQUEST_TIMEOUT_S


async def test_an_announcer_is_asked_one_thing_at_a_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Who announces again and again takes no more than one place of those that are asked at once."""
    world = World(nursery, ["silent", "honest"])
    world.honest("honest")
    for batch in BATCHES[1:]:
        world.sync.announced("silent", [batch.digest])
        await wait_all_tasks_blocked()
    assert world.network.asked == [("silent", REQUEST_BATCHES)]
    world.sync.announced("honest", [BATCHES[0].digest])
    await until(lambda: not world.core.pool.missing([BATCHES[0].digest]))
    assert autojump_clock.current_time() < module.REQUEST_TIMEOUT_S
    # Its other announcements have their turn afterwards.
    await until(lambda: world.network.asked.count(("silent", REQUEST_BATCHES)) == 2, timeout_s=60)


async def test_what_many_announce_is_fetched_from_one_of_them(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    world = World(nursery, ["one", "two", "three"])
    for peer in ("one", "two", "three"):
        world.honest(peer)
        world.sync.announced(peer, [BATCHES[0].digest])
    await until(lambda: not world.core.pool.missing([BATCHES[0].digest]))
    await wait_all_tasks_blocked()
    assert world.network.asked == [("one", REQUEST_BATCHES)]
    assert world.sync._announced == {}


async def test_who_announces_and_is_silent_keeps_a_batch_from_others_only_for_a_moment(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    world = World(nursery, ["silent", "honest"])
    world.honest("honest")
    for peer in ("silent", "honest"):
        world.sync.announced(peer, [BATCHES[0].digest])
    await until(lambda: not world.core.pool.missing([BATCHES[0].digest]))
    assert world.network.asked == [("silent", REQUEST_BATCHES), ("honest", REQUEST_BATCHES)]
    assert autojump_clock.current_time() < 2 * module.ALONE_S


async def test_nothing_happens_without_peers(autojump_clock: object, nursery: trio.Nursery) -> None:
    world = World(nursery, [])
    world.sync.want_chain()
    world.sync.want_batches([BATCHES[0].digest])
    world.sync.announced("gone", [BATCHES[0].digest])
    await wait_all_tasks_blocked()
    assert world.network.asked == []
    assert not world.sync.catching_up
