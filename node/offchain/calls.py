# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests on their way through an operator's desk, and the calls that wait for them."""

from collections import defaultdict

import msgspec
import trio

from node.offchain.statuses import RequestStatus, SendOutcome, received


class Call:
    """Some requests that came together and are answered together."""

    def __init__(self, count: int) -> None:
        self._outcomes: list[SendOutcome | None] = [None] * count
        self._missing = count
        self.held_up: SendOutcome | None = None
        """Why an earlier request of the call was refused for now: those that follow it are, too."""
        self._done = trio.Event()

    def resolve(self, place: int, outcome: SendOutcome) -> None:
        """Take the outcome of one request; the first one stands."""
        if self._outcomes[place] is None:
            self._outcomes[place] = outcome
            self._missing -= 1
            if not self._missing:
                self._done.set()

    def is_done(self) -> bool:
        """Tell whether all requests have their outcomes."""
        return not self._missing

    async def wait(self) -> list[SendOutcome]:
        """Return all outcomes, in the order of the requests."""
        await self._done.wait()
        return [outcome for outcome in self._outcomes if outcome is not None]


class Pending(msgspec.Struct, frozen=True):
    """One request of a call."""

    call: Call
    """The call."""
    place: int
    """Its place there."""
    raw: bytes
    """The request."""

    def resolve(self, outcome: SendOutcome) -> None:
        """Answer it."""
        self.call.resolve(self.place, outcome)


class Awaited(msgspec.Struct, frozen=True):
    """A request that was executed and is being written down."""

    sender: bytes
    """Its sender."""
    first_sequence: int
    """Number of its first operation."""
    operation_count: int
    """Number of its operations."""
    number: int
    """Its batch."""
    index: int
    """Its place there."""
    pending: list[Pending]
    """Who waits for the answer; nobody for what the chain has forced."""


class AwaitedRequests:
    """The requests that are being written down, by their position in the journal; the operator's limits bound them."""

    def __init__(self) -> None:
        self._by_position: dict[int, Awaited] = {}
        self._by_sender: defaultdict[bytes, set[int]] = defaultdict(set)

    def add(self, position: int, awaited: Awaited) -> None:
        """Note a request that was executed."""
        self._by_position[position] = awaited
        self._by_sender[awaited.sender].add(position)

    def join(self, position: int, pending: Pending) -> bool:
        """Let one more wait for a request; tells whether it is still being written down."""
        awaited = self._by_position.get(position)
        if awaited is None:
            return False
        awaited.pending.append(pending)
        return True

    def pop(self, position: int) -> list[Pending]:
        """Forget a request that is durable; returns who waits for its answer."""
        awaited = self._by_position.pop(position, None)
        if awaited is None:
            return []
        positions = self._by_sender[awaited.sender]
        positions.discard(position)
        if not positions:
            del self._by_sender[awaited.sender]
        return awaited.pending

    def pop_all(self) -> list[Pending]:
        """Forget all; returns who waits."""
        pending = [one for awaited in self._by_position.values() for one in awaited.pending]
        self._by_position.clear()
        self._by_sender.clear()
        return pending

    def status_of(self, sender: bytes, sequence: int) -> RequestStatus | None:
        """Return the status of a sender's operation if it is among these."""
        for position in self._by_sender.get(sender, ()):
            awaited = self._by_position[position]
            if awaited.first_sequence <= sequence < awaited.first_sequence + awaited.operation_count:
                return received(awaited.number, awaited.index)
        return None
