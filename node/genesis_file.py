# SPDX-License-Identifier: GPL-3.0-or-later
"""Making, writing and reading a network's genesis: `genesis.msgpack`, whose hash is the chain, and a readable twin beside it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from consensus.committee import Committee, CommitteeMember
from consensus.reputation import ceiling_nano
from ledger.codec import decode, encode
from ledger.crypto.chameleon_proof import VERIFYING_KEY_BYTES, VerifyingKey
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput
from ledger.genesis import (
    MAX_GENESIS_BYTES,
    Allocation,
    Genesis,
    Member,
    chain_id,
    check_genesis,
    decode_genesis,
)
from ledger.miners import MinerHistory
from ledger.rules import MAIN_PARAMETERS, REPUTATION_UNIT, Parameters
from node.files import create_file, is_there, read_file
from node.readable import readable

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DEFAULT_BALANCE_MICROCREDIT = 10**12
"""A million credits: a hundred thousand million transactions at the smallest fee."""
DEFAULT_EXTERNAL_NANO = REPUTATION_UNIT // 4
"""Ext of founding members: enough for a committee from the first second, and little enough to be earned by mining, too."""


def make_genesis(
    network: str,
    members: Sequence[bytes],
    timestamp_ms: int,
    *,
    parameters: Parameters = MAIN_PARAMETERS,
    external_nano: int = DEFAULT_EXTERNAL_NANO,
    balance_microcredit: int = DEFAULT_BALANCE_MICROCREDIT,
    accredited: Sequence[bytes] = (),
    allocations: Mapping[bytes, int] | None = None,
    verifying_key: bytes = DEVELOPMENT_VERIFYING_KEY,
) -> Genesis:
    """Return a checked genesis whose members have equal reputation, are accredited and funded. Raises `InvalidInput`.

    Args:
        network: name for people, lower-case letters, digits and dashes.
        members: public keys of the founding committee.
        timestamp_ms: time of the genesis, in milliseconds since 1970 (UTC); makes two networks of equal members differ.
        parameters: rules that all nodes share.
        external_nano: external reputation (Ext) of each member, in 10⁻⁹.
        balance_microcredit: opening balance of each member.
        accredited: addresses of further accounts that may register as institutions.
        allocations: further opening balances by address.
        verifying_key: the result of the network's ceremony; the default serves development networks only.
    """
    if not _NAME.fullmatch(network):
        raise InvalidInput(f"network {network!r}: a name has 1 to 64 lower-case letters, digits and dashes; choose one")
    balances = {address_of(key): balance_microcredit for key in members} | dict(allocations or {})
    genesis = Genesis(
        network=network,
        timestamp_ms=timestamp_ms,
        parameters=parameters,
        committee=tuple(Member(key, external_nano) for key in members),
        accredited=tuple(dict.fromkeys([*(address_of(key) for key in members), *accredited])),
        allocations=tuple(Allocation(address, balance) for address, balance in balances.items()),
        chameleon_verifying_key=verifying_key,
    )
    # Decoding checks what constructing does not: lengths, patterns, ranges.
    checked = decode(Genesis, encode(genesis), MAX_GENESIS_BYTES)
    check_genesis(checked)
    return checked


def newcomers_that_stop(genesis: Genesis) -> int | None:
    """Return how many newcomers with one keyblock each keep the founding members from deciding alone; None where seats end before.

    A newcomer's reputation is f(0) and a little, whoever it is: as long as seats are free, a keyblock with each of so many keys, and
    no node behind them, stops a network in which only founding members have earned more.
    """
    rules = genesis.parameters

    def reputation_of(history: MinerHistory) -> int:
        return ceiling_nano(history, rules.term_microblocks, rules.reputation)

    founding = [reputation_of(MinerHistory(external_nano=member.external_nano)) for member in genesis.committee]
    newcomer = reputation_of(MinerHistory(keyblocks=1))
    for newcomers in range(1, rules.committee_size - len(founding) + 1):
        weights = [*founding, *[newcomer] * newcomers]
        seats = [CommitteeMember(b"", place.to_bytes(20, "big"), weight) for place, weight in enumerate(weights)]
        if not Committee(0, seats).is_quorum(range(len(founding))):
            return newcomers
    return None


def write_genesis(path: Path, genesis: Genesis) -> Path:
    """Write a genesis and its readable twin; never overwrites; returns the twin's path. Raises `InvalidInput`."""
    twin = path.with_suffix(".json")
    if twin == path:
        raise InvalidInput(
            f"{path}: a genesis is no JSON, and its readable twin has this name; call it {path.stem}.msgpack"
        )
    if is_there(twin):
        raise InvalidInput(f"{twin} exists already, and the genesis' readable twin has this name; move it away")
    create_file(path, encode(genesis))
    document = {"chain_id": chain_id(genesis).hex(), **readable(genesis)}
    create_file(twin, json.dumps(document, indent=2).encode() + b"\n")
    return twin


def read_genesis(path: Path) -> Genesis:
    """Read `genesis.msgpack`. Raises `InvalidInput`."""
    raw = read_file(path, MAX_GENESIS_BYTES, "genesis")
    try:
        return decode_genesis(raw)
    except InvalidInput as error:
        raise InvalidInput(
            f"genesis {path}: {error}; get the file again from the network's operators, and compare its chain id"
        ) from error


def read_verifying_key(path: Path) -> bytes:
    """Read the verifying key that a ceremony made. Raises `InvalidInput` when it is none."""
    return VerifyingKey.decode(read_file(path, VERIFYING_KEY_BYTES, "verifying key")).encoded
