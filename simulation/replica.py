# SPDX-License-Identifier: GPL-3.0-or-later
"""One replica: the production core, executor and answers, a disk that outlives crashes, and a driver that does as `node.driver`."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Protocol

from consensus.block_tree import CertifiedMicroblock
from consensus.core import Core
from consensus.events import (
    Broadcast,
    Commit,
    Disagreement,
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
from consensus.executor import Done, Executor
from consensus.messages import Message, Proposal, decode_message
from consensus.restart import committed_head
from consensus.safety import SafetyRecord, fresh_record
from consensus.timing import Timing
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, StoreError
from ledger.genesis import Genesis, chain_id
from ledger.offchain import data_digest
from ledger.transactions import CheckedTransaction
from node.answers import answer_batches, answer_chain
from node.clock import Clock
from node.safety_file import MAX_PROPOSALS, SafetySnapshot
from node.wire import (
    BatchesAnswer,
    ChainRequest,
    Digests,
    decode_batches_answer,
    decode_chain_answer,
    decode_digests,
)
from simulation.disk import Disk
from simulation.network import Kind
from simulation.pool import Pool

TIMING = Timing(timeout_ms=400, heartbeat_ms=3_000, maximum_backoff=3)
"""Shorter than a node's, so that more happens in a run."""
RETRY_MS = 300
"""A request without an answer is repeated after this, if the core still asks."""
RESUME_MS = 200
"""A replica whose store refuses tries again after this."""
REGOSSIP_MS = 1_500
"""Own batches that wait, and those found at a start, are sent again: gossip loses some, and nobody else may have them."""
ANSWER_BLOCKS = 8
"""Microblocks in one answer: few, so that catching up takes several."""
NS_PER_MS = 1_000_000

# A pure function of bytes that a broadcast brings to every replica.
read_message = lru_cache(maxsize=512)(decode_message)


class World(Protocol):
    """What a replica sees of the world."""

    rng: random.Random

    def now_ms(self) -> int:
        """Return the time that perfect clocks show."""

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Call an action later."""

    def send(self, replica: "Replica", target: int | None, kind: Kind, payload: bytes) -> None:
        """Send to one or, with None, to all others."""

    def say(self, replica: "Replica", target: int | None, message: Message) -> None:
        """Send a consensus message to one or to all others."""

    def member(self, address: bytes) -> int:
        """Return which replica has an address."""

    def someone_else(self, replica: "Replica") -> int:
        """Return a random other replica, or the replica itself when it is alone."""

    def committed(
        self, replica: "Replica", commit: Commit, transactions: Sequence[CheckedTransaction], done: Done
    ) -> None:
        """A microblock has been stored."""

    def told(self, replica: "Replica", source: int, effect: Effect) -> None:
        """The core has judged something."""

    def keeps_data(self, replica: "Replica", digest: bytes, raw: bytes) -> None:
        """Published data of an off-chain batch is on a replica's disk."""

    def tears(self, replica: "Replica") -> bool:
        """Tell whether the replica crashes now, before its next effect."""


class Replica:
    """A node without sockets, threads or files."""

    def __init__(self, number: int, key: PrivateKey, genesis: Genesis, world: World, skew_ms: int) -> None:
        self.number = number
        self.key = key
        self.chain_id = chain_id(genesis)
        self.disk = Disk(genesis)
        self.core: Core | None = None
        self.pool = Pool(self.disk.store, self.disk.data)
        self.executor = Executor(self.disk.store, MACHINES)
        self.starts = 0
        self.skew_ms = skew_ms
        """How far the system's clock of this replica is ahead of the true time."""
        self.halted = False
        """Whether its store or safety record refuses writes."""
        self._world = world
        self._clock = Clock(self._system_ns, self._passed_ns)
        self._effects: deque[tuple[int, Effect]] = deque()
        self._running = False
        self._proposals: dict[bytes, Proposal] = {}
        self._own: set[bytes] = set()
        self._asked: dict[bytes, int] = {}
        self._wanted_data: set[bytes] = set()
        self._tick_ms: int | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> bool:
        """Begin, or begin again with what the disk holds; False when not even a first record can be written."""
        store, safety = self.disk.store, self.disk.safety
        self._clock = Clock(self._system_ns, self._passed_ns)
        self.pool = Pool(store, self.disk.data)
        self._own = {digest for digest, _ in self.pool.pending()}
        self.executor = Executor(store, MACHINES)
        epoch = self.executor.epoch
        safety.load()
        try:
            if safety.snapshot is None:
                safety.save(SafetySnapshot(fresh_record(epoch), ()))
        except StoreError:
            return False
        assert safety.snapshot is not None, "it has just been saved"
        self.starts += 1
        self._proposals = {proposal.signed.signature: proposal for proposal in safety.snapshot.proposals}
        self.core = Core(
            epoch=epoch,
            payload=self.pool,
            key=self.key,
            head=committed_head(store, epoch),
            record=safety.snapshot.record,
            proposals=safety.snapshot.proposals,
            timing=TIMING,
            now_ms=self.clock_ms(),
        )
        self._regossip()
        self.handle(PayloadChanged())
        return True

    def crash(self) -> None:
        """Lose everything but the disk."""
        self.core = None
        self._effects.clear()
        self.halted = False
        self._asked.clear()
        self._wanted_data.clear()
        self._tick_ms = None

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Call an action later, unless the replica has crashed meanwhile."""
        start = self.starts

        def act() -> None:
            if self.core is not None and self.starts == start:
                action()

        self._world.after(delay_ms, act)

    def clock_ms(self) -> int:
        """Return what the node's own clock shows."""
        return self._clock.now_ms()

    def certified_tail(self) -> tuple[CertifiedMicroblock, ...]:
        """Return what is certified behind the committed head; nothing while halted, for a vote of its own may not be durable."""
        return () if self.core is None or self.halted else self.core.certified_tail()

    def record(self) -> SafetyRecord:
        """Return what the disk remembers of the promises."""
        assert self.disk.safety.snapshot is not None, "a replica that has started has a record"
        return self.disk.safety.snapshot.record

    def _system_ns(self) -> int:
        return (self._world.now_ms() + self.skew_ms) * NS_PER_MS

    def _passed_ns(self) -> int:
        return self._world.now_ms() * NS_PER_MS

    # ------------------------------------------------------------------ what reaches it

    def submit(self, raw_batch: bytes) -> None:
        """A client hands in transactions: durable first, then to all."""
        try:
            self._own.add(self.pool.add(raw_batch))
        except StoreError:
            return  # the client is told so, and tries another replica
        self._world.send(self, None, Kind.BATCH, raw_batch)
        self.handle(PayloadChanged())

    def receive(self, source: int, kind: Kind, payload: bytes) -> None:
        """Take bytes from the network; whatever is wrong with them changes nothing."""
        if self.core is None:
            return
        try:
            if kind == Kind.MESSAGE:
                self.handle(Received(read_message(payload)), source)
            elif kind in {Kind.BATCH, Kind.BATCHES}:
                for raw in (payload,) if kind == Kind.BATCH else decode_batches_answer(payload).batches:
                    self._want_data(self.pool.lacks(self.pool.add(raw)), source)
                self.handle(PayloadChanged())
            elif kind in {Kind.DATA, Kind.ASK_DATA}:
                self._receive_data(source, kind, payload)
            elif kind == Kind.ASK_CHAIN:
                self._world.send(self, source, Kind.CHAIN, answer_chain(self.disk.store, self.certified_tail, payload))
            elif kind == Kind.CHAIN:
                # Epoch by epoch: who certifies the next one is known when the one before is executed.
                for _, blocks in groupby(decode_chain_answer(payload).blocks, key=_epoch_of):
                    self.handle(ReceivedChain(tuple(blocks)), source)
            else:
                self._world.send(self, source, Kind.BATCHES, answer_batches(self.disk.store, payload))
        except (InvalidInput, StoreError):
            return

    def _receive_data(self, source: int, kind: Kind, payload: bytes) -> None:
        if kind == Kind.DATA:
            for raw in decode_batches_answer(payload).batches:
                if data_digest(raw) in self._wanted_data:
                    self._keep_data(raw)
            self.handle(PayloadChanged())
        else:
            held = (self.disk.data.get(digest) for digest in decode_digests(payload).digests)
            answer = BatchesAnswer(tuple(raw for raw in held if raw is not None))
            self._world.send(self, source, Kind.DATA, encode(answer))

    def publish(self, raw: bytes) -> None:
        """An operator hands in the data of a batch; raises `StoreError` while the disk is full."""
        self._keep_data(raw)
        self.handle(PayloadChanged())

    def want_data(self, digest: bytes) -> None:
        """Ask for data that is not here, of anybody."""
        self._want_data((digest,), self._world.someone_else(self))

    def _want_data(self, digests: Sequence[bytes], source: int) -> None:
        self._wanted_data.update(digests)
        asked = tuple(digest for digest in digests if self._may_ask(digest))
        if asked:
            self._world.send(self, source, Kind.ASK_DATA, encode(Digests(asked)))

    def _keep_data(self, raw: bytes) -> None:
        if self.disk.store.full:
            raise StoreError("the disk is full")
        digest = data_digest(raw)
        self.disk.data[digest] = raw
        self._wanted_data.discard(digest)
        self._world.keeps_data(self, digest, raw)

    def handle(self, event: Event, source: int = -1) -> None:
        """Step the core and carry out its effects, in order, those of nested steps behind all before them."""
        if self.core is None or self.halted:
            return
        self._effects.extend((source, effect) for effect in self.core.step(event, self.clock_ms()))
        if not self._running:  # else an effect led to another event
            self._run()

    def _run(self) -> None:
        """Carry out what waits; a store that refuses halts the replica with the effect that failed in front."""
        self._running = True
        while self._effects and not self._is_torn():
            try:
                self._carry_out(*self._effects[0])
            except StoreError:
                self.halted = True
                self.later(RESUME_MS, self._run)
                break
            self._effects.popleft()
        else:
            self.halted = False
        self._running = False
        if self.core is not None:
            self._ask_for_tick(self.core.next_tick_ms())

    def _is_torn(self) -> bool:
        if not self._world.tears(self):
            return False
        if isinstance(self._effects[0][1], Persist) and self._world.rng.randrange(2):
            self.disk.safety.tear()
        self.crash()
        return True

    def _ask_for_tick(self, at_ms: int) -> None:
        if self._tick_ms != at_ms:
            self._tick_ms = at_ms
            self.later(max(1, at_ms - self.clock_ms()), lambda: self._tick(at_ms))

    def _tick(self, at_ms: int) -> None:
        if self._tick_ms == at_ms:
            self._tick_ms = None
            self.handle(Tick())

    def _regossip(self) -> None:
        pending = dict(self.pool.pending())
        self._own.intersection_update(pending)
        for digest in sorted(self._own):
            self._world.send(self, None, Kind.BATCH, pending[digest])
        for digest in pending:
            lacks = self.pool.lacks(digest)
            if lacks:
                self._want_data(lacks, self._world.someone_else(self))
        self.later(REGOSSIP_MS, self._regossip)

    # ------------------------------------------------------------------ effects

    def _carry_out(self, source: int, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._persist(effect)
        elif isinstance(effect, Send):
            self._world.say(self, self._world.member(effect.to), effect.message)
        elif isinstance(effect, Broadcast):
            self._world.say(self, None, effect.message)
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, RequestBatches):
            for digest in effect.digests:
                self._want_data(self.pool.lacks(digest), self._world.someone_else(self))
            here = self.disk.store
            digests = tuple(d for d in effect.digests if here.batch(d) is None and self._may_ask(d))
            if digests:
                request = encode(Digests(digests))
                self._world.send(self, self._world.someone_else(self), Kind.ASK_BATCHES, request)
        elif isinstance(effect, RequestChain):
            self._request_chain(effect.after_height)
        elif isinstance(effect, Misbehaviour | Refused | Disagreement):
            self._world.told(self, source, effect)

    def _persist(self, effect: Persist) -> None:
        if effect.proposal is not None:
            self._proposals[effect.proposal.signed.signature] = effect.proposal
            while len(self._proposals) > MAX_PROPOSALS:
                del self._proposals[next(iter(self._proposals))]
        self.disk.safety.save(SafetySnapshot(effect.record, tuple(self._proposals.values())))

    def _commit(self, effect: Commit) -> None:
        block = effect.signed.microblock
        transactions = [checked for digest in block.batches for checked in self.pool.transactions(digest)]
        done = self.executor.commit(effect, transactions)
        self.pool.committed(block.batches)
        for signature, proposal in list(self._proposals.items()):
            header = proposal.signed.microblock.header
            if header.height <= done.head.height or header.epoch < self.executor.epoch.number:
                del self._proposals[signature]
        self._world.committed(self, effect, transactions, done)
        assert self.core is not None, "effects are a running core's"
        executed = Executed(done.head.height, done.execution.state_digest, done.epoch)
        self._effects.extend((-1, follows) for follows in self.core.step(executed, self.clock_ms()))

    def _request_chain(self, after_height: int) -> None:
        assert self.core is not None, "effects are a running core's"
        # By height: a core asks after its tip and after its head in turn, and one throttle for both could always swallow the same.
        if self._may_ask(b"chain%d" % after_height):
            request = encode(ChainRequest(self.core.epoch.number, after_height, ANSWER_BLOCKS))
            self._world.send(self, self._world.someone_else(self), Kind.ASK_CHAIN, request)

    def _may_ask(self, what: bytes) -> bool:
        now = self._world.now_ms()
        if self._asked.get(what, -RETRY_MS) + RETRY_MS > now:
            return False
        self._asked[what] = now
        return True


def _epoch_of(block: CertifiedMicroblock) -> int:
    return block.signed.microblock.header.epoch
