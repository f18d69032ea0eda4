# SPDX-License-Identifier: GPL-3.0-or-later
"""Merkle mountain range: an append-only list whose digest grows and is proved in logarithmic time and space.

The list of n items is cut, from the left, into runs of 2^k items, one for each set bit of n; each run is a perfect Merkle tree (a
mountain), and the *peaks* are their roots, largest first. Peaks and n together bind every item and its place: one who keeps them can tell
that a list is complete and in order, that one item stands at a place, and that an earlier list is the beginning of a later one.

Leaves and inner nodes are hashed under different tags, so no inner node passes for an item. Where a mountain stands and how high it is
follows from n alone, never from the proof; a proof has exactly the length that n and the place demand. So peaks without n prove
nothing, and must not be kept alone.
"""

from collections.abc import Iterator, Sequence

from ledger.crypto.hashing import Tag, tagged_hash

MAX_COUNT = 2**63 - 1
"""Counts are 63-bit numbers everywhere."""
MAX_PEAKS = 63
"""One for each bit of a count."""
MAX_PATH = 62
"""Siblings up the highest mountain."""
MAX_EXTENSION = 2 * MAX_PATH
"""Subtrees between any two counts: some that grow, then some that shrink."""

Peaks = tuple[bytes, ...]


def append(peaks: Peaks, count: int, item: bytes) -> Peaks:
    """Return the peaks after one more item; `count` is the number of items before it."""
    assert len(peaks) == count.bit_count(), f"{len(peaks)} peaks cannot be those of {count} items"
    return _push(list(peaks), count, 0, tagged_hash(Tag.MOUNTAIN_LEAF, item))


def peaks_of(items: Sequence[bytes]) -> Peaks:
    """Return the peaks of a whole list."""
    return tuple(_root(items[start : start + (1 << height)]) for start, height in _mountains(len(items)))


def is_complete(peaks: Peaks, count: int, items: Sequence[bytes]) -> bool:
    """Tell whether the items are exactly the list, complete and in order."""
    return len(items) == count and peaks_of(items) == tuple(peaks)


def prove(items: Sequence[bytes], position: int) -> Peaks:
    """Return the siblings from the item at a position up to its peak; raises `IndexError` outside the list."""
    if not 0 <= position < len(items):
        raise IndexError(f"no item {position} among {len(items)}")
    start, height = _mountain_of(len(items), position)[1:]
    level = [tagged_hash(Tag.MOUNTAIN_LEAF, item) for item in items[start : start + (1 << height)]]
    place, path = position - start, []
    while len(level) > 1:
        path.append(level[place ^ 1])
        level = _parents(level)
        place //= 2
    return tuple(path)


def verify(peaks: Peaks, count: int, position: int, item: bytes, path: Sequence[bytes]) -> bool:
    """Check that an item stands at a position of the list of `count` items."""
    if not 0 <= position < count <= MAX_COUNT or len(peaks) != count.bit_count():
        return False
    index, start, height = _mountain_of(count, position)
    if len(path) != height:
        return False
    node, place = tagged_hash(Tag.MOUNTAIN_LEAF, item), position - start
    for sibling in path:
        node = tagged_hash(Tag.MOUNTAIN_NODE, *((sibling, node) if place % 2 else (node, sibling)))
        place //= 2
    return node == peaks[index]


def prove_extension(items: Sequence[bytes], earlier: int) -> Peaks:
    """Return what shows that the list of the first `earlier` items is the beginning of `items`: at most 2·log₂ n digests."""
    if not 0 <= earlier <= len(items):
        raise IndexError(f"no beginning of {earlier} among {len(items)} items")
    return tuple(_root(items[start : start + (1 << height)]) for start, height in _runs(earlier, len(items)))


def verify_extension(earlier_peaks: Peaks, earlier: int, peaks: Peaks, count: int, subtrees: Sequence[bytes]) -> bool:
    """Check that the list of `earlier` items is the beginning of the one of `count` items.

    The peaks of the earlier list, with the subtrees that follow them, must grow into the peaks of the later one: then every item of the
    earlier list hangs at its place below a peak of the later one.
    """
    if not 0 <= earlier <= count <= MAX_COUNT or len(earlier_peaks) != earlier.bit_count():
        return False
    runs = list(_runs(earlier, count))
    if len(runs) != len(subtrees):
        return False
    grown = tuple(earlier_peaks)
    for (start, height), subtree in zip(runs, subtrees, strict=True):
        grown = _push(list(grown), start, height, subtree)
    return grown == tuple(peaks)


def _push(peaks: list[bytes], count: int, height: int, subtree: bytes) -> Peaks:
    """Put a tree of 2^height items behind `count` items, a multiple of that: equal neighbours merge, as carries do in an addition."""
    while count >> height & 1:
        subtree = tagged_hash(Tag.MOUNTAIN_NODE, peaks.pop(), subtree)
        height += 1
    return (*peaks, subtree)


def _mountains(count: int) -> Iterator[tuple[int, int]]:
    """Yield start and height of each mountain of a list, from the left."""
    return _runs(0, count)


def _mountain_of(count: int, position: int) -> tuple[int, int, int]:
    """Return index, start and height of the mountain that a position belongs to."""
    for index, (start, height) in enumerate(_mountains(count)):
        if position < start + (1 << height):
            return index, start, height
    raise AssertionError(f"position {position} lies behind {count} items")


def _runs(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into the fewest subtrees that begin where their size divides; yield start and height of each."""
    while start < stop:
        room = (stop - start).bit_length() - 1
        aligned = (start & -start).bit_length() - 1 if start else room
        height = min(room, aligned)
        yield start, height
        start += 1 << height


def _root(items: Sequence[bytes]) -> bytes:
    level = [tagged_hash(Tag.MOUNTAIN_LEAF, item) for item in items]
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def _parents(level: list[bytes]) -> list[bytes]:
    return [tagged_hash(Tag.MOUNTAIN_NODE, level[i], level[i + 1]) for i in range(0, len(level), 2)]
