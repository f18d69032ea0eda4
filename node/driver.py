# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives the consensus core: carries its effects out in order, executes and stores what it commits.

All of it happens on the event loop, one step at a time. When the disk refuses a write, the driver halts: the effect that failed and all
behind it wait, messages are dropped as if the node were away, and it goes on when the write succeeds.
"""

from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from consensus.block_tree import CertifiedMicroblock
from consensus.core import Core
from consensus.epoch import Epoch
from consensus.events import (
    Broadcast,
    Commit,
    Disagreement,
    Effect,
    Event,
    Executed,
    Misbehaviour,
    Persist,
    Refused,
    RequestBatches,
    RequestChain,
    Send,
)
from consensus.executor import Executor
from consensus.messages import Message, Proposal
from consensus.standings import Standings
from ledger.errors import StoreError
from ledger.evidence import Evidence
from ledger.store import Head
from ledger.transactions import CheckedTransaction
from ledger.transition import Execution
from node.batches import BatchPool
from node.safety_file import MAX_PROPOSALS, SafetyFile, SafetySnapshot

log = structlog.get_logger()


class Committed(msgspec.Struct, frozen=True):
    """A microblock that has just been executed and stored."""

    head: Head
    """The head after it."""
    transactions: tuple[CheckedTransaction, ...]
    """Its transactions."""
    execution: Execution
    """What they did."""
    batches: tuple[bytes, ...]
    """Digests of its batches."""
    epoch: Epoch | None
    """The epoch that it began by pinning a keyblock."""


class Ports(msgspec.Struct, frozen=True):
    """Where the driver's effects go; none of these calls waits."""

    send: Callable[[bytes, Message], None]
    """To one member, by address."""
    broadcast: Callable[[Message], None]
    """To all."""
    request_batches: Callable[[tuple[bytes, ...]], None]
    """Fetch batches by digest."""
    request_chain: Callable[[int], None]
    """Fetch certified microblocks after a height."""
    committed: Callable[[Committed], None]
    """A microblock is stored; raises nothing."""
    report: Callable[[Evidence], None]
    """A member has provably broken the protocol."""


class Driver:
    """One core with its durable data."""

    def __init__(
        self,
        *,
        core: Core,
        executor: Executor,
        pool: BatchPool,
        safety: SafetyFile,
        ports: Ports,
        clock_ms: Callable[[], int],
    ) -> None:
        self.core = core
        self._executor = executor
        self._pool = pool
        self._safety = safety
        self._ports = ports
        self._clock_ms = clock_ms
        self._effects: deque[Effect] = deque()
        self._running = False
        self._proposals: dict[bytes, Proposal] = {}
        for proposal in safety.snapshot.proposals if safety.snapshot is not None else ():
            self._keep(proposal)
        self.halted = ""
        """Why writes fail; empty while they succeed."""
        self.disagreement = ""
        """What of the network's order last did not fit this node's own state; empty when everything fits."""
        self._broken: Exception | None = None

    @property
    def standings(self) -> Standings:
        """Who has which reputation, as of the newest pinned keyblock."""
        return self._executor.standings

    @property
    def weight(self) -> int:
        """Weight of the chain here, in expected hashes: this node's own judgement."""
        return self._executor.weight

    def certified_tail(self) -> tuple[CertifiedMicroblock, ...]:
        """Return the certified microblocks after the committed head, oldest first, for those who catch up; none while halted.

        Then a certificate may hold a vote of this node that is not durable, and after a crash the node would vote otherwise.
        """
        return () if self.halted else self.core.certified_tail()

    def replace(self, core: Core) -> None:
        """Go on with another core, made from what is durable; as after a crash, whatever waited is forgotten."""
        assert not self._running, "no effect of the former core is being carried out"
        self.core = core
        self._effects.clear()
        self.halted = ""

    def named_batches(self) -> set[bytes]:
        """Return the batches that uncommitted microblocks name: those this node voted for, and certified and final ones."""
        named = {digest for proposal in self._proposals.values() for digest in proposal.signed.microblock.batches}
        named.update(d for block in self.core.certified_tail() for d in block.signed.microblock.batches)
        for effect in self._effects:
            if isinstance(effect, Commit):
                named.update(effect.signed.microblock.batches)
            elif isinstance(effect, Persist) and effect.proposal is not None:
                named.update(effect.proposal.signed.microblock.batches)
        return named

    def handle(self, event: Event) -> Refused | None:
        """Step the core and carry out its effects; returns why the event was refused, if it was."""
        if self.halted or self._broken is not None:
            return None
        try:
            effects = self.core.step(event, self._clock_ms())
            self._effects.extend(effects)
            self._run()
        except Exception as error:
            self._broken = error
            raise
        return next((effect for effect in effects if isinstance(effect, Refused)), None)

    def resume(self) -> None:
        """Try again what failed; called now and then while halted."""
        if self.halted:
            self._run()

    def check(self) -> None:
        """Raise what has broken the core, whoever's message it was: a fault of ours, and half a step may be missing since.

        What the node promised is on disk; it must end and start afresh rather than go on in an unknown state.
        """
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        if self._running:
            return  # an effect led to another event: its effects come after those before it
        self._running = True
        try:
            self._carry_out_all()
        finally:
            self._running = False

    def _carry_out_all(self) -> None:
        while self._effects:
            try:
                self._carry_out(self._effects[0])
            except StoreError as error:
                if not self.halted:
                    log.warning("storage refuses to write; this node waits", error=str(error))
                self.halted = str(error)
                return
            self._effects.popleft()
        if self.halted:
            log.info("storage works again; this node goes on")
            self.halted = ""

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._persist(effect)
        elif isinstance(effect, Send):
            self._ports.send(effect.to, effect.message)
        elif isinstance(effect, Broadcast):
            self._ports.broadcast(effect.message)
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, RequestBatches):
            self._ports.request_batches(effect.digests)
        elif isinstance(effect, RequestChain):
            self._ports.request_chain(effect.after_height)
        elif isinstance(effect, Misbehaviour):
            log.warning("a member broke the protocol", member=effect.member.hex(), what=effect.what)
            self._ports.report(effect.evidence)
        elif isinstance(effect, Disagreement):
            self.disagreement = effect.what
            log.error("this node disagrees with a microblock", leader=effect.leader.hex(), what=effect.what)

    def _persist(self, effect: Persist) -> None:
        if effect.proposal is not None:
            self._keep(effect.proposal)
        self._safety.save(SafetySnapshot(effect.record, tuple(self._proposals.values())))

    def _keep(self, proposal: Proposal) -> None:
        self._proposals[proposal.signed.signature] = proposal
        while len(self._proposals) > MAX_PROPOSALS:
            del self._proposals[next(iter(self._proposals))]

    def _commit(self, effect: Commit) -> None:
        block = effect.signed.microblock
        transactions: list[CheckedTransaction] = []
        for digest in block.batches:
            batch = self._pool.get(digest)
            assert batch is not None, "the core commits only when every batch is here"
            transactions.extend(batch.transactions)
        done = self._executor.commit(effect, transactions)
        self._pool.remove(block.batches)
        for signature, proposal in list(self._proposals.items()):
            header = proposal.signed.microblock.header
            if header.height <= done.head.height or header.epoch < self._executor.epoch.number:
                del self._proposals[signature]
        try:
            self._ports.committed(Committed(done.head, tuple(transactions), done.execution, block.batches, done.epoch))
        except StoreError as error:
            raise AssertionError(f"the microblock is stored and must not be executed again: {error}") from error
        executed = Executed(done.head.height, done.execution.state_digest, done.epoch)
        self._effects.extend(self.core.step(executed, self._clock_ms()))
