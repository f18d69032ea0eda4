# SPDX-License-Identifier: GPL-3.0-or-later
"""The published data of a batch: requests with what the operator says about each, and the check that members of the committee do.

The check is structural and cheap, three hashes per request: the data is exactly what the commitment binds. Whether it is *right* takes
executing it, which watchers do. So a member votes for a batch only when anybody who asks for the data can judge it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import msgspec

from ledger.codec import Digest, Uint, Wire, decoder, encode
from ledger.crypto.merkle import merkle_proof, merkle_root
from ledger.errors import InvalidInput
from ledger.offchain import (
    MAX_BATCH_LEAVES,
    MAX_DATA_BYTES,
    MAX_FORCED,
    BatchCommitment,
    ForcedPlace,
    LeafProof,
    RequestBytes,
    RequestLeaf,
    check_commitment,
    data_digest,
    request_digest,
)

ITEM_OVERHEAD_BYTES = 92
"""What an item weighs at most beside its request: list head, request's head, time, total, two digests."""


class BatchItem(Wire, frozen=True):
    """One request of a batch; with the digest of its bytes this is its leaf."""

    request: RequestBytes
    """The request as it was received."""
    time_ms: Uint
    """Time of the leaf."""
    operation_total: Uint
    """Operations of the batch up to and with this request."""
    outcomes_digest: Digest
    """Digest of the outcomes."""
    root: Digest
    """Root of the state after it."""


class BatchData(Wire, frozen=True):
    """All that a batch holds."""

    items: Annotated[tuple[BatchItem, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH_LEAVES)]
    """The requests, in order."""


_decode_data = decoder(BatchData, MAX_DATA_BYTES, name="batch data")


def item_of(request: bytes, leaf: RequestLeaf) -> BatchItem:
    """Return the item of a request and its leaf."""
    return BatchItem(request, leaf.time_ms, leaf.operation_total, leaf.outcomes_digest, leaf.root)


def leaf_of(item: BatchItem) -> RequestLeaf:
    """Return the leaf of an item."""
    return RequestLeaf(
        request_digest(item.request), item.time_ms, item.operation_total, item.outcomes_digest, item.root
    )


def leaves_of(data: BatchData) -> tuple[RequestLeaf, ...]:
    """Return the leaves of a batch."""
    return tuple(map(leaf_of, data.items))


def commit(
    contract_id: bytes,
    number: int,
    previous_root: bytes,
    from_ms: int,
    until_ms: int,
    items: Sequence[BatchItem],
    forced: Sequence[int],
) -> tuple[BatchCommitment, bytes]:
    """Return commitment and data of a batch; `forced` are the places of forced requests, ascending."""
    assert 1 <= len(items) <= MAX_BATCH_LEAVES, f"{len(items)} requests in a batch"
    assert len(forced) <= MAX_FORCED, f"{len(forced)} forced requests in a batch"
    data = BatchData(tuple(items))
    raw = encode(data)
    assert len(raw) <= MAX_DATA_BYTES, f"{len(raw)} bytes of data"
    leaves = leaves_of(data)
    commitment = BatchCommitment(
        contract_id=contract_id,
        number=number,
        previous_root=previous_root,
        new_root=leaves[-1].root,
        leaves_root=merkle_root([encode(leaf) for leaf in leaves]),
        leaf_count=len(leaves),
        operation_count=leaves[-1].operation_total,
        data_digest=data_digest(raw),
        data_bytes=len(raw),
        from_ms=from_ms,
        until_ms=until_ms,
        forced=tuple(ForcedPlace(leaves[index].request_digest, index) for index in forced),
    )
    return commitment, raw


def open_data(commitment: BatchCommitment, raw: bytes) -> BatchData:
    """Return the data that a commitment binds; raises `InvalidInput` for any other."""
    number = commitment.number
    if len(raw) != commitment.data_bytes:
        raise InvalidInput(f"batch {number}: {len(raw)} bytes of data, {commitment.data_bytes} are committed")
    digest = data_digest(raw)
    if digest != commitment.data_digest:
        raise InvalidInput(f"batch {number}: data {digest.hex()}, {commitment.data_digest.hex()} is committed")
    data = _decode_data(raw)
    if len(data.items) != commitment.leaf_count:
        raise InvalidInput(f"batch {number}: {len(data.items)} leaves, {commitment.leaf_count} are committed")
    if merkle_root([encode(leaf) for leaf in leaves_of(data)]) != commitment.leaves_root:
        raise InvalidInput(f"batch {number}: the leaves have another root than the one committed")
    return data


def check_data(commitment: BatchCommitment, raw: bytes) -> BatchData:
    """Check all that can be checked without executing; raises `InvalidInput`. What a member does before it votes."""
    check_commitment(commitment)
    data = open_data(commitment, raw)
    number, last = commitment.number, data.items[-1]
    if (last.root, last.operation_total) != (commitment.new_root, commitment.operation_count):
        raise InvalidInput(f"batch {number}: the commitment does not end as the last leaf does")
    times = [commitment.from_ms, *(item.time_ms for item in data.items), commitment.until_ms]
    if times != sorted(times):
        raise InvalidInput(f"batch {number}: times run backwards or leave the batch")
    totals = [0, *(item.operation_total for item in data.items)]
    if any(following <= total for total, following in pairwise(totals)):
        raise InvalidInput(f"batch {number}: the count of operations does not rise with each request")
    for place in commitment.forced:
        if request_digest(data.items[place.index].request) != place.request_digest:
            raise InvalidInput(f"batch {number}: forced request {place.request_digest.hex()} is not at its place")
    return data


def prove_leaf(data: BatchData, index: int) -> LeafProof:
    """Return the proof that a leaf stands at its place of a batch; raises `IndexError` outside."""
    leaves = leaves_of(data)
    return LeafProof(index, leaves[index], merkle_proof([encode(leaf) for leaf in leaves], index))
