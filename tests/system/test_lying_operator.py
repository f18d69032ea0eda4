# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator that forges its contract's state, on four real nodes: the others' watchers catch it within the window, and nobody helps."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.machines.micro_fees import MICRO_FEES, MicroFeesParameters, Pay
from ledger.bodies import Transfer
from ledger.codec import encode
from ledger.crypto.hashing import Tag, tagged_hash
from node.actions import Actor, network_rules
from node.api.contract_models import Contract
from node.cli.explained import paragraphs
from node.client import NodeClient
from node.contract_actions import claim, fund, open_contract
from node.contract_requests import KeptAnswer, prepare, send, wait_for
from node.devnet import Devnet, _started
from node.http_client import ApiError
from tests.system.kit import PATIENCE_S, agree, no_traceback, until
from tests.system.lying_operator import SIGN

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

LYING_OPERATOR = Path(__file__).parent / "lying_operator.py"
LIAR, USER_NODE = 3, 0
HONEST = (0, 1, 2)
BOND, DEPOSIT = 40 * 10**6, 5 * 10**6


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Devnet]:
    """Four nodes, the last of which lies."""
    devnet = Devnet.create(tmp_path / "devnet", 4)
    try:
        for index in HONEST:
            devnet.start_node(index)
        data_dir = devnet.manifest.nodes[LIAR].data_dir
        _started(devnet._keepers[LIAR], [sys.executable, str(LYING_OPERATOR), data_dir], Path(data_dir))
        devnet.wait_connected(timeout_s=180)
        yield devnet
        no_traceback(devnet)
    finally:
        devnet.stop()


def pay(user: Actor, contract: Contract, recipient: bytes) -> KeptAnswer:
    payment = Pay(recipient, 1_000, tagged_hash(Tag.BLOB, b"what it is for"))
    return send(user.client, user.rules.chain_id, prepare(user, contract, [payment]))


def ended(client: NodeClient, contract_id: bytes) -> bool:
    try:
        return client.contracts.contract(contract_id).status != "open"
    except ApiError:
        return False  # this node has not heard of it yet


def test_a_lying_operator_is_caught_and_punished_with_nobodys_help_but_a_watchers(network: Devnet) -> None:
    with network.clients() as clients:
        rules = network_rules(clients[0])
        actors = [Actor(client, network.identity(index), rules=rules) for index, client in enumerate(clients)]
        user, liar = actors[USER_NODE], actors[LIAR]
        watchers = {actors[index].identity.address: index for index in HONEST}
        opened = open_contract(liar, MICRO_FEES, encode(MicroFeesParameters(10**6)), BOND, PATIENCE_S)
        contract_id, own = opened.contract_id, user.identity.address
        fund(user, contract_id, own, DEPOSIT, PATIENCE_S)
        contract = user.client.contracts.contract(contract_id)

        inside = user.client.contracts.account
        until(lambda: inside(contract_id, own).next_sequence is not None, "the operator serves")

        # What comes first is right, and nobody minds.
        pay(user, contract, liar.identity.address)
        done = wait_for(lambda: user.client.contracts.status(contract_id, own, 0), "committed", PATIENCE_S)
        agree(network)
        assert {client.contracts.contract(contract_id).status for client in clients} == {"open"}
        assert not list(clients[0].offences())
        before = {address: clients[0].account(address).balance_microcredit for address in watchers}
        burnt = clients[0].supply().burnt_microcredit

        # The next batch begins with credits that the operator has written to itself. Its receipt and its commitment look like any other.
        (Path(network.manifest.nodes[LIAR].data_dir) / SIGN).touch()
        forged = pay(user, contract, liar.identity.address)
        lie = forged.signed.receipt.number
        assert done.batch is not None
        assert lie > done.batch
        until(lambda: all(ended(client, contract_id) for client in clients), "the contract is frozen on all nodes")

        # Frozen within the window, at the last final batch; the bond is gone, and half of it is a watcher's.
        found = [client.contracts.contract(contract_id) for client in clients]
        assert {one.status for one in found} == {"frozen"}
        assert {one.batch_count for one in found} <= set(range(lie + 1))
        assert {one.bond_microcredit for one in found} == {0}
        assert found[0].settles_height < found[0].last_height + 10 * found[0].window_microblocks
        (offence,) = clients[0].offences()
        assert offence.public_key == liar.identity.signing.public_key
        assert offence.reporter in watchers
        assert offence.contract_id == contract_id
        explained = paragraphs(clients[0].miner(offence.public_key))["honesty"]
        assert f"it committed a wrong batch of its contract {contract_id.hex()}" in explained
        for client in clients[1:]:
            assert list(client.offences()) == [offence]
        fees = 10 * rules.genesis.parameters.minimum_fee_microcredit
        gains = {address: clients[0].account(address).balance_microcredit - before[address] for address in watchers}
        assert BOND // 2 - fees <= gains[offence.reporter] <= BOND // 2
        assert BOND // 2 <= clients[0].supply().burnt_microcredit - burnt <= BOND // 2 + fees

        # What the user has paid in comes back, and the forged payment never happened.
        status = user.client.contracts.status(contract_id, own, 1)
        assert status.status == "voided"
        if found[0].final_count == 0:
            assert claim(user, found[0], own, PATIENCE_S).amount_microcredit == DEPOSIT
            assert user.client.contracts.contract(contract_id).escrow_microcredit == 0
        # The network goes on.
        actors[1].commit(Transfer(own, 1), PATIENCE_S)
    agree(network)
