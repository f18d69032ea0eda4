# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of operators share: a chain in the process, an operator's node with a journal on a real disk, users."""

from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import trio

from contracts.batch_data import BatchData, open_data
from contracts.machines.micro_fees import MicroFeesParameters, Pay
from contracts.operator import Answer, OperatorLimits, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from contracts.state_map import Changes
from contracts.watcher import Watcher
from ledger import testing
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import ForceOperation, FundContract, OpenContract
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract, contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.errors import Rejection, StoreError
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment, SignedReceipt, is_signed_receipt
from ledger.rules import ContractRules
from ledger.transactions import CheckedTransaction, check_transaction
from ledger.transition import Receipt
from node.mempool import Mempool
from node.offchain.data_store import DataStore
from node.offchain.journal_file import JournalFile, Line
from node.offchain.operating import Operating
from node.offchain.senders import Senders
from node.offchain.statuses import SendOutcome
from node.own_transactions import OwnTransactions
from node.submission import SubmitOutcome
from tests.node.kit import until

RULES = ContractRules(10_000, 6, 4, 1_000_000, 8)
"""A window of six microblocks; no operator of these tests counts as dead."""
GENESIS = testing.genesis(parameters=msgspec.structs.replace(testing.PARAMETERS, contracts=RULES))
CHAIN = chain_id(GENESIS)
OPERATOR = testing.key(4)
CONTRACT = contract_id_of(OPERATOR.public_key, 0)
OPENED = OpenContract(0, "micro_fees", 1, encode(MicroFeesParameters(1_000)), 20_000)
REFERENCE = tagged_hash(Tag.BLOB, b"what it is for")
LIMITS = OperatorLimits(batch_age_ms=40)

Step = Callable[[str], None]
"""Told before and after each durable step, by name; raises what is to happen there."""


def pay(amount: int = 1, recipient: int = 9) -> Pay:
    return Pay(testing.key(recipient).address, amount, REFERENCE)


def request(user: int, first_sequence: int, *operations: object, contract_id: bytes = CONTRACT) -> bytes:
    return sign_request(CHAIN, testing.key(user), contract_id, first_sequence, operations or (pay(),))


class ChainInProcess:
    """A chain of one: what is submitted waits until `commit`; outlives the operator's crashes."""

    def __init__(self) -> None:
        self.store = MemoryStore(GENESIS)
        self.mempool = Mempool(self.store)
        self.waiting: list[CheckedTransaction] = []
        self.receipts: list[tuple[CheckedTransaction, Receipt]] = []
        self.holds = False
        """Whether what waits goes on waiting: the chain is slow for the operator."""
        self.told: list[Callable[[Sequence[CheckedTransaction]], None]] = []

    async def submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        await trio.lowlevel.checkpoint()
        outcomes = []
        for raw in raws:
            checked = check_transaction(raw, testing.rules_of(CHAIN))
            try:
                if self.mempool.admit(checked):
                    self.waiting.append(checked)
                outcomes.append(SubmitOutcome(checked.id, accepted=True, reason="", detail=""))
            except Rejection as rejection:
                outcomes.append(
                    SubmitOutcome(checked.id, accepted=False, reason=rejection.reason.value, detail=rejection.detail)
                )
        return outcomes

    def commit(self, *more: CheckedTransaction) -> list[Receipt]:
        """Commit all that waits as a microblock, or an empty one; returns the receipts of `more`."""
        transactions = [*more] if self.holds else [*self.waiting, *more]
        self.waiting = self.waiting if self.holds else []
        raws = [[checked.raw for checked in transactions]] if transactions else []
        self.store.put_batches([testing.batch(CHAIN, batch) for batch in raws])
        self.store.commit(testing.next_update(self.store, raws, MACHINES))
        receipts = []
        for checked in transactions:
            receipt = self.store.receipt(checked.id)
            assert receipt is not None
            receipts.append(receipt)
            self.receipts.append((checked, receipt))
        self.mempool.settle(transactions, receipts)
        for tell in self.told:
            tell(transactions)
        return receipts[len(receipts) - len(more) :]

    def act(self, key: PrivateKey, body: Body) -> Receipt:
        """Commit one transaction now."""
        expiry = self.store.head().height + 50
        raw = testing.signed(CHAIN, key, body, self.mempool.next_nonce(key.address), expiry_height=expiry)
        (receipt,) = self.commit(check_transaction(raw, testing.rules_of(CHAIN)))
        return receipt

    def open(self, body: OpenContract = OPENED, key: PrivateKey = OPERATOR) -> Contract:
        assert self.act(key, body).reason == ""
        return self.contract(contract_id_of(key.public_key, body.number))

    def fund(self, user: int, amount: int = 500, contract_id: bytes = CONTRACT) -> None:
        assert self.act(testing.key(user), FundContract(contract_id, testing.key(user).address, amount)).reason == ""

    def force(self, raw: bytes, contract_id: bytes = CONTRACT) -> None:
        assert self.act(testing.key(8), ForceOperation(contract_id, raw)).reason == ""

    def contract(self, contract_id: bytes = CONTRACT) -> Contract:
        contract = contract_at(self.store, contract_id)
        assert contract is not None
        return contract

    def batches(self, contract_id: bytes = CONTRACT) -> list[CommittedBatch]:
        contract = self.contract(contract_id)
        found = [batch_at(self.store, contract, number) for number in range(contract.batch_count)]
        return [batch for batch in found if batch is not None]


class Published:
    """The data of batches on the disk of the operator's node."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: DataStore | None = None
        self.trouble = ""

    @contextmanager
    def open(self) -> Iterator[None]:
        with DataStore(self._path, chain_id=CHAIN, capacity_bytes=1 << 28) as store:
            self._store = store
            try:
                yield
            finally:
                self._store = None

    def put(self, digest: bytes, data: bytes) -> None:
        if self.trouble:
            raise StoreError(self.trouble)
        assert self._store is not None, "the node runs"
        self._store.put(digest, data)

    def get(self, digest: bytes) -> bytes:
        if self._store is None:
            with self.open():
                return self.get(digest)
        found = self._store.get(digest)
        assert found is not None, f"data {digest.hex()} is committed and not there"
        return found


class SteppedJournal(JournalFile):
    """A journal that tells of its durable steps."""

    step: Step = staticmethod(lambda _name: None)

    def append(self, lines: Sequence[Line]) -> None:  # type: ignore[override]
        self.step("before append")
        super().append(lines)
        self.step("after append")

    def advance(self, contract_id: bytes, number: int) -> None:
        self.step("before advance")
        super().advance(contract_id, number)
        self.step("after advance")

    def fold(self, contract_id: bytes, changes: Changes) -> None:
        self.step("before fold")
        super().fold(contract_id, changes)
        self.step("after fold")

    def folded(self, contract_id: bytes, before: int) -> None:
        self.step("before folded")
        super().folded(contract_id, before)
        self.step("after folded")

    def trim(self, contract_id: bytes, before: int) -> bool:
        self.step("before trim")
        done = super().trim(contract_id, before)
        self.step("after trim")
        return done


class SteppedTransactions(OwnTransactions):
    """Sends from the operator's account and tells of it."""

    step: Step = staticmethod(lambda _name: None)

    async def send(self, purpose: Hashable, body: Body) -> SubmitOutcome:
        self.step("before submit")
        outcome = await super().send(purpose, body)
        self.step("after submit")
        return outcome


class World:
    """A chain, what is published, and the disk of the operator's node."""

    def __init__(self, folder: Path) -> None:
        self.chain = ChainInProcess()
        self.published = Published(folder / "data")
        self.path = folder / "journal"
        self.is_behind = False
        self.step: Step = lambda _name: None
        self._head_ms, self._since_s = 0, 0.0
        self.operating: Operating
        self.journal: SteppedJournal

    @asynccontextmanager
    async def node(
        self,
        *,
        limits: OperatorLimits = LIMITS,
        commits: bool = True,
        path: Path | None = None,
        senders: Senders = "known",
    ) -> AsyncIterator[Operating]:
        """Run the operator's node; with `commits` the chain commits whenever something waits."""

        def publish(digest: bytes, data: bytes) -> None:
            self.step("before publish")
            self.published.put(digest, data)
            self.step("after publish")

        with self.published.open(), SteppedJournal(path or self.path, chain_id=CHAIN) as journal:
            journal.step = self.step
            transactions = SteppedTransactions(
                store=self.chain.store,
                key=OPERATOR,
                next_nonce=self.chain.mempool.next_nonce,
                submit=self.chain.submit,
            )
            transactions.step = self.step
            operating = Operating(
                store=self.chain.store,
                key=OPERATOR,
                machines=MACHINES,
                journal=journal,
                publish=publish,
                transactions=transactions,
                is_behind=lambda: self.is_behind,
                clock_ms=self.clock_ms,
                limits=limits,
                senders=senders,
            )
            self.operating, self.journal = operating, journal

            def tell(transactions: Sequence[CheckedTransaction]) -> None:
                self.step("before told")
                operating.committed(transactions)
                self.step("after told")

            self.chain.told.append(tell)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(operating.run)
                    if commits:
                        nursery.start_soon(self._run_chain)
                    yield operating
                    nursery.cancel_scope.cancel()
            finally:
                self.chain.told.remove(tell)

    def idle(self, key: PrivateKey) -> Operating:
        """Return the operator's side of a node with another key, on the same chain; it operates nothing and does not run."""
        chain = self.chain
        transactions = OwnTransactions(
            store=chain.store, key=key, next_nonce=chain.mempool.next_nonce, submit=chain.submit
        )
        return Operating(
            store=chain.store,
            key=key,
            machines=MACHINES,
            journal=self.journal,
            publish=self.published.put,
            transactions=transactions,
            is_behind=lambda: False,
            clock_ms=self.clock_ms,
        )

    def clock_ms(self) -> int:
        """The test chain's time, which is no clock's; between two microblocks it moves on with real time."""
        head_ms, now_s = self.chain.store.head().timestamp_ms, trio.current_time()
        if head_ms != self._head_ms:
            self._head_ms, self._since_s = head_ms, now_s
        return head_ms + min(int((now_s - self._since_s) * 1_000), GENESIS.parameters.timestamp_drift_ms)

    async def _run_chain(self) -> None:
        while True:
            if self.chain.waiting:
                self.step("before commit")
                self.chain.commit()
                self.step("after commit")
            await trio.sleep(0.005)

    async def ready(self, contract_id: bytes = CONTRACT) -> None:
        """Wait until the operator serves."""

        def serves() -> bool:
            desk = self.operating._desks.get(contract_id)
            return desk is not None and desk._serving is not None

        await until(serves)

    async def answered(self, raws: Sequence[bytes], contract_id: bytes = CONTRACT) -> list[Answer]:
        """Send requests that must be accepted."""
        outcomes = await self.operating.send(contract_id, raws)
        return [accepted(outcome) for outcome in outcomes]

    async def all_committed(self, contract_id: bytes = CONTRACT) -> None:
        """Wait until the chain has all that was promised and forced."""
        await until(self.operating._desks[contract_id].is_drained)

    def data(self, commitment: BatchCommitment) -> BatchData:
        return open_data(commitment, self.published.get(commitment.data_digest))

    def check(self, receipts: Sequence[SignedReceipt], contract_id: bytes = CONTRACT) -> Watcher:
        """Have a watcher follow the chain: no batch is wrong, each receipt is kept; returns it at the end."""
        contract = self.chain.contract(contract_id)
        first = self.chain.batches(contract_id)
        start = Start(0, first[0].commitment.from_ms if first else contract.until_ms)
        watcher = Watcher(CHAIN, contract.terms, MACHINES, start)
        for batch in first:
            data = self.published.get(batch.commitment.data_digest)
            assert watcher.follow(batch.commitment, data) is None
            for receipt in receipts:
                assert watcher.broken_receipt(receipt, batch.commitment, data) is None
        for receipt in receipts:
            assert is_signed_receipt(CHAIN, contract.terms.operator, receipt)
            assert receipt.receipt.number < contract.batch_count
        return watcher


def accepted(outcome: SendOutcome) -> Answer:
    assert outcome.accepted, outcome
    assert outcome.answer is not None
    return outcome.answer
