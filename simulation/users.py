# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of an off-chain contract: they fund it, pay each other, withdraw, send again what got no answer, and force what is ignored.

They also abuse it: old, early, broken and unsigned requests, and the chain's own that nobody has forced. What they were promised they
keep, and hold against the committed batches.
"""

import random
from collections.abc import Callable, Sequence

from contracts.machines.micro_fees import Pay, Refund, Withdraw
from contracts.operator import Answer
from contracts.requests import sign_request
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import ForceOperation, FundContract
from ledger.contract_queries import contract_at
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.offchain import SignedReceipt, deposit_request
from ledger.state import State
from simulation.operators import SimulatedOperator
from simulation.replica import Replica
from simulation.scheduler import Scheduler
from simulation.wishes import WAIT, Account, Wait

DEPOSIT_MICROCREDIT = 5_000
RETRY_MS = 700
PATIENCE = 4
"""Tries without an answer, after which a user forces a request, once."""
REFERENCE = tagged_hash(Tag.BLOB, b"what it is for")


class User:
    """One user of one contract."""

    def __init__(
        self,
        chain_id: bytes,
        account: Account,
        operator: SimulatedOperator,
        others: Sequence[bytes],
        scheduler: Scheduler,
        rng: random.Random,
        promised: Callable[[bytes, SignedReceipt], None],
    ) -> None:
        """`others` are whom it pays, `promised` takes the receipts."""
        self.account = account
        self._chain_id = chain_id
        self._operator = operator
        self._others = others
        self._scheduler = scheduler
        self._rng = rng
        self._promised = promised
        self._next = 0
        self._queue: list[bytes] = []
        self._answered: list[bytes] = []
        self._tries = 0
        self._forced: set[bytes] = set()

    @property
    def is_content(self) -> bool:
        """Whether all requests are answered."""
        return not self._queue

    # ------------------------------------------------------------------ through the chain

    def fund(self, amount: int = DEPOSIT_MICROCREDIT) -> None:
        """Pay credits into the contract's escrow, for itself."""
        body = FundContract(self._operator.contract_id, self.account.key.address, amount)
        self.account.wish(self._once(body))

    def force(self) -> None:
        """Put a request before the operator through the chain: the one that waits, or one that was answered already."""
        candidates = self._queue[:1] or self._answered[-1:]
        if candidates and candidates[0] not in self._forced:
            self._forced.add(candidates[0])
            self.account.wish(self._once(ForceOperation(self._operator.contract_id, candidates[0])))

    def _once(self, body: FundContract | ForceOperation) -> Callable[[Replica], Body | Wait | None]:
        first: list[int] = []

        def wish(replica: Replica) -> Body | Wait | None:
            contract = contract_at(replica.disk.store, self._operator.contract_id)
            if contract is None:
                return WAIT
            nonce = State(replica.disk.store).account(self.account.key.address).nonce
            if not first:
                first.append(nonce)
            # Nobody else sends for this account, so its next number tells whether this has taken effect.
            return None if contract.status != "open" or nonce > first[0] else body

        return wish

    # ------------------------------------------------------------------ to the operator

    def ask(self) -> None:
        """Make a request, and send it when those before it are answered."""
        count = self._rng.choice((1, 1, 2, 5))
        operations = [self._operation() for _ in range(count)]
        contract_id = self._operator.contract_id
        self._queue.append(sign_request(self._chain_id, self.account.key, contract_id, self._next, operations))
        self._next += count
        if len(self._queue) == 1:
            self._try()

    def _operation(self) -> object:
        kind = self._rng.randrange(10)
        other, amount = self._rng.choice(self._others), self._rng.choice((0, 1, 7, 900, 4_000))
        if kind == 0:
            return b"\xc1 no operation"
        if kind == 1:
            return Refund(other, amount)
        if kind <= 3:
            return Withdraw(amount)
        return Pay(other, amount, REFERENCE)

    def _try(self) -> None:
        if not self._queue:
            return
        raw = self._queue[0]
        self._tries += 1
        if self._tries == PATIENCE:
            self.force()
        self.send(raw, lambda answer: self._take(raw, answer))
        self._scheduler.after(RETRY_MS, lambda: self._again(raw))

    def _again(self, raw: bytes) -> None:
        if self._queue[:1] == [raw]:
            self._try()

    def _take(self, raw: bytes, answer: Answer | None) -> None:
        if answer is not None:
            self._promised(raw, answer.signed)
        if self._queue[:1] == [raw]:
            self._answered.append(self._queue.pop(0))
            self._tries = 0
            self._try()

    def send(self, raw: bytes, reply: Callable[[Answer | None], None]) -> None:
        """Send bytes to the operator; they and the answer may be lost."""

        def arrive() -> None:
            self._operator.receive(raw, lambda answer: self._carry(lambda: reply(answer)))

        self._carry(arrive)

    def _carry(self, action: Callable[[], None]) -> None:
        if not self._operator.world.faulty or self._rng.randrange(10):
            self._scheduler.after(self._rng.randint(1, 30), action)

    def give_up(self) -> None:
        """The contract has ended: what was not answered never will be."""
        self._queue.clear()

    # ------------------------------------------------------------------ abuse

    def abuse(self) -> None:
        """Send something that must change nothing, or nothing twice."""
        key, contract_id, rng = self.account.key, self._operator.contract_id, self._rng
        pay = Pay(rng.choice(self._others), 1, REFERENCE)
        known = self._answered or [b"\x93"]
        old = rng.choice(known)
        broken = bytearray(old)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        early = sign_request(self._chain_id, key, contract_id, self._next + rng.randint(1, 9), [pay])
        elsewhere = sign_request(bytes(32), key, contract_id, self._next, [pay])
        invented = deposit_request(contract_id, rng.randrange(3), key.address, 10**6)
        what = rng.choice((old, old, bytes(broken), early, elsewhere, invented, rng.randbytes(40), encode([1, 2])))

        def take(answer: Answer | None) -> None:
            if answer is not None:
                self._promised(what, answer.signed)

        self.send(what, take)
