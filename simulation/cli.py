# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain simulate`, and the command line as it is installed: the node's verbs and those of the rooms above it.

A node knows nothing of the simulation (docs/design.md, "The house"), so its command line cannot name it; the topmost room composes.
"""

import os
import re
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ledger.errors import InvalidInput
from node.cli.main import app
from node.cli.shell import ExitCode, JsonOption, emit, note

if TYPE_CHECKING:
    from simulation.campaign import Result, Violated

__all__ = ["app", "main"]

MAX_SEED = 2**53
"""Beyond it JSON readers round."""


class Asked(NamedTuple):
    """How seeds are to be run."""

    nodes: int | None
    """Size of the committee."""
    jobs: int | None
    """Processes."""
    shrink_runs: int
    """Runs for smaller scenarios."""
    contracts: bool
    """Whether all runs have off-chain contracts."""


@app.command()
def simulate(
    seeds: Annotated[str | None, typer.Option(help="Seeds from A to B, or one.", metavar="A..B")] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Size of the committee, 1 to 31; else each seed draws one.", min=1, max=31)
    ] = None,
    contracts: Annotated[
        bool, typer.Option("--contracts", help="Only runs with off-chain contracts; else a few have some.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; else as many as there are cores.", min=1)] = None,
    shrink_runs: Annotated[
        int, typer.Option(help="Runs spent on a smaller scenario for each violated invariant.", min=0)
    ] = 300,
    replay: Annotated[
        str | None, typer.Option(help="Run one scenario, as a violation printed it.", metavar="SCENARIO")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Run whole networks under seeded faults and check the protocol's invariants after every step.

    A seed decides everything: the committee, who mines and who lies, what the network loses, delays, reorders, doubles and cuts, who
    crashes amid a write, whose clock is wrong, whose disk is full, who joins late, and with --contracts how operators of off-chain
    contracts lie and users abuse them. The nodes run the real consensus, in virtual time.
    After the faults everything valid must commit. The same seed gives the same run to the byte: the trace printed at the end is a
    hash of all events, and equal on every machine that runs the same version.

    Exit code 1 when an invariant is violated: then its number, the last events, a smaller scenario that violates it too, and the commands
    that replay both are printed. docs/how-to/simulate.md tells how to go on from there.

    Example: spchain simulate --seeds 1..1000 --nodes 7
    """
    del json_output
    if (seeds is None) == (replay is None):
        raise InvalidInput("say what to run: either --seeds A..B or --replay SCENARIO")
    asked = Asked(nodes, jobs, shrink_runs, contracts)
    result = _replay(replay) if replay is not None else _campaign(seeds or "", asked)
    emit(_document(result), lambda: _show(result))
    if result.violations:
        raise typer.Exit(ExitCode.BUG)


def _campaign(seeds: str, asked: Asked) -> "Result":
    from simulation.campaign import Result, campaign, make_smaller

    first, last = _range(seeds)
    result = Result(first, last, asked.nodes, asked.contracts)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        campaign(result, min(asked.jobs or cores, last - first + 1), note)
        if asked.shrink_runs:
            make_smaller(result, asked.shrink_runs, note)
    except KeyboardInterrupt:
        note(f"interrupted after {result.runs} seeds; {len(result.violations)} with a violated invariant")
        raise
    return result


def _replay(text: str) -> "Result":
    from simulation.campaign import Result, violated
    from simulation.run import Failure, run
    from simulation.scenario import read_scenario

    scenario = read_scenario(text)
    result = Result(scenario.seed, scenario.seed, scenario.members, runs=1)
    try:
        outcome = run(scenario)
    except Failure as failure:
        result.violations.append(violated(failure))
        result.trace = failure.trace
    else:
        result.trace = outcome.trace
        result.events, result.microblocks, result.epochs = outcome.events, outcome.height, outcome.epochs
    return result


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,16})(?:\.\.([0-9]{1,16}))?", text)
    if found is None:
        raise InvalidInput(f"seeds {text!r}: give two numbers, such as 1..1000, or one")
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    if not first <= last <= MAX_SEED:
        raise InvalidInput(f"seeds {text!r}: the second number is at least the first and at most {MAX_SEED}")
    return first, last


def _document(result: "Result") -> dict[str, object]:
    return {
        "first_seed": result.first,
        "last_seed": result.last,
        "nodes": result.members,
        "contracts": result.contracts,
        "runs": result.runs,
        "events": result.events,
        "microblocks": result.microblocks,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 3),
        "trace": result.trace,
        "violations": [_violation(found) for found in result.violations],
        "smaller": [_violation(found) for found in result.smaller],
    }


def _violation(found: "Violated") -> dict[str, object]:
    import msgspec

    return {
        "seed": found.seed,
        "invariant": found.invariant,
        "detail": found.detail,
        "scenario": msgspec.to_builtins(found.scenario),
        "replay": found.replay,
    }


def _show(result: "Result") -> None:
    smaller = {found.invariant: found for found in result.smaller}
    told: set[str] = set()
    for found in result.violations:
        # The events of the first of each kind are enough to read.
        short = f"seed {found.seed} violates {found.invariant}: {found.detail}\nreplay: {found.replay}"
        typer.echo(f"{short if found.invariant in told else found.report}\n")
        told.add(found.invariant)
    for found in smaller.values():
        typer.echo(f"a smaller scenario that violates {found.invariant}: {found.detail}\nreplay: {found.replay}\n")
    rate = f", {result.runs / result.seconds:.1f} a second" if result.seconds else ""
    seeds = f"{result.runs} {'seed' if result.runs == 1 else 'seeds'}"
    typer.echo(
        f"{seeds}, {result.microblocks} microblocks, {result.epochs} epochs, {result.events} events{rate}; "
        f"{len(result.violations)} with a violated invariant\ntrace {result.trace}"
    )


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
