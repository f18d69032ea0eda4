# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of the API as problem documents (RFC 9457): type, title, status, reason, detail, remedy."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ledger.errors import InvalidInput, NotFound, Rejection, SpchainError, StoreError

MAX_FAULTS = 8
"""Faults of one request that are listed; enough to see the pattern."""
_JSON = "application/problem+json"


class Problem(SpchainError):
    """A request that cannot be served, with everything that the client is told."""

    def __init__(
        self, status: HTTPStatus, reason: str, detail: str, remedy: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.remedy = remedy
        self.headers = dict(headers or {})


def respond(problem: Problem) -> Response:
    """Return a problem's document."""
    document = {
        "type": f"urn:spchain:problem:{problem.reason}",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "reason": problem.reason,
        "detail": problem.detail,
        "remedy": problem.remedy,
    }
    return Response(msgspec.json.encode(document), problem.status.value, problem.headers, media_type=_JSON)


def problem_of(error: Exception) -> Problem:
    """Return what a client is told about an error; one of ours becomes an internal error without details."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Rejection):
        remedy = "correct the transaction and sign it again"
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason.value, error.detail, remedy)
    if isinstance(error, NotFound):
        return Problem(HTTPStatus.NOT_FOUND, "not_found", str(error), "check the identifier, or ask another node")
    if isinstance(error, InvalidInput):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_input", str(error), "correct the request")
    if isinstance(error, StoreError):
        remedy = "use another node, and tell this one's operator"
        return Problem(HTTPStatus.INSUFFICIENT_STORAGE, "storage", str(error), remedy)
    if isinstance(error, RequestValidationError):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameter", _faults(error), "correct the parameters")
    if isinstance(error, HTTPException):
        return _http_problem(error)
    detail = "a fault of the node's program; its log has the details"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail, "report it with the node's log")


async def handle(request: Request, error: Exception) -> Response:
    """Answer an error that an endpoint raised; FastAPI's exception handler."""
    del request
    return respond(problem_of(error))


def _http_problem(error: HTTPException) -> Problem:
    """Word the framework's own errors: unknown routes and methods."""
    status = HTTPStatus(error.status_code)
    known = {
        HTTPStatus.NOT_FOUND: ("no_such_route", "nothing is served under this path"),
        HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed", "this path does not take this method"),
    }
    reason, detail = known.get(status, ("http", status.description or status.phrase))
    return Problem(status, reason, detail, "see /v1/openapi.json for what there is", error.headers)


def _faults(error: RequestValidationError) -> str:
    # The values are the client's own, but may be long or odd: places and messages say enough.
    faults = [f"{'.'.join(str(step) for step in fault['loc'])[:80]}: {fault['msg']}" for fault in error.errors()]
    return "; ".join(faults[:MAX_FAULTS])
