# SPDX-License-Identifier: GPL-3.0-or-later
"""Erasing the ciphertext of labelled records, where the operator wants it (`erase_labelled`) and the patient has allowed it.

A record is worked on when its label commits. All of them are looked through at the start, for a crash in between, and from time to
time, for a copy that has come back from a peer. Erasing comes first and its confirmation second: what is confirmed is gone.
"""

from collections.abc import Callable

import structlog
import trio

from ledger.bodies import ConfirmErasure, LabelRecord
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.errors import StoreError
from ledger.state import ERASURES, INSTITUTIONS, LABELS, RECORDS, State, numbered_key, scan
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.own_transactions import OwnTransactions
from records.blob_store import BlobStore

log = structlog.get_logger()

SWEEP_INTERVAL_S = 3_600.0
"""Between two looks through all labels."""
RETRY_S = 3.0
"""Between two looks at whether confirmations have been committed, and after a fault of the disk."""
PAGE_LABELS = 256
"""Labels looked at in one go: two milliseconds of the event loop."""
MAX_OPEN = 4_096
"""Records that are worked on at once; further ones are found by the next look through all labels."""
_Place = tuple[bytes, int]


class Erasing:
    """One node's erasures; does nothing unless enabled."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        transactions: OwnTransactions,
        is_behind: Callable[[], bool],
        *,
        enabled: bool,
    ) -> None:
        """While the node `is_behind`, it confirms nothing: the chain may hold its confirmations already."""
        self._store = store
        self._blobs = blobs
        self._transactions = transactions
        self._is_behind = is_behind
        self._enabled = enabled
        self._open: dict[_Place, None] = {}
        self._labelled = trio.Event()

    def committed(self, transactions: tuple[CheckedTransaction, ...]) -> None:
        """A microblock is stored: what its labels allow to be erased is erased soon."""
        if not self._enabled:
            return
        for checked in transactions:
            body = checked.transaction.body
            if isinstance(body, LabelRecord) and body.permission.may_erase:
                self._note((body.permission.patient, body.permission.sequence))
                self._labelled.set()

    async def run(self) -> None:
        """Erase and confirm until cancelled."""
        if not self._enabled:
            return
        sweep_s = trio.current_time()
        while True:
            self._labelled = trio.Event()
            if trio.current_time() >= sweep_s:
                await self._find_all()
                sweep_s = trio.current_time() + SWEEP_INTERVAL_S
            for place in tuple(self._open):
                if await self._erase(*place):
                    self._open.pop(place, None)
            with trio.move_on_at(trio.current_time() + RETRY_S if self._open else sweep_s):
                await self._labelled.wait()

    async def _find_all(self) -> None:
        start: bytes | None = b""
        while start is not None:
            page = list(scan(self._store, LABELS, b"", start, PAGE_LABELS))
            for key, _ in page:
                place = (key[:ADDRESS_BYTES], int.from_bytes(key[ADDRESS_BYTES : ADDRESS_BYTES + 8], "big"))
                if place not in self._open and not self._is_done(*place):
                    self._note(place)
            start = page[-1][0] + b"\0" if len(page) == PAGE_LABELS else None
            await trio.lowlevel.checkpoint()

    def _note(self, place: _Place) -> None:
        if len(self._open) < MAX_OPEN:
            self._open[place] = None

    def _is_done(self, patient: bytes, sequence: int) -> bool:
        """Tell whether nothing is to be erased, or it is gone and, as far as this node can confirm it, confirmed."""
        state = State(self._store)
        record = state.get(RECORDS, numbered_key(patient, sequence))
        # The label may have been refused in its microblock.
        if record is None or not record.may_erase:
            return True
        return not self._blobs.has(record.envelope.blob_id) and not self._owes_confirmation(state, patient, sequence)

    def _owes_confirmation(self, state: State, patient: bytes, sequence: int) -> bool:
        own = self._transactions.address
        is_institution = state.get(INSTITUTIONS, own) is not None
        return is_institution and state.get(ERASURES, numbered_key(patient, sequence) + own) is None

    async def _erase(self, patient: bytes, sequence: int) -> bool:
        """Do what is left to do for one record; tell whether it is done."""
        purpose = ("erasure", patient, sequence)
        if self._is_done(patient, sequence):
            self._transactions.forget(purpose)
            return True
        state = State(self._store)
        record = state.get(RECORDS, numbered_key(patient, sequence))
        assert record is not None, "records are for ever"
        try:
            if await trio.to_thread.run_sync(self._blobs.delete, record.envelope.blob_id):
                log.info("ciphertext of a labelled record erased", patient=patient.hex(), record=sequence)
        except StoreError as error:
            log.warning("a ciphertext cannot be erased", blob=record.envelope.blob_id.hex(), error=str(error))
            return False
        if not self._owes_confirmation(State(self._store), patient, sequence):
            return True
        if not self._is_behind() and not self._transactions.is_under_way(purpose):
            outcome = await self._transactions.send(purpose, ConfirmErasure(patient, sequence))
            if not outcome.accepted:
                log.warning("an erasure cannot be confirmed yet", record=sequence, why=outcome.detail)
        return False
