# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what clients send: bounded before it is read, decoded by type, hexadecimal without whitespace."""

import re
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated

import msgspec
from starlette.requests import ClientDisconnect, Request

from ledger.offchain import MAX_REQUEST_BYTES
from node.api.contract_models import MAX_SEND_REQUESTS
from node.api.errors import Problem
from node.api.guard import Budget
from node.api.models import MAX_SUBMIT_TRANSACTIONS, MAX_WAIT_MS

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_QUOTED_CHARACTERS = 80
_LENGTH_DIGITS = 20  # of 2^64


class _JsonSubmission(msgspec.Struct, forbid_unknown_fields=True):
    # Hexadecimal is checked below, item by item, to name the one that is wrong.
    transactions: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_SUBMIT_TRANSACTIONS)]
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_MS)] = 0


_json = msgspec.json.Decoder(_JsonSubmission)
_msgpack = msgspec.msgpack.Decoder(
    Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=MAX_SUBMIT_TRANSACTIONS)]
)


class _JsonRequests(msgspec.Struct, forbid_unknown_fields=True):
    requests: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=2, max_length=2 * MAX_REQUEST_BYTES)]],
        msgspec.Meta(min_length=1, max_length=MAX_SEND_REQUESTS),
    ]


_Request = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_REQUEST_BYTES)]
_json_requests = msgspec.json.Decoder(_JsonRequests)
_msgpack_requests: msgspec.msgpack.Decoder[list[bytes]] = msgspec.msgpack.Decoder(
    Annotated[list[_Request], msgspec.Meta(min_length=1, max_length=MAX_SEND_REQUESTS)]
)


def content_type(request: Request, allowed: tuple[str, ...]) -> str:
    """Return the body's media type; raises `Problem` when it is not an allowed one.

    Strict on purpose: a web page of another origin can send only form types without being asked, so none of its requests gets in.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in allowed:
        detail = f"content type {given[:_QUOTED_CHARACTERS]!r}; accepted: {', '.join(allowed)}"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail, "set Content-Type")
    return given


async def read_body(request: Request, limit_bytes: int, budget: Budget) -> bytes:
    """Read a body of at most `limit_bytes`; a larger one is refused by its announced length, before it is read."""
    announced = request.headers.get("content-length")
    if announced is not None and not (
        announced.isascii() and announced.isdecimal() and len(announced) <= _LENGTH_DIGITS
    ):
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_content_length", "Content-Length is no number", "send a right one")
    expected = limit_bytes if announced is None else int(announced)
    if expected > limit_bytes:
        raise _too_large(limit_bytes)
    budget.take(request, expected)
    body = bytearray()
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                if len(body) + len(chunk) > expected:
                    raise _too_large(limit_bytes)
                body += chunk
    except ClientDisconnect as error:
        detail = f"the connection ended after {len(body)} bytes"
        raise Problem(HTTPStatus.BAD_REQUEST, "truncated", detail, "send the whole body") from error
    return bytes(body)


def parse_submission(media_type: str, body: bytes) -> tuple[list[bytes], int]:
    """Return the transactions of a submission and the wait asked for, in milliseconds; raises `Problem`."""
    try:
        if media_type == "application/msgpack":
            return _msgpack.decode(body), 0
        submission = _json.decode(body)
    except msgspec.ValidationError as error:
        remedy = "see POST /v1/transactions in /v1/openapi.json"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_body", str(error)[:500], remedy) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = f"the body is not {media_type}: {str(error)[:200]}"
        raise Problem(HTTPStatus.BAD_REQUEST, "malformed_body", detail, "encode it properly") from error
    return _from_hex(submission.transactions, "transactions"), submission.wait_ms


def parse_requests(media_type: str, body: bytes) -> list[bytes]:
    """Return the requests to an off-chain contract of a body; raises `Problem`."""
    try:
        if media_type == "application/msgpack":
            return _msgpack_requests.decode(body)
        texts = _json_requests.decode(body).requests
    except msgspec.ValidationError as error:
        remedy = "see POST /v1/contracts/{contract}/requests in /v1/openapi.json"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_body", str(error)[:500], remedy) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = f"the body is not {media_type}: {str(error)[:200]}"
        raise Problem(HTTPStatus.BAD_REQUEST, "malformed_body", detail, "encode it properly") from error
    return _from_hex(texts, "requests")


def _from_hex(texts: list[str], what: str) -> list[bytes]:
    raws = []
    for index, text in enumerate(texts):
        if not _HEX.fullmatch(text):
            detail = f"{what}[{index}] is not hexadecimal"
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_hex", detail, "write two hexadecimal digits per byte")
        raws.append(bytes.fromhex(text))
    return raws


def parse_hex(text: str, size_bytes: int, what: str) -> bytes:
    """Return the bytes of an identifier in a path or query; raises `Problem`."""
    if len(text) != 2 * size_bytes or not _HEX.fullmatch(text):
        shown = text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "…"
        detail = f"{what} {shown!r} is not {2 * size_bytes} hexadecimal digits"
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_hex", detail, f"give the {what} as {2 * size_bytes} digits")
    return bytes.fromhex(text)


def _too_large(limit_bytes: int) -> Problem:
    detail = f"the body is larger than {limit_bytes} bytes"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail, f"send at most {limit_bytes} bytes")
