# SPDX-License-Identifier: GPL-3.0-or-later
"""The committee of an epoch: who votes with which weight, and how many are enough.

Requirements:
R1 (safety) any two quorums share at least f+1 members, so at least one honest one; and more than a third of the reputation.
R2 (RepuCoin) with |X| = 3f+1 members a quorum has 2f+1 of them and more than two thirds of the reputation.
R3 (join) a set that must hold an honest member has f+1 members and more than a third of the reputation.
"""

from collections.abc import Collection

import msgspec


class CommitteeMember(msgspec.Struct, frozen=True):
    """One voter."""

    public_key: bytes
    """Key of its proposals and votes."""
    address: bytes
    """Address of the key."""
    reputation_nano: int
    """Its weight, in 10⁻⁹."""


class Committee:
    """The voters of one epoch, in the order of their indexes."""

    def __init__(self, epoch: int, members: Collection[CommitteeMember]) -> None:
        assert members, "an epoch needs a committee"
        self.epoch = epoch
        self.members = tuple(members)
        self.faults = (len(self.members) - 1) // 3
        """Most members that may be faulty (f)."""
        # ⌈(|X| + f + 1) / 2⌉: two such sets overlap in at least f + 1 members, whatever |X| is.
        self.quorum_votes = (len(self.members) + self.faults + 2) // 2
        self.total_reputation_nano = sum(member.reputation_nano for member in self.members)
        self._indexes = {member.address: index for index, member in enumerate(self.members)}
        assert len(self._indexes) == len(self.members), "a member has one vote"

    def index_of(self, address: bytes) -> int | None:
        """Return a member's index, or None for anyone else."""
        return self._indexes.get(address)

    def is_quorum(self, indexes: Collection[int]) -> bool:
        """Tell whether distinct members are enough to decide: by number and by more than 2/3 of reputation."""
        weight = self._weight(indexes)
        return len(indexes) >= self.quorum_votes and 3 * weight > 2 * self.total_reputation_nano

    def must_hold_honest(self, indexes: Collection[int]) -> bool:
        """Tell whether distinct members cannot all be faulty: f+1 by number and more than 1/3 of reputation."""
        return len(indexes) > self.faults and 3 * self._weight(indexes) > self.total_reputation_nano

    def _weight(self, indexes: Collection[int]) -> int:
        return sum(self.members[index].reputation_nano for index in indexes)
