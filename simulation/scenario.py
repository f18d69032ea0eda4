# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong in a run: a frozen plan that can be printed, replayed from its JSON, and made smaller. `simulation.draw` draws them."""

from typing import Annotated

import msgspec

from ledger.errors import InvalidInput
from simulation.contract_plan import LIES, ContractPlan

MAX_MEMBERS = 31
"""Most founding members that runs are made for."""
MAX_NEWCOMERS = 5
MAX_OBSERVERS = 4
MAX_REPLICAS = MAX_MEMBERS + MAX_NEWCOMERS + MAX_OBSERVERS
MAX_MS = 600_000
"""Longest time of anything, in milliseconds: ten virtual minutes."""

TRAITS = (
    "silent",
    "withhold",
    "equivocate",
    "fork",
    "forge",
    "replay",
    "garbage",
    "secretive",
    "twice",
    "stale",
    "counterfeit",
    "slander",
    "falsify",
    "misvote",
    "mislead",
    "twins",
)
"""What a Byzantine member may do; see `simulation.adversary`, `simulation.counterfeits`, `simulation.falsehoods`, `simulation.twins`."""

Replica = Annotated[int, msgspec.Meta(ge=0, lt=MAX_REPLICAS)]
Ms = Annotated[int, msgspec.Meta(ge=0, le=MAX_MS)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


class Crash(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A replica loses its memory and comes back with its disk."""

    replica: Replica
    """Which one."""
    at_ms: Ms
    """When it stops; 0 for one that joins late."""
    back_ms: Ms
    """When it starts again, unless the faults end before."""


class Partition(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """For a while, messages pass only within the two sides."""

    side: tuple[Replica, ...]
    """One side; all others are the other."""
    from_ms: Ms
    """Beginning."""
    until_ms: Ms
    """End, unless the faults end before."""
    one_way: bool = False
    """Whether only what the side sends is lost, and it hears the others all the same."""


class ClockJump(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The system's clock of a replica is set wrong; when the faults end, all clocks are set right again."""

    replica: Replica
    """Which one."""
    at_ms: Ms
    """When it is set."""
    by_ms: Annotated[int, msgspec.Meta(ge=-MAX_MS, le=MAX_MS)]
    """How far forward, or back when negative, in milliseconds."""


class FullDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a while, a replica's store refuses every write."""

    replica: Replica
    """Which one."""
    from_ms: Ms
    """Beginning."""
    until_ms: Ms
    """End, unless the faults end before."""
    safety: bool
    """Whether the safety record cannot be written either. A full disk leaves it room, a broken one does not."""


class Scenario(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One run. Replicas 0 … members−1 are accredited, the last of them may be Byzantine; then newcomers, then observers."""

    seed: int
    """Everything random in the run comes from it."""
    members: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)] = 4
    """Founding members, which have external reputation."""
    newcomers: Annotated[int, msgspec.Meta(ge=0, le=MAX_NEWCOMERS)] = 0
    """Replicas that earn a seat only by mining."""
    observers: Annotated[int, msgspec.Meta(ge=0, le=MAX_OBSERVERS)] = 0
    """Replicas that neither vote nor mine."""
    seats: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS + MAX_NEWCOMERS)] = MAX_MEMBERS + MAX_NEWCOMERS
    """Largest committee; fewer than there are miners make them compete."""
    external_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 80
    """External reputation of founding members. Nobody earns much in a run, so that this decides how much Byzantine ones weigh."""
    traits: tuple[str, ...] = ()
    """What Byzantine members do; none are when it is empty."""
    byzantine: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEMBERS)] = 0
    """How many members are Byzantine; more than f only to see that the judge notices."""
    keyblock_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_MS)] = 0
    """Mean time between keyblocks; 0 when nobody mines."""
    powers: tuple[Annotated[int, msgspec.Meta(ge=0, le=1000)], ...] = ()
    """Computing power of members and newcomers by number, in any unit; those not named have 1."""
    term_microblocks: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    """Rounds in a leader's term: small, so that terms end often."""
    transactions: Annotated[int, msgspec.Meta(ge=0, le=200)] = 8
    """Transfers that clients submit during the faults."""
    faults_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_MS)] = 15_000
    """How long the faults last; then the network is whole and fast, and everybody honest is up."""
    patience_ms: Ms = 120_000
    """How long after the faults everything must have committed (I5)."""
    loss_percent: Percent = 0
    """Messages lost during the faults."""
    duplicate_percent: Percent = 0
    """Messages that arrive twice during the faults."""
    delay_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_MS)] = 20
    """Most messages take 1 ms to this long."""
    slow_percent: Percent = 0
    """Messages that take up to two seconds during the faults, and so overtake each other."""
    torn_per_mille: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Chance that a replica crashes before or amid one of its effects, during the faults."""
    skew_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_MS)] = 0
    """Clocks are wrong by up to this, either way, all the time."""
    crashes: tuple[Crash, ...] = ()
    """Crashes of chosen replicas at chosen times."""
    partitions: tuple[Partition, ...] = ()
    """Partitions, which may overlap."""
    clock_jumps: tuple[ClockJump, ...] = ()
    """Clocks that are set wrong."""
    full_disks: tuple[FullDisk, ...] = ()
    """Stores that refuse writes for a while."""
    contracts: Annotated[tuple[ContractPlan, ...], msgspec.Meta(max_length=4)] = ()
    """Off-chain contracts."""
    window_microblocks: Annotated[int, msgspec.Meta(ge=1, le=64)] = 12
    """Microblocks in which a batch can be challenged."""
    late_watchers: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    """When watchers challenge: at once (0), at the last microblock of the window (1), one after it (2)."""
    vandals: Annotated[int, msgspec.Meta(ge=0, le=200)] = 0
    """Transactions about contracts that somebody sends who has no right to, or no reason."""

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        return self.miners + self.observers

    @property
    def miners(self) -> int:
        """How many replicas may mine."""
        return self.members + self.newcomers

    @property
    def liars(self) -> frozenset[int]:
        """The Byzantine members."""
        return frozenset(range(self.members - self.byzantine, self.members))

    def power(self, replica: int) -> int:
        """Return the computing power of a replica."""
        if replica >= self.miners:
            return 0
        return self.powers[replica] if replica < len(self.powers) else 1


def scenario_json(scenario: Scenario) -> str:
    """Return a scenario as text that `read_scenario` reads; what has its default is left out."""
    return msgspec.json.encode(scenario).decode()


def read_scenario(text: str) -> Scenario:
    """Return the scenario that a text holds. Raises `InvalidInput`."""
    try:
        scenario = msgspec.json.decode(text, type=Scenario)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(f"this is no scenario: {error}; give the text that a failing run printed") from error
    check_scenario(scenario)
    return scenario


def check_scenario(scenario: Scenario) -> None:
    """Check what the types cannot say. Raises `InvalidInput`."""
    unknown = set(scenario.traits) - set(TRAITS)
    if unknown:
        raise InvalidInput(f"scenario: unknown traits {sorted(unknown)}; there are {', '.join(TRAITS)}")
    if scenario.byzantine >= scenario.members:
        raise InvalidInput(
            f"scenario: {scenario.byzantine} of {scenario.members} members lie; leave one that is judged"
        )
    if len(scenario.powers) > scenario.miners:
        raise InvalidInput(f"scenario: {len(scenario.powers)} powers for {scenario.miners} miners; leave some out")
    if scenario.keyblock_ms and not any(scenario.power(number) for number in range(scenario.miners)):
        raise InvalidInput("scenario: nobody mines, for all powers are 0; give someone power, or keyblock_ms 0")
    lies = {plan.lie for plan in scenario.contracts if plan.lie} - set(LIES)
    if lies:
        raise InvalidInput(f"scenario: unknown lies {sorted(lies)}; there are {', '.join(LIES)}")
    named = {replica for partition in scenario.partitions for replica in partition.side}
    for faults in (scenario.crashes, scenario.clock_jumps, scenario.full_disks):
        named.update(fault.replica for fault in faults)
    named.update(plan.home for plan in scenario.contracts)
    if max(named, default=0) >= scenario.replicas:
        raise InvalidInput(f"scenario: replica {max(named)} does not exist; there are 0 to {scenario.replicas - 1}")
