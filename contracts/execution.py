# SPDX-License-Identifier: GPL-3.0-or-later
"""Executes one request on a state: outcomes, changes, and every key that it touched.

Operator, watcher and judge run this same function, the judge on a tree rebuilt from proofs. What may be touched is metered in what
its proofs would weigh, so that no request comes about that is too large to be challenged.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from contracts.machine import (
    MAX_ENTRIES_PER_OPERATION,
    MAX_ENTRY_BYTES,
    MAX_MACHINE_KEY_BYTES,
    MAX_RESULT_BYTES,
    Context,
    Machine,
    Outcome,
    refused,
)
from contracts.requests import CheckedRequest
from ledger.codec import Uint, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.offchain import MAX_WITNESS_BYTES, InvalidRequest, Place, PreState, Replay
from ledger.partial_tree import MAX_KEY_BYTES, MAX_VALUE_BYTES, MAX_WITNESS_ENTRIES, InsufficientProof
from ledger.state_tree import MAX_PROOF_STEPS

MACHINE_PREFIX = b"m"
"""Begins the state keys of a machine's entries."""
SEQUENCE_PREFIX = b"s"
"""Begins the state key of a sender's sequence number."""
COUNT_KEY = b"n"
"""State key of the number of all other entries; it is not there while there are none."""
MAX_STATE_ENTRIES = 2**18
"""Entries beyond which only forced requests add any, 16 with a batch: some 210 MB in memory with those of the machines that are shipped.
Identities cost nothing, and a state for which watchers have no room would be watched no more."""

WRONG_SEQUENCE = "wrong_sequence"
MALFORMED = "malformed_operation"
FAILED = "machine_failed"
TOO_MANY_ENTRIES = "too_many_entries"
ENTRY_TOO_LARGE = "entry_too_large"
TOO_HEAVY = "request_too_heavy"
STATE_FULL = "state_full"

# An entry of a witness beside its key, value and steps: list heads, leaf. A step: list head, bit, digest.
_ENTRY_BYTES, _STEP_BYTES = 80, 37
MAX_ENTRY_PROOF_BYTES = _ENTRY_BYTES + _STEP_BYTES * MAX_PROOF_STEPS + MAX_KEY_BYTES + MAX_VALUE_BYTES
"""The heaviest entry that there can be; real ones have about a tenth of it."""
MAX_METERED_BYTES = MAX_WITNESS_BYTES - MAX_ENTRY_PROOF_BYTES
"""What the proofs of the entries that a request uses may weigh: leaves room for the one that was too heavy."""
_decode_sequence = decoder(Uint, 16, name="sequence number", own=True)
_decode_count = decoder(Uint, 16, name="number of entries", own=True)
# What a machine's own mistake raises, the same way on every node. Running out of memory or stack is the node's trouble, not the
# machine's, and assertions vanish under -O: the test kit forbids them.
_MISTAKES = (
    ArithmeticError,
    AttributeError,
    InvalidInput,
    LookupError,
    NameError,
    NotImplementedError,
    StopIteration,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)
_is_code = re.compile(r"[a-z0-9_]{0,32}").fullmatch


def weight_of(key: bytes, value: bytes | None, steps: int) -> int:
    """Return what the proof of a state entry weighs at most."""
    return _ENTRY_BYTES + _STEP_BYTES * steps + len(key) + len(value or b"")


class LimitReached(Exception):
    """An operation has run into a limit; raised through the machine."""


class BoundMachine(msgspec.Struct, frozen=True):
    """A machine with one contract's parameters."""

    machine: Machine[Any, Any]
    """The machine."""
    decode_operation: Callable[[bytes], Any]
    """Decodes one operation; raises `InvalidInput`."""
    parameters: Any
    """The contract's parameters."""
    operator: bytes
    """Address of the contract's operator."""


class Executed(msgspec.Struct, frozen=True):
    """What a request came to."""

    outcomes: tuple[Outcome, ...]
    """One per operation; a single one when a forced request is refused as a whole."""
    replay: Replay
    """The same as the ledger sees it."""
    touched: tuple[bytes, ...]
    """State keys that were read or written, in their order: what a challenge has to prove."""


class RequestView:
    """The state while one request is executed; the `View` that its operations see, one after the other."""

    def __init__(self, state: PreState) -> None:
        self._state = state
        self._before: dict[bytes, bytes | None] = {}
        self._now: dict[bytes, bytes | None] = {}
        self._written: dict[bytes, bytes | None] = {}
        self._of_operation: set[bytes] = set()
        self._room = MAX_METERED_BYTES
        self._is_closed = False
        self._heaviest: tuple[bytes, ...] = ()
        self.limit = ""
        """Which limit the running operation has reached; empty for none."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a machine's key."""
        full = self._touch(key)
        return self._written[full] if full in self._written else self._now[full]

    def put(self, key: bytes, value: bytes) -> None:
        """Set a machine's key."""
        full = self._touch(key)
        if len(value) > MAX_ENTRY_BYTES:
            self._stop(ENTRY_TOO_LARGE)
        self._written[full] = bytes(value)

    def delete(self, key: bytes) -> None:
        """Remove a machine's key."""
        self._written[self._touch(key)] = None

    def begin(self) -> None:
        """Begin an operation."""
        self._written.clear()
        self._of_operation.clear()
        self.limit = ""

    def keep(self) -> None:
        """End an operation that took effect; what another one wrote is dropped by the next `begin`."""
        self._now.update(self._written)

    def read(self, full: bytes) -> bytes | None:
        """Return the value of a state key of any kind."""
        if full not in self._now:
            # That an entry is too heavy is seen by reading it, so it has to be proved, too. After it no other one is read.
            if self._is_closed or len(self._before) == MAX_WITNESS_ENTRIES - 1:
                self._is_closed = True
                self._stop(TOO_HEAVY)
            value = self._state.get(full)
            weight = weight_of(full, value, self._state.steps(full))
            if weight > self._room:
                self._is_closed = True
                self._heaviest = (full,)
                self._stop(TOO_HEAVY)
            self._room -= weight
            self._before[full] = self._now[full] = value
        return self._now[full]

    def write(self, full: bytes, value: bytes) -> None:
        """Set a state key that was read, outside of operations."""
        self._now[full] = value

    def growth(self) -> int:
        """Return how many entries came, less those that went."""
        return sum((value is not None) - (self._before[key] is not None) for key, value in self._now.items())

    def drop(self) -> None:
        """Forget all that was written; what was touched stays touched."""
        self._now = dict(self._before)

    def changes(self) -> tuple[tuple[bytes, bytes | None], ...]:
        """Return what is other than before, in the order of the keys."""
        return tuple((key, value) for key, value in sorted(self._now.items()) if value != self._before[key])

    def touched(self) -> tuple[bytes, ...]:
        """Return all keys that were touched, in their order."""
        return tuple(sorted((*self._before, *self._heaviest)))

    def _touch(self, key: bytes) -> bytes:
        if self.limit:
            raise LimitReached(self.limit)
        if not 1 <= len(key) <= MAX_MACHINE_KEY_BYTES:
            self._stop(ENTRY_TOO_LARGE)
        full = MACHINE_PREFIX + key
        if full not in self._of_operation:
            if len(self._of_operation) == MAX_ENTRIES_PER_OPERATION:
                self._stop(TOO_MANY_ENTRIES)
            self._of_operation.add(full)
            self.read(full)
        return full

    def _stop(self, limit: str) -> None:
        self.limit = limit
        raise LimitReached(limit)


def sequence_key(sender: bytes) -> bytes:
    """Return the state key of a sender's next sequence number."""
    return SEQUENCE_PREFIX + sender


def next_sequence(state: PreState, sender: bytes) -> int:
    """Return the number that a sender's next operation has."""
    value = state.get(sequence_key(sender))
    return 0 if value is None else _decode_sequence(value)


def keys_of(sender: bytes) -> tuple[bytes, ...]:
    """Return the state keys that tell whether a request of a sender may be in a batch at all."""
    return (COUNT_KEY, sequence_key(sender))


def outcomes_digest(outcomes: tuple[Outcome, ...]) -> bytes:
    """Return the digest of a request's outcomes."""
    return tagged_hash(Tag.OFFCHAIN_OUTCOMES, encode(outcomes))


def execute(bound: BoundMachine, place: Place, request: CheckedRequest, state: PreState) -> Executed:
    """Execute a request; raises `InvalidRequest` for one that may not be in a batch at all. Writes nothing to `state`."""
    if request.is_chain and not place.is_forced:
        raise InvalidRequest("the chain's own operations count only where the batch answers for them as forced")
    view = RequestView(state)
    key = sequence_key(request.sender)
    known, counted = view.read(key), view.read(COUNT_KEY)
    following = 0 if known is None else _decode_sequence(known)
    count = 0 if counted is None else _decode_count(counted)
    if request.first_sequence == following:
        if known is None and not place.is_forced and count >= MAX_STATE_ENTRIES:
            raise InvalidRequest(f"the contract's state is full: {count} entries; it takes no further senders")
        view.write(key, encode(following + len(request.operations)))
        context = Context(request.sender, bound.operator, bound.parameters, place.number, place.time_ms)
        outcomes = tuple(_execute_one(bound, view, context, operation) for operation in request.operations)
        # What is forced was paid for on the chain, and always has its way: also a deposit, and a withdrawal from a full contract.
        if not place.is_forced and view.growth() > max(0, MAX_STATE_ENTRIES - count):
            view.drop()
            view.write(key, encode(following + len(request.operations)))
            outcomes = (refused(STATE_FULL),) * len(request.operations)
        if growth := view.growth():
            view.write(COUNT_KEY, encode(count + growth))
    elif place.is_forced and not request.is_chain:
        # Its sender may have sent it the ordinary way as well: it is answered for, and has no effect.
        outcomes = (refused(WRONG_SEQUENCE),)
    else:
        detail = f"request begins with operation {request.first_sequence} of its sender; the next is {following}"
        raise InvalidRequest(detail)
    replay = Replay(len(request.operations), outcomes_digest(outcomes), view.changes())
    return Executed(outcomes, replay, view.touched())


def _execute_one(bound: BoundMachine, view: RequestView, context: Context[Any], raw: bytes) -> Outcome:
    try:
        operation = bound.decode_operation(raw)
    except InvalidInput:
        return refused(MALFORMED)
    view.begin()
    try:
        outcome = bound.machine.apply(view, context, operation)
        is_sound = bool(_is_code(outcome.code)) and len(bytes(outcome.result)) <= MAX_RESULT_BYTES
    except LimitReached:
        return refused(view.limit)
    except _MISTAKES as error:
        if isinstance(error, InsufficientProof):
            raise
        return refused(view.limit or FAILED)
    if view.limit:
        return refused(view.limit)
    if not is_sound:
        return refused(FAILED)
    if outcome.is_done:
        view.keep()
    return outcome
