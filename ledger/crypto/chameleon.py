# SPDX-License-Identifier: GPL-3.0-or-later
"""A chameleon hash in SNARK form: `h = Poseidon(m, ξ)`, with a trapdoor `pk = Poseidon(sk, 1)`.

Without the trapdoor `h` binds the message m like any hash; ξ is its opening. Whoever knows the trapdoor can
prove another message for the same h. What a verifier accepts is the statement over public (pk, h, m), with ξ
or sk as the witness:

    h = Poseidon(m, ξ)   OR   pk = Poseidon(sk, 1)

The construction follows Derler, Samelin and Slamanig, "Bringing order to chaos" (PKC 2020), and Khalili,
Dakhilalian and Susilo (Information Sciences 2020), whose aim is full collision resistance: one published
adaptation must not enable a further one. Poseidon is circomlib's instance with two inputs over the scalar
field of BN254, so that a Groth16 circuit of a thousand constraints can prove either branch. Here stands the left
branch, which needs no proof because ξ is simply published. `chameleon_proof` checks an adapted message by a
proof in place of ξ, for the same (pk, h, m); `records/chameleon_prover` makes such proofs.

Three conventions make both branches sound together:

- *Canonical elements.* On the wire an element is 32 bytes, big-endian, below the field's order r. Larger
  numbers would be second names of smaller ones, and are refused.
- *Messages* are 32-byte digests; the three highest bits are cleared, which leaves 253 bits, and 2²⁵³ < r. Two
  digests that differ only in those bits would collide, but to find two SHA-256 digests that agree in 253 bits
  takes 2¹²⁶ steps. Reduction modulo r would keep 0.4 bits more and cost a circuit more.
- *Separation.* ξ is at least 2¹²⁸, so ξ never equals the constant 1 of the key branch and no hash is also a
  public key. An honest ξ, drawn from the whole field, falls below with a chance of 2⁻¹²⁵.
"""

import hashlib

from light_poseidon_python import poseidon_hash

from ledger.errors import InvalidInput

ELEMENT_BYTES = 32
ENTROPY_BYTES = 32
FIELD_ORDER = 21888242871839275222246405745257275088548364400416034343698204186575808495617
"""r, the order of BN254's prime subgroup: the field that Poseidon and Groth16 compute in."""
OPENING_MINIMUM = 1 << 128
"""Smallest ξ: far above any constant used as a domain, far below any value that a random draw gives."""

_MESSAGE_MASK = (1 << 253) - 1
_KEY_DOMAIN = 1

assert _MESSAGE_MASK < FIELD_ORDER


def is_element(data: bytes) -> bool:
    """Tell whether the bytes are a canonical field element: 32 bytes, big-endian, below r."""
    return len(data) == ELEMENT_BYTES and int.from_bytes(data, "big") < FIELD_ORDER


def is_opening(data: bytes) -> bool:
    """Tell whether the bytes are an admissible ξ: a canonical element of at least 2¹²⁸."""
    return is_element(data) and int.from_bytes(data, "big") >= OPENING_MINIMUM


def message_element(message_digest: bytes) -> bytes:
    """Return m: the 32-byte digest without its three highest bits."""
    assert len(message_digest) == ELEMENT_BYTES, f"a message digest has 32 bytes, not {len(message_digest)}"
    return (int.from_bytes(message_digest, "big") & _MESSAGE_MASK).to_bytes(ELEMENT_BYTES, "big")


def keygen(entropy: bytes) -> tuple[bytes, bytes]:
    """Derive a trapdoor and its public key, both 32-byte elements, from 32 bytes of entropy."""
    secret = _draw(b"spchain/chameleon-key/1", entropy)
    return secret, public_key(secret)


def public_key(secret: bytes) -> bytes:
    """Return Poseidon(sk, 1); raises `InvalidInput` when the secret is no element of at least 2¹²⁸."""
    if not is_opening(secret):
        # The value stays out of the text: texts reach logs.
        raise InvalidInput("the chameleon secret is no 32-byte big-endian number in [2^128, r): use keygen")
    return _poseidon(int.from_bytes(secret, "big"), _KEY_DOMAIN)


def draw_opening(entropy: bytes) -> bytes:
    """Derive ξ from 32 bytes of entropy, which must serve for one hash only: ξ hides the message."""
    return _draw(b"spchain/chameleon-opening/1", entropy)


def hash_message(message_digest: bytes, opening: bytes) -> bytes:
    """Return h = Poseidon(m, ξ) as 32 bytes.

    Raises:
        InvalidInput: ξ is no canonical field element of at least 2¹²⁸.
    """
    if not is_opening(opening):
        raise InvalidInput(
            f"opening {opening[:ELEMENT_BYTES].hex()} ({len(opening)} bytes) is no 32-byte big-endian "
            "number in [2^128, r): use draw_opening"
        )
    message = int.from_bytes(message_element(message_digest), "big")
    return _poseidon(message, int.from_bytes(opening, "big"))


def check_opening(chameleon_hash: bytes, message_digest: bytes, opening: bytes) -> bool:
    """Tell whether ξ opens h to the message; malformed bytes, which come from outside, do not."""
    if not is_element(chameleon_hash) or not is_opening(opening):
        return False
    return hash_message(message_digest, opening) == chameleon_hash


def _draw(domain: bytes, entropy: bytes) -> bytes:
    """Map entropy to [2¹²⁸, r), with a bias below 2⁻²⁵⁸: 512 bits are reduced to 254."""
    if len(entropy) != ENTROPY_BYTES:
        raise InvalidInput(f"entropy has {ENTROPY_BYTES} bytes, not {len(entropy)}")
    wide = int.from_bytes(hashlib.sha512(domain + entropy).digest(), "big")
    return (OPENING_MINIMUM + wide % (FIELD_ORDER - OPENING_MINIMUM)).to_bytes(ELEMENT_BYTES, "big")


def _poseidon(left: int, right: int) -> bytes:
    # The library takes larger numbers modulo r and negative ones not at all: both are our bug here. Its
    # integers are machine words, hence the decimal strings.
    assert 0 <= left < FIELD_ORDER
    assert 0 <= right < FIELD_ORDER
    return int(poseidon_hash([str(left), str(right)])).to_bytes(ELEMENT_BYTES, "big")
