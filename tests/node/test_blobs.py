# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs among nodes: checked on every read, fetched from whoever has them, repaired, bounded."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ledger import testing
from ledger.errors import InvalidInput, NotFound, StoreError
from node import blobs as module
from node.blobs import MAX_IN_MEMORY, Blobs
from node.wire import REQUEST_BLOB, REQUEST_KEEP_BLOB
from p2p.errors import NotAvailable
from records.blob_store import BlobCorrupt, MemoryBlobStore, address
from records.limits import MAX_BLOB_BYTES
from tests.node.kit import Answer, ScriptedNetwork, not_available

BLOB = b"an encrypted record"
ID = address(BLOB)
PEERS = {testing.key(number).address: f"peer {number}" for number in range(4)}


class FlakyBlobStore(MemoryBlobStore):
    """Reads fail as they are told to."""

    failure: Exception | None = None

    def get(self, blob_id: bytes) -> bytes:
        if self.failure is not None:
            raise self.failure
        return super().get(blob_id)

    def put(self, blob_id: bytes, blob: bytes) -> None:
        super().put(blob_id, blob)
        self.failure = None


class World:
    """One node's blobs and its scripted peers."""

    def __init__(self) -> None:
        self.store, self.network = FlakyBlobStore(1 << 24), ScriptedNetwork()
        self.peers = dict(PEERS)
        self.blobs = Blobs(store=self.store, network=self.network, peers=lambda: self.peers, copies=3)

    def says(self, answer: Answer, *peers: str) -> None:
        for peer in peers or PEERS.values():
            self.network.script(peer, REQUEST_BLOB, lambda _: answer)
            self.network.script(peer, REQUEST_KEEP_BLOB, lambda _: answer)


@pytest.fixture
def world() -> World:
    return World()


async def test_an_author_keeps_the_blob_and_asks_two_others_to(world: World) -> None:
    world.says(ID)
    assert await world.blobs.put(BLOB) == ID
    assert world.store.get(ID) == BLOB
    assert len(set(world.network.asked)) == 2
    assert await world.blobs.get(ID) == BLOB


async def test_holders_that_are_away_do_not_fail_the_author(world: World) -> None:
    world.says(not_available())
    assert await world.blobs.put(BLOB) == ID
    world.peers.clear()
    assert await world.blobs.put(BLOB + b"2")


@pytest.mark.parametrize("size", [0, MAX_BLOB_BYTES + 1])
async def test_a_blob_of_a_wrong_size_is_refused(world: World, size: int) -> None:
    with pytest.raises(InvalidInput, match="bytes"):
        await world.blobs.put(bytes(size))
    assert world.network.asked == []


async def test_wrong_bytes_cost_their_sender_and_the_next_peer_is_asked(world: World) -> None:
    world.says(b"something else")
    world.says(BLOB, "peer 3")
    assert await world.blobs.get(ID) == BLOB
    assert "peer 3" not in world.network.blamed()
    world.says(b"something else")
    with pytest.raises(NotFound, match="try again"):
        await world.blobs.get(ID)
    assert world.network.blamed() == set(PEERS.values())


async def test_silent_peers_do_not_hold_up_a_reader(
    autojump_clock: object, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.says(BLOB)
    patient, silent = world.network.request, set(list(PEERS.values())[: module.MAX_FETCHES - 1])

    async def request(peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        if peer_id in silent:
            await trio.sleep_forever()
        return await patient(peer_id, method, payload, timeout_s=timeout_s)

    monkeypatch.setattr(world.network, "request", request)
    assert await world.blobs.get(ID) == BLOB


async def test_nobody_has_it(world: World) -> None:
    world.says(not_available())
    with pytest.raises(NotFound):
        await world.blobs.get(ID)
    world.peers.clear()
    with pytest.raises(NotFound):
        await world.blobs.get(ID)
    assert world.network.penalties == []


async def test_a_damaged_copy_is_replaced_from_a_peer(world: World) -> None:
    world.store.failure = BlobCorrupt("damaged")
    world.says(BLOB)
    assert await world.blobs.get(ID) == BLOB
    assert world.store.get(ID) == BLOB


async def test_a_medium_that_fails_is_no_reason_to_fail_the_reader(world: World) -> None:
    world.store.failure = StoreError("input/output error")
    world.says(BLOB)
    assert await world.blobs.get(ID) == BLOB
    with pytest.raises(NotAvailable):
        await world.blobs.answer(ID)


async def test_peers_get_what_is_here_and_a_typed_no_otherwise(world: World) -> None:
    with pytest.raises(NotAvailable):
        await world.blobs.answer(ID)
    world.store.put(ID, BLOB)
    assert await world.blobs.answer(ID) == BLOB
    for wrong in (b"", ID + b"x"):
        with pytest.raises(InvalidInput):
            await world.blobs.answer(wrong)
        with pytest.raises(InvalidInput):
            await world.blobs.keep("peer 0", wrong)


async def test_a_holder_keeps_only_what_the_name_says(world: World) -> None:
    world.says(b"something else", "peer 0")
    with pytest.raises(NotAvailable):
        await world.blobs.keep("peer 0", ID)
    assert world.network.blamed() == {"peer 0"}
    assert not world.store.has(ID)
    world.says(BLOB, "peer 1")
    assert await world.blobs.keep("peer 1", ID) == ID
    assert world.store.get(ID) == BLOB
    assert await world.blobs.keep("peer 2", ID) == ID, "kept already: nobody is asked"
    assert ("peer 2", REQUEST_BLOB) not in world.network.asked


async def test_a_full_holder_says_so(world: World) -> None:
    world.store = FlakyBlobStore(5)
    world.blobs = Blobs(store=world.store, network=world.network, peers=lambda: world.peers, copies=3)
    world.says(BLOB)
    with pytest.raises(NotAvailable, match="no room"):
        await world.blobs.keep("peer 0", ID)
    with pytest.raises(StoreError):
        await world.blobs.put(BLOB)


async def test_peers_cannot_make_a_node_hold_many_blobs_at_once(autojump_clock: object, world: World) -> None:
    world.says(None)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(_kept_or_not, world, bytes([number]) * 32)
        await wait_all_tasks_blocked()
        assert len(world.network.asked) == MAX_IN_MEMORY
        nursery.cancel_scope.cancel()


async def _kept_or_not(world: World, blob_id: bytes) -> None:
    with pytest.raises(NotAvailable):
        await world.blobs.keep("peer 0", blob_id)
