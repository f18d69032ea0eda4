# SPDX-License-Identifier: GPL-3.0-or-later
"""Receipts that users have handed in, until their batch shows whether the operator keeps its promise."""

from collections.abc import Sequence

import trio

from contracts.batch_data import BatchData, open_data
from contracts.watcher import broken_promise
from ledger.errors import InvalidInput
from ledger.offchain import BatchCommitment, BrokenReceipt, ContractTerms, SignedReceipt, is_signed_receipt

MAX_HELD = 50_000
"""Receipts of all contracts together: some 30 MB."""
MAX_AHEAD = 64
"""Batches after the next one that a receipt may be about; an operator has fewer waiting for the chain."""


class Promises:
    """Receipts in memory."""

    def __init__(self, chain_id: bytes) -> None:
        self._chain_id = chain_id
        self._held: dict[tuple[bytes, int], dict[bytes, SignedReceipt]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    async def check(self, terms: ContractTerms, signed: SignedReceipt) -> None:
        """Check that the contract's operator has signed a receipt; raises `InvalidInput`."""
        call = (self._chain_id, terms.operator, signed)
        if not await trio.to_thread.run_sync(is_signed_receipt, *call):
            raise InvalidInput(f"operator {terms.operator.hex()} has not signed the receipt")

    def hold(self, signed: SignedReceipt, batch_count: int) -> None:
        """Hold a checked receipt until its batch commits; raises `InvalidInput` when it is too far ahead, or there are too many."""
        receipt = signed.receipt
        if receipt.number > batch_count + MAX_AHEAD:
            raise InvalidInput(
                f"the receipt is about batch {receipt.number}; {batch_count} are committed: come back later"
            )
        of_batch = self._held.get((receipt.contract_id, receipt.number), {})
        if signed.signature in of_batch:
            return
        if self._count >= MAX_HELD:
            raise InvalidInput(f"{self._count} receipts wait for their batches here; hand it to another node, or later")
        self._held.setdefault((receipt.contract_id, receipt.number), of_batch)[signed.signature] = signed
        self._count += 1

    def take(self, contract_id: bytes, number: int) -> list[SignedReceipt]:
        """Return the receipts about a batch, and hold them no more."""
        found = self._held.pop((contract_id, number), {})
        self._count -= len(found)
        return list(found.values())

    def drop(self, contract_id: bytes) -> None:
        """Let go of a contract's receipts: it has ended."""
        for place in [place for place in self._held if place[0] == contract_id]:
            self.take(*place)

    async def broken(self, signed: SignedReceipt, commitment: BatchCommitment, raw: bytes) -> BrokenReceipt | None:
        """Return the proof that a batch breaks a checked receipt about it; raises `InvalidInput` for other data than the batch's."""
        return await trio.to_thread.run_sync(lambda: broken_promise(signed, open_data(commitment, raw)))


def first_broken(receipts: Sequence[SignedReceipt], data: BatchData) -> BrokenReceipt | None:
    """Return the proof for the first of some checked receipts about a batch that it breaks."""
    return next((proof for signed in receipts if (proof := broken_promise(signed, data)) is not None), None)
