# SPDX-License-Identifier: GPL-3.0-or-later
"""How an epoch opens: with the reveal, without it, with a forged one, past silent members; and what a silent leader costs later."""

from collections.abc import Callable
from itertools import combinations

import msgspec
import pytest

from consensus.election import next_seed
from consensus.events import Broadcast, Effect, Persist, Received, Refused
from consensus.messages import Certified, Proposal, Reveal, Timeout
from ledger.blocks import MicroblockHeader
from tests.consensus.kit import TIMING, Net, batch, hash_of, messages

replace = msgspec.structs.replace


def refusals(effects: list[Effect]) -> list[tuple[str, bool]]:
    return [(effect.reason, effect.at_fault) for effect in effects if isinstance(effect, Refused)]


def begun(n: int = 4, creator: int = 0, term: int = 4) -> Net:
    """Everybody is in epoch 1; its creator has not revealed, and all that was said is over."""
    net = Net(n=n, term=term)
    net.withholding = {creator}
    net.turn(miner=creator)
    net.run()
    return net


def opening(net: Net, *who: int) -> MicroblockHeader:
    """The first microblock of epoch 1 that these agree on."""
    chains = [net.disks[i].chain for i in (who or range(len(net.cores)))]
    headers = [[b.signed.microblock.header for b in chain if b.signed.microblock.header.epoch == 1] for chain in chains]
    first = {chain[0] for chain in headers}
    assert len(first) == 1
    return first.pop()


def lost(net: Net, *who: int) -> int:
    """How many terms somebody gave up on since the epoch began."""
    terms = {m.term for m in messages(net.said(Broadcast, *who)) if isinstance(m, Timeout) and m.epoch == 1}
    return len(terms)


# ---------------------------------------------------------------- with the reveal


def test_the_reveal_names_the_leader_and_the_opening_carries_it() -> None:
    net = begun()
    assert {core.leader_address() for core in net.cores} == {None}
    assert [core.wants_reveal for core in net.cores] == [True] * 4
    reveal = net.reveal(0)
    lead = net.leader(net.epoch.first_round, reveal=reveal.signature)
    for i in range(4):
        effects = net.step(i, Received(reveal))
        assert [type(e) for e in effects] == ([Persist, Broadcast, Persist] if i == lead else [])
    assert {core.leader_address() for core in net.cores} == {net.address(lead)}
    net.commit("a")
    header = opening(net)
    assert (header.leader, header.round) == (net.address(lead), net.epoch.first_round)
    assert header.seed == next_seed(net.first.seed, net.epoch.record.keyblock, reveal.signature)
    assert net.disks[0].chain[1].signed.microblock.reveal == reveal.signature
    assert {block.signed.microblock.header.seed for block in net.disks[0].chain[1:]} == {header.seed}
    assert [core.wants_reveal for core in net.cores] == [False] * 4
    assert lost(net) == 0


def test_who_misses_the_reveal_learns_it_from_the_opening() -> None:
    net = begun()
    reveal = net.reveal(0)
    lead = net.leader(net.epoch.first_round, reveal=reveal.signature)
    net.step(lead, Received(reveal))
    net.commit("a")
    assert opening(net).leader == net.address(lead)
    assert lost(net) == 0


def test_a_forged_reveal_is_its_bearers_fault_and_an_untimely_one_is_nobodys() -> None:
    net = begun()
    right = net.reveal(0)
    flipped = bytes([right.signature[0], right.signature[1] ^ 1, *right.signature[2:]])
    old = net.reveal(0, net.disks[0].epochs[0])
    for forged in (flipped, bytes(96), net.reveal(1).signature, old.signature):
        assert [at_fault for _, at_fault in refusals(net.step(1, Received(Reveal(1, forged))))] == [True]
    assert net.cores[1].wants_reveal
    for untimely in (old, replace(right, epoch=2)):
        assert [at_fault for _, at_fault in refusals(net.step(1, Received(untimely)))] == [False]
    assert net.cores[1].wants_reveal
    assert refusals(net.step(1, Received(right))) == []
    assert refusals(net.step(1, Received(right))) == [], "gossip repeats itself"
    assert [at_fault for _, at_fault in refusals(net.step(1, Received(Reveal(1, flipped))))] == [False], "it is fixed"
    net.commit("a", "b")
    assert [at_fault for _, at_fault in refusals(net.step(2, Received(Reveal(1, flipped))))] == [False]


def test_nobody_reveals_in_the_founding_epoch() -> None:
    net = Net()
    assert not net.cores[0].wants_reveal
    assert [at_fault for _, at_fault in refusals(net.step(0, Received(net.reveal(0))))] == [True]


# ---------------------------------------------------------------- without it


def test_a_withheld_reveal_costs_exactly_one_time_out() -> None:
    net = begun()
    begin = min(core.next_tick_ms() for core in net.cores) - TIMING.timeout_ms
    net.commit("a")
    header = opening(net)
    assert net.now_ms == begin + TIMING.timeout_ms
    assert lost(net) == 1
    assert header.seed == next_seed(net.first.seed, net.epoch.record.keyblock, None)
    assert header.round == net.epoch.first_round + 4
    assert header.leader == net.address(net.leader(header.round))
    assert net.disks[0].chain[1].signed.microblock.reveal is None
    assert [core.wants_reveal for core in net.cores] == [False] * 4, "it would come too late"


def test_a_reveal_that_comes_late_is_carried_by_the_fallback_leader() -> None:
    net = begun()
    net.wait()
    fallback = net.leader(net.epoch.first_round + 4)
    net.step(fallback, Received(net.reveal(0)))
    net.commit("a")
    header = opening(net)
    assert (header.leader, header.term) == (net.address(fallback), net.epoch.first_term + 1)
    assert header.seed == next_seed(net.first.seed, net.epoch.record.keyblock, net.reveal(0).signature)


SILENT = [(n, silent) for n, faults in ((4, 1), (7, 2)) for silent in combinations(range(n), faults)]


@pytest.mark.parametrize("revealed", [True, False])
@pytest.mark.parametrize(("n", "silent"), SILENT)
def test_k_silent_members_cost_at_most_k_plus_1_time_outs_at_an_opening(
    n: int, silent: tuple[int, ...], revealed: bool
) -> None:
    net = begun(n=n)
    net.dead.update(silent)
    if revealed:
        for i in range(n):
            net.step(i, Received(net.reveal(0)))
    net.commit("a")
    alive = [i for i in range(n) if i not in silent]
    assert lost(net, *alive) <= len(silent) + 1
    assert net.number(opening(net, *alive).leader) not in silent


def test_every_member_has_its_turn_while_an_epoch_does_not_open() -> None:
    net = begun(n=7)
    turns = [net.leader(net.epoch.first_round + 4 * k) for k in range(1, 15)]
    assert sorted(turns[:7]) == list(range(7))
    assert turns[7:] == turns[:7]


def test_a_reveal_that_was_seen_in_a_lost_opening_only_is_carried_by_the_next_one() -> None:
    net = begun()
    reveal = net.reveal(0).signature
    lost_one = net.proposal(net.header(net.epoch.first_round, reveal=reveal), reveal=reveal)
    fallback = net.leader(net.epoch.first_round + 4)
    net.log.clear()
    net.step(fallback, Received(lost_one))
    assert not net.cores[fallback].wants_reveal
    net.dead.add(net.number(lost_one.signed.microblock.header.leader))
    net.queue.clear()
    net.wait()
    net.run()
    again = next(m for m in messages(net.said(Broadcast, fallback)) if isinstance(m, Proposal))
    assert again.signed.microblock.reveal == reveal


def test_an_epoch_opens_again_when_its_first_opening_is_lost() -> None:
    net = begun()
    reveal = net.reveal(0)
    lead = net.leader(net.epoch.first_round, reveal=reveal.signature)
    net.step(lead, Received(reveal))
    net.dead.add(lead)
    net.queue.clear()
    net.commit("a")
    alive = [i for i in range(4) if i != lead]
    assert opening(net, *alive).term > net.epoch.first_term
    net.restart(lead)
    net.commit("b")
    assert net.agrees()


def test_a_certified_opening_stays_although_its_term_is_lost() -> None:
    net = begun()
    reveal = net.reveal(0).signature
    first = net.proposal(net.header(net.epoch.first_round, reveal=reveal), reveal=reveal)
    lead = net.number(first.signed.microblock.header.leader)
    alive = [i for i in range(4) if i != lead]
    net.dead.add(lead)
    for i in alive:
        net.step(i, Received(first))
        net.step(i, Received(Certified(net.certificate(first.signed.microblock.header.round, hash_of(first)), None)))
    net.queue.clear()
    net.commit("a")
    assert opening(net, *alive) == first.signed.microblock.header


# ---------------------------------------------------------------- wrong openings


def first_proposal(net: Net, **changes: object) -> Proposal:
    """An opening by the right leader, in the first term, with the reveal, and then what is changed."""
    reveal = net.reveal(0).signature
    round_ = net.epoch.first_round
    header = net.header(round_, reveal=reveal)
    by = net.number(header.leader)
    carried = changes.pop("carried", reveal)
    assert carried is None or isinstance(carried, bytes)
    made = net.proposal(header, reveal=carried)
    block = replace(made.signed.microblock, header=replace(header, **changes))
    return replace(made, signed=net.sign(block, by=by))


def later_proposal(net: Net, reveal: bytes | None, seed: bytes) -> Proposal:
    """An opening by the right leader after a lost term, with any seed."""
    round_ = net.epoch.first_round + 4
    header = replace(net.header(round_), seed=seed)
    ended = net.ended(net.epoch.first_term, dict.fromkeys(range(3), net.root.round))
    return net.proposal(header, net.root, ended, reveal=reveal)


OPENINGS: dict[str, tuple[Callable[[Net], Proposal], str]] = {
    "first term without reveal": (
        lambda n: first_proposal(n, carried=None, seed=n.epoch.fallback_seed),
        "it must carry the reveal",
    ),
    "forged reveal": (lambda n: first_proposal(n, carried=bytes(96)), "not that of the keyblock's creator"),
    "another's reveal": (
        lambda n: first_proposal(n, carried=n.reveal(1).signature),
        "not that of the keyblock's creator",
    ),
    "another seed": (lambda n: first_proposal(n, seed=bytes(32)), "its seed is not the one"),
    "the seed before": (lambda n: first_proposal(n, seed=n.first.seed), "its seed is not the one"),
    "the fallback's seed beside the reveal": (
        lambda n: first_proposal(n, seed=n.epoch.fallback_seed),
        "its seed is not the one",
    ),
    "later, a drawn seed": (lambda n: later_proposal(n, None, b"s" * 32), "its seed is not the one"),
    "later, the revealed seed without its proof": (
        lambda n: later_proposal(n, None, n.epoch.opening_seed(n.reveal(0).signature)),
        "its seed is not the one",
    ),
    "later, a forged reveal": (
        lambda n: later_proposal(n, n.reveal(1).signature, n.epoch.opening_seed(n.reveal(1).signature)),
        "not that of the keyblock's creator",
    ),
    "the epoch before as keyblock": (lambda n: first_proposal(n, keyblock=n.chain.id), "another keyblock"),
    "height": (lambda n: first_proposal(n, height=n.first.height + 2), "cannot follow"),
    "executed height": (lambda n: first_proposal(n, executed_height=n.first.height - 1), "its ancestors commit 1"),
    "time": (lambda n: first_proposal(n, timestamp_ms=n.first.timestamp_ms), "not later"),
}


@pytest.mark.parametrize("case", OPENINGS)
def test_a_wrong_opening_is_refused_and_not_voted_for(case: str) -> None:
    net = begun()
    make, reason = OPENINGS[case]
    wrong = make(net)
    voter = next(i for i in range(4) if net.address(i) != wrong.signed.microblock.header.leader)
    effects = net.step(voter, Received(wrong))
    assert [(reason in why, at_fault) for why, at_fault in refusals(effects)] == [(True, True)], effects
    assert net.record(voter).epoch == 0


def test_another_member_than_the_drawn_one_opens_in_vain() -> None:
    net = begun()
    reveal = net.reveal(0).signature
    right = net.header(net.epoch.first_round, reveal=reveal)
    for i in range(4):
        if net.address(i) == right.leader:
            continue
        wrong = net.proposal(replace(right, leader=net.address(i)), reveal=reveal)
        effects = net.step((i + 1) % 4, Received(wrong))
        assert [("does not lead" in why, at_fault) for why, at_fault in refusals(effects)] == [(True, True)]


@pytest.mark.parametrize("what", ["seed", "reveal"])
def test_only_the_opening_fixes_the_seed(what: str) -> None:
    net = begun()
    reveal = net.reveal(0).signature
    first = net.proposal(net.header(net.epoch.first_round, reveal=reveal), reveal=reveal)
    voter = next(i for i in range(4) if net.address(i) != first.signed.microblock.header.leader)
    net.step(voter, Received(first))
    header = net.header(net.epoch.first_round + 1, first.signed.microblock.header)
    if what == "seed":
        header = replace(header, seed=net.epoch.fallback_seed)
    wrong = net.proposal(
        header,
        net.certificate(net.epoch.first_round, hash_of(first)),
        reveal=reveal if what == "reveal" else None,
    )
    effects = net.step(voter, Received(wrong))
    assert [("only an epoch's first microblock" in why, at_fault) for why, at_fault in refusals(effects)] == [
        (True, True)
    ]


def test_a_reveal_in_the_founding_epochs_first_microblock_is_refused() -> None:
    net = Net()
    reveal = net.reveal(0).signature
    effects = net.step(net.order[1], Received(net.proposal(net.header(1), reveal=reveal)))
    assert [at_fault for _, at_fault in refusals(effects)] == [True]


# ---------------------------------------------------------------- later in the epoch


def test_a_silent_leader_in_the_middle_of_an_epoch_costs_one_time_out_and_no_more() -> None:
    net = Net()
    net.turn(miner=0)
    net.commit("a")
    net.run()
    lead = net.number(net.cores[0].leader_address() or b"")
    watcher = next(i for i in range(4) if i != lead)
    net.dead.add(lead)
    net.log.clear()
    net.commit("b")
    terms = {m.term for m in messages(net.said(Broadcast)) if isinstance(m, Timeout)}
    assert len(terms) == 1
    assert all(batch("b") in net.pools[i].committed for i in range(4) if i != lead)
    before = net.now_ms
    net.commit("c")
    assert net.now_ms == before, "its successor keeps the term"
    assert net.cores[watcher].epoch.number == 1


def test_an_epoch_opens_at_once_and_not_at_the_first_heartbeat() -> None:
    net = Net()
    begin = net.now_ms
    for number in range(3):
        net.turn(number)
    net.run()
    assert net.now_ms == begin
    assert {core.high.round for core in net.cores} == {net.epoch.first_round}
