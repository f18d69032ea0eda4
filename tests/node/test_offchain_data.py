# SPDX-License-Identifier: GPL-3.0-or-later
"""Data of batches on one node: durable, fetched from whoever has it and believed to nobody, kept as long as it may be needed."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from contracts.operator import Batch as OffchainBatch
from ledger.contract_bodies import CommitBatch
from ledger.crypto.keys import PrivateKey, address_of
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import MAX_DATA_BYTES, data_digest
from node.offchain import availability, keeping
from node.offchain.data_store import DataStore, Kept, Use
from node.wire import REQUEST_BATCH_DATA
from p2p.errors import NotAvailable
from records.blob_store import StorageFull
from records.placement import holders
from tests.node.data_kit import CHAIN, EXPIRY, OPERATOR, OTHER_OPERATOR, RETENTION, WINDOW, Node
from tests.node.kit import Answer, not_available, until


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.availability.run)
        yield
        nursery.cancel_scope.cancel()


def serve(node: Node, peer_id: str, answer: Callable[[bytes], Answer], address: bytes = b"") -> None:
    """Connect a peer that answers requests for data."""
    node.peers[address or peer_id.encode().ljust(20, b"\0")] = peer_id
    node.network.script(peer_id, REQUEST_BATCH_DATA, answer)


def serve_batches(node: Node, peer_id: str, *batches: OffchainBatch, address: bytes = b"") -> None:
    data = {batch.commitment.data_digest: batch.data for batch in batches}
    serve(node, peer_id, lambda digest: data.get(digest, not_available()), address)


def use_of(batch: OffchainBatch, operator: PrivateKey = OPERATOR) -> Use:
    return Use(batch.commitment.contract_id, batch.commitment.number, operator.public_key)


# ---------------------------------------------------------------- the store


def test_data_is_durable_bounded_and_counted(tmp_path: Path) -> None:
    file, data = tmp_path / "data.sqlite", [bytes([number]) * 100 for number in range(4)]
    digests = [data_digest(one) for one in data]
    with DataStore(file, chain_id=CHAIN, capacity_bytes=300) as store:
        for digest, one in zip(digests[:3], data, strict=False):
            store.put(digest, one)
        store.put(digests[0], data[0], Use(b"c" * 32, 7, b"o" * 32))
        with pytest.raises(StorageFull, match="offchain_data_bytes"):
            store.put(digests[3], data[3])
        assert store.total_bytes == 300
    with DataStore(file, chain_id=CHAIN, capacity_bytes=300) as store:
        assert store.total_bytes == 300
        assert store.get(digests[1]) == data[1]
        assert store.get(digests[3]) is None
        assert store.digests() == sorted(digests[:3])
        assert Kept(digests[0], None, (Use(b"c" * 32, 7, b"o" * 32),)) in store.due(0, 10)
        store.remove([*digests[:2], digests[3]])
        assert store.total_bytes == 100
        assert [kept.digest for kept in store.due(0, 10)] == digests[2:3]
        assert not store.has(digests[0])
    with pytest.raises(StoreError, match="another chain"):
        DataStore(file, chain_id=b"x" * 32, capacity_bytes=300)


def test_damaged_data_is_removed_and_not_given_out(tmp_path: Path) -> None:
    file, digest = tmp_path / "data.sqlite", data_digest(b"right")
    with DataStore(file, chain_id=CHAIN, capacity_bytes=300) as store:
        store.put(digest, b"right")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE data SET data = ?", (b"wrong",))
    connection.close()
    with DataStore(file, chain_id=CHAIN, capacity_bytes=300) as store:
        assert store.get(digest) is None
        assert store.total_bytes == 0


# ---------------------------------------------------------------- fetching


async def test_a_pending_commitment_has_its_data_fetched_kept_and_judged(node: Node) -> None:
    batch = node.open().next(3)
    serve_batches(node, "operator", batch, address=OPERATOR.address)
    serve(node, "other", lambda _: not_available())
    async with running(node):
        node.pool.add([node.commits(batch)])
        await until(lambda: node.pool.select((), 1))
    assert node.here([batch]) == [True]
    assert node.network.asked == [("operator", REQUEST_BATCH_DATA)], "who has made it is asked first"
    assert node.changes == 1
    (kept,) = node.data.due(0, 10)
    assert kept.uses == (Use(batch.commitment.contract_id, 0, OPERATOR.public_key),)


HOSTILE: dict[str, Callable[[bytes], Answer]] = {
    "other data": lambda _: b"something else",
    "nothing": lambda _: b"",
    "too much": lambda _: bytes(MAX_DATA_BYTES + 1),
}


@pytest.mark.parametrize("attack", HOSTILE)
async def test_who_sends_something_else_is_blamed_and_the_next_is_asked(node: Node, attack: str) -> None:
    batch = node.open().next()
    serve(node, "liar", HOSTILE[attack], OPERATOR.address)
    serve_batches(node, "honest", batch)
    async with running(node):
        node.pool.add([node.commits(batch)])
        await until(lambda: node.pool.select((), 1))
    assert node.network.blamed() == {"liar"}


async def test_a_silent_peer_holds_up_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "FETCH_TIMEOUT_S", 3_600.0)
    batch = node.open().next()
    serve(node, "silent", lambda _: None, OPERATOR.address)
    serve_batches(node, "honest", batch)
    async with running(node):
        node.pool.add([node.commits(batch)])
        await until(lambda: node.pool.select((), 1))


async def test_a_commitment_that_does_not_fit_its_data_blames_no_peer_and_is_not_kept(node: Node) -> None:
    batch = node.open().next()
    wrong = msgspec.structs.replace(batch.commitment, new_root=b"r" * 32)
    serve_batches(node, "honest", batch)
    async with running(node):
        node.pool.add([node.batch_of(OPERATOR, CommitBatch(wrong))])
        await until(lambda: node.readiness.verdict(wrong) is False)
        await trio.sleep(2 * availability.FIRST_PAUSE_S)
    assert node.pool.select((), 1) == ()
    assert node.here([batch]) == [False]
    assert not node.network.penalties
    assert len(node.network.asked) == 1


async def test_data_that_appears_later_is_found(node: Node) -> None:
    batch = node.open().next()
    serve(node, "late", lambda _: not_available())
    async with running(node):
        node.pool.add([node.commits(batch)])
        await until(lambda: len(node.network.asked) >= 3)
        assert node.pool.select((), 1) == ()
        serve_batches(node, "late", batch)
        await until(lambda: node.pool.select((), 1))


async def test_what_left_is_fetched_no_more(node: Node) -> None:
    batch = node.open().next()
    serve(node, "without", lambda _: not_available())
    async with running(node):
        pending = node.commits(batch)
        node.pool.add([pending])
        await until(lambda: node.network.asked)
        node.pool.remove([pending.digest])
        await until(lambda: not node.availability._running and not node.availability._attempts)
        count = len(node.network.asked)
        await trio.sleep(4 * availability.FIRST_PAUSE_S)
        assert len(node.network.asked) == count
        assert not node.availability._running


async def test_an_operator_who_withholds_delays_no_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "FETCH_TIMEOUT_S", 3_600.0)
    withheld = node.open().next().commitment
    other = node.open(OTHER_OPERATOR).next()
    serve(node, "silent", lambda digest: None if digest != other.commitment.data_digest else other.data)
    lies = [msgspec.structs.replace(withheld, data_digest=bytes([number]) * 32) for number in range(16)]
    async with running(node):
        node.pool.add([node.batch_of(OPERATOR, CommitBatch(lie)) for lie in lies])
        await until(lambda: node.network.asked)
        pending = node.commits(other, sender=OTHER_OPERATOR)
        node.pool.add([pending])
        await until(lambda: node.pool.select((), 1) == (pending.digest,))


async def test_an_operator_who_withholds_the_data_of_many_contracts_delays_no_other(node: Node) -> None:
    withheld = [node.open(number=number).next() for number in range(availability.MAX_AT_WORK)]
    other = node.open(OTHER_OPERATOR).next()
    serve(node, "silent", lambda digest: None if digest != other.commitment.data_digest else other.data)
    async with running(node):
        node.pool.add([node.commits(batch) for batch in withheld])
        await until(lambda: len(node.network.asked) == availability.MAX_OF_OPERATOR)
        pending = node.commits(other, sender=OTHER_OPERATOR)
        node.pool.add([pending])
        await until(lambda: node.pool.select((), 1) == (pending.digest,), availability.FETCH_TIMEOUT_S / 2)


async def test_without_room_nothing_is_fetched_and_the_operator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, capacity_bytes=1000)
    batch = node.open().next()
    serve_batches(node, "honest", batch)
    pending = node.commits(batch)
    async with running(node):
        node.pool.add([pending])
        await until(lambda: "offchain_data_bytes" in node.availability.trouble)
        assert not node.network.asked
        monkeypatch.setattr(availability, "SPARE_BYTES", 0)
        await until(lambda: node.pool.select((), 1))
        assert node.availability.trouble == ""


async def test_what_a_microblock_names_may_use_the_room_to_spare(tmp_path: Path) -> None:
    node = Node(tmp_path, capacity_bytes=1000)
    batch = node.open().next()
    serve_batches(node, "honest", batch)
    pending = node.commits(batch)
    async with running(node):
        node.pool.add([pending])
        await until(lambda: node.availability.trouble)
        node.readiness.named([pending.digest])
        await until(lambda: node.pool.select((), 1))


async def test_a_restart_takes_up_what_was_pending_with_its_data(node: Node) -> None:
    batch = node.open().next()
    pending = node.commits(batch)
    node.pool.add([pending])
    node.keep(batch)
    node.start()
    assert node.pool.not_ready([pending.digest]) == (pending.digest,)
    async with running(node):
        await until(lambda: node.pool.select((), 1))
    assert not node.network.asked, "the data was here"


async def test_admission_asks_what_is_here_and_nobody_else(node: Node) -> None:
    batches = node.open()
    here, missing = batches.next(), batches.next()
    node.keep(here)
    serve_batches(node, "honest", here, missing)
    assert await node.availability.holds(OPERATOR.public_key, here.commitment)
    assert await node.availability.holds(OPERATOR.public_key, here.commitment)
    assert not await node.availability.holds(OPERATOR.public_key, missing.commitment)
    assert not await node.availability.holds(
        OPERATOR.public_key, msgspec.structs.replace(here.commitment, leaves_root=b"l" * 32)
    )
    assert not node.network.asked


async def test_a_full_disk_admits_nothing_and_ends_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = node.open().next()
    node.keep(batch)

    def refuse(*_: object) -> None:
        raise StorageFull("no room on the disk")

    monkeypatch.setattr(node.data, "put", refuse)
    assert not await node.availability.holds(OPERATOR.public_key, batch.commitment)
    async with running(node):
        node.pool.add([node.commits(batch)])
        await until(lambda: "no room" in node.availability.trouble)
        monkeypatch.undo()
        await until(lambda: node.pool.select((), 1))
    assert node.availability.trouble == ""


async def test_whoever_asks_gets_data_that_is_here(node: Node) -> None:
    batch = node.open().next()
    digest = batch.commitment.data_digest
    for payload in (b"", digest + b"x", digest[:-1]):
        with pytest.raises(InvalidInput):
            await node.availability.answer(payload)
    with pytest.raises(NotAvailable):
        await node.availability.answer(digest)
    node.keep(batch)
    assert await node.availability.answer(digest) == batch.data
    assert node.availability.has(batch.commitment)
    assert await node.availability.fetch(batch.commitment) == batch.data


async def test_fetching_what_nobody_has_says_so(node: Node) -> None:
    batch = node.open().next()
    serve(node, "without", lambda _: not_available())
    with pytest.raises(NotFound, match="1 connected"):
        await node.availability.fetch(batch.commitment)


async def test_clients_that_ask_for_what_nobody_gives_hold_up_no_work_of_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "FETCH_TIMEOUT_S", 3_600.0)
    batches = node.open()
    wanted, withheld = batches.next(), batches.next()
    serve(node, "silent", lambda digest: None if digest == withheld.commitment.data_digest else wanted.data)
    async with trio.open_nursery() as nursery:
        for _ in range(2 * availability.MAX_AT_WORK):
            nursery.start_soon(node.availability.fetch_for_client, withheld.commitment)
        await until(lambda: len(node.network.asked) >= availability.MAX_AT_WORK)
        with trio.fail_after(60):
            assert await node.availability.fetch(wanted.commitment) == wanted.data
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- keeping


def kept_by_others(node: Node, batch: OffchainBatch) -> None:
    """Choose the committee so that this node is not one of those who keep final data."""
    keeper = holders(batch.commitment.data_digest, node.committee, 1)[0]
    node.committee.sort(key=lambda address: address == keeper)
    node.start()


def kept_here(node: Node, batch: OffchainBatch) -> None:
    keeper = holders(batch.commitment.data_digest, node.committee, 1)[0]
    node.committee.sort(key=lambda address: address != keeper)
    node.start()


async def test_keepers_keep_data_until_the_retention_is_over(node: Node) -> None:
    batch = node.open().next()
    kept_here(node, batch)
    node.data.put(batch.commitment.data_digest, batch.data, use_of(batch))
    node.commit(node.commits(batch))
    node.pass_microblocks(WINDOW + RETENTION - 1)
    assert await node.keeping.sweep() == 0
    node.pass_microblocks(1)
    assert await node.keeping.sweep() == 1
    assert node.here([batch]) == [False]
    assert node.data.total_bytes == 0


async def test_others_let_go_once_a_batch_is_final_and_followed(node: Node) -> None:
    batch = node.open().next()
    kept_by_others(node, batch)
    node.data.put(batch.commitment.data_digest, batch.data, use_of(batch))
    node.commit(node.commits(batch))
    node.pass_microblocks(WINDOW - 1)
    assert await node.keeping.sweep() == 0, "anybody may still have to challenge it"
    node.pass_microblocks(1)
    node.followed = False
    assert await node.keeping.sweep() == 0
    node.followed = True
    node.pass_microblocks(1)
    assert await node.keeping.sweep() == 1


async def test_what_is_never_committed_goes_when_its_transaction_cannot_commit_any_more(node: Node) -> None:
    batches = node.open()
    never, pending = batches.next(), batches.next()
    node.keep(never)
    node.data.put(pending.commitment.data_digest, pending.data, use_of(pending))
    node.pool.add([node.commits(pending)])
    assert await node.keeping.sweep() == 0
    node.pass_microblocks(EXPIRY)
    assert await node.keeping.sweep() == 0
    node.pass_microblocks(1)
    assert await node.keeping.sweep() == 1
    assert node.here([never, pending]) == [False, True]


async def test_a_member_repairs_what_it_should_hold_and_lacks(node: Node) -> None:
    batches = node.open()
    made = [batches.next() for _ in range(4)]
    # As after being away, or a lost disk: committed, and nothing here.
    for batch in made[:3]:
        node.commit(node.commits(batch))
    node.data.put(made[1].commitment.data_digest, made[1].data)
    serve_batches(node, "other", *made[:2])
    assert await node.keeping.repair() == 1
    assert node.here(made) == [True, True, False, False]
    assert node.keeping.lost == 1
    node.committee[0] = address_of(OTHER_OPERATOR.public_key)
    node.start()
    node.data.remove([made[0].commitment.data_digest])
    node.committee[:] = node.committee[1:]
    assert await node.keeping.repair() == 0, "who is no member keeps nothing for others"


async def test_nothing_is_repaired_that_nobody_has_to_keep(node: Node) -> None:
    batch = node.open().next()
    node.commit(node.commits(batch))
    serve_batches(node, "other", batch)
    kept_by_others(node, batch)
    node.pass_microblocks(WINDOW)
    assert await node.keeping.repair() == 0
    kept_here(node, batch)
    node.pass_microblocks(RETENTION)
    assert await node.keeping.repair() == 0
    assert not node.network.asked


async def test_a_batch_that_was_committed_without_its_data_here_is_repaired_at_once(node: Node) -> None:
    batch = node.open().next()
    serve_batches(node, "other", batch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.keeping.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        node.commit(node.commits(batch))
        await until(lambda: node.here([batch]) == [True])
        nursery.cancel_scope.cancel()


async def test_while_behind_nothing_is_dropped_nor_repaired(node: Node) -> None:
    batch = node.open().next()
    node.behind = True
    node.commit(node.commits(batch))
    serve_batches(node, "other", batch)
    with trio.move_on_after(0.2):
        await node.keeping.run()
    assert not node.network.asked


async def test_what_passed_while_behind_is_repaired_as_soon_as_it_is_over(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "RETRY_S", 0.05)
    batch = node.open().next()
    serve_batches(node, "other", batch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.keeping.run)
        await trio.sleep(0.2)  # the looks of a fresh start are over
        node.behind = True
        node.commit(node.commits(batch))
        await trio.sleep(0.2)
        assert not node.network.asked
        node.behind = False
        await until(lambda: node.here([batch]) == [True])
        nursery.cancel_scope.cancel()
