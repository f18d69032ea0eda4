# SPDX-License-Identifier: GPL-3.0-or-later
"""What consensus reads from the store, which is the truth about what is committed: where a core starts, how epochs began and ended."""

from collections.abc import Callable

from consensus.block_tree import MAX_UNCOMMITTED, CertifiedMicroblock, Node
from consensus.core import root_node
from consensus.epoch import Epoch
from consensus.messages import Certificate
from consensus.uncommitted import CommittedHead
from ledger.blocks import MAX_MICROBLOCK_BYTES, SignedMicroblock
from ledger.codec import decoder
from ledger.errors import StoreError
from ledger.miners import EpochRecord
from ledger.state import EPOCHS, State, StateReader
from ledger.store import Store

decode_signed = decoder(SignedMicroblock, MAX_MICROBLOCK_BYTES)
"""Decode a microblock as the store keeps it; raises `InvalidInput`."""
decode_certificate = decoder(Certificate, MAX_MICROBLOCK_BYTES)
"""Decode a certificate as the store keeps it; raises `InvalidInput`."""
decode_closing: Callable[[bytes], tuple[CertifiedMicroblock, ...]] = decoder(
    tuple[CertifiedMicroblock, ...], MAX_UNCOMMITTED * MAX_MICROBLOCK_BYTES, name="closing", own=True
)
"""Decode what made the end of an epoch final, as the store keeps it."""


def epoch_record(reader: StateReader, epoch: int) -> EpochRecord | None:
    """Return how an epoch after the founding one began, once that is committed."""
    return State(reader).get(EPOCHS, epoch.to_bytes(8, "big")) if epoch > 0 else None


def committed_head(store: Store, epoch: Epoch) -> CommittedHead:
    """Return the newest committed microblock with what a core needs of it; `epoch` is the running one. Raises `StoreError`."""
    head = store.head()
    if head.block_hash == epoch.record.root_hash:
        batches = () if head.height == 0 else _read(store, head.block_hash).microblock.batches
        return CommittedHead(root_node(epoch, batches), epoch.root_certificate, ((head.height, head.state_digest),))
    block = _read(store, head.block_hash).microblock
    header = block.header
    if header.parent == epoch.record.root_hash:
        parent_round = epoch.record.root_round
    else:
        parent_round = _read(store, header.parent).microblock.header.round
    certificate = store.certificate(head.block_hash)
    if certificate is None:
        raise _incomplete(head.block_hash)
    digests = []
    for height in range(header.executed_height, header.height + 1):
        digest = store.state_digest(height)
        if digest is None:
            raise _incomplete(head.block_hash)
        digests.append((height, digest))
    node = Node(head.block_hash, header, block.batches, header.round, parent_round, None)
    return CommittedHead(node, decode_certificate(certificate), tuple(digests))


def _read(store: Store, block_hash: bytes) -> SignedMicroblock:
    raw = store.microblock(block_hash)
    if raw is None:
        raise _incomplete(block_hash)
    return decode_signed(raw)


def _incomplete(block_hash: bytes) -> StoreError:
    return StoreError(
        f"the store lacks what belongs to microblock {block_hash.hex()}; restore it, or begin with an empty directory"
    )
