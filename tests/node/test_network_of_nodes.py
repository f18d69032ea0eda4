# SPDX-License-Identifier: GPL-3.0-or-later
"""Four real nodes over loopback: agreement, a killed one, a silent one, a hostile one."""

from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.messages import Vote
from ledger.bodies import Transfer
from ledger.codec import encode
from ledger.transactions import encode_batch, sign_transaction
from node.api.views import block_at
from node.service import NodeService
from node.wire import (
    KIND_CONSENSUS,
    KIND_HAVE,
    KIND_STORED,
    REQUEST_BATCHES,
    REQUEST_CHAIN,
    REQUEST_KEEP_BLOB,
    TOPIC_BATCHES,
    TOPIC_CONSENSUS,
    Digests,
    make_statement,
)
from p2p.errors import RequestFailed
from p2p.network import Network, NetworkConfig, open_network
from tests.node.kit import forged, until
from tests.node.networks import CHAIN, MEMBERS, OUTSIDER, Net, RunningNode, pay


async def submitted(service: NodeService, *raws: bytes) -> None:
    for outcome in await service.submit(raws):
        assert outcome.accepted, outcome


def _expects(service: NodeService, nonce: int) -> bool:
    return service.next_nonce(MEMBERS[0].address) >= nonce


def _has_committed(service: NodeService, transactions: int) -> bool:
    return service.status().transactions == transactions


async def test_nodes_agree_on_what_clients_submit_anywhere(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        async with trio.open_nursery() as nursery:
            for sender, node in enumerate(net.nodes):
                nursery.start_soon(submitted, node.service, *(pay(sender, nonce) for nonce in range(20)))
        await net.agreed(80)
        # One sender through all nodes: whoever is overtaken is ordered again.
        last = [pay(0, 20 + number) for number in range(8)]
        outcomes = []
        for number, raw in enumerate(last):
            service = net.nodes[number % 4].service
            await until(partial(_expects, service, 20 + number))
            outcomes += await service.submit([raw])
        assert all(outcome.accepted for outcome in outcomes)
        await net.agreed(88)
        receipts = await net.nodes[3].service.wait([outcome.id for outcome in outcomes], 10)
        assert [receipt.reason for receipt in receipts.values()] == [""] * 8
        (again,) = await net.nodes[2].service.submit([last[0]])
        assert again.accepted, "what took effect is accepted, however often it comes"


async def test_the_others_go_on_without_a_killed_node_which_catches_up(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        victim = net.nodes[1]
        await submitted(victim.service, *(pay(1, nonce) for nonce in range(5)))
        with trio.fail_after(60):
            await victim.kill()
        for start in range(0, 60, 5):
            await submitted(net.nodes[0].service, *(pay(0, nonce) for nonce in range(start, start + 5)))
        await net.agreed(65)
        missed = net.nodes[0].height
        await net.start(victim)
        await net.agreed(65)
        assert victim.height >= missed
        await submitted(victim.service, pay(1, 5))
        await net.agreed(66)
        assert all(info.score == 0 for node in net.up() for info in node.service.status().peers)


async def test_everything_accepted_survives_the_end_of_all_nodes(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        await submitted(net.nodes[0].service, *(pay(0, nonce) for nonce in range(30)))
        for node in net.nodes:
            await node.kill()
        for node in net.nodes:
            await net.start(node)
        await net.connected()
        await net.agreed(30)


async def test_a_silent_member_is_passed_over(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        service, nonce = net.nodes[0].service, 0
        epoch = service._driver.core.epoch
        drawn, index_of = epoch.schedule(epoch.root.seed).drawn, epoch.committee.index_of
        # Who leads first depends on the chain; it is not the one who is silent.
        silent = next(number for number in (1, 2) if index_of(MEMBERS[number].address) != drawn(0))
        driver = net.nodes[silent].service._driver
        driver._ports = msgspec.structs.replace(driver._ports, send=lambda *_: None, broadcast=lambda _: None)
        # A slow machine may have come to later terms by now.
        spoke = net.nodes[silent].service.status().term
        turn = next(term for term in range(spoke + 1, 100) if drawn(term) == index_of(MEMBERS[silent].address))
        while service.status().term <= turn:
            assert nonce < 200, "the network stands still"
            await submitted(service, pay(0, nonce))
            nonce += 1
            await until(partial(_has_committed, service, nonce))
        await net.agreed(nonce)
        blocks = [block_at(service.store, height) for height in range(1, service.store.head().height + 1)]
        assert MEMBERS[silent].address not in {block.leader for block in blocks if block.term > spoke}
        assert blocks, "the others go on; in which terms depends on how patient a machine under load lets them be"


class _Hostile:
    """A peer that greets properly and then speaks as it likes."""

    def __init__(self, peer_id: str) -> None:
        self._peer_id = peer_id
        self.answer = b"\xc1rubbish"

    def hello(self) -> bytes:
        return make_statement(CHAIN, OUTSIDER.signing, self._peer_id, "friendly", 10**9)

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        return peer_id

    def on_peer(self, peer_id: str, connected: bool) -> None: ...

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None: ...

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None: ...

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        return self.answer


def _config(node: RunningNode) -> NetworkConfig:
    return NetworkConfig(
        identity_seed=OUTSIDER.network_seed,
        network_id=CHAIN,
        listen="127.0.0.1:0",
        bootstrap=(node.service.status().p2p_addresses[0],),
        topics=(TOPIC_BATCHES, TOPIC_CONSENSUS),
    )


async def _connected(network: Network, node: RunningNode) -> str:
    peer_id = node.service.status().peer_id
    await until(lambda: any(info.peer_id == peer_id for info in network.peers()))
    return peer_id


def _score(node: RunningNode) -> int:
    return node.service._network._scores.points(OUTSIDER.peer_id)


_MADE_UP_VOTE = encode(Vote(0, 1, b"h" * 32, MEMBERS[0].address, b"s" * 64))
ATTACKS = {
    "rubbish": b"\xc1\xff\x00rubbish",
    "vote": _MADE_UP_VOTE,
    "empty": b"",
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_rubbish_bans_its_sender_and_nothing_else_happens(tmp_path: Path, attack: str) -> None:
    async with Net(tmp_path) as net:
        node = net.nodes[0]
        async with open_network(_config(node), _Hostile(OUTSIDER.peer_id)) as network:
            peer_id = await _connected(network, node)
            for _ in range(12):
                network.send(peer_id, KIND_CONSENSUS, ATTACKS[attack])
                network.send(peer_id, 200, ATTACKS[attack])
                network.send(peer_id, KIND_STORED, ATTACKS[attack])
                network.send(peer_id, KIND_HAVE, ATTACKS[attack])
            await until(lambda: _score(node) >= 100)
            await until(lambda: all(info.peer_id != OUTSIDER.peer_id for info in node.service.status().peers))
        await submitted(node.service, pay(0, 0))
        await net.agreed(1)


async def test_a_stranger_cannot_fill_a_node_nor_get_anything_out_of_it(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        node = net.nodes[0]
        async with open_network(_config(node), _Hostile(OUTSIDER.peer_id)) as network:
            peer_id = await _connected(network, node)
            for method, payload in (
                (REQUEST_CHAIN, b"?"),
                (REQUEST_BATCHES, b"?"),
                ("none", b""),
                (REQUEST_KEEP_BLOB, bytes(32)),
            ):
                with pytest.raises(RequestFailed):
                    await network.request(peer_id, method, payload, timeout_s=5)
            # Valid signatures of somebody who owns nothing: not kept, not forwarded, not acknowledged.
            await until(lambda: network.gossip_service.peer_queues)  # what is said before anyone listens is lost
            poor = encode_batch([pay_from_nowhere(nonce) for nonce in range(10)])
            await network.publish(TOPIC_BATCHES, poor)
            # What it announces it does not have.
            network.send(peer_id, KIND_HAVE, encode(Digests((b"d" * 32,))))
            before = _score(node)
            await network.publish(TOPIC_BATCHES, encode_batch([forged(pay(3, 0))]))
            await until(lambda: _score(node) > before)
            assert node.service.status().pending_batches == 0
        await submitted(node.service, pay(0, 0))
        await net.agreed(1)
        await until(lambda: all(len(n.service.status().peers) >= 3 for n in net.up()))


def pay_from_nowhere(nonce: int) -> bytes:
    return sign_transaction(
        CHAIN, OUTSIDER.signing, nonce=nonce, fee_microcredit=10, expiry_height=5_000, body=Transfer(b"r" * 20, 1)
    )


async def test_a_failing_task_ends_its_node_with_that_error_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Net(tmp_path, count=3) as net:
        broken = RunningNode(net, 3, MEMBERS[3])
        caught: list[BaseException] = []

        async def run_broken() -> None:
            try:
                await broken.run()
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is what the test looks at
                caught.append(error)

        net.nursery.start_soon(run_broken)
        await until(lambda: hasattr(broken, "service") and len(broken.service.status().peers) == 3)

        def boom(*_: object) -> int:
            raise ZeroDivisionError("our own fault")

        monkeypatch.setattr(broken.service._driver.core, "next_tick_ms", boom)
        with trio.fail_after(60):
            await broken.ended.wait()
        await until(lambda: caught)
        assert "our own fault" in repr(caught[0])
        await net.connected()
        await submitted(net.nodes[0].service, pay(0, 0))
        await net.agreed(1)


async def test_a_clean_stop_comes_to_an_end(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        await submitted(net.nodes[0].service, pay(0, 0))
        with trio.fail_after(60):
            for node in net.nodes:
                await node.stop()
