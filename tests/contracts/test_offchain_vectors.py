# SPDX-License-Identifier: GPL-3.0-or-later
"""The golden vectors of off-chain contracts: every version must execute these requests to these bytes, and judge these proofs so."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from contracts.machines import SHIPPED
from contracts.operator import Operator
from ledger import testing
from ledger.acts import BlockContext
from ledger.codec import decode, encode
from ledger.errors import InvalidInput
from ledger.fraud import check_fraud
from ledger.genesis import Genesis, chain_id
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment, ContractTerms, FraudProof
from ledger.state import TABLES, State
from ledger.state_tree import leaves_root, make_leaf, position_of
from ledger.transactions import check_transaction
from ledger.transition import apply_transaction
from tests.contracts import kit

PATH = Path(__file__).parents[1] / "vectors" / "offchain.json"
VECTORS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
BATCHES = [vector for vector in VECTORS if vector["kind"] == "batch"]
FRAUDS = [vector for vector in VECTORS if vector["kind"] == "fraud"]
batches = pytest.mark.parametrize("vector", BATCHES, ids=lambda vector: vector["machine"])


def tagged(tag: str, *parts: bytes) -> bytes:
    prefix = hashlib.sha256(f"spchain/{tag}/1".encode("ascii")).digest()
    return hashlib.sha256(prefix + prefix + b"".join(parts)).digest()


def test_every_machine_that_ships_has_its_vector() -> None:
    assert {vector["machine"] for vector in BATCHES} == {machine.name for machine in SHIPPED}
    assert len({bytes.fromhex(vector["proof"])[1] for vector in FRAUDS}) == 4


@batches
def test_the_operator_makes_of_the_requests_what_the_vector_says(vector: dict[str, Any]) -> None:
    terms = decode(ContractTerms, bytes.fromhex(vector["terms"]), 2_000)
    commitment = decode(BatchCommitment, bytes.fromhex(vector["commitment"]), 2_000)
    desk = kit.Desk(terms)
    desk.operator = Operator(bytes.fromhex(vector["chain_id"]), terms, kit.OPERATOR, kit.REGISTRY)
    requests = [bytes.fromhex(raw) for raw in vector["requests"]]
    for number, raw in enumerate(requests):
        desk.send(raw, 2_000 + 10 * number, is_forced=number == 0)
    batch = desk.cut(3_000)
    assert batch.commitment == commitment
    assert batch.data.hex() == vector["data"]
    assert [encode(answer.signed).hex() for answer in desk.answers] == vector["receipts"]
    outcomes = [[[outcome.code, outcome.result.hex()] for outcome in answer.outcomes] for answer in desk.answers]
    assert outcomes == vector["outcomes"]
    assert [[name.hex(), value.hex()] for name, value in desk.operator.state.entries()] == vector["state"]
    assert kit.watcher(terms).follow(commitment, batch.data) is None


@batches
def test_digests_and_roots_are_what_independent_code_makes(vector: dict[str, Any]) -> None:
    (_, _, previous, new_root, leaves, count, operations, digest, size, _, _, forced) = msgpack.unpackb(
        bytes.fromhex(vector["commitment"])
    )
    data = bytes.fromhex(vector["data"])
    assert (digest, size) == (tagged("offchain-data", data), len(data))
    ((*items,),) = msgpack.unpackb(data)
    assert (count, operations) == (len(items), items[-1][2])
    nodes, outcomes = [], vector["outcomes"]
    for number, (request, time_ms, total, outcomes_digest, root) in enumerate(items):
        assert request.hex() == vector["requests"][number]
        plain = [[code, bytes.fromhex(result)] for code, result in outcomes[number]]
        assert outcomes_digest == tagged("offchain-outcomes", msgpack.packb(plain))
        leaf = msgpack.packb([tagged("offchain-request", request), time_ms, total, outcomes_digest, root])
        nodes.append(tagged("merkle-leaf", leaf))
    while len(nodes) > 1:
        pairs = [tagged("merkle-node", *nodes[i : i + 2]) for i in range(0, len(nodes) - 1, 2)]
        nodes = pairs + ([nodes[-1]] if len(nodes) % 2 else [])
    assert nodes[0] == leaves
    assert forced == [[tagged("offchain-request", items[0][0]), 0]]
    entries = [(bytes.fromhex(name), bytes.fromhex(value)) for name, value in vector["state"]]
    assert new_root == leaves_root(sorted(make_leaf(position_of(name), value) for name, value in entries))
    assert previous == bytes(32)


@pytest.mark.parametrize("vector", FRAUDS, ids=lambda vector: vector["verdict"][:30])
def test_the_judge_convicts_with_these_words(vector: dict[str, Any]) -> None:
    terms = decode(ContractTerms, bytes.fromhex(vector["terms"]), 2_000)
    commitment = decode(BatchCommitment, bytes.fromhex(vector["commitment"]), 2_000)
    raw = bytes.fromhex(vector["proof"])
    proof = decode(cast("type[FraudProof]", FraudProof), raw, len(raw))
    chain_id = bytes.fromhex(vector["chain_id"])
    assert check_fraud(chain_id, terms, commitment, proof, kit.REGISTRY) == vector["verdict"]
    with pytest.raises(InvalidInput):
        check_fraud(chain_id, terms, kit.paid_batch()[2].commitment, proof, kit.REGISTRY)


def test_the_chain_makes_of_contracts_what_the_vector_says() -> None:
    (vector,) = [vector for vector in VECTORS if vector["kind"] == "chain"]
    genesis = decode(Genesis, bytes.fromhex(vector["genesis"]), 16_384)
    state, chain = State(MemoryStore(genesis)), chain_id(genesis)
    for step in vector["transactions"]:
        checked = check_transaction(bytes.fromhex(step["encoding"]), testing.rules_of(chain))
        context = BlockContext(
            step["height"], step["timestamp_ms"], genesis.parameters, chain, vector["epoch"], kit.REGISTRY
        )
        assert apply_transaction(state, context, checked) is None
    entries = dict(vector["state"])
    kinds = {bytes.fromhex(key)[:1] for key in entries}
    tables = [table for table in TABLES if table.prefix in kinds]
    found = {(table.prefix + key).hex(): encode(row).hex() for table in tables for key, row in state.entries(table)}
    assert found == entries
    assert {"contracts", "contract_batches", "forced_requests", "claims", "offences", "supply"} < {
        table.name for table in tables
    }
