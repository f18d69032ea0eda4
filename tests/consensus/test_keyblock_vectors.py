# SPDX-License-Identifier: GPL-3.0-or-later
"""The golden vectors of keyblocks against the code and against implementations that are not ours."""

import hashlib
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack
import pytest
from eth_typing import BLSPubkey, BLSSignature
from py_ecc.bls.ciphersuites import G2ProofOfPossession as Oracle

from consensus.committee import CommitteeMember
from consensus.election import Schedule, is_reveal, next_seed
from consensus.work import check_work, puzzle_hash, search, work_of
from ledger.blocks import Keyblock, SignedKeyblock, is_signed_by_miner, keyblock_hash
from ledger.codec import decode
from tests.vectors.examples import CHAIN

PATH = Path(__file__).parents[1] / "vectors" / "consensus-keyblocks.json"
VECTORS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))


def raw(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


def tagged(tag: str, *parts: bytes) -> bytes:
    prefix = hashlib.sha256(tag.encode("ascii")).digest()
    return hashlib.sha256(prefix + prefix + b"".join(parts)).digest()


@pytest.mark.parametrize("vector", VECTORS)
def test_the_code_makes_of_a_keyblock_what_the_vector_says(vector: dict[str, Any]) -> None:
    keyblock = decode(Keyblock, raw(vector, "keyblock"), 300)
    target = int(vector["target"], 16)
    assert (keyblock_hash(keyblock), puzzle_hash(keyblock)) == (
        raw(vector, "keyblock_hash"),
        raw(vector, "puzzle_hash"),
    )
    check_work(keyblock, target)
    assert search(keyblock, int.from_bytes(keyblock.nonce, "big"), 1) == keyblock
    assert str(work_of(target)) == vector["work"]
    assert is_signed_by_miner(CHAIN, SignedKeyblock(keyblock, raw(vector, "signature")))
    previous, reveal = raw(vector, "previous_seed"), raw(vector, "reveal")
    assert is_reveal(keyblock.reveal_key, previous, raw(vector, "keyblock_hash"), reveal)
    assert next_seed(previous, raw(vector, "keyblock_hash"), reveal) == raw(vector, "seed")
    assert next_seed(previous, raw(vector, "keyblock_hash"), None) == raw(vector, "fallback_seed")
    schedule = Schedule(raw(vector, "seed"), [CommitteeMember(b"", b"", weight) for weight in vector["weights"]])
    assert [schedule.drawn(term) for term in range(24)] == vector["drawn"]


@pytest.mark.parametrize("vector", VECTORS)
def test_plain_hashes_make_the_same_of_it(vector: dict[str, Any]) -> None:
    encoding, name = raw(vector, "keyblock"), raw(vector, "keyblock_hash")
    assert tagged("spchain/keyblock/1", encoding) == name
    assert hashlib.sha256(name).digest() == raw(vector, "puzzle_hash") < raw(vector, "target")
    assert tagged("spchain/fee-start/1", raw(vector, "signature")) == raw(vector, "fee_start")
    previous, reveal = raw(vector, "previous_seed"), raw(vector, "reveal")
    assert tagged("spchain/election-reveal/1", previous, name) == raw(vector, "reveal_message")
    assert tagged("spchain/election-seed/1", previous, name, b"\1", reveal) == raw(vector, "seed")
    assert tagged("spchain/election-seed/1", previous, name, b"\0") == raw(vector, "fallback_seed")


@pytest.mark.parametrize("vector", VECTORS)
def test_plain_arithmetic_draws_the_same_leaders(vector: dict[str, Any]) -> None:
    sums, drawn = list(accumulate(vector["weights"])), []
    for term in range(24):
        # The sum is so small that no hash of the vectors lies beyond its last multiple: each first attempt counts.
        where = raw(vector, "seed") + term.to_bytes(8, "big") + bytes(2) + bytes(2)
        number = int.from_bytes(tagged("spchain/election-draw/1", where), "big") % sums[-1]
        drawn.append(next(index for index, bound in enumerate(sums) if number < bound))
    assert drawn == vector["drawn"]


def test_another_library_verifies_the_reveals() -> None:
    for vector in VECTORS[:2]:
        reveal_key = msgpack.unpackb(raw(vector, "keyblock"))[3]
        message, reveal = raw(vector, "reveal_message"), raw(vector, "reveal")
        assert Oracle.Verify(BLSPubkey(reveal_key), message, BLSSignature(reveal))
