# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree rebuilt from proofs: requirements first, against the bulk definition of the state tree.

R1 With proofs of the touched keys, any history of puts and deletes gives the root that the whole tree has.
R2 It answers for the proved keys only; another key raises `InsufficientProof`.
R3 Proofs that are wrong, doubled or of another root are refused, and nothing else than a typed error leaves it.
"""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.codec import decode, encode
from ledger.crit_bit import CritBitTree
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.partial_tree import MAX_WITNESS_ENTRIES, InsufficientProof, PartialTree, WitnessEntry
from ledger.state_tree import StateProof, leaves_root, make_leaf, position_of, verify_state_proof

small_keys = st.integers(0, 40).map(lambda number: b"k%d" % number)
contents = st.dictionaries(small_keys, st.binary(max_size=5))
histories = st.lists(st.tuples(small_keys, st.none() | st.binary(max_size=5)), max_size=40)


def definition(content: Mapping[bytes, bytes]) -> bytes:
    return leaves_root(sorted(make_leaf(position_of(key), value) for key, value in content.items()))


def tree_of(content: Mapping[bytes, bytes]) -> CritBitTree:
    tree = CritBitTree()
    for key, value in content.items():
        tree.put(position_of(key), make_leaf(position_of(key), value).value_digest)
    return tree


def witness_of(content: Mapping[bytes, bytes], keys: set[bytes]) -> list[WitnessEntry]:
    tree = tree_of(content)
    return [WitnessEntry(key, content.get(key), tree.prove(position_of(key))) for key in sorted(keys)]


def change(content: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    if value is None:
        content.pop(key, None)
    else:
        content[key] = value


@given(contents, histories)
def test_r1_the_live_tree_has_the_root_and_the_proofs_of_the_definition(
    content: dict[bytes, bytes], history: list[tuple[bytes, bytes | None]]
) -> None:
    tree = tree_of(content)
    for key, value in history:
        change(content, key, value)
        position = position_of(key)
        if value is None:
            tree.delete(position)
        else:
            tree.put(position, make_leaf(position, value).value_digest)
        root = tree.root()
        assert root == definition(content)
        proof = tree.prove(position)
        assert len(proof.steps) == tree.steps(position)
        assert verify_state_proof(root, key, value, proof)


@given(contents, histories, st.sets(small_keys, max_size=3))
def test_r1_any_history_over_proved_keys_gives_the_root_of_the_whole_tree(
    content: dict[bytes, bytes], history: list[tuple[bytes, bytes | None]], further: set[bytes]
) -> None:
    keys = {key for key, _ in history} | further
    partial = PartialTree(definition(content), witness_of(content, keys))
    live = tree_of(content)
    assert all(partial.steps(key) == live.steps(position_of(key)) for key in keys)
    for key, value in history:
        assert partial.get(key) == content.get(key)
        change(content, key, value)
        if value is None:
            partial.delete(key)
            live.delete(position_of(key))
        else:
            partial.put(key, value)
            live.put(position_of(key), make_leaf(position_of(key), value).value_digest)
        assert partial.root() == live.root() == definition(content)


def test_r1_a_key_whose_proof_ended_at_a_deleted_leaf_can_still_be_put() -> None:
    # The neighbour goes, so the way of the absent key ends at a stub: what is known of the stub must be enough.
    for number in range(200):
        content = {b"n%d/%d" % (number, i): b"v" for i in range(6)}
        absent = b"absent"
        end = tree_of(content).prove(position_of(absent)).leaf
        assert end is not None
        neighbour = next(key for key in content if position_of(key) == end[0])
        partial = PartialTree(definition(content), witness_of(content, {absent, neighbour}))
        partial.delete(neighbour)
        partial.put(absent, b"here")
        del content[neighbour]
        content[absent] = b"here"
        assert partial.root() == definition(content)


@given(contents, st.sets(small_keys, max_size=5), small_keys)
def test_r2_a_key_without_a_proof_raises(content: dict[bytes, bytes], keys: set[bytes], other: bytes) -> None:
    keys.discard(other)
    partial = PartialTree(definition(content), witness_of(content, keys))
    for touch in (partial.get, partial.delete, partial.steps, lambda key: partial.put(key, b"x")):
        with pytest.raises(InsufficientProof):
            touch(other)
    assert partial.root() == definition(content)


def test_r2_a_tree_of_stubs_says_that_it_does_not_know() -> None:
    content = {b"k%d" % number: b"v" for number in range(9)}
    partial = PartialTree(definition(content), witness_of(content, {b"k0"}))
    answered = 0
    for key in content:
        try:
            partial._tree.prove(position_of(key))
            answered += 1
        except InsufficientProof:
            continue
    assert answered == 1


@given(contents, st.sets(small_keys, min_size=1, max_size=5), st.data())
def test_r3_no_changed_byte_of_a_witness_is_accepted(
    content: dict[bytes, bytes], keys: set[bytes], data: st.DataObject
) -> None:
    witness = witness_of(content, keys)
    kind = tuple[WitnessEntry, ...]
    raw = bytearray(encode(tuple(witness)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(kind, bytes(raw), 2**20)
    except InvalidInput:
        return
    try:
        partial = PartialTree(definition(content), changed)
    except InvalidInput:
        return
    # The one change that may pass: the proof of an absent key serves an absent neighbour just as well.
    assert partial.root() == definition(content)
    for entry in changed:
        assert partial.get(entry.key) == content.get(entry.key)


@given(contents, contents)
def test_r3_proofs_of_another_root_are_refused(content: dict[bytes, bytes], other: dict[bytes, bytes]) -> None:
    if content == other:
        return
    with pytest.raises(InvalidInput):
        PartialTree(definition(content), witness_of(other, {b"k0"}))


def test_r3_doubled_and_too_many_proofs_are_refused() -> None:
    content = {b"k%d" % number: b"v" for number in range(300)}
    root, entry = definition(content), witness_of(content, {b"k1"})[0]
    with pytest.raises(InvalidInput, match="two proofs"):
        PartialTree(root, [entry, entry])
    with pytest.raises(InvalidInput, match="at most"):
        PartialTree(root, witness_of(content, set(content)))
    PartialTree(root, witness_of(content, set(list(content)[:MAX_WITNESS_ENTRIES])))


def test_an_empty_tree_grows_from_nothing() -> None:
    nothing = StateProof((), None)
    partial = PartialTree(ZERO_DIGEST, [WitnessEntry(b"a", None, nothing), WitnessEntry(b"b", None, nothing)])
    partial.put(b"a", b"1")
    partial.put(b"b", b"2")
    assert partial.root() == definition({b"a": b"1", b"b": b"2"})
    partial.delete(b"a")
    partial.delete(b"b")
    partial.delete(b"b")
    assert partial.root() == ZERO_DIGEST
    with pytest.raises(InvalidInput):
        PartialTree(definition({b"a": b"1"}), [WitnessEntry(b"a", None, nothing)])


def test_a_hostile_witness_is_bounded_before_it_is_decoded() -> None:
    entry = WitnessEntry(b"k", b"v", StateProof((), (bytes(32), bytes(32))))
    for wrong in (
        msgspec.structs.replace(entry, key=bytes(65)),
        msgspec.structs.replace(entry, key=b""),
        msgspec.structs.replace(entry, value=bytes(1025)),
    ):
        with pytest.raises(InvalidInput):
            decode(WitnessEntry, encode(wrong), 4096)
