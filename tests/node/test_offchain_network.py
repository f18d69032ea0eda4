# SPDX-License-Identifier: GPL-3.0-or-later
"""Four real nodes and the data of batches: no vote without it, whoever withholds it; who was away gets it back."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.machines.access_log import AccessLogParameters, LogAccess
from contracts.operator import Batch as OffchainBatch
from contracts.operator import Operator, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger import testing
from ledger.bodies import Body, Transfer
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch, OpenContract
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract, contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.genesis import chain_id
from ledger.offchain import BatchCommitment
from ledger.rules import ContractRules
from ledger.transactions import sign_transaction
from node.batches import NoData
from node.offchain import availability
from node.service import NodeService
from node.wire import REQUEST_BATCH_DATA
from records.placement import holders
from tests.node import networks
from tests.node.kit import until
from tests.node.networks import MEMBERS, OUTSIDER, Net, RunningNode

GENESIS = msgspec.structs.replace(
    networks.GENESIS,
    parameters=msgspec.structs.replace(
        networks.GENESIS.parameters, contracts=ContractRules(10_000, 8, 3, 60_000, 100_000)
    ),
)
CHAIN = chain_id(GENESIS)
RECORD = tagged_hash(Tag.BLOB, b"a record")
USER = MEMBERS[2].signing


def identifier(key: PrivateKey) -> bytes:
    return contract_id_of(key.public_key, 0)


def opens() -> OpenContract:
    return OpenContract(0, "access_log", 1, encode(AccessLogParameters(())), 10_000)


def request(contract_id: bytes, sequence: int) -> bytes:
    access = LogAccess(testing.key(9).address, testing.key(10).address, RECORD, is_refused=False)
    return sign_request(CHAIN, USER, contract_id, sequence, [access])


async def act(service: NodeService, key: PrivateKey, body: Body) -> None:
    """Submit a transaction and wait until it took effect."""
    raw = sign_transaction(
        CHAIN, key, nonce=service.next_nonce(key.address), fee_microcredit=10, expiry_height=50_000, body=body
    )
    (outcome,) = await service.submit([raw])
    assert outcome.accepted, outcome
    receipt = (await service.wait([outcome.id], 60))[outcome.id]
    assert receipt.reason == ""


def contract_of(node: RunningNode, key: PrivateKey) -> Contract:
    found = contract_at(node.store, identifier(key))
    assert found is not None
    return found


def batch_of(node: RunningNode, key: PrivateKey) -> CommittedBatch | None:
    contract = contract_at(node.store, identifier(key))
    return None if contract is None else batch_at(node.store, contract, 0)


def made(contract: Contract, key: PrivateKey) -> OffchainBatch:
    """Return a contract's first batch, made by its operator without a node."""
    operator = Operator(CHAIN, contract.terms, key, MACHINES, start=Start(0, contract.until_ms))
    operator.accept(request(contract.terms.contract_id, 0), contract.until_ms + 1)
    operator.cut(contract.until_ms + 2)
    (batch,) = operator.durable(2).batches
    return batch


def has_data(node: RunningNode, commitment: BatchCommitment) -> bool:
    return node.service.offchain.availability.has(commitment)


async def operates(node: RunningNode, requests: Sequence[bytes]) -> None:
    """Have a node's operator take requests."""
    operating, contract_id = node.service.offchain.operating, identifier(node.identity.signing)
    await until(lambda: operating.operates(contract_id))
    outcomes = []
    for raw in requests:
        with trio.fail_after(60):
            while not (outcomes := await operating.send(contract_id, [raw]))[0].accepted:
                assert outcomes[0].retry_ms, outcomes
                await trio.sleep(outcomes[0].retry_ms / 1000)


@pytest.mark.parametrize("leads_badly", [False, True])
async def test_a_commitment_without_data_waits_alone_until_the_data_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, leads_badly: bool
) -> None:
    monkeypatch.setattr(availability, "MAX_PAUSE_S", 0.5)
    async with Net(tmp_path, genesis=GENESIS) as net:
        bad, other = net.nodes[0], net.nodes[1]
        key = OUTSIDER.signing
        await act(bad.service, MEMBERS[0].signing, Transfer(key.address, 10**6))
        await act(bad.service, key, opens())
        await until(lambda: all(contract_at(node.store, identifier(key)) for node in net.nodes))
        batch = made(contract_of(bad, key), key)
        raw = sign_transaction(
            CHAIN, key, nonce=1, fee_microcredit=10, expiry_height=50_000, body=CommitBatch(batch.commitment)
        )
        (refused,) = await other.service.submit([raw])
        assert (refused.accepted, refused.reason) == (False, "data_missing")

        async def believes(_sender: bytes, _commitment: BatchCommitment) -> bool:
            return True

        # A node that lets everything through, and other nodes that have to live with it.
        monkeypatch.setattr(bad.service._submission, "_holds_data", believes)
        if leads_badly:  # it orders such batches, too, and votes for them
            monkeypatch.setattr(bad.service._pool, "_data", NoData())
        (accepted,) = await bad.service.submit([raw])
        assert accepted.accepted

        def is_named() -> bool:
            return any(node.service.offchain._readiness._named for node in net.nodes[1:])

        async def others_act() -> None:
            for node in net.nodes[1:]:
                await act(node.service, node.identity.signing, Transfer(MEMBERS[0].address, 1))

        rounds = 0
        while leads_badly and not is_named():
            rounds += 1
            assert rounds < 100, "its turn never came"
            await others_act()
        for _ in range(3):
            await others_act()
        assert is_named() == leads_badly, "other leaders do not name it: nobody has to be given up for it"
        assert batch_of(other, key) is None
        await until(lambda: len(other.service._pool) == 1)
        assert other.service.status().offchain.data == "ok"
        # Some node gets the data; the others find it there.
        files = net.nodes[2].service.offchain._data
        files.put(batch.commitment.data_digest, batch.data)
        await until(lambda: all(batch_of(node, key) is not None for node in net.nodes))
        await until(lambda: all(has_data(node, batch.commitment) for node in net.nodes))
        assert all(info.score == 0 for node in net.up() for info in node.service.status().peers)


async def test_an_operator_withholding_data_from_one_member_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody is asked before the operator has answered, however slow this machine is.
    monkeypatch.setattr(availability, "HEDGE_S", 3_600.0)
    monkeypatch.setattr(availability, "FETCH_TIMEOUT_S", 60.0)
    async with Net(tmp_path, genesis=GENESIS) as net:
        operator, starved = net.nodes[0], net.nodes[3]
        real = operator.service.on_request

        async def stingy(peer_id: str, method: str, payload: bytes) -> bytes:
            if method == REQUEST_BATCH_DATA and peer_id == starved.identity.peer_id:
                return b"not what was asked for"
            return await real(peer_id, method, payload)

        monkeypatch.setattr(operator.service, "on_request", stingy)
        key = operator.identity.signing
        await act(operator.service, key, opens())
        await operates(operator, [request(identifier(key), number) for number in range(3)])
        await until(lambda: all(batch_of(node, key) is not None for node in net.nodes))
        committed = batch_of(starved, key)
        assert committed is not None
        await until(lambda: has_data(starved, committed.commitment))
        scores = {info.peer_id: info.score for info in starved.service.status().peers}
        assert scores[operator.identity.peer_id] > 0
        assert all(score == 0 for peer_id, score in scores.items() if peer_id != operator.identity.peer_id)


async def test_who_was_away_catches_up_without_the_data_and_repairs_it(tmp_path: Path) -> None:
    async with Net(tmp_path, genesis=GENESIS) as net:
        operator = net.nodes[0]
        key = operator.identity.signing
        await act(operator.service, key, opens())
        away = net.nodes[3]
        await away.kill()
        await operates(operator, [request(identifier(key), 0)])
        await until(lambda: all(batch_of(node, key) is not None for node in net.up()))
        committed = batch_of(operator, key)
        assert committed is not None
        await net.start(away)
        await until(lambda: batch_of(away, key) == committed)
        if away.identity.address in holders(
            committed.commitment.data_digest, [member.address for member in MEMBERS], 3
        ):
            await until(lambda: has_data(away, committed.commitment))
        # Also what a disk has lost comes back, however long ago it was committed.
        keeper = next(
            node
            for node in net.nodes[1:]
            if node.identity.address
            in holders(committed.commitment.data_digest, [member.address for member in MEMBERS], 3)
        )
        await keeper.stop()
        (tmp_path / str(keeper.number) / "offchain" / "data.sqlite").unlink()
        await net.start(keeper)
        await until(lambda: has_data(keeper, committed.commitment))
