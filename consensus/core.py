# SPDX-License-Identifier: GPL-3.0-or-later
"""The BFT core: two-phase pipelined HotStuff with time-out certificates, `step(event, now) → effects`.

After Jolteon (Gelashvili, Kokoris-Kogias, Sonnino, Spiegelman, Xiang, FC 2022) with RepuCoin's leader terms as views: a leader
proposes round after round, votes go back to it, a certificate of round r opens round r+1, and two certified microblocks in
consecutive rounds commit the first. Time-outs concern a whole term (see `consensus.safety` for why that is safe). No clock,
socket, file or random source is read here; the same core runs in nodes and in the simulator.

    proposal of round r ──votes──▶ certificate(r) ──▶ proposal of round r+1 carries it ──▶ certificate(r+1) commits round r
    patience ends ──time-outs of term t──▶ time-out certificate(t) ──▶ first round of term t+1, next leader

An epoch ends when a microblock that pins a keyblock is committed; then the core clears its desk and goes on in the next epoch.

How messages change what is known stands in `consensus.learning`, what is done about it in `consensus.acting`, what a member
signs in `consensus.member`, what an epoch rests on in `consensus.epoch`.
"""

from contextlib import suppress

from consensus.acting import give_up, has_work, try_commit, try_propose, try_vote
from consensus.block_tree import CertifiedMicroblock, Node
from consensus.desk import Desk
from consensus.epoch import Epoch
from consensus.events import (
    Broadcast,
    Effect,
    Event,
    Executed,
    Payload,
    PayloadChanged,
    Received,
    ReceivedChain,
    Refused,
    Tick,
)
from consensus.learning import Untimely, on_chain, on_message, on_proposal
from consensus.member import Member
from consensus.messages import Certificate, Certified, Proposal
from consensus.pacemaker import Pacemaker
from consensus.safety import SafetyRecord, fresh_record
from consensus.timing import Timing
from consensus.uncommitted import CommittedHead, Uncommitted
from ledger.blocks import SignedKeyblock, microblock_hash
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput

__all__ = ["CommittedHead", "Core"]


class Core:
    """One member (with a key) or observer (without) of the agreement on one chain."""

    def __init__(
        self,
        *,
        epoch: Epoch,
        payload: Payload,
        key: PrivateKey | None,
        head: CommittedHead,
        record: SafetyRecord | None,
        proposals: tuple[Proposal, ...],
        timing: Timing,
        now_ms: int,
    ) -> None:
        """Start from durable data: `record` and `proposals` are what `Persist` effects have stored."""
        self._payload = payload
        self._key = key
        self._timing = timing
        # Promises of an epoch that this node has not reached: its store is older than its record. It is silent until it gets there.
        self._promised = record if record is not None and record.epoch > epoch.number else None
        current = record if record is not None and record.epoch == epoch.number else fresh_record(epoch)
        self._desk = self._open_desk(epoch, head, current, now_ms)
        self._restore(current, proposals)

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event at `now_ms` (milliseconds since 1970) and return what is to be done, in order.

        A message that is wrong gives a `Refused`; then the core has changed only by the valid certificates in it.
        """
        self._desk.now_ms = max(self._desk.now_ms, now_ms)
        effects: list[Effect] = []
        self._desk.effects = effects
        try:
            self._dispatch(event)
        except InvalidInput as error:
            effects.append(Refused(str(error), at_fault=not isinstance(error, Untimely)))
        self._settle()
        return effects

    @property
    def epoch(self) -> Epoch:
        """The running epoch."""
        return self._desk.epoch

    @property
    def round(self) -> int:
        """The current round."""
        return self._desk.pacemaker.round

    @property
    def term(self) -> int:
        """The current term."""
        return self._desk.pacemaker.term

    @property
    def high(self) -> Certificate:
        """The newest certificate known here."""
        return self._desk.known.high

    @property
    def record(self) -> SafetyRecord | None:
        """What this member has promised in the running epoch; None for an observer."""
        return None if self._desk.member is None else self._desk.member.record

    @property
    def committed_height(self) -> int:
        """Height of the newest microblock handed out by `Commit`."""
        return self._desk.known.root.header.height

    @property
    def candidate(self) -> SignedKeyblock | None:
        """The keyblock that is to end the running epoch, if one is known."""
        return self._desk.candidate

    @property
    def wants_reveal(self) -> bool:
        """Tell whether the creator of the epoch's keyblock should reveal: nothing of the epoch is committed and none is known."""
        desk = self._desk
        return desk.epoch.number > 0 and desk.known.root.begins_epoch and desk.reveal is None

    def leader_address(self) -> bytes | None:
        """Return the address of the current round's leader; None while nobody here can know."""
        leader = self._desk.leader()
        return None if leader is None else self._desk.committee.members[leader].address

    def next_tick_ms(self) -> int:
        """Return when the core wants a `Tick` if nothing else happens."""
        return self._desk.pacemaker.patience.next_tick_ms()

    def certified_tail(self) -> tuple[CertifiedMicroblock, ...]:
        """Return the certified microblocks after the committed head, oldest first, for those who catch up."""
        return self._desk.known.certified_tail()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Received):
            on_message(self._desk, event.message)
        elif isinstance(event, ReceivedChain):
            on_chain(self._desk, event.blocks)
        elif isinstance(event, Executed):
            self._on_executed(event)
        elif isinstance(event, Tick):
            self._on_tick()
        else:
            assert isinstance(event, PayloadChanged)  # `_settle` looks at the payload anyway

    def _on_executed(self, event: Executed) -> None:
        assert self._desk.executing > 0, "only commits are executed"
        self._desk.executing -= 1
        self._desk.known.digests[event.height] = event.state_digest
        if event.epoch is not None:
            self._begin(event.epoch, event.state_digest)

    def _begin(self, epoch: Epoch, state_digest: bytes) -> None:
        """The microblock that ends the epoch is executed: begin the next one with a clear desk."""
        before = self._desk
        assert before.ended, "only a committed pin begins an epoch"
        assert not before.executing, "and it is the last commit of its epoch"
        root = before.known.root
        assert epoch.number == before.epoch.number + 1, "epochs follow each other"
        head = CommittedHead(
            root_node(epoch, root.batches), epoch.root_certificate, ((root.header.height, state_digest),)
        )
        record = fresh_record(epoch)
        if self._promised is not None and self._promised.epoch == epoch.number:
            record, self._promised = self._promised, None
        self._desk = self._open_desk(epoch, head, record, before.now_ms)
        self._desk.effects = before.effects
        self._restore(record, ())
        self._desk.early_again.extend(before.early)
        if before.overtaken:
            self._desk.request_chain()

    def _open_desk(self, epoch: Epoch, head: CommittedHead, record: SafetyRecord, now_ms: int) -> Desk:
        member = None
        if self._key is not None and self._promised is None:
            index = epoch.committee.index_of(self._key.address)
            member = Member(epoch.chain_id, self._key, index, record) if index is not None else None
        return Desk(
            epoch=epoch,
            payload=self._payload,
            member=member,
            known=Uncommitted(head),
            pacemaker=Pacemaker(epoch.parameters.term_microblocks, head.certificate.round + 1, self._timing, now_ms),
            now_ms=now_ms,
        )

    def _on_tick(self) -> None:
        desk = self._desk
        patience = desk.pacemaker.patience
        if patience.expired(desk.now_ms):
            patience.repeat(desk.now_ms)
            # A time-out that nobody joins may be one of an epoch that is over for all others: they answer such ones no more.
            unheard = desk.member is None or desk.member.has_given_up(desk.pacemaker.term)
            give_up(desk, repeat=True)
            if unheard or desk.known.is_behind():
                desk.request_chain()

    def _settle(self) -> None:
        """Do whatever has become possible, until nothing has."""
        desk = self._desk
        while True:
            self._adopt_orphans()
            try_commit(desk)
            try_vote(desk)
            try_propose(desk)
            if desk.inbox:
                self._hear_own(desk)
            elif not self._hear_early(desk):
                break
        if desk.announce is not None and not desk.executing:
            if desk.announce.round == self.high.round:
                desk.emit(Broadcast(Certified(desk.announce, None)))
            desk.announce = None
        # Whatever an answer brought is committed and others are still ahead: the next answer brings more.
        behind = desk.known.is_behind() and desk.known.next_commit() is None
        if behind and not desk.ended and desk.known.tip().round > desk.asked_round:
            desk.ask_after_tip = True
            desk.request_chain()
        desk.pacemaker.patience.observe_work(work=not desk.ended and has_work(desk), now_ms=desk.now_ms)

    def _hear_own(self, desk: Desk) -> None:
        message = desk.inbox.popleft()
        if desk.ended:
            return  # it was said before the epoch ended
        try:
            on_message(desk, message)
        except Untimely:
            return  # others brought it before us, or what we did since has overtaken it
        except InvalidInput as error:
            raise AssertionError(f"a message of our own is wrong: {error}") from error

    def _hear_early(self, desk: Desk) -> bool:
        """Take one message that came before its epoch began here; False when there is none."""
        if not desk.early_again:
            return False
        with suppress(InvalidInput):  # who sent it is not known any more
            on_message(desk, desk.early_again.popleft())
        return True

    def _adopt_orphans(self) -> None:
        for proposal in self._desk.known.adoptable():
            try:
                on_proposal(self._desk, proposal)
            except InvalidInput:
                continue  # its place in the tree is wrong: the leader's fault, whoever brought it

    def _restore(self, record: SafetyRecord, proposals: tuple[Proposal, ...]) -> None:
        """Take up durable promises and proposals after a restart."""
        desk = self._desk
        known, pacemaker, member = desk.known, desk.pacemaker, desk.member
        entries = [record.entry]
        for proposal in sorted(proposals, key=_round):
            header = proposal.signed.microblock.header
            block_hash = microblock_hash(header)
            if header.epoch != desk.epoch.number or header.parent not in known.tree:
                continue  # committed since, or beside what was committed
            if known.add(block_hash, proposal) is None:
                continue
            if member is not None:
                member.restored(block_hash)
            desk.proposed[header.round, header.leader] = (block_hash, proposal.signed)
            known.take(proposal.certificate)
            entries.append(proposal.timeout_certificate)
        known.take(record.high_certificate)
        pacemaker.certified(self.high.round, desk.now_ms)
        for entry in entries:
            if entry is not None:
                pacemaker.ended(entry, desk.now_ms)
        if member is not None and member.has_given_up(self.term):
            pacemaker.patience.repeat(desk.now_ms)


def root_node(epoch: Epoch, batches: tuple[bytes, ...]) -> Node:
    """Return the microblock that an epoch begins after, as the root of its tree."""
    record = epoch.record
    return Node(record.root_hash, epoch.root, batches, record.root_round, -1, None, begins_epoch=True)


def _round(proposal: Proposal) -> int:
    return proposal.signed.microblock.header.round
