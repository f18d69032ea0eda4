# SPDX-License-Identifier: GPL-3.0-or-later
"""Cores in a row, messages passed by hand: what a test needs to play a protocol step by step, through one epoch or several.

Cores, stores, keyblocks and reveals are real; the execution of microblocks is a stand-in, so that a test can choose who sits in the
next committee. Whatever a test plays, the kit checks that no two cores commit different microblocks at a height (I1), that each commit
follows the one before (I2), that no core says two things in one round (I4), and that whoever is accused is somebody that the test
itself signed for, by evidence that convinces the chain.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from consensus import election, work
from consensus.block_tree import CertifiedMicroblock
from consensus.committee import Committee
from consensus.core import Core
from consensus.epoch import Basis, Chain, Epoch
from consensus.events import (
    Broadcast,
    Commit,
    Effect,
    Event,
    Executed,
    Misbehaviour,
    PayloadChanged,
    Persist,
    Received,
    ReceivedChain,
    Refused,
    RequestBatches,
    RequestChain,
    Send,
    Tick,
)
from consensus.founding import founding_record
from consensus.messages import (
    Certificate,
    Message,
    Offer,
    Proposal,
    Reveal,
    Timeout,
    TimeoutCertificate,
    TimeoutPart,
    Vote,
    timeout_digest,
)
from consensus.restart import committed_head, decode_closing
from consensus.retarget import earliest_timestamp_ms
from consensus.safety import SafetyRecord
from consensus.timing import Timing
from ledger import testing
from ledger.blocks import (
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    keyblock_hash,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
    sign_keyblock,
)
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.crypto.merkle import merkle_root
from ledger.evidence import check_evidence
from ledger.genesis import chain_id, genesis_block
from ledger.memory_store import MemoryStore
from ledger.miners import EpochRecord, Seat
from ledger.rules import REPUTATION_UNIT
from ledger.store import BlockUpdate
from ledger.votes import SignedIndex, vote_digest

NOW_MS = testing.GENESIS_TIMESTAMP_MS + 1_000
TIMING = Timing(timeout_ms=1_000, heartbeat_ms=10_000, maximum_backoff=5)
REPUTATION_NANO = REPUTATION_UNIT // 2
"""That of every member; others have none."""

Drop = Callable[[int, int, Event], bool]


class Batches:
    """A payload of bare digests."""

    def __init__(self) -> None:
        self.here: list[bytes] = []
        self.unpublished: set[bytes] = set()
        """Batches that are here and rest on data that is not."""
        self.most = 1000
        """Batches that one microblock may name: each asks for as much as any other."""
        self.committed: set[bytes] = set()

    def missing(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(digest for digest in digests if digest not in self.here)

    def not_ready(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(digest for digest in digests if digest not in self.here or digest in self.unpublished)

    def is_too_much(self, digests: Sequence[bytes]) -> bool:
        return sum(digest in self.here for digest in digests) > self.most

    def select(self, excluded: Collection[bytes], limit: int) -> tuple[bytes, ...]:
        held_back = self.committed | self.unpublished
        free = [d for d in self.here if d not in held_back and d not in excluded]
        return tuple(free[: min(limit, self.most)])

    def is_committed(self, digest: bytes) -> bool:
        return digest in self.committed


class Disk:
    """What a core's driver has made durable."""

    def __init__(self, store: MemoryStore, epoch: Epoch) -> None:
        self.store = store
        self.epochs = [epoch]
        self.record: SafetyRecord | None = None
        self.proposals: dict[bytes, Proposal] = {}
        self.chain: list[CertifiedMicroblock] = []


def batch(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Net:
    """`n` founding members, newcomers with keys, and observers on one chain; nothing moves unless the test says so.

    Core `i` has `testing.key(i)`. `seats` names the cores in the committee from an epoch on; without it the founders stay. `twins` run
    a second time behind all others, with the same key: what a stolen key or a restored backup does (after Bano et al., Twins, 2020).
    """

    def __init__(
        self,
        n: int = 4,
        term: int = 4,
        observers: int = 0,
        newcomers: int = 0,
        seats: Mapping[int, Sequence[int]] | None = None,
        twins: Sequence[int] = (),
    ) -> None:
        self.parameters = msgspec.structs.replace(testing.PARAMETERS, term_microblocks=term)
        self.genesis = testing.genesis(n, parameters=self.parameters)
        self.chain = Chain(chain_id(self.genesis), self.parameters)
        self.seats = {0: tuple(range(n)), **(seats or {})}
        self.epoch = self._founding_epoch()
        """The epoch that the kit signs in; a test that goes on to a later one sets it."""
        self.now_ms = NOW_MS
        self.keys: list[PrivateKey | None] = [testing.key(i) for i in range(n + newcomers)] + [None] * observers
        self.keys += [testing.key(i) for i in twins]
        self.pools = [Batches() for _ in self.keys]
        self.disks = [Disk(MemoryStore(self.genesis), self.epoch) for _ in self.keys]
        self.order = tuple(self.leader(max(1, lost * term)) for lost in range(n))
        """The founders in the order in which they lead while the first terms are lost."""
        self.withholding: set[int] = set()
        """Creators of keyblocks that do not reveal by themselves."""
        self.cores = [self.boot(i) for i in range(len(self.keys))]
        self.queue: deque[tuple[int, int, Event]] = deque()
        self.log: list[tuple[int, Effect]] = []
        self.dead: set[int] = set()
        self.crashes: Callable[[], bool] = lambda: False
        """Whether a core crashes before its next effect; `restart` brings it back with what its disk holds."""
        self.final: dict[int, tuple[bytes, bytes]] = {0: (self.epoch.record.root_hash, self.state)}
        """Hash and state digest by height, as the first core committed it."""
        self._said: dict[tuple[type[Message], bytes, int, int], bytes] = {}
        self._signed_for = {self.address(i) for i in twins}

    def boot(self, i: int) -> Core:
        """A core from what its disk holds."""
        disk = self.disks[i]
        return Core(
            epoch=disk.epochs[-1],
            payload=self.pools[i],
            key=self.keys[i],
            head=committed_head(disk.store, disk.epochs[-1]),
            record=disk.record,
            proposals=tuple(disk.proposals.values()),
            timing=TIMING,
            now_ms=self.now_ms,
        )

    def restart(self, *who: int) -> None:
        for i in who or range(len(self.cores)):
            self.cores[i] = self.boot(i)
            self.dead.discard(i)

    # ------------------------------------------------------------------ play

    def give(self, name: str, *who: int) -> None:
        """A batch arrives at some, or at all."""
        for i in who or range(len(self.cores)):
            self.pools[i].here.append(batch(name))
            self.step(i, PayloadChanged())

    def offer(self, signed: SignedKeyblock, *who: int) -> None:
        """A keyblock arrives at some, or at all."""
        for i in who or range(len(self.cores)):
            self.step(i, Received(Offer(signed)))

    def step(self, i: int, event: Event, source: int = -1) -> list[Effect]:
        """Step a core and carry its effects out; messages wait in the queue."""
        if i in self.dead:
            return []
        done: list[Effect] = []
        effects = deque(self.cores[i].step(event, self.now_ms))
        while effects:
            if self.crashes():
                self.dead.add(i)
                return done
            effect = effects.popleft()
            done.append(effect)
            self.log.append((i, effect))
            if isinstance(effect, Persist):
                self.disks[i].record = effect.record
                if effect.proposal is not None:
                    self.disks[i].proposals[hash_of(effect.proposal)] = effect.proposal
            elif isinstance(effect, Send):
                self._check_said_once(effect.message)
                targets = [j for j, key in enumerate(self.keys) if key is not None and key.address == effect.to]
                self.queue.extend((i, j, Received(effect.message)) for j in targets if j != i)
            elif isinstance(effect, Broadcast):
                self._check_said_once(effect.message)
                others = [j for j in range(len(self.cores)) if j != i]
                self.queue.extend((i, j, Received(effect.message)) for j in others)
            elif isinstance(effect, Commit):
                effects.extend(self._execute(i, effect))
            elif isinstance(effect, Misbehaviour):
                self._check_accusation(effect)
        return done

    def _execute(self, i: int, effect: Commit) -> list[Effect]:
        disk, block, header = self.disks[i], effect.signed.microblock, effect.signed.microblock.header
        before, epoch = disk.store.head(), disk.epochs[-1]
        assert (header.height, header.parent, header.epoch) == (before.height + 1, before.block_hash, epoch.number)
        state = before.state_digest
        for digest in block.batches:
            state = hashlib.sha256(state + digest).digest()
        assert self.final.setdefault(header.height, (effect.block_hash, state)) == (effect.block_hash, state)
        head = msgspec.structs.replace(
            before, height=header.height, block_hash=effect.block_hash, round=header.round, state_digest=state
        )
        closing = encode(effect.closing) if effect.closing else b""
        assert bool(closing) == (block.keyblock is not None)
        disk.store.put_batches([(digest, digest) for digest in block.batches])
        certificate = encode(effect.block.certificate)
        disk.store.commit(BlockUpdate(head, encode(effect.signed), certificate, block.batches, (), (), closing=closing))
        disk.chain.append(effect.block)
        disk.proposals = {h: p for h, p in disk.proposals.items() if p.signed.microblock.header.height > header.height}
        self.pools[i].committed.update(block.batches)
        following = None if block.keyblock is None else self.succeed(epoch, block, state)
        if following is not None:
            disk.epochs.append(following)
        effects = self.cores[i].step(Executed(header.height, state, following), self.now_ms)
        if following is not None:
            self._reveal(i)
        return effects

    def _reveal(self, i: int) -> None:
        """The creator of a pinned keyblock tells everybody, itself too, what the seed rests on."""
        key, core = self.keys[i], self.cores[i]
        if key is None or core.epoch.record.miner != key.public_key or i in self.withholding or not core.wants_reveal:
            return
        message = self.reveal(self.number(key.address), core.epoch)
        self.queue.extend((i, j, Received(message)) for j in range(len(self.cores)))

    def run(self, drop: Drop = lambda _source, _target, _event: False) -> None:
        """Deliver everything, in order, until nothing is said any more."""
        for _ in range(10_000):
            if not self.queue:
                return
            source, target, event = self.queue.popleft()
            if not drop(source, target, event) and source not in self.dead:
                self.step(target, event, source)
        raise AssertionError("the network never falls silent")

    def serve(self, asker: int, giver: int) -> list[Effect]:
        """Answer the newest request for the chain, with all that follows."""
        asked = self.said(RequestChain, asker)[-1]
        assert isinstance(asked, RequestChain)
        return self.step(asker, ReceivedChain(self.answer(giver, asked, self.cores[asker].epoch.number)))

    def answer(self, giver: int, asked: RequestChain, epoch: int = -1) -> tuple[CertifiedMicroblock, ...]:
        """The microblocks after a height, with the proofs of those that ended an epoch behind them; `epoch` is the asker's."""
        disk, start = self.disks[giver], asked.after_height
        blocks: list[CertifiedMicroblock] = []
        for block in disk.chain:
            header, raw = block.signed.microblock.header, disk.store.closing(block.certificate.block_hash)
            closing = () if raw is None else decode_closing(raw)
            if header.height > start:
                blocks.extend((block, *closing))
            elif closing and header.epoch == epoch:
                # It has the pin, and may have a part of the proof.
                start = header.height
                blocks.extend(more for more in closing if more.signed.microblock.header.height > asked.after_height)
        return (*blocks, *self.cores[giver].certified_tail())

    def wait(self, *who: int, ms: int | None = None) -> None:
        """Time passes until somebody wants a tick; all who want one get it."""
        alive = [i for i in (who or range(len(self.cores))) if i not in self.dead]
        self.now_ms = self.now_ms + ms if ms is not None else min(self.cores[i].next_tick_ms() for i in alive)
        for i in alive:
            self._reveal(i)  # gossip loses some
            if self.cores[i].next_tick_ms() <= self.now_ms:
                self.step(i, Tick())

    def heal(self, until: Callable[[], bool], turns: int = 60) -> None:
        """Time passes, messages arrive, and whoever asks gets: batches, and the chain from whoever is farthest."""
        told = len(self.log)
        for _ in range(turns):
            self.run()
            while told < len(self.log):
                i, effect = self.log[told]
                told += 1
                if isinstance(effect, RequestChain):
                    giver = max(range(len(self.cores)), key=lambda j: (j not in self.dead, len(self.disks[j].chain)))
                    self.step(i, ReceivedChain(self.answer(giver, effect, self.cores[i].epoch.number)))
                elif isinstance(effect, RequestBatches):
                    self.pools[i].here.extend(d for d in effect.digests if d not in self.pools[i].here)
                    self.step(i, PayloadChanged())
            self.run()
            if until():
                return
            self.wait()
        raise AssertionError(f"after {turns} turns heights are {self.heights()}")

    def commit(self, *names: str) -> None:
        """Batches arrive everywhere, each after all who are alive have committed the one before."""
        for name in names:
            digest = batch(name)
            self.give(name)
            self.heal(lambda d=digest: all(d in p.committed for i, p in enumerate(self.pools) if i not in self.dead))  # type: ignore[misc]

    def turn(self, miner: int = 0, *who: int) -> None:
        """A keyblock ends the epoch of some, or of all who are alive, and the kit goes on in the next one."""
        alive = [i for i in (who or range(len(self.cores))) if i not in self.dead]
        number = self.epoch.number + 1
        self.offer(self.mine(miner), *alive)
        self.heal(lambda: all(len(self.disks[i].epochs) > number for i in alive))
        self.epoch = self.disks[alive[0]].epochs[number]

    # ------------------------------------------------------------------ look

    @property
    def first(self) -> MicroblockHeader:
        """Header of the epoch's root."""
        return self.epoch.root

    @property
    def root(self) -> Certificate:
        """Certificate of the epoch's root."""
        return self.epoch.root_certificate

    @property
    def committee(self) -> Committee:
        return self.epoch.committee

    @property
    def state(self) -> bytes:
        """State digest after the epoch's root."""
        return self.epoch.root.state_digest if self.epoch.number == 0 else self.final[self.epoch.root.height][1]

    def address(self, i: int) -> bytes:
        return testing.key(i).address

    def number(self, address: bytes) -> int:
        """The core of a member."""
        return next(i for i, key in enumerate(self.keys) if key is not None and key.address == address)

    def heights(self) -> list[int]:
        return [len(disk.chain) for disk in self.disks]

    def epochs(self) -> list[int]:
        return [core.epoch.number for core in self.cores]

    def record(self, i: int) -> SafetyRecord:
        """What a member has promised durably; at least one thing."""
        record = self.disks[i].record
        assert record is not None
        return record

    def said(self, kind: type[Effect], *who: int) -> list[Effect]:
        return [effect for i, effect in self.log if isinstance(effect, kind) and (not who or i in who)]

    def agrees(self) -> bool:
        chains = [[block.certificate.block_hash for block in disk.chain] for disk in self.disks]
        longest = max(chains, key=len)
        return all(chain == longest[: len(chain)] for chain in chains)

    def _check_said_once(self, message: Message) -> None:
        if isinstance(message, Vote):
            said = (message.voter, message.epoch, message.round, message.block_hash)
        elif isinstance(message, Proposal):
            header = message.signed.microblock.header
            said = (header.leader, header.epoch, header.round, hash_of(message))
        else:
            return
        first = self._said.setdefault((type(message), *said[:3]), said[3])
        assert first == said[3] or said[0] in self._signed_for, "I4"

    def _check_accusation(self, effect: Misbehaviour) -> None:
        guilt = check_evidence(self.chain.id, effect.evidence)
        assert effect.member == self.address(self.number(effect.member))
        assert guilt.offender == testing.key(self.number(effect.member)).public_key
        assert effect.member in self._signed_for, "an honest member is accused"

    # ------------------------------------------------------------------ epochs

    def _founding_epoch(self) -> Epoch:
        store = MemoryStore(self.genesis)
        root_hash, state_root = store.head().block_hash, store.root_at(0)
        assert state_root is not None
        header = genesis_block(self.genesis, store.head().state_digest).header
        record = msgspec.structs.replace(founding_record(self.genesis, root_hash), seats=self._seats(0))
        return self._epoch(Basis(0, record, header, state_root, (header.timestamp_ms,)))

    def succeed(self, epoch: Epoch, block: Microblock, state: bytes) -> Epoch:
        """The stand-in's next epoch, from the microblock that ended one and the state digest after it."""
        assert block.keyblock is not None
        keyblock, header, m = block.keyblock.keyblock, block.header, self.parameters.term_microblocks
        assert keyblock.previous == epoch.record.keyblock, "I3"
        record = EpochRecord(
            keyblock=keyblock_hash(keyblock),
            root_height=header.height,
            root_hash=microblock_hash(header),
            root_round=(header.round // m + 1) * m - 1,
            miner=keyblock.miner,
            reveal_key=keyblock.reveal_key,
            reputation_nano=keyblock.reputation_nano,
            fee_start=hashlib.sha256(block.keyblock.signature).digest(),
            target=self.parameters.work.limit,
            timestamp_ms=keyblock.timestamp_ms,
            seats=self._seats(epoch.number + 1),
        )
        times = (*epoch.timestamps_ms, keyblock.timestamp_ms)[-11:]
        return self._epoch(Basis(epoch.number + 1, record, header, hashlib.sha256(state).digest(), times))

    def _epoch(self, basis: Basis) -> Epoch:
        reputations = {seat.public_key: seat.reputation_nano for seat in basis.record.seats}
        return Epoch(self.chain, basis, lambda public_key: reputations.get(public_key, 0))

    def _seats(self, number: int) -> tuple[Seat, ...]:
        members = self.seats[max(since for since in self.seats if since <= number)]
        return tuple(Seat(testing.key(i).public_key, REPUTATION_NANO) for i in members)

    def mine(self, miner: int = 0, **changes: object) -> SignedKeyblock:
        """A keyblock that solves the epoch's puzzle, whatever else is changed in it; `signer` signs in the miner's place."""
        record, signer = self.epoch.record, changes.pop("signer", miner)
        assert isinstance(signer, int)
        public_key = testing.key(miner).public_key
        keyblock = Keyblock(
            previous=record.keyblock,
            microblock=record.root_hash,
            miner=public_key,
            reveal_key=testing.reveal_keys(miner)[1],
            reputation_nano=self.epoch.reputation_of(public_key),
            target=record.target,
            timestamp_ms=max(
                self.now_ms, earliest_timestamp_ms(self.epoch.timestamps_ms, self.epoch.root.timestamp_ms)
            ),
            state_root=self.epoch.state_root,
            nonce=bytes(32),
        )
        keyblock = msgspec.structs.replace(keyblock, **changes)
        if "nonce" not in changes:
            solved = work.search(keyblock, 0, 2**16)
            assert solved is not None
            keyblock = solved
        return sign_keyblock(self.chain.id, testing.key(signer), keyblock)

    def reveal(self, i: int, epoch: Epoch | None = None) -> Reveal:
        """What a miner signs as the reveal of an epoch; right if the epoch's keyblock is its own."""
        of = self.epoch if epoch is None else epoch
        secret = testing.reveal_keys(i)[0]
        return Reveal(of.number, election.reveal(secret, of.root.seed, of.record.keyblock))

    # ------------------------------------------------------------------ sign anything

    def vote(self, i: int, round_: int, block_hash: bytes) -> Vote:
        self._signed_for.add(self.address(i))
        number = self.epoch.number
        digest = vote_digest(self.chain.id, number, round_, block_hash)
        return Vote(number, round_, block_hash, self.address(i), testing.key(i).sign(digest))

    def certificate(self, round_: int, block_hash: bytes, voters: Sequence[int] = (0, 1, 2)) -> Certificate:
        votes = [SignedIndex(self._index(i), self.vote(i, round_, block_hash).signature) for i in voters]
        return Certificate(self.epoch.number, round_, block_hash, tuple(sorted(votes, key=lambda vote: vote.member)))

    def timeout(
        self, i: int, term: int, high: Certificate | None = None, entry: TimeoutCertificate | None = None
    ) -> Timeout:
        known, number = high if high is not None else self.root, self.epoch.number
        digest = timeout_digest(self.chain.id, number, term, known.round)
        return Timeout(number, term, known, entry, self.address(i), testing.key(i).sign(digest))

    def ended(self, term: int, high_rounds: dict[int, int]) -> TimeoutCertificate:
        parts = []
        for i, high_round in high_rounds.items():
            digest = timeout_digest(self.chain.id, self.epoch.number, term, high_round)
            parts.append(TimeoutPart(self._index(i), high_round, testing.key(i).sign(digest)))
        return TimeoutCertificate(self.epoch.number, term, tuple(sorted(parts, key=lambda part: part.member)))

    def sign(self, block: Microblock, by: int | None = None) -> SignedMicroblock:
        signer = self.number(block.header.leader) if by is None else by
        self._signed_for.add(self.address(signer))
        digest = microblock_signing_digest(self.chain.id, microblock_hash(block.header))
        return SignedMicroblock(block, testing.key(signer).sign(digest))

    def leader(self, round_: int, above: MicroblockHeader | None = None, reveal: bytes | None = None) -> int:
        """Who leads a round when a proposal in it has this parent; the epoch's root without one."""
        term = round_ // self.parameters.term_microblocks
        if above is None or above == self.first:
            index = self.epoch.opener(term, reveal)
            assert index is not None, "nobody leads an epoch's first term without the reveal"
        else:
            index = self.epoch.successor(term, above)
        return self.number(self.committee.members[index].address)

    def header(
        self,
        round_: int,
        above: MicroblockHeader | None = None,
        *,
        executed_height: int | None = None,
        state: bytes | None = None,
        batches: Sequence[bytes] = (),
        later_ms: int = 1,
        keyblock: SignedKeyblock | None = None,
        reveal: bytes | None = None,
    ) -> MicroblockHeader:
        parent = above if above is not None else self.first
        opens = parent == self.first
        return MicroblockHeader(
            height=parent.height + 1,
            epoch=self.epoch.number,
            term=round_ // self.parameters.term_microblocks,
            round=round_,
            parent=microblock_hash(parent),
            keyblock=self.epoch.record.keyblock,
            seed=self.epoch.opening_seed(reveal) if opens else parent.seed,
            leader=self.address(self.leader(round_, above, reveal)),
            timestamp_ms=parent.timestamp_ms + later_ms,
            batch_count=len(batches),
            batches_root=merkle_root(tuple(batches)),
            pinned=pinned_digest(keyblock),
            executed_height=self.first.height if executed_height is None else executed_height,
            state_digest=self.state if state is None else state,
        )

    def proposal(
        self,
        header: MicroblockHeader,
        certificate: Certificate | None = None,
        ended: TimeoutCertificate | None = None,
        batches: Sequence[bytes] = (),
        *,
        keyblock: SignedKeyblock | None = None,
        reveal: bytes | None = None,
    ) -> Proposal:
        known = certificate if certificate is not None else self.root
        return Proposal(self.sign(Microblock(header, tuple(batches), keyblock, reveal)), known, ended)

    def _index(self, i: int) -> int:
        """A core's index in the committee; a number that nobody has for those outside."""
        index = self.committee.index_of(self.address(i))
        return i if index is None else index


def hash_of(proposal: Proposal) -> bytes:
    return microblock_hash(proposal.signed.microblock.header)


def messages(effects: Sequence[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send | Broadcast)]


def blames(effects: Sequence[Effect]) -> list[bool]:
    """Of each refusal among the effects, whether it was the sender's fault."""
    return [effect.at_fault for effect in effects if isinstance(effect, Refused)]
