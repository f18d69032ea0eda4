# SPDX-License-Identifier: GPL-3.0-or-later
"""Check by proof: sound on hostile bytes, and the same for the native library, its twin in Python, and snarkjs."""

import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto import chameleon, groth16_native, groth16_pure
from ledger.crypto.bn254 import FIELD_MODULUS, KeyPoints, ProofPoints, decode_g1, decode_g2, encode_g1, encode_g2
from ledger.crypto.chameleon import FIELD_ORDER
from ledger.crypto.chameleon_proof import (
    PROOF_BYTES,
    VERIFYING_KEY_BYTES,
    VerifyingKey,
    check,
    key_points,
    proof_points,
    public_inputs,
    verify_proof,
)
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput
from scripts.snarkjs_tools import opinions
from tests.ledger.crypto.proof_kit import (
    GENERATOR,
    KEY,
    TWISTED_GENERATOR,
    adapted_proof,
    encoded,
    minus,
    opening_proof,
    outside_subgroup,
    plus,
    statement,
    times,
    twisted_minus,
    twisted_plus,
    twisted_times,
)

NATIVE = groth16_native.equation(KEY.points)
PURE = groth16_pure.equation(KEY.points)
PUBLICS = public_inputs(statement().public_key, statement().chameleon_hash, statement().adapted)
PROOF = proof_points(adapted_proof())


def verdict(proof: bytes, *, message: bytes | None = None, number: int = 0) -> bool:
    known = statement(number)
    return verify_proof(KEY, known.public_key, known.chameleon_hash, message or known.adapted, proof)


def holds(
    equation: Callable[[tuple[int, ...], ProofPoints], bool] | None, publics: tuple[int, ...], proof: ProofPoints
) -> bool:
    assert equation is not None
    return equation(publics, proof)


def rerandomised(proof: ProofPoints, factor: int, shift: int) -> ProofPoints:
    """A, B, C → A/f, f·(B + s·δ), C + s·A: other bytes, the same statement."""
    b = twisted_times(twisted_plus(proof.b, twisted_times(KEY.points.delta, shift)), factor)
    return ProofPoints(times(proof.a, pow(factor, -1, FIELD_ORDER)), b, plus(proof.c, times(proof.a, shift)))


# ---------------------------------------------------------------- what it must accept


def test_a_proof_by_the_trapdoor_opens_the_hash_to_another_message() -> None:
    assert verdict(adapted_proof())


def test_a_proof_by_the_opening_opens_the_hash_to_its_message() -> None:
    assert verdict(opening_proof(), message=statement().original)


def test_the_twin_in_python_accepts_what_the_native_library_proves() -> None:
    known = statement()
    for proof, message in ((adapted_proof(), known.adapted), (opening_proof(), known.original)):
        points, publics = proof_points(proof), public_inputs(known.public_key, known.chameleon_hash, message)
        assert points is not None
        assert publics is not None
        assert holds(PURE, publics, points)


def test_snarkjs_says_the_same_of_right_and_wrong_proofs() -> None:
    known = statement()
    publics = public_inputs(known.public_key, known.chameleon_hash, known.original)
    opened = proof_points(opening_proof())
    assert PROOF is not None
    assert PUBLICS is not None
    assert opened is not None
    assert publics is not None
    cases = [
        (KEY.points, PUBLICS, PROOF),
        (KEY.points, publics, opened),
        (KEY.points, PUBLICS, rerandomised(PROOF, 3, 5)),
        (KEY.points, publics, PROOF),
        (KEY.points, PUBLICS, ProofPoints(PROOF.a, PROOF.b, GENERATOR)),
    ]
    expected = [holds(NATIVE, publics, proof) for _, publics, proof in cases]
    assert expected == [True, True, True, False, False]
    assert opinions(cases) == expected


def test_check_takes_openings_and_proofs() -> None:
    known = statement()
    names = (KEY, known.public_key, known.chameleon_hash)
    assert check(*names, known.original, known.opening)
    assert check(*names, known.adapted, adapted_proof())
    assert not check(*names, known.adapted, known.opening)
    assert not check(*names, known.original, adapted_proof())
    assert not check(*names, b"short", known.opening)
    assert not check(*names, known.original, b"")


def test_the_three_highest_bits_of_a_digest_do_not_count() -> None:
    known = statement()
    other = bytes([known.adapted[0] | 0xE0]) + known.adapted[1:]
    assert other != known.adapted
    assert verdict(adapted_proof(), message=other)


# ---------------------------------------------------------------- what it must refuse


def test_a_proof_counts_for_its_own_statement_only() -> None:
    known, other = statement(), statement(1)
    proof = adapted_proof()
    assert not verdict(proof, message=known.original)
    assert not verify_proof(KEY, other.public_key, known.chameleon_hash, known.adapted, proof)
    assert not verify_proof(KEY, known.public_key, other.chameleon_hash, known.adapted, proof)
    # The three public inputs have an order.
    assert not verify_proof(KEY, known.chameleon_hash, known.public_key, known.adapted, proof)


def test_second_names_of_the_public_inputs_are_refused() -> None:
    known = statement(2)
    proof = adapted_proof(2)
    assert verdict(proof, number=2)
    for number, part in enumerate((known.public_key, known.chameleon_hash)):
        second = int.from_bytes(part, "big") + FIELD_ORDER
        if second < 1 << 256:
            parts = [known.public_key, known.chameleon_hash]
            parts[number] = second.to_bytes(32, "big")
            assert not verify_proof(KEY, parts[0], parts[1], known.adapted, proof)


@pytest.mark.parametrize("start", range(0, PROOF_BYTES, 32))
def test_second_names_of_coordinates_are_refused(start: int) -> None:
    proof = adapted_proof()
    second = int.from_bytes(proof[start : start + 32], "big") + FIELD_MODULUS
    assert second < 1 << 256
    assert not verdict(proof[:start] + second.to_bytes(32, "big") + proof[start + 32 :])


@pytest.mark.parametrize(("start", "end"), [(0, 64), (64, 192), (192, 256)], ids=["A", "B", "C"])
def test_infinity_is_refused(start: int, end: int) -> None:
    proof = adapted_proof()
    assert not verdict(proof[:start] + bytes(end - start) + proof[end:])


def test_a_point_outside_the_subgroup_is_refused_by_both() -> None:
    assert PROOF is not None
    assert PUBLICS is not None
    outside = outside_subgroup()
    assert decode_g2(encode_g2(outside)) == outside
    proof = ProofPoints(PROOF.a, outside, PROOF.c)
    assert not holds(NATIVE, PUBLICS, proof)
    assert not holds(PURE, PUBLICS, proof)
    assert not verdict(encoded(proof))


def test_a_right_proof_shifted_out_of_the_subgroup_is_refused_by_both() -> None:
    """B plus a point whose order divides the cofactor."""
    assert PROOF is not None
    assert PUBLICS is not None
    other = twisted_times(outside_subgroup(), FIELD_ORDER)
    assert decode_g2(encode_g2(other)) == other
    proof = ProofPoints(PROOF.a, twisted_plus(PROOF.b, other), PROOF.c)
    assert not holds(NATIVE, PUBLICS, proof)
    assert not holds(PURE, PUBLICS, proof)


HOSTILE = st.one_of(
    st.binary(max_size=2 * PROOF_BYTES),
    st.binary(min_size=PROOF_BYTES, max_size=PROOF_BYTES),
    st.tuples(st.integers(0, 8 * PROOF_BYTES - 1)).map(
        lambda bit: (int.from_bytes(adapted_proof(), "big") ^ 1 << bit[0]).to_bytes(PROOF_BYTES, "big")
    ),
    st.integers(0, PROOF_BYTES).map(lambda size: adapted_proof()[:size]).filter(lambda cut: len(cut) < PROOF_BYTES),
)


@settings(max_examples=300)
@given(HOSTILE)
def test_hostile_bytes_for_a_proof_are_refused_without_an_exception(proof: bytes) -> None:
    assert not verdict(proof)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_hostile_bytes_for_the_statement_are_refused_without_an_exception(
    public_key: bytes, chameleon_hash: bytes, digest: bytes
) -> None:
    known = statement()
    assert not verify_proof(KEY, public_key, known.chameleon_hash, known.adapted, adapted_proof())
    assert not verify_proof(KEY, known.public_key, chameleon_hash, known.adapted, adapted_proof())
    assert not verify_proof(KEY, known.public_key, known.chameleon_hash, digest, adapted_proof())


# ---------------------------------------------------------------- agreement of the two implementations

SCALARS = st.integers(1, FIELD_ORDER - 1)


@st.composite
def mauled(draw: st.DrawFn) -> tuple[tuple[int, ...], ProofPoints]:
    """Proofs of points in their groups that reach the equation: right, re-randomised, and wrong in every part."""
    assert PROOF is not None
    assert PUBLICS is not None
    proof, publics = PROOF, list(PUBLICS)
    if draw(st.booleans()):
        proof = rerandomised(proof, draw(SCALARS), draw(SCALARS))
    match draw(st.sampled_from(["right", "signs", "A", "B", "C", "public input"])):
        case "signs":
            proof = ProofPoints(minus(proof.a), twisted_minus(proof.b), proof.c)
        case "A":
            proof = proof._replace(a=times(GENERATOR, draw(SCALARS)))
        case "B":
            proof = proof._replace(b=twisted_times(TWISTED_GENERATOR, draw(SCALARS)))
        case "C":
            proof = proof._replace(c=times(GENERATOR, draw(SCALARS)))
        case "public input":
            publics[draw(st.integers(0, 2))] = draw(SCALARS)
        case _:
            pass
    return tuple(publics), proof


# One check in plain Python takes a second.
@settings(max_examples=12)
@given(mauled())
def test_both_implementations_agree_on_every_proof(case: tuple[tuple[int, ...], ProofPoints]) -> None:
    publics, proof = case
    assert holds(NATIVE, publics, proof) is holds(PURE, publics, proof)


def test_a_rerandomised_proof_is_other_bytes_for_the_same_statement() -> None:
    assert PROOF is not None
    other = encoded(rerandomised(PROOF, 7, 11))
    assert other != adapted_proof()
    assert verdict(other)
    assert not verdict(other, message=statement().original)


@settings(max_examples=50)
@given(SCALARS)
def test_points_have_one_encoding(scalar: int) -> None:
    point, twisted = times(GENERATOR, scalar), twisted_times(TWISTED_GENERATOR, scalar)
    assert decode_g1(encode_g1(point)) == point
    assert decode_g2(encode_g2(twisted)) == twisted


# ---------------------------------------------------------------- verifying keys


def key_bytes(points: KeyPoints) -> bytes:
    twisted = b"".join(map(encode_g2, (points.beta, points.gamma, points.delta)))
    return encode_g1(points.alpha) + twisted + b"".join(map(encode_g1, points.inputs))


def test_a_key_comes_back_as_it_was_written() -> None:
    assert key_bytes(key_points(DEVELOPMENT_VERIFYING_KEY)) == DEVELOPMENT_VERIFYING_KEY
    assert VerifyingKey.decode(DEVELOPMENT_VERIFYING_KEY).encoded == DEVELOPMENT_VERIFYING_KEY


@pytest.mark.parametrize("size", [0, 1, 703, 705, 1408])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"not {size}"):
        VerifyingKey.decode(bytes(size))


@pytest.mark.parametrize("start", range(0, VERIFYING_KEY_BYTES, 32))
def test_a_key_with_a_damaged_coordinate_is_refused(start: int) -> None:
    for damage in (bytes(32), b"\xff" * 32):
        with pytest.raises(InvalidInput, match="point of its curve"):
            VerifyingKey.decode(DEVELOPMENT_VERIFYING_KEY[:start] + damage + DEVELOPMENT_VERIFYING_KEY[start + 32 :])


@pytest.mark.parametrize(
    "points",
    [
        KEY.points._replace(beta=outside_subgroup()),
        KEY.points._replace(gamma=outside_subgroup()),
        KEY.points._replace(delta=outside_subgroup()),
    ],
    ids=["beta", "gamma", "delta"],
)
def test_a_key_with_a_point_outside_the_subgroup_is_refused_by_both(points: KeyPoints) -> None:
    with pytest.raises(InvalidInput, match="outside the subgroup"):
        VerifyingKey.decode(key_bytes(points))
    assert groth16_native.equation(points) is None
    assert groth16_pure.equation(points) is None


def test_a_key_that_nobody_contributed_to_can_be_forged_for_and_is_refused() -> None:
    """γ = δ is how snarkjs begins phase 2; then A = α, B = β, C = −L proves whatever one likes."""
    unfinished = KEY.points._replace(delta=KEY.points.gamma)
    publics = (1, 2, 3)
    linear = unfinished.inputs[0]
    for number, point in zip(publics, unfinished.inputs[1:], strict=True):
        linear = plus(linear, times(point, number))
    forged = ProofPoints(unfinished.alpha, unfinished.beta, minus(linear))
    assert holds(groth16_native.equation(unfinished), publics, forged)
    assert holds(groth16_pure.equation(unfinished), publics, forged)
    assert not holds(NATIVE, publics, forged)
    with pytest.raises(InvalidInput, match="anybody can forge"):
        VerifyingKey.decode(key_bytes(unfinished))


@settings(max_examples=200)
@given(st.binary(min_size=VERIFYING_KEY_BYTES, max_size=VERIFYING_KEY_BYTES))
def test_hostile_bytes_for_a_key_are_refused_as_input(encoded_key: bytes) -> None:
    with pytest.raises(InvalidInput):
        VerifyingKey.decode(encoded_key)


# ---------------------------------------------------------------- the event loop


def test_the_native_check_lets_other_threads_run() -> None:
    """With the interpreter's switching turned off, the main thread runs on only when a check gives the interpreter up."""
    known, proof = statement(), adapted_proof()
    stop, done = threading.Event(), [0]

    def checks() -> None:
        while not stop.is_set() and done[0] < 5_000:
            verify_proof(KEY, known.public_key, known.chameleon_hash, known.adapted, proof)
            done[0] += 1

    usual = sys.getswitchinterval()
    worker = threading.Thread(target=checks)
    sys.setswitchinterval(1000)
    try:
        worker.start()
        seen = done[0]
    finally:
        sys.setswitchinterval(usual)
        stop.set()
    worker.join()
    assert seen < 5_000


def test_the_statement_of_the_circuit_is_that_of_the_hash() -> None:
    """The circuit's Poseidon, order of inputs and domain are those of `chameleon`: else no proof would verify."""
    known = statement()
    assert known.public_key == chameleon.public_key(known.trapdoor)
    assert chameleon.check_opening(known.chameleon_hash, known.original, known.opening)
    assert not chameleon.check_opening(known.chameleon_hash, known.adapted, known.opening)
