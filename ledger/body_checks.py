# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of a transaction's body without the state: that its parts fit together, and that signatures and proofs in it are right.

One check for each kind of body that needs one, in one table; each raises `Rejection`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

from ledger.bodies import (
    AppointGuardians,
    Body,
    ChangeKeys,
    CommitRecord,
    DelegatePowers,
    GrantAccess,
    LabelRecord,
    RegisterInstitution,
    RegisterPatient,
)
from ledger.chain import Chain
from ledger.codec import decoder
from ledger.contract_bodies import ClaimBalance, CommitBatch, ForceOperation, FundContract
from ledger.crypto.chameleon import check_opening, is_element
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import address_of, is_public_key, verify
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.guardianship import recovery_digest
from ledger.labels import permission_digest
from ledger.offchain import MAX_REQUEST_BYTES, ChainOperations, check_commitment
from ledger.patients import (
    PatientKeyblock,
    envelope_digest,
    patient_keyblock_hash,
    patient_keyblock_signing_digest,
)
from ledger.sharing import PURPOSES

_T = TypeVar("_T", int, str, bytes)


def check_body(body: Body, chain: Chain) -> None:
    """Check all of a body that needs no state. Raises `Rejection`."""
    check = CHECKS.get(type(body))
    if check is not None:
        check(body, chain)


def _register_institution(body: RegisterInstitution, _chain: Chain) -> None:
    _require(is_public_key(body.encryption_key), "encryption_key is not a point of secp256k1")


def _register_patient(body: RegisterPatient, chain: Chain) -> None:
    keyblock = body.keyblock
    _require(keyblock.patient == address_of(keyblock.signing_key), "patient must be the address of the signing key")
    is_first = keyblock.generation == 0 and keyblock.previous == ZERO_DIGEST
    _require(is_first, "a registration is of generation 0, after 32 zero bytes")
    _check_keyblock(keyblock, body.patient_signature, chain)


def _commit_record(body: CommitRecord, _chain: Chain) -> None:
    if not check_opening(body.microblock.chameleon_hash, envelope_digest(body.envelope), body.opening):
        raise Rejection(RejectionReason.WRONG_OPENING, "the chameleon hash does not open to the envelope")


def _grant_access(body: GrantAccess, _chain: Chain) -> None:
    terms = body.terms
    _require(is_public_key(terms.receiving_key), "receiving_key is not a point of secp256k1")
    _require(terms.all_records != bool(terms.records), "a grant is of all records, or else of those that it names")
    _require(_is_rising(terms.records), "records must be different and in ascending order")
    unknown = [purpose for purpose in terms.purposes if purpose not in PURPOSES]
    _require(not unknown, f"purposes {unknown} are none of {', '.join(PURPOSES)}")
    _require(_is_rising(terms.purposes), "purposes must be different and in alphabetical order")
    _require(terms.from_ms < terms.until_ms, f"the grant ends at {terms.until_ms} ms, before it begins")
    count = len(terms.proxies)
    _require(len(set(terms.proxies)) == count, "a proxy is named twice; it must not hold two key fragments")
    _require(
        terms.grantee not in terms.proxies, "the grantee must not be a proxy: it would need one fewer of the others"
    )
    _require(len(terms.fragment_digests) == count, f"{len(terms.fragment_digests)} key fragments for {count} proxies")
    _require(len(set(terms.fragment_digests)) == count, "two proxies have the same key fragment")
    _require(terms.threshold <= count, f"{terms.threshold} of {count} proxies can never re-encrypt")
    _require(terms.emergency_approvals <= count, f"{terms.emergency_approvals} of {count} proxies can never approve")


def _label_record(body: LabelRecord, chain: Chain) -> None:
    permission = body.permission
    _require(len(permission.replaced_by) in (0, 32), "replaced_by must be the identifier of a record, or empty")
    _require(permission.replaced_by != permission.record, "a record cannot replace itself")
    has_place = bool(permission.replaced_by) or permission.replacement_sequence == 0
    _require(has_place, "replacement_sequence must be 0 without a replacement")
    if not verify(body.signer, permission_digest(chain.id, permission), body.signature):
        detail = f"the permission is not signed by {body.signer.hex()} for this chain"
        raise Rejection(RejectionReason.BAD_SIGNATURE, detail)
    # Last, for it takes as long as thirty signatures.
    statement = (body.chameleon_key, body.chameleon_hash, envelope_digest(body.envelope))
    if not verify_proof(_verifying_key(chain.verifying_key), *statement, body.proof):
        detail = "the proof does not show that the chameleon hash opens to this envelope under this key on this network"
        raise Rejection(RejectionReason.WRONG_PROOF, f"{detail}; prove it anew")


# To read a key takes longer than to use it; a process knows one network, tests a few.
_verifying_key = lru_cache(maxsize=4)(VerifyingKey.decode)


def _appoint_guardians(body: AppointGuardians, _chain: Chain) -> None:
    _require(_is_rising(body.guardians), "guardians must be different and in ascending order")
    _require(body.patient not in body.guardians, "the patient cannot be a guardian: it is for when the keys are lost")
    count = len(body.guardians)
    _require(body.needed <= count, f"{body.needed} of {count} guardians can never sign")


def _change_keys(body: ChangeKeys, chain: Chain) -> None:
    keyblock = body.keyblock
    _require(keyblock.generation > 0, "a change of keys is of generation 1 or later")
    _check_keyblock(keyblock, body.patient_signature, chain)
    _require(
        _is_rising([approval.guardian for approval in body.approvals]),
        "approvals must be in ascending order of keys, each once",
    )
    digest = recovery_digest(chain.id, patient_keyblock_hash(keyblock))
    for approval in body.approvals:
        if not verify(approval.guardian, digest, approval.signature):
            detail = f"guardian {approval.guardian.hex()} has not signed this keyblock for this chain"
            raise Rejection(RejectionReason.BAD_SIGNATURE, detail)


def _delegate_powers(body: DelegatePowers, _chain: Chain) -> None:
    _require(_is_rising(body.powers), "powers must be different and in alphabetical order")
    _require(body.delegate != body.patient, "a patient needs no delegation to act as the patient")


def _fund_contract(body: FundContract, _chain: Chain) -> None:
    _require(
        body.amount_microcredit, "amount_microcredit must be at least 1: a deposit of nothing still needs an answer"
    )


def _commit_batch(body: CommitBatch, _chain: Chain) -> None:
    try:
        check_commitment(body.commitment)
    except InvalidInput as error:
        raise Rejection(RejectionReason.MALFORMED, str(error)) from error


def _force_operation(body: ForceOperation, _chain: Chain) -> None:
    try:
        _decode_chain_operations(body.request)
    except InvalidInput:
        return  # of a user, or malformed: the machines say so
    # It is unsigned, and would be executed as if the chain had taken the credits that it tells of.
    raise Rejection(RejectionReason.WRONG_REQUEST, "the request is one that the chain itself makes; fund the contract")


_decode_chain_operations = decoder(ChainOperations, MAX_REQUEST_BYTES)


def _claim_balance(body: ClaimBalance, _chain: Chain) -> None:
    keys = [entry.key for entry in body.entries]
    _require(len(set(keys)) == len(keys), "two proofs of one state key; give one")


def _check_keyblock(keyblock: PatientKeyblock, signature: bytes, chain: Chain) -> None:
    _require(is_public_key(keyblock.reencryption_key), "reencryption_key is not a point of secp256k1")
    _require(is_element(keyblock.chameleon_key), "chameleon_key is not a field element below r of BN254")
    if not verify(keyblock.signing_key, patient_keyblock_signing_digest(chain.id, keyblock), signature):
        raise Rejection(RejectionReason.BAD_SIGNATURE, "the patient has not signed this keyblock for this chain")


def _is_rising(items: Sequence[_T]) -> bool:
    """Tell whether each item is larger than the one before: one encoding for each set."""
    return all(one < other for one, other in pairwise(items))


def _require(holds: object, detail: str) -> None:
    if not holds:
        raise Rejection(RejectionReason.MALFORMED, detail)


CHECKS: Mapping[type, Callable[[Any, Chain], None]] = {
    RegisterInstitution: _register_institution,
    RegisterPatient: _register_patient,
    CommitRecord: _commit_record,
    GrantAccess: _grant_access,
    LabelRecord: _label_record,
    AppointGuardians: _appoint_guardians,
    ChangeKeys: _change_keys,
    DelegatePowers: _delegate_powers,
    FundContract: _fund_contract,
    CommitBatch: _commit_batch,
    ForceOperation: _force_operation,
    ClaimBalance: _claim_balance,
}
"""By kind of body; the others say nothing that could contradict itself. `Any` because each check takes its own kind."""
