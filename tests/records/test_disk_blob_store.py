# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk store when things go wrong: damage, crashes, full disks, other processes and threads."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger.errors import NotFound, StoreError
from records import disk_blob_store
from records.blob_store import BlobCorrupt, StorageFull, Usage, address
from records.disk_blob_store import QUARANTINE_FILES, DiskBlobStore

CAPACITY = 1 << 30
BLOB = b"ciphertext" * 100
NAME = address(BLOB)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[DiskBlobStore]:
    with DiskBlobStore(root, CAPACITY, reserve_bytes=0) as opened:
        yield opened


def file_of(root: Path, name: bytes) -> Path:
    return root / "blobs" / name.hex()[:2] / name.hex()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 0x80]),
        lambda data: data[:500],
        lambda data: data + b"\x00",
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data * 9000,  # longer than any blob: only a bounded part is read
    ],
    ids=["first byte", "last byte", "cut", "prolonged", "empty", "zeros", "huge"],
)
def test_damage_is_found_set_aside_and_repaired(
    root: Path, store: DiskBlobStore, damage: Callable[[bytes], bytes]
) -> None:
    store.put(NAME, BLOB)
    assert store.usage().blobs == 1
    file_of(root, NAME).write_bytes(damage(BLOB))
    with pytest.raises(BlobCorrupt, match="fetch it from another holder"):
        store.get(NAME)
    assert (root / "quarantine" / NAME.hex()).exists()
    assert not store.has(NAME)
    with pytest.raises(NotFound):
        store.get(NAME)
    store.put(NAME, BLOB)
    assert store.get(NAME) == BLOB
    assert store.usage().blobs == 1


def test_the_quarantine_keeps_the_newest_few(root: Path, store: DiskBlobStore) -> None:
    for number in range(QUARANTINE_FILES + 5):
        blob = b"blob %d" % number
        store.put(address(blob), blob)
        file_of(root, address(blob)).write_bytes(b"damaged")
        with pytest.raises(BlobCorrupt):
            store.get(address(blob))
    left = {file.name for file in (root / "quarantine").iterdir()}
    assert len(left) == QUARANTINE_FILES
    assert address(b"blob %d" % (QUARANTINE_FILES + 4)).hex() in left
    assert store.usage().blobs == 0


def test_a_bad_sector_costs_one_blob(root: Path, store: DiskBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, BLOB)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(BlobCorrupt):
        store.get(NAME)
    assert not store.has(NAME)


def test_an_error_of_the_medium_is_typed(root: Path, store: DiskBlobStore) -> None:
    file_of(root, NAME).mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        store.get(NAME)


def test_what_a_crash_left_half_written_is_removed_when_the_store_opens(root: Path, store: DiskBlobStore) -> None:
    store.put(NAME, BLOB)
    store.close()
    leftover = root / "incoming" / f"1-{NAME.hex()}"
    leftover.write_bytes(BLOB[:10])
    with DiskBlobStore(root, CAPACITY, reserve_bytes=0) as again:
        assert not leftover.exists()
        assert list(again.iterate()) == [NAME]
    store._lock = os.open(root / "lock", os.O_RDWR)  # for the fixture to close


def test_files_that_are_no_blobs_are_not_counted_or_listed(root: Path, store: DiskBlobStore) -> None:
    store.put(NAME, BLOB)
    folder = file_of(root, NAME).parent
    (folder / "README").write_text("by hand")
    (folder / ("zz" + "0" * 62)).write_text("no hex")
    (folder / ("0" * 64 if folder.name != "00" else "1" * 64)).write_text("another folder's")
    assert list(store.iterate()) == [NAME]
    assert store.usage().blobs == 1


def test_two_processes_cannot_open_one_store(root: Path, store: DiskBlobStore) -> None:
    code = (
        "import sys; from pathlib import Path; from records.disk_blob_store import DiskBlobStore\n"
        "try: DiskBlobStore(Path(sys.argv[1]), 1)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("StoreError")
    assert "in use by another process" in done.stdout


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        DiskBlobStore(tmp_path / "file" / "store", CAPACITY)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing_behind(
    root: Path, store: DiskBlobStore, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(disk_blob_store, "_write_synced", fail)
        elif place == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "rename", fail)
        with pytest.raises(StorageFull, match="free the disk"):
            store.put(NAME, BLOB)
    assert not list((root / "incoming").iterdir())
    assert list(store.iterate()) == []
    assert store.usage().total_bytes == 0
    store.put(NAME, BLOB)
    assert store.get(NAME) == BLOB


def test_another_failure_of_the_disk_is_not_called_full(store: DiskBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="cannot be written") as caught:
        store.put(NAME, BLOB)
    assert not isinstance(caught.value, StorageFull)


def test_a_file_size_limit_stops_a_write_half_way_and_leaves_nothing(root: Path) -> None:
    """A real short write: the kernel accepts 64 KiB of 256 KiB, then refuses."""
    code = (
        "import sys; from pathlib import Path\n"
        "from records.disk_blob_store import DiskBlobStore; from records.blob_store import address\n"
        "store = DiskBlobStore(Path(sys.argv[1]), 1 << 30, reserve_bytes=0); blob = bytes(1 << 18)\n"
        "try: store.put(address(blob), blob)\n"
        "except Exception as error: print(type(error).__name__, store.usage().blobs)"
    )
    limit = (1 << 16, 1 << 16)
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.stdout.split() == ["StorageFull", "0"]
    assert not list((root / "incoming").iterdir())


def test_space_is_left_to_others_on_the_disk(root: Path) -> None:
    with DiskBlobStore(root, CAPACITY, reserve_bytes=1 << 60) as store:
        with pytest.raises(StorageFull, match="stay for the chain"):
            store.put(NAME, BLOB)
        assert not list((root / "incoming").iterdir())


def test_blobs_survive_kill_9_at_any_moment(root: Path) -> None:
    """A child writes blobs and names each that `put` promised; it is killed in the midst of the writing."""
    code = (
        "import sys; from pathlib import Path\n"
        "from records.disk_blob_store import DiskBlobStore; from records.blob_store import address\n"
        "store = DiskBlobStore(Path(sys.argv[1]), 1 << 30, reserve_bytes=0)\n"
        "for number in range(100000):\n"
        "    blob = number.to_bytes(4, 'big') * 50000\n"
        "    store.put(address(blob), blob); print(address(blob).hex(), flush=True)"
    )
    promised: list[bytes] = []
    for wanted in (1, 7, 19):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(root)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        with child.stdout:
            promised += [bytes.fromhex(child.stdout.readline().decode().strip()) for _ in range(wanted)]
            child.send_signal(signal.SIGKILL)
            child.wait()
        with DiskBlobStore(root, CAPACITY, reserve_bytes=0) as store:
            assert not list((root / "incoming").iterdir())
            assert set(promised) <= set(store.iterate())
            for name in store.iterate():
                assert address(store.get(name)) == name
            assert store.usage().blobs == len(list(store.iterate()))


def test_threads_put_get_and_delete_side_by_side(root: Path) -> None:
    blobs = [bytes([number]) * 2000 for number in range(24)]
    with DiskBlobStore(root, CAPACITY, reserve_bytes=0) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda blob: store.put(address(blob), blob), blobs * 4))
        assert store.usage().blobs == len(blobs)
        assert list(pool.map(lambda blob: store.get(address(blob)), blobs * 2)) == blobs * 2
        assert sum(pool.map(lambda blob: store.delete(address(blob)), blobs * 4)) == len(blobs)
        assert store.usage() == Usage(blobs=0, total_bytes=0, capacity_bytes=CAPACITY)


def test_threads_together_do_not_exceed_the_capacity(root: Path) -> None:
    blobs = [bytes([number]) * 1000 for number in range(16)]
    started = threading.Barrier(len(blobs))

    def put(store: DiskBlobStore, blob: bytes) -> bool:
        started.wait()
        try:
            store.put(address(blob), blob)
        except StorageFull:
            return False
        return True

    with DiskBlobStore(root, 5500, reserve_bytes=0) as store, ThreadPoolExecutor(len(blobs)) as pool:
        assert sum(pool.map(lambda blob: put(store, blob), blobs)) == 5
        assert store.usage().total_bytes == 5000
        assert not list((root / "incoming").iterdir())


def test_threads_that_find_the_same_damage_set_it_aside_once(root: Path, store: DiskBlobStore) -> None:
    store.put(NAME, BLOB)
    file_of(root, NAME).write_bytes(b"damaged")
    store.usage()

    def read(_: int) -> str:
        try:
            store.get(NAME)
        except (BlobCorrupt, NotFound) as error:
            return type(error).__name__
        return "read"

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(read, range(32)))
    assert "read" not in answers
    assert "BlobCorrupt" in answers
    assert store.usage().blobs == 0


def test_a_blob_that_was_repaired_meanwhile_is_not_set_aside(root: Path, store: DiskBlobStore) -> None:
    """A reader that saw the damage comes late: another thread has already put the blob again."""
    store.put(NAME, BLOB)
    store._set_aside(NAME)
    assert store.get(NAME) == BLOB
    assert not list((root / "quarantine").iterdir())


def test_files_are_for_their_owner_only(root: Path, store: DiskBlobStore) -> None:
    for folder in (root, root / "blobs", root / "incoming", root / "quarantine", root / "blobs" / "00"):
        assert folder.stat().st_mode & 0o077 == 0
