# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever operator, users and strangers do with a contract, in any order: credits are conserved (I7), nothing is paid twice, liars are
convicted, and once all is settled and claimed, everybody has what the last final batch gives them, and the contract holds nothing.

The operator's core and the machine are the real ones; somebody watches, so a lie is challenged in the last block of its window at the
latest.
"""

import random
from collections import Counter, deque
from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.batch_data import open_data
from contracts.machines.micro_fees import Pay, Refund, Withdraw
from contracts.operator import Batch
from contracts.requests import check_request
from ledger.contract_bodies import (
    ChallengeBatch,
    CloseContract,
    CommitBatch,
    ContractBody,
    ForceOperation,
    FreezeContract,
    FundContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_queries import final_count
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection, RejectionReason
from ledger.offchain import MAX_FORCED, InvalidRequest, deposit_request
from ledger.state import OFFENCES
from tests.ledger.contracts_kit import (
    ALICE,
    BOB,
    BOND,
    CAROL,
    CHAIN,
    DIGEST,
    FEE,
    IDENTIFIER,
    NEGLECT,
    OPERATOR,
    PENALTY,
    RULES,
    STRANGER,
    lying,
    opened,
    rebuilt,
)

USERS = (ALICE, BOB, CAROL)


def forgetful(batch: Batch) -> Batch:
    """Pass deposits off as the operator's own idea, or claim another end."""
    requests = [item.request for item in open_data(batch.commitment, batch.data).items]
    # A user's request may stand there uncited as well: it is one that the user has signed.
    if any(check_request(CHAIN, IDENTIFIER, raw).is_chain for raw in requests):
        return rebuilt(batch, list, forced=())
    return Batch(msgspec.structs.replace(batch.commitment, new_root=DIGEST), batch.data)


class Play:
    """One contract from its opening to its end."""

    def __init__(self) -> None:
        self.world, self.desk = opened()
        self.unanswered: deque[bytes] = deque()
        self.cut: deque[Batch] = deque()
        self.forced_in_batch = 0
        self.lie: Batch | None = None
        self.done: Counter[str] = Counter()
        self.funded = 0
        self.paid: Counter[bytes] = Counter()
        self.reclaimed: Counter[bytes] = Counter()

    def send(self, sender: PrivateKey, body: ContractBody, payee: PrivateKey | None = None) -> bool:
        """Send a transaction; returns whether it took effect. A refused one changes nothing, a false challenge costs its sender."""
        world = self.world
        before, escrow = world.state.changes(), world.contract.escrow_microcredit
        was = {key: world.balance(key) for key in {sender, *USERS, OPERATOR}}
        try:
            refused = world.act(sender, body)
        except Rejection:
            assert world.state.changes() == before
            return False
        world.check_i7()
        self._check_rows()
        left = escrow - world.contract.escrow_microcredit
        if refused is not None:
            assert refused.reason is RejectionReason.FALSE_CHALLENGE
            assert world.balance(sender) == was[sender] - FEE - PENALTY
            self.done["false challenge"] += 1
            return False
        if payee is not None:
            assert sender not in USERS
            assert left == world.balance(payee) - was[payee] > 0
            self.paid[payee.address] += left
        else:
            assert left <= 0
        self.done[type(body).__name__] += 1
        return True

    def _check_rows(self) -> None:
        """The search for final batches finds what counting finds, and what was forced later is never due earlier."""
        contract, height, window = self.world.contract, self.world.height, RULES.window_microblocks
        rows = [self.world.batch_row(number) for number in range(contract.batch_count)]
        final = sum(row.height + window <= height for row in rows)
        assert final_count(contract, rows.__getitem__, height, window) == final
        assert contract.answered_count == (rows[-1].answered_count if rows else 0)
        assert contract.cleared_count <= (rows[final - 1].answered_count if final else 0)
        if contract.status == "open":
            assert [number for number, _ in self.world.forced_rows()] == [
                *range(contract.cleared_count, contract.forced_count)
            ]
        dues = [row.due_batch for _, row in self.world.forced_rows()]
        assert dues == sorted(dues)

    # ------------------------------------------------------------ users

    def fund(self, n: int) -> None:
        user, amount = USERS[n % 3], 1 + n % 700
        sequence = self.world.contract.deposit_count
        if self.send(USERS[n // 3 % 3], FundContract(IDENTIFIER, user.address, amount)):
            self.unanswered.append(deposit_request(IDENTIFIER, sequence, user.address, amount))
            self.funded += amount

    def _signed(self, n: int) -> bytes:
        user, other = USERS[n % 3], USERS[n // 3 % 3]
        operations = (Pay(other.address, n % 400, DIGEST), Withdraw(n % 90), Refund(other.address, n % 50))
        return self.desk.sign(user, operations[n // 9 % 3])

    def ask(self, n: int) -> None:
        self._accept(self._signed(n), is_forced=False)

    def force(self, n: int) -> None:
        raw = self._signed(n)
        if self.send(STRANGER, ForceOperation(IDENTIFIER, raw)):
            self.unanswered.append(raw)
        if n % 4 == 0:
            self._accept(raw, is_forced=False)

    # ------------------------------------------------------------ the operator

    def _accept(self, raw: bytes, *, is_forced: bool) -> bool:
        try:
            self.desk.accept(raw, is_forced=is_forced)
        except InvalidRequest:
            assert not is_forced, "what the chain has forced can always be answered"
            return False
        return True

    def answer(self, n: int) -> None:
        for _ in range(1 + n % 5):
            if self.unanswered and self.forced_in_batch < MAX_FORCED:
                self._accept(self.unanswered.popleft(), is_forced=True)
                self.forced_in_batch += 1

    def commit(self, n: int) -> None:
        self._cut()
        if not self.cut or self.lie is not None:
            return
        batch = self.cut[0]
        is_lie = n % 13 == 0
        told = (lying, forgetful)[n // 13 % 2](batch) if is_lie else batch
        if self.send((OPERATOR, STRANGER)[n % 17 == 16], CommitBatch(told.commitment)):
            self.cut.popleft()
            if is_lie:
                self.lie = told

    def _cut(self) -> None:
        if self.desk.operator.is_due(2**62):
            self.cut.append(self.desk.cut())
            self.forced_in_batch = 0

    def close(self, n: int) -> None:
        if n % 5 == 0:
            self.send((OPERATOR, STRANGER)[n % 2], CloseContract(IDENTIFIER))

    # ------------------------------------------------------------ anybody

    def wait(self, n: int) -> None:
        """Let blocks pass; a lie is challenged before its window has."""
        for _ in range(1 + n % 3):
            lie = self.lie
            if lie is not None and self._is_contestable():
                last = self.world.batch_height(lie.commitment.number) + RULES.window_microblocks - 1
                if self.world.height == last:
                    self._convict(lie)
            self.world.height += 1

    def _is_contestable(self) -> bool:
        return self.lie is not None and self.lie.commitment.number < self.world.contract.batch_count

    def _convict(self, lie: Batch) -> None:
        number = lie.commitment.number
        assert self.send(STRANGER, ChallengeBatch(IDENTIFIER, number, self.desk.proof(lie)))
        self.lie = None
        contract = self.world.contract
        assert (contract.status, contract.bond_microcredit) == ("frozen", 0)
        assert self.world.is_settled
        assert contract.batch_count <= number

    def challenge(self, n: int) -> None:
        """Challenge the lie, or, without one, a right batch by the proof of another lie."""
        count = self.world.contract.batch_count
        if self.lie is not None and self._is_contestable():
            if n % 2:
                self._convict(self.lie)
        elif count and (count - 1) in self.desk.batches:
            other = lying(self.desk.batches[count - 1])
            proof = self.desk.proof(other)
            assert not self.send(STRANGER, ChallengeBatch(IDENTIFIER, count - 1, proof))

    def freeze(self, _n: int) -> None:
        self.send(STRANGER, FreezeContract(IDENTIFIER))

    def claim(self, n: int) -> None:
        user, contract = USERS[n % 3], self.world.contract
        number = n // 3 % (contract.batch_count + 1)
        if number in self.desk.states:
            whole = self.world.is_settled if n % 7 else n % 2 == 0
            self.send(STRANGER, self.desk.claim(user.address, number, with_balance=whole), user)

    def reclaim(self, n: int) -> None:
        number = n % (self.world.contract.forced_count + 1)
        row = dict(self.world.forced_rows()).get(number)
        payee = next((user for user in USERS if row is not None and user.address == row.account), None)
        if self.send(STRANGER, ReclaimDeposit(IDENTIFIER, number), payee) and row is not None:
            self.reclaimed[row.account] += row.amount_microcredit

    def release(self, _n: int) -> None:
        bond, was = self.world.contract.bond_microcredit, self.world.balance(OPERATOR)
        if self.send(STRANGER, ReleaseBond(IDENTIFIER)):
            assert self.world.balance(OPERATOR) == was + bond

    # ------------------------------------------------------------ the end

    def finish(self) -> None:
        """End the contract, have everybody paid everything, twice, and check who has what."""
        world = self.world
        if self._is_contestable() and self.lie is not None:
            self._convict(self.lie)
        if world.contract.status == "open" and not self.send(OPERATOR, CloseContract(IDENTIFIER)):
            world.height += NEGLECT
            assert self.send(STRANGER, FreezeContract(IDENTIFIER))
        world.height = max(world.height, world.contract.settles_height)
        assert world.is_settled
        count = world.contract.batch_count
        for _ in range(2):
            for user in USERS:
                if count:
                    self.send(STRANGER, self.desk.claim(user.address, count - 1, with_balance=True), user)
            for number in range(world.contract.forced_count):
                self.reclaim(number)
            self.release(0)
        contract = world.contract
        assert (contract.escrow_microcredit, contract.bond_microcredit) == (0, 0)
        assert contract.root == (self.desk.states[count - 1].root() if count else ZERO_DIGEST)
        for user in USERS:
            assert self.paid[user.address] == self._due(user) + self.reclaimed[user.address]
        assert sum(self.paid.values()) == self.funded
        convicted = world.state.get(OFFENCES, OPERATOR.public_key) is not None
        assert convicted == bool(self.done["ChallengeBatch"])
        assert self.done["ReleaseBond"] == (0 if convicted else 1)
        burnt = PENALTY * self.done["false challenge"] + (BOND - BOND // 2 if convicted else 0)
        assert world.state.supply().burnt_microcredit == burnt
        world.check_i7()

    def _due(self, user: PrivateKey) -> int:
        """Return what a user has by the last final batch: withdrawn or not."""
        count = self.world.contract.batch_count
        if not count:
            return 0
        state = self.desk.states[count - 1]
        values = [state.get(b"m" + kind + user.address) for kind in (b"w", b"b")]
        return sum(0 if value is None else int(msgspec.msgpack.decode(value)) for value in values)


Kind = Callable[[Play, int], None]
KINDS: tuple[Kind, ...] = (
    *(
        Play.fund,
        Play.fund,
        Play.ask,
        Play.ask,
        Play.force,
        Play.answer,
        Play.answer,
        Play.commit,
        Play.commit,
        Play.commit,
    ),
    *(Play.wait, Play.wait, Play.wait, Play.close, Play.challenge, Play.freeze, Play.claim, Play.claim, Play.reclaim),
    Play.release,
)


def play(steps: list[tuple[Kind, int]]) -> Play:
    run = Play()
    for kind, n in steps:
        kind(run, n)
    run.finish()
    return run


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5_000)), max_size=50))
def test_i7_and_everybody_gets_what_is_theirs_once(steps: list[tuple[Kind, int]]) -> None:
    play(steps)


def test_the_random_plays_reach_everything() -> None:
    """The same over seeds, longer; and that each kind of transaction has taken effect, both ways of every coin."""
    reached: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        run = play([(rng.choice(KINDS), rng.randrange(5_000)) for _ in range(90)])
        reached += run.done
        reached["batches before a conviction"] += bool(run.done["ChallengeBatch"] and run.world.contract.batch_count)
        reached["convictions without a final batch"] += bool(
            run.done["ChallengeBatch"] and not run.world.contract.batch_count
        )
    wanted = {
        *("FundContract", "ForceOperation", "CommitBatch", "ChallengeBatch", "FreezeContract", "CloseContract"),
        *("ClaimBalance", "ReclaimDeposit", "ReleaseBond", "false challenge"),
        *("batches before a conviction", "convictions without a final batch"),
    }
    assert all(reached[name] >= 5 for name in wanted), dict(reached)
