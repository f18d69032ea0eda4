# SPDX-License-Identifier: GPL-3.0-or-later
"""What only the store on disk can do wrong: whose directory it is, damage, a full disk, the map's growth, restarts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest

from ledger import lmdb_environment, lmdb_store, testing
from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.lmdb_environment import Environment
from ledger.lmdb_store import LmdbStore, open_store
from ledger.memory_store import MemoryStore
from ledger.state_tree import verify_state_proof
from ledger.store import BlockUpdate

Reopen = Callable[[], LmdbStore]
ROOT = Path(__file__).parents[2]


def update(
    store: LmdbStore | MemoryStore,
    changes: tuple[tuple[bytes, bytes | None], ...],
    size: int = 10,
    *,
    keeps_root: bool = False,
) -> BlockUpdate:
    head = store.head()
    following = msgspec.structs.replace(
        head, height=head.height + 1, block_hash=(head.height + 1).to_bytes(32, "big"), state_digest=os.urandom(32)
    )
    return BlockUpdate(following, b"b" * size, b"certificate", (), changes, (), keeps_root=keeps_root)


def entries(first: int, count: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"x" + number.to_bytes(4, "big"), b"value %d" % number) for number in range(first, first + count))


def mount(*arguments: str | Path) -> None:
    """Mount, or skip the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


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


class Failing:
    """An LMDB environment of which one method fails."""

    def __init__(self, real: lmdb.Environment, name: str, error: Exception) -> None:
        self._real, self._name, self._error = real, name, error

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            raise self._error
        return getattr(self._real, name)


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


# ---------------------------------------------------------------- whose directory


def test_directory_of_another_network_is_refused(reopen: Reopen, tmp_path: Path, genesis: Genesis) -> None:
    reopen().close()
    with pytest.raises(StoreError, match=r"holds chain .* give the genesis of that network or another data directory"):
        open_store(tmp_path / "chain", testing.genesis(network="other"))
    reopen().close()


def test_directory_in_use_is_refused_even_within_one_process(reopen: Reopen) -> None:
    store = reopen()
    with pytest.raises(StoreError, match=rf"in use by process {os.getpid()}; stop that node"):
        reopen()
    store.close()
    reopen().close()


HOLDER = """
import sys, time
from pathlib import Path
from ledger import testing
from ledger.lmdb_store import open_store
store = open_store(Path(sys.argv[1]), testing.genesis())
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.system
def test_directory_in_use_by_another_process_is_refused_until_that_is_killed(reopen: Reopen, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "chain")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match=rf"in use by process {holder.pid}"):
            reopen()
        holder.kill()
        holder.wait()
        reopen().close()


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, genesis: Genesis) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be used: File exists.*choose another"):
        open_store(tmp_path / "file", genesis)


READER = """
import sys
from pathlib import Path
from ledger import testing
from ledger.errors import StoreError
from ledger.lmdb_store import open_store
try:
    open_store(Path(sys.argv[1]), testing.genesis())
except StoreError as error:
    print(error)
"""


@pytest.mark.system
@pytest.mark.parametrize("protected", ["in-use.lock", "data.mdb"])
def test_files_without_permission_to_write_are_refused(
    tmp_path: Path, genesis: Genesis, protected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "chain"
    open_store(directory, genesis).close()
    if os.geteuid() == 0:
        # Root may write anywhere, but not to a file system that is mounted for reading.
        mount("--bind", directory, directory)
        mount("-o", "remount,ro,bind", directory)
        target = None
    else:
        target = directory / protected
        target.chmod(0o500)
    try:
        if protected == "data.mdb":
            # With the lock at hand, LMDB itself finds out.
            monkeypatch.setattr(lmdb_environment, "_lock_directory", lambda _: os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(StoreError, match="permission"):
            open_store(directory, genesis)
    finally:
        if target is None:
            subprocess.run(["umount", directory], check=True)
        else:
            target.chmod(0o700)
    monkeypatch.undo()
    open_store(directory, genesis).close()


# ---------------------------------------------------------------- damage


def test_another_format_is_refused(reopen: Reopen) -> None:
    store = reopen()
    store._env.write(lambda txn: txn.put(b"format", b"spchain-store-0", db=store._env.db["meta"]))
    store.close()
    with pytest.raises(
        StoreError, match="another format: format 'spchain-store-0', this version reads 'spchain-store-3'"
    ):
        reopen()


@pytest.mark.parametrize("name", [b"head", b"chain", b"format"])
def test_a_store_without_its_head_chain_or_format_is_refused(reopen: Reopen, name: bytes) -> None:
    store = reopen()
    store._env.write(lambda txn: txn.delete(name, db=store._env.db["meta"]))
    store.close()
    with pytest.raises(StoreError, match=r"damaged|holds chain"):
        reopen()


def test_a_head_that_the_index_does_not_know_is_damage(reopen: Reopen) -> None:
    store = reopen()
    store._env.write(lambda txn: txn.put((0).to_bytes(8, "big"), bytes(64), db=store._env.db["heights"]))
    store.close()
    with pytest.raises(StoreError, match="head at height 0 is not in the index"):
        reopen()


def test_notes_of_dirty_keys_that_cannot_be_read_are_damage(reopen: Reopen) -> None:
    store = reopen()
    store._env.write(lambda txn: txn.put(bytes(8), b"\xc1", db=store._env.db["dirty"]))
    store.close()
    with pytest.raises(StoreError, match="damaged"):
        reopen()


def test_files_of_another_program_are_refused(tmp_path: Path, genesis: Genesis) -> None:
    with lmdb.open(str(tmp_path / "chain"), max_dbs=2) as other:
        other.open_db(b"something else")
    with pytest.raises(StoreError, match="belongs to another program"):
        open_store(tmp_path / "chain", genesis)


@pytest.mark.parametrize("content", [b"not a database", bytes(100_000), b"\xff" * 20_000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, genesis: Genesis, content: bytes) -> None:
    directory = tmp_path / "chain"
    directory.mkdir()
    (directory / "data.mdb").write_bytes(content)
    with pytest.raises(StoreError, match="move the directory away"):
        open_store(directory, genesis)


def test_a_database_of_a_later_lmdb_is_refused(tmp_path: Path, genesis: Genesis) -> None:
    with lmdb.open(str(tmp_path / "chain"), max_dbs=2, lib_version=1) as other:
        other.open_db(b"meta")
    with pytest.raises(StoreError, match="damaged or of another format"):
        open_store(tmp_path / "chain", genesis)


def test_a_file_that_was_cut_is_refused_instead_of_killing_the_process(reopen: Reopen, tmp_path: Path) -> None:
    store = reopen()
    store.put_batches([(bytes([number]) * 32, bytes(400_000)) for number in range(10)])
    store.close()
    data = tmp_path / "chain" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(StoreError, match="bytes shorter than its own index says"):
        reopen()


@pytest.mark.system
@pytest.mark.parametrize("kept_pages", [2, 3, 5, 8, 13, 20])
def test_a_little_cut_off_is_an_error_not_a_crash(tmp_path: Path, genesis: Genesis, kept_pages: int) -> None:
    directory = tmp_path / "chain"
    store = open_store(directory, genesis)
    store.commit(update(store, entries(0, 100)))
    store.close()
    os.truncate(directory / "data.mdb", kept_pages * 4096)
    # In a process of its own: what is wrong here ends in a signal.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READER, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" or "damaged" in done.stdout


def test_pages_of_zeros_are_damage(reopen: Reopen, tmp_path: Path) -> None:
    store = reopen()
    store.commit(update(store, entries(0, 100)))
    store.close()
    data = tmp_path / "chain" / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, 2 * 4096)
    os.truncate(data, size)
    with pytest.raises(StoreError, match="damaged"):
        reopen()


# ---------------------------------------------------------------- the environment by itself


def test_environment_gives_up_its_lock_when_it_cannot_open(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x" * 5000)
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            Environment(tmp_path, ["one"])
    (tmp_path / "data.mdb").unlink()
    Environment(tmp_path, ["one"]).close()


def test_lock_is_taken_without_space_for_the_process_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ledger.lmdb_environment.os.pwrite", full)
    environment = Environment(tmp_path, ["one"])
    with pytest.raises(StoreError, match="in use by process unknown"):
        Environment(tmp_path, ["one"])
    environment.close()


class Broken:
    """A read transaction over a damaged file."""

    def get(self, *_: object) -> bytes:
        raise lmdb.CorruptedError("located page was wrong type")

    cursor = get

    def abort(self) -> None:
        """Do nothing."""


def test_damage_that_shows_while_reading_is_a_store_error(reopen: Reopen) -> None:
    store = reopen()
    sound, store._env.read = store._env.read, Broken()  # type: ignore[assignment] # stands in for LMDB's own class
    for ask in (
        lambda: store.get_state(b"a"),
        lambda: store.block_hash(0),
        lambda: list(store.scan_state(b"", b"", 10)),
        lambda: list(store.pending_batches()),
    ):
        with pytest.raises(StoreError, match="damaged"):
            ask()
    store._env.read = sound
    store.close()
