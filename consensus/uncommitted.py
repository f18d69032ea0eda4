# SPDX-License-Identifier: GPL-3.0-or-later
"""What a member knows above its newest committed microblock: the tree, certificates, orphans, and what is final next."""

from collections.abc import Iterable

import msgspec

from consensus.block_tree import BlockTree, CertifiedMicroblock, Node
from consensus.messages import Certificate, Proposal
from ledger.blocks import MicroblockHeader

MAX_ORPHANS = 16
"""Proposals kept while their parents are fetched; newer ones come with every round, so a few suffice."""


class CommittedHead(msgspec.Struct, frozen=True):
    """Where a core starts: the newest committed microblock."""

    node: Node
    """The microblock."""
    certificate: Certificate
    """Its certificate; the epoch's root certificate when it begins the epoch."""
    state_digests: tuple[tuple[int, bytes], ...]
    """Height and running state digest, of every height that a successor's header can refer to up to its own."""


class Uncommitted:
    """The certified and proposed microblocks that are not committed yet. All certificates given to it are checked."""

    def __init__(self, head: CommittedHead) -> None:
        self.tree = BlockTree(head.node)
        self.high = head.certificate
        """The newest certificate known; its microblock may be missing."""
        self.digests = dict(head.state_digests)
        """State digests that headers of successors can refer to."""
        needed = {self.tree.executed_height(self.tree.root), head.node.header.height}
        assert needed <= self.digests.keys(), f"start with the state digests of heights {sorted(needed)}"
        self._certified: dict[bytes, Certificate] = {head.node.hash: head.certificate}
        self._orphans: dict[tuple[int, bytes], Proposal] = {}
        self._target: bytes | None = None
        self._proof: bytes | None = None

    @property
    def root(self) -> Node:
        """The newest committed microblock."""
        return self.tree.root

    def certificate_of(self, block_hash: bytes) -> Certificate | None:
        """Return the certificate of a microblock in the tree."""
        return self._certified.get(block_hash)

    def knows(self, certificate: Certificate) -> bool:
        """Tell whether this very certificate has been checked already."""
        return certificate in (self.high, self._certified.get(certificate.block_hash))

    def is_behind(self) -> bool:
        """Tell whether others know certified microblocks that are not here."""
        return self.high.block_hash not in self.tree or bool(self._orphans)

    def take(self, certificate: Certificate) -> bool:
        """Note a checked certificate; False when its microblock is missing."""
        if certificate.round > self.high.round:
            self.high = certificate
        node = self.tree.get(certificate.block_hash)
        if node is None:
            return certificate.round <= self.root.round
        self._certified[node.hash] = certificate
        if node.commits_parent:
            self._aim_at(node)
        return True

    def add(self, block_hash: bytes, proposal: Proposal) -> Node | None:
        """Add a checked microblock whose parent is in the tree; None when there is no room."""
        node = self.tree.add(block_hash, proposal)
        if node is None:
            self.tree.drop_siblings(self._newest_certified())
            self._forget_dropped()
            node = self.tree.add(block_hash, proposal)
        if node is None and self.next_commit() is None:
            node = self._add_to_closing(block_hash, proposal)
        if node is not None and self.high.block_hash == block_hash:
            self.take(self.high)
        return node

    def _add_to_closing(self, block_hash: bytes, proposal: Proposal) -> Node | None:
        """Make room for what closes the epoch by giving up whatever else does.

        Who has the committee's keys can certify as much behind a pin as fills the tree, and never make it final. An honest closing comes
        in a row and is over when the pin is final; everything given up can be asked for again.
        """
        parent = self.tree.get(proposal.signed.microblock.header.parent)
        if parent is None or not parent.ends_epoch:
            return None
        self.tree.keep_path(parent.hash)
        self._forget_dropped()
        return self.tree.add(block_hash, proposal)

    def _forget_dropped(self) -> None:
        """Keep the certificates of the tree's microblocks only: what was dropped must come again whole."""
        self._certified = {h: c for h, c in self._certified.items() if h in self.tree}

    def tip(self) -> Node:
        """Return the newest certified microblock that is here."""
        node = self.tree.get(self._newest_certified())
        assert node is not None, "certificates of the tree's microblocks are kept, and making room keeps the newest"
        return node

    def next_commit(self) -> Node | None:
        """Return the microblock that is final and follows the committed head, if there is one."""
        path = self.tree.path(self._target) if self._target is not None else []
        return path[0] if path else None

    def proof_after(self, node: Node) -> tuple[CertifiedMicroblock, ...]:
        """Return the certified microblocks behind one that is final, up to the one that made it so."""
        assert self._proof is not None, "something made it final"
        path = self.tree.path(self._proof)
        return self._certified_among(path[path.index(node) + 1 :])

    def advance(self, node: Node) -> None:
        """Make a final microblock the committed head."""
        self.tree.advance_root(node)
        self._forget_dropped()
        self.digests = {h: d for h, d in self.digests.items() if h >= node.header.executed_height}

    def certified_tail(self) -> tuple[CertifiedMicroblock, ...]:
        """Return the certified microblocks after the committed head up to the newest that is here, oldest first."""
        return self._certified_among(self.tree.path(self._newest_certified()))

    def _certified_among(self, path: Iterable[Node]) -> tuple[CertifiedMicroblock, ...]:
        return tuple(
            CertifiedMicroblock(node.proposal.signed, self._certified[node.hash])
            for node in path
            if node.proposal is not None
        )

    def keep_orphan(self, proposal: Proposal) -> None:
        """Keep a proposal until its parent is here; the oldest give way."""
        header = proposal.signed.microblock.header
        self._orphans[header.round, header.leader] = proposal
        while len(self._orphans) > MAX_ORPHANS:
            del self._orphans[min(self._orphans)]

    def is_orphan(self, header: MicroblockHeader) -> bool:
        """Tell whether a microblock waits for its parent."""
        orphan = self._orphans.get((header.round, header.leader))
        return orphan is not None and orphan.signed.microblock.header == header

    def adoptable(self) -> Iterable[Proposal]:
        """Take out and yield orphans whose parent has come, oldest first; those that came too late are dropped."""
        for key in sorted(self._orphans):
            if key[0] <= self.root.round:
                del self._orphans[key]
            elif self._orphans[key].signed.microblock.header.parent in self.tree:
                yield self._orphans.pop(key)

    def _aim_at(self, child: Node) -> None:
        """Two certified microblocks in consecutive rounds: the parent of `child` is final, with all before it."""
        node = self.tree.get(child.header.parent)
        if node is None or node.header.height <= self.root.header.height:
            return
        target = self.tree.get(self._target) if self._target is not None else None
        if target is None or node.header.height > target.header.height:
            self._target, self._proof = node.hash, child.hash

    def _newest_certified(self) -> bytes:
        return max(self._certified.values(), key=_round).block_hash


def _round(certificate: Certificate) -> int:
    return certificate.round
