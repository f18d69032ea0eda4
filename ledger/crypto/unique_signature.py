# SPDX-License-Identifier: GPL-3.0-or-later
"""BLS12-381 signatures: for a key and a message exactly one string of bytes verifies.

ECDSA admits as many valid signatures as its signer cares to draw, so whatever is derived from one can be ground. Here

    sk ∈ [1, r)    PK = sk · G1    S = sk · hash_to_G2(message)    valid iff e(G1, S) = e(PK, hash_to_G2(message))

and S is the only point of G2 that satisfies the equation. Requirements:
R1 (uniqueness) at most one signature verifies for a key and a message: points outside the subgroups of order r, infinity and every
   second encoding of a point are refused. The library below checks subgroups, but takes infinity, in several encodings.
R2 (no rogue keys) a proof of possession signs the key itself under a domain of its own, so that it can never serve as a signature.
R3 (no exceptions from outside) whatever bytes a peer sends as key, signature or proof give False.

Ciphersuite: BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_ of draft-irtf-cfrg-bls-signature-05 (keys 48 bytes, signatures 96), that of
Ethereum's consensus layer; hash to curve as in RFC 9380. Choice of library: docs/decisions/0015.
"""

import hashlib
import hmac

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

SEED_BYTES = 32
SECRET_BYTES = 32
PUBLIC_KEY_BYTES = 48
SIGNATURE_BYTES = 96

GROUP_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""r: order of both subgroups."""
_SIGNATURE_DOMAIN = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
_POSSESSION_DOMAIN = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
_KEYGEN_SALT = b"BLS-SIG-KEYGEN-SALT-"
_KEYGEN_BYTES = 48
"""⌈3 ⌈log2 r⌉ / 16⌉: enough that the remainder modulo r is uniform."""


def keygen(seed: bytes) -> tuple[bytes, bytes]:
    """Return the secret (32 bytes) and the public key (48 bytes) of 32 secret bytes of the caller's entropy.

    KeyGen of the draft, section 2.3. Raises `ValueError` for a seed of another length.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    salt, scalar = _KEYGEN_SALT, 0
    while scalar == 0:  # once, but for a chance of 2⁻²⁵⁵
        salt = hashlib.sha256(salt).digest()
        scalar = int.from_bytes(_hkdf(salt, seed + b"\x00", _KEYGEN_BYTES.to_bytes(2, "big"))) % GROUP_ORDER
    return scalar.to_bytes(SECRET_BYTES), (G1Point() * Scalar(scalar)).to_compressed_bytes()


def sign(secret: bytes, message: bytes) -> bytes:
    """Return the 96-byte signature of a message; raises `ValueError` when the secret is no scalar of the group."""
    return _sign(_scalar(secret), message, _SIGNATURE_DOMAIN)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether this is the signature of the message; malformed keys and signatures are false."""
    return _verify(public_key, message, signature, _SIGNATURE_DOMAIN)


def prove_possession(secret: bytes) -> bytes:
    """Return the 96-byte proof that one knows the secret; goes along when the public key is registered.

    Raises `ValueError` when the secret is no scalar of the group.
    """
    scalar = _scalar(secret)
    return _sign(scalar, (G1Point() * scalar).to_compressed_bytes(), _POSSESSION_DOMAIN)


def verify_possession(public_key: bytes, proof: bytes) -> bool:
    """Tell whether whoever made the proof knows the secret of the key; false for a key that is no key."""
    return _verify(public_key, public_key, proof, _POSSESSION_DOMAIN)


def is_public_key(public_key: bytes) -> bool:
    """Tell whether the bytes are the encoding of a point of the subgroup other than infinity."""
    return _key_point(public_key) is not None


def _hkdf(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """Return 48 bytes of HKDF-SHA-256 (RFC 5869): two blocks, cut."""
    extracted = hmac.digest(salt, secret, "sha256")
    first = hmac.digest(extracted, info + b"\x01", "sha256")
    second = hmac.digest(extracted, first + info + b"\x02", "sha256")
    return (first + second)[:_KEYGEN_BYTES]


def _scalar(secret: bytes) -> Scalar:
    number = int.from_bytes(secret)
    if len(secret) != SECRET_BYTES or not 0 < number < GROUP_ORDER:
        raise ValueError(f"a secret key has {SECRET_BYTES} bytes and is a number from 1 to the group's order")
    return Scalar(number)


def _sign(scalar: Scalar, message: bytes, domain: bytes) -> bytes:
    return (G2Point.hash_to_curve(message, domain) * scalar).to_compressed_bytes()


def _verify(public_key: bytes, message: bytes, signature: bytes, domain: bytes) -> bool:
    key, point = _key_point(public_key), _signature_point(signature)
    if key is None or point is None:
        return False
    return GT.pairing_check([G1Point(), -key], [point, G2Point.hash_to_curve(message, domain)])


def _key_point(encoded: bytes) -> G1Point | None:
    try:
        point = G1Point.from_compressed_bytes(encoded)
    except ValueError:
        return None
    return None if point == G1Point.identity() or point.to_compressed_bytes() != encoded else point


def _signature_point(encoded: bytes) -> G2Point | None:
    try:
        point = G2Point.from_compressed_bytes(encoded)
    except ValueError:
        return None
    return None if point == G2Point.identity() or point.to_compressed_bytes() != encoded else point
