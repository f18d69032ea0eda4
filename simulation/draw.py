# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenarios drawn from seeds: usually several kinds of fault at once, never more than f Byzantine members."""

import random

import msgspec

from simulation.contract_plan import LIES, ContractPlan
from simulation.scenario import MAX_MEMBERS, TRAITS, ClockJump, Crash, FullDisk, Partition, Scenario

SIZES = (1, 2, 3, *(4,) * 9, 5, 6, *(7,) * 4, 10, 13, 13, 19, MAX_MEMBERS)
"""Sizes of committees as often as they are drawn: the large ones cost more and show less."""
BUSY_MEMBERS = 10
"""Larger committees get shorter faults: their messages rise with the square of their size."""

MARKET_SIZES = (1, 2, 3, 4, 4, 4, 4, 4, 5, 7)
"""Sizes of committees in runs that are about off-chain contracts: what these ask of a committee shows in small ones."""
MARKET_SHARE = 0.04
"""Other runs that have off-chain contracts as well."""


def draw_scenario(seed: int, members: int | None = None, *, contracts: bool = False) -> Scenario:
    """Return the scenario of a seed, for a committee of a given size or of one that the seed draws.

    With `contracts` there is at least one off-chain contract in it; else in a few.
    """
    rng = random.Random(f"scenario {seed}")
    # A source of its own: the scenarios of other seeds stay what they were before there were contracts.
    market = random.Random(f"contracts {seed}")
    drawn = rng.choice(SIZES)
    if contracts:
        drawn = market.choice(MARKET_SIZES)
    members = drawn if members is None else members
    faults = (members - 1) // 3
    traits = tuple(sorted(rng.sample(TRAITS, rng.randint(1, 4)))) if faults and rng.random() < 0.6 else ()
    calm = 1 if members <= BUSY_MEMBERS else 2
    scenario = Scenario(
        seed=seed,
        members=members,
        observers=int(rng.random() < 0.2),
        traits=traits,
        byzantine=rng.choice((faults, rng.randint(1, faults))) if traits else 0,
        term_microblocks=rng.choice((2, 3, 4, 8, 32)),
        transactions=rng.randint(3, 10),
        faults_ms=rng.randint(5_000, 15_000) // calm,
        loss_percent=rng.choice((0, 0, 2, 10, 30)),
        duplicate_percent=rng.choice((0, 0, 5, 30)),
        delay_ms=rng.choice((2, 20, 100)),
        slow_percent=rng.choice((0, 0, 5, 20)),
        torn_per_mille=rng.choice((0, 0, 2, 10)) // calm,
        skew_ms=rng.choice((0, 0, 400)),
    )
    scenario = _with_miners(rng, scenario)
    scenario = msgspec.structs.replace(
        scenario,
        crashes=_crashes(rng, scenario),
        partitions=_partitions(rng, scenario),
        clock_jumps=_clock_jumps(rng, scenario),
        full_disks=_full_disks(rng, scenario),
    )
    has_contracts = contracts or (scenario.members <= BUSY_MEMBERS and market.random() < MARKET_SHARE)
    return _with_contracts(market, scenario) if has_contracts else scenario


def _with_contracts(rng: random.Random, scenario: Scenario) -> Scenario:
    """Off-chain contracts, some with honest operators; and most watchers challenge at once."""
    plans = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        lie = rng.choice(LIES) if rng.random() < 0.6 else ""
        plans.append(
            ContractPlan(
                home=rng.randrange(scenario.replicas),
                is_member=rng.random() < 0.3,
                lie=lie,
                lie_batch=rng.choice((0, 1, 2, 4)) if lie else 0,
                users=rng.randint(1, 4),
                requests=rng.choice((4, 15, 30)),
                forced=rng.choice((0, 2, 5, 20)),
                abuse_percent=rng.choice((0, 20, 60)),
                batch_ms=rng.choice((100, 400, 1_500)),
                torn_per_mille=rng.choice((0, 20, 100)) if not lie else 0,
            )
        )
    return msgspec.structs.replace(
        scenario,
        contracts=tuple(plans),
        # A contract is frozen and settled in fifteen heartbeats, and a committee of one leaves the others behind for long.
        patience_ms=360_000,
        window_microblocks=rng.choice((3, 8, 12, 12)),
        late_watchers=rng.choice((0, 0, 0, 0, 1, 1, 2)),
        vandals=rng.choice((0, 6, 20)),
    )


def _with_miners(rng: random.Random, scenario: Scenario) -> Scenario:
    """Who mines, who may enter the committee, and how many seats there are."""
    if rng.random() < 0.15:
        return scenario
    newcomers = rng.choice((0, 0, 1, 2)) if scenario.members <= BUSY_MEMBERS else rng.choice((0, 0, 0, 1))
    miners = scenario.members + newcomers
    most_seats = (miners, miners, scenario.members, max(1, 3 * scenario.byzantine + 1, scenario.members - 2))
    return msgspec.structs.replace(
        scenario,
        newcomers=newcomers,
        seats=rng.choice(most_seats),
        # With little of it, what is mined decides; then a Byzantine miner may come to weigh too much for liveness.
        external_percent=rng.choice((80, 80, 90, 20)) if not scenario.byzantine else 80,
        keyblock_ms=rng.choice((400, 800, 1_500, 3_000)),
        powers=(1, *(rng.choice((0, 1, 1, 2, 5)) for _ in range(miners - 1))),
    )


def _crashes(rng: random.Random, scenario: Scenario) -> tuple[Crash, ...]:
    crashes = []
    if rng.random() < 0.2:  # the whole network at once
        at_ms = rng.randrange(scenario.faults_ms)
        crashes += [Crash(replica, at_ms, at_ms + 500) for replica in range(scenario.replicas)]
    if rng.random() < 0.3:  # some that join late
        joiners = rng.sample(range(scenario.replicas), rng.randint(1, 1 + scenario.replicas // 4))
        crashes += [Crash(replica, 0, rng.randint(1_000, scenario.faults_ms)) for replica in sorted(joiners)]
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        at_ms = rng.randrange(1, scenario.faults_ms)
        crashes.append(Crash(rng.randrange(scenario.replicas), at_ms, at_ms + rng.randint(50, 6_000)))
    return tuple(crashes)


def _partitions(rng: random.Random, scenario: Scenario) -> tuple[Partition, ...]:
    partitions = []
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        side = tuple(replica for replica in range(scenario.replicas) if rng.random() < 0.5)
        from_ms = rng.randrange(scenario.faults_ms)
        until_ms = from_ms + rng.randint(300, 8_000)
        partitions.append(Partition(side, from_ms, until_ms, one_way=rng.random() < 0.2))
    return tuple(partitions)


def _clock_jumps(rng: random.Random, scenario: Scenario) -> tuple[ClockJump, ...]:
    jumps = []
    for _ in range(rng.choice((0, 0, 0, 1, 2, 4))):
        by_ms = rng.choice((-1, 1)) * rng.choice((rng.randint(1, 500), rng.randint(500, 10_000)))
        jumps.append(ClockJump(rng.randrange(scenario.replicas), rng.randrange(scenario.faults_ms), by_ms))
    return tuple(jumps)


def _full_disks(rng: random.Random, scenario: Scenario) -> tuple[FullDisk, ...]:
    spells = []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 3))):
        replica, from_ms = rng.randrange(scenario.replicas), rng.randrange(scenario.faults_ms)
        spells.append(FullDisk(replica, from_ms, from_ms + rng.randint(200, 6_000), safety=rng.random() < 0.5))
    return tuple(spells)
