# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's desk for miners: work from the running epoch, results to the core and to everyone else."""

from collections.abc import Callable, Iterable

import trio

from consensus.events import Received
from consensus.messages import Message, Offer, Reveal
from ledger.blocks import SignedKeyblock
from ledger.errors import StoreError
from node.clock import now_ms
from node.driver import Driver
from node.mining import MiningWork, NoChainYet, StaleWork, check_offer, check_reveal, work_in

REPEAT_S = 0.5
"""Least time between two repetitions to all peers: miners repeat once a second, and anybody can repeat what gossip has told it."""


class NodeMiningDesk:
    """Implements `node.mining.MiningDesk` over the driver of a running node."""

    def __init__(
        self,
        *,
        driver: Driver,
        broadcast: Callable[[Message], None],
        send: Callable[[str, Message], object],
        peers: Callable[[], Iterable[str]],
        joining: Callable[[], str],
    ) -> None:
        """`broadcast` tells everyone by gossip, `send` one peer directly; `joining` tells what the node does to find its chain."""
        self._driver = driver
        self._broadcast = broadcast
        self._send = send
        self._peers = peers
        self._joining = joining
        self._changed = trio.Event()
        # The last message of each kind, and when it may be repeated: a miner has a keyblock to offer and a seed to reveal at one time.
        self._told: dict[type[Message], tuple[Message, float]] = {}

    def work(self, miner: bytes) -> MiningWork:
        """Return the work of a miner, by public key. Raises `NoChainYet`."""
        self._check_chain()
        core = self._driver.core
        return work_in(core.epoch, miner, is_open=not core.wants_reveal)

    async def changed(self, epoch: int, wait_s: float) -> None:
        """Return when another epoch than this one runs, at the latest after so many seconds."""
        with trio.move_on_after(wait_s):
            while self._driver.core.epoch.number == epoch:
                await self._changed.wait()

    def epoch_began(self) -> None:
        """Wake those who wait for the next epoch."""
        self._changed.set()
        self._changed = trio.Event()

    def offer(self, signed: SignedKeyblock) -> None:
        """Check a keyblock and tell everyone of it. Raises `NoChainYet`, `StaleWork`, `InvalidInput`, `StoreError`."""
        self._check_chain()
        core = self._driver.core
        check_offer(core.epoch, signed, now_ms())
        if core.candidate is not None and core.candidate != signed:
            raise StaleWork("another keyblock came first in this epoch: mine on until it is pinned, then get new work")
        self._tell(Offer(signed))

    def reveal(self, epoch: int, signature: bytes) -> None:
        """Check a reveal and tell everyone of it. Raises `NoChainYet`, `StaleWork`, `InvalidInput`, `StoreError`."""
        self._check_chain()
        check_reveal(self._driver.core.epoch, epoch, signature)
        self._tell(Reveal(epoch, signature))

    def _check_chain(self) -> None:
        doing = self._joining()
        if doing:
            raise NoChainYet(f"this node has not chosen its chain yet: {doing}")

    def _tell(self, message: Message) -> None:
        if self._driver.halted:
            raise StoreError(f"this node cannot write: {self._driver.halted}; use another node")
        told, next_repetition_s = self._told.get(type(message), (None, 0.0))
        if message != told:
            # Everyone passes gossip on once; who missed it, or has started since, hears of a repetition directly.
            self._told[type(message)] = (message, 0.0)
            self._broadcast(message)
        elif trio.current_time() >= next_repetition_s:
            self._told[type(message)] = (message, trio.current_time() + REPEAT_S)
            for peer in self._peers():
                self._send(peer, message)
        self._driver.handle(Received(message))
