# SPDX-License-Identifier: GPL-3.0-or-later
"""Which batches of transactions wait for data: those whose commitments may take effect, and no others, whoever sends them."""

from pathlib import Path

import msgspec
import pytest

from ledger import load
from ledger.bodies import Transfer
from ledger.contract_bodies import CommitBatch
from node.offchain import readiness
from tests.node.data_kit import OPERATOR, OTHER_OPERATOR, STRANGER, Node, identifier


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_batch_is_neither_ordered_nor_voted_for_before_its_data_is_here(node: Node) -> None:
    batch = node.open().next()
    pending, other = node.commits(batch), node.batch_of(STRANGER, Transfer(OPERATOR.address, 1))
    node.pool.add([pending, other])
    assert node.pool.select((), 10) == (other.digest,), "nobody else waits"
    assert node.pool.not_ready([pending.digest, other.digest]) == (pending.digest,)
    assert node.pool.missing([pending.digest]) == (), "what a quorum voted for is executed without the data"
    assert node.owed() == [batch.commitment]
    assert node.readiness.judged(batch.commitment, is_good=True)
    assert node.pool.not_ready([pending.digest]) == ()
    assert set(node.pool.select((), 10)) == {pending.digest, other.digest}
    assert node.owed() == []


def test_what_does_not_fit_its_own_data_is_never_ordered_and_asked_for_once(node: Node) -> None:
    batch = node.open().next()
    pending = node.commits(batch)
    node.pool.add([pending])
    assert not node.readiness.judged(batch.commitment, is_good=False)
    assert node.pool.select((), 10) == ()
    assert node.owed() == []


def test_all_commitments_of_a_batch_count(node: Node) -> None:
    batches = node.open()
    first, second = batches.next(), batches.next()
    pending = node.commits(first, second)
    node.pool.add([pending])
    assert not node.readiness.judged(second.commitment, is_good=True)
    assert node.readiness.judged(first.commitment, is_good=True)


def test_a_commitment_that_the_chain_is_certain_to_refuse_needs_no_data(node: Node) -> None:
    batches = node.open()
    old, new = batches.next(), batches.next()
    node.readiness.judged(old.commitment, is_good=True)
    node.commit(node.commits(old))
    by_stranger, repeated = node.commits(new, sender=STRANGER), node.commits(old)
    node.pool.add([by_stranger, repeated])
    assert node.pool.not_ready([by_stranger.digest, repeated.digest]) == ()
    assert node.owed() == []


def test_nothing_is_fetched_for_contracts_that_are_not_open(node: Node, tmp_path: Path) -> None:
    unknown = node.open(OTHER_OPERATOR).next()
    made_up = msgspec.structs.replace(unknown.commitment, contract_id=identifier(OPERATOR))
    pending = node.batch_of(OPERATOR, CommitBatch(made_up))
    node.pool.add([pending])
    assert node.owed() == []
    assert node.pool.not_ready([pending.digest]) == (pending.digest,), "it may be opened by something under way"
    node.open()
    assert node.owed() == [made_up]


def test_an_ended_contract_sets_what_waited_free(node: Node) -> None:
    batch = node.open().next()
    pending = node.commits(batch)
    node.pool.add([pending])
    node.close()
    assert node.pool.not_ready([pending.digest]) == ()


def test_a_flood_of_one_operator_is_fetched_bit_by_bit_and_hinders_no_other(node: Node) -> None:
    flood = node.open().next().commitment
    other = node.open(OTHER_OPERATOR).next()
    lies = [msgspec.structs.replace(flood, data_digest=bytes([number]) * 32) for number in range(100)]
    for start in range(0, 100, 10):
        node.pool.add([node.batch_of(OPERATOR, *map(CommitBatch, lies[start : start + 10]))])
    node.pool.add([node.commits(other, sender=OTHER_OPERATOR)])
    owed = node.owed()
    assert sum(one.contract_id == flood.contract_id for one in owed) == readiness.MAX_PENDING
    assert other.commitment in owed
    for one in owed:
        node.readiness.judged(one, is_good=True)
    assert node.owed() == [], "only what is committed or given up makes room"


def test_numbers_far_ahead_wait(node: Node) -> None:
    commitment = node.open().next().commitment
    far = msgspec.structs.replace(commitment, number=readiness.MAX_AHEAD + 1)
    node.pool.add([node.batch_of(OPERATOR, CommitBatch(far))])
    assert node.owed() == []


def test_what_a_microblock_names_comes_first_and_beyond_the_bound(node: Node) -> None:
    commitment = node.open().next().commitment
    lies = [msgspec.structs.replace(commitment, data_digest=bytes([number]) * 32) for number in range(30)]
    batches = [node.batch_of(OPERATOR, CommitBatch(lie)) for lie in lies]
    node.pool.add(batches)
    node.readiness.named([batches[-1].digest, b"unknown"])
    first = node.readiness.owed()[0]
    assert first.is_named
    assert first.commitment == lies[-1]
    node.pool.remove([batches[-1].digest])
    assert lies[-1] not in node.owed()


def test_a_batch_is_judged_once_for_each_microblock_however_many_of_its_contracts_have_moved(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = node.open().next(), node.open(number=1).next()
    node.pool.add([node.commits(first, second)])
    judged: list[bytes] = []
    monkeypatch.setattr(node.readiness, "_judge_batch", judged.append)
    node.commit(node.commits(first), node.commits(second))
    assert len(judged) == 1


def test_a_microblock_publishes_no_more_than_members_can_fetch_in_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = node.open()
    made = [batches.next() for _ in range(3)]
    pending = [node.commits(batch) for batch in made]
    node.pool.add(pending)
    for batch in made:
        node.readiness.judged(batch.commitment, is_good=True)
    names = [batch.digest for batch in pending]
    monkeypatch.setattr(load, "MAX_MICROBLOCK_DATA_BYTES", 2 * made[0].commitment.data_bytes + 100)
    assert node.pool.select((), 10) == tuple(names[:2])
    assert not node.pool.is_too_much(names[:2])
    assert node.pool.is_too_much(names), "nor does anybody vote for more"
    monkeypatch.setattr(load, "MAX_MICROBLOCK_DATA_BYTES", 1)
    assert node.pool.select((), 10) == ()


def test_nothing_is_fetched_for_a_batch_that_commits_to_too_much(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = node.open()
    first, second = batches.next(), batches.next()
    monkeypatch.setattr(readiness, "MAX_BATCH_DATA_BYTES", first.commitment.data_bytes + 1)
    both = node.commits(first, second)
    node.pool.add([both])
    node.readiness.named([both.digest])
    assert node.owed() == []
    assert node.pool.select((), 10) == ()
    assert node.pool.not_ready([both.digest]) == (both.digest,)


def test_nothing_is_remembered_of_batches_that_left(node: Node) -> None:
    batch = node.open().next()
    pending = node.commits(batch)
    node.pool.add([pending])
    node.readiness.named([pending.digest])
    node.readiness.judged(batch.commitment, is_good=True)
    assert node.readiness.is_pending(identifier(OPERATOR), batch.commitment.data_digest)
    assert node.readiness._held
    node.pool.remove([pending.digest])
    memory = node.readiness
    kept = (memory._batches, memory._unready, memory._by_contract, memory._named)
    counted = (memory._pending, memory._pending_data, memory._held)
    assert not any((*kept, *counted))
    assert not memory.is_pending(identifier(OPERATOR), batch.commitment.data_digest)
