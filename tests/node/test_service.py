# SPDX-License-Identifier: GPL-3.0-or-later
"""The node from inside: what it promises to clients, and what it takes from peers."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from consensus.messages import Certificate, Certified
from ledger import testing
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch
from ledger.errors import InvalidInput, StoreError
from ledger.offchain import BatchCommitment
from ledger.transactions import encode_batch, transaction_id
from node import batches, submission
from node.batches import Batch, check_batch
from node.service import NodeService, SubmitOutcome
from node.wire import KIND_HAVE, KIND_STORED, REQUEST_CHAIN, TOPIC_BATCHES, TOPIC_CONSENSUS, ChainRequest, Digests
from p2p.errors import NotAvailable, UnknownMethod
from tests.node.kit import forged, names, until
from tests.node.networks import CHAIN, MEMBERS, Net, pay

STRANGER = "12D3KooWNobody"


async def _outcomes(service: NodeService, into: list[SubmitOutcome], *raws: bytes) -> None:
    into += await service.submit(raws)


async def test_accepted_means_copies_elsewhere_and_a_resubmission_is_told_no_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "SAFE_TIMEOUT_S", 0.3)
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        for _ in range(2):
            (outcome,) = await service.submit([pay(0, 0)])
            assert (outcome.accepted, outcome.reason) == (False, "not_replicated")
        service._batcher.acknowledged(next(iter(service._pool)).digest, MEMBERS[1].address)
        (outcome,) = await service.submit([pay(0, 0)])
        assert outcome.accepted
        assert len(service._pool) == 1
        assert await service.wait([outcome.id], 0.05) == {}


async def test_only_members_copies_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "SAFE_TIMEOUT_S", 0.3)
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        await service.submit([pay(0, 0)])
        digest = next(iter(service._pool)).digest
        await service.on_direct(STRANGER, KIND_STORED, encode(Digests((digest,))))
        (outcome,) = await service.submit([pay(0, 0)])
        assert outcome.reason == "not_replicated"


async def test_each_of_a_submission_gets_its_own_answer(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        service = net.nodes[0].service
        raws = [pay(0, 0), pay(0, 0), forged(pay(0, 1)), b"rubbish", pay(0, 7), pay(0, 1), pay(0, 1, amount=2)]
        outcomes = await service.submit(raws)
        assert [outcome.reason for outcome in outcomes] == [
            "",
            "",
            "bad_signature",
            "malformed",
            "nonce_gap",
            "",
            "nonce_used",
        ]
        receipts = await service.wait([outcome.id for outcome in outcomes if outcome.accepted], 60)
        assert [receipt.reason for receipt in receipts.values()] == ["", ""]
        assert await service.submit([]) == []


async def test_a_cancelled_submission_blocks_nobody(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        service = net.nodes[0].service
        for nonce in range(10):
            with trio.move_on_after(0.001 * nonce):
                await service.submit([pay(0, nonce)])
            next_nonce = service.next_nonce(MEMBERS[0].address)
            for missing in range(next_nonce, nonce + 1):
                (outcome,) = await service.submit([pay(0, missing)])
                assert outcome.accepted, outcome
        await net.agreed(10)
        assert not service._batcher._unsafe
        assert not service._batcher._acks


async def test_what_was_overtaken_commits_and_its_client_hears_of_nothing_else(tmp_path: Path) -> None:
    """Two transactions of one sender through two nodes; the later one's batch is ordered first."""
    async with Net(tmp_path) as net:
        first, second = net.nodes[0].service, net.nodes[1].service
        second._mempool.track(alone(pay(0, 0)).transactions)
        outcomes: list[SubmitOutcome] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_outcomes, second, outcomes, pay(0, 1))
            await until(lambda: any(_reasons(node.service) for node in net.nodes))
            nursery.start_soon(_outcomes, first, outcomes, pay(0, 0))
        assert all(outcome.accepted for outcome in outcomes)
        receipts = await second.wait([outcome.id for outcome in outcomes], 60)
        assert [receipt.reason for receipt in receipts.values()] == ["", ""]
        await net.agreed(2)


def alone(raw: bytes) -> Batch:
    return check_batch(encode_batch([raw]), testing.rules_of(CHAIN))


def _reasons(service: NodeService) -> bool:
    receipt = service.store.receipt(transaction_id(pay(0, 1)))
    return receipt is not None and receipt.reason == "nonce_gap"


async def test_a_full_disk_refuses_with_a_remedy_and_forgets_what_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Net(tmp_path) as net:
        service = net.nodes[0].service

        def full(*_: object) -> None:
            raise StoreError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(service.store, "put_batches", full)
            (outcome,) = await service.submit([pay(0, 0)])
            assert outcome.reason == "storage"
            assert "another node" in outcome.detail
            assert service.status().mempool_transactions == 0
            # A batch of a peer finds no room either: no copy is claimed.
            with pytest.raises(NotAvailable):
                await service.on_gossip(TOPIC_BATCHES, net.nodes[1].service.status().peer_id, encode_batch([pay(1, 0)]))
        (outcome,) = await service.submit([pay(0, 0)])
        assert outcome.accepted
        await net.agreed(1)


async def test_a_leader_cannot_fill_a_node_with_batches_that_it_only_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        # Nobody orders them: what they commit to is of no contract that is known.
        made = [alone(commits_to_nothing(nonce)) for nonce in range(6)]
        monkeypatch.setattr(batches, "NAMED_BYTES", 2 * batches.memory_bytes(made[0]))
        for batch in made:
            asked = frozenset({batch.digest})
            assert await service._intake.take_answer([batch.raw], asked=asked, certified=frozenset(), source=None) == ""
        assert service._pool.missing(names(made)) == tuple(names(made[:4]))
        assert service.status().mempool_transactions == 2


async def test_an_own_transaction_outlives_a_batch_of_somebody_else_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "NAMED_BYTES", 0)
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        (own,) = testing.check(CHAIN, [commits_to_nothing(0)])
        service._mempool._own[own.id] = own
        foreign = [alone(own.raw), alone(commits_to_nothing(1))]
        for batch in foreign:
            asked = frozenset({batch.digest})
            await service._intake.take_answer([batch.raw], asked=asked, certified=frozenset(), source=None)
        assert service._pool.missing(names(foreign)) == (foreign[0].digest,)
        assert service._mempool.is_own(own.id)


def commits_to_nothing(nonce: int) -> bytes:
    digest = bytes(32)
    commitment = BatchCommitment(digest, 0, digest, digest, digest, 1, 1, digest, 1, 0, 0, ())
    return testing.signed(CHAIN, testing.key(0), CommitBatch(commitment), nonce)


async def test_wrong_messages_are_refused_by_type(tmp_path: Path) -> None:
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        rubbish: list[Callable[[], Awaitable[object]]] = [
            partial(service.on_gossip, TOPIC_CONSENSUS, STRANGER, b"\xc1"),
            partial(service.on_direct, STRANGER, 16, b"\xc1"),
            partial(service.on_direct, STRANGER, KIND_STORED, b"\xc1"),
            partial(service.on_direct, STRANGER, KIND_HAVE, b"\xc1"),
            partial(service.on_direct, STRANGER, 99, b""),
            partial(service.on_request, STRANGER, REQUEST_CHAIN, b"\xc1"),
            partial(service.on_gossip, TOPIC_BATCHES, STRANGER, encode_batch([forged(pay(0, 0))])),
            partial(service.on_gossip, TOPIC_BATCHES, STRANGER, b"\xc1"),
            partial(service.on_gossip, TOPIC_BATCHES, STRANGER, encode_batch([])),
        ]
        for call in rubbish:
            with pytest.raises(InvalidInput):
                await call()
        with pytest.raises(UnknownMethod):
            await service.on_request(STRANGER, "none", b"")
        assert len(service._pool) == 0


async def test_what_a_node_has_not_looked_at_is_not_passed_on(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        service = net.nodes[0].service
        (outcome,) = await service.submit([pay(0, 0)])
        assert outcome.accepted
        await net.agreed(1)
        old = encode(Certified(service._driver.core.epoch.root_certificate, None))
        false = encode(Certified(Certificate(0, 2**40, bytes(32), ()), None))
        with pytest.raises(NotAvailable, match="certificate of round 0"):
            service.take_message(old)
        with pytest.raises(InvalidInput):
            service.take_message(false)
        # Nothing runs in between: the node does not try to write before the reason is gone again.
        service._driver.halted = "no space left"
        with pytest.raises(NotAvailable, match="cannot write"):
            service.take_message(false)
        service._driver.halted = ""


async def test_messages_wait_until_the_node_is_composed(tmp_path: Path) -> None:
    async with Net(tmp_path, count=1) as net:
        service = net.nodes[0].service
        ready, service._attached = service._attached, trio.Event()
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await service.on_request(STRANGER, REQUEST_CHAIN, encode(ChainRequest(0, 0, 1))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.move_on_after(0.05):
                await service.on_gossip(TOPIC_CONSENSUS, STRANGER, b"\xc1")
            assert answers == []
            service._attached.set()
            await until(lambda: answers)
        assert ready.is_set()
