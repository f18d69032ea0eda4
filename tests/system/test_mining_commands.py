# SPDX-License-Identifier: GPL-3.0-or-later
"""Mining, epochs and reputation from a user's seat: the command line on a devnet of one node.

What starts and stops processes is one itself; verbs that only ask run in this process, for there are many of them.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.cli.main import app
from node.devnet import DIRECTORY_VARIABLE, Devnet
from tests.system.kit import Spchain, ran, refused, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

NOBODY = "02" + "11" * 32

Verb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spchain]:
    """A devnet that was made, and has mined four keyblocks, by the command line alone."""
    home = tmp_path_factory.mktemp("miner")
    run = Spchain(home, home / "devnet")
    try:
        started = json.loads(ran(run("devnet", "up", "--nodes", "1", "--mine", "--duty", "50", "--json")))
        assert started["nodes"][0]["miner_pid"]
        with Devnet.load(run.devnet).client() as client:
            until(lambda: client.status().epoch >= 4, "four keyblocks", 300)
        yield run
        ended = json.loads(ran(run("devnet", "down", "--wipe", "--json")))
        assert (ended["stopped"], ended["miners"]) == (1, 0)
        assert not run.devnet.exists()
    finally:
        if Devnet.exists(run.devnet):
            Devnet.load(run.devnet).stop()


@pytest.fixture(scope="module")
def key(processes: Spchain) -> Path:
    """The key file of the node, whose miner has been stopped: nothing changes any more by itself."""
    (node,) = json.loads(ran(processes("devnet", "up", "--no-mine", "--json")))["nodes"]
    assert node["miner_pid"] is None
    assert node["keyblocks"] >= 4
    return Path(node["key_file"])


@pytest.fixture
def spchain(processes: Spchain, monkeypatch: pytest.MonkeyPatch) -> Verb:
    monkeypatch.chdir(processes.directory)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(processes.devnet))
    for variable in ("SPCHAIN_NODE", "SPCHAIN_PASSPHRASE"):
        monkeypatch.delenv(variable, raising=False)

    def verb(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return verb


def test_epochs_are_shown_and_listed(spchain: Verb, key: Path) -> None:
    latest = json.loads(ran(spchain("epoch", "--json")))
    listed = json.loads(ran(spchain("epoch", "list", "--start", "0", "--limit", "3", "--json")))
    assert [epoch["number"] for epoch in listed] == [0, 1, 2]
    shown = json.loads(ran(spchain("epoch", "2", "--json")))
    assert shown["miner"] == listed[2]["miner"] == latest["committee"][0]["public_key"]
    assert f"{latest['number']}, running" in ran(spchain("epoch"))
    assert "0, ended with microblock" in ran(spchain("epoch", "show", "0"))
    refused(spchain("epoch", "show", "999"), 5, "epoch 999 has not begun", f"the newest is {latest['number']}")
    refused(spchain("epoch", "soon"), 3, "'soon'", "spchain epoch list")
    refused(spchain("epoch", "9" * 20), 3, "at most 19 digits")
    # As a node's `checkpoint` takes it.
    assert f"{latest['number']}:{latest['keyblock']}" in ran(spchain("status"))


def test_a_reputation_is_explained_and_drawn(spchain: Verb, key: Path) -> None:
    ranking = json.loads(ran(spchain("reputation", "--json")))
    (miner,) = ranking["miners"]
    explained = json.loads(ran(spchain("reputation", "--key", key, "--json")))
    assert explained["public_key"] == miner["public_key"]
    assert explained["reputation_nano"] == miner["reputation_nano"]
    assert explained["mining"]["keyblocks"] == explained["mining"]["chain_keyblocks"] == ranking["epoch"]
    text = ran(spchain("reputation", "--miner", miner["address"][:8]))
    for part in ("mean_k = ", "y1 = ", "y2 = ", "f(x) = ", "H = 1", "R = min(1, ", "it mined the keyblock"):
        assert part in text
    points = json.loads(ran(spchain("reputation", "--key", key, "--history", "3", "--json")))["points"]
    assert [point["epoch"] for point in points] == [ranking["epoch"] - 2, ranking["epoch"] - 1, ranking["epoch"]]
    ran(spchain("reputation", "--history", "9", "--output", "r.svg"))
    assert Path("r.svg").read_text().startswith("<svg")
    refused(spchain("reputation", "--history", "9", "--output", "r.svg"), 3, "r.svg exists already")
    refused(spchain("reputation", "--history", "9", "--output", "r.png"), 3, "r.png", ".svg")
    refused(spchain("reputation", "--output", "s.svg"), 3, "--history")
    refused(spchain("reputation", "--epoch", "1"), 3, "--miner or --key")
    refused(spchain("reputation", "--key", key, "--epoch", "999"), 5, "epoch 999 has not begun")
    refused(spchain("reputation", "--key", key, "--miner", NOBODY), 3, "both --miner and --key")
    refused(spchain("reputation", "--miner", "nobody"), 5, "'nobody'", "spchain reputation")
    refused(spchain("reputation", "--miner", miner["address"][:3]), 5, "at least 4 digits")
    refused(spchain("reputation", "--key", "absent.json"), 3, "absent.json")


def test_who_never_mined_is_a_newcomer(spchain: Verb, key: Path) -> None:
    Path("passphrase").write_text("a miner's passphrase\n")
    found = json.loads(ran(spchain("key", "new", "new.json", "--passphrase-file", "passphrase", "--light", "--json")))
    explained = json.loads(ran(spchain("reputation", "--miner", found["public_key"], "--json")))
    assert not explained["is_eligible"]
    assert explained["seat"] is None
    assert explained["external_nano"] == 0
    assert explained["reputation_nano"] == explained["earned_nano"]
    refused(spchain("reputation", "--miner", "03" + "ff" * 32), 3, "not a compressed secp256k1 point")


def test_a_miner_of_ones_own_earns_a_keyblock(processes: Spchain, spchain: Verb, key: Path) -> None:
    status = json.loads(ran(spchain("miner", "status", "--key", key, "--rate", "100000", "--json")))
    assert status["expected_s"] == pytest.approx(status["expected_hashes"] / 100_000, abs=0.001)
    rated = json.loads(ran(spchain("miner", "bench", "--seconds", "0.05", "--json")))
    assert rated["hashes_per_s"] > 0
    assert rated["expected_hashes"] == status["expected_hashes"]
    mined = json.loads(
        ran(processes("miner", "run", "--key", key, "--duty", "50", "--keyblocks", "1", "--json", timeout_s=300))
    )
    assert (mined["keyblocks_found"], mined["keyblocks_pinned"]) == (1, 1)
    assert mined["epoch"] == status["epoch"] + 1
    refused(spchain("miner", "status"), 3, "exactly one")
    refused(spchain("miner", "status", "--miner", "12"), 3, "'12'", "66 hexadecimal digits")
    refused(spchain("miner", "run", "--key", "absent.json"), 3, "absent.json")
    assert spchain("miner", "run", "--key", key, "--duty", "0").returncode == 2
    refused(spchain("devnet", "up", "--duty", "7"), 3, "--duty 7", "--mine")
