# SPDX-License-Identifier: GPL-3.0-or-later
"""What members may try against a core, and what crashes may do to it."""

from itertools import pairwise

import msgspec
import pytest

from consensus.block_tree import CertifiedMicroblock
from consensus.core import root_node
from consensus.events import (
    Broadcast,
    Commit,
    Disagreement,
    Executed,
    Misbehaviour,
    PayloadChanged,
    Persist,
    Received,
    ReceivedChain,
    Refused,
    RequestChain,
    Send,
    Tick,
)
from consensus.messages import Certificate, Certified, Proposal, Timeout, Vote
from consensus.uncommitted import CommittedHead, Uncommitted
from ledger.blocks import MicroblockHeader
from tests.consensus.kit import TIMING, Net, batch, blames, hash_of, messages


def header_of(proposal: Proposal) -> MicroblockHeader:
    return proposal.signed.microblock.header


def ladder(net: Net, count: int) -> list[Proposal]:
    """Microblocks in the first rounds of terms 1, 2, …: certified, but none in the round after another."""
    made: list[Proposal] = []
    above, certificate = net.first, net.root
    for term in range(1, count + 1):
        ended = net.ended(term - 1, dict.fromkeys(range(3), certificate.round))
        made.append(net.proposal(net.header(4 * term, above), certificate, ended))
        above, certificate = header_of(made[-1]), net.certificate(4 * term, hash_of(made[-1]))
    return made


def test_a_timeout_certificate_that_tells_of_an_unknown_certificate_stalls_nobody() -> None:
    net = Net()
    lead, heir, one, other = net.order
    lie = net.ended(0, {heir: 0, one: 0, other: 2})
    effects = net.step(heir, Received(Certified(net.root, lie)))
    assert [type(e) for e in effects] == [Refused]
    assert net.cores[heir].term == 0
    net.give("a")
    net.queue.clear()
    for i in (lead, heir, one):
        net.step(heir, Received(net.timeout(i, 0)))
    assert isinstance(messages(net.said(Broadcast, heir))[-1], Proposal), "the next leader goes on"
    net.step(one, Received(Certified(net.certificate(2, b"b" * 32), lie)))
    assert net.cores[one].term == 1, "with its certificate it counts"


def test_one_who_only_joined_a_timeout_repeats_it_too() -> None:
    net = Net(n=7)
    *others, last = net.order
    for i in others[:3]:
        net.step(last, Received(net.timeout(i, 0)))
    assert [type(m) for m in messages(net.said(Broadcast, last))] == [Timeout]
    assert net.cores[last].term == 0
    net.wait(last)
    assert [type(m) for m in messages(net.said(Broadcast, last))] == [Timeout, Timeout]


def test_one_who_had_given_up_says_so_soon_after_a_restart() -> None:
    net = Net()
    last = net.order[3]
    net.give("a", last)
    net.wait(last)
    net.restart(last)
    net.pools[last].here.clear()
    assert net.cores[last].next_tick_ms() <= net.now_ms + TIMING.timeout_ms
    net.queue.clear()
    net.wait(last)
    assert [type(event.message) for *_, event in net.queue if isinstance(event, Received)] == [Timeout] * 3


def test_a_vote_is_still_possible_on_a_head_whose_state_is_of_long_ago() -> None:
    net = Net()
    made = ladder(net, 10)
    for proposal in made:
        net.step(2, Received(proposal))
    last = made[-1]
    child = net.proposal(net.header(41, header_of(last)), net.certificate(40, hash_of(last)))
    net.step(2, Received(child))
    net.step(2, Received(Certified(net.certificate(41, hash_of(child)), None)))
    assert net.heights()[2] == 10
    for restarted in (False, True):
        if restarted:
            net.restart(2)
        term = 11 + restarted
        ended = net.ended(term - 1, dict.fromkeys(range(3), 40))
        other = net.proposal(net.header(4 * term, header_of(last)), net.certificate(40, hash_of(last)), ended)
        net.step(2, Received(other))
        assert net.record(2).voted_round == 4 * term


def test_whoever_votes_keeps_the_ancestors_too() -> None:
    net = Net()
    first = net.proposal(net.header(4), ended=net.ended(0, {0: 0, 1: 0, 2: 0}))
    certificate = net.certificate(4, hash_of(first))
    net.step(3, ReceivedChain((CertifiedMicroblock(first.signed, certificate),)))
    assert net.disks[3].proposals == {}
    ended = net.ended(1, {0: 4, 1: 4, 2: 4})
    second = net.proposal(net.header(8, header_of(first)), certificate, ended)
    net.step(3, Received(second))
    assert set(net.disks[3].proposals) == {hash_of(first), hash_of(second)}
    net.restart(3)
    assert net.cores[3].term == 2, "the term is known from the proposal voted for"
    assert len(net.cores[3].certified_tail()) == 1
    net.step(3, Received(Certified(net.certificate(8, hash_of(second)), None)))
    assert [block.certificate.round for block in net.cores[3].certified_tail()] == [4, 8]


def test_what_is_certified_here_is_given_to_others_although_something_newer_is_missing() -> None:
    net = Net()
    first = net.proposal(net.header(1))
    net.step(3, Received(first))
    net.step(3, Received(Certified(net.certificate(1, hash_of(first)), None)))
    effects = net.step(3, Received(Certified(net.certificate(2, b"?" * 32), None)))
    assert RequestChain(1) in effects
    assert [block.certificate.round for block in net.cores[3].certified_tail()] == [1]


def test_a_restarted_member_asks_at_once_for_what_it_knows_to_be_certified() -> None:
    net = Net()
    last = net.order[3]
    net.step(last, Received(Certified(net.certificate(2, b"?" * 32), None)))
    net.give("a", last)
    net.wait(last)
    net.restart(last)
    assert RequestChain(0) in net.step(last, PayloadChanged())
    assert RequestChain(0) not in net.step(last, PayloadChanged()), "asked for once until patience ends"
    asked = len(net.said(RequestChain, last))
    net.wait(last)
    assert len(net.said(RequestChain, last)) > asked


def test_another_state_digest_is_a_disagreement_and_accuses_nobody() -> None:
    net = Net()
    voter = net.order[1]
    odd = net.proposal(net.header(1, state=b"o" * 32))
    effects = net.step(voter, Received(odd))
    assert [type(e) for e in effects] == [Disagreement]
    assert [type(e) for e in net.step(voter, Received(odd))] == [Refused], "it is here already"
    right = net.proposal(net.header(1, later_ms=2))
    effects = net.step(voter, Received(right))
    assert [type(e) for e in effects] == [Misbehaviour], "two microblocks of one round are a contradiction"


def test_a_refused_microblock_that_comes_again_after_a_commit_accuses_nobody() -> None:
    net = Net()
    last = net.order[3]
    first = net.proposal(net.header(1))
    second = net.proposal(net.header(2, header_of(first)), net.certificate(1, hash_of(first)))
    odd = net.proposal(
        net.header(4, header_of(first), state=b"o" * 32),
        net.certificate(1, hash_of(first)),
        net.ended(0, {0: 1, 1: 1, 2: 1}),
    )
    for proposal in (first, second, odd):
        net.step(last, Received(proposal))
    third = net.proposal(net.header(3, header_of(second), executed_height=1), net.certificate(2, hash_of(second)))
    net.step(last, Received(third))
    net.step(last, Received(Certified(net.certificate(3, hash_of(third)), None)))
    assert net.heights()[last] == 2
    net.step(last, Received(odd))
    assert net.said(Misbehaviour) == []


def test_batches_ordered_twice_are_not_voted_for() -> None:
    net = Net()
    voter = net.order[1]
    net.give("a")
    net.run()
    above = net.disks[voter].chain[-1].signed.microblock.header
    tail = net.cores[voter].certified_tail()[-1]
    state = net.final[1][1]
    header = net.header(3, tail.signed.microblock.header, executed_height=1, state=state, batches=(batch("a"),))
    effects = net.step(voter, Received(net.proposal(header, tail.certificate, batches=(batch("a"),))))
    assert [type(e) for e in effects] == [Disagreement]
    assert above.height == 1


def test_a_repeated_batch_in_uncommitted_ancestors_is_not_voted_for() -> None:
    net = Net()
    voter = net.order[1]
    net.pools[voter].here.append(batch("a"))
    first = net.proposal(net.header(1, batches=(batch("a"),)), batches=(batch("a"),))
    header = net.header(2, header_of(first), batches=(batch("a"),))
    net.step(voter, Received(first))
    second = net.proposal(header, net.certificate(1, hash_of(first)), batches=(batch("a"),))
    assert [type(e) for e in net.step(voter, Received(second))] == [Disagreement]


def test_a_microblock_that_asks_for_too_much_is_not_voted_for_and_the_rest_of_it_is_not_fetched() -> None:
    net = Net()
    voter = net.order[1]
    named = (batch("a"), batch("b"), batch("c"))
    net.pools[voter].here.extend(named[:2])
    net.pools[voter].most = 1
    proposal = net.proposal(net.header(1, batches=named), batches=named)
    assert [type(e) for e in net.step(voter, Received(proposal))] == [Disagreement]
    net.pools[voter].here.append(named[2])
    assert net.step(voter, PayloadChanged()) == []


def test_too_much_costs_its_leader_a_term_and_others_order_it_bit_by_bit() -> None:
    net = Net()
    for pool in net.pools:
        pool.here.extend((batch("a"), batch("b")))
        pool.most = 1
    net.pools[net.order[0]].most = 2
    for member in net.order:
        net.step(member, PayloadChanged())
    net.heal(lambda: all(len(pool.committed) == 2 for pool in net.pools))
    ordered = [block.signed.microblock for block in net.disks[0].chain if block.signed.microblock.batches]
    assert [block.batches for block in ordered] == [(batch("a"),), (batch("b"),)]
    assert {block.header.leader for block in ordered} == {net.address(net.order[1])}


def test_what_a_quorum_finds_not_too_much_is_committed_by_all() -> None:
    net = Net()
    net.pools[net.order[3]].most = 0
    net.commit("a", "b")
    assert net.said(Disagreement, net.order[3])


def test_a_final_microblock_that_contradicts_the_own_state_halts_a_node() -> None:
    net = Net(term=64)
    lead, _, _, away = net.order
    for name in "abc":
        net.give(name)
        net.run(lambda _s, target, _e: target == away)
    core = net.cores[away]
    effects = core.step(ReceivedChain(tuple(net.disks[lead].chain)), net.now_ms)
    assert len([e for e in effects if isinstance(e, Commit)]) == 2
    effects = core.step(Executed(1, b"x" * 32), net.now_ms)
    assert [type(e) for e in effects] == [Disagreement]
    core.step(Executed(2, b"y" * 32), net.now_ms)
    for _ in range(3):
        assert core.step(ReceivedChain(tuple(net.disks[lead].chain)), net.now_ms) == []
        assert core.step(PayloadChanged(), net.now_ms) == []


def test_nothing_is_voted_for_while_a_commit_is_being_executed() -> None:
    net = Net()
    first = net.proposal(net.header(1))
    second = net.proposal(net.header(2, header_of(first)), net.certificate(1, hash_of(first)))
    third = net.proposal(net.header(3, header_of(second), executed_height=1), net.certificate(2, hash_of(second)))
    core = net.cores[net.order[3]]
    for proposal in (first, second):
        core.step(Received(proposal), net.now_ms)
    effects = core.step(Received(third), net.now_ms)
    assert [type(e) for e in effects] == [Commit]
    effects = core.step(Executed(1, net.state), net.now_ms)
    assert {m.round for m in messages(effects) if isinstance(m, Vote)} == {3}
    with pytest.raises(AssertionError, match="only commits"):
        core.step(Executed(1, net.state), net.now_ms)


def test_a_member_that_votes_twice_is_named_once_and_its_second_vote_does_not_count() -> None:
    net = Net()
    lead, twice, one, other = net.order
    for i, name in ((twice, b"a"), (twice, b"b"), (twice, b"b"), (one, b"b"), (other, b"b")):
        net.step(lead, Received(net.vote(i, 1, name * 32)))
    accused = [e for e in net.said(Misbehaviour) if isinstance(e, Misbehaviour)]
    assert [(e.member, e.what) for e in accused] == [(net.address(twice), "voted for two microblocks in round 1")]
    assert net.cores[lead].high.round == 0
    net.step(lead, Received(net.vote(lead, 1, b"b" * 32)))
    assert net.cores[lead].high.round == 1


def test_an_equivocating_leader_is_named_once_and_voted_for_once() -> None:
    net = Net()
    lead, voter, _, _ = net.order
    twins = [net.proposal(net.header(1, later_ms=ms)) for ms in (1, 2, 3)]
    effects = [effect for twin in twins for effect in net.step(voter, Received(twin))]
    assert [type(e) for e in effects] == [Persist, Send, Misbehaviour, Refused]
    assert isinstance(effects[2], Misbehaviour)
    assert effects[2].member == net.address(lead)
    assert effects[2].what == "proposed two microblocks in round 1"


def test_members_with_different_twins_still_reach_the_same_chain() -> None:
    net = Net()
    lead, heir, one, other = net.order
    twins = [net.proposal(net.header(1, later_ms=ms)) for ms in (1, 2)]
    for i in (heir, one, other):
        net.step(i, Received(twins[i == heir]))
    net.queue.clear()
    winner = net.certificate(1, hash_of(twins[0]), (lead, one, other))
    child = net.proposal(net.header(2, header_of(twins[0])), winner)
    for i in (heir, one, other):
        net.step(i, Received(child))
    assert net.said(RequestChain, heir)
    net.serve(heir, one)
    net.dead.add(lead)
    net.give("a")
    for _ in range(3):
        net.run()
        net.wait()
    net.run()
    assert net.agrees()
    assert batch("a") in net.pools[heir].committed


def test_a_leader_from_the_future_is_not_voted_for_until_its_time_has_come() -> None:
    net = Net()
    voter = net.order[1]
    drift = net.parameters.timestamp_drift_ms
    early = net.proposal(net.header(1, later_ms=1_000 + drift + 50))
    assert net.step(voter, Received(early)) == []
    net.now_ms += 50
    assert [type(e) for e in net.step(voter, Tick())] == [Persist, Send]


def test_proposals_that_replace_what_is_final_leave_no_trace() -> None:
    net = Net()
    net.give("a")
    net.run()
    old = net.proposal(net.header(4), ended=net.ended(0, {0: 0, 1: 0, 2: 0}))
    net.queue.clear()
    assert RequestChain(1) not in net.step(net.order[2], Received(old))


def test_votes_far_away_and_repeated_votes_cost_no_signature_check() -> None:
    net = Net()
    lead, one, _, _ = net.order
    net.give("a")
    net.run()
    far = msgspec.structs.replace(net.vote(one, 3 + 65, b"z" * 32), signature=bytes(64))
    assert blames(net.step(lead, Received(far))) == [False]
    net.step(lead, Received(net.vote(one, 3, b"z" * 32)))
    repeated = msgspec.structs.replace(net.vote(one, 3, b"z" * 32), signature=bytes(64))
    assert blames(net.step(lead, Received(repeated))) == [False]


def test_one_who_is_behind_is_told_but_repeated_timeouts_are_no_lever() -> None:
    net = Net()
    net.give("a")
    net.run()
    _, helper, _, behind = net.order
    old = Received(net.timeout(behind, 0))
    assert messages(net.step(helper, old)) == [Certified(net.cores[helper].high, None)]
    for _ in range(5):
        assert [type(e) for e in net.step(helper, old)] == [Refused]
    net.now_ms += TIMING.timeout_ms
    assert len(messages(net.step(helper, old))) == 1


def test_answers_too_short_to_commit_anything_still_lead_to_the_end() -> None:
    net = Net()
    made = ladder(net, 9)
    last = net.proposal(net.header(37, header_of(made[-1])), net.certificate(36, hash_of(made[-1])))
    blocks = [CertifiedMicroblock(one.signed, two.certificate) for one, two in pairwise((*made, last))]
    blocks.append(CertifiedMicroblock(last.signed, net.certificate(37, hash_of(last))))
    net.step(3, Received(Certified(blocks[-1].certificate, None)))
    for _ in range(4):
        asked = net.said(RequestChain, 3)[-1]
        assert isinstance(asked, RequestChain)
        net.step(3, ReceivedChain(tuple(blocks[asked.after_height : asked.after_height + 3])))
    assert net.heights()[3] == 9
    assert net.cores[3].high == blocks[-1].certificate


def test_one_who_asks_in_vain_after_its_newest_asks_after_what_is_final() -> None:
    net = Net()
    made = ladder(net, 2)
    net.step(3, Received(made[0]))
    net.step(3, Received(Certified(net.certificate(4, hash_of(made[0])), None)))
    net.step(3, Received(Certified(net.certificate(30, b"?" * 32), None)))
    for _ in range(2):
        net.wait(3)
    net.wait(3)
    assert {asked.after_height for asked in net.said(RequestChain, 3) if isinstance(asked, RequestChain)} == {0, 1}


def test_orphans_are_bounded_and_dropped_when_they_come_too_late() -> None:
    net = Net(term=64)
    proposals: list[Proposal] = []
    above, certificate = net.first, net.root
    for round_ in range(1, 25):
        executed = max(0, round_ - 2)
        proposals.append(net.proposal(net.header(round_, above, executed_height=executed), certificate))
        above, certificate = header_of(proposals[-1]), net.certificate(round_, hash_of(proposals[-1]))
    for proposal in proposals[2:]:
        net.step(3, Received(proposal))
    orphans = net.cores[3]._desk.known._orphans
    assert sorted(round_ for round_, _ in orphans) == list(range(9, 25))
    blocks = tuple(CertifiedMicroblock(one.signed, two.certificate) for one, two in pairwise(proposals))
    net.step(3, ReceivedChain(blocks))
    assert net.heights()[3] == 22
    assert orphans == {}


def test_an_orphan_in_a_wrong_place_is_dropped_quietly() -> None:
    net = Net()
    last = net.order[3]
    first = net.proposal(net.header(1))
    header = msgspec.structs.replace(net.header(2, header_of(first)), height=9)
    net.step(last, Received(net.proposal(header, net.certificate(1, hash_of(first)))))
    effects = net.step(last, Received(first))
    assert Refused not in [type(e) for e in effects]
    assert net.cores[last]._desk.known._orphans == {}


def test_a_core_does_not_believe_a_wrong_message_of_its_own() -> None:
    net = Net()
    net.cores[1]._desk.inbox.append(Certified(Certificate(0, 3, bytes(32), ()), None))
    with pytest.raises(AssertionError, match="of our own"):
        net.step(1, Tick())


def test_an_observer_votes_never_and_asks_when_the_network_seems_silent() -> None:
    net = Net(observers=1)
    net.step(4, Received(net.proposal(net.header(1))))
    for i in (0, 1, 2):
        net.step(4, Received(net.timeout(i, 0)))
    assert net.cores[4].term == 1
    assert not net.queue
    assert net.cores[4].record is None
    assert net.disks[4].record is None
    assert net.cores[4].leader_address() == net.address(net.order[1])
    net.wait(4)
    net.wait(4)
    assert net.said(RequestChain, 4)


def test_a_full_tree_stops_an_answer_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.block_tree.MAX_UNCOMMITTED", 4)
    net = Net()
    made = ladder(net, 6)
    blocks = tuple(CertifiedMicroblock(one.signed, two.certificate) for one, two in pairwise(made))
    assert not [e for e in net.step(3, ReceivedChain(blocks)) if isinstance(e, Refused)]
    assert len(net.cores[3].certified_tail()) == 3
    assert net.step(3, Received(made[3])) == []


def test_a_core_starts_only_with_the_state_that_its_successors_state() -> None:
    net = Net()
    head = CommittedHead(root_node(net.epoch, ()), net.root, ())
    with pytest.raises(AssertionError, match=r"state digests of heights \[0\]"):
        Uncommitted(head)
