# SPDX-License-Identifier: GPL-3.0-or-later
"""The store on disk: one LMDB environment, one durable write transaction per committed microblock.

The authenticated state is folded lazily: a commit notes the keys that became dirty, `state_root` brings leaves and bucket
roots up to date. A hot account that changes in every block is then hashed once per root instead of once per block. The
notes are rows of the database `dirty`, so a restart knows them; beyond `DIRTY_BOUND` keys each commit folds some. A commit
that keeps its root folds all of them, in the transaction that it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.codec import decoder, encode
from ledger.crypto.hashing import DIGEST_BYTES
from ledger.dirty_keys import DirtyKeys
from ledger.errors import InvalidInput, StoreError
from ledger.genesis import Genesis, chain_id
from ledger.lmdb_environment import MAP_BOUND_BYTES, MAP_BYTES, Environment, damaged
from ledger.lmdb_past import JOURNALS, Leaves, LmdbSnapshot, Past
from ledger.state_tree import StateProof, StateTree, fold_changes, position_of
from ledger.store import KEPT_ROOTS, BlockUpdate, Head, genesis_head, keeps_receipt
from ledger.transition import Receipt, execute_genesis

if TYPE_CHECKING:
    from ledger.lmdb_environment import Database, Txn

FORMAT = b"spchain-store-3"
"""Layout of the databases below; another layout takes another text."""
DIRTY_BOUND = 32_768
"""Most keys that wait to be folded: `state_root` then takes at most about half a second, and the set 5 MB of memory."""
_BUCKET_BITS = 16
_SCAN_CHUNK = 256
"""Entries read at once: a scan holds no cursor between two steps of its caller, so a commit in between is harmless."""
_PENDING, _COMMITTED = b"p", b"c"

_DATABASES = (
    "state",  # state key -> value
    "meta",  # b"format", b"chain", b"head", b"weight"
    "heights",  # height -> block hash ‖ running state digest
    "blocks",  # height -> signed microblock
    "certificates",  # height -> certificate
    "closings",  # height -> proof that the microblock, which pins a keyblock, was committed
    "block_heights",  # block hash -> height
    "receipts",  # transaction id -> receipt
    "batches",  # batch digest -> batch
    "pending",  # order of arrival -> batch digest
    "batch_places",  # batch digest -> b"p" ‖ order of arrival, or b"c" ‖ height
    "dirty",  # height -> state keys that became dirty there
    "leaves",  # position -> value digest ‖ leaf digest
    "buckets",  # bucket number -> root
    "roots",  # height -> state root, where it was to be kept
    *JOURNALS,  # what changed since a kept root, as it was before: see `ledger.lmdb_past`
)
_decode_head = decoder(Head, 1024)
_decode_receipt = decoder(Receipt, 1024, own=True)
# The bound is LMDB's own for a value: a node that has written a row must be able to read it, whatever a leader has put into a block.
_decode_keys = decoder(tuple[bytes, ...], 2**32, name="row of dirty keys", own=True)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def open_store(
    directory: Path, genesis: Genesis, *, map_bytes: int = MAP_BYTES, map_bound_bytes: int = MAP_BOUND_BYTES
) -> "LmdbStore":
    """Open the store of a network in a directory, and make it if there is none.

    Raises:
        StoreError: The directory cannot be used; the text says why and what to do.
    """
    environment = Environment(directory, _DATABASES, map_bytes=map_bytes, map_bound_bytes=map_bound_bytes)
    try:
        return LmdbStore(environment, genesis)
    except BaseException:
        environment.close()
        raise


class LmdbStore:
    """Implements `ledger.store.Store` on disk; made by `open_store`."""

    def __init__(self, environment: Environment, genesis: Genesis) -> None:
        self._env, self._genesis = environment, genesis
        self._dirty = DirtyKeys(DIRTY_BOUND)
        self._tree: StateTree | None = None
        directory = environment.directory
        layout = environment.get("meta", b"format")
        if layout is None:
            if environment.get("heights", _number(0)) is not None:
                raise damaged(directory, "there are blocks but no format")
            environment.write(self._create)
        elif layout != FORMAT:
            detail = f"format {layout[:32].decode(errors='replace')!r}, this version reads {FORMAT.decode()!r}"
            raise damaged(directory, detail)
        chain, found = chain_id(genesis), environment.get("meta", b"chain") or b""
        if found != chain:
            detail = f"{directory} holds chain {found.hex()[:16]}…, the genesis is of {chain.hex()[:16]}…"
            raise StoreError(f"{detail}; give the genesis of that network or another data directory")
        try:
            self._head = _decode_head(environment.get("meta", b"head") or b"")
            with environment.reading() as txn:
                for height, row in txn.cursor(environment.db["dirty"]).iternext():
                    self._dirty.add(_decode_keys(row), int.from_bytes(height, "big"))
        except InvalidInput as error:
            raise damaged(directory, str(error)) from error
        self._past = self._load_past()
        if self.block_hash(self._head.height) != self._head.block_hash:
            raise damaged(directory, f"the head at height {self._head.height} is not in the index of heights")

    def _load_past(self) -> Past:
        with self._env.reading() as txn, txn.cursor(self._env.db["roots"]) as cursor:
            rows = list(islice(cursor.iterprev(), KEPT_ROOTS))
            count = txn.stat(self._env.db["roots"])["entries"]
        return Past(self._env, [(int.from_bytes(height, "big"), root) for height, root in reversed(rows)], count)

    def _create(self, txn: "Txn") -> None:
        execution = execute_genesis(self._genesis)
        head = genesis_head(self._genesis, execution.state_digest)
        db = self._env.db
        entries = [(key, value) for key, value in execution.changes if value is not None]
        txn.cursor(db["state"]).putmulti(entries)
        roots = self._fold_keys(txn, [key for key, _ in entries], None)
        txn.put(_number(0), StateTree(_BUCKET_BITS).root_with(roots), db=db["roots"])
        txn.put(_number(0), head.block_hash + head.state_digest, db=db["heights"])
        txn.put(head.block_hash, _number(0), db=db["block_heights"])
        for name, value in ((b"format", FORMAT), (b"chain", chain_id(self._genesis)), (b"head", encode(head))):
            txn.put(name, value, db=db["meta"])

    def close(self) -> None:
        """Release all files; further calls are errors of ours."""
        self._env.close()

    # ------------------------------------------------------------ blocks

    @property
    def genesis(self) -> Genesis:
        """The genesis that the store was made for."""
        return self._genesis

    def head(self) -> Head:
        """Return the newest committed microblock; the genesis block at first."""
        return self._head

    def commit(self, update: BlockUpdate) -> None:
        """Write one microblock durably; see `Store.commit`."""
        height = update.head.height
        assert height == self._head.height + 1, f"height {height} does not follow {self._head.height}"
        fresh = self._dirty.fresh(key for key, _ in update.changes)
        root = b""
        if update.keeps_root:
            slices, tree = self._dirty.all_slices(), self._loaded_tree()
            roots, root = self._env.write(lambda txn: self._commit_with_root(txn, update, fresh, slices, tree))
            fresh = []
        else:
            slices = self._dirty.due(len(fresh))
            roots = self._env.write(lambda txn: self._commit_lazily(txn, update, fresh, slices))
        # Only now is it on disk: had the transaction failed, tree and notes would still be those of the former head.
        self._head = update.head
        self._folded(slices, roots)
        if root:
            self._past.turned(height, root)
        self._dirty.add(fresh, height)

    def _commit_with_root(
        self, txn: "Txn", update: BlockUpdate, fresh: list[bytes], slices: list[int], tree: StateTree
    ) -> tuple[list[tuple[int, bytes]], bytes]:
        self._commit_block(txn, update, fresh)
        roots = self._fold(txn, slices, fresh)
        root = tree.root_with(roots)
        txn.put(_number(update.head.height), root, append=True, db=self._env.db["roots"])
        self._past.turn(txn)
        return roots, root

    def _commit_lazily(
        self, txn: "Txn", update: BlockUpdate, fresh: list[bytes], slices: list[int]
    ) -> list[tuple[int, bytes]]:
        self._commit_block(txn, update, fresh)
        roots = self._fold(txn, slices)
        if fresh:
            height = _number(update.head.height)
            txn.put(height, encode(tuple(fresh)), append=True, db=self._env.db["dirty"])
        return roots

    def _commit_block(self, txn: "Txn", update: BlockUpdate, fresh: list[bytes]) -> None:
        head, db = update.head, self._env.db
        height = _number(head.height)
        for digest in update.batches:
            self._commit_batch(txn, digest, height)
        # A key that is not fresh was noted when it became dirty, or before.
        self._past.note_values(txn, fresh)
        txn.cursor(db["state"]).putmulti([(key, value) for key, value in update.changes if value is not None])
        for key, value in update.changes:
            if value is None:
                txn.delete(key, db=db["state"])
        self._put_receipts(txn, update.receipts)
        txn.put(height, head.block_hash + head.state_digest, append=True, db=db["heights"])
        txn.put(height, update.microblock, append=True, db=db["blocks"])
        txn.put(height, update.certificate, append=True, db=db["certificates"])
        if update.closing:
            txn.put(height, update.closing, append=True, db=db["closings"])
        txn.put(head.block_hash, height, db=db["block_heights"])
        txn.put(b"head", encode(head), db=db["meta"])
        if update.weight:
            txn.put(b"weight", update.weight, db=db["meta"])

    def _commit_batch(self, txn: "Txn", digest: bytes, height: bytes) -> None:
        place = txn.get(digest, None, self._env.db["batch_places"])
        if place is None:
            detail = f"block {int.from_bytes(height, 'big')} names batch {digest.hex()}, which is not stored"
            raise StoreError(f"{detail}; fetch it first")
        if place[:1] == _PENDING:
            txn.delete(place[1:], db=self._env.db["pending"])
            txn.put(digest, _COMMITTED + height, db=self._env.db["batch_places"])

    def _put_receipts(self, txn: "Txn", receipts: Iterable[tuple[bytes, Receipt]]) -> None:
        database = self._env.db["receipts"]
        kept: dict[bytes, Receipt] = {}
        for identifier, receipt in receipts:
            known = kept.get(identifier)
            if known is None and receipt.reason:
                raw = txn.get(identifier, None, database)
                known = None if raw is None else _decode_receipt(raw)
            if keeps_receipt(known, receipt):
                kept[identifier] = receipt
        # Sorted, so that neighbours share a page while it is at hand.
        txn.cursor(database).putmulti([(identifier, encode(kept[identifier])) for identifier in sorted(kept)])

    def block_hash(self, height: int) -> bytes | None:
        """Return the hash of the committed microblock at a height."""
        row = self._env.get("heights", _number(height)) if height >= 0 else None
        return None if row is None else row[:DIGEST_BYTES]

    def state_digest(self, height: int) -> bytes | None:
        """Return the running state digest after the committed microblock at a height."""
        row = self._env.get("heights", _number(height)) if height >= 0 else None
        return None if row is None else row[DIGEST_BYTES:]

    def microblock(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed signed microblock."""
        height = self._env.get("block_heights", block_hash)
        return None if height is None else self._env.get("blocks", height)

    def certificate(self, block_hash: bytes) -> bytes | None:
        """Return the encoding of a committed microblock's certificate."""
        height = self._env.get("block_heights", block_hash)
        return None if height is None else self._env.get("certificates", height)

    def closing(self, block_hash: bytes) -> bytes | None:
        """Return the `BlockUpdate.closing` of a committed microblock that has one."""
        height = self._env.get("block_heights", block_hash)
        return None if height is None else self._env.get("closings", height)

    def weight(self) -> bytes | None:
        """Return the newest `BlockUpdate.weight`."""
        return self._env.get("meta", b"weight")

    def receipt(self, transaction_id: bytes) -> Receipt | None:
        """Return what became of a transaction, if it stood in a committed microblock."""
        raw = self._env.get("receipts", transaction_id)
        return None if raw is None else _decode_receipt(raw)

    # ------------------------------------------------------------ batches

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep batches (digest, encoding) durably in one transaction; known ones stay as they are."""

        def work(txn: "Txn") -> None:
            cursor = txn.cursor(self._env.db["pending"])
            order = int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 0
            for digest, raw in batches:
                if txn.put(digest, _PENDING + _number(order), overwrite=False, db=self._env.db["batch_places"]):
                    txn.put(_number(order), digest, append=True, db=self._env.db["pending"])
                    txn.put(digest, raw, db=self._env.db["batches"])
                    order += 1

        self._env.write(work)

    def batch(self, digest: bytes) -> bytes | None:
        """Return the encoding of a batch."""
        return self._env.get("batches", digest)

    def batch_height(self, digest: bytes) -> int | None:
        """Return the height of the microblock that committed a batch."""
        place = self._env.get("batch_places", digest)
        return int.from_bytes(place[1:], "big") if place is not None and place[:1] == _COMMITTED else None

    def pending_batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield digest and encoding of the batches that no committed microblock names, in order of arrival."""
        position = _number(0)
        # Each step looks afresh: batches may be committed or dropped while the caller works on one.
        while True:
            with self._env.reading() as txn, txn.cursor(self._env.db["pending"]) as cursor:
                if not cursor.set_range(position):
                    return
                order, digest = cursor.item()
            raw = self.batch(digest)
            assert raw is not None, f"pending batch {digest.hex()} has no content"
            yield digest, raw
            position = _number(int.from_bytes(order, "big") + 1)

    def drop_batches(self, digests: Iterable[bytes]) -> None:
        """Forget pending batches; committed ones stay."""
        dropped = tuple(digests)

        def work(txn: "Txn") -> None:
            for digest in dropped:
                place = txn.get(digest, None, self._env.db["batch_places"])
                if place is not None and place[:1] == _PENDING:
                    txn.delete(place[1:], db=self._env.db["pending"])
                    txn.delete(digest, db=self._env.db["batch_places"])
                    txn.delete(digest, db=self._env.db["batches"])

        self._env.write(work)

    # ------------------------------------------------------------ state

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value of a state key."""
        return self._env.get("state", key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield entries of the state in order; see `StateReader.scan_state`."""
        position = max(prefix, start)
        while limit > 0:
            with self._env.reading() as txn, txn.cursor() as cursor:
                found = cursor.set_range(position) if position else cursor.first()
                chunk = list(islice(cursor.iternext(), min(limit, _SCAN_CHUNK))) if found else []
            for entry in chunk:
                if not entry[0].startswith(prefix):
                    return
                yield entry
            if len(chunk) < min(limit, _SCAN_CHUNK):
                return
            limit -= len(chunk)
            position = chunk[-1][0] + b"\0"

    def _fold(self, txn: "Txn", slices: list[int], fresh: Sequence[bytes] = ()) -> list[tuple[int, bytes]]:
        """Bring the leaves of slices and of fresh keys up to date, and drop the notes that no other slice needs."""
        roots = self._fold_keys(txn, [*self._dirty.keys_of(slices), *fresh], self._past.running)
        if not slices:
            return roots
        oldest = self._dirty.oldest_without(slices)
        with txn.cursor(self._env.db["dirty"]) as cursor:
            while cursor.first() and (oldest is None or int.from_bytes(cursor.key(), "big") < oldest):
                cursor.delete()
        return roots

    def _fold_keys(self, txn: "Txn", keys: Iterable[bytes], journal: "Database | None") -> list[tuple[int, bytes]]:
        state, leaves = self._env.db["state"], Leaves(txn, self._env.db, journal)
        return fold_changes(keys, lambda key: txn.get(key, None, state), _BUCKET_BITS, leaves)

    def _folded(self, slices: list[int], roots: Iterable[tuple[int, bytes]]) -> None:
        self._dirty.folded(slices)
        if self._tree is not None:
            self._tree.set_buckets(roots)

    def _current_tree(self) -> StateTree:
        slices = self._dirty.all_slices()
        if slices:
            self._folded(slices, self._env.write(lambda txn: self._fold(txn, slices)))
        return self._loaded_tree()

    def _loaded_tree(self) -> StateTree:
        """Return the tree over all that is folded; dirty keys are not in it."""
        if self._tree is None:
            tree = StateTree(_BUCKET_BITS)
            with self._env.reading() as txn:
                rows = txn.cursor(self._env.db["buckets"]).iternext()
                tree.set_buckets((int.from_bytes(bucket, "big"), root) for bucket, root in rows)
            self._tree = tree
        return self._tree

    def state_root(self) -> bytes:
        """Return the root of the authenticated state at the head. Raises `StoreError`: folded leaves are written."""
        return self._current_tree().root()

    def root_at(self, height: int) -> bytes | None:
        """Return the root after a microblock that was committed with `keeps_root`; that of the genesis is always there."""
        return self._env.get("roots", _number(height)) if height >= 0 else None

    def state_proof(self, key: bytes) -> StateProof:
        """Return the proof of a state key's value, or of its absence, under `state_root`."""
        tree = self._current_tree()
        with self._env.reading() as txn:
            return tree.prove(position_of(key), Leaves(txn, self._env.db, None).read_bucket)

    def snapshot_at(self, root: bytes) -> LmdbSnapshot:
        """Return the state under one of the last two kept roots. Raises `SnapshotGone`."""
        return self._past.snapshot(root, self._loaded_tree())
