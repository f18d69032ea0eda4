# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.crypto.merkle import MAX_PROOF_LENGTH, merkle_proof, merkle_root, verify_merkle_proof

items_of = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def rfc_6962(items: list[bytes]) -> bytes:
    if len(items) == 1:
        return tagged_hash(Tag.MERKLE_LEAF, items[0])
    half = 1
    while 2 * half < len(items):
        half *= 2
    return tagged_hash(Tag.MERKLE_NODE, rfc_6962(items[:half]), rfc_6962(items[half:]))


def test_no_items_have_the_zero_root() -> None:
    assert merkle_root([]) == ZERO_DIGEST


@given(items_of)
def test_root_is_the_recursive_definition_of_rfc_6962(items: list[bytes]) -> None:
    assert merkle_root(items) == rfc_6962(items)


@given(items_of)
def test_every_item_has_a_proof_that_verifies(items: list[bytes]) -> None:
    root = merkle_root(items)
    for index, item in enumerate(items):
        path = merkle_proof(items, index)
        assert len(path) <= (len(items) - 1).bit_length()
        assert verify_merkle_proof(root, item, index, len(items), path)


@given(items_of, st.data())
def test_a_proof_holds_for_no_other_item_place_or_path(items: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(items) - 1))
    root, item, path = merkle_root(items), items[index], merkle_proof(items, index)
    count = len(items)
    assert not verify_merkle_proof(root, item + b"x", index, count, path)
    other = data.draw(st.integers(-1, count))
    if not 0 <= other < count or items[other] != item:
        assert not verify_merkle_proof(root, item, other, count, path)
    assert not verify_merkle_proof(root, item, index, count, (*path, bytes(32)))
    assert not verify_merkle_proof(bytes(32), item, index, count, path)
    if path:
        assert not verify_merkle_proof(root, item, index, count, path[:-1])
        assert not verify_merkle_proof(root, item, index, count, (bytes(32), *path[1:]))


@given(items_of)
def test_doubling_the_last_item_changes_the_root(items: list[bytes]) -> None:
    assert merkle_root([*items, items[-1]]) != merkle_root(items)


@given(items_of.filter(lambda items: len(items) > 1))
def test_an_inner_node_does_not_pass_for_an_item(items: list[bytes]) -> None:
    leaves = [tagged_hash(Tag.MERKLE_LEAF, item) for item in items[:2]]
    assert merkle_root([b"".join(leaves), *items[2:]]) != merkle_root(items)


def test_a_path_beyond_any_tree_is_refused() -> None:
    assert not verify_merkle_proof(bytes(32), b"", 0, 1, (bytes(32),) * (MAX_PROOF_LENGTH + 1))


@pytest.mark.parametrize("index", [-1, 3])
def test_a_proof_for_a_place_outside_the_list_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match="among 3"):
        merkle_proof([b"a", b"b", b"c"], index)
