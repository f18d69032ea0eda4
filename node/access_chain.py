# SPDX-License-Identifier: GPL-3.0-or-later
"""One patient's accesses in an access-log contract, read from published batches and held against the contract's own head. Pure.

The head in the contract's state has the digest over all accesses in order. So whoever hands out batches can leave nothing out, add
nothing and change nothing: what was found must come to the digest that the state proves.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import cast

from contracts.batch_data import BatchItem, open_data
from contracts.execution import MACHINE_PREFIX, STATE_FULL, outcomes_digest
from contracts.machine import refused
from contracts.machines.access_log import AccessHead, AccessLogParameters, LogAccess, ReviewAccesses, next_digest
from contracts.requests import check_request
from ledger.codec import Address, Uint, Wire, decoder
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.offchain import MAX_OPERATION_BYTES, MAX_PARAMETERS_BYTES, BatchCommitment, InvalidRequest
from ledger.partial_tree import MAX_KEY_BYTES, MAX_VALUE_BYTES, WitnessEntry
from ledger.state_tree import MAX_PROOF_STEPS, verify_state_proof

MAX_LIGHT_PATIENTS = 12
"""Patients in a request of the feed: a challenge must prove the entry of each. One about more may have been refused in part."""
MAX_DOUBTS = 10
"""Requests about a patient of which the data alone does not tell whether they took effect; more are not sorted out."""
BEGINNING = AccessHead(0, 0, 0, 0, ZERO_DIGEST)
"""The head of a patient about whom nothing was logged."""

_Operation = LogAccess | ReviewAccesses
_decode_operation: Callable[[bytes], _Operation] = decoder(
    cast("type[_Operation]", _Operation), MAX_OPERATION_BYTES, name="operation of access_log"
)
_decode_head = decoder(AccessHead, 128, name="head of a patient's accesses")
decode_parameters = decoder(AccessLogParameters, MAX_PARAMETERS_BYTES, name="parameters of access_log")
"""Decode who may log; raises `InvalidInput`."""
decode_witness = decoder(WitnessEntry, MAX_KEY_BYTES + MAX_VALUE_BYTES + 40 * MAX_PROOF_STEPS + 256, name="state proof")
"""Decode a state key with its proof; raises `InvalidInput`."""


class LoggedAccess(Wire, frozen=True):
    """One access as a batch holds it."""

    number: Uint
    """The batch."""
    index: Uint
    """Place of the request in the batch."""
    writer: Address
    """Who has logged it, and signed for it."""
    time_ms: Uint
    """The operator's time, in milliseconds since 1970 (UTC)."""
    access: LogAccess
    """What was logged."""
    is_doubtful: bool
    """Whether the data alone does not tell if it took effect."""


def head_key(patient: bytes) -> bytes:
    """Return the state key of a patient's head."""
    return MACHINE_PREFIX + patient


def proved_head(commitment: BatchCommitment, patient: bytes, raw: bytes) -> AccessHead:
    """Return a patient's head at the end of a batch from its proof; raises `InvalidInput` for a proof of anything else."""
    entry = decode_witness(raw)
    if entry.key != head_key(patient):
        raise InvalidInput(f"the proof is of state key {entry.key.hex()}, not of patient {patient.hex()}")
    if not verify_state_proof(commitment.new_root, entry.key, entry.value, entry.proof):
        raise InvalidInput(f"the proof of patient {patient.hex()} does not hold at batch {commitment.number}")
    return BEGINNING if entry.value is None else _decode_head(entry.value)


def accesses_in(
    chain_id: bytes, parameters: AccessLogParameters, commitment: BatchCommitment, raw: bytes, patient: bytes
) -> tuple[LoggedAccess, ...]:
    """Return what a batch logs about a patient, in order. Raises `InvalidInput` for data that is not the commitment's."""
    data = open_data(commitment, raw)
    forced = {place.index for place in commitment.forced}
    found: list[LoggedAccess] = []
    for index, item in enumerate(data.items):
        # Looked for before a signature is checked: most requests are about others.
        if patient in item.request:
            found += _accesses(chain_id, parameters, commitment, patient, index, item, index in forced)
    return tuple(found)


def _accesses(
    chain_id: bytes,
    parameters: AccessLogParameters,
    commitment: BatchCommitment,
    patient: bytes,
    index: int,
    item: BatchItem,
    is_forced: bool,
) -> list[LoggedAccess]:
    try:
        request = check_request(chain_id, commitment.contract_id, item.request)
    except InvalidRequest:
        return []  # a watcher's business: no effect is right
    if request.is_chain or (parameters.writers and request.sender not in parameters.writers):
        return []
    if item.outcomes_digest == outcomes_digest((refused(STATE_FULL),) * len(request.operations)):
        return []
    operations = [_operation(raw) for raw in request.operations]
    patients = {operation.patient for operation in operations if operation is not None}
    is_doubtful = is_forced or len(patients) > MAX_LIGHT_PATIENTS
    return [
        LoggedAccess(commitment.number, index, request.sender, item.time_ms, operation, is_doubtful)
        for operation in operations
        if operation is not None and operation.patient == patient
    ]


def _operation(raw: bytes) -> LogAccess | None:
    try:
        operation = _decode_operation(raw)
    except InvalidInput:
        return None
    return operation if isinstance(operation, LogAccess) else None


def explain(start: AccessHead, accesses: Sequence[LoggedAccess], head: AccessHead) -> tuple[LoggedAccess, ...] | None:
    """Return those accesses that the contract has logged between two heads, in order; None when no choice comes to the second one.

    A forced request has no effect when it was accepted the ordinary way as well, and a heavy one may lack some patients: of each of
    these, all accesses of one patient count or none.
    """
    doubts = list(dict.fromkeys((one.number, one.index) for one in accesses if one.is_doubtful))
    if len(doubts) > MAX_DOUBTS:
        return None
    for kept in itertools.product((True, False), repeat=len(doubts)):
        without = {place for place, is_kept in zip(doubts, kept, strict=True) if not is_kept}
        chosen = tuple(one for one in accesses if (one.number, one.index) not in without)
        if _comes_to(start, chosen, head):
            return chosen
    return None


def _comes_to(start: AccessHead, accesses: Sequence[LoggedAccess], head: AccessHead) -> bool:
    return start.count + len(accesses) == head.count and digest_after(start.digest, accesses) == head.digest


def digest_after(digest: bytes, accesses: Sequence[LoggedAccess]) -> bytes:
    """Return the digest of a patient's chain after more accesses."""
    for one in accesses:
        digest = next_digest(digest, one.writer, one.time_ms, one.access)
    return digest
