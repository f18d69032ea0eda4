# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network: loses, delays, reorders, doubles and cuts, as the scenario says, until the faults end."""

import random
from collections.abc import Callable
from enum import StrEnum

from consensus.messages import Certified, Offer, Proposal, Reveal, Timeout, Vote
from simulation.scenario import Scenario
from simulation.scheduler import Scheduler
from simulation.trace import Trace
from simulation.twins import Twins

SLOW_MS = 2_000
"""A slow message takes up to this: longer than the shortest patience, so that it arrives in another term."""
HEALED_DELAY_MS = 10
"""Longest delay after the faults."""


class Kind(StrEnum):
    """What a datagram holds."""

    MESSAGE = "message"
    """A consensus message."""
    BATCH = "batch"
    """A batch of transactions, as gossip brings it."""
    ASK_CHAIN = "ask-chain"
    """A request for certified microblocks (`node.wire.ChainRequest`)."""
    CHAIN = "chain"
    """The answer (`node.wire.ChainAnswer`)."""
    BATCHES = "batches"
    """The answer to a request for batches (`node.wire.BatchesAnswer`)."""
    ASK_BATCHES = "ask-batches"
    """A request for batches (`node.wire.Digests`)."""
    DATA = "data"
    """The answer to a request for data of off-chain contracts (`node.wire.BatchesAnswer`)."""
    ASK_DATA = "ask-data"
    """A request for data of off-chain contracts, by its digests (`node.wire.Digests`)."""


_KINDS_OF_MESSAGE = (Proposal, Vote, Timeout, Certified, Offer, Reveal)
# A message is an array that begins with its tag.
_NAMES = {bytes([tag]): kind.__name__.lower() for tag, kind in enumerate(_KINDS_OF_MESSAGE, start=1)}


class Network:
    """Carries bytes from replica to replica."""

    def __init__(
        self,
        scenario: Scenario,
        twins: Twins,
        scheduler: Scheduler,
        rng: random.Random,
        trace: Trace,
        deliver: Callable[[int, int, Kind, bytes], None],
    ) -> None:
        self._scenario = scenario
        self._twins = twins
        self._scheduler = scheduler
        self._rng = rng
        self._trace = trace
        self._deliver = deliver

    @property
    def faulty(self) -> bool:
        """Tell whether the faults go on."""
        return self._scheduler.now_ms < self._scenario.faults_ms

    def send(self, source: int, target: int, kind: Kind, payload: bytes) -> None:
        """Send bytes; they may never arrive."""
        scenario, rng = self._scenario, self._rng
        if self._twins.are_apart(source, target):
            return
        if self.faulty and (rng.randrange(100) < scenario.loss_percent or self._is_cut(source, target)):
            return
        self._carry(source, target, kind, payload)
        if self.faulty and rng.randrange(100) < scenario.duplicate_percent:
            self._carry(source, target, kind, payload)

    def _carry(self, source: int, target: int, kind: Kind, payload: bytes) -> None:
        def arrive() -> None:
            if self.faulty and self._is_cut(source, target):
                return
            what = _NAMES.get(payload[1:2], kind) if kind == Kind.MESSAGE else kind
            # Batches go round and round; that they came shows in what follows.
            shown = kind != Kind.BATCH
            self._trace.note(self._scheduler.now_ms, f"{source} → {target} {what}", payload, shown=shown)
            self._deliver(source, target, kind, payload)

        self._scheduler.after(self._delay_ms(), arrive)

    def _delay_ms(self) -> int:
        scenario, rng = self._scenario, self._rng
        if not self.faulty:
            return rng.randint(1, min(scenario.delay_ms, HEALED_DELAY_MS))
        if rng.randrange(100) < scenario.slow_percent:
            return rng.randint(scenario.delay_ms, SLOW_MS)
        return rng.randint(1, scenario.delay_ms)

    def _is_cut(self, source: int, target: int) -> bool:
        if self._twins.lives_twice(source, target):
            return False
        now = self._scheduler.now_ms
        return any(
            (source in partition.side) > (target in partition.side)
            or (not partition.one_way and (source in partition.side) < (target in partition.side))
            for partition in self._scenario.partitions
            if partition.from_ms <= now < partition.until_ms
        )
