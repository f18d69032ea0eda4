# SPDX-License-Identifier: GPL-3.0-or-later
"""An off-chain contract in a scenario: who operates it, who uses it, and how its operator lies."""

from typing import Annotated

import msgspec

LIES = (
    "forge_root",
    "forge_outcome",
    "forge_state",
    "last_leaf",
    "drop",
    "reorder",
    "replace",
    "equivocate",
    "two_batches",
    "wrong_link",
    "wrong_forced",
    "wrong_end",
    "wrong_data",
    "withhold_all",
    "withhold_some",
    "ignore_forced",
    "stop",
)
"""What a dishonest operator may do; see `simulation.lying_operators`."""


class ContractPlan(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One contract of micro-fees."""

    home: Annotated[int, msgspec.Meta(ge=0, lt=64)] = 0
    """The replica beside which the operator runs: its view of the chain, its clock, and where it publishes first.

    A Byzantine one stands for an honest one.
    """
    is_member: bool = False
    """Whether the operator's key is that of its home."""
    lie: str = ""
    """How the operator lies; it is honest when this is empty."""
    lie_batch: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0
    """Number of the batch that it lies about, or from which on it does."""
    users: Annotated[int, msgspec.Meta(ge=1, le=8)] = 3
    """Who funds it and pays each other inside."""
    requests: Annotated[int, msgspec.Meta(ge=0, le=100)] = 12
    """Requests of all users, during the faults."""
    forced: Annotated[int, msgspec.Meta(ge=0, le=60)] = 2
    """Requests that users put before the operator through the chain."""
    abuse_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 20
    """Requests that are sent twice, out of order, unsigned or broken."""
    batch_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    """Age at which a batch is cut."""
    torn_per_mille: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Chance that an honest operator crashes before any of its steps, during the faults."""
