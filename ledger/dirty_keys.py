# SPDX-License-Identifier: GPL-3.0-or-later
"""State keys that changed since the state tree saw them last, in slices of the tree.

To fold a whole slice costs a quarter of folding as many keys from everywhere: they share inner nodes and pages. So beyond
the bound a commit folds the next slices in turn. A store writes the keys down by the height at which they became dirty, and
may drop such a note once no slice still holds a key of that height.
"""

from collections.abc import Iterable, Sequence

from ledger.state_tree import position_of

_SLICES = 256
"""By the first byte of the position: at a bound of 32 768 keys a slice has about 128."""


class DirtyKeys:
    """A set of keys with a bound that `due` keeps."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._slices: list[set[bytes]] = [set() for _ in range(_SLICES)]
        self._since: dict[int, int] = {}
        self._all: set[bytes] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self._all)

    def fresh(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those of the keys that are not dirty yet."""
        known = self._all
        return [key for key in keys if key not in known]

    def add(self, keys: Iterable[bytes], height: int) -> None:
        """Take in keys that became dirty at a height; heights never fall."""
        for key in keys:
            number = position_of(key)[0]
            self._slices[number].add(key)
            self._since.setdefault(number, height)
            self._all.add(key)

    def due(self, incoming: int) -> list[int]:
        """Return the slices to fold so that as many incoming keys stay within the bound."""
        excess = len(self._all) + incoming - self._bound
        slices = []
        for offset in range(_SLICES if excess > 0 else 0):
            number = (self._next + offset) % _SLICES
            slices.append(number)
            excess -= len(self._slices[number])
            if excess <= 0:
                break
        return slices

    def all_slices(self) -> list[int]:
        """Return the slices that hold keys."""
        return sorted(self._since)

    def keys_of(self, slices: Iterable[int]) -> list[bytes]:
        """Return the keys of slices."""
        return [key for number in slices for key in self._slices[number]]

    def oldest_without(self, slices: Iterable[int]) -> int | None:
        """Return the lowest height whose note is needed once `slices` are folded; None when none is."""
        left = self._since.keys() - set(slices)
        return min((self._since[number] for number in left), default=None)

    def folded(self, slices: Sequence[int]) -> None:
        """Forget slices that have been folded; the next turn begins after them."""
        for number in slices:
            self._all -= self._slices[number]
            self._slices[number].clear()
            self._since.pop(number, None)
        if slices:
            self._next = (slices[-1] + 1) % _SLICES
