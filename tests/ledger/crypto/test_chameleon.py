# SPDX-License-Identifier: GPL-3.0-or-later
"""The cheap branch of the chameleon hash, pinned to values of circomlib's Poseidon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.crypto import chameleon
from ledger.crypto.chameleon import (
    FIELD_ORDER,
    OPENING_MINIMUM,
    check_opening,
    draw_opening,
    hash_message,
    is_element,
    is_opening,
    keygen,
    message_element,
    public_key,
)
from ledger.errors import InvalidInput

DIGESTS = st.binary(min_size=32, max_size=32)
OPENINGS = st.integers(OPENING_MINIMUM, FIELD_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


GOLDEN_KEY = (
    "0c434554e57cb25278eaf499e85229786be981886fa9a1e3e27cf1f8ef84ac6d",
    "0704815d75b6011337c4cc08c0fd699d5a2f3768a0785998e2bd402e910f626c",
)
"""Secret and public key from the entropy 00 01 … 1f."""
GOLDEN_HASH = (
    "2426e4edc61ae38ccd5764ea3fe97ad9100741d7c5a6d6b7a9b3a58dc242a9aa",
    "29e936ad7161a7b992ce9dd037b5e042bebbbee67ae7dfb5ba0f269b871cc447",
)
"""Opening from the entropy 00 01 … 1f, and the hash of the digest ff … ff under it."""


def element(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 2, 7853200120776062878684798364095072458815029376092732009249414926327459813530),
        (0, 0, 14744269619966411208579211824598458697587494354926760081771325075741142829156),
        (
            FIELD_ORDER - 1,
            1,
            16330877977300489053926717583698120476713162979809155194716442741817156095869,
        ),
        (
            1 << 63,
            1,
            7827199805921264808171665491519829409189258968721080746672208629462478969053,
        ),
    ],
)
def test_poseidon_equals_circomlib(left: int, right: int, expected: int) -> None:
    assert chameleon._poseidon(left, right) == element(expected)


def test_golden_key() -> None:
    secret, public = keygen(bytes(range(32)))
    assert (secret.hex(), public.hex()) == GOLDEN_KEY


def test_golden_hash() -> None:
    opening = draw_opening(bytes(range(32)))
    digest = bytes.fromhex("ff" * 32)
    assert (opening.hex(), hash_message(digest, opening).hex()) == GOLDEN_HASH


@given(DIGESTS, OPENINGS)
def test_an_opening_opens_its_hash(digest: bytes, opening: bytes) -> None:
    chameleon_hash = hash_message(digest, opening)
    assert is_element(chameleon_hash)
    assert check_opening(chameleon_hash, digest, opening)


@given(DIGESTS, OPENINGS, DIGESTS)
def test_another_message_does_not_open(digest: bytes, opening: bytes, other: bytes) -> None:
    same = message_element(digest) == message_element(other)
    assert check_opening(hash_message(digest, opening), other, opening) is same


@given(DIGESTS, OPENINGS, OPENINGS)
def test_another_opening_does_not_open(digest: bytes, opening: bytes, other: bytes) -> None:
    assert check_opening(hash_message(digest, opening), digest, other) is (opening == other)


@given(DIGESTS)
def test_a_message_is_a_canonical_element_and_keeps_253_bits(digest: bytes) -> None:
    reduced = message_element(digest)
    assert is_element(reduced)
    assert reduced[1:] == digest[1:]
    assert reduced[0] == digest[0] & 0x1F


def test_the_three_highest_bits_of_a_digest_do_not_count() -> None:
    opening = draw_opening(b"o" * 32)
    low, high = bytes([0x1F]) + b"\x07" * 31, bytes([0xFF]) + b"\x07" * 31
    assert hash_message(low, opening) == hash_message(high, opening)
    assert hash_message(bytes([0x0F]) + b"\x07" * 31, opening) != hash_message(low, opening)


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"\x11" * 31,
        b"\x11" * 33,
        bytes(32),
        element(1),
        element(OPENING_MINIMUM - 1),
        element(FIELD_ORDER),
        element(FIELD_ORDER + OPENING_MINIMUM),
        b"\xff" * 32,
    ],
    ids=["empty", "short", "long", "zero", "one", "below the minimum", "r", "second name", "all ones"],
)
def test_openings_outside_the_range_are_refused(opening: bytes) -> None:
    assert not is_opening(opening)
    with pytest.raises(InvalidInput, match="use draw_opening"):
        hash_message(bytes(32), opening)
    assert not check_opening(element(5), bytes(32), opening)
    with pytest.raises(InvalidInput, match="use keygen"):
        public_key(opening)


def test_the_ends_of_the_range_are_openings() -> None:
    for opening in (element(OPENING_MINIMUM), element(FIELD_ORDER - 1)):
        assert check_opening(hash_message(b"m" * 32, opening), b"m" * 32, opening)


def test_a_second_name_of_an_opening_does_not_open() -> None:
    """ξ + r is the same field element: accepted, it would give one record two transactions."""
    opening = element(OPENING_MINIMUM + 7)
    chameleon_hash = hash_message(b"m" * 32, opening)
    assert check_opening(chameleon_hash, b"m" * 32, opening)
    assert not check_opening(chameleon_hash, b"m" * 32, element(OPENING_MINIMUM + 7 + FIELD_ORDER))


@given(st.binary(max_size=40))
def test_any_bytes_for_a_hash_are_refused_without_an_exception(chameleon_hash: bytes) -> None:
    assert not check_opening(chameleon_hash, b"m" * 32, draw_opening(b"o" * 32))


def test_a_second_name_of_a_hash_is_refused() -> None:
    opening = draw_opening(b"o" * 32)
    chameleon_hash = int.from_bytes(hash_message(b"m" * 32, opening), "big")
    assert chameleon_hash + FIELD_ORDER < 1 << 256
    assert not check_opening(element(chameleon_hash + FIELD_ORDER), b"m" * 32, opening)


def test_a_public_key_is_never_a_hash_with_an_admissible_opening() -> None:
    """pk = Poseidon(sk, 1) would open to the message sk with ξ = 1, which is refused."""
    secret, public = keygen(b"e" * 32)
    assert not check_opening(public, secret, element(1))


@given(DIGESTS)
def test_keys_and_openings_are_derived_apart(entropy: bytes) -> None:
    secret, public = keygen(entropy)
    assert keygen(entropy) == (secret, public)
    assert is_opening(secret)
    assert is_element(public)
    assert public == public_key(secret)
    assert is_opening(draw_opening(entropy))
    assert draw_opening(entropy) != secret


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_entropy_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"not {size}"):
        keygen(bytes(size))
    with pytest.raises(InvalidInput, match=f"not {size}"):
        draw_opening(bytes(size))


def test_a_refused_secret_is_not_in_the_text() -> None:
    with pytest.raises(InvalidInput) as caught:
        public_key(b"\xfe" * 32)
    assert "fe" * 4 not in str(caught.value)
