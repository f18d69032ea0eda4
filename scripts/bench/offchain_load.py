# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of an off-chain contract: brings their signed requests to its operator when each is due, and keeps every receipt.

Users reach the node through gateways, as patients do through a clinic's server: a gateway has one connection, and brings what its users
have signed meanwhile in one call. So a user's requests arrive in their order, and the operator's node serves tens of calls a second.
"""

import http.client
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec

from ledger.codec import decoder
from ledger.offchain import SignedReceipt
from node.api.contract_models import MAX_SEND_REQUESTS

CALL_INTERVAL_S = 0.02
"""A gateway calls at most fifty times a second: what it waits for more requests counts as latency."""
CALL_TIMEOUT_S = 30.0
BUSY_S = 0.1
"""Pause of a gateway whose requests were refused for the moment."""
decode_receipt = decoder(SignedReceipt, 1024, name="receipt", own=True)
"""Decode a receipt as a node's API gives it; raises `InvalidInput`."""


class _Outcome(msgspec.Struct):
    accepted: bool
    reason: str
    detail: str
    receipt: str | None


class _Outcomes(msgspec.Struct):
    outcomes: list[_Outcome]


_decode_outcomes = msgspec.json.Decoder(_Outcomes).decode


@dataclass(frozen=True)
class Signed:
    """A request that was signed in advance."""

    raw: bytes
    """The request."""
    due_s: float
    """When it is due to be sent, in seconds after the start."""


@dataclass(frozen=True)
class Receipted:
    """A request with the operator's promise."""

    raw: bytes
    """The request."""
    receipt: bytes
    """The signed receipt, encoded."""
    due_s: float
    """When it was due to be sent, by `time.perf_counter`."""
    sent_s: float
    """When it was sent."""
    received_s: float
    """When the receipt was there."""

    def signed(self) -> SignedReceipt:
        """Return the receipt; raises `InvalidInput` for what is none."""
        return decode_receipt(self.receipt)


@dataclass
class Sent:
    """What became of a load."""

    receipted: list[Receipted] = field(default_factory=list)
    """Requests that the operator has signed for."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were refused for good, by reason."""
    busy: int = 0
    """Times that a request was put off because the operator was busy."""


class _Gateway:
    """One connection, and the users behind it."""

    def __init__(self, url: str, contract_id: bytes, requests: Sequence[Signed]) -> None:
        address = urlsplit(url)
        self._http = http.client.HTTPConnection(str(address.hostname), address.port, timeout=CALL_TIMEOUT_S)
        self._path = f"/v1/contracts/{contract_id.hex()}/requests"
        self._requests = requests
        self.sent = Sent()
        self.error: BaseException | None = None

    def run(self, start_s: float) -> None:
        """Bring all requests, each when it is due or as soon after as can be."""
        try:
            self._run(start_s)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._http.close()

    def _run(self, start_s: float) -> None:
        waiting: deque[Signed] = deque()
        following = 0
        called_s = 0.0
        while waiting or following < len(self._requests):
            earliest_s = start_s + (waiting[0] if waiting else self._requests[following]).due_s
            _sleep_until(max(earliest_s, called_s + CALL_INTERVAL_S))
            called_s = time.perf_counter()
            while following < len(self._requests) and start_s + self._requests[following].due_s <= called_s:
                waiting.append(self._requests[following])
                following += 1
            part = [waiting.popleft() for _ in range(min(len(waiting), MAX_SEND_REQUESTS))]
            put_off = self._call(part, start_s, called_s)
            if put_off:
                # In their order, before those that came after: a user's operations are numbered.
                waiting.extendleft(reversed(put_off))
                time.sleep(BUSY_S)

    def _call(self, part: list[Signed], start_s: float, sent_s: float) -> list[Signed]:
        """Send some requests; returns those to be sent again."""
        body = msgspec.msgpack.encode([request.raw for request in part])
        self._http.request("POST", self._path, body, {"Content-Type": "application/msgpack"})
        answer = self._http.getresponse()
        raw = answer.read()
        received_s = time.perf_counter()
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.sent.busy += len(part)
            return part
        assert answer.status == HTTPStatus.OK, f"{answer.status}: {raw[:500].decode(errors='replace')}"
        outcomes = _decode_outcomes(raw).outcomes
        is_busy = any(outcome.reason == "busy" for outcome in outcomes)
        put_off = []
        for request, outcome in zip(part, outcomes, strict=True):
            if outcome.accepted and outcome.receipt is not None:
                receipt = bytes.fromhex(outcome.receipt)
                self.sent.receipted.append(Receipted(request.raw, receipt, start_s + request.due_s, sent_s, received_s))
            elif is_busy:
                # Also what was refused only because the request before it was put off.
                put_off.append(request)
            else:
                self.sent.refused[f"{outcome.reason}: {outcome.detail}"[:200]] += 1
        self.sent.busy += len(put_off)
        return put_off


def _sleep_until(moment_s: float) -> None:
    delay_s = moment_s - time.perf_counter()
    if delay_s > 0:
        time.sleep(delay_s)


def send_all(url: str, contract_id: bytes, by_gateway: Sequence[Sequence[Signed]]) -> Sent:
    """Bring requests to a node, each gateway its own in their order; returns when all have their receipt or refusal."""
    gateways = [_Gateway(url, contract_id, requests) for requests in by_gateway]
    begin_s = time.perf_counter() + 0.1
    threads = [
        # Spread over the interval, as independent clinics are.
        threading.Thread(target=gateway.run, args=(begin_s + CALL_INTERVAL_S * index / len(gateways),))
        for index, gateway in enumerate(gateways)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Sent()
    for gateway in gateways:
        if gateway.error is not None:
            raise gateway.error
        total.receipted += gateway.sent.receipted
        total.refused += gateway.sent.refused
        total.busy += gateway.sent.busy
    return total
