# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the watcher share: an operator's core that a test makes lie, its data, and a watcher's node with a real disk."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.operator import Answer, Batch, Operator, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger import testing
from ledger.contract_bodies import CommitBatch, OpenContract
from ledger.contract_state import Contract, contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.errors import NotFound
from ledger.miners import Offence
from ledger.offchain import BatchCommitment, deposit_request
from ledger.state import OFFENCES, State
from node.offchain import challenging, following
from node.offchain.challenging import Fault
from node.offchain.receipt_file import ReceiptFile
from node.offchain.snapshots import Snapshots
from node.offchain.watched import WatchedHead
from node.offchain.watching import Watching, WatchingPorts
from node.own_transactions import OwnTransactions
from tests.contracts.kit import Items, rebuilt
from tests.node.kit import ScriptedNetwork, until
from tests.node.offchain_kit import CHAIN, CONTRACT, OPENED, OPERATOR, RULES, ChainInProcess, pay

WATCHER = testing.key(5)
"""The watcher's node."""
USERS = (1, 2, 3)
OTHER = tagged_hash(Tag.BLOB, b"another digest")


class LyingDesk:
    """An operator's core whose disk is always right. What it commits is what a test makes of it."""

    def __init__(self, chain: ChainInProcess, contract: Contract, key: PrivateKey = OPERATOR) -> None:
        self.chain, self.key, self.terms = chain, key, contract.terms
        self.contract_id = contract.terms.contract_id
        self._start = Start(0, contract.until_ms)
        self.operator = Operator(CHAIN, self.terms, key, MACHINES, None, self._start)
        self.answers: list[Answer] = []
        self.next: dict[int, int] = {}
        self._deposits = 0

    def twin(self) -> "LyingDesk":
        """Return the same operator, which remembers nothing of what it has promised."""
        twin = LyingDesk(self.chain, self.chain.contract(self.contract_id), self.key)
        twin.operator = Operator(CHAIN, self.terms, self.key, MACHINES, None, self._start)
        return twin

    def deposit(self, user: int, amount: int = 5_000) -> None:
        """Have the chain force a deposit, and take it up."""
        self.chain.fund(user, amount, self.contract_id)
        self.take_deposit(user, amount)

    def take_deposit(self, user: int, amount: int = 5_000) -> None:
        """Take up the next deposit that the chain has forced."""
        self.take(deposit_request(self.contract_id, self._deposits, testing.key(user).address, amount), is_forced=True)
        self._deposits += 1

    def sign(self, user: int, *operations: object) -> bytes:
        first = self.next.get(user, 0)
        self.next[user] = first + len(operations)
        return sign_request(CHAIN, testing.key(user), self.contract_id, first, operations)

    def take(self, raw: bytes, *, is_forced: bool = False) -> Answer:
        self.operator.accept(raw, self.chain.store.head().timestamp_ms, is_forced=is_forced)
        self.answers += [answer for _, answer in self.operator.durable(self.operator.appended).answers]
        return self.answers[-1]

    def cut(self) -> Batch:
        """Return the next batch, as an honest operator commits it."""
        assert self.operator.cut(self.chain.store.head().timestamp_ms) is not None
        (batch,) = self.operator.durable(self.operator.appended).batches
        self.operator.committed(batch.commitment.number)
        return batch

    def pay(self, requests: int = 4) -> Batch:
        """Return a batch of some requests of one or two payments each."""
        for number in range(requests):
            payments = [pay(1 + number, USERS[(number + 1) % 3])] * (1 + number % 2)
            self.take(self.sign(USERS[number % 3], *payments))
        return self.cut()

    def first(self) -> Batch:
        """Return a first batch: deposits of all users, and four requests."""
        for user in USERS:
            self.deposit(user)
        return self.pay()


Lie = Callable[[LyingDesk, Batch], Batch]
"""Makes of a batch what the operator commits."""


class WatchedWorld:
    """A chain, the data of batches where nodes find it, and the disk of a watcher's node."""

    def __init__(self, folder: Path) -> None:
        self.chain = ChainInProcess()
        self.data: dict[bytes, bytes] = {}
        self.fetched: list[int] = []
        """Numbers of batches whose data was asked for."""
        self.hanging: set[bytes] = set()
        """Contracts whose data never comes, and is not refused either."""
        self.network = ScriptedNetwork()
        self.peers: list[str] = []
        self.path = folder / "snapshots"
        self.is_behind = False
        self.watching: Watching
        self.snapshots: Snapshots
        self.receipts: ReceiptFile

    def commit(self, batch: Batch, key: PrivateKey = OPERATOR) -> None:
        """Publish and commit a batch, as it is."""
        self.data[batch.commitment.data_digest] = batch.data
        receipt = self.chain.act(key, CommitBatch(batch.commitment))
        assert receipt.reason == "", receipt

    async def fetch(self, commitment: BatchCommitment) -> bytes:
        await trio.lowlevel.checkpoint()
        if commitment.contract_id in self.hanging:
            await trio.sleep_forever()
        self.fetched.append(commitment.number)
        found = self.data.get(commitment.data_digest)
        if found is None:
            raise NotFound(f"data {commitment.data_digest.hex()} is nowhere to be had")
        return found

    def pass_window(self, more: int = 0) -> None:
        """Let so many microblocks pass that everything is final."""
        for _ in range(RULES.window_microblocks + more):
            self.chain.commit()

    @asynccontextmanager
    async def node(
        self, key: PrivateKey = WATCHER, *, path: Path | None = None, **options: object
    ) -> AsyncIterator[Watching]:
        """Run the watcher's node; the chain commits whenever something waits."""
        place = path or self.path
        with (
            Snapshots(place, chain_id=CHAIN) as snapshots,
            ReceiptFile(place.with_suffix(".receipts"), chain_id=CHAIN) as receipts,
        ):
            transactions = OwnTransactions(
                store=self.chain.store, key=key, next_nonce=self.chain.mempool.next_nonce, submit=self.chain.submit
            )
            ports = WatchingPorts(
                network=self.network,
                peers=lambda: self.peers,
                fetch=self.fetch,
                fetch_for_client=self.fetch,
                transactions=transactions,
                checkers=trio.CapacityLimiter(2),
                is_behind=lambda: self.is_behind,
            )
            watching = Watching(
                store=self.chain.store,
                own_key=key.public_key,
                machines=MACHINES,
                snapshots=snapshots,
                receipts=receipts,
                ports=ports,
                rng=random.Random(1),
                **options,  # type: ignore[arg-type]
            )
            self.watching, self.snapshots, self.receipts = watching, snapshots, receipts
            self.chain.told.append(watching.committed)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watching.run)
                    nursery.start_soon(self._run_chain)
                    yield watching
                    nursery.cancel_scope.cancel()
            finally:
                self.chain.told.remove(watching.committed)

    async def _run_chain(self) -> None:
        while True:
            if self.chain.waiting:
                self.chain.commit()
            await trio.sleep(0.005)

    def head(self, contract_id: bytes = CONTRACT) -> WatchedHead:
        found = [head for head in self.watching.heads() if head.contract_id == contract_id]
        return found[0] if found else WatchedHead(contract_id, -1, "waiting", "", "")

    async def follows(self, number: int, contract_id: bytes = CONTRACT) -> None:
        """Wait until so many batches are executed, and nothing is found."""

        def is_there() -> bool:
            head = self.head(contract_id)
            return (head.number, head.stage) == (number, "following")

        await until(is_there)
        assert self.watching.faults() == ()

    def saved(self, contract_id: bytes = CONTRACT) -> list[int]:
        """Return which states have a snapshot: one is written after the batch that it follows counts as executed."""
        return [head.number for head in self.snapshots.heads(contract_id)]

    async def convicted(self, contract_id: bytes = CONTRACT) -> Fault:
        """Wait until the operator is convicted on this node's challenge; returns what was found."""
        await until(lambda: [fault.stage for fault in self.watching.faults()] == ["convicted"])
        await until(lambda: self.head(contract_id).stage == "ended")
        contract = self.chain.contract(contract_id)
        assert contract.status == "frozen"
        assert contract.bond_microcredit == 0
        assert self.offence(contract.terms.operator) is not None
        (fault,) = self.watching.faults()
        assert fault.number >= contract.batch_count
        return fault

    def offence(self, operator: bytes) -> Offence | None:
        return State(self.chain.store).get(OFFENCES, operator)

    def balance(self, key: PrivateKey) -> int:
        return State(self.chain.store).account(key.address).balance_microcredit


def opened(world: WatchedWorld) -> LyingDesk:
    """Return the desk of a new contract."""
    return LyingDesk(world.chain, world.chain.open())


def other_contract(number: int = 1, key: PrivateKey = OPERATOR) -> tuple[OpenContract, bytes]:
    """Return what opens another contract of an operator, and its identifier."""
    return msgspec.structs.replace(OPENED, number=number), contract_id_of(key.public_key, number)


def at(place: int, **changes: object) -> Lie:
    """Return a lie in one leaf."""

    def change(items: Items) -> Items:
        return [*items[:place], msgspec.structs.replace(items[place], **changes), *items[place + 1 :]]

    return lambda _desk, batch: rebuilt(batch, change)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for people."""
    monkeypatch.setattr(challenging, "SPREAD_S", 0.01)
    monkeypatch.setattr(challenging, "RETRY_S", 0.02)
    monkeypatch.setattr(following, "RETRY_S", 0.02)
    monkeypatch.setattr(following, "PAUSE_S", 0.05)
    monkeypatch.setattr(following, "ASK_PAUSE_S", 0.1)
