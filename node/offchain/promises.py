# SPDX-License-Identifier: GPL-3.0-or-later
"""Receipts that users have handed in, until their batch shows whether the operator keeps its promise.

They are in memory, where batches are compared with them, and on the disk, so that they outlive the node's process. A receipt whose batch
keeps it is let go of; one that is broken stays on the disk until the contract is settled: a restart may come before the conviction.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import structlog
import trio

from contracts.batch_data import BatchData, open_data
from contracts.watcher import broken_promise
from ledger.errors import InvalidInput, StoreError
from ledger.offchain import BatchCommitment, BrokenReceipt, ContractTerms, SignedReceipt, is_signed_receipt
from node.offchain.receipt_file import ReceiptFile

log = structlog.get_logger()

MAX_HELD = 50_000
"""Receipts of all contracts together: some 30 MB."""
MAX_OF_CONTRACT = MAX_HELD // 8
"""Receipts of one contract: its operator can sign as many as it likes about batches that it never commits."""
MAX_AHEAD = 64
"""Batches after the next one that a receipt may be about; an operator has fewer waiting for the chain."""

Place = tuple[bytes, int]
"""A batch: contract and number."""


class Promises:
    """The receipts that are held."""

    def __init__(self, chain_id: bytes, file: ReceiptFile) -> None:
        self._chain_id = chain_id
        self._file = file
        self._held: dict[Place, dict[bytes, SignedReceipt]] = {}
        self._of_contract: Counter[bytes] = Counter()
        self._on_disk: set[bytes] = set()
        # One after the other, so that what was let go of is not written afterwards.
        self._writing = trio.Lock()

    def __len__(self) -> int:
        return self._of_contract.total()

    async def check(self, terms: ContractTerms, signed: SignedReceipt) -> None:
        """Check that the contract's operator has signed a receipt; raises `InvalidInput`."""
        call = (self._chain_id, terms.operator, signed)
        if not await trio.to_thread.run_sync(is_signed_receipt, *call):
            raise InvalidInput(f"operator {terms.operator.hex()} has not signed the receipt")

    async def hold(self, signed: SignedReceipt, batch_count: int) -> None:
        """Hold a checked receipt until its batch commits, also over a restart.

        Raises `InvalidInput` when it is too far ahead, or there are too many, and `StoreError` when the disk fails: it is not held then.
        """
        receipt = signed.receipt
        if receipt.number > batch_count + MAX_AHEAD:
            raise InvalidInput(
                f"the receipt is about batch {receipt.number}; {batch_count} are committed: come back later"
            )
        count = self._of_contract[receipt.contract_id]
        if not self._has(signed):
            if len(self) >= MAX_HELD or count >= MAX_OF_CONTRACT:
                detail = f"{len(self)} receipts wait for their batches here, {count} of them of this contract"
                raise InvalidInput(f"{detail}; hand it to another node, or later")
            self._note(signed)
        async with self._writing:
            if not self._has(signed):
                return  # its batch has come meanwhile
            try:
                await self._put(signed)
            except StoreError:
                if self._has(signed):
                    del self._held[_place(signed)][signed.signature]
                    self._of_contract[receipt.contract_id] -= 1
                raise

    def _has(self, signed: SignedReceipt) -> bool:
        return signed.signature in self._held.get(_place(signed), {})

    def _note(self, signed: SignedReceipt) -> None:
        self._held.setdefault(_place(signed), {})[signed.signature] = signed
        self._of_contract[signed.receipt.contract_id] += 1

    async def _put(self, signed: SignedReceipt) -> None:
        self._on_disk.add(signed.receipt.contract_id)
        await trio.to_thread.run_sync(self._file.put, signed)

    async def keep(self, signed: SignedReceipt) -> None:
        """Keep a checked receipt on the disk that its batch breaks, and that is challenged."""
        async with self._writing:
            try:
                await self._put(signed)
            except StoreError as error:
                log.warning("a broken receipt is not on the disk; a restart would forget it", error=str(error))

    async def restore(self) -> dict[Place, list[SignedReceipt]]:
        """Return what is kept on the disk, by batches; nothing of it is held in memory yet. Raises `StoreError`."""
        found = await trio.to_thread.run_sync(self._file.all)
        self._on_disk |= {signed.receipt.contract_id for signed in found}
        return {place: list(signed) for place, signed in groupby(found, _place)}

    def hold_restored(self, receipts: Sequence[SignedReceipt]) -> None:
        """Hold receipts again that were kept, about batches that are not committed yet."""
        for signed in receipts:
            if not self._has(signed):
                self._note(signed)

    def take(self, contract_id: bytes, number: int) -> list[SignedReceipt]:
        """Return the receipts about a batch, and hold them no more; they stay on the disk until `forget`."""
        found = self._held.pop((contract_id, number), {})
        self._of_contract[contract_id] -= len(found)
        self._of_contract += Counter()  # without those at zero
        return list(found.values())

    async def forget(self, contract_id: bytes, number: int) -> None:
        """Let go of what the disk has about a batch that breaks no promise, or that nobody can challenge any more."""
        await self._remove(self._file.remove, contract_id, number)

    async def drop(self, contract_id: bytes) -> None:
        """Let go of a contract's receipts: it is settled."""
        for place in [place for place in self._held if place[0] == contract_id]:
            self.take(*place)
        if contract_id in self._on_disk:
            self._on_disk.discard(contract_id)
            await self._remove(self._file.remove_all, contract_id)

    async def _remove(self, remove: Callable[..., None], *place: object) -> None:
        async with self._writing:
            try:
                await trio.to_thread.run_sync(remove, *place)
            except StoreError as error:
                # They are looked at once more after the next start.
                log.warning("receipts cannot be removed", error=str(error))

    async def broken(
        self, receipts: Sequence[SignedReceipt], commitment: BatchCommitment, raw: bytes
    ) -> tuple[SignedReceipt, BrokenReceipt] | None:
        """Return the first of some checked receipts about a batch that it breaks, with the proof; None if it keeps all.

        Raises `InvalidInput` for other data than the batch's.
        """
        return await trio.to_thread.run_sync(lambda: first_broken(receipts, open_data(commitment, raw)))


def first_broken(receipts: Sequence[SignedReceipt], data: BatchData) -> tuple[SignedReceipt, BrokenReceipt] | None:
    """Return the first of some checked receipts about a batch that it breaks, with the proof; None if it keeps all."""
    for signed in receipts:
        if (proof := broken_promise(signed, data)) is not None:
            return signed, proof
    return None


def _place(signed: SignedReceipt) -> Place:
    return signed.receipt.contract_id, signed.receipt.number
