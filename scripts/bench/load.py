# SPDX-License-Identifier: GPL-3.0-or-later
"""Offers signed transactions to nodes at a steady rate and sees, on the nodes' own event streams, when they commit."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import msgspec

from ledger.transactions import transaction_id

POST_INTERVAL_S = 0.05
"""Each node gets its share in twenty requests a second."""
MAX_POST = 2000
"""Transactions in one request; the API takes 4096."""


@dataclass
class Watch:
    """When each transaction was seen committed at one node, in seconds of `time.perf_counter`."""

    committed_s: dict[bytes, float] = field(default_factory=dict)
    """Time by transaction identifier; only those that took effect."""
    rejected: dict[bytes, str] = field(default_factory=dict)
    """Reason by transaction identifier."""

    def follow(self, url: str, stop: threading.Event) -> None:
        """Read a node's event stream until told to stop."""
        with (
            suppress(httpx.HTTPError),  # the node stops, or the stream falls behind: what is missing counts as lost
            httpx.Client(timeout=httpx.Timeout(30, read=60)) as client,
            client.stream("GET", f"{url}/v1/events", params={"receipts": "true"}) as answer,
        ):
            for line in answer.iter_lines():
                if stop.is_set():
                    return
                if line.startswith("data:"):
                    self._take(json.loads(line[5:]), time.perf_counter())

    def _take(self, event: dict[str, object], now_s: float) -> None:
        receipts = event.get("receipts")
        if not isinstance(receipts, list):
            return
        for text, reason in receipts:
            identifier = bytes.fromhex(text)
            if reason:
                self.rejected.setdefault(identifier, reason)
            else:
                self.committed_s.setdefault(identifier, now_s)


@dataclass(frozen=True)
class Offer:
    """What one node is offered."""

    url: str
    """Base URL of the node's API."""
    transactions: Sequence[bytes]
    """Signed transactions in order."""


@dataclass(frozen=True)
class Outcome:
    """What became of an offered load."""

    offered: int
    """Transactions submitted."""
    refused: int
    """Those that a node did not accept."""
    committed: int
    """Those that committed in time."""
    seconds: float
    """From the first submission to the last commit."""
    latencies_ms: tuple[float, ...]
    """From submission to commit as seen on the event stream of the node submitted to, ascending."""

    @property
    def per_second(self) -> float:
        """Committed transactions per second."""
        return self.committed / self.seconds if self.seconds > 0 else 0.0


def run_load(offers: Sequence[Offer], rate_per_s: float, patience_s: float = 30.0) -> Outcome:
    """Offer transactions to all nodes at `rate_per_s` together and wait until they are committed."""
    stop = threading.Event()
    watches = [Watch() for _ in offers]
    followers = [
        threading.Thread(target=watch.follow, args=(offer.url, stop), daemon=True)
        for watch, offer in zip(watches, offers, strict=True)
    ]
    for follower in followers:
        follower.start()
    time.sleep(0.5)  # let the streams open; a commit missed for that would only look slower
    submitted: list[dict[bytes, float]] = [{} for _ in offers]
    refused = [0 for _ in offers]
    start_s = time.perf_counter()

    def submit(index: int) -> None:
        refused[index] = _submit_all(offers[index], rate_per_s / len(offers), start_s, submitted[index])

    senders = [threading.Thread(target=submit, args=(index,)) for index in range(len(offers))]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    deadline_s = time.perf_counter() + patience_s
    while time.perf_counter() < deadline_s:
        if all(
            sent.keys() <= watch.committed_s.keys() | watch.rejected.keys()
            for sent, watch in _pairs(submitted, watches)
        ):
            break
        time.sleep(0.05)
    stop.set()
    latencies = sorted(
        (watch.committed_s[identifier] - sent_s) * 1000
        for sent, watch in _pairs(submitted, watches)
        for identifier, sent_s in sent.items()
        if identifier in watch.committed_s
    )
    last_s = max((max(watch.committed_s.values()) for watch in watches if watch.committed_s), default=start_s)
    return Outcome(
        offered=sum(len(offer.transactions) for offer in offers),
        refused=sum(refused),
        committed=len(latencies),
        seconds=last_s - start_s,
        latencies_ms=tuple(latencies),
    )


def _pairs(submitted: list[dict[bytes, float]], watches: list[Watch]) -> Iterator[tuple[dict[bytes, float], Watch]]:
    return iter(zip(submitted, watches, strict=True))


def _submit_all(offer: Offer, rate_per_s: float, start_s: float, submitted: dict[bytes, float]) -> int:
    """Submit on schedule whatever is due; what is late goes with the next request, so the offered rate holds."""
    refused = first = 0
    with httpx.Client(timeout=60) as client:
        while first < len(offer.transactions):
            time.sleep(POST_INTERVAL_S - (time.perf_counter() - start_s) % POST_INTERVAL_S)
            due = int((time.perf_counter() - start_s) * rate_per_s)
            part = list(offer.transactions[first : min(due, first + MAX_POST)])
            # The schedule's time, not the request's: waiting for a slow node counts as latency.
            submitted.update((transaction_id(raw), start_s + (first + n) / rate_per_s) for n, raw in enumerate(part))
            first += len(part)
            if part:
                refused += _post(client, offer.url, part, submitted)
    return refused


def _post(client: httpx.Client, url: str, part: list[bytes], submitted: dict[bytes, float]) -> int:
    headers = {"Content-Type": "application/msgpack"}
    answer = client.post(f"{url}/v1/transactions", content=msgspec.msgpack.encode(part), headers=headers)
    answer.raise_for_status()
    outcomes = answer.json()["outcomes"]
    refused = [raw for raw, outcome in zip(part, outcomes, strict=True) if not outcome["accepted"]]
    for raw in refused:
        submitted.pop(transaction_id(raw), None)
    return len(refused)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the ascending values lie (nearest rank); 0 of none."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
