# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions about off-chain contracts, asked of any state: committed, past, or under way."""

from collections.abc import Callable, Iterator

from ledger.contract_state import Claimed, CommittedBatch, Contract, ForcedRequest, claim_key, contract_key
from ledger.rules import ContractRules
from ledger.state import CLAIMS, CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS, State, StateReader, scan


def contract_at(reader: StateReader, contract_id: bytes) -> Contract | None:
    """Return a contract."""
    return State(reader).get(CONTRACTS, contract_id)


def contracts_from(reader: StateReader, start: bytes, limit: int) -> Iterator[Contract]:
    """Yield up to `limit` contracts in the order of their identifiers, from one on."""
    for _, contract in scan(reader, CONTRACTS, b"", start, limit):
        yield contract


def batch_at(reader: StateReader, contract: Contract, number: int) -> CommittedBatch | None:
    """Return a batch that counts; one that fraud has undone is none."""
    if number >= contract.batch_count:
        return None
    return State(reader).get(CONTRACT_BATCHES, contract_key(contract.terms.contract_id, number))


def forced_at(reader: StateReader, contract: Contract, number: int) -> ForcedRequest | None:
    """Return a forced request whose row is still there."""
    return State(reader).get(FORCED_REQUESTS, contract_key(contract.terms.contract_id, number))


def claimed_by(reader: StateReader, contract_id: bytes, account: bytes) -> Claimed:
    """Return what an account has been paid out of a contract."""
    return State(reader).get(CLAIMS, claim_key(contract_id, account)) or Claimed(0, is_settled=False)


def final_count(contract: Contract, batch: Callable[[int], CommittedBatch | None], height: int, window: int) -> int:
    """Return how many batches are final at a height: those whose window of microblocks has passed. O(log batches) look-ups.

    Batches are committed in order, so the final ones are the first. `batch` gives one by its number.
    """
    low, high = 0, contract.batch_count
    while low < high:
        middle = (low + high) // 2
        found = batch(middle)
        assert found is not None, f"batch {middle} of {contract.batch_count} is in the state"
        if found.height + window <= height:
            low = middle + 1
        else:
            high = middle
    return low


def freezable_from(contract: Contract, owed: ForcedRequest, rules: ContractRules) -> int:
    """Return the time of microblocks in milliseconds since 1970 (UTC) from which the operator counts as dead, if no batch comes.

    `owed` is the oldest forced request without an answer. The end of the last batch stands for when it came: the operator chooses that
    end, but it lies at most the drift ahead of the microblock, which delays little, and behind it only to the operator's own harm.
    """
    return max(owed.time_ms, contract.until_ms) + rules.neglect_ms
