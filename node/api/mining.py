# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes for miners: work, by long polls, and what comes of it; what is handed in needs the operator's token when there is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, TypeVar

import trio
from fastapi import APIRouter, Query
from starlette.requests import Request

from ledger.blocks import SignedKeyblock, keyblock_hash
from ledger.codec import decode
from ledger.crypto.keys import PUBLIC_KEY_BYTES, is_public_key
from ledger.errors import InvalidInput
from node.api import mining_models
from node.api.bodies import content_type, parse_hex, read_body
from node.api.errors import Problem
from node.api.guard import Budget
from node.api.tokens import authorise
from node.mining import MAX_KEYBLOCK_BYTES, MAX_REVEAL_BYTES, MiningDesk, NoChainYet, SeedReveal, StaleWork

T = TypeVar("T")

MAX_WAITING = 64
"""Miners that wait for work at once: a quarter of the requests that a node serves. A node has one or two miners of its own."""
_MSGPACK = "application/msgpack"
_KEYBLOCK_BODY = {"schema": {"description": "a `SignedKeyblock`, encoded", "type": "string"}}
_REVEAL_BODY = {"schema": {"description": "a `SeedReveal`, encoded", "type": "string"}}


def mining_routes(desk: MiningDesk, budget: Budget, token: bytes | None) -> APIRouter:
    """Return the routes for miners; with a token, what they hand in must carry it."""
    router = APIRouter(tags=["mining"])
    queue = _Queue()

    @router.get("/v1/mining/work")
    async def work(
        request: Request,
        miner: Annotated[str, Query(description="Public key of the miner, 66 hexadecimal digits.")],
        epoch: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Epoch that the miner knows.")] = None,
        reveal: Annotated[bool, Query(description="Whether to answer at once while a reveal is wanted.")] = True,
        wait_s: Annotated[
            int, Query(ge=0, le=mining_models.MAX_MINING_WAIT_S, description="Longest wait, in seconds.")
        ] = 0,
    ) -> mining_models.MiningWork:
        """What a miner is to work on; with `epoch` and `wait_s`, waits until another epoch runs.

        Answers at once when the epoch is not the one that the miner knows, and while the seed that the miner's keyblock has begun the
        epoch with is not revealed.
        """
        key = parse_hex(miner, PUBLIC_KEY_BYTES, "miner")
        if not is_public_key(key):
            detail = f"miner {miner} is not a compressed secp256k1 point"
            raise Problem(
                HTTPStatus.BAD_REQUEST, "bad_key", detail, "give the public key that `spchain key show` prints"
            )
        with _refusing("work"):
            found = desk.work(key)
            if wait_s and epoch == found.epoch and not (reveal and found.reveal is not None):
                with queue.place():
                    await _wait(request, desk, epoch, wait_s)
                found = desk.work(key)
        return mining_models.MiningWork.model_validate(found)

    @router.post(
        "/v1/mining/keyblocks",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra={"requestBody": {"content": {_MSGPACK: _KEYBLOCK_BODY}}},
    )
    async def keyblock(request: Request) -> mining_models.KeyblockTaken:
        """Take a keyblock, check it, and tell the network; the committee decides whether it is pinned."""
        authorise(request, token)
        signed = await _body(request, budget, SignedKeyblock, MAX_KEYBLOCK_BYTES)
        with _refusing("keyblock"):
            desk.offer(signed)
        return mining_models.KeyblockTaken(keyblock_hash=keyblock_hash(signed.keyblock))

    @router.post(
        "/v1/mining/reveals",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra={"requestBody": {"content": {_MSGPACK: _REVEAL_BODY}}},
    )
    async def reveal_seed(request: Request) -> mining_models.RevealTaken:
        """Take the reveal that the seed of the epoch's leaders rests on, check it, and tell the network."""
        authorise(request, token)
        given = await _body(request, budget, SeedReveal, MAX_REVEAL_BYTES)
        with _refusing("reveal"):
            desk.reveal(given.epoch, given.signature)
        return mining_models.RevealTaken(epoch=given.epoch)

    return router


class _Queue:
    """Bounds how many wait."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self._waiting >= MAX_WAITING:
            detail = f"{MAX_WAITING} miners wait for work at this node"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, "use another node", {"Retry-After": "10"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


async def _wait(request: Request, desk: MiningDesk, epoch: int, wait_s: int) -> None:
    """Wait for another epoch, but not for a miner that has gone."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_gone)
        await desk.changed(epoch, wait_s)
        nursery.cancel_scope.cancel()


async def _body(request: Request, budget: Budget, kind: type[T], limit_bytes: int) -> T:
    content_type(request, (_MSGPACK,))
    raw = await read_body(request, limit_bytes, budget)
    try:
        return decode(kind, raw, limit_bytes)
    except InvalidInput as error:
        remedy = "encode it as the protocol reference says"
        raise Problem(HTTPStatus.BAD_REQUEST, "malformed_body", str(error)[:500], remedy) from error


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what the desk refuses into problems that a miner can tell apart."""
    try:
        yield
    except NoChainYet as error:
        remedy = "wait until the node's status says that it is no longer joining"
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "joining", str(error), remedy, {"Retry-After": "10"}) from error
    except StaleWork as error:
        raise Problem(HTTPStatus.CONFLICT, f"stale_{what}", str(error), "GET /v1/mining/work") from error
    except InvalidInput as error:
        remedy = "correct the miner, or its clock"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"bad_{what}", str(error), remedy) from error
