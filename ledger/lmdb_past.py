# SPDX-License-Identifier: GPL-3.0-or-later
"""What the store on disk keeps of the state as it was at the last two blocks that kept their root.

Between one kept root and the next runs a *journal*: the first time that something changes there, its former form is written down in the
transaction that changes it. Rows of a journal, by the first byte of their key:

    s ‖ state key        the value before; no row for what did not exist
    l ‖ position         the digests of the leaf before, empty for none; written when the leaf is folded
    b ‖ bucket number    the root of the bucket before; written when the bucket is folded

At a kept root nothing waits to be folded, so with the journals since then (its own, and that of the next) undone, values, leaves and
bucket roots are those of that block. Two databases take turns: when a root is kept, the older journal is emptied and becomes the new one.

Kept this way, and not as a read transaction held open, because LMDB uses no page again that a reader might still see:
see docs/decisions/0029.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ledger.crypto.hashing import DIGEST_BYTES
from ledger.errors import SnapshotGone
from ledger.lmdb_environment import Environment
from ledger.state_tree import Leaf, StateProof, StateTree, bucket_of, position_of
from ledger.store import KEPT_ROOTS, snapshot_gone

if TYPE_CHECKING:
    from ledger.lmdb_environment import Database, Txn

JOURNALS = ("journal-even", "journal-odd")
"""Databases of the journals; the number of kept roots before a journal's tells which one it is in."""
_VALUE, _LEAF, _BUCKET = b"s", b"l", b"b"
_BUCKET_BYTES = 2


def _journal(number: int) -> str:
    return JOURNALS[number % len(JOURNALS)]


def bucket_key(bucket: int) -> bytes:
    """Return the key of a bucket's root, which also begins the positions in the bucket."""
    return bucket.to_bytes(_BUCKET_BYTES, "big")


def _leaf(position: bytes, digests: bytes) -> Leaf:
    return Leaf(position, digests[:DIGEST_BYTES], digests[DIGEST_BYTES:])


class Leaves:
    """The leaves of the state tree inside one LMDB transaction; with a journal, what they were goes there first."""

    def __init__(self, txn: "Txn", databases: "dict[str, Database]", journal: "Database | None") -> None:
        self._txn = txn
        self._leaves, self._buckets = databases["leaves"], databases["buckets"]
        self._journal = journal

    def read_bucket(self, bucket: int) -> list[Leaf]:
        """Return a bucket's leaves in the order of their positions."""
        return [_leaf(position, digests) for position, digests in _rows(self._txn, self._leaves, bucket_key(bucket))]

    def write_bucket(self, bucket: int, changed: Sequence[Leaf], removed: Sequence[bytes], root: bytes) -> None:
        """Set and remove leaves of a bucket and keep its new root."""
        key = bucket_key(bucket)
        if self._journal is not None:
            self._note(_BUCKET, key, self._buckets)
            for position in [*(leaf.position for leaf in changed), *removed]:
                self._note(_LEAF, position, self._leaves)
        for leaf in changed:
            self._txn.put(leaf.position, leaf.value_digest + leaf.digest, db=self._leaves)
        for position in removed:
            self._txn.delete(position, db=self._leaves)
        self._txn.put(key, root, db=self._buckets)

    def _note(self, kind: bytes, key: bytes, database: "Database") -> None:
        self._txn.put(kind + key, self._txn.get(key, b"", database), overwrite=False, db=self._journal)


class Past:
    """The journals, and the snapshots that can be taken with them."""

    def __init__(self, environment: Environment, kept: Sequence[tuple[int, bytes]], count: int) -> None:
        """Take up the journals: `kept` are height and root of the last kept ones of `count` in all, oldest first."""
        self._env = environment
        self._count = count
        self._kept = tuple(kept)
        self._trees: dict[int, StateTree] = {}

    @property
    def running(self) -> "Database":
        """The journal that commits write to."""
        return self._env.db[_journal(self._count - 1)]

    def note_values(self, txn: "Txn", keys: Sequence[bytes]) -> None:
        """Write down the values of state keys that are about to change; those that have been noted before stay."""
        found = txn.cursor(self._env.db["state"]).getmulti(keys)
        txn.cursor(self.running).putmulti([(_VALUE + key, value) for key, value in found], overwrite=False)

    def turn(self, txn: "Txn") -> None:
        """Begin the journal of a root that is being kept, once everything of its block is written."""
        txn.drop(self._env.db[_journal(self._count)], delete=False)

    def turned(self, height: int, root: bytes) -> None:
        """Take note that the transaction which kept a root is on disk."""
        self._kept = (*self._kept, (height, root))[-KEPT_ROOTS:]
        self._count += 1
        self._trees = {number: tree for number, tree in self._trees.items() if number >= self._count - KEPT_ROOTS}

    def snapshot(self, root: bytes, current: StateTree) -> "LmdbSnapshot":
        """Return the state under a root; `current` is the tree over all that is folded. Raises `SnapshotGone`."""
        for offset, (height, known) in enumerate(reversed(self._kept)):
            if known == root:
                number = self._count - 1 - offset
                return LmdbSnapshot(self, number, height, root, self._tree(number, current))
        raise self.gone(root)

    def gone(self, root: bytes) -> SnapshotGone:
        """Return the error for a state that is not kept."""
        return snapshot_gone(root, [known for _, known in self._kept])

    def journals_since(self, number: int) -> list[str]:
        """Return the names of the journals since a kept root, its own first; none when they are gone."""
        if number < self._count - KEPT_ROOTS:
            return []
        return [_journal(later) for later in range(number, self._count)]

    def _tree(self, number: int, current: StateTree) -> StateTree:
        known = self._trees.get(number)
        if known is None:
            roots: dict[int, bytes] = {}
            with self._env.reading() as txn:
                for journal in reversed(self.journals_since(number)):
                    for key, root in _rows(txn, self._env.db[journal], _BUCKET):
                        roots[int.from_bytes(key[1:], "big")] = root or bytes(DIGEST_BYTES)
            known = self._trees[number] = current.with_buckets(roots.items())
        return known


class LmdbSnapshot:
    """Implements `ledger.store.Snapshot` on disk; made by `LmdbStore.snapshot_at`."""

    def __init__(self, past: Past, number: int, height: int, root: bytes, tree: StateTree) -> None:
        self._past, self._number, self._tree = past, number, tree
        self._env = past._env  # noqa: SLF001 -- its other half
        self.height = height
        self.root = root

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value that a state key had. Raises `SnapshotGone`."""
        journals = self._journals()
        if not self._existed(position_of(key), journals):
            return None
        for journal in journals:
            value = self._env.get(journal, _VALUE + key)
            if value is not None:
                return value
        return self._env.get("state", key)

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of the value that a state key had, or of its absence. Raises `SnapshotGone`."""
        self._journals()
        return self._tree.prove(position_of(key), self._read_bucket)

    def _journals(self) -> list[str]:
        journals = self._past.journals_since(self._number)
        if not journals:
            raise self._past.gone(self.root)
        return journals

    def _existed(self, position: bytes, journals: list[str]) -> bool:
        """Tell whether there was a leaf at a position: also what was made since may have a value in a journal."""
        for journal in journals:
            digests = self._env.get(journal, _LEAF + position)
            if digests is not None:
                return digests != b""
        return self._env.get("leaves", position) is not None

    def _read_bucket(self, bucket: int) -> list[Leaf]:
        prefix = bucket_key(bucket)
        with self._env.reading() as txn:
            leaves = dict(_rows(txn, self._env.db["leaves"], prefix))
            for journal in reversed(self._journals()):
                for key, digests in _rows(txn, self._env.db[journal], _LEAF + prefix):
                    leaves[key[1:]] = digests
        return [_leaf(position, leaves[position]) for position in sorted(leaves) if leaves[position]]


def _rows(txn: "Txn", database: "Database", prefix: bytes) -> list[tuple[bytes, bytes]]:
    rows = []
    with txn.cursor(database) as cursor:
        if cursor.set_range(prefix):
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    break
                rows.append((key, value))
    return rows


assert bucket_of(bytes(DIGEST_BYTES), 8 * _BUCKET_BYTES) == 0, "a bucket's number is the first bytes of its positions"
