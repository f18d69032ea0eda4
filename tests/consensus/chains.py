# SPDX-License-Identifier: GPL-3.0-or-later
"""Committed chains to order: every signature, certificate, puzzle and reveal in them is real, and each microblock passes the checks of a
core before it is committed.

What only cores decide (who is silent, when a keyblock comes, who votes) is the caller's choice.
"""

import random
from collections.abc import Collection, Sequence

import msgspec

from consensus import election, work
from consensus.block_tree import BlockTree, CertifiedMicroblock, Node
from consensus.checks import check_certified, check_placed
from consensus.committee import Committee
from consensus.epoch import Epoch
from consensus.events import Commit
from consensus.executor import Done, Executor
from consensus.messages import Certificate, Proposal
from consensus.restart import committed_head
from consensus.retarget import earliest_timestamp_ms
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import (
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
    sign_keyblock,
)
from ledger.bodies import Body, ReportMisbehaviour, Transfer
from ledger.crypto.keys import PrivateKey
from ledger.crypto.merkle import merkle_root
from ledger.genesis import chain_id
from ledger.rules import Parameters, WorkRules
from ledger.state import State
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from ledger.votes import SignedIndex, vote_digest

KEYS = 64
"""Keys `testing.key(0)` … that may sit, lead and mine."""
_NUMBERS = {testing.key(number).public_key: number for number in range(KEYS)}
WANDERERS = 8
"""Keys that pay, report, mine and misbehave at random; the founders are among them."""
EASY_WORK = WorkRules((2**255 - 1).to_bytes(32, "big"), 15_000, 20)
"""Two hashes per keyblock."""
PARAMETERS: Parameters = msgspec.structs.replace(testing.PARAMETERS, term_microblocks=4, work=EASY_WORK)
"""Short terms, so that they end often."""


def number_of(public_key: bytes) -> int:
    """Return the number of a test key."""
    return _NUMBERS[public_key]


def quorum(committee: Committee) -> tuple[int, ...]:
    """Return the first members that are a quorum."""
    for size in range(1, len(committee.members) + 1):
        if committee.is_quorum(range(size)):
            return tuple(range(size))
    raise AssertionError("all members are a quorum")


class Step(msgspec.Struct, frozen=True):
    """The next microblock."""

    raws: tuple[bytes, ...] = ()
    """Its transactions, in one batch."""
    lost: int = 0
    """Terms that ran out since its parent; a part of the parent's own term counts as one."""
    reveal: bool = True
    """For an opening after a lost term: whether the creator has revealed by then."""
    miner: int | None = None
    """Whose keyblock it pins."""
    mined_ms: int | None = None
    """Time of that keyblock; by default as long after the last one as is wanted, so that targets stay."""
    later_ms: int = 1_000
    """How much later than its parent it is."""
    voters: tuple[int, ...] | None = None
    """Indexes of those who certify it; the first that are a quorum by default."""


class ChainMaker:
    """Extends the chain in a store; `commits` can be replayed into others."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.chain_id = chain_id(store.genesis)
        self.executor = Executor(store, MACHINES)
        self.epochs = [self.executor.epoch]
        """All epochs since this maker began."""
        self.commits: list[tuple[Commit, tuple[CheckedTransaction, ...], tuple[tuple[bytes, bytes], ...]]] = []
        self._nonces: dict[bytes, int] = {}

    @property
    def epoch(self) -> Epoch:
        """The running epoch."""
        return self.executor.epoch

    # ------------------------------------------------------------------ transactions

    def signed(self, sender: int, body: Body, fee_microcredit: int = testing.FEE_MICROCREDIT) -> bytes:
        """Return a transaction with the sender's next nonce, counting those made here for the next microblock."""
        key, height = testing.key(sender), self.store.head().height
        nonce = max(State(self.store).account(key.address).nonce, self._nonces.get(key.address, 0))
        self._nonces[key.address] = nonce + 1
        return testing.signed(
            self.chain_id, key, body, nonce, fee_microcredit=fee_microcredit, expiry_height=height + 50
        )

    def pay(
        self, sender: int, recipient: int, amount: int = 1, fee_microcredit: int = testing.FEE_MICROCREDIT
    ) -> bytes:
        """Return a transfer between test keys."""
        return self.signed(sender, Transfer(testing.key(recipient).address, amount), fee_microcredit)

    # ------------------------------------------------------------------ microblocks

    def extend(self, *raws: bytes) -> Done:
        """Commit a microblock that follows its parent without a lost term."""
        return self.take(Step(raws))

    def pin(self, miner: int, *raws: bytes) -> Done:
        """Commit a microblock that pins a keyblock."""
        return self.take(Step(raws, miner=miner))

    def take(self, step: Step) -> Done:
        """Commit a microblock."""
        commit, batches = self.next_commit(step)
        transactions = testing.check(self.chain_id, step.raws)
        self.store.put_batches(batches)
        done = self.executor.commit(commit, transactions)
        self.commits.append((commit, transactions, batches))
        self._nonces.clear()
        if done.epoch is not None:
            self.epochs.append(done.epoch)
        return done

    def next_commit(self, step: Step) -> tuple[Commit, tuple[tuple[bytes, bytes], ...]]:
        """Return what a core would hand out for a step, and the batches that it names."""
        epoch = self.epoch
        head = committed_head(self.store, epoch)
        tree, digests = BlockTree(head.node), dict(head.state_digests)
        batches = (testing.batch(self.chain_id, step.raws),) if step.raws else ()
        keyblock = None if step.miner is None else self.mine(step.miner, step.mined_ms)
        block = self._microblock(tree, head.node, digests, step, tuple(digest for digest, _ in batches), keyblock)
        certified, node = self._certify(tree, head.node, head.certificate, block, step.voters)
        closing = []
        if keyblock is not None:
            empty = self._microblock(tree, node, digests, Step(), (), None)
            closing.append(self._certify(tree, node, certified.certificate, empty, None)[0])
        return Commit(certified.signed, node.hash, certified, tuple(closing)), batches

    def mine(self, miner: int, timestamp_ms: int | None = None) -> SignedKeyblock:
        """Return a keyblock that may end the running epoch."""
        epoch, key = self.epoch, testing.key(miner)
        record, reveal_key = epoch.record, testing.reveal_keys(miner)[1]
        wanted = epoch.timestamps_ms[-1] + epoch.parameters.work.interval_ms
        earliest = earliest_timestamp_ms(epoch.timestamps_ms, epoch.root.timestamp_ms)
        template = Keyblock(
            previous=record.keyblock,
            microblock=record.root_hash,
            miner=key.public_key,
            reveal_key=reveal_key,
            reputation_nano=epoch.reputation_of(key.public_key),
            target=record.target,
            timestamp_ms=max(earliest, wanted) if timestamp_ms is None else timestamp_ms,
            state_root=epoch.state_root,
            nonce=bytes(32),
        )
        keyblock = work.search(template, 0, 2**24)
        assert keyblock is not None, "test keyblocks are easy to find"
        return sign_keyblock(self.chain_id, key, keyblock)

    def replay(self, store: Store, first: int = 0) -> list[Done]:
        """Commit the same microblocks, from the given one on, to another store of the network."""
        executor = Executor(store, MACHINES)
        done = []
        for commit, transactions, batches in self.commits[first:]:
            store.put_batches(batches)
            done.append(executor.commit(commit, transactions))
        return done

    def wander(self, rng: random.Random) -> Step:
        """Return a random next step: any number of payments and reports, lost terms, voters, a keyblock now and then."""
        size = len(self.epoch.committee.members)
        raws = [
            self.pay(rng.randrange(WANDERERS), rng.randrange(KEYS), 7, rng.randrange(100, 5_000))
            for _ in range(rng.choice((0, 0, 1, 1, 2, 5)))
        ]
        if rng.random() < 0.06:
            culprit, accused = rng.randrange(WANDERERS), rng.randrange(WANDERERS)
            evidence = testing.votes_evidence(self.chain_id, culprit, self.epoch.number)
            if rng.random() < 0.3:
                evidence = msgspec.structs.replace(evidence, offender=testing.key(accused).public_key)
            raws.append(self.signed(rng.randrange(WANDERERS), ReportMisbehaviour(evidence)))
        others = rng.sample(range(size), rng.randrange(size + 1))
        return Step(
            raws=tuple(raws),
            lost=rng.choice((0, 0, 0, 0, 1, 1, 2, size, rng.randrange(3 * size))),
            reveal=rng.random() < 0.5,
            miner=rng.randrange(WANDERERS) if rng.random() < 0.35 else None,
            later_ms=rng.randrange(1, 20_000),
            voters=tuple({*quorum(self.epoch.committee), *others}),
        )

    # ------------------------------------------------------------------ parts

    def _microblock(
        self,
        tree: BlockTree,
        parent: Node,
        digests: dict[int, bytes],
        step: Step,
        batches: Sequence[bytes],
        keyblock: SignedKeyblock | None,
    ) -> Microblock:
        epoch, cap = self.epoch, self.epoch.parameters.term_microblocks
        opened = election.opened_term(parent.round, cap)
        round_ = (opened + step.lost) * cap if step.lost else parent.round + 1
        reveal = None
        if parent.begins_epoch and epoch.number and (step.reveal or not step.lost):
            secret = testing.reveal_keys(number_of(epoch.record.miner))[0]
            reveal = election.reveal(secret, epoch.root.seed, epoch.record.keyblock)
        term = round_ // cap
        leader = epoch.opener(term, reveal) if parent.begins_epoch else epoch.successor(term, parent.header)
        assert leader is not None, "an opening without lost terms carries the reveal"
        executed = tree.executed_height(parent)
        header = MicroblockHeader(
            height=parent.header.height + 1,
            epoch=epoch.number,
            term=term,
            round=round_,
            parent=parent.hash,
            keyblock=epoch.record.keyblock,
            seed=epoch.opening_seed(reveal) if parent.begins_epoch else parent.header.seed,
            leader=epoch.committee.members[leader].address,
            timestamp_ms=parent.header.timestamp_ms + step.later_ms,
            batch_count=len(batches),
            batches_root=merkle_root(tuple(batches)),
            pinned=pinned_digest(keyblock),
            executed_height=executed,
            # Nobody executes what is not committed: the closing refers to what its parent refers to, or to the parent's parent.
            state_digest=digests[executed],
        )
        return Microblock(header, tuple(batches), keyblock, reveal)

    def _certify(
        self, tree: BlockTree, parent: Node, known: Certificate, block: Microblock, voters: Collection[int] | None
    ) -> tuple[CertifiedMicroblock, Node]:
        epoch, block_hash = self.epoch, microblock_hash(block.header)
        leader = self._key(epoch.committee.index_of(block.header.leader))
        signed = SignedMicroblock(block, leader.sign(microblock_signing_digest(self.chain_id, block_hash)))
        digest = vote_digest(self.chain_id, epoch.number, block.header.round, block_hash)
        indexes = sorted(quorum(epoch.committee) if voters is None else voters)
        votes = tuple(SignedIndex(index, self._key(index).sign(digest)) for index in indexes)
        certified = CertifiedMicroblock(signed, Certificate(epoch.number, block.header.round, block_hash, votes))
        proposal = Proposal(signed, known, None)
        check_certified(epoch, certified, block_hash)
        check_placed(epoch, tree, parent, proposal)
        node = tree.add(block_hash, proposal)
        assert node is not None, "there is room, and the parent is here"
        return certified, node

    def _key(self, index: int | None) -> PrivateKey:
        assert index is not None, "it is a member"
        return testing.key(number_of(self.epoch.committee.members[index].public_key))
