# SPDX-License-Identifier: GPL-3.0-or-later
"""I8: what a store reported as committed survives kill -9 at any point, whole blocks only.

This file is also the program that is killed: it commits blocks that follow from their height alone, and says each height
once the commit has returned.
"""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from ledger import testing
from ledger.genesis import chain_id
from ledger.lmdb_store import LmdbStore, open_store
from ledger.memory_store import MemoryStore
from ledger.store import Store

ROOT = Path(__file__).parents[2]
GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)


def batches_of(height: int) -> list[Sequence[bytes]]:
    """Two batches of transfers, some to new accounts, one of which is refused."""
    sender, other = testing.key(5), testing.key(6)
    first = [
        testing.transfer(CHAIN, sender, testing.key(100 + height % 50).address, 1 + height, 2 * height + n)
        for n in (0, 1)
    ]
    return [
        first,
        [
            testing.transfer(CHAIN, other, sender.address, 1, height),
            testing.transfer(CHAIN, other, sender.address, 1, height + 9),
        ],
    ]


def commit_next(store: Store) -> None:
    height = store.head().height
    for raws in batches_of(height):
        store.put_batches([testing.batch(CHAIN, raws)])
    update = testing.next_update(store, batches_of(height))
    closing = b"closing %d" % height if height % 4 == 0 else b""
    bringing = msgspec.structs.replace(update, closing=closing, weight=b"%d" % height, keeps_root=height % 4 == 0)
    store.commit(bringing)


def run(directory: Path) -> None:
    # A small map at first, so that kills also meet its growth; roots, so that they meet the folding of the state.
    store = open_store(directory, GENESIS, map_bytes=128 * 1024)
    while True:
        commit_next(store)
        if store.head().height % 3 == 0:
            store.state_root()
        print(store.head().height, flush=True)


def catch_up(memory: MemoryStore, height: int) -> None:
    while memory.head().height < height:
        commit_next(memory)


def assert_equal(store: LmdbStore, memory: MemoryStore) -> None:
    assert store.head() == memory.head()
    assert store.weight() == memory.weight()
    # Kept roots first: they must be there before anything is folded again.
    heights = range(memory.head().height + 1)
    assert [store.root_at(height) for height in heights] == [memory.root_at(height) for height in heights]
    for root in [root for height in heights if (root := memory.root_at(height))][-2:]:
        past, expected = store.snapshot_at(root), memory.snapshot_at(root)
        for key, _ in memory.scan_state(b"", b"", 10_000):
            assert past.get_state(key) == expected.get_state(key)
            assert past.prove(key) == expected.prove(key)
    assert store.state_root() == memory.state_root()
    assert list(store.scan_state(b"", b"", 10_000)) == list(memory.scan_state(b"", b"", 10_000))
    for height in heights:
        block_hash = memory.block_hash(height)
        assert block_hash is not None
        assert store.block_hash(height) == block_hash
        assert store.state_digest(height) == memory.state_digest(height)
        assert store.microblock(block_hash) == memory.microblock(block_hash)
        assert store.certificate(block_hash) == memory.certificate(block_hash)
        assert store.closing(block_hash) == memory.closing(block_hash)


@pytest.mark.system
def test_i8_nothing_that_was_reported_is_lost_and_no_block_is_half_there(tmp_path: Path) -> None:
    chance = random.Random(20261122)
    memory = MemoryStore(GENESIS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(8):
        command = [sys.executable, __file__, str(tmp_path / "chain")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
            assert child.stdout is not None
            reported = 0
            for _ in range(chance.randint(1, 25)):
                reported = int(child.stdout.readline())
            # The child is somewhere in its next blocks; let the signal fall where it may.
            for _ in range(chance.randint(0, 200_000)):
                pass
            child.kill()
            reported = max([reported, *map(int, child.stdout.read().split())])
        store = open_store(tmp_path / "chain", GENESIS)
        assert store.head().height >= reported > 0
        catch_up(memory, store.head().height)
        assert_equal(store, memory)
        # Batches that arrived before the kill are there, for the block that was not committed.
        coming = dict(testing.batch(CHAIN, raws) for raws in batches_of(store.head().height))
        assert all(coming[digest] == raw for digest, raw in store.pending_batches())
        store.close()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
