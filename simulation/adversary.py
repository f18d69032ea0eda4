# SPDX-License-Identifier: GPL-3.0-or-later
"""Byzantine members: a production core whose mouth lies. Each trait is one way to lie; a member has one or several.

silent      never proposes
withhold    sends its proposals and certificates to one replica only
equivocate  proposes two microblocks per round, to each replica one of them or both, and votes for everything that it sees
fork        proposes as it should to one replica, and on an older certificate to the others, with or without a time-out certificate
forge       sends certificates and time-outs with signatures that are invented, doubled or too few, or that tell of a certificate
            which does not exist
replay      sends what it once heard or said again, also of epochs that are over
garbage     sends bytes with a few of them changed, and random ones

Those that equivocate or fork collect the votes for whatever they proposed and tell a few replicas of the certificate. What miners and
reporters lie about stands in `simulation.counterfeits`, what is false in microblocks, votes and answers in `simulation.falsehoods`.
"""

import random
from collections.abc import Sequence

import msgspec

from consensus.epoch import Epoch
from consensus.messages import (
    Certificate,
    Certified,
    Message,
    Proposal,
    Timeout,
    TimeoutCertificate,
    TimeoutPart,
    Vote,
    timeout_digest,
)
from ledger.blocks import Microblock, SignedMicroblock, microblock_hash, microblock_signing_digest
from ledger.codec import encode
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.merkle import merkle_root
from ledger.votes import SignedIndex, vote_digest
from simulation.counterfeits import Counterfeiter
from simulation.falsehoods import Falsifier, garble
from simulation.miner import Miner
from simulation.network import Kind
from simulation.replica import Replica
from simulation.scenario import Scenario

REMEMBERED = 64
"""Messages kept for replays and forks."""
ACTS_OF_ALL = 0.6
"""How often a message that all hear gives occasion for a lie: often enough, and the run stays short also with many replicas."""

Lie = tuple[int, bytes]
"""Target and bytes."""


class Liar:
    """What a Byzantine member adds to, and takes from, the messages of its core."""

    def __init__(self, replica: Replica, scenario: Scenario, miner: Miner | None) -> None:
        self._replica = replica
        self._key = replica.key
        self._chain_id = replica.chain_id
        self._others = [other for other in range(scenario.replicas) if other != replica.number]
        self._traits = scenario.traits
        self._cap = scenario.term_microblocks
        self._acts = min(0.15, ACTS_OF_ALL / scenario.replicas)
        self._rng = random.Random(f"liar {replica.number} {scenario.seed}")
        self._counterfeiter = Counterfeiter(replica, scenario, miner, self._rng)
        self._falsifier = Falsifier(replica, scenario, self._rng)
        self._heard: list[bytes] = []
        self._proposals: dict[bytes, Proposal] = {}
        self._timeouts: dict[tuple[int, int], dict[int, Timeout]] = {}
        self._votes: dict[bytes, dict[int, bytes]] = {}

    def says(self, target: int | None, message: Message) -> list[Lie]:
        """Return what leaves instead of a message of its core or miner."""
        targets = self._others if target is None else [target]
        self._remember(message)
        told: Sequence[tuple[int, Message]] | None = self._counterfeiter.says(message, targets)
        if told is None and isinstance(message, Proposal):
            told = self._falsifier.says(message, targets)
        if told is not None:
            return [(other, encode(lie)) for other, lie in told]
        if isinstance(message, Proposal):
            if "silent" in self._traits:
                return []
            if "withhold" in self._traits:
                targets = [self._rng.choice(self._others)]
            # Not always: what is to be forked must have been certified before.
            fork = self._fork(message) if "fork" in self._traits and self._rng.randrange(2) else None
            if fork is not None:
                return self._split(message, fork)
            if "equivocate" in self._traits and self._rng.randrange(2):
                return self._equivocate(message)
        if isinstance(message, Vote) and self._falsifier.contradicts(message):
            return []
        if isinstance(message, Certified) and "withhold" in self._traits:
            targets = targets[:1]
        return [(other, encode(message)) for other in targets]

    def hears(self, message: Message) -> list[Lie]:
        """Return what leaves because of a message that was heard."""
        is_new = self._remember(message)
        lies: list[Lie] = []
        if "equivocate" in self._traits and isinstance(message, Proposal) and is_new:
            vote = self._vote(message)
            lies += [(other, encode(vote)) for other in self._others]
        if isinstance(message, Vote) and ("equivocate" in self._traits or "fork" in self._traits):
            lies += self._collect(message)
        if self._rng.random() >= self._acts:
            return lies
        if "forge" in self._traits:
            forged = self._lying_timeouts(message) if isinstance(message, Timeout) else self._forge(message)
            lies += [(other, encode(lie)) for lie in forged for other in self._others]
        if "replay" in self._traits:
            lies.append((self._rng.choice(self._others), self._rng.choice(self._heard)))
        if "garbage" in self._traits:
            lies.append((self._rng.choice(self._others), garble(self._rng, self._rng.choice(self._heard))))
        lies += [(other, encode(lie)) for other, lie in self._counterfeiter.hears(self._others)]
        lies += [(other, encode(lie)) for other, lie in self._falsifier.hears(message, self._others)]
        return lies

    def answers(self, kind: Kind, payload: bytes) -> bytes:
        """Return what leaves instead of a batch or an answer to one who catches up."""
        return self._falsifier.answers(kind, payload)

    def _remember(self, message: Message) -> bool:
        """Keep a message; tells whether it is a proposal that was not known."""
        self._heard.append(encode(message))
        if len(self._heard) > REMEMBERED:
            # Anything may go, so that some things stay for epochs.
            del self._heard[self._rng.randrange(REMEMBERED)]
        if isinstance(message, Proposal):
            block_hash = microblock_hash(message.signed.microblock.header)
            is_new = block_hash not in self._proposals
            self._proposals[block_hash] = message
            return is_new
        if isinstance(message, Timeout):
            index = self._index(message.voter)
            if index is not None and message.epoch == self._epoch.number:
                self._timeouts.setdefault((message.epoch, message.term), {})[index] = message
        return False

    # ------------------------------------------------------------------ lies

    @property
    def _epoch(self) -> Epoch:
        return self._replica.executor.epoch

    @property
    def _members(self) -> int:
        return len(self._epoch.committee.members)

    def _index(self, address: bytes) -> int | None:
        return self._epoch.committee.index_of(address)

    def _vote(self, proposal: Proposal) -> Vote:
        header = proposal.signed.microblock.header
        block_hash = microblock_hash(header)
        digest = vote_digest(self._chain_id, header.epoch, header.round, block_hash)
        return Vote(header.epoch, header.round, block_hash, self._key.address, self._key.sign(digest))

    def _sign(self, block: Microblock) -> SignedMicroblock:
        digest = microblock_signing_digest(self._chain_id, microblock_hash(block.header))
        return SignedMicroblock(block, self._key.sign(digest))

    def _equivocate(self, proposal: Proposal) -> list[Lie]:
        block = proposal.signed.microblock
        header = msgspec.structs.replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
        twin = msgspec.structs.replace(proposal, signed=self._sign(msgspec.structs.replace(block, header=header)))
        self._remember(twin)
        lies: list[Lie] = []
        for other in self._others:
            said = self._rng.choice(((proposal,), (twin,), (proposal, twin)))
            lies += [(other, encode(message)) for message in (*said, self._vote(proposal), self._vote(twin))]
        return lies

    def _split(self, proposal: Proposal, fork: Proposal) -> list[Lie]:
        """The truth to one, the fork and a vote for it to the others."""
        self._remember(fork)
        trusted = self._rng.choice(self._others)
        lies = [(trusted, encode(proposal))]
        for other in self._others:
            if other != trusted:
                lies += [(other, encode(fork)), (other, encode(self._vote(fork)))]
        return lies

    def _collect(self, vote: Vote) -> list[Lie]:
        """Make a certificate of the votes for a microblock, with an own vote, and tell about half of the replicas."""
        proposal = self._proposals.get(vote.block_hash)
        voter, own, committee = self._index(vote.voter), self._index(self._key.address), self._epoch.committee
        if proposal is None or voter is None or own is None:
            return []
        if {vote.epoch, proposal.signed.microblock.header.epoch} != {committee.epoch}:
            return []
        votes = self._votes.setdefault(vote.block_hash, {own: self._vote(proposal).signature})
        enough = committee.is_quorum(votes)
        votes[voter] = vote.signature
        if enough or not committee.is_quorum(votes):
            return []
        signed = tuple(SignedIndex(member, votes[member]) for member in sorted(votes))
        certified = Certified(Certificate(vote.epoch, vote.round, vote.block_hash, signed), None)
        return [(other, encode(certified)) for other in self._others if self._rng.randrange(2)]

    def _fork(self, proposal: Proposal) -> Proposal | None:
        """A proposal for the same round on an older parent of this epoch, correct in everything else if it has the same leader."""
        header = proposal.signed.microblock.header
        certificates = {p.certificate.block_hash: p.certificate for p in self._proposals.values()}
        older = [
            parent
            for block_hash, parent in self._proposals.items()
            if block_hash in certificates
            and parent.signed.microblock.header.round < proposal.certificate.round
            and parent.signed.microblock.header.epoch == header.epoch
        ]
        if not older:
            return None
        parent = self._rng.choice(older[-2:])  # deeper is final everywhere
        above = parent.signed.microblock.header
        commits = parent.certificate.round + 1 == above.round
        executed_height = above.height - 1 if commits else above.executed_height
        digest = self._replica.disk.store.state_digest(executed_height)
        if digest is None:
            return None
        forked = msgspec.structs.replace(
            header,
            height=above.height + 1,
            parent=microblock_hash(above),
            seed=above.seed,
            executed_height=executed_height,
            state_digest=digest,
            batch_count=0,
            batches_root=merkle_root(()),
            pinned=ZERO_DIGEST,
        )
        certificate = certificates[forked.parent]
        ended = proposal.timeout_certificate
        if ended is None:
            invented = header.term > 0 and header.round % self._cap == 0
            ended = self._invented_timeouts(header.epoch, header.term - 1, 0) if invented else None
        return Proposal(self._sign(Microblock(forked, ())), certificate, ended)

    def _forge(self, message: Message) -> list[Message]:
        """Certificates that nobody must believe."""
        if not isinstance(message, Proposal):
            return []
        header = message.signed.microblock.header
        block_hash = microblock_hash(header)
        own, number = self._vote(message).signature, self._index(self._key.address) or 0
        votes = [
            tuple(SignedIndex(member, self._rng.randbytes(64)) for member in range(self._members)),
            tuple(SignedIndex(member, own) for member in range(self._members)),
            tuple(SignedIndex(number, own) for _ in range(self._members)),
            (SignedIndex(number, own),),
            (),
        ]
        forged = Certificate(header.epoch, header.round, block_hash, self._rng.choice(votes))
        next_root = Certificate(header.epoch + 1, header.round, block_hash, ())
        ended = self._invented_timeouts(header.epoch, header.term + self._rng.randint(0, 3), 0)
        lies = (Certified(forged, None), Certified(next_root, None), Certified(message.certificate, ended))
        return [self._rng.choice(lies)]

    def _invented_timeouts(self, epoch: int, term: int, high_round: int) -> TimeoutCertificate:
        own = self._key.sign(timeout_digest(self._chain_id, epoch, term, high_round))
        parts = tuple(TimeoutPart(member, high_round, own) for member in range(self._members))
        return TimeoutCertificate(epoch, term, parts)

    def _lying_timeouts(self, message: Timeout) -> list[Message]:
        """Real time-outs of others, and an own one that tells of a certificate which does not exist."""
        known = self._timeouts.get((message.epoch, message.term))
        own_index = self._index(self._key.address)
        if not known or own_index is None:
            return []
        last_round = (message.term + 1) * self._cap - 2
        own = self._key.sign(timeout_digest(self._chain_id, message.epoch, message.term, last_round))
        parts = {member: TimeoutPart(member, t.high_certificate.round, t.signature) for member, t in known.items()}
        parts[own_index] = TimeoutPart(own_index, last_round, own)
        ended = TimeoutCertificate(message.epoch, message.term, tuple(parts[member] for member in sorted(parts)))
        newest = max((t.high_certificate for t in known.values()), key=_round)
        return [Certified(newest, ended)]


def _round(certificate: Certificate) -> int:
    return certificate.round
