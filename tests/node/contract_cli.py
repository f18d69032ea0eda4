# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of contracts through the real command line and API."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import Result

from node.client import NodeClient
from node.keystore import Cost, write_key
from tests.node.api_kit import config_for, serving
from tests.node.care_cli import PASSPHRASE, answer, run
from tests.node.contract_kit import BOB, IDENTITIES, ContractNode

Spchain = Callable[..., Result]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ContractNode]:
    directory = tmp_path / "node"
    directory.mkdir()
    with ContractNode(directory) as node:
        yield node


@pytest.fixture
def client(node: ContractNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeClient]:
    config = config_for(tmp_path / "data")
    # What the node logs would stand on the standard output of the command line, which runs in the same process.
    with capture_logs(), serving(node, config, beside=node.run) as url, NodeClient(url) as client:
        monkeypatch.setenv("SPCHAIN_NODE", url)
        yield client


@pytest.fixture
def spchain(client: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spchain:
    """The command line in a directory with the key files `operator.json`, `alice.json`, `bob.json` and `carol.json`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", PASSPHRASE.decode())
    monkeypatch.setenv("SPCHAIN_DEVNET", str(tmp_path / "no-devnet"))
    for identity in IDENTITIES:
        write_key(tmp_path / f"{identity.name}.json", identity, PASSPHRASE, Cost.LIGHT)
    return run


PAYMENT = {"recipient": BOB.address.hex(), "amount_microcredit": 5, "reference": "77" * 32}


def opened(
    spchain: Spchain, machine: str = "micro_fees", parameters: str = '{"largest_payment_microcredit": 1000}'
) -> str:
    """Open a contract and return its identifier."""
    result = spchain("contract", "open", machine, parameters, "--key", "operator.json", "--json")
    assert result.exit_code == 0, result.output
    contract = str(json.loads(result.stdout)["contract_id"])
    # The operator begins when it sees its contract on the chain.
    until(lambda: account(spchain, contract)["next_sequence"] == 0)
    return contract


def account(spchain: Spchain, contract: str, name: str = "alice") -> Any:  # noqa: ANN401 -- JSON
    """Return a user's account inside a contract."""
    return answer(spchain("contract", "show", contract, "--account", f"{name}.json", "--json"))["account"]


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


def funded(spchain: Spchain, contract: str, *names: str, amount: int = 100_000) -> None:
    """Pay credits in for users, and wait until the operator has taken the last deposit up."""
    for name in names:
        answer(spchain("contract", "fund", contract, str(amount), "--key", f"{name}.json", "--json"))

    def is_taken() -> bool:
        shown = answer(spchain("contract", "show", contract, "--json"))
        return bool(shown["answered_count"] == shown["forced_count"])

    until(is_taken)


def pay(spchain: Spchain, contract: str, *arguments: str, key: str = "alice", **changes: object) -> Any:  # noqa: ANN401 -- JSON
    """Send one payment and return what the command line answers."""
    operation = json.dumps({"pay": {**PAYMENT, **changes}})
    return answer(spchain("contract", "send", contract, operation, "--key", f"{key}.json", *arguments, "--json"))
