# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a contract as it is kept on the disk and asked for between nodes: pages of entries, in the order of their keys.

A page is made once, when a snapshot is written; a peer gets the very bytes. Whether a state is right nobody has to be believed: its root
stands on the chain.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

import msgspec

from ledger.codec import Digest, Uint, Wire, decoder, encode
from ledger.errors import InvalidInput
from ledger.partial_tree import MAX_KEY_BYTES, MAX_VALUE_BYTES

REQUEST_CONTRACT_STATES = "contract-states"
"""Request: a contract's identifier, answered by `StatesAnswer`."""
REQUEST_CONTRACT_STATE = "contract-state"
"""Request: `StateRequest`, answered by the page."""
METHODS = frozenset((REQUEST_CONTRACT_STATES, REQUEST_CONTRACT_STATE))
"""What nodes ask each other about contracts' states."""

PAGE_BYTES = 256 * 1024
"""A page is closed once its entries have so many bytes."""
MAX_PAGE_BYTES = PAGE_BYTES + 8 * 1024
"""A full page: one entry more, and its head."""
MAX_PAGE_ENTRIES = PAGE_BYTES // 8
"""An entry counts 8 bytes at least."""
MAX_SNAPSHOTS = 64
"""Snapshots of one contract."""

Entries = Iterable[tuple[bytes, bytes]]
"""State keys with their values."""


class StateEntry(Wire, frozen=True, gc=False):
    """One entry of a contract's state."""

    key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES)]
    """State key."""
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
    """Its value."""


class StatePage(Wire, frozen=True):
    """A part of a contract's state."""

    entries: Annotated[tuple[StateEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_PAGE_ENTRIES)]
    """Entries with rising keys."""


class StateHead(Wire, frozen=True):
    """A snapshot that a node has."""

    number: Uint
    """The batch that comes next: the state is that after the one before it."""
    pages: Uint
    """Its pages."""
    entries: Uint
    """Its entries."""
    size: Uint
    """Bytes of all pages."""


class StatesAnswer(Wire, frozen=True):
    """Snapshots of one contract."""

    states: Annotated[tuple[StateHead, ...], msgspec.Meta(max_length=MAX_SNAPSHOTS)]
    """The oldest first; none when the contract is not followed there."""


class StateRequest(Wire, frozen=True):
    """Asks for a page of a snapshot."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """Which snapshot."""
    page: Uint
    """Which page, from 0."""


decode_states_answer = decoder(StatesAnswer, 4 * 1024)
decode_state_request = decoder(StateRequest, 64)
_decode_page = decoder(StatePage, MAX_PAGE_BYTES, name="page of a contract's state")


def pages_of(entries: Entries) -> list[bytes]:
    """Return the pages of a state, whose entries come in the order of their keys; an empty state has none."""
    pages: list[bytes] = []
    items: list[StateEntry] = []
    size = 0
    for key, value in entries:
        items.append(StateEntry(key, value))
        # At most five bytes of heads beside key and value.
        size += len(key) + len(value) + 8
        if size >= PAGE_BYTES:
            pages.append(encode(StatePage(tuple(items))))
            items, size = [], 0
    if items:
        pages.append(encode(StatePage(tuple(items))))
    return pages


def require_full_pages(pages: int, size: int) -> None:
    """Check that a state of so many bytes may have so many pages: nobody is to be kept busy with empty ones. Raises `InvalidInput`."""
    if pages > size // (PAGE_BYTES // 2) + 1:
        raise InvalidInput(f"a state of {size} bytes in {pages} pages")


def entries_of(pages: Iterable[bytes], most: int) -> tuple[tuple[bytes, bytes], ...]:
    """Return the entries of all pages; raises `InvalidInput` for a malformed page, keys that do not rise, or more than `most`."""
    entries: list[tuple[bytes, bytes]] = []
    for raw in pages:
        entries += ((entry.key, entry.value) for entry in _decode_page(raw).entries)
        if len(entries) > most:
            raise InvalidInput(f"more than the {most} entries that a contract's state was said to have")
    if any(following[0] <= key[0] for key, following in pairwise(entries)):
        raise InvalidInput("the keys of a contract's state do not rise from entry to entry")
    return tuple(entries)
