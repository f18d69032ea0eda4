# SPDX-License-Identifier: GPL-3.0-or-later
"""A ceremony of three hospitals from the first powers to proofs that verify, and transcripts that somebody tampered with."""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ledger.crypto import groth16_pure
from ledger.crypto.chameleon_proof import PUBLIC_INPUTS, VerifyingKey, proof_points, public_inputs, verify_proof
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY, pack, read
from records.chameleon_prover import Prover
from scripts import ceremony
from scripts.ceremony_transcript import Contribution, contributions
from tests.house.tree import ROOT
from tests.ledger.crypto.proof_kit import KEY, adapted_proof, statement

# One worker: the files are shared, and snarkjs takes a core by itself.
pytestmark = [pytest.mark.system, pytest.mark.xdist_group("ceremony")]

HOSPITALS = ("Charité Nord", "Hôpital du Lac", "St. Brigid's Hospital")
BEACON = "5e" * 32


class Finished(NamedTuple):
    """A finished ceremony and the receipts of the three, two each."""

    directory: Path
    receipts: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("ceremony") / "ward"
    receipts = []
    ceremony.start(directory)
    receipts += [ceremony.contribute(directory, hospital).receipt for hospital in HOSPITALS]
    with pytest.raises(InvalidInput, match="has not ended"):
        ceremony.finish(directory, BEACON)
    ceremony.prepare(directory, BEACON)
    with pytest.raises(InvalidInput, match="contributions by 0"):
        ceremony.finish(directory, BEACON)
    receipts += [ceremony.contribute(directory, hospital).receipt for hospital in HOSPITALS]
    ceremony.finish(directory, BEACON)
    return Finished(directory, receipts)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of what a participant gets, to tamper with."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for name in ("powers.ptau", "circuit.zkey", "verifying-key.bin", "proving-key.bin"):
        shutil.copy(finished.directory / name, directory)
    return directory


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "ceremony"
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False)


def test_everybody_finds_everybody_in_the_transcript(finished: Finished) -> None:
    receipts = [word for receipt in finished.receipts for word in ("--receipt", receipt)]
    shown = command("verify", str(finished.directory), *receipts)
    assert shown.returncode == 0, shown.stderr
    *lines, last = shown.stdout.splitlines()
    assert last == "the transcript is right, and the keys follow from it"
    assert [line.split("  ")[0::2] for line in lines] == [
        [f"phase {phase}", who] for phase in (1, 2) for who in (*HOSPITALS, f"public randomness {BEACON}")
    ]
    assert [line.split("  ")[1] for line in lines if "public" not in line] == finished.receipts


def test_the_command_tells_an_error_in_words(tmp_path: Path) -> None:
    refused = command("contribute", str(tmp_path), "--name", "Nobody")
    assert refused.returncode == 1
    assert "holds no ceremony" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_keys_prove_and_verify(finished: Finished) -> None:
    encoded = (finished.directory / "verifying-key.bin").read_bytes()
    key, known = VerifyingKey.decode(encoded), statement()
    prover = Prover(finished.directory / "proving-key.bin", encoded)
    names = (known.public_key, known.chameleon_hash)
    proof = prover.adapt(known.trapdoor, *names, known.adapted)
    assert verify_proof(key, *names, known.adapted, proof)
    assert not verify_proof(key, *names, known.original, proof)
    assert verify_proof(key, *names, known.original, prover.prove_opening(*names, known.original, known.opening))
    equation, points, publics = (
        groth16_pure.equation(key.points),
        proof_points(proof),
        public_inputs(*names, known.adapted),
    )
    assert equation is not None
    assert points is not None
    assert publics is not None
    assert equation(publics, points)


def test_proofs_for_one_network_mean_nothing_on_another(finished: Finished) -> None:
    """In particular those of the development key, which everybody can forge."""
    key, known = VerifyingKey.decode((finished.directory / "verifying-key.bin").read_bytes()), statement()
    names = (known.public_key, known.chameleon_hash, known.adapted)
    assert verify_proof(KEY, *names, adapted_proof())
    assert not verify_proof(key, *names, adapted_proof())
    proof = Prover(finished.directory / "proving-key.bin", key.encoded).adapt(known.trapdoor, *names)
    assert not verify_proof(KEY, *names, proof)


def test_everybody_makes_the_same_keys_from_the_transcript(finished: Finished) -> None:
    kept = read(finished.directory / "proving-key.bin")
    assert ceremony.imported(finished.directory / "circuit.zkey") == (kept.verifying_key, kept.body)


def test_a_finished_ceremony_takes_no_more(finished: Finished) -> None:
    with pytest.raises(InvalidInput, match="finished"):
        ceremony.contribute(finished.directory, "Latecomer")
    with pytest.raises(InvalidInput, match="finished"):
        ceremony.finish(finished.directory, BEACON)
    with pytest.raises(InvalidInput, match="has ended"):
        ceremony.prepare(finished.directory, BEACON)
    with pytest.raises(InvalidInput, match="already"):
        ceremony.start(finished.directory)


# ---------------------------------------------------------------- tampering


def test_a_ceremony_without_ones_contribution_is_refused(finished: Finished, copied: Path) -> None:
    """The transcript of others is sound in itself: only the receipt shows who was left out."""
    with pytest.raises(InvalidInput, match="left out or altered"):
        ceremony.verify(copied, [*finished.receipts, "00" * 32])


def test_a_renamed_contributor_is_noticed(finished: Finished, copied: Path) -> None:
    """Names are no part of the mathematics; they are part of the receipt."""
    powers = copied / "powers.ptau"
    powers.write_bytes(powers.read_bytes().replace("Hôpital du Lac".encode(), "Hôpital du Lag".encode()))
    assert "Hôpital du Lag" in {step.name for step in contributions(powers)}
    with pytest.raises(InvalidInput, match="left out or altered"):
        ceremony.verify(copied, finished.receipts)


@pytest.mark.parametrize(("name", "before"), [("powers.ptau", 400), ("circuit.zkey", 150)])
def test_an_altered_contribution_is_refused(copied: Path, name: str, before: int) -> None:
    """Without any receipt: a bit in the third contribution's proof of knowledge, which stands so far before its name."""
    path = copied / name
    data = bytearray(path.read_bytes())
    data[bytes(data).index(b"St. Brigid's Hospital") - before] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidInput, match="failed"):
        ceremony.verify(copied)


def test_points_of_the_key_that_nobody_contributed_are_refused(copied: Path) -> None:
    """A point near the end of the key replaced by its neighbour: each is a point of the curve."""
    path = copied / "circuit.zkey"
    data = bytearray(path.read_bytes())
    (start,) = [begin for kind, begin, _ in _sections(bytes(data)) if kind == 8]
    data[start : start + 64], data[start + 64 : start + 128] = data[start + 64 : start + 128], data[start : start + 64]
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidInput, match="failed"):
        ceremony.verify(copied)


def test_a_phase_two_on_other_powers_is_refused(finished: Finished, copied: Path) -> None:
    other = finished.directory.parent / "other"
    if not other.exists():
        ceremony.start(other)
    shutil.copy(other / "powers-00.ptau", copied / "powers.ptau")
    with pytest.raises(InvalidInput, match="contributions by 0"):
        ceremony.verify(copied)


def test_a_proving_key_that_does_not_follow_is_refused(finished: Finished, copied: Path) -> None:
    """A trap for trapdoors: it belongs to the verifying key by name, but is not what the transcript gives."""
    kept = read(finished.directory / "proving-key.bin")
    (copied / "proving-key.bin").write_bytes(pack(kept.verifying_key, kept.body[:-1] + bytes([kept.body[-1] ^ 1])))
    with pytest.raises(InvalidInput, match="do not follow"):
        ceremony.verify(copied)


@pytest.mark.parametrize("name", ["", "x" * 41, "Hospital\nphase 2: Hospital B", "a\x1b[2Kb", "-e=1\0"])
def test_names_that_could_forge_a_listing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="--name"):
        ceremony.contribute(tmp_path, name)


def test_a_name_that_somebody_else_wrote_is_shown_escaped(copied: Path) -> None:
    powers = copied / "powers.ptau"
    powers.write_bytes(powers.read_bytes().replace("Hôpital du Lac".encode(), b"AB\nphase 2: CNX"))
    assert [step.name for step in contributions(powers)][1] == "'AB\\nphase 2: CNX'"


@pytest.mark.parametrize("damage", [b"", b"ptau", b"zkey" + bytes(20), b"ptau" + b"\xff" * 40, b"PK\3\4" + bytes(40)])
def test_files_that_are_none_are_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "powers-01.ptau"
    path.write_bytes(damage)
    with pytest.raises(InvalidInput, match=r"damaged|neither"):
        contributions(path)


def test_every_cut_of_a_transcript_is_refused(finished: Finished, tmp_path: Path) -> None:
    data, path = (finished.directory / "circuit.zkey").read_bytes(), tmp_path / "cut.zkey"
    for size in (4, 12, 100, 1_000, len(data) // 2, len(data) - 500, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InvalidInput):
            contributions(path)


@pytest.mark.parametrize("beacon", ["", "abc", "5E" * 32, "5e" * 31, "5e" * 65, "zz" * 32])
def test_a_beacon_that_is_none_is_refused(tmp_path: Path, beacon: str) -> None:
    with pytest.raises(InvalidInput, match="--beacon"):
        ceremony._checked_beacon(beacon)


def test_one_contributor_is_too_few(tmp_path: Path) -> None:
    ceremony.start(tmp_path)
    step = ceremony.contribute(tmp_path, "Alone")
    assert isinstance(step, Contribution)
    with pytest.raises(InvalidInput, match="by 1, but at least 2"):
        ceremony.prepare(tmp_path, BEACON)


# ---------------------------------------------------------------- what simulation extractability rests on


def _sections(data: bytes) -> Iterator[tuple[int, int, int]]:
    position = 12
    while position < len(data):
        kind, length = struct.unpack_from("<IQ", data, position)
        yield kind, position + 12, position + 12 + length
        position += 12 + length


def test_each_public_signal_has_a_row_of_its_own(finished: Finished) -> None:
    """The condition under which Groth16 is weakly simulation extractable (Baghery, Kohlweiss, Siim, Volkhov, FC 2021): the polynomials of
    the public inputs are independent of each other, and their span meets that of the witness in zero only. snarkjs sees to it by one
    more row of A for each public signal, in which nothing else stands.
    """
    data = (finished.directory / "circuit.zkey").read_bytes()
    (begin,) = [start for kind, start, _ in _sections(data) if kind == 4]
    (count,) = struct.unpack_from("<I", data, begin)
    rows: dict[int, set[tuple[int, int]]] = {}
    for number in range(count):
        matrix, row, signal = struct.unpack_from("<III", data, begin + 4 + number * 44)
        rows.setdefault(row, set()).add((matrix, signal))
    last = sorted(rows)[-(PUBLIC_INPUTS + 1) :]
    assert [rows[row] for row in last] == [{(0, signal)} for signal in range(PUBLIC_INPUTS + 1)]


# ---------------------------------------------------------------- the development key


def test_the_development_key_is_what_public_randomness_gives(tmp_path: Path) -> None:
    made = ceremony.development(tmp_path / "key.bin")
    assert made.encoded == DEVELOPMENT_VERIFYING_KEY
    again, shipped = read(tmp_path / "key.bin"), read(DEVELOPMENT_PROVING_KEY)
    assert again == shipped
