# SPDX-License-Identifier: GPL-3.0-or-later
"""snarkjs and the circom compiler as functions: what the ceremony runs, and the tests that ask snarkjs for its opinion of a proof."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import groth16py

from ledger.crypto.bn254 import G1, KeyPoints, ProofPoints
from ledger.crypto.groth16_native import snarkjs_key
from ledger.errors import InvalidInput
from records.chameleon_keys import CIRCUIT

FOLDER = Path(__file__).parent / "snarkjs"
MODULES = FOLDER / "node_modules"
SNARKJS = MODULES / "snarkjs" / "build" / "cli.cjs"
CIRCOM = MODULES / "circom2" / "cli.js"
DEADLINE_S = 1200
"""The longest step, the preparation of the second phase, takes 20 s on a free core."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> str:
    """Run a program on Node and return what it printed. Raises `InvalidInput` with its last lines when it fails."""
    node = shutil.which("node")
    if node is None or not SNARKJS.exists():
        raise InvalidInput(
            "Node.js or snarkjs is not installed; install Node.js 18 or newer with npm, then run "
            "npm ci --prefix scripts/snarkjs --ignore-scripts"
        )
    done = subprocess.run(
        [node, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=cwd,
    )
    if done.returncode:
        last = _COLOURS.sub("", done.stdout + done.stderr).strip().splitlines()[-6:]
        raise InvalidInput(f"{' '.join(map(str, arguments[1:4]))} failed:\n  " + "\n  ".join(last))
    return done.stdout


def snarkjs(*arguments: str | Path, stdin: str = "") -> str:
    """Run snarkjs. Raises `InvalidInput` when it fails or finds a file wanting."""
    return run(SNARKJS, *arguments, stdin=stdin)


def compile_circuit(r1cs: Path) -> None:
    """Write the constraints of the circuit, with the same optimisation as the prover's library: the numbers of the wires must agree."""
    with tempfile.TemporaryDirectory(prefix="spchain-circuit-") as name:
        # The compiler sees nothing but the directory that it runs in.
        shutil.copytree(groth16py.circomlib_path(2), Path(name) / "circomlib")
        shutil.copy(CIRCUIT, name)
        run(CIRCOM, "--O2", "--r1cs", "-l", "circomlib", CIRCUIT.name, cwd=Path(name))
        shutil.move(Path(name) / CIRCUIT.with_suffix(".r1cs").name, r1cs)


def opinions(cases: Sequence[tuple[KeyPoints, Sequence[int], ProofPoints]]) -> list[bool]:
    """Return what snarkjs says of each proof."""

    def flat(point: G1) -> list[str]:
        return [*map(str, point), "1"]

    documents = [
        {
            "key": snarkjs_key(key),
            "publics": [str(number) for number in publics],
            "proof": {
                "protocol": "groth16",
                "curve": "bn128",
                "pi_a": flat(proof.a),
                "pi_b": [*([str(low), str(high)] for low, high in proof.b), ["1", "0"]],
                "pi_c": flat(proof.c),
            },
        }
        for key, publics, proof in cases
    ]
    verdicts: list[bool] = json.loads(run(FOLDER / "verify.mjs", stdin=json.dumps(documents)))
    return verdicts
