# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node sends of itself: remembered while it is under way, and no longer."""

from ledger import testing
from ledger.bodies import Transfer
from node.own_transactions import OwnTransactions
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
