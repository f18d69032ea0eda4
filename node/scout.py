# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks peers which chain they have, all at once: a peer that is silent costs the others nothing, one that talks nonsense its score."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog
import trio

from consensus.weight import FinalPoint
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.genesis import Genesis, chain_id
from node.chains import ChainGroup, PeerChain, WorkProof, check_view, claimed_weight
from node.sync import Asker
from node.wire import (
    MAX_HEIGHTS,
    MAX_KEYBLOCKS,
    REQUEST_HASHES,
    REQUEST_KEYBLOCKS,
    REQUEST_SUMMARY,
    ChainSummary,
    HashesRequest,
    KeyblocksRequest,
    decode_hashes_answer,
    decode_keyblocks_answer,
    decode_summary,
)
from p2p.errors import RequestFailed

log = structlog.get_logger()

T = TypeVar("T")

ASK_S = 10.0
"""Time for one small answer."""
PROOF_S = 120.0
"""Time for all keyblocks of one chain. Ten years of them are 140 MB; a chain that needs longer comes last, but is not left out."""
STAGGER_S = 0.5
"""Between peers of one chain that are asked for its keyblocks: the first mostly has them, and who dawdles holds up nobody for long."""
LIE_POINTS = 50
"""A peer that claims what it cannot show is out at the second time."""
RUBBISH_POINTS = 20
"""The same as for rubbish in other answers."""


class Sight(msgspec.Struct, frozen=True):
    """What peers said when they were asked, all at once."""

    chains: Mapping[str, PeerChain]
    """The word of each that has microblocks."""
    silent: frozenset[str]
    """Those that did not answer, or not properly: they may have any chain, or none."""


class Scout:
    """Asks; keeps nothing."""

    def __init__(self, network: Asker, genesis: Genesis, checkpoint: FinalPoint) -> None:
        self._network = network
        self._chain_id = chain_id(genesis)
        self._parameters = genesis.parameters
        self._checkpoint = checkpoint

    async def look(self, peers: Collection[str], heights: Collection[int] = ()) -> Sight:
        """Return the word of each peer, compared at all newest microblocks and at further heights."""
        answers = await _of_all(peers, self._summary)
        summaries = {peer: summary for peer, summary in answers.items() if summary.height > 0}
        wanted = sorted({*heights, *(summary.height for summary in summaries.values())} - {0})

        async def view(peer: str) -> PeerChain | None:
            summary = summaries[peer]
            known = await self.hashes(peer, [height for height in wanted if height <= summary.height])
            if known is None:
                return None
            found = PeerChain(summary, known)
            try:
                check_view(found, wanted)
            except InvalidInput as error:
                self._network.penalise(peer, LIE_POINTS, f"chain summary: {error}")
                return None
            return found

        found = await _of_all(summaries, view)
        heard = found.keys() | (answers.keys() - summaries.keys())
        return Sight(found, frozenset(peers) - heard)

    async def hashes(self, peer: str, heights: Sequence[int]) -> dict[int, bytes] | None:
        """Return the hashes that a peer has at heights that rise; None when it does not answer properly."""
        found: dict[int, bytes] = {}
        try:
            for start in range(0, len(heights), MAX_HEIGHTS):
                asked = tuple(heights[start : start + MAX_HEIGHTS])
                raw = await self._ask(peer, REQUEST_HASHES, encode(HashesRequest(asked)))
                # More hashes than heights mean nothing; fewer are what the peer has.
                found.update(zip(asked, decode_hashes_answer(raw).hashes, strict=False))
        except RequestFailed as error:
            log.debug("hashes request failed", peer=peer, error=str(error))
            return None
        except InvalidInput as error:
            self._network.penalise(peer, RUBBISH_POINTS, f"hashes answer: {error}")
            return None
        return found

    async def weigh(self, groups: Iterable[ChainGroup]) -> list[ChainGroup]:
        """Return the groups with what their claims rest on; liars are taken out, and groups that contradict the checkpoint."""
        numbered = {str(number): group for number, group in enumerate(groups)}
        found = await _of_all(numbered, lambda number: self._weighed(numbered[number]))
        return [found[number] for number in numbered if number in found]

    async def _weighed(self, group: ChainGroup) -> ChainGroup | None:
        """Ask a group's peers, the heaviest claim first; what the heaviest of those that do not lie has shown is enough."""
        claims = {peer: claimed_weight(summary) for peer, summary in group.peers.items()}
        reaching = [peer for peer, summary in group.peers.items() if summary.epoch >= self._checkpoint.epoch]
        reaching.sort(key=lambda peer: (-claims[peer], peer))
        left, proven = dict(group.peers), set[str]()

        async def prove(place: int, peer: str) -> None:
            await trio.sleep(place * STAGGER_S)
            is_shown = await self._shows_work(peer, group.peers[peer])
            if is_shown:
                proven.add(peer)
            elif is_shown is not None:
                del left[peer]
            heaviest = max((claims[other] for other in reaching if other in left), default=0)
            if any(claims[other] >= heaviest for other in proven):
                nursery.cancel_scope.cancel()

        with trio.move_on_after(PROOF_S):
            async with trio.open_nursery() as nursery:
                for place, peer in enumerate(reaching):
                    nursery.start_soon(prove, place, peer)
        if left.keys().isdisjoint(reaching):
            return None
        return msgspec.structs.replace(group, peers=left, proven=frozenset(proven))

    async def _shows_work(self, peer: str, summary: ChainSummary) -> bool | None:
        """Tell whether a peer shows the work that its claim takes; None when it does not answer."""
        try:
            return not await self._contradicts(peer, summary)
        except RequestFailed as error:
            log.debug("keyblocks request failed", peer=peer, error=str(error))
            return None
        except InvalidInput as error:
            self._network.penalise(peer, LIE_POINTS, f"keyblocks: {error}")
            return False

    async def _contradicts(self, peer: str, summary: ChainSummary) -> bool:
        """Have a peer show the work that its claim takes; tells whether its keyblocks contradict the checkpoint."""
        proof = WorkProof(self._chain_id, self._parameters, self._checkpoint)
        while proof.most < claimed_weight(summary) or proof.epoch < self._checkpoint.epoch:
            raw = await self._ask(peer, REQUEST_KEYBLOCKS, encode(KeyblocksRequest(proof.epoch)))
            # The chain may have grown since the claim.
            keyblocks = decode_keyblocks_answer(raw).keyblocks[: summary.epoch - proof.epoch]
            if not keyblocks or len(keyblocks) < min(MAX_KEYBLOCKS, summary.epoch - proof.epoch):
                raise InvalidInput(
                    f"a weight of {claimed_weight(summary)} and epoch {summary.epoch} are claimed; "
                    f"{proof.epoch + len(keyblocks)} keyblocks are shown, of which {proof.epoch} allow {proof.most}"
                )
            proof.add(keyblocks)
            await trio.lowlevel.checkpoint()
        return proof.contradicts

    async def _summary(self, peer: str) -> ChainSummary | None:
        try:
            return decode_summary(await self._ask(peer, REQUEST_SUMMARY, b""))
        except RequestFailed as error:
            log.debug("summary request failed", peer=peer, error=str(error))
        except InvalidInput as error:
            self._network.penalise(peer, RUBBISH_POINTS, f"chain summary: {error}")
        return None

    async def _ask(self, peer: str, method: str, payload: bytes) -> bytes:
        return await self._network.request(peer, method, payload, timeout_s=ASK_S)


async def _of_all(names: Collection[str], ask: Callable[[str], Awaitable[T | None]]) -> dict[str, T]:
    """Ask for each name at the same time; returns what was answered, in the order of the names."""
    found: dict[str, T] = {}

    async def one(name: str) -> None:
        answer = await ask(name)
        if answer is not None:
            found[name] = answer

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
    return {name: found[name] for name in names if name in found}
