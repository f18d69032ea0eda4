# SPDX-License-Identifier: GPL-3.0-or-later
"""Emergency access ("break-glass"): a quorum of institutions wakes a sleeping grant, for a reason and a time, and the patient reviews it.

The patient makes the grant beforehand, with `emergency_approvals` above 0: without the fragments made then, no quorum could open anything.
"""

from typing import Annotated, Literal

import msgspec

from ledger.codec import Address, Digest, Uint, Wire
from ledger.sharing import MAX_PROXIES

Reason = Literal["cardiac-arrest", "disaster", "other", "stroke", "trauma", "unconscious"]
"""Why an emergency is declared."""
Verdict = Literal["", "justified", "unjustified"]
"""What the patient says of it afterwards; empty while nothing has been said."""


class Approval(Wire, frozen=True):
    """One institution's approval."""

    institution: Address
    """A proxy of the grant."""
    height: Uint
    """Height of the microblock that committed it."""


class Emergency(Wire, frozen=True):
    """State: an emergency access that was asked for."""

    grant_id: Digest
    """The sleeping grant."""
    requester: Address
    """The grant's grantee."""
    reason: Reason
    """Why."""
    opened_height: Uint
    """Height of the microblock that committed the request."""
    opened_timestamp_ms: Uint
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    until_ms: Uint
    """End, in milliseconds since 1970 (UTC)."""
    approvals: Annotated[tuple[Approval, ...], msgspec.Meta(max_length=MAX_PROXIES)]
    """Who has approved, in order."""
    needed: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROXIES)]
    """How many must."""
    verdict: Verdict
    """The patient's review."""
    reviewed_height: Uint
    """Height of the microblock that committed the review; 0 while there is none."""


def is_approved(emergency: Emergency) -> bool:
    """Tell whether enough proxies have approved."""
    return len(emergency.approvals) >= emergency.needed


def is_awake(emergency: Emergency, time_ms: int) -> bool:
    """Tell whether an emergency opens its grant at a time: approved, not over, and not called unjustified by the patient."""
    return is_approved(emergency) and emergency.verdict != "unjustified" and time_ms < emergency.until_ms
