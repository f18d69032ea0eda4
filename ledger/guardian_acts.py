# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may act for a patient, on the chain: guardians, new keys, delegates."""

import msgspec

from ledger.acts import Act, encryption_key_of, party_of, require_patient
from ledger.bodies import AppointGuardians, ChangeKeys, DelegatePowers
from ledger.crypto.keys import address_of
from ledger.errors import Rejection, RejectionReason
from ledger.guardianship import Delegation, Guardians
from ledger.patients import KeyGeneration, KeyHolder, Patient, patient_keyblock_hash
from ledger.state import (
    ACCOUNTS,
    DELEGATIONS,
    GUARDIANS,
    INSTITUTIONS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    PATIENTS,
    Account,
    State,
    numbered_key,
)


def appoint_guardians(act: Act, body: AppointGuardians) -> None:
    """Choose who can give the patient new keys; each must have a registered key that its share can be sealed to."""
    act.require_holder(body.patient)
    for guardian in body.guardians:
        encryption_key_of(act.state, guardian)
    entry = Guardians(body.guardians, body.needed, body.backup, act.context.height)
    act.state.put(GUARDIANS, body.patient, entry)


def delegate_powers(act: Act, body: DelegatePowers) -> None:
    """Let somebody act for the patient for a time, or take that back."""
    act.require_holder(body.patient)
    if body.powers and body.until_ms <= act.context.timestamp_ms:
        detail = f"the delegation ends at {body.until_ms} ms, it is {act.context.timestamp_ms} ms already"
        raise Rejection(RejectionReason.WRONG_PERIOD, f"{detail}; choose a later end, or no powers to take it back")
    # Who acts with a later key of a patient acts as the patient, and would never use what is given to the key.
    holder = act.state.get(KEY_HOLDERS, body.delegate)
    if holder is not None and holder.patient != body.delegate:
        detail = f"{body.delegate.hex()} is a key of patient {holder.patient.hex()}; name the patient instead"
        raise Rejection(RejectionReason.PARTY_UNKNOWN, detail)
    entry = Delegation(body.powers, body.until_ms, act.context.height)
    act.state.put(DELEGATIONS, body.patient + body.delegate, entry)


def change_keys(act: Act, body: ChangeKeys) -> None:
    """Give a patient new keys; the whole balance moves to the account of the new signing key."""
    state, context, keyblock = act.state, act.context, body.keyblock
    patient = require_patient(state, keyblock.patient)
    _check_successor(patient, body)
    if body.approvals:
        _check_approvals(state, body)
    else:
        act.require_holder(keyblock.patient)
    new = address_of(keyblock.signing_key)
    if state.get(KEY_HOLDERS, new) is not None or state.get(INSTITUTIONS, new) is not None:
        detail = f"the signing key of account {new.hex()} is or was somebody's; draw a new one"
        raise Rejection(RejectionReason.KEY_IN_USE, detail)
    _move_balance(act, address_of(patient.keyblock.signing_key), new)
    digest = patient_keyblock_hash(keyblock)
    updated = msgspec.structs.replace(
        patient,
        keyblock=keyblock,
        keyblock_hash=digest,
        last_record=patient.last_record if patient.record_count else digest,
    )
    state.put(PATIENTS, keyblock.patient, updated)
    state.put(KEY_HOLDERS, new, KeyHolder(keyblock.patient, keyblock.generation))
    generation = KeyGeneration(keyblock, digest, body.patient_signature, context.height)
    state.put(KEY_GENERATIONS, numbered_key(keyblock.patient, keyblock.generation), generation)


def _check_successor(patient: Patient, body: ChangeKeys) -> None:
    new, old = body.keyblock, patient.keyblock
    if new.generation != old.generation + 1 or new.previous != patient.keyblock_hash:
        detail = f"generation {new.generation} after keyblock {new.previous.hex()}; the patient's newest is generation"
        raise Rejection(
            RejectionReason.WRONG_GENERATION, f"{detail} {old.generation}, keyblock {patient.keyblock_hash.hex()}"
        )
    if new.institution != old.institution:
        detail = f"the keyblock names institution {new.institution.hex()}; the patient was registered by"
        raise Rejection(RejectionReason.SENDER_MISMATCH, f"{detail} {old.institution.hex()}, and that stays")
    if new.reencryption_key == old.reencryption_key or new.chameleon_key == old.chameleon_key:
        detail = "a change replaces all three keys: who has one of the old ones must have none of the new"
        raise Rejection(RejectionReason.KEY_IN_USE, detail)


def _check_approvals(state: State, body: ChangeKeys) -> None:
    """Check that enough of the guardians approve; that their signatures are right and of different keys was checked before."""
    address = body.keyblock.patient
    appointed = state.get(GUARDIANS, address)
    if appointed is None:
        raise Rejection(RejectionReason.GUARDIANS_UNKNOWN, f"patient {address.hex()} has appointed no guardians")
    for approval in body.approvals:
        if party_of(state, address_of(approval.guardian)) not in appointed.guardians:
            detail = f"key {approval.guardian.hex()} is not the newest of any guardian of patient {address.hex()}"
            raise Rejection(RejectionReason.NOT_A_GUARDIAN, detail)
    if len(body.approvals) < appointed.needed:
        detail = f"{len(body.approvals)} guardians approve; {appointed.needed} are needed"
        raise Rejection(RejectionReason.TOO_FEW_APPROVALS, detail)


def _move_balance(act: Act, old: bytes, new: bytes) -> None:
    if old == act.sender:
        amount, act.balance_microcredit = act.balance_microcredit, 0
    else:
        account = act.state.account(old)
        amount = account.balance_microcredit
        if amount:
            act.state.put(ACCOUNTS, old, Account(account.nonce, 0))
    act.credit(new, amount)
