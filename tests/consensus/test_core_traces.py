# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol step by step, with nothing but messages passed by hand."""

import pytest

from consensus.events import (
    Broadcast,
    Commit,
    Event,
    Executed,
    PayloadChanged,
    Persist,
    Received,
    ReceivedChain,
    Refused,
    RequestBatches,
    RequestChain,
    Send,
    Tick,
)
from consensus.messages import Certified, Proposal, Timeout, Vote
from tests.consensus.kit import TIMING, Net, batch, hash_of, messages


def test_the_happy_path_message_by_message() -> None:
    net = Net()
    lead, one, other, last = net.order
    net.give("a", one, other, last)
    assert not net.queue, "only the leader acts on a batch"
    assert net.step(lead, PayloadChanged()) == []
    net.pools[lead].here.append(batch("a"))
    effects = net.step(lead, PayloadChanged())
    assert [type(e) for e in effects] == [Persist, Broadcast, Persist], "promise, proposal, own vote to itself"
    proposal = messages(effects)[0]
    assert isinstance(proposal, Proposal)
    assert proposal.signed.microblock.batches == (batch("a"),)
    net.step(last, Received(proposal))
    for voter in (one, other):
        effects = net.step(voter, Received(proposal))
        assert [type(e) for e in effects] == [Persist, Send], "the promise is durable before the vote leaves"
        assert isinstance(effects[1], Send)
        assert effects[1].to == net.address(lead)
        net.queue.clear()
        effects = net.step(lead, Received(effects[1].message))
    assert [type(e) for e in effects] == [Persist, Broadcast, Persist]
    second = messages(effects)[0]
    assert isinstance(second, Proposal)
    assert second.certificate.round == 1
    assert second.signed.microblock.header.executed_height == 0
    assert [vote.member for vote in second.certificate.votes] == sorted([lead, one, other])
    net.run()
    assert net.heights() == [1, 1, 1, 1]
    assert [type(m) for m in messages(net.said(Broadcast, lead))] == [Proposal, Proposal, Certified]


def test_many_batches_commit_in_order_across_terms_on_every_member_and_observer() -> None:
    net = Net(term=2, observers=1)
    for name in "abcdefgh":
        net.give(name)
        net.run()
    assert net.agrees()
    assert set(net.heights()) == {max(net.heights())}
    ordered = [digest for block in net.disks[4].chain for digest in block.signed.microblock.batches]
    assert ordered == [batch(name) for name in "abcdefgh"]
    terms = {block.signed.microblock.header.term for block in net.disks[0].chain}
    assert len(terms) >= 4
    assert not [m for m in messages(net.said(Broadcast)) if isinstance(m, Timeout)]
    assert net.said(Send, 4) == [], "an observer says nothing"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_committees_of_other_sizes_commit(n: int) -> None:
    net = Net(n=n, term=2)
    for name in "abc":
        net.give(name)
        net.run()
    assert net.agrees()
    assert len(net.disks[0].chain) >= 3
    assert net.pools[n - 1].committed == {batch(name) for name in "abc"}


def test_the_last_votes_of_a_term_go_to_both_leaders() -> None:
    net = Net(term=2)
    proposal = net.proposal(net.header(1))
    leaders = {net.leader(1), net.leader(2, proposal.signed.microblock.header)}
    voter = next(i for i in range(4) if i not in leaders)
    effects = net.step(voter, Received(proposal))
    assert [e.to for e in effects if isinstance(e, Send)] == sorted(net.address(i) for i in leaders)


def test_a_silent_leader_costs_one_timeout_and_no_more() -> None:
    net = Net()
    lead, heir, one, other = net.order
    net.dead.add(lead)
    begin = net.now_ms
    net.give("a")
    net.run()
    assert net.heights() == [0, 0, 0, 0]
    net.wait(heir)
    assert net.now_ms == begin + TIMING.timeout_ms
    net.wait(one, other, ms=0)
    net.run()
    assert [net.heights()[i] for i in net.order] == [0, 1, 1, 1]
    first = net.disks[heir].chain[0].signed.microblock.header
    assert (first.round, first.leader) == (4, net.address(heir))


def test_those_without_work_join_those_who_waited_in_vain() -> None:
    net = Net()
    lead, heir, one, other = net.order
    net.dead.add(lead)
    net.give("a", heir, one)
    net.wait(heir, one)
    net.run()
    assert net.record(other).timed_out_term == 0
    assert [net.cores[i].term for i in (heir, one, other)] == [1, 1, 1]
    net.give("a", other)
    net.run()
    assert [net.heights()[i] for i in (heir, one, other)] == [1, 1, 1]


def test_one_impatient_member_changes_nothing() -> None:
    net = Net()
    lead, heir, one, other = net.order
    net.give("a", heir)
    for _ in range(5):
        net.wait(heir)
        net.run()
    assert [core.term for core in net.cores] == [0, 0, 0, 0]
    net.give("a", lead, one, other)
    net.run()
    assert net.heights() == [1, 1, 1, 1]


def test_a_leader_with_nothing_to_order_shows_life_slowly() -> None:
    net = Net()
    begin = net.now_ms
    for beat in range(1, 4):
        net.wait()
        net.run()
        assert net.now_ms == begin + beat * TIMING.heartbeat_ms
        assert {core.round for core in net.cores} == {beat + 1}
    assert net.heights() == [2, 2, 2, 2]
    assert not [m for m in messages(net.said(Broadcast)) if isinstance(m, Timeout)]


def test_an_idle_leader_that_is_dead_is_replaced_after_the_heartbeat() -> None:
    net = Net()
    lead, heir, _, _ = net.order
    net.dead.add(lead)
    for _ in range(4):
        net.wait()
        net.run()
    assert net.cores[heir].term == 1
    assert net.cores[heir].high.round >= 4


def test_a_voter_without_the_batch_asks_for_it_and_votes_when_it_comes() -> None:
    net = Net()
    voter = net.order[1]
    header = net.header(1, batches=(batch("a"),))
    effects = net.step(voter, Received(net.proposal(header, batches=(batch("a"),))))
    assert effects == [RequestBatches((batch("a"),))]
    assert net.step(voter, Tick()) == [RequestBatches((batch("a"),))]
    net.pools[voter].here.append(batch("a"))
    assert [type(e) for e in net.step(voter, PayloadChanged())] == [Persist, Send]


def test_a_voter_without_published_data_asks_for_it_and_votes_when_it_comes() -> None:
    net = Net()
    voter = net.order[1]
    net.pools[voter].unpublished.add(batch("a"))
    net.give("a", voter)
    header = net.header(1, batches=(batch("a"),))
    effects = net.step(voter, Received(net.proposal(header, batches=(batch("a"),))))
    assert effects == [RequestBatches((batch("a"),))]
    net.pools[voter].unpublished.clear()
    assert [type(e) for e in net.step(voter, PayloadChanged())] == [Persist, Send]


def test_without_published_data_nothing_is_ordered_and_what_others_voted_for_is_committed() -> None:
    net = Net()
    *others, last = net.order
    for pool in net.pools:
        pool.unpublished.add(batch("a"))
    net.give("a")
    net.run()
    assert net.heights() == [0] * 4
    assert not net.said(RequestBatches, *net.order), "no leader names it"
    for i in others:
        net.pools[i].unpublished.clear()
        net.step(i, PayloadChanged())
    net.run()
    assert net.heights() == [1] * 4
    assert net.said(RequestBatches, last)
    assert batch("a") in net.pools[last].committed


def test_a_commit_waits_for_its_batches() -> None:
    net = Net()
    *others, last = net.order
    net.give("a", *others)
    net.run()
    assert [net.heights()[i] for i in net.order] == [1, 1, 1, 0]
    assert net.said(RequestBatches, last)
    net.give("a", last)
    assert net.heights()[last] == 1


def test_a_proposal_before_its_parent_waits_for_it() -> None:
    net = Net()
    held: list[Received] = []
    last = net.order[3]

    def hold(_source: int, target: int, event: Event) -> bool:
        if target != last or not isinstance(event, Received) or not isinstance(event.message, Proposal):
            return False
        held.append(event)
        return True

    net.give("a")
    net.run(hold)
    first, second = held
    effects = net.step(last, second)
    assert [type(e) for e in effects] == [RequestChain]
    assert [type(e) for e in net.step(last, second)] == [Refused], "it waits already"
    effects = net.step(last, first)
    assert [e.signed.microblock.header.round for e in effects if isinstance(e, Commit)] == [1]
    assert not [m for m in messages(effects) if isinstance(m, Vote)], "both rounds are over"


def test_one_who_was_away_catches_up_and_votes_again() -> None:
    net = Net(term=3)
    *others, away = net.order
    net.dead.add(away)
    for name in "abcde":
        net.give(name, *others)
        for _ in range(4):
            net.run()
            net.wait()
        net.run()
    assert net.heights()[away] == 0
    net.restart(away)
    for name in "abcde":
        net.pools[away].here.append(batch(name))
    net.give("f")
    net.run()
    assert net.said(RequestChain, away)
    net.serve(away, others[0])
    net.run()
    net.give("g")
    net.run()
    assert net.agrees()
    assert net.heights()[away] == max(net.heights())


def test_one_who_missed_the_last_word_learns_it_while_all_others_are_idle() -> None:
    net = Net()
    last = net.order[3]

    def last_word(_source: int, target: int, event: Event) -> bool:
        return target == last and isinstance(event, Received) and isinstance(event.message, Certified)

    net.give("a")
    net.run(last_word)
    assert [net.heights()[i] for i in net.order] == [1, 1, 1, 0]
    net.wait(last)
    net.run()
    assert net.heights() == [1, 1, 1, 1]
    assert {core.term for core in net.cores} == {0}, "nobody else lost patience"


def test_one_in_an_older_term_is_led_into_the_present() -> None:
    net = Net()
    lead, heir, one, away = net.order
    net.dead.update({lead, away})
    net.give("a", heir, one)
    net.dead.remove(away)

    def cut_off(source: int, target: int, _event: Event) -> bool:
        return away in (source, target)

    net.dead.remove(lead)
    net.give("a", lead)
    net.queue.clear()
    net.wait(lead, heir, one)
    net.run(cut_off)
    assert [net.cores[i].term for i in net.order] == [1, 1, 1, 0]
    net.wait(away)
    net.wait(away)
    net.run()
    assert net.cores[away].term == net.cores[heir].term


@pytest.mark.parametrize("delivered", range(26))
def test_a_whole_network_that_restarts_at_any_moment_goes_on(delivered: int) -> None:
    net = Net(term=2)
    net.give("a")
    for _ in range(delivered):
        if net.queue:
            source, target, event = net.queue.popleft()
            net.step(target, event, source)
    before = net.heights()
    net.queue.clear()
    net.restart()
    for _ in range(40):
        net.wait()
        net.run()
        for i, core in enumerate(net.cores):
            if net.said(RequestChain, i):
                net.serve(i, (i + 1) % 4)
            assert core.committed_height >= before[i]
        net.run()
        if all(batch("a") in pool.committed for pool in net.pools):
            break
    assert net.agrees()
    assert all(batch("a") in pool.committed for pool in net.pools)
    ordered = [digest for block in net.disks[0].chain for digest in block.signed.microblock.batches]
    assert ordered == [batch("a")]


def test_a_long_chain_is_executed_two_by_two_and_asked_for_until_its_end() -> None:
    net = Net(term=64)
    lead, *others, away = net.order
    for number in range(12):
        net.give(f"b{number}", lead, *others)
        net.run(lambda _s, target, _e: target == away)
    newcomer = net.cores[away]
    for number in range(12):
        net.pools[away].here.append(batch(f"b{number}"))
    chain = (*net.disks[lead].chain, *net.cores[lead].certified_tail())
    net.step(away, Received(Certified(net.cores[lead].high, None)))
    assert net.said(RequestChain, away) == [RequestChain(0)]
    net.step(away, ReceivedChain(chain[:5]))
    assert net.heights()[away] == 4
    assert net.said(RequestChain, away) == [RequestChain(0), RequestChain(5)], "the answer was not the end"
    net.step(away, ReceivedChain(chain[4:]))
    assert net.heights()[away] == net.heights()[lead]
    assert newcomer.certified_tail() == net.cores[lead].certified_tail()
    assert hash_of(Proposal(chain[0].signed, net.root, None)) == chain[0].certificate.block_hash


def test_commits_wait_for_the_execution_that_they_refer_to() -> None:
    net = Net(term=64)
    lead, *others, away = net.order
    for number in range(4):
        net.give(f"b{number}", lead, *others)
        net.run(lambda _s, target, _e: target == away)
    core = net.cores[away]
    net.pools[away].here = [batch(f"b{number}") for number in range(4)]
    effects = core.step(ReceivedChain(tuple(net.disks[lead].chain)), net.now_ms)
    assert [e.signed.microblock.header.height for e in effects if isinstance(e, Commit)] == [1, 2]
    effects = core.step(Executed(1, net.final[1][1]), net.now_ms)
    assert [e.signed.microblock.header.height for e in effects if isinstance(e, Commit)] == [3]
