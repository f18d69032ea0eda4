# SPDX-License-Identifier: GPL-3.0-or-later
"""What one operator's data may take of the room for batches' data, so that no operator fills it and silences all others.

    an operator's data  <=  what is left free after it

One operator alone gets half of the room, each further one at most half of what the others have left. Those who have more than stays free
wait for the others, so that of n who want all they can get each comes to have an n+1-th. Nobody is held back while there is plenty, and
keys, each of which costs a bond, buy a flood less and less.

All contracts of one key count together. What is beyond a share waits: its operator's data is not dropped early, because others were
promised that it can be had for the retention.
"""

import msgspec
import structlog

from node.offchain.data_store import DataStore

log = structlog.get_logger()

NAMED_TIMES = 3
"""How many times what is left free an operator's data may take when a microblock names it: three quarters for one operator. A leader
orders by its own share; members that hold a little more than it does, or have a smaller budget, must not let its term end over that."""


class _Refusal(msgspec.Struct, frozen=True):
    """What an operator was refused."""

    size: int
    """Size of the data."""
    spare: int
    """Room that was to be left."""
    times: int
    """How many times what is left free it might have taken."""


class Shares:
    """Every operator's share; queries and notes in memory."""

    def __init__(self, data: DataStore) -> None:
        self._data = data
        self._refused: dict[bytes, _Refusal] = {}

    def has_room(self, operator: bytes, size: int, spare: int, times: int = 1) -> bool:
        """Tell whether data of an operator, by public key, is within its share; says so in the log when it is used up.

        `spare` counts as taken. Fetches that are under way do not count: they may exceed a share by a few batches.
        """
        wanted = _Refusal(size, spare, times)
        if self._fits(operator, wanted):
            return True
        self._look_again()
        if operator not in self._refused:  # once, not per batch
            log.warning(
                "an operator has used up its share of the room for off-chain data; its commitments get no vote of this node",
                operator=operator.hex(),
                data_bytes=self._data.bytes_of(operator),
                capacity_bytes=self._data.capacity_bytes,
            )
        self._refused[operator] = wanted
        return False

    @property
    def trouble(self) -> str:
        """Whose share is used up; empty when nobody's is."""
        self._look_again()
        if not self._refused:
            return ""
        operator = max(self._refused, key=self._data.bytes_of)
        taken = f"{self._data.bytes_of(operator)} of {self._data.capacity_bytes} bytes"
        others = f" (and {len(self._refused) - 1} more)" if len(self._refused) > 1 else ""
        return (
            f"operator {operator.hex()}{others} has used up its share of the room with {taken}: its commitments get no vote of this "
            "node until some of its data is dropped or offchain_data_bytes is raised; others go on"
        )

    def _look_again(self) -> None:
        self._refused = {operator: one for operator, one in self._refused.items() if not self._fits(operator, one)}

    def _fits(self, operator: bytes, wanted: _Refusal) -> bool:
        free = self._data.capacity_bytes - wanted.spare - self._data.total_bytes - wanted.size
        return self._data.bytes_of(operator) + wanted.size <= wanted.times * free
