# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's token: who has it may write, and make the node work."""

import hmac
from http import HTTPStatus

from starlette.requests import Request

from node.api.errors import Problem


def authorise(request: Request, token: bytes | None) -> None:
    """Refuse a request without the operator's token when there is one; raises `Problem`."""
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token):
        detail = "this node takes writes and costly questions only with its operator's token"
        remedy = "send 'Authorization: Bearer <token>' (spchain: environment SPCHAIN_API_TOKEN_FILE)"
        raise Problem(HTTPStatus.UNAUTHORIZED, "unauthorised", detail, remedy, {"WWW-Authenticate": "Bearer"})
