# SPDX-License-Identifier: GPL-3.0-or-later
"""RepuCoin on a network of real processes: epochs, a silent leader, killed members, a lie, a member that signs twice.

The tests share one network and stand in the order of its story; the last one costs a member its seat for good.
"""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from ledger.bodies import ReportMisbehaviour
from ledger.errors import RejectionReason
from ledger.evidence import conflicting_votes
from ledger.rules import REPUTATION_UNIT
from ledger.transactions import encode_batch, sign_transaction, transaction_id
from ledger.votes import vote_digest
from node.actions import NetworkRules, network_rules
from node.api.reputation_models import Epoch
from node.client import NodeClient
from node.devnet import Devnet, _started
from node.http_client import ApiError
from node.identity import Identity
from node.wire import TOPIC_BATCHES, make_statement
from p2p.network import NetworkConfig, open_network
from tests.system.kit import PATIENCE_S, Spchain, agree, ran, settle_all, until
from tests.system.mining_kit import DUTY_PERCENT, ReadChain, epoch_of, light_load, mining_network, reach_epoch

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

TWO_FACED = Path(__file__).parent / "two_faced_node.py"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    with mining_network(tmp_path_factory.mktemp("epochs") / "devnet") as devnet:
        yield devnet


@pytest.fixture(scope="module")
def rules(network: Devnet) -> NetworkRules:
    with network.client() as client:
        return network_rules(client)


@pytest.fixture
def spchain(network: Devnet, tmp_path: Path) -> Spchain:
    return Spchain(tmp_path, network.directory)


def leader_index(network: Devnet, client: NodeClient) -> int:
    """Return which node leads; waits until somebody knows."""
    found = b""

    def is_known() -> bool:
        nonlocal found
        found = client.status().leader
        return bool(found)

    until(is_known, "a leader")
    return [entry.address for entry in network.manifest.nodes].index(found.hex())


def _beginning(epoch: Epoch) -> Epoch:
    """Return what does not change any more of the running epoch."""
    return epoch.model_copy(update={"seed": None, "microblocks": 0, "progress": None})


def test_four_miners_pin_keyblocks_and_all_nodes_agree_on_everything_that_follows(
    network: Devnet, rules: NetworkRules
) -> None:
    with network.clients() as clients:
        with light_load(network, rules, (0, 1)) as load:
            load.reach(20)
            # Enough for a retarget and a new chunk; and until the dice have fallen on different miners.
            reach_epoch(clients[0], 6)
            until(lambda: len({epoch.miner for epoch in clients[0].epochs(1).epochs}) > 1, "several miners")
        network.stop_miners()
        settle_all(network, load)
        agree(network)
        first, *others = (ReadChain(client) for client in clients)
        for other in others:
            assert other.epochs[:-1] == first.epochs[:-1], "epochs that are over: committee, keyblock, seed, target"
            assert _beginning(other.epochs[-1]) == _beginning(first.epochs[-1])
            assert other.blocks == first.blocks
        assert len({client.state().state_root for client in clients}) == 1
        for number in range(1, first.newest + 1):
            keyblocks = [client.keyblock(number) for client in clients]
            assert keyblocks.count(keyblocks[0]) == len(keyblocks)
            assert keyblocks[0].previous == first.epochs[number - 1].keyblock
            assert keyblocks[0].microblock == first.epochs[number - 1].root_hash
            assert keyblocks[0].keyblock_hash == first.epochs[number].keyblock
        assert len({epoch.seed for epoch in first.epochs}) == len(first.epochs), "each epoch has leaders of its own"
        assert len({block.leader for block in first.blocks[1:]}) > 1
        first.check_leaders()
        first.check_targets()
        first.check_reputations(clients[-1])


def test_a_silent_leader_costs_one_time_out_and_no_more(network: Devnet, rules: NetworkRules) -> None:
    """Without miners there is one epoch, so that every term of it is somebody's."""
    network.stop_miners()
    with network.client(0) as client:
        silent = leader_index(network, client)
        others = [index for index in range(4) if index != silent]
        key = bytes.fromhex(network.manifest.nodes[silent].public_key)
        network.kill(silent, signal.SIGSTOP)
    try:
        with network.client(others[0]) as client, light_load(network, rules, others) as load:
            terms = [client.block(load.since).term]

            def its_turn_has_come() -> bool:
                news = range(load.since + len(terms), client.status().height + 1)
                terms.extend(client.block(height).term for height in news)
                return any(after > before + 1 for before, after in pairwise(terms))

            # Beside the term in which it fell silent, which it may have filled already.
            until(its_turn_has_come, "another term of the silent leader", 300)
            load.reach(20)
    finally:
        network.kill(silent, signal.SIGCONT)
    assert not load.failures
    network.wait_connected()
    settle_all(network, load)
    with network.client(0) as client:
        epoch = epoch_of(client)
        network.start_miners(DUTY_PERCENT)
        reach_epoch(client, epoch + 1)
        network.stop_miners()
        agree(network)
        chain = ReadChain(client)
        chain.check_leaders()
        ended = [term for term in chain.terms if term.epoch == epoch]
        lost = [term for term in ended if term.microblocks < chain.genesis.parameters.term_microblocks]
        assert {term.leader for term in lost} == {key}, "nobody else loses a term"
        numbers = {term.number for term in lost}
        assert all(number + 1 not in numbers for number in numbers), "one time-out at a time"
        # What it did not do lowers its reputation, and only its own.
        chain.check_reputations(client)
        for miner in chain.miners:
            found = client.miner(miner, epoch + 1)
            assert found.change is not None
            missing = found.change.terms * found.leading.term_microblocks - found.change.microblocks
            assert (missing > 0) == (miner == key)
        assert client.miner(key, epoch + 1).leading.y2_nano < REPUTATION_UNIT


def test_f_members_killed_while_epochs_change_lose_nothing(network: Devnet, rules: NetworkRules) -> None:
    network.start_miners(DUTY_PERCENT)
    with network.client(0) as client:
        victim = leader_index(network, client)
    other = (victim + 1) % 4
    with network.client(other) as client, light_load(network, rules, (0, 1, 2, 3)) as load:
        load.reach(20)
        network.kill(victim, signal.SIGKILL)
        before = client.epochs().epochs
        reach_epoch(client, epoch_of(client) + 2)
        network.restart(victim, timeout_s=180)
        network.start_miners(DUTY_PERCENT)
        load.reach(20)
    assert {node for node, _ in load.failures} <= {victim}
    network.stop_miners()
    settle_all(network, load)
    agree(network)
    network.wait_connected()
    with network.clients() as clients:
        for client in clients:
            # The running one had not come to its end by then.
            assert client.epochs().epochs[: len(before) - 1] == before[:-1]
        ReadChain(clients[victim]).check_reputations(clients[victim])


def test_false_evidence_costs_its_sender_and_nobody_else(network: Devnet, rules: NetworkRules) -> None:
    liar, accused = network.identity(3), network.identity(0)
    chain, parameters = rules.chain_id, rules.genesis.parameters
    block_hashes = bytes(32), bytes(31) + b"\x01"
    # Signed by the liar itself: whose signatures they are said to be has signed neither.
    votes = [(block_hash, liar.signing.sign(vote_digest(chain, 0, 1, block_hash))) for block_hash in block_hashes]
    evidence = conflicting_votes(accused.public.public_key, 0, 1, votes[0], votes[1])
    with network.clients() as clients:
        account = clients[0].account(liar.address)
        before, accused_before = clients[0].supply(), clients[0].account(accused.address)
        raw = sign_transaction(
            chain,
            liar.signing,
            nonce=account.next_nonce,
            fee_microcredit=parameters.minimum_fee_microcredit,
            expiry_height=clients[0].status().height + 1000,
            body=ReportMisbehaviour(evidence),
        )
        # An honest node keeps its own users from it …
        (outcome,) = clients[0].submit([raw])
        assert (outcome.accepted, outcome.reason) == (False, RejectionReason.FALSE_EVIDENCE)
        # … so the liar speaks to the network itself.
        trio.run(_gossip, network, chain, encode_batch([raw]), transaction_id(raw))
        agree(network)
        for client in clients:
            assert client.transaction(transaction_id(raw)).receipt.reason == RejectionReason.FALSE_EVIDENCE
            paid = account.balance_microcredit - client.account(liar.address).balance_microcredit
            assert paid == parameters.minimum_fee_microcredit + parameters.false_evidence_microcredit
            burnt = client.supply().burnt_microcredit - before.burnt_microcredit
            assert burnt == parameters.false_evidence_microcredit
            assert client.account(accused.address) == accused_before
            assert list(client.offences()) == []
            assert client.miner(accused.public.public_key).is_honest


def _is_committed(client: NodeClient, identifier: bytes) -> bool:
    try:
        client.transaction(identifier)
    except ApiError:
        return False
    return True


class _Stranger:
    """A peer that greets properly and listens to nothing."""

    def __init__(self, chain: bytes, identity: Identity) -> None:
        self._chain, self._identity = chain, identity

    def hello(self) -> bytes:
        return make_statement(self._chain, self._identity.signing, self._identity.peer_id, "stranger", 0)

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        return peer_id

    def on_peer(self, peer_id: str, connected: bool) -> None: ...

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None: ...

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None: ...

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        return b""


async def _gossip(network: Devnet, chain: bytes, batch: bytes, transaction: bytes) -> None:
    """Hand a batch to the network over connections of our own, and wait until a transaction in it is committed."""
    identity = Identity.generate("stranger")
    config = NetworkConfig(
        identity_seed=identity.network_seed,
        network_id=chain,
        listen="127.0.0.1:0",
        bootstrap=tuple(entry.p2p_address for entry in network.manifest.nodes),
        topics=(TOPIC_BATCHES,),
    )
    with trio.fail_after(PATIENCE_S), network.client() as client:
        async with open_network(config, _Stranger(chain, identity)) as peer:
            # Again and again: what is said before anyone listens is lost.
            while not await trio.to_thread.run_sync(_is_committed, client, transaction):
                await peer.publish(TOPIC_BATCHES, batch)
                await trio.sleep(0.5)


def test_a_member_that_signs_twice_is_expelled(network: Devnet, rules: NetworkRules, spchain: Spchain) -> None:
    network.start_miners(DUTY_PERCENT)
    offender = 3
    honest = [0, 1, 2]
    entry = network.manifest.nodes[offender]
    key = bytes.fromhex(entry.public_key)
    network.kill(offender, signal.SIGTERM)
    _started(network._keepers[offender], [sys.executable, str(TWO_FACED), entry.data_dir], Path(entry.data_dir))
    network.wait_connected(timeout_s=180)
    with network.clients() as clients, light_load(network, rules, honest) as load:
        until(lambda: all(list(clients[index].offences()) for index in honest), "the proof is on the chain")
        (offence,) = clients[0].offences()
        assert offence.public_key == key
        assert offence.reporter != offence.address
        # It sits until its epoch ends; the next one begins without it.
        until(lambda: not any(clients[index].miner(key).is_honest for index in honest), "H = 0")
        load.reach(20)
    assert not load.failures
    network.stop_miners()
    settle_all(network, load)
    agree(network)
    with network.client(0) as client:
        chain = ReadChain(client)
        punished = next(
            epoch.number for epoch in chain.epochs if key not in {seat.public_key for seat in epoch.committee}
        )
        assert chain.epochs[punished - 1].root_height < offence.height <= chain.epochs[punished].root_height
        for epoch in chain.epochs:
            seats = Counter(seat.public_key for seat in epoch.committee)
            expected = [miner for miner in chain.miners if miner != key or epoch.number < punished]
            assert seats == Counter(expected)
        assert all(block.leader != offence.address for block in chain.blocks if block.epoch >= punished)
        # What everybody sees.
        for index in honest:
            with network.client(index) as seen_by:
                (shown,) = (miner for miner in seen_by.miners().miners if miner.public_key == key)
            assert (shown.reputation_nano, shown.seat, shown.is_honest, shown.is_eligible) == (0, None, False, False)
            assert shown.offence == offence.model_copy(update={"is_punished": True})
    at = ("--node", network.urls[honest[-1]])
    ranking = json.loads(ran(spchain("reputation", *at, "--json")))
    told = {miner["public_key"]: (miner["reputation_nano"], miner["is_honest"]) for miner in ranking["miners"]}
    assert told[entry.public_key] == (0, False)
    assert all(nano > 0 and is_honest for miner, (nano, is_honest) in told.items() if miner != entry.public_key)
    assert "H = 0, for good" in ran(spchain("reputation", "--miner", entry.public_key, *at))
