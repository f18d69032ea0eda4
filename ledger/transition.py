# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure state transition: what a microblock's transactions do to the state.

A transaction that the state refuses has no effect and costs nothing; it gets a receipt with the reason, because batches are made by many
nodes at once and may hold the same transaction twice or out of order. Every handler raises before it writes. False evidence and false
challenges alone cost their sender fee and penalty: everyone has to judge them to find out.

A microblock is executed in two steps, `apply_transactions` and `conclude`; between them `consensus` accounts for terms, fees and keyblocks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ledger.account_acts import register_institution, report_misbehaviour, transfer
from ledger.acts import Act, BlockContext
from ledger.bodies import (
    AppointGuardians,
    ApproveEmergency,
    AuthoriseAuthor,
    ChangeKeys,
    CommitRecord,
    ConfirmDeletion,
    ConfirmErasure,
    DelegatePowers,
    GrantAccess,
    LabelRecord,
    OpenEmergency,
    RegisterInstitution,
    RegisterPatient,
    ReportMisbehaviour,
    ReviewEmergency,
    RevokeAccess,
    Transfer,
)
from ledger.codec import Wire
from ledger.contract_acts import commit_batch, force_operation, fund_contract, open_contract
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_ends import (
    challenge_batch,
    claim_balance,
    close_contract,
    freeze_contract,
    reclaim_deposit,
    release_bond,
)
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.emergency_acts import approve_emergency, open_emergency, review_emergency
from ledger.errors import Rejection, RejectionReason
from ledger.genesis import Genesis, chain_id, check_genesis, genesis_seed
from ledger.guardian_acts import appoint_guardians, change_keys, delegate_powers
from ledger.label_acts import confirm_erasure, label_record
from ledger.miners import EpochProgress, MinerHistory, inverted
from ledger.patient_acts import authorise_author, commit_record, register_patient
from ledger.sharing_acts import confirm_deletion, grant_access, revoke_access
from ledger.state import (
    ACCOUNTS,
    ACCREDITATIONS,
    MINER_VERSIONS,
    MINERS,
    PROGRESS,
    SUPPLY,
    Account,
    Accreditation,
    Change,
    State,
    Supply,
    next_state_digest,
)
from ledger.transactions import CheckedTransaction, Transaction


class Receipt(Wire, frozen=True):
    """What became of a transaction in a microblock."""

    height: int
    """Height of the microblock."""
    position: int
    """Place among the microblock's transactions."""
    reason: str
    """Empty when it took effect; else the `RejectionReason`."""


class Applied(msgspec.Struct, frozen=True):
    """What the transactions of one microblock came to."""

    receipts: tuple[tuple[bytes, Receipt], ...]
    """Transaction identifier and receipt, in the order of execution."""
    fees_microcredit: int
    """Fees that they paid, in millionths of a credit; now in flight."""


class Execution(msgspec.Struct, frozen=True):
    """The outcome of one microblock."""

    changes: tuple[Change, ...]
    """State changes in the order of their keys."""
    receipts: tuple[tuple[bytes, Receipt], ...]
    """Transaction identifier and receipt, in the order of execution."""
    state_digest: bytes
    """Running digest after the microblock."""


class _EmptyReader:
    """The state before the genesis."""

    def get_state(self, _key: bytes) -> bytes | None:
        return None

    def scan_state(self, _prefix: bytes, _start: bytes, _limit: int) -> Iterator[tuple[bytes, bytes]]:
        return iter(())


def execute_genesis(genesis: Genesis) -> Execution:
    """Return the state that a network starts with. Raises `InvalidInput` for a genesis that contradicts itself."""
    check_genesis(genesis)
    state = State(_EmptyReader())
    for allocation in genesis.allocations:
        state.put(ACCOUNTS, allocation.account, Account(0, allocation.balance_microcredit))
    for account in genesis.accredited:
        state.put(ACCREDITATIONS, account, Accreditation(0))
    state.put(SUPPLY, b"", Supply(sum(a.balance_microcredit for a in genesis.allocations), 0, 0, 0))
    for member in genesis.committee:
        history = MinerHistory(external_nano=member.external_nano)
        state.put(MINERS, member.public_key, history)
        state.put(MINER_VERSIONS, member.public_key + inverted(0), history)
    state.put(PROGRESS, b"", _founding_progress(genesis))
    return conclude(state, ZERO_DIGEST, ())


def _founding_progress(genesis: Genesis) -> EpochProgress:
    return EpochProgress(
        epoch=0,
        seed=genesis_seed(chain_id(genesis)),
        microblocks=0,
        round=0,
        leader=bytes(20),
        term_microblocks=0,
        window_start_ms=genesis.timestamp_ms,
        window_keyblocks=0,
        timestamps_ms=(genesis.timestamp_ms,),
    )


def apply_transactions(state: State, context: BlockContext, transactions: Iterable[CheckedTransaction]) -> Applied:
    """Apply a microblock's transactions in order; their fees are in flight afterwards."""
    receipts = []
    fees = 0
    for position, checked in enumerate(transactions):
        try:
            refused = apply_transaction(state, context, checked)
            fees += checked.transaction.fee_microcredit
        except Rejection as rejection:
            refused = rejection
        reason = "" if refused is None else refused.reason.value
        receipts.append((checked.id, Receipt(context.height, position, reason)))
    if fees:
        supply = state.supply()
        in_flight = supply.fees_in_flight_microcredit + fees
        state.put(SUPPLY, b"", msgspec.structs.replace(supply, fees_in_flight_microcredit=in_flight))
    return Applied(tuple(receipts), fees)


def conclude(state: State, previous_digest: bytes, receipts: tuple[tuple[bytes, Receipt], ...]) -> Execution:
    """Return all that a microblock has changed, as the store takes it."""
    changes = state.changes()
    return Execution(changes, receipts, next_state_digest(previous_digest, changes))


def apply_transaction(state: State, context: BlockContext, checked: CheckedTransaction) -> Rejection | None:
    """Third check and effect of one transaction; raises `Rejection` and then leaves `state` as it was.

    Returns None, or the rejection of false evidence or a false challenge: that has cost its sender fee, penalty and nonce, and has no
    other effect.
    """
    transaction = checked.transaction
    account = _check_envelope(state, context, checked.sender, transaction)
    act = Act(
        state, context, checked.sender, transaction.sender, account.balance_microcredit - transaction.fee_microcredit
    )
    refused = HANDLERS[type(transaction.body)](act, transaction.body)
    state.put(ACCOUNTS, checked.sender, Account(account.nonce + 1, act.balance_microcredit))
    return refused


def _check_envelope(state: State, context: BlockContext, sender: bytes, transaction: Transaction) -> Account:
    expiry, height = transaction.expiry_height, context.height
    if expiry < height:
        raise Rejection(
            RejectionReason.EXPIRED,
            f"valid to height {expiry}, the next is {height}; sign it again with a later expiry",
        )
    furthest = height + context.parameters.maximum_expiry_microblocks
    if expiry > furthest:
        raise Rejection(RejectionReason.EXPIRY_TOO_FAR, f"expiry height {expiry}; at most {furthest} is allowed now")
    account = state.account(sender)
    if transaction.nonce != account.nonce:
        reason = RejectionReason.NONCE_USED if transaction.nonce < account.nonce else RejectionReason.NONCE_GAP
        raise Rejection(reason, f"nonce {transaction.nonce}; the account's next is {account.nonce}")
    fee, minimum = transaction.fee_microcredit, context.parameters.minimum_fee_microcredit
    if fee < minimum:
        raise Rejection(RejectionReason.FEE_TOO_LOW, f"fee {fee} microcredits; at least {minimum} are needed")
    if fee > account.balance_microcredit:
        detail = f"balance {account.balance_microcredit} microcredits does not cover the fee of {fee}; have credits moved to it"
        raise Rejection(RejectionReason.INSUFFICIENT_BALANCE, detail)
    return account


HANDLERS: Mapping[type, Callable[[Act, Any], Rejection | None]] = {
    RegisterInstitution: register_institution,
    RegisterPatient: register_patient,
    AuthoriseAuthor: authorise_author,
    CommitRecord: commit_record,
    Transfer: transfer,
    ReportMisbehaviour: report_misbehaviour,
    GrantAccess: grant_access,
    RevokeAccess: revoke_access,
    ConfirmDeletion: confirm_deletion,
    LabelRecord: label_record,
    ConfirmErasure: confirm_erasure,
    AppointGuardians: appoint_guardians,
    ChangeKeys: change_keys,
    DelegatePowers: delegate_powers,
    OpenEmergency: open_emergency,
    ApproveEmergency: approve_emergency,
    ReviewEmergency: review_emergency,
    OpenContract: open_contract,
    FundContract: fund_contract,
    CommitBatch: commit_batch,
    ChallengeBatch: challenge_batch,
    ForceOperation: force_operation,
    FreezeContract: freeze_contract,
    CloseContract: close_contract,
    ClaimBalance: claim_balance,
    ReclaimDeposit: reclaim_deposit,
    ReleaseBond: release_bond,
}
"""What each kind of body does; `Any` because each handler takes its own kind."""
