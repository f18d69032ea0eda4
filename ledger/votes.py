# SPDX-License-Identifier: GPL-3.0-or-later
"""What a committee member's vote signs: also evidence on the chain refers to it."""

from typing import Annotated

import msgspec

from ledger.codec import Digest, SignatureBytes, Uint, Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.rules import MAX_COMMITTEE

MemberIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_COMMITTEE)]


class SignedIndex(Wire, frozen=True):
    """One member's part of a certificate."""

    member: MemberIndex
    """Index in the epoch's committee."""
    signature: SignatureBytes
    """The member's signature of the vote."""


class _VoteContent(Wire, frozen=True):
    epoch: Uint
    """Epoch of the microblock."""
    round: Uint
    """Round of the microblock."""
    block_hash: Digest
    """Hash of the microblock."""


def vote_digest(chain_id: bytes, epoch: int, round_: int, block_hash: bytes) -> bytes:
    """Return what a vote signs."""
    return tagged_hash(Tag.VOTE, chain_id, encode(_VoteContent(epoch, round_, block_hash)))
