# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks that need no state have to know of a chain."""

import msgspec

from ledger.genesis import Genesis, chain_id


class Chain(msgspec.Struct, frozen=True):
    """A chain, as far as the signatures and proofs in its transactions depend on it."""

    id: bytes
    """Identifier: the hash of the genesis."""
    verifying_key: bytes
    """Groth16 verifying key of the proofs in labels."""


def chain_of(genesis: Genesis) -> Chain:
    """Return what a genesis says of its chain."""
    return Chain(chain_id(genesis), genesis.chameleon_verifying_key)
