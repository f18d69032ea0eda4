# SPDX-License-Identifier: GPL-3.0-or-later
"""The authenticated state: requirements first, against a textbook definition.

R1 The root is a function of the content only, whatever the order and number of the operations.
R2 Every key has a proof of its value or of its absence, and no proof of anything else.
R3 How many buckets a store uses does not show.
"""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import state_tree
from ledger.codec import decode, encode
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.state_tree import (
    MAX_PROOF_STEPS,
    MAX_STATE_PROOF_BYTES,
    Leaf,
    ProofStep,
    StateProof,
    StateTree,
    bucket_of,
    fold_changes,
    leaves_root,
    make_leaf,
    position_of,
    verify_state_proof,
)

small_keys = st.integers(0, 40).map(lambda number: b"k%d" % number)
contents = st.dictionaries(small_keys, st.binary(max_size=5))
operations = st.lists(st.tuples(small_keys, st.none() | st.binary(max_size=5)), max_size=60)
all_bits = st.sampled_from([1, 2, 5, 8, 16])


class Tree:
    """A tree with its leaves in a dictionary."""

    def __init__(self, bits: int) -> None:
        self.content: dict[bytes, bytes] = {}
        self.tree = StateTree(bits)
        self.leaves: dict[int, dict[bytes, Leaf]] = {}

    def read_bucket(self, bucket: int) -> list[Leaf]:
        return sorted(self.leaves.get(bucket, {}).values())

    def write_bucket(self, bucket: int, changed: Sequence[Leaf], removed: Sequence[bytes], root: bytes) -> None:
        leaves = self.leaves.setdefault(bucket, {})
        leaves.update((leaf.position, leaf) for leaf in changed)
        for position in removed:
            del leaves[position]
        assert root == leaves_root(self.read_bucket(bucket))

    def apply(self, changes: Sequence[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                self.content.pop(key, None)
            else:
                self.content[key] = value
        keys = {key for key, _ in changes}
        self.tree.set_buckets(fold_changes(keys, self.content.get, self.tree.bits, self))

    def prove(self, key: bytes) -> StateProof:
        return self.tree.prove(position_of(key), self.read_bucket)


def textbook(content: dict[bytes, bytes]) -> bytes:
    def root(leaves: list[tuple[str, bytes]]) -> bytes:
        if len(leaves) < 2:
            return leaves[0][1] if leaves else ZERO_DIGEST
        bit = next(i for i in range(256) if len({position[i] for position, _ in leaves}) == 2)
        left, right = (root([leaf for leaf in leaves if leaf[0][bit] == side]) for side in "01")
        return tagged_hash(Tag.STATE_NODE, bytes([bit]), left, right)

    leaves = [make_leaf(position_of(key), value) for key, value in content.items()]
    return root([(f"{int.from_bytes(leaf.position, 'big'):0256b}", leaf.digest) for leaf in leaves])


@given(contents, all_bits)
def test_r1_root_is_the_textbook_definition(content: dict[bytes, bytes], bits: int) -> None:
    tree = Tree(bits)
    tree.apply(list(content.items()))
    assert tree.tree.root() == textbook(content)
    assert leaves_root(sorted(make_leaf(position_of(key), value) for key, value in content.items())) == textbook(
        content
    )


@given(operations, st.lists(st.integers(0, 60), max_size=4), all_bits)
def test_r1_order_and_grouping_of_operations_do_not_matter(
    changes: list[tuple[bytes, bytes | None]], cuts: list[int], bits: int
) -> None:
    tree, start = Tree(bits), 0
    for cut in [*sorted(cuts), len(changes)]:
        tree.apply(changes[start:cut])
        tree.tree.root()
        start = max(start, cut)
    at_once = Tree(bits)
    at_once.apply(list(reversed(tree.content.items())))
    assert tree.tree.root() == at_once.tree.root() == textbook(tree.content)


@given(contents, operations, all_bits)
def test_a_root_can_be_foreseen_without_changing_the_tree(
    content: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]], bits: int
) -> None:
    tree = Tree(bits)
    tree.apply(list(content.items()))
    before = textbook(content)
    for key, value in changes:
        if value is None:
            tree.content.pop(key, None)
        else:
            tree.content[key] = value
    roots = fold_changes({key for key, _ in changes}, tree.content.get, bits, tree)
    assert tree.tree.root_with(roots) == textbook(tree.content)
    assert tree.tree.root() == before
    tree.tree.set_buckets(roots)
    assert tree.tree.root() == textbook(tree.content)


def test_a_root_to_be_costs_the_ways_to_its_buckets_however_many_roots_were_set_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pinned keyblock keeps a root in the transaction that it is: it must not pay for all keyblocks since the start again."""
    tree, hashed = StateTree(16), list[bytes]()
    tree.set_buckets((bucket, bytes([1 + bucket % 255]) * 32) for bucket in range(2**16))
    original = state_tree._node_hash

    def counted(data: bytes) -> bytes:
        hashed.append(data)
        return original(data)

    monkeypatch.setattr(state_tree, "_node_hash", counted)
    tree.root_with([(5, b"\1" * 32)])
    for bucket in (7, 2**15):
        hashed.clear()
        root = tree.root_with([(bucket, b"\2" * 32)])
        assert len(hashed) <= 16
        tree.set_buckets([(bucket, b"\2" * 32)])
        assert tree.root() == root


@given(contents, all_bits, all_bits)
def test_r3_number_of_buckets_does_not_show_in_root_and_proofs(content: dict[bytes, bytes], one: int, two: int) -> None:
    trees = [Tree(one), Tree(two)]
    for tree in trees:
        tree.apply(list(content.items()))
    assert trees[0].tree.root() == trees[1].tree.root()
    assert trees[0].prove(b"k1") == trees[1].prove(b"k1")


@given(contents, small_keys, st.binary(max_size=5), all_bits)
def test_r2_a_key_has_a_proof_of_its_value_and_of_nothing_else(
    content: dict[bytes, bytes], key: bytes, other: bytes, bits: int
) -> None:
    tree = Tree(bits)
    tree.apply(list(content.items()))
    root, value, proof = tree.tree.root(), content.get(key), tree.prove(key)
    assert decode(StateProof, encode(proof), MAX_STATE_PROOF_BYTES) == proof
    assert verify_state_proof(root, key, value, proof)
    assert verify_state_proof(root, key, other, proof) == (other == value)
    assert verify_state_proof(root, key, None, proof) == (value is None)
    assert not verify_state_proof(bytes([root[0] ^ 1]) + root[1:], key, value, proof)


@given(contents.filter(lambda content: len(content) > 1), small_keys, small_keys, all_bits)
def test_r2_a_proof_made_for_one_key_never_denies_another_that_exists(
    content: dict[bytes, bytes], proved: bytes, asked: bytes, bits: int
) -> None:
    tree = Tree(bits)
    tree.apply(list(content.items()))
    if asked in content:
        assert not verify_state_proof(tree.tree.root(), asked, None, tree.prove(proved))


@settings(max_examples=200)
@given(contents.filter(lambda content: len(content) > 2), small_keys, st.data())
def test_r2_no_altered_proof_verifies(content: dict[bytes, bytes], key: bytes, data: st.DataObject) -> None:
    tree = Tree(2)
    tree.apply(list(content.items()))
    root, value, proof = tree.tree.root(), content.get(key), tree.prove(key)
    raw = bytearray(encode(proof))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        forged = decode(StateProof, bytes(raw), MAX_STATE_PROOF_BYTES)
    except InvalidInput:
        return
    assert not verify_state_proof(root, key, value, forged)


def test_empty_state_has_the_zero_root_and_proves_absence_only() -> None:
    tree = Tree(8)
    assert tree.tree.root() == ZERO_DIGEST
    proof = tree.prove(b"key")
    assert proof == StateProof((), None)
    assert verify_state_proof(ZERO_DIGEST, b"key", None, proof)
    assert not verify_state_proof(ZERO_DIGEST, b"key", b"", proof)
    assert not verify_state_proof(b"\1" * 32, b"key", None, proof)
    assert not verify_state_proof(ZERO_DIGEST, b"key", None, StateProof((ProofStep(0, bytes(32)),), None))


def test_a_leaf_off_the_keys_own_way_proves_no_absence() -> None:
    content = {b"k%d" % number: b"v" for number in range(8)}
    tree = Tree(8)
    tree.apply(list(content.items()))
    proof = tree.prove(b"k1")
    assert proof.leaf is not None
    elsewhere = next(key for key in content if position_of(key)[0] >> 7 != position_of(b"k1")[0] >> 7)
    assert verify_state_proof(tree.tree.root(), b"k1", b"v", proof)
    assert not verify_state_proof(tree.tree.root(), elsewhere, None, proof)


def test_bits_of_a_proof_must_rise() -> None:
    tree = Tree(8)
    tree.apply([(b"k%d" % number, b"v") for number in range(8)])
    proof = tree.prove(b"k1")
    swapped = msgspec.structs.replace(proof, steps=proof.steps[::-1])
    repeated = msgspec.structs.replace(proof, steps=(*proof.steps, proof.steps[-1]))
    assert len(proof.steps) > 1
    assert not verify_state_proof(tree.tree.root(), b"k1", b"v", swapped)
    assert not verify_state_proof(tree.tree.root(), b"k1", b"v", repeated)


def test_proofs_stay_below_2_kb_at_a_hundred_thousand_entries_and_grow_by_the_logarithm() -> None:
    leaves = sorted(make_leaf(position_of(b"%d" % number), b"") for number in range(100_000))
    tree = StateTree(16)
    buckets: list[list[Leaf]] = [[] for _ in range(1 << 16)]
    for leaf in leaves:
        buckets[bucket_of(leaf.position, 16)].append(leaf)
    tree.set_buckets((number, leaves_root(bucket)) for number, bucket in enumerate(buckets))
    assert tree.root() == leaves_root(leaves)
    sizes = [len(encode(tree.prove(position_of(b"%d" % number), buckets.__getitem__))) for number in range(0, 1000, 7)]
    # 17 steps on average; ten times the entries add 3.3.
    assert max(sizes) < 1200
    assert sum(sizes) / len(sizes) < 800


def test_longest_proof_that_can_be_sent_is_bounded() -> None:
    steps = tuple(ProofStep(bit, bytes(32)) for bit in range(MAX_PROOF_STEPS))
    assert len(encode(StateProof(steps, (bytes(32), bytes(32))))) <= MAX_STATE_PROOF_BYTES
    with pytest.raises(InvalidInput):
        decode(StateProof, encode(StateProof((*steps, steps[0]), None)), MAX_STATE_PROOF_BYTES)


@pytest.mark.parametrize("bits", [0, 17])
def test_number_of_buckets_is_bounded(bits: int) -> None:
    with pytest.raises(AssertionError, match="bits of bucket number"):
        StateTree(bits)


@given(contents, operations, st.sampled_from([1, 2, 5, 8]))
def test_a_copy_with_other_buckets_proves_the_other_content(
    content: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]], bits: int
) -> None:
    before = Tree(bits)
    before.apply(list(content.items()))
    after = Tree(bits)
    after.apply([*content.items(), *changes])
    twin = after.tree.with_buckets([(bucket, leaves_root(before.read_bucket(bucket))) for bucket in range(1 << bits)])
    root = textbook(content)
    assert twin.root() == root
    assert after.tree.root() == textbook(after.content)
    for key in {*content, *(key for key, _ in changes)}:
        assert verify_state_proof(root, key, content.get(key), twin.prove(position_of(key), before.read_bucket))
