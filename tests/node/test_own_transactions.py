# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node sends of itself: remembered while it is under way, and no longer."""

from collections.abc import Sequence

import trio

from ledger import testing
from ledger.bodies import Transfer
from node.own_transactions import OwnTransactions
from node.submission import SubmitOutcome
from tests.node.api_kit import LoneNode


async def test_what_has_been_committed_is_not_remembered_for_ever() -> None:
    node, key = LoneNode(), testing.key(0)
    own = OwnTransactions(store=node.store, key=key, next_nonce=node.next_nonce, submit=node.submit)
    for number in range(20):
        outcome = await own.send(number, Transfer(testing.key(1).address, 1))
        assert outcome.accepted
        assert not own.is_under_way(number)
    assert len(own._sent) <= 1


async def test_what_waits_is_remembered_while_more_is_sent() -> None:
    node, key = LoneNode(), testing.key(0)
    node.commits = False
    own = OwnTransactions(store=node.store, key=key, next_nonce=node.next_nonce, submit=node.submit)
    for number in range(5):
        await own.send(number, Transfer(testing.key(1).address, 1))
    assert all(own.is_under_way(number) for number in range(5))


async def test_two_parts_of_a_node_never_take_the_same_nonce() -> None:
    node, key = LoneNode(), testing.key(0)
    node.commits = False

    async def slowly(raws: Sequence[bytes]) -> list[SubmitOutcome]:
        await trio.sleep(0.01)
        return await node.submit(raws)

    own = OwnTransactions(store=node.store, key=key, next_nonce=node.next_nonce, submit=slowly)
    outcomes: list[SubmitOutcome] = []

    async def send(number: int) -> None:
        outcomes.append(await own.send(number, Transfer(testing.key(1).address, 1)))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send, number)
    assert [outcome.reason for outcome in outcomes] == [""] * 5
