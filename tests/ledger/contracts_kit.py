# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for the tests of contracts on the chain: funded accounts, one operator with the real core, heights that pass."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from contracts.batch_data import BatchItem, commit, open_data
from contracts.machines.access_log import AccessLogParameters
from contracts.machines.micro_fees import MicroFeesParameters, Pay, balance_key, payable_keys
from contracts.operator import Batch, Operator, OperatorLimits, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from contracts.state_map import StateMap
from contracts.watcher import Watcher
from ledger import testing
from ledger.acts import BlockContext
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import ClaimBalance, CommitBatch, ForceOperation, FundContract, OpenContract
from ledger.contract_state import CommittedBatch, Contract, ForcedRequest, contract_id_of, contract_key, is_settled
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection, RejectionReason
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.offchain import FraudProof, deposit_request
from ledger.rules import ContractRules
from ledger.state import ACCOUNTS, CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS, State
from ledger.transactions import check_transaction
from ledger.transition import apply_transaction

RULES = ContractRules(10_000, 6, 3, 4_000, 8)
"""As on real networks a neglected contract is frozen before its last batch is final."""
BLOCK_MS = 1_000
"""Between two microblocks, but where a test says otherwise."""
NEGLECT = RULES.neglect_ms // BLOCK_MS
"""Microblocks that make neglect."""
GENESIS = testing.genesis(parameters=msgspec.structs.replace(testing.PARAMETERS, contracts=RULES))
CHAIN = chain_id(GENESIS)
PENALTY = GENESIS.parameters.false_evidence_microcredit
WINDOW = RULES.window_microblocks
DRIFT_MS = GENESIS.parameters.timestamp_drift_ms
FEE, BALANCE = testing.FEE_MICROCREDIT, testing.BALANCE_MICROCREDIT
OPERATOR, ALICE, BOB, CAROL, STRANGER = (testing.key(number) for number in (4, 5, 6, 7, 8))
BOND = 30_001
"""Odd, so that halves have to be rounded."""
IDENTIFIER = contract_id_of(OPERATOR.public_key, 0)
OPEN = OpenContract(0, "micro_fees", 1, encode(MicroFeesParameters(1_000)), BOND)
OPEN_LOG = msgspec.structs.replace(OPEN, machine="access_log", parameters=encode(AccessLogParameters(())))
DIGEST = tagged_hash(Tag.BLOB, b"what it is for")
PAY = Pay(BOB.address, 300, DIGEST)
KEYS = payable_keys(ALICE.address)

Items = list[BatchItem]


class World:
    """A state under way, a height and a time."""

    def __init__(self) -> None:
        self.state = State(MemoryStore(GENESIS))
        self.height = 10
        self.ahead_ms = 0
        """How far the time is ahead of what the height says: microblocks came slower; behind, when negative."""
        self.fees = 0
        self.sent: list[tuple[int, PrivateKey, bytes]] = []
        """Height, sender and bytes of what was applied."""
        self.bodies: list[Any] = []

    @property
    def time_ms(self) -> int:
        return self.time_at(self.height) + self.ahead_ms

    @staticmethod
    def time_at(height: int) -> int:
        return testing.GENESIS_TIMESTAMP_MS + BLOCK_MS * height

    def pass_blocks(self, count: int, each_ms: int) -> None:
        """Let microblocks pass that come faster or slower than others."""
        self.height += count
        self.ahead_ms += count * (each_ms - BLOCK_MS)

    def act(self, sender: PrivateKey, body: Body) -> Rejection | None:
        """Send a body through all three checks of a transaction."""
        nonce = self.state.account(sender.address).nonce
        raw = testing.signed(CHAIN, sender, body, nonce, expiry_height=self.height + 5)
        rules = GENESIS.parameters
        context = BlockContext(self.height, self.time_ms, rules, CHAIN, epoch=2, machines=MACHINES)
        refused = apply_transaction(self.state, context, check_transaction(raw, testing.rules_of(CHAIN)))
        self.fees += FEE
        self.sent.append((self.height, sender, raw))
        self.bodies.append(body)
        return refused

    def refuse(self, reason: RejectionReason, sender: PrivateKey, body: Body, match: str = ".") -> None:
        """Send a body, expect the reason and that nothing has changed."""
        before = self.state.changes()
        with pytest.raises(Rejection, match=match) as caught:
            self.act(sender, body)
        assert caught.value.reason is reason, caught.value
        assert self.state.changes() == before

    def balance(self, key: PrivateKey) -> int:
        return self.state.account(key.address).balance_microcredit

    @property
    def contract(self) -> Contract:
        found = self.state.get(CONTRACTS, IDENTIFIER)
        assert found is not None
        return found

    @property
    def is_settled(self) -> bool:
        return is_settled(self.contract, self.height)

    def forced_rows(self) -> list[tuple[int, ForcedRequest]]:
        return [(int.from_bytes(key[32:], "big"), row) for key, row in self.state.entries(FORCED_REQUESTS)]

    def forced_numbers(self) -> list[int]:
        return [number for number, _ in self.forced_rows()]

    def batch_row(self, number: int) -> CommittedBatch:
        found = self.state.get(CONTRACT_BATCHES, contract_key(IDENTIFIER, number))
        assert found is not None
        return found

    def batch_height(self, number: int) -> int:
        return self.batch_row(number).height

    def check_i7(self) -> None:
        """I7: minted − burnt = Σ balances + bonds + escrow + fees in flight."""
        supply = self.state.supply()
        held = sum(row.bond_microcredit + row.escrow_microcredit for _, row in self.state.entries(CONTRACTS))
        balances = sum(account.balance_microcredit for _, account in self.state.entries(ACCOUNTS))
        assert supply.contracts_microcredit == held
        assert supply.minted_microcredit - supply.burnt_microcredit == balances + held + self.fees


class Desk:
    """The operator's core, with a disk that is always right; what it commits is sent only when a test says so."""

    def __init__(self, world: World, identifier: bytes = IDENTIFIER) -> None:
        contract = world.state.get(CONTRACTS, identifier)
        assert contract is not None
        self.world, self.terms = world, contract.terms
        self._limits = OperatorLimits(waiting_batches=10**6)
        self._restart(Start(0, contract.until_ms, ()))
        self._entries = 0
        self.taken = 0
        """Forced requests that were accepted."""
        self.next: dict[bytes, int] = {}
        self.states: dict[int, StateMap] = {}
        """State after each batch."""
        self.batches: dict[int, Batch] = {}

    def _restart(self, start: Start) -> None:
        self.operator = Operator(CHAIN, self.terms, OPERATOR, MACHINES, self._limits, start)

    def sign(self, user: PrivateKey, *operations: object) -> bytes:
        first = self.next.get(user.address, 0)
        self.next[user.address] = first + len(operations)
        return sign_request(CHAIN, user, self.terms.contract_id, first, operations)

    def accept(self, raw: bytes, *, is_forced: bool = False) -> None:
        ticket = self.operator.accept(raw, self.world.time_ms, is_forced=is_forced)
        assert len(ticket.entries) <= 1, "batches are cut by tests alone"
        self._entries += len(ticket.entries)

    def take_deposit(self, sequence: int, account: bytes, amount: int) -> None:
        self.accept(deposit_request(self.terms.contract_id, sequence, account, amount), is_forced=True)

    def cut(self, until_ms: int | None = None) -> Batch:
        """Cut a batch of what was accepted, now or at another time; there has to be something."""
        entry = self.operator.cut(self.world.time_ms if until_ms is None else until_ms)
        assert entry is not None
        self._entries += 1
        batch = self.operator.durable(self._entries).batches[-1]
        self.batches[batch.commitment.number] = batch
        self.states[batch.commitment.number] = StateMap(self.operator.state.entries())
        return batch

    def commit(self) -> Batch:
        """Cut a batch and have the chain take it."""
        batch = self.cut()
        assert self.world.act(OPERATOR, CommitBatch(batch.commitment)) is None
        return batch

    def claim(self, account: bytes, number: int, *, with_balance: bool = False) -> ClaimBalance:
        """Return the claim of an account by the state after a batch."""
        keys = MACHINES.payable_keys(self.terms, account)
        assert keys is not None
        wanted = (keys.withdrawn, keys.balance) if with_balance else (keys.withdrawn,)
        return ClaimBalance(self.terms.contract_id, account, number, self.states[number].witness(wanted))

    def watcher(self, number: int = 0) -> Watcher:
        """Return a watcher that stands before a batch."""
        found = Watcher(CHAIN, self.terms, MACHINES, Start(0, self.batches[0].commitment.from_ms, ()))
        for before in range(number):
            assert found.follow(self.batches[before].commitment, self.batches[before].data) is None
        return found

    def proof(self, lie: Batch) -> FraudProof:
        """Return what convicts the operator of a lie."""
        found = self.watcher(lie.commitment.number).follow(lie.commitment, lie.data)
        assert found is not None
        return found


def opened(body: OpenContract = OPEN) -> tuple[World, Desk]:
    """Return a world with the operator's contract just opened."""
    world = World()
    assert world.act(OPERATOR, body) is None
    return world, Desk(world)


def fund(world: World, desk: Desk, user: PrivateKey, amount: int) -> None:
    """Have a user pay in, and the operator take it up."""
    sequence = world.contract.deposit_count
    assert world.act(user, FundContract(IDENTIFIER, user.address, amount)) is None
    desk.take_deposit(sequence, user.address, amount)


def force(world: World, raw: bytes) -> None:
    assert world.act(STRANGER, ForceOperation(IDENTIFIER, raw)) is None


def paid() -> tuple[World, Desk, Batch]:
    """Alice has paid in 1 000, and Bob 300 of it; the first batch waits to be final."""
    world, desk = opened()
    fund(world, desk, ALICE, 1_000)
    desk.accept(desk.sign(ALICE, PAY))
    return world, desk, desk.commit()


def rebuilt(batch: Batch, change: Callable[[Items], Items], forced: Sequence[int] | None = None) -> Batch:
    """Return what a liar makes of a batch: consistent in itself, other in content."""
    honest, items = batch.commitment, change(list(open_data(batch.commitment, batch.data).items))
    places = [place.index for place in honest.forced] if forced is None else forced
    head = (honest.contract_id, honest.number, honest.previous_root, honest.from_ms, honest.until_ms)
    return Batch(*commit(*head, items, places))


def lying(batch: Batch, index: int = -1) -> Batch:
    """Return a batch that claims another root after one of its requests."""

    def change(items: Items) -> Items:
        items[index] = msgspec.structs.replace(items[index], root=DIGEST)
        return items

    return rebuilt(batch, change)


def held(desk: Desk, number: int, user: PrivateKey) -> bytes | None:
    """Return what a user holds after a batch, as the machine keeps it."""
    return desk.states[number].get(b"m" + balance_key(user.address))
