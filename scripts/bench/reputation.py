# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of keeping reputation and choosing the committee at each keyblock. Run `scripts/bench/reputation`."""

import argparse
import json
import random
import sys
import time
import tracemalloc
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from consensus.reputation import after_keyblock, after_terms
from consensus.standings import Standings
from ledger.codec import decoder, encode
from ledger.miners import MinerHistory, TermTally
from ledger.rules import MAIN_PARAMETERS
from scripts.bench.load import percentile
from scripts.bench.stored_chain import Mark, Stored, grow

COMMITTEE = MAIN_PARAMETERS.committee_size
TERM_MICROBLOCKS = MAIN_PARAMETERS.term_microblocks
RULES = MAIN_PARAMETERS.reputation
SHARES = {
    "equal": "all miners have the same power",
    "skewed": "the i-th miner has power 1/i",
    "turns": "miners find keyblocks in turn, so that all are alike: the worst case of the selection",
}
_decode_history = decoder(MinerHistory, 256, own=True)


@dataclass(frozen=True)
class Row:
    """One distribution of power."""

    power: str
    """"equal", "skewed" or "turns"."""
    miners: int
    """Miners with at least one pinned keyblock at the end."""
    keyblocks: int
    """Length of the chain."""
    median_us: float
    """Median computing time per keyblock: one keyblock, one term, a trial that selects the committee, taking it over; in µs."""
    p99_us: float
    """99th percentile."""
    worst_us: float
    """Slowest keyblock."""
    examined_mean: float
    """Miners whose R one selection computed, on average."""
    examined_most: int
    """The most in one selection."""
    memory_bytes: int
    """Python memory of the standings rebuilt from the stored histories."""
    state_bytes: int
    """Size of the stored histories with their keys."""
    restart_ms: float
    """Time to decode the stored histories and stand ready, in milliseconds."""


def measure(power: str, miners: int, keyblocks: int, seed: int) -> Row:
    """Mine a chain of so many keyblocks and choose the committee after each."""
    draw = random.Random(seed)  # noqa: S311 -- a seed replays the bench; nothing is secret
    keys = [bytes([2]) + draw.randbytes(32) for _ in range(miners)]
    sums = list(accumulate(1 / (i + 1) if power == "skewed" else 1 for i in range(miners)))
    standings = Standings(RULES, TERM_MICROBLOCKS, 0, ())
    times, examined = array("q"), array("q")
    leader: bytes | None = None
    for position in range(keyblocks):
        miner = keys[position % miners] if power == "turns" else draw.choices(keys, cum_weights=sums)[0]
        microblocks = min(TERM_MICROBLOCKS, draw.randint(TERM_MICROBLOCKS * 3 // 4, TERM_MICROBLOCKS * 2))
        begun = time.process_time_ns()
        changes: dict[bytes, MinerHistory] = {}
        if leader is not None:
            changes[leader] = after_terms(standings.history(leader), TermTally(1, microblocks, microblocks**2))
        changes[miner] = after_keyblock(changes.get(miner, standings.history(miner)), position, RULES)
        trial = standings.trial(changes, position + 1)
        committee = trial.committee(COMMITTEE)
        standings.apply(changes, position + 1)
        times.append(time.process_time_ns() - begun)
        examined.append(trial.examined)
        leader = draw.choices(committee, [member.reputation_nano for member in committee])[0].public_key
    times_us = sorted(t / 1000 for t in times)
    stored = {key: encode(standings.history(key)) for key in keys if standings.history(key).keyblocks}
    begun = time.perf_counter_ns()
    restarted = _restart(stored, keyblocks)
    restart_ns = time.perf_counter_ns() - begun
    assert restarted.committee(COMMITTEE) == standings.committee(COMMITTEE), "a restart changes nothing"
    return Row(
        power=power,
        miners=len(stored),
        keyblocks=keyblocks,
        median_us=percentile(times_us, 0.5),
        p99_us=percentile(times_us, 0.99),
        worst_us=times_us[-1],
        examined_mean=sum(examined) / len(examined),
        examined_most=max(examined),
        memory_bytes=_memory(stored, keyblocks),
        state_bytes=sum(len(key) + len(raw) for key, raw in stored.items()),
        restart_ms=restart_ns / 1e6,
    )


def _restart(stored: Mapping[bytes, bytes], keyblocks: int) -> Standings:
    histories = ((key, _decode_history(raw)) for key, raw in stored.items())
    return Standings(RULES, TERM_MICROBLOCKS, keyblocks, histories)


def _memory(stored: Mapping[bytes, bytes], keyblocks: int) -> int:
    tracemalloc.start()
    standings = _restart(stored, keyblocks)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert standings.keyblocks, "the standings live until the memory was read"
    return used


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench/reputation", description=__doc__)
    parser.add_argument("--miners", type=int, default=1000, help="identities that mine")
    parser.add_argument("--keyblocks", type=int, default=100_000, help="length of a chain in memory; 0 for none")
    parser.add_argument("--power", choices=[*SHARES, "all"], default="all", help=str(SHARES))
    parser.add_argument("--seed", type=int, default=1, help="replays the chain")
    parser.add_argument("--stored", type=int, default=1000, help="length of a chain in a store on disk; 0 for none")
    parser.add_argument(
        "--directory", type=Path, help="where the store lies while it is measured, instead of the usual place"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    chosen = parser.parse_args(arguments)
    powers = list(SHARES) if chosen.power == "all" else [chosen.power]
    rows = [measure(power, chosen.miners, chosen.keyblocks, chosen.seed) for power in powers if chosen.keyblocks]
    stored = [_stored(power, chosen) for power in powers if chosen.stored]
    if chosen.json:
        found = {
            "committee": COMMITTEE,
            "rows": [asdict(row) for row in rows],
            "stored": [asdict(row) for row in stored],
        }
        print(json.dumps(found))
        return 0
    if rows:
        Console().print(_table(rows))
    for chain in stored:
        _print_stored(chain)
    return 0


def _stored(power: str, chosen: argparse.Namespace) -> Stored:
    with TemporaryDirectory(dir=chosen.directory, prefix="spchain-bench-") as directory:
        return grow(Path(directory), power, chosen.miners, chosen.stored, chosen.seed, _tell)


def _tell(mark: Mark) -> None:
    # A long chain takes an hour: what is known already goes to whoever waits.
    print(mark, file=sys.stderr, flush=True)


def _print_stored(chain: Stored) -> None:
    console = Console()
    console.print(
        f"\nA stored chain of {chain.keyblocks} keyblocks, {chain.miners} miners, power {chain.power}; per keyblock, in µs:\n"
        f"reputation mean {chain.reputation_mean_us:.0f}, median {chain.reputation_median_us}, p99 {chain.reputation_p99_us}; "
        f"whole commit mean {chain.commit_mean_us:.0f}, median {chain.commit_median_us}, p99 {chain.commit_p99_us}\n"
        f"largest resident memory, mapped pages included: {chain.peak_mb:.0f} MB"
    )
    table = Table(title="Along the way, after a restart each time")
    for heading in ("keyblocks", "commit µs", "memory MB", "restart ms", "store MB"):
        table.add_column(heading, justify="right")
    for mark in chain.marks:
        table.add_row(
            str(mark.keyblocks),
            f"{mark.commit_mean_us:.0f}",
            f"{mark.anonymous_mb:.0f}",
            f"{mark.restart_ms:.1f}",
            f"{mark.store_mb:.0f}",
        )
    console.print(table)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title=f"Reputation and a committee of {COMMITTEE} at each keyblock")
    for heading in (
        "power",
        "miners",
        "keyblocks",
        "median µs",
        "p99 µs",
        "worst µs",
        "R computed",
        "memory KB",
        "restart ms",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.power,
            str(row.miners),
            str(row.keyblocks),
            f"{row.median_us:.0f}",
            f"{row.p99_us:.0f}",
            f"{row.worst_us:.0f}",
            f"{row.examined_mean:.0f} (≤ {row.examined_most})",
            f"{row.memory_bytes / 1000:.0f}",
            f"{row.restart_ms:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
