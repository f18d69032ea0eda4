# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample patients, read once."""

import csv
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.records.world import World

SAMPLES = Path(__file__).parents[2] / "scripts" / "data" / "fhir"


@pytest.fixture(scope="session")
def bundles() -> dict[str, bytes]:
    """All twelve bundles by name (`p01`), uncompressed and equal to what their index promises."""
    with (SAMPLES / "index.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = {}
    for row in rows:
        data = gzip.decompress((SAMPLES / row["file"]).read_bytes())
        assert hashlib.sha256(data).hexdigest() == row["sha256_of_json"]
        found[row["file"].removesuffix(".json.gz")] = data
    assert len(found) == len(list(SAMPLES.glob("*.json.gz"))) == 12
    return found


@pytest.fixture(scope="session")
def small_bundle() -> bytes:
    """A bundle of one patient, in 90 bytes or so, for tests of single faults."""
    return (
        b'{"resourceType":"Bundle","type":"collection","entry":'
        b'[{"resource":{"resourceType":"Patient","id":"p-1","birthDate":"1970-01-31"}}]}'
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A chain with six hospitals, their proxies, and a patient with three records."""
    made = World(tmp_path)
    for number in range(3):
        made.add_record(b'{"resourceType":"Bundle","record":%d}' % number)
    yield made
    made.close()
