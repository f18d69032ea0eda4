# SPDX-License-Identifier: GPL-3.0-or-later
"""A statement with proofs of it by both branches, and arithmetic on points for whoever mauls them."""

from functools import lru_cache
from typing import NamedTuple

from py_ecc.fields import optimized_bn128_FQ as FQ
from py_ecc.fields import optimized_bn128_FQ2 as FQ2
from py_ecc.optimized_bn128.optimized_curve import G1 as GENERATOR_1
from py_ecc.optimized_bn128.optimized_curve import G2 as GENERATOR_2
from py_ecc.optimized_bn128.optimized_curve import add, multiply, normalize
from py_ecc.typing import Optimized_Point3D

from ledger.crypto import chameleon
from ledger.crypto.bn254 import FIELD_MODULUS, G1, G2, ProofPoints, encode_g1, encode_g2
from ledger.crypto.chameleon_proof import VerifyingKey
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover

KEY = VerifyingKey.decode(DEVELOPMENT_VERIFYING_KEY)
PROVER = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


class Statement(NamedTuple):
    """What is proved, and the two witnesses."""

    public_key: bytes
    chameleon_hash: bytes
    original: bytes
    adapted: bytes
    trapdoor: bytes
    opening: bytes


@lru_cache(maxsize=8)
def statement(number: int = 0) -> Statement:
    trapdoor, public_key = chameleon.keygen(bytes([number]) * 32)
    opening = chameleon.draw_opening(bytes([number]) * 32)
    original, adapted = bytes([number]) * 31 + b"o", bytes([number]) * 31 + b"a"
    return Statement(public_key, chameleon.hash_message(original, opening), original, adapted, trapdoor, opening)


@lru_cache(maxsize=8)
def adapted_proof(number: int = 0) -> bytes:
    known = statement(number)
    return PROVER.adapt(known.trapdoor, known.public_key, known.chameleon_hash, known.adapted)


@lru_cache(maxsize=8)
def opening_proof(number: int = 0) -> bytes:
    known = statement(number)
    return PROVER.prove_opening(known.public_key, known.chameleon_hash, known.original, known.opening)


def encoded(proof: ProofPoints) -> bytes:
    return encode_g1(proof.a) + encode_g2(proof.b) + encode_g1(proof.c)


def plus(left: G1, right: G1) -> G1:
    x, y = normalize(add((FQ(left[0]), FQ(left[1]), FQ.one()), (FQ(right[0]), FQ(right[1]), FQ.one())))
    return int(x), int(y)


def times(point: G1, factor: int) -> G1:
    x, y = normalize(multiply((FQ(point[0]), FQ(point[1]), FQ.one()), factor))
    return int(x), int(y)


def minus(point: G1) -> G1:
    return point[0], -point[1] % FIELD_MODULUS


def twisted_plus(left: G2, right: G2) -> G2:
    return _twisted(add(_point(left), _point(right)))


def twisted_times(point: G2, factor: int) -> G2:
    return _twisted(multiply(_point(point), factor))


def twisted_minus(point: G2) -> G2:
    x, (y0, y1) = point
    return x, (-y0 % FIELD_MODULUS, -y1 % FIELD_MODULUS)


GENERATOR: G1 = (int(GENERATOR_1[0]), int(GENERATOR_1[1]))


def _point(point: G2) -> Optimized_Point3D[FQ2]:
    return FQ2(point[0]), FQ2(point[1]), FQ2.one()


def _twisted(point: Optimized_Point3D[FQ2]) -> G2:
    x, y = normalize(point)
    (x0, x1), (y0, y1) = x.coeffs, y.coeffs
    return (int(x0), int(x1)), (int(y0), int(y1))


TWISTED_GENERATOR: G2 = _twisted(GENERATOR_2)

OTHER_KEY = (
    DEVELOPMENT_VERIFYING_KEY[:320] + encode_g2(twisted_times(KEY.points.delta, 2)) + DEVELOPMENT_VERIFYING_KEY[448:]
)
"""A sound key of another network: as after one more contribution."""


def outside_subgroup() -> G2:
    """Return a point of the twisted curve that is not in the group of order r: nearly every x that has a y gives one."""
    for number in range(1, 100):
        root = _square_root(FQ2([number, 1]) ** 3 + FQ2([3, 0]) / FQ2([9, 1]))
        if root is not None:
            return (number, 1), root
    raise AssertionError


def _square_root(square: FQ2) -> tuple[int, int] | None:
    # q² − 1 = 16·odd: a root of square^odd is found among the 16th roots of unity, times square^((odd+1)/2).
    order = FIELD_MODULUS**2 - 1
    odd = order // 16
    assert odd % 2
    candidate = square ** ((odd + 1) // 2)
    for step in range(1, 50):
        root_of_unity = FQ2([step, 1]) ** odd
        for power in range(16):
            found = candidate * root_of_unity**power
            if found * found == square:
                c0, c1 = found.coeffs
                return int(c0), int(c1)
    return None
