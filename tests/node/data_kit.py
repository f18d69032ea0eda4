# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of batches' data share: a chain with contracts, operators that make real batches, what a node has of their data."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from contracts.machines.access_log import AccessLogParameters, LogAccess
from contracts.operator import Batch as OffchainBatch
from contracts.operator import Operator, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger import testing
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import CloseContract, CommitBatch, OpenContract
from ledger.contract_queries import contract_at
from ledger.contract_state import Contract, contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment
from ledger.rules import ContractRules
from ledger.state import State
from ledger.transactions import encode_batch
from node.batches import Batch, BatchPool, check_batch
from node.offchain.availability import Availability
from node.offchain.data_store import DataStore
from node.offchain.keeping import Keeping
from node.offchain.readiness import Readiness
from tests.node.kit import ScriptedNetwork

WINDOW, RETENTION, EXPIRY = 6, 8, 20
"""In microblocks."""
GENESIS = testing.genesis(
    parameters=msgspec.structs.replace(
        testing.PARAMETERS,
        contracts=ContractRules(10_000, WINDOW, 3, 100_000, RETENTION),
        maximum_expiry_microblocks=EXPIRY,
    )
)
CHAIN = chain_id(GENESIS)
OPERATOR, OTHER_OPERATOR, STRANGER = (testing.key(number) for number in (4, 5, 6))
RECORD = tagged_hash(Tag.BLOB, b"a record")


def identifier(operator: PrivateKey, number: int = 0) -> bytes:
    return contract_id_of(operator.public_key, number)


class Batches:
    """One contract's operator, whose batches the chain has not seen."""

    def __init__(self, contract: Contract, operator: PrivateKey = OPERATOR) -> None:
        self.operator = Operator(CHAIN, contract.terms, operator, MACHINES, start=Start(0, contract.until_ms))
        self._contract_id = contract.terms.contract_id
        self._entries = self._signed = 0

    def next(self, size: int = 1) -> OffchainBatch:
        """Return the next batch, of so many requests."""
        now_ms = testing.GENESIS_TIMESTAMP_MS + 1_000
        for _ in range(size):
            access = LogAccess(testing.key(9).address, STRANGER.address, RECORD, is_refused=False)
            raw = sign_request(CHAIN, testing.key(8), self._contract_id, self._signed, [access])
            self._signed += 1
            self._entries += len(self.operator.accept(raw, now_ms).entries)
        assert self.operator.cut(now_ms) is not None
        self._entries += 1
        (batch,) = self.operator.durable(self._entries).batches
        return batch


class Node:
    """One node's chain, pool and data; the peers are scripted."""

    def __init__(self, directory: Path, *, capacity_bytes: int = 1 << 30, copies: int = 1) -> None:
        self.store = MemoryStore(GENESIS)
        self.data = DataStore(directory / "data.sqlite", chain_id=CHAIN, capacity_bytes=capacity_bytes)
        self.network = ScriptedNetwork()
        self.peers: dict[bytes, str] = {}
        self.committee = [testing.key(number).address for number in range(4)]
        self.copies = copies
        self.followed = True
        self.behind = False
        self.changes = 0
        self._nonces: dict[bytes, int] = {}
        self.start()

    def start(self) -> None:
        """Begin with what is durable, as after a crash."""
        self.readiness = Readiness(self.store)
        self.pool = BatchPool(self.store, self.readiness)
        self.availability = Availability(
            store=self.store,
            data=self.data,
            readiness=self.readiness,
            network=self.network,
            peers=lambda: self.peers,
            committee=lambda: self.committee,
            copies=self.copies,
            changed=self._note_change,
        )
        self.keeping = Keeping(
            store=self.store,
            data=self.data,
            readiness=self.readiness,
            availability=self.availability,
            address=self.committee[0],
            committee=lambda: self.committee,
            copies=self.copies,
            is_followed=lambda _contract_id, _number: self.followed,
            is_behind=lambda: self.behind,
        )
        self.pool.restore(CHAIN)

    def _note_change(self) -> None:
        self.changes += 1

    def sign(self, sender: PrivateKey, body: Body) -> bytes:
        """Sign what comes after all that was signed for the sender."""
        nonce = self._nonces.get(sender.address, self._nonce(sender))
        self._nonces[sender.address] = nonce + 1
        return self._signed(sender, body, nonce)

    def _nonce(self, sender: PrivateKey) -> int:
        return State(self.store).account(sender.address).nonce

    def _signed(self, sender: PrivateKey, body: Body, nonce: int) -> bytes:
        return testing.signed(CHAIN, sender, body, nonce, expiry_height=self.store.head().height + EXPIRY)

    def batch_of(self, sender: PrivateKey, *bodies: Body) -> Batch:
        raws = [self.sign(sender, body) for body in bodies]
        return check_batch(encode_batch(raws), testing.rules_of(CHAIN))

    def commits(self, *batches: OffchainBatch, sender: PrivateKey = OPERATOR) -> Batch:
        """Return a batch of transactions that commits batches."""
        return self.batch_of(sender, *(CommitBatch(batch.commitment) for batch in batches))

    def commit(self, *batches: Batch) -> None:
        """Commit batches of transactions as the next microblock."""
        raws = [[checked.raw for checked in batch.transactions] for batch in batches]
        testing.commit(self.store, *raws, machines=MACHINES)
        transactions = [checked for batch in batches for checked in batch.transactions]
        self.pool.remove([batch.digest for batch in batches])
        self.readiness.committed(transactions)
        self.keeping.committed(transactions)

    def act(self, sender: PrivateKey, body: Body) -> None:
        """Commit one transaction, before whatever of its sender waits."""
        raw = self._signed(sender, body, self._nonce(sender))
        self.commit(check_batch(encode_batch([raw]), testing.rules_of(CHAIN)))

    def pass_microblocks(self, count: int) -> None:
        for _ in range(count):
            testing.commit(self.store)

    def open(self, operator: PrivateKey = OPERATOR, number: int = 0) -> Batches:
        """Open an access log."""
        body = OpenContract(number, "access_log", 1, encode(AccessLogParameters(())), 10_000)
        self.act(operator, body)
        return Batches(self.contract(operator, number), operator)

    def close(self, operator: PrivateKey = OPERATOR) -> None:
        self.act(operator, CloseContract(identifier(operator)))

    def contract(self, operator: PrivateKey = OPERATOR, number: int = 0) -> Contract:
        found = contract_at(self.store, identifier(operator, number))
        assert found is not None
        return found

    def owed(self) -> list[BatchCommitment]:
        return [one.commitment for one in self.readiness.owed()]

    def keep(self, *batches: OffchainBatch) -> None:
        """Put data where an operator puts its own."""
        for batch in batches:
            self.data.put(batch.commitment.data_digest, batch.data)

    def here(self, batches: Sequence[OffchainBatch]) -> list[bool]:
        return [self.data.has(batch.commitment.data_digest) for batch in batches]
