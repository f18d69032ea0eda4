# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock under a system clock that jumps."""

from hypothesis import given
from hypothesis import strategies as st

from node.clock import Clock

SECOND_NS = 1_000_000_000


class System:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall_ns = 1_000 * SECOND_NS
        self.monotonic_ns = 0

    def passes(self, nanoseconds: int) -> None:
        self.wall_ns += nanoseconds
        self.monotonic_ns += nanoseconds


def clock_of(system: System) -> Clock:
    return Clock(lambda: system.wall_ns, lambda: system.monotonic_ns)


def test_it_follows_the_system_forward() -> None:
    system = System()
    clock = clock_of(system)
    system.passes(5 * SECOND_NS)
    assert clock.now_ms() == 1_005_000
    system.wall_ns += 60 * SECOND_NS
    assert clock.now_ms() == 1_065_000


def test_set_back_it_runs_slower_until_the_two_meet() -> None:
    system = System()
    clock = clock_of(system)
    system.wall_ns -= 10 * SECOND_NS
    system.passes(10 * SECOND_NS)
    assert clock.now_ms() == 1_005_000
    system.passes(10 * SECOND_NS)
    assert clock.now_ms() == 1_010_000 == system.wall_ns // 1_000_000
    system.passes(10 * SECOND_NS)
    assert clock.now_ms() == system.wall_ns // 1_000_000


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(-(10**11), 10**11))))
def test_it_never_goes_back_and_never_stands_still(steps: list[tuple[int, int]]) -> None:
    system = System()
    clock = clock_of(system)
    before = clock.now_ms()
    for passed_ns, jump_ns in steps:
        system.passes(passed_ns)
        system.wall_ns = max(0, system.wall_ns + jump_ns)
        now = clock.now_ms()
        assert now >= before + passed_ns // 2_000_000 - 1
        before = now
