# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGINT and SIGTERM end a node cleanly, also in the middle of its work."""

import signal
from pathlib import Path

import pytest

from node.actions import NetworkRules
from node.devnet import Devnet
from tests.system.kit import Load, agree, no_traceback, settle_all, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_with_exit_code_0_and_no_traceback(
    devnet: Devnet, rules: NetworkRules, number: signal.Signals
) -> None:
    with Load(devnet, rules, (0, 3)) as load:
        load.reach(40)
        process = devnet._keepers[3]._child
        assert process is not None
        devnet.kill(3, number)
        until(lambda: devnet.pid(3) is None, f"the node ends after {number.name}")
        load.reach(40)
    assert process.returncode == 0
    assert f"signal={number.name}" in Path(devnet.manifest.nodes[3].log_file).read_text()
    devnet.start(timeout_s=180)
    settle_all(devnet, load)
    agree(devnet)
    no_traceback(devnet)
