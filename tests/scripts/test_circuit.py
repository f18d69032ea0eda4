# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiled circuit itself: as small as said, nothing in it loose, and what simulation extractability asks of it."""

import json
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import groth16py
import pytest

from ledger.crypto.chameleon import FIELD_ORDER, OPENING_MINIMUM
from ledger.crypto.chameleon_proof import PUBLIC_INPUTS, public_inputs
from ledger.errors import InvalidInput
from records.chameleon_keys import CIRCUIT
from scripts.snarkjs_tools import CIRCOM, compile_circuit, run, snarkjs
from tests.ledger.crypto.proof_kit import statement

pytestmark = pytest.mark.xdist_group("circuit")

Row = dict[int, int]


class Constraints(NamedTuple):
    """Rows (A, B, C) of an .r1cs file: A·w times B·w is C·w."""

    wires: int
    public: int
    rows: list[tuple[Row, Row, Row]]


def read_r1cs(data: bytes) -> Constraints:
    sections, position = {}, 12
    while position < len(data):
        kind, length = struct.unpack_from("<IQ", data, position)
        sections[kind] = data[position + 12 : position + 12 + length]
        position += 12 + length
    wires, outputs, inputs, _, _, count = struct.unpack_from("<IIIIQI", sections[1], 36)
    body, position = sections[2], 0
    rows = []
    for _ in range(count):
        parts = []
        for _ in range(3):
            (terms,) = struct.unpack_from("<I", body, position)
            position += 4
            row = {}
            for _ in range(terms):
                (wire,) = struct.unpack_from("<I", body, position)
                row[wire] = int.from_bytes(body[position + 4 : position + 36], "little")
                position += 36
            parts.append(row)
        rows.append((parts[0], parts[1], parts[2]))
    return Constraints(wires, outputs + inputs, rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the constraints and the calculator of witnesses."""
    directory = tmp_path_factory.mktemp("circuit")
    shutil.copytree(groth16py.circomlib_path(2), directory / "circomlib")
    shutil.copy(CIRCUIT, directory)
    run(CIRCOM, "--O2", "--r1cs", "--wasm", "-l", "circomlib", CIRCUIT.name, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def constraints(built: Path) -> Constraints:
    return read_r1cs((built / "chameleon.r1cs").read_bytes())


def calculated(built: Path, name: str, by_trapdoor: int, opening: int, trapdoor: int, message: bytes) -> list[int]:
    known = statement()
    publics = public_inputs(known.public_key, known.chameleon_hash, message)
    assert publics is not None
    names = ("public_key", "chameleon_hash", "message", "by_trapdoor", "opening", "trapdoor")
    values = dict(zip(names, map(str, (*publics, by_trapdoor, opening, trapdoor)), strict=True))
    given, witness, exported = (built / f"{name}.{kind}" for kind in ("input", "wtns", "json"))
    given.write_text(json.dumps(values))
    snarkjs("wtns", "calculate", built / "chameleon_js" / "chameleon.wasm", given, witness)
    snarkjs("wtns", "export", "json", witness, exported)
    return [int(number) for number in json.loads(exported.read_text())]


def value(row: Row, witness: list[int]) -> int:
    return sum(factor * witness[wire] for wire, factor in row.items()) % FIELD_ORDER


def broken(constraints: Constraints, witness: list[int]) -> list[int]:
    return [
        number
        for number, (a, b, c) in enumerate(constraints.rows)
        if (value(a, witness) * value(b, witness) - value(c, witness)) % FIELD_ORDER
    ]


def test_the_ceremony_compiles_the_same_constraints(built: Path, tmp_path: Path) -> None:
    compile_circuit(tmp_path / "again.r1cs")
    assert (tmp_path / "again.r1cs").read_bytes() == (built / "chameleon.r1cs").read_bytes()


def test_constraints_and_public_signals_fit_into_two_to_the_tenth(constraints: Constraints) -> None:
    assert constraints.public == PUBLIC_INPUTS
    assert len(constraints.rows) + constraints.public + 1 <= 1024


@pytest.mark.parametrize("branch", ["opening", "trapdoor"])
def test_no_wire_of_a_witness_can_change_alone(built: Path, constraints: Constraints, branch: str) -> None:
    """A wire that could is one that the source forgot to constrain, as `<--` does."""
    known = statement()
    if branch == "opening":
        witness = calculated(built, branch, 0, int.from_bytes(known.opening, "big"), 0, known.original)
    else:
        witness = calculated(built, branch, 1, OPENING_MINIMUM, int.from_bytes(known.trapdoor, "big"), known.adapted)
    assert len(witness) == constraints.wires
    assert broken(constraints, witness) == []
    rows_of: dict[int, list[int]] = {}
    for number, parts in enumerate(constraints.rows):
        for wire in {wire for part in parts for wire in part}:
            rows_of.setdefault(wire, []).append(number)
    loose = []
    for wire in range(1, constraints.wires):
        for change in (1, FIELD_ORDER - witness[wire], FIELD_ORDER - 1):
            if change % FIELD_ORDER == 0:
                continue
            altered = witness.copy()
            altered[wire] = (witness[wire] + change) % FIELD_ORDER
            rows = [constraints.rows[number] for number in rows_of.get(wire, [])]
            if not broken(constraints._replace(rows=rows), altered):
                loose.append(wire)
    # The public number that the other branch is about: a proof by ξ holds under any pk, one by sk for any h and with any m.
    # Each of them still is in the proof's equation, as the next test says.
    free = {"opening": {1}, "trapdoor": {2}}[branch]
    assert set(loose) == free


def test_witnesses_outside_the_statement_are_refused_by_the_calculator_too(built: Path) -> None:
    known = statement()
    opening, trapdoor = int.from_bytes(known.opening, "big"), int.from_bytes(known.trapdoor, "big")
    for number, (branch, xi, sk) in enumerate(
        [(0, OPENING_MINIMUM, 0), (1, opening, 1), (2, opening, trapdoor), (1, 1, trapdoor)]
    ):
        with pytest.raises(InvalidInput, match="calculate"):
            calculated(built, f"false-{number}", branch, xi, sk, known.original)
