# SPDX-License-Identifier: GPL-3.0-or-later
"""What committee members say to each other, and how it is signed.

A *term* is one leader's view: rounds term·m … term·m+m−1, with m the cap of microblocks per term. Certificates move the
network from round to round inside a term and across its end; a time-out certificate ends the term at once and moves to the
next term's first round. Who leads a term follows from the parent of what is proposed (`consensus.epoch`).
"""

from collections.abc import Callable
from typing import Annotated, cast

import msgspec

from ledger.blocks import SignedKeyblock, SignedMicroblock
from ledger.codec import Address, Digest, RevealBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.rules import MAX_COMMITTEE
from ledger.votes import MemberIndex, SignedIndex

MAX_MESSAGE_BYTES = 64 * 1024
"""A proposal with full batches (9 KiB), a certificate and a time-out certificate of 64 members (5 KiB each), and spare."""


class Certificate(Wire, frozen=True):
    """A quorum voted for a microblock."""

    epoch: Uint
    """Epoch whose committee voted."""
    round: Uint
    """Round of the microblock."""
    block_hash: Digest
    """Hash of the microblock."""
    votes: Annotated[tuple[SignedIndex, ...], msgspec.Meta(max_length=MAX_COMMITTEE)]
    """Votes by rising index; none for the root of an epoch."""


class TimeoutPart(Wire, frozen=True):
    """One member's part of a time-out certificate."""

    member: MemberIndex
    """Index in the epoch's committee."""
    high_round: Uint
    """Round of the newest certificate that the member knew."""
    signature: SignatureBytes
    """The member's signature of the time-out."""


class TimeoutCertificate(Wire, frozen=True):
    """A quorum gave up on a term."""

    epoch: Uint
    """Epoch whose committee signed."""
    term: Uint
    """The term that is over."""
    timeouts: Annotated[tuple[TimeoutPart, ...], msgspec.Meta(max_length=MAX_COMMITTEE)]
    """Time-outs by rising index."""


class Proposal(Wire, frozen=True, tag=1):
    """A leader proposes a microblock."""

    signed: SignedMicroblock
    """The microblock with the leader's signature."""
    certificate: Certificate
    """Certificate of the parent."""
    timeout_certificate: TimeoutCertificate | None
    """End of the term before; needed when the parent is not of the round before."""


class Vote(Wire, frozen=True, tag=2):
    """A member votes for a microblock; goes to the leader of its round and of the next."""

    epoch: Uint
    """Epoch of the microblock."""
    round: Uint
    """Round of the microblock."""
    block_hash: Digest
    """Hash of the microblock."""
    voter: Address
    """The member."""
    signature: SignatureBytes
    """Signature of `vote ‖ chain id ‖ (epoch, round, hash)`."""


class Timeout(Wire, frozen=True, tag=3):
    """A member gives up on a term; goes to all."""

    epoch: Uint
    """Epoch of the term."""
    term: Uint
    """The term without progress."""
    high_certificate: Certificate
    """The newest certificate that the member knows."""
    entry: TimeoutCertificate | None
    """The time-out certificate by which the member entered the term, for those who have not seen it."""
    voter: Address
    """The member."""
    signature: SignatureBytes
    """Signature of `timeout ‖ chain id ‖ (epoch, term, round of the newest certificate)`."""


class Certified(Wire, frozen=True, tag=4):
    """Certificates that no proposal carries yet: to all when nothing is left to order, to one who has fallen behind."""

    certificate: Certificate
    """The newest certificate that the sender knows."""
    timeout_certificate: TimeoutCertificate | None
    """The time-out certificate by which the sender entered its term, if that is newer."""


class Offer(Wire, frozen=True, tag=5):
    """A miner offers a keyblock that may end the running epoch; to all."""

    keyblock: SignedKeyblock
    """The keyblock."""


class Reveal(Wire, frozen=True, tag=6):
    """The creator of a pinned keyblock reveals what the seed of the leaders rests on; to all."""

    epoch: Uint
    """Epoch that the keyblock began."""
    signature: RevealBytes
    """The creator's unique signature (see `consensus.election`)."""


Message = Proposal | Vote | Timeout | Certified | Offer | Reveal


class _TimeoutContent(Wire, frozen=True):
    epoch: Uint
    """Epoch of the term."""
    term: Uint
    """The term."""
    high_round: Uint
    """Round of the newest certificate."""


def timeout_digest(chain_id: bytes, epoch: int, term: int, high_round: int) -> bytes:
    """Return what a time-out signs."""
    return tagged_hash(Tag.TIMEOUT, chain_id, encode(_TimeoutContent(epoch, term, high_round)))


# A union is no class to the type checker, but it is one to msgspec.
decode_message: Callable[[bytes], Message] = decoder(cast("type[Message]", Message), MAX_MESSAGE_BYTES)
"""Decode one message; raises `InvalidInput`."""
