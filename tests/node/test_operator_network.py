# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator among four real nodes: users at any of them, a kill of its node in between, requests that the chain has forced meanwhile."""

from collections.abc import Sequence
from pathlib import Path

import trio

from contracts.operator import Answer
from ledger.bodies import Transfer
from ledger.contract_bodies import ForceOperation
from ledger.contract_queries import contract_at
from ledger.contract_state import Contract
from ledger.offchain import is_signed_receipt
from node.offchain.statuses import RequestStatus
from tests.node.kit import until
from tests.node.networks import MEMBERS, Net, RunningNode
from tests.node.test_offchain_network import CHAIN, GENESIS, USER, act, identifier, opens, request

OPERATOR = MEMBERS[0].signing
CONTRACT = identifier(OPERATOR)


def contract(node: RunningNode) -> Contract | None:
    return contract_at(node.store, CONTRACT)


async def send(node: RunningNode, raws: Sequence[bytes]) -> list[Answer]:
    """Send requests through a node until all are accepted, as a client does."""
    with trio.fail_after(60):
        while True:
            outcomes = await node.service.offchain.operating.send(CONTRACT, raws)
            if all(outcome.accepted for outcome in outcomes):
                return [outcome.answer for outcome in outcomes if outcome.answer is not None]
            assert all(outcome.accepted or outcome.retry_ms for outcome in outcomes), outcomes
            await trio.sleep(0.2)


async def status(node: RunningNode, sequence: int) -> RequestStatus | None:
    return await node.service.offchain.operating.status_of(CONTRACT, USER.address, sequence)


async def reaches(node: RunningNode, payer: RunningNode, sequence: int, stages: Sequence[str]) -> RequestStatus:
    """Wait until an operation has come to one of some stages as a node sees it, while another one's account makes microblocks come."""
    with trio.fail_after(90):
        while True:
            found = await status(node, sequence)
            if found is not None and found.status in stages:
                return found
            await act(payer.service, payer.identity.signing, Transfer(MEMBERS[1].address, 1))


async def test_users_of_any_node_are_served_through_a_kill_of_the_operators(tmp_path: Path) -> None:
    async with Net(tmp_path, genesis=GENESIS) as net:
        operator, near, payer = net.nodes[0], net.nodes[2], net.nodes[3]
        await act(operator.service, OPERATOR, opens())
        await until(lambda: all(contract(node) for node in net.nodes))
        assert await send(operator, [request(CONTRACT, 0)])
        answers = await send(near, [request(CONTRACT, number) for number in range(1, 70)])
        assert all(is_signed_receipt(CHAIN, OPERATOR.public_key, answer.signed) for answer in answers)
        assert await near.service.offchain.operating.next_sequence(CONTRACT, USER.address) == 70
        last = await reaches(near, payer, 69, ("committed", "final"))
        assert last.number == answers[-1].signed.receipt.number
        final = await reaches(near, payer, 0, ("final",))
        assert final.committed_height is not None
        assert final.final_height == final.committed_height + 8

        promised = await send(near, [request(CONTRACT, 70)])
        await operator.kill()
        (away,) = await near.service.offchain.operating.send(CONTRACT, [request(CONTRACT, 71)])
        assert (away.reason, away.retry_ms > 0) == ("unreachable", True)
        await act(near.service, near.identity.signing, ForceOperation(CONTRACT, request(CONTRACT, 71)))
        await net.start(operator)
        await net.connected()
        assert await send(near, [request(CONTRACT, 70)]) == promised
        await reaches(near, payer, 71, ("committed", "final"))
        found = contract(near)
        assert found is not None
        assert (found.status, found.answered_count) == ("open", 1)
        await send(near, [request(CONTRACT, 72)])
        await reaches(operator, payer, 72, ("committed", "final"))
        # Every node has executed all of it again, and nobody has found anything wrong.
        for node in net.nodes:
            assert node.service.status().agreement == "ok"
