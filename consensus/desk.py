# SPDX-License-Identifier: GPL-3.0-or-later
"""What a core works on in one epoch: the parts that its rules share. Only `learning` and `acting` write on it; it ends with its epoch."""

from collections import deque
from collections.abc import Iterator

from consensus.block_tree import Node
from consensus.certificates import VoteCollector
from consensus.epoch import Epoch
from consensus.events import Effect, Misbehaviour, Payload, RequestChain
from consensus.member import Member
from consensus.messages import Certificate, Message
from consensus.pacemaker import Pacemaker
from consensus.uncommitted import Uncommitted
from ledger.blocks import SignedKeyblock, SignedMicroblock
from ledger.evidence import Evidence

VOTE_WINDOW_ROUNDS = 64
"""Rounds around the current one whose votes are kept: far more than a leader can be ahead of its voters."""
MAX_EARLY = 64
"""Messages of the next epoch that wait until this one has ended here: a few rounds of a committee of 13."""


class Desk:
    """The state of a core between and during steps."""

    def __init__(
        self,
        *,
        epoch: Epoch,
        payload: Payload,
        member: Member | None,
        known: Uncommitted,
        pacemaker: Pacemaker,
        now_ms: int,
    ) -> None:
        self.epoch = epoch
        self.committee = epoch.committee
        self.parameters = epoch.parameters
        self.payload = payload
        self.member = member
        """The seat in the committee; None for an observer."""
        self.known = known
        self.pacemaker = pacemaker
        self.now_ms = now_ms
        self.votes = VoteCollector(VOTE_WINDOW_ROUNDS)
        self.proposed: dict[tuple[int, bytes], tuple[bytes, SignedMicroblock]] = {}
        """By round above the committed head and leader, the one microblock looked at, with its hash; each was placed in the tree, which
        is bounded. In one round two members may rightly take themselves for its leader (see `consensus.election`)."""
        self.refused: set[bytes] = set()
        """Microblocks among `proposed` that this node will not vote for."""
        self.candidate: SignedKeyblock | None = None
        """The first valid keyblock seen that may end the epoch."""
        self.reveal: bytes | None = None
        """What the creator of the epoch's keyblock has revealed."""
        self.accused: set[bytes] = set()
        """Members already told of by `Misbehaviour`."""
        self._last_ms: dict[tuple[str, int], int] = {}
        """When what others may repeat was last heeded, by what it is and the member's index."""
        self.early: deque[Message] = deque(maxlen=MAX_EARLY)
        """Messages of the next epoch, not checked."""
        self.early_again: deque[Message] = deque()
        """Those that came for this epoch before it began here."""
        self.asked_early_ms: int | None = None
        """When microblocks were last asked for because others are in a later epoch."""
        self.halted = False
        """Whether a final microblock contradicts this node's own state: then it commits and signs nothing more."""
        self.ended = False
        """Whether the microblock that ends the epoch is committed: nothing more is to be done in it."""
        self.overtaken = False
        """Whether the end of the epoch came in an answer: then others are ahead in the next epoch, too."""
        self.announce: Certificate | None = None
        """A certificate made here that others learn from a `Certified` unless a proposal carries it."""
        self.executing = 0
        """Commits handed out whose `Executed` has not come back."""
        self.asked_round = -1
        """Round of the newest certified microblock that was here at the last `RequestChain`."""
        self.ask_after_tip = True
        """Whether the next `RequestChain` asks after that microblock rather than after the committed head."""
        self.inbox: deque[Message] = deque()
        """This member's own messages to itself; at most a proposal, a vote and a time-out at a time."""
        self.effects: list[Effect] = []
        """Effects of the current step."""

    def current(self) -> Iterator[Node]:
        """Yield the current round's microblocks, unless refused: usually one at most."""
        for (round_, _), (block_hash, _) in self.proposed.items():
            if round_ == self.pacemaker.round and block_hash not in self.refused:
                node = self.known.tree.get(block_hash)
                if node is not None:
                    yield node

    def may_act(self) -> bool:
        """Tell whether all commits are executed: before, the payload does not know what has been ordered."""
        return not (self.executing or self.halted or self.ended)

    def leader_after(self, parent: Node) -> int | None:
        """Return the member that leads the current term if it proposes on `parent`; None while nobody here can know."""
        if parent.begins_epoch:
            return self.epoch.opener(self.pacemaker.term, self.reveal)
        return self.epoch.successor(self.pacemaker.term, parent.header)

    def leader(self) -> int | None:
        """Return the member that leads the current term as far as is known here."""
        parent = self.known.tree.get(self.known.high.block_hash)
        return None if parent is None else self.leader_after(parent)

    def wants_keyblock(self, tip: Node) -> bool:
        """Tell whether a keyblock waits to be pinned after `tip`."""
        return self.candidate is not None and not tip.ends_epoch

    def must_go_on(self, tip: Node) -> bool:
        """Tell whether consensus itself needs a microblock after `tip`: to open the epoch, to pin a keyblock, to make that final."""
        return (tip.begins_epoch and self.epoch.number > 0) or tip.ends_epoch or self.wants_keyblock(tip)

    def accuse(self, evidence: Evidence, member: bytes, what: str) -> None:
        """Tell of a member that has signed a contradiction; once, for anybody may repeat the proof."""
        if member not in self.accused:
            self.accused.add(member)
            self.emit(Misbehaviour(member, what, evidence))

    def lately(self, what: str, index: int = 0) -> bool:
        """Tell whether something was heeded less than half a time-out ago: who repeats for those who missed it leaves more time."""
        last_ms = self._last_ms.get((what, index))
        return last_ms is not None and self.now_ms < last_ms + self.pacemaker.patience.timing.timeout_ms // 2

    def heed(self, what: str, index: int = 0) -> None:
        """Note that something is heeded now; `what` is one of a few words, so the notes are bounded by the committee."""
        self._last_ms[what, index] = self.now_ms

    def request_chain(self) -> None:
        """Ask for what follows the newest certified microblock here, and the next time for what follows the head.

        The one makes progress although an answer is too short to commit anything, the other although our newest
        microblock is beside the chain that others went on with.
        """
        if any(isinstance(effect, RequestChain) for effect in self.effects):
            return
        tip = self.known.tip()
        after = tip if self.ask_after_tip else self.known.root
        self.ask_after_tip = not self.ask_after_tip
        self.asked_round = tip.round
        self.emit(RequestChain(after.header.height))

    def keep_early(self, message: Message, epoch: int) -> None:
        """Others are in a later epoch: keep what may be of use in the next one, and ask for the end of this one."""
        if epoch == self.epoch.number + 1:
            self.early.append(message)
        if self.ended:
            return  # it begins here as soon as its root is executed
        interval_ms = self.pacemaker.patience.timing.timeout_ms // 2
        if self.asked_early_ms is None or self.now_ms >= self.asked_early_ms + interval_ms:
            self.asked_early_ms = self.now_ms
            self.request_chain()

    def emit(self, effect: Effect) -> None:
        """Add an effect of this step."""
        self.effects.append(effect)

    def emit_once(self, effect: Effect) -> None:
        """Add an effect unless this step has it already."""
        if effect not in self.effects:
            self.effects.append(effect)
