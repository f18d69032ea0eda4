# SPDX-License-Identifier: GPL-3.0-or-later
"""One operator's share of the room for batches' data: a flood leaves room for others, whoever and how many it comes from."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import structlog.testing
import trio

from contracts.machines.access_log import AccessLogParameters
from contracts.operator import Batch as OffchainBatch
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch, OpenContract
from ledger.crypto.keys import PrivateKey
from ledger.offchain import data_digest
from node.offchain import availability
from node.offchain.data_store import DataStore, Use
from node.offchain.shares import NAMED_TIMES, Shares
from node.wire import REQUEST_BATCH_DATA
from records.placement import holders
from tests.node.data_kit import CHAIN, OPERATOR, OTHER_OPERATOR, RETENTION, STRANGER, WINDOW, Batches, Node, identifier
from tests.node.kit import not_available, until

MINE, YOURS = OPERATOR.public_key, OTHER_OPERATOR.public_key
SIZE = 100
"""Of data in the store's own tests."""
TOLD = "an operator has used up its share of the room for off-chain data; its commitments get no vote of this node"


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.availability.run)
        yield
        nursery.cancel_scope.cancel()


def serve(node: Node, *batches: OffchainBatch) -> None:
    data = {batch.commitment.data_digest: batch.data for batch in batches}
    node.peers[b"peer".ljust(20, b"\0")] = "peer"
    node.network.script("peer", REQUEST_BATCH_DATA, lambda digest: data.get(digest, not_available()))


def flooded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Node, list[OffchainBatch], OffchainBatch]:
    """Return a node with room for about ten batches, twelve of one operator from two contracts, and one of another operator."""
    monkeypatch.setattr(availability, "SPARE_BYTES", 0)
    probe = Node(directory)
    size = probe.open().next().commitment.data_bytes
    probe.data.close()
    (directory / "data.sqlite").unlink()
    node = Node(directory, capacity_bytes=10 * size + size // 2)
    first, second = node.open(), node.open(number=1)
    flood = [batches.next() for _ in range(6) for batches in (first, second)]
    return node, flood, node.open(OTHER_OPERATOR).next()


# ---------------------------------------------------------------- how much is whose


def put(store: DataStore, number: int, *operators: bytes) -> bytes:
    data = number.to_bytes(SIZE, "big")
    digest = data_digest(data)
    for operator in operators:
        store.put(digest, data, Use(operator, number, operator))
    return digest


def test_what_is_whose_survives_a_restart_and_ends_with_the_data(tmp_path: Path) -> None:
    file = tmp_path / "data.sqlite"
    with DataStore(file, chain_id=CHAIN, capacity_bytes=1_000) as store:
        first, shared = put(store, 0, MINE), put(store, 1, MINE, YOURS)
        put(store, 2, YOURS)
        put(store, 2, YOURS)
        store.put(first, (0).to_bytes(SIZE, "big"), Use(b"c" * 32, 8, MINE))
        store.put(data_digest(b"nobody's"), b"nobody's")
        assert (store.bytes_of(MINE), store.bytes_of(YOURS)) == (2 * SIZE, 2 * SIZE)
    with DataStore(file, chain_id=CHAIN, capacity_bytes=1_000) as store:
        assert (store.bytes_of(MINE), store.bytes_of(YOURS)) == (2 * SIZE, 2 * SIZE)
        store.remove([first, b"unknown"])
        assert (store.bytes_of(MINE), store.bytes_of(YOURS)) == (SIZE, 2 * SIZE)
        store.end_uses(shared, [Use(MINE, 1, MINE)])
        assert store.has(shared)
        assert (store.bytes_of(MINE), store.bytes_of(YOURS)) == (0, 2 * SIZE)
        store.remove([shared])
    with DataStore(file, chain_id=CHAIN, capacity_bytes=1_000) as store:
        assert (store.bytes_of(MINE), store.bytes_of(YOURS)) == (0, SIZE)
        assert store.total_bytes == SIZE + len(b"nobody's")


def test_what_is_refused_counts_to_nobody(tmp_path: Path) -> None:
    with DataStore(tmp_path / "data.sqlite", chain_id=CHAIN, capacity_bytes=SIZE) as store:
        put(store, 0, YOURS)
        with pytest.raises(Exception, match="offchain_data_bytes"):
            put(store, 1, MINE)
        assert store.bytes_of(MINE) == 0


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("floods", [1, 2, 5, 9])
def test_as_much_stays_free_as_each_flood_has_taken(tmp_path: Path, floods: int) -> None:
    capacity = 60
    with DataStore(tmp_path / "data.sqlite", chain_id=CHAIN, capacity_bytes=capacity * SIZE) as store:
        shares, numbers = Shares(store), itertools.count()
        keys = [bytes([number]) * 32 for number in range(floods)]
        while True:
            takers = [key for key in keys if shares.has_room(key, SIZE, 0)]
            if not takers:
                break
            put(store, next(numbers), min(takers, key=store.bytes_of))
        each = capacity // (floods + 1)
        assert all(each - 1 <= store.bytes_of(key) // SIZE <= each for key in keys)
        assert store.capacity_bytes - store.total_bytes >= each * SIZE
        assert shares.has_room(b"n" * 32, SIZE, 0), "whoever is new has room"
        assert shares.has_room(keys[0], SIZE, 0, NAMED_TIMES), "others may have voted for what a microblock names"
        assert f"and {floods - 1} more" in shares.trouble or floods == 1


def test_floods_one_after_the_other_take_ever_less(tmp_path: Path) -> None:
    with DataStore(tmp_path / "data.sqlite", chain_id=CHAIN, capacity_bytes=64 * SIZE) as store:
        shares, numbers, taken = Shares(store), itertools.count(), []
        for key in (bytes([number]) * 32 for number in range(4)):
            while shares.has_room(key, SIZE, 0):
                put(store, next(numbers), key)
            taken.append(store.bytes_of(key) // SIZE)
        assert taken == [32, 16, 8, 4]
        assert shares.has_room(b"n" * 32, SIZE, 0), "whoever is new has room"


def test_the_log_says_it_once_and_the_status_until_it_is_over(tmp_path: Path) -> None:
    with DataStore(tmp_path / "data.sqlite", chain_id=CHAIN, capacity_bytes=4 * SIZE) as store:
        shares = Shares(store)
        with structlog.testing.capture_logs() as logs:
            digests = [put(store, number, MINE) for number in range(2)]
            assert shares.trouble == ""
            for _ in range(3):
                assert not shares.has_room(MINE, SIZE, 0)
            assert shares.has_room(YOURS, SIZE, 0)
            assert shares.has_room(MINE, 0, 0), "what is smaller has room"
        assert [line["event"] for line in logs] == [TOLD]
        assert MINE.hex() in shares.trouble
        store.remove(digests[:1])
        assert shares.trouble == ""
        with structlog.testing.capture_logs() as logs:
            put(store, 3, MINE)
            assert not shares.has_room(MINE, SIZE, 0)
        assert [line["event"] for line in logs] == [TOLD]


# ---------------------------------------------------------------- on a node


async def test_a_flood_of_one_operator_leaves_room_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, flood, other = flooded(tmp_path, monkeypatch)
    serve(node, *flood, other)
    pending = [node.commits(batch) for batch in flood]
    async with running(node):
        node.pool.add(pending)
        await until(lambda: MINE.hex() in node.availability.trouble)
        # Of two contracts two fetches are under way at once, and none of the four knows of the others.
        assert 5 <= sum(node.here(flood)) <= 5 + 2 * availability.MAX_OF_CONTRACT
        theirs = node.commits(other, sender=OTHER_OPERATOR)
        node.pool.add([theirs])
        await until(lambda: node.pool.not_ready([theirs.digest]) == ())
        assert node.here([other]) == [True]

        def rest_waits() -> bool:
            waiting = node.pool.not_ready([batch.digest for batch in pending])
            return len(waiting) == len(flood) - sum(node.here(flood))

        # What was under way when the share was used up is kept first, and counts as ready a moment later.
        await until(rest_waits)
        assert MINE.hex() in node.availability.trouble, "the other's success does not hide it"


async def test_a_restart_knows_who_has_used_up_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, flood, other = flooded(tmp_path, monkeypatch)
    for batch in flood[:5]:
        node.data.put(batch.commitment.data_digest, batch.data, Use(batch.commitment.contract_id, 0, MINE))
    capacity = node.data.capacity_bytes
    node.data.close()
    node.data = DataStore(tmp_path / "data.sqlite", chain_id=CHAIN, capacity_bytes=capacity)
    node.start()
    assert not node.availability.has_room(flood[5].commitment, 0)
    assert node.availability.has_room(other.commitment, 0)
    assert MINE.hex() in node.availability.trouble


async def test_what_waits_goes_on_when_data_of_its_operator_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "MAX_PAUSE_S", 0.1)
    node, flood, _ = flooded(tmp_path, monkeypatch)
    committed = flood[0:10:2]
    for batch in committed:
        use = Use(batch.commitment.contract_id, batch.commitment.number, MINE)
        node.data.put(batch.commitment.data_digest, batch.data, use)
        node.commit(node.commits(batch))
    waiting = node.commits(flood[1])
    serve(node, flood[1])
    async with running(node):
        node.pool.add([waiting])
        await until(lambda: MINE.hex() in node.availability.trouble)
        node.pass_microblocks(WINDOW)
        owed = {one.commitment.data_digest for one in committed if _is_kept_by_me(node, one)}
        assert await node.keeping.sweep() == len(committed) - len(owed)
        assert set(node.data.digests()) >= owed, "what others were promised is not dropped to make room"
        if len(owed) == len(committed):
            node.pass_microblocks(RETENTION)
            await node.keeping.sweep()
        await until(lambda: node.pool.not_ready([waiting.digest]) == ())
    assert node.availability.trouble == ""


def _is_kept_by_me(node: Node, batch: OffchainBatch) -> bool:
    return node.committee[0] in holders(batch.commitment.data_digest, node.committee, node.copies)


async def test_below_its_share_an_operator_is_hindered_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, flood, _ = flooded(tmp_path, monkeypatch)
    serve(node, *flood)
    pending = [node.commits(batch) for batch in flood[:5]]
    async with running(node):
        node.pool.add(pending)
        await until(lambda: node.pool.not_ready([batch.digest for batch in pending]) == ())
    assert node.availability.trouble == ""
    assert node.data.bytes_of(MINE) == node.data.total_bytes


async def test_what_a_microblock_names_may_exceed_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, flood, _ = flooded(tmp_path, monkeypatch)
    for batch in flood[1:6]:
        node.data.put(batch.commitment.data_digest, batch.data, Use(batch.commitment.contract_id, 0, MINE))
    serve(node, flood[0])
    pending = node.commits(flood[0])
    async with running(node):
        node.pool.add([pending])
        await until(lambda: MINE.hex() in node.availability.trouble)
        assert node.here([flood[0]]) == [False]
        node.readiness.named([pending.digest])
        await until(lambda: node.pool.not_ready([pending.digest]) == ())


async def test_a_stranger_charges_nobody_by_what_it_submits(tmp_path: Path) -> None:
    node = Node(tmp_path)
    batch = node.open().next()
    node.keep(batch)
    assert await node.availability.holds(STRANGER.public_key, batch.commitment)
    assert node.data.bytes_of(MINE) == 0
    (kept,) = node.data.due(0, 10)
    assert kept.uses == ()
    assert await node.availability.holds(MINE, batch.commitment)
    assert node.data.bytes_of(MINE) == batch.commitment.data_bytes


async def test_data_that_another_operator_commits_again_counts_no_longer_to_the_first_than_it_needs(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, copies=4)

    def opens(operator: PrivateKey) -> OpenContract:
        return OpenContract(0, "access_log", 1, encode(AccessLogParameters(())), 10_000)

    node.commit(*(node.batch_of(operator, opens(operator)) for operator in (OPERATOR, OTHER_OPERATOR)))
    batch = Batches(node.contract()).next()
    copied = msgspec.structs.replace(batch.commitment, contract_id=identifier(OTHER_OPERATOR))
    assert await _notes(node, batch, OPERATOR, MINE)
    node.commit(node.commits(batch))
    node.pass_microblocks(RETENTION // 2)
    node.data.put(copied.data_digest, batch.data, Use(copied.contract_id, 0, YOURS))
    node.commit(node.batch_of(OTHER_OPERATOR, CommitBatch(copied)))
    node.pass_microblocks(WINDOW + RETENTION - RETENTION // 2 - 1)
    assert await node.keeping.sweep() == 0
    assert (node.data.bytes_of(MINE), node.data.bytes_of(YOURS)) == (0, len(batch.data))
    node.pass_microblocks(RETENTION)
    assert await node.keeping.sweep() == 1
    assert node.data.bytes_of(YOURS) == 0


async def _notes(node: Node, batch: OffchainBatch, operator: PrivateKey, key: bytes) -> bool:
    node.keep(batch)
    assert await node.availability.holds(operator.public_key, batch.commitment)
    return node.data.bytes_of(key) == len(batch.data)
