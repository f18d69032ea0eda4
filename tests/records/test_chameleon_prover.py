# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapt: what it proves, what it refuses, and that nothing false leaves it."""

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import groth16py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto import chameleon
from ledger.crypto.chameleon import FIELD_ORDER, OPENING_MINIMUM
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput
from records import chameleon_keys
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY, pack, read
from records.chameleon_prover import Prover
from tests.ledger.crypto.proof_kit import KEY, OTHER_KEY, PROVER, statement

DIGESTS = st.binary(min_size=32, max_size=32)
OPENINGS = st.integers(OPENING_MINIMUM, FIELD_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


@settings(max_examples=10)
@given(DIGESTS, OPENINGS, DIGESTS, DIGESTS)
def test_the_trapdoor_opens_any_hash_to_any_message(
    original: bytes, opening: bytes, entropy: bytes, other: bytes
) -> None:
    trapdoor, public_key = chameleon.keygen(entropy)
    hashed = chameleon.hash_message(original, opening)
    assert verify_proof(KEY, public_key, hashed, other, PROVER.adapt(trapdoor, public_key, hashed, other))


@settings(max_examples=10)
@given(DIGESTS, OPENINGS, DIGESTS)
def test_an_opening_proves_its_message_under_any_key(original: bytes, opening: bytes, entropy: bytes) -> None:
    public_key = chameleon.keygen(entropy)[1]
    hashed = chameleon.hash_message(original, opening)
    assert verify_proof(KEY, public_key, hashed, original, PROVER.prove_opening(public_key, hashed, original, opening))


@pytest.mark.parametrize("number", [OPENING_MINIMUM, OPENING_MINIMUM + 1, FIELD_ORDER - 1])
def test_the_ends_of_the_range_are_openings_to_the_circuit_too(number: int) -> None:
    known, opening = statement(), number.to_bytes(32, "big")
    hashed = chameleon.hash_message(known.original, opening)
    assert PROVER.prove_opening(known.public_key, hashed, known.original, opening)


def test_two_proofs_of_one_statement_differ() -> None:
    known = statement()
    names = (known.trapdoor, known.public_key, known.chameleon_hash, known.adapted)
    assert PROVER.adapt(*names) != PROVER.adapt(*names)


def test_another_trapdoor_is_refused_without_being_told() -> None:
    known, other = statement(), statement(1)
    with pytest.raises(InvalidInput, match="not that of this public key") as caught:
        PROVER.adapt(other.trapdoor, known.public_key, known.chameleon_hash, known.adapted)
    assert other.trapdoor.hex() not in str(caught.value)
    with pytest.raises(InvalidInput, match="use keygen"):
        PROVER.adapt(b"short", known.public_key, known.chameleon_hash, known.adapted)


def test_another_opening_is_refused() -> None:
    known, other = statement(), statement(1)
    with pytest.raises(InvalidInput, match="does not open"):
        PROVER.prove_opening(known.public_key, known.chameleon_hash, known.original, other.opening)
    with pytest.raises(InvalidInput, match="does not open"):
        PROVER.prove_opening(known.public_key, known.chameleon_hash, known.adapted, known.opening)


@pytest.mark.parametrize(
    ("chameleon_hash", "message"),
    [(b"\xff" * 32, bytes(32)), (b"", bytes(32)), (bytes(32), b""), (bytes(32), bytes(33))],
)
def test_a_malformed_statement_is_refused(chameleon_hash: bytes, message: bytes) -> None:
    known = statement()
    with pytest.raises(InvalidInput, match="below r"):
        PROVER.adapt(known.trapdoor, known.public_key, chameleon_hash, message)


SPARE = OPENING_MINIMUM
TRAPDOOR, OPENING = (int.from_bytes(secret, "big") for secret in (statement().trapdoor, statement().opening))
FALSE_WITNESSES = {
    "neither": (0, SPARE, 0),
    "trapdoor on the branch of openings": (0, SPARE, TRAPDOOR),
    "opening on the branch of trapdoors": (1, OPENING, 0),
    "another trapdoor": (1, SPARE, TRAPDOOR + 1),
    "the public key as trapdoor": (1, SPARE, int.from_bytes(statement().public_key, "big")),
    "a branch that is neither": (2, OPENING, TRAPDOOR),
    "half a branch": (pow(2, -1, FIELD_ORDER), OPENING, TRAPDOOR),
    "minus one": (FIELD_ORDER - 1, OPENING, TRAPDOOR),
    "an opening below the range beside the right trapdoor": (1, OPENING_MINIMUM - 1, TRAPDOOR),
    "no opening beside the right trapdoor": (1, 0, TRAPDOOR),
}


@pytest.mark.parametrize("witness", FALSE_WITNESSES.values(), ids=FALSE_WITNESSES.keys())
def test_a_proof_from_a_false_witness_never_leaves(witness: tuple[int, int, int]) -> None:
    known = statement()
    with pytest.raises(InvalidInput, match="not given out"):
        PROVER._proved(known.public_key, known.chameleon_hash, known.adapted, *witness)


@pytest.mark.parametrize("opening", [0, 1, 2, OPENING_MINIMUM - 1])
def test_an_opening_below_the_range_opens_nothing_by_proof_either(opening: int) -> None:
    """Else a public key, Poseidon(sk, 1), would be a hash that opens to sk."""
    known = statement()
    message = int.from_bytes(chameleon.message_element(known.original), "big")
    hashed = chameleon._poseidon(message, opening)
    with pytest.raises(InvalidInput, match="not given out"):
        PROVER._proved(known.public_key, hashed, known.original, 0, opening, 0)


def test_one_prover_serves_several_threads() -> None:
    prover = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)
    cases = [statement(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        proofs = list(pool.map(lambda c: prover.adapt(c.trapdoor, c.public_key, c.chameleon_hash, c.adapted), cases))
    for known, proof in zip(cases, proofs, strict=True):
        assert verify_proof(KEY, known.public_key, known.chameleon_hash, known.adapted, proof)


# ---------------------------------------------------------------- files of proving keys


def adapt_with(path: Path, verifying_key: bytes = DEVELOPMENT_VERIFYING_KEY) -> bytes:
    known = statement()
    return Prover(path, verifying_key).adapt(known.trapdoor, known.public_key, known.chameleon_hash, known.adapted)


def test_the_development_key_ships_with_the_program_and_belongs_to_its_verifying_key() -> None:
    content = read(DEVELOPMENT_PROVING_KEY)
    assert content.verifying_key == DEVELOPMENT_VERIFYING_KEY
    assert hashlib.sha256(content.body).digest() == content.fingerprint
    assert chameleon_keys.CIRCUIT.is_file()


def test_a_key_comes_back_as_it_was_packed(tmp_path: Path) -> None:
    path = tmp_path / "key.bin"
    path.write_bytes(pack(DEVELOPMENT_VERIFYING_KEY, b"body"))
    assert read(path)[::2] == (DEVELOPMENT_VERIFYING_KEY, b"body")


def test_the_proving_key_of_another_network_is_refused() -> None:
    VerifyingKey.decode(OTHER_KEY)
    with pytest.raises(InvalidInput, match="belongs to another verifying key"):
        adapt_with(DEVELOPMENT_PROVING_KEY, OTHER_KEY)


def test_a_proving_key_that_does_not_fit_its_verifying_key_gives_out_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key.bin"
    path.write_bytes(pack(OTHER_KEY, read(DEVELOPMENT_PROVING_KEY).body))
    with pytest.raises(InvalidInput, match="not given out"):
        adapt_with(path, OTHER_KEY)


@pytest.mark.parametrize("body", [b"", b"another version's form", read(DEVELOPMENT_PROVING_KEY).body[:-1]])
def test_a_proving_key_that_the_library_cannot_read_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "key.bin"
    path.write_bytes(pack(DEVELOPMENT_VERIFYING_KEY, body))
    with pytest.raises(InvalidInput, match="make it anew"):
        adapt_with(path)


def test_a_proving_key_of_another_circuit_is_refused(tmp_path: Path) -> None:
    source, saved, path = tmp_path / "product.circom", tmp_path / "saved", tmp_path / "key.bin"
    source.write_text(
        "pragma circom 2.1.0; template P() { signal input a; signal input b; signal output c; c <== a * b; } "
        "component main = P();"
    )
    groth16py.setup_circom(str(source))[0].save(str(saved))
    path.write_bytes(pack(DEVELOPMENT_VERIFYING_KEY, saved.read_bytes()))
    with pytest.raises(InvalidInput, match="for another circuit"):
        adapt_with(path)


FILE = DEVELOPMENT_PROVING_KEY.read_bytes()
BROKEN_FILES = {
    "empty": (b"", "no proving key"),
    "another file": (b"PK" * 1000, "no proving key"),
    "cut in the header": (FILE[:500], "no proving key"),
    "cut": (FILE[:-1], "longer than a key|damaged"),
    "longer": (FILE + b"x", "longer than a key"),
    "huge": (FILE + bytes(8 << 20), "no proving key"),
    "bit in the key": (FILE[:50_000] + bytes([FILE[50_000] ^ 1]) + FILE[50_001:], "damaged"),
    "bit in the fingerprint": (FILE[:740] + bytes([FILE[740] ^ 1]) + FILE[741:], "damaged"),
    "swollen": (FILE[:758] + zlib.compress(bytes(64 << 20)), "longer than a key"),
}


@pytest.mark.parametrize(("content", "text"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_a_broken_file_is_refused_before_the_library_sees_it(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "key.bin"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=text):
        read(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.bin cannot be read"):
        adapt_with(tmp_path / "absent.bin")
