# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP to one node: bounded, typed, with errors that say what to do. Synchronous; one per thread.

Reads are repeated when the node is busy or the connection breaks; writes never are: the caller knows whether that is safe.
"""

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import ValidationError

from ledger.errors import SpchainError
from node.api import models
from records.limits import MAX_BLOB_BYTES

M = TypeVar("M", bound=models.Model)
Query = Mapping[str, str | int | Sequence[str]]
"""Parameters of a request."""

DEFAULT_URL = "http://127.0.0.1:8080"
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Largest answer that is read; a thousand records take about 1 MB, a blob 8 MiB."""
ATTEMPTS = 3
"""Tries of a read; with the pauses between them about half a second."""
CONNECT_TIMEOUT_S = 3.0
PAUSE_S = 0.15
MSGPACK = {"Content-Type": "application/msgpack"}
BINARY = {"Content-Type": "application/octet-stream"}


class ApiError(SpchainError):
    """The node answered with a problem, or with something that is no answer of a node."""

    def __init__(self, status: int, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{reason}: {detail}" + (f"; {remedy}" if remedy else ""))
        self.status = status
        self.reason = reason
        self.detail = detail
        self.remedy = remedy


class NodeUnreachable(SpchainError):
    """No node answers under the address."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"no node answers at {url} ({cause}); is the node running? spchain devnet status")
        self.url = url


class NoUrl(NodeUnreachable):
    """What was given is no address of an API: asking again would not help."""

    def __init__(self, url: str) -> None:
        SpchainError.__init__(self, f"{url!r} is no URL of a node's API; give one such as {DEFAULT_URL}")
        self.url = url


class NodeTimeout(NodeUnreachable):
    """The node took the request and did not answer in time; a write may have taken effect."""

    def __init__(self, url: str, timeout_s: float) -> None:
        SpchainError.__init__(
            self, f"the node at {url} did not answer within {timeout_s:g} s; try again or another node"
        )
        self.url = url


class HttpClient:
    """A connection to one node; use it as a context manager, or `close` it."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        """Prepare; nothing is sent yet. Raises `NoUrl`."""
        if not _is_http(url):
            raise NoUrl(url)
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            # Nodes are reached directly: records must not pass a proxy that the environment happens to name.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def read(self, kind: type[M], path: str, params: Query | None = None) -> M:
        """Get something and return it typed; repeated when the node is busy or the connection breaks."""
        return self.parse(kind, self.repeat("GET", path, params))

    def repeat(self, method: str, path: str, params: Query | None = None) -> bytes:
        """Send a request without effects until it is answered, a few times at most."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.send(method, path, params=params)
            except NodeTimeout:
                raise
            except (NodeUnreachable, ApiError) as error:
                busy = isinstance(error, NodeUnreachable) or error.reason == "busy"
                if not busy or attempt == ATTEMPTS:
                    raise
                time.sleep(PAUSE_S * attempt)
        raise AssertionError("the last attempt returns or raises")

    def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Query | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a request once and return the body of the answer.

        Raises:
            ApiError: the node refuses it, or answers with something else.
            NodeUnreachable: no connection, or its kind `NodeTimeout`: no answer in time.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        timeout = httpx.Timeout(limit_s, connect=CONNECT_TIMEOUT_S)
        try:
            with self.http.stream(
                method, path, content=content, params=params, headers=headers, timeout=timeout
            ) as response:
                body = bounded(response)
                if response.is_success:
                    return body
                raise problem(response.status_code, body)
        except httpx.ConnectTimeout as error:
            raise NodeUnreachable(self.url, "time-out") from error
        except httpx.TimeoutException as error:
            raise NodeTimeout(self.url, limit_s) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NodeUnreachable(self.url, cause(error)) from error

    def parse(self, kind: type[M], body: bytes) -> M:
        """Return an answer's body as a type. Raises `ApiError` when it is none."""
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            detail = f"the answer of {self.url} is no {kind.__name__}: {error.errors(include_input=False)[0]['msg']}"
            raise ApiError(0, "bad_answer", detail, "is this a node of a matching version?") from error


def _is_http(url: str) -> bool:
    """Tell whether a text is the URL of some server; a host with what no name has in it is none."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return False
    is_named = bool(parsed.host) and (":" in parsed.host or "%" not in parsed.host)
    return parsed.scheme in ("http", "https") and is_named


def bounded(response: httpx.Response) -> bytes:
    """Return the body of an answer of at most `MAX_ANSWER_BYTES`. Raises `ApiError`."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            detail = f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
            raise ApiError(response.status_code, "bad_answer", detail, "is this a node?")
    return bytes(body)


def problem(status: int, body: bytes) -> ApiError:
    """Return the error that a problem document tells of."""
    try:
        document = json.loads(body)
        texts = [document[field] for field in ("reason", "detail", "remedy")]
    except (ValueError, TypeError, KeyError, RecursionError):
        texts = []
    if len(texts) != 3 or not all(isinstance(text, str) for text in texts):
        return ApiError(
            status, "bad_answer", f"HTTP status {status} without an explanation", "is this a node's address?"
        )
    return ApiError(status, *texts)


def cause(error: Exception) -> str:
    """Return what is known of a broken connection."""
    return str(error) or type(error).__name__


assert MAX_BLOB_BYTES <= MAX_ANSWER_BYTES
