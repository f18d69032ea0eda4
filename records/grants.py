# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a grant: its terms for the chain and a key fragment for each proxy, sealed so that only that proxy can open it.

The patient splits the re-encryption key at home. Each fragment is encrypted to its proxy, so whoever relays them sees none, and no
node ever holds m. What is sealed names grant and proxy inside; and the chain holds each fragment's digest, so a fragment that was
exchanged or changed on the way is found out by the proxy itself. Nobody signs the parcel: the digest on the chain is the signature.
"""

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.reencryption import (
    CAPSULE_BYTES,
    CIPHERTEXT_OVERHEAD_BYTES,
    KEY_FRAGMENT_BYTES,
    InvalidFragment,
    ReencryptionKey,
    VerifiedKeyFragment,
    encrypt,
    verify_key_fragment,
)
from ledger.errors import InvalidInput
from ledger.sharing import (
    MAX_GRANT_RECORDS,
    MAX_PROXIES,
    MAX_PURPOSES,
    MIN_THRESHOLD,
    PURPOSES,
    Grant,
    GrantTerms,
    fragment_digest,
    grant_id,
)

MAX_SEALED_FRAGMENT_BYTES = 1024
"""A sealed fragment has about 570 bytes."""
MAX_RECEIPT_BYTES = 512


class FragmentParcel(Wire, frozen=True):
    """What is sealed to a proxy."""

    grant_id: Digest
    """The grant."""
    proxy: Address
    """The proxy."""
    fragment: Annotated[bytes, msgspec.Meta(min_length=KEY_FRAGMENT_BYTES, max_length=KEY_FRAGMENT_BYTES)]
    """Its Umbral key fragment."""


class SealedFragment(Wire, frozen=True):
    """A parcel on its way to its proxy."""

    grant_id: Digest
    """The grant; the proxy opens nothing for a grant that it does not know."""
    proxy: Address
    """The proxy that it is for."""
    capsule: Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
    """Umbral capsule, to the proxy's `encryption_key`."""
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=CIPHERTEXT_OVERHEAD_BYTES, max_length=512)]
    """The encoded `FragmentParcel`, encrypted and authenticated."""


class FragmentReceipt(Wire, frozen=True):
    """A proxy says that it holds its fragment of a grant."""

    grant_id: Digest
    """The grant."""
    proxy: Address
    """The proxy."""
    fragment_digest: Digest
    """Digest of the fragment that it holds, as on the chain."""
    head_height: Uint
    """Height of the newest microblock that the proxy had committed."""
    timestamp_ms: Uint
    """Time by the proxy's clock, in milliseconds since 1970 (UTC)."""


class SignedReceipt(Wire, frozen=True):
    """A receipt on the wire."""

    receipt: FragmentReceipt
    """What the proxy says."""
    signature: SignatureBytes
    """The proxy's signature of the receipt on this chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantChoice:
    """What a patient, or a delegate, wants to grant."""

    patient: bytes
    """The patient's address."""
    generation: int
    """Generation of the patient's keys that the records are encrypted to."""
    grantee: bytes
    """The reader's address."""
    receiving_key: bytes
    """The reader's Umbral key, as registered."""
    records: tuple[int, ...] | None
    """Sequence numbers that may be read, in any order; None for all of the generation, also later ones."""
    purposes: tuple[str, ...]
    """Codes of `PURPOSES`, in any order."""
    from_ms: int
    """Beginning, in milliseconds since 1970 (UTC)."""
    until_ms: int
    """End, exclusive, in milliseconds since 1970 (UTC)."""
    threshold: int
    """m: how many proxies must re-encrypt."""
    proxies: tuple[bytes, ...]
    """Addresses of the n proxies."""
    emergency_approvals: int = 0
    """Above 0 the grant sleeps until so many of its proxies approve an emergency."""


@dataclass(frozen=True, slots=True)
class PreparedGrant:
    """A grant that was not submitted yet, with its fragments."""

    terms: GrantTerms
    """What goes on the chain, in `GrantAccess`."""
    grant_id: bytes
    """32-byte identifier."""
    fragments: tuple[VerifiedKeyFragment, ...] = field(repr=False)
    """One for each proxy, in the order of the terms. Whoever has m of them, and the reader's key, reads."""

    def seal(self, proxy: bytes, encryption_key: bytes) -> bytes:
        """Return the fragment of a proxy, sealed to the `encryption_key` that it has registered; raises `InvalidInput`."""
        fragment = self.fragments[self.terms.proxies.index(proxy)]
        parcel = FragmentParcel(self.grant_id, proxy, bytes(fragment))
        return encode(SealedFragment(self.grant_id, proxy, *encrypt(encryption_key, encode(parcel))))


def prepare_grant(reencryption: ReencryptionKey, signing: PrivateKey, choice: GrantChoice) -> PreparedGrant:
    """Split the patient's key for a reader and return terms and fragments; draws randomness in the Umbral library.

    Args:
        reencryption: the patient's key of the generation.
        signing: key that will sign the transaction: the patient's, or that of a delegate who may grant.
        choice: what is to be granted.

    Raises:
        InvalidInput: something that no node would accept; says what.
    """
    check_choice(choice)
    fragments = reencryption.split(
        choice.receiving_key, signing.secret, threshold=choice.threshold, shares=len(choice.proxies)
    )
    terms = GrantTerms(
        patient=choice.patient,
        generation=choice.generation,
        grantee=choice.grantee,
        receiving_key=choice.receiving_key,
        all_records=choice.records is None,
        records=tuple(sorted(choice.records or ())),
        purposes=tuple(sorted(choice.purposes)),
        from_ms=choice.from_ms,
        until_ms=choice.until_ms,
        threshold=choice.threshold,
        proxies=choice.proxies,
        fragment_digests=tuple(fragment_digest(bytes(fragment)) for fragment in fragments),
        emergency_approvals=choice.emergency_approvals,
    )
    return PreparedGrant(terms, grant_id(terms), fragments)


def check_choice(choice: GrantChoice) -> None:
    """Check, before any key is split, what the chain would refuse anyway. Raises `InvalidInput`."""
    records, purposes, proxies = choice.records, choice.purposes, choice.proxies
    if records is not None and not 1 <= len(records) <= MAX_GRANT_RECORDS:
        raise InvalidInput(f"{len(records)} records: name 1 to {MAX_GRANT_RECORDS} of them, or grant all")
    if records is not None and (len(set(records)) != len(records) or min(records) < 0):
        raise InvalidInput("name each record once, by its sequence number from 0")
    if not 1 <= len(purposes) <= MAX_PURPOSES or len(set(purposes)) != len(purposes) or set(purposes) - set(PURPOSES):
        raise InvalidInput(
            f"purposes ({', '.join(purposes)}): name 1 to {MAX_PURPOSES} of {', '.join(PURPOSES)}, each once"
        )
    if not 0 <= choice.from_ms < choice.until_ms:
        raise InvalidInput(f"the grant would end ({choice.until_ms} ms) before it begins ({choice.from_ms} ms)")
    if len(set(proxies)) != len(proxies) or choice.grantee in proxies:
        raise InvalidInput("each proxy can hold one fragment only, and the grantee none: choose other proxies")
    if not MIN_THRESHOLD <= choice.threshold <= len(proxies) <= MAX_PROXIES:
        raise InvalidInput(
            f"{choice.threshold} of {len(proxies)} proxies: at least {MIN_THRESHOLD} must be needed, of {MAX_PROXIES} at most"
        )
    if not 0 <= choice.emergency_approvals <= len(proxies):
        raise InvalidInput(f"{choice.emergency_approvals} approvals of {len(proxies)} proxies cannot be reached")


def open_fragment(
    sealed: SealedFragment, encryption: ReencryptionKey, proxy: bytes, grant: Grant, delegating_key: bytes
) -> VerifiedKeyFragment:
    """Open what was sealed to a proxy and verify the fragment against the grant on the chain.

    Args:
        sealed: the parcel.
        encryption: the proxy's own key.
        proxy: the proxy's address.
        grant: the grant that the parcel names, from the chain.
        delegating_key: the patient's re-encryption key of the grant's generation, from the chain.

    Raises:
        InvalidFragment: the fragment is not the one on the chain, was exchanged on the way, or is none.
        InvalidInput: not sealed to this proxy, or changed on the way (`DecryptionFailed`).
    """
    terms = grant.terms
    parcel = _decode_parcel(encryption.decrypt(sealed.capsule, sealed.ciphertext))
    if (parcel.grant_id, parcel.proxy) != (sealed.grant_id, proxy) or parcel.grant_id != grant_id(terms):
        raise InvalidFragment(
            f"inside is a fragment of grant {parcel.grant_id.hex()} for proxy {parcel.proxy.hex()}: it was exchanged"
        )
    if proxy not in terms.proxies:
        raise InvalidFragment(f"{proxy.hex()} is no proxy of grant {parcel.grant_id.hex()}")
    if fragment_digest(parcel.fragment) != terms.fragment_digests[terms.proxies.index(proxy)]:
        raise InvalidFragment(f"the fragment is not the one that grant {parcel.grant_id.hex()} names for this proxy")
    return verify_key_fragment(
        parcel.fragment,
        verifying_key=grant.verifying_key,
        delegating_key=delegating_key,
        receiving_key=terms.receiving_key,
    )


def sign_receipt(chain_id: bytes, key: PrivateKey, receipt: FragmentReceipt) -> bytes:
    """Return a proxy's signed receipt."""
    return encode(SignedReceipt(receipt, key.sign(_receipt_digest(chain_id, receipt))))


def check_receipt(
    chain_id: bytes, raw: bytes, prepared: PreparedGrant, proxy: bytes, proxy_key: bytes
) -> FragmentReceipt:
    """Verify that a proxy holds its fragment of a grant, or says so. Raises `InvalidInput`."""
    signed = _decode_receipt(raw)
    receipt = signed.receipt
    expected = prepared.terms.fragment_digests[prepared.terms.proxies.index(proxy)]
    if (receipt.grant_id, receipt.proxy, receipt.fragment_digest) != (prepared.grant_id, proxy, expected):
        raise InvalidInput(f"the receipt of {proxy.hex()} is about another fragment")
    if not verify(proxy_key, _receipt_digest(chain_id, receipt), signed.signature):
        raise InvalidInput(f"the receipt is not signed by proxy {proxy.hex()}")
    return receipt


def _receipt_digest(chain_id: bytes, receipt: FragmentReceipt) -> bytes:
    return tagged_hash(Tag.FRAGMENT_RECEIPT, chain_id, encode(receipt))


_decode_parcel = decoder(FragmentParcel, 512)
decode_sealed = decoder(SealedFragment, MAX_SEALED_FRAGMENT_BYTES)
"""Decode a sealed fragment without opening it; raises `InvalidInput`."""
_decode_receipt = decoder(SignedReceipt, MAX_RECEIPT_BYTES)
