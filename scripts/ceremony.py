# SPDX-License-Identifier: GPL-3.0-or-later
"""The set-up of the chameleon hash's proofs by several institutions. Run `scripts/ceremony`; docs/how-to/run-a-ceremony.md explains it.

Groth16 needs two phases, powers of tau for circuits of a size and then one for this circuit; a secret of either phase in one hand can
forge proofs. In each phase everybody in turn multiplies a secret of their own in and forgets it: as long as one of them did forget, nobody
has the product. A phase ends with public randomness that nobody knew before. The mathematics is snarkjs'; here are the order of the
steps, the files, and what a ceremony must have besides to count.

    DIR/powers-00.ptau, powers-01.ptau, …    phase 1 after so many contributions
    DIR/powers.ptau                          phase 1, ended and prepared
    DIR/circuit-00.zkey, circuit-01.zkey, …  phase 2 after so many contributions
    DIR/circuit.zkey                         phase 2, ended: with powers.ptau the whole transcript
    DIR/verifying-key.bin, proving-key.bin   what follows from it
"""

import argparse
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import groth16py

from ledger.crypto import chameleon
from ledger.crypto.bn254 import encode_g1, encode_g2
from ledger.crypto.chameleon_proof import VerifyingKey, key_points, proof_points, public_inputs
from ledger.errors import InvalidInput
from records.chameleon_keys import CIRCUIT, DEVELOPMENT_PROVING_KEY, pack, read
from records.chameleon_prover import Prover
from scripts.ceremony_transcript import Contribution, contributions
from scripts.snarkjs_tools import compile_circuit, opinions, snarkjs

POWER = "10"
"""2^10 is the next power above the circuit's 996 constraints and 4 public signals."""
BEACON_EXPONENT = "10"
"""A beacon is hashed 2^10 times, the fewest that snarkjs admits: it only has to come after the last contribution."""
LEAST_CONTRIBUTORS = 2
"""A set-up by one is none."""
DEVELOPMENT_BEACON = b"spchain development key: forged by all".hex()
"""The only secret of the development key, for everyone to read."""
_NAME = re.compile(r"[\w .,'&()-]{1,40}")
_BEACON = re.compile(r"(?:[0-9a-f]{2}){32,64}")


def start(directory: Path) -> None:
    """Make the directory of a new ceremony with the beginning of phase 1."""
    first = directory / "powers-00.ptau"
    if first.exists():
        raise InvalidInput(f"{directory} holds a ceremony already; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    snarkjs("powersoftau", "new", "bn128", POWER, first)


def contribute(directory: Path, name: str) -> Contribution:
    """Check what came before, add a contribution to the phase under way and return its entry in the transcript."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"--name {name!r}: give 1 to 40 letters, digits, spaces, dots, dashes")
    if (directory / "circuit.zkey").exists():
        raise InvalidInput(f"the ceremony in {directory} is finished; scripts/ceremony verify {directory} checks it")
    latest, number = _latest(directory)
    if number:
        _check_mathematics(directory, latest)
    following = latest.with_name(f"{latest.stem.partition('-')[0]}-{number + 1:02}{latest.suffix}")
    tool = "powersoftau" if latest.suffix == ".ptau" else "zkey"
    # By the standard input, for a command line can be seen by other users; snarkjs adds 64 bytes from the system.
    entropy = secrets.token_hex(64) + "\n"
    snarkjs(tool, "contribute", latest, following, f"--name={name}", stdin=entropy)
    return contributions(following)[-1]


def prepare(directory: Path, beacon: str, least: int = LEAST_CONTRIBUTORS) -> None:
    """End phase 1 with public randomness and begin phase 2."""
    target = directory / "powers.ptau"
    if target.exists():
        raise InvalidInput(
            f"phase 1 of the ceremony in {directory} has ended; scripts/ceremony contribute goes on with phase 2"
        )
    latest, number = _latest(directory)
    if number:
        _check_mathematics(directory, latest)
    _check_contributors(latest, least)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        ended, prepared, r1cs = (Path(scratch) / name for name in ("ended.ptau", "prepared.ptau", "chameleon.r1cs"))
        snarkjs("powersoftau", "beacon", latest, ended, _checked_beacon(beacon), BEACON_EXPONENT)
        snarkjs("powersoftau", "prepare", "phase2", ended, prepared)
        compile_circuit(r1cs)
        snarkjs("groth16", "setup", r1cs, prepared, directory / "circuit-00.zkey")
        prepared.rename(target)


def finish(directory: Path, beacon: str, least: int = LEAST_CONTRIBUTORS) -> VerifyingKey:
    """End phase 2 with public randomness, check everything and write both keys; returns the verifying key."""
    if not (directory / "powers.ptau").exists():
        raise InvalidInput(f"phase 1 of the ceremony in {directory} has not ended; run scripts/ceremony prepare first")
    target = directory / "circuit.zkey"
    if target.exists():
        raise InvalidInput(f"the ceremony in {directory} is finished; scripts/ceremony verify {directory} checks it")
    latest, _ = _latest(directory)
    _check_contributors(latest, least)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        ended = Path(scratch) / "circuit.zkey"
        snarkjs("zkey", "beacon", latest, ended, _checked_beacon(beacon), BEACON_EXPONENT)
        _check_mathematics(directory, ended)
        verifying_key, body = imported(ended)
        proving_key = Path(scratch) / "proving-key.bin"
        proving_key.write_bytes(pack(verifying_key, body))
        _check_keys(proving_key, verifying_key)
        (directory / "verifying-key.bin").write_bytes(verifying_key)
        proving_key.rename(directory / "proving-key.bin")
        ended.rename(target)
    return VerifyingKey.decode(verifying_key)


def verify(
    directory: Path, receipts: Sequence[str] = (), least: int = LEAST_CONTRIBUTORS
) -> list[tuple[int, Contribution]]:
    """Check a finished ceremony from its two files, and the keys that lie beside them; returns the contributions with their phase.

    Raises:
        InvalidInput: the mathematics is wrong, a phase has too few contributors or no end, a receipt is missing, or a key does not
            follow from the transcript.
    """
    powers, circuit = directory / "powers.ptau", directory / "circuit.zkey"
    if not powers.exists() or not circuit.exists():
        raise InvalidInput(f"{directory} holds no finished ceremony: powers.ptau and circuit.zkey must be there")
    found = []
    for phase, path in enumerate((powers, circuit), 1):
        _check_contributors(path, least)
        listed = contributions(path)
        if not listed or not listed[-1].is_beacon or any(step.is_beacon for step in listed[:-1]):
            raise InvalidInput(
                f"phase {phase} does not end with its only public randomness; the ceremony is not finished"
            )
        found += [(phase, step) for step in listed]
    for receipt in receipts:
        if receipt not in {step.receipt for _, step in found}:
            raise InvalidInput(
                f"no contribution has the receipt {receipt}: it was left out or altered; do not use these keys"
            )
    snarkjs("powersoftau", "verify", powers)
    _check_mathematics(directory, circuit)
    verifying_key, body = imported(circuit)
    kept = read(directory / "proving-key.bin")
    if (
        (directory / "verifying-key.bin").read_bytes() != verifying_key
        or kept.verifying_key != verifying_key
        or kept.body != body
    ):
        raise InvalidInput(f"the keys in {directory} do not follow from its transcript; do not use them")
    _check_keys(directory / "proving-key.bin", verifying_key)
    return found


def development(target: Path) -> VerifyingKey:
    """Make the development key: a ceremony without contributors, whose randomness is public."""
    with tempfile.TemporaryDirectory(prefix="spchain-ceremony-") as scratch:
        directory = Path(scratch)
        start(directory)
        prepare(directory, DEVELOPMENT_BEACON, least=0)
        key = finish(directory, DEVELOPMENT_BEACON, least=0)
        target.write_bytes((directory / "proving-key.bin").read_bytes())
    return key


def imported(zkey: Path) -> tuple[bytes, bytes]:
    """Return the verifying key and the prover's form of the proving key that follow from a .zkey file: always the same bytes."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="spchain-ceremony-") as scratch:
        proving_key, verifying_key = groth16py.import_zkey(str(zkey), str(CIRCUIT), [groth16py.circomlib_path(2)])
        saved = Path(scratch) / "proving-key"
        proving_key.save(str(saved))
        return _encoded(verifying_key.to_json()), saved.read_bytes()


def _encoded(document: str) -> bytes:
    """Return our encoding of a key in snarkjs' form."""
    key = json.loads(document)

    def flat(point: list[str]) -> bytes:
        return encode_g1((int(point[0]), int(point[1])))

    def twisted(point: list[list[str]]) -> bytes:
        (x0, x1), (y0, y1) = point[:2]
        return encode_g2(((int(x0), int(x1)), (int(y0), int(y1))))

    parts = [flat(key["vk_alpha_1"]), *(twisted(key[f"vk_{name}_2"]) for name in ("beta", "gamma", "delta"))]
    return b"".join([*parts, *map(flat, key["IC"])])


def _latest(directory: Path) -> tuple[Path, int]:
    """Return the newest file of the phase under way and its number of contributions."""
    kind = "circuit-*.zkey" if (directory / "powers.ptau").exists() else "powers-*.ptau"
    found = sorted(directory.glob(kind))
    if not found:
        raise InvalidInput(f"{directory} holds no ceremony; scripts/ceremony start {directory} begins one")
    listed = contributions(found[-1])
    return found[-1], len(listed)


def _check_mathematics(directory: Path, path: Path) -> None:
    """Let snarkjs check a file against all contributions in it, and one of phase 2 against phase 1 and the circuit's source as well."""
    if path.suffix == ".ptau":
        snarkjs("powersoftau", "verify", path)
        return
    with tempfile.TemporaryDirectory(prefix="spchain-ceremony-") as scratch:
        r1cs = Path(scratch) / "chameleon.r1cs"
        compile_circuit(r1cs)
        snarkjs("zkey", "verify", r1cs, directory / "powers.ptau", path)


def _check_contributors(path: Path, least: int) -> None:
    names = {step.name for step in contributions(path) if not step.is_beacon}
    if len(names) < least:
        raise InvalidInput(
            f"{path} has contributions by {len(names)}, but at least {least} must take part in each phase"
        )


def _check_keys(proving_key: Path, verifying_key: bytes) -> None:
    """Prove both branches with the keys; the prover and snarkjs must accept the proofs, and snarkjs refuse them for another message."""
    prover = Prover(proving_key, verifying_key)
    trapdoor, public_key = chameleon.keygen(secrets.token_bytes(32))
    opening, message, other = (
        chameleon.draw_opening(secrets.token_bytes(32)),
        secrets.token_bytes(32),
        secrets.token_bytes(32),
    )
    hashed = chameleon.hash_message(message, opening)
    adapted = proof_points(prover.adapt(trapdoor, public_key, hashed, other))
    opened = proof_points(prover.prove_opening(public_key, hashed, message, opening))
    for_message, for_other = (public_inputs(public_key, hashed, digest) for digest in (message, other))
    assert adapted is not None
    assert opened is not None
    assert for_message is not None
    assert for_other is not None
    points = key_points(verifying_key)
    verdicts = opinions([(points, for_other, adapted), (points, for_message, opened), (points, for_message, adapted)])
    if verdicts != [True, True, False]:
        raise InvalidInput(f"snarkjs says {verdicts} of proofs that are right, right and wrong; do not use these keys")


def _checked_beacon(beacon: str) -> str:
    if not _BEACON.fullmatch(beacon):
        raise InvalidInput(
            f"--beacon {beacon!r}: give 32 to 64 bytes in lower-case hex, fixed in advance and unknown until now"
        )
    return beacon


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what the native compiler prints to the standard error: our own output may be piped."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def main() -> None:
    """Read the command line and run one step."""
    parser = argparse.ArgumentParser(
        prog="scripts/ceremony", description="Set up the proofs of the chameleon hash together."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (
        ("start", "begin a ceremony in a new directory"),
        ("contribute", "add a secret of your own to the phase under way"),
        ("prepare", "end phase 1 with public randomness"),
        ("finish", "end phase 2 with public randomness and make the keys"),
        ("verify", "check a finished ceremony"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("directory", type=Path, metavar="DIR")
        if name == "contribute":
            verb.add_argument("--name", required=True, help="who you are, as all will read it")
        if name in {"prepare", "finish"}:
            verb.add_argument("--beacon", required=True, metavar="HEX", help="public randomness, agreed on in advance")
        if name == "verify":
            verb.add_argument(
                "--receipt", action="append", default=[], metavar="HEX", help="of your contribution; repeatable"
            )
    verbs.add_parser("development", help="make the development key anew")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except InvalidInput as error:
        raise SystemExit(f"error: {error}") from error


def _run(arguments: argparse.Namespace) -> None:
    if arguments.verb == "start":
        start(arguments.directory)
        print(f"phase 1 begins: {arguments.directory}; hand it to the first contributor")
    elif arguments.verb == "contribute":
        step = contribute(arguments.directory, arguments.name)
        print(
            f"contributed as {step.name}; hand {arguments.directory} on, and keep and publish your receipt:\n{step.receipt}"
        )
    elif arguments.verb == "prepare":
        prepare(arguments.directory, arguments.beacon)
        print(f"phase 2 begins: {arguments.directory}; hand it to its first contributor")
    elif arguments.verb == "finish":
        finish(arguments.directory, arguments.beacon)
        fingerprint = read(arguments.directory / "proving-key.bin").fingerprint.hex()
        print(
            f"made verifying-key.bin and proving-key.bin (fingerprint {fingerprint}); let everybody verify {arguments.directory}"
        )
    elif arguments.verb == "verify":
        for phase, step in verify(arguments.directory, arguments.receipt):
            who = f"public randomness {step.beacon.hex()}" if step.is_beacon else step.name
            print(f"phase {phase}  {step.receipt}  {who}")
        print("the transcript is right, and the keys follow from it")
    else:
        key = development(DEVELOPMENT_PROVING_KEY)
        print(f"wrote {DEVELOPMENT_PROVING_KEY.name}; ledger/crypto/development_key.py must say\n{key.encoded.hex()}")


if __name__ == "__main__":
    main()
