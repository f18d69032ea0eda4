# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the command line's tests about patients' decisions: five institutions with proxies, a patient, two records."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ledger import testing
from ledger.bodies import Body, RegisterInstitution, RegisterPatient
from ledger.transactions import sign_transaction
from node.actions import chain_records, fresh_envelope
from node.api import views
from node.cli.main import app
from node.client import NodeClient
from node.identity import Identity
from node.keystore import Cost, write_key
from node.parties import registration
from records.envelope import seal
from tests.node.api_kit import config_for, serving
from tests.node.care_kit import INSTITUTIONS, CareNode

PASSPHRASE = b"open sesame"
MARIA = Identity(b"\x51" * 32, "Maria")
PAUL = Identity(b"\x52" * 32, "Paul")
EVA = Identity(b"\x53" * 32, "Eva")
PATIENTS = {"maria": MARIA, "paul": PAUL, "eva": EVA}
BUNDLE = json.dumps(
    {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": {"resourceType": "Patient", "id": "p1", "birthDate": "1970-01-01"}}],
    }
).encode()

Spchain = Callable[..., Result]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CareNode]:
    """Institutions, patients `maria` (with two records), `paul` and `eva`; all in two microblocks, before anything is served."""
    with CareNode(tmp_path / "desks") as node:
        founded = [_signed(node, identity, 0, _institution(identity)) for identity in INSTITUTIONS]
        founded += [_signed(node, INSTITUTIONS[0], 1 + n, _patient(node, p)) for n, p in enumerate(PATIENTS.values())]
        node.commit(testing.check(node.chain_id, founded))
        sealed = [seal(bundle, MARIA.public.reencryption_key) for bundle in (BUNDLE, BUNDLE + b"\n")]
        for one in sealed:
            node.blobs.put(one.blob_id, one.blob)
        patient = views.patient_at(node.store, MARIA.address)
        bodies = chain_records(patient, [fresh_envelope(INSTITUTIONS[0].address, one) for one in sealed])
        written = [_signed(node, INSTITUTIONS[0], 4 + n, body) for n, body in enumerate(bodies)]
        node.commit(testing.check(node.chain_id, written))
        assert node.store.head().record_count == 2
        yield node


def _signed(node: CareNode, identity: Identity, nonce: int, body: Body) -> bytes:
    return sign_transaction(
        node.chain_id, identity.signing, nonce=nonce, fee_microcredit=1_000, expiry_height=1_000, body=body
    )


def _institution(identity: Identity) -> RegisterInstitution:
    return RegisterInstitution(identity.name, "AT", identity.public.reencryption_key)


def _patient(node: CareNode, patient: Identity) -> RegisterPatient:
    return registration(node.chain_id, patient, INSTITUTIONS[0].address, 10**6)


@pytest.fixture
def client(node: CareNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeClient]:
    with serving(node, config_for(tmp_path / "data")) as url, NodeClient(url) as client:
        monkeypatch.setenv("SPCHAIN_NODE", url)
        yield client


@pytest.fixture
def spchain(client: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spchain:
    """The command line in a directory with key files `h1.json` … `h5.json` and those of the patients."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", PASSPHRASE.decode())
    monkeypatch.setenv("SPCHAIN_DEVNET", str(tmp_path / "no-devnet"))
    hospitals = {f"h{number}": identity for number, identity in enumerate(INSTITUTIONS, 1)}
    for name, identity in (hospitals | PATIENTS).items():
        write_key(tmp_path / f"{name}.json", identity, PASSPHRASE, Cost.LIGHT)
    return run


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def answer(result: Result, code: int = 0) -> Any:  # noqa: ANN401 -- JSON of any shape
    """Return the one JSON value on standard output."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def refused(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    for text in texts:
        assert text in result.stderr


def give(spchain: Spchain, *arguments: str, grantee: str = "Hospital 2", key: str = "maria.json") -> Any:  # noqa: ANN401
    """Give a grant for an hour and return what the command line answers of it."""
    given = answer(spchain("grant", "give", grantee, "--key", key, "--until", "1h", *arguments, "--json"))
    return given[0] if len(given) == 1 else given
