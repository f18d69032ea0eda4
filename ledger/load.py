# SPDX-License-Identifier: GPL-3.0-or-later
"""What a microblock asks of those who vote for it and execute it: one bound, for whoever fills a microblock and for whoever votes.

A leader names batches by their digests alone. Without a bound that voters keep, a dishonest one could have all others fetch, check and
execute for a minute: 64 batches hold 640 proofs of fraud, 30 000 labels or 130 000 transfers.

Requirements:
R1 (determinism) a load follows from the transactions' own bytes, so all who have a batch agree about it.
R2 (early) loads only add up: what is too much while some batches are missing is too much, and the others need not be fetched.
R3 (liveness) every transaction fits alone, and nobody takes or makes a batch that does not: what waits can always be ordered.
"""

from collections.abc import Iterable

import msgspec

from ledger.bodies import ChangeKeys, GrantAccess, LabelRecord
from ledger.contract_bodies import ChallengeBatch, CommitBatch
from ledger.errors import InvalidInput
from ledger.transactions import CheckedTransaction, Transaction

MAX_MICROBLOCK_COST = 2000
"""In transfers. Executing so many keeps a node from all else for at most about 0.1 s, and a network that carries 6 000 a second needs three
such microblocks."""
MAX_MICROBLOCK_DATA_BYTES = 8 * 1024 * 1024
"""Data of off-chain batches that one microblock may commit to: members that have to fetch it must be able to before they lose patience."""
CHALLENGE_COST = 200
"""A proof of fraud takes up to 10 ms to judge, a transfer 50 µs to apply."""
LABEL_COST = 40
"""The proof in a label takes 2 ms to check, as long as 40 transfers take to apply."""
RECORDS_AT_ONE_COST = 32
"""Records named by a grant that are looked up in the time of a transfer."""


class Load(msgspec.Struct, frozen=True):
    """What transactions ask for."""

    cost: int = 0
    """Time to check and apply them at most, in transfers."""
    data_bytes: int = 0
    """Published data that their commitments rest on."""

    def __add__(self, other: "Load") -> "Load":
        """Return what both ask for together."""
        return Load(self.cost + other.cost, self.data_bytes + other.data_bytes)

    @property
    def fits(self) -> bool:
        """Tell whether one microblock may ask for so much."""
        return self.cost <= MAX_MICROBLOCK_COST and self.data_bytes <= MAX_MICROBLOCK_DATA_BYTES


def cost_of(transaction: Transaction) -> int:
    """Return what a transaction costs at most, in transfers; kinds that cost up to a few of them count as one."""
    match transaction.body:
        case ChallengeBatch():
            return CHALLENGE_COST
        case LabelRecord():
            return LABEL_COST
        case ChangeKeys(approvals=approvals):
            return 1 + len(approvals)  # each a signature
        case GrantAccess(terms=terms):
            return 1 + len(terms.records) // RECORDS_AT_ONE_COST
        case _:
            return 1


def load_of(transactions: Iterable[CheckedTransaction]) -> Load:
    """Return what transactions ask for together."""
    cost = data_bytes = 0
    for checked in transactions:
        body = checked.transaction.body
        cost += cost_of(checked.transaction)
        data_bytes += body.commitment.data_bytes if isinstance(body, CommitBatch) else 0
    return Load(cost, data_bytes)


def check_cost(cost: int) -> None:
    """Check what a batch costs, also while it is still read (R2). Raises `InvalidInput`."""
    if cost > MAX_MICROBLOCK_COST:
        raise InvalidInput(
            f"the batch costs {cost} transfers or more; a microblock may cost {MAX_MICROBLOCK_COST}: cut it into smaller ones"
        )
