# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden evidence: what was once exported verifies in every later version."""

import json
from typing import Any

import pytest

from records.evidence import verify
from tests.records.contract_evidence_kit import READER
from tests.vectors import evidence as generator

VECTORS: list[dict[str, Any]] = json.loads(generator.FILE.read_text(encoding="utf-8"))


def test_generating_again_gives_the_same_file() -> None:
    text = generator.FILE.read_text(encoding="utf-8")
    assert text == generator.vectors(), "an encoding changed: if on purpose, run python -m tests.vectors.evidence"


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["claim"] for vector in VECTORS])
def test_golden_evidence_verifies_and_says_what_it_said(vector: dict[str, Any]) -> None:
    found = verify(bytes.fromhex(vector["file"]), bytes.fromhex(vector["keyblock"]), READER)
    assert (found.claim, found.chain_id.hex()) == (vector["claim"], vector["chain_id"])
    assert list(found.proven) == vector["proven"]
