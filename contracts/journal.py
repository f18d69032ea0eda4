# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator writes down before it promises anything: the journal, from which it comes back after any crash.

Two kinds of entries, in the order in which things happened. What is durable is always a beginning of the list: an entry without those
before it would be a promise without its ground.
"""

from collections.abc import Callable
from typing import Annotated, cast

import msgspec

from contracts.machine import Outcome
from ledger.codec import Uint, Wire, decoder, encode
from ledger.offchain import (
    MAX_OPERATIONS,
    MAX_REQUEST_BYTES,
    BatchCommitment,
    Index,
    RequestBytes,
    RequestLeaf,
)

MAX_ENTRY_BYTES = MAX_REQUEST_BYTES + 16 * 1024
"""A request, and 64 outcomes of about 100 bytes; a cut has less than 1 KiB."""


class Accepted(Wire, frozen=True, tag=1):
    """A request was executed and has its place for good."""

    number: Uint
    """The batch."""
    index: Index
    """Place in the batch."""
    is_forced: bool
    """Whether the chain has forced it."""
    request: RequestBytes
    """The request."""
    leaf: RequestLeaf
    """Its leaf."""
    outcomes: Annotated[tuple[Outcome, ...], msgspec.Meta(min_length=1, max_length=MAX_OPERATIONS)]
    """What became of its operations."""


class Cut(Wire, frozen=True, tag=2):
    """A batch is complete; what it commits is fixed."""

    commitment: BatchCommitment
    """The commitment."""


JournalEntry = Accepted | Cut

decode_entry: Callable[[bytes], JournalEntry] = decoder(
    cast("type[JournalEntry]", JournalEntry), MAX_ENTRY_BYTES, name="journal entry"
)
"""Decode an entry; raises `InvalidInput`."""


def encode_entry(entry: JournalEntry) -> bytes:
    """Return an entry as the journal keeps it."""
    return encode(entry)
