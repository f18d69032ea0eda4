# SPDX-License-Identifier: GPL-3.0-or-later
"""Groth16's equation by the native library (arkworks through groth16py): 1.6 ms, during which other Python threads run.

Its twin `groth16_pure` gives the same answers; `chameleon_proof` takes this one where the library can be imported.
"""

import json
from collections.abc import Callable, Sequence

import groth16py

from ledger.crypto.bn254 import G2, KeyPoints, ProofPoints, encode_g1, encode_g2


def equation(key: KeyPoints) -> Callable[[Sequence[int], ProofPoints], bool] | None:
    """Prepare a key whose points are on their curves; None when one of G2 is outside the subgroup.

    The function that comes back tells whether a proof, with points on their curves, proves the public inputs. It may be called from
    several threads at once.
    """
    try:
        verifier = groth16py.Verifier(groth16py.VerifyingKey.from_snarkjs(json.dumps(snarkjs_key(key))))
    except groth16py.EncodingError:
        return None

    def holds(publics: Sequence[int], proof: ProofPoints) -> bool:
        try:
            return verifier.verify(encode_g1(proof.a) + encode_g2(proof.b) + encode_g1(proof.c), publics)
        except groth16py.EncodingError:
            return False  # B is outside the subgroup

    return holds


def snarkjs_key(key: KeyPoints) -> dict[str, object]:
    """Return a verifying key as snarkjs reads it (`verification_key.json`)."""

    def twisted(point: G2) -> list[list[str]]:
        return [*([str(low), str(high)] for low, high in point), ["1", "0"]]

    return {
        "protocol": "groth16",
        "curve": "bn128",
        "nPublic": len(key.inputs) - 1,
        "vk_alpha_1": [*map(str, key.alpha), "1"],
        "vk_beta_2": twisted(key.beta),
        "vk_gamma_2": twisted(key.gamma),
        "vk_delta_2": twisted(key.delta),
        "IC": [[*map(str, point), "1"] for point in key.inputs],
    }
