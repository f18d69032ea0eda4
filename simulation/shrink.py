# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a failing scenario smaller: drops faults and lowers numbers as long as the same invariant is violated.

Greedy delta debugging (Zeller and Hildebrandt, 2002): of each list of faults all, then halves, then single ones are left out, of each
number the least, then half. A smaller scenario sends other messages, so that everything random in it falls differently; a few seeds
are tried for each before it counts as harmless. What remains is a schedule in which little else than the cause happens; nothing
proves that it is the smallest. The time to wait after the faults is never shortened: then everything would violate I5.
"""

from collections.abc import Callable, Iterator

import msgspec

from simulation.run import Failure, run
from simulation.scenario import MAX_MEMBERS, MAX_NEWCOMERS, ClockJump, Crash, FullDisk, Partition, Scenario

BUDGET_RUNS = 300
"""Runs that shrinking takes at most: ten seconds for four members."""
SEEDS_PER_CANDIDATE = 3
"""Seeds tried for each smaller scenario."""

Reducer = Callable[[Scenario], Iterator[Scenario]]
_replace = msgspec.structs.replace


class Shrunk(msgspec.Struct, frozen=True):
    """The smallest failing scenario that was found."""

    failure: Failure
    """How it fails."""
    runs: int
    """Runs that the search took."""

    @property
    def scenario(self) -> Scenario:
        """What fails."""
        return self.failure.scenario


def shrink(failure: Failure, budget_runs: int = BUDGET_RUNS) -> Shrunk:
    """Return a smaller scenario that violates the same invariant, or the one given."""
    return _Search(failure, budget_runs).search()


class _Search:
    def __init__(self, failure: Failure, budget_runs: int) -> None:
        self._best = failure
        self._left = budget_runs
        self._budget = budget_runs

    def search(self) -> Shrunk:
        while sum(self._exhaust(reducer) for reducer in REDUCERS):
            pass  # a reducer may have made room for one before it
        return Shrunk(self._best, self._budget - self._left)

    def _exhaust(self, reducer: Reducer) -> bool:
        """Apply a reducer until nothing that it offers fails any more; tell whether anything did."""
        found = False
        while (failure := next(filter(None, map(self._fails, reducer(self._best.scenario))), None)) is not None:
            self._best, found = failure, True
        return found

    def _fails(self, candidate: Scenario) -> Failure | None:
        for offset in range(SEEDS_PER_CANDIDATE):
            if self._left == 0:
                return None
            self._left -= 1
            try:
                run(_replace(candidate, seed=candidate.seed + offset))
            except Failure as failure:
                if failure.invariant == self._best.invariant:
                    return failure
        return None


def _without(field: str) -> Reducer:
    """Leave out entries of a list: all, then halves, then single ones."""

    def reduce(scenario: Scenario) -> Iterator[Scenario]:
        entries = getattr(scenario, field)
        size = len(entries)
        while size > 0:
            for start in range(0, len(entries), size):
                yield _replace(scenario, **{field: entries[:start] + entries[start + size :]})
            size //= 2

    return reduce


def _lower(field: str, least: int) -> Reducer:
    """Lower a number: to the least, by half, by one."""

    def reduce(scenario: Scenario) -> Iterator[Scenario]:
        value = getattr(scenario, field)
        for lower in dict.fromkeys((least, (least + value) // 2, value - 1)):
            if least <= lower < value:
                yield _replace(scenario, **{field: lower})

    return reduce


def _fewer_members(scenario: Scenario) -> Iterator[Scenario]:
    """Smaller committees; as many of them lie as before, and no more than f unless there were more."""
    too_many = 3 * scenario.byzantine >= scenario.members
    for members in (1, 2, 4, 7, 13, scenario.members - 1):
        if 0 < members < scenario.members:
            most = members - 1 if too_many else (members - 1) // 3
            yield _fitting(_replace(scenario, members=members, byzantine=min(scenario.byzantine, most)))


def _fewer(field: str) -> Reducer:
    def reduce(scenario: Scenario) -> Iterator[Scenario]:
        return map(_fitting, _lower(field, 0)(scenario))

    return reduce


def _plain_mining(scenario: Scenario) -> Iterator[Scenario]:
    """No mining, as many seats as there are miners, equal powers."""
    plain = {"keyblock_ms": 0, "seats": MAX_MEMBERS + MAX_NEWCOMERS, "powers": ()}
    for field, value in plain.items():
        if getattr(scenario, field) != value:
            yield _replace(scenario, **{field: value})


def _plain_contracts(scenario: Scenario) -> Iterator[Scenario]:
    """Honest operators, fewer users, requests and crashes, in each contract."""
    plain = {"lie": "", "is_member": False, "home": 0, "torn_per_mille": 0, "abuse_percent": 0}
    lower = {"forced": 0, "users": 1, "requests": 0, "lie_batch": 0}
    plans = scenario.contracts
    for index, plan in enumerate(plans):
        for field, value in (*plain.items(), *lower.items()):
            now = getattr(plan, field)
            tried = (value, (value + now) // 2) if field in lower else (value,)
            for smaller in dict.fromkeys(tried):
                if smaller != now:
                    fewer = _replace(plan, **{field: smaller})
                    yield _replace(scenario, contracts=(*plans[:index], fewer, *plans[index + 1 :]))


def _shorter_faults(scenario: Scenario) -> Iterator[Scenario]:
    for faults_ms in (scenario.faults_ms // 2, scenario.faults_ms * 3 // 4):
        if faults_ms >= 500:
            yield _fitting(_replace(scenario, faults_ms=faults_ms))


def _shorter_spells(scenario: Scenario) -> Iterator[Scenario]:
    """Halve how long single faults last."""
    for index, crash in enumerate(scenario.crashes):
        if crash.back_ms - crash.at_ms >= 100:
            shorter = _replace(crash, back_ms=(crash.at_ms + crash.back_ms) // 2)
            others = scenario.crashes
            yield _replace(scenario, crashes=(*others[:index], shorter, *others[index + 1 :]))
    for index, partition in enumerate(scenario.partitions):
        if partition.until_ms - partition.from_ms >= 100:
            healed = _replace(partition, until_ms=(partition.from_ms + partition.until_ms) // 2)
            around = scenario.partitions
            yield _replace(scenario, partitions=(*around[:index], healed, *around[index + 1 :]))


def _fitting(scenario: Scenario) -> Scenario:
    """Drop faults of replicas that do not exist any more, or after the end of the faults."""

    def stays(fault: Crash | ClockJump | FullDisk | Partition) -> bool:
        begins_ms = fault.at_ms if isinstance(fault, Crash | ClockJump) else fault.from_ms
        exists = isinstance(fault, Partition) or fault.replica < scenario.replicas
        return exists and begins_ms < scenario.faults_ms

    sides = (
        _replace(p, side=tuple(replica for replica in p.side if replica < scenario.replicas))
        for p in scenario.partitions
    )
    return _replace(
        scenario,
        powers=scenario.powers[: scenario.miners],
        contracts=tuple(_replace(plan, home=min(plan.home, scenario.replicas - 1)) for plan in scenario.contracts),
        crashes=tuple(filter(stays, scenario.crashes)),
        clock_jumps=tuple(filter(stays, scenario.clock_jumps)),
        full_disks=tuple(filter(stays, scenario.full_disks)),
        partitions=tuple(filter(stays, sides)),
    )


REDUCERS: tuple[Reducer, ...] = (
    _fewer_members,
    _fewer("newcomers"),
    _fewer("observers"),
    _plain_mining,
    *(_without(field) for field in ("contracts", "crashes", "partitions", "clock_jumps", "full_disks", "traits")),
    _plain_contracts,
    _lower("vandals", 0),
    _lower("late_watchers", 0),
    _lower("byzantine", 0),
    *(_lower(field, 0) for field in ("torn_per_mille", "loss_percent", "slow_percent", "duplicate_percent", "skew_ms")),
    _shorter_faults,
    _lower("transactions", 1),
    _shorter_spells,
    _lower("delay_ms", 1),
)
"""In the order in which they pay: what makes later runs cheaper comes first."""
