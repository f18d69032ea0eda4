# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of proving keys: the network's verifying key, a fingerprint, and the native library's own form of the key, compressed.

    "spchain proving key/1", line feed ‖ verifying key, 704 bytes ‖ SHA-256 of the key, its fingerprint ‖ the key, in zlib

The fingerprint is checked because the library panics over a key whose parts do not fit together. That does not make a key
trustworthy: one from a stranger can betray the trapdoors that it is used with, so every institution makes its own from the
ceremony's transcript (docs/how-to/run-a-ceremony.md) and compares fingerprints with the others.
"""

import hashlib
import zlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ledger.crypto.chameleon_proof import VERIFYING_KEY_BYTES, VerifyingKey
from ledger.errors import InvalidInput

DEVELOPMENT_PROVING_KEY = Path(str(files("ledger.crypto"))) / "circuit" / "development-proving-key.bin"
"""Ships with the program, for development networks; its toxic waste is public."""
CIRCUIT = Path(str(files("ledger.crypto"))) / "circuit" / "chameleon.circom"
"""Source of the circuit."""

MAX_FILE_BYTES = 8 << 20
"""The key of this circuit takes 1.3 MB."""
MAX_KEY_BYTES = 32 << 20
"""Unpacked it takes 2.4 MB: what a few kilobytes of zlib can swell to is refused."""

_MAGIC = b"spchain proving key/1\n"
_HEADER_BYTES = len(_MAGIC) + VERIFYING_KEY_BYTES + hashlib.sha256().digest_size


class ProvingKeyFile(NamedTuple):
    """The content of a file of a proving key."""

    verifying_key: bytes
    """The key that its proofs are checked with."""
    fingerprint: bytes
    """SHA-256 of the proving key: equal for all who made theirs from one transcript."""
    body: bytes
    """The proving key in the native library's form."""


def pack(verifying_key: bytes, body: bytes) -> bytes:
    """Return the file's bytes. Raises `InvalidInput` when the verifying key is none."""
    VerifyingKey.decode(verifying_key)
    return _MAGIC + verifying_key + hashlib.sha256(body).digest() + zlib.compress(body, 9)


def read(path: Path) -> ProvingKeyFile:
    """Read a file of a proving key. Raises `InvalidInput` when it is none, or is damaged."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"proving key {path} cannot be read: {error.strerror}; check the path") from error
    if len(data) > MAX_FILE_BYTES or len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        raise InvalidInput(
            f"proving key {path} is no proving key of this program; name the file that the ceremony made"
        )
    verifying_key = data[len(_MAGIC) : len(_MAGIC) + VERIFYING_KEY_BYTES]
    fingerprint, body = data[_HEADER_BYTES - 32 : _HEADER_BYTES], _unpacked(path, data[_HEADER_BYTES:])
    if hashlib.sha256(body).digest() != fingerprint:
        raise InvalidInput(f"proving key {path} is damaged: it does not have its own fingerprint; copy it again")
    return ProvingKeyFile(verifying_key, fingerprint, body)


def _unpacked(path: Path, packed: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        body = inflate.decompress(packed, MAX_KEY_BYTES)
    except zlib.error as error:
        raise InvalidInput(f"proving key {path} is damaged: {error}; copy it again") from error
    if not inflate.eof or inflate.unused_data:
        raise InvalidInput(f"proving key {path} is longer than a key of this circuit can be; make it anew")
    return body
