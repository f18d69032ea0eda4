# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract of every blob store, on disk and in memory, and the twin's agreement with a plain dictionary."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ledger.errors import InvalidInput, NotFound
from records.blob_store import BlobStore, MemoryBlobStore, StorageFull, Usage, address
from records.disk_blob_store import DiskBlobStore
from records.limits import MAX_BLOB_BYTES

CAPACITY = 4096
Open = Callable[[int], BlobStore]


@pytest.fixture(params=["memory", "disk"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    disks: list[DiskBlobStore] = []

    def make(capacity_bytes: int) -> BlobStore:
        if request.param == "memory":
            return MemoryBlobStore(capacity_bytes)
        disks.append(DiskBlobStore(tmp_path / "store", capacity_bytes, reserve_bytes=0))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


def kept(store: BlobStore, blob: bytes) -> bytes:
    name = address(blob)
    store.put(name, blob)
    return name


def test_what_is_put_is_got_until_it_is_deleted(opened: Open) -> None:
    store = opened(CAPACITY)
    name = kept(store, b"one")
    assert store.has(name)
    assert store.get(name) == b"one"
    assert store.delete(name)
    assert not store.has(name)
    assert not store.delete(name)
    with pytest.raises(NotFound, match=name.hex()):
        store.get(name)


def test_a_blob_that_was_never_here_is_not_found(opened: Open) -> None:
    store = opened(CAPACITY)
    assert not store.has(bytes(32))
    with pytest.raises(NotFound, match="ask its author"):
        store.get(bytes(32))


def test_putting_again_is_no_change(opened: Open) -> None:
    store = opened(CAPACITY)
    kept(store, b"x" * 3000)
    kept(store, b"x" * 3000)  # twice would exceed the capacity
    assert store.usage() == Usage(blobs=1, total_bytes=3000, capacity_bytes=CAPACITY)


def test_bytes_of_another_name_are_refused(opened: Open) -> None:
    store = opened(CAPACITY)
    with pytest.raises(InvalidInput, match="are not the blob"):
        store.put(address(b"one"), b"two")
    assert store.usage().blobs == 0


def test_empty_and_oversized_blobs_are_refused(opened: Open) -> None:
    store = opened(1 << 30)
    for blob in (b"", bytes(MAX_BLOB_BYTES + 1)):
        with pytest.raises(InvalidInput, match="a blob has 1 to"):
            kept(store, blob)
    assert store.get(kept(store, bytes(MAX_BLOB_BYTES))) == bytes(MAX_BLOB_BYTES)


def test_the_capacity_is_reached_exactly_and_not_exceeded(opened: Open) -> None:
    store = opened(CAPACITY)
    first = kept(store, b"a" * (CAPACITY - 10))
    kept(store, b"b" * 10)
    with pytest.raises(StorageFull, match="raise the capacity"):
        kept(store, b"c")
    assert store.usage() == Usage(blobs=2, total_bytes=CAPACITY, capacity_bytes=CAPACITY)
    store.delete(first)
    kept(store, b"c")
    assert store.usage().total_bytes == 11


def test_identifiers_come_in_order(opened: Open) -> None:
    store = opened(CAPACITY)
    names = {kept(store, bytes([number])) for number in range(50)}
    assert list(store.iterate()) == sorted(names)


class Agreement(RuleBasedStateMachine):
    """Any sequence of calls, reopening among them, answers as a dictionary would."""

    blobs = st.sampled_from([bytes([number]) * (100 + 40 * number) for number in range(12)])
    capacity = 1500

    @initialize()
    def open_stores(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.model: dict[bytes, bytes] = {}
        self.disk = DiskBlobStore(self.folder, self.capacity, reserve_bytes=0)
        self.memory = MemoryBlobStore(self.capacity)

    @rule(blob=blobs)
    def put(self, blob: bytes) -> None:
        name = address(blob)
        fits = name in self.model or sum(map(len, self.model.values())) + len(blob) <= self.capacity
        for store in (self.disk, self.memory):
            if fits:
                store.put(name, blob)
            else:
                with pytest.raises(StorageFull):
                    store.put(name, blob)
        if fits:
            self.model[name] = blob

    @rule(blob=blobs)
    def get(self, blob: bytes) -> None:
        name = address(blob)
        for store in (self.disk, self.memory):
            assert store.has(name) is (name in self.model)
            if name in self.model:
                assert store.get(name) == blob
            else:
                with pytest.raises(NotFound):
                    store.get(name)

    @rule(blob=blobs)
    def delete(self, blob: bytes) -> None:
        name = address(blob)
        expected = self.model.pop(name, None) is not None
        assert self.disk.delete(name) is self.memory.delete(name) is expected

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.disk = DiskBlobStore(self.folder, self.capacity, reserve_bytes=0)

    @invariant()
    def agree(self) -> None:
        assert list(self.disk.iterate()) == list(self.memory.iterate()) == sorted(self.model)
        assert self.disk.usage() == self.memory.usage()
        assert self.disk.usage().total_bytes == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.folder)


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(max_examples=15, stateful_step_count=20)
