# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool: bounded by whose batches they are, durable, and never without what a microblock names."""

from collections.abc import Sequence
from functools import partial

import pytest

from ledger import load, testing
from ledger.bodies import Transfer
from ledger.contract_bodies import ChallengeBatch
from ledger.errors import InvalidInput, StoreError
from ledger.load import CHALLENGE_COST, MAX_MICROBLOCK_COST
from ledger.memory_store import MemoryStore
from ledger.offchain import BrokenReceipt, RequestLeaf, RequestReceipt, SignedReceipt
from ledger.transactions import encode_batch
from node import batches
from node.batches import (
    Batch,
    BatchPool,
    accredited_source,
    check_batch,
    member_source,
    open_asked,
    open_certified_batch,
    stranger_source,
)
from tests.node.kit import CHAIN, batch_of, forged, memory_store, names, pay

SOME = [batch_of(pay(sender, nonce)) for sender in range(4) for nonce in range(5)]


@pytest.fixture
def store() -> MemoryStore:
    return memory_store()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Room for two batches of a member, and as much for all strangers; returns the room of one batch."""
    one = batches.memory_bytes(SOME[0])
    monkeypatch.setattr(batches, "MEMBERS_BYTES", 4 * 2 * one)
    monkeypatch.setattr(batches, "ACCREDITED_BYTES", 8 * one)
    monkeypatch.setattr(batches, "STRANGERS_BYTES", 4 * one)
    return one


def test_what_is_kept_is_durable_and_selected_in_order_of_arrival(store: MemoryStore) -> None:
    pool = BatchPool(store)
    assert names(pool.add(SOME[:3])) == names(SOME[:3])
    assert pool.add(SOME[:3]) == []
    assert [digest for digest, _ in store.pending_batches()] == names(SOME[:3])
    assert pool.select((), 2) == tuple(names(SOME[:2]))
    assert pool.select(names(SOME[:1]), 2) == tuple(names(SOME[1:3]))
    assert pool.missing(names(SOME[:5])) == tuple(names(SOME[3:5]))


def challenges(count: int, first: int = 0) -> list[bytes]:
    """Challenges of what does not exist: only their cost matters."""
    receipt = RequestReceipt(bytes(32), 0, 0, RequestLeaf(bytes(32), 0, 1, bytes(32), bytes(32)))
    body = ChallengeBatch(bytes(32), 0, BrokenReceipt(SignedReceipt(receipt, bytes(64)), None))
    return [testing.signed(CHAIN, testing.key(5), body, first + nonce) for nonce in range(count)]


def test_a_microblock_is_filled_up_to_its_bound_and_no_more_is_voted_for(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = BatchPool(store)
    pool.add(SOME[:4])
    monkeypatch.setattr(load, "MAX_MICROBLOCK_COST", 2)
    assert pool.select((), 10) == tuple(names(SOME[:2]))
    assert not pool.is_too_much(names(SOME[2:4]))
    assert pool.is_too_much(names(SOME[1:4]))


def test_a_challenge_fills_a_microblock_like_the_transfers_that_it_costs(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disputes = [batch_of(raw) for raw in challenges(3)]
    pool = BatchPool(store)
    pool.add([*disputes, SOME[0]])
    monkeypatch.setattr(load, "MAX_MICROBLOCK_COST", 2 * CHALLENGE_COST)
    assert pool.select((), 10) == tuple(names(disputes[:2]))
    assert pool.select(names(disputes), 10) == tuple(names(SOME[:1]))
    pool.remove(names([*disputes, SOME[0]]))
    assert not pool._loads


def test_what_is_too_much_is_so_before_all_of_it_is_here(store: MemoryStore) -> None:
    half = MAX_MICROBLOCK_COST // CHALLENGE_COST // 2 + 1
    disputes = [batch_of(*challenges(half, first=half * number)) for number in range(3)]
    pool = BatchPool(store)
    pool.add(disputes[:1])
    assert not pool.is_too_much(names(disputes))
    pool.add(disputes[1:2])
    assert pool.is_too_much(names(disputes))
    assert pool.select((), 10) == tuple(names(disputes[:1]))


def test_a_batch_that_no_microblock_may_name_is_refused_before_the_rest_of_it_is_checked() -> None:
    most = MAX_MICROBLOCK_COST // CHALLENGE_COST
    assert len(batch_of(*challenges(most)).transactions) == most
    raws = challenges(most + 1)
    # Whatever follows the one too many is looked at no more, or it would be said to be wrong.
    with pytest.raises(InvalidInput, match="cut it into smaller ones"):
        check_batch(encode_batch([*raws, forged(raws[0])]), testing.rules_of(CHAIN))


def test_a_batch_too_large_by_itself_does_not_stand_in_front_of_the_others(store: MemoryStore) -> None:
    raw = encode_batch(challenges(MAX_MICROBLOCK_COST // CHALLENGE_COST + 1))
    certified = open_certified_batch(raw, CHAIN)
    pool = BatchPool(store)
    pool.add([certified, SOME[0]])
    assert pool.select((), 10) == (SOME[0].digest,)
    assert pool.is_too_much([certified.digest])
    assert pool.missing([certified.digest]) == (), "where a quorum has voted for it, it is committed"


def test_a_committed_batch_is_neither_missing_nor_taken_again(store: MemoryStore) -> None:
    pool = BatchPool(store)
    pool.add_own(SOME[0])
    testing.commit(store, [SOME[0].transactions[0].raw])
    pool.remove([SOME[0].digest])
    assert pool.missing([SOME[0].digest]) == ()
    assert pool.add([SOME[0]]) == []
    assert not pool.add_own(SOME[0])
    assert len(pool) == 0


def test_a_flood_of_one_source_leaves_room_for_the_others(store: MemoryStore, small: int) -> None:
    pool = BatchPool(store)
    strangers = [stranger_source(f"peer {number}") for number in range(10)]
    kept = sum(len(pool.add([batch], strangers[number % 10])) for number, batch in enumerate(SOME[:12]))
    assert kept == 4
    assert not any(pool.has_room(source) for source in strangers)
    assert pool.add([SOME[12]], member_source(b"m", 4)), "members have room of their own"
    assert pool.add([SOME[13]], accredited_source(b"a"))
    assert pool.add_own(SOME[14])
    assert pool.add([SOME[15]]), "what a microblock names is always taken"


def test_a_member_cannot_take_more_than_its_share(store: MemoryStore, small: int) -> None:
    pool = BatchPool(store)
    share = member_source(b"m", 4)
    kept = [batch for batch in SOME if pool.add([batch], share)]
    assert len(kept) == share.account_bytes // small
    assert [digest for digest, _ in store.pending_batches()] == names(kept), "nothing beyond it reaches the disk"
    assert pool.missing(names(SOME)) == tuple(names([batch for batch in SOME if batch not in kept]))


def test_room_comes_back_when_batches_leave(store: MemoryStore, small: int) -> None:
    pool = BatchPool(store)
    source = stranger_source("peer")
    for batch in SOME:
        assert pool.add([batch], source)
        assert pool.add([batch], source) == []
        pool.remove([batch.digest])
    assert not pool._charged
    assert not pool._sources


def test_batches_of_microblocks_that_came_to_nothing_give_way_to_newer_ones(
    store: MemoryStore, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = BatchPool(store)
    monkeypatch.setattr(batches, "NAMED_BYTES", 3 * small)
    pool.add(SOME[:3])
    assert pool.drop_unneeded(()) == [], "there is room"
    pool.add(SOME[3:5])
    needed = names(SOME[:1])
    assert pool.drop_unneeded(needed) == SOME[1:3]
    left = names([SOME[0], *SOME[3:5]])
    assert [digest for digest, _ in store.pending_batches()] == left, "nor do they fill the disk"
    assert pool.missing(names(SOME[:5])) == tuple(names(SOME[1:3])), "they can be fetched again"
    assert pool.drop_unneeded(()) == []
    pool.remove(left)
    assert pool._named_bytes == 0


def test_what_somebody_has_sent_is_kept_although_a_microblock_has_named_it_first(
    store: MemoryStore, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = BatchPool(store)
    monkeypatch.setattr(batches, "NAMED_BYTES", 0)
    stranger = stranger_source("peer")
    pool.add(SOME[:4])
    assert not any(map(pool.keeps, names(SOME[:5])))
    assert pool.add(SOME[:2], stranger) == [], "they are here already"
    assert not pool.add_own(SOME[2])
    # A stranger has room for one.
    assert [pool.keeps(digest) for digest in names(SOME[:4])] == [True, False, True, False]
    assert pool.drop_unneeded(()) == [SOME[1], SOME[3]]
    assert not pool.has_room(stranger)
    pool.remove(names(SOME[:4]))
    assert (pool._named_bytes, pool._own_bytes, pool._charged) == (0, 0, {})


def test_own_submissions_stop_where_others_would_not_take_them(store: MemoryStore, small: int) -> None:
    pool = BatchPool(store)
    pool.add_own(SOME[0])
    pool.add_own(SOME[1])
    full = pool.is_full
    pool.remove(names(SOME[:2]))
    assert (full, pool.is_full) == (True, False)
    assert pool._own_bytes == 0


class _FullStore(MemoryStore):
    """Refuses every write of batches."""

    def put_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        raise StoreError("no space left")


def test_a_full_disk_keeps_nothing_and_charges_nobody() -> None:
    pool = BatchPool(_FullStore(memory_store().genesis))
    source = member_source(b"m", 4)
    with pytest.raises(StoreError):
        pool.add(SOME, source)
    with pytest.raises(StoreError):
        pool.add_own(SOME[0])
    assert len(pool) == 0
    assert not pool._charged
    assert not pool.is_full


def test_only_batches_that_nobody_can_need_are_dropped(store: MemoryStore) -> None:
    def expiring(nonce: int, height: int) -> bytes:
        return testing.signed(CHAIN, testing.key(0), Transfer(testing.key(1).address, 1), nonce, expiry_height=height)

    gone, named, mixed = batch_of(expiring(0, 5)), batch_of(expiring(1, 5)), batch_of(expiring(2, 5), expiring(3, 6))
    pool = BatchPool(store)
    pool.add([gone, named], stranger_source("peer"))
    pool.add_own(mixed)
    assert pool.drop_expired(4, ()) == []
    assert pool.drop_expired(5, {named.digest}) == [gone]
    assert [digest for digest, _ in store.pending_batches()] == names([named, mixed])
    assert pool.drop_expired(6, ()) == [named, mixed]
    assert len(pool) == 0
    assert not pool._charged
    assert pool._own_bytes == 0


def test_a_restart_finds_what_waited_within_bounds(store: MemoryStore, small: int) -> None:
    store.put_batches([(batch.digest, batch.raw) for batch in SOME])
    pool = BatchPool(store)
    restored = pool.restore(CHAIN)
    assert restored == SOME[: len(restored)]
    assert len(restored) == 8
    assert pool.select((), 100) == tuple(names(restored))


def test_an_answer_is_taken_only_as_far_as_it_was_asked_for() -> None:
    wanted, other = batch_of(pay(0, 0)), batch_of(pay(1, 0))
    outcomes = open_asked(
        [other.raw, wanted.raw, b"rubbish"], frozenset([wanted.digest]), frozenset(), testing.rules_of(CHAIN)
    )
    assert [isinstance(outcome, Batch) for outcome in outcomes] == [False, True, False]
    assert "not asked for" in str(outcomes[0])


def test_only_a_certificate_stands_in_for_signatures() -> None:
    raw = encode_batch([forged(pay(0, 0))])
    opened = open_certified_batch(raw, CHAIN)
    asked = frozenset([opened.digest])
    (unchecked,) = open_asked([raw], asked, asked, testing.rules_of(CHAIN))
    assert unchecked == opened
    (refused,) = open_asked([raw], asked, frozenset(), testing.rules_of(CHAIN))
    assert "bad_signature" in str(refused)


def test_rubbish_is_no_batch_whether_or_not_signatures_count() -> None:
    good = batch_of(pay(0, 0))
    for opens in (partial(check_batch, chain=testing.rules_of(CHAIN)), partial(open_certified_batch, chain_id=CHAIN)):
        assert opens(good.raw) == good
        for raw in (b"", encode_batch([]), encode_batch([b"x"])):
            with pytest.raises(InvalidInput):
                opens(raw)
