# SPDX-License-Identifier: GPL-3.0-or-later
"""A devnet's directory, without starting nodes: made whole, loaded back, never mistaken for something else."""

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from ledger.errors import InvalidInput
from node import devnet_files
from node.config import load_config
from node.devnet import Devnet, DevnetFailure, discard, running_url
from node.devnet_files import free_ports, passphrase_beside, system_ports, wipe
from node.genesis_file import read_genesis
from node.processes import Keeper


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Devnet:
    return Devnet.create(tmp_path_factory.mktemp("devnets") / "net", 3, settings={"heartbeat_ms": 500})


def test_every_node_is_a_funded_accredited_member_of_one_network(made: Devnet) -> None:
    genesis = read_genesis(Path(made.manifest.genesis_file))
    identities = [made.identity(index) for index in range(3)]
    assert [member.public_key for member in genesis.committee] == [i.public.public_key for i in identities]
    assert set(genesis.accredited) == {i.address for i in identities}
    assert {a.account: a.balance_microcredit for a in genesis.allocations} == {i.address: 10**12 for i in identities}


def test_every_node_has_a_configuration_that_loads_and_joins_the_first(made: Devnet) -> None:
    configs = [load_config(Path(entry.data_dir), {}) for entry in made.manifest.nodes]
    assert configs[0].p2p_bootstrap == ()
    assert configs[1].p2p_bootstrap == configs[2].p2p_bootstrap == (made.manifest.nodes[0].p2p_address,)
    assert [f"http://{config.api_listen}" for config in configs] == list(made.urls)
    assert {config.heartbeat_ms for config in configs} == {500}
    ports = [config.p2p_listen for config in configs] + [config.api_listen for config in configs]
    assert len(set(ports)) == 6


def test_it_loads_back(made: Devnet) -> None:
    loaded = Devnet.load(made.directory)
    assert loaded.manifest == made.manifest
    assert [report.pid for report in loaded.report()] == [None] * 3
    assert running_url(made.directory) is None


def test_secrets_are_for_the_owner_only_and_found_beside_the_keys(made: Devnet) -> None:
    passphrase = Path(made.manifest.passphrase_file)
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    assert passphrase_beside(Path(made.manifest.nodes[1].key_file)) == passphrase
    assert passphrase_beside(made.directory / "maria.json") == passphrase
    assert passphrase_beside(made.directory.parent / "key.json") is None


def test_stopping_what_does_not_run_is_no_change(made: Devnet) -> None:
    assert made.stop() == 0
    with pytest.raises(DevnetFailure, match="does not run"):
        made.kill(0)


def test_a_second_devnet_in_the_same_place_is_refused(made: Devnet) -> None:
    with pytest.raises(InvalidInput, match="already"):
        Devnet.create(made.directory, 3)


def test_a_directory_of_something_else_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="neither a devnet nor an empty directory"):
        Devnet.create(tmp_path, 1)
    with pytest.raises(InvalidInput, match="no devnet"):
        wipe(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_is_no_directory_for_a_devnet(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="neither a devnet nor an empty directory"):
        Devnet.create(tmp_path / "thesis.txt", 1)


def test_a_place_that_cannot_be_looked_at_has_no_running_devnet(tmp_path: Path) -> None:
    assert running_url(tmp_path / ("x" * 300)) is None


def _sleeping(pid_file: Path) -> Keeper:
    pid_file.parent.mkdir(exist_ok=True)
    keeper = Keeper(pid_file, pid_file.with_suffix(".log"))
    keeper.start(["sleep", "600"], {"PATH": os.environ["PATH"]}, pid_file.parent)
    return keeper


def test_a_devnet_with_a_damaged_manifest_is_stopped_and_deleted(tmp_path: Path) -> None:
    devnet = Devnet.create(tmp_path / "net", 1)
    running = [_sleeping(devnet.directory / "node-1" / f"{which}.pid") for which in ("node", "miner")]
    (devnet.directory / "devnet.json").write_text("{")
    assert discard(devnet.directory) == (1, 1)
    assert not devnet.directory.exists()
    assert [keeper.pid for keeper in running] == [None, None]
    assert discard(devnet.directory) == (0, 0)


def test_what_runs_in_a_directory_of_something_else_is_not_ended(tmp_path: Path) -> None:
    other = _sleeping(tmp_path / "thesis" / "node.pid")
    try:
        with pytest.raises(InvalidInput, match="is no devnet"):
            discard(tmp_path)
        assert other.pid is not None
    finally:
        other.signal(signal.SIGKILL)
        other.wait(60)


def test_a_half_made_devnet_is_made_again(tmp_path: Path) -> None:
    devnet = Devnet.create(tmp_path / "net", 1)
    (devnet.directory / "devnet.json").unlink()
    again = Devnet.create(tmp_path / "net", 1)
    assert again.manifest.chain_id != devnet.manifest.chain_id


def test_wiping_deletes_all_and_again_is_no_change(tmp_path: Path) -> None:
    devnet = Devnet.create(tmp_path / "net", 1)
    devnet.wipe()
    assert not devnet.directory.exists()
    wipe(devnet.directory)


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"format": 2}), "\udcff"])
def test_a_damaged_manifest_is_told_with_a_remedy(tmp_path: Path, content: str) -> None:
    devnet = Devnet.create(tmp_path / "net", 1)
    (devnet.directory / "devnet.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInput, match="--wipe"):
        Devnet.load(devnet.directory)


@pytest.mark.parametrize("count", [0, -1, 33])
def test_the_number_of_nodes_is_bounded(tmp_path: Path, count: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 32"):
        Devnet.create(tmp_path / "net", count)
    assert not (tmp_path / "net").exists()


def test_no_connection_can_take_a_port_before_the_node_has_it() -> None:
    ports = free_ports(64)
    assert len(set(ports)) == 64
    assert not set(ports) & set(system_ports())
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert given.getsockname()[1] in system_ports()


def test_ports_are_found_where_the_system_gives_all_of_them_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devnet_files, "system_ports", lambda: range(1024, 2**16))
    assert len(set(free_ports(8))) == 8


def test_api_ports_can_be_chosen(tmp_path: Path) -> None:
    base = free_ports(1)[0]
    devnet = Devnet.create(tmp_path / "net", 2, api_base_port=base)
    assert devnet.urls == (f"http://127.0.0.1:{base}", f"http://127.0.0.1:{base + 1}")


def test_a_node_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    devnet = Devnet.create(tmp_path / "net", 1)
    Path(devnet.manifest.genesis_file).write_bytes(b"rubbish")
    with pytest.raises(DevnetFailure, match=r"node-1 has ended.*\n.*Genesis"):
        devnet.start(timeout_s=60)
    assert devnet.pid(0) is None
