# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.messages import Proposal, TimeoutCertificate
from consensus.safety import (
    extends_safely,
    fresh_record,
    may_vote,
    newest_round,
    record_proposal,
    record_timeout,
    record_vote,
)
from tests.consensus.kit import Net

TERM = 4
NET = Net(term=TERM)
FRESH = fresh_record(NET.epoch)


def proposal(round_: int, certified: int, ended: TimeoutCertificate | None = None) -> Proposal:
    certificate = NET.certificate(certified, b"p" * 32) if certified else NET.root
    return NET.proposal(NET.header(round_), certificate, ended)


def test_the_child_of_the_round_before_may_be_voted_for() -> None:
    assert may_vote(FRESH, proposal(1, 0), TERM)
    assert may_vote(FRESH, proposal(4, 3), TERM)


def test_s1_a_round_is_voted_in_once_and_never_an_older_one() -> None:
    voted = record_vote(FRESH, 3, NET.root)
    assert not may_vote(voted, proposal(3, 2), TERM)
    assert not may_vote(voted, proposal(2, 1), TERM)
    assert may_vote(voted, proposal(4, 3), TERM)
    with pytest.raises(AssertionError, match="S1"):
        record_vote(voted, 3, NET.root)


def test_s2_no_round_of_a_term_given_up_is_voted_in() -> None:
    given_up = record_timeout(FRESH, 1, NET.root, None)
    assert not may_vote(given_up, proposal(5, 4), TERM)
    assert not may_vote(given_up, proposal(3, 2), TERM)
    assert may_vote(given_up, proposal(8, 7), TERM)


def test_s3_after_a_timeout_the_parent_is_as_new_as_all_that_the_quorum_knew() -> None:
    ended = NET.ended(1, {0: 0, 1: 5, 2: 4})
    assert newest_round(ended) == 5
    assert may_vote(FRESH, proposal(8, 5, ended), TERM)
    assert may_vote(FRESH, proposal(8, 6, ended), TERM)
    assert not may_vote(FRESH, proposal(8, 4, ended), TERM)


def test_s3_a_timeout_certificate_opens_the_first_round_of_the_next_term_only() -> None:
    ended = NET.ended(1, {0: 0, 1: 5, 2: 4})
    for round_ in (7, 9, 12):
        assert not extends_safely(proposal(round_, 5, ended), TERM)
    assert not extends_safely(proposal(8, 5), TERM)


def test_proposals_and_timeouts_rise() -> None:
    proposed = record_proposal(FRESH, 2, NET.root)
    with pytest.raises(AssertionError, match="once"):
        record_proposal(proposed, 2, NET.root)
    given_up = record_timeout(FRESH, 2, NET.root, None)
    assert record_timeout(given_up, 2, NET.root, None) == given_up
    with pytest.raises(AssertionError, match="rising"):
        record_timeout(given_up, 1, NET.root, None)
    assert FRESH.timed_out_term == -1, "no term is given up yet"


@given(st.lists(st.tuples(st.sampled_from("vpt"), st.integers(1, 40), st.integers(0, 39)), max_size=20))
def test_no_promise_is_ever_taken_back(promises: list[tuple[str, int, int]]) -> None:
    record = FRESH
    for kind, round_, high in promises:
        before = record
        certificate = NET.certificate(high, b"p" * 32, ()) if high else NET.root
        if kind == "v" and round_ > record.voted_round:
            record = record_vote(record, round_, certificate)
        elif kind == "p" and round_ > record.proposed_round:
            record = record_proposal(record, round_, certificate)
        elif kind == "t" and round_ >= record.timed_out_term:
            record = record_timeout(record, round_, certificate, None)
        assert record.voted_round >= before.voted_round
        assert record.proposed_round >= before.proposed_round
        assert record.timed_out_term >= before.timed_out_term
        assert record.high_certificate.round >= before.high_certificate.round
