# SPDX-License-Identifier: GPL-3.0-or-later
"""What only the store on disk can do wrong: restarts, the map's growth, a full disk."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from ledger import lmdb_store, testing
from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.lmdb_store import open_store
from ledger.memory_store import MemoryStore
from ledger.state_tree import verify_state_proof
from tests.ledger.lmdb_kit import Failing, Reopen, entries, mount, update


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "none", place)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


# ---------------------------------------------------------------- restart


def test_everything_is_there_after_a_restart(reopen: Reopen, chain: bytes, genesis: Genesis) -> None:
    memory, store = MemoryStore(genesis), reopen()
    for height in range(5):
        raws = [testing.transfer(chain, testing.key(5), testing.key(50 + height).address, 5, height)]
        testing.commit(store, raws)
        testing.commit(memory, raws)
        pending = testing.batch(chain, [testing.transfer(chain, testing.key(6), testing.key(7).address, 1, height)])
        store.put_batches([pending])
        memory.put_batches([pending])
        if height == 2:
            store.state_root()
        store.close()
        store = reopen()
        assert store.head() == memory.head()
        assert list(store.pending_batches()) == list(memory.pending_batches())
        assert list(store.scan_state(b"", b"", 1000)) == list(memory.scan_state(b"", b"", 1000))
    assert store.state_root() == memory.state_root()
    store.close()


def test_dirty_keys_survive_a_restart_and_their_notes_go_once_folded(reopen: Reopen) -> None:
    store = reopen()
    store.state_root()
    for height in range(3):
        store.commit(update(store, (*entries(0, 10), *entries(100 * height, 10))))
    assert len(store._dirty) == 30
    assert len(list(store._env.read.cursor(store._env.db["dirty"]))) == 3
    store.close()
    store = reopen()
    assert len(store._dirty) == 30
    store.state_root()
    assert len(store._dirty) == 0
    assert list(store._env.read.cursor(store._env.db["dirty"])) == []
    store.close()


def test_beyond_the_bound_each_commit_folds_some_and_the_root_is_right(
    reopen: Reopen, genesis: Genesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_store, "DIRTY_BOUND", 64)
    store, memory = reopen(), MemoryStore(genesis)
    for height in range(20):
        block = update(store, (*entries(height * 40, 50), (b"x" + (height * 31).to_bytes(4, "big"), None)))
        store.commit(block)
        memory.commit(block)
        assert len(store._dirty) <= 64
        if height == 10:
            assert store.state_root() == memory.state_root()
    store.close()
    store = reopen()
    assert store.state_root() == memory.state_root()
    key = entries(300, 1)[0][0]
    assert verify_state_proof(store.state_root(), key, store.get_state(key), store.state_proof(key))
    store.close()


# ---------------------------------------------------------------- kept roots


@pytest.mark.parametrize("bound", [8, lmdb_store.DIRTY_BOUND])
def test_a_commit_that_keeps_its_root_folds_everything_and_the_root_outlives_the_process(
    reopen: Reopen, genesis: Genesis, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(lmdb_store, "DIRTY_BOUND", bound)
    store, memory = reopen(), MemoryStore(genesis)
    for height in range(1, 13):
        changes = (*entries(height * 5, 9), (b"y%d" % (height % 3), None if height % 2 else b"%d" % height))
        block = update(store, changes, keeps_root=height % 4 == 0)
        store.commit(block)
        memory.commit(block)
        if height % 4 == 0:
            assert len(store._dirty) == 0
            assert list(store._env.read.cursor(store._env.db["dirty"])) == []
        if height % 5 == 0:
            # A store that has not read the tree yet keeps roots as well.
            store.close()
            store = reopen()
    assert [store.root_at(height) for height in range(13)] == [memory.root_at(height) for height in range(13)]
    assert store.root_at(12) == store.state_root() == memory.state_root()
    store.close()


def test_a_new_store_has_nothing_to_fold(reopen: Reopen, genesis: Genesis) -> None:
    store = reopen()
    assert len(store._dirty) == 0
    assert store.root_at(0) == store.state_root() == MemoryStore(genesis).state_root()
    store.close()


class LostCommit:
    """An LMDB environment whose write transactions do all their work and are lost at the end."""

    def __init__(self, real: lmdb.Environment, error: lmdb.Error) -> None:
        self._real, self._error = real, error

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[object]:
        txn = self._real.begin(write=write)
        yield txn
        txn.abort()
        raise self._error

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize("known_tree", [False, True])
@pytest.mark.parametrize("keeps_root", [False, True])
def test_a_transaction_that_is_lost_at_its_end_leaves_tree_notes_and_roots(
    reopen: Reopen, genesis: Genesis, monkeypatch: pytest.MonkeyPatch, *, known_tree: bool, keeps_root: bool
) -> None:
    monkeypatch.setattr(lmdb_store, "DIRTY_BOUND", 30)
    store, memory = reopen(), MemoryStore(genesis)
    if known_tree:
        store.state_root()
    for each in (store, memory):
        each.commit(update(each, entries(0, 25)))
    head, dirty = store.head(), len(store._dirty)
    store._env._env = LostCommit(store._env._env, lmdb.DiskError("mdb_txn_commit"))  # type: ignore[assignment] # stands in
    with pytest.raises(StoreError, match="no space left"):
        store.commit(update(store, (*entries(10, 30), (b"y", b"1")), keeps_root=keeps_root))
    assert (store.head(), len(store._dirty), store.root_at(2)) == (head, dirty, None)
    assert (store.get_state(b"y"), store.weight()) == (None, None)
    block = update(store, (*entries(5, 3), (entries(0, 1)[0][0], None)), keeps_root=True)
    store.commit(block)
    memory.commit(block)
    assert store.root_at(2) == memory.root_at(2) == memory.state_root()
    store.close()
    store = reopen()
    assert store.root_at(2) == store.state_root() == memory.state_root()
    store.close()


def test_a_kept_root_is_right_when_the_map_grows_in_the_middle_of_the_transaction(
    tmp_path: Path, genesis: Genesis
) -> None:
    store, memory = open_store(tmp_path, genesis, map_bytes=128 * 1024), MemoryStore(genesis)
    for height in range(5):
        block = update(store, entries(height * 400, 500), size=50_000, keeps_root=True)
        store.commit(block)
        memory.commit(block)
        assert store.root_at(height + 1) == memory.root_at(height + 1)
    assert store._env._env.info()["map_size"] > 128 * 1024
    store.close()


def test_at_the_bound_of_the_map_no_root_is_kept_and_the_tree_stays(tmp_path: Path, genesis: Genesis) -> None:
    store, memory = open_store(tmp_path, genesis, map_bytes=128 * 1024, map_bound_bytes=1024**2), MemoryStore(genesis)
    for each in (store, memory):
        each.commit(update(each, entries(0, 100), keeps_root=True))
        each.commit(update(each, entries(50, 100)))
    with pytest.raises(StoreError, match="bound of 1048576 bytes, nothing was written"):
        store.commit(update(store, entries(0, 20_000), keeps_root=True))
    assert (store.root_at(1), store.root_at(3)) == (memory.root_at(1), None)
    for each in (store, memory):
        each.commit(update(each, entries(3, 4), keeps_root=True))
    assert store.root_at(3) == memory.root_at(3) == store.state_root()
    store.close()


# ---------------------------------------------------------------- growth


def test_map_grows_until_everything_fits(tmp_path: Path, genesis: Genesis) -> None:
    store, memory = open_store(tmp_path, genesis, map_bytes=128 * 1024), MemoryStore(genesis)
    for height in range(10):
        block = update(store, entries(height * 500, 500), size=10_000)
        store.commit(block)
        memory.commit(block)
        store.put_batches([(height.to_bytes(32, "big"), bytes(300_000))])
    assert store._env._env.info()["map_size"] > 128 * 1024
    assert store.state_root() == memory.state_root()
    store.close()
    store = open_store(tmp_path, genesis, map_bytes=128 * 1024)
    assert store.head() == memory.head()
    assert len(list(store.pending_batches())) == 10
    store.close()


def test_at_the_bound_of_the_map_a_write_changes_nothing_and_reading_goes_on(tmp_path: Path, genesis: Genesis) -> None:
    store = open_store(tmp_path, genesis, map_bytes=128 * 1024, map_bound_bytes=512 * 1024)
    store.commit(update(store, entries(0, 100)))
    head, root = store.head(), store.state_root()
    with pytest.raises(StoreError, match="bound of 524288 bytes, nothing was written; raise the bound"):
        store.commit(update(store, entries(0, 100), size=1_000_000))
    with pytest.raises(StoreError, match="bound"):
        store.put_batches([(bytes(32), bytes(1_000_000))])
    assert (store.head(), store.state_root(), store.batch(bytes(32))) == (head, root, None)
    store.commit(update(store, entries(100, 10)))
    assert store.head().height == head.height + 1
    store.close()
    wider = open_store(tmp_path, genesis, map_bytes=128 * 1024, map_bound_bytes=8 * 1024**2)
    wider.put_batches([(bytes(32), bytes(1_000_000))])
    wider.close()


def test_a_map_that_cannot_grow_is_an_error_and_the_store_goes_on(
    tmp_path: Path, genesis: Genesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, genesis, map_bytes=128 * 1024)
    monkeypatch.setattr(store._env, "_env", Failing(store._env._env, "set_mapsize", lmdb.MemoryError("no room")))
    with pytest.raises(StoreError, match=r"cannot be used, nothing was written: no room.*limits of memory"):
        store.put_batches([(bytes(32), bytes(1_000_000))])
    store.put_batches([(bytes(32), bytes(1_000_000))])
    assert store.batch(bytes(32)) is not None
    store.close()


# ---------------------------------------------------------------- disk full


@pytest.mark.system
def test_full_disk_changes_nothing_and_the_store_goes_on_when_there_is_space(tmpfs: Path, genesis: Genesis) -> None:
    store, memory = open_store(tmpfs / "chain", genesis), MemoryStore(genesis)
    ballast = tmpfs / "ballast"
    free = os.statvfs(tmpfs)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 300_000))
    refused = height = 0
    while refused < 3:
        height += 1
        block = update(store, entries(height * 50, 50), size=20_000)
        head = store.head()
        try:
            store.commit(block)
        except StoreError:
            assert store.head() == head
            assert store.get_state(entries(height * 50, 1)[0][0]) is None
            assert store.microblock(block.head.block_hash) is None
            refused += 1
            continue
        memory.commit(block)
    with pytest.raises(StoreError, match="no space left"):
        store.put_batches([(bytes(32), bytes(2_000_000))])
    assert list(store.pending_batches()) == []
    ballast.unlink()
    store.put_batches([(bytes(32), bytes(200_000))])
    block = update(store, entries(0, 50))
    store.commit(block)
    memory.commit(block)
    assert store.state_root() == memory.state_root()
    store.close()
    store = open_store(tmpfs / "chain", genesis)
    assert store.head() == memory.head()
    assert list(store.scan_state(b"", b"", 10_000)) == list(memory.scan_state(b"", b"", 10_000))
    store.close()


@pytest.mark.system
def test_no_space_to_begin_with_is_an_error_with_a_remedy(tmpfs: Path, genesis: Genesis) -> None:
    free = os.statvfs(tmpfs)
    (tmpfs / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(StoreError, match="space"):
        open_store(tmpfs / "chain", genesis)
    (tmpfs / "ballast").unlink()
    open_store(tmpfs / "chain", genesis).close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (lmdb.DiskError("mdb_txn_commit"), "no space left"),
        (lmdb.Error("mdb_txn_commit: Input/output error"), "check the disk"),
        (lmdb.PanicError("update of meta page failed"), "damaged"),
        (lmdb.ReadonlyError("mdb_txn_begin: Permission denied"), "permissions"),
    ],
)
def test_after_a_failed_write_the_environment_is_opened_afresh(
    tmp_path: Path, genesis: Genesis, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error, text: str
) -> None:
    store = open_store(tmp_path, genesis)
    monkeypatch.setattr(store._env, "_env", Failing(store._env._env, "begin", error))
    head = store.head()
    with pytest.raises(StoreError, match=text):
        store.commit(update(store, entries(0, 5)))
    assert store.head() == head
    store.commit(update(store, entries(0, 5)))
    assert store.get_state(entries(0, 1)[0][0]) is not None
    store.close()
