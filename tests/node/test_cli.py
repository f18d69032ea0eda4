# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line against a really served API: results, one JSON value, exit codes, errors with value and remedy."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text
from typer.testing import CliRunner, Result

from ledger import testing
from ledger.bodies import Transfer
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput, NotFound, Rejection, RejectionReason, StoreError
from ledger.rules import DEVNET_PARAMETERS
from ledger.transactions import sign_transaction
from node.actions import CommitTimeout
from node.cli.main import app
from node.cli.shell import exit_code, printable, table
from node.genesis_file import make_genesis, read_genesis
from node.http_client import ApiError, NodeTimeout, NodeUnreachable
from node.identity import Identity
from node.keystore import Cost, write_key
from tests.ledger.crypto.proof_kit import OTHER_KEY
from tests.node.api_kit import LoneNode, config_for, serving

PASSPHRASE = b"open sesame"
HOSPITAL = Identity(bytes(31) + b"\x01", "St. Anna")
CLINIC = Identity(bytes(31) + b"\x02", "Clinic")
STRANGER = Identity(bytes(31) + b"\x03", "Stranger")
BUNDLE = {
    "resourceType": "Bundle",
    "type": "collection",
    "entry": [{"resource": {"resourceType": "Patient", "id": "p1", "birthDate": "1970-01-01"}}],
}
BUNDLE_BYTES = json.dumps(BUNDLE, indent=1).encode()

Spchain = Callable[..., Result]


@pytest.fixture
def node() -> LoneNode:
    members = [HOSPITAL.public.public_key, CLINIC.public.public_key]
    return LoneNode(make_genesis("test", members, 1_767_225_600_000, parameters=DEVNET_PARAMETERS))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with key files, as the current one; no devnet anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", PASSPHRASE.decode())
    monkeypatch.setenv("SPCHAIN_DEVNET", str(tmp_path / "no-devnet"))
    monkeypatch.delenv("SPCHAIN_NODE", raising=False)
    for name, identity in (("hospital", HOSPITAL), ("clinic", CLINIC), ("stranger", STRANGER)):
        write_key(tmp_path / f"{name}.json", identity, PASSPHRASE, Cost.LIGHT)
    return tmp_path


@pytest.fixture
def spchain(node: LoneNode, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spchain]:
    with serving(node, config_for(home / "data")) as url:
        monkeypatch.setenv("SPCHAIN_NODE", url)
        yield offline


def offline(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def answer(result: Result) -> Any:  # noqa: ANN401 -- JSON of any shape
    """Return the one JSON value on standard output."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for text in texts:
        assert text in result.stderr


# ------------------------------------------------------------------ the whole path


def test_an_institution_a_patient_and_a_record_go_all_the_way(spchain: Spchain, home: Path) -> None:
    registered = answer(
        spchain("institution", "register", "--key", "hospital.json", "--name", "St. Anna", "--country", "AT", "--json")
    )
    assert registered["address"] == HOSPITAL.address.hex()
    assert answer(spchain("institution", "list", "--json"))[0]["name"] == "St. Anna"

    patient = answer(spchain("patient", "new", "maria.json", "--key", "hospital.json", "--light", "--json"))
    assert answer(spchain("patient", "show", "maria.json", "--json"))["address"] == patient["address"]

    (home / "visit.json").write_bytes(BUNDLE_BYTES)
    (home / "later.json.gz").write_bytes(gzip.compress(BUNDLE_BYTES + b"\n"))
    put = ("record", "put", "visit.json", "later.json.gz", "--patient", "maria.json", "--key", "hospital.json")
    written = answer(spchain(*put, "--json"))
    assert [item["sequence"] for item in written] == [0, 1]
    listed = answer(spchain("record", "list", "--patient", patient["address"], "--json"))
    assert [item["record_id"] for item in listed] == [item["record_id"] for item in written]

    read = answer(spchain("record", "get", "0", "--patient", "maria.json", "-o", "back.json", "--json"))
    assert read["bundle_bytes"] == len(BUNDLE_BYTES)
    assert (home / "back.json").read_bytes() == BUNDLE_BYTES
    assert (home / "back.json").stat().st_mode & 0o777 == 0o600
    result = spchain("record", "get", "1", "--patient", "maria.json")
    assert result.stdout_bytes == BUNDLE_BYTES + b"\n"

    shown = answer(spchain("tx", "show", written[0]["transaction_id"], "--json"))
    assert shown["kind"] == "commit_record"
    block = answer(spchain("block", "show", str(written[0]["height"]), "--transactions", "--json"))
    assert written[0]["transaction_id"] in [item["id"] for item in block["transactions"]]


def test_a_patient_decides_who_writes(spchain: Spchain, home: Path) -> None:
    for name, title in (("hospital", "St. Anna"), ("clinic", "Clinic")):
        spchain("institution", "register", "--key", f"{name}.json", "--name", title, "--country", "AT")
    spchain("patient", "new", "maria.json", "--key", "hospital.json", "--light")
    (home / "visit.json").write_bytes(BUNDLE_BYTES)
    put = ("record", "put", "visit.json", "--patient", "maria.json", "--key", "clinic.json")
    refused(spchain(*put), 3, "not_authorised", CLINIC.address.hex())
    assert answer(spchain("patient", "authorise", "clinic.json", "--key", "maria.json", "--json"))["allowed"]
    assert spchain(*put).exit_code == 0
    withdrawn = answer(spchain("patient", "authorise", "clinic.json", "--key", "maria.json", "--withdraw", "--json"))
    assert not withdrawn["allowed"]
    refused(spchain(*put), 3, "not_authorised")


def test_registering_a_patient_again_uses_the_same_key(spchain: Spchain, home: Path) -> None:
    refused(spchain("patient", "new", "maria.json", "--key", "hospital.json", "--light"), 3, "institution_unknown")
    made = (home / "maria.json").read_bytes()
    spchain("institution", "register", "--key", "hospital.json", "--name", "St. Anna", "--country", "AT")
    assert spchain("patient", "new", "maria.json", "--key", "hospital.json").exit_code == 0
    assert (home / "maria.json").read_bytes() == made
    refused(spchain("patient", "new", "maria.json", "--key", "hospital.json"), 3, "patient_exists")


def test_credits_move(spchain: Spchain) -> None:
    moved = answer(spchain("transfer", STRANGER.address.hex(), "5", "--key", "hospital.json", "--json"))
    assert moved["amount_microcredit"] == 5
    refused(spchain("transfer", "hospital.json", "1", "--key", "stranger.json"), 3, "insufficient_balance")
    refused(spchain("transfer", "hospital.json", "1", "--key", "clinic.json", "--fee", "1"), 3, "fee_too_low")


def test_a_transaction_signed_elsewhere_is_submitted(spchain: Spchain, node: LoneNode, home: Path) -> None:
    def signed(nonce: int) -> bytes:
        body = Transfer(STRANGER.address, 1)
        return sign_transaction(
            node.chain_id, HOSPITAL.signing, nonce=nonce, fee_microcredit=10, expiry_height=50, body=body
        )

    (home / "signed.bin").write_bytes(signed(1))
    (home / "signed.hex").write_text(signed(2).hex() + "\n")
    done = answer(spchain("tx", "submit", signed(0).hex(), "signed.bin", "signed.hex", "--json"))
    assert len(done) == 3
    refused(spchain("tx", "submit", "00"), 3, "malformed")
    refused(spchain("tx", "submit", "nowhere.bin"), 3, "neither hexadecimal nor a file")


def test_status_and_block_are_readable_and_json(spchain: Spchain, node: LoneNode) -> None:
    assert answer(spchain("status", "--json"))["chain_id"] == node.chain_id.hex()
    assert "committee" in spchain("status").stdout
    assert answer(spchain("block", "show", "--json"))["height"] == 0
    assert "hash" in spchain("block", "show", "0").stdout
    assert "no institution" in spchain("institution", "list").stdout


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "JSON"),
        (BUNDLE_BYTES[:-20], "damaged"),
        (b'{"resourceType": "Patient"}', "Bundle"),
        (gzip.compress(BUNDLE_BYTES)[:-10], "ends within"),
        (gzip.compress(BUNDLE_BYTES)[:10] + b"\xff" * 40, "damaged gzip"),
        (gzip.compress(bytes(17 << 20)), "unpacks to more"),
        (gzip.compress(BUNDLE_BYTES) + b"x", "more than one"),
    ],
    ids=["empty", "truncated", "no-bundle", "truncated-gzip", "damaged-gzip", "gzip-bomb", "two-streams"],
)
def test_a_bad_bundle_is_refused_and_changes_nothing(
    spchain: Spchain, node: LoneNode, home: Path, content: bytes, text: str
) -> None:
    (home / "good.json").write_bytes(BUNDLE_BYTES)
    (home / "bad.json").write_bytes(content)
    put = ("record", "put", "good.json", "bad.json", "--patient", HOSPITAL.address.hex(), "--key", "hospital.json")
    refused(spchain(*put), 3, "bad.json", text)
    assert node.store.head().height == 0
    assert node.blobs.usage().blobs == 0


def test_a_huge_bundle_is_refused_before_it_is_read(home: Path) -> None:
    with (home / "huge.json").open("wb") as huge:
        huge.truncate(200 << 20)  # sparse: reading it would give 200 MB of zeros
    put = ("record", "put", "huge.json", "--patient", "hospital.json", "--key", "hospital.json")
    refused(offline(*put), 3, "209715200 bytes", "split it")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("record", "get", "0", "--patient", "stranger.json"), 5, "not_found"),
        (("record", "get", "0", "--patient", "none.json"), 3, "No such file"),
        (("record", "get", "0", "--patient", "stranger.json", "--json"), 3, "--output"),
        (("patient", "show", "stranger.json"), 5, "not registered"),
        (("patient", "show", "xyz"), 3, "neither an address"),
        (("block", "show", "99"), 5, "height 99"),
        (("block", "show", "../status"), 3, "neither a height"),
        (("tx", "show", "00"), 3, "64 hexadecimal"),
        (("tx", "show", "00" * 32), 5, "00" * 32),
        (("status", "--node", "http://127.0.0.1:1"), 4, "devnet status"),
        (("status", "--node", "nonsense"), 4, "nonsense"),
        (("nonsense",), 2, "nonsense"),
        (("status", "--nonsense"), 2, "--nonsense"),
        (("transfer", "hospital.json", "many", "--key", "hospital.json"), 2, "MICROCREDITS"),
        (("transfer", "hospital.json", "1", "--key", "hospital.json", "--fee", "9" * 20), 2, "--fee"),
        (("patient", "new", "new.json", "--key", "hospital.json", "--allowance", "9" * 20), 2, "--allowance"),
        (("genesis", "new", "--network", "x", "--member", "hospital.json", "--balance", "9" * 20), 2, "--balance"),
        (("devnet", "status"), 3, "no devnet"),
        (("key", "show", "visit.json"), 3, "visit.json"),
        (("init",), 3, "exactly one"),
        (("genesis", "new", "--network", "x"), 3, "no members"),
        (
            ("genesis", "new", "--network", "Not Allowed", "--member", "hospital.json", "--profile", "devnet"),
            3,
            "'Not Allowed'",
        ),
        (("genesis", "show", "hospital.json"), 3, "genesis hospital.json: Genesis"),
        (("patient", "show", "a" * 300), 3, "neither an address"),
        (("tx", "submit", "a" * 301), 3, "neither hexadecimal nor a file"),
        (("devnet", "status", "--dir", "a" * 300), 3, "too long; check the path"),
        (("devnet", "up", "--dir", "hospital.json"), 3, "empty directory"),
        (("devnet", "up", "--timeout", "-1"), 2, "--timeout"),
        (("key", "new", "hospital.json/other.json"), 3, "hospital.json is no directory"),
        (("key", "new", "long.json", "--name", "x" * 65), 3, "at most 64"),
        (("patient", "new", "long.json", "--key", "hospital.json", "--name", "bell\a"), 3, "cannot be shown"),
        (
            ("institution", "register", "--key", "hospital.json", "--name", "", "--country", "AT"),
            3,
            "1 to 128 characters",
        ),
        (
            ("institution", "register", "--key", "hospital.json", "--name", "St. Anna", "--country", "Austria"),
            3,
            "two capital letters",
        ),
        (("node", "run", "--data-dir", "empty"), 3, "spchain init"),
        (("node", "run", "--data-dir", "empty", "--set", "replicas"), 3, "KEY=VALUE"),
        (("node", "run", "--data-dir", "empty", "--set", "replicas=x"), 3, "replicas"),
        (("node", "run", "--data-dir", "empty", "--set", "nonsense=1"), 3, "command line: unknown key 'nonsense'"),
        (("node", "run", "--data-dir", "empty", "--api-listen", "0.0.0.0:80"), 3, "api_token_file"),
    ],
)
def test_errors_tell_value_and_remedy_with_a_stable_code(
    spchain: Spchain, arguments: tuple[str, ...], code: int, text: str
) -> None:
    refused(spchain(*arguments), code, text)


def test_errors_are_json_too_when_asked(spchain: Spchain) -> None:
    result = spchain("patient", "show", "stranger.json", "--json")
    document = json.loads(result.stderr)
    assert (document["exit_code"], document["reason"]) == (5, "not_found")
    assert "error" not in spchain("status").stderr  # the option of one call says nothing about the next


def test_a_commit_that_does_not_come_is_a_time_out(spchain: Spchain, node: LoneNode) -> None:
    node.commits = False
    transfer = ("transfer", STRANGER.address.hex(), "1", "--key", "hospital.json", "--timeout", "0.1")
    refused(spchain(*transfer), 6, "spchain tx show")


def test_a_wrong_passphrase_is_told_and_not_shown(spchain: Spchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", "swordfish")
    result = spchain("transfer", STRANGER.address.hex(), "1", "--key", "hospital.json")
    refused(result, 3, "wrong passphrase")
    assert "swordfish" not in result.output


def test_without_a_passphrase_and_a_terminal_it_says_where_to_put_one(
    spchain: Spchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPCHAIN_PASSPHRASE")
    refused(spchain("transfer", STRANGER.address.hex(), "1", "--key", "hospital.json"), 3, "--passphrase-file")


def test_the_version_is_that_of_the_installed_program() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"spchain {metadata.version('spchain')}\n")


def test_exit_codes_by_kind_of_error() -> None:
    expected = [
        (InvalidInput("x"), 3),
        (Rejection(RejectionReason.EXPIRED, "x"), 3),
        (Rejection(RejectionReason.STORAGE, "x"), 4),
        (Rejection(RejectionReason.MEMPOOL_FULL, "x"), 4),
        (StoreError("x"), 3),
        (NotFound("x"), 5),
        (ApiError(404, "not_found", "x", ""), 5),
        (ApiError(422, "expired", "x", ""), 3),
        (ApiError(401, "unauthorised", "x", ""), 3),
        (ApiError(503, "busy", "x", ""), 4),
        (ApiError(507, "storage", "x", ""), 4),
        (NodeUnreachable("u", "x"), 4),
        (NodeTimeout("u", 1), 6),
        (CommitTimeout(bytes(32), 1), 6),
    ]
    assert [(error, exit_code(error)) for error, _ in expected] == expected


def test_a_narrow_terminal_folds_headings_before_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    row = ("node-1", "15178", "http://127.0.0.1:45917", "312", "3", "9", "2", "0", "10861", "12", "catching up")
    columns = (
        "NODE",
        "PID",
        "API",
        "HEIGHT",
        "PEERS",
        "TRANSACTIONS",
        "RECORDS",
        "EPOCH",
        "MINER",
        "KEYBLOCKS",
        "STATE",
    )
    table(columns, [row], "none")
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == " ".join(row).split()


def test_a_terminal_too_narrow_for_the_cells_folds_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "24")
    table(("RECORD", "AUTHOR"), [("9d" * 32, "2e" * 20)], "none")
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(line.split()[0] for line in lines[2:]) == "9d" * 32


def test_names_from_the_network_cannot_repaint_the_terminal() -> None:
    assert printable("\x1b[2JSt. Anna\r\x9b\u202e") == "?[2JSt. Anna???"
    assert printable("Zürich – 東京") == "Zürich – 東京"


# ------------------------------------------------------------------ keys, genesis, init


def test_a_new_key_is_shown_without_its_secret(home: Path) -> None:
    made = answer(offline("key", "new", "new.json", "--name", "Ward", "--light", "--json"))
    assert answer(offline("key", "show", "new.json", "--json")) == made
    assert re.fullmatch(r"[0-9a-f]{40}", made["address"])
    refused(offline("key", "new", "new.json", "--light"), 3, "never overwritten")


def test_who_founds_a_network_with_few_members_is_told_how_few_newcomers_could_stop_it(home: Path) -> None:
    (home / "verifying-key.bin").write_bytes(OTHER_KEY)
    founding = ["genesis", "new", "--network", "ward", "--verifying-key", "verifying-key.bin"]
    for number in range(4):
        founding += ["--member", testing.key(number).public_key.hex()]
    assert "warning: as long as few others mine, 3 new keys" in offline(*founding, "-o", "open.msgpack").stderr
    assert "warning" not in offline(*founding, "--committee", "6", "-o", "closed.msgpack").stderr
    assert "warning" not in offline(*founding, "--profile", "devnet", "-o", "trial.msgpack").stderr


def test_members_on_many_machines_share_one_genesis(home: Path) -> None:
    (home / "verifying-key.bin").write_bytes(OTHER_KEY)
    made = answer(
        offline(
            "genesis",
            "new",
            "--network",
            "ward",
            "--member",
            "hospital.json",
            "--member",
            CLINIC.public.public_key.hex(),
            "--accredit",
            "stranger.json",
            "--allocate",
            f"{STRANGER.address.hex()}=77",
            "--verifying-key",
            "verifying-key.bin",
            "-o",
            "ward.msgpack",
            "--json",
        )
    )
    genesis = read_genesis(home / "ward.msgpack")
    assert genesis.chameleon_verifying_key == OTHER_KEY
    assert [member.public_key for member in genesis.committee] == [HOSPITAL.public.public_key, CLINIC.public.public_key]
    assert STRANGER.address in genesis.accredited
    assert json.loads((home / "ward.json").read_text())["chain_id"] == made["chain_id"]
    joined = answer(
        offline(
            "init",
            "--data-dir",
            "data",
            "--genesis",
            "ward.msgpack",
            "--key",
            "clinic.json",
            "--bootstrap",
            "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW",
            "--json",
        )
    )
    assert joined["chain_id"] == made["chain_id"]
    assert joined["is_member"]
    assert (home / "data" / "config.toml").exists()
    assert (home / "data" / "key.json").stat().st_mode & 0o777 == 0o600
    refused(offline("init", "--data-dir", "data", "--genesis", "ward.msgpack"), 3, "prepared already")


def test_init_founds_a_network_with_a_new_key(home: Path) -> None:
    profile = ("--profile", "devnet")
    founded = answer(
        offline("init", "--data-dir", "data", "--network", "ward", "--member", "clinic.json", *profile, "--json")
    )
    assert founded["is_member"]
    genesis = read_genesis(home / "data" / "genesis.msgpack")
    assert genesis.committee[0].public_key.hex() == founded["public_key"]
    assert len(genesis.committee) == 2
    assert genesis.parameters == DEVNET_PARAMETERS
    assert genesis.chameleon_verifying_key == DEVELOPMENT_VERIFYING_KEY
    assert (home / "data" / "genesis.json").exists()


@pytest.mark.parametrize(
    "profile", [(), ("--profile", "main"), ("--profile", "testnet")], ids=["default", "main", "testnet"]
)
def test_a_lasting_network_needs_a_verifying_key_of_its_own(home: Path, profile: tuple[str, ...]) -> None:
    (home / "development.bin").write_bytes(DEVELOPMENT_VERIFYING_KEY)
    (home / "damaged.bin").write_bytes(OTHER_KEY[:-1])
    (home / "own.bin").write_bytes(OTHER_KEY)
    founding = ("init", "--data-dir", "data", "--network", "ward", *profile)
    making = ("genesis", "new", "--network", "ward", "--member", "clinic.json", "-o", "made.msgpack", *profile)
    for verb in (founding, making):
        refused(offline(*verb), 3, "everybody can forge proofs")
        refused(offline(*verb, "--verifying-key", "development.bin"), 3, "everybody can forge proofs")
        refused(offline(*verb, "--verifying-key", "damaged.bin"), 3, "704 bytes")
        refused(offline(*verb, "--verifying-key", "absent.bin"), 3, "absent.bin cannot be read")
    assert not (home / "data").exists()
    assert not (home / "made.msgpack").exists()
    assert offline(*founding, "--verifying-key", "own.bin").exit_code == 0
    assert offline(*making, "--verifying-key", "own.bin").exit_code == 0


def test_a_verifying_key_beside_the_genesis_of_others_is_refused(home: Path) -> None:
    named = ("--genesis", "ward.msgpack", "--verifying-key", "own.bin")
    refused(offline("init", "--data-dir", "data", *named), 3, "belongs to a new --network")


def test_init_with_a_wrong_setting_writes_nothing(home: Path) -> None:
    refused(
        offline("init", "--data-dir", "data", "--network", "ward", "--profile", "devnet", "--api-listen", "0.0.0.0:80"),
        3,
        "api_token_file",
    )
    assert not (home / "data").exists()


def test_a_genesis_whose_readable_twin_has_no_place_is_not_written(home: Path) -> None:
    making = ("genesis", "new", "--network", "ward", "--member", "hospital.json", "--profile", "devnet")
    (home / "ward.json").write_text("mine")
    refused(offline(*making, "-o", "ward.msgpack"), 3, "ward.json exists already")
    refused(offline(*making, "-o", "made.json"), 3, "call it made.msgpack")
    assert not (home / "ward.msgpack").exists()
    assert not (home / "made.json").exists()


def test_a_genesis_is_shown_without_brackets(home: Path) -> None:
    making = ("genesis", "new", "--network", "ward", "--member", "hospital.json", "--profile", "devnet")
    assert offline(*making).exit_code == 0
    shown = offline("genesis", "show").stdout
    assert re.search(r"^work interval ms +15000$", shown, re.MULTILINE)
    # What its votes weigh from the first second on.
    assert re.search(r"^member 1 +[0-9a-f]{66}, Ext 0\.250000$", shown, re.MULTILINE)
    assert "{" not in shown


@pytest.mark.parametrize(
    "wrong",
    [("--network", "Not Allowed"), ("--network", "ward", "--member", "nobody"), ("--genesis", "visit.json")],
    ids=["network", "member", "genesis"],
)
def test_init_with_a_wrong_network_writes_nothing_and_can_be_repeated(home: Path, wrong: tuple[str, ...]) -> None:
    (home / "visit.json").write_bytes(BUNDLE_BYTES)
    start = ("init", "--data-dir", "data", "--profile", "devnet", "--key", "hospital.json")
    refused(offline(*start, *wrong), 3)
    assert not (home / "data").exists()
    assert offline(*start, "--network", "ward").exit_code == 0


def test_a_passphrase_file_on_the_command_line_is_seen_from_where_the_user_is(home: Path) -> None:
    founding = ("--network", "ward", "--profile", "devnet", "--key", "hospital.json")
    assert offline("init", "--data-dir", "data", *founding).exit_code == 0
    (home / "wrong").write_text("swordfish\n")
    refused(offline("node", "run", "--data-dir", "data", "--passphrase-file", "wrong"), 3, "wrong passphrase")


def test_a_misspelt_variable_is_warned_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPCHAIN_HEARBEAT_MS", "5000")
    refused(offline("node", "run", "--data-dir", "empty"), 3, "did you mean SPCHAIN_HEARTBEAT_MS?")


def test_stopping_a_devnet_that_is_not_there_says_so(home: Path) -> None:
    result = offline("devnet", "down", "--wipe")
    assert (result.exit_code, result.stdout) == (0, f"there is no devnet in {home / 'no-devnet'}\n")


# ------------------------------------------------------------------ help


def verbs(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, found in sorted(getattr(command, "commands", {}).items()):
        if hasattr(found, "commands"):
            yield from verbs(found, (*path, name))
        else:
            yield (*path, name), found


def test_every_verb_has_help_with_an_example_and_json() -> None:
    found = dict(verbs(typer.main.get_command(app)))
    assert len(found) >= 20
    for path, command in found.items():
        name = " ".join(path)
        assert f"spchain {name}" in command.help, f"node/cli: `spchain {name} --help` shows no example; add one"
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, f"node/cli: `spchain {name}` lacks --json; add JsonOption"
        assert offline(*path, "--help").exit_code == 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, node.cli.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pydantic", "httpx", "fastapi", "trio", "libp2p", "fhir", "umbral_pre", "coincurve", "eth_keyfile", "rich"}
    assert heavy.isdisjoint(modules), f"node/cli: import {heavy & set(modules)} inside the verbs, not at the top"
