# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import Callable

import msgspec
import pytest

from consensus.certificates import (
    SignedHash,
    TimeoutCollector,
    VoteCollector,
    check_certificate,
    check_timeout_certificate,
)
from consensus.epoch import Basis, Chain, Epoch
from consensus.messages import Certificate, TimeoutCertificate
from ledger.errors import InvalidInput
from ledger.votes import SignedIndex
from tests.consensus.kit import Net

NET = Net()
BLOCK = b"b" * 32
GOOD = NET.certificate(5, BLOCK)
ENDED = NET.ended(2, {0: 3, 1: 4, 3: 7})
replace = msgspec.structs.replace

BAD: dict[str, tuple[Callable[[Certificate], Certificate], str]] = {
    "wrong epoch": (lambda c: replace(c, epoch=1), "epoch 1"),
    "too few": (lambda c: replace(c, votes=c.votes[:2]), "no quorum"),
    "nobody": (lambda c: replace(c, votes=()), "no quorum"),
    "doubled": (lambda c: replace(c, votes=(c.votes[0], c.votes[1], c.votes[1])), "rising order"),
    "unsorted": (lambda c: replace(c, votes=tuple(reversed(c.votes))), "rising order"),
    "foreign": (lambda c: replace(c, votes=(*c.votes[:2], SignedIndex(9, c.votes[2].signature))), "not in a committee"),
    "another's signature": (
        lambda c: replace(c, votes=(*c.votes[:2], SignedIndex(3, c.votes[2].signature))),
        "has not signed",
    ),
    "another round": (lambda c: replace(c, round=6), "has not signed"),
    "another block": (lambda c: replace(c, block_hash=b"c" * 32), "has not signed"),
    "a false genesis": (lambda c: Certificate(0, 0, BLOCK, ()), "no quorum"),
}


def test_a_certificate_of_a_quorum_and_that_of_the_genesis_are_accepted() -> None:
    check_certificate(NET.epoch, GOOD)
    check_certificate(NET.epoch, NET.certificate(5, BLOCK, (0, 1, 2, 3)))
    check_certificate(NET.epoch, NET.root)


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_certificate_is_refused(case: str) -> None:
    spoil, reason = BAD[case]
    with pytest.raises(InvalidInput, match=reason):
        check_certificate(NET.epoch, spoil(GOOD))


def weighed(*weights: int) -> Epoch:
    """The epoch of `NET` with other weights."""
    seats = tuple(replace(seat, reputation_nano=w) for seat, w in zip(NET.epoch.record.seats, weights, strict=True))
    record = replace(NET.epoch.record, seats=seats)
    basis = Basis(0, record, NET.epoch.root, NET.epoch.state_root, NET.epoch.timestamps_ms)
    return Epoch(NET.chain, basis, NET.epoch.reputation_of)


@pytest.mark.parametrize(
    ("weights", "voters", "decides"),
    [
        ((7, 1, 1, 1), (1, 2, 3), False),
        ((7, 1, 1, 1), (0, 1, 2), True),
        ((7, 1, 1, 1), (0, 1), False),
        ((1, 1, 1, 3), (0, 1, 2), False),
        ((2, 2, 2, 3), (0, 1, 2), False),
        ((2, 2, 3, 3), (0, 1, 3), True),
        ((3, 3, 1, 2), (0, 1, 2), True),
    ],
)
def test_a_certificate_needs_members_and_more_than_two_thirds_of_their_reputation(
    weights: tuple[int, ...], voters: tuple[int, ...], decides: bool
) -> None:
    epoch = weighed(*weights)
    certificate, ended = NET.certificate(5, BLOCK, voters), NET.ended(2, dict.fromkeys(voters, 3))
    if decides:
        check_certificate(epoch, certificate)
        check_timeout_certificate(epoch, ended)
        return
    with pytest.raises(InvalidInput, match="no quorum"):
        check_certificate(epoch, certificate)
    with pytest.raises(InvalidInput, match="no quorum"):
        check_timeout_certificate(epoch, ended)


def test_a_certificate_of_the_same_round_of_another_epoch_or_chain_is_refused_though_its_votes_are_real() -> None:
    later = Net()
    later.turn(miner=2)
    assert later.epoch.number == 1
    for round_ in (GOOD.round, later.epoch.first_round):
        ours = later.certificate(round_, BLOCK)
        check_certificate(later.epoch, ours)
        with pytest.raises(InvalidInput, match="certificate of epoch 1; this is epoch 0"):
            check_certificate(NET.epoch, ours)
        with pytest.raises(InvalidInput, match="has not signed"):
            check_certificate(NET.epoch, replace(ours, epoch=0))
    with pytest.raises(InvalidInput, match="certificate of epoch 0; this is epoch 1"):
        check_certificate(later.epoch, GOOD)
    elsewhere = Epoch(
        Chain(bytes(32), NET.parameters),
        Basis(0, NET.epoch.record, NET.epoch.root, NET.epoch.state_root, NET.epoch.timestamps_ms),
        NET.epoch.reputation_of,
    )
    with pytest.raises(InvalidInput, match="has not signed"):
        check_certificate(elsewhere, GOOD)
    with pytest.raises(InvalidInput, match="has not signed"):
        check_timeout_certificate(elsewhere, ENDED)


BAD_ENDED: dict[str, tuple[Callable[[TimeoutCertificate], TimeoutCertificate], str]] = {
    "wrong epoch": (lambda c: replace(c, epoch=1), "epoch 1"),
    "too few": (lambda c: replace(c, timeouts=c.timeouts[1:]), "no quorum"),
    "nobody": (lambda c: replace(c, timeouts=()), "no quorum"),
    "unsorted": (lambda c: replace(c, timeouts=tuple(reversed(c.timeouts))), "rising order"),
    "another's signature": (
        lambda c: replace(c, timeouts=(*c.timeouts[:2], replace(c.timeouts[2], signature=c.timeouts[1].signature))),
        "has not signed",
    ),
    "doubled": (lambda c: replace(c, timeouts=(*c.timeouts[:2], c.timeouts[1])), "rising order"),
    "foreign": (
        lambda c: replace(c, timeouts=(*c.timeouts[:2], replace(c.timeouts[2], member=8))),
        "not in a committee",
    ),
    "another term": (lambda c: replace(c, term=3), "has not signed"),
    "another round": (
        lambda c: replace(c, timeouts=(*c.timeouts[:2], replace(c.timeouts[2], high_round=0))),
        "has not signed",
    ),
}


def test_a_timeout_certificate_of_a_quorum_is_accepted() -> None:
    check_timeout_certificate(NET.epoch, ENDED)


@pytest.mark.parametrize("case", BAD_ENDED)
def test_a_wrong_timeout_certificate_is_refused(case: str) -> None:
    spoil, reason = BAD_ENDED[case]
    with pytest.raises(InvalidInput, match=reason):
        check_timeout_certificate(NET.epoch, spoil(ENDED))


def signed(i: int, round_: int, block_hash: bytes = BLOCK) -> SignedHash:
    return block_hash, NET.vote(i, round_, block_hash).signature


def test_votes_become_a_certificate_in_whatever_order_they_come() -> None:
    votes = VoteCollector(8)
    for i in (3, 0):
        assert votes.add(5, i, signed(i, 5), 5) == signed(i, 5)
        assert votes.certificate(NET.committee, 5, BLOCK) is None
    votes.add(5, 1, signed(1, 5), 5)
    made = votes.certificate(NET.committee, 5, BLOCK)
    assert made == NET.certificate(5, BLOCK, (0, 1, 3))


def test_a_second_vote_of_a_member_in_a_round_does_not_count_and_is_told() -> None:
    votes = VoteCollector(8)
    votes.add(5, 0, signed(0, 5), 5)
    assert votes.voted_for(5, 0) == BLOCK
    assert votes.voted_for(6, 0) is None
    assert votes.voted_for(5, 1) is None
    assert votes.add(5, 0, signed(0, 5, b"c" * 32), 5) == signed(0, 5), "the first one"
    assert votes.voted_for(5, 0) == BLOCK
    for i in (1, 2):
        votes.add(5, i, signed(i, 5, b"c" * 32), 5)
    assert votes.certificate(NET.committee, 5, b"c" * 32) is None


def test_votes_far_from_the_current_round_are_not_kept() -> None:
    votes = VoteCollector(8)
    assert [votes.covers(round_, 50) for round_ in (41, 42, 50, 58, 59)] == [False, True, True, True, False]
    for current in range(50, 500):
        for round_ in (current - 8, current + 8):
            votes.add(round_, 0, signed(0, 50), current)
        assert len(votes._rounds) <= 17, "rounds left behind are dropped although nothing commits"


def test_only_the_newest_timeout_of_a_member_is_kept() -> None:
    timeouts = TimeoutCollector()
    older, newer = NET.timeout(0, 3), NET.timeout(0, 4)
    timeouts.add(newer, 0)
    timeouts.add(older, 0)
    assert timeouts.members_at(4) == [0]
    assert timeouts.members_at(3) == []
    higher = NET.timeout(0, 4, GOOD)
    timeouts.add(higher, 0)
    timeouts.add(newer, 0)
    for i in (1, 2):
        assert timeouts.certificate(NET.committee, 4) is None
        timeouts.add(NET.timeout(i, 4), i)
    ended = timeouts.certificate(NET.committee, 4)
    assert ended is not None
    assert [(part.member, part.high_round) for part in ended.timeouts] == [(0, 5), (1, 0), (2, 0)]
    check_timeout_certificate(NET.epoch, ended)
    timeouts.forget_through(4)
    assert timeouts.members_at(4) == []
