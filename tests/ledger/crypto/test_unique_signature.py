# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from eth_typing import BLSPubkey, BLSSignature
from hypothesis import given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point, G2Point, Scalar
from py_ecc.bls.ciphersuites import G2ProofOfPossession as Oracle

from ledger.crypto.unique_signature import (
    GROUP_ORDER,
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    is_public_key,
    keygen,
    prove_possession,
    sign,
    verify,
    verify_possession,
)

SECRET, PUBLIC = keygen(bytes(range(32)))
MESSAGE = b"a keyblock"
SIGNATURE = sign(SECRET, MESSAGE)

INFINITIES = (b"\xc0", b"\xe0", b"\xff", b"\xd0")
"""First bytes that the library reads as infinity, some with whatever follows."""

SEEDS = st.binary(min_size=32, max_size=32)


def outside_the_subgroup(kind: type[G1Point] | type[G2Point], size: int) -> bytes:
    """The compressed form of a point of the curve, but not of order r."""
    for x in range(1, 100):
        encoded = bytes([0x80]) + x.to_bytes(size - 1)
        try:
            point = kind.from_compressed_bytes_unchecked(encoded)
        except ValueError:
            continue
        if not point.is_in_subgroup():
            return encoded
    raise AssertionError("most points of these curves lie outside")


# The oracle takes a third of a second per signature: few examples, all bytes compared.
@settings(max_examples=4)
@given(SEEDS, st.binary(max_size=100))
def test_keys_signatures_and_proofs_are_byte_for_byte_those_of_py_ecc(seed: bytes, message: bytes) -> None:
    secret, public = keygen(seed)
    number = int.from_bytes(secret)
    assert number == Oracle.KeyGen(seed)
    assert public == Oracle.SkToPk(number)
    assert sign(secret, message) == Oracle.Sign(number, message)
    assert prove_possession(secret) == Oracle.PopProve(number)


def test_py_ecc_accepts_what_is_signed_here() -> None:
    assert Oracle.Verify(BLSPubkey(PUBLIC), MESSAGE, BLSSignature(SIGNATURE))
    assert Oracle.PopVerify(BLSPubkey(PUBLIC), BLSSignature(prove_possession(SECRET)))


@settings(max_examples=20)
@given(SEEDS, st.binary(max_size=200))
def test_what_is_signed_verifies(seed: bytes, message: bytes) -> None:
    secret, public = keygen(seed)
    assert is_public_key(public)
    assert verify(public, message, sign(secret, message))
    assert verify_possession(public, prove_possession(secret))


@settings(max_examples=40)
@given(st.integers(0, SIGNATURE_BYTES * 8 - 1))
def test_no_other_bytes_verify(bit: int) -> None:
    changed = (int.from_bytes(SIGNATURE) ^ 1 << bit).to_bytes(SIGNATURE_BYTES)
    assert not verify(PUBLIC, MESSAGE, changed)


@settings(max_examples=20)
@given(SEEDS, st.binary(max_size=50))
def test_another_key_or_message_does_not_verify(seed: bytes, message: bytes) -> None:
    _, other = keygen(seed)
    assert verify(other, MESSAGE, SIGNATURE) == (other == PUBLIC)
    assert verify(PUBLIC, message, SIGNATURE) == (message == MESSAGE)


def test_the_negated_signature_does_not_verify() -> None:
    negated = (-G2Point.from_compressed_bytes(SIGNATURE)).to_compressed_bytes()
    assert not verify(PUBLIC, MESSAGE, negated)


@settings(max_examples=60)
@given(st.binary(max_size=120), st.binary(max_size=120))
def test_any_bytes_from_outside_give_false(key: bytes, signature: bytes) -> None:
    assert not verify(key, MESSAGE, signature)
    assert not verify(PUBLIC, MESSAGE, signature)
    assert not verify_possession(key, signature)
    assert not is_public_key(key)


@pytest.mark.parametrize("first", INFINITIES)
@pytest.mark.parametrize("rest", [b"\x00", b"\xff", b"\x01"])
def test_infinity_is_refused_in_every_encoding(first: bytes, rest: bytes) -> None:
    key = first + rest * (PUBLIC_KEY_BYTES - 1)
    signature = first + rest * (SIGNATURE_BYTES - 1)
    assert not is_public_key(key)
    # Infinity as key and as signature satisfies the equation for every message.
    assert not verify(key, MESSAGE, signature)
    assert not verify(PUBLIC, MESSAGE, signature)
    assert not verify(key, MESSAGE, SIGNATURE)
    assert not verify_possession(key, signature)


def test_points_outside_the_subgroup_are_refused() -> None:
    key = outside_the_subgroup(G1Point, PUBLIC_KEY_BYTES)
    signature = outside_the_subgroup(G2Point, SIGNATURE_BYTES)
    assert not is_public_key(key)
    assert not verify(key, MESSAGE, SIGNATURE)
    assert not verify(PUBLIC, MESSAGE, signature)
    assert not verify_possession(key, signature)


def test_a_signature_moved_by_a_point_of_small_order_is_refused() -> None:
    stray = G2Point.from_compressed_bytes_unchecked(outside_the_subgroup(G2Point, SIGNATURE_BYTES))
    small = stray * Scalar(GROUP_ORDER - 1) + stray
    assert small != G2Point.identity()
    moved = (G2Point.from_compressed_bytes(SIGNATURE) + small).to_compressed_bytes()
    assert not verify(PUBLIC, MESSAGE, moved)


def test_a_proof_of_possession_is_no_signature_and_the_other_way_round() -> None:
    assert not verify(PUBLIC, PUBLIC, prove_possession(SECRET))
    assert not verify_possession(PUBLIC, sign(SECRET, PUBLIC))


def test_a_proof_of_possession_holds_for_its_own_key_only() -> None:
    _, other = keygen(bytes(32))
    assert not verify_possession(other, prove_possession(SECRET))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a seed has 32 bytes"):
        keygen(bytes(size))


@pytest.mark.parametrize("secret", [b"", bytes(32), bytes(31), GROUP_ORDER.to_bytes(32), b"\xff" * 32])
def test_a_secret_that_is_no_scalar_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="a secret key has 32 bytes"):
        sign(secret, MESSAGE)
    with pytest.raises(ValueError, match="a secret key has 32 bytes"):
        prove_possession(secret)
