# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's keys, kept so that enough guardians together can give them back, and fewer learn nothing.

The keys are encrypted under a random key, which is split by Shamir's scheme (two halves of 16 bytes, each over GF(2¹²⁸)); each guardian's
share is encrypted to that guardian. All of it is one blob, named on the chain. To recover, the patient makes a new identity; each guardian
convinces itself that it is the patient, opens its share and seals it again to the new key.

Shamir's scheme does not notice a wrong share. The blob therefore holds a digest of each: a share has 256 random bits, so the digest tells
nothing, and who hands out a changed one is named.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ledger.codec import Address, Digest, Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.reencryption import CAPSULE_BYTES, CIPHERTEXT_OVERHEAD_BYTES, ReencryptionKey, encrypt
from ledger.errors import InvalidInput
from ledger.guardianship import MAX_GUARDIANS, MIN_GUARDIANS_NEEDED

MAX_SECRET_BYTES = 4096
"""A ring of 128 seeds: a patient who changes keys every year of a long life."""
MAX_BACKUP_BYTES = 16 * 1024
"""Sixteen shares of about 350 bytes, and the secret."""
MAX_RESEALED_BYTES = 1024

_KEY_BYTES = 32
_HALF_BYTES = 16
_TAG_BYTES = 16
# A fresh key for each backup, which encrypts once.
_NONCE = bytes(12)

_Half = Annotated[bytes, msgspec.Meta(min_length=_HALF_BYTES, max_length=_HALF_BYTES)]
_CapsuleBytes = Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
_SealedBytes = Annotated[bytes, msgspec.Meta(min_length=CIPHERTEXT_OVERHEAD_BYTES, max_length=256)]


class Share(Wire, frozen=True):
    """What a guardian keeps for a patient: a secret."""

    patient: Address
    """The patient."""
    guardian: Address
    """The guardian."""
    number: Annotated[int, msgspec.Meta(ge=1, le=MAX_GUARDIANS)]
    """Abscissa of both halves."""
    first: _Half
    """Share of the first half of the key: an element of GF(2^128)."""
    second: _Half
    """Share of the second half."""


class GuardianShare(Wire, frozen=True):
    """A guardian's share inside a backup."""

    guardian: Address
    """The guardian."""
    share_digest: Digest
    """Digest of the share: whoever gets it back can tell that it is right."""
    capsule: _CapsuleBytes
    """Umbral capsule, to the guardian's registered encryption key."""
    ciphertext: _SealedBytes
    """The encoded `Share`, encrypted and authenticated."""


class Backup(Wire, frozen=True):
    """The encrypted backup of a patient's keys; its blob is named by `AppointGuardians`."""

    version: Literal[1]
    """Format."""
    patient: Address
    """The patient."""
    needed: Annotated[int, msgspec.Meta(ge=MIN_GUARDIANS_NEEDED, le=MAX_GUARDIANS)]
    """How many shares open it."""
    shares: Annotated[
        tuple[GuardianShare, ...], msgspec.Meta(min_length=MIN_GUARDIANS_NEEDED, max_length=MAX_GUARDIANS)
    ]
    """The guardians' shares, in ascending order of their addresses."""
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=_TAG_BYTES, max_length=MAX_SECRET_BYTES + _TAG_BYTES)]
    """The keys, encrypted with ChaCha20-Poly1305 and authenticated together with all of the above."""


class ResealedShare(Wire, frozen=True):
    """A guardian's share on its way to the patient's new key."""

    patient: Address
    """The patient."""
    guardian: Address
    """The guardian that it is said to come from."""
    capsule: _CapsuleBytes
    """Umbral capsule, to the patient's new re-encryption key."""
    ciphertext: _SealedBytes
    """The encoded `Share`, encrypted and authenticated."""


@dataclass(frozen=True, slots=True)
class ShareFault:
    """A share that was of no use."""

    guardian: bytes
    """The guardian that it is said to come from; empty when not even that can be read."""
    detail: str
    """What is wrong with it."""


class TooFewShares(InvalidInput):
    """The backup cannot be opened with the shares that are there; `faults` names those that are wrong."""

    def __init__(self, good: int, needed: int, faults: tuple[ShareFault, ...]) -> None:
        wrong = "".join(f"; {fault.guardian.hex() or 'unknown'}: {fault.detail}" for fault in faults)
        super().__init__(f"{good} of the {needed} shares that are needed are there{wrong}; ask further guardians")
        self.faults = faults


@dataclass(frozen=True, slots=True)
class OpenedBackup:
    """What came out of a backup."""

    secret: bytes = field(repr=False)
    """The keys, as they were given to `make_backup`."""
    faults: tuple[ShareFault, ...]
    """Shares that were wrong, and not needed."""


def make_backup(secret: bytes, patient: bytes, guardians: Sequence[tuple[bytes, bytes]], needed: int) -> bytes:
    """Encrypt a patient's keys so that `needed` of the guardians can open them; draws randomness.

    Args:
        secret: the keys, in whatever form the keystore has them.
        patient: the patient's address.
        guardians: address and registered encryption key of each, in any order.
        needed: how many must help.

    Raises:
        InvalidInput: too few or too many guardians, one of them twice or without a proper key, or a secret that is too long.
    """
    names = {guardian for guardian, _ in guardians}
    if len(names) != len(guardians) or patient in names:
        raise InvalidInput("each guardian can be named once, and the patient is none")
    if not MIN_GUARDIANS_NEEDED <= needed <= len(guardians) <= MAX_GUARDIANS:
        raise InvalidInput(
            f"{needed} of {len(guardians)} guardians: at least {MIN_GUARDIANS_NEEDED} must be needed, of {MAX_GUARDIANS} at most"
        )
    if len(secret) > MAX_SECRET_BYTES:
        raise InvalidInput(f"the keys take {len(secret)} bytes; at most {MAX_SECRET_BYTES} are kept")
    key = os.urandom(_KEY_BYTES)
    halves = (
        Shamir.split(needed, len(guardians), key[start : start + _HALF_BYTES], ssss=False) for start in (0, _HALF_BYTES)
    )
    shares = []
    for (guardian, encryption_key), (number, first), (_, second) in zip(sorted(guardians), *halves, strict=True):
        share = Share(patient, guardian, number, first, second)
        sealed = encrypt(encryption_key, encode(share))
        shares.append(GuardianShare(guardian, _share_digest(share), *sealed))
    header = Backup(1, patient, needed, tuple(shares), bytes(_TAG_BYTES))
    ciphertext = ChaCha20Poly1305(key).encrypt(_NONCE, secret, encode(header))
    return encode(msgspec.structs.replace(header, ciphertext=ciphertext))


def decode_backup(raw: bytes) -> Backup:
    """Decode a backup without opening anything; raises `InvalidInput`."""
    backup = _decode_backup(raw)
    names = [share.guardian for share in backup.shares]
    if names != sorted(set(names)) or backup.needed > len(names):
        raise InvalidInput("the backup names its guardians out of order, twice, or fewer than are needed")
    return backup


def open_share(raw: bytes, guardian: bytes, encryption: ReencryptionKey) -> Share:
    """Open, as a guardian, the own share of a backup: to see, when one is appointed, that it is there and right.

    Raises:
        InvalidInput: no backup, no share for this guardian, or a share that is not the one that the backup names; or its kind
            `DecryptionFailed`.
    """
    backup = decode_backup(raw)
    own = next((share for share in backup.shares if share.guardian == guardian), None)
    if own is None:
        raise InvalidInput(f"the backup of patient {backup.patient.hex()} has no share for {guardian.hex()}")
    share = _decode_share(encryption.decrypt(own.capsule, own.ciphertext))
    if (share.patient, share.guardian) != (backup.patient, guardian) or _share_digest(share) != own.share_digest:
        raise InvalidInput(f"the share for {guardian.hex()} is not the one that the backup names: it was made wrongly")
    return share


def reseal_share(raw: bytes, guardian: bytes, encryption: ReencryptionKey, new_key: bytes) -> bytes:
    """Open, as a guardian, the own share of a backup, and seal it to the patient's new re-encryption key.

    Before that a guardian makes sure, in person, that the new key is the patient's: whoever holds it and enough of these gets all
    records of the patient.

    Raises:
        InvalidInput: see `open_share`; or the new key is none.
    """
    share = open_share(raw, guardian, encryption)
    return encode(ResealedShare(share.patient, guardian, *encrypt(new_key, encode(share))))


def open_backup(raw: bytes, resealed: Iterable[bytes], new_key: ReencryptionKey) -> OpenedBackup:
    """Put shares together, as the patient with a new key, and open the backup.

    Raises:
        TooFewShares: not enough good shares; names the bad ones.
        InvalidInput: no backup, or it was changed.
    """
    backup = decode_backup(raw)
    digests = {share.guardian: share.share_digest for share in backup.shares}
    good: dict[int, Share] = {}
    faults: list[ShareFault] = []
    for item in resealed:
        guardian = b""
        try:
            sealed = _decode_resealed(item)
            guardian = sealed.guardian
            share = _decode_share(new_key.decrypt(sealed.capsule, sealed.ciphertext))
            if share.guardian != guardian or _share_digest(share) != digests.get(guardian):
                raise InvalidInput("not the share that the backup names")
        except InvalidInput as error:
            faults.append(ShareFault(guardian, str(error)))
        else:
            good[share.number] = share
    if len(good) < backup.needed:
        raise TooFewShares(len(good), backup.needed, tuple(faults))
    chosen = list(good.values())[: backup.needed]
    halves = ([(share.number, share.first) for share in chosen], [(share.number, share.second) for share in chosen])
    key = b"".join(Shamir.combine(points, ssss=False) for points in halves)
    header = msgspec.structs.replace(backup, ciphertext=bytes(_TAG_BYTES))
    try:
        secret = ChaCha20Poly1305(key).decrypt(_NONCE, backup.ciphertext, encode(header))
    except InvalidTag as error:
        raise InvalidInput(
            "the backup was changed, or made wrongly: its shares are right and do not open it"
        ) from error
    return OpenedBackup(secret, tuple(faults))


def _share_digest(share: Share) -> bytes:
    return tagged_hash(Tag.BACKUP_SHARE, encode(share))


_decode_backup = decoder(Backup, MAX_BACKUP_BYTES)
_decode_resealed = decoder(ResealedShare, MAX_RESEALED_BYTES)
_decode_share = decoder(Share, 128)
