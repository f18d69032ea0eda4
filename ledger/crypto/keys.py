# SPDX-License-Identifier: GPL-3.0-or-later
"""secp256k1 keys: compact low-s ECDSA signatures over 32-byte digests, and addresses.

coincurve's public `verify` takes DER only; its `ecdsa` module converts. We call libsecp256k1 through the same binding, which
keeps a verification at one parse and one check, and both release the GIL.
"""

from functools import lru_cache

from coincurve import PrivateKey as _Secret
from coincurve import PublicKey as _Point
from coincurve._libsecp256k1 import lib
from coincurve.context import GLOBAL_CONTEXT
from coincurve.ecdsa import der_to_cdata, deserialize_compact, serialize_compact

from ledger.crypto.hashing import Tag, tagged_hash

SECRET_BYTES = 32
PUBLIC_KEY_BYTES = 33
SIGNATURE_BYTES = 64
ADDRESS_BYTES = 20


class PrivateKey:
    """A secp256k1 secret; signs digests deterministically (RFC 6979), so the same digest gives the same signature."""

    __slots__ = ("_secret", "address", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Take 32 secret bytes from the caller's entropy; raises `ValueError` when they are no valid scalar."""
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret key has {SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = _Secret(secret)
        self.public_key: bytes = self._secret.public_key.format()
        self.address: bytes = address_of(self.public_key)

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for a keystore only."""
        return bytes(self._secret.secret)

    def sign(self, digest: bytes) -> bytes:
        """Return the 64-byte compact, low-s signature of a 32-byte digest."""
        der = self._secret.sign(digest, hasher=None)
        return bytes(serialize_compact(der_to_cdata(der)))


# A consortium has a few thousand active senders; parsing a key costs a sixth of a verification.
@lru_cache(maxsize=8192)
def _point(public_key: bytes) -> object:
    return _Point(public_key).public_key


def is_public_key(public_key: bytes) -> bool:
    """Tell whether the bytes are a compressed point of the curve."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        return False
    try:
        _point(public_key)
    except ValueError:
        return False
    return True


def verify(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Check a compact signature of a 32-byte digest; high-s signatures and invalid keys are false."""
    if len(digest) != SECRET_BYTES or len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        return False
    try:
        point = _point(public_key)
        parsed = deserialize_compact(signature)
    except ValueError:
        return False
    return bool(lib.secp256k1_ecdsa_verify(GLOBAL_CONTEXT.ctx, parsed, digest, point))


@lru_cache(maxsize=8192)
def address_of(public_key: bytes) -> bytes:
    """Return the 20-byte address of a compressed public key."""
    return tagged_hash(Tag.ADDRESS, public_key)[:ADDRESS_BYTES]
