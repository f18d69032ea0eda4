# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may act for a patient: delegates within what was delegated, and guardians together for one thing only, new keys."""

from typing import Annotated, Literal

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Wire
from ledger.crypto.hashing import Tag, tagged_hash

MAX_GUARDIANS = 16
"""Enough for a family and its doctors; as many signatures take a node under a millisecond to check."""
MIN_GUARDIANS_NEEDED = 2
"""One guardian alone must not be able to take over a patient's account."""

Power = Literal["authorise", "grant", "label", "review", "revoke"]
"""What can be delegated: to authorise authors, to grant, to permit labels, to review emergencies, to revoke."""
POWERS: tuple[Power, ...] = ("authorise", "grant", "label", "review", "revoke")
"""All of them, in alphabetical order."""


class Delegation(Wire, frozen=True):
    """State: somebody (a parent, a carer) may act for a patient."""

    powers: Annotated[tuple[Power, ...], msgspec.Meta(max_length=len(POWERS))]
    """What the delegate may do, in alphabetical order; nothing when the delegation was taken back."""
    until_ms: Uint
    """End, in milliseconds since 1970 (UTC)."""
    changed_height: Uint
    """Height of the microblock that last changed it."""


class Guardians(Wire, frozen=True):
    """State: who can give a patient new keys."""

    guardians: Annotated[tuple[Address, ...], msgspec.Meta(min_length=MIN_GUARDIANS_NEEDED, max_length=MAX_GUARDIANS)]
    """Accounts of the guardians, in ascending order."""
    needed: Annotated[int, msgspec.Meta(ge=MIN_GUARDIANS_NEEDED, le=MAX_GUARDIANS)]
    """How many of them must sign."""
    backup: Digest
    """Content address of the encrypted backup of the patient's keys, which so many guardians can open for the patient together."""
    changed_height: Uint
    """Height of the microblock that last changed it."""


class GuardianApproval(Wire, frozen=True):
    """A guardian's signature under a patient's new keyblock."""

    guardian: PublicKeyBytes
    """The guardian's key."""
    signature: SignatureBytes
    """Its signature of `recovery_digest`."""


def recovery_digest(chain_id: bytes, keyblock_hash: bytes) -> bytes:
    """Return the digest that guardians sign; the keyblock names patient, generation and predecessor, so it serves once."""
    return tagged_hash(Tag.RECOVERY, chain_id, keyblock_hash)
