# SPDX-License-Identifier: GPL-3.0-or-later
"""What the contracts' tests share: terms, keys, an operator whose journal is a list, random requests of each machine, and lies."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from contracts.batch_data import BatchData, BatchItem, commit, open_data
from contracts.journal import Accepted, JournalEntry, decode_entry, encode_entry
from contracts.machine import Machine
from contracts.machines import SHIPPED
from contracts.machines.access_log import AccessLogParameters, LogAccess, ReviewAccesses
from contracts.machines.appointments import (
    Acknowledge,
    AppointmentsParameters,
    BookSlot,
    CancelSlot,
    CloseSlot,
    OfferSlot,
)
from contracts.machines.micro_fees import MICRO_FEES, MicroFeesParameters, Pay, Refund, Withdraw
from contracts.machines.vital_signs import Measure, VitalSignsParameters
from contracts.operator import Answer, Batch, Operator, OperatorLimits, Start
from contracts.registry import Registry
from contracts.requests import sign_request
from contracts.watcher import THOROUGH_LEAVES, Watcher
from ledger.codec import encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.offchain import BatchCommitment, ContractTerms, deposit_request
from ledger.testing import key

CHAIN_ID = tagged_hash(Tag.GENESIS, b"contracts' tests")
CONTRACT = tagged_hash(Tag.TRANSACTION, b"the contract that is opened")
REGISTRY = Registry(SHIPPED)
OPERATOR = key(0)
USERS = 4
"""Users are `key(1)` to `key(4)`."""

users = st.integers(1, USERS)
accounts = users.map(lambda number: key(number).address)
digests = st.integers(0, 3).map(lambda number: tagged_hash(Tag.BLOB, bytes([number])))

PARAMETERS: dict[str, Any] = {
    "access_log": AccessLogParameters(()),
    "appointments": AppointmentsParameters(key(1).address, 100),
    "micro_fees": MicroFeesParameters(1_000),
    "vital_signs": VitalSignsParameters(1_000, 100_000),
}
amounts = st.integers(0, 1_200)
slots = st.integers(0, 3)
OPERATIONS: dict[str, st.SearchStrategy[Any]] = {
    "access_log": st.builds(LogAccess, accounts, accounts, digests, st.booleans())
    | st.builds(ReviewAccesses, st.integers(0, 5)),
    "appointments": st.builds(OfferSlot, slots, st.integers(0, 4_000), st.integers(0, 4_000))
    | st.builds(BookSlot, slots, digests)
    | st.builds(CancelSlot, slots)
    | st.builds(CloseSlot, slots, st.booleans())
    | st.builds(Acknowledge, digests),
    "micro_fees": st.builds(Pay, accounts, amounts, digests)
    | st.builds(Refund, accounts, amounts)
    | st.builds(Withdraw, amounts),
    "vital_signs": st.builds(
        Measure,
        st.integers(0, 1),
        st.integers(0, 8_000),
        st.integers(1, 900),
        st.lists(st.integers(-50, 50), min_size=1, max_size=5).map(tuple),
    ),
}


def terms_of(machine: Machine[Any, Any] | str, contract_id: bytes = CONTRACT) -> ContractTerms:
    name = machine if isinstance(machine, str) else machine.name
    return ContractTerms(contract_id, name, 1, encode(PARAMETERS[name]), OPERATOR.public_key)


TERMS = terms_of(MICRO_FEES)


class Sender:
    """Signs requests and keeps count of each user's operations, and of the chain's."""

    def __init__(self, contract_id: bytes = CONTRACT) -> None:
        self.contract_id = contract_id
        self.next: dict[int, int] = {}

    def request(self, user: int, *operations: object) -> bytes:
        first = self.next.get(user, 0)
        self.next[user] = first + len(operations)
        return sign_request(CHAIN_ID, key(user), self.contract_id, first, operations)

    def deposit(self, account: bytes, amount: int) -> bytes:
        first = self.next.get(0, 0)
        self.next[0] = first + 1
        return deposit_request(self.contract_id, first, account, amount)


class Desk:
    """An operator with a journal in memory, every entry of which goes through its encoding; disk and chain answer at once."""

    def __init__(
        self,
        terms: ContractTerms = TERMS,
        registry: Registry = REGISTRY,
        limits: OperatorLimits | None = None,
        start: Start | None = None,
    ) -> None:
        self.operator = Operator(CHAIN_ID, terms, OPERATOR, registry, limits, start)
        self.journal: list[bytes] = []
        self.answers: list[Answer] = []
        self.batches: list[Batch] = []

    def send(self, raw: bytes, now_ms: int = 1_000, *, is_forced: bool = False) -> Answer:
        ticket = self.operator.accept(raw, now_ms, is_forced=is_forced)
        if ticket.answer is not None:
            assert not ticket.entries
            return ticket.answer
        self.append(ticket.entries)
        return self.answers[-1]

    def append(self, entries: Sequence[JournalEntry]) -> None:
        self.journal += map(encode_entry, entries)
        released = self.operator.durable(len(self.journal))
        self.answers += [answer for _, answer in released.answers]
        self.batches += released.batches
        for batch in released.batches:
            self.operator.committed(batch.commitment.number)

    def cut(self, now_ms: int = 1_000) -> Batch:
        """Cut the open batch, if it has requests; returns the newest batch."""
        entry = self.operator.cut(now_ms)
        if entry is not None:
            self.append((entry,))
        return self.batches[-1]

    def entries(self) -> list[JournalEntry]:
        return [decode_entry(raw) for raw in self.journal]


def watcher(
    terms: ContractTerms = TERMS,
    registry: Registry = REGISTRY,
    start: Start | None = None,
    *,
    thorough_leaves: int = THOROUGH_LEAVES,
) -> Watcher:
    return Watcher(CHAIN_ID, terms, registry, start, thorough_leaves=thorough_leaves)


def paid_batch(limits: OperatorLimits | None = None) -> tuple[Desk, Sender, Batch]:
    """Return a contract of micro-fees, and its first batch: two deposits and four requests of one or two payments."""
    desk, sender = Desk(limits=limits), Sender()
    for user in (1, 2):
        desk.send(sender.deposit(key(user).address, 5_000), is_forced=True)
    reference = tagged_hash(Tag.BLOB, b"what it is for")
    for number, (payer, recipient) in enumerate([(1, 2), (2, 3), (3, 1), (1, 4)]):
        payments = [Pay(key(recipient).address, 100 + number, reference)] * (1 + number % 2)
        desk.send(sender.request(payer, *payments), 1_100 + number)
    return desk, sender, desk.cut(1_200)


Items = list[BatchItem]


def rebuilt(batch: Batch, change: Callable[[Items], Items]) -> Batch:
    """Return a batch that a liar has made of another one: consistent in itself, other in content."""
    data = open_data(batch.commitment, batch.data)
    items = change(list(data.items))
    honest = batch.commitment
    forced = [place.index for place in honest.forced if place.index < len(items)]
    return Batch(
        *commit(
            honest.contract_id,
            honest.number,
            honest.previous_root,
            honest.from_ms,
            honest.until_ms,
            items,
            forced,
        )
    )


def recommitted(batch: Batch, **changes: object) -> Batch:
    """Return a batch with a commitment that its own data does not bear out."""
    commitment: BatchCommitment = msgspec.structs.replace(batch.commitment, **changes)
    return Batch(commitment, batch.data)


def data_of(batch: Batch) -> BatchData:
    return open_data(batch.commitment, batch.data)


def accepted(entries: Sequence[JournalEntry]) -> list[Accepted]:
    return [entry for entry in entries if isinstance(entry, Accepted)]
