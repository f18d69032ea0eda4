# SPDX-License-Identifier: GPL-3.0-or-later
"""The microblocks between the newest committed one and the tips: a small tree rooted at the committed head."""

import msgspec

from consensus.messages import Certificate, Proposal
from ledger.blocks import MicroblockHeader, SignedMicroblock

MAX_UNCOMMITTED = 1024
"""A two-chain commits after two rounds; time-outs leave a few siblings. More is an attack or a network in trouble."""


class Node(msgspec.Struct, frozen=True):
    """A microblock in the tree."""

    hash: bytes
    """Its hash."""
    header: MicroblockHeader
    """Its header."""
    batches: tuple[bytes, ...]
    """Digests of its batches."""
    round: int
    """Its round; for an epoch's root the one before the epoch's first."""
    parent_round: int
    """Round of its parent; −1 for an epoch's root, which nothing of the epoch commits."""
    proposal: Proposal | None
    """How it was proposed; None for the root, which is committed."""
    begins_epoch: bool = False
    """Whether it is the epoch's root."""
    ends_epoch: bool = False
    """Whether it or an ancestor in the tree pins a keyblock: then only empty microblocks follow."""

    @property
    def commits_parent(self) -> bool:
        """Tell whether its certificate commits its parent: two certified microblocks in consecutive rounds."""
        return not self.begins_epoch and self.round == self.parent_round + 1


class BlockTree:
    """Uncommitted microblocks by hash; every node but the root has its parent in the tree."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self._nodes: dict[bytes, Node] = {root.hash: root}

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._nodes

    def get(self, block_hash: bytes) -> Node | None:
        """Return a node of the tree."""
        return self._nodes.get(block_hash)

    def add(self, block_hash: bytes, proposal: Proposal) -> Node | None:
        """Add a checked microblock below its parent; None when the tree is full or the parent is not in it."""
        known = self._nodes.get(block_hash)
        if known is not None:
            return known
        block = proposal.signed.microblock
        parent = self._nodes.get(block.header.parent)
        if parent is None or len(self._nodes) >= MAX_UNCOMMITTED:
            return None
        node = Node(
            hash=block_hash,
            header=block.header,
            batches=block.batches,
            round=block.header.round,
            parent_round=parent.round,
            proposal=proposal,
            ends_epoch=parent.ends_epoch or block.keyblock is not None,
        )
        self._nodes[block_hash] = node
        return node

    def path(self, block_hash: bytes) -> list[Node]:
        """Return the nodes after the root up to and including `block_hash`, oldest first; empty when it is not there."""
        path: list[Node] = []
        node = self._nodes.get(block_hash)
        while node is not None and node.hash != self.root.hash:
            path.append(node)
            node = self._nodes.get(node.header.parent)
        path.reverse()
        return path if node is not None else []

    def executed_height(self, parent: Node) -> int:
        """Return the height that the ancestors of a child of `parent` commit: what the child's header must state."""
        if parent.begins_epoch:
            return parent.header.height
        return parent.header.height - 1 if parent.commits_parent else parent.header.executed_height

    def ordered_batches(self, block_hash: bytes) -> set[bytes]:
        """Return the batches named by uncommitted microblocks up to `block_hash`."""
        return {digest for node in self.path(block_hash) for digest in node.batches}

    def advance_root(self, node: Node) -> None:
        """Make a child of the root the new root and drop whatever does not descend from it."""
        assert node.header.parent == self.root.hash, "microblocks are committed one by one"
        root = msgspec.structs.replace(node, proposal=None)
        kept = {root.hash: root}
        # Parents come before children in the order of rounds.
        for candidate in sorted(self._nodes.values(), key=_round):
            if candidate.header.parent in kept and candidate.hash not in kept:
                kept[candidate.hash] = candidate
        self.root, self._nodes = root, kept

    def keep_path(self, tip: bytes) -> None:
        """Make room: keep the root and the nodes up to `tip`."""
        self._nodes = {self.root.hash: self.root, **{node.hash: node for node in self.path(tip)}}

    def drop_siblings(self, tip: bytes) -> None:
        """Make room: keep the root, the nodes up to `tip` and whatever is not older than it."""
        path = self.path(tip)
        kept = {self.root.hash: self.root, **{node.hash: node for node in path}}
        oldest = path[-1].round if path else self.root.round
        for candidate in sorted(self._nodes.values(), key=_round):
            if candidate.round > oldest and candidate.header.parent in kept:
                kept[candidate.hash] = candidate
        self._nodes = kept


class CertifiedMicroblock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A microblock with its own certificate: one step of catching up."""

    signed: SignedMicroblock
    """The microblock with its leader's signature."""
    certificate: Certificate
    """Certificate of this microblock."""


def _round(node: Node) -> int:
    return node.round
