# SPDX-License-Identifier: GPL-3.0-or-later
"""Second lives of Byzantine members: each runs the production core twice with one key and tells two halves of the network two truths.

All equivocation that a correct core can be made to commit comes out of this (Bano et al., "Twins: BFT Systems Made Robust", 2020): also
in epochs, committees and states that differ, which no lie made up here would have. The first life talks to one half of the replicas
only, the second one, numbered behind all replicas, to the other half; partitions do not hold them up. The halves are those of the
first partition, or of even and odd numbers.
"""

from simulation.scenario import Scenario


class Twins:
    """Who lives twice, and who is apart from whom."""

    def __init__(self, scenario: Scenario) -> None:
        members = sorted(scenario.liars) if "twins" in scenario.traits else []
        self._second = {member: scenario.replicas + place for place, member in enumerate(members)}
        self._first = {second: member for member, second in self._second.items()}
        odd = range(1, scenario.replicas, 2)
        self._other_half = frozenset(scenario.partitions[0].side if scenario.partitions else odd)

    @property
    def members(self) -> tuple[int, ...]:
        """Who lives twice; their second lives have the next numbers behind all replicas, in this order."""
        return tuple(self._second)

    def are_apart(self, source: int, target: int) -> bool:
        """Tell whether one of them lives twice, and in this life never meets the other."""
        return self.lives_twice(source, target) and self._half(source) != self._half(target)

    def lives_twice(self, *replicas: int) -> bool:
        """Tell whether one of them is a life of two."""
        return any(replica in self._second or replica in self._first for replica in replicas)

    def met_by(self, replica: int, member: int) -> int:
        """Return which life of a member a replica meets."""
        return self._second[member] if member in self._second and self._half(replica) else member

    def _half(self, replica: int) -> bool:
        if self.lives_twice(replica):
            return replica in self._first
        return replica in self._other_half
