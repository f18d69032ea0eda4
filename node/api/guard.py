# SPDX-License-Identifier: GPL-3.0-or-later
"""Around every request: bounds on how many, how large and how slow, for whom, and an answer whatever happens inside (I13)."""

import ipaddress
import re
from contextlib import ExitStack
from http import HTTPStatus
from types import TracebackType
from typing import Self

import structlog
import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.api.errors import Problem, problem_of, respond

log = structlog.get_logger()

MAX_REQUESTS = 256
"""Requests worked on at once, streams of events among them; each takes about 50 KiB beside its body."""
BODY_BUDGET_BYTES = 64 * 1024 * 1024
"""Memory for all bodies that are being received or blobs being sent: eight of the largest. A node has 200 MB."""
BODY_TIMEOUT_S = 60.0
"""Time for a whole body: 8 MiB at 1.1 Mbit/s."""
_STACK = "spchain.stack"
_CALM = {"Retry-After": "1"}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^:]+))(?::[0-9]*)?")
_QUOTED_CHARACTERS = 80


class Budget:
    """Bytes of memory that requests take from one pot and give back when they end."""

    def __init__(self, total_bytes: int = BODY_BUDGET_BYTES) -> None:
        self._free_bytes = total_bytes

    def take(self, request: Request, size_bytes: int) -> None:
        """Take memory until the request's end; raises `Problem` when there is not enough."""
        if size_bytes > self._free_bytes:
            detail = "the node handles as many large requests as it may"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, "try again in a second", _CALM)
        stack: ExitStack = request.scope[_STACK]
        stack.enter_context(_Loan(self, size_bytes))

    def _change(self, size_bytes: int) -> None:
        self._free_bytes += size_bytes


class _Loan:
    def __init__(self, budget: Budget, size_bytes: int) -> None:
        self._budget, self._size_bytes = budget, size_bytes

    def __enter__(self) -> Self:
        self._budget._change(-self._size_bytes)  # noqa: SLF001 -- the budget's other half
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._budget._change(self._size_bytes)  # noqa: SLF001 -- as above


class Guard:
    """ASGI middleware, outermost.

    With `only_local`, requests must address this machine by its loopback name or address. A web page can let its own name point here
    once the browser has loaded it (DNS rebinding) and is then of the same origin as the node, but its requests still bear that name.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_requests: int = MAX_REQUESTS,
        body_timeout_s: float = BODY_TIMEOUT_S,
        *,
        only_local: bool = False,
    ) -> None:
        self._app = app
        self._only_local = only_local
        self._max_requests = max_requests
        self._body_timeout_s = body_timeout_s
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's start and stop."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # None is served; closing before accepting is answered with 403.
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = finished = False

        async def sending(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        self._running += 1
        try:
            if self._only_local:
                _check_host(scope)
            if self._running > self._max_requests:
                detail = f"{self._max_requests} requests are being served"
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, "try again in a second", _CALM)
            with ExitStack() as stack:
                scope[_STACK] = stack
                await self._app(scope, self._timed(receive), sending)
        except Exception as error:
            problem = problem_of(error)
            if problem.status is HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception("request failed", method=scope["method"], path=scope["path"][:200])
            if not started:
                await respond(problem)(scope, receive, sending)
            elif not finished:
                # An answer that breaks off must not look complete: the server cuts the connection.
                raise
        finally:
            self._running -= 1

    def _timed(self, receive: Receive) -> Receive:
        """Bound the time of the body; afterwards the client may stay silent, as it does while it reads an answer."""
        deadline: float | None = None
        complete = False

        async def receiving() -> Message:
            nonlocal deadline, complete
            if complete:
                return await receive()
            if deadline is None:
                deadline = trio.current_time() + self._body_timeout_s
            with trio.CancelScope(deadline=deadline) as scope:
                message = await receive()
            if scope.cancelled_caught:
                detail = f"the body did not arrive within {self._body_timeout_s:g} s"
                raise Problem(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", detail, "send it faster or in smaller parts")
            complete = not message.get("more_body", False)
            return message

        return receiving


def _check_host(scope: Scope) -> None:
    """Refuse a request that does not address this machine by a name that only this machine has; raises `Problem`."""
    hosts: list[str] = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if not hosts or not all(map(_is_local, hosts)):
        detail = f"this node, which has no API token, is not addressed as {', '.join(hosts)[:_QUOTED_CHARACTERS]!r}"
        remedy = "address it as localhost or 127.0.0.1, or give it a token (api_token_file in its config.toml)"
        raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "unknown_host", detail, remedy)


def _is_local(host: str) -> bool:
    """Tell whether a Host header, with or without a port, holds a loopback address or localhost."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        if found["v6"] is not None:
            return ipaddress.IPv6Address(found["v6"]).is_loopback
        return found["name"].lower() == "localhost" or ipaddress.IPv4Address(found["name"]).is_loopback
    except ValueError:
        return False
