# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption to a patient: only the right key opens, and any changed byte shows."""

import pytest
import umbral_pre
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto.keys import is_public_key
from ledger.crypto.reencryption import (
    CAPSULE_BYTES,
    CIPHERTEXT_OVERHEAD_BYTES,
    DecryptionFailed,
    ReencryptionKey,
    check_capsule,
    encrypt,
)
from ledger.errors import InvalidInput

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEY = ReencryptionKey.from_seed(b"\x01" * 32)
OTHER = ReencryptionKey.from_seed(b"\x02" * 32)
PLAINTEXT = b"blood group AB, negative"

GOLDEN_KEY = (
    "824531b130d66924e9545f52e07f6c6ee290a35d535fb1cc0f18a46c5de3cc9a",
    "03ae8c93467f284f82f9385e5501ac7a1c2e6c4e166fe2dad848edb7cc7f8ccd57",
)


@settings(max_examples=25)
@given(st.binary(max_size=4096))
def test_what_is_encrypted_opens_with_the_secret(plaintext: bytes) -> None:
    capsule, ciphertext = encrypt(KEY.public_key, plaintext)
    assert len(capsule) == CAPSULE_BYTES
    assert len(ciphertext) == len(plaintext) + CIPHERTEXT_OVERHEAD_BYTES
    check_capsule(capsule)
    assert KEY.decrypt(capsule, ciphertext) == plaintext


def test_every_encryption_is_fresh() -> None:
    first, second = encrypt(KEY.public_key, PLAINTEXT), encrypt(KEY.public_key, PLAINTEXT)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_another_key_does_not_open() -> None:
    with pytest.raises(DecryptionFailed, match="another key"):
        OTHER.decrypt(*encrypt(KEY.public_key, PLAINTEXT))


def test_a_capsule_opens_its_own_ciphertext_only() -> None:
    capsule, _ = encrypt(KEY.public_key, PLAINTEXT)
    _, ciphertext = encrypt(KEY.public_key, PLAINTEXT)
    with pytest.raises(DecryptionFailed):
        KEY.decrypt(capsule, ciphertext)


@pytest.mark.parametrize("bit", [0, 7])
def test_each_changed_byte_of_the_ciphertext_shows(bit: int) -> None:
    capsule, ciphertext = encrypt(KEY.public_key, PLAINTEXT)
    for position in range(len(ciphertext)):
        changed = bytearray(ciphertext)
        changed[position] ^= 1 << bit
        with pytest.raises(DecryptionFailed):
            KEY.decrypt(capsule, bytes(changed))


@pytest.mark.parametrize("bit", [0, 7])
def test_each_changed_byte_of_the_capsule_shows_without_a_key(bit: int) -> None:
    capsule, _ = encrypt(KEY.public_key, PLAINTEXT)
    for position in range(len(capsule)):
        changed = bytearray(capsule)
        changed[position] ^= 1 << bit
        with pytest.raises(InvalidInput):
            check_capsule(bytes(changed))


def test_sizes_that_cannot_be_right_are_refused() -> None:
    capsule, ciphertext = encrypt(KEY.public_key, PLAINTEXT)
    for damaged in (b"", capsule[:-1], capsule + b"\x00"):
        with pytest.raises(InvalidInput, match="a capsule has 105 bytes"):
            KEY.decrypt(damaged, ciphertext)
    for damaged in (b"", ciphertext[:10], ciphertext[:-1], ciphertext + b"\x00"):
        with pytest.raises(DecryptionFailed):
            KEY.decrypt(capsule, damaged)


@given(st.binary(min_size=CAPSULE_BYTES, max_size=CAPSULE_BYTES))
def test_arbitrary_bytes_are_no_capsule(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        check_capsule(data)


def test_keys_are_deterministic() -> None:
    again = ReencryptionKey(KEY.secret)
    assert again.public_key == KEY.public_key
    assert again.secret == KEY.secret
    assert ReencryptionKey(bytes(31) + b"\x01").public_key.hex() == (
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"  # the curve's generator
    )


def test_golden_key_from_a_seed() -> None:
    """The browser derives the same key from the same seed; a change here would lose patients' records."""
    assert (KEY.secret.hex(), KEY.public_key.hex()) == GOLDEN_KEY


def test_a_public_key_is_a_point_of_the_curve_that_signatures_use() -> None:
    assert is_public_key(KEY.public_key)


@pytest.mark.parametrize(
    "secret",
    [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32],
    ids=["empty", "short", "long", "zero", "the order", "all ones"],
)
def test_secrets_that_are_no_scalars_are_refused_and_not_shown(secret: bytes) -> None:
    with pytest.raises(InvalidInput, match="re-encryption secret") as caught:
        ReencryptionKey(secret)
    assert not secret or secret.hex() not in str(caught.value)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_seeds_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match="a seed has 32 bytes"):
        ReencryptionKey.from_seed(bytes(size))


@pytest.mark.parametrize(
    "public_key",
    [b"", b"\x02" * 32, b"\x02" + b"\xff" * 32, b"\x02" + bytes(32), b"\x04" * 33, bytes(33), bytes(1)],
    ids=["empty", "short", "beyond the field", "not on the curve", "form", "zeros", "infinity"],
)
def test_public_keys_off_the_curve_are_refused(public_key: bytes) -> None:
    with pytest.raises(InvalidInput, match="is no point of secp256k1"):
        encrypt(public_key, PLAINTEXT)


def test_a_key_does_not_show_its_secret() -> None:
    assert KEY.secret.hex() not in repr(KEY)


def test_the_bytes_are_enough_to_share_by_re_encryption() -> None:
    """Capsule, ciphertext and keys as this module hands them out serve Umbral's own 2-of-3 sharing."""
    capsule_bytes, ciphertext = encrypt(KEY.public_key, PLAINTEXT)
    owner = umbral_pre.SecretKey.from_be_bytes(KEY.secret)
    reader = umbral_pre.SecretKey.from_be_bytes(OTHER.secret)
    capsule = umbral_pre.Capsule.from_bytes(capsule_bytes)
    fragments = umbral_pre.generate_kfrags(
        owner,
        reader.public_key(),
        umbral_pre.Signer(owner),
        threshold=2,
        shares=3,
        sign_delegating_key=True,
        sign_receiving_key=True,
    )
    answers = [umbral_pre.reencrypt(capsule, fragment) for fragment in fragments[1:]]
    opened = umbral_pre.decrypt_reencrypted(reader, owner.public_key(), capsule, answers, ciphertext)
    assert opened == PLAINTEXT
