# SPDX-License-Identifier: GPL-3.0-or-later
"""Those who hand in transactions: clients with transfers, and replicas that report whoever broke the protocol."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from ledger import testing
from ledger.bodies import ReportMisbehaviour, Transfer
from ledger.evidence import Evidence
from ledger.state import OFFENCES, State
from ledger.transactions import encode_batch, transaction_id
from simulation.replica import Replica
from simulation.scenario import Scenario
from simulation.scheduler import Scheduler
from simulation.trace import Trace

FIRST_CLIENT = 100
"""Clients' keys are apart from members' keys."""
RESUBMIT_MS = 2_000
"""A client that sees no receipt asks another replica after this; a report that has not taken effect is made again."""
SPREAD_MS = 400
"""Times the number of replicas: within so long each reports, unless another one did meanwhile."""
EXPIRY_MICROBLOCKS = 900
"""Transactions expire at multiples of this: beyond the end of most runs, and within what the test network allows."""


def expiry_after(height: int) -> int:
    """Return the expiry of what is signed at a height; the same for a long time, so that handing in again makes no other transaction."""
    return (height // EXPIRY_MICROBLOCKS + 1) * EXPIRY_MICROBLOCKS


class Surroundings(Protocol):
    """What clients see of the world."""

    scheduler: Scheduler
    trace: Trace


class Clients:
    """Transactions that must take effect in the end, on every honest replica (I5)."""

    def __init__(self, chain_id: bytes, scenario: Scenario, honest: Sequence[Replica], world: Surroundings) -> None:
        self._chain_id = chain_id
        self._scenario = scenario
        self._honest = honest
        self._world = world
        self._rng = random.Random(f"clients {scenario.seed}")
        self._open: dict[int, dict[bytes, None]] = {}
        """By client, the transactions of which one must take effect: each was made when the one before it had expired."""
        self._offenders: dict[bytes, None] = {}
        self._reporting: set[tuple[int, bytes]] = set()
        self._progressed = True

    def begin(self) -> None:
        """Plan all transfers, at random times during the faults."""
        for client in range(FIRST_CLIENT, FIRST_CLIENT + self._scenario.transactions):
            self._open[client] = {}
            self._world.scheduler.at(self._rng.randrange(self._scenario.faults_ms), partial(self._submit, client))

    def report(self, replica: Replica, evidence: Evidence) -> None:
        """An honest replica has a proof: it brings it to the chain, as `node.reporter` does."""
        offender = evidence.offender
        if (replica.number, offender) in self._reporting or _is_known(replica, offender):
            return
        self._offenders[offender] = None
        self._reporting.add((replica.number, offender))
        delay_ms = self._rng.randrange(SPREAD_MS * self._scenario.replicas)
        self._world.scheduler.after(delay_ms, partial(self._send_report, replica, evidence))

    def committed(self) -> None:
        """An honest replica has committed something."""
        self._progressed = True

    def is_done(self) -> bool:
        """Tell whether all has taken effect everywhere; cheap when nothing was committed since."""
        if self._progressed:
            self._progressed = False
            for client in [c for c in self._open if all(self._is_served(c, replica) for replica in self._honest)]:
                del self._open[client]
            for offender in [o for o in self._offenders if all(_is_known(replica, o) for replica in self._honest)]:
                del self._offenders[offender]
        return not (self._open or self._offenders)

    def missing(self) -> str:
        """Say what has not taken effect everywhere."""
        return f"{len(self._open)} transactions and {len(self._offenders)} reports have not taken effect everywhere"

    def _is_served(self, client: int, replica: Replica) -> bool:
        receipts = (replica.disk.store.receipt(identifier) for identifier in self._open[client])
        return any(receipt is not None and not receipt.reason for receipt in receipts)

    def _submit(self, client: int) -> None:
        """A client tries replicas until a transaction of it has taken effect somewhere."""
        if client not in self._open or any(self._is_served(client, replica) for replica in self._honest):
            return
        replica = self._rng.choice(self._honest)
        sender, body = testing.key(client), Transfer(testing.key(client + 1).address, 1)
        raw = testing.signed(self._chain_id, sender, body, expiry_height=expiry_after(replica.disk.store.head().height))
        self._open[client][transaction_id(raw)] = None
        self._hand_in(replica, raw)
        self._world.scheduler.after(RESUBMIT_MS, partial(self._submit, client))

    def _send_report(self, replica: Replica, evidence: Evidence) -> None:
        if _is_known(replica, evidence.offender):
            return
        store = replica.disk.store
        nonce, expiry_height = State(store).account(replica.key.address).nonce, expiry_after(store.head().height)
        body = ReportMisbehaviour(evidence)
        raw = testing.signed(self._chain_id, replica.key, body, nonce, expiry_height=expiry_height)
        self._hand_in(replica, raw)
        self._world.scheduler.after(RESUBMIT_MS, partial(self._send_report, replica, evidence))

    def _hand_in(self, replica: Replica, raw: bytes) -> None:
        if replica.core is not None:
            self._world.trace.note(self._world.scheduler.now_ms, f"client → {replica.number}", raw)
            replica.submit(encode_batch([raw]))


def _is_known(replica: Replica, offender: bytes) -> bool:
    return State(replica.disk.store).get(OFFENCES, offender) is not None
