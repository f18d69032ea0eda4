# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults of others, as typed errors.

Everything that arrives from a peer, a client, a file or the configuration may be wrong; such faults are `InvalidInput` or
one of its kinds and always say what was wrong, with which value, and what to do. A fault of our own is an assertion.
"""

from enum import StrEnum


class SpchainError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidInput(SpchainError):
    """Bytes, a file or a value from outside that cannot be accepted; the text tells what, why and what to do."""


class NotFound(SpchainError):
    """Something asked for by name or identifier is not here."""


class SnapshotGone(NotFound):
    """A state of the past, asked for by its root, that the store keeps no more or never kept; the text says which ones it keeps."""


class StoreError(SpchainError):
    """The store cannot be opened or written: wrong network, in use, damaged, or the disk is full."""


class RejectionReason(StrEnum):
    """Why a transaction was refused; the names are stable and reach clients."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    WRONG_CHAIN = "wrong_chain"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    EXPIRY_TOO_FAR = "expiry_too_far"
    NONCE_USED = "nonce_used"
    NONCE_GAP = "nonce_gap"
    FEE_TOO_LOW = "fee_too_low"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    NOT_ACCREDITED = "not_accredited"
    INSTITUTION_EXISTS = "institution_exists"
    INSTITUTION_UNKNOWN = "institution_unknown"
    PATIENT_EXISTS = "patient_exists"
    PATIENT_UNKNOWN = "patient_unknown"
    NOT_AUTHORISED = "not_authorised"
    WRONG_SEQUENCE = "wrong_sequence"
    WRONG_PREVIOUS = "wrong_previous"
    WRONG_OPENING = "wrong_opening"
    SENDER_MISMATCH = "sender_mismatch"
    FALSE_EVIDENCE = "false_evidence"
    ALREADY_PUNISHED = "already_punished"
    NOT_PERMITTED = "not_permitted"
    WRONG_PERIOD = "wrong_period"
    PARTY_UNKNOWN = "party_unknown"
    GRANT_UNKNOWN = "grant_unknown"
    GRANT_EXISTS = "grant_exists"
    GRANT_REVOKED = "grant_revoked"
    GRANT_NOT_REVOKED = "grant_not_revoked"
    NOT_A_PROXY = "not_a_proxy"
    ALREADY_CONFIRMED = "already_confirmed"
    RECORD_UNKNOWN = "record_unknown"
    PERMISSION_USED = "permission_used"
    PERMISSION_EXPIRED = "permission_expired"
    WRONG_PROOF = "wrong_proof"
    NOT_LABELLED = "not_labelled"
    GUARDIANS_UNKNOWN = "guardians_unknown"
    NOT_A_GUARDIAN = "not_a_guardian"
    TOO_FEW_APPROVALS = "too_few_approvals"
    WRONG_GENERATION = "wrong_generation"
    KEY_IN_USE = "key_in_use"
    EMERGENCY_UNKNOWN = "emergency_unknown"
    EMERGENCY_OPEN = "emergency_open"
    EMERGENCY_OVER = "emergency_over"
    CONTRACT_UNKNOWN = "contract_unknown"
    CONTRACT_EXISTS = "contract_exists"
    CONTRACT_ENDED = "contract_ended"
    CONTRACT_OPEN = "contract_open"
    WRONG_TERMS = "wrong_terms"
    BOND_TOO_SMALL = "bond_too_small"
    NO_DEPOSITS = "no_deposits"
    BATCH_UNKNOWN = "batch_unknown"
    BATCH_FINAL = "batch_final"
    BATCH_NOT_FINAL = "batch_not_final"
    WRONG_BATCH = "wrong_batch"
    WRONG_REQUEST = "wrong_request"
    FALSE_CHALLENGE = "false_challenge"
    ANSWER_OWED = "answer_owed"
    NOT_OVERDUE = "not_overdue"
    NOT_SETTLED = "not_settled"
    NOTHING_TO_CLAIM = "nothing_to_claim"
    DATA_MISSING = "data_missing"
    MEMPOOL_FULL = "mempool_full"
    NOT_REPLICATED = "not_replicated"
    STORAGE = "storage"


class Rejection(InvalidInput):
    """A transaction was refused for a typed reason; `detail` names the values and the remedy."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
