# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that a patient hands to a delegate, sealed and signed: a parent or carer reads, grants and permits labels as the patient could.

What a delegate may do on the chain stands in its delegation there, and ends with it. A key that was handed over cannot be taken
back: when a delegation ends in discord, the patient changes keys, and later records are out of the delegate's reach.
"""

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from ledger.codec import Address, PublicKeyBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.chameleon import public_key as chameleon_key_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.reencryption import CAPSULE_BYTES, CIPHERTEXT_OVERHEAD_BYTES, SECRET_BYTES, ReencryptionKey, encrypt
from ledger.errors import InvalidInput
from ledger.patients import PatientKeyblock

MAX_HANDOVER_BYTES = 1024
"""A hand-over has about 450 bytes."""

_Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class HandedKeys(Wire, frozen=True):
    """What is sealed to the delegate."""

    patient: Address
    """The patient."""
    generation: Uint
    """Generation of the patient's keys."""
    delegate: Address
    """The delegate."""
    reencryption_secret: _Secret
    """Opens the records of the generation, and makes grants for them."""
    trapdoor: Annotated[bytes, msgspec.Meta(max_length=SECRET_BYTES)]
    """Chameleon secret of the generation, for permitting labels; empty when that is not handed over."""


class KeyHandover(Wire, frozen=True):
    """Keys on their way to a delegate."""

    signer: PublicKeyBytes
    """The patient's signing key at that time."""
    capsule: Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
    """Umbral capsule, to the delegate's registered encryption key."""
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=CIPHERTEXT_OVERHEAD_BYTES, max_length=256)]
    """The encoded `HandedKeys`, encrypted and authenticated."""
    signature: SignatureBytes
    """The patient's signature of capsule and ciphertext on this chain."""


@dataclass(frozen=True, slots=True)
class TakenKeys:
    """Keys that a delegate has taken over, compared with the patient's keyblock."""

    patient: bytes
    """The patient."""
    generation: int
    """Generation of the keys."""
    reencryption: ReencryptionKey
    """Opens the records of the generation."""
    trapdoor: bytes = field(repr=False)
    """Chameleon secret, or empty."""


def hand_over(
    chain_id: bytes,
    key: PrivateKey,
    keyblock: PatientKeyblock,
    secrets: tuple[bytes, bytes],
    delegate: tuple[bytes, bytes],
) -> bytes:
    """Return a patient's keys of one generation, sealed to a delegate.

    Args:
        chain_id: the chain.
        key: the patient's present signing key.
        keyblock: the keyblock of the generation.
        secrets: the generation's re-encryption secret and trapdoor; the trapdoor may be empty.
        delegate: address and registered encryption key of the delegate.

    Raises:
        InvalidInput: the secrets are not those of the keyblock, or the delegate's key is none.
    """
    reencryption_secret, trapdoor = secrets
    _check(keyblock, reencryption_secret, trapdoor)
    address, encryption_key = delegate
    keys = HandedKeys(keyblock.patient, keyblock.generation, address, reencryption_secret, trapdoor)
    capsule, ciphertext = encrypt(encryption_key, encode(keys))
    return encode(KeyHandover(key.public_key, capsule, ciphertext, key.sign(_digest(chain_id, capsule, ciphertext))))


def take_over(
    chain_id: bytes,
    raw: bytes,
    delegate: bytes,
    encryption: ReencryptionKey,
    signing_key: bytes,
    keyblock: PatientKeyblock,
) -> TakenKeys:
    """Open and check, as the delegate, what a patient handed over.

    Args:
        chain_id: the chain.
        raw: the hand-over.
        delegate: the delegate's address.
        encryption: the delegate's own key.
        signing_key: the patient's present signing key, from the chain.
        keyblock: the keyblock of the generation that is expected, from the chain.

    Raises:
        InvalidInput: no hand-over, not signed by the patient, for somebody else, or not the keys of the keyblock; or its kind
            `DecryptionFailed`.
    """
    handover = _decode_handover(raw)
    if handover.signer != signing_key or not verify(
        signing_key, _digest(chain_id, handover.capsule, handover.ciphertext), handover.signature
    ):
        raise InvalidInput(f"the keys are not handed over by patient {keyblock.patient.hex()} with the present key")
    keys = _decode_keys(encryption.decrypt(handover.capsule, handover.ciphertext))
    if (keys.patient, keys.generation, keys.delegate) != (keyblock.patient, keyblock.generation, delegate):
        raise InvalidInput(
            f"inside are keys of generation {keys.generation} of patient {keys.patient.hex()} for {keys.delegate.hex()}"
        )
    _check(keyblock, keys.reencryption_secret, keys.trapdoor)
    return TakenKeys(keys.patient, keys.generation, ReencryptionKey(keys.reencryption_secret), keys.trapdoor)


def _check(keyblock: PatientKeyblock, reencryption_secret: bytes, trapdoor: bytes) -> None:
    if ReencryptionKey(reencryption_secret).public_key != keyblock.reencryption_key:
        raise InvalidInput(f"the re-encryption secret is not that of generation {keyblock.generation}")
    if trapdoor and chameleon_key_of(trapdoor) != keyblock.chameleon_key:
        raise InvalidInput(f"the trapdoor is not that of generation {keyblock.generation}")


def _digest(chain_id: bytes, capsule: bytes, ciphertext: bytes) -> bytes:
    return tagged_hash(Tag.KEY_HANDOVER, chain_id, capsule, ciphertext)


_decode_handover = decoder(KeyHandover, MAX_HANDOVER_BYTES)
_decode_keys = decoder(HandedKeys, 256)
