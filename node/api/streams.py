# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of committed microblocks (server-sent events), resumable from any height out of the store.

A subscription buffers a bounded number of microblocks. Who falls behind is cut off and comes back with `Last-Event-ID`; what was
missed is then read from the store, at the client's own pace.
"""

from collections import OrderedDict
from http import HTTPStatus
from typing import Annotated

import msgspec
import structlog
import trio
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ledger.errors import SpchainError
from ledger.transactions import transaction_id
from node.api import views
from node.api.contract_models import ContractNews
from node.api.contract_scan import news_at
from node.api.errors import Problem
from node.api.served import Served
from node.events import BlockEvent

log = structlog.get_logger()

MAX_STREAMS = 32
"""Streams at once; half of the subscribers that a node takes."""
KEEP_ALIVE_S = 15.0
"""A comment is sent after this long without an event: proxies give silent connections up after 30 to 60 s."""
KEPT_NEWS = 64
"""Microblocks whose news of contracts are kept for other streams: as many as a subscriber may fall behind."""
LIVE_WITHIN = 16
"""Microblocks behind the head at which a client is near enough to subscribe, far below the subscription's buffer."""


_HEIGHT_DIGITS = 19  # of 2^63


def stream_routes(node: Served) -> APIRouter:
    """Return the route of the event stream."""
    router = APIRouter(tags=["events"])
    streams = _Streams(node)

    @router.get("/v1/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}})
    async def events(
        request: Request,
        from_height: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="First microblock wanted.")] = None,
        receipts: Annotated[bool, Query(description="Whether to list each transaction.")] = False,
        contracts: Annotated[bool, Query(description="Whether to say what happened to off-chain contracts.")] = False,
    ) -> Response:
        """Committed microblocks as they come, as server-sent events; `id` is the height, `data` an `Event`."""
        last = request.headers.get("last-event-id")
        if last is not None:
            if not (last.isascii() and last.isdecimal() and len(last) < _HEIGHT_DIGITS):
                detail = "Last-Event-ID is no height"
                raise Problem(HTTPStatus.BAD_REQUEST, "bad_event_id", detail, "send the id of the last event")
            from_height = int(last) + 1
        # The genesis is no event; the first microblock is.
        newest = node.store.head().height
        first = newest + 1 if from_height is None else max(from_height, 1)
        if first <= newest:
            # What cannot be read is told before the stream begins; in its midst there is only an end.
            await past_event(node, first)
        if streams.running >= MAX_STREAMS:
            detail = f"{MAX_STREAMS} clients follow this node's events"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, "follow another node", {"Retry-After": "10"})
        return _EventStream(node, streams, first, with_receipts=receipts, with_contracts=contracts)

    return router


class _Streams:
    def __init__(self, node: Served) -> None:
        self.node = node
        self.running = 0
        self._news: OrderedDict[int, tuple[ContractNews, ...]] = OrderedDict()

    async def news(self, height: int) -> tuple[ContractNews, ...]:
        """Return what happened to contracts in a microblock; read once for all who follow live."""
        if height not in self._news:
            found = await news_at(self.node.store, height)
            self._news[height] = found
            if len(self._news) > KEPT_NEWS:
                self._news.popitem(last=False)
            return found
        return self._news[height]


class _EventStream(Response):
    """Sends events until the client leaves, falls behind, or the node stops."""

    media_type = "text/event-stream"

    def __init__(
        self, node: Served, streams: _Streams, first: int, *, with_receipts: bool, with_contracts: bool
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._node, self._streams = node, streams
        self._next = first
        self._with_receipts, self._with_contracts = with_receipts, with_contracts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        self._streams.running += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # Tells the client at once that the stream is open.
            await _send(send, b": spchain events\n\n")
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
                    await self._produce(send)
                    nursery.cancel_scope.cancel()
            except* SpchainError as group:
                # The client comes back with Last-Event-ID and is told why.
                log.warning("events break off", next_height=self._next, error=str(group.exceptions[0]))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._streams.running -= 1

    async def _produce(self, send: Send) -> None:
        await self._catch_up(send, behind=LIVE_WITHIN)
        async with self._node.subscribe() as channel:
            await self._catch_up(send, behind=0)
            while True:
                with trio.move_on_after(KEEP_ALIVE_S) as patience:
                    try:
                        event = await channel.receive()
                    except (trio.EndOfChannel, trio.ClosedResourceError):
                        # Too slow, or the node stops: the client comes back with Last-Event-ID.
                        return
                if patience.cancelled_caught:
                    await _send(send, b": keep-alive\n\n")
                elif event.height >= self._next:
                    await self._catch_up_to(send, event.height - 1)
                    await self._send_event(send, event)

    async def _catch_up(self, send: Send, behind: int) -> None:
        while self._next <= (goal := self._node.store.head().height - behind):
            await self._catch_up_to(send, goal)

    async def _catch_up_to(self, send: Send, height: int) -> None:
        while self._next <= height:
            await self._send_event(send, await past_event(self._node, self._next))

    async def _send_event(self, send: Send, event: BlockEvent) -> None:
        news = await self._streams.news(event.height) if self._with_contracts else None
        await _send(send, encode_event(event, with_receipts=self._with_receipts, news=news))
        self._next = event.height + 1


async def past_event(node: Served, height: int) -> BlockEvent:
    """Return the event of a microblock that is committed, out of the store."""
    block_hash, header, _ = views.header_at(node.store, height)
    receipts: list[tuple[bytes, str]] = []
    for first, batch in views.batches_at(node.store, height):
        for offset, raw in enumerate(batch):
            receipts.append((transaction_id(raw), views.listed(node.store, height, first + offset, raw).reason))
        await trio.lowlevel.checkpoint()
    effective = sum(not reason for _, reason in receipts)
    return BlockEvent(height, block_hash, header.timestamp_ms, effective, len(receipts) - effective, tuple(receipts))


def encode_event(event: BlockEvent, *, with_receipts: bool, news: tuple[ContractNews, ...] | None = None) -> bytes:
    """Return one server-sent event."""
    data: dict[str, object] = {
        "height": event.height,
        "block_hash": event.block_hash.hex(),
        "timestamp_ms": event.timestamp_ms,
        "transactions": event.transactions,
        "rejected": event.rejected,
    }
    if with_receipts:
        data["receipts"] = [(identifier.hex(), reason) for identifier, reason in event.receipts]
    if news is not None:
        data["contracts"] = [item.model_dump(mode="json") for item in news]
    return b"id: %d\nevent: microblock\ndata: %s\n\n" % (event.height, msgspec.json.encode(data))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            scope.cancel()
            return
