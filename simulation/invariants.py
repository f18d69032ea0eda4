# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge of a run: sees every message that honest replicas send and every microblock that they commit.

It trusts nothing of `consensus` but the message types: quorums are counted and signatures checked by its own, plain code, against the
committees of `simulation.reference`. Numbers are those of the design's section 10; S2 and S3 are those of `consensus.safety`.
"""

from collections.abc import Mapping, Sequence

from consensus.block_tree import CertifiedMicroblock
from consensus.election import is_reveal
from consensus.epoch import Epoch
from consensus.events import Commit, Effect, Misbehaviour, Refused
from consensus.executor import Done, Executor
from consensus.messages import (
    Certificate,
    Certified,
    Message,
    Offer,
    Proposal,
    Reveal,
    Timeout,
    TimeoutCertificate,
    Vote,
    timeout_digest,
)
from consensus.safety import SafetyRecord
from ledger.blocks import microblock_hash, pinned_digest
from ledger.codec import encode
from ledger.crypto.keys import verify
from ledger.crypto.merkle import merkle_root
from ledger.genesis import Genesis
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from ledger.votes import vote_digest
from simulation.accounts import proves_guilt
from simulation.chain_judge import ChainJudge
from simulation.reference import EpochFacts
from simulation.violation import Violation, require


class Judge:
    """Checks a run as it goes; raises `Violation`."""

    def __init__(
        self, genesis: Genesis, founding: Epoch, liars: frozenset[bytes], published: Mapping[bytes, bytes]
    ) -> None:
        """`founding` is the first epoch as an honest replica sees it; `liars` are the keys of Byzantine members.

        `published` is the data of off-chain batches that honest disks hold, as it grows.
        """
        self.chain = ChainJudge(genesis, founding, published)
        self._chain_id = founding.chain_id
        self._cap = genesis.parameters.term_microblocks
        self._drift_ms = genesis.parameters.timestamp_drift_ms
        self._liars = liars
        self._votes: dict[tuple[bytes, int, int], bytes] = {}
        self._proposals: dict[tuple[bytes, int, int], bytes] = {}
        self._proposed: dict[bytes, set[Proposal]] = {}
        self._given_up: dict[tuple[bytes, int], int] = {}
        self._genuine: set[Certificate | TimeoutCertificate] = set()
        self._heads: dict[int, tuple[int, bytes]] = {}
        self._known: dict[int, tuple[int, int]] = {}
        self._ordered: dict[int, set[bytes]] = {}
        self._genesis_hash = founding.root_certificate.block_hash
        self._judged_epochs = 0
        self._is_live = True

    @property
    def height(self) -> int:
        """Height of the newest microblock that any honest replica has committed."""
        return max((height for height, _ in self._heads.values()), default=0)

    @property
    def epoch(self) -> int:
        """Number of the newest epoch that any honest replica is in."""
        return self.chain.reference.epoch.number

    def is_live(self) -> bool:
        """Tell whether in each epoch so far at most f liars with less than a third of reputation had a seat: else I5 promises nothing."""
        for epoch in self.chain.reference.epochs[self._judged_epochs :]:
            weights = [member.reputation_nano for member in epoch.members if member.public_key in self._liars]
            total = sum(member.reputation_nano for member in epoch.members)
            self._is_live = self._is_live and len(weights) <= epoch.faults and 3 * sum(weights) < total
            self._judged_epochs += 1
        return self._is_live

    # ------------------------------------------------------------------ messages

    def sent(self, replica: int, own: bytes, message: Message, durable: SafetyRecord, clock_ms: int) -> None:
        """An honest replica of an address sends a message while `durable` is what its disk remembers and `clock_ms` what it reads."""
        if isinstance(message, Vote):
            self._sent_vote(replica, own, message, durable, clock_ms)
        elif isinstance(message, Proposal):
            self._sent_proposal(replica, own, message, durable)
        elif isinstance(message, Timeout):
            self._own(replica, own, message.voter)
            place = (message.voter, message.epoch)
            self._given_up[place] = max(message.term, self._given_up.get(place, -1))
            kept = durable.epoch == message.epoch and message.term <= durable.timed_out_term
            self._check_durable(kept, f"time-out of {replica}")
            self._check_certificates(message.high_certificate, message.entry)
        elif isinstance(message, Certified):
            self._check_certificates(message.certificate, message.timeout_certificate)
        elif isinstance(message, Offer):
            epoch = self._epoch(len(self.chain.reference.epochs) - 1)
            previous = message.keyblock.keyblock.previous
            if epoch.keyblock == previous:
                wrong = self.chain.reference.wrong_keyblock(epoch, message.keyblock)
                require("I3", not wrong, f"replica {replica} offers a keyblock, but {wrong}")
        else:
            self._sent_reveal(replica, message)

    def _sent_vote(self, replica: int, own: bytes, vote: Vote, durable: SafetyRecord, clock_ms: int) -> None:
        self._own(replica, own, vote.voter)
        self._check_vote(vote.voter, vote.epoch, vote.round, vote.block_hash)
        proposals = self._proposed.get(vote.block_hash, ())
        justified = any(self._justifies(proposal) for proposal in proposals)
        require("S3", justified, f"member {replica} votes in round {vote.round} for what its parent does not allow")
        term = vote.round // self._cap
        if term <= self._given_up.get((vote.voter, vote.epoch), -1):
            raise Violation("S2", f"member {replica} votes in round {vote.round} of term {term}, given up before")
        kept = durable.epoch == vote.epoch and vote.round <= durable.voted_round
        self._check_durable(kept, f"vote of {replica}")
        for proposal in proposals:
            block = proposal.signed.microblock
            ahead_ms = block.header.timestamp_ms - clock_ms
            require("time", ahead_ms <= self._drift_ms, f"member {replica} votes for what is {ahead_ms} ms ahead")
            # Anybody may send another body under the header that is voted for.
            if block.keyblock is not None and block.header.pinned == pinned_digest(block.keyblock):
                wrong = self.chain.reference.wrong_keyblock(self._epoch(vote.epoch), block.keyblock)
                require("I3", not wrong, f"member {replica} votes for pinning a keyblock, but {wrong}")

    def _sent_proposal(self, replica: int, own: bytes, proposal: Proposal, durable: SafetyRecord) -> None:
        self.overhears(proposal)
        header = proposal.signed.microblock.header
        self._own(replica, own, header.leader)
        block_hash = microblock_hash(header)
        known = self._proposals.setdefault((header.leader, header.epoch, header.round), block_hash)
        require("I4", known == block_hash, f"member {replica} proposes twice in round {header.round}")
        kept = durable.epoch == header.epoch and header.round <= durable.proposed_round
        self._check_durable(kept, f"proposal of {replica}")
        self._check_certificates(proposal.certificate, proposal.timeout_certificate)

    def _sent_reveal(self, replica: int, message: Reveal) -> None:
        """A seed is revealed only when its keyblock is pinned: before, its creator alone could know the leaders."""
        is_pinned = message.epoch <= self.epoch
        require("reveal", is_pinned, f"replica {replica} reveals before epoch {message.epoch} has begun")
        epoch = self._epoch(message.epoch)
        assert epoch.pinned is not None, "only a keyblock's creator reveals"
        key = epoch.pinned.keyblock.reveal_key
        genuine = is_reveal(key, epoch.previous_seed, epoch.keyblock, message.signature)
        require("reveal", genuine, f"replica {replica} reveals what is not the seed of epoch {message.epoch}")

    def answered(self, replica: int, own: bytes, blocks: Sequence[CertifiedMicroblock], durable: SafetyRecord) -> None:
        """An honest replica of an address answers with certified microblocks; also a certificate tells of its vote."""
        for block in blocks:
            certificate = block.certificate
            self._check_certificate(certificate)
            index = self._epoch(certificate.epoch).index_of(own)
            if certificate.epoch == durable.epoch and any(vote.member == index for vote in certificate.votes):
                self._check_durable(certificate.round <= durable.voted_round, f"vote of {replica} in an answer")

    def batches_of(self, block_hash: bytes) -> tuple[bytes, ...]:
        """Return the batches of a microblock that somebody has proposed."""
        for proposal in self._proposed.get(block_hash, ()):
            block = proposal.signed.microblock
            if merkle_root(block.batches) == block.header.batches_root:  # else somebody sends another body under it
                return block.batches
        return ()

    def overhears(self, message: Message) -> None:
        """Anybody, honest or not, sends a message."""
        if isinstance(message, Proposal):
            self._proposed.setdefault(microblock_hash(message.signed.microblock.header), set()).add(message)

    def _justifies(self, proposal: Proposal) -> bool:
        """S3: the parent is certified in the round before, or as new as all that a quorum knew when it gave up."""
        header = proposal.signed.microblock.header
        certificate, ended = proposal.certificate, proposal.timeout_certificate
        if certificate.block_hash != header.parent or certificate.epoch != header.epoch:
            return False
        if certificate.round + 1 == header.round:
            return self._is_genuine(certificate, None)
        if ended is None or ended.epoch != header.epoch or header.round != (ended.term + 1) * self._cap:
            return False
        newest = all(part.high_round <= certificate.round for part in ended.timeouts)
        return newest and self._is_genuine(certificate, ended)

    def _is_genuine(self, certificate: Certificate, ended: TimeoutCertificate | None) -> bool:
        try:
            self._check_certificates(certificate, ended)
        except Violation:
            return False
        return True

    @staticmethod
    def _check_durable(durable: bool, what: str) -> None:
        require("I4", durable, f"{what} leaves before the promise is durable")

    @staticmethod
    def _own(replica: int, own: bytes, address: bytes) -> None:
        require("I4", own == address, f"replica {replica} signs for {address.hex()}")

    def _check_vote(self, voter: bytes, epoch: int, round_: int, block_hash: bytes) -> None:
        known = self._votes.setdefault((voter, epoch, round_), block_hash)
        require("I4", known == block_hash, f"{voter.hex()} votes for two microblocks in round {round_}")

    # ------------------------------------------------------------------ certificates

    def _epoch(self, number: int) -> EpochFacts:
        epochs = self.chain.reference.epochs
        require("certificates", number < len(epochs), f"something of epoch {number} is sent before it has begun")
        return epochs[number]

    def _check_certificates(self, certificate: Certificate, ended: TimeoutCertificate | None) -> None:
        """Whatever an honest replica passes on is genuine, and a leader can use it."""
        self._check_certificate(certificate)
        if ended is None or ended in self._genuine:
            return
        epoch = self._epoch(ended.epoch)
        self._check_quorum(epoch, [part.member for part in ended.timeouts], f"time-out certificate of {ended.term}")
        for part in ended.timeouts:
            digest = timeout_digest(self._chain_id, ended.epoch, ended.term, part.high_round)
            valid = verify(epoch.members[part.member].public_key, digest, part.signature)
            require("certificates", valid, f"time-out of term {ended.term} is not signed by member {part.member}")
        self._genuine.add(ended)

    def _check_certificate(self, certificate: Certificate) -> None:
        if certificate in self._genuine:
            return
        epoch = self._epoch(certificate.epoch)
        if certificate != epoch.root_certificate:
            what = f"certificate of round {certificate.round}"
            self._check_quorum(epoch, [vote.member for vote in certificate.votes], what)
            digest = vote_digest(self._chain_id, certificate.epoch, certificate.round, certificate.block_hash)
            for vote in certificate.votes:
                member = epoch.members[vote.member]
                valid = verify(member.public_key, digest, vote.signature)
                require("certificates", valid, f"round {certificate.round} is not signed by member {vote.member}")
                if member.public_key not in self._liars:
                    self._check_vote(member.address, certificate.epoch, certificate.round, certificate.block_hash)
        self._genuine.add(certificate)

    @staticmethod
    def _check_quorum(epoch: EpochFacts, members: Sequence[int], what: str) -> None:
        known = all(member < len(epoch.members) for member in members)
        enough = known and len(set(members)) == len(members) and epoch.is_quorum(members)
        require("certificates", enough, f"{what}: {members} are no quorum of {len(epoch.members)}")

    # ------------------------------------------------------------------ commits

    def committed(
        self,
        replica: int,
        store: Store,
        executor: Executor,
        commit: Commit,
        transactions: Sequence[CheckedTransaction],
        done: Done,
    ) -> None:
        """An honest replica has executed and stored a microblock."""
        block = commit.signed.microblock
        header = block.header
        height, parent = self._heads.get(replica, (0, self._genesis_hash))
        follows = header.height == height + 1 and header.parent == parent
        require("I2", follows, f"replica {replica} commits {header.height} after {height}")
        ordered = self._ordered.setdefault(replica, set())
        repeated = ordered.intersection(block.batches)
        require("I2", not repeated, f"replica {replica} orders a batch twice at height {header.height}")
        ordered.update(block.batches)
        self.chain.committed(replica, store, commit, transactions, done)
        certificate = commit.block.certificate
        fits = (certificate.epoch, certificate.block_hash) == (header.epoch, commit.block_hash)
        require("certificates", fits, f"replica {replica} commits {header.height} with another's certificate")
        self._check_certificate(certificate)
        self.chain.check_weight(replica, store, commit, executor.weight)
        if block.keyblock is not None:
            self._check_closing(replica, commit)
        self._heads[replica] = (header.height, commit.block_hash)
        self._known[replica] = (executor.epoch.number, executor.weight)

    def _check_closing(self, replica: int, commit: Commit) -> None:
        """What ends an epoch comes with its proof: empty certified microblocks, the last of which follows in the next round."""
        above, parent_round, is_final = commit.block_hash, commit.signed.microblock.header.round, False
        for block in commit.closing:
            header = block.signed.microblock.header
            empty = not block.signed.microblock.batches and block.signed.microblock.keyblock is None
            fits = block.certificate.block_hash == microblock_hash(header) and header.parent == above
            require("I2", fits and empty, f"replica {replica} ends an epoch with microblocks that do not prove it")
            self._check_certificate(block.certificate)
            is_final = is_final or header.round == parent_round + 1
            above, parent_round = microblock_hash(header), header.round
        require("I2", is_final, f"replica {replica} ends an epoch with a microblock that is not final")

    def restarted(self, replica: int, store: Store, executor: Executor) -> None:
        """A replica comes back with what its disk holds."""
        head = store.head()
        known = self._heads.get(replica, (0, self._genesis_hash))
        kept = (head.height, head.block_hash) == known
        require("I8", kept, f"replica {replica} had committed {known[0]} and comes back with {head.height}")
        found = (executor.epoch.number, executor.weight)
        expected = self._known.get(replica, found)
        require("I8", found == expected, f"replica {replica} had epoch and weight {expected}, comes back with {found}")
        record, facts = executor.epoch.record, self._epoch(executor.epoch.number)
        same = (record.keyblock, record.root_hash, len(record.seats)) == (
            facts.keyblock,
            facts.root_hash,
            len(facts.members),
        )
        require("I8", same, f"replica {replica} comes back with another epoch: {encode(record).hex()}")

    # ------------------------------------------------------------------ judgements of the cores

    def told(self, replica: int, of_liar: bool, effect: Effect) -> None:
        """An honest replica judges others: nobody honest is ever accused, and nothing that they send is refused."""
        if isinstance(effect, Misbehaviour):
            offender = effect.evidence.offender
            proved = offender in self._liars and proves_guilt(self._chain_id, effect.evidence)
            require("accusation", proved, f"replica {replica} says that {offender.hex()} {effect.what}")
        elif isinstance(effect, Refused) and effect.at_fault:
            require("refusal", of_liar, f"replica {replica} refuses what an honest one sent: {effect.reason}")
