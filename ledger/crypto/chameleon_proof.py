# SPDX-License-Identifier: GPL-3.0-or-later
"""The proving branch of the chameleon hash: a Groth16 proof in place of ξ opens h to a message.

The scheme is complete with it: `keygen` and `hash` are in `chameleon`, `check` is here, and `adapt` is in `records/chameleon_prover`,
because it needs a key of 2 MB from a file and randomness, neither of which the ledger reads. The statement and what the
circuit enforces of it stand in `circuit/chameleon.circom`. Requirements of the verifier:

R1 (binding) a proof counts for one (pk, h, m): all three are public inputs. Whoever sees proofs can re-randomise them, and then has
   other bytes for the same statement; so the bytes of a proof never serve as its name.
R2 (canonical) public inputs are canonical elements, m is the masked digest, points have one encoding each and are in their groups.
R3 (no exceptions from outside) whatever bytes a peer sends as pk, h, digest or proof give False.
R4 (agreement) the native library and its twin in Python answer alike on all bytes: both get points that were decoded here, and
   only equation and subgroups are left to them.

A check takes 1.6 ms and releases the interpreter; callers with an event loop run it in a thread. Curve, security and what remains:
docs/decisions/0022.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Self

from ledger.crypto.bn254 import (
    G1_BYTES,
    G2_BYTES,
    KeyPoints,
    ProofPoints,
    decode_g1,
    decode_g2,
)
from ledger.crypto.chameleon import ELEMENT_BYTES, check_opening, is_element, message_element
from ledger.errors import InvalidInput

try:
    from ledger.crypto.groth16_native import equation
except ImportError:
    from ledger.crypto.groth16_pure import equation

PUBLIC_INPUTS = 3
"""pk, h and m, in this order."""
VERIFYING_KEY_BYTES = G1_BYTES + 3 * G2_BYTES + (PUBLIC_INPUTS + 1) * G1_BYTES
PROOF_BYTES = 2 * G1_BYTES + G2_BYTES

Equation = Callable[[Sequence[int], ProofPoints], bool]

assert VERIFYING_KEY_BYTES == 704
assert PROOF_BYTES == 256


class VerifyingKey:
    """A network's verifying key: α, β, γ, δ and the four points of the public inputs, in 704 bytes."""

    __slots__ = ("encoded", "holds", "points")

    def __init__(self, encoded: bytes, points: KeyPoints, holds: Equation) -> None:
        """Use `decode`."""
        self.encoded = encoded
        self.points = points
        self.holds = holds

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Read a verifying key; the few that a process meets are kept, since preparing one costs milliseconds.

        Raises:
            InvalidInput: the bytes are not the encoding of a key, or are a key with which anybody can prove anything.
        """
        points = key_points(encoded)
        holds = _prepared(encoded)
        if holds is None:
            raise InvalidInput("verifying key: a point of G2 is outside the subgroup of order r; make the key anew")
        return cls(encoded, points, holds)


def key_points(encoded: bytes) -> KeyPoints:
    """Return the points of a verifying key; those of G2 may yet be outside the subgroup. Raises `InvalidInput`."""
    if len(encoded) != VERIFYING_KEY_BYTES:
        raise InvalidInput(
            f"verifying key: it has {VERIFYING_KEY_BYTES} bytes, not {len(encoded)}; name the file that the ceremony made"
        )
    twisted_end = G1_BYTES + 3 * G2_BYTES
    alpha, *inputs = (
        decode_g1(encoded[start : start + G1_BYTES])
        for start in (0, *range(twisted_end, VERIFYING_KEY_BYTES, G1_BYTES))
    )
    beta, gamma, delta = (
        decode_g2(encoded[start : start + G2_BYTES]) for start in range(G1_BYTES, twisted_end, G2_BYTES)
    )
    present = tuple(point for point in inputs if point is not None)
    if alpha is None or beta is None or gamma is None or delta is None or len(present) != len(inputs):
        raise InvalidInput(
            "verifying key: not every part is a point of its curve; the file is damaged or something else"
        )
    if gamma == delta:
        # As snarkjs leaves it before the first contribution: C = −L then proves every statement with A = α, B = β.
        raise InvalidInput(
            "verifying key: γ and δ are equal, so nobody has contributed to its second phase and anybody can forge "
            "proofs; finish the ceremony"
        )
    return KeyPoints(alpha, beta, gamma, delta, present)


# A process knows one network's key; tests know a few.
@lru_cache(maxsize=4)
def _prepared(encoded: bytes) -> Equation | None:
    return equation(key_points(encoded))


def proof_points(encoded: bytes) -> ProofPoints | None:
    """Return the points of a proof, or None when the bytes are none; B may yet be outside the subgroup."""
    if len(encoded) != PROOF_BYTES:
        return None
    a = decode_g1(encoded[:G1_BYTES])
    b = decode_g2(encoded[G1_BYTES : G1_BYTES + G2_BYTES])
    c = decode_g1(encoded[G1_BYTES + G2_BYTES :])
    return None if a is None or b is None or c is None else ProofPoints(a, b, c)


def public_inputs(public_key: bytes, chameleon_hash: bytes, message_digest: bytes) -> tuple[int, int, int] | None:
    """Return pk, h and m as the circuit takes them, or None when one of them is malformed."""
    if not is_element(public_key) or not is_element(chameleon_hash) or len(message_digest) != ELEMENT_BYTES:
        return None
    elements = (public_key, chameleon_hash, message_element(message_digest))
    first, second, third = (int.from_bytes(element, "big") for element in elements)
    return first, second, third


def verify_proof(
    verifying_key: VerifyingKey, public_key: bytes, chameleon_hash: bytes, message_digest: bytes, proof: bytes
) -> bool:
    """Tell whether the proof opens h to the message under pk; malformed bytes, which come from outside, do not."""
    points, inputs = proof_points(proof), public_inputs(public_key, chameleon_hash, message_digest)
    return points is not None and inputs is not None and verifying_key.holds(inputs, points)


def check(
    verifying_key: VerifyingKey, public_key: bytes, chameleon_hash: bytes, message_digest: bytes, evidence: bytes
) -> bool:
    """Tell whether the evidence, an opening (32 bytes) or a proof (256 bytes), opens h to the message under pk."""
    if len(evidence) == PROOF_BYTES:
        return verify_proof(verifying_key, public_key, chameleon_hash, message_digest, evidence)
    return len(message_digest) == ELEMENT_BYTES and check_opening(chameleon_hash, message_digest, evidence)
