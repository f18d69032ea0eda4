# SPDX-License-Identifier: GPL-3.0-or-later
"""Fragments at rest: encrypted, bound to their grant, durable, and gone for good when deleted."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import testing
from ledger.crypto.reencryption import ReencryptionKey, VerifiedKeyFragment
from ledger.errors import StoreError
from records.fragment_store import FragmentCorrupt, FragmentStore

CHAIN, KEY = b"c" * 32, b"k" * 32
GRANT, OTHER = b"\x01" * 32, b"\x02" * 32
PROXY = testing.key(1).address


@pytest.fixture(scope="module")
def fragments() -> tuple[VerifiedKeyFragment, ...]:
    patient = ReencryptionKey(testing.encryption_secret(1))
    return patient.split(testing.encryption_key(2), testing.key(1).secret, threshold=2, shares=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fragments"


@pytest.fixture
def store(path: Path) -> Iterator[FragmentStore]:
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as opened:
        yield opened


def on_disk(path: Path) -> bytes:
    """Everything that is in the store's folder."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def test_what_is_put_comes_back_after_a_restart(path: Path, fragments: tuple[VerifiedKeyFragment, ...]) -> None:
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        store.put(GRANT, fragments[0], 5)
        store.put(OTHER, fragments[1], 5)
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        kept = store.get(GRANT), store.get(OTHER)
        assert store.get(b"\x03" * 32) is None
        assert len(store) == 2
    assert [bytes(fragment or b"") for fragment in kept] == [bytes(fragments[0]), bytes(fragments[1])]


def test_the_disk_shows_nothing_of_a_fragment(
    path: Path, store: FragmentStore, fragments: tuple[VerifiedKeyFragment, ...]
) -> None:
    store.put(GRANT, fragments[0], 5)
    raw = bytes(fragments[0])
    content = on_disk(path)
    assert GRANT in content
    assert not any(raw[start : start + 16] in content for start in range(len(raw) - 16))


def test_only_its_owner_may_read_the_file(path: Path, store: FragmentStore) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_deleted_fragment_is_overwritten_and_does_not_come_back(
    path: Path, fragments: tuple[VerifiedKeyFragment, ...]
) -> None:
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        store.put(GRANT, fragments[0], 5)
    with sqlite3.connect(path) as connection:
        ((sealed,),) = connection.execute("SELECT sealed FROM fragments").fetchall()
    connection.close()
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        assert store.delete(GRANT)
        assert not store.delete(GRANT)
        assert sealed[:64] not in on_disk(path)
        assert store.get(GRANT) is None
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        assert store.get(GRANT) is None
        assert not len(store)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE fragments SET sealed = substr(sealed, 1, 200)",
        "UPDATE fragments SET sealed = x''",
        "UPDATE fragments SET sealed = zeroblob(338)",
        "UPDATE fragments SET grant_id = CAST(replace(grant_id, x'01', x'02') AS BLOB)",
    ],
    ids=["cut", "empty", "zeroed", "moved to another grant"],
)
def test_a_fragment_that_was_changed_on_the_disk_is_not_used(
    path: Path, fragments: tuple[VerifiedKeyFragment, ...], change: str
) -> None:
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        store.put(GRANT, fragments[0], 5)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    with (
        FragmentStore(path, chain_id=CHAIN, key=KEY) as store,
        pytest.raises(FragmentCorrupt, match="send it again"),
    ):
        store.get(OTHER if "grant_id" in change else GRANT)


def test_another_key_opens_nothing(path: Path, fragments: tuple[VerifiedKeyFragment, ...]) -> None:
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        store.put(GRANT, fragments[0], 5)
    with FragmentStore(path, chain_id=CHAIN, key=b"x" * 32) as store, pytest.raises(FragmentCorrupt):
        store.get(GRANT)


def test_a_store_of_another_chain_or_process_or_a_damaged_one_is_not_opened(path: Path, tmp_path: Path) -> None:
    with (
        FragmentStore(path, chain_id=CHAIN, key=KEY),
        pytest.raises(StoreError, match="in use by another process"),
    ):
        FragmentStore(path, chain_id=CHAIN, key=KEY)
    with pytest.raises(StoreError, match="another chain"):
        FragmentStore(path, chain_id=b"d" * 32, key=KEY)
    path.write_bytes(b"rubbish " * 1000)
    with pytest.raises(StoreError, match="restore the file"):
        FragmentStore(path, chain_id=CHAIN, key=KEY)
    with pytest.raises(StoreError, match="cannot be opened"):
        FragmentStore(tmp_path / "missing" / "fragments", chain_id=CHAIN, key=KEY)


_WRITER = """
import sys
from pathlib import Path
from ledger import testing
from ledger.crypto.reencryption import ReencryptionKey
from records.fragment_store import FragmentStore
patient = ReencryptionKey(testing.encryption_secret(1))
fragment = patient.split(testing.encryption_key(2), testing.key(1).secret, threshold=2, shares=3)[0]
store = FragmentStore(Path(sys.argv[1]), chain_id=b"c" * 32, key=b"k" * 32)
for number in range(10**6):
    store.put(number.to_bytes(32, "big"), fragment, 5)
    if number % 3 == 2:
        store.delete((number - 1).to_bytes(32, "big"))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_fragment_and_brings_none_back(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    reported += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    process.wait()
    assert process.returncode == -9
    last = reported[-1]
    with FragmentStore(path, chain_id=CHAIN, key=KEY) as store:
        for number in range(last + 1):
            was_deleted = number % 3 == 1 and number < last
            assert (store.get(number.to_bytes(32, "big")) is None) == was_deleted, number
