# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that bring requests to contracts' operators, and receipts to the watcher."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

import msgspec
import trio
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.shipped import MACHINES
from ledger.chain import chain_of
from ledger.codec import decoder, encode
from ledger.contract_bodies import CloseContract
from ledger.errors import InvalidInput
from ledger.offchain import SignedReceipt
from ledger.transactions import check_transaction
from node.api import contract_models as models
from node.api.bodies import content_type, parse_hex, parse_requests, read_body
from node.api.contract_views import ContractViews
from node.api.errors import Problem
from node.api.guard import Budget
from node.api.served import Served
from node.api.served_contracts import Sent
from node.api.tokens import authorise

_DIGEST_BYTES = 32
decode_receipt = decoder(SignedReceipt, models.MAX_RECEIPT_BYTES, name="receipt")
"""Read a signed receipt; raises `InvalidInput`."""
_BINARY = "application/octet-stream"
_JSON_BODY = {"schema": {"$ref": "#/components/schemas/Requests"}}
_MSGPACK_BODY = {"schema": {"description": "array of bin, one signed request each", "type": "string"}}


class _Outcome(msgspec.Struct):
    """`models.RequestOutcome`, encoded by msgspec: an operator answers thousands a second."""

    accepted: bool
    reason: str
    detail: str
    receipt: str | None
    outcomes: str | None


def contract_act_routes(node: Served, budget: Budget, token: bytes | None) -> APIRouter:
    """Return the routes to operators; with a token, requests must carry it, for they make this node work for the client."""
    router = APIRouter(tags=["contracts"])
    shown = ContractViews(node.store, MACHINES)

    @router.post(
        "/v1/contracts/{contract}/requests",
        response_model=models.RequestOutcomes,
        openapi_extra={
            "requestBody": {"content": {"application/json": _JSON_BODY, "application/msgpack": _MSGPACK_BODY}}
        },
    )
    async def send(request: Request, contract: str) -> Response:
        """Bring up to 64 signed requests to the contract's operator, through whichever node; says what became of each, with receipts.

        An operator whose disk or chain is slower than its users takes none for a while: status 503, reason `busy`, with Retry-After.
        """
        authorise(request, token)
        media_type = content_type(request, ("application/json", "application/msgpack"))
        contract_id = shown.contract(parse_hex(contract, _DIGEST_BYTES, "contract")).terms.contract_id
        raws = parse_requests(media_type, await read_body(request, models.MAX_SEND_BYTES, budget))
        sent = await node.offchain.operating.send(contract_id, raws)
        _refuse_when_busy(sent)
        return Response(
            msgspec.json.encode({"outcomes": [_outcome(one) for one in sent]}), media_type="application/json"
        )

    @router.post("/v1/contracts/{contract}/receipts", openapi_extra={"requestBody": {"content": {_BINARY: {}}}})
    async def receipts(request: Request, contract: str) -> models.ReceiptHeld:
        """Have this node's watcher compare a signed receipt with its batch when that commits, and challenge the operator if it is broken.

        The watcher holds the receipt over a restart of the node, too, until the batch shows what the operator's word is worth.
        """
        authorise(request, token)
        content_type(request, (_BINARY,))
        contract_id = shown.contract(parse_hex(contract, _DIGEST_BYTES, "contract")).terms.contract_id
        signed = decode_receipt(await read_body(request, models.MAX_RECEIPT_BYTES, budget))
        if signed.receipt.contract_id != contract_id:
            raise InvalidInput(f"the receipt is about contract {signed.receipt.contract_id.hex()}")
        await node.offchain.watching.hold_receipt(signed)
        return models.ReceiptHeld(batch=signed.receipt.number, index=signed.receipt.index)

    @router.post("/v1/contracts/{contract}/close", openapi_extra={"requestBody": {"content": {_BINARY: {}}}})
    async def close(
        request: Request, contract: str, wait_ms: Annotated[int, Query(ge=0, le=models.MAX_CLOSE_MS)] = 30_000
    ) -> models.Closing:
        """Close a contract that this node operates, after all that its operator has promised stands on the chain.

        The body is a signed transaction that closes it, as an order by the operator's key; the node sends one of its own.
        """
        authorise(request, token)
        content_type(request, (_BINARY,))
        found = shown.contract(parse_hex(contract, _DIGEST_BYTES, "contract"))
        raw = await read_body(request, models.MAX_CLOSE_BYTES, budget)
        ordered = await trio.to_thread.run_sync(check_transaction, raw, chain_of(node.genesis))
        wanted = (found.terms.operator, CloseContract(found.terms.contract_id))
        if (ordered.transaction.sender, ordered.transaction.body) != wanted:
            detail = f"the body is no order to close contract {contract} by its operator {found.terms.operator.hex()}"
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "wrong_order", detail, "sign CloseContract with that key")
        with trio.move_on_after(wait_ms / 1000) as patience:
            outcome = await node.offchain.operating.close(found.terms.contract_id)
        if patience.cancelled_caught:
            detail = f"not all that was promised is on the chain after {wait_ms} ms, so the contract goes on"
            return models.Closing(accepted=False, reason="not_drained", detail=detail)
        return models.Closing(accepted=outcome.accepted, reason=outcome.reason, detail=outcome.detail)

    return router


def _refuse_when_busy(sent: Sequence[Sent]) -> None:
    """Answer with a status that every client knows when nothing was taken and it is worth trying again; raises `Problem`."""
    if sent and all(not one.accepted and one.retry_ms for one in sent):
        wait_s = max(1, -(-max(one.retry_ms for one in sent) // 1000))
        first = sent[0]
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            first.reason,
            first.detail,
            f"send the same requests again in {wait_s} s",
            {"Retry-After": str(wait_s)},
        )


def _outcome(sent: Sent) -> _Outcome:
    answer = sent.answer
    if answer is None:
        return _Outcome(sent.accepted, sent.reason, sent.detail, None, None)
    receipt, outcomes = encode(answer.signed).hex(), encode(answer.outcomes).hex()
    return _Outcome(sent.accepted, sent.reason, sent.detail, receipt, outcomes)
