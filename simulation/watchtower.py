# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchers of one honest replica: the production watcher follows each contract on the data that this replica holds.

Each judgement of it is compared with what replaying the data in plain code shows, at once: a watcher that takes a lie for right, or
accuses an honest operator, violates I12 even where another one would have helped.
"""

import random
from collections.abc import Callable, Mapping

from contracts.operator import Start
from contracts.shipped import MACHINES
from contracts.watcher import THOROUGH_LEAVES, Watcher
from ledger.bodies import Body
from ledger.contract_bodies import ChallengeBatch
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract
from ledger.errors import InvalidInput
from ledger.offchain import FraudProof, SignedReceipt
from simulation.reference_batches import Replayed
from simulation.replica import Replica
from simulation.scenario import Scenario
from simulation.violation import Violation, require
from simulation.wishes import WAIT, Account, Wait

AFTER = 2
LEADS = (1, 2, 3, 4)
"""Microblocks before the end of the window at which a late watcher sends: the challenge lands in the last one, or just misses it."""


class Watchtower:
    """All watchers of one replica."""

    def __init__(
        self,
        replica: Replica,
        scenario: Scenario,
        account: Account,
        truth: Callable[[bytes, int, CommittedBatch], Replayed],
        complaints: Mapping[bytes, list[SignedReceipt]],
        challenged: Callable[[bytes, int], None],
    ) -> None:
        """`complaints` are receipts by contract that users found broken; `challenged` hears of each challenge that leaves."""
        self.account = account
        self._replica = replica
        self._late = scenario.late_watchers
        # The others look at large batches only, and so at all of these, as a whole first.
        self._thorough_leaves = THOROUGH_LEAVES if replica.number % 2 == 0 else 0
        self._rng = random.Random(f"watchers {replica.number} {scenario.seed}")
        self._window = scenario.window_microblocks
        self._truth = truth
        self._complaints = complaints
        self._challenged = challenged
        self._watchers: dict[bytes, Watcher] = {}
        self._starts = replica.starts
        self._accused: set[tuple[bytes, int]] = set()

    def look(self) -> None:
        """Follow whatever is new, with the data that is here; ask for what is not."""
        if self._replica.core is None:
            return
        if self._starts != self._replica.starts:  # a crash: nothing of it was on the disk
            self._starts = self._replica.starts
            self._watchers.clear()
        for contract_id in self._complaints:
            contract = contract_at(self._replica.disk.store, contract_id)
            if contract is not None:
                self._follow(contract)
                self._check_complaints(contract)

    def _follow(self, contract: Contract) -> None:
        contract_id = contract.terms.contract_id
        while (row := self._row(contract, self._number(contract_id))) is not None:
            data = self._data(row)
            if data is None:
                return
            commitment = row.commitment
            if contract_id not in self._watchers:
                start = Start(0, commitment.from_ms)
                self._watchers[contract_id] = Watcher(
                    self._replica.chain_id, contract.terms, MACHINES, start, thorough_leaves=self._thorough_leaves
                )
            try:
                proof = self._watchers[contract_id].follow(commitment, data)
            except InvalidInput as error:
                raise Violation("I12", f"what members voted for cannot be watched: {error}") from error
            truth = self._truth(contract_id, commitment.number, row)
            wrong = "" if truth.is_only_within and proof is None and not self._thorough_leaves else truth.wrong
            told = f"the watcher of {self._replica.number} takes batch {commitment.number}"
            require("I12", proof is not None or not wrong, f"{told} for right, but it {wrong}")
            require("I12", proof is None or bool(wrong), f"{told} for wrong, but it is right")
            if proof is not None:
                self._accuse(contract_id, row, proof)
                return

    def _number(self, contract_id: bytes) -> int:
        watcher = self._watchers.get(contract_id)
        return 0 if watcher is None else watcher.number

    def _row(self, contract: Contract, number: int) -> CommittedBatch | None:
        return batch_at(self._replica.disk.store, contract, number)

    def _data(self, row: CommittedBatch) -> bytes | None:
        data = self._replica.disk.data.get(row.commitment.data_digest)
        if data is None:
            self._replica.want_data(row.commitment.data_digest)
        return data

    def _check_complaints(self, contract: Contract) -> None:
        contract_id = contract.terms.contract_id
        watcher = self._watchers.get(contract_id)
        for signed in self._complaints[contract_id]:
            row = self._row(contract, signed.receipt.number)
            data = None if row is None else self._data(row)
            if row is None or data is None or watcher is None:
                continue
            proof = watcher.broken_receipt(signed, row.commitment, data)
            require("I12", proof is not None, f"the watcher of {self._replica.number} finds a broken receipt kept")
            assert proof is not None, "just required"
            self._accuse(contract_id, row, proof)

    # ------------------------------------------------------------------ challenges

    def _accuse(self, contract_id: bytes, row: CommittedBatch, proof: FraudProof) -> None:
        place = (contract_id, row.commitment.number)
        if place in self._accused:
            return
        self._accused.add(place)
        body = ChallengeBatch(contract_id, row.commitment.number, proof)
        final_height = row.height + self._window
        lead = {0: self._window, 1: self._rng.choice(LEADS), AFTER: 0}[self._late]
        sent: list[int] = []

        def wish(replica: Replica) -> Body | Wait | None:
            contract = contract_at(replica.disk.store, contract_id)
            assert contract is not None, "it has had a batch"
            following = replica.disk.store.head().height + 1
            if body.number >= contract.batch_count or (following >= final_height and (sent or self._late != AFTER)):
                return None
            if following < final_height - lead:
                return WAIT
            if not sent:
                sent.append(following)
                self._challenged(contract_id, body.number)
            return body

        self.account.wish(wish)
