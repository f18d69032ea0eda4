# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory store and the LMDB store do the same, whatever happens in whatever order, reopening included."""

import shutil
import tempfile
from pathlib import Path

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ledger import lmdb_store, testing
from ledger.codec import encode
from ledger.dirty_keys import DirtyKeys
from ledger.lmdb_store import LmdbStore, open_store
from ledger.memory_store import MemoryStore
from ledger.state_tree import verify_state_proof
from ledger.store import BlockUpdate
from ledger.transition import Receipt

GENESIS = testing.genesis()
keys = st.integers(0, 60).map(lambda number: b"xa%d" % number) | st.binary(min_size=1, max_size=4).map(
    lambda b: b"y" + b
)
changes = st.dictionaries(keys, st.none() | st.binary(max_size=30), max_size=25)
digests = st.integers(0, 9).map(lambda number: bytes([number]) * 32)
receipts = st.lists(
    st.tuples(
        st.integers(0, 5).map(lambda number: bytes([number]) * 32),
        st.sampled_from(["", "nonce_used", "expired", "false_evidence"]),
    ),
    max_size=6,
)


class Twins(RuleBasedStateMachine):
    """Runs each operation on both and compares all that can be asked."""

    @initialize(bound=st.sampled_from([3, 20, lmdb_store.DIRTY_BOUND]))
    def make(self, bound: int) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.bound = bound
        self.memory = MemoryStore(GENESIS)
        self.kept = [(0, dict(self.memory.scan_state(b"", b"", 10_000)))]
        self.open()

    def open(self) -> None:
        # A small map, so that growth happens; a small bound, so that folding happens.
        self.disk: LmdbStore = open_store(self.directory, GENESIS, map_bytes=128 * 1024)
        loaded = self.disk._dirty
        self.disk._dirty = DirtyKeys(self.bound)
        for number in loaded.all_slices():
            self.disk._dirty.add(loaded.keys_of([number]), loaded._since[number])

    @rule(
        changed=changes,
        named=st.lists(digests, max_size=3, unique=True),
        received=receipts,
        closing=st.sampled_from([b"", b"closing"]),
        weight=st.binary(max_size=3),
        keeps_root=st.booleans(),
    )
    def commit(
        self,
        changed: dict[bytes, bytes | None],
        named: list[bytes],
        received: list[tuple[bytes, str]],
        closing: bytes,
        weight: bytes,
        *,
        keeps_root: bool,
    ) -> None:
        head = self.memory.head()
        height = head.height + 1
        named = [digest for digest in named if self.memory.batch(digest) is not None]
        update = BlockUpdate(
            head=msgspec.structs.replace(
                head,
                height=height,
                block_hash=height.to_bytes(32, "big"),
                state_digest=(height * 7).to_bytes(32, "big"),
            ),
            microblock=b"block %d" % height,
            certificate=b"certificate %d" % height,
            batches=tuple(named),
            changes=tuple(sorted(changed.items())),
            receipts=tuple((name, Receipt(height, place, why)) for place, (name, why) in enumerate(received)),
            closing=closing,
            weight=weight,
            keeps_root=keeps_root,
        )
        self.memory.commit(update)
        self.disk.commit(update)
        if keeps_root:
            self.kept.append((height, dict(self.memory.scan_state(b"", b"", 10_000))))

    @rule(some=st.lists(st.tuples(digests, st.binary(max_size=9000)), max_size=4))
    def put_batches(self, some: list[tuple[bytes, bytes]]) -> None:
        self.memory.put_batches(some)
        self.disk.put_batches(some)

    @rule(some=st.lists(digests, max_size=3))
    def drop_batches(self, some: list[bytes]) -> None:
        self.memory.drop_batches(some)
        self.disk.drop_batches(some)

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.open()

    @rule(key=keys)
    def prove(self, key: bytes) -> None:
        root, proof, value = self.memory.state_root(), self.memory.state_proof(key), self.memory.get_state(key)
        assert self.disk.state_root() == root
        assert encode(self.disk.state_proof(key)) == encode(proof)
        assert verify_state_proof(root, key, value, proof)

    @rule(key=keys)
    def prove_the_past(self, key: bytes) -> None:
        for height, state in self.kept[-2:]:
            root = self.memory.root_at(height)
            assert root is not None
            one, two = self.memory.snapshot_at(root), self.disk.snapshot_at(root)
            assert one.root == two.root == root
            for asked in (key, *list(state)[::7]):
                proof, value = two.prove(asked), state.get(asked)
                assert one.get_state(asked) == two.get_state(asked) == value
                assert encode(one.prove(asked)) == encode(proof)
                assert verify_state_proof(root, asked, value, proof)

    @rule(prefix=st.sampled_from([b"", b"x", b"y", b"xa1"]), start=st.just(b"") | keys, limit=st.integers(0, 40))
    def scan(self, prefix: bytes, start: bytes, limit: int) -> None:
        assert list(self.memory.scan_state(prefix, start, limit)) == list(self.disk.scan_state(prefix, start, limit))

    @invariant()
    def same_answers(self) -> None:
        one, two = self.memory, self.disk
        assert one.head() == two.head()
        assert one.weight() == two.weight()
        assert list(one.pending_batches()) == list(two.pending_batches())
        for height in range(one.head().height + 2):
            name = height.to_bytes(32, "big")
            assert one.block_hash(height) == two.block_hash(height)
            assert one.state_digest(height) == two.state_digest(height)
            assert one.microblock(name) == two.microblock(name)
            assert one.certificate(name) == two.certificate(name)
            assert one.closing(name) == two.closing(name)
            assert one.root_at(height) == two.root_at(height)
        for number in range(10):
            name = bytes([number]) * 32
            assert one.batch(name) == two.batch(name)
            assert one.batch_height(name) == two.batch_height(name)
            assert one.receipt(name) == two.receipt(name)

    @invariant()
    def same_state(self) -> None:
        assert list(self.memory.scan_state(b"", b"", 10_000)) == list(self.disk.scan_state(b"", b"", 10_000))

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.close()
            shutil.rmtree(self.directory)


TestTwins = Twins.TestCase
TestTwins.settings = settings(max_examples=40, stateful_step_count=25)
