# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that write or move blobs; writes need the operator's token when there is one."""

from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from ledger.errors import RejectionReason
from ledger.transition import Receipt
from node.api import models
from node.api.bodies import content_type, parse_hex, parse_submission, read_body
from node.api.guard import Budget
from node.api.served import Served
from node.api.tokens import authorise
from node.service import SubmitOutcome
from records.limits import MAX_BLOB_BYTES

_DIGEST_BYTES = 32
_BINARY = "application/octet-stream"
_JSON_BODY = {"schema": {"$ref": "#/components/schemas/Submission"}}
_MSGPACK_BODY = {"schema": {"description": "array of bin, one signed transaction each", "type": "string"}}


class _Outcome(msgspec.Struct):
    """`models.Outcome`, encoded by msgspec: a submission has up to 4096."""

    id: str
    accepted: bool
    reason: str
    detail: str
    receipt: dict[str, int | str] | None


def write_routes(node: Served, budget: Budget, token: bytes | None) -> APIRouter:
    """Return the routes for submissions and blobs; with a token, writes must carry it."""
    router = APIRouter(tags=["writes"])

    @router.post(
        "/v1/transactions",
        response_model=models.SubmitResult,
        openapi_extra={
            "requestBody": {"content": {"application/json": _JSON_BODY, "application/msgpack": _MSGPACK_BODY}}
        },
    )
    async def submit(request: Request, wait_ms: Annotated[int, Query(ge=0, le=models.MAX_WAIT_MS)] = 0) -> Response:
        """Take up to 4096 signed transactions (4 MiB) and say what became of each; with `wait_ms`, wait for their receipts."""
        authorise(request, token)
        media_type = content_type(request, ("application/json", "application/msgpack"))
        body = await read_body(request, models.MAX_SUBMIT_BYTES, budget)
        raws, body_wait_ms = parse_submission(media_type, body)
        outcomes = await node.submit(raws)
        receipts: dict[bytes, Receipt] = {}
        patience_ms = max(wait_ms, body_wait_ms)
        # Too few nodes hold some yet, but they are on their way all the same.
        awaited = [
            outcome.id for outcome in outcomes if outcome.accepted or outcome.reason == RejectionReason.NOT_REPLICATED
        ]
        if patience_ms and awaited:
            receipts = await node.wait(awaited, patience_ms / 1000)
        answer = {"outcomes": [_outcome(node, outcome, receipts.get(outcome.id)) for outcome in outcomes]}
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @router.put("/v1/blobs", status_code=HTTPStatus.CREATED)
    async def put_blob(request: Request) -> models.BlobPut:
        """Keep an encrypted record here and at its holders; answers when this node's copy is durable."""
        authorise(request, token)
        content_type(request, (_BINARY,))
        blob = await read_body(request, MAX_BLOB_BYTES, budget)
        return models.BlobPut(blob_id=await node.put_blob(blob), size_bytes=len(blob))

    @router.get("/v1/blobs/{identifier}", response_class=Response, responses={200: {"content": {_BINARY: {}}}})
    async def get_blob(request: Request, identifier: str) -> Response:
        """An encrypted record, from here or from another node, checked against its identifier."""
        blob_id = parse_hex(identifier, _DIGEST_BYTES, "blob id")
        # Held until the answer is sent: a slow reader keeps the blob in memory.
        budget.take(request, MAX_BLOB_BYTES)
        blob = await node.get_blob(blob_id)
        # Content-addressed: it never changes.
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{identifier.lower()}"'}
        return Response(blob, media_type=_BINARY, headers=headers)

    return router


def _outcome(node: Served, outcome: SubmitOutcome, receipt: Receipt | None) -> _Outcome:
    if receipt is None and outcome.id and not outcome.accepted:
        # Sent again after it was committed: the sender learns that it was.
        receipt = node.store.receipt(outcome.id)
    shown = None if receipt is None else msgspec.structs.asdict(receipt)
    return _Outcome(outcome.id.hex(), outcome.accepted, outcome.reason, outcome.detail, shown)
