# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.actions import NetworkRules, network_rules
from node.devnet import Devnet
from tests.system.kit import Spchain, no_traceback, ran


@pytest.fixture(scope="session")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    """Four real nodes for all system tests; each test leaves them running and in agreement."""
    network = Devnet.create(tmp_path_factory.mktemp("system") / "devnet", 4)
    try:
        network.start(timeout_s=180)
        yield network
        no_traceback(network)
    finally:
        network.stop()


@pytest.fixture(scope="session")
def rules(devnet: Devnet) -> NetworkRules:
    with devnet.client() as client:
        return network_rules(client)


@pytest.fixture
def spchain(devnet: Devnet, tmp_path: Path) -> Spchain:
    return Spchain(tmp_path, devnet.directory)


@pytest.fixture(scope="session")
def hospital(devnet: Devnet) -> Path:
    """The key file of a registered institution; the passphrase lies beside it."""
    spchain = Spchain(devnet.directory, devnet.directory)
    key = Path(devnet.manifest.nodes[0].key_file)
    ran(spchain("institution", "register", "--key", key, "--name", "St. Anna", "--country", "AT"))
    return key


@pytest.fixture(scope="session")
def maria(devnet: Devnet, hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of a registered patient, far from the nodes; `passphrase` beside it opens it."""
    home = tmp_path_factory.mktemp("maria")
    (home / "passphrase").write_text("only Maria knows\n")
    (home / "passphrase").chmod(0o600)
    spchain = Spchain(home, devnet.directory)
    own = ("--patient-passphrase-file", "passphrase", "--light")
    ran(spchain("patient", "new", "maria.json", "--key", hospital, *own))
    return home / "maria.json"
