# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of what patients decide runs from end to end; its times are nothing for a test to judge."""

import json
from pathlib import Path

import pytest

from scripts.bench.privacy import main

SMALL = ("--rounds", "1", "--records", "40,90", "--own", "7")


def test_it_prints_one_object_with_all_steps_and_ledgers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*SMALL, "--directory", str(tmp_path), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(step["median_us"] > 0 for step in found["steps"])
    names = [step["step"].split(":")[0].split(" ")[0] for step in found["steps"]]
    for name in ("encrypt", "grant", "re-encrypt", "verify", "decrypt", "hash", "check", "adapt", "label"):
        assert name in names
    assert [(ledger["records"], ledger["found"]) for ledger in found["ledgers"]] == [(40, 7), (90, 7)]
    for ledger in found["ledgers"]:
        claims = [evidence["claim"] for evidence in ledger["evidence"]]
        assert claims == ["record", "history", "grant", "revocation", "label"]
        assert all(evidence["size_bytes"] > 1000 for evidence in ledger["evidence"])
    assert list(tmp_path.iterdir()) == [], "the ledger is gone"


def test_it_prints_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    assert "7 records of one patient" in text
    assert "re-encrypt" in text
