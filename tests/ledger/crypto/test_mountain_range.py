# SPDX-License-Identifier: GPL-3.0-or-later
"""The Merkle mountain range: complete lists, places and beginnings, against a plain definition and against forgers."""

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.merkle import merkle_root
from ledger.crypto.mountain_range import (
    MAX_COUNT,
    MAX_EXTENSION,
    MAX_PATH,
    MAX_PEAKS,
    append,
    is_complete,
    peaks_of,
    prove,
    prove_extension,
    verify,
    verify_extension,
)

counts = st.integers(0, 140)


def items_of(count: int, salt: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{salt}/{number}".encode()).digest() for number in range(count)]


def leaf(item: bytes) -> bytes:
    return tagged_hash(Tag.MOUNTAIN_LEAF, item)


def node(left: bytes, right: bytes) -> bytes:
    return tagged_hash(Tag.MOUNTAIN_NODE, left, right)


def plain_peaks(items: list[bytes]) -> tuple[bytes, ...]:
    """The definition: runs of 2^k items from the left, one for each set bit of the count, each halved again and again."""

    def root(run: list[bytes]) -> bytes:
        half = len(run) // 2
        return leaf(run[0]) if half == 0 else node(root(run[:half]), root(run[half:]))

    peaks, start = [], 0
    for bit in range(len(items).bit_length() - 1, -1, -1):
        if len(items) >> bit & 1:
            peaks.append(root(items[start : start + (1 << bit)]))
            start += 1 << bit
    return tuple(peaks)


def test_small_ranges_are_as_drawn_by_hand() -> None:
    a, b, c, d, e, f, g = map(leaf, items_of(7))
    left = node(node(a, b), node(c, d))
    assert peaks_of(items_of(0)) == ()
    assert peaks_of(items_of(1)) == (a,)
    assert peaks_of(items_of(3)) == (node(a, b), c)
    assert peaks_of(items_of(4)) == (left,)
    assert peaks_of(items_of(7)) == (left, node(e, f), g)
    assert prove(items_of(7), 0) == (b, node(c, d))
    assert prove(items_of(7), 5) == (e,)
    assert prove(items_of(7), 6) == ()
    assert prove_extension(items_of(7), 3) == (d, node(e, f), g)


@given(counts)
def test_peaks_are_those_of_the_definition_however_the_list_has_grown(count: int) -> None:
    items = items_of(count)
    grown: tuple[bytes, ...] = ()
    for number, item in enumerate(items):
        grown = append(grown, number, item)
        assert len(grown) == (number + 1).bit_count()
    assert grown == peaks_of(items) == plain_peaks(items)


@given(
    st.lists(st.sampled_from([b"a", b"b", b""]), max_size=12), st.lists(st.sampled_from([b"a", b"b", b""]), max_size=12)
)
def test_a_list_is_complete_only_as_it_was_appended(items: list[bytes], other: list[bytes]) -> None:
    assert is_complete(peaks_of(items), len(items), items)
    assert is_complete(peaks_of(items), len(items), other) == (items == other)
    assert not is_complete(peaks_of(items), len(items) + 1, items)


@given(counts.filter(bool), st.data())
def test_hiding_reordering_repeating_or_changing_an_item_shows(count: int, data: st.DataObject) -> None:
    items = items_of(count)
    peaks = peaks_of(items)
    place = data.draw(st.integers(0, count - 1))
    other = data.draw(st.integers(0, count - 1))
    swapped = list(items)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    lies = [
        items[:place] + items[place + 1 :],
        [*items[:place], items[place], *items[place:]],
        [*items[:place], bytes(32), *items[place + 1 :]],
        items[:-1],
        [*items, bytes(32)],
    ]
    if place != other:
        lies.append(swapped)
    for lie in lies:
        assert not is_complete(peaks, count, lie)
        assert peaks_of(lie) != peaks


@given(counts.filter(bool), st.data())
def test_every_place_is_proved_and_no_other_item_or_place(count: int, data: st.DataObject) -> None:
    items = items_of(count)
    peaks = peaks_of(items)
    place = data.draw(st.integers(0, count - 1))
    path = prove(items, place)
    assert len(path) <= count.bit_length()
    assert verify(peaks, count, place, items[place], path)
    assert not verify(peaks, count, place, bytes(32), path)
    for other in {0, place - 1, place + 1, count - 1, count} - {place}:
        assert not verify(peaks, count, other, items[place], path)
    changed = data.draw(st.integers(0, max(len(path) - 1, 0)))
    if path:
        assert not verify(peaks, count, place, items[place], path[:-1])
        assert not verify(peaks, count, place, items[place], (*path[:changed], bytes(32), *path[changed + 1 :]))
    assert not verify(peaks, count, place, items[place], (*path, bytes(32)))


@given(counts.filter(bool), st.data())
def test_no_inner_node_passes_for_an_item(count: int, data: st.DataObject) -> None:
    items = items_of(count)
    peaks = peaks_of(items)
    place = data.draw(st.integers(0, count - 1))
    path = prove(items, place)
    parent = leaf(items[place])
    for level, sibling in enumerate(path):
        # What a forger would show for an item one or more levels up: the two children, or their hash.
        pair = (sibling, parent) if place >> level & 1 else (parent, sibling)
        parent = node(*pair)
        for fake in (pair[0] + pair[1], parent):
            for rest in (path[level + 1 :], path[level:], path):
                assert not verify(peaks, count, place, fake, rest)
                assert not verify(peaks, count, place >> (level + 1), fake, rest)


@given(counts.filter(bool), st.data())
def test_a_proof_holds_under_its_own_count_and_peaks_only(count: int, data: st.DataObject) -> None:
    items = items_of(count)
    place = data.draw(st.integers(0, count - 1))
    path = prove(items, place)
    for other in (0, count - 1, count + 1, count * 2, MAX_COUNT, MAX_COUNT + 1, -1):
        assert not verify(peaks_of(items), other, place, items[place], path) or (
            # The same mountain at the same place: then the item does stand there.
            other.bit_count() == count.bit_count() and place < other
        )
    assert not verify(peaks_of(items_of(count, salt=1)), count, place, items[place], path)
    assert not verify(peaks_of(items)[1:], count, place, items[place], path)
    assert not verify((*peaks_of(items), bytes(32)), count, place, items[place], path)


def test_peaks_that_come_without_their_count_prove_nothing() -> None:
    # One peak of two items, and one of four whose first two have that very peak below them: the same digest, another meaning.
    two = items_of(2)
    (peak,) = peaks_of(two)
    assert not verify((peak,), 1, 0, two[0], ())
    assert not verify((peak,), 4, 0, two[0], prove(two, 0))


@given(counts, st.data())
def test_the_first_items_are_the_beginning_and_nothing_else_is(count: int, data: st.DataObject) -> None:
    items = items_of(count)
    earlier = data.draw(st.integers(0, count))
    proof = prove_extension(items, earlier)
    assert len(proof) <= 2 * max(count.bit_length() - 1, 1)
    old, new = peaks_of(items[:earlier]), peaks_of(items)
    assert verify_extension(old, earlier, new, count, proof)
    assert not verify_extension(old, earlier, new, count, (*proof, bytes(32)))
    if proof:
        assert not verify_extension(old, earlier, new, count, proof[:-1])
        place = data.draw(st.integers(0, len(proof) - 1))
        assert not verify_extension(old, earlier, new, count, (*proof[:place], bytes(32), *proof[place + 1 :]))
    if earlier:
        rewritten = [*items[: earlier - 1], bytes(32)]
        assert not verify_extension(peaks_of(rewritten), earlier, new, count, proof)
        assert not verify_extension(old, earlier - 1, new, count, proof)
    assert not verify_extension(new, count, old, earlier, proof) or earlier == count


def test_an_extension_from_nothing_is_the_range_itself_and_to_itself_is_empty() -> None:
    items = items_of(13)
    assert prove_extension(items, 0) == peaks_of(items)
    assert prove_extension(items, 13) == ()
    assert verify_extension(peaks_of(items), 13, peaks_of(items), 13, ())


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=40), max_size=130))
@settings(max_examples=200)
def test_numbers_and_bytes_from_outside_are_answered(first: int, second: int, digests: list[bytes]) -> None:
    earlier, count = sorted((first, second))
    peaks = tuple(digests[: count.bit_count()])
    assert not verify(peaks, count, earlier, b"", digests)
    is_extension = verify_extension(tuple(digests[: earlier.bit_count()]), earlier, peaks, count, digests)
    # From nothing, any digests are the peaks of some list.
    assert not is_extension or (earlier == count and not digests) or (earlier == 0 and tuple(digests) == peaks)


@pytest.mark.parametrize("position", [-1, 5, 2**64])
def test_outside_the_list_nothing_is_proved(position: int) -> None:
    with pytest.raises(IndexError, match="among 5"):
        prove(items_of(5), position)
    if position != 5:
        with pytest.raises(IndexError, match="among 5"):
            prove_extension(items_of(5), position)


def test_counts_that_fit_no_peaks_are_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="cannot be those of 3 items"):
        append((bytes(32),), 3, b"")


def test_bounds_hold_for_the_largest_range() -> None:
    assert MAX_COUNT.bit_count() == MAX_PEAKS
    assert MAX_COUNT.bit_length() - 1 == MAX_PATH
    item = bytes(32)
    peaks = append((bytes(32),) * MAX_PEAKS, MAX_COUNT, item)
    assert len(peaks) == 1
    assert not verify((item,) * MAX_PEAKS, MAX_COUNT, 0, item, (item,) * MAX_PATH)
    for earlier, count in pairwise((0, 1, 2**62 - 1, 2**62 + 1, MAX_COUNT)):
        digests = (item,) * MAX_EXTENSION
        assert not verify_extension((item,) * earlier.bit_count(), earlier, (item,) * count.bit_count(), count, digests)


def test_a_range_is_no_merkle_tree_of_the_same_items() -> None:
    items = items_of(4)
    assert peaks_of(items) != (merkle_root(items),)
