# SPDX-License-Identifier: GPL-3.0-or-later
"""The authenticated state: a map whose root is a function of its content only, with short proofs of presence and absence.

A state key has a position, the tagged hash of the key. The tree is the binary crit-bit tree of the positions in use: an
inner node stands where two halves part and hashes the number of the bit at which they do, so n entries have n - 1 inner
nodes, whatever their positions. With T(S) for the root of a set S of leaves:

    T({})      = 32 zero bytes
    T({leaf})  = H(state-leaf, position ‖ H(state-value, value))
    T(S)       = H(state-node, bit ‖ T(S with that bit 0) ‖ T(S with that bit 1)), bit = first one in which S differs

A proof descends by the bits of the key's own position and ends at the one leaf where the key would be: if the leaf has
another position, the key is absent. At 10⁶ entries a proof has about 20 steps of 33 bytes.

How a store keeps it is its own affair. Here: leaves in sorted buckets by the first bits of the position, bucket roots, and
above them a heap of digests in memory. Whoever uses 256 buckets gets the same root as whoever uses 65 536.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple, Protocol

import msgspec

from ledger.codec import Digest, Wire
from ledger.crypto.hashing import DIGEST_BYTES, ZERO_DIGEST, Tag, hasher

POSITION_BITS = 8 * DIGEST_BYTES
MAX_PROOF_STEPS = POSITION_BITS
"""Two positions part at the last bit at the latest."""
MAX_BUCKET_BITS = 16
"""Two bytes name a bucket."""
MAX_STATE_PROOF_BYTES = 16 * 1024
"""Bound for decoding: 256 steps of 36 bytes. At 10⁶ entries real proofs have less than 2 KB."""


_BIT_BYTES = tuple(bit.to_bytes(1, "big") for bit in range(POSITION_BITS))
_key_hash, value_hash = hasher(Tag.STATE_KEY), hasher(Tag.STATE_VALUE)
leaf_hash, _node_hash = hasher(Tag.STATE_LEAF), hasher(Tag.STATE_NODE)


class ProofStep(Wire, frozen=True):
    """One inner node on the way from the root to the leaf."""

    bit: Annotated[int, msgspec.Meta(ge=0, lt=POSITION_BITS)]
    """Number of the bit, from the most significant, at which the halves part; rises from step to step."""
    sibling: Digest
    """Root of the half that the way does not take."""


class StateProof(Wire, frozen=True):
    """Proof that a state key has a value, or none, under a state root."""

    steps: Annotated[tuple[ProofStep, ...], msgspec.Meta(max_length=MAX_PROOF_STEPS)]
    """From the root downwards."""
    leaf: tuple[Digest, Digest] | None
    """Position and value digest of the leaf that the way ends at; None when the state is empty."""


class Leaf(NamedTuple):
    """A leaf as stores keep it; sorts by position."""

    position: bytes
    value_digest: bytes
    digest: bytes


def position_of(key: bytes) -> bytes:
    """Return the 32-byte position of a state key."""
    return _key_hash(key)


def make_leaf(position: bytes, value: bytes) -> Leaf:
    """Return the leaf of an encoded value."""
    value_digest = value_hash(value)
    return Leaf(position, value_digest, leaf_hash(position + value_digest))


def _bit(position: bytes, bit: int) -> int:
    return position[bit >> 3] >> (7 - (bit & 7)) & 1


def first_difference(left: bytes, right: bytes) -> int:
    """Return the first bit in which two positions differ; `POSITION_BITS` if they are one."""
    return POSITION_BITS - (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).bit_length()


def join_halves(bit: int, left: bytes, right: bytes) -> bytes:
    """Return the digest of an inner node."""
    return _node_hash(_BIT_BYTES[bit] + left + right)


def leaves_root(leaves: Sequence[Leaf]) -> bytes:
    """Return T of leaves sorted by position, in one pass with a stack of left halves."""
    if not leaves:
        return ZERO_DIGEST
    pending: list[tuple[int, bytes]] = []
    node, number = leaves[0].digest, int.from_bytes(leaves[0].position, "big")
    for leaf in leaves[1:]:
        following = int.from_bytes(leaf.position, "big")
        bit = POSITION_BITS - (number ^ following).bit_length()
        while pending and pending[-1][0] > bit:
            deeper, left = pending.pop()
            node = join_halves(deeper, left, node)
        pending.append((bit, node))
        node, number = leaf.digest, following
    while pending:
        bit, left = pending.pop()
        node = join_halves(bit, left, node)
    return node


def _upper_node(prefix: bytes, halves: bytes) -> bytes:
    """Return the digest over two halves that part at the bit in `prefix`."""
    if halves.startswith(ZERO_DIGEST):
        return halves[DIGEST_BYTES:]
    if halves.endswith(ZERO_DIGEST):
        return halves[:DIGEST_BYTES]
    return _node_hash(prefix + halves)


class StateTree:
    """The upper tree over 2^bits buckets: a heap of digests, where node 1 is the root and 2i, 2i + 1 lie below i.

    A node with one empty half equals its other half, as in the crit-bit tree. 2^16 buckets take 4 MiB.
    """

    def __init__(self, bits: int) -> None:
        assert 1 <= bits <= MAX_BUCKET_BITS, f"{bits} bits of bucket number"
        self.bits = bits
        self._first_bucket = 1 << bits
        self._nodes = bytearray((2 << bits) * DIGEST_BYTES)
        self._stale: set[int] = set()

    def set_buckets(self, roots: Iterable[tuple[int, bytes]]) -> None:
        """Take over roots of buckets; the nodes above are computed when the root is asked for."""
        for bucket, root in roots:
            node = self._first_bucket + bucket
            self._nodes[node * DIGEST_BYTES : (node + 1) * DIGEST_BYTES] = root
            self._stale.add(node >> 1)

    def root(self) -> bytes:
        """Return the root of all buckets."""
        level, bit = self._stale, self.bits - 1
        self._stale = set()
        nodes = self._nodes
        while level:
            prefix = _BIT_BYTES[bit]
            for node in level:
                start = 2 * DIGEST_BYTES * node
                digest = _upper_node(prefix, bytes(nodes[start : start + 2 * DIGEST_BYTES]))
                nodes[start // 2 : start // 2 + DIGEST_BYTES] = digest
            level = {node >> 1 for node in level if node > 1}
            bit -= 1
        return self._node(1)

    def root_with(self, roots: Iterable[tuple[int, bytes]]) -> bytes:
        """Return the root as it would be with these roots of buckets; the content of the tree stays as it is."""
        # What was set before is computed once, and only the ways from the given buckets up again.
        self.root()
        changed = {self._first_bucket + bucket: root for bucket, root in roots}
        level, bit = {node >> 1 for node in changed}, self.bits - 1
        while level:
            for node in level:
                left, right = (changed.get(child) or self._node(child) for child in (2 * node, 2 * node + 1))
                changed[node] = _upper_node(_BIT_BYTES[bit], left + right)
            level = {node >> 1 for node in level if node > 1}
            bit -= 1
        return changed.get(1) or self._node(1)

    def prove(self, position: bytes, bucket_leaves: Callable[[int], Sequence[Leaf]]) -> StateProof:
        """Return the proof for a position; `bucket_leaves` reads the sorted leaves of a bucket."""
        if self.root() == ZERO_DIGEST:
            return StateProof((), None)
        steps: list[ProofStep] = []
        node = 1
        for bit in range(self.bits):
            chosen = 2 * node + _bit(position, bit)
            other = chosen ^ 1
            if self._node(chosen) == ZERO_DIGEST:
                chosen = other
            elif self._node(other) != ZERO_DIGEST:
                steps.append(ProofStep(bit, self._node(other)))
            node = chosen
        leaves = bucket_leaves(node - self._first_bucket)
        while len(leaves) > 1:
            bit = first_difference(leaves[0].position, leaves[-1].position)
            middle = sum(not _bit(leaf.position, bit) for leaf in leaves)
            left, right = leaves[:middle], leaves[middle:]
            leaves, rest = (right, left) if _bit(position, bit) else (left, right)
            steps.append(ProofStep(bit, leaves_root(rest)))
        return StateProof(tuple(steps), (leaves[0].position, leaves[0].value_digest))

    def with_buckets(self, roots: Iterable[tuple[int, bytes]]) -> "StateTree":
        """Return a copy with these roots of buckets, for proofs of another state; this one stays as it is. Takes about a millisecond."""
        twin = StateTree(self.bits)
        twin._nodes[:] = self._nodes
        twin._stale = set(self._stale)
        twin.set_buckets(roots)
        return twin

    def _node(self, node: int) -> bytes:
        return bytes(self._nodes[node * DIGEST_BYTES : (node + 1) * DIGEST_BYTES])


def bucket_of(position: bytes, bits: int) -> int:
    """Return the number of a position's bucket among 2^bits."""
    return int.from_bytes(position[:2], "big") >> (MAX_BUCKET_BITS - bits)


class LeafTable(Protocol):
    """Where a store keeps the leaves of the buckets."""

    def read_bucket(self, bucket: int) -> list[Leaf]:
        """Return a bucket's leaves in the order of their positions."""

    def write_bucket(self, bucket: int, changed: Sequence[Leaf], removed: Sequence[bytes], root: bytes) -> None:
        """Set and remove leaves of a bucket and keep its new root."""


def fold_changes(
    keys: Iterable[bytes], value_of: Callable[[bytes], bytes | None], bits: int, table: LeafTable
) -> list[tuple[int, bytes]]:
    """Bring the leaves of changed state keys up to date; returns the new roots of the buckets touched."""
    buckets: dict[int, list[tuple[bytes, bytes]]] = {}
    for key in keys:
        position = position_of(key)
        buckets.setdefault(bucket_of(position, bits), []).append((position, key))
    roots = []
    for bucket in sorted(buckets):
        leaves = {leaf.position: leaf for leaf in table.read_bucket(bucket)}
        changed, removed = [], []
        for position, key in buckets[bucket]:
            value = value_of(key)
            if value is not None:
                leaf = leaves[position] = make_leaf(position, value)
                changed.append(leaf)
            elif leaves.pop(position, None) is not None:
                removed.append(position)
        root = leaves_root(sorted(leaves.values()))
        table.write_bucket(bucket, changed, removed, root)
        roots.append((bucket, root))
    return roots


def verify_state_proof(root: bytes, key: bytes, value: bytes | None, proof: StateProof) -> bool:
    """Check that under `root` a state key has an encoded value, or none at all if `value` is None."""
    position = position_of(key)
    if proof.leaf is None:
        return value is None and not proof.steps and root == ZERO_DIGEST
    leaf_position, value_digest = proof.leaf
    present = leaf_position == position
    if value is None:
        if present:
            return False
    elif not present or value_hash(value) != value_digest:
        return False
    node = leaf_hash(leaf_position + value_digest)
    deeper = POSITION_BITS
    for step in reversed(proof.steps):
        side = _bit(position, step.bit)
        # The way to the leaf must be the key's own way, or the key could be elsewhere.
        if step.bit >= deeper or side != _bit(leaf_position, step.bit):
            return False
        node = join_halves(step.bit, step.sibling, node) if side else join_halves(step.bit, node, step.sibling)
        deeper = step.bit
    return node == root
