# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: a world from its beginning to its end. The same scenario gives the same run to the byte."""

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from simulation.remembered import remembered
from simulation.scenario import Scenario, scenario_json
from simulation.trace import Trace
from simulation.violation import Violation
from simulation.world import SimulatedWorld


class Outcome(msgspec.Struct, frozen=True):
    """What a run without a violation came to."""

    scenario: Scenario
    """What was run."""
    trace: str
    """Hash over all events."""
    events: int
    """How many events there were."""
    height: int
    """Microblocks committed."""
    epochs: int
    """Keyblocks pinned."""


class Failure(Exception):
    """A violated invariant with what is needed to see it again."""

    def __init__(self, scenario: Scenario, violation: Violation, trace: Trace) -> None:
        super().__init__(
            f"seed {scenario.seed} violates {violation}\nlast events:\n{trace.last()}\n"
            f"replay: {replay_command(scenario)}"
        )
        self.scenario = scenario
        self.invariant = violation.invariant
        self.detail = violation.detail
        self.trace = trace.digest()
        """Hash over all events up to the violation."""


def replay_command(scenario: Scenario) -> str:
    """Return the command that runs a scenario again."""
    return f"spchain simulate --replay {shlex.quote(scenario_json(scenario))}"


def run(scenario: Scenario) -> Outcome:
    """Run a scenario to its end; raises `Failure` when an invariant is violated or a core breaks."""
    trace = Trace()
    try:
        with remembered(), _no_collections():
            world = SimulatedWorld(scenario, trace)
            world.run()
    except Violation as violation:
        raise Failure(scenario, violation, trace) from violation
    except Exception as error:  # whatever a core raises, no input may do that (I13)
        raise Failure(scenario, Violation("I13", f"{type(error).__name__}: {error}"), trace) from error
    return Outcome(scenario, trace.digest(), trace.count, world.judge.height, world.judge.epoch)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Let the garbage collector rest: a run keeps nearly all that it makes, and looking it through again and again takes a third of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
