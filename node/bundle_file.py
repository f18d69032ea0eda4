# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a FHIR bundle from a file, plain or gzipped, bounded before and while it is read."""

import zlib
from pathlib import Path

from ledger.errors import InvalidInput
from records.fhir import read_bundle
from records.limits import MAX_BUNDLE_BYTES

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS


def load_bundle(file: Path) -> bytes:
    """Return a bundle's bytes, unvalidated; a gzipped file is unpacked to at most `MAX_BUNDLE_BYTES`.

    Raises:
        InvalidInput: too large, not readable, or damaged.
    """
    data = read_bundle(file)
    return unzip(file, data) if data.startswith(_GZIP_MAGIC) else data


def unzip(file: Path, data: bytes) -> bytes:
    """Unpack one gzip stream; a few kilobytes may claim to hold gigabytes, so it stops at the bound. Raises `InvalidInput`."""
    stream = zlib.decompressobj(_GZIP)
    try:
        bundle = stream.decompress(data, MAX_BUNDLE_BYTES + 1)
    except zlib.error as error:
        raise InvalidInput(f"{file} is damaged gzip ({error}); copy it again") from error
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"{file} unpacks to more than {MAX_BUNDLE_BYTES} bytes; split the bundle by encounter")
    if not stream.eof:
        raise InvalidInput(f"{file} ends within its compressed data; copy it again")
    if stream.unused_data:
        raise InvalidInput(f"{file} holds more than one gzip stream; pack one bundle alone")
    return bundle
