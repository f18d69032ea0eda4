# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of `ledger/state_tree.py` as nodes in memory, of which parts may be known by their root only.

The same nodes serve two: the live tree of an off-chain contract, where every node is there, and a tree rebuilt from the proofs of a
few keys, where a *stub* stands for each half that no proof enters. Both are changed by the same code, so they cannot part.

What makes a rebuilt tree changeable: all leaves of a stub agree with a known leaf up to the bit at which they part from it. A key that
differs from them within these bits is not in the stub, and its place is known, without any of the stub's leaves. Whoever has proofs of
some keys can therefore put and delete exactly these, in any order and as often as wanted, and gets the root of the whole tree.
"""

from collections.abc import Mapping
from typing import final

from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.state_tree import (
    POSITION_BITS,
    ProofStep,
    StateProof,
    first_difference,
    join_halves,
    leaf_hash,
)


class InsufficientProof(InvalidInput):
    """A key was touched of which no proof was given: give the proofs of all keys that are read or written."""


class LeafNode:
    """One entry."""

    __slots__ = ("digest", "position", "value_digest")

    def __init__(self, position: bytes, value_digest: bytes) -> None:
        self.position = position
        self.set(value_digest)

    def set(self, value_digest: bytes) -> None:
        """Take another value."""
        self.value_digest = value_digest
        self.digest = leaf_hash(self.position + value_digest)


class Stub:
    """A half of which only the root is known, and the bits in which all its leaves agree."""

    __slots__ = ("digest", "known_bits", "prefix")

    def __init__(self, digest: bytes, prefix: bytes, known_bits: int) -> None:
        """Take a position that agrees with all leaves in its first `known_bits` bits."""
        self.digest = digest
        self.prefix = prefix
        self.known_bits = known_bits


@final
class Inner:
    """Two halves that part at a bit; the digest is None while it waits to be computed."""

    __slots__ = ("bit", "byte", "digest", "left", "mask", "right")

    def __init__(self, bit: int, left: "Node", right: "Node") -> None:
        self.bit = bit
        self.byte = bit >> 3
        self.mask = 128 >> (bit & 7)
        self.left = left
        self.right = right
        self.digest: bytes | None = None


Node = Inner | LeafNode | Stub


def _digest(node: Node) -> bytes:
    """Return a node's digest; computes what waits, at most 256 levels deep."""
    if node.digest is None:
        assert type(node) is Inner, "only inner nodes wait for their digest"
        left, right = node.left, node.right
        node.digest = join_halves(node.bit, left.digest or _digest(left), right.digest or _digest(right))
    return node.digest


class CritBitTree:
    """A map from positions to digests of values. Who keeps the values is its user's affair."""

    def __init__(self, top: Node | None = None) -> None:
        self._top = top

    def root(self) -> bytes:
        """Return the root of the content as it is now."""
        return ZERO_DIGEST if self._top is None else _digest(self._top)

    def steps(self, position: bytes) -> int:
        """Return how many steps the proof for a position has."""
        count, node = 0, self._top
        while type(node) is Inner:
            count += 1
            node = node.right if position[node.byte] & node.mask else node.left
        return count

    def get(self, position: bytes) -> bytes | None:
        """Return the digest of the value at a position, None where there is none; raises `InsufficientProof`."""
        end = self._descend(position)[1]
        if end is None or self._parting_bit(position, end) < POSITION_BITS:
            return None
        assert isinstance(end, LeafNode), "only a leaf agrees in all bits"
        return end.value_digest

    def put(self, position: bytes, value_digest: bytes) -> None:
        """Set the value at a position; raises `InsufficientProof`, and then nothing has changed."""
        path, end = self._descend(position)
        if end is None:
            self._top = LeafNode(position, value_digest)
            return
        bit = self._parting_bit(position, end)
        if bit == POSITION_BITS:
            assert isinstance(end, LeafNode), "only a leaf agrees in all bits"
            end.set(value_digest)
            _forget_digests(path)
            return
        above = len(path)
        while above and path[above - 1].bit > bit:
            above -= 1
        below: Node = path[above] if above < len(path) else end
        leaf = LeafNode(position, value_digest)
        is_right = position[bit >> 3] & (128 >> (bit & 7))
        node = Inner(bit, below, leaf) if is_right else Inner(bit, leaf, below)
        self._hang(path[:above], below, node)

    def set_all(self, values: Mapping[bytes, bytes]) -> None:
        """Set the values at positions that are all in use, and rehash each inner node above them once."""
        assert self._top is not None or not values, "there are values at these positions already"
        if self._top is not None:
            _set_below(self._top, list(values), values)

    def delete(self, position: bytes) -> None:
        """Remove what is at a position, if anything; raises `InsufficientProof`, and then nothing has changed."""
        path, end = self._descend(position)
        if end is None or self._parting_bit(position, end) < POSITION_BITS:
            return
        if not path:
            self._top = None
            return
        parent = path[-1]
        self._hang(path[:-1], parent, parent.left if parent.right is end else parent.right)

    def prove(self, position: bytes) -> StateProof:
        """Return the proof of what is at a position; raises `InsufficientProof`."""
        path, end = self._descend(position)
        if end is None:
            return StateProof((), None)
        if not isinstance(end, LeafNode):
            raise InsufficientProof(f"nothing is known about position {position.hex()}")
        below = [*path, end][1:]
        steps = tuple(
            ProofStep(node.bit, _digest(node.left if node.right is child else node.right))
            for node, child in zip(path, below, strict=True)
        )
        return StateProof(steps, (end.position, end.value_digest))

    def _descend(self, position: bytes) -> tuple[list[Inner], LeafNode | Stub | None]:
        """Return the inner nodes on the way that a position's own bits take, and what the way ends at."""
        path: list[Inner] = []
        node = self._top
        # The hottest loop of all: comparing the type takes half of what `isinstance` does.
        while type(node) is Inner:
            path.append(node)
            node = node.right if position[node.byte] & node.mask else node.left
        return path, node

    def _parting_bit(self, position: bytes, end: LeafNode | Stub) -> int:
        """Return the bit at which a position parts from the end of its way; `POSITION_BITS` if it is there."""
        if isinstance(end, LeafNode):
            return POSITION_BITS if position == end.position else first_difference(position, end.position)
        bit = first_difference(position, end.prefix)
        if bit >= end.known_bits:
            raise InsufficientProof(f"nothing is known about position {position.hex()}: give a proof of its key")
        return bit

    def _hang(self, path: list[Inner], old: Node, new: Node) -> None:
        """Put a node in the place of another at the end of a path."""
        if not path:
            self._top = new
            return
        parent = path[-1]
        if parent.left is old:
            parent.left = new
        else:
            assert parent.right is old, "the old node hangs at the end of the path"
            parent.right = new
        _forget_digests(path)


def _set_below(node: Node, positions: list[bytes], values: Mapping[bytes, bytes]) -> bytes:
    """Set the values at positions below a node; returns its digest."""
    if len(positions) == 1:
        return _set_one(node, positions[0], values[positions[0]])
    assert type(node) is Inner, "two positions part at an inner node"
    byte, mask, left, right = node.byte, node.mask, node.left, node.right
    ones = [position for position in positions if position[byte] & mask]
    if not ones:
        left_digest, right_digest = _set_below(left, positions, values), right.digest or _digest(right)
    elif len(ones) == len(positions):
        left_digest, right_digest = left.digest or _digest(left), _set_below(right, positions, values)
    else:
        zeros = [position for position in positions if not position[byte] & mask]
        left_digest, right_digest = _set_below(left, zeros, values), _set_below(right, ones, values)
    node.digest = join_halves(node.bit, left_digest, right_digest)
    return node.digest


def _set_one(node: Node, position: bytes, value_digest: bytes) -> bytes:
    """Set the value at a position below a node; returns the node's digest."""
    path: list[Inner] = []
    while type(node) is Inner:
        path.append(node)
        node = node.right if position[node.byte] & node.mask else node.left
    assert isinstance(node, LeafNode), "the whole tree is there"
    assert node.position == position, "the position is in use"
    node.set(value_digest)
    digest = node.digest
    for inner in reversed(path):
        left, right = inner.left, inner.right
        digest = inner.digest = join_halves(inner.bit, left.digest or _digest(left), right.digest or _digest(right))
    return digest


def _forget_digests(path: list[Inner]) -> None:
    for node in path:
        node.digest = None
