# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching what is missing: certified microblocks when others are ahead, batches that gossip did not bring.

What a peer answers is trusted in nothing: microblocks go to the core, which checks their certificates; a batch is taken only
when it was asked for; and its signatures count as checked only when a certificate that the core has checked covers it.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby
from typing import Protocol

import structlog
import trio

from consensus.block_tree import MAX_UNCOMMITTED, CertifiedMicroblock
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.store import Store
from node.batches import BatchPool
from node.wire import (
    MAX_CHAIN_BLOCKS,
    MAX_DIGESTS,
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    ChainRequest,
    Digests,
    decode_batches_answer,
    decode_chain_answer,
)
from p2p.errors import RequestFailed

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 10.0
"""A peer that takes longer for 4 MiB is too slow to catch up from."""
MAX_WANTED = 4096
"""Batches being fetched at once for the core; more are asked for again when the core asks again."""
MAX_ANNOUNCED = MAX_DIGESTS
"""Announced batches waiting to be fetched from one peer: one message of it. It announces again what is still missing."""
MAX_ANNOUNCERS = 64
"""Peers other than members whose announcements wait."""
ANNOUNCERS_ASKED = 4
"""Members asked at once for what they announced, and as many others: a silent one takes a place for as long as a request may last. The
answers of all take 32 MiB at most."""
ALONE_S = 1.0
"""How long one announcer alone is asked for a batch: longer than most answers take."""
_ROUNDS = 3
"""How often all peers are asked for a batch before waiting for the core to ask again."""
_MAX_PAGES = MAX_UNCOMMITTED // MAX_CHAIN_BLOCKS + 1
"""Answers in a row that may bring nothing new: as many as a core can take before it has to commit."""
SLOW_S = 2.0
"""A peer is judged by its speed when its turn has lasted so long."""
LEAST_BLOCKS_PER_S = 4
"""Below this a peer's turn ends: however useful, it must not keep a node from quicker ones."""


class Asker(Protocol):
    """The part of the network that is needed here."""

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer; raises `RequestFailed`."""
        ...

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        """Note a peer's fault."""
        ...


class Take(Protocol):
    """How fetched batches are taken; returns why one was refused, or an empty text."""

    async def __call__(
        self, raws: Sequence[bytes], *, asked: frozenset[bytes], certified: frozenset[bytes], source: str | None
    ) -> str:
        """Take encodings from those `asked` for; a quorum has checked the `certified`; `source` announced them unasked."""
        ...


class Sync:
    """Catches up with the network; at most one chain fetch, one batch fetch and one fetch from each of a few announcers run at a time."""

    def __init__(
        self,
        *,
        network: Asker,
        peers: Callable[[], Sequence[str]],
        prefers: Callable[[str], bool],
        pool: BatchPool,
        store: Store,
        take_chain: Callable[[tuple[CertifiedMicroblock, ...]], Awaitable[str]],
        certified_tail: Callable[[], Sequence[CertifiedMicroblock]],
        epoch: Callable[[], int],
        take_batches: Take,
        rng: random.Random,
    ) -> None:
        """`take_chain` gives microblocks of one epoch to the core and returns why it refuses, or "".

        Peers that `prefers` likes are asked first. `certified_tail` gives the uncommitted microblocks whose certificates the
        core has checked, `epoch` the epoch that the core is in.
        """
        self._network = network
        self._peers = peers
        self._prefers = prefers
        self._pool = pool
        self._store = store
        self._take_chain = take_chain
        self._certified_tail = certified_tail
        self._epoch = epoch
        self._take_batches = take_batches
        self._rng = rng
        self._chain_wanted = trio.Event()
        self._batches_wanted = trio.Event()
        self._announced_some = trio.Event()
        self._wanted: dict[bytes, None] = {}
        self._announced: dict[str, dict[bytes, None]] = {}
        self._asked: dict[str, frozenset[bytes]] = {}
        # Peers that were of no use lately; they are asked last. Bounded: only connected peers are kept.
        self._useless: Counter[str] = Counter()
        self._under_way: frozenset[bytes] = frozenset()
        self.catching_up = False
        """Whether microblocks are being fetched."""

    def want_chain(self) -> None:
        """Others are ahead."""
        self._chain_wanted.set()

    def want_batches(self, digests: Sequence[bytes]) -> None:
        """A microblock names batches that are not here."""
        for digest in self._pool.missing(digests):
            if len(self._wanted) < MAX_WANTED and digest not in self._under_way:
                self._wanted.setdefault(digest)
        if self._wanted:
            self._batches_wanted.set()

    def announced(self, source: str, digests: Sequence[bytes]) -> None:
        """A peer says that it has batches. They wait apart from those that the core needs: anyone can announce anything."""
        waiting = self._announced.get(source, {})
        for digest in self._pool.missing(digests):
            if len(waiting) < MAX_ANNOUNCED:
                waiting.setdefault(digest)
        has_room = len(self._announced) < MAX_ANNOUNCERS or self._prefers(source)
        if waiting and (source in self._announced or has_room):
            self._announced[source] = waiting
            self._announced_some.set()

    async def run_chain(self) -> None:
        """Fetch microblocks whenever they are wanted."""
        while True:
            await self._chain_wanted.wait()
            self._chain_wanted = trio.Event()
            await self.catch_up()

    async def run_batches(self) -> None:
        """Fetch batches whenever they are wanted."""
        while True:
            await self._batches_wanted.wait()
            self._batches_wanted = trio.Event()
            for _ in range(_ROUNDS):
                await self._fetch_wanted()
                if not self._wanted:
                    break
            self._wanted.clear()

    async def run_announced(self) -> None:
        """Fetch what peers announce, from each what it announced, from a few of them at once."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._announced_some.wait()
                self._announced_some = trio.Event()
                while found := self._next_announced():
                    source, digests = found
                    self._asked[source] = frozenset(digests)
                    nursery.start_soon(self._fetch_announced, source, digests)

    def _next_announced(self) -> tuple[str, tuple[bytes, ...]] | None:
        """Take an announcement whose turn it is, if there is a place. Members have their own, so that strangers never hold them up."""
        for source, waiting in tuple(self._announced.items()):
            missing = self._pool.missing(tuple(waiting)) if source in self._peers() else ()
            alike = [digests for other, digests in self._asked.items() if self._prefers(other) == self._prefers(source)]
            free = tuple(digest for digest in missing if not any(digest in digests for digests in alike))
            if not missing:
                del self._announced[source]
            elif free and source not in self._asked and len(alike) < ANNOUNCERS_ASKED:
                # What is being fetched from others is announced again if it does not come.
                del self._announced[source]
                return source, free
        return None

    async def _fetch_announced(self, source: str, digests: Sequence[bytes]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._release, source)
            await self._ask_batches(source, digests, source=source)
            nursery.cancel_scope.cancel()
        del self._asked[source]
        self._announced_some.set()

    async def _release(self, source: str) -> None:
        """Let others be asked for the same when an announcer is slow; most announce the same batches, and one is enough."""
        await trio.sleep(ALONE_S)
        self._asked[source] = frozenset()
        self._announced_some.set()

    async def catch_up(self) -> None:
        """Ask peers, the useful ones first, until none has more; a slow one loses its turn, and all are asked anew."""
        in_vain: list[str] = []
        for peer in self._ordered_peers():
            since_s, since_height = trio.current_time(), self._store.head().height
            is_of_use = is_slow = False
            while not is_slow and await self._draw_on(peer):
                is_of_use = True
                lasted_s, gained = trio.current_time() - since_s, self._store.head().height - since_height
                is_slow = lasted_s > SLOW_S and gained < lasted_s * LEAST_BLOCKS_PER_S
            if not is_of_use:
                in_vain.append(peer)
                continue
            # Others had more than those before: whoever can answer may say nothing of use each time.
            self._useless.update(in_vain)
            in_vain.clear()
            if is_slow:
                self._useless[peer] += 1
                if self.catching_up:  # else what came meanwhile was not of this peer
                    self.want_chain()
                break
            del self._useless[peer]
        self.catching_up = False

    async def _draw_on(self, peer: str) -> bool:
        """Ask a peer, page by page, for what follows the committed head; tells whether anything was of use.

        What follows our newest certified microblock would be less, but that one may be beside what the others went on with; and
        theirs, or what closes an epoch there, may take several answers before it is the newest or final.
        """
        before = self._reached()
        after_height, newest, pages = -1, before[0], 0
        while self._reached() == before and newest > after_height and pages < _MAX_PAGES:
            after_height, pages = newest, pages + 1
            newest = await self._bring(peer, after_height)
        return self._reached() != before

    async def _bring(self, peer: str, after_height: int) -> int:
        """Ask a peer once for what follows a height; returns how far its answer goes, -1 when it is of no use."""
        newest = -1
        blocks = await self._ask_chain(peer, after_height)
        if blocks:
            before = self._reached()
            # First the certificates, then the batches: only what a quorum has checked is taken unchecked.
            refused = await self._take(blocks)
            # Anybody can answer with what is here already, or follows nothing here.
            self.catching_up |= self._reached() != before
            if refused:
                self._blame(peer, f"chain: {refused}")
            else:
                newest = blocks[-1].signed.microblock.header.height
        await self._fetch_certified(peer)
        return newest

    async def _take(self, blocks: tuple[CertifiedMicroblock, ...]) -> str:
        """Give microblocks to the core epoch by epoch: who certifies the next one is known when the one before is executed."""
        for _, same_epoch in groupby(blocks, key=_epoch_of):
            refused = await self._take_chain(tuple(same_epoch))
            if refused:
                return refused
        return ""

    def _reached(self) -> tuple[int, int]:
        """Return the heights of the newest committed and of the newest certified microblock here."""
        tail = self._certified_tail()
        committed = self._store.head().height
        return committed, tail[-1].signed.microblock.header.height if tail else committed

    async def _ask_chain(self, peer: str, after_height: int) -> tuple[CertifiedMicroblock, ...]:
        request = encode(ChainRequest(self._epoch(), after_height, MAX_CHAIN_BLOCKS))
        try:
            raw = await self._network.request(peer, REQUEST_CHAIN, request, timeout_s=REQUEST_TIMEOUT_S)
            return decode_chain_answer(raw).blocks
        except RequestFailed as error:
            self._useless[peer] += 1
            log.debug("chain request failed", peer=peer, error=str(error))
        except InvalidInput as error:
            self._blame(peer, f"chain answer: {error}")
        return ()

    async def _fetch_certified(self, peer: str) -> None:
        """Bring the batches of the microblocks whose certificates the core has checked, whoever sent them."""
        since_s = trio.current_time()
        while missing := self._pool.missing(_batches_of(self._certified_tail())):
            # The core asks for the same ones meanwhile.
            self._under_way = frozenset(missing[:MAX_DIGESTS])
            got = await self._ask_batches(peer, missing[:MAX_DIGESTS])
            self._under_way = frozenset()
            if not got or trio.current_time() > since_s + SLOW_S:
                return

    async def _fetch_wanted(self) -> None:
        for peer in self._ordered_peers():
            missing = self._pool.missing(tuple(self._wanted))
            self._wanted = dict.fromkeys(missing)
            if not missing:
                return
            await self._ask_batches(peer, missing[:MAX_DIGESTS])
        self._wanted = dict.fromkeys(self._pool.missing(tuple(self._wanted)))

    async def _ask_batches(self, peer: str, digests: Sequence[bytes], *, source: str | None = None) -> int:
        """Ask one peer; returns how many of the digests have arrived."""
        request = encode(Digests(tuple(digests)))
        try:
            raw = await self._network.request(peer, REQUEST_BATCHES, request, timeout_s=REQUEST_TIMEOUT_S)
            batches = decode_batches_answer(raw).batches
        except RequestFailed as error:
            self._useless[peer] += 1
            log.debug("batch request failed", peer=peer, error=str(error))
            return 0
        except InvalidInput as error:
            self._blame(peer, f"batches answer: {error}")
            return 0
        certified = frozenset(_batches_of(self._certified_tail()))
        refused = await self._take_batches(batches, asked=frozenset(digests), certified=certified, source=source)
        if refused:
            self._blame(peer, f"batches: {refused}")
        arrived = len(digests) - len(self._pool.missing(digests))
        if arrived:
            del self._useless[peer]
        return arrived

    def _blame(self, peer: str, fault: str) -> None:
        self._useless[peer] += 1
        self._network.penalise(peer, 20, fault)

    def _ordered_peers(self) -> list[str]:
        """Return the peers: those that were of use first, then as preferred, in random order among equals."""
        peers = list(self._peers())
        self._rng.shuffle(peers)
        self._useless = Counter({peer: self._useless[peer] for peer in peers if self._useless[peer]})
        return sorted(peers, key=lambda peer: (self._useless[peer], not self._prefers(peer)))


def _epoch_of(block: CertifiedMicroblock) -> int:
    return block.signed.microblock.header.epoch


def _batches_of(blocks: Iterable[CertifiedMicroblock]) -> list[bytes]:
    return [digest for block in blocks for digest in block.signed.microblock.batches]
