# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong between peers, typed.

`NotAvailable` and `UnknownMethod` are raised by the application's request handler and travel to the requester as an error
frame; `RequestFailed` is what the requester gets.
"""

from enum import IntEnum

from ledger.errors import InvalidInput, SpchainError


class NotAvailable(SpchainError):
    """A peer asked for something well-formed that is not here (pruned, unknown, not yet arrived)."""


class UnknownMethod(InvalidInput):
    """A peer asked for a method that is not offered; the text names it."""


class PeerRefused(SpchainError):
    """The other side ended the greeting with a reason (another network, full, banned, statement not accepted)."""


class ProtocolViolation(InvalidInput):
    """A peer sent bytes that no correct implementation sends; costs it points."""


class RequestFailure(IntEnum):
    """Why a request brought no answer; the numbers are on the wire, so they are never reused."""

    NOT_CONNECTED = 1
    """No admitted connection to the peer."""
    TIMEOUT = 2
    """No complete answer within the time given, on either side."""
    BUSY = 3
    """The peer works on as many requests as it allows us; ask again later or ask someone else."""
    UNKNOWN_METHOD = 4
    """The peer does not offer the method."""
    INVALID = 5
    """The peer found the request malformed."""
    NOT_AVAILABLE = 6
    """The peer does not have what was asked for."""
    TOO_LARGE = 7
    """Request or answer is over the limit."""
    PROTOCOL = 8
    """The answer was malformed."""
    CLOSED = 9
    """The connection or stream ended before the answer was complete."""
    INTERNAL = 10
    """The peer failed inside."""


class RequestFailed(SpchainError):
    """A request brought no answer; `reason` tells why, `peer_id` who."""

    def __init__(self, reason: RequestFailure, peer_id: str, method: str, detail: str) -> None:
        super().__init__(f"request {method} to {peer_id} failed, {reason.name.lower()}: {detail}")
        self.reason = reason
        self.peer_id = peer_id
        self.method = method
        self.detail = detail
