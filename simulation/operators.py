# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator of an off-chain contract: the production core, a journal that survives crashes, and a crash between any two steps.

The steps are those of a node: append an entry, take note that it is durable, answer a user, publish data, send the commitment. What was
not appended is lost in a crash, and so is every answer and batch that had not left.
"""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from contracts.journal import Accepted, JournalEntry, decode_entry, encode_entry
from contracts.machines.micro_fees import MICRO_FEES, MicroFeesParameters
from contracts.operator import AlreadyAccepted, Answer, Batch, Busy, Operator, OperatorLimits, Start
from contracts.shipped import MACHINES
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import CloseContract, CommitBatch, OpenContract
from ledger.contract_queries import contract_at, forced_at
from ledger.contract_state import Contract, contract_id_of
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, StoreError
from ledger.offchain import BatchCommitment, ContractTerms, deposit_request
from simulation.contract_plan import ContractPlan
from simulation.replica import Replica
from simulation.scheduler import Scheduler
from simulation.trace import Trace
from simulation.wishes import WAIT, Account, Wait

BOND_MICROCREDIT = 50_000
PARAMETERS = encode(MicroFeesParameters(1_000))
TICK_MS = 120
"""How often an operator looks whether a batch is due, and what the chain has forced."""
BACK_MS = 600
"""A torn operator is back after up to this."""
WAITING_BATCHES = 2
"""Batches cut and not committed: two fewer than those in which a forced request must be answered.

A request that is forced while they wait, and the open one is full, comes into the batch after it; with more of them it would be missed.
"""

Reply = Callable[[Answer | None], None]
"""Takes an answer, or None when the request was accepted earlier than memory reaches."""


class Surroundings(Protocol):
    """What operators see of the world."""

    scheduler: Scheduler
    trace: Trace

    @property
    def faulty(self) -> bool:
        """Whether the faults go on."""


class SimulatedOperator:
    """Runs one contract from its opening to its end."""

    may_tear = True
    """Whether crashes befall it."""
    back_ms = 0
    """When it comes back after one."""

    def __init__(
        self,
        chain_id: bytes,
        plan: ContractPlan,
        number: int,
        account: Account,
        home: Replica,
        world: Surroundings,
        rng: random.Random,
        request_of: Callable[[bytes], bytes],
    ) -> None:
        """`request_of` finds the bytes of a forced request in the chain by its digest."""
        self.chain_id = chain_id
        self.plan = plan
        self.number = number
        self.account = account
        self.home = home
        self.world = world
        self.rng = rng
        self.contract_id = contract_id_of(account.key.public_key, number)
        self.terms = ContractTerms(
            self.contract_id, MICRO_FEES.name, MICRO_FEES.version, PARAMETERS, account.key.public_key
        )
        self.core: Operator | None = None
        self.taken = 0
        """Forced requests that it has accepted."""
        self.to_commit: dict[int, BatchCommitment] = {}
        self._request_of = request_of
        self._journal: list[bytes] = []
        self._opened_ms: int | None = None
        self._buffer: list[JournalEntry] = []
        self._is_writing = False
        self._replies: dict[int, list[Reply]] = {}
        self._unpublished: list[Batch] = []
        self._is_closing = False

    @property
    def key(self) -> PrivateKey:
        """The operator's key."""
        return self.account.key

    def begin(self) -> None:
        """Open the contract, and run it."""
        self.account.wish(self.wanted)
        self.world.scheduler.after(TICK_MS, self._tick)

    def close(self) -> None:
        """End the contract as soon as everything is committed and answered."""
        self._is_closing = True

    def contract(self) -> Contract | None:
        """Return the contract as home knows it."""
        return contract_at(self.home.disk.store, self.contract_id)

    # ------------------------------------------------------------------ what it wants of the chain

    def wanted(self, replica: Replica) -> Body | Wait | None:
        """Return the next transaction."""
        contract = contract_at(replica.disk.store, self.contract_id)
        if contract is None:
            return OpenContract(self.number, MICRO_FEES.name, MICRO_FEES.version, PARAMETERS, BOND_MICROCREDIT)
        if contract.status != "open":
            self.core = None
            return None
        if self._opened_ms is None:
            self._opened_ms = contract.until_ms  # written down before the first request
        return self.next_commit(contract)

    def next_commit(self, contract: Contract) -> Body | Wait:
        """Return the commitment that comes next, or the end."""
        core = self.core
        if core is None:
            return WAIT
        core.committed(contract.batch_count - 1)
        commitment = self.to_commit.get(contract.batch_count)
        if commitment is not None:
            return CommitBatch(commitment)
        idle = core.number == contract.batch_count and not core.is_due(2**62)
        answered = contract.answered_count == contract.forced_count
        return CloseContract(self.contract_id) if self._is_closing and idle and answered else WAIT

    # ------------------------------------------------------------------ requests

    def receive(self, raw: bytes, reply: Reply) -> None:
        """Take a request of a user; one that is refused gets no answer here."""
        if self.core is None:
            return
        try:
            ticket = self.core.accept(raw, self.home.clock_ms())
        except AlreadyAccepted:
            reply(None)
            return
        except InvalidInput:
            return
        if ticket.answer is not None:
            reply(ticket.answer)
            return
        self._replies.setdefault(ticket.position, []).append(reply)
        self.append(ticket.entries)

    def take_forced(self, contract: Contract) -> None:
        """Accept what the chain has forced, in its order."""
        while self.core is not None and self.taken < contract.forced_count:
            row = forced_at(self.home.disk.store, contract, self.taken)
            assert row is not None, "what is not answered for finally is in the state"
            raw = (
                deposit_request(self.contract_id, row.deposit_sequence, row.account, row.amount_microcredit)
                if row.account
                else self._request_of(row.request_digest)
            )
            try:
                ticket = self.core.accept(raw, self.home.clock_ms(), is_forced=True)
            except Busy:
                return
            self.taken += 1
            self.append(ticket.entries)

    def _tick(self) -> None:
        self.world.scheduler.after(TICK_MS, self._tick)
        if self.home.core is None:
            return
        contract = self.contract()
        if contract is None or contract.status != "open" or self._opened_ms is None:
            return
        if self.core is None:
            self._come_back(contract)
        self.act(contract)
        self._publish()
        self.account.look()

    def act(self, contract: Contract) -> None:
        """Do what is due."""
        self.take_forced(contract)
        now_ms = self.home.clock_ms()
        if self.core is not None and (self._is_closing or self.core.is_due(now_ms)):
            try:
                cut = self.core.cut(now_ms)
            except Busy:
                return
            self.append((cut,) if cut is not None else ())

    # ------------------------------------------------------------------ durable steps

    def append(self, entries: Sequence[JournalEntry]) -> None:
        """Write entries, soon."""
        self._buffer += entries
        if self._buffer and not self._is_writing:
            self._is_writing = True
            core = self.core
            self.world.scheduler.after(self.rng.randint(1, 8), lambda: self._write(core))

    def _write(self, core: Operator | None) -> None:
        if core is not self.core or core is None:
            return  # crashed meanwhile
        self._is_writing = False
        while self._buffer:
            if self._is_torn():
                return
            self._journal.append(encode_entry(self._buffer.pop(0)))
        released = core.durable(len(self._journal))
        for position, answer in released.answers:
            for reply in self._replies.pop(position, ()):
                if self._is_torn():
                    return
                reply(answer)
        if not self._is_torn():
            self._unpublished += released.batches
            self._publish()

    def _publish(self) -> None:
        while self._unpublished and self.core is not None and self.home.core is not None:
            batch = self._unpublished.pop(0)
            try:
                self.publish(batch)
            except StoreError:
                self._unpublished.insert(0, batch)
                return  # home's disk is full: later
            if self._is_torn():
                return
        self.account.look()

    def publish(self, batch: Batch) -> None:
        """Publish the data of a batch, then commit it."""
        self.home.publish(batch.data)
        self.to_commit[batch.commitment.number] = batch.commitment

    def forget(self, entries: int) -> None:
        """Go on with another core that has made so many entries, as no honest operator does."""
        self._journal = [b""] * entries
        self._is_writing = False
        self._buffer.clear()
        self._replies.clear()
        self._unpublished.clear()

    def _is_torn(self) -> bool:
        may_tear = self.may_tear and self.world.faulty
        if not may_tear or self.rng.randrange(1000) >= self.plan.torn_per_mille:
            return False
        self.world.trace.note(self.world.scheduler.now_ms, f"operator {self.number} is torn")
        self.core = None
        self._is_writing = False
        self._buffer.clear()
        self._replies.clear()
        self._unpublished.clear()
        self.to_commit.clear()
        self.back_ms = self.world.scheduler.now_ms + self.rng.randint(50, BACK_MS)
        return True

    def _come_back(self, contract: Contract) -> None:
        if self.world.scheduler.now_ms < self.back_ms:
            return
        assert self._opened_ms is not None, "asked by the caller"
        limits = OperatorLimits(batch_age_ms=self.plan.batch_ms, waiting_batches=WAITING_BATCHES)
        start = Start(0, self._opened_ms)
        core = Operator(self.chain_id, self.terms, self.key, MACHINES, limits, start)
        entries = [decode_entry(raw) for raw in self._journal]
        self._unpublished = [
            batch for batch in core.recover(entries).batches if batch.commitment.number >= contract.batch_count
        ]
        self.taken = sum(1 for entry in entries if isinstance(entry, Accepted) and entry.is_forced)
        core.committed(contract.batch_count - 1)
        self.core = core
