# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission of transactions, and the nonces that are under way.

Admission checks a transaction against the committed state and the nonces that wait in batches; it may be optimistic where the outcome
depends on transactions still under way. The receipt decides.
"""

from collections.abc import Iterable

from contracts.shipped import MACHINES
from ledger.acts import BlockContext
from ledger.contract_bodies import ChallengeBatch
from ledger.errors import Rejection, RejectionReason
from ledger.genesis import chain_id
from ledger.state import ACCOUNTS, Account, State
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from ledger.transition import Receipt, apply_transaction

MAX_PENDING_TRANSACTIONS = 100_000
"""Default bound of own transactions: about 25 s at the budgeted rate. Those of others are bounded by the pool of batches."""
MAX_REQUEUES = 8
"""How often an own transaction that overtook its predecessor is ordered again before its sender is told."""

# Reasons that transactions under way may still remove.
_MAY_PASS = frozenset(
    {
        RejectionReason.INSUFFICIENT_BALANCE,
        RejectionReason.INSTITUTION_UNKNOWN,
        RejectionReason.PATIENT_UNKNOWN,
        RejectionReason.NOT_AUTHORISED,
        RejectionReason.WRONG_SEQUENCE,
        RejectionReason.WRONG_PREVIOUS,
        RejectionReason.WRONG_GENERATION,
        RejectionReason.PARTY_UNKNOWN,
        RejectionReason.NOT_PERMITTED,
        RejectionReason.RECORD_UNKNOWN,
        RejectionReason.GRANT_UNKNOWN,
        RejectionReason.GRANT_NOT_REVOKED,
        RejectionReason.PERMISSION_USED,
        RejectionReason.NOT_LABELLED,
        RejectionReason.GUARDIANS_UNKNOWN,
        RejectionReason.NOT_A_GUARDIAN,
        RejectionReason.EMERGENCY_UNKNOWN,
        RejectionReason.EMERGENCY_OPEN,
        RejectionReason.CONTRACT_UNKNOWN,
        RejectionReason.WRONG_BATCH,
        RejectionReason.ANSWER_OWED,
        RejectionReason.CONTRACT_OPEN,
    }
)


class Mempool:
    """What is under way: nonces of all pending transactions, and the own ones until their receipt."""

    def __init__(self, store: Store, capacity: int = MAX_PENDING_TRANSACTIONS) -> None:
        self._store = store
        self._chain_id = chain_id(store.genesis)
        self._parameters = store.genesis.parameters
        self._capacity = capacity
        # By sender and nonce, the transaction under way; of several with one nonce the first.
        self._nonces: dict[bytes, dict[int, bytes]] = {}
        self._own: dict[bytes, CheckedTransaction] = {}
        self._requeues: dict[bytes, int] = {}
        self._pending = 0

    def __len__(self) -> int:
        return self._pending

    def admit(self, checked: CheckedTransaction) -> bool:
        """Take an own transaction; False when it is under way from here already. Raises `Rejection`."""
        if checked.id in self._own:
            return False
        if len(self._own) >= self._capacity:
            detail = f"{len(self._own)} transactions are waiting here; try again later or through another node"
            raise Rejection(RejectionReason.MEMPOOL_FULL, detail)
        self._check(checked)
        self._own[checked.id] = checked
        self.track((checked,))
        return True

    def track(self, transactions: Iterable[CheckedTransaction]) -> None:
        """Note the nonces of transactions that are on their way in a batch."""
        for checked in transactions:
            nonces = self._nonces.setdefault(checked.sender, {})
            if checked.transaction.nonce not in nonces:
                nonces[checked.transaction.nonce] = checked.id
                self._pending += 1

    def forget(self, transactions: Iterable[CheckedTransaction]) -> None:
        """Let go of transactions that will not commit from where they were."""
        for checked in transactions:
            self._own.pop(checked.id, None)
            self._requeues.pop(checked.id, None)
            self._untrack(checked)

    def settle(
        self, transactions: Iterable[CheckedTransaction], receipts: Iterable[Receipt]
    ) -> list[CheckedTransaction]:
        """Take the receipts of a committed microblock; returns own transactions to be ordered again, each once."""
        again: dict[bytes, CheckedTransaction] = {}
        for checked, receipt in zip(transactions, receipts, strict=True):
            overtaken = receipt.reason == RejectionReason.NONCE_GAP and checked.id in self._own
            if overtaken and checked.id in again:
                continue
            if overtaken and self._requeues.get(checked.id, 0) < MAX_REQUEUES:
                self._requeues[checked.id] = self._requeues.get(checked.id, 0) + 1
                again[checked.id] = checked
            else:
                again.pop(checked.id, None)
                self.forget((checked,))
        return list(again.values())

    def is_own(self, transaction_id: bytes) -> bool:
        """Tell whether an own transaction still waits for its final receipt."""
        return transaction_id in self._own

    def next_nonce(self, address: bytes) -> int:
        """Return the nonce that the account's next transaction should carry."""
        nonce = State(self._store).account(address).nonce
        pending = self._nonces.get(address, {})
        while nonce in pending:
            nonce += 1
        return nonce

    def is_payable(self, checked: CheckedTransaction) -> bool:
        """Tell whether the committed state lets a transaction commit, now or after others of its sender."""
        transaction = checked.transaction
        account = State(self._store).account(checked.sender)
        return (
            transaction.nonce >= account.nonce
            and account.balance_microcredit >= transaction.fee_microcredit >= self._parameters.minimum_fee_microcredit
            and transaction.expiry_height > self._store.head().height
        )

    def _check(self, checked: CheckedTransaction) -> None:
        state = State(self._store)
        head = self._store.head()
        context = BlockContext(
            head.height + 1, head.timestamp_ms, self._parameters, self._chain_id, state.progress().epoch, MACHINES
        )
        sender, nonce = checked.sender, checked.transaction.nonce
        pending = self._nonces.get(sender, {})
        # The very same one may be under way from another node: then it goes out from here too, and commits once.
        if pending.get(nonce, checked.id) != checked.id:
            raise Rejection(RejectionReason.NONCE_USED, f"another transaction with nonce {nonce} is under way")
        account = state.account(sender)
        if nonce > account.nonce and nonce - 1 in pending:
            # Its predecessors are under way: look at it as if they had committed.
            state.put(ACCOUNTS, sender, Account(nonce, account.balance_microcredit))
        try:
            costly = apply_transaction(state, context, checked)
        except Rejection as rejection:
            # A challenge is of something committed, and three times as large as anything else: it passes now or never.
            optimistic = self._pending and not isinstance(checked.transaction.body, ChallengeBatch)
            if not (rejection.reason in _MAY_PASS and optimistic):
                raise
        else:
            if costly is not None:
                # It would be committed and cost its sender a penalty: better refused while it costs nothing.
                raise costly

    def _untrack(self, checked: CheckedTransaction) -> None:
        nonces = self._nonces.get(checked.sender)
        if nonces is not None and nonces.get(checked.transaction.nonce) == checked.id:
            del nonces[checked.transaction.nonce]
            self._pending -= 1
            if not nonces:
                del self._nonces[checked.sender]
