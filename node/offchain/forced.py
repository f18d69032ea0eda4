# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests that the chain has forced on a contract, as an operator takes them: always read from the chain, never remembered.

So it does not matter whether a microblock came while the operator was up, down or between two steps.
"""

from consensus.restart import decode_signed
from ledger.contract_bodies import ForceOperation
from ledger.contract_queries import forced_at
from ledger.contract_state import Contract
from ledger.errors import NotFound, StoreError
from ledger.offchain import deposit_request, request_digest
from ledger.store import Store
from ledger.transactions import check_shape, decode_batch


class ForcedRequests:
    """One contract's forced requests. Microblocks may be full of them, so the one that was looked into last stays at hand."""

    def __init__(self, store: Store, chain_id: bytes, contract_id: bytes) -> None:
        self._store, self._chain_id, self._contract_id = store, chain_id, contract_id
        self._block_hash: bytes | None = None
        self._requests: dict[bytes, bytes] = {}

    def get(self, contract: Contract, number: int) -> bytes:
        """Return the bytes of the request that was forced as the `number`-th, deposits included.

        Raises `NotFound` when its row is cleared, and `StoreError` when the microblock that forced it does not hold it.
        """
        row = forced_at(self._store, contract, number)
        if row is None:
            raise NotFound(f"forced request {number} of contract {self._contract_id.hex()} is cleared")
        if row.account:
            return deposit_request(self._contract_id, row.deposit_sequence, row.account, row.amount_microcredit)
        block_hash = self._store.block_hash(row.height)
        if block_hash is None or block_hash != self._block_hash:
            self._requests = self._forced_at(row.height)
            self._block_hash = block_hash
        found = self._requests.get(row.request_digest)
        if found is None:
            raise StoreError(
                f"microblock {row.height} does not hold the request {row.request_digest.hex()} that it forced"
            )
        return found

    def _forced_at(self, height: int) -> dict[bytes, bytes]:
        """Return by their digests the requests that a microblock forces on the contract."""
        found: dict[bytes, bytes] = {}
        for raw in _transactions_at(self._store, height):
            # Searched before it is decoded: a full microblock has two thousand transactions, and few of them are wanted.
            if self._contract_id in raw:
                body = check_shape(raw, self._chain_id).transaction.body
                if isinstance(body, ForceOperation) and body.contract_id == self._contract_id:
                    found[request_digest(body.request)] = body.request
        return found


def _transactions_at(store: Store, height: int) -> list[bytes]:
    block_hash = store.block_hash(height)
    block = None if block_hash is None else store.microblock(block_hash)
    if block is None:
        raise StoreError(f"microblock {height} is committed and not in the store")
    raws: list[bytes] = []
    for digest in decode_signed(block).microblock.batches:
        batch = store.batch(digest)
        if batch is None:
            raise StoreError(f"batch {digest.hex()} of microblock {height} is committed and not in the store")
        raws += decode_batch(batch)
    return raws
