# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input from the user's seat, on a real network: a clear error, an exit code for scripts, and nothing changed."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ledger.bodies import Transfer
from ledger.errors import RejectionReason
from ledger.transactions import sign_transaction
from node.actions import NetworkRules
from node.devnet import Devnet
from node.keystore import read_public
from tests.system.kit import BUNDLE, BUNDLE_FILE, Spchain, agree, ran, refused

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]


@pytest.fixture(autouse=True)
def nothing_changes(devnet: Devnet, hospital: Path, maria: Path) -> Iterator[None]:
    """Whatever a user does wrong leaves accounts, records and blobs of all nodes as they are."""
    agree(devnet)
    before = _state(devnet, hospital, maria)
    yield
    assert _state(devnet, hospital, maria) == before


def _state(devnet: Devnet, hospital: Path, maria: Path) -> list[object]:
    found: list[object] = []
    with devnet.clients() as clients:
        for entry, client in zip(devnet.manifest.nodes, clients, strict=True):
            status, account = client.status(), client.account(read_public(hospital).address)
            blobs = sum(len(files) for _, _, files in os.walk(Path(entry.data_dir) / "blobs"))
            patient = client.patient(read_public(maria).address)
            found.append((status.transactions, status.records, account.nonce, patient.record_count, blobs))
    return found


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "JSON"),
        (BUNDLE[:-1000], "damaged"),
        (b'{"resourceType": "Observation"}', "Bundle"),
        (gzip.compress(BUNDLE)[:-1000], "ends within"),
    ],
    ids=["empty", "truncated", "no-bundle", "truncated-gzip"],
)
def test_a_bad_bundle_is_refused(spchain: Spchain, hospital: Path, maria: Path, content: bytes, text: str) -> None:
    (spchain.directory / "visit.json").write_bytes(content)
    refused(spchain("record", "put", "visit.json", "--patient", maria, "--key", hospital), 3, "visit.json", text)


def test_a_bundle_of_200_megabytes_is_refused_before_it_is_read(spchain: Spchain, hospital: Path, maria: Path) -> None:
    with (spchain.directory / "huge.json").open("wb") as huge:
        huge.truncate(200 << 20)
    refused(spchain("record", "put", "huge.json", "--patient", maria, "--key", hospital), 3, "209715200 bytes")


def test_a_wrong_passphrase_opens_nothing(spchain: Spchain, hospital: Path, maria: Path) -> None:
    (spchain.directory / "wrong").write_text("swordfish\n")
    (spchain.directory / "wrong").chmod(0o600)
    wrong = ("--passphrase-file", "wrong")
    done = spchain("record", "put", BUNDLE_FILE, "--patient", maria, "--key", hospital, *wrong)
    refused(done, 3, "wrong passphrase", str(hospital))
    assert "swordfish" not in done.stdout + done.stderr
    refused(spchain("record", "get", "0", "--patient", maria, *wrong), 3, "wrong passphrase", str(maria))


def test_a_record_is_not_found_under_a_key_that_is_not_its_patients(spchain: Spchain, hospital: Path) -> None:
    done = spchain("record", "get", "0", "--patient", hospital, "-o", "stolen.json")
    refused(done, 5, "not_found")
    assert not (spchain.directory / "stolen.json").exists()


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (RejectionReason.NONCE_USED, {"nonce": 0}),
        (RejectionReason.NONCE_GAP, {"nonce": 1_000_000}),
        (RejectionReason.EXPIRED, {"expiry_height": 0}),
        (RejectionReason.EXPIRY_TOO_FAR, {"expiry_height": 10**9}),
        (RejectionReason.WRONG_CHAIN, {"chain": bytes(32)}),
        (RejectionReason.BAD_SIGNATURE, {"damage": 1}),
        (RejectionReason.MALFORMED, {"cut": 1}),
        (RejectionReason.FEE_TOO_LOW, {"fee": 0}),
    ],
    ids=lambda value: value.value if isinstance(value, RejectionReason) else "",
)
def test_a_wrong_transaction_is_refused_with_its_reason(
    devnet: Devnet, rules: NetworkRules, spchain: Spchain, reason: RejectionReason, change: dict[str, int | bytes]
) -> None:
    sender = devnet.identity(0)
    with devnet.client() as client:
        values: dict[str, int] = {
            "nonce": client.account(sender.address).next_nonce,
            "fee": 10,
            "expiry_height": client.status().height + 100,
        }
    values.update({name: value for name, value in change.items() if isinstance(value, int)})
    chain = change.get("chain", rules.chain_id)
    assert isinstance(chain, bytes)
    raw = sign_transaction(
        chain,
        sender.signing,
        nonce=values["nonce"],
        fee_microcredit=values["fee"],
        expiry_height=values["expiry_height"],
        body=Transfer(devnet.identity(1).address, 1),
    )
    if "damage" in change:
        raw = raw[:-1] + bytes([raw[-1] ^ 1])
    if "cut" in change:
        raw = raw[:-1]

    answer = httpx.post(f"{devnet.urls[2]}/v1/transactions", json={"transactions": [raw.hex()]}, trust_env=False)
    outcome = answer.json()["outcomes"][0]
    assert (answer.status_code, outcome["accepted"], outcome["reason"]) == (200, False, reason.value)
    assert outcome["detail"]
    refused(spchain("tx", "submit", raw.hex()), 3, reason.value)


def test_an_unregistered_institution_cannot_write(devnet: Devnet, spchain: Spchain, maria: Path) -> None:
    key = devnet.manifest.nodes[3].key_file
    # Its blob is kept, as anyone's is who has reached the API: what counts is the chain. So no bundle gets that far here.
    done = spchain(
        "patient", "new", "otto.json", "--key", key, "--light", "--passphrase-file", devnet.manifest.passphrase_file
    )
    refused(done, 3, "institution_unknown")


def test_a_node_that_is_not_there_is_named(spchain: Spchain) -> None:
    refused(spchain("status", "--node", "http://127.0.0.1:9"), 4, "http://127.0.0.1:9")


def test_the_same_institution_twice_is_refused(spchain: Spchain, hospital: Path) -> None:
    done = spchain("institution", "register", "--key", hospital, "--name", "St. Anna", "--country", "AT")
    refused(done, 3, "institution_exists")
    ran(spchain("institution", "list"))
