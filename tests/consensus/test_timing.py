# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from consensus.pacemaker import Pacemaker
from consensus.timing import Patience, Timing
from tests.consensus.kit import Net

TIMING = Timing(timeout_ms=100, heartbeat_ms=1_000, maximum_backoff=3)


def test_without_work_nothing_is_waited_for_until_the_heartbeat() -> None:
    patience = Patience(TIMING, 0)
    patience.observe_work(work=False, now_ms=50)
    assert patience.deadline_ms() is None
    assert not patience.expired(999)
    assert patience.next_tick_ms() == 1_000
    assert not patience.heartbeat_due(999)
    patience.observe_work(work=False, now_ms=1_000)
    assert patience.heartbeat_due(1_000)
    assert patience.next_tick_ms() == 1_100
    assert patience.expired(1_100)


def test_work_starts_the_clock_once_and_its_end_stops_it() -> None:
    patience = Patience(TIMING, 0)
    patience.observe_work(work=True, now_ms=10)
    patience.observe_work(work=True, now_ms=60)
    assert patience.next_tick_ms() == 110
    assert not patience.expired(109)
    assert patience.expired(110)
    patience.observe_work(work=False, now_ms=70)
    assert patience.deadline_ms() is None


def test_progress_starts_the_clock_again() -> None:
    patience = Patience(TIMING, 0)
    patience.observe_work(work=True, now_ms=10)
    patience.repeat(110)
    assert patience.next_tick_ms() == 210
    patience.progress(150)
    assert patience.deadline_ms() is None
    patience.observe_work(work=True, now_ms=160)
    assert patience.next_tick_ms() == 260


def test_patience_doubles_with_lost_terms_up_to_a_bound_and_a_commit_resets_it() -> None:
    patience = Patience(TIMING, 0)
    waits = []
    for _ in range(6):
        waits.append(patience.wait_ms)
        patience.term_lost()
    assert waits == [100, 200, 400, 800, 800, 800]
    patience.committed()
    assert patience.wait_ms == 100


def test_a_timeout_is_repeated_after_the_base_time_whatever_the_back_off() -> None:
    patience = Patience(TIMING, 0)
    for _ in range(9):
        patience.term_lost()
    patience.repeat(5_000)
    assert patience.next_tick_ms() == 5_100
    patience.observe_work(work=False, now_ms=5_050)
    assert patience.expired(5_100), "also when there is nothing to order any more"


def test_rounds_rise_by_certificates_and_jump_by_timeout_certificates() -> None:
    net = Net(term=4)
    pacemaker = Pacemaker(4, 1, TIMING, 0)
    assert (pacemaker.round, pacemaker.term, pacemaker.opened_by_timeout) == (1, 0, False)
    pacemaker.certified(0, 0)
    assert pacemaker.round == 1, "an older certificate moves nothing"
    pacemaker.certified(2, 0)
    assert pacemaker.round == 3
    ended = net.ended(1, {0: 2, 1: 2, 2: 2})
    pacemaker.ended(ended, 0)
    assert (pacemaker.round, pacemaker.term, pacemaker.entry) == (8, 2, ended)
    assert pacemaker.opened_by_timeout
    pacemaker.ended(net.ended(0, {0: 0, 1: 0, 2: 0}), 0)
    assert pacemaker.round == 8, "an older time-out certificate moves nothing"
    pacemaker.certified(8, 0)
    assert (pacemaker.round, pacemaker.entry, pacemaker.opened_by_timeout) == (9, ended, False)
    pacemaker.certified(11, 0)
    assert (pacemaker.term, pacemaker.entry) == (3, None)
    with pytest.raises(AssertionError, match="rise"):
        pacemaker._enter(5, 0)
