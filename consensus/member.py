# SPDX-License-Identifier: GPL-3.0-or-later
"""A member's own promises: all that it ever signs for consensus is signed here, and behind a `Persist` of what it promised.

Each function returns the `Persist` effects that must be durable before the signed message leaves.
"""

from collections.abc import Sequence

from consensus.block_tree import BlockTree, Node
from consensus.events import Persist
from consensus.messages import (
    Certificate,
    Proposal,
    Timeout,
    TimeoutCertificate,
    Vote,
    timeout_digest,
)
from consensus.safety import SafetyRecord, may_vote, record_proposal, record_timeout, record_vote
from ledger.blocks import (
    Microblock,
    SignedMicroblock,
    microblock_hash,
    microblock_signing_digest,
)
from ledger.crypto.keys import PrivateKey
from ledger.votes import vote_digest


class Member:
    """One seat in the committee, with its key and its safety record."""

    def __init__(self, chain_id: bytes, key: PrivateKey, index: int, record: SafetyRecord) -> None:
        self.address = key.address
        self.index = index
        self.record = record
        self._chain_id = chain_id
        self._key = key
        # What is on disk of the tree: whoever votes can give the voted microblock and its ancestors after a restart.
        self._durable: set[bytes] = set()

    def restored(self, block_hash: bytes) -> None:
        """Note that a microblock is on disk already."""
        self._durable.add(block_hash)

    def keep_only(self, tree: BlockTree) -> None:
        """Forget about microblocks that are not in the tree: they are committed or beside what is."""
        self._durable = {block_hash for block_hash in self._durable if block_hash in tree}

    def may_vote(self, proposal: Proposal, term_microblocks: int) -> bool:
        """S1, S2 and S3 (see `consensus.safety`)."""
        return may_vote(self.record, proposal, term_microblocks)

    def may_propose(self, round_: int, term: int) -> bool:
        """Tell whether nothing was proposed in this round or later, nor the term given up."""
        return round_ > self.record.proposed_round and term > self.record.timed_out_term

    def has_given_up(self, term: int) -> bool:
        """Tell whether the term was given up."""
        return self.record.timed_out_term >= term

    def vote(self, path: Sequence[Node], high: Certificate) -> tuple[list[Persist], Vote]:
        """Vote for the last microblock of a path; `path` begins after the committed head."""
        header, block_hash = path[-1].header, path[-1].hash
        self.record = record_vote(self.record, header.round, high)
        kept = [node for node in path if node.hash not in self._durable]
        assert kept, "a microblock is voted for once"
        self._durable.update(node.hash for node in kept)
        digest = vote_digest(self._chain_id, header.epoch, header.round, block_hash)
        vote = Vote(header.epoch, header.round, block_hash, self.address, self._key.sign(digest))
        return [Persist(self.record, node.proposal) for node in kept], vote

    def propose(
        self, block: Microblock, high: Certificate, ended: TimeoutCertificate | None
    ) -> tuple[Persist, Proposal]:
        """Propose a microblock on the one that `high` certifies."""
        header = block.header
        digest = microblock_signing_digest(self._chain_id, microblock_hash(header))
        signed = SignedMicroblock(block, self._key.sign(digest))
        self.record = record_proposal(self.record, header.round, high)
        return Persist(self.record, None), Proposal(signed, high, ended)

    def give_up(
        self, epoch: int, term: int, high: Certificate, entry: TimeoutCertificate | None
    ) -> tuple[Persist, Timeout]:
        """Give up on a term, or say so again."""
        self.record = record_timeout(self.record, term, high, entry)
        digest = timeout_digest(self._chain_id, epoch, term, high.round)
        timeout = Timeout(epoch, term, high, entry, self.address, self._key.sign(digest))
        return Persist(self.record, None), timeout
