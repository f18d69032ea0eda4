# SPDX-License-Identifier: GPL-3.0-or-later
"""The genesis: what all nodes of a network start from. Its hash is the chain's identifier."""

from typing import Annotated

import msgspec

from ledger.blocks import Microblock, MicroblockHeader
from ledger.codec import Address, PublicKeyBytes, Uint, Wire, decode, encode
from ledger.crypto.chameleon_proof import VERIFYING_KEY_BYTES, VerifyingKey
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.crypto.keys import is_public_key
from ledger.errors import InvalidInput
from ledger.rules import REPUTATION_UNIT, Parameters, check_parameters, is_for_development

MAX_GENESIS_BYTES = 1024 * 1024
"""Room for about ten thousand accounts."""


class Member(Wire, frozen=True):
    """An accredited miner: its Ext makes it eligible for committees before it has mined anything."""

    public_key: PublicKeyBytes
    """Key that signs its proposals, votes and keyblocks."""
    external_nano: Annotated[int, msgspec.Meta(ge=1, le=REPUTATION_UNIT)]
    """External reputation (Ext), in 10⁻⁹."""


class Allocation(Wire, frozen=True):
    """An opening balance."""

    account: Address
    """The account."""
    balance_microcredit: Uint
    """Credits minted for it, in millionths."""


class Genesis(Wire, frozen=True):
    """The first agreement."""

    network: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[a-z0-9][a-z0-9-]*\Z")]
    """Name of the network, for people."""
    timestamp_ms: Uint
    """Time of the genesis, in milliseconds since 1970 (UTC)."""
    parameters: Parameters
    """The rules."""
    committee: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=64)]
    """The accredited miners; those of highest reputation decide until keyblocks are pinned."""
    accredited: Annotated[tuple[Address, ...], msgspec.Meta(max_length=4096)]
    """Accounts that may register as institutions."""
    allocations: Annotated[tuple[Allocation, ...], msgspec.Meta(max_length=8192)]
    """Opening balances."""
    chameleon_verifying_key: Annotated[
        bytes, msgspec.Meta(min_length=VERIFYING_KEY_BYTES, max_length=VERIFYING_KEY_BYTES)
    ]
    """Groth16 key that proofs of the chameleon hash are checked with, 704 bytes: α ‖ β ‖ γ ‖ δ ‖ points of 1, pk, h, m. From a ceremony."""


def chain_id(genesis: Genesis) -> bytes:
    """Return the 32-byte identifier of the chain."""
    return tagged_hash(Tag.GENESIS, encode(genesis))


def genesis_seed(chain_id: bytes) -> bytes:
    """Return the seed of the founding epoch's leaders; it ties all later ones to the chain."""
    return tagged_hash(Tag.ELECTION_SEED, chain_id)


def genesis_block(genesis: Genesis, state_digest: bytes) -> Microblock:
    """Return the microblock at height 0, the parent of the first one."""
    identifier = chain_id(genesis)
    header = MicroblockHeader(
        height=0,
        epoch=0,
        term=0,
        round=0,
        parent=identifier,
        keyblock=identifier,
        seed=genesis_seed(identifier),
        leader=bytes(20),
        timestamp_ms=genesis.timestamp_ms,
        batch_count=0,
        batches_root=ZERO_DIGEST,
        pinned=ZERO_DIGEST,
        executed_height=0,
        state_digest=state_digest,
    )
    return Microblock(header, ())


def decode_genesis(raw: bytes) -> Genesis:
    """Read a genesis and check what its types cannot say. Raises `InvalidInput`."""
    genesis = decode(Genesis, raw, MAX_GENESIS_BYTES)
    check_genesis(genesis)
    return genesis


def check_genesis(genesis: Genesis) -> None:
    """Check what the types of a genesis cannot say. Raises `InvalidInput`."""
    check_parameters(genesis.parameters)
    keys = [member.public_key for member in genesis.committee]
    if len(set(keys)) != len(keys):
        raise InvalidInput("genesis: a committee member is listed twice; list each key once")
    for key in keys:
        if not is_public_key(key):
            raise InvalidInput(f"genesis: committee key {key.hex()} is not a compressed secp256k1 point")
    accounts = [allocation.account for allocation in genesis.allocations]
    if len(set(accounts)) != len(accounts):
        raise InvalidInput("genesis: an account has two opening balances; give each account one")
    if len(set(genesis.accredited)) != len(genesis.accredited):
        raise InvalidInput("genesis: an account is accredited twice; list each account once")
    check_verifying_key(genesis.chameleon_verifying_key, genesis.parameters)
    if sum(allocation.balance_microcredit for allocation in genesis.allocations) >= 2**62:
        raise InvalidInput("genesis: opening balances reach 2^62 microcredits in sum; lower them")


def check_verifying_key(verifying_key: bytes, parameters: Parameters) -> None:
    """Check that proofs for a key mean something under these rules. Raises `InvalidInput`."""
    VerifyingKey.decode(verifying_key)
    if verifying_key == DEVELOPMENT_VERIFYING_KEY and not is_for_development(parameters):
        raise InvalidInput(
            "genesis: the verifying key is the development key, for which everybody can forge proofs; hold a ceremony "
            "(docs/how-to/run-a-ceremony.md) and name its key with --verifying-key, or take --profile devnet"
        )
