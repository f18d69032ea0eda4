# SPDX-License-Identifier: GPL-3.0-or-later
"""The peers of one chain as if they were one peer, for `node.sync.Sync`: they take turns, and everyone else is asked whether they lie.

What a peer gives is compared, microblock by microblock, with what the others have committed, before the core sees it. So as long
as one of the others is honest, no peer can slip in a branch of an old committee, however many pretend to have the honest chain.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import msgspec
import structlog
import trio

from consensus.block_tree import CertifiedMicroblock
from ledger.blocks import MicroblockHeader
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.store import Head
from node.chains import ChainGroup, Stretch, stretch_of
from node.scout import LIE_POINTS, RUBBISH_POINTS, Scout
from node.sync import Asker, Sync
from node.wire import REQUEST_CHAIN, ChainAnswer, decode_batches_answer, decode_chain_answer
from p2p.errors import RequestFailed, RequestFailure

log = structlog.get_logger()

MAX_FAILURES = 3
"""Requests in a row that a peer may leave without a useful answer before it is not asked again."""
MUTE_S = 60.0
"""How long a witness is not asked that has left so many questions in a row without an answer, and after that each time it leaves one more.
So silence costs a seventh of the time, and is not the end: a peer that is busy for a moment may be the only honest one."""
RETRY_S = 0.5
"""Pause after all have been asked in vain."""
PATIENCE_S = 20.0
"""A peer is judged by its speed after it has been waited for this long; two of its answers may then have been slow."""
LEAST_BLOCKS_PER_S = 4
"""Below this, and below the bytes, a peer is too slow: a chain of a year at one microblock in ten seconds takes nine days already."""
LEAST_BYTES_PER_S = 64 * 1024
"""Half a megabit: full microblocks come at less than four a second."""

Known = Callable[[], Mapping[bytes, MicroblockHeader | None]]
"""Gives the newest committed microblock here and the certified ones behind it; see `node.chains.stretch_of`."""


class Split(msgspec.Struct, frozen=True):
    """Peers that were taken for one chain's contradict each other."""

    height: int
    """Lowest microblock in which they differ; nothing of it was taken."""
    one: frozenset[str]
    """The peer that gave it, and those that have it, too."""
    others: frozenset[str]
    """Those that have another one."""


class _Record(msgspec.Struct):
    """What came of asking one peer."""

    failures: int = 0
    """Requests in a row without a useful answer."""
    waited_s: float = 0.0
    """Time spent waiting for it."""
    given_bytes: int = 0
    """Bytes that it gave."""
    given_blocks: int = 0
    """Microblocks that it gave."""

    @property
    def is_slow(self) -> bool:
        few = self.given_blocks < self.waited_s * LEAST_BLOCKS_PER_S
        return self.waited_s > PATIENCE_S and few and self.given_bytes < self.waited_s * LEAST_BYTES_PER_S


class ChainPeers:
    """Implements `node.sync.Asker` for one group of peers; whom it is asked to ask does not matter."""

    def __init__(
        self, *, network: Asker, scout: Scout, group: ChainGroup, witnesses: Callable[[], Collection[str]], known: Known
    ) -> None:
        """`witnesses` gives the peers whose word is compared."""
        self._network = network
        self._scout = scout
        self._group = group
        self._witnesses = witnesses
        self._known = known
        self._records = {peer: _Record() for peer in group.peers}
        self._order = list(group.peers)
        self._unheard: Counter[str] = Counter()
        self._mute_until_s: dict[str, float] = {}
        self._empty: Counter[str] = Counter()
        # The end of the last answer, when that was in the middle of what closes an epoch.
        self._closing: Mapping[bytes, MicroblockHeader] = {}
        self._last = ""
        self.split: Split | None = None
        """Who contradicts whom, once that is seen."""
        self.is_stopped = False
        """Whether nothing more is asked of them."""
        self.answered: set[str] = set()
        """Peers of the group that gave something useful, or have confirmed what others gave."""

    def claimants(self, above_height: int) -> dict[str, bool]:
        """Return the peers that say to have more than so much, and whether they have answered when asked for it: with nothing."""
        taller = [peer for peer, summary in self._group.peers.items() if summary.height > above_height]
        return {peer: self._empty[peer] > 0 for peer in taller}

    async def blame_claimants(self, above_height: int, head: Head) -> None:
        """Penalise the peers that say to have more than so much and have nothing more when asked, though they have our `head`."""
        for peer, has_answered in self.claimants(above_height).items():
            known = await self._scout.hashes(peer, [head.height]) if has_answered else None
            if known is not None and known.get(head.height) == head.block_hash:
                claim = self._group.peers[peer].height
                reason = f"it says to have microblock {claim} and shows none behind microblock {above_height}"
                self._network.penalise(peer, LIE_POINTS, reason)

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask the peers one after the other until one has something; raises `RequestFailed` when none answers."""
        empty: bytes | None = None
        for peer in tuple(self._order):
            if self.is_stopped:
                break
            try:
                raw, useful = await self._ask(peer, method, payload, timeout_s)
            except RequestFailed as error:
                log.debug("a chain's peer does not answer", peer=peer, error=str(error))
                self._failed(peer)
                continue
            except InvalidInput as error:
                self._last = peer
                self.penalise(peer, RUBBISH_POINTS, f"{method} answer: {error}")
                continue
            if not useful:
                empty = raw
                self._failed(peer)
                continue
            self._last = peer
            self._records[peer].failures = 0
            # The next one is asked next: all share the load.
            self._order.remove(peer)
            if not self._records[peer].is_slow:
                self._order.append(peer)
            return raw
        if empty is not None and not self.is_stopped:
            return empty
        raise RequestFailed(RequestFailure.NOT_AVAILABLE, peer_id, method, "none of the chain's peers has it")

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        """Blame the peer that gave the last answer, and do not ask it again."""
        self._network.penalise(self._last, points, reason)
        if self._last in self._order:
            self._order.remove(self._last)

    async def _ask(self, peer: str, method: str, payload: bytes, timeout_s: float) -> tuple[bytes, bool]:
        record, before_s = self._records[peer], trio.current_time()
        try:
            raw = await self._network.request(peer, method, payload, timeout_s=timeout_s)
        finally:
            record.waited_s += trio.current_time() - before_s
        record.given_bytes += len(raw)
        if method != REQUEST_CHAIN:
            return raw, bool(decode_batches_answer(raw).batches)
        blocks = decode_chain_answer(raw).blocks
        stretch = stretch_of(blocks, {**self._known(), **self._closing}, self._group.peers[peer].height)
        self._closing = stretch.closing
        if not stretch.hashes:
            # What only closes an epoch is of use, too.
            self._empty[peer] += not stretch.blocks
            return encode(ChainAnswer(stretch.blocks)), bool(stretch.blocks)
        record.given_blocks += len(stretch.hashes)
        if not await self._is_confirmed(peer, stretch):
            raise RequestFailed(RequestFailure.NOT_AVAILABLE, peer, method, "others have committed something else")
        self.answered.add(peer)
        return encode(ChainAnswer(stretch.blocks)), True

    async def _is_confirmed(self, peer: str, stretch: Stretch) -> bool:
        """Compare with what the others have committed; False and a `split` when it differs."""
        heights = list(stretch.hashes)
        words: dict[str, dict[int, bytes]] = {}

        async def ask(witness: str) -> None:
            while (known := await self._scout.hashes(witness, heights)) is None:
                self._unheard[witness] += 1
                if self._unheard[witness] >= MAX_FAILURES:
                    self._mute_until_s[witness] = trio.current_time() + MUTE_S
                    return
                await trio.sleep(RETRY_S)
            self._unheard[witness] = 0
            words[witness] = known

        now_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for witness in self._witnesses():
                if witness != peer and self._mute_until_s.get(witness, now_s) <= now_s:
                    nursery.start_soon(ask, witness)
        differing = {
            witness: [height for height, block_hash in known.items() if block_hash != stretch.hashes[height]]
            for witness, known in words.items()
        }
        others = frozenset(witness for witness, heights in differing.items() if heights)
        if others:
            height = min(min(heights) for heights in differing.values() if heights)
            self.is_stopped = True
            self.split = Split(height, frozenset({peer, *words} - others), others)
            log.warning("peers of one chain contradict each other", height=height, one=len(words), others=len(others))
            return False
        self.answered.update(witness for witness in words if witness in self._group.peers)
        return True

    async def bring_all(self, sync: Sync, reached: Callable[[], int]) -> None:
        """Catch up, with a `sync` that asks here, to whatever the peers say to have; ends early when they are split or give no more."""
        most_idle, idle = MAX_FAILURES + len(self._order), 0
        while idle < most_idle:
            before = reached()
            await sync.catch_up()
            if self.is_stopped or not self._order or not self.claimants(reached()):
                return
            if reached() > before:
                idle = 0
            else:
                idle += 1
                await trio.sleep(RETRY_S)

    def _failed(self, peer: str) -> None:
        record = self._records[peer]
        record.failures += 1
        if record.failures >= MAX_FAILURES or record.is_slow:
            self._order.remove(peer)


def reached_height(head_height: int, tail: Collection[CertifiedMicroblock]) -> int:
    """Return how far a chain is committed or certified, without what only proves the end of an epoch."""
    for block in tail:
        head_height = block.signed.microblock.header.height
        if block.signed.microblock.keyblock is not None:
            break
    return head_height


def known_of(head: bytes, tail: Collection[CertifiedMicroblock]) -> Mapping[bytes, MicroblockHeader | None]:
    """Return the `Known` of a committed head and the certified tail behind it."""
    known: dict[bytes, MicroblockHeader | None] = {head: None}
    is_closing = False
    for block in tail:
        microblock = block.signed.microblock
        is_closing |= microblock.keyblock is not None
        known[block.certificate.block_hash] = microblock.header if is_closing else None
    return known
