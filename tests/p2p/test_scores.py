# SPDX-License-Identifier: GPL-3.0-or-later
from p2p.scores import HALF_LIFE_S, MAX_SUBJECTS, Scores


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_points_halve_in_a_half_life() -> None:
    clock = Clock()
    scores = Scores(100, 600, clock)
    assert scores.add("p", 40) is False
    clock.now_s += HALF_LIFE_S
    assert scores.points("p") == 20


def test_the_limit_bans_once_and_for_the_time_given() -> None:
    clock = Clock()
    scores = Scores(100, 600, clock)
    assert scores.add("p", 99) is False
    assert scores.add("p", 1) is True
    assert scores.ban_left_s("p") == 600
    assert scores.add("p", 50) is False, "a banned peer is not banned anew"
    clock.now_s += 601
    assert scores.ban_left_s("p") == 0
    assert scores.points("p") < 100


def test_after_a_ban_one_serious_fault_bans_again() -> None:
    clock = Clock()
    scores = Scores(100, 600, clock)
    scores.add("p", 500)
    clock.now_s += 600
    assert scores.add("p", 50) is True


def test_an_unknown_peer_is_spotless() -> None:
    scores = Scores(100, 600, Clock())
    assert scores.points("p") == 0
    assert scores.ban_left_s("p") == 0


def test_memory_is_bounded_however_many_identities_misbehave() -> None:
    scores = Scores(100, 600, Clock())
    for number in range(MAX_SUBJECTS + 10):
        scores.add(str(number), 10)
    assert scores.points("0") == 0
    assert scores.points(str(MAX_SUBJECTS + 9)) == 10
