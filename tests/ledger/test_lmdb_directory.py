# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store finds in its directory: another's files, another process, no permission, damage."""

import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from ledger import lmdb_environment, testing
from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.lmdb_environment import Environment
from ledger.lmdb_store import open_store
from tests.ledger.lmdb_kit import Reopen, entries, mount, update

ROOT = Path(__file__).parents[2]


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
