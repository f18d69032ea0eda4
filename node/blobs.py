# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs between nodes: kept by their chosen holders, fetched from whoever has them, checked on every read."""

from collections.abc import Callable, Mapping

import structlog
import trio

from ledger.errors import InvalidInput, NotFound, SpchainError, StoreError
from node.sync import Asker
from node.wire import REQUEST_BLOB, REQUEST_KEEP_BLOB
from p2p.errors import NotAvailable, RequestFailed
from records.blob_store import BlobCorrupt, BlobStore, address
from records.limits import MAX_BLOB_BYTES
from records.placement import holders

log = structlog.get_logger()

FETCH_TIMEOUT_S = 30.0
"""For 8 MiB over a slow line (2 Mbit/s)."""
HEDGE_S = 3.0
"""After this time without an answer the next peer is asked beside: one that is silent must not hold up a reader."""
MAX_FETCHES = 3
"""Peers asked at once for one blob."""
MAX_IN_MEMORY = 4
"""Blobs read or fetched at once on behalf of peers: 32 MiB."""
ID_BYTES = 32


class Blobs:
    """The blob store of this node together with those of its peers."""

    def __init__(
        self,
        *,
        store: BlobStore,
        network: Asker,
        peers: Callable[[], Mapping[bytes, str]],
        copies: int,
    ) -> None:
        """`peers` gives the connected nodes' peer identifiers by account address; `copies` counts this node's."""
        self._store = store
        self._network = network
        self._peers = peers
        self._copies = copies
        self._for_peers = trio.CapacityLimiter(MAX_IN_MEMORY)

    async def put(self, blob: bytes) -> bytes:
        """Keep a blob here and ask its holders to keep it; returns its identifier. Raises `InvalidInput`, `StoreError`.

        A holder that is away does not fail the call: the author's copy is durable, and readers ask every node.
        """
        if not 0 < len(blob) <= MAX_BLOB_BYTES:
            raise InvalidInput(f"a blob has 1 to {MAX_BLOB_BYTES} bytes, not {len(blob)}")
        blob_id = address(blob)
        await trio.to_thread.run_sync(self._store.put, blob_id, blob)
        peers = self._peers()
        async with trio.open_nursery() as nursery:
            for node in holders(blob_id, peers, self._copies - 1):
                nursery.start_soon(self._ask_to_keep, peers[node], blob_id)
        return blob_id

    async def get(self, blob_id: bytes) -> bytes:
        """Return a blob from here or from a peer; raises `NotFound`. A damaged copy here is replaced."""
        damaged = False
        try:
            return await trio.to_thread.run_sync(self._store.get, blob_id)
        except NotFound:
            pass
        except StoreError as error:
            log.warning("blob cannot be read; fetching it from a peer", blob=blob_id.hex(), error=str(error))
            damaged = isinstance(error, BlobCorrupt)
        blob = await self._fetch_from_any(blob_id)
        if damaged:
            try:
                await trio.to_thread.run_sync(self._store.put, blob_id, blob)
            except StoreError as error:
                log.warning("blob could not be repaired", blob=blob_id.hex(), error=str(error))
        return blob

    async def answer(self, payload: bytes) -> bytes:
        """Answer a peer's request for a blob that is here; raises `NotAvailable`, `InvalidInput`."""
        blob_id = _parse_id(payload)
        try:
            async with self._for_peers:
                return await trio.to_thread.run_sync(self._store.get, blob_id)
        except (NotFound, StoreError) as error:
            raise NotAvailable(f"blob {blob_id.hex()} is not here") from error

    async def keep(self, peer_id: str, payload: bytes) -> bytes:
        """Fetch a blob from the peer that asks us to keep it; raises `NotAvailable`, `InvalidInput`."""
        blob_id = _parse_id(payload)
        if not self._store.has(blob_id):
            try:
                async with self._for_peers:
                    blob = await self._fetch(peer_id, blob_id)
                    await trio.to_thread.run_sync(self._store.put, blob_id, blob)
            except SpchainError as error:
                raise NotAvailable(f"blob {blob_id.hex()} cannot be kept here: {error}") from error
        return blob_id

    async def _ask_to_keep(self, peer_id: str, blob_id: bytes) -> None:
        try:
            await self._network.request(peer_id, REQUEST_KEEP_BLOB, blob_id, timeout_s=FETCH_TIMEOUT_S)
        except RequestFailed as error:
            log.warning("holder did not take a blob", blob=blob_id.hex(), peer=peer_id, error=str(error))

    async def _fetch_from_any(self, blob_id: bytes) -> bytes:
        peers = self._peers()
        first = holders(blob_id, peers, self._copies - 1)
        order = iter([*first, *(node for node in peers if node not in first)])
        found: list[bytes] = []
        all_asked = trio.Event()

        async def ask_in_turn(delay_s: float) -> None:
            with trio.move_on_after(delay_s):
                await all_asked.wait()
            for node in order:
                blob = await self._try(peers[node], blob_id)
                if blob is not None:
                    found.append(blob)
                    nursery.cancel_scope.cancel()
                    return
            all_asked.set()

        async with trio.open_nursery() as nursery:
            for asker in range(min(MAX_FETCHES, len(peers))):
                nursery.start_soon(ask_in_turn, asker * HEDGE_S)
        if found:
            return found[0]
        raise NotFound(
            f"blob {blob_id.hex()} is neither here nor at any of {len(peers)} connected nodes; try again later"
        )

    async def _try(self, peer_id: str, blob_id: bytes) -> bytes | None:
        try:
            return await self._fetch(peer_id, blob_id)
        except (RequestFailed, InvalidInput) as error:
            log.debug("peer has no blob", blob=blob_id.hex(), peer=peer_id, error=str(error))
            return None

    async def _fetch(self, peer_id: str, blob_id: bytes) -> bytes:
        """Return a blob from one peer; raises `RequestFailed`, and `InvalidInput` for something else, at the peer's cost."""
        blob = await self._network.request(peer_id, REQUEST_BLOB, blob_id, timeout_s=FETCH_TIMEOUT_S)
        if await trio.to_thread.run_sync(address, blob) != blob_id:
            self._network.penalise(peer_id, 20, f"what came for blob {blob_id.hex()} is something else")
            raise InvalidInput(f"what came for blob {blob_id.hex()} is something else")
        return blob


def _parse_id(payload: bytes) -> bytes:
    if len(payload) != ID_BYTES:
        raise InvalidInput(f"a blob's identifier has {ID_BYTES} bytes, not {len(payload)}")
    return payload
