# SPDX-License-Identifier: GPL-3.0-or-later
"""Answering who asks about the chain: microblocks with what certifies them, batches, how far the chain is, its hashes and keyblocks.

Whoever asks chooses what is answered, never how much: each answer has a bound, and who lacks more asks again.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from consensus.block_tree import CertifiedMicroblock
from consensus.restart import decode_certificate, decode_closing, decode_signed, epoch_record
from ledger.blocks import Keyblock
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.state import State
from ledger.store import Store
from node.wire import (
    MAX_ANSWER_BYTES,
    MAX_KEYBLOCKS,
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    REQUEST_HASHES,
    REQUEST_KEYBLOCKS,
    REQUEST_SUMMARY,
    WEIGHT_BYTES,
    BatchesAnswer,
    ChainAnswer,
    ChainSummary,
    HashesAnswer,
    KeyblocksAnswer,
    decode_chain_request,
    decode_digests,
    decode_hashes_request,
    decode_keyblocks_request,
)


def answer(
    method: str, payload: bytes, *, store: Store, tail: Callable[[], Sequence[CertifiedMicroblock]], weight: int
) -> bytes | None:
    """Answer a request about the chain here, of the weight given; None for other methods. Raises `InvalidInput`."""
    if method == REQUEST_CHAIN:
        return answer_chain(store, tail, payload)
    if method == REQUEST_BATCHES:
        return answer_batches(store, payload)
    if method == REQUEST_SUMMARY:
        return answer_summary(store, weight, payload)
    if method == REQUEST_HASHES:
        return answer_hashes(store, payload)
    return answer_keyblocks(store, payload) if method == REQUEST_KEYBLOCKS else None


def answer_chain(store: Store, tail: Callable[[], Sequence[CertifiedMicroblock]], payload: bytes) -> bytes:
    """Answer a `ChainRequest` from the store and the core's certified tail behind it; raises `InvalidInput`."""
    request = decode_chain_request(payload)
    blocks: list[CertifiedMicroblock] = []
    size = 0
    for block in _following(store, tail, request.epoch, request.after_height):
        size += len(encode(block))
        if size > MAX_ANSWER_BYTES or len(blocks) == request.limit:
            break
        blocks.append(block)
    return encode(ChainAnswer(tuple(blocks)))


def _following(
    store: Store, tail: Callable[[], Sequence[CertifiedMicroblock]], epoch: int, after_height: int
) -> Iterator[CertifiedMicroblock]:
    """Yield what somebody lacks who is in an epoch and has the microblocks up to a height."""
    start, record = after_height, epoch_record(store, epoch + 1)
    if record is not None and after_height >= record.root_height:
        # It may have the microblock that ended its epoch, and some of what made it final, but not all.
        start = record.root_height
        yield from _closing(store, record.root_hash, after_height)
    for height in range(start + 1, store.head().height + 1):
        block_hash = store.block_hash(height)
        signed = store.microblock(block_hash) if block_hash is not None else None
        certificate = store.certificate(block_hash) if block_hash is not None else None
        if signed is None or certificate is None or block_hash is None:
            return
        block = CertifiedMicroblock(decode_signed(signed), decode_certificate(certificate))
        yield block
        if block.signed.microblock.keyblock is not None:
            yield from _closing(store, block_hash, height)
    yield from (block for block in tail() if block.signed.microblock.header.height > start)


def _closing(store: Store, block_hash: bytes, after_height: int) -> Iterator[CertifiedMicroblock]:
    raw = store.closing(block_hash)
    for block in () if raw is None else decode_closing(raw):
        if block.signed.microblock.header.height > after_height:
            yield block


def answer_batches(store: Store, payload: bytes) -> bytes:
    """Answer a request for batches with as many as fit; raises `InvalidInput`."""
    found: list[bytes] = []
    size = 0
    for digest in decode_digests(payload).digests:
        raw = store.batch(digest)
        if raw is None:
            continue
        size += len(raw)
        if found and size > MAX_ANSWER_BYTES:
            break
        found.append(raw)
    return encode(BatchesAnswer(tuple(found)))


def answer_summary(store: Store, weight: int, payload: bytes) -> bytes:
    """Say how far the chain here is; raises `InvalidInput`."""
    if payload:
        raise InvalidInput(f"a request for a summary is empty; this one has {len(payload)} bytes")
    head, epoch = store.head(), State(store).progress().epoch
    return encode(ChainSummary(head.height, head.block_hash, epoch, weight.to_bytes(WEIGHT_BYTES, "big")))


def answer_hashes(store: Store, payload: bytes) -> bytes:
    """Answer a `HashesRequest`; raises `InvalidInput`."""
    heights = decode_hashes_request(payload).heights
    if any(later <= earlier for earlier, later in pairwise(heights)):
        raise InvalidInput(f"heights {heights[:4]}… do not rise")
    found = (store.block_hash(height) for height in heights)
    return encode(HashesAnswer(tuple(block_hash for block_hash in found if block_hash is not None)))


def answer_keyblocks(store: Store, payload: bytes) -> bytes:
    """Answer a `KeyblocksRequest`; raises `InvalidInput`."""
    after = decode_keyblocks_request(payload).after_epoch
    keyblocks: list[Keyblock] = []
    for epoch in range(after + 1, after + 1 + MAX_KEYBLOCKS):
        record = epoch_record(store, epoch)
        raw = store.microblock(record.root_hash) if record is not None else None
        pinned = decode_signed(raw).microblock.keyblock if raw is not None else None
        if pinned is None:
            break
        keyblocks.append(pinned.keyblock)
    return encode(KeyblocksAnswer(tuple(keyblocks)))
