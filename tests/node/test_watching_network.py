# SPDX-License-Identifier: GPL-3.0-or-later
"""Watchers on four real nodes: all follow an operator's batches, and one that has lost everything gets the state from the others."""

import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.execution import sequence_key
from contracts.machines.access_log import AccessLogParameters, LogAccess
from contracts.requests import sign_request
from ledger import testing
from ledger.bodies import Body, Transfer
from ledger.codec import encode
from ledger.contract_bodies import OpenContract
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.genesis import chain_id
from ledger.rules import ContractRules
from ledger.state_tree import verify_state_proof
from ledger.transactions import sign_transaction
from node.offchain import following
from node.service import NodeService
from tests.node import networks
from tests.node.kit import until
from tests.node.networks import MEMBERS, Net, RunningNode

WINDOW = 8
GENESIS = msgspec.structs.replace(
    networks.GENESIS,
    parameters=msgspec.structs.replace(
        networks.GENESIS.parameters, contracts=ContractRules(10_000, WINDOW, 3, 60_000, 10)
    ),
)
CHAIN = chain_id(GENESIS)
OPERATOR = MEMBERS[0].signing
CONTRACT = contract_id_of(OPERATOR.public_key, 0)
USER = MEMBERS[2].signing
OPENED = OpenContract(0, "access_log", 1, encode(AccessLogParameters(())), 10_000)


def request(sequence: int) -> bytes:
    access = LogAccess(
        testing.key(9).address, testing.key(10).address, tagged_hash(Tag.BLOB, b"a record"), is_refused=False
    )
    return sign_request(CHAIN, USER, CONTRACT, sequence, [access])


async def act(service: NodeService, body: Body) -> None:
    nonce = service.next_nonce(OPERATOR.address)
    raw = sign_transaction(CHAIN, OPERATOR, nonce=nonce, fee_microcredit=10, expiry_height=50_000, body=body)
    (outcome,) = await service.submit([raw])
    assert outcome.accepted, outcome
    assert (await service.wait([outcome.id], 60))[outcome.id].reason == ""


async def log_accesses(node: RunningNode, first: int, count: int) -> None:
    """Bring requests to the operator, each in a batch of its own, and wait until they are committed."""
    operating = node.service.offchain.operating
    for sequence in range(first, first + count):
        committed = batches(node)
        with trio.fail_after(60):
            while not (outcome := (await operating.send(CONTRACT, [request(sequence)]))[0]).accepted:
                assert outcome.retry_ms, outcome
                await trio.sleep(outcome.retry_ms / 1000)
        await until(lambda committed=committed: len(batches(node)) > len(committed))  # type: ignore[misc]


def batches(node: RunningNode) -> list[CommittedBatch]:
    contract = contract_at(node.store, CONTRACT)
    found = (
        [] if contract is None else [batch_at(node.store, contract, number) for number in range(contract.batch_count)]
    )
    return [batch for batch in found if batch is not None]


def follows(node: RunningNode, number: int) -> bool:
    return [(head.number, head.stage) for head in node.service.offchain.watching.heads()] == [(number, "following")]


async def test_all_but_the_operator_follow_and_who_has_lost_everything_gets_the_state_from_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAUSE_S", 0.1)
    async with Net(tmp_path, genesis=GENESIS) as net:
        operator, others, lost = net.nodes[0], net.nodes[1:], net.nodes[3]
        await act(operator.service, OPENED)
        await log_accesses(operator, 0, 3)
        count = len(batches(operator))
        await until(lambda: all(follows(node, count) for node in others))
        assert operator.service.offchain.watching.heads() == ()
        await lost.stop()
        for _ in range(WINDOW):
            await act(operator.service, Transfer(USER.address, 1))
        kept = [node.service.offchain for node in net.up()]
        await until(lambda: all(part.watching.is_followed(CONTRACT, count - 1) for part in kept))
        # The data is gone everywhere, and this node has no state of its own left.
        shutil.rmtree(tmp_path / "3" / "offchain")
        for part in kept:
            part._data.remove([batch.commitment.data_digest for batch in batches(operator)])
        await net.start(lost)
        await until(lambda: follows(lost, count))
        assert all(info.score == 0 for info in lost.service.status().peers)
        # It goes on from there, and can prove what others need.
        await log_accesses(operator, 3, 1)
        await until(lambda: all(follows(node, len(batches(operator))) for node in others))
        # Followers have a snapshot of the older state; the operator has its newest alone, and what was executed to it is gone.
        last = len(batches(operator)) - 1
        for node, number in [(operator, last), *((node, number) for node in others for number in (count - 1, last))]:
            key = sequence_key(USER.address)
            entry = await node.service.offchain.watching.prove_key(CONTRACT, number, key)
            root = batches(operator)[number].commitment.new_root
            assert entry.value is not None
            assert verify_state_proof(root, key, entry.value, entry.proof)
        assert all(node.service.offchain.watching.faults() == () for node in net.nodes)
