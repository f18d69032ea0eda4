# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watcher knows of one contract, and which snapshots of it are worth their room."""

from collections.abc import Sequence
from typing import Literal

import msgspec
import trio

from contracts.watcher import Watcher
from node.offchain.contract_states import MAX_SNAPSHOTS
from node.offchain.snapshots import SnapshotHead

WatchStage = Literal["waiting", "following", "data_missing", "no_state", "too_large", "unreadable", "wrong", "ended"]
"""Not looked at yet, or the node catches up; up to date; the data of the next batch is not to be had; nor is that of a final batch, or any
later state; the state is too large for this node; what is published cannot be executed; the next batch is wrong; the contract has ended."""

SAVE_BATCHES = 256
"""A snapshot is written after so many batches at the latest."""
SAVE_BYTES = 4 * 1024 * 1024
"""Or after so much data, or as much as the state itself: about a second of execution."""
SNAPSHOT_BYTES = 64 * 1024 * 1024
"""Snapshots of one contract are thinned out beyond so many bytes."""


class WatchedHead(msgspec.Struct, frozen=True):
    """How far a contract is followed."""

    contract_id: bytes
    """The contract."""
    number: int
    """Batches that are executed here and right; those before the snapshot that this node began with are included."""
    stage: WatchStage
    """How it stands."""
    detail: str
    """More of it, for people."""
    fault: str
    """What the operator is guilty of, for people; empty for nothing that is known."""


class Watched:
    """One contract."""

    def __init__(self, contract_id: bytes) -> None:
        self.contract_id = contract_id
        self.lock = trio.Lock()
        """Held while the running watcher moves."""
        self.live: Watcher | None = None
        """The running watcher; None when it is not in memory."""
        self.number = 0
        """The batch that comes next, also while nothing is in memory."""
        self.used_s = 0.0
        """When it last moved."""
        self.stage: WatchStage = "waiting"
        self.detail = ""
        self.snapshots: tuple[SnapshotHead, ...] = ()
        """What is kept of it, the oldest first; empty too before it was looked at."""
        self.unsaved_batches = 0
        self.unsaved_bytes = 0
        self.misses = 0
        """How often in a row the data of the next batch was not to be had."""
        self.asked_s: float | None = None
        """When peers were last asked for a state in vain."""

    def note(self, stage: WatchStage, detail: str = "") -> bool:
        """Take a stage; tells whether it is another one than before."""
        is_new = (stage, detail) != (self.stage, self.detail)
        self.stage, self.detail = stage, detail
        return is_new

    def followed(self, size: int, now_s: float) -> None:
        """Count a batch that was executed."""
        self.misses = 0
        self.unsaved_batches += 1
        self.unsaved_bytes += size
        self.used_s = now_s

    def is_worth_saving(self) -> bool:
        """Tell whether executing again what is not in a snapshot would take long."""
        size = self.snapshots[-1].size if self.snapshots else 0
        return self.unsaved_batches >= SAVE_BATCHES or self.unsaved_bytes >= max(SAVE_BYTES, size)

    def base(self, final: int) -> int:
        """Return where the newest snapshot after final batches begins; 0 when there is none."""
        return max((head.number for head in self.snapshots if head.number <= final), default=0)


def kept(numbers: Sequence[int], final: int, most: int) -> set[int]:
    """Return which snapshots, ascending, are worth keeping: the newest after final batches, the newest of all, and evenly spread ones.

    Those before the first of these serve nobody: what is final is never executed again.
    """
    base = max((number for number in numbers if number <= final), default=0)
    chosen = [number for number in numbers if number >= base]
    while len(chosen) > max(2, most):
        gaps = [chosen[place + 1] - chosen[place - 1] for place in range(1, len(chosen) - 1)]
        del chosen[1 + gaps.index(min(gaps))]
    return set(chosen)


def kept_heads(heads: Sequence[SnapshotHead], final: int) -> set[int]:
    """Return the numbers of the snapshots that are worth their room."""
    largest = max((head.size for head in heads), default=0)
    most = min(MAX_SNAPSHOTS, SNAPSHOT_BYTES // max(1, largest))
    return kept([head.number for head in heads], final, most)
