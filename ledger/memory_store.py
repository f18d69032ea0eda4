# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's twin in memory: for the simulator, for tests, and as the oracle that the LMDB store is tested against."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.state_tree import Leaf, StateProof, StateTree, fold_changes, position_of
from ledger.store import KEPT_ROOTS, BlockUpdate, Head, genesis_head, keeps_receipt, snapshot_gone
from ledger.transition import Receipt, execute_genesis

_BUCKET_BITS = 8
"""The tree takes 16 KiB then, and a simulator holds many stores."""


class _Leaves:
    """Leaves in dictionaries, one per bucket."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[bytes, Leaf]] = {}

    def read_bucket(self, bucket: int) -> list[Leaf]:
        return sorted(self._buckets.get(bucket, {}).values())

    def write_bucket(self, bucket: int, changed: Sequence[Leaf], removed: Sequence[bytes], _root: bytes) -> None:
        leaves = self._buckets.setdefault(bucket, {})
        leaves.update((leaf.position, leaf) for leaf in changed)
        for position in removed:
            del leaves[position]


class MemorySnapshot:
    """Implements `ledger.store.Snapshot` with a copy of the state; its tree is made when a proof is wanted."""

    def __init__(self, store: "MemoryStore", height: int, root: bytes, state: dict[bytes, bytes]) -> None:
        self._store, self._state = store, state
        self._tree: StateTree | None = None
        self._leaves = _Leaves()
        self.height = height
        self.root = root

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value that a state key had. Raises `SnapshotGone`."""
        self._store.snapshot_at(self.root)
        return self._state.get(key)

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of the value that a state key had, or of its absence. Raises `SnapshotGone`."""
        self._store.snapshot_at(self.root)
        if self._tree is None:
            self._tree = StateTree(_BUCKET_BITS)
            self._tree.set_buckets(fold_changes(self._state, self._state.get, _BUCKET_BITS, self._leaves))
        return self._tree.prove(position_of(key), self._leaves.read_bucket)


class MemoryStore:
    """Implements `ledger.store.Store` in dictionaries; as lasting as the process."""

    def __init__(self, genesis: Genesis) -> None:
        execution = execute_genesis(genesis)
        self._genesis = genesis
        self._head = genesis_head(genesis, execution.state_digest)
        self._state = {key: value for key, value in execution.changes if value is not None}
        self._keys = sorted(self._state)
        self._dirty = set(self._keys)
        self._tree = StateTree(_BUCKET_BITS)
        self._leaves = _Leaves()
        self._heights = [(self._head.block_hash, self._head.state_digest)]
        self._blocks: dict[bytes, tuple[bytes, bytes]] = {}
        self._closings: dict[bytes, bytes] = {}
        self._weight: bytes | None = None
        self._receipts: dict[bytes, Receipt] = {}
        self._batches: dict[bytes, bytes] = {}
        self._pending: dict[bytes, None] = {}
        self._batch_heights: dict[bytes, int] = {}
        self._roots: dict[int, bytes] = {}
        self._snapshots: deque[MemorySnapshot] = deque(maxlen=KEPT_ROOTS)
        self._keep_root(0)

    @property
    def genesis(self) -> Genesis:
        """The genesis that the store was made for."""
        return self._genesis

    def head(self) -> Head:
        """Return the newest committed microblock; the genesis block at first."""
        return self._head

    def commit(self, update: BlockUpdate) -> None:
        """Write one microblock; see `Store.commit`."""
        head = update.head
        assert head.height == self._head.height + 1, f"height {head.height} does not follow {self._head.height}"
        missing = [digest.hex() for digest in update.batches if digest not in self._batches]
        if missing:
            raise StoreError(f"block {head.height} names batches that are not stored: {missing}; fetch them first")
        for key, value in update.changes:
            self._change(key, value)
        for identifier, receipt in update.receipts:
            if keeps_receipt(self._receipts.get(identifier), receipt):
                self._receipts[identifier] = receipt
        for digest in update.batches:
            self._pending.pop(digest, None)
            self._batch_heights.setdefault(digest, head.height)
        self._heights.append((head.block_hash, head.state_digest))
        self._blocks[head.block_hash] = (update.microblock, update.certificate)
        if update.closing:
            self._closings[head.block_hash] = update.closing
        if update.weight:
            self._weight = update.weight
        if update.keeps_root:
            self._keep_root(head.height)
        self._head = head

    def _keep_root(self, height: int) -> None:
        root = self._roots[height] = self.state_root()
        self._snapshots.append(MemorySnapshot(self, height, root, dict(self._state)))

    def _change(self, key: bytes, value: bytes | None) -> None:
        self._dirty.add(key)
        if value is not None:
            if key not in self._state:
                insort(self._keys, key)
            self._state[key] = value
        elif self._state.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value of a state key."""
        return self._state.get(key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield entries of the state in order; see `StateReader.scan_state`."""
        position = max(prefix, start)
        for _ in range(limit):
            index = bisect_left(self._keys, position)
            if index == len(self._keys) or not self._keys[index].startswith(prefix):
                return
            key = self._keys[index]
            yield key, self._state[key]
            position = key + b"\0"

    def block_hash(self, height: int) -> bytes | None:
        """Return the hash of the committed microblock at a height."""
        return self._heights[height][0] if 0 <= height < len(self._heights) else None

    def state_digest(self, height: int) -> bytes | None:
        """Return the running state digest after the committed microblock at a height."""
        return self._heights[height][1] if 0 <= height < len(self._heights) else None

    def microblock(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed signed microblock."""
        return self._blocks.get(block_hash, (None, None))[0]

    def certificate(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed microblock's certificate."""
        return self._blocks.get(block_hash, (None, None))[1]

    def closing(self, block_hash: bytes) -> bytes | None:
        """Return the `BlockUpdate.closing` of a committed microblock that has one."""
        return self._closings.get(block_hash)

    def weight(self) -> bytes | None:
        """Return the newest `BlockUpdate.weight`."""
        return self._weight

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        """Return what became of a transaction, if it stood in a committed microblock."""
        return self._receipts.get(transaction_id)

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep batches (digest, encoding); known ones stay as they are."""
        for digest, raw in batches:
            if digest not in self._batches:
                self._batches[digest] = raw
                self._pending[digest] = None

    def batch(self, digest: bytes) -> bytes | None:
        """Return the encoding of a batch."""
        return self._batches.get(digest)

    def batch_height(self, digest: bytes) -> int | None:
        """Return the height of the microblock that committed a batch."""
        return self._batch_heights.get(digest)

    def pending_batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield digest and encoding of the batches that no committed microblock names, in order of arrival."""
        for digest in tuple(self._pending):
            if digest in self._pending:
                yield digest, self._batches[digest]

    def drop_batches(self, digests: Iterable[bytes]) -> None:
        """Forget pending batches; committed ones stay."""
        for digest in digests:
            if digest in self._pending:
                del self._pending[digest], self._batches[digest]

    def state_root(self) -> bytes:
        """Return the root of the authenticated state at the head."""
        dirty, self._dirty = self._dirty, set()
        tree = self._tree
        tree.set_buckets(fold_changes(dirty, self._state.get, tree.bits, self._leaves))
        return tree.root()

    def root_at(self, height: int) -> bytes | None:
        """Return the root after a microblock that was committed with `keeps_root`; that of the genesis is always there."""
        return self._roots.get(height)

    def state_proof(self, key: bytes) -> StateProof:
        """Return the proof of a state key's value, or of its absence, under `state_root`."""
        self.state_root()
        return self._tree.prove(position_of(key), self._leaves.read_bucket)

    def snapshot_at(self, root: bytes) -> MemorySnapshot:
        """Return the state under one of the last two kept roots. Raises `SnapshotGone`."""
        for snapshot in reversed(self._snapshots):
            if snapshot.root == root:
                return snapshot
        raise snapshot_gone(root, [snapshot.root for snapshot in self._snapshots])

    def close(self) -> None:
        """Release nothing: there are no files."""
