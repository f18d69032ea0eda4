# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing: the patient gets back every byte, nobody else gets any, and no blob can flood its reader."""

import os
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto.reencryption import DecryptionFailed, ReencryptionKey, encrypt
from ledger.errors import InvalidInput
from records.blob_store import address
from records.envelope import Blob, capsule_digest, check_blob, open_sealed, parse_blob, seal, unpack
from records.limits import MAX_BLOB_BYTES, MAX_BUNDLE_BYTES

KEY = ReencryptionKey.from_seed(b"\x01" * 32)
OTHER = ReencryptionKey.from_seed(b"\x02" * 32)
BUNDLE = b'{"resourceType": "Bundle"}'


def sealed_raw(packed: bytes) -> bytes:
    """A blob with a plaintext of the writer's choice: anyone can encrypt to a patient."""
    capsule, ciphertext = encrypt(KEY.public_key, packed)
    return msgspec.msgpack.encode(Blob(version=1, capsule=capsule, ciphertext=ciphertext))


def test_every_sample_comes_back_byte_for_byte(bundles: dict[str, bytes]) -> None:
    for data in bundles.values():
        record = seal(data, KEY.public_key)
        assert open_sealed(parse_blob(record.blob), KEY) == data
        assert record.bundle_bytes == len(data)
        assert record.blob_bytes < len(data) / 8
        blob = check_blob(record.blob, record.blob_id, record.capsule_digest)
        assert capsule_digest(blob.capsule) == record.capsule_digest
        assert address(record.blob) == record.blob_id


@settings(max_examples=25)
@given(st.binary(max_size=2000))
def test_any_bytes_come_back(bundle: bytes) -> None:
    assert open_sealed(parse_blob(seal(bundle, KEY.public_key).blob), KEY) == bundle


def test_a_blob_shows_nothing_of_its_bundle(bundles: dict[str, bytes]) -> None:
    record = seal(bundles["n01"], KEY.public_key)
    for word in (b"Patient", b"Schmitt836", zlib.compress(bundles["n01"], 6)[:16]):
        assert word not in record.blob
        assert word.hex() not in repr(record)


def test_two_seals_of_one_bundle_differ() -> None:
    first, second = seal(BUNDLE, KEY.public_key), seal(BUNDLE, KEY.public_key)
    assert first.blob_id != second.blob_id
    assert first.capsule_digest != second.capsule_digest


def test_another_patient_cannot_open() -> None:
    with pytest.raises(DecryptionFailed):
        open_sealed(parse_blob(seal(BUNDLE, KEY.public_key).blob), OTHER)


@pytest.mark.parametrize("bit", [0, 7])
def test_each_changed_byte_shows(bit: int) -> None:
    record = seal(BUNDLE, KEY.public_key)
    for position in range(len(record.blob)):
        changed = bytearray(record.blob)
        changed[position] ^= 1 << bit
        with pytest.raises(InvalidInput):
            open_sealed(parse_blob(bytes(changed)), KEY)
        with pytest.raises(InvalidInput, match="are not the blob"):
            check_blob(bytes(changed), record.blob_id, record.capsule_digest)


def test_cut_and_prolonged_blobs_are_refused() -> None:
    blob = seal(BUNDLE, KEY.public_key).blob
    for size in range(len(blob)):
        with pytest.raises(InvalidInput):
            parse_blob(blob[:size])
    with pytest.raises(InvalidInput):
        parse_blob(blob + b"\x00")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_blob(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_blob(data)
    with pytest.raises(InvalidInput):
        open_sealed(parse_blob(data), KEY)


def test_a_second_encoding_of_a_blob_is_refused() -> None:
    blob = seal(BUNDLE, KEY.public_key).blob
    assert blob[0] == 0x93
    longer = b"\xdc\x00\x03" + blob[1:]  # array 16 in place of fixarray: the same three values
    with pytest.raises(InvalidInput, match="canonical"):
        parse_blob(longer)


def test_a_later_version_is_refused() -> None:
    blob = bytearray(seal(BUNDLE, KEY.public_key).blob)
    assert blob[1] == 1
    blob[1] = 2
    with pytest.raises(InvalidInput, match="Blob cannot be decoded"):
        parse_blob(bytes(blob))


def test_a_capsule_that_is_none_is_refused_without_a_key() -> None:
    blob = parse_blob(seal(BUNDLE, KEY.public_key).blob)
    with pytest.raises(InvalidInput, match="capsule is not valid"):
        parse_blob(msgspec.msgpack.encode(msgspec.structs.replace(blob, capsule=b"\x00" * 105)))


def test_an_author_who_committed_to_another_capsule_is_found_out() -> None:
    record = seal(BUNDLE, KEY.public_key)
    with pytest.raises(InvalidInput, match="its author wrote a wrong record"):
        check_blob(record.blob, record.blob_id, bytes(32))


def test_a_bad_public_key_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no point of secp256k1"):
        seal(BUNDLE, bytes(33))


def test_a_bundle_at_the_bound_comes_back_and_a_longer_one_is_refused() -> None:
    bundle = b" " * MAX_BUNDLE_BYTES
    assert open_sealed(parse_blob(seal(bundle, KEY.public_key).blob), KEY) == bundle
    with pytest.raises(InvalidInput, match="at most 16777216"):
        seal(bundle + b" ", KEY.public_key)


def test_a_bundle_that_does_not_compress_is_refused_with_a_remedy() -> None:
    with pytest.raises(InvalidInput, match="move attachments"):
        seal(os.urandom(MAX_BLOB_BYTES), KEY.public_key)


def test_the_largest_blob_is_opened_and_a_larger_one_is_not_looked_at() -> None:
    room = MAX_BLOB_BYTES - len(sealed_raw(b"x" * 70_000)) + 70_000  # from 64 KiB on the framing is the same size
    largest = sealed_raw(os.urandom(room))
    assert len(largest) == MAX_BLOB_BYTES
    parse_blob(largest)
    with pytest.raises(InvalidInput, match=f"at most {MAX_BLOB_BYTES}"):
        parse_blob(sealed_raw(os.urandom(room + 1)))


def test_a_bomb_is_refused() -> None:
    bomb = zlib.compress(bytes(MAX_BUNDLE_BYTES + 1))
    assert len(bomb) < 20_000
    with pytest.raises(InvalidInput, match="unpacks to more than 16777216"):
        open_sealed(parse_blob(sealed_raw(bomb)), KEY)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b"", "ends within"),
        (b"plain text", "is not zlib"),
        (zlib.compress(BUNDLE)[:-1], "ends within"),
        (zlib.compress(BUNDLE)[:-4] + bytes(4), "is not zlib"),
        (zlib.compress(BUNDLE) + b"more", "4 bytes after"),
        (zlib.compress(BUNDLE) + zlib.compress(BUNDLE), "bytes after"),
    ],
)
def test_wrong_plaintexts_are_refused(packed: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        unpack(packed)
    with pytest.raises(InvalidInput, match=said):
        open_sealed(parse_blob(sealed_raw(packed)), KEY)
