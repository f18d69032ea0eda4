# SPDX-License-Identifier: GPL-3.0-or-later
"""News of committed microblocks, for API clients: subscriptions and waits for receipts. All bounded."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import trio

from ledger.transition import Receipt

EVENT_BUFFER = 64
"""Microblocks that a subscriber may fall behind before it is cut off: some seconds under load, when the identifiers in full
microblocks take 15 MB for all subscribers together."""
MAX_SUBSCRIBERS = 64
"""Each takes a connection and up to `EVENT_BUFFER` references."""
MAX_AWAITED = 200_000
"""Receipts waited for by all clients together, about 40 MB; whoever wants more gets what is known and asks again."""


class BlockEvent(msgspec.Struct, frozen=True):
    """A committed microblock."""

    height: int
    """Its height."""
    block_hash: bytes
    """Its hash."""
    timestamp_ms: int
    """Its time, in milliseconds since 1970 (UTC)."""
    transactions: int
    """Number of transactions that took effect."""
    rejected: int
    """Number of transactions that did not."""
    receipts: tuple[tuple[bytes, str], ...]
    """Identifier of each transaction and the reason of its rejection, or an empty text."""


class Events:
    """Who wants to know what."""

    def __init__(self) -> None:
        self._subscribers: set[trio.MemorySendChannel[BlockEvent]] = set()
        self._waiting: defaultdict[bytes, list[Waiter]] = defaultdict(list)
        self._awaited = 0

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[trio.MemoryReceiveChannel[BlockEvent]]:
        """Give a channel of events; it ends when the subscriber is too slow or there are too many of them."""
        send, receive = trio.open_memory_channel[BlockEvent](EVENT_BUFFER)
        if len(self._subscribers) < MAX_SUBSCRIBERS:
            self._subscribers.add(send)
        else:
            send.close()
        try:
            yield receive
        finally:
            self._subscribers.discard(send)
            send.close()
            receive.close()

    def publish(self, event: BlockEvent) -> None:
        """Tell all subscribers."""
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._subscribers.discard(subscriber)
                subscriber.close()

    def wait_for(self, ids: Iterable[bytes]) -> "Waiter":
        """Register a wait for receipts; `forget` it afterwards. It is over at once when too many are waited for."""
        waiter = Waiter(set(ids))
        if self._awaited + len(waiter.missing) > MAX_AWAITED:
            waiter.give_up()
            return waiter
        self._awaited += len(waiter.missing)
        for identifier in waiter.missing:
            self._waiting[identifier].append(waiter)
        return waiter

    def is_awaited(self, identifier: bytes) -> bool:
        """Tell whether anybody waits for the receipt."""
        return identifier in self._waiting

    def resolve(self, identifier: bytes, receipt: Receipt) -> None:
        """Hand a final receipt to those who wait for it."""
        for waiter in self._waiting.pop(identifier, ()):
            self._awaited -= 1
            waiter.resolve(identifier, receipt)

    def forget(self, waiter: "Waiter") -> None:
        """Drop a wait."""
        for identifier in waiter.missing:
            waiting = self._waiting.get(identifier)
            if waiting is not None and waiter in waiting:
                self._awaited -= 1
                waiting.remove(waiter)
                if not waiting:
                    del self._waiting[identifier]


class Waiter:
    """A wait for some receipts."""

    def __init__(self, missing: set[bytes]) -> None:
        self.missing = missing
        """Identifiers still without a receipt."""
        self.receipts: dict[bytes, Receipt] = {}
        """What has come."""
        self._done = trio.Event()
        if not missing:
            self._done.set()

    def resolve(self, identifier: bytes, receipt: Receipt) -> None:
        """Take a receipt."""
        self.missing.discard(identifier)
        self.receipts[identifier] = receipt
        if not self.missing:
            self._done.set()

    def give_up(self) -> None:
        """End the wait without the rest."""
        self._done.set()

    async def wait(self) -> None:
        """Wait until all receipts are here."""
        await self._done.wait()
