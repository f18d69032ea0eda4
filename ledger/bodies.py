# SPDX-License-Identifier: GPL-3.0-or-later
"""What transactions do: one struct per kind. Whoever acts for a patient names the patient; the sender is the patient or a delegate."""

from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Uint256, Wire
from ledger.contract_bodies import ContractBody
from ledger.emergency import Reason
from ledger.evidence import Evidence
from ledger.guardianship import MAX_GUARDIANS, MIN_GUARDIANS_NEEDED, POWERS, GuardianApproval, Power
from ledger.labels import LabelPermission, ProofBytes
from ledger.patients import PatientKeyblock, PatientMicroblock, RecordEnvelope
from ledger.sharing import GrantTerms


class RegisterInstitution(Wire, frozen=True, tag=1):
    """An accredited account publishes who it is; the sender becomes an institution."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    """Name as shown to people."""
    country: Annotated[str, msgspec.Meta(pattern=r"\A[A-Z]{2}\Z")]
    """ISO 3166-1 alpha-2 code."""
    encryption_key: PublicKeyBytes
    """Umbral public key that records and key fragments are encrypted to."""


class RegisterPatient(Wire, frozen=True, tag=2):
    """An institution registers a patient who consents by a signature, and funds the patient's account."""

    keyblock: PatientKeyblock
    """The patient's keys."""
    patient_signature: SignatureBytes
    """The patient's signature of the keyblock on this chain."""
    allowance_microcredit: Uint
    """Credits moved from the institution to the patient, for the fees of the patient's own transactions."""


class AuthoriseAuthor(Wire, frozen=True, tag=3):
    """A patient allows or forbids an institution to append records to the patient's chain."""

    patient: Address
    """The patient."""
    institution: Address
    """The institution concerned."""
    allowed: bool
    """True to allow, false to withdraw."""


class CommitRecord(Wire, frozen=True, tag=4):
    """An authorised institution appends a record to a patient's chain; the sender is the author."""

    microblock: PatientMicroblock
    """The link of the patient's chain."""
    envelope: RecordEnvelope
    """The message of the chameleon hash."""
    opening: Uint256
    """Opening ξ with chameleon_hash = Poseidon(digest of the envelope, ξ)."""


class Transfer(Wire, frozen=True, tag=5):
    """Credits move from the sender to another account."""

    recipient: Address
    """The account that receives."""
    amount_microcredit: Uint
    """Amount in millionths of a credit."""


class ReportMisbehaviour(Wire, frozen=True, tag=6):
    """Anyone proves that a miner has misbehaved; the miner loses its reputation for good."""

    evidence: Evidence
    """The proof. A false one costs the sender: it is judged when it commits, never before."""


class GrantAccess(Wire, frozen=True, tag=7):
    """A patient lets somebody read records by way of proxies."""

    terms: GrantTerms
    """What is granted."""


class RevokeAccess(Wire, frozen=True, tag=8):
    """A patient ends a grant at once and for good."""

    grant_id: Digest
    """The grant."""


class ConfirmDeletion(Wire, frozen=True, tag=9):
    """A proxy of a revoked grant confirms that its key fragment is deleted; the sender is the proxy."""

    grant_id: Digest
    """The grant."""


class LabelRecord(Wire, frozen=True, tag=10):
    """An institution labels a record with the patient's permission; the sender is the institution that the permission names."""

    permission: LabelPermission
    """What the patient permits."""
    signer: PublicKeyBytes
    """Key that signed the permission: the patient's, or that of a delegate who may permit labels."""
    signature: SignatureBytes
    """Signature of the permission on this chain."""
    chameleon_key: Uint256
    """Public key of the chameleon hash under which the record stands; must be that of the record's keyblock."""
    chameleon_hash: Uint256
    """The record's chameleon hash; must be that of the record."""
    envelope: RecordEnvelope
    """The labelled envelope."""
    proof: ProofBytes
    """Groth16 proof that the hash opens to the labelled envelope."""


class ConfirmErasure(Wire, frozen=True, tag=11):
    """An institution confirms that it holds the ciphertext of a labelled record no more; the sender is the institution."""

    patient: Address
    """The patient."""
    sequence: Uint
    """Place of the record in the patient's chain."""


class AppointGuardians(Wire, frozen=True, tag=12):
    """A patient chooses who can give new keys if the patient's are lost; replaces the guardians before. The sender is the patient."""

    patient: Address
    """The patient."""
    guardians: Annotated[tuple[Address, ...], msgspec.Meta(min_length=MIN_GUARDIANS_NEEDED, max_length=MAX_GUARDIANS)]
    """Accounts of the guardians, in ascending order; the patient is none of them."""
    needed: Annotated[int, msgspec.Meta(ge=MIN_GUARDIANS_NEEDED, le=MAX_GUARDIANS)]
    """How many of them must sign."""
    backup: Digest
    """Content address of the encrypted backup."""


class ChangeKeys(Wire, frozen=True, tag=13):
    """A patient gets new keys: by the old ones (then the patient is the sender) or by enough guardians (then anybody is)."""

    keyblock: PatientKeyblock
    """The new keys."""
    patient_signature: SignatureBytes
    """Signature of the keyblock by its own signing key."""
    approvals: Annotated[tuple[GuardianApproval, ...], msgspec.Meta(max_length=MAX_GUARDIANS)]
    """Guardians' signatures; none when the patient sends this with the old key."""


class DelegatePowers(Wire, frozen=True, tag=14):
    """A patient lets somebody act for the patient; replaces what was delegated to the same account before. The sender is the patient."""

    patient: Address
    """The patient."""
    delegate: Address
    """Account of the delegate."""
    powers: Annotated[tuple[Power, ...], msgspec.Meta(max_length=len(POWERS))]
    """What the delegate may do, in alphabetical order; nothing takes the delegation back."""
    until_ms: Uint
    """End, in milliseconds since 1970 (UTC)."""


class OpenEmergency(Wire, frozen=True, tag=15):
    """The grantee of a sleeping grant asks its proxies to wake it."""

    grant_id: Digest
    """The grant."""
    reason: Reason
    """Why."""
    until_ms: Uint
    """End wanted, in milliseconds since 1970 (UTC)."""


class ApproveEmergency(Wire, frozen=True, tag=16):
    """A proxy of the grant approves; the sender is the proxy."""

    patient: Address
    """The patient."""
    number: Uint
    """Which of the patient's emergencies."""


class ReviewEmergency(Wire, frozen=True, tag=17):
    """The patient says afterwards whether an emergency access was right."""

    patient: Address
    """The patient."""
    number: Uint
    """Which of the patient's emergencies."""
    is_justified: bool
    """True if it was right; false goes to the institutions' review."""


Body = (
    RegisterInstitution
    | RegisterPatient
    | AuthoriseAuthor
    | CommitRecord
    | Transfer
    | ReportMisbehaviour
    | GrantAccess
    | RevokeAccess
    | ConfirmDeletion
    | LabelRecord
    | ConfirmErasure
    | AppointGuardians
    | ChangeKeys
    | DelegatePowers
    | OpenEmergency
    | ApproveEmergency
    | ReviewEmergency
    | ContractBody
)
