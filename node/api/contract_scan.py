# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds transactions about off-chain contracts in committed microblocks: what happened to contracts, and what commitments cost.

Microblocks hold thousands of transactions, few of them about contracts: the kind of each is read from its first bytes, and only what
is about contracts is decoded.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import msgspec
import trio

from ledger.codec import decoder, encode
from ledger.contract_bodies import (
    ChallengeBatch,
    CloseContract,
    CommitBatch,
    ContractBody,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
)
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract, contract_id_of
from ledger.crypto.keys import address_of
from ledger.store import Store
from ledger.transactions import SignedTransaction, Transaction, decode_batch, transaction_id
from node.api import views
from node.api.contract_models import COST_BATCHES, ContractNews, Cost

FIRST_TAG, COMMIT_TAG, LAST_TAG = 18, 20, 27
"""Tags of the bodies about contracts, and that of a commitment among them."""
MAX_STORED_BYTES = 1024 * 1024
"""The store keeps what was checked when it came in."""
KEPT_COSTS = 4096
"""Batches whose transaction's size is remembered: about 1 MB."""
REQUEST_OVERHEAD_BYTES = 237
"""What a request with one operation takes in a batch's data beside the operation: signature, contract, sender, leaf."""
_UINT_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_INTEGERS_START = 2 + 6 + 35  # two list heads, the chain's prefix, the sender's key
_decode_transaction = decoder(SignedTransaction, MAX_STORED_BYTES, own=True)


def body_tag(raw: bytes) -> int:
    """Return the tag of a stored transaction's body: nonce, fee and expiry before it have lengths of their own."""
    place = _INTEGERS_START
    for _ in range(3):
        place += _UINT_BYTES.get(raw[place], 1)
    return raw[place + 1]


async def contract_transactions(store: Store, height: int) -> list[Transaction]:
    """Return those transactions of a microblock that are about contracts and took effect there."""
    found = []
    for first, batch in views.batches_at(store, height):
        for place, raw in enumerate(batch):
            if FIRST_TAG <= body_tag(raw) <= LAST_TAG:
                receipt = store.receipt(transaction_id(raw))
                here = (height, first + place, "")
                if receipt is not None and (receipt.height, receipt.position, receipt.reason) == here:
                    found.append(_decode_transaction(raw).transaction)
        await trio.lowlevel.checkpoint()
    return found


# ---------------------------------------------------------------- news


async def news_at(store: Store, height: int) -> tuple[ContractNews, ...]:
    """Return what happened to contracts in a microblock: what its transactions did, and which batches became final with it."""
    found = [news for done in await contract_transactions(store, height) for news in _news_of(done)]
    settled = height - store.genesis.parameters.contracts.window_microblocks
    if settled > 0:
        for done in await contract_transactions(store, settled):
            if isinstance(done.body, CommitBatch):
                commitment = done.body.commitment
                contract = contract_at(store, commitment.contract_id)
                batch = None if contract is None else batch_at(store, contract, commitment.number)
                if batch is not None and batch.height == settled:
                    found.append(_news(commitment.contract_id, "final", commitment.number))
    return tuple(found)


_Kind = Literal["opened", "funded", "forced", "committed", "final", "fraud", "frozen", "closed"]


def _news(contract_id: bytes, kind: _Kind, batch: int | None = None) -> ContractNews:
    return ContractNews(contract_id=contract_id, kind=kind, batch=batch)


def _news_of(done: Transaction) -> Iterator[ContractNews]:
    body: ContractBody | object = done.body
    match body:
        case OpenContract():
            yield _news(contract_id_of(done.sender, body.number), "opened")
        case FundContract():
            yield _news(body.contract_id, "funded")
        case ForceOperation():
            yield _news(body.contract_id, "forced")
        case CommitBatch():
            yield _news(body.commitment.contract_id, "committed", body.commitment.number)
        case ChallengeBatch():
            yield _news(body.contract_id, "fraud", body.number)
            yield _news(body.contract_id, "frozen")
        case FreezeContract():
            yield _news(body.contract_id, "frozen")
        case CloseContract():
            yield _news(body.contract_id, "closed")


# ---------------------------------------------------------------- costs


class Commit(msgspec.Struct, frozen=True):
    """The transaction that committed a batch."""

    fee_microcredit: int
    """What its sender paid."""
    size_bytes: int
    """Its size."""


class Costs:
    """Measures what operations cost; remembers the transactions that it has found."""

    def __init__(self, store: Store) -> None:
        """Take what is committed."""
        self._store = store
        self._known: OrderedDict[tuple[bytes, int, int], Commit] = OrderedDict()

    def of_newest(self, contract: Contract) -> Cost:
        """Return the costs of a contract's newest batches together."""
        first = max(0, contract.batch_count - COST_BATCHES)
        found = [batch_at(self._store, contract, number) for number in range(first, contract.batch_count)]
        return self._cost(contract, [batch for batch in found if batch is not None])

    def of_batch(self, contract: Contract, batch: CommittedBatch) -> Cost:
        """Return the costs of one batch."""
        return self._cost(contract, [batch])

    def _cost(self, contract: Contract, batches: list[CommittedBatch]) -> Cost:
        commits = [self._commit(batch) for batch in batches]
        operations = sum(batch.commitment.operation_count for batch in batches)
        requests = sum(batch.commitment.leaf_count for batch in batches)
        data_bytes = sum(batch.commitment.data_bytes for batch in batches)
        average = max(1, (data_bytes - requests * REQUEST_OVERHEAD_BYTES) // operations) if operations else 1
        minimum = self._store.genesis.parameters.minimum_fee_microcredit
        return Cost(
            batches=len(batches),
            operations=operations,
            fee_microcredit=sum(commit.fee_microcredit for commit in commits),
            chain_bytes=sum(commit.size_bytes for commit in commits),
            data_bytes=data_bytes,
            onchain_fee_microcredit=minimum,
            onchain_bytes=transaction_bytes(average, minimum),
            paid_by=address_of(contract.terms.operator),
        )

    def _commit(self, batch: CommittedBatch) -> Commit:
        commitment = batch.commitment
        place = (commitment.contract_id, commitment.number, batch.height)
        if place not in self._known:
            self._known[place] = self._find(batch)
            if len(self._known) > KEPT_COSTS:
                self._known.popitem(last=False)
        return self._known[place]

    def _find(self, batch: CommittedBatch) -> Commit:
        # Searched before anything is decoded: microblocks have thousands of transactions.
        wanted = encode(batch.commitment)
        for digest in views.header_at(self._store, batch.height)[2]:
            found = self._store.batch(digest)
            if found is None or wanted not in found:
                continue
            for raw in decode_batch(found):
                if wanted in raw and body_tag(raw) == COMMIT_TAG:
                    return Commit(_decode_transaction(raw).transaction.fee_microcredit, len(raw))
        raise AssertionError(f"batch {batch.commitment.number} was committed at height {batch.height}")


def transaction_bytes(body_bytes: int, fee_microcredit: int) -> int:
    """Return the size of a transaction whose body has some size, with nonce and height as they are after a while."""
    nonce, height = 1_000, 100_000
    integers = sum(len(encode(number)) for number in (nonce, fee_microcredit, height))
    signature = 66
    return _INTEGERS_START + integers + body_bytes + signature
