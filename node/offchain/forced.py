# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests that the chain has forced on a contract, as an operator takes them: always read from the chain, never remembered.

So it does not matter whether a microblock came while the operator was up, down or between two steps.
"""

from consensus.restart import decode_signed
from contracts.requests import deposit_request
from ledger.contract_bodies import ForceOperation
from ledger.contract_queries import forced_at
from ledger.contract_state import Contract
from ledger.errors import NotFound, StoreError
from ledger.offchain import request_digest
from ledger.store import Store
from ledger.transactions import check_shape, decode_batch


def forced_request(store: Store, chain_id: bytes, contract: Contract, number: int) -> bytes:
    """Return the bytes of the request that was forced as the `number`-th, deposits included.

    Raises `NotFound` when its row is cleared, and `StoreError` when the microblock that forced it does not hold it.
    """
    row = forced_at(store, contract, number)
    contract_id = contract.terms.contract_id
    if row is None:
        raise NotFound(f"forced request {number} of contract {contract_id.hex()} is cleared")
    if row.account:
        return deposit_request(contract_id, row.deposit_sequence, row.account, row.amount_microcredit)
    for raw in _transactions_at(store, row.height):
        # Searched before it is decoded: a full microblock has two thousand transactions, and one of them is wanted.
        if contract_id in raw:
            body = check_shape(raw, chain_id).transaction.body
            if (
                isinstance(body, ForceOperation)
                and body.contract_id == contract_id
                and request_digest(body.request) == row.request_digest
            ):
                return body.request
    raise StoreError(f"microblock {row.height} does not hold the request {row.request_digest.hex()} that it forced")


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
