# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is who on a chain, for clients: registered encryption keys, a patient's keyblocks, and new ones."""

from ledger.bodies import RegisterPatient
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput
from ledger.patients import PatientKeyblock, patient_keyblock_hash, patient_keyblock_signing_digest
from node.client import NodeClient
from node.identity import Identity


def encryption_key(client: NodeClient, party: bytes) -> bytes:
    """Return the Umbral key that somebody has registered, as an institution or a patient. Raises `ApiError`."""
    if client.account(party).is_institution:
        return client.institution(party).encryption_key
    return client.patient(party).reencryption_key


def keyblock_of(
    keys: Identity, institution: bytes, patient: bytes | None = None, generation: int = 0, previous: bytes = ZERO_DIGEST
) -> PatientKeyblock:
    """Return the keyblock of one generation of keys; without `patient` the first one, which founds the identifier."""
    public = keys.public
    return PatientKeyblock(
        patient=patient or public.address,
        generation=generation,
        previous=previous,
        signing_key=public.public_key,
        reencryption_key=public.reencryption_key,
        chameleon_key=public.chameleon_key,
        institution=institution,
    )


def sign_keyblock(chain_id: bytes, keys: Identity, keyblock: PatientKeyblock) -> bytes:
    """Return the signature of a keyblock by its own signing key."""
    return keys.signing.sign(patient_keyblock_signing_digest(chain_id, keyblock))


def registration(chain_id: bytes, keys: Identity, institution: bytes, allowance_microcredit: int) -> RegisterPatient:
    """Return a registration with the patient's consent."""
    keyblock = keyblock_of(keys, institution)
    return RegisterPatient(keyblock, sign_keyblock(chain_id, keys, keyblock), allowance_microcredit)


def keyblocks(client: NodeClient, patient: bytes) -> dict[int, PatientKeyblock]:
    """Return a patient's keyblocks by generation.

    Their hashes are computed here: the first one must be that of the identifier, and each links to the one before.

    Raises:
        InvalidInput: what the node shows is no such chain of keyblocks.
    """
    institution = client.patient(patient).institution
    previous = ZERO_DIGEST
    found: dict[int, PatientKeyblock] = {}
    for entry in client.consent.keys(patient):
        keyblock = PatientKeyblock(
            patient=patient,
            generation=entry.generation,
            previous=previous,
            signing_key=entry.signing_key,
            reencryption_key=entry.reencryption_key,
            chameleon_key=entry.chameleon_key,
            institution=institution,
        )
        previous = patient_keyblock_hash(keyblock)
        if entry.generation != len(found) or previous != entry.keyblock_hash:
            raise InvalidInput(
                f"keyblock {entry.keyblock_hash.hex()} of {patient.hex()} does not fit; ask another node"
            )
        found[entry.generation] = keyblock
    if not found or address_of(found[0].signing_key) != patient:
        raise InvalidInput(f"the first keyblock shown is not that of patient {patient.hex()}; ask another node")
    return found
