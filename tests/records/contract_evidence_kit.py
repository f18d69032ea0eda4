# SPDX-License-Identifier: GPL-3.0-or-later
"""An off-chain contract on the evidence tests' chain: opened, funded, with batches of a real operator."""

import msgspec

from contracts.batch_data import BatchData, open_data, prove_leaf
from contracts.execution import MACHINE_PREFIX
from contracts.journal import Accepted
from contracts.machines.micro_fees import MicroFeesParameters, Pay, balance_key
from contracts.operator import Batch, Operator, Start
from contracts.reading import Reader
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from contracts.state_map import StateMap
from ledger import testing
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch, ForceOperation, FundContract, OpenContract
from ledger.contract_state import contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.offchain import ContractTerms, deposit_request
from records.claims import ContractValueClaim, OperationClaim
from tests.records.evidence_kit import CHAIN, OTHER, PATIENT, Network

OPERATOR = 5
"""Number of the operator's key."""
REFERENCE = tagged_hash(Tag.BLOB, b"a consultation")
READER = Reader(MACHINES)
OPEN = OpenContract(0, "micro_fees", 1, encode(MicroFeesParameters(1_000)), 10_000)
CONTRACT = contract_id_of(testing.key(OPERATOR).public_key, 0)
TERMS = ContractTerms(CONTRACT, OPEN.machine, OPEN.version, OPEN.parameters, testing.key(OPERATOR).public_key)


class Contract:
    """A contract of micro-fees, and what its operator has written down."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.act(OPERATOR, OPEN)
        start = Start(time_ms=network.store.head().timestamp_ms)
        self.operator = Operator(CHAIN, TERMS, testing.key(OPERATOR), MACHINES, start=start)
        self.accepted: list[Accepted] = []
        self.batches: list[Batch] = []
        self.states: list[StateMap] = []
        self.paid = 0

    def act(self, sender: int, body: Body) -> None:
        """Commit a transaction that takes effect."""
        maker = self.network.maker
        done = maker.extend(maker.signed(sender, body))
        assert not done.execution.receipts[0][1].reason, done.execution.receipts

    def take(self, raw: bytes, *, is_forced: bool = False) -> int:
        """Execute a request; returns where it stands in `accepted`."""
        ticket = self.operator.accept(raw, self.network.store.head().timestamp_ms, is_forced=is_forced)
        self.accepted += [entry for entry in ticket.entries if isinstance(entry, Accepted)]
        return len(self.accepted) - 1

    def fund(self, amount: int = 5_000) -> int:
        """Pay in for the patient."""
        self.act(10, FundContract(CONTRACT, PATIENT.address, amount))
        return self.take(deposit_request(CONTRACT, 0, PATIENT.address, amount), is_forced=True)

    def payment(self, *amounts: int) -> bytes:
        """Return a request of the patient."""
        payments = [Pay(OTHER.address, amount, REFERENCE) for amount in amounts]
        raw = sign_request(CHAIN, PATIENT, CONTRACT, self.paid, payments)
        self.paid += len(amounts)
        return raw

    def pay(self, *amounts: int) -> int:
        """Execute payments of the patient to the other one."""
        return self.take(self.payment(*amounts))

    def force_again(self, place: int) -> int:
        """Have a request forced that was accepted before."""
        raw = self.accepted[place].request
        self.act(10, ForceOperation(CONTRACT, raw))
        return self.take(raw, is_forced=True)

    def cut(self) -> Batch:
        """Complete the batch."""
        self.operator.cut(self.network.store.head().timestamp_ms)
        batch = self.operator.durable(self.operator.appended).batches[-1]
        self.operator.committed(batch.commitment.number)
        self.batches.append(batch)
        self.states.append(StateMap(self.operator.state.entries()))
        return batch

    def commit(self, batch: Batch | None = None) -> Batch:
        """Commit a batch, by default the one that is complete now."""
        batch = batch or self.cut()
        self.act(OPERATOR, CommitBatch(batch.commitment))
        return batch

    def wait(self) -> None:
        """Let the window pass."""
        for _ in range(self.network.store.genesis.parameters.contracts.window_microblocks):
            self.network.maker.extend()

    def data(self, number: int) -> BatchData:
        return open_data(self.batches[number].commitment, self.batches[number].data)

    # ------------------------------------------------------------------ claims

    def operation(self, place: int, **changes: object) -> OperationClaim:
        """Return the claim about a request, by its place in `accepted`."""
        entry = self.accepted[place]
        proof = prove_leaf(self.data(entry.number), entry.index)
        claim = OperationClaim(CONTRACT, entry.number, entry.request, encode(entry.outcomes), proof)
        return msgspec.structs.replace(claim, **changes)

    def value(self, batch: int, key: bytes | None = None, **changes: object) -> ContractValueClaim:
        """Return the claim about a state key at a batch, by default the patient's balance."""
        wanted = MACHINE_PREFIX + balance_key(PATIENT.address) if key is None else key
        (entry,) = self.states[batch].witness([wanted])
        return msgspec.structs.replace(ContractValueClaim(CONTRACT, batch, entry), **changes)


def settled(network: Network) -> Contract:
    """Return a contract with two final batches: a deposit and payments; more payments, one of them refused, one forced again."""
    contract = Contract(network)
    contract.fund()
    contract.pay(7, 8)
    contract.commit()
    contract.pay(5_000)
    contract.pay(9)
    contract.force_again(1)
    contract.commit()
    contract.wait()
    return contract
