# SPDX-License-Identifier: GPL-3.0-or-later
"""No plaintext of a record and no secret of a patient is on a node's disk or in its log (I9)."""

import json
from pathlib import Path

import pytest

from node.client import NodeClient
from node.devnet import Devnet
from node.keystore import read_key
from tests.system.kit import BUNDLE, BUNDLE_FILE, Spchain, ran, until
from tests.system.leaks import content_of, forms_of, found_in, secrets_of, words_of

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]


def test_nodes_keep_ciphertext_and_nothing_that_reads_it(
    devnet: Devnet, spchain: Spchain, hospital: Path, maria: Path
) -> None:
    put = ran(spchain("record", "put", BUNDLE_FILE, "--patient", maria, "--key", hospital, "--json"))
    record = json.loads(put)[0]
    blob_id = bytes.fromhex(record["blob_id"])

    def copies(client: NodeClient) -> int:
        return len(client.get_blob(blob_id))

    with devnet.clients() as clients:
        until(
            lambda: all(client.status().height >= record["height"] for client in clients), "all nodes have the record"
        )
        assert {copies(client) for client in clients} == {record["blob_bytes"]}
        blob = clients[0].get_blob(blob_id)
    # The search finds what is there: the ciphertext, and the institution's name on the chain.
    there = found_in([devnet.directory], [blob[200:400], b"St. Anna"])
    assert len(there[blob[200:400]]) >= 3
    assert len(there[b"St. Anna"]) >= 4

    words = words_of(json.loads(BUNDLE))
    assert len(words) > 10
    secret = secrets_of(read_key(maria, b"only Maria knows"))
    forms = {form for value in secret.values() for form in forms_of(value)}
    assert found_in([devnet.directory], words | content_of(BUNDLE) | forms | {b"only Maria knows"}) == {}
