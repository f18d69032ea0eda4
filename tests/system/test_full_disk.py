# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose disk is full says so, refuses to write and loses nothing; the others go on (I8)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.bodies import Transfer
from node.actions import Actor, NetworkRules, submit_and_wait
from node.devnet import Devnet
from tests.system.kit import Load, agree, no_traceback, settle_all, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

VICTIM = 3
DISK_BYTES = 48 << 20


@pytest.fixture
def small_disk(devnet: Devnet, tmp_path: Path) -> Iterator[Path]:
    """Put a node's data directory on a disk of its own, with log and all."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = Path(devnet.manifest.nodes[VICTIM].data_dir)
    devnet._keepers[VICTIM].stop(30)
    shutil.copytree(place, tmp_path / "copy")
    options = f"size={DISK_BYTES},mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        devnet.start(timeout_s=180)
        pytest.skip(f"mounting a small disk is not permitted: {done.stderr.decode().strip()}")
    try:
        shutil.copytree(tmp_path / "copy", place, dirs_exist_ok=True)
        devnet.start(timeout_s=180)
        yield place
    finally:
        devnet._keepers[VICTIM].stop(30)
        shutil.rmtree(tmp_path / "copy")
        shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("filler"))
        subprocess.run(["umount", str(place)], check=True)
        shutil.copytree(tmp_path / "copy", place, dirs_exist_ok=True)
        devnet.start(timeout_s=180)


def fill(place: Path) -> Path:
    """Leave not a byte free."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue
    return filler


def test_a_full_disk_is_told_and_outlived(devnet: Devnet, rules: NetworkRules, small_disk: Path) -> None:
    filler = fill(small_disk)
    with devnet.clients() as clients:
        victim = clients[VICTIM]
        actor = Actor(victim, devnet.identity(VICTIM), rules=rules)

        def refusal() -> str:
            # What fits into the free pages of its database is still taken; then it says why it takes no more.
            outcome = victim.submit(actor.sign([Transfer(devnet.identity(0).address, 1)]))[0]
            return outcome.detail if outcome.reason == "storage" else ""

        with Load(devnet, rules, (0, 1)) as load:
            load.reach(200)
            until(refusal, "the node refuses what it cannot write")
            assert "no space left" in refusal()
            until(lambda: bool(refusal()) and victim.status().storage != "ok", "its status tells the operator")
            height = clients[0].status().height
            load.reach(100)
            assert clients[0].status().height > height, "the others go on"
            filler.unlink()
            until(lambda: not refusal(), "the node can write again")
        assert not load.failures
        settle_all(devnet, load)
        assert victim.status().storage == "ok"
        submit_and_wait(victim, actor.sign([Transfer(devnet.identity(0).address, 1)]))
    agree(devnet)
    no_traceback(devnet)
