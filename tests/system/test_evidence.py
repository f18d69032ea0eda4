# SPDX-License-Identifier: GPL-3.0-or-later
"""A record of a real network is proved offline, against a keyblock that a real miner found, also by a node that was killed since."""

import json
from pathlib import Path
from typing import Any

import pytest

from node.devnet import Devnet
from tests.system.kit import BUNDLE_FILE, PATIENCE_S, Spchain, ran, refused, until

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]


def newest_keyblock(spchain: Spchain, url: str) -> str:
    epoch: dict[str, Any] = json.loads(ran(spchain("epoch", "show", "--node", url, "--json")))
    return str(epoch["keyblock"])


def test_a_record_is_proved_offline_and_a_restarted_node_can_still_prove_it(
    devnet: Devnet, spchain: Spchain, hospital: Path, maria: Path, tmp_path: Path
) -> None:
    written = json.loads(ran(spchain("record", "put", BUNDLE_FILE, "--patient", maria, "--key", hospital, "--json")))
    sequence = written[0]["sequence"]
    miner = ("miner", "run", "--key", devnet.manifest.nodes[3].key_file, "--duty", "30", "--node", devnet.urls[3])
    ran(spchain(*miner, "--keyblocks", "2", timeout_s=3 * PATIENCE_S))
    # Nobody mines any more, but one may not have heard of it yet.
    until(lambda: len({newest_keyblock(spchain, url) for url in devnet.urls}) == 1, "one newest keyblock")
    subject = (str(sequence), "--patient", maria)
    export = ("proof", "export", "record", *subject, "-o", "record.evidence", "--wait", str(PATIENCE_S), "--json")
    made = json.loads(ran(spchain(*export)))
    # Another node has the same keyblock: that is what the verifier goes by.
    trusted = newest_keyblock(spchain, devnet.urls[2])
    assert made["keyblock"] == trusted
    away = Spchain(tmp_path, tmp_path / "no-devnet")
    shown = json.loads(ran(away("verify", "record.evidence", "--keyblock", trusted, "--json")))
    assert shown["facts"]["record"]["record_id"] == written[0]["record_id"]
    refused(away("verify", "record.evidence", "--keyblock", "00" * 32), 3, "wrong_keyblock")

    devnet.kill(1)
    devnet.restart(1, timeout_s=PATIENCE_S)
    again = ("proof", "export", "history", "--patient", maria, "-o", "history.evidence", "--node", devnet.urls[1])
    ran(spchain(*again))
    ran(away("verify", "history.evidence", "--keyblock", trusted))
    ran(spchain("record", "list", "--patient", maria, "--check", "--keyblock", trusted, "--node", devnet.urls[1]))
