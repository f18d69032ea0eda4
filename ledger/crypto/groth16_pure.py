# SPDX-License-Identifier: GPL-3.0-or-later
"""Groth16's equation in plain Python (py_ecc): about a second a proof, for machines that the native library is not built for.

It also is the independent second opinion: the tests ask both and accept no difference, since nodes must agree.
"""

from collections.abc import Callable, Sequence

from py_ecc.fields import optimized_bn128_FQ as FQ
from py_ecc.fields import optimized_bn128_FQ2 as FQ2
from py_ecc.fields import optimized_bn128_FQ12 as FQ12
from py_ecc.optimized_bn128.optimized_curve import add, curve_order, is_inf, multiply, neg
from py_ecc.optimized_bn128.optimized_pairing import final_exponentiate, pairing
from py_ecc.typing import Optimized_Point3D

from ledger.crypto.bn254 import G1, G2, KeyPoints, ProofPoints


def equation(key: KeyPoints) -> Callable[[Sequence[int], ProofPoints], bool] | None:
    """As `groth16_native.equation`."""
    beta, gamma, delta = _twisted(key.beta), _twisted(key.gamma), _twisted(key.delta)
    if not all(map(_in_subgroup, (beta, gamma, delta))):
        return None
    inputs = [_point(point) for point in key.inputs]
    # e(A, B) · e(−α, β) · e(−L, γ) · e(−C, δ) = 1: the common last step of pairings is done once for all.
    constant = pairing(beta, neg(_point(key.alpha)), final_exponentiate=False)

    def holds(publics: Sequence[int], proof: ProofPoints) -> bool:
        b = _twisted(proof.b)
        if not _in_subgroup(b):
            return False
        linear = inputs[0]
        for number, point in zip(publics, inputs[1:], strict=True):
            linear = add(linear, multiply(point, number))
        product = (
            constant
            * pairing(b, _point(proof.a), final_exponentiate=False)
            * pairing(gamma, neg(linear), final_exponentiate=False)
            * pairing(delta, neg(_point(proof.c)), final_exponentiate=False)
        )
        return final_exponentiate(product) == FQ12.one()

    return holds


def _point(point: G1) -> Optimized_Point3D[FQ]:
    x, y = point
    return FQ(x), FQ(y), FQ.one()


def _twisted(point: G2) -> Optimized_Point3D[FQ2]:
    x, y = point
    return FQ2(x), FQ2(y), FQ2.one()


def _in_subgroup(point: Optimized_Point3D[FQ2]) -> bool:
    return is_inf(multiply(point, curve_order))
