# SPDX-License-Identifier: GPL-3.0-or-later
"""What peers say of their chains: which of them agree, what a claim must rest on, what of an answer is the chain. Pure functions.

Nothing here is proved but one thing: work. Puzzles can be checked without the chain around them, and a chain of work W cannot weigh
more than (1 + d) · W + d · W₀ (R1 in `consensus.weight`). So a claimed weight stands for something before a single microblock is
replayed: who has an old committee's keys and no computing power cannot even claim to be heavy.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

import msgspec

from consensus.block_tree import CertifiedMicroblock
from consensus.weight import FinalPoint
from consensus.work import check_work, decode_target, work_of
from ledger.blocks import Keyblock, MicroblockHeader, keyblock_hash, microblock_hash
from ledger.errors import InvalidInput
from ledger.rules import Parameters
from node.wire import ChainSummary


class PeerChain(msgspec.Struct, frozen=True):
    """One peer's word on its chain."""

    summary: ChainSummary
    """How far it says to be."""
    hashes: Mapping[int, bytes]
    """Hashes of its microblocks at the heights it was asked for, its newest one among them."""


class ChainGroup(msgspec.Struct, frozen=True):
    """Peers that say to have one chain, some of them less of it."""

    peers: Mapping[str, ChainSummary]
    """What each of them says."""
    named: bool = False
    """Whether the operator named one of them."""
    proven: frozenset[str] = frozenset()
    """Those of them that have shown the work which their claims take."""

    @property
    def height(self) -> int:
        """The tallest claim."""
        return max(summary.height for summary in self.peers.values())

    @property
    def ceiling(self) -> int:
        """The most that one of them says the chain weighs, in expected hashes. A claim that is shown says nothing of heavier ones."""
        return max(map(claimed_weight, self.peers.values()), default=0)

    @property
    def proven_weight(self) -> int:
        """The heaviest claim whose work was shown, in expected hashes; −1 when none was."""
        return max((claimed_weight(self.peers[peer]) for peer in self.proven), default=-1)

    def only(self, peers: Collection[str], named: Collection[str]) -> Self:
        """Return the group of some of its peers."""
        left = {peer: summary for peer, summary in self.peers.items() if peer in peers}
        is_named = any(peer in named for peer in left)
        return msgspec.structs.replace(self, peers=left, named=is_named, proven=self.proven.intersection(left))


def claimed_weight(summary: ChainSummary) -> int:
    """Return the weight that a peer claims, in expected hashes."""
    return int.from_bytes(summary.weight, "big")


def check_view(peer: PeerChain, heights: Iterable[int]) -> None:
    """Check that a peer's hashes, of those heights that it says to have, fit what it says. Raises `InvalidInput`."""
    summary = peer.summary
    missing = [height for height in heights if height <= summary.height and height not in peer.hashes]
    if missing:
        raise InvalidInput(f"it says to have microblock {summary.height} and shows no hash of microblock {missing[0]}")
    tip = peer.hashes.get(summary.height, summary.tip)
    if tip != summary.tip:
        raise InvalidInput(
            f"its microblock {summary.height} is {summary.tip.hex()} and then {tip.hex()}; what is final does not change"
        )


def group_chains(peers: Mapping[str, PeerChain], named: Collection[str] = ()) -> list[ChainGroup]:
    """Group peers whose chains agree wherever both were asked; the shorter chain is then a prefix of the taller one.

    The tallest come first. No two peers of a group contradict each other; a peer whose chain ends before two chains part could join
    either group and joins the first.
    """
    grouped: list[tuple[dict[str, ChainSummary], dict[int, bytes]]] = []
    for peer in sorted(peers, key=lambda peer: (-peers[peer].summary.height, peer)):
        summary = peers[peer].summary
        hashes = {**peers[peer].hashes, summary.height: summary.tip}
        for members, known in grouped:
            if all(known.get(height, block_hash) == block_hash for height, block_hash in hashes.items()):
                members[peer] = summary
                known.update(hashes)
                break
        else:
            grouped.append(({peer: summary}, hashes))
    return [ChainGroup(peers=members, named=any(peer in named for peer in members)) for members, _ in grouped]


def ranked(groups: Iterable[ChainGroup]) -> list[ChainGroup]:
    """Return groups in the order in which they are put to the test.

    First those with a peer that the operator named, for that is the one thing which identities cannot buy. Accounts of the founding
    committee count nothing here: their keys may have leaked long ago. Then those that have shown work, the heaviest first: work
    has its price. Last come those that have not. Only among equals the number of peers decides.
    """
    return sorted(
        groups,
        key=lambda group: (not group.named, -group.proven_weight, -group.ceiling, -group.height, -len(group.peers)),
    )


class WorkProof:
    """Adds up the work of a chain of keyblocks from the genesis on, until a claimed weight is possible."""

    def __init__(self, chain_id: bytes, parameters: Parameters, checkpoint: FinalPoint) -> None:
        self._rules = parameters.work
        self._checkpoint = checkpoint
        self._cap = parameters.weight.certified_cap
        # Epoch 0 has no keyblock; the founding target stands in for its certificates.
        self._most = self._cap * work_of(int.from_bytes(parameters.work.limit, "big"))
        self._previous = chain_id
        self.epoch = 0
        """Keyblocks seen."""
        self.contradicts = False
        """Whether one of them is not that of the checkpoint: then the chain is out, whoever's fault it is."""

    @property
    def most(self) -> int:
        """The most that a chain with these keyblocks can weigh, in expected hashes."""
        return self._most

    def add(self, keyblocks: Sequence[Keyblock]) -> None:
        """Take the next keyblocks. Raises `InvalidInput` when they do not follow or solve no puzzle."""
        for keyblock in keyblocks:
            if keyblock.previous != self._previous:
                raise InvalidInput(f"keyblock {self.epoch + 1} does not follow the one before")
            target = decode_target(keyblock.target, self._rules)
            check_work(keyblock, target)
            self._most += (1 + self._cap) * work_of(target)
            self._previous = keyblock_hash(keyblock)
            self.epoch += 1
            at_checkpoint = self.epoch == self._checkpoint.epoch
            self.contradicts |= at_checkpoint and self._previous != self._checkpoint.keyblock_hash


# ---------------------------------------------------------------- what of an answer is the chain


class Stretch(msgspec.Struct, frozen=True):
    """The part of an answer to a `ChainRequest` that can be compared with what others have committed."""

    blocks: tuple[CertifiedMicroblock, ...]
    """Linked microblocks of the chain, and behind those that pin a keyblock what made them final."""
    hashes: Mapping[int, bytes]
    """Hashes of those that are the chain, by height, rising."""
    closing: Mapping[bytes, MicroblockHeader]
    """The last microblock, by hash, when it only makes final what came before: more of those may follow."""


def stretch_of(
    blocks: Sequence[CertifiedMicroblock], known: Mapping[bytes, MicroblockHeader | None], most_height: int
) -> Stretch:
    """Return what of an answer follows the `known` microblocks up to a height; siblings and strangers are left out.

    `known` are the newest committed microblock here and the certified ones behind it, by hash: with their headers the one that pins a
    keyblock and what follows it in its epoch, None for the others. What descends from such a microblock within its epoch can make
    nothing final but the pin, so it needs no comparison, and there is nothing to compare it with: every node may have other ones.
    """
    pinned = {block_hash: header.epoch for block_hash, header in known.items() if header is not None}
    linked, kept, hashes = set(known), [], {}
    closing: dict[bytes, MicroblockHeader] = {}
    for block in blocks:
        microblock = block.signed.microblock
        header, block_hash = microblock.header, microblock_hash(microblock.header)
        if pinned.get(header.parent) == header.epoch:
            pinned[block_hash] = header.epoch
            kept.append(block)
            closing = {block_hash: header}
        elif header.parent in linked and header.height <= most_height and header.height not in hashes:
            # One chain only: the next one must follow this one.
            linked = {block_hash}
            hashes[header.height] = block_hash
            kept.append(block)
            closing = {}
            if microblock.keyblock is not None:
                pinned[block_hash] = header.epoch
    return Stretch(tuple(kept), hashes, closing)
