# SPDX-License-Identifier: GPL-3.0-or-later
"""The state as it was at the last two blocks that kept their root, on both stores, whatever has happened since."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ledger import lmdb_store
from ledger.errors import SnapshotGone, StoreError
from ledger.genesis import Genesis
from ledger.lmdb_past import JOURNALS
from ledger.lmdb_store import LmdbStore, open_store
from ledger.state_tree import verify_state_proof
from ledger.store import BlockUpdate, Snapshot, Store

Reopen = Callable[[], LmdbStore]
Entries = dict[bytes, bytes | None]


def advance(store: Store, changes: Entries, *, keeps_root: bool = False) -> bytes:
    """Commit a block that changes this; returns the state's root if it is kept."""
    head = store.head()
    height = head.height + 1
    following = msgspec.structs.replace(head, height=height, block_hash=height.to_bytes(32, "big"))
    changed = tuple(sorted(changes.items()))
    store.commit(BlockUpdate(following, b"block", b"certificate", (), changed, (), keeps_root=keeps_root))
    return store.root_at(height) or b""


def assert_was(snapshot: Snapshot, expected: Entries) -> None:
    for key, value in expected.items():
        assert snapshot.get_state(key) == value, key
        assert verify_state_proof(snapshot.root, key, value, snapshot.prove(key)), key


BEFORE: Entries = {
    b"xkept": b"1",
    b"xchanged": b"1",
    b"xtwice": b"1",
    b"xremoved": b"1",
    b"xmade": None,
    b"xback": b"1",
}


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("bound", [2, lmdb_store.DIRTY_BOUND])
def test_a_snapshot_is_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, bound: int, *, folds: bool
) -> None:
    if isinstance(store, LmdbStore):
        monkeypatch.setattr(store._dirty, "_bound", bound)
    root = advance(store, BEFORE, keeps_root=True)
    steps: list[Entries] = [
        {b"xchanged": b"2", b"xtwice": b"2", b"xremoved": None, b"xmade": b"2", b"xback": None},
        {b"xtwice": b"3", b"xmade": b"3", b"xother": b"3"},
        {b"xback": b"1", b"xmade": b"4"},
    ]
    for step in steps:
        advance(store, step)
        if folds:
            store.state_root()
        assert_was(store.snapshot_at(root), BEFORE)
    middle = {**BEFORE, **steps[0], **steps[1], **steps[2], b"xlast": b"5"}
    second = advance(store, {b"xlast": b"5"}, keeps_root=True)
    after: Entries = {b"xkept": None, b"xmade": None, b"xlast": None, b"xchanged": b"1", b"xremoved": b"6"}
    for changes in ({}, after):
        advance(store, changes)
        if folds:
            store.state_root()
        assert_was(store.snapshot_at(root), {**BEFORE, b"xother": None, b"xlast": None})
        assert_was(store.snapshot_at(second), middle)


def test_the_genesis_is_the_first_snapshot_and_two_are_kept(store: Store) -> None:
    founding = store.state_root()
    first = advance(store, {b"x": b"1"}, keeps_root=True)
    assert_was(store.snapshot_at(founding), {b"x": None, b"s": store.get_state(b"s")})
    old = store.snapshot_at(founding)
    second = advance(store, {b"x": b"2"}, keeps_root=True)
    assert_was(store.snapshot_at(first), {b"x": b"1"})
    assert_was(store.snapshot_at(second), {b"x": b"2"})
    for asking in (lambda: store.snapshot_at(founding), lambda: old.get_state(b"x"), lambda: old.prove(b"x")):
        with pytest.raises(
            SnapshotGone, match=f"{founding.hex()} is not kept here, only those under {first.hex()} and"
        ):
            asking()


def test_a_root_that_never_was_is_refused(store: Store) -> None:
    with pytest.raises(SnapshotGone, match="take the newest pinned keyblock"):
        store.snapshot_at(bytes(32))
    advance(store, {b"x": b"1"})
    with pytest.raises(SnapshotGone):
        store.snapshot_at(store.state_root())


def test_a_snapshot_answers_every_key_and_holds_while_blocks_are_committed(store: Store) -> None:
    snapshot = store.snapshot_at(advance(store, {b"x": b""}, keeps_root=True))
    advance(store, {b"x": b"2"})
    assert snapshot.get_state(b"x") == b""
    assert [snapshot.get_state(key) for key in (b"", b"x" * 511, b"x" * 600)] == [None] * 3
    assert verify_state_proof(snapshot.root, b"x" * 600, None, snapshot.prove(b"x" * 600))


def test_many_entries_and_their_absence_are_proved_as_of_then(store: Store) -> None:
    def key(number: int) -> bytes:
        return b"x" + number.to_bytes(4, "big")

    root = advance(store, {key(number): b"1" for number in range(3000)}, keeps_root=True)
    advance(store, {key(number): None if number % 3 else b"2" for number in range(0, 4000, 2)})
    store.state_root()
    advance(store, {key(number): b"3" for number in range(500)}, keeps_root=True)
    snapshot = store.snapshot_at(root)
    for number in range(0, 4000, 37):
        value = b"1" if number < 3000 else None
        assert_was(snapshot, {key(number): value})
        assert not verify_state_proof(root, key(number), b"3", snapshot.prove(key(number)))


# ---------------------------------------------------------------- on disk


def test_snapshots_outlive_the_process(reopen: Reopen) -> None:
    store = reopen()
    first = advance(store, {b"xa": b"1", b"xb": b"1"}, keeps_root=True)
    advance(store, {b"xa": b"2", b"xc": b"2"})
    store.state_root()
    second = advance(store, {b"xb": None}, keeps_root=True)
    advance(store, {b"xa": b"4", b"xb": b"4"})
    for _ in range(2):
        store.close()
        store = reopen()
        assert_was(store.snapshot_at(first), {b"xa": b"1", b"xb": b"1", b"xc": None})
        assert_was(store.snapshot_at(second), {b"xa": b"2", b"xb": None, b"xc": b"2"})
        advance(store, {b"xa": None, b"xb": b"5"})
    store.close()


def test_snapshots_outlive_the_growth_of_the_map(tmp_path: Path, genesis: Genesis) -> None:
    store = open_store(tmp_path / "chain", genesis, map_bytes=128 * 1024)
    root = advance(store, {b"x%d" % number: b"1" for number in range(50)}, keeps_root=True)
    snapshot = store.snapshot_at(root)
    size = store._env._map_bytes
    advance(store, {b"x%d" % number: b"2" * 1000 for number in range(300)})
    assert store._env._map_bytes > size
    assert_was(snapshot, {b"x%d" % number: b"1" if number < 50 else None for number in range(60)})
    store.close()


def test_a_transaction_that_fails_leaves_the_past_as_it_is(tmp_path: Path, genesis: Genesis) -> None:
    store = open_store(tmp_path / "chain", genesis, map_bytes=128 * 1024, map_bound_bytes=512 * 1024)
    root = advance(store, {b"xa": b"1"}, keeps_root=True)
    for keeps_root in (False, True):
        with pytest.raises(StoreError, match="has reached its bound"):
            advance(
                store, {b"xa": b"2", **{b"y%d" % number: b"2" * 4000 for number in range(200)}}, keeps_root=keeps_root
            )
        assert_was(store.snapshot_at(root), {b"xa": b"1", b"y1": None})
    second = advance(store, {b"xa": b"3"}, keeps_root=True)
    assert_was(store.snapshot_at(root), {b"xa": b"1", b"y1": None})
    assert_was(store.snapshot_at(second), {b"xa": b"3", b"y1": None})
    store.close()


def test_the_journals_hold_what_two_epochs_change_and_no_more(reopen: Reopen) -> None:
    def rows(store: LmdbStore) -> int:
        return sum(store._env.read.stat(store._env.db[name])["entries"] for name in JOURNALS)

    store = reopen()
    for _ in range(4):
        advance(store, {b"x%d" % number: bytes([store.head().height]) for number in range(100)})
        advance(store, {b"x%d" % number: bytes([store.head().height]) for number in range(100)}, keeps_root=True)
        # A value, a leaf and at most a bucket for each key, twice; a hot key is noted once per epoch.
        assert rows(store) <= 600
    for _ in range(2):
        advance(store, {}, keeps_root=True)
    assert rows(store) == 0
    store.close()


def test_an_open_snapshot_keeps_no_page_from_being_used_again(reopen: Reopen) -> None:
    def pages(store: LmdbStore) -> int:
        return int(store._env._env.info()["last_pgno"])

    store = reopen()
    keys = [b"x%d" % number for number in range(300)]
    root = advance(store, dict.fromkeys(keys, b"1" * 60), keeps_root=True)
    snapshot = store.snapshot_at(root)
    advance(store, dict.fromkeys(keys, b"2" * 60))
    before = pages(store)
    for _ in range(60):
        advance(store, dict.fromkeys(keys, bytes([store.head().height]) * 60))
    # A read transaction held open would take at least 8 pages for the values alone, in every one of the 60 blocks.
    assert pages(store) - before < 60
    assert_was(snapshot, dict.fromkeys(keys[:3], b"1" * 60))
    store.close()
