# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of the pairing curve BN254 (alt_bn128 of EIP-196 and EIP-197), each with exactly one encoding.

    G1: y² = x³ + 3 over F_q             x ‖ y, 64 bytes
    G2: y² = x³ + 3/(9 + u) over F_q²    x₁ ‖ x₀ ‖ y₁ ‖ y₀, 128 bytes, for x = x₀ + x₁·u

Coordinates are 32 bytes, big-endian, below q. Infinity is refused: in a key or a proof it only ever stands for a cheat. The group of
G1 has prime order, so that a point on the curve is in it; on the curve of G2 there are others, which the caller must exclude.
"""

from typing import NamedTuple

FIELD_MODULUS = 21888242871839275222246405745257275088696311157297823662689037894645226208583
"""q: the order of the field that coordinates are taken from."""
COORDINATE_BYTES = 32
G1_BYTES = 2 * COORDINATE_BYTES
G2_BYTES = 4 * COORDINATE_BYTES

G1 = tuple[int, int]
G2 = tuple[tuple[int, int], tuple[int, int]]

# 3/(9 + u) = 3·(9 − u)/82, because u² = −1.
_G2_CONSTANT = (27 * pow(82, -1, FIELD_MODULUS) % FIELD_MODULUS, -3 * pow(82, -1, FIELD_MODULUS) % FIELD_MODULUS)


class KeyPoints(NamedTuple):
    """A Groth16 verifying key: e(A, B) = e(α, β) · e(Σ xᵢ·Lᵢ, γ) · e(C, δ), with x₀ = 1 and xᵢ the public inputs."""

    alpha: G1
    beta: G2
    gamma: G2
    delta: G2
    inputs: tuple[G1, ...]


class ProofPoints(NamedTuple):
    """A Groth16 proof."""

    a: G1
    b: G2
    c: G1


def decode_g1(encoded: bytes) -> G1 | None:
    """Return the point that 64 bytes stand for, or None when they stand for none."""
    if len(encoded) != G1_BYTES:
        return None
    x, y = _coordinates(encoded)
    if x >= FIELD_MODULUS or y >= FIELD_MODULUS or (y * y - x * x * x - 3) % FIELD_MODULUS:
        return None  # (0, 0), a common name of infinity, is not on the curve either
    return x, y


def decode_g2(encoded: bytes) -> G2 | None:
    """Return the point of the curve that 128 bytes stand for, or None; whether it is in the subgroup is left to the caller."""
    if len(encoded) != G2_BYTES:
        return None
    x1, x0, y1, y0 = coordinates = _coordinates(encoded)
    if max(coordinates) >= FIELD_MODULUS:
        return None
    x, y = (x0, x1), (y0, y1)
    cube = _times(_times(x, x), x)
    square = _times(y, y)
    if any((square[i] - cube[i] - _G2_CONSTANT[i]) % FIELD_MODULUS for i in (0, 1)):
        return None
    return x, y


def encode_g1(point: G1) -> bytes:
    """Return the 64 bytes of a point."""
    return b"".join(number.to_bytes(COORDINATE_BYTES, "big") for number in point)


def encode_g2(point: G2) -> bytes:
    """Return the 128 bytes of a point."""
    (x0, x1), (y0, y1) = point
    return b"".join(number.to_bytes(COORDINATE_BYTES, "big") for number in (x1, x0, y1, y0))


def _coordinates(encoded: bytes) -> list[int]:
    return [
        int.from_bytes(encoded[start : start + COORDINATE_BYTES], "big")
        for start in range(0, len(encoded), COORDINATE_BYTES)
    ]


def _times(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    (a0, a1), (b0, b1) = left, right
    return (a0 * b0 - a1 * b1) % FIELD_MODULUS, (a0 * b1 + a1 * b0) % FIELD_MODULUS
