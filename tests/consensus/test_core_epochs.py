# SPDX-License-Identifier: GPL-3.0-or-later
"""From one epoch to the next: a keyblock is pinned, one committee hands over to another, and nobody is left behind."""

from collections import deque

import pytest

from consensus.desk import MAX_EARLY
from consensus.events import (
    Broadcast,
    Commit,
    Disagreement,
    Effect,
    Event,
    Executed,
    Misbehaviour,
    Persist,
    Received,
    ReceivedChain,
    Refused,
    RequestChain,
    Tick,
)
from consensus.messages import Certified, Message, Offer, Proposal, Reveal, Timeout, Vote
from consensus.safety import SafetyRecord, fresh_record
from ledger.blocks import MicroblockHeader
from tests.consensus.kit import TIMING, Net, batch, messages


def header_of(proposal: Proposal) -> MicroblockHeader:
    return proposal.signed.microblock.header


def spoken(net: Net, *who: int) -> list[Proposal | Vote | Timeout]:
    """All that cores have signed."""
    said = messages([effect for i, effect in net.log if not who or i in who])
    return [message for message in said if isinstance(message, Proposal | Vote | Timeout)]


def epoch_of(message: Proposal | Vote | Timeout) -> int:
    return header_of(message).epoch if isinstance(message, Proposal) else message.epoch


def promised(net: Net, i: int) -> SafetyRecord | None:
    return net.cores[i].record


def left_behind(net: Net, epochs: int = 1) -> int:
    """One member that was away while the others went on, and back when all that they said is lost."""
    *others, away = net.order
    net.dead.add(away)
    for _ in range(epochs):
        net.turn(others[0])
    net.restart(away)
    net.queue.clear()
    return away


# ---------------------------------------------------------------- the way it goes


def test_a_keyblock_ends_an_epoch_message_by_message() -> None:
    net = Net()
    lead, one, other, last = net.order
    signed = net.mine(miner=one)
    net.offer(signed, one, other, last)
    assert not net.queue, "only the leader pins"
    effects = net.step(lead, Received(Offer(signed)))
    assert [type(e) for e in effects] == [Persist, Broadcast, Persist], "at once, not at the next heartbeat"
    pin = messages(effects)[0]
    assert isinstance(pin, Proposal)
    assert pin.signed.microblock.keyblock == signed
    net.step(last, Received(pin))
    net.queue.clear()
    for voter in (one, other):
        vote = messages(net.step(voter, Received(pin)))[0]
        effects = net.step(lead, Received(vote))
    child = messages(effects)[0]
    assert isinstance(child, Proposal)
    assert (child.signed.microblock.keyblock, child.certificate.round) == (None, 1)
    for voter in (one, other):
        vote = messages(net.step(voter, Received(child)))[0]
        effects = net.step(lead, Received(vote))
    assert [type(e) for e in effects] == [Broadcast, Commit], "others learn first what ends the epoch"
    commit = effects[1]
    assert isinstance(commit, Commit)
    assert [block.signed for block in commit.closing] == [child.signed]
    assert net.epochs() == [int(i == lead) for i in range(4)]
    assert net.cores[lead].round == 4, "an epoch starts with a fresh term"
    assert net.cores[lead].leader_address() is None, "nobody can know before the creator reveals"
    net.run()
    assert net.epochs() == [1, 1, 1, 1]
    opening = next(m for m in spoken(net) if isinstance(m, Proposal) and header_of(m).epoch == 1)
    assert header_of(opening).parent == net.disks[lead].epochs[1].record.root_hash
    assert (header_of(opening).height, header_of(opening).round) == (2, 4)


def test_after_a_pin_only_empty_microblocks_follow_and_they_are_discarded() -> None:
    net = Net(term=64)
    net.give("a")
    net.run()
    net.offer(net.mine())
    for name in "bcd":
        net.give(name)  # the pin is under way already
    net.run()
    net.heal(lambda: all(batch("d") in pool.committed for pool in net.pools))
    epochs = [block.signed.microblock.header.epoch for block in net.disks[0].chain]
    assert epochs == sorted(epochs)
    closing = [header_of(m) for m in spoken(net) if isinstance(m, Proposal) and header_of(m).height > epochs.count(0)]
    discarded = [header for header in closing if header.epoch == 0]
    assert discarded
    assert all(header.batch_count == 0 for header in discarded)
    ordered = [digest for block in net.disks[0].chain for digest in block.signed.microblock.batches]
    assert sorted(ordered) == sorted(batch(name) for name in "abcd"), "nothing is lost or ordered twice"


def test_a_pinning_microblock_may_order_batches() -> None:
    net = Net()
    for pool in net.pools:
        pool.here.append(batch("a"))
    net.turn()
    root = net.disks[0].chain[net.epoch.root.height - 1].signed.microblock
    assert root.keyblock is not None
    assert root.batches == (batch("a"),)
    assert all(batch("a") in pool.committed for pool in net.pools)


def test_many_epochs_with_work_in_each() -> None:
    net = Net(term=3, observers=1)
    for number in range(6):
        net.give(f"b{number}")
        net.turn(miner=number % 4)
    net.heal(lambda: all(len(pool.committed) == 6 for pool in net.pools))
    assert net.agrees()
    miners = [epoch.record.miner for epoch in net.disks[4].epochs[1:]]
    assert miners == [net.committee.members[i].public_key for i in (0, 1, 2, 3, 0, 1)]
    assert not net.said(Misbehaviour)
    assert not net.said(Disagreement)
    assert not [e for e in net.said(Refused) if isinstance(e, Refused) and e.at_fault]


def test_a_committee_that_changes_completely_goes_on_and_the_old_one_is_silent() -> None:
    net = Net(n=4, newcomers=4, seats={1: (4, 5, 6, 7)})
    net.turn(miner=5)
    net.commit("a")
    assert net.agrees()
    assert {epoch_of(m) for m in spoken(net, 0, 1, 2, 3)} == {0}
    assert {epoch_of(m) for m in spoken(net, 4, 5, 6, 7)} == {1}


@pytest.mark.parametrize("seats", [(0,), (3, 4), (4, 1, 2), (5, 4, 3, 2, 1, 0)])
def test_committees_grow_and_shrink(seats: tuple[int, ...]) -> None:
    net = Net(n=4, newcomers=2, seats={1: seats, 2: (0, 1, 2, 3)})
    for miner in (4, 5):
        net.turn(miner)
    net.commit("a")
    assert net.agrees()


# ---------------------------------------------------------------- in flight


def test_messages_of_an_epoch_that_is_over_change_nothing_and_blame_nobody() -> None:
    net = Net()
    signed: list[Message] = [net.proposal(net.header(9)), net.vote(0, 9, bytes(32)), net.timeout(1, 3)]
    signed.append(Certified(net.root, None))
    net.turn()
    net.run()
    before = [core.record for core in net.cores]
    said = [message for message in spoken(net) if epoch_of(message) == 0]
    assert {type(message) for message in said} == {Proposal, Vote}
    for message in [*said, *signed]:
        for i in range(4):
            effects = net.step(i, Received(message))
            assert [(type(e), getattr(e, "at_fault", None)) for e in effects] == [(Refused, False)]
    assert [core.record for core in net.cores] == before


def test_messages_of_the_next_epoch_wait_until_it_begins_here() -> None:
    net = Net()
    away = net.order[3]
    held: list[Event] = []

    def hold(_source: int, target: int, event: Event) -> bool:
        if target == away:
            held.append(event)
        return target == away

    net.offer(net.mine(miner=net.order[0]))
    net.run(hold)
    assert [net.epochs()[i] for i in net.order] == [1, 1, 1, 0]
    early = [e for e in held if isinstance(e, Received) and getattr(e.message, "epoch", 0) == 1]
    opening = next(
        e for e in held if isinstance(e, Received) and isinstance(e.message, Proposal) and epoch_of(e.message) == 1
    )
    assert any(isinstance(e.message, Reveal) for e in early)
    told = [effect for event in (*early, opening) for effect in net.step(away, event)]
    assert not [e for e in told if isinstance(e, Refused) and e.at_fault]
    assert [type(e) for e in told if not isinstance(e, Refused)] == [RequestChain], "it asks once"
    effects = net.serve(away, net.order[0])
    assert net.epochs() == [1, 1, 1, 1]
    assert [epoch_of(m) for m in messages(effects) if isinstance(m, Vote)] == [1], "it has seen the opening"


def test_early_messages_are_bounded_and_only_those_of_the_next_epoch_are_kept() -> None:
    net = Net()
    away = left_behind(net, epochs=2)
    core = net.cores[away]
    for term in range(2 * MAX_EARLY):
        net.step(away, Received(net.timeout(0, term)))
    assert not core._desk.early, "epoch 2 is too far from epoch 0"
    net.epoch = net.disks[net.order[0]].epochs[1]
    for term in range(2 * MAX_EARLY):
        net.step(away, Received(net.timeout(0, term)))
    assert len(core._desk.early) == MAX_EARLY
    assert len(net.said(RequestChain, away)) == 1, "however many there are, it asks now and then"
    net.now_ms += TIMING.timeout_ms
    net.step(away, Received(net.timeout(0, 7)))
    assert len(net.said(RequestChain, away)) == 2
    net.serve(away, net.order[0])
    assert net.epochs()[away] >= 1
    assert not core._desk.early
    assert not core._desk.early_again


def test_false_messages_of_the_next_epoch_are_dropped_when_it_begins() -> None:
    net = Net()
    away = left_behind(net)
    real = net.timeout(0, net.epoch.first_term)
    forged = Timeout(1, 7, net.root, None, net.address(1), bytes(64))
    for message in (forged, real, Reveal(1, bytes(96))):
        net.step(away, Received(message))
    effects = net.serve(away, net.order[0])
    assert net.epochs()[away] == 1
    assert not [e for e in effects if isinstance(e, Refused)], "who brought them is not known any more"
    assert net.cores[away]._desk.reveal is None
    assert net.cores[away]._desk.pacemaker.timeouts.members_at(7) == []


def test_while_the_root_is_executed_nobody_is_asked_for_what_is_on_its_way() -> None:
    net, closing = Net(), Net()
    away = left_behind(net)
    net.pools[away].here.append(batch("a"))
    for _ in range(2):
        net.wait(away)
    assert net.record(away).timed_out_term == 0, "it has lost patience"
    core = net.cores[away]
    blocks = net.answer(net.order[0], RequestChain(0))
    commit = [e for e in core.step(ReceivedChain(blocks), net.now_ms) if isinstance(e, Commit)][-1]
    early = Received(net.timeout(0, net.epoch.first_term))
    for message in (early, early, Received(closing.vote(0, 5, bytes(32))), Received(closing.timeout(0, 3))):
        effects = core.step(message, net.now_ms)
        assert [(type(e), getattr(e, "at_fault", None)) for e in effects] == [(Refused, False)]
    net.now_ms += 5_000
    assert core.step(Tick(), net.now_ms) == [], "nothing is signed in an epoch that is over, and nothing asked for"
    state = net.final[commit.signed.microblock.header.height][1]
    effects = core.step(Executed(net.epoch.root.height, state, net.epoch), net.now_ms)
    assert core.epoch.number == 1
    assert RequestChain(net.epoch.root.height) in effects, "others are ahead: it goes on asking"


# ---------------------------------------------------------------- left behind


@pytest.mark.parametrize("epochs", [1, 2, 6])
def test_one_who_was_cut_off_for_epochs_needs_one_message_to_catch_up(epochs: int) -> None:
    net = Net(n=4, newcomers=3, seats={2: (4, 5, 6, 0), 3: (4, 5, 6), 5: (0, 1, 2, 3)})
    away = net.order[3]
    others = [i for i in range(7) if i != away]
    net.dead.add(away)
    for number in range(epochs):
        net.give(f"b{number}", *others)
        net.turn(others[number % 6], *others)
    net.pools[away].here = list(net.pools[others[0]].here)
    net.restart(away)
    net.queue.clear()
    net.log.clear()
    net.step(away, Received(Certified(net.cores[others[0]].high, None)))
    asked: deque[Effect] = deque(net.said(RequestChain, away))
    answers = 0
    while asked:
        effect = asked.popleft()
        assert isinstance(effect, RequestChain)
        answers += 1
        effects = net.step(away, ReceivedChain(net.answer(others[0], effect)))
        assert not [e for e in effects if isinstance(e, Refused)], "an honest answer is no fault"
        asked.extend(e for e in effects if isinstance(e, RequestChain))
    assert net.epochs()[away] == epochs
    assert net.heights()[away] == net.heights()[others[0]]
    assert answers <= 2 * epochs + 1


def test_an_answer_that_begins_before_the_running_epoch_is_no_fault() -> None:
    net = Net()
    net.turn(0)
    net.commit("a")
    for i in range(4):
        effects = net.step(i, ReceivedChain(net.answer((i + 1) % 4, RequestChain(0))))
        assert effects == [], "closing microblocks of an epoch that is over are passed over"


def test_one_who_alone_makes_up_the_next_committee_finds_out_although_all_others_are_silent() -> None:
    alone = Net().order[3]
    net = Net(seats={1: (alone,)})
    net.withholding = {0, 1, 2, 3}
    net.offer(net.mine(net.order[0]))

    def last_word(_source: int, target: int, event: Event) -> bool:
        return target == alone and isinstance(event, Received) and isinstance(event.message, Certified)

    net.run(last_word)
    assert net.epochs() == [int(index != alone) for index in range(4)]
    net.heal(lambda: net.epochs() == [1, 1, 1, 1])


def test_one_who_has_the_pin_but_not_its_proof_asks_for_the_rest_and_from_before_the_pin_in_turns() -> None:
    net = Net()
    away = left_behind(net)
    pin, *closing = net.answer(net.order[0], RequestChain(0))[:2]
    net.step(away, ReceivedChain((pin,)))
    assert net.heights()[away] == 0
    # The proof may be too long for one answer, or what is here lie beside it.
    for after_height in (1, 0, 1, 0, 1):
        effects = net.step(away, Received(net.timeout(0, net.epoch.first_term)))
        assert [e for e in effects if isinstance(e, RequestChain)] == [RequestChain(after_height)]
        net.now_ms += TIMING.timeout_ms
    assert closing
    net.serve(away, net.order[0])
    assert net.epochs()[away] == 1


def test_a_pin_whose_last_certificate_died_with_its_leader_is_committed_by_another_proof() -> None:
    net = Net(observers=2)
    lead, *others = net.order
    net.dead.update((4, 5))
    net.offer(net.mine(miner=others[0]))

    def silent(source: int, _target: int, event: Event) -> bool:
        return source == lead and isinstance(event, Received) and isinstance(event.message, Certified)

    net.run(silent)
    assert net.epochs()[lead] == 1
    assert [net.epochs()[i] for i in others] == [0, 0, 0]
    net.dead.add(lead)
    net.queue.clear()
    net.heal(lambda: all(net.epochs()[i] == 1 for i in others))
    net.restart(4, 5)
    for observer, giver in ((4, lead), (5, others[0])):
        net.step(observer, ReceivedChain(net.answer(giver, RequestChain(0))))
        assert net.epochs()[observer] == 1, "either proof convinces who was not there"
    net.restart(lead)
    net.commit("a")
    proofs = {i: net.disks[i].store.closing(net.final[1][0]) for i in net.order}
    assert len(set(proofs.values())) == 2, "the proofs differ"
    assert len({epoch.record for epoch in (disk.epochs[1] for disk in net.disks)}) == 1, "what they prove does not"


# ---------------------------------------------------------------- crashes


def play_until_effect(net: Net, number: int) -> bool:
    """A hand-over with work in it, until some effect of somebody: then all crash. False if the play is shorter."""
    left = number

    def crashes() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    net.crashes = crashes
    for i in range(4):
        net.pools[i].here.append(batch("a"))
        net.step(i, Received(Offer(net.mine())))
    for name in "bc":
        while net.queue and not net.dead:
            source, target, event = net.queue.popleft()
            net.step(target, event, source)
        if not net.dead:
            net.give(name)
    return bool(net.dead)


@pytest.mark.parametrize("number", range(48))
def test_a_whole_network_that_crashes_at_any_effect_of_a_hand_over_goes_on(number: int) -> None:
    net = Net(term=2, seats={1: (1, 2, 3)})
    assert play_until_effect(net, number), "the play has effects enough"
    net.crashes = lambda: False
    net.queue.clear()
    net.restart()
    promised = [disk.record for disk in net.disks]
    for core, record in zip(net.cores, promised, strict=True):
        if core.record is not None and record is not None and record.epoch == core.epoch.number:
            assert core.record == record
    net.offer(net.mine())
    net.heal(lambda: min(net.epochs()) >= 1 and all(batch("a") in pool.committed for pool in net.pools))
    assert net.agrees()
    assert not net.said(Misbehaviour)


def test_one_that_crashes_behind_the_commit_starts_the_next_epoch_without_promises() -> None:
    net = Net()
    net.withholding = {0}
    net.offer(net.mine(0))
    net.run()
    assert net.epochs() == [1, 1, 1, 1]
    assert net.record(1).epoch == 0
    assert net.disks[1].proposals, "the microblock that only closed the epoch is still on disk"
    net.restart(1)
    assert list(net.cores[1]._desk.known.tree._nodes) == [net.cores[1].epoch.record.root_hash]
    assert not net.cores[1]._desk.proposed
    assert net.cores[1].record == fresh_record(net.cores[1].epoch)
    assert net.cores[1].round == net.cores[1].epoch.first_round
    assert net.cores[1].high == net.cores[1].epoch.root_certificate


def test_one_whose_store_is_older_than_its_promises_is_silent_until_it_gets_there() -> None:
    net = Net()
    away = net.order[3]
    older = Net().disks[away]
    for _ in range(2):
        net.turn()
    net.run()
    record = net.record(away)
    assert record.epoch == 2
    assert record.voted_round > net.epoch.record.root_round
    net.disks[away] = older  # restored from a backup
    older.record = record
    net.restart(away)
    net.log.clear()
    assert promised(net, away) is None
    net.pools[away].here.append(batch("a"))
    net.wait(away, ms=20_000)
    net.wait(away)
    assert net.said(RequestChain, away)
    assert not spoken(net, away), "not even a time-out in epoch 0"
    for epoch in (0, 1):
        assert net.epochs()[away] == epoch
        net.serve(away, net.order[0])
    assert net.epochs()[away] == 2
    assert promised(net, away) == record
    assert not [m for m in spoken(net, away) if epoch_of(m) < 2]
    net.commit(*"bcdef")
    assert net.record(away).voted_round > record.voted_round
    again = [m for m in spoken(net, away) if isinstance(m, Vote) and m.round <= record.voted_round]
    assert not again, "what it voted for before is not voted for again"


def test_an_observer_with_promises_of_another_epoch_starts_all_the_same() -> None:
    net = Net(n=4, newcomers=1, seats={1: (4,), 2: (0, 1, 2, 3)})
    for miner in (4, 0):
        net.turn(miner)
    net.commit("a")
    assert net.record(4).epoch == 1
    net.restart(4)
    net.log.clear()
    net.commit("b")
    assert net.cores[4].record is None
    assert not spoken(net, 4)
