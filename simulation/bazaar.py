# SPDX-License-Identifier: GPL-3.0-or-later
"""All that is about off-chain contracts in a run: operators, users, watchers, heirs and vandals, and when all of it is over.

I12 here: what honest watchers and users do is judged where they do it, what the chain says of contracts in
`simulation.reference_contracts`. A wrong batch may become final only when its challenge could not reach the chain in the window: while
messages are lost, or because the scenario has the watchers come late.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from ledger import testing
from ledger.bodies import Body
from ledger.contract_bodies import ForceOperation
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract, is_settled
from ledger.crypto.keys import PrivateKey
from ledger.offchain import SignedReceipt, request_digest
from ledger.rules import ContractRules
from ledger.transactions import CheckedTransaction
from simulation.contract_plan import ContractPlan
from simulation.heirs import Heir
from simulation.lying_operators import LyingOperator
from simulation.operators import SimulatedOperator
from simulation.reference_batches import Entries, Replayed
from simulation.reference_contracts import ReferenceContracts
from simulation.replica import Replica
from simulation.scenario import Scenario
from simulation.scheduler import Scheduler
from simulation.trace import Trace
from simulation.users import User
from simulation.vandals import Vandal
from simulation.violation import require
from simulation.watchtower import Watchtower
from simulation.wishes import Account, Wait

FIRST_PARTY = 400
"""Keys of operators, users, heirs and vandals are apart from those of members and clients."""
PARTIES = 20
"""Keys for each contract: an operator, an heir, then users."""
NEGLECT_MS = 8_000
"""Several times the age of any batch: operators that nothing hinders are never called dead, however fast the chain is."""
FORCED_BATCHES = 4
FINISH_MS = 2_500
"""After the faults, users have this long before operators begin to close."""
DESPAIR_MS = 6_000
"""After so long the heirs of liars' contracts force a request, to freeze what nobody closes."""
VANDALS_MS = 15_000
"""Vandals go on for so long after the faults: contracts end then."""
REACH_MICROBLOCKS = 9
"""A challenge that leaves in a whole network takes effect within so many microblocks, those under way and as many full of other things,
behind those that whatever waits already fills: transactions are ordered as they come."""
LOOK_MS = 400
"""Watchers look again after this, for data that had not come."""


def contract_rules(scenario: Scenario) -> ContractRules:
    """Return small terms, so that a run sees their ends."""
    return ContractRules(10_000, scenario.window_microblocks, FORCED_BATCHES, NEGLECT_MS, 8)


def contract_parties(scenario: Scenario) -> list[int]:
    """Return the numbers of the keys that need credits."""
    if not scenario.contracts:
        return []
    return list(range(FIRST_PARTY, FIRST_PARTY + PARTIES * len(scenario.contracts) + 1))


class Surroundings(Protocol):
    """What the bazaar sees of the world."""

    scheduler: Scheduler
    trace: Trace

    @property
    def faulty(self) -> bool:
        """Whether the faults go on."""


class Stall:
    """One contract with everybody in it."""

    def __init__(self, bazaar: "Bazaar", plan: ContractPlan, index: int) -> None:
        self.plan = plan
        first = FIRST_PARTY + 1 + PARTIES * index
        home = bazaar.honest[plan.home % len(bazaar.honest)]
        key = home.key if plan.is_member and home.number < bazaar.members else testing.key(first)
        rng = random.Random(f"contract {index} {bazaar.seed}")
        kind = LyingOperator if plan.lie else SimulatedOperator
        chain_id, world = bazaar.chain_id, bazaar.world
        account = bazaar.account(key, home)
        self.operator = kind(chain_id, plan, index, account, home, world, rng, bazaar.request_of)
        if isinstance(self.operator, LyingOperator):
            self.operator.elsewhere = rng.choice(bazaar.honest)
        self.contract_id = self.operator.contract_id
        people = [testing.key(first + 2 + number) for number in range(plan.users)]
        others = [person.address for person in people] + [home.key.address]
        self.users = [
            User(
                chain_id,
                bazaar.account(person),
                self.operator,
                [other for other in others if other != person.address],
                world.scheduler,
                random.Random(f"user {number} of contract {index} {bazaar.seed}"),
                partial(bazaar.promised, self),
            )
            for number, person in enumerate(people)
        ]
        heir = testing.key(first + 1)
        self.heir = Heir(chain_id, heir, self.contract_id, bazaar.rules, bazaar.entries_after)
        self.heir_account = bazaar.account(heir)
        self.receipts: dict[tuple[int, int], list[tuple[bytes, SignedReceipt]]] = {}
        self.complaints: list[SignedReceipt] = []
        self.checked_batches = 0
        self.rng = rng


class Bazaar:
    """Everybody who has to do with off-chain contracts."""

    def __init__(
        self, scenario: Scenario, honest: Sequence[Replica], reference: ReferenceContracts, world: Surroundings
    ) -> None:
        self.seed = scenario.seed
        self.members = scenario.members
        self.honest = list(honest)
        self.world = world
        self.chain_id = honest[0].chain_id
        self.rules = contract_rules(scenario)
        self._scenario = scenario
        self._reference = reference
        self._rng = random.Random(f"bazaar {scenario.seed}")
        self._accounts: list[Account] = []
        self._requests: dict[bytes, bytes] = {}
        self._height = 0
        self._progressed = True
        self._is_over = not scenario.contracts
        self._challenged: dict[tuple[bytes, int], tuple[int, int]] = {}
        """By batch, the height at which its first challenge left a whole network, and that by which it must have taken effect."""
        self._calm: set[tuple[bytes, int]] = set()
        if not scenario.contracts:
            return
        self._stalls = [Stall(self, plan, index) for index, plan in enumerate(scenario.contracts)]
        reference.honest_operators = {s.operator.key.public_key for s in self._stalls if not s.plan.lie} - {
            s.operator.key.public_key for s in self._stalls if s.plan.lie
        }
        reference.honest_watchers = {replica.key.address for replica in honest}
        self._complaints = {stall.contract_id: stall.complaints for stall in self._stalls}
        self._towers = {
            replica.number: Watchtower(
                replica,
                scenario,
                self.account(replica.key, replica),
                self._truth,
                self._complaints,
                self._has_challenged,
            )
            for replica in honest
        }
        accounts = [user.account.key.address for stall in self._stalls for user in stall.users]
        self._vandal_account = self.account(testing.key(FIRST_PARTY))
        self._vandal_account.is_rude = True
        self._vandal = Vandal(
            [stall.operator for stall in self._stalls], accounts, self._receipts_of, self.entries_after, self._rng
        )

    # ------------------------------------------------------------------ what everybody uses

    def account(self, key: PrivateKey, home: Replica | None = None) -> Account:
        """Return an account that asks the replica that is furthest, or its own, and sends to anybody honest, or there."""

        def replicas() -> list[Replica]:
            if home is not None:
                return [home]
            return sorted(self.honest, key=_height, reverse=True)

        account = Account(self.chain_id, key, self.world, self._rng, replicas)
        self._accounts.append(account)
        return account

    def request_of(self, digest: bytes) -> bytes:
        """Return the bytes of a request that the chain has forced."""
        return self._requests[digest]

    def entries_after(self, replica: Replica, contract: Contract, number: int) -> Entries | None:
        """Return the state of a contract after a batch; None when a batch up to it is wrong."""
        rows = (batch_at(replica.disk.store, contract, at) for at in range(number + 1))
        replays = [self._truth(contract.terms.contract_id, at, row) for at, row in enumerate(rows) if row is not None]
        return None if any(replayed.wrong for replayed in replays) else replays[-1].entries

    def _truth(self, contract_id: bytes, number: int, row: CommittedBatch) -> Replayed:
        return self._reference.truth(contract_id, number, row.commitment)

    def _receipts_of(self, contract_id: bytes) -> Sequence[SignedReceipt]:
        stall = next((stall for stall in self._stalls if stall.contract_id == contract_id), None)
        if stall is None:
            return ()
        return [signed for promises in stall.receipts.values() for _, signed in promises]

    # ------------------------------------------------------------------ the course of a run

    def begin(self) -> None:
        """Plan all that happens during the faults."""
        if self._is_over:
            return
        faults_ms, scheduler = self._scenario.faults_ms, self.world.scheduler
        for stall in self._stalls:
            plan, rng = stall.plan, stall.rng
            stall.operator.begin()
            stall.heir_account.wish(stall.heir.wish)
            for user in stall.users:
                scheduler.at(rng.randrange(1 + faults_ms // 4), user.fund)
            times = [rng.randrange(faults_ms) for _ in range(plan.requests)]
            for time_ms in times:
                user = rng.choice(stall.users)
                scheduler.at(time_ms, user.ask)
                if rng.randrange(100) < plan.abuse_percent:
                    scheduler.at(time_ms + rng.randrange(2_000), user.abuse)
            for _ in range(plan.forced):
                user = rng.choice(stall.users)
                scheduler.at(rng.randrange(faults_ms), rng.choice((user.force, user.force, partial(user.fund, 77))))
        for _ in range(self._scenario.vandals):
            scheduler.at(self._rng.randrange(faults_ms + VANDALS_MS), self._vandalise)
        scheduler.after(LOOK_MS, self._look_again)

    def _vandalise(self) -> None:
        tries: list[Body | None] = []

        def wish(replica: Replica) -> Body | Wait | None:
            if not tries:
                tries.append(self._vandal.body(replica))
                return tries[0]
            tries.append(None)
            return tries[0] if len(tries) < 4 else None

        if self._vandal_account.is_content:
            self._vandal_account.wish(wish)

    def healed(self) -> None:
        """The faults are over: users finish, then operators close, then heirs see to the rest."""
        if not self._is_over:
            self.world.scheduler.after(FINISH_MS, self._finish)
            self.world.scheduler.after(DESPAIR_MS, self._despair)

    def _finish(self) -> None:
        """Close each contract whose users are content."""
        for stall in self._stalls:
            contract = stall.operator.contract()
            if contract is not None and contract.status != "open":
                for user in stall.users:
                    user.give_up()
            elif stall.plan.lie or all(user.is_content and user.account.is_content for user in stall.users):
                stall.operator.close()
        if not self._is_over:
            self.world.scheduler.after(LOOK_MS, self._finish)

    def _despair(self) -> None:
        for stall in self._stalls:
            stall.heir.must_force = bool(stall.plan.lie)
        self._look()

    # ------------------------------------------------------------------ what happens

    def committed(self, replica: Replica, height: int, transactions: Sequence[CheckedTransaction]) -> None:
        """An honest replica has committed a microblock."""
        self._progressed = True
        if self._is_over and not self._scenario.contracts:
            return
        tower = self._towers[replica.number]
        replica.later(self._rng.randint(0, 20), tower.look)
        if height > self._height:
            self._height = height
            for checked in transactions:
                body = checked.transaction.body
                if isinstance(body, ForceOperation):
                    self._requests[request_digest(body.request)] = body.request
            self._check_final(height)
            for stall in self._stalls if not self.world.faulty else ():
                facts = self._reference.contracts.get(stall.contract_id)
                fresh = [] if facts is None else [b for b in facts.batches if b.height == height]
                self._calm.update((stall.contract_id, batch.commitment.number) for batch in fresh)
            for stall in self._stalls:
                self._check_receipts(stall)
            # Behind the step that has committed: whoever sends something steps the core.
            self.world.scheduler.after(1, self._look)

    def has_data(self, replica: Replica) -> None:
        """An honest replica has got the data of a batch."""
        if self._scenario.contracts:
            replica.later(0, self._towers[replica.number].look)

    def _look(self) -> None:
        for account in self._accounts:
            account.look()

    def _look_again(self) -> None:
        for tower in self._towers.values():
            tower.look()
        self._look()
        if not self._is_over:
            self.world.scheduler.after(LOOK_MS, self._look_again)

    # ------------------------------------------------------------------ what is judged here

    def promised(self, stall: Stall, raw: bytes, signed: SignedReceipt) -> None:
        """A user gets a receipt: whom an honest operator gives a place has it alone and for good."""
        receipt = signed.receipt
        place = (receipt.number, receipt.index)
        known = stall.receipts.setdefault(place, [])
        if not stall.plan.lie:
            fits = receipt.leaf.request_digest == request_digest(raw)
            require("I12", fits, f"an honest operator gives a receipt for another request at {place}")
            same = all(other == signed for _, other in known)
            require("I12", same, f"an honest operator gives two receipts for place {place}")
        if all(other != signed for _, other in known):
            known.append((raw, signed))
            facts = self._reference.contracts.get(stall.contract_id)
            if facts is not None and receipt.number < len(facts.batches):
                self._check_receipt(stall, signed)

    def _check_receipts(self, stall: Stall) -> None:
        facts = self._reference.contracts.get(stall.contract_id)
        if facts is None:
            return
        for number in range(stall.checked_batches, len(facts.batches)):
            for (of, _), promises in list(stall.receipts.items()):
                if of == number:
                    for _, signed in promises:
                        self._check_receipt(stall, signed)
        stall.checked_batches = max(stall.checked_batches, len(facts.batches))

    def _check_receipt(self, stall: Stall, signed: SignedReceipt) -> None:
        facts, receipt = self._reference.contracts[stall.contract_id], signed.receipt
        leaves = facts.batches[receipt.number].replayed.leaves
        if receipt.index < len(leaves) and leaves[receipt.index] == receipt.leaf:
            return
        place = (receipt.number, receipt.index)
        require("I12", bool(stall.plan.lie), f"an honest operator breaks its receipt for place {place}")
        stall.complaints.append(signed)

    def _has_challenged(self, contract_id: bytes, number: int) -> None:
        if not self.world.faulty:
            waiting = {digest for replica in self.honest for digest, _ in replica.pool.pending()}
            filled = len(waiting) // self.honest[0].executor.epoch.parameters.block_batches
            due = self._height + filled + REACH_MICROBLOCKS
            self._challenged.setdefault((contract_id, number), (self._height, due))
        self.world.trace.note(self.world.scheduler.now_ms, f"batch {number} is challenged", contract_id)

    def _check_final(self, height: int) -> None:
        """No wrong batch becomes final whose challenge has left in time, in a whole network."""
        for contract_id, number in self._reference.newly_forged:
            left, due = self._challenged.get((contract_id, number), (None, height))
            told = f"wrong batch {number} is final at {height}"
            row = self._reference.contracts[contract_id].batches[number]
            reaches = left is not None and height > due
            may_be = self._scenario.late_watchers > 0 or not reaches
            require("I12", may_be, f"{told}, though challenged at {left}")
            is_shown = (contract_id, number) in self._calm and not row.replayed.is_only_within
            unseen = left is None and is_shown and not self._scenario.late_watchers
            require("I12", not unseen, f"{told}, and no watcher has challenged it")

    def is_done(self) -> bool:
        """Tell whether all contracts have ended and been emptied, on every honest replica."""
        if not self._is_over and self._progressed:
            self._progressed = False
            self._is_over = all(self._has_ended(stall, replica) for stall in self._stalls for replica in self.honest)
            if self._is_over:
                self._check_end()
        return self._is_over

    def _has_ended(self, stall: Stall, replica: Replica) -> bool:
        contract = contract_at(replica.disk.store, stall.contract_id)
        facts = self._reference.contracts.get(stall.contract_id)
        if contract is None or facts is None or contract.bond_microcredit:
            return False
        empty = not contract.escrow_microcredit or facts.is_forged
        return empty and is_settled(contract, replica.disk.store.head().height)

    def _check_end(self) -> None:
        """Nothing is left over; and an honest operator that could close has committed all that it gave receipts for."""
        self._reference.check_end([stall.contract_id for stall in self._stalls])
        for stall in self._stalls:
            facts = self._reference.contracts[stall.contract_id]
            if facts.status == "closed" and not stall.plan.lie:
                last = max((number for number, _ in stall.receipts), default=0)
                kept = not stall.receipts or last < len(facts.batches)
                require("I12", kept, f"an honest operator closes before batch {last}, for which it gave receipts")

    def missing(self) -> str:
        """Say what has not ended."""
        if self._is_over:
            return ""
        left = [
            (facts.status, facts.bond, facts.escrow, len(facts.batches), facts.answered, len(facts.forced))
            for facts in self._reference.contracts.values()
        ]
        return f"; contracts (status, bond, escrow, batches, answered, forced): {left} of {len(self._stalls)}"


def _height(replica: Replica) -> int:
    return replica.disk.store.head().height
