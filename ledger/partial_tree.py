# SPDX-License-Identifier: GPL-3.0-or-later
"""A state tree rebuilt from the proofs of a few keys: what consensus replays an off-chain request on.

It answers `get` for exactly the keys that proofs were given for, takes `put` and `delete` of them, and has the root that the whole tree
would have afterwards. A key without a proof raises `InsufficientProof`, never an answer.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from ledger.codec import Wire
from ledger.crit_bit import CritBitTree, Inner, InsufficientProof, LeafNode, Node, Stub
from ledger.crypto.hashing import DIGEST_BYTES, ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.state_tree import StateProof, position_of, value_hash, verify_state_proof

__all__ = ["InsufficientProof", "PartialTree", "WitnessEntry"]

MAX_KEY_BYTES = 64
"""Longest state key of a contract, its kind's letter included: an address, a number and some letters."""
MAX_VALUE_BYTES = 1024
"""Longest value of a contract's state entry."""
MAX_WITNESS_ENTRIES = 256
"""Most keys that one request may touch, its sender's sequence number included."""


class WitnessEntry(Wire, frozen=True):
    """A state key, its value before a request, and the proof."""

    key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES)]
    """The key."""
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)] | None
    """Its value; nil where it has none."""
    proof: StateProof
    """Proof under the root before the request."""


class PartialTree:
    """The part of a state tree that proofs show."""

    def __init__(self, root: bytes, witness: Sequence[WitnessEntry]) -> None:
        """Check the proofs and rebuild; raises `InvalidInput` for a wrong, doubled or contradicting one. About 40 µs per entry.

        `was_insufficient` tells ever after whether a key without a proof was touched.
        """
        if len(witness) > MAX_WITNESS_ENTRIES:
            raise InvalidInput(f"{len(witness)} state proofs; at most {MAX_WITNESS_ENTRIES} are allowed")
        self.was_insufficient = False
        self._values: dict[bytes, bytes | None] = {}
        self._positions: dict[bytes, bytes] = {}
        self._steps: dict[bytes, int] = {}
        top: Node | None = None if root == ZERO_DIGEST else Stub(root, bytes(DIGEST_BYTES), 0)
        for entry in witness:
            if entry.key in self._values:
                raise InvalidInput(f"two proofs of state key {entry.key.hex()}; give one")
            if not verify_state_proof(root, entry.key, entry.value, entry.proof):
                raise InvalidInput(f"the proof of state key {entry.key.hex()} does not hold under root {root.hex()}")
            self._values[entry.key] = entry.value
            self._positions[entry.key] = position_of(entry.key)
            self._steps[entry.key] = len(entry.proof.steps)
            top = _graft(top, entry)
        self._tree = CritBitTree(top)
        if self._tree.root() != root:
            raise InvalidInput("the state proofs contradict each other")

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where it has none; raises `InsufficientProof`."""
        self._position(key)
        return self._values[key]

    def steps(self, key: bytes) -> int:
        """Return how many steps the proof of a key had that was given; raises `InsufficientProof`."""
        self._position(key)
        return self._steps[key]

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key; raises `InsufficientProof`."""
        self._tree.put(self._position(key), value_hash(value))
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there; raises `InsufficientProof`."""
        self._tree.delete(self._position(key))
        self._values[key] = None

    def root(self) -> bytes:
        """Return the root of the whole tree with all that was put and deleted here."""
        return self._tree.root()

    def _position(self, key: bytes) -> bytes:
        position = self._positions.get(key)
        if position is None:
            self.was_insufficient = True
            raise InsufficientProof(f"state key {key.hex()} is touched, but there is no proof of it")
        return position


def _graft(top: Node | None, entry: WitnessEntry) -> Node | None:
    """Open the stubs on the way of one checked proof; returns the new top."""
    proof = entry.proof
    if proof.leaf is None:
        return top
    position, value_digest = proof.leaf
    parent: Inner | None = None
    node = top
    for step in proof.steps:
        if isinstance(node, Stub):
            node = _opened(node, step.bit, step.sibling, position)
            top = _hung(top, parent, node, position)
        if not isinstance(node, Inner) or node.bit != step.bit:
            raise InvalidInput(f"the proof of state key {entry.key.hex()} contradicts another one")
        parent = node
        node = node.right if position[node.byte] & node.mask else node.left
    if isinstance(node, Stub):
        return _hung(top, parent, LeafNode(position, value_digest), position)
    if not isinstance(node, LeafNode) or (node.position, node.value_digest) != (position, value_digest):
        raise InvalidInput(f"the proof of state key {entry.key.hex()} contradicts another one")
    return top


def _opened(stub: Stub, bit: int, sibling: bytes, position: bytes) -> Inner:
    """Return the inner node that a proof shows in place of a stub; the half that the way takes is a stub still."""
    other = bytearray(position)
    other[bit >> 3] ^= 128 >> (bit & 7)
    away = Stub(sibling, bytes(other), bit + 1)
    # Its digest is never read: the way goes on into it, and the leaf replaces the last one.
    onward = Stub(stub.digest, position, bit + 1)
    return Inner(bit, away, onward) if position[bit >> 3] & (128 >> (bit & 7)) else Inner(bit, onward, away)


def _hung(top: Node | None, parent: Inner | None, node: Node, position: bytes) -> Node | None:
    """Put a node below its parent, on the side of a position; returns the top."""
    if parent is None:
        return node
    if position[parent.byte] & parent.mask:
        parent.right = node
    else:
        parent.left = node
    return top
