# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of one's own: it joins and observes; what stands in the way of its start is said, and nothing is touched."""

import hashlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from node.client import NodeClient
from node.devnet import Devnet
from node.devnet_files import free_ports
from node.http_client import NodeUnreachable
from tests.system.kit import Spchain, ran, refused, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

SECRET = "an operator's passphrase"


@pytest.fixture(scope="module")
def spchain(devnet: Devnet, tmp_path_factory: pytest.TempPathFactory) -> Spchain:
    home = tmp_path_factory.mktemp("operator")
    (home / "passphrase").write_text(f"{SECRET}\n")
    (home / "passphrase").chmod(0o600)
    return Spchain(home, devnet.directory)


@pytest.fixture(scope="module")
def prepared(devnet: Devnet, spchain: Spchain) -> Path:
    """A data directory for an observer, made with the command line; it has run once."""
    p2p_port, api_port = free_ports(2)
    places = ("--p2p-listen", f"127.0.0.1:{p2p_port}", "--api-listen", f"127.0.0.1:{api_port}")
    bootstrap = devnet.manifest.nodes[0].p2p_address
    own = ("--name", "observer", "--passphrase-file", "passphrase")
    network = ("--genesis", devnet.manifest.genesis_file, "--bootstrap", bootstrap)
    ran(spchain("init", "--data-dir", "observer", *network, *own, *places))
    directory = spchain.directory / "observer"
    with running(spchain, directory, f"http://127.0.0.1:{api_port}") as observer, devnet.client() as client:
        until(lambda: observer.status().height >= client.status().height, "the observer has caught up")
        assert not observer.status().is_member
    return directory


def serves(client: NodeClient) -> bool:
    """Tell whether a node that was just started answers yet."""
    with suppress(NodeUnreachable):
        return client.status().storage == "ok"
    return False


@contextmanager
def running(spchain: Spchain, directory: Path, url: str) -> Iterator[NodeClient]:
    """Run a node; on leaving, it is told to stop and must do so in peace."""
    log = directory.parent / f"{directory.name}.log"
    process = spchain.start("node", "run", "--data-dir", directory, log=log)
    try:
        with NodeClient(url) as client:
            until(lambda: process.poll() is not None or serves(client), "the node serves")
            assert process.poll() is None, log.read_text()
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def fingerprint(directory: Path) -> dict[str, str]:
    """Return the digests of all that a node keeps, but the locks."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and "lock" not in path.name]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b'name = "ward\n', ("config.toml", "no TOML", "line 1")),
        (b"\xff\xfe", ("config.toml", "UTF-8")),
        (b"heartbeats_ms = 5\n", ("config.toml", "'heartbeats_ms'", "did you mean 'heartbeat_ms'")),
        (b"heartbeat_ms = 5\n", ("config.toml", "heartbeat_ms", "100")),
        (b'api_listen = "everywhere"\n', ("config.toml", "'everywhere'", "127.0.0.1:8080")),
        (b'api_listen = "0.0.0.0:8080"\n', ("config.toml", "api_token_file")),
    ],
    ids=["no-toml", "no-utf-8", "unknown-key", "bad-value", "bad-address", "open-without-token"],
)
def test_a_corrupt_configuration_is_refused(
    spchain: Spchain, tmp_path: Path, content: bytes, texts: tuple[str]
) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    refused(spchain("node", "run", "--data-dir", tmp_path), 3, *texts)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_data_directory_of_another_network_is_refused(spchain: Spchain, prepared: Path) -> None:
    founding = ("--network", "elsewhere", "--member", prepared / "key.json", "--profile", "devnet")
    ran(spchain("genesis", "new", *founding, "-o", "other.msgpack"))
    before = fingerprint(prepared)
    other = f"genesis_file={spchain.directory / 'other.msgpack'}"
    refused(spchain("node", "run", "--data-dir", prepared, "--set", other), 3, str(prepared), "network")
    assert fingerprint(prepared) == before


def test_a_data_directory_in_use_is_refused_and_its_node_goes_on(devnet: Devnet, spchain: Spchain) -> None:
    entry = devnet.manifest.nodes[0]
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    places = ("--p2p-listen", ports[0], "--api-listen", ports[1])
    refused(spchain("node", "run", "--data-dir", entry.data_dir, *places), 3, entry.data_dir, "in use")
    with devnet.client() as client:
        assert client.status().storage == "ok"


@pytest.mark.parametrize("which", ["api", "p2p"])
def test_a_port_in_use_is_refused_and_named(devnet: Devnet, spchain: Spchain, prepared: Path, which: str) -> None:
    entry = devnet.manifest.nodes[0]
    port = urlsplit(entry.url).port if which == "api" else int(entry.p2p_address.split("/")[4])
    done = spchain("node", "run", "--data-dir", prepared, f"--{which}-listen", f"127.0.0.1:{port}")
    refused(done, 3, str(port), "in use")


def test_a_wrong_passphrase_does_not_start_a_node(spchain: Spchain, prepared: Path) -> None:
    (spchain.directory / "wrong").write_text("swordfish\n")
    (spchain.directory / "wrong").chmod(0o600)
    refused(
        spchain("node", "run", "--data-dir", prepared, "--passphrase-file", spchain.directory / "wrong"),
        3,
        "wrong passphrase",
    )
