# SPDX-License-Identifier: GPL-3.0-or-later
"""What every store does, shown on both twins."""

import msgspec
import pytest

from ledger import testing
from ledger.blocks import microblock_hash
from ledger.codec import encode
from ledger.errors import StoreError
from ledger.genesis import Genesis, genesis_block
from ledger.memory_store import MemoryStore
from ledger.state_tree import verify_state_proof
from ledger.store import BlockUpdate, Head, Store, keeps_receipt
from ledger.transactions import transaction_id
from ledger.transition import Receipt, execute_genesis

PAYER, NOBODY = testing.key(5), testing.key(99)


def bare_update(store: Store, **fields: object) -> BlockUpdate:
    """Return an update of the next height that changes only what is given."""
    head = store.head()
    following = msgspec.structs.replace(head, height=head.height + 1, block_hash=bytes([head.height + 1]) * 32)
    return msgspec.structs.replace(BlockUpdate(following, b"block", b"certificate", (), (), ()), **fields)


def test_new_store_holds_the_genesis(store: Store, genesis: Genesis) -> None:
    digest = execute_genesis(genesis).state_digest
    expected = microblock_hash(genesis_block(genesis, digest).header)
    assert store.genesis == genesis
    assert store.head() == Head(0, expected, 0, genesis.timestamp_ms, digest, 0, 0)
    assert (store.block_hash(0), store.state_digest(0)) == (expected, digest)
    assert (store.microblock(expected), store.certificate(expected)) == (None, None)
    assert list(store.scan_state(b"", b"", 1000)) == list(execute_genesis(genesis).changes)


def test_committed_block_is_found_by_height_and_hash(store: Store, chain: bytes) -> None:
    raw = testing.transfer(chain, PAYER, NOBODY.address, 5)
    store.put_batches([testing.batch(chain, [raw])])
    update = testing.next_update(store, [[raw]])
    store.commit(update)
    head = store.head()
    assert head == update.head
    assert (head.height, head.transaction_count) == (1, 1)
    assert store.block_hash(1) == head.block_hash
    assert store.state_digest(1) == head.state_digest != store.state_digest(0)
    assert store.microblock(head.block_hash) == update.microblock
    assert store.certificate(head.block_hash) == update.certificate
    assert store.receipt(transaction_id(raw)) == Receipt(1, 0, "")
    for key, value in update.changes:
        assert store.get_state(key) == value


@pytest.mark.parametrize("height", [-1, 1, 2**63 - 1])
def test_heights_without_a_block_are_empty(store: Store, height: int) -> None:
    assert store.block_hash(height) is None
    assert store.state_digest(height) is None


@pytest.mark.parametrize("name", [bytes(32), b"", b"x" * 600])
def test_unknown_names_have_nothing(store: Store, name: bytes) -> None:
    assert store.microblock(name) is None
    assert store.certificate(name) is None
    assert store.receipt(name) is None
    assert store.batch(name) is None
    assert store.batch_height(name) is None


def test_a_block_that_does_not_follow_the_head_is_our_own_fault(store: Store) -> None:
    for height in (0, 2):
        update = bare_update(store, head=msgspec.structs.replace(store.head(), height=height))
        with pytest.raises(AssertionError, match=f"height {height} does not follow 0"):
            store.commit(update)


def test_a_block_with_a_batch_that_is_not_stored_changes_nothing(store: Store, chain: bytes) -> None:
    known = testing.batch(chain, [testing.transfer(chain, PAYER, NOBODY.address)])
    store.put_batches([known])
    before, root = store.head(), store.state_root()
    update = bare_update(store, batches=(known[0], bytes(32)), changes=((b"axx", b"value"),))
    with pytest.raises(StoreError, match="not stored"):
        store.commit(update)
    assert (store.head(), store.state_root(), store.get_state(b"axx")) == (before, root, None)
    assert list(store.pending_batches()) == [known]


# ---------------------------------------------------------------- what a block may bring along


def test_a_new_store_has_the_genesis_root_and_nothing_else_that_blocks_bring(store: Store) -> None:
    assert store.root_at(0) == store.state_root()
    assert [store.root_at(height) for height in (-1, 1, 2**63 - 1)] == [None] * 3
    assert (store.weight(), store.closing(store.head().block_hash)) == (None, None)


def test_a_root_is_kept_for_the_blocks_that_ask_for_it_and_stays_what_it_was(store: Store) -> None:
    roots: dict[int, bytes | None] = {0: store.state_root()}
    for height in range(1, 9):
        changes = ((b"x%d" % height, b"1"), (b"xsame", b"%d" % height), (b"x%d" % (height - 2), None))
        store.commit(bare_update(store, changes=tuple(sorted(changes)), keeps_root=height % 3 != 1))
        roots[height] = store.state_root() if height % 3 != 1 else None
    assert {height: store.root_at(height) for height in range(9)} == roots
    assert len({root for root in roots.values() if root}) == 6


def test_a_kept_root_is_that_of_the_block_even_if_nobody_asked_for_roots_before(store: Store, genesis: Genesis) -> None:
    twin = MemoryStore(genesis)
    for height in range(1, 5):
        changes = ((b"x%d" % height, b"1"),)
        store.commit(bare_update(store, changes=changes, keeps_root=height == 4))
        twin.commit(bare_update(twin, changes=changes))
    assert store.root_at(4) == twin.state_root()
    assert twin.root_at(4) is None
    store.commit(bare_update(store, keeps_root=True))
    assert store.root_at(5) == store.root_at(4)


def test_closing_is_found_by_the_block_that_brought_it(store: Store) -> None:
    store.commit(bare_update(store, closing=b"proof"))
    store.commit(bare_update(store))
    assert [store.closing(bytes([height]) * 32) for height in (1, 2, 3)] == [b"proof", None, None]
    assert store.closing(b"") is None


def test_weight_is_the_newest_that_a_block_brought(store: Store) -> None:
    for brought, known in ((b"", None), (b"one", b"one"), (b"", b"one"), (b"two", b"two")):
        store.commit(bare_update(store, weight=brought))
        assert store.weight() == known


def test_a_block_that_cannot_be_committed_brings_nothing(store: Store, genesis: Genesis) -> None:
    twin = MemoryStore(genesis)
    for each in (store, twin):
        each.commit(bare_update(each, changes=((b"xa", b"1"),), weight=b"one"))
    refused = bare_update(
        store,
        batches=(bytes(32),),
        changes=((b"xa", None), (b"xb", b"2")),
        closing=b"proof",
        weight=b"two",
        keeps_root=True,
    )
    with pytest.raises(StoreError, match="not stored"):
        store.commit(refused)
    assert (store.weight(), store.closing(refused.head.block_hash), store.root_at(2)) == (b"one", None, None)
    assert store.state_root() == twin.state_root()
    for each in (store, twin):
        each.commit(bare_update(each, changes=((b"xc", b"3"),), keeps_root=True))
    assert store.root_at(2) == twin.root_at(2) == store.state_root()


# ---------------------------------------------------------------- receipts


@pytest.mark.parametrize(
    ("known", "new", "kept"),
    [
        (None, "", True),
        (None, "expired", True),
        ("", "nonce_used", False),
        ("nonce_gap", "", True),
        ("nonce_gap", "expired", True),
        ("nonce_gap", "false_evidence", True),
        ("false_evidence", "nonce_used", False),
        ("already_punished", "false_evidence", True),
    ],
)
def test_what_took_effect_or_cost_its_sender_is_not_overwritten_by_a_rejection(
    store: Store, known: str | None, new: str, *, kept: bool
) -> None:
    first = None if known is None else Receipt(1, 0, known)
    second = Receipt(2, 3, new)
    assert keeps_receipt(first, second) is kept
    store.commit(bare_update(store, receipts=() if first is None else ((b"i" * 32, first),)))
    store.commit(bare_update(store, receipts=((b"i" * 32, second),)))
    assert store.receipt(b"i" * 32) == (second if kept else first)


def test_the_rule_holds_within_one_block(store: Store) -> None:
    rows = (Receipt(1, 0, "nonce_gap"), Receipt(1, 1, ""), Receipt(1, 2, "nonce_used"))
    store.commit(bare_update(store, receipts=tuple((b"i" * 32, row) for row in rows)))
    assert store.receipt(b"i" * 32) == rows[1]


# ---------------------------------------------------------------- batches

BATCHES = [(bytes([number]) * 32, bytes([number]) * (number * 10_000)) for number in (9, 3, 7, 1, 5)]


def test_batches_are_pending_in_order_of_arrival_until_a_block_names_them(store: Store) -> None:
    store.put_batches(BATCHES[:3])
    store.put_batches(BATCHES)
    assert list(store.pending_batches()) == BATCHES
    store.commit(bare_update(store, batches=(BATCHES[1][0], BATCHES[4][0])))
    assert list(store.pending_batches()) == [BATCHES[0], BATCHES[2], BATCHES[3]]
    assert [store.batch_height(digest) for digest, _ in BATCHES] == [None, 1, None, None, 1]
    assert [store.batch(digest) for digest, _ in BATCHES] == [raw for _, raw in BATCHES]


def test_known_batches_stay_as_they_are(store: Store) -> None:
    digest = BATCHES[0][0]
    store.put_batches([BATCHES[0], (digest, b"other")])
    store.put_batches([(digest, b"other")])
    store.commit(bare_update(store, batches=(digest,)))
    store.put_batches([(digest, b"other")])
    assert store.batch(digest) == BATCHES[0][1]
    assert store.batch_height(digest) == 1
    assert list(store.pending_batches()) == []


def test_a_batch_named_twice_keeps_its_first_height(store: Store) -> None:
    store.put_batches(BATCHES[:1])
    for _ in range(2):
        store.commit(bare_update(store, batches=(BATCHES[0][0],)))
    assert store.batch_height(BATCHES[0][0]) == 1


def test_only_pending_batches_are_dropped_and_they_may_come_again(store: Store) -> None:
    store.put_batches(BATCHES)
    store.commit(bare_update(store, batches=(BATCHES[0][0],)))
    store.drop_batches(digest for digest, _ in BATCHES[:3])
    store.drop_batches([bytes(32)])
    assert list(store.pending_batches()) == BATCHES[3:]
    assert store.batch(BATCHES[0][0]) == BATCHES[0][1]
    assert store.batch(BATCHES[1][0]) is None
    store.put_batches(BATCHES[1:2])
    assert list(store.pending_batches()) == [*BATCHES[3:], BATCHES[1]]


def test_pending_batches_may_be_committed_and_dropped_while_they_are_listed(store: Store) -> None:
    store.put_batches(BATCHES)
    listing = store.pending_batches()
    assert next(listing) == BATCHES[0]
    store.drop_batches([BATCHES[1][0]])
    store.commit(bare_update(store, batches=(BATCHES[2][0],)))
    assert next(listing) == BATCHES[3]


# ---------------------------------------------------------------- state


def test_scan_is_ordered_bounded_and_stays_within_the_prefix(store: Store) -> None:
    changes = tuple((b"x" + number.to_bytes(2, "big"), b"%d" % number) for number in range(700))
    store.commit(bare_update(store, changes=(*changes, (b"y", b"after"))))
    assert list(store.scan_state(b"x", b"", 1000)) == list(changes)
    assert list(store.scan_state(b"x", b"", 300)) == list(changes[:300])
    assert list(store.scan_state(b"x", changes[255][0], 256)) == list(changes[255:511])
    assert list(store.scan_state(b"x", b"x\x00\x05\x00", 2)) == list(changes[6:8])
    assert list(store.scan_state(b"x", b"y", 10)) == []
    assert list(store.scan_state(b"x", b"", 0)) == []
    assert list(store.scan_state(b"z", b"", 10)) == []
    assert list(store.scan_state(b"y", b"", 10)) == [(b"y", b"after")]


def test_a_scan_survives_commits_between_its_steps(store: Store) -> None:
    changes = tuple((b"x" + number.to_bytes(2, "big"), b"v") for number in range(600))
    store.commit(bare_update(store, changes=changes))
    scan = store.scan_state(b"x", b"", 1000)
    first = next(scan)
    store.commit(bare_update(store, changes=((changes[1][0], b"v"), (changes[599][0], None))))
    assert [first, *scan] == list(changes[:599])


def test_removed_entries_are_gone_from_state_and_root(store: Store) -> None:
    root = store.state_root()
    store.commit(bare_update(store, changes=((b"xa", b"1"), (b"xb", b"2"))))
    changed = store.state_root()
    assert changed != root
    store.commit(bare_update(store, changes=((b"xa", None), (b"xb", None), (b"xc", None))))
    assert store.get_state(b"xa") is None
    assert store.state_root() == root


def test_proofs_of_the_store_verify_under_its_root(store: Store, chain: bytes) -> None:
    testing.commit(store, [testing.transfer(chain, PAYER, NOBODY.address, 5)])
    for key in (b"a" + PAYER.address, b"a" + NOBODY.address, b"s", b"absent", b"a" + testing.key(1234).address):
        value, proof = store.get_state(key), store.state_proof(key)
        assert verify_state_proof(store.state_root(), key, value, proof)
        assert not verify_state_proof(store.state_root(), key, b"other", proof)
        assert len(encode(proof)) < 2048
