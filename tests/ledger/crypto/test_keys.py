# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.secp256k1 import secp256k1

from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, address_of, is_public_key, verify

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DIGEST = tagged_hash(Tag.VOTE, b"digest")
KEY = PrivateKey(bytes(31) + b"\x07")

secrets = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
digests = st.binary(min_size=32, max_size=32)


def split(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")


def join(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@given(secrets, digests)
def test_signature_verifies_here_and_with_openssl_and_is_low_s(secret: bytes, digest: bytes) -> None:
    key = PrivateKey(secret)
    signature = key.sign(digest)
    assert verify(key.public_key, digest, signature)
    r, s = split(signature)
    assert s <= ORDER // 2
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), key.public_key)
    point.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


@settings(max_examples=10)
@given(secrets)
def test_public_key_is_the_one_of_an_independent_curve(secret: bytes) -> None:
    x, y = secp256k1.privtopub(secret)
    assert PrivateKey(secret).public_key == bytes([2 + y % 2]) + x.to_bytes(32, "big")


@settings(max_examples=10)
@given(secrets, digests)
def test_signature_recovers_to_the_key_on_an_independent_curve(secret: bytes, digest: bytes) -> None:
    key = PrivateKey(secret)
    r, s = split(key.sign(digest))
    x, y = secp256k1.privtopub(secret)
    assert (x, y) in [secp256k1.ecdsa_raw_recover(digest, (v, r, s)) for v in (27, 28)]


@given(digests)
def test_signature_of_openssl_verifies_here_once_it_is_low_s(digest: bytes) -> None:
    secret = ec.derive_private_key(7, ec.SECP256K1())
    r, s = utils.decode_dss_signature(secret.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()))))
    assert verify(KEY.public_key, digest, join(r, min(s, ORDER - s)))
    assert not verify(KEY.public_key, digest, join(r, max(s, ORDER - s)))


def test_signing_is_deterministic() -> None:
    assert KEY.sign(DIGEST) == KEY.sign(DIGEST) == PrivateKey(KEY.secret).sign(DIGEST)


def test_the_high_s_twin_of_a_signature_is_refused_although_openssl_takes_it() -> None:
    r, s = split(KEY.sign(DIGEST))
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), KEY.public_key)
    point.verify(utils.encode_dss_signature(r, ORDER - s), DIGEST, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    assert not verify(KEY.public_key, DIGEST, join(r, ORDER - s))


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_changed_signature_does_not_verify(index: int, flip: int) -> None:
    forged = bytearray(KEY.sign(DIGEST))
    forged[index] ^= flip
    assert not verify(KEY.public_key, DIGEST, bytes(forged))


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(63), bytes(65), bytes(64), join(0, 1), join(1, 0), join(ORDER, 1), join(1, ORDER), b"\xff" * 64],
)
def test_signatures_out_of_range_or_of_another_length_do_not_verify(signature: bytes) -> None:
    assert not verify(KEY.public_key, DIGEST, signature)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33)])
def test_a_digest_of_another_length_does_not_verify(digest: bytes) -> None:
    assert not verify(KEY.public_key, digest, KEY.sign(DIGEST))


NO_KEYS = [
    b"",
    bytes(33),
    KEY.public_key[1:],
    KEY.public_key + b"\0",
    b"\x04" + KEY.public_key[1:],
    b"\x02" + bytes(32),
    b"\x02" + b"\xff" * 32,
    b"\x02" + (5).to_bytes(32, "big"),
]


@pytest.mark.parametrize("public_key", NO_KEYS)
def test_bytes_that_are_no_compressed_point_are_no_key(public_key: bytes) -> None:
    assert not is_public_key(public_key)
    assert not verify(public_key, DIGEST, KEY.sign(DIGEST))


def test_a_compressed_point_is_a_key_and_its_negation_is_another() -> None:
    other = bytes([KEY.public_key[0] ^ 1]) + KEY.public_key[1:]
    assert is_public_key(KEY.public_key)
    assert is_public_key(other)
    assert not verify(other, DIGEST, KEY.sign(DIGEST))
    assert address_of(other) != address_of(KEY.public_key)


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33), bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_secrets_out_of_range_are_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"secret|Secret"):
        PrivateKey(secret)


def test_an_address_is_the_start_of_the_tagged_hash() -> None:
    assert KEY.address == address_of(KEY.public_key) == tagged_hash(Tag.ADDRESS, KEY.public_key)[:20]


def test_openssl_agrees_that_a_wrong_digest_fails() -> None:
    r, s = split(KEY.sign(DIGEST))
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), KEY.public_key)
    with pytest.raises(InvalidSignature):
        point.verify(utils.encode_dss_signature(r, s), bytes(32), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    assert not verify(KEY.public_key, bytes(32), join(r, s))
