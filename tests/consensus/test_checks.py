# SPDX-License-Identifier: GPL-3.0-or-later
"""Each way in which a microblock can be wrong is refused with its reason, by a whole core, and leaves no trace in it."""

from collections.abc import Callable

import msgspec
import pytest

from consensus.block_tree import CertifiedMicroblock
from consensus.checks import check_certified
from consensus.events import Received, ReceivedChain, Refused, RequestChain
from consensus.executor import Executor
from consensus.messages import Proposal
from contracts.shipped import MACHINES
from ledger import testing
from ledger.errors import InvalidInput
from ledger.memory_store import MemoryStore
from tests.consensus.chains import ChainMaker, Step
from tests.consensus.kit import Net, batch, hash_of

replace = msgspec.structs.replace
ENDED = {0: 0, 1: 0, 2: 0}


def signed_again(net: Net, proposal: Proposal, **changes: object) -> Proposal:
    """The same proposal with another header, signed by the right leader of its round."""
    block = proposal.signed.microblock
    return replace(proposal, signed=net.sign(replace(block, header=replace(block.header, **changes)), by=net.order[0]))


def led_by(net: Net, proposal: Proposal, member: int) -> Proposal:
    """The same proposal by somebody else."""
    block = proposal.signed.microblock
    header = replace(block.header, leader=testing.key(member).address)
    return replace(proposal, signed=net.sign(replace(block, header=header), by=member))


WRONG: dict[str, tuple[Callable[[Net, Proposal], Proposal], str]] = {
    "epoch": (lambda n, p: signed_again(n, p, epoch=1), "epoch 1"),
    "term": (lambda n, p: signed_again(n, p, term=1), "does not belong to term"),
    "last round": (lambda n, p: signed_again(n, p, round=2**62 + 1), "rounds end"),
    "leader": (lambda n, p: led_by(n, p, n.order[1]), "does not lead"),
    "stranger": (lambda n, p: led_by(n, p, 9), "not in the committee"),
    "signature": (lambda n, p: replace(p, signed=n.sign(p.signed.microblock, by=n.order[1])), "not signed by"),
    "count": (lambda n, p: signed_again(n, p, batch_count=1), "not what the header states"),
    "batches": (
        lambda n, p: replace(p, signed=n.sign(replace(p.signed.microblock, batches=(batch("x"),)))),
        "not what the header states",
    ),
    "pinned": (lambda n, p: signed_again(n, p, pinned=bytes([1]) * 32), "not what the header states"),
    "seed": (lambda n, p: signed_again(n, p, seed=bytes(32)), "its seed is not the one"),
    "parent": (lambda n, p: signed_again(n, p, parent=bytes(32)), "not its parent's"),
    "height": (lambda n, p: signed_again(n, p, height=2), "cannot follow"),
    "time": (lambda n, p: signed_again(n, p, timestamp_ms=testing.GENESIS_TIMESTAMP_MS), "not later"),
    "keyblock": (lambda n, p: signed_again(n, p, keyblock=bytes(32)), "another keyblock"),
    "executed": (lambda n, p: signed_again(n, p, executed_height=1), "ancestors commit 0"),
    "round 2 without certificate": (lambda n, p: signed_again(n, p, round=2), "do not open this round"),
    "needless time-out certificate": (lambda n, p: replace(p, timeout_certificate=n.ended(0, ENDED)), "needs no"),
    "forged certificate": (
        lambda n, p: n.proposal(n.header(2), n.certificate(1, n.root.block_hash, (0,))),
        "no quorum",
    ),
    "certificate of another round": (
        lambda n, p: n.proposal(n.header(2), n.certificate(1, n.root.block_hash)),
        "certificate is of round 1",
    ),
    "certificate of a later round": (
        lambda n, p: replace(p, certificate=n.certificate(2, n.root.block_hash)),
        "its parent is of round 2",
    ),
    "forged time-out certificate": (
        lambda n, p: n.proposal(n.header(4), ended=n.ended(0, {0: 0, 1: 0})),
        "no quorum",
    ),
    "time-out certificate of another term": (
        lambda n, p: n.proposal(n.header(8), ended=n.ended(0, ENDED)),
        "do not open this round",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_proposal_is_refused_with_its_reason_and_not_voted_for(case: str) -> None:
    net = Net()
    voter = net.order[3]
    spoil, reason = WRONG[case]
    right = net.proposal(net.header(1))
    effects = net.step(voter, Received(spoil(net, right)))
    assert [reason in e.reason for e in effects if isinstance(e, Refused)] == [True], effects
    assert net.disks[voter].record is None
    if net.cores[voter].round == 1:  # else a genuine certificate came with it
        net.step(voter, Received(right))
        assert net.record(voter).voted_round == 1


def test_no_chain_gets_so_far_that_what_follows_from_a_round_cannot_be_stored() -> None:
    """Rounds may jump: who has a committee's keys needs no patience. The next epoch's first round must be a number that can be read."""
    cap = testing.PARAMETERS.term_microblocks
    far = ChainMaker(MemoryStore(testing.genesis(4)))
    far.extend()
    with pytest.raises(InvalidInput, match="rounds end"):
        far.take(Step(lost=(2**63 - 1) // cap, miner=0))
    far.take(Step(lost=2**62 // cap - 1, miner=0))
    assert Executor(far.store, MACHINES).epoch.number == 1


def test_a_certified_microblock_needs_its_own_certificate_and_its_predecessors() -> None:
    net = Net()
    voter = net.order[3]
    first = net.proposal(net.header(1))
    good = CertifiedMicroblock(first.signed, net.certificate(1, hash_of(first)))
    header = first.signed.microblock.header
    second = net.proposal(net.header(2, header), good.certificate)
    next_one = CertifiedMicroblock(second.signed, net.certificate(2, hash_of(second)))
    for wrong, reason in (
        (replace(good, certificate=next_one.certificate), "another microblock's"),
        (replace(good, certificate=net.certificate(2, hash_of(first))), "another microblock's"),
        (replace(good, certificate=net.certificate(1, hash_of(first), (0, 1))), "no quorum"),
        (replace(good, signed=net.sign(first.signed.microblock, by=net.order[1])), "not signed by its leader"),
    ):
        effects = net.step(voter, ReceivedChain((wrong,)))
        assert [reason in e.reason for e in effects if isinstance(e, Refused)] == [True], effects
        assert net.heights()[voter] == 0
    assert net.step(voter, ReceivedChain((next_one,))) == [], "it follows nothing that is here, and may be right"
    net.step(voter, ReceivedChain((good, good, next_one)))
    assert net.heights()[voter] == 1
    assert net.step(voter, ReceivedChain((good, next_one))) == [], "what is known already changes nothing"


def test_a_certified_microblock_of_another_epoch_is_refused() -> None:
    net = Net()
    first = net.proposal(net.header(1))
    good = CertifiedMicroblock(first.signed, net.certificate(1, hash_of(first)))
    check_certified(net.epoch, good, hash_of(first))
    later = Net()
    later.turn(miner=2)
    with pytest.raises(InvalidInput, match="microblock of epoch 0; this is epoch 1"):
        check_certified(later.epoch, good, hash_of(first))


@pytest.mark.parametrize("who", ["stranger", "epoch", "signature"])
def test_votes_and_timeouts_of_nobody_are_refused(who: str) -> None:
    net = Net()
    lead, one, other, _ = net.order
    for good in (net.vote(one, 1, bytes(32)), net.timeout(one, 0)):
        wrong = {
            "stranger": replace(good, voter=testing.key(9).address),
            "epoch": replace(good, epoch=1),
            "signature": replace(good, voter=net.address(other)),
        }[who]
        effects = net.step(lead, Received(wrong))
        # A later epoch may have begun elsewhere: nobody is to blame, and the end of this one is asked for.
        assert [e.at_fault for e in effects if isinstance(e, Refused)] == [who != "epoch"]
        assert {type(e) for e in effects} <= {Refused, RequestChain}
        assert net.step(lead, Received(good)) == []
