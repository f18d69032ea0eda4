# SPDX-License-Identifier: GPL-3.0-or-later
"""The live state of a contract: its entries and their tree.

Values that change are only noted; the tree takes them when its root or a proof is asked for. Asked after each request, a change rehashes
the way from its leaf to the root, about 20 µs at 10⁴ entries; asked once after many, it rehashes each inner node once. Entries that come
or go change the tree at once, since execution meters how deep keys lie.
"""

from collections.abc import Iterable, Iterator

from ledger.crit_bit import CritBitTree
from ledger.partial_tree import WitnessEntry
from ledger.state_tree import StateProof, position_of, value_hash

ENTRY_BYTES = 700
"""What an entry takes in memory beside its key and value: its position, its leaf, the inner node above it, and places in two maps."""
Changes = tuple[tuple[bytes, bytes | None], ...]
"""State keys with their new value, None for those that go."""


class StateMap:
    """A map from state keys to values with a root."""

    def __init__(self, entries: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._values: dict[bytes, bytes] = {}
        # Of the keys that are there: a position costs a hash, and each read asks for it.
        self._positions: dict[bytes, bytes] = {}
        self._waiting: set[bytes] = set()
        self._bytes = 0
        self._tree = CritBitTree()
        for key, value in entries:
            self.put(key, value)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def memory_bytes(self) -> int:
        """About what all of it takes in memory."""
        return self._bytes + ENTRY_BYTES * len(self._values)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where it has none."""
        return self._values.get(key)

    def steps(self, key: bytes) -> int:
        """Return how many steps the proof of a key has."""
        return self._tree.steps(self._positions.get(key) or position_of(key))

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        former = self._values.get(key)
        if former is not None:
            self._waiting.add(key)
            self._bytes += len(value) - len(former)
        else:
            position = self._positions[key] = position_of(key)
            self._tree.put(position, value_hash(value))
            self._bytes += len(key) + len(value)
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""
        former = self._values.pop(key, None)
        if former is not None:
            self._bytes -= len(key) + len(former)
            self._waiting.discard(key)
            self._tree.delete(self._positions.pop(key))

    def apply(self, changes: Changes) -> Changes:
        """Set keys, or remove those whose value is None; returns the changes that undo it."""
        undo = []
        for key, value in changes:
            undo.append((key, self._values.get(key)))
            if value is None:
                self.delete(key)
            else:
                self.put(key, value)
        return tuple(undo)

    def root(self) -> bytes:
        """Return the root of all entries."""
        return self._settled().root()

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of a key's value, or of its absence."""
        return self._settled().prove(position_of(key))

    def witness(self, keys: Iterable[bytes]) -> tuple[WitnessEntry, ...]:
        """Return keys with values and proofs, as the judge takes them."""
        return tuple(WitnessEntry(key, self._values.get(key), self.prove(key)) for key in keys)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries in the order of their keys."""
        yield from sorted(self._values.items())

    def _settled(self) -> CritBitTree:
        """Return the tree with all values in it."""
        if self._waiting:
            self._tree.set_all({self._positions[key]: value_hash(self._values[key]) for key in self._waiting})
            self._waiting.clear()
        return self._tree
