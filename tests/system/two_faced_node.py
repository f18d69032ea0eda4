# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that breaks the protocol: `python two_faced_node.py DATA_DIR` runs a real one that signs twice.

Beside every vote it sends a vote for a microblock that does not exist, beside every proposal another proposal for the same round. All
the rest is the program that honest operators run.
"""

import os
import sys
from pathlib import Path

import msgspec

from consensus.messages import Message, Proposal, Vote
from ledger.blocks import SignedMicroblock, microblock_hash, microblock_signing_digest
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.genesis import MAX_GENESIS_BYTES, chain_id, decode_genesis
from ledger.votes import vote_digest
from node import run
from node.config import load_config
from node.driver import Driver, Ports
from node.files import read_file
from node.keystore import passphrase_from_file, read_key


def twin_vote(chain: bytes, key: PrivateKey, vote: Vote) -> Vote:
    """Return a vote for another microblock in the same round."""
    block_hash = tagged_hash(Tag.MICROBLOCK, vote.block_hash)
    digest = vote_digest(chain, vote.epoch, vote.round, block_hash)
    return msgspec.structs.replace(vote, block_hash=block_hash, signature=key.sign(digest))


def twin_proposal(chain: bytes, key: PrivateKey, proposal: Proposal) -> Proposal:
    """Return a proposal of another microblock in the same round: a millisecond later, else as good."""
    block = proposal.signed.microblock
    header = msgspec.structs.replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
    signature = key.sign(microblock_signing_digest(chain, microblock_hash(header)))
    signed = SignedMicroblock(msgspec.structs.replace(block, header=header), signature)
    return msgspec.structs.replace(proposal, signed=signed)


def two_faced(honest: Ports, chain: bytes, key: PrivateKey) -> Ports:
    """Return ports that say everything twice."""

    def send(address: bytes, message: Message) -> None:
        honest.send(address, message)
        if isinstance(message, Vote):
            honest.send(address, twin_vote(chain, key, message))

    def broadcast(message: Message) -> None:
        honest.broadcast(message)
        if isinstance(message, Proposal):
            honest.broadcast(twin_proposal(chain, key, message))

    return msgspec.structs.replace(honest, send=send, broadcast=broadcast)


def main(data_dir: Path) -> int:
    """Run the node until SIGINT or SIGTERM."""
    config = load_config(data_dir, os.environ, {})
    assert config.passphrase_file is not None, "a devnet has one"
    identity = read_key(config.key_file, passphrase_from_file(config.passphrase_file))
    chain = chain_id(decode_genesis(read_file(config.genesis_file, MAX_GENESIS_BYTES, "genesis")))

    class TwoFacedDriver(Driver):
        def __init__(self, *, ports: Ports, **parts: object) -> None:
            super().__init__(ports=two_faced(ports, chain, identity.signing), **parts)  # type: ignore[arg-type]

    setattr(run, "Driver", TwoFacedDriver)  # noqa: B010 -- what `open_node` composes its nodes of
    return run.run_node(config, identity)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
