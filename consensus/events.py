# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes into the core and what comes out of it.

The driver (node or simulator) carries effects out strictly in their order, those of a later step after all of an earlier one:
a `Persist` is durable before the messages behind it leave, and a `Commit` is executed and stored before anything else, its
digest going back as `Executed`. A driver that cannot make a `Persist` durable stops there and drops the rest.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from consensus.block_tree import CertifiedMicroblock
from consensus.epoch import Epoch
from consensus.messages import Message, Proposal
from consensus.safety import SafetyRecord
from ledger.blocks import SignedMicroblock
from ledger.evidence import Evidence


class Received(msgspec.Struct, frozen=True):
    """Event: a message of a peer, decoded but not checked."""

    message: Message
    """The message."""


class ReceivedChain(msgspec.Struct, frozen=True):
    """Event: certified microblocks for catching up, oldest first, not checked."""

    blocks: tuple[CertifiedMicroblock, ...]
    """The microblocks with their certificates."""


class PayloadChanged(msgspec.Struct, frozen=True):
    """Event: batches have arrived (see `Payload`)."""


class Executed(msgspec.Struct, frozen=True):
    """Event: a committed microblock has been executed and stored."""

    height: int
    """Its height."""
    state_digest: bytes
    """Running state digest after it."""
    epoch: Epoch | None = None
    """The epoch that it began by pinning a keyblock."""


class Tick(msgspec.Struct, frozen=True):
    """Event: time has passed."""


Event = Received | ReceivedChain | PayloadChanged | Executed | Tick


class Persist(msgspec.Struct, frozen=True):
    """Effect: make the safety record, and a proposal if there is one, durable now."""

    record: SafetyRecord
    """The promises so far."""
    proposal: Proposal | None
    """A proposal to keep until its height is committed: one voted for, or an ancestor of one. Several may share a height."""


class Send(msgspec.Struct, frozen=True):
    """Effect: send a message to one member."""

    to: bytes
    """Address of the member."""
    message: Message
    """The message."""


class Broadcast(msgspec.Struct, frozen=True):
    """Effect: send a message to all."""

    message: Message
    """The message."""


class Commit(msgspec.Struct, frozen=True):
    """Effect: a microblock is final; execute and store it, then step with `Executed`."""

    signed: SignedMicroblock
    """The microblock."""
    block_hash: bytes
    """Its hash."""
    block: CertifiedMicroblock
    """The same with its certificate."""
    closing: tuple[CertifiedMicroblock, ...] = ()
    """When it pins a keyblock: the certified microblocks behind it that made it final; the chain goes on without them."""


class RequestBatches(msgspec.Struct, frozen=True):
    """Effect: a microblock names batches that are not here; fetch them."""

    digests: tuple[bytes, ...]
    """Digests of the batches."""


class RequestChain(msgspec.Struct, frozen=True):
    """Effect: others are ahead; fetch certified microblocks.

    The height is a hint: in turn that of the newest certified microblock here, which may be beside what others went on with, and that
    of the committed head. Who pages from the committed head, as nodes do, needs none; who follows it must drop neither kind.
    """

    after_height: int
    """Height of a microblock here; what is before it need not come again."""


class Misbehaviour(msgspec.Struct, frozen=True):
    """Effect: a member has provably signed two things that contradict each other; told once per member and run."""

    member: bytes
    """Address of the member."""
    what: str
    """What it did, for people."""
    evidence: Evidence
    """The proof, for the chain."""


class Disagreement(msgspec.Struct, frozen=True):
    """Effect: a microblock does not fit this node's own state or order; nothing signed proves which side is wrong.

    When the microblock is final, this node commits nothing more: its own state is not what a quorum has certified.
    """

    leader: bytes
    """Address of the member that proposed it."""
    what: str
    """What does not fit, for people."""


class Refused(msgspec.Struct, frozen=True):
    """Effect: the event was a message that is of no use here."""

    reason: str
    """Why, for people."""
    at_fault: bool = True
    """Whether its sender has broken the rules; not when the message only comes too late or too early."""


Effect = Refused | Persist | Send | Broadcast | Commit | RequestBatches | RequestChain | Misbehaviour | Disagreement


class Payload(Protocol):
    """The batches that are here, decoded and checked; queries only, answered from memory."""

    def missing(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests whose batches are not here or not checked yet: without them nothing can be executed."""

    def not_ready(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return those of the digests for which this node does not vote yet: missing ones, and ones whose published data is not here.

        A vote says that the data can be had. What a quorum has voted for is committed without it.
        """

    def is_too_much(self, digests: Sequence[bytes]) -> bool:
        """Tell whether the batches ask for more than a microblock may (`ledger.load`), those that are missing not counted.

        This node votes for no such microblock. What a quorum has voted for is committed nevertheless.
        """

    def select(self, excluded: Collection[bytes], limit: int) -> tuple[bytes, ...]:
        """Return up to `limit` digests of batches, all ready, none committed or excluded, each once, together not too much.

        They come in order of arrival.
        """

    def is_committed(self, digest: bytes) -> bool:
        """Tell whether a committed microblock names the batch."""
