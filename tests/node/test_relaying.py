# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that another node brings to the operator: receipts are checked, answers bounded, a lying or silent operator is told by name."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from ledger import testing
from ledger.codec import encode
from ledger.contract_bodies import CloseContract
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import sign_receipt
from node.offchain import relaying
from node.offchain.operating import Operating
from node.offchain.relayed import (
    MAX_RELAYED,
    REQUEST_SEND,
    REQUEST_STATUS,
    RelayedOutcomes,
    RelayedRequests,
    StatusQuery,
    decode_outcomes,
)
from node.offchain.relaying import Relaying
from node.offchain.statuses import SendOutcome
from p2p.errors import NotAvailable, RequestFailed, RequestFailure, UnknownMethod
from tests.node.offchain_kit import CHAIN, CONTRACT, OPERATOR, RULES, World, accepted, request

USER = testing.key(1).address


class Wire:
    """The network between one node and the operator's: passes on what is asked, or changes the answer."""

    def __init__(self) -> None:
        self.operator: Relaying
        self.change: Callable[[bytes], bytes] = lambda answer: answer
        self.messages: list[str] = []
        self.penalties: list[str] = []

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        assert (peer_id, timeout_s) == ("operator", relaying.TIMEOUT_S)
        self.messages.append(method)
        try:
            return self.change(await self.operator.answer("near", method, payload))
        except NotAvailable as error:
            raise RequestFailed(RequestFailure.NOT_AVAILABLE, peer_id, method, str(error)) from error

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        assert (peer_id, points > 0) == ("operator", True)
        self.penalties.append(reason)


class Nodes:
    """A user's node and the operator's, on one chain."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.wire = Wire()
        self.peers = {OPERATOR.address: "operator"}
        self.near: Relaying

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Relaying]:
        self.world.chain.open()
        async with self.world.node(senders="anyone") as operating:
            await self.world.ready()
            self.wire.operator = self._relaying(operating)
            self.near = self._relaying(self.world.idle(testing.key(7)))
            yield self.near

    def _relaying(self, own: Operating) -> Relaying:
        return Relaying(
            own=own,
            store=self.world.chain.store,
            network=self.wire,
            peers=lambda: self.peers,
            checkers=trio.CapacityLimiter(1),
        )


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def test_a_user_of_any_node_gets_the_operators_receipts_and_statuses(nodes: Nodes) -> None:
    async with nodes.open() as near:
        raws = [request(1, number) for number in range(MAX_RELAYED + 5)]
        outcomes = await near.send(CONTRACT, raws)
        receipts = [accepted(outcome).signed for outcome in outcomes]
        assert nodes.wire.messages == [REQUEST_SEND] * 2
        assert await near.next_sequence(CONTRACT, USER) == len(raws)
        status = await near.status_of(CONTRACT, USER, len(raws) - 1)
        assert status is not None
        # The chain may have been quick.
        assert status.status in ("included", "committed")
        assert status.index == receipts[-1].receipt.index
        assert await near.status_of(CONTRACT, USER, len(raws)) is None
        await nodes.world.all_committed()
        nodes.world.check(receipts)
        status = await near.status_of(CONTRACT, USER, 0)
        assert status is not None
        assert (status.status, status.number) == ("committed", 0)
        for _ in range(RULES.window_microblocks):
            nodes.world.chain.commit()
        status = await near.status_of(CONTRACT, USER, 0)
        assert status is not None
        assert status.status == "final"
        again = await near.send(CONTRACT, raws[:1])
        assert encode(accepted(again[0]).signed) == encode(receipts[0])


async def test_calls_at_one_time_share_messages(nodes: Nodes) -> None:
    async with nodes.open() as near:
        got: list[SendOutcome] = []

        async def send(user: int) -> None:
            got.extend(await near.send(CONTRACT, [request(user, 0)]))

        async with trio.open_nursery() as nursery:
            for user in range(1, 81):
                nursery.start_soon(send, user)
        assert [outcome.reason for outcome in got] == [""] * 80
        assert len(nodes.wire.messages) < 20
    assert not near._lines
    assert not near._queued


async def test_refusals_come_back_by_name_and_wrong_sizes_never_leave(nodes: Nodes) -> None:
    async with nodes.open() as near:
        good = request(1, 0)
        outcomes = await near.send(
            CONTRACT, [b"", bytes(10_000), b"\xc1", good[:-1] + bytes([good[-1] ^ 1]), request(2, 3), good]
        )
        assert [outcome.reason for outcome in outcomes] == [*["invalid_request"] * 4, "wrong_sequence", ""]
        assert [outcome.reason for outcome in await near.send(bytes(32), [good])] == ["contract_unknown"]
        assert await near.send(CONTRACT, []) == []
        assert not nodes.wire.penalties


def _with(answer: bytes, /, **changes: object) -> bytes:
    found = decode_outcomes(answer).outcomes
    return encode(RelayedOutcomes((msgspec.structs.replace(found[0], **changes), *found[1:])))


def _signed(outcomes: bytes, **changes: object) -> bytes:
    """Have the operator sign another leaf."""
    signed = decode_outcomes(outcomes).outcomes[0].signed
    assert signed is not None
    receipt = signed.receipt
    leaf = msgspec.structs.replace(receipt.leaf, **changes)
    return _with(outcomes, signed=sign_receipt(CHAIN, OPERATOR, msgspec.structs.replace(receipt, leaf=leaf)))


def _by_another(outcomes: bytes) -> bytes:
    signed = decode_outcomes(outcomes).outcomes[0].signed
    assert signed is not None
    return _with(outcomes, signed=sign_receipt(CHAIN, testing.key(7), signed.receipt))


LIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "no outcomes": lambda _: b"\x91\x90",
    "too many": lambda answer: encode(RelayedOutcomes(decode_outcomes(answer).outcomes * 2)),
    "no receipt": lambda answer: _with(answer, signed=None),
    "signed by another": _by_another,
    "another request": lambda answer: _signed(answer, request_digest=bytes(32)),
    "other outcomes": lambda answer: _signed(answer, outcomes_digest=bytes(32)),
    "outcomes that are not signed": lambda answer: _with(answer, outcomes=()),
    "a reason for the terminal": lambda answer: _with(answer, reason="\x1b[2J", signed=None),
    "a detail for the terminal": lambda answer: _with(answer, reason="busy", detail="\x1b[2J", signed=None),
    "too long": lambda answer: answer + bytes(2_000_000),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_operator_that_answers_with_something_else_is_blamed(nodes: Nodes, lie: str) -> None:
    async with nodes.open() as near:
        nodes.wire.change = LIES[lie]
        (outcome,) = await near.send(CONTRACT, [request(1, 0)])
        assert (outcome.reason, outcome.answer) == ("bad_answer", None)
        assert len(nodes.wire.penalties) == 1
        nodes.wire.change = lambda _: b"\xc1"
        with pytest.raises(NotFound):
            await near.status_of(CONTRACT, USER, 0)
        assert len(nodes.wire.penalties) == 2


async def test_an_operator_that_is_away_silent_or_ended_is_told_by_name(nodes: Nodes) -> None:
    async with nodes.open() as near:
        nodes.peers.clear()
        (outcome,) = await near.send(CONTRACT, [request(1, 0)])
        assert (outcome.reason, bool(outcome.retry_ms)) == ("unreachable", True)
        for ask in (near.next_sequence(CONTRACT, USER), near.status_of(CONTRACT, USER, 0)):
            with pytest.raises(NotFound, match="not connected"):
                await ask
        with pytest.raises(NotFound, match="no contract"):
            await near.next_sequence(bytes(32), USER)
        nodes.peers[OPERATOR.address] = "operator"

        def refuse(_: bytes) -> bytes:
            raise RequestFailed(RequestFailure.TIMEOUT, "operator", "x", "silent")

        nodes.wire.change = refuse
        nodes.wire.messages.clear()
        outcomes = await near.send(CONTRACT, [request(1, number) for number in range(MAX_RELAYED + 3)])
        assert {outcome.reason for outcome in outcomes} == {"unreachable"}
        assert len(outcomes) == MAX_RELAYED + 3
        assert nodes.wire.messages == [REQUEST_SEND], "what follows a message that failed is not sent"
        nodes.wire.change = lambda answer: answer
        assert nodes.world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        (outcome,) = await near.send(CONTRACT, [request(1, 1)])
        assert outcome.reason == "contract_ended"
        with pytest.raises(NotFound):
            await near.close(CONTRACT)


async def test_a_user_who_goes_away_leaves_others_an_answer(nodes: Nodes) -> None:
    async with nodes.open() as near:
        held, got = trio.Event(), []
        original = nodes.wire.request

        async def slow(peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
            await held.wait()
            return await original(peer_id, method, payload, timeout_s=timeout_s)

        nodes.wire.request = slow  # type: ignore[method-assign]

        async def stay(user: int) -> None:
            got.extend(await near.send(CONTRACT, [request(user, 0)]))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                await near.send(CONTRACT, [request(1, 0)])
            for user in (2, 3):
                nursery.start_soon(stay, user)
            await trio.testing.wait_all_tasks_blocked()
            held.set()
        assert [outcome.accepted for outcome in got] == [True, True]
        assert not near._lines


async def test_a_peer_gets_no_more_than_its_share_of_the_operators_work(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "MAX_OF_PEER", 2)
    monkeypatch.setattr(relaying, "MAX_AT_WORK", 3)
    async with nodes.open():
        operator, done, refused = nodes.wire.operator, [], []
        nodes.world.journal.step = lambda _name: trio.from_thread.run(trio.sleep, 0.05)

        async def ask(peer: str, user: int) -> None:
            payload = encode(RelayedRequests(CONTRACT, (request(user, 0),)))
            try:
                done.append(decode_outcomes(await operator.answer(peer, REQUEST_SEND, payload)))
            except NotAvailable:
                refused.append(peer)

        async with trio.open_nursery() as nursery:
            for user, peer in enumerate(["a", "a", "a", "b", "b"], start=1):
                nursery.start_soon(ask, peer, user)
        assert len(done) == 3
        assert sorted(refused) in (["a", "b"], ["a", "a"], ["b", "b"])
        assert not operator._at_work


async def test_bytes_that_are_no_message_are_their_senders_fault(nodes: Nodes) -> None:
    async with nodes.open():
        operator = nodes.wire.operator
        too_many = encode([CONTRACT, [b"x"] * (MAX_RELAYED + 1)])
        for method in (REQUEST_SEND, REQUEST_STATUS):
            for payload in (b"", b"\xc1", bytes(600_000), too_many, encode([CONTRACT, []]), encode([b"x", [b"x"]])):
                with pytest.raises(InvalidInput):
                    await operator.answer("peer", method, payload)
        with pytest.raises(UnknownMethod):
            await operator.answer("peer", "contract-other", b"")
        # About a contract that is not operated here there is nothing to say.
        with pytest.raises(NotAvailable):
            await operator.answer("peer", REQUEST_STATUS, encode(StatusQuery(bytes(32), USER, 0)))
