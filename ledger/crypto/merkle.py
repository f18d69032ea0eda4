# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary Merkle tree with inclusion proofs, shaped as in RFC 6962, section 2.1.

Leaves and inner nodes are hashed under different tags, so an inner node never passes for a leaf; a lone node is carried
up unhashed rather than doubled, so two lists of different length never share a root (CVE-2012-2459).
"""

from collections.abc import Sequence

from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash

MAX_PROOF_LENGTH = 64
"""No list has more than 2^63 items, so no path is longer."""


def _levels(items: Sequence[bytes]) -> list[list[bytes]]:
    level = [tagged_hash(Tag.MERKLE_LEAF, item) for item in items]
    levels = [level]
    while len(level) > 1:
        pairs = [tagged_hash(Tag.MERKLE_NODE, level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            pairs.append(level[-1])
        levels.append(pairs)
        level = pairs
    return levels


def merkle_root(items: Sequence[bytes]) -> bytes:
    """Return the 32-byte root of the items; of no items, 32 zero bytes."""
    return _levels(items)[-1][0] if items else ZERO_DIGEST


def merkle_proof(items: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the siblings from leaf to root for `items[index]`; raises `IndexError` outside the list."""
    if not 0 <= index < len(items):
        raise IndexError(f"no item {index} among {len(items)}")
    path: list[bytes] = []
    for level in _levels(items)[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index //= 2
    return tuple(path)


def verify_merkle_proof(root: bytes, item: bytes, index: int, count: int, path: Sequence[bytes]) -> bool:
    """Check that `item` stands at `index` of the `count` items under `root`."""
    if not 0 <= index < count or len(path) > MAX_PROOF_LENGTH:
        return False
    node = tagged_hash(Tag.MERKLE_LEAF, item)
    siblings = iter(path)
    width = count
    while width > 1:
        if index ^ 1 < width:
            sibling = next(siblings, None)
            if sibling is None:
                return False
            node = tagged_hash(Tag.MERKLE_NODE, *((sibling, node) if index % 2 else (node, sibling)))
        index, width = index // 2, (width + 1) // 2
    return node == root and next(siblings, None) is None
