# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs about batches for whoever asks: what a state key holds after a batch, and where a request stands in one."""

from collections.abc import Callable

import msgspec
import trio

from contracts.batch_data import open_data, prove_leaf
from contracts.watcher import Watcher
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import LeafProof
from ledger.partial_tree import MAX_KEY_BYTES, WitnessEntry
from ledger.store import Store
from node.offchain.replaying import Fetch, Replaying


class ProvedRequest(msgspec.Struct, frozen=True):
    """A request of a committed batch."""

    request: bytes
    """The request as it was received."""
    proof: LeafProof
    """Its leaf, and that it stands in the batch."""


class ContractProofs:
    """Makes proofs; what they are checked against stands on the chain."""

    def __init__(
        self, *, store: Store, replaying: Replaying, fetch: Fetch, live: Callable[[bytes, int], Watcher | None]
    ) -> None:
        """`live` gives the running watcher of a contract if it stands at a batch's end and nothing is being executed on it."""
        self._store = store
        self._replaying = replaying
        self._fetch = fetch
        self._live = live

    async def prove_key(self, contract_id: bytes, number: int, key: bytes) -> WitnessEntry:
        """Return what a state key holds after a batch, with the proof under the batch's new root.

        Raises `InvalidInput` for what is no key, `NotFound` when there is no such batch, or its state is no longer to be had here.
        """
        if not 1 <= len(key) <= MAX_KEY_BYTES:
            raise InvalidInput(f"a state key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")
        contract, batch = self._batch(contract_id, number)
        watcher = self._live(contract_id, number + 1)
        if watcher is None or watcher.state.root() != batch.commitment.new_root:
            watcher = await self._replaying.state_after(contract, batch)
        (entry,) = watcher.state.witness([key])
        return entry

    async def prove_request(self, contract_id: bytes, number: int, index: int) -> ProvedRequest:
        """Return a request of a batch with its leaf; raises `NotFound` when there is none, or the batch's data is no longer to be had."""
        _, batch = self._batch(contract_id, number)
        count = batch.commitment.leaf_count
        if not 0 <= index < count:
            raise NotFound(
                f"batch {number} of contract {contract_id.hex()} has {count} requests, none at place {index}"
            )
        raw = await self._fetch(batch.commitment)

        def prove() -> ProvedRequest:
            data = open_data(batch.commitment, raw)
            return ProvedRequest(data.items[index].request, prove_leaf(data, index))

        return await trio.to_thread.run_sync(prove)

    def _batch(self, contract_id: bytes, number: int) -> tuple[Contract, CommittedBatch]:
        contract = contract_at(self._store, contract_id)
        if contract is None:
            raise NotFound(f"there is no contract {contract_id.hex()}")
        batch = batch_at(self._store, contract, number) if number >= 0 else None
        if batch is None:
            raise NotFound(f"contract {contract_id.hex()} has no batch {number}; {contract.batch_count} count")
        return contract, batch
