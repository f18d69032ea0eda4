# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs many seeds, in several processes, and makes the first violation of each invariant smaller."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from simulation.draw import draw_scenario
from simulation.run import Failure, replay_command, run
from simulation.scenario import Scenario
from simulation.shrink import shrink

MOST_VIOLATIONS = 20
"""After so many the campaign stops: the core is broken, and further seeds tell the same."""
TELL_S = 5.0
"""Progress is told this often."""


class Violated(msgspec.Struct, frozen=True):
    """A scenario that violates an invariant."""

    seed: int
    """Its seed."""
    invariant: str
    """Which one."""
    detail: str
    """How."""
    scenario: Scenario
    """What was run."""
    report: str
    """All of it for people, with the last events."""
    replay: str
    """The command that runs it again."""


class Ran(msgspec.Struct, frozen=True):
    """One seed."""

    seed: int
    """Which one."""
    events: int
    """Events of the run; 0 when it violated an invariant."""
    microblocks: int
    """Microblocks committed; 0 when it violated an invariant."""
    epochs: int
    """Keyblocks pinned; 0 when it violated an invariant."""
    trace: str
    """Hash over all events."""
    violated: Violated | None
    """What went wrong; None when nothing did."""


class Result(msgspec.Struct):
    """What a campaign came to."""

    first: int
    """First seed."""
    last: int
    """Last seed."""
    members: int | None
    """Size of the committees; None when the seeds chose."""
    contracts: bool = False
    """Whether all runs have off-chain contracts."""
    runs: int = 0
    """Seeds run."""
    events: int = 0
    """Events in them."""
    microblocks: int = 0
    """Microblocks committed in them."""
    epochs: int = 0
    """Keyblocks pinned in them."""
    seconds: float = 0.0
    """How long it took."""
    trace: str = "0" * 64
    """Hashes over all events of each run, combined so that their order does not matter; that of the run when there was one."""
    violations: list[Violated] = msgspec.field(default_factory=list)
    """What went wrong, by seed."""
    smaller: list[Violated] = msgspec.field(default_factory=list)
    """For each violated invariant, the smallest scenario found that violates it."""


def run_seed(members: int | None, seed: int, *, contracts: bool = False) -> Ran:
    """Run one seed."""
    try:
        outcome = run(draw_scenario(seed, members, contracts=contracts))
    except Failure as failure:
        return Ran(seed, 0, 0, 0, failure.trace, violated(failure))
    return Ran(seed, outcome.events, outcome.height, outcome.epochs, outcome.trace, None)


def violated(failure: Failure) -> Violated:
    """Return a failure as data."""
    scenario = failure.scenario
    return Violated(scenario.seed, failure.invariant, failure.detail, scenario, str(failure), replay_command(scenario))


def campaign(result: Result, jobs: int, told: Callable[[str], None]) -> None:
    """Run the seeds of a result, and fill it in as they end: an interruption leaves what is known so far."""
    began = told_at = time.monotonic()
    total = result.last - result.first + 1
    work = partial(run_seed, result.members, contracts=result.contracts)
    with _runs(work, range(result.first, result.last + 1), jobs) as runs:
        for ran in runs:
            result.runs += 1
            result.events += ran.events
            result.microblocks += ran.microblocks
            result.epochs += ran.epochs
            result.trace = f"{int(result.trace, 16) ^ int(ran.trace, 16):064x}"
            result.seconds = time.monotonic() - began
            if ran.violated is not None:
                result.violations.append(ran.violated)
                result.violations.sort(key=_seed)
                told(f"seed {ran.seed} violates {ran.violated.invariant}: {ran.violated.detail}")
                if len(result.violations) >= MOST_VIOLATIONS:
                    told(f"stopping after {MOST_VIOLATIONS} violations")
                    break
            if time.monotonic() - told_at >= TELL_S:
                told_at = time.monotonic()
                told(_progress(result, total))


def make_smaller(result: Result, budget_runs: int, told: Callable[[str], None]) -> None:
    """Shrink the first violation of each invariant."""
    for found in {found.invariant: found for found in reversed(result.violations)}.values():
        told(f"looking for a smaller scenario that violates {found.invariant}")
        try:
            run(found.scenario)
        except Failure as failure:
            result.smaller.append(violated(shrink(failure, budget_runs).failure))


@contextmanager
def _runs(work: Callable[[int], Ran], seeds: range, jobs: int) -> Iterator[Iterator[Ran]]:
    """Run seeds here, or in several processes; leaving early ends them."""
    if jobs == 1:
        yield map(work, seeds)
        return
    with multiprocessing.Pool(jobs, _ignore_interrupts) as pool:
        yield pool.imap_unordered(work, seeds)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole process group; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _progress(result: Result, total: int) -> str:
    rate = result.runs / result.seconds
    left_s = (total - result.runs) / rate
    return (
        f"{result.runs} of {total} seeds, {rate:.1f} a second, about {left_s:.0f} s left, "
        f"{len(result.violations)} violations"
    )


def _seed(found: Violated) -> int:
    return found.seed
