# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyblocks and microblocks.

A microblock's header is of constant size and carries the Merkle root of its batch digests; the list of digests follows it.
The certificate of a block is carried by its successor and is not part of any hash, so that a leader can pipeline
(RepuCoin, section "Blocks").
"""

from typing import TYPE_CHECKING, Annotated

import msgspec

from ledger.codec import (
    Address,
    Digest,
    PublicKeyBytes,
    RevealBytes,
    RevealKeyBytes,
    SignatureBytes,
    Uint,
    Uint256,
    Wire,
    encode,
)
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash, tagged_state
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.merkle import merkle_root

if TYPE_CHECKING:
    import hashlib

MAX_BLOCK_BATCHES = 256
"""Digests take 8 KiB then, and a block names up to half a million transactions."""
MAX_MICROBLOCK_BYTES = 16 * 1024
"""A header, its signature, `MAX_BLOCK_BATCHES` digests, a keyblock and a reveal take about 10 KiB."""


class Keyblock(Wire, frozen=True):
    """A proof of work; earns reputation and, once a committed microblock pins it, begins an epoch.

    Its puzzle is SHA-256(hash) < target, so that a solution fixes every field, and with them the seed that rests on the hash.
    """

    previous: Digest
    """Hash of the previous pinned keyblock, or of the genesis."""
    microblock: Digest
    """Hash of the committed microblock that it was mined on: the one that pinned the previous keyblock."""
    miner: PublicKeyBytes
    """Key of the miner."""
    reveal_key: RevealKeyBytes
    """The miner's BLS key: it will reveal the seed of the epoch's leaders."""
    reputation_nano: Uint
    """The miner's reputation as of the previous keyblock, in 10⁻⁹."""
    target: Uint256
    """The puzzle's hash must be below this number."""
    timestamp_ms: Uint
    """Time of mining, in milliseconds since 1970 (UTC)."""
    state_root: Digest
    """Root of the authenticated state after `microblock`."""
    nonce: Uint256
    """What the miner searched for; the last field, so that all before it is hashed once in a search."""


class SignedKeyblock(Wire, frozen=True):
    """A keyblock on the wire."""

    keyblock: Keyblock
    """The signed content."""
    signature: SignatureBytes
    """The miner's signature of `keyblock-signature ‖ chain id ‖ hash`."""


class MicroblockHeader(Wire, frozen=True):
    """One step of the chain; its hash names the microblock."""

    height: Uint
    """Number of the microblock; the genesis has 0."""
    epoch: Uint
    """Number of keyblocks pinned before this microblock."""
    term: Uint
    """Number of the leader's term in the epoch."""
    round: Uint
    """Consensus round: term × cap of microblocks per term + position in the term."""
    parent: Digest
    """Hash of the previous microblock's header."""
    keyblock: Digest
    """Hash of the newest keyblock pinned before this microblock, or of the genesis."""
    seed: Digest
    """Seed of the epoch's leaders: fixed by the epoch's first microblock, repeated by the others."""
    leader: Address
    """The committee member that proposes it."""
    timestamp_ms: Uint
    """The leader's time, in milliseconds since 1970 (UTC); later than the parent's."""
    batch_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK_BATCHES)]
    """Number of batches."""
    batches_root: Digest
    """Merkle root of the batch digests; 32 zero bytes when there are none."""
    pinned: Digest
    """Hash of the signed keyblock that this microblock pins; 32 zero bytes when it pins none."""
    executed_height: Uint
    """The newest microblock that this one's ancestors commit."""
    state_digest: Digest
    """Running digest of all state changes up to and including `executed_height`."""


class Microblock(Wire, frozen=True):
    """A header with the digests of the batches that it orders."""

    header: MicroblockHeader
    """What the hash covers."""
    batches: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_BLOCK_BATCHES)]
    """Digests of the batches, in the order of execution."""
    keyblock: SignedKeyblock | None = None
    """The keyblock that it pins; when it commits, the epoch ends."""
    reveal: RevealBytes | None = None
    """In an epoch's first microblock: the signature of the keyblock's creator that the seed rests on, if it was revealed."""


class SignedMicroblock(Wire, frozen=True):
    """A microblock on the wire."""

    microblock: Microblock
    """The block."""
    signature: SignatureBytes
    """The leader's signature of `microblock-signature ‖ chain id ‖ hash`."""


def keyblock_hash(keyblock: Keyblock) -> bytes:
    """Return the 32-byte identifier of a keyblock."""
    return tagged_hash(Tag.KEYBLOCK, encode(keyblock))


def unsolved_keyblock_state(keyblock: Keyblock) -> "hashlib._Hash":
    """Return a state for copies: updated with 32 bytes of a nonce, its digest is the hash of the keyblock with that nonce."""
    return tagged_state(Tag.KEYBLOCK, encode(keyblock)[: -len(keyblock.nonce)])


def sign_keyblock(chain_id: bytes, key: PrivateKey, keyblock: Keyblock) -> SignedKeyblock:
    """Return the keyblock as its miner offers it."""
    digest = tagged_hash(Tag.KEYBLOCK_SIGNATURE, chain_id, keyblock_hash(keyblock))
    return SignedKeyblock(keyblock, key.sign(digest))


def is_signed_by_miner(chain_id: bytes, signed: SignedKeyblock) -> bool:
    """Tell whether the keyblock's miner has signed it for this chain."""
    digest = tagged_hash(Tag.KEYBLOCK_SIGNATURE, chain_id, keyblock_hash(signed.keyblock))
    return verify(signed.keyblock.miner, digest, signed.signature)


def pinned_digest(signed: SignedKeyblock | None) -> bytes:
    """Return what a header states of the keyblock that it pins: the signature counts, for fees are drawn from it."""
    return ZERO_DIGEST if signed is None else tagged_hash(Tag.PINNED, encode(signed))


def microblock_hash(header: MicroblockHeader) -> bytes:
    """Return the 32-byte identifier of a microblock."""
    return tagged_hash(Tag.MICROBLOCK, encode(header))


def microblock_signing_digest(chain_id: bytes, block_hash: bytes) -> bytes:
    """Return the digest that a leader signs when it proposes a microblock."""
    return tagged_hash(Tag.MICROBLOCK_SIGNATURE, chain_id, block_hash)


def is_well_formed(block: Microblock) -> bool:
    """Tell whether batches, without repetition, and keyblock are those that the header commits to; the seed covers the reveal."""
    header = block.header
    if header.batch_count != len(block.batches) or len(set(block.batches)) != len(block.batches):
        return False
    return header.batches_root == merkle_root(block.batches) and header.pinned == pinned_digest(block.keyblock)
