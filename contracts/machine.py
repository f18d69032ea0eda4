# SPDX-License-Identifier: GPL-3.0-or-later
"""What an off-chain contract is: a value that names its operations and parameters, and one pure function.

R1 Same view, context and operation, same outcome and same writes: on every node, platform and Python version.
R2 All state is in the view. A machine has no globals that change, no clock, no randomness, no floats, no files.
R3 A refused operation changes nothing: what it wrote is dropped. It is recorded all the same.
R4 Limits are those of this module; a machine that runs into one has its operation refused, whatever it returns.
"""

from collections.abc import Callable
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec

from ledger.codec import Wire
from ledger.offchain import CHAIN, PayableKeys
from ledger.partial_tree import MAX_KEY_BYTES, MAX_VALUE_BYTES

MAX_MACHINE_KEY_BYTES = MAX_KEY_BYTES - 1
"""One byte tells a machine's entries from sequence numbers."""
MAX_ENTRY_BYTES = MAX_VALUE_BYTES
"""Largest value of one state entry."""
MAX_ENTRIES_PER_OPERATION = 16
"""Entries that one operation may read or write: bounds what a challenge of it needs."""
MAX_RESULT_BYTES = 64
"""Room for what an operation answers: a number or a digest."""

ParametersT = TypeVar("ParametersT")
OperationT = TypeVar("OperationT")


class View(Protocol):
    """The state as one operation sees it."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where it has none."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""


class Context(msgspec.Struct, Generic[ParametersT], frozen=True):
    """What an operation may know beside the state."""

    sender: bytes
    """Address of who signed; `CHAIN` for what the chain itself does."""
    operator: bytes
    """Address of the contract's operator."""
    parameters: ParametersT
    """The contract's parameters."""
    number: int
    """Number of the batch."""
    time_ms: int
    """Time that the operator gave the request, in milliseconds since 1970 (UTC); never falls."""

    @property
    def is_chain(self) -> bool:
        """Whether the chain itself acts: a deposit."""
        return self.sender == CHAIN


class Outcome(Wire, frozen=True):
    """What became of one operation."""

    code: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]{0,32}\Z")]
    """Empty when it took effect; else a stable name that says why it was refused."""
    result: Annotated[bytes, msgspec.Meta(max_length=MAX_RESULT_BYTES)]
    """What it answers, in the machine's own encoding."""

    @property
    def is_done(self) -> bool:
        """Whether it took effect."""
        return not self.code


class KeyPart(msgspec.Struct, frozen=True):
    """A part of a state key."""

    name: str
    """What it is."""
    size_bytes: int
    """Its length."""
    is_number: bool = False
    """Whether it is a number, big-endian; else an address or a digest."""


class EntryKind(msgspec.Struct, frozen=True):
    """A kind of state entries, so that people can name and read one; the rules do without."""

    name: str
    """What its entries say."""
    prefix: bytes
    """How the machine's keys of it begin."""
    parts: tuple[KeyPart, ...]
    """What stands in a key after the prefix."""
    value: Any
    """Type of the values."""


class Machine(msgspec.Struct, Generic[ParametersT, OperationT], frozen=True):
    """A kind of contract."""

    name: str
    """Name in contracts' terms."""
    version: int
    """Other rules are another version."""
    parameters: type[ParametersT]
    """Type of the parameters."""
    operations: Any
    """Type of the operations: one struct, or a union of tagged ones."""
    apply: Callable[[View, Context[ParametersT], OperationT], Outcome]
    """The rules."""
    payable: Callable[[bytes], PayableKeys] | None = None
    """For a machine that takes deposits: where an account's credits stand."""
    entries: tuple[EntryKind, ...] = ()
    """Its kinds of state entries, for those who read them."""


def done(result: bytes = b"") -> Outcome:
    """Return the outcome of an operation that took effect."""
    return Outcome("", result)


def refused(code: str) -> Outcome:
    """Return the outcome of an operation that is refused; `code` says why."""
    return Outcome(code, b"")
