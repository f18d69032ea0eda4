# SPDX-License-Identifier: GPL-3.0-or-later
"""From a bundle's bytes to the encrypted blob that nodes keep, and back.

    bundle bytes → zlib → Umbral, to the patient's key → Blob(version, capsule, ciphertext) → blob id

The chain holds the blob's id and the capsule's digest. The id covers every byte that a holder keeps; the capsule's own digest
lets a proxy check the capsule alone when it re-encrypts, without the megabytes behind it.

zlib, not zstd: zstd halves the blobs (74 KB become 37 KB for a bundle of 1.2 MB) and is five times as fast, but a patient
reads records in a browser, and every browser and language unpacks deflate by itself, today and in the decades that a record
is kept. Validation takes ten times as long as compression, and storage is the cheapest part of a record.

What a length tells: a blob is as long as its compressed bundle, so whoever holds it learns roughly how much was written.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from ledger.codec import Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.reencryption import (
    CAPSULE_BYTES,
    CIPHERTEXT_OVERHEAD_BYTES,
    ReencryptionKey,
    VerifiedCapsuleFragment,
    check_capsule,
    encrypt,
)
from ledger.errors import InvalidInput
from records.blob_store import address
from records.limits import MAX_BLOB_BYTES, MAX_BUNDLE_BYTES

BLOB_VERSION: Literal[1] = 1

_LEVEL = 6  # zlib's own choice: level 9 takes three times as long and saves a tenth


class Blob(Wire, frozen=True):
    """What holders keep; its canonical encoding is what is stored, sent and hashed."""

    version: Literal[1]
    """Format of the plaintext (zlib stream of the bundle) and of the two fields below (Umbral)."""
    capsule: Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
    """Umbral capsule of the key that encrypts the bundle."""
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=CIPHERTEXT_OVERHEAD_BYTES)]
    """The compressed bundle, encrypted and authenticated."""


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """An encrypted bundle with what goes on the chain about it."""

    blob: bytes = field(repr=False)
    """The encoded `Blob`, at most `MAX_BLOB_BYTES`."""
    blob_id: bytes
    """32-byte content address of the blob."""
    capsule_digest: bytes
    """32-byte digest of the capsule inside."""
    bundle_bytes: int
    """Size of the bundle in plain."""

    @property
    def blob_bytes(self) -> int:
        """Size of the blob."""
        return len(self.blob)


def capsule_digest(capsule: bytes) -> bytes:
    """Return the 32-byte digest of a capsule."""
    return tagged_hash(Tag.CAPSULE, capsule)


def seal(bundle: bytes, patient_reencryption_key: bytes) -> SealedRecord:
    """Compress a bundle and encrypt it to a patient; the bundle is taken as it is, unvalidated.

    Raises:
        InvalidInput: the key is no point of secp256k1, or the bundle is too large, plain or compressed.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"the bundle has {len(bundle)} bytes; at most {MAX_BUNDLE_BYTES} are accepted: split it")
    packed = zlib.compress(bundle, _LEVEL)
    capsule, ciphertext = encrypt(patient_reencryption_key, packed)
    blob = encode(Blob(version=BLOB_VERSION, capsule=capsule, ciphertext=ciphertext))
    if len(blob) > MAX_BLOB_BYTES:
        raise InvalidInput(
            f"the bundle of {len(bundle)} bytes takes {len(blob)} bytes encrypted; at most {MAX_BLOB_BYTES} are kept: "
            "it holds much that does not compress, so move attachments to an archive and refer to them"
        )
    return SealedRecord(
        blob=blob,
        blob_id=address(blob),
        capsule_digest=capsule_digest(capsule),
        bundle_bytes=len(bundle),
    )


def parse_blob(data: bytes) -> Blob:
    """Decode a blob and verify its capsule, without any key; raises `InvalidInput`."""
    blob = _decode(data)
    check_capsule(blob.capsule)
    return blob


_decode = decoder(Blob, MAX_BLOB_BYTES)


def check_blob(data: bytes, expected_blob_id: bytes, expected_capsule_digest: bytes) -> Blob:
    """Verify that the bytes are the blob that the chain speaks of.

    Raises:
        InvalidInput: another blob, or an author who committed to a capsule that is not in it.
    """
    if address(data) != expected_blob_id:
        raise InvalidInput(f"{len(data)} bytes are not the blob {expected_blob_id.hex()}; ask another holder")
    blob = parse_blob(data)
    if capsule_digest(blob.capsule) != expected_capsule_digest:
        raise InvalidInput(
            f"the capsule in blob {expected_blob_id.hex()} is not the committed one "
            f"({expected_capsule_digest.hex()}): its author wrote a wrong record"
        )
    return blob


def open_sealed(blob: Blob, key: ReencryptionKey) -> bytes:
    """Decrypt a blob with the patient's key and return the bundle, byte for byte as it was sealed.

    Raises:
        InvalidInput: no record inside; or its kind `DecryptionFailed`: another patient's blob or a changed one.
    """
    return unpack(key.decrypt(blob.capsule, blob.ciphertext))


def open_shared(blob: Blob, reader: ReencryptionKey, fragments: Sequence[VerifiedCapsuleFragment]) -> bytes:
    """Decrypt a blob that was shared with the reader, by verified capsule fragments of enough proxies.

    Raises:
        InvalidInput: no record inside, or fragments of another record; or its kind `DecryptionFailed`: too few fragments, for
            another reader, or a changed blob.
    """
    if any(fragment.capsule != blob.capsule for fragment in fragments):
        raise InvalidInput("the capsule fragments are of another record than the blob")
    return unpack(reader.decrypt_shared(fragments, blob.ciphertext))


def unpack(packed: bytes) -> bytes:
    """Decompress a decrypted bundle, to at most `MAX_BUNDLE_BYTES`.

    The bound holds against an author who packs gigabytes of zeros into a few kilobytes: anyone can encrypt to a patient.

    Raises:
        InvalidInput: no zlib stream, a truncated one, more than one, or a longer bundle.
    """
    stream = zlib.decompressobj()
    try:
        bundle = stream.decompress(packed, MAX_BUNDLE_BYTES + 1)
    except zlib.error as error:
        raise InvalidInput(f"the record of {len(packed)} bytes is not zlib: its author wrote it wrongly") from error
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"the record of {len(packed)} bytes unpacks to more than {MAX_BUNDLE_BYTES} bytes")
    if not stream.eof:
        raise InvalidInput(f"the record of {len(packed)} bytes ends within its compressed data")
    if stream.unused_data:
        raise InvalidInput(f"the record has {len(stream.unused_data)} bytes after its compressed data")
    return bundle
