# SPDX-License-Identifier: GPL-3.0-or-later
"""What was once said rightly and is said again, by whomever: it costs no signature check, and is not passed on for ever.

A false signature that blames nobody was not looked at. What a core does not refuse is passed on, so it must have been looked at.
"""

from collections.abc import Callable
from itertools import combinations

import msgspec
import pytest

from consensus import epoch
from consensus.events import Broadcast, Misbehaviour, Received, RequestChain, Tick
from consensus.messages import Certificate, Certified, Message, Offer, Proposal, Timeout, TimeoutCertificate
from ledger.crypto.keys import verify
from tests.consensus.kit import TIMING, Net, batch, blames, hash_of, messages

replace = msgspec.structs.replace
HALF_MS = TIMING.timeout_ms // 2


def false_certificate(certificate: Certificate) -> Certificate:
    return replace(certificate, votes=tuple(replace(vote, signature=bytes(64)) for vote in certificate.votes))


def false_ending(ended: TimeoutCertificate) -> TimeoutCertificate:
    return replace(ended, timeouts=tuple(replace(part, signature=bytes(64)) for part in ended.timeouts))


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the signatures that cores check from here on."""
    checks: list[bytes] = []

    def check(public_key: bytes, digest: bytes, signature: bytes) -> bool:
        checks.append(signature)
        return verify(public_key, digest, signature)

    monkeypatch.setattr(epoch, "verify", check)
    return lambda: len(checks)


def at_work(*names: str) -> tuple[Net, dict[int, Proposal]]:
    """Four members that have committed, and all that was proposed, by round."""
    net = Net()
    net.commit(*(names or ("a", "b", "c")))
    net.run()
    said = [m for m in messages(net.said(Broadcast)) if isinstance(m, Proposal)]
    return net, {proposal.signed.microblock.header.round: proposal for proposal in said}


def test_an_old_certificate_is_not_looked_at() -> None:
    net, proposed = at_work()
    old = proposed[2].certificate
    for message in (Certified(old, None), Certified(false_certificate(old), None)):
        assert blames(net.step(3, Received(message))) == [False]
    assert net.cores[3].term > 0
    ended = false_ending(net.ended(0, {0: 0, 1: 0, 2: 0}))
    assert blames(net.step(3, Received(Certified(old, ended)))) == [False]


def test_an_old_certificate_with_another_vote_is_looked_at_and_convicts() -> None:
    net, _ = at_work()
    watcher, high = net.order[3], net.cores[net.order[3]].high
    other = net.certificate(1, b"o" * 32, net.order[:3])
    assert blames(net.step(watcher, Received(Certified(false_certificate(other), None)))) == [True]
    effects = net.step(watcher, Received(Certified(other, None)))
    accused = {effect.member for effect in effects if isinstance(effect, Misbehaviour)}
    assert len(accused) >= 2, "a quorum certified what is final"
    assert accused <= {net.address(i) for i in net.order[:3]}
    assert net.cores[watcher].high == high
    assert blames(net.step(watcher, Received(Certified(other, None)))) == [False], "they are accused once"


def test_the_newest_certificate_is_passed_on_again_but_not_every_moment() -> None:
    net, _ = at_work()
    newest = Received(Certified(net.cores[0].high, None))
    net.now_ms += HALF_MS
    assert net.step(0, newest) == []
    net.now_ms += HALF_MS - 1
    assert blames(net.step(0, newest)) == [False]
    net.now_ms += 1
    assert net.step(0, newest) == []
    net.now_ms += HALF_MS
    assert blames(net.step(0, Received(Certified(false_certificate(net.cores[0].high), None)))) == [True]


def test_what_comes_with_a_late_timeout_is_not_looked_at_and_its_member_is_told_where_others_are() -> None:
    net, _ = at_work()
    helper, behind = net.order[1], net.order[3]
    late = net.timeout(behind, 0, entry=false_ending(net.ended(0, {0: 0, 1: 0, 2: 0})))
    assert net.cores[helper].term > 0
    assert blames(net.step(helper, Received(replace(late, signature=bytes(64))))) == [True]
    effects = net.step(helper, Received(late))
    assert blames(effects) == [False], "others tell the member themselves"
    assert messages(effects) == [Certified(net.cores[helper].high, None)]
    for again in (late, replace(late, signature=bytes(64))):
        assert blames(net.step(helper, Received(again))) == [False]
    net.now_ms += HALF_MS
    assert len(messages(net.step(helper, Received(late)))) == 1


def test_a_timeout_of_the_present_is_passed_on_again_but_not_every_moment() -> None:
    net = Net()
    one, two = net.order[2:]
    said = Received(net.timeout(one, 0))
    assert blames(net.step(two, said)) == []
    assert blames(net.step(two, said)) == [False]
    assert blames(net.step(two, Received(replace(net.timeout(one, 0), signature=bytes(64))))) == [False]
    net.now_ms += HALF_MS
    assert blames(net.step(two, Received(replace(net.timeout(one, 0), signature=bytes(64))))) == [True]
    assert blames(net.step(two, said)) == [], "a repetition is for those who missed it"
    newer = net.timeout(one, 0, net.certificate(1, b"n" * 32))
    assert blames(net.step(two, Received(newer))) == [], "it tells of something new"
    assert net.cores[two].high == newer.high_certificate


def test_repeated_timeouts_still_move_a_lossy_network() -> None:
    net = Net()
    net.give("a", *net.order[1:])
    net.dead.add(net.order[0])
    heard = 0

    def third(_source: int, _target: int, _event: object) -> bool:
        nonlocal heard
        heard += 1
        return heard % 3 > 0

    for _ in range(60):
        net.run(third)
        net.wait()
    net.heal(lambda: all(batch("a") in net.pools[i].committed for i in net.order[1:]))


def test_signatures_that_were_found_right_are_not_checked_again_however_they_are_put_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(n=7)
    heir, checks = net.order[1], counted(monkeypatch)
    everyone = range(7)
    votes = [net.vote(i, 1, b"v" * 32) for i in everyone]
    for vote in votes:
        net.step(heir, Received(vote))
    assert checks() == 7
    for voters in combinations(everyone, 5):
        net.now_ms += HALF_MS
        assert blames(net.step(heir, Received(Certified(net.certificate(1, b"v" * 32, voters), None)))) == []
    assert checks() == 7
    for i in everyone:
        net.step(heir, Received(net.timeout(i, 0, net.cores[heir].high)))
    ended = [net.ended(0, dict.fromkeys(voters, 1)) for voters in combinations(everyone, 5)]
    made, before = net.cores[heir]._desk.pacemaker.entry, checks()
    assert made is not None
    assert before <= 14
    for again in ended:
        net.now_ms += HALF_MS
        net.step(heir, Received(Certified(net.cores[heir].high, again)))
    assert checks() <= 14


def test_the_memory_of_right_signatures_is_bounded_and_false_ones_are_not_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epoch, "MAX_SIGNATURES", 3)
    net, checks = Net(), counted(monkeypatch)
    votes = [net.vote(1, round_, b"v" * 32) for round_ in range(1, 6)]
    for vote in votes:
        net.step(0, Received(vote))
    assert len(net.cores[0].epoch._right) == 3
    for _ in range(2):
        assert blames(net.step(0, Received(replace(net.vote(2, 1, b"v" * 32), signature=bytes(64))))) == [True]
    assert checks() == 7
    assert len(net.cores[0].epoch._right) == 3


@pytest.mark.parametrize("what", ["final", "known", "beside"])
def test_a_proposal_that_brings_nothing_is_neither_looked_at_nor_passed_on(what: str) -> None:
    net, proposed = at_work()
    tip = net.cores[3].certified_tail()[-1].signed.microblock.header
    proposal = {
        "final": proposed[1],
        "known": proposed[tip.round],
        "beside": net.proposal(net.header(16), ended=net.ended(3, {0: 0, 1: 0, 2: 0})),
    }[what]
    if what == "beside":
        later = Certified(net.cores[3].high, net.ended(8, {0: 0, 1: 0, 2: 0}))
        assert blames(net.step(3, Received(later))) == []
    false = replace(proposal, signed=replace(proposal.signed, signature=bytes(64)))
    for message in (proposal, false):
        effects = net.step(3, Received(message))
        assert blames(effects) == [False]
        assert not [e for e in effects if isinstance(e, RequestChain)]


def test_a_proposal_that_waits_for_its_parent_is_taken_once() -> None:
    net = Net()
    first = net.proposal(net.header(1))
    above = first.signed.microblock.header
    second = net.proposal(net.header(2, above), net.certificate(1, hash_of(first)))
    last = net.order[3]
    assert [type(e) for e in net.step(last, Received(second))] == [RequestChain]
    for message in (second, replace(second, certificate=false_certificate(second.certificate))):
        assert blames(net.step(last, Received(message))) == [False]
    assert blames(net.step(last, Received(first))) == []
    assert [node.round for node in net.cores[last]._desk.known.tree.path(hash_of(second))] == [1, 2]


def test_more_proposals_of_an_accused_leader_are_not_looked_at() -> None:
    net = Net()
    voter = net.order[1]
    for ms in (1, 2):
        net.step(voter, Received(net.proposal(net.header(1, later_ms=ms))))
    assert net.said(Misbehaviour, voter)
    third = net.proposal(net.header(1, later_ms=3))
    assert blames(net.step(voter, Received(replace(third, signed=replace(third.signed, signature=bytes(64)))))) == [
        False
    ]


@pytest.mark.parametrize("kind", ["keyblock", "reveal"])
def test_a_keyblock_and_a_reveal_are_passed_on_again_but_not_every_moment(kind: str) -> None:
    net = Net()
    message: Message
    if kind == "keyblock":
        message = Offer(net.mine(0))
        net.step(3, Received(message))
    else:
        net.withholding.add(0)
        net.turn(0)
        net.run()
        message = net.reveal(0)
        net.step(3, Received(message))
    assert blames(net.step(3, Received(message))) == []
    assert blames(net.step(3, Received(message))) == [False]
    net.now_ms += HALF_MS
    assert blames(net.step(3, Received(message))) == []


def test_who_repeats_what_a_member_said_does_not_break_the_member() -> None:
    net = Net()
    net.give("a", 3)
    net.dead.update({0, 1, 2})
    net.wait(3)
    (said,) = [m for m in messages(net.said(Broadcast, 3)) if isinstance(m, Timeout)]
    net.now_ms = net.cores[3].next_tick_ms()
    net.step(3, Received(said))
    net.step(3, Tick())
    assert len([m for m in messages(net.said(Broadcast, 3)) if isinstance(m, Timeout)]) == 2
