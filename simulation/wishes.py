# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts that want something of the chain: each sends a transaction again and again until the state shows what was wanted.

A wish is asked what to send in view of the newest state. So nobody depends on one transaction: it may be lost, refused because another
one of the account came first, or not be needed any more.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ledger import testing
from ledger.bodies import Body
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection
from ledger.state import State
from ledger.transactions import encode_batch
from simulation.replica import Replica
from simulation.scheduler import Scheduler
from simulation.trace import Trace

RESEND_MS = 1_200
"""A transaction without effect is sent again after this."""
EXPIRY_MICROBLOCKS = range(800, 900)
"""Ahead of the head, and within what the test network allows. In turn: a refused transaction stays refused, so another one is sent."""


class Wait:
    """A wish has nothing to send now."""


WAIT = Wait()
Wish = Callable[[Replica], Body | Wait | None]
"""Returns what to send, `WAIT`, or None when it is fulfilled or given up. The replica shows the state."""


class Surroundings(Protocol):
    """What accounts see of the world."""

    scheduler: Scheduler
    trace: Trace

    @property
    def faulty(self) -> bool:
        """Whether the faults go on."""


class Account:
    """One account's wishes, one after the other."""

    def __init__(
        self,
        chain_id: bytes,
        key: PrivateKey,
        world: Surroundings,
        rng: random.Random,
        replicas: Callable[[], list[Replica]],
    ) -> None:
        """`replicas` returns those that it may ask and send to, the one that it believes first."""
        self.key = key
        self.is_rude = False
        """Whether it sends what nodes refuse at once."""
        self._chain_id = chain_id
        self._world = world
        self._rng = rng
        self._replicas = replicas
        self._wishes: deque[Wish] = deque()
        self._sent: tuple[int, Body | None] = (-1, None)
        self._sent_ms = 0
        self._count = 0

    def wish(self, wish: Wish) -> None:
        """Want something more."""
        self._wishes.append(wish)
        self.look()

    @property
    def is_content(self) -> bool:
        """Whether all wishes are fulfilled."""
        return not self._wishes

    def look(self) -> None:
        """Do what can be done now."""
        replicas = self._replicas()
        while self._wishes and replicas:
            body = self._wishes[0](replicas[0])
            if body is None:
                self._wishes.popleft()
                continue
            if not isinstance(body, Wait):
                self._send(replicas, body)
            return

    def _send(self, replicas: list[Replica], body: Body) -> None:
        scheduler = self._world.scheduler
        nonce = State(replicas[0].disk.store).account(self.key.address).nonce
        if (nonce, body) == self._sent and scheduler.now_ms < self._sent_ms + RESEND_MS:
            return
        self._sent, self._sent_ms = (nonce, body), scheduler.now_ms
        up = [replica for replica in replicas if replica.core is not None]
        if up:
            replica = self._rng.choice(up)
            self._count += 1
            ahead = EXPIRY_MICROBLOCKS[self._count % len(EXPIRY_MICROBLOCKS)]
            expiry_height = replicas[0].disk.store.head().height + ahead
            raw = testing.signed(self._chain_id, self.key, body, nonce, expiry_height=expiry_height)
            self._world.trace.note(scheduler.now_ms, f"{type(body).__name__} → {replica.number}", raw)
            try:
                replica.submit(encode_batch([raw]))
            except Rejection:
                if not self.is_rude:
                    raise  # what somebody honest sends passes the first checks
        scheduler.after(RESEND_MS, self.look)
