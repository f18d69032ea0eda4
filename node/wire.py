# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say to each other: topics, kinds of direct messages, requests and the statement of who a node is."""

from typing import Annotated

import msgspec

from consensus.block_tree import CertifiedMicroblock
from ledger.blocks import Keyblock
from ledger.codec import Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, decode, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, address_of, verify
from ledger.errors import InvalidInput

TOPIC_BATCHES = "spchain/batches/1"
"""Gossip: encoded batches of signed transactions."""
TOPIC_CONSENSUS = "spchain/consensus/1"
"""Gossip: consensus messages for all."""

KIND_CONSENSUS = 16
"""Direct: a consensus message for one member."""
KIND_STORED = 17
"""Direct: `Digests` of batches that the sender has made durable: what an `accepted` rests on."""
KIND_HAVE = 18
"""Direct: `Digests` of batches that wait to be ordered, for those who missed the gossip."""

REQUEST_CHAIN = "chain"
"""Request: `ChainRequest`, answered by `ChainAnswer`."""
REQUEST_BATCHES = "batches"
"""Request: `Digests`, answered by `BatchesAnswer`."""
REQUEST_SUMMARY = "summary"
"""Request: nothing, answered by `ChainSummary`."""
REQUEST_HASHES = "hashes"
"""Request: `HashesRequest`, answered by `HashesAnswer`."""
REQUEST_KEYBLOCKS = "keyblocks"
"""Request: `KeyblocksRequest`, answered by `KeyblocksAnswer`."""
REQUEST_BLOB = "blob"
"""Request: a blob's identifier, answered by the blob."""
REQUEST_KEEP_BLOB = "keep-blob"
"""Request: the identifier of a blob to fetch from the asker and keep; answered by the identifier once it is durable."""
REQUEST_FRAGMENT = "fragment"
"""Request: a sealed key fragment for the proxy that is asked, answered by `Relayed` with its receipt."""
REQUEST_REENCRYPTION = "reencryption"
"""Request: a grantee's signed request, answered by `Relayed` with the proxy's answer."""
REQUEST_ACCESS_LOG = "access-log"
"""Request: a patient's signed query of the access log, answered by `Relayed` with the page."""
REQUEST_BATCH_DATA = "batch-data"
"""Request: the digest of an off-chain batch's data, answered by the data."""

MAX_DIGESTS = 256
"""As many as a microblock may name."""
MAX_CHAIN_BLOCKS = 64
"""One answer of a chain request; executing them leaves the event loop free again within a second or two."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Answers stop growing here: half of what a request may carry."""
MAX_HEIGHTS = 64
"""One request for hashes: as many as microblocks in one answer."""
MAX_KEYBLOCKS = 128
"""One answer to a request for keyblocks: 36 KB, found within some 20 ms."""
WEIGHT_BYTES = 40
"""A keyblock counts less than 2^255 · 65: room for 2^58 of them."""
STATEMENT_VERSION = 1


class NodeStatement(Wire, frozen=True):
    """Who runs a node: binds its network identity to an account."""

    version: Annotated[int, msgspec.Meta(ge=1, le=255)]
    """Version of this statement."""
    name: Annotated[str, msgspec.Meta(max_length=64)]
    """Name for people; claimed, not proved."""
    public_key: PublicKeyBytes
    """Key of the account: committee member or institution."""
    height: Uint
    """Newest microblock when the statement was made."""
    signature: SignatureBytes
    """Signature of `node-statement ‖ chain id ‖ peer id`."""


class Digests(Wire, frozen=True):
    """A list of batches."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_DIGESTS)]
    """Their digests."""


class ChainRequest(Wire, frozen=True):
    """Asks for certified microblocks."""

    epoch: Uint
    """Epoch that the asker is in: when it is over here, the answer shows how it ended."""
    after_height: Uint
    """Newest microblock that the asker has."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHAIN_BLOCKS)]
    """Most microblocks wanted."""


class ChainAnswer(Wire, frozen=True):
    """Certified microblocks, oldest first; the last ones may not be committed yet.

    A microblock that pins a keyblock is followed by those that made it final, and then by the next epoch's first one.
    """

    blocks: Annotated[tuple[CertifiedMicroblock, ...], msgspec.Meta(max_length=MAX_CHAIN_BLOCKS)]
    """The microblocks."""


class BatchesAnswer(Wire, frozen=True):
    """Some of the batches asked for."""

    batches: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_DIGESTS)]
    """Their encodings."""


class ChainSummary(Wire, frozen=True):
    """What a node says of its chain; proved only by the chain itself."""

    height: Uint
    """Height of its newest committed microblock."""
    tip: Digest
    """Hash of that microblock."""
    epoch: Uint
    """Running epoch: number of keyblocks pinned so far."""
    weight: Annotated[bytes, msgspec.Meta(min_length=WEIGHT_BYTES, max_length=WEIGHT_BYTES)]
    """What the chain weighs by the node's own measure, in expected hashes, big-endian."""


class HashesRequest(Wire, frozen=True):
    """Asks which microblocks are committed."""

    heights: Annotated[tuple[Uint, ...], msgspec.Meta(min_length=1, max_length=MAX_HEIGHTS)]
    """Their heights, rising."""


class HashesAnswer(Wire, frozen=True):
    """Which microblocks are committed."""

    hashes: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_HEIGHTS)]
    """Their hashes at the heights asked for, up to the newest one that is committed here."""


class Relayed(Wire, frozen=True):
    """A proxy's answer to a client whose request another node has passed on."""

    reason: Annotated[str, msgspec.Meta(max_length=64)]
    """Empty when `body` is what was asked for; else why the proxy refuses, one of its stable names."""
    detail: Annotated[str, msgspec.Meta(max_length=512)]
    """What was wrong and what to do, for people."""
    body: bytes
    """What was asked for; empty when there is a reason."""


class KeyblocksRequest(Wire, frozen=True):
    """Asks for pinned keyblocks."""

    after_epoch: Uint
    """Epoch that the last keyblock known to the asker began; 0 for the genesis."""


class KeyblocksAnswer(Wire, frozen=True):
    """The keyblocks that began the epochs after that one."""

    keyblocks: Annotated[tuple[Keyblock, ...], msgspec.Meta(max_length=MAX_KEYBLOCKS)]
    """Oldest first; as many as there are, up to the most that fit."""


decode_digests = decoder(Digests, 16 * 1024)
decode_chain_request = decoder(ChainRequest, 64)
decode_chain_answer = decoder(ChainAnswer, 2 * MAX_ANSWER_BYTES)
decode_batches_answer = decoder(BatchesAnswer, 2 * MAX_ANSWER_BYTES)
decode_summary = decoder(ChainSummary, 128)
decode_hashes_request = decoder(HashesRequest, 1024)
decode_hashes_answer = decoder(HashesAnswer, 4 * 1024)
decode_relayed = decoder(Relayed, 1024 * 1024)
decode_keyblocks_request = decoder(KeyblocksRequest, 16)
decode_keyblocks_answer = decoder(KeyblocksAnswer, 64 * 1024)


def make_statement(chain_id: bytes, key: PrivateKey, peer_id: str, name: str, height: int) -> bytes:
    """Return the encoded statement that `key` runs the node `peer_id`."""
    signature = key.sign(tagged_hash(Tag.NODE_STATEMENT, chain_id, peer_id.encode()))
    return encode(NodeStatement(STATEMENT_VERSION, name, key.public_key, height, signature))


def check_statement(chain_id: bytes, peer_id: str, raw: bytes) -> tuple[NodeStatement, bytes]:
    """Return a peer's statement and the address of its account; raises `InvalidInput`."""
    statement = decode(NodeStatement, raw, 512)
    if statement.version != STATEMENT_VERSION:
        raise InvalidInput(f"node statement of version {statement.version}; this node speaks {STATEMENT_VERSION}")
    if not statement.name.isprintable():
        # It goes into logs and terminals.
        raise InvalidInput(f"node statement with the name {statement.name!r}; only printable characters are allowed")
    digest = tagged_hash(Tag.NODE_STATEMENT, chain_id, peer_id.encode())
    if not verify(statement.public_key, digest, statement.signature):
        raise InvalidInput(f"node statement of {peer_id} is not signed by {statement.public_key.hex()}")
    return statement, address_of(statement.public_key)
