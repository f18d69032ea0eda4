# SPDX-License-Identifier: GPL-3.0-or-later
"""Which contract the feed of the access log goes to: found, named, ended, somebody else's, and gone."""

from pathlib import Path

import msgspec
import pytest
import trio

from contracts.batch_data import commit, open_data
from contracts.machines.micro_fees import MicroFeesParameters
from contracts.operator import Operator, Start
from contracts.shipped import MACHINES
from contracts.watcher import Watcher
from ledger import testing
from ledger.bodies import RegisterInstitution
from ledger.codec import encode
from ledger.contract_bodies import ChallengeBatch, CloseContract, CommitBatch, OpenContract
from ledger.contract_state import contract_id_of
from ledger.memory_store import MemoryStore
from node.offchain.access_feed import OFF
from node.offchain.statuses import SendOutcome
from tests.node.access_kit import H2, Hospital, all_logged, hospital, logged, opened, world
from tests.node.offchain_kit import CHAIN, CONTRACT, GENESIS, OPERATOR, World

__all__ = ["hospital", "world"]


async def test_the_only_contract_of_a_registered_institution_that_names_this_one_is_found(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.offchain.access_feed.LOOK_SHARE", 0)
    chain = world.chain
    feed = hospital.start(configured="")
    assert not await feed.step()
    assert "no contract of a registered institution" in feed.status(), "strangers may open what they like"
    stranger = testing.key(8)
    chain.open(opened(1), stranger)
    chain.open(opened(2, H2), testing.key(0))
    chain.open(OpenContract(3, "micro_fees", 1, encode(MicroFeesParameters(5)), 20_000), testing.key(0))
    assert chain.act(testing.key(0), RegisterInstitution("Hospital", "AT", testing.encryption_key(0))).reason == ""
    assert not await feed.step()
    assert feed.contract_id is None
    mine = chain.open(opened(4), testing.key(0)).terms.contract_id
    assert not await feed.step()
    assert feed.contract_id == mine


async def test_a_second_contract_changes_nothing_for_a_feed_and_makes_a_new_one_ask(
    world: World, hospital: Hospital, tmp_path: Path
) -> None:
    chain = world.chain
    assert chain.act(testing.key(0), RegisterInstitution("Hospital", "AT", testing.encryption_key(0))).reason == ""
    first = chain.open(opened(4), testing.key(0)).terms.contract_id
    feed = hospital.start(configured="")
    await feed.step()
    assert feed.contract_id == first
    second = chain.open(opened(5), testing.key(0)).terms.contract_id
    await feed.step()
    assert feed.contract_id == first
    again = hospital.restarted()
    again = hospital.start(configured="")
    await again.step()
    assert again.contract_id == first, "also after a restart"
    (tmp_path / "new").mkdir()
    new = Hospital(tmp_path / "new", world, H2).start(configured="")
    assert not await new.step()
    assert new.contract_id is None
    assert "set access_log_contract" in new.status()
    assert first.hex() in new.status()
    assert second.hex() in new.status()


@pytest.mark.parametrize(
    ("configured", "why"),
    [
        (OFF, "the configuration says so"),
        ("ab" * 32, "not on the chain here yet"),
        (contract_id_of(OPERATOR.public_key, 7).hex(), "no access log that takes entries of this institution"),
        (contract_id_of(OPERATOR.public_key, 8).hex(), "no access log that takes entries of this institution"),
    ],
)
async def test_a_wrong_contract_gets_nothing_and_the_status_says_why(
    world: World, hospital: Hospital, configured: str, why: str
) -> None:
    world.chain.open(opened(7, H2))
    world.chain.open(OpenContract(8, "micro_fees", 1, encode(MicroFeesParameters(5)), 20_000))
    hospital.append(3)
    feed = hospital.start(configured=configured)
    assert not await feed.step()
    assert hospital.way.sent == []
    assert why in feed.status()
    assert feed.status().startswith("off")


async def test_a_closed_contract_is_left_and_what_it_did_not_keep_goes_to_the_next(
    world: World, hospital: Hospital
) -> None:
    """The first batch counts; the receipt after it is void, for the operator has closed without it."""
    hospital.append(3)
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        await world.all_committed()
    async with world.node(commits=False):
        await world.ready()
        hospital.append(2)
        await hospital.feed_all()
        world.chain.waiting.clear()
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        hospital.append(1)
        assert not await hospital.feed.step()
        assert "is closed" in hospital.feed.status()
    world.chain.open(opened(1))
    following = contract_id_of(OPERATOR.public_key, 1)
    hospital.start(configured=following.hex())
    async with world.node():
        await world.ready(following)
        await hospital.feed_all()
        await world.all_committed(following)
    everything = [operation.entry for _, operation in logged(world) + logged(world, following)]
    assert everything == hospital.digests()
    assert [operation.entry for _, operation in logged(world)] == hospital.digests()[:3]


async def test_an_operator_that_breaks_its_promise_shows_in_the_status(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.append(1)
    async with world.node(commits=False):
        await world.ready()
        await hospital.feed_all()
        assert hospital.feed.status() == "ok"
        monkeypatch.setattr("node.offchain.access_feed.SILENT_MS", -1)
        assert "has not committed batch 0" in hospital.feed.status()


async def test_what_fraud_has_undone_is_logged_in_the_next_contract(
    world: World, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator signs for the entries, commits a batch with a lie, and is convicted."""
    chain, opened_ms = world.chain, world.chain.contract().until_ms
    terms = chain.contract().terms
    liar = Operator(CHAIN, terms, OPERATOR, MACHINES, start=Start(0, opened_ms))

    def answered(raw: bytes) -> list[SendOutcome]:
        liar.accept(raw, opened_ms + 5)
        return [SendOutcome(accepted=True, answer=liar.durable(liar.appended).answers[-1][1])]

    async def first(*_: object) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    hospital.append(3)
    hospital.way.instead = answered
    monkeypatch.setattr(hospital.way, "next_sequence", first)
    await hospital.feed_all()
    assert (hospital.feed.waiting, hospital.feed.status()) == (0, "ok")
    assert liar.cut(opened_ms + 10) is not None
    (right,) = liar.durable(liar.appended).batches
    (item,) = open_data(right.commitment, right.data).items
    lie = msgspec.structs.replace(item, root=bytes(32))
    commitment, data = commit(CONTRACT, 0, bytes(32), opened_ms, opened_ms + 10, [lie], ())
    assert chain.act(OPERATOR, CommitBatch(commitment)).reason == ""
    proof = Watcher(CHAIN, terms, MACHINES, Start(0, opened_ms)).follow(commitment, data)
    assert proof is not None
    assert chain.act(H2, ChallengeBatch(CONTRACT, 0, proof)).reason == ""
    assert chain.contract().status == "frozen"

    monkeypatch.undo()
    hospital.way.instead = lambda _raw: None
    chain.open(opened(1))
    following = contract_id_of(OPERATOR.public_key, 1)
    hospital.start(configured=following.hex())
    async with world.node():
        await world.ready(following)
        await hospital.feed_all()
        await world.all_committed(following)
    assert [operation.entry for _, operation in logged(world, following)] == hospital.digests()


async def test_a_node_that_changes_its_chain_looks_for_a_contract_again(world: World, hospital: Hospital) -> None:
    hospital.append(1)
    async with world.node():
        await world.ready()
        await hospital.feed_all()
    hospital.append(1)
    chain = hospital.feed._store
    hospital.feed._store = MemoryStore(GENESIS)
    assert not await hospital.feed.step()
    assert not await hospital.feed.step()
    assert "not on the chain here yet" in hospital.feed.status()
    hospital.feed._store = chain
    hospital.feed._looks_for_contract = True
    async with world.node():
        await world.ready()
        await hospital.feed_all()
        await all_logged(world, hospital)
