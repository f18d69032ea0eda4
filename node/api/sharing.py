# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that pass what clients have sealed or signed on to proxies: key fragments, requests, queries of the access log."""

from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request

from ledger.crypto.keys import ADDRESS_BYTES
from ledger.sharing import MAX_PROXIES
from node.api import sharing_models as models
from node.api.bodies import content_type, parse_hex, read_body
from node.api.errors import Problem
from node.api.guard import Budget
from node.api.served import Served
from node.api.tokens import authorise
from node.wire import Relayed
from records.access_entries import MAX_QUERY_BYTES
from records.grants import MAX_SEALED_FRAGMENT_BYTES
from records.requests import MAX_REQUEST_BYTES

_BINARY = "application/octet-stream"
_MSGPACK = "application/msgpack"
_fragments = msgspec.msgpack.Decoder(
    Annotated[
        list[Annotated[bytes, msgspec.Meta(max_length=MAX_SEALED_FRAGMENT_BYTES)]],
        msgspec.Meta(min_length=1, max_length=MAX_PROXIES),
    ]
)


def sharing_routes(node: Served, budget: Budget, token: bytes | None) -> APIRouter:
    """Return the routes to proxies; with a token, requests must carry it, for they make this node work for the client."""
    router = APIRouter(tags=["sharing"])
    body_schema = {"schema": {"description": "array of bin, one sealed key fragment each", "type": "string"}}

    @router.post("/v1/fragments", openapi_extra={"requestBody": {"content": {_MSGPACK: body_schema}}})
    async def fragments(request: Request) -> models.Answers:
        """Bring a grant's sealed key fragments to its proxies; each that keeps its fragment answers with a signed receipt."""
        authorise(request, token)
        content_type(request, (_MSGPACK,))
        raw = await read_body(request, MAX_PROXIES * (MAX_SEALED_FRAGMENT_BYTES + 8), budget)
        try:
            sealed = _fragments.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            remedy = "send a MessagePack array of sealed fragments"
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_body", str(error)[:500], remedy) from error
        delivered = await node.proxying.deliver(sealed)
        return models.Answers(answers=tuple(_answer(proxy, relayed) for proxy, relayed in delivered))

    @router.post("/v1/reencryptions", openapi_extra={"requestBody": {"content": {_BINARY: {}}}})
    async def reencryptions(
        request: Request,
        proxy: Annotated[list[str], Query(max_length=MAX_PROXIES)] = [],  # noqa: B006 -- FastAPI copies it
    ) -> models.Answers:
        """Bring a grantee's signed request to proxies of the grant, by default to all; the caller verifies what comes back."""
        authorise(request, token)
        content_type(request, (_BINARY,))
        raw = await read_body(request, MAX_REQUEST_BYTES, budget)
        wanted = tuple(parse_hex(text, ADDRESS_BYTES, "proxy") for text in proxy)
        found = await node.proxying.ask_proxies(raw, wanted)
        return models.Answers(answers=tuple(_answer(address, relayed) for address, relayed in found))

    @router.post("/v1/access-log", openapi_extra={"requestBody": {"content": {_BINARY: {}}}})
    async def access_log(request: Request) -> models.Answer:
        """Bring a patient's signed query to the proxy that it names; returns a page of its access log."""
        authorise(request, token)
        content_type(request, (_BINARY,))
        raw = await read_body(request, MAX_QUERY_BYTES, budget)
        return _answer(*await node.proxying.ask_log(raw))

    return router


def _answer(proxy: bytes, relayed: Relayed) -> models.Answer:
    return models.Answer(proxy=proxy, reason=relayed.reason, detail=relayed.detail, body=relayed.body)
