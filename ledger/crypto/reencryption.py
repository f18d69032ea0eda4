# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption to a patient with Umbral, a threshold proxy re-encryption scheme over secp256k1.

A plaintext is sealed under a fresh symmetric key (ChaCha20-Poly1305); the *capsule* encapsulates that key to
a public key. Whoever holds the secret opens the capsule directly. For anyone else the owner splits a
re-encryption key into fragments, proxies turn the capsule into capsule fragments, and m of them open it: the
capsule therefore travels apart from the ciphertext, and everything about sharing builds on the byte strings
that this module hands out.

The capsule is authenticated together with the ciphertext, so neither can be exchanged alone. Nobody is
authenticated as the *sender*: anyone can encrypt to a public key. Who wrote a record is shown by the
signature on its transaction.

umbral-pre draws the randomness of an encryption inside the library, from the operating system. Its calls hold
the interpreter lock, about 3 ms per MiB. Keys, capsules and ciphertexts are those of the browser's
`@nucypher/umbral-pre`.

Sharing. A *key fragment* is signed by whoever grants and names the key it comes from and the key it leads to; a proxy
verifies it before it keeps it. A *capsule fragment* carries a proof that it was made of the capsule with such a key
fragment; the reader verifies it before it opens. Both checks change the type, so that what was not verified cannot be
used. Fragments of one splitting share a *precursor*, by which the reader tells apart what does not belong together:
a proxy may answer with a fragment that is genuine, but of another grant.
"""

from collections.abc import Sequence
from typing import Any, final

import msgspec
import umbral_pre

from ledger.errors import InvalidInput

SECRET_BYTES = 32
SEED_BYTES = 32
PUBLIC_KEY_BYTES = 33
CAPSULE_BYTES = 105
"""Two compressed points and a scalar in the library's own MessagePack framing, the only one it reads."""
CIPHERTEXT_OVERHEAD_BYTES = 40
"""A 24-byte nonce in front and a 16-byte authenticator behind."""

KEY_FRAGMENT_BYTES = 310
CAPSULE_FRAGMENT_BYTES = 381
MAX_SHARES = 64
"""Bound on n of one splitting: far above what the ledger allows."""

_SEED_LABEL = b"spchain/reencryption/1"
_BOTH_KEYS_SIGNED = b"\xc3\xc3"
"""End of a key fragment whose signature covers both keys: two times `true` in MessagePack."""
# The library raises it and exports it; its type stub does not know it.
_VerificationError: type[Exception] = umbral_pre.VerificationError  # type: ignore[attr-defined]


class DecryptionFailed(InvalidInput):
    """The secret is not the one that the data was encrypted to, or capsule or ciphertext was changed.

    Which of them cannot be told: an authenticated cipher gives one answer for all.
    """


class InvalidFragment(InvalidInput):
    """A key fragment or capsule fragment that is malformed, forged, or made for other keys or another capsule."""


@final
class VerifiedKeyFragment:
    """A key fragment that was verified, or made here; a secret of its proxy. Only this module makes them."""

    __slots__ = ("_fragment", "_raw")

    def __init__(self, fragment: umbral_pre.VerifiedKeyFrag) -> None:
        self._fragment = fragment
        self._raw = bytes(fragment)
        assert len(self._raw) == KEY_FRAGMENT_BYTES

    def __bytes__(self) -> bytes:
        return self._raw

    def __repr__(self) -> str:
        return "VerifiedKeyFragment(<withheld>)"

    def reencrypt(self, capsule: bytes) -> bytes:
        """Turn a capsule into a capsule fragment of 381 bytes; raises `InvalidInput` when it is no capsule."""
        encoded = bytes(umbral_pre.reencrypt(_capsule(capsule), self._fragment))
        assert len(encoded) == CAPSULE_FRAGMENT_BYTES
        return encoded


@final
class VerifiedCapsuleFragment:
    """A capsule fragment whose proof was verified. Only this module makes them."""

    __slots__ = ("capsule", "delegating_key", "fragment", "fragment_id", "precursor")

    def __init__(self, fragment: umbral_pre.VerifiedCapsuleFrag, capsule: bytes, delegating_key: bytes) -> None:
        self.fragment = fragment
        self.capsule: bytes = capsule
        """What was re-encrypted."""
        self.delegating_key: bytes = delegating_key
        """Key that the capsule was made for."""
        _, _, identifier, precursor, _ = _capsule_fragment_fields(bytes(fragment))
        self.fragment_id: bytes = identifier
        """Names the key fragment behind it: m different ones are needed."""
        self.precursor: bytes = precursor
        """Names the splitting: only fragments of one open together."""


class ReencryptionKey:
    """A key pair of Umbral; equal bytes give equal keys, on every platform."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Take 32 secret bytes; raises `InvalidInput` when they are 0 or not below the order of secp256k1."""
        self._secret = _secret_key(secret)
        self.public_key: bytes = self._secret.public_key().to_compressed_bytes()
        assert len(self.public_key) == PUBLIC_KEY_BYTES

    @classmethod
    def from_seed(cls, seed: bytes) -> "ReencryptionKey":
        """Derive a key from a 32-byte seed, by HKDF under a label of ours: no seed of that size fails."""
        if len(seed) != SEED_BYTES:
            raise InvalidInput(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        factory = umbral_pre.SecretKeyFactory.from_secure_randomness(seed)
        return cls(factory.make_key(_SEED_LABEL).to_be_bytes())

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for a keystore only."""
        return self._secret.to_be_bytes()

    def decrypt(self, capsule: bytes, ciphertext: bytes) -> bytes:
        """Open what was encrypted to this key; raises `InvalidInput` or its kind `DecryptionFailed`."""
        parsed = _capsule(capsule)
        try:
            return umbral_pre.decrypt_original(self._secret, parsed, ciphertext)
        except ValueError as error:
            raise DecryptionFailed(
                f"{len(ciphertext)} bytes of ciphertext do not open: another key, or changed data"
            ) from error

    def split(
        self, receiving_key: bytes, signing_secret: bytes, *, threshold: int, shares: int
    ) -> tuple[VerifiedKeyFragment, ...]:
        """Split the key that re-encrypts from this one to another into fragments, of which `threshold` are needed.

        Args:
            receiving_key: public key of the reader.
            signing_secret: the 32-byte secp256k1 secret of whoever grants; its public key verifies the fragments.
            threshold: m, how many proxies must re-encrypt.
            shares: n, how many fragments.

        Raises:
            InvalidInput: not 1 ≤ m ≤ n ≤ 64, or a key that is none.
        """
        # The library itself would hand out fragments that never suffice, or one that suffices alone.
        if not 1 <= threshold <= shares <= MAX_SHARES:
            raise InvalidInput(f"{threshold} of {shares} fragments: 1 to n of at most {MAX_SHARES} can be needed")
        signer = umbral_pre.Signer(_secret_key(signing_secret))
        fragments = umbral_pre.generate_kfrags(
            self._secret,
            _public_key(receiving_key),
            signer,
            threshold,
            shares,
            sign_delegating_key=True,
            sign_receiving_key=True,
        )
        return tuple(VerifiedKeyFragment(fragment) for fragment in fragments)

    def decrypt_shared(self, fragments: Sequence[VerifiedCapsuleFragment], ciphertext: bytes) -> bytes:
        """Open, as the reader, what was re-encrypted to this key by enough proxies.

        Raises:
            InvalidInput: no fragments, or such of different capsules; or its kind `DecryptionFailed`: too few of them,
                another reader's, of different grants, or a changed ciphertext.
        """
        if not fragments:
            raise InvalidInput("no capsule fragment was given; ask the grant's proxies")
        if len({(fragment.capsule, fragment.delegating_key) for fragment in fragments}) > 1:
            raise InvalidInput("the capsule fragments are of different capsules; open each record with its own")
        capsule = _capsule(fragments[0].capsule)
        delegating_key = _public_key(fragments[0].delegating_key)
        verified = [fragment.fragment for fragment in fragments]
        try:
            opened = umbral_pre.decrypt_reencrypted(self._secret, delegating_key, capsule, verified, ciphertext)
        except ValueError as error:
            raise DecryptionFailed(
                f"{len(fragments)} capsule fragments do not open {len(ciphertext)} bytes of ciphertext: too few, "
                f"not of one grant, for another reader, or changed data ({error})"
            ) from error
        assert opened is not None, "the library raises instead"
        return opened


def verify_key_fragment(
    data: bytes, *, verifying_key: bytes, delegating_key: bytes, receiving_key: bytes
) -> VerifiedKeyFragment:
    """Verify a key fragment as its proxy, and try it out.

    A fragment carries a second signature that only readers check. One that is wrong there would make an honest proxy
    look like a liar, so the fragment must pass a reader's check here, on a capsule made up for it (2 ms).

    Raises:
        InvalidFragment: malformed, not signed by `verifying_key`, or not from `delegating_key` to `receiving_key`.
        InvalidInput: one of the three keys is no key.
    """
    if len(data) != KEY_FRAGMENT_BYTES:
        raise InvalidFragment(f"a key fragment has {KEY_FRAGMENT_BYTES} bytes, not {len(data)}")
    signer, source, target = _public_key(verifying_key), _public_key(delegating_key), _public_key(receiving_key)
    try:
        parsed = umbral_pre.KeyFrag.from_bytes(data)
        if bytes(parsed) != data or not data.endswith(_BOTH_KEYS_SIGNED):
            raise InvalidFragment("the key fragment is not in its canonical encoding, or does not name both keys")
        fragment = VerifiedKeyFragment(parsed.verify(signer, source, target))
    except (ValueError, _VerificationError) as error:
        raise InvalidFragment(f"the key fragment does not verify: {error}") from error
    capsule, _ = encrypt(delegating_key, b"")
    try:
        verify_capsule_fragment(
            fragment.reencrypt(capsule),
            capsule=capsule,
            verifying_key=verifying_key,
            delegating_key=delegating_key,
            receiving_key=receiving_key,
        )
    except InvalidFragment as error:
        raise InvalidFragment(f"the key fragment would re-encrypt wrongly: {error}") from error
    return fragment


def restore_key_fragment(data: bytes) -> VerifiedKeyFragment:
    """Return a fragment that was verified, encoded and since kept where nobody could change it unseen."""
    assert len(data) == KEY_FRAGMENT_BYTES, f"a key fragment has {KEY_FRAGMENT_BYTES} bytes, not {len(data)}"
    return VerifiedKeyFragment(umbral_pre.KeyFrag.from_bytes(data).skip_verification())


def verify_capsule_fragment(
    data: bytes, *, capsule: bytes, verifying_key: bytes, delegating_key: bytes, receiving_key: bytes
) -> VerifiedCapsuleFragment:
    """Verify, as the reader, that a proxy has re-encrypted this very capsule with a fragment of such a grant.

    Raises:
        InvalidFragment: malformed, of another capsule, or made with a key fragment that `verifying_key` has not signed
            for these two keys.
        InvalidInput: the capsule is none, or one of the keys is no key.
    """
    if len(data) != CAPSULE_FRAGMENT_BYTES:
        raise InvalidFragment(f"a capsule fragment has {CAPSULE_FRAGMENT_BYTES} bytes, not {len(data)}")
    signer, source, target = _public_key(verifying_key), _public_key(delegating_key), _public_key(receiving_key)
    original = _capsule(capsule)
    try:
        parsed = umbral_pre.CapsuleFrag.from_bytes(data)
        if bytes(parsed) != data:
            raise InvalidFragment("the capsule fragment is not in its canonical encoding")
        fragment = parsed.verify(original, signer, source, target)
    except (ValueError, _VerificationError) as error:
        raise InvalidFragment(f"the capsule fragment does not verify: {error}") from error
    return VerifiedCapsuleFragment(fragment, capsule, delegating_key)


def encrypt(public_key: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt to a public key; return the capsule (105 bytes) and the ciphertext (40 bytes more than plain).

    Raises:
        InvalidInput: the public key is no compressed point of secp256k1.
    """
    capsule, ciphertext = umbral_pre.encrypt(_public_key(public_key), plaintext)
    encoded = bytes(capsule)
    assert len(encoded) == CAPSULE_BYTES
    assert len(ciphertext) == len(plaintext) + CIPHERTEXT_OVERHEAD_BYTES
    return encoded, ciphertext


def check_capsule(capsule: bytes) -> None:
    """Verify that the bytes are a capsule in its one encoding; raises `InvalidInput`.

    A capsule proves itself: two points and a scalar must satisfy an equation, without any key.
    """
    _capsule(capsule)


def _capsule(data: bytes) -> umbral_pre.Capsule:
    if len(data) != CAPSULE_BYTES:
        raise InvalidInput(f"a capsule has {CAPSULE_BYTES} bytes, not {len(data)}")
    try:
        capsule = umbral_pre.Capsule.from_bytes(data)
    except ValueError as error:
        raise InvalidInput(f"the capsule is not valid: {error}") from error
    if bytes(capsule) != data:
        raise InvalidInput("the capsule is not in its canonical encoding")
    return capsule


def _secret_key(secret: bytes) -> umbral_pre.SecretKey:
    # The value stays out of the texts: they reach logs.
    if len(secret) != SECRET_BYTES:
        raise InvalidInput(f"a re-encryption secret has {SECRET_BYTES} bytes, not {len(secret)}")
    try:
        return umbral_pre.SecretKey.from_be_bytes(secret)
    except ValueError as error:
        raise InvalidInput("the re-encryption secret is no scalar of secp256k1; draw 32 new bytes") from error


def _public_key(data: bytes) -> umbral_pre.PublicKey:
    try:
        return umbral_pre.PublicKey.from_compressed_bytes(data)
    except ValueError as error:
        raise InvalidInput(
            f"re-encryption key {data[:PUBLIC_KEY_BYTES].hex()} is no point of secp256k1: {error}"
        ) from error


def _capsule_fragment_fields(data: bytes) -> tuple[bytes, bytes, bytes, bytes, Any]:
    """Return e1, v1, identifier of the key fragment, precursor and proof, as the library frames them."""
    return msgspec.msgpack.decode(data, type=tuple[bytes, bytes, bytes, bytes, Any])
