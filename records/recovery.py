# SPDX-License-Identifier: GPL-3.0-or-later
"""Getting an account back with the guardians' help: what the patient asks, and what each guardian gives.

    patient, with new keys               guardian, after having met the patient
    RecoveryRequest           →          looks who it is, compares the new key with the patient's screen
                              ←          RecoveryApproval: signature under the new keyblock, share sealed to the new key
    ChangeKeys                → chain    and the backup opens with the same approvals

The signature gives the account, the share the old keys. They come together, so that one meeting is enough.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from ledger.codec import Digest, SignatureBytes, Wire, decoder, encode
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput
from ledger.guardianship import GuardianApproval, recovery_digest
from ledger.patients import PatientKeyblock, patient_keyblock_hash, patient_keyblock_signing_digest
from records.backup import MAX_RESEALED_BYTES, reseal_share

MAX_RECOVERY_REQUEST_BYTES = 1024
"""A request has about 290 bytes."""
MAX_APPROVAL_BYTES = 1024
"""An approval has about 480 bytes."""


class RecoveryRequest(Wire, frozen=True):
    """What a patient who has lost the keys asks of the guardians."""

    keyblock: PatientKeyblock
    """The new keys, after the newest keyblock on the chain."""
    signature: SignatureBytes
    """Signature of the keyblock by its own signing key, as it will stand on the chain."""


class RecoveryApproval(Wire, frozen=True):
    """What a guardian gives."""

    keyblock_hash: Digest
    """Hash of the new keyblock."""
    approval: GuardianApproval
    """The guardian's signature under it."""
    share: Annotated[bytes, msgspec.Meta(max_length=MAX_RESEALED_BYTES)]
    """The guardian's share of the backup: an encoded `ResealedShare`; empty when the guardian could not get it."""


@dataclass(frozen=True, slots=True)
class Approved:
    """Approvals that were verified; only `check_approvals` makes them."""

    approvals: tuple[GuardianApproval, ...]
    """In ascending order of the guardians' keys, each once."""
    shares: tuple[bytes, ...]
    """Shares of the backup, sealed to the new key."""


def ask_recovery(chain_id: bytes, key: PrivateKey, keyblock: PatientKeyblock) -> bytes:
    """Return a request, as the patient with the new signing key."""
    return encode(RecoveryRequest(keyblock, key.sign(patient_keyblock_signing_digest(chain_id, keyblock))))


def read_recovery(chain_id: bytes, raw: bytes) -> RecoveryRequest:
    """Return a request whose maker holds the new signing key. Raises `InvalidInput`."""
    request = _decode_request(raw)
    keyblock = request.keyblock
    if not verify(keyblock.signing_key, patient_keyblock_signing_digest(chain_id, keyblock), request.signature):
        raise InvalidInput("the request is not signed by the new key that it names, for this chain")
    return request


def approve_recovery(
    chain_id: bytes,
    key: PrivateKey,
    request: RecoveryRequest,
    backup: bytes | None,
    guardian: tuple[bytes, ReencryptionKey],
) -> bytes:
    """Return a guardian's approval.

    Args:
        chain_id: the chain.
        key: the guardian's present signing key.
        request: what the patient asks, whom the guardian has met.
        backup: the patient's encrypted backup; None when nobody has it any more.
        guardian: the guardian's address, and the key that its share is sealed to.

    Raises:
        InvalidInput: the backup holds no right share for this guardian.
    """
    digest = patient_keyblock_hash(request.keyblock)
    share = b"" if backup is None else reseal_share(backup, *guardian, request.keyblock.reencryption_key)
    approval = GuardianApproval(key.public_key, key.sign(recovery_digest(chain_id, digest)))
    return encode(RecoveryApproval(digest, approval, share))


def check_approvals(chain_id: bytes, keyblock: PatientKeyblock, raws: list[bytes]) -> Approved:
    """Verify what guardians gave for a new keyblock. Raises `InvalidInput` with the place of the one at fault."""
    digest = patient_keyblock_hash(keyblock)
    signed = recovery_digest(chain_id, digest)
    found: dict[bytes, RecoveryApproval] = {}
    for place, raw in enumerate(raws, 1):
        given = _decode_approval(raw)
        if given.keyblock_hash != digest:
            raise InvalidInput(
                f"approval {place} is for another keyblock: for other keys, or from before another change"
            )
        if not verify(given.approval.guardian, signed, given.approval.signature):
            raise InvalidInput(f"approval {place} is not signed by guardian {given.approval.guardian.hex()}")
        found[given.approval.guardian] = given
    ordered = [found[guardian] for guardian in sorted(found)]
    return Approved(tuple(given.approval for given in ordered), tuple(given.share for given in ordered if given.share))


_decode_request = decoder(RecoveryRequest, MAX_RECOVERY_REQUEST_BYTES)
_decode_approval = decoder(RecoveryApproval, MAX_APPROVAL_BYTES)
