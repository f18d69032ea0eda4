# SPDX-License-Identifier: GPL-3.0-or-later
"""What a microblock must satisfy before it enters the tree; each check raises `InvalidInput` with the reason."""

from consensus.block_tree import BlockTree, CertifiedMicroblock, Node
from consensus.certificates import check_certificate
from consensus.epoch import Epoch
from consensus.messages import Proposal
from consensus.safety import extends_safely
from ledger.blocks import Microblock, SignedMicroblock, is_well_formed, microblock_signing_digest
from ledger.errors import InvalidInput

LAST_ROUND = 2**62
"""Never reached, but by somebody with a former committee's keys: what follows from a round must fit into 63 bits, too."""


def check_proposal(epoch: Epoch, proposal: Proposal, block_hash: bytes) -> None:
    """Check a proposal by itself: a member's signature, shape, and that its certificates open its round.

    Whether that member leads follows from the parent (`check_placed`); the signatures in the certificates are checked when the core
    learns them.
    """
    header = proposal.signed.microblock.header
    _check_signed(epoch, proposal.signed, block_hash)
    if proposal.certificate.block_hash != header.parent:
        raise InvalidInput(f"proposal of round {header.round}: the certificate is not its parent's")
    if proposal.certificate.round >= header.round:
        raise InvalidInput(f"proposal of round {header.round}: its parent is of round {proposal.certificate.round}")
    if proposal.certificate.round + 1 == header.round and proposal.timeout_certificate is not None:
        raise InvalidInput(f"proposal of round {header.round}: it needs no time-out certificate")
    if not extends_safely(proposal, epoch.parameters.term_microblocks):
        raise InvalidInput(f"proposal of round {header.round}: its certificates do not open this round")


def check_certified(epoch: Epoch, block: CertifiedMicroblock, block_hash: bytes) -> None:
    """Check a microblock that comes with its own certificate."""
    header = block.signed.microblock.header
    if block.certificate.block_hash != block_hash or block.certificate.round != header.round:
        raise InvalidInput(f"microblock {header.height}: the certificate is another microblock's")
    _check_signed(epoch, block.signed, block_hash)
    check_certificate(epoch, block.certificate)


def check_placed(epoch: Epoch, tree: BlockTree, parent: Node, proposal: Proposal) -> None:
    """Check a microblock against its parent in the tree: place, leader, seed, and what it may hold."""
    header, above = proposal.signed.microblock.header, parent.header
    what = f"microblock {header.height} of round {header.round}"
    if proposal.certificate.round != parent.round:
        raise InvalidInput(
            f"{what}: its certificate is of round {proposal.certificate.round}, its parent of {parent.round}"
        )
    if header.height != above.height + 1 or header.round <= parent.round:
        raise InvalidInput(f"{what} cannot follow microblock {above.height} of round {parent.round}")
    if header.timestamp_ms <= above.timestamp_ms:
        raise InvalidInput(f"{what}: time {header.timestamp_ms} ms is not later than its parent's")
    expected = tree.executed_height(parent)
    if header.executed_height != expected:
        raise InvalidInput(f"{what} states the state after {header.executed_height}; its ancestors commit {expected}")
    _check_led(epoch, parent, proposal.signed.microblock, what)
    _check_content(epoch, parent, proposal.signed.microblock, what)


def _check_led(epoch: Epoch, parent: Node, block: Microblock, what: str) -> None:
    header = block.header
    if parent.begins_epoch:
        epoch.check_opening(header, block.reveal)
        leader = epoch.opener(header.term, block.reveal)
    else:
        if header.seed != parent.header.seed or block.reveal is not None:
            raise InvalidInput(f"{what}: only an epoch's first microblock fixes the seed")
        leader = epoch.successor(header.term, parent.header)
    if leader is None or epoch.committee.members[leader].address != header.leader:
        raise InvalidInput(f"{what}: {header.leader.hex()} does not lead term {header.term} after its parent")


def _check_content(epoch: Epoch, parent: Node, block: Microblock, what: str) -> None:
    if block.header.keyblock != epoch.record.keyblock:
        raise InvalidInput(f"{what} refers to another keyblock than the epoch's")
    if parent.ends_epoch and (block.batches or block.keyblock is not None):
        raise InvalidInput(f"{what} is not empty, but follows a microblock that ends the epoch")
    if block.keyblock is not None:
        epoch.check_keyblock(block.keyblock)


def _check_signed(epoch: Epoch, signed: SignedMicroblock, block_hash: bytes) -> None:
    block = signed.microblock
    header = block.header
    if header.epoch != epoch.number:
        raise InvalidInput(f"microblock of epoch {header.epoch}; this is epoch {epoch.number}")
    if header.round > LAST_ROUND:
        raise InvalidInput(f"microblock of round {header.round}; rounds end at {LAST_ROUND}")
    if header.term != header.round // epoch.parameters.term_microblocks:
        raise InvalidInput(f"round {header.round} does not belong to term {header.term}")
    index = epoch.committee.index_of(header.leader)
    if index is None:
        raise InvalidInput(f"{header.leader.hex()} is not in the committee of epoch {epoch.number}")
    if len(block.batches) > epoch.parameters.block_batches or not is_well_formed(block):
        raise InvalidInput(f"microblock of round {header.round}: its content is not what the header states")
    if not epoch.is_signed(index, microblock_signing_digest(epoch.chain_id, block_hash), signed.signature):
        raise InvalidInput(f"microblock of round {header.round} is not signed by its leader")
