# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node needs of a place for encrypted blobs, and its twin in memory.

Implementations share one contract (and one set of tests): content-addressed, bounded by a capacity, checked on every read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, NotFound, StoreError
from records.limits import MAX_BLOB_BYTES


class BlobCorrupt(StoreError):
    """A kept blob is damaged and was set aside; fetch it from another holder and put it again."""


class StorageFull(StoreError):
    """The blob does not fit: the capacity is reached or the disk is full. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a store is."""

    blobs: int
    """Number of blobs."""
    total_bytes: int
    """Sum of their sizes."""
    capacity_bytes: int
    """Most that `total_bytes` may reach."""


class BlobStore(Protocol):
    """What a node needs of a place for blobs; identifiers are the blobs' 32-byte `address`."""

    def put(self, blob_id: bytes, blob: bytes) -> None:
        """Keep a blob durably; again is no change.

        Raises:
            InvalidInput: the bytes are empty, too many, or not those that the identifier names.
            StorageFull: there is no room.
            StoreError: the medium failed.
        """
        ...

    def get(self, blob_id: bytes) -> bytes:
        """Return a blob, checked against its identifier.

        Raises:
            NotFound: it is not here.
            BlobCorrupt: it was here, damaged.
            StoreError: the medium failed.
        """
        ...

    def has(self, blob_id: bytes) -> bool:
        """Tell whether a blob is here, without reading it."""
        ...

    def delete(self, blob_id: bytes) -> bool:
        """Forget a blob durably; tell whether it was here."""
        ...

    def iterate(self) -> Iterator[bytes]:
        """Yield the identifiers in ascending order; blobs that come or go meanwhile may or may not be among them."""
        ...

    def usage(self) -> Usage:
        """Tell how full the store is; the first call of a process counts the files."""
        ...


class MemoryBlobStore:
    """A store in memory: for tests and simulated networks. Call it from one thread."""

    def __init__(self, capacity_bytes: int) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._total_bytes = 0
        self._capacity_bytes = capacity_bytes

    def put(self, blob_id: bytes, blob: bytes) -> None:
        """See `BlobStore`."""
        check_named(blob_id, blob)
        if blob_id in self._blobs:
            return
        check_capacity(self.usage(), len(blob))
        self._blobs[blob_id] = blob
        self._total_bytes += len(blob)

    def get(self, blob_id: bytes) -> bytes:
        """See `BlobStore`."""
        if blob_id not in self._blobs:
            raise not_found(blob_id)
        return self._blobs[blob_id]

    def has(self, blob_id: bytes) -> bool:
        """See `BlobStore`."""
        return blob_id in self._blobs

    def delete(self, blob_id: bytes) -> bool:
        """See `BlobStore`."""
        blob = self._blobs.pop(blob_id, None)
        self._total_bytes -= len(blob or b"")
        return blob is not None

    def iterate(self) -> Iterator[bytes]:
        """See `BlobStore`."""
        yield from sorted(self._blobs)

    def usage(self) -> Usage:
        """See `BlobStore`."""
        return Usage(blobs=len(self._blobs), total_bytes=self._total_bytes, capacity_bytes=self._capacity_bytes)


def address(blob: bytes) -> bytes:
    """Return the 32-byte identifier of the bytes, whatever they hold."""
    return tagged_hash(Tag.BLOB, blob)


def check_named(blob_id: bytes, blob: bytes) -> None:
    """Refuse bytes that are not the blob of this name; raises `InvalidInput`."""
    if not 0 < len(blob) <= MAX_BLOB_BYTES:
        raise InvalidInput(f"a blob has 1 to {MAX_BLOB_BYTES} bytes, not {len(blob)}")
    if address(blob) != blob_id:
        raise InvalidInput(f"{len(blob)} bytes are not the blob {blob_id.hex()}; ask another holder")


def check_capacity(usage: Usage, size_bytes: int) -> None:
    """Refuse a blob that would exceed the capacity; raises `StorageFull`."""
    if usage.total_bytes + size_bytes > usage.capacity_bytes:
        raise StorageFull(
            f"no room for a blob of {size_bytes} bytes: {usage.blobs} blobs take {usage.total_bytes} of "
            f"{usage.capacity_bytes} bytes; raise the capacity"
        )


def not_found(blob_id: bytes) -> NotFound:
    """Build the error for a blob that is not here."""
    return NotFound(f"blob {blob_id.hex()} is not here; ask its author or another holder")
