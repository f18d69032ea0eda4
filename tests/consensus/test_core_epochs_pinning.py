# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keyblock ends an epoch: offers of every kind, leaders that pin what they must not, and pins that compete."""

from collections.abc import Callable

import msgspec
import pytest

from consensus import work
from consensus.events import (
    Broadcast,
    Disagreement,
    Effect,
    Executed,
    Persist,
    Received,
    ReceivedChain,
    Refused,
    RequestChain,
    Tick,
)
from consensus.messages import Certified, Offer, Proposal
from ledger import testing
from ledger.blocks import SignedKeyblock, sign_keyblock
from tests.consensus.kit import TIMING, Net, batch, hash_of, messages

replace = msgspec.structs.replace


def refusals(effects: list[Effect]) -> list[tuple[str, bool]]:
    return [(effect.reason, effect.at_fault) for effect in effects if isinstance(effect, Refused)]


def in_epoch_1() -> Net:
    """Everybody is in epoch 1, whose opening is made but not committed."""
    net = Net()
    net.turn(miner=2)
    net.run()
    return net


def worthless(net: Net) -> SignedKeyblock:
    """All right but for the nonce, which solves nothing."""
    good = net.mine().keyblock
    tries = (replace(good, nonce=number.to_bytes(32)) for number in range(2**16))
    bad = next(keyblock for keyblock in tries if work.puzzle_hash(keyblock) >= good.target)
    return sign_keyblock(net.chain.id, testing.key(0), bad)


def restated(net: Net) -> SignedKeyblock:
    """A solved keyblock with another time, which its solution is none for."""
    good = net.mine().keyblock
    tries = (replace(good, timestamp_ms=good.timestamp_ms + later_ms) for later_ms in range(1, 2**10))
    bad = next(keyblock for keyblock in tries if work.puzzle_hash(keyblock) >= good.target)
    return sign_keyblock(net.chain.id, testing.key(0), bad)


WRONG: dict[str, tuple[Callable[[Net], SignedKeyblock], str]] = {
    "work": (worthless, "is not below target"),
    "another time for one solution": (restated, "is not below target"),
    "easier target": (lambda n: n.mine(target=b"\xff" * 32), "the chain demands"),
    "harder target": (lambda n: n.mine(target=(2**250).to_bytes(32)), "the chain demands"),
    "another microblock": (lambda n: n.mine(microblock=n.disks[0].epochs[0].record.root_hash), "take a new template"),
    "more reputation": (lambda n: n.mine(reputation_nano=10**9), "states a reputation of 1000000000e-9"),
    "less reputation": (lambda n: n.mine(reputation_nano=0), "states a reputation of 0e-9"),
    "a newcomer's reputation": (lambda n: n.mine(9, reputation_nano=1), "its miner has 0e-9"),
    "state root": (lambda n: n.mine(state_root=n.disks[0].epochs[0].state_root), "states state root"),
    "not later than the microblock": (lambda n: n.mine(timestamp_ms=n.first.timestamp_ms), "not later than"),
    "not later than the median": (lambda n: n.mine(timestamp_ms=n.epoch.timestamps_ms[-1]), "the median"),
    "another's signature": (lambda n: n.mine(1, signer=0), "is not signed by"),
    "no point": (lambda n: n.mine(reveal_key=bytes(48)), "not a point of BLS12-381"),
    "infinity": (lambda n: n.mine(reveal_key=b"\xc0" + bytes(47)), "not a point of BLS12-381"),
    "another chain's signature": (
        lambda n: sign_keyblock(bytes(32), testing.key(0), n.mine().keyblock),
        "is not signed by",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_keyblock_is_its_bearers_fault(case: str) -> None:
    net = in_epoch_1()
    spoil, reason = WRONG[case]
    effects = net.step(1, Received(Offer(spoil(net))))
    assert [(reason in why, at_fault) for why, at_fault in refusals(effects)] == [(True, True)], effects
    assert len(effects) == 1
    assert net.cores[1].candidate is None
    right = net.mine()
    assert refusals(net.step(1, Received(Offer(right)))) == []
    assert net.cores[1].candidate == right


@pytest.mark.parametrize("case", WRONG)
def test_a_leader_that_pins_a_wrong_keyblock_is_refused(case: str) -> None:
    net = Net()
    net.withholding = {2}
    net.turn(miner=2)
    spoil, reason = WRONG[case]
    pinned, reveal = spoil(net), net.reveal(2).signature
    round_ = net.epoch.first_round
    lead = net.leader(round_, reveal=reveal)
    voter = next(i for i in range(4) if i != lead)
    header = net.header(round_, keyblock=pinned, reveal=reveal)
    proposal = net.proposal(header, keyblock=pinned, reveal=reveal)
    effects = net.step(voter, Received(proposal))
    assert [(reason in why, at_fault) for why, at_fault in refusals(effects)] == [(True, True)], effects
    assert net.record(voter).epoch == 0, "nothing is promised in the new epoch"


def test_keyblocks_of_other_epochs_come_too_late_or_too_early_and_blame_nobody() -> None:
    net = Net()
    stale = net.mine(miner=1)
    net.turn(miner=2)
    unknown = net.mine(previous=b"?" * 32)
    for signed in (stale, unknown):
        assert [at_fault for _, at_fault in refusals(net.step(1, Received(Offer(signed))))] == [False]
        assert net.cores[1].candidate is None


def test_only_the_first_keyblock_is_kept_and_pinned() -> None:
    net = Net()
    lead, one, *_ = net.order
    first, second = net.mine(miner=0), net.mine(miner=1)
    signed_again = testing.sign_keyblock_anew(net.chain.id, testing.key(0), first.keyblock, b"\1" * 32)
    assert signed_again.signature != first.signature, "one solution, signed twice"
    net.epoch.check_keyblock(signed_again)
    assert net.step(one, Received(Offer(first))) == []
    assert net.step(one, Received(Offer(first))) == [], "gossip repeats itself"
    for other in (second, signed_again):
        assert [at_fault for _, at_fault in refusals(net.step(one, Received(Offer(other))))] == [False]
    assert net.cores[one].candidate == first
    net.offer(second, lead)
    net.offer(first)
    net.run()
    assert {disk.epochs[1].record.miner for disk in net.disks} == {testing.key(1).public_key}, "the leader's first"
    assert [core.candidate for core in net.cores] == [None] * 4


def test_a_keyblock_ahead_of_the_clock_is_not_kept_and_may_come_again_later() -> None:
    net = Net()
    voter, drift = net.order[1], net.parameters.timestamp_drift_ms
    signed = net.mine(timestamp_ms=net.now_ms + drift + 50)
    effects = net.step(voter, Received(Offer(signed)))
    assert [("ahead of this clock" in why, at_fault) for why, at_fault in refusals(effects)] == [(True, False)]
    assert net.cores[voter].candidate is None
    net.now_ms += 50
    net.step(voter, Received(Offer(signed)))
    assert net.cores[voter].candidate == signed


def test_a_pin_ahead_of_the_clock_is_not_voted_for_until_its_time_has_come() -> None:
    net = Net()
    voter, drift = net.order[1], net.parameters.timestamp_drift_ms
    signed = net.mine(timestamp_ms=net.now_ms + drift + 50)
    proposal = net.proposal(net.header(1, keyblock=signed), keyblock=signed)
    assert net.step(voter, Received(proposal)) == []
    net.now_ms += 50
    net.step(voter, Tick())
    assert net.record(voter).voted_round == 1


def test_while_an_epoch_ends_here_its_keyblocks_come_too_late() -> None:
    net = Net()
    *others, away = net.order
    net.dead.add(away)
    net.turn(0)
    net.restart(away)
    core = net.cores[away]
    core.step(ReceivedChain(net.answer(others[0], RequestChain(0))), net.now_ms)
    net.epoch = net.disks[away].epochs[0]
    late = core.step(Received(Offer(net.mine(1))), net.now_ms)
    assert [at_fault for _, at_fault in refusals(late)] == [False]
    following = net.disks[others[0]].epochs[1]
    core.step(Executed(following.root.height, net.final[following.root.height][1], following), net.now_ms)
    assert core.candidate is None
    assert core.epoch.number == 1


# ---------------------------------------------------------------- what a pin allows


def pinned(net: Net) -> tuple[Proposal, SignedKeyblock]:
    signed = net.mine()
    return net.proposal(net.header(1, keyblock=signed), keyblock=signed), signed


@pytest.mark.parametrize("what", ["batches", "the same keyblock", "another keyblock"])
def test_what_follows_a_pin_must_be_empty(what: str) -> None:
    net = Net()
    voter = net.order[3]
    net.pools[voter].here.append(batch("a"))
    pin, first = pinned(net)
    net.step(voter, Received(pin))
    certificate = net.certificate(1, hash_of(pin))
    header = pin.signed.microblock.header
    batches = (batch("a"),) if what == "batches" else ()
    keyblock = {"the same keyblock": first, "another keyblock": net.mine(miner=1)}.get(what)
    wrong = net.proposal(
        net.header(2, header, batches=batches, keyblock=keyblock), certificate, batches=batches, keyblock=keyblock
    )
    assert refusals(net.step(voter, Received(wrong))) == [
        ("microblock 2 of round 2 is not empty, but follows a microblock that ends the epoch", True)
    ]
    assert net.record(voter).voted_round == 1


def test_also_the_grandchildren_of_a_pin_must_be_empty() -> None:
    net = Net()
    voter = net.order[3]
    pin, _ = pinned(net)
    ended = net.ended(0, {0: 1, 1: 1, 2: 1})
    child = net.proposal(net.header(4, pin.signed.microblock.header), net.certificate(1, hash_of(pin)), ended)
    second = net.mine(miner=1)
    header = net.header(5, child.signed.microblock.header, keyblock=second)
    wrong = net.proposal(header, net.certificate(4, hash_of(child)), keyblock=second)
    for proposal in (pin, child):
        assert refusals(net.step(voter, Received(proposal))) == []
    assert ["is not empty" in why for why, _ in refusals(net.step(voter, Received(wrong)))] == [True]


def test_a_restarted_member_knows_that_an_uncommitted_microblock_ends_the_epoch() -> None:
    net = Net()
    voter = net.order[3]
    pin, first = pinned(net)
    net.step(voter, Received(pin))
    net.restart(voter)
    header = net.header(2, pin.signed.microblock.header, keyblock=first)
    wrong = net.proposal(header, net.certificate(1, hash_of(pin)), keyblock=first)
    assert ["is not empty" in why for why, _ in refusals(net.step(voter, Received(wrong)))] == [True]


def test_of_two_pins_on_two_branches_one_is_final_and_the_other_nothing() -> None:
    net = Net()
    lead, heir, one, other = net.order
    first, second = net.mine(miner=0), net.mine(miner=1)
    lost = net.proposal(net.header(1, keyblock=first), keyblock=first)
    for i in (one, other):
        net.step(i, Received(lost))  # two votes, no certificate
    net.dead.add(lead)
    net.queue.clear()
    net.offer(second, heir, one, other)
    net.heal(lambda: [net.epochs()[i] for i in (heir, one, other)] == [1, 1, 1])
    assert {net.disks[i].epochs[1].record.miner for i in (heir, one, other)} == {testing.key(1).public_key}
    net.restart(lead)
    net.commit("a")
    assert net.agrees()
    pins = [block for block in net.disks[lead].chain if block.signed.microblock.keyblock is not None]
    assert len(pins) == 1


def test_a_certified_pin_that_was_not_final_is_carried_on_by_the_next_leader() -> None:
    net = Net()
    lead, heir, one, other = net.order
    first = net.mine(miner=0)
    net.offer(net.mine(miner=1), heir, one, other)
    pin = net.proposal(net.header(1, keyblock=first), keyblock=first)
    for i in (heir, one, other):
        net.step(i, Received(pin))
        net.step(i, Received(Certified(net.certificate(1, hash_of(pin)), None)))
    net.dead.add(lead)
    net.queue.clear()
    net.heal(lambda: [net.epochs()[i] for i in (heir, one, other)] == [1, 1, 1])
    assert {net.disks[i].epochs[1].record.miner for i in (heir, one, other)} == {testing.key(0).public_key}


# ---------------------------------------------------------------- liveness


def test_a_leader_that_sits_on_a_keyblock_is_replaced_although_nothing_else_waits() -> None:
    net = Net()
    lead, *others = net.order
    net.dead.add(lead)
    begin = net.now_ms
    net.offer(net.mine(others[0]), *others)
    net.heal(lambda: all(net.epochs()[i] == 1 for i in others), turns=3)
    assert net.now_ms == begin + TIMING.timeout_ms


def test_a_keyblock_that_reaches_the_leader_only_ends_the_epoch_for_all() -> None:
    net = Net()
    net.offer(net.mine(), net.order[0])
    net.run()
    assert net.epochs() == [1, 1, 1, 1]


def test_a_member_whose_candidate_the_leader_lacks_gets_it_pinned_when_it_leads() -> None:
    net = Net(term=2)
    late = net.order[3]
    net.offer(net.mine(), late)
    net.give("a")
    net.heal(lambda: net.epochs() == [1, 1, 1, 1], turns=200)


def test_a_keyblock_waits_for_nobodys_batches() -> None:
    net = Net()
    lead, one, *_ = net.order
    net.pools[one].here.append(batch("a"))
    effects = net.step(lead, Received(Offer(net.mine())))
    assert [type(e) for e in effects] == [Persist, Broadcast, Persist]
    assert isinstance(messages(effects)[0], Proposal)


def test_a_pin_with_another_state_is_a_disagreement_and_not_voted_for() -> None:
    net = Net()
    voter, signed = net.order[1], net.mine()
    odd = net.proposal(net.header(1, keyblock=signed, state=b"o" * 32), keyblock=signed)
    assert [type(e) for e in net.step(voter, Received(odd))] == [Disagreement]


def test_nobody_pins_without_a_keyblock_and_heartbeats_end_no_epoch() -> None:
    net = Net()
    for _ in range(8):
        net.wait()
        net.run()
    assert net.epochs() == [0, 0, 0, 0]
    assert max(net.heights()) >= 4
