# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings proofs of misbehaviour to the chain: one transaction of this node's account per offender, until the chain knows."""

import random

import structlog
import trio

from ledger.bodies import ReportMisbehaviour
from ledger.crypto.keys import address_of
from ledger.evidence import Evidence
from ledger.rules import MAX_COMMITTEE
from ledger.state import OFFENCES, State
from ledger.store import Store
from node.own_transactions import OwnTransactions

log = structlog.get_logger()

SPREAD_S = 2.0
"""Everyone who has seen the offence reports it, but not at one moment: one report is enough."""
RETRY_S = 5.0
"""Between two looks at whether reports have taken effect."""


class Reporter:
    """Evidence waiting to be committed; at most one per offender, and offenders are committee members."""

    def __init__(
        self,
        *,
        store: Store,
        transactions: OwnTransactions,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._rng = rng
        self._waiting: dict[bytes, Evidence] = {}
        self._trouble = ""
        self._some = trio.Event()

    def report(self, evidence: Evidence) -> None:
        """Take a proof; it is reported unless the chain has one of this offender."""
        known = self._is_known(evidence) or address_of(evidence.offender) == self._transactions.address
        if not known and len(self._waiting) < MAX_COMMITTEE:
            self._waiting.setdefault(evidence.offender, evidence)
            self._some.set()

    async def run(self) -> None:
        """Report whatever comes, until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await trio.sleep(self._rng.uniform(0, SPREAD_S))
            while self._waiting:
                for offender, evidence in list(self._waiting.items()):
                    if self._is_known(evidence):
                        del self._waiting[offender]
                        self._transactions.forget(offender)
                    elif not self._transactions.is_under_way(offender):
                        await self._send(evidence)
                if self._waiting:
                    await trio.sleep(RETRY_S)

    async def _send(self, evidence: Evidence) -> None:
        offender = evidence.offender
        outcome = await self._transactions.send(offender, ReportMisbehaviour(evidence))
        if outcome.accepted:
            log.info("misbehaviour reported", offender=offender.hex(), transaction=outcome.id.hex())
        elif outcome.detail != self._trouble:  # once, not at each attempt
            log.warning("misbehaviour cannot be reported yet", offender=offender.hex(), why=outcome.detail)
        self._trouble = outcome.detail

    def _is_known(self, evidence: Evidence) -> bool:
        return State(self._store).get(OFFENCES, evidence.offender) is not None
