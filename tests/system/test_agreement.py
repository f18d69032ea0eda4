# SPDX-License-Identifier: GPL-3.0-or-later
"""Four processes agree on everything, through kill -9 of one and of all (I1, I2, I6, I8)."""

import signal
from pathlib import Path

import pytest

from node.actions import NetworkRules
from node.devnet import Devnet
from tests.system.kit import BUNDLE_FILE, Load, Spchain, agree, no_traceback, ran, settle_all, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]


def test_four_processes_agree_after_mixed_load(
    devnet: Devnet, rules: NetworkRules, spchain: Spchain, hospital: Path, maria: Path
) -> None:
    with Load(devnet, rules, (1, 2, 3)) as load:
        ran(spchain("record", "put", BUNDLE_FILE, "--patient", maria, "--key", hospital))
        load.reach(100)
    assert not load.failures
    settle_all(devnet, load)
    agree(devnet)


def test_a_node_killed_under_load_is_not_missed_and_catches_up(devnet: Devnet, rules: NetworkRules) -> None:
    victim = 2
    with Load(devnet, rules, (0, 1, 2, 3)) as load:
        load.reach(100)
        devnet.kill(victim, signal.SIGKILL)
        until(lambda: load.failures, "the load notices the dead node")
        load.reach(200)  # the others go on
        devnet.restart(victim)
        load.reach(100)
    assert {node for node, _ in load.failures} == {victim}
    settle_all(devnet, load)
    agree(devnet)
    devnet.wait_connected()
    no_traceback(devnet)


def test_what_was_reported_as_committed_survives_kill_9_of_all_nodes(devnet: Devnet, rules: NetworkRules) -> None:
    with Load(devnet, rules, (0, 1, 2, 3)) as load:
        load.reach(200)
        with devnet.client() as client:
            newest = client.status().height
            reported = {height: client.block(height).block_hash for height in range(max(0, newest - 10), newest + 1)}
        load.reach(50)
        for keeper in devnet._keepers:
            # All at once: the last is told before the first is gone.
            keeper.signal(signal.SIGKILL)
    until(lambda: not any(devnet.pid(index) for index in range(len(devnet))), "all nodes are dead")
    assert len(load.failures) == 4
    devnet.start(timeout_s=180)
    settle_all(devnet, load)
    agree(devnet)
    with devnet.clients() as clients:
        for client in clients:
            assert {height: client.block(height).block_hash for height in reported} == reported
    no_traceback(devnet)
