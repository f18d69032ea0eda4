# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain of keyblocks as a node keeps it: executed by the node's own executor, written by its store on disk, taken up after a restart.

Each epoch has one microblock, which ends a leader's full term, now and then after a lost one, and pins the next keyblock: the others
cost reputation nothing. Who mines is drawn by power, who leads by reputation. Signatures, puzzles and reveals are left out, because an
executor gets them checked. Measured is the computing time of one keyblock from then on: neither waiting for the disk nor what else the
machine does is in it.
"""

import random
import resource
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import msgspec

from consensus.accounting import account_microblock
from consensus.block_tree import CertifiedMicroblock
from consensus.epoch import Epoch
from consensus.events import Commit
from consensus.executor import Executor
from consensus.messages import Certificate
from consensus.pinning import pin
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import (
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    microblock_hash,
    pinned_digest,
)
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.lmdb_store import LmdbStore, open_store
from ledger.rules import DEVNET_PARAMETERS, MAIN_PARAMETERS
from ledger.state import State
from ledger.votes import SignedIndex

SAMPLED = 8
"""Each so manieth keyblock's share of reputation is also timed by itself, by doing it once more."""
MOST_US = 100_000
"""Slower keyblocks count as so slow; the histogram of whole microseconds is all that is kept of the times."""


class Times:
    """Durations in bounded memory."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (MOST_US + 1)))
        self._sum_ns = self._count = 0

    def add(self, spent_ns: int) -> None:
        """Count one duration."""
        self._counts[min(spent_ns // 1000, MOST_US)] += 1
        self._sum_ns += spent_ns
        self._count += 1

    def mean_us(self) -> float:
        """Return the mean, in microseconds."""
        return self._sum_ns / 1000 / self._count

    def percentile_us(self, part: float) -> int:
        """Return the duration that so large a part does not exceed, in microseconds."""
        left = part * self._count
        for spent_us, count in enumerate(self._counts):
            left -= count
            if left <= 0:
                return spent_us
        return MOST_US


@dataclass(frozen=True)
class Mark:
    """What is seen at one length of the chain."""

    keyblocks: int
    """Length of the chain."""
    commit_mean_us: float
    """Mean computing time of a commit since the beginning, in microseconds."""
    anonymous_mb: float
    """Memory of the process that is not a mapped file, in megabytes."""
    restart_ms: float
    """Time to open the store and stand ready, in milliseconds."""
    store_mb: float
    """Size of the store on disk, in megabytes."""


@dataclass(frozen=True)
class Stored:
    """One chain."""

    power: str
    """Distribution of power."""
    miners: int
    """Miners with a history at the end."""
    keyblocks: int
    """Length of the chain."""
    reputation_mean_us: float
    """Mean computing time per keyblock of all that reputation costs: terms, histories, standings, committee, rows."""
    reputation_median_us: int
    """Its median."""
    reputation_p99_us: int
    """Its 99th percentile."""
    commit_mean_us: float
    """Mean computing time per keyblock of executing and storing its microblock durably, all of the above included."""
    commit_median_us: int
    """Its median."""
    commit_p99_us: int
    """Its 99th percentile."""
    marks: tuple[Mark, ...]
    """Memory, restart and size along the way; after each restart the chain went on with what the store held."""
    peak_mb: float
    """Largest resident memory, mapped pages of the store included, in megabytes."""


class Miners:
    """Who mines next, and all else that chance decides."""

    def __init__(self, power: str, count: int, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 -- a seed replays the bench; nothing is secret
        self.keys = [bytes([2]) + self.dice.randbytes(32) for _ in range(count)]
        self._power = power
        self._sums = list(accumulate(1 / (i + 1) if power == "skewed" else 1 for i in range(count)))

    def next(self, position: int) -> bytes:
        """Return the key of the miner that finds the keyblock at a position."""
        if self._power == "turns":
            return self.keys[position % len(self.keys)]
        return self.dice.choices(self.keys, cum_weights=self._sums)[0]


def grow(
    directory: Path,
    power: str,
    miners: int,
    keyblocks: int,
    seed: int,
    told: Callable[[Mark], None] = lambda _mark: None,
) -> Stored:
    """Grow a chain of so many keyblocks in an empty directory, restart on the way, and say what it took."""
    # A network with the main profile's interval must not have the development key of proofs; nothing else here depends on the interval.
    work = msgspec.structs.replace(MAIN_PARAMETERS.work, interval_ms=DEVNET_PARAMETERS.work.interval_ms)
    genesis = testing.genesis(1, parameters=msgspec.structs.replace(MAIN_PARAMETERS, work=work))
    chosen = Miners(power, miners, seed)
    reputation, commits, marks = Times(), Times(), list[Mark]()
    store, executor = open_store(directory, genesis), None
    stops = {max(1, keyblocks * percent // 100) for percent in (1, 10, 25, 50, 75, 100)}
    for position in range(keyblocks):
        executor = executor or Executor(store, MACHINES)
        commit = _next_commit(store, executor.epoch, chosen, position)
        if position % SAMPLED == 0:
            reputation.add(_reputation_ns(store, executor, commit))
        begun = time.process_time_ns()
        executor.commit(commit, ())
        commits.add(time.process_time_ns() - begun)
        if position + 1 in stops:
            before = _facts(executor, chosen.keys)
            store.close()
            begun = time.perf_counter_ns()
            store = open_store(directory, genesis)
            executor = Executor(store, MACHINES)
            spent_ms = (time.perf_counter_ns() - begun) / 1e6
            assert _facts(executor, chosen.keys) == before, "a restart changes nothing"
            size = (directory / "data.mdb").stat().st_size
            marks.append(Mark(position + 1, commits.mean_us(), _anonymous_mb(), spent_ms, size / 1e6))
            told(marks[-1])
    known = len(Executor(store, MACHINES).standings)
    store.close()
    return Stored(
        power=power,
        miners=known - len(genesis.committee),
        keyblocks=keyblocks,
        reputation_mean_us=reputation.mean_us(),
        reputation_median_us=reputation.percentile_us(0.5),
        reputation_p99_us=reputation.percentile_us(0.99),
        commit_mean_us=commits.mean_us(),
        commit_median_us=commits.percentile_us(0.5),
        commit_p99_us=commits.percentile_us(0.99),
        marks=tuple(marks),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    )


def _reputation_ns(store: LmdbStore, executor: Executor, commit: Commit) -> int:
    """Time the account and the pin by themselves, in an overlay that is then dropped."""
    block = commit.signed.microblock
    assert block.keyblock is not None, "each microblock pins"
    begun = time.process_time_ns()
    state = State(store)
    account_microblock(state, executor.epoch, block.header, 0)
    pin(state, executor.standings, executor.epoch, block.header, commit.block_hash, block.keyblock)
    state.changes()
    return time.process_time_ns() - begun


def _next_commit(store: LmdbStore, epoch: Epoch, chosen: Miners, position: int) -> Commit:
    dice, head, members = chosen.dice, store.head(), epoch.committee.members
    leader = dice.choices(members, [member.reputation_nano for member in members])[0]
    term = epoch.first_term + (dice.random() < 0.1)
    miner = chosen.next(position)
    keyblock = Keyblock(
        previous=epoch.record.keyblock,
        microblock=epoch.record.root_hash,
        miner=miner,
        reveal_key=bytes(48),
        reputation_nano=epoch.reputation_of(miner),
        target=epoch.record.target,
        timestamp_ms=epoch.timestamps_ms[-1] + epoch.parameters.work.interval_ms,
        state_root=epoch.state_root,
        nonce=dice.randbytes(32),
    )
    signed_keyblock = SignedKeyblock(keyblock, dice.randbytes(64))
    header = MicroblockHeader(
        height=head.height + 1,
        epoch=epoch.number,
        term=term,
        # The last round of its term: the term counts as full.
        round=(term + 1) * epoch.parameters.term_microblocks - 1,
        parent=head.block_hash,
        keyblock=epoch.record.keyblock,
        seed=epoch.opening_seed(dice.randbytes(96) if epoch.number else None),
        leader=leader.address,
        timestamp_ms=keyblock.timestamp_ms + 1,
        batch_count=0,
        batches_root=ZERO_DIGEST,
        pinned=pinned_digest(signed_keyblock),
        executed_height=head.height,
        state_digest=head.state_digest,
    )
    block_hash = microblock_hash(header)
    votes = tuple(SignedIndex(index, bytes(64)) for index in _quorum(epoch))
    signed = SignedMicroblock(Microblock(header, (), signed_keyblock), bytes(64))
    certificate = Certificate(epoch.number, header.round, block_hash, votes)
    return Commit(signed, block_hash, CertifiedMicroblock(signed, certificate))


def _quorum(epoch: Epoch) -> range:
    size = epoch.committee.quorum_votes
    while not epoch.committee.is_quorum(range(size)):
        size += 1
    return range(size)


def _facts(executor: Executor, keys: Sequence[bytes]) -> tuple[object, ...]:
    """Return what an executor knows of reputation."""
    epoch, standings = executor.epoch, executor.standings
    known = [standings.explain(key) for key in keys]
    return epoch.number, epoch.record, epoch.state_root, epoch.committee.members, executor.weight, known


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024 / 1e6
    return float("nan")
