# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain on trial: replayed from the genesis into a store of its own, by the same core and executor that a node follows its chain with.

Every puzzle, time, certificate and committee is checked on the way, and the weight that comes out is our own. The trial ends early
when the chain contradicts what is final here or the operator's checkpoint. Whatever it does, it takes no more room on the disk than
the node's own chain may.
"""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog
import trio

from consensus.block_tree import CertifiedMicroblock
from consensus.core import Core
from consensus.events import PayloadChanged, ReceivedChain
from consensus.executor import Executor
from consensus.restart import committed_head
from consensus.timing import Timing
from consensus.weight import FinalPoint, VerifiedChain
from contracts.shipped import MACHINES
from ledger.blocks import MicroblockHeader
from ledger.chain import chain_of
from ledger.errors import StoreError
from ledger.genesis import Genesis
from ledger.lmdb_environment import MAP_BYTES
from ledger.lmdb_store import open_store
from ledger.store import Head
from node.answers import answer
from node.batches import Batch, BatchPool, memory_bytes, open_asked
from node.chain_peers import ChainPeers, known_of, reached_height
from node.clock import now_ms
from node.driver import Committed, Driver, Ports
from node.safety_file import SafetyFile
from node.sync import Sync
from node.wire import ChainSummary

log = structlog.get_logger()

LOG_INTERVAL_S = 10.0
"""Pause between two lines about progress."""
MAX_PENDING_BYTES = 1 << 30
"""Memory for batches of microblocks that are not final yet. The fullest microblock takes two thirds of it; honest leaders make them a
hundred times smaller. Who has an old committee's keys can certify hundreds of the fullest ones and make none of them final."""


class TrialRules(msgspec.Struct, frozen=True):
    """What a chain is held against, and what its trial may cost."""

    genesis: Genesis
    """What it must begin with."""
    own: Head
    """The newest microblock that is final here; it must contain it."""
    checkpoint: FinalPoint
    """The operator's word, which it must contain; the genesis when there is none."""
    limit_bytes: int
    """Room for it on the disk."""


class Replay:
    """One chain, as far as it has been shown. Close it, or its directory stays."""

    def __init__(self, directory: Path, rules: TrialRules, checkers: trio.CapacityLimiter) -> None:
        """Begin at the genesis in a directory of its own. Raises `StoreError`."""
        self.directory = directory
        self._rules = rules
        self._checkers = checkers
        self._chain = chain_of(rules.genesis)
        self.store = open_store(
            directory,
            rules.genesis,
            map_bytes=min(MAP_BYTES, rules.limit_bytes),
            map_bound_bytes=rules.limit_bytes,
        )
        try:
            self._safety = SafetyFile(directory / "safety")  # an observer promises nothing; it is part of every driver
        except StoreError:
            self.store.close()
            raise
        self._pool = BatchPool(self.store)
        self._executor = Executor(self.store, MACHINES)
        self._driver = self._new_driver()
        self._keyblocks = {0: self._chain.id}
        self._logged_s = trio.current_time()
        self.fault = ""
        """Why the trial ended early: the chain contradicts what is known here, or the disk is full."""
        self._peers: ChainPeers | None = None

    def _new_driver(self) -> Driver:
        epoch = self._executor.epoch
        core = Core(
            epoch=epoch,
            payload=self._pool,
            key=None,
            head=committed_head(self.store, epoch),
            record=None,
            proposals=(),
            timing=Timing(),
            now_ms=now_ms(),
        )
        ports = Ports(
            send=lambda _address, _message: None,
            broadcast=lambda _message: None,
            request_batches=lambda _digests: None,  # they are fetched with the microblocks
            request_chain=lambda _height: None,
            committed=self._committed,
            report=lambda _evidence: None,
        )
        return Driver(
            core=core, executor=self._executor, pool=self._pool, safety=self._safety, ports=ports, clock_ms=now_ms
        )

    async def run(self, peers: ChainPeers) -> None:
        """Fetch and check whatever the peers say to have; may be called again with others that have the same beginning."""
        self._peers = peers
        sync = Sync(
            network=peers,
            peers=lambda: ("chain",),
            prefers=lambda _peer: False,
            pool=self._pool,
            store=self.store,
            take_chain=self._take_chain,
            certified_tail=self.certified_tail,
            epoch=lambda: self._executor.epoch.number,
            take_batches=self._take_batches,
            rng=random.Random(0),  # noqa: S311 -- there is one name to shuffle
        )
        await peers.bring_all(sync, self.reached)

    def certified_tail(self) -> tuple[CertifiedMicroblock, ...]:
        """Return the certified microblocks after the committed head, oldest first."""
        return self._driver.certified_tail()

    def known(self) -> Mapping[bytes, MicroblockHeader | None]:
        """Return what the next microblocks may follow."""
        return known_of(self.store.head().block_hash, self.certified_tail())

    def reached(self) -> int:
        """Return how far the chain is committed or certified."""
        return reached_height(self.store.head().height, self.certified_tail())

    def shows(self, summary: ChainSummary) -> bool:
        """Tell whether the chain holds the newest microblock that a peer claims."""
        if summary.height <= self.store.head().height:
            return self.store.block_hash(summary.height) == summary.tip
        return any(block.certificate.block_hash == summary.tip for block in self.certified_tail())

    @property
    def continues_own(self) -> bool:
        """Tell whether the chain is committed as far as the node's own one, and the same up to there."""
        return self.store.block_hash(self._rules.own.height) == self._rules.own.block_hash

    def chain(self) -> VerifiedChain:
        """Return what was verified."""
        return VerifiedChain(self._executor.weight, self.store.head().block_hash, self._keyblocks)

    def close(self) -> None:
        """Release the files and remove them."""
        self._safety.close()
        self.store.close()
        remove_directory(self.directory)

    # ------------------------------------------------------------------ inside

    async def _take_chain(self, blocks: tuple[CertifiedMicroblock, ...]) -> str:
        refused = self._driver.handle(ReceivedChain(blocks))
        await self._settled()
        return "" if refused is None else refused.reason

    async def _take_batches(
        self, raws: Sequence[bytes], *, asked: frozenset[bytes], certified: frozenset[bytes], source: str | None
    ) -> str:
        assert source is None, "nobody announces anything to a trial"
        outcomes = await trio.to_thread.run_sync(
            open_asked, raws, asked, certified, self._chain, limiter=self._checkers
        )
        try:
            self._pool.add([outcome for outcome in outcomes if isinstance(outcome, Batch)])
        except StoreError as error:
            self._end(str(error))
            return ""
        if sum(map(memory_bytes, self._pool)) > MAX_PENDING_BYTES:
            self._end("the microblocks that are not final name more batches than there is room for")
            return ""
        self._driver.handle(PayloadChanged())
        await self._settled()
        return next((str(outcome) for outcome in outcomes if not isinstance(outcome, Batch)), "")

    async def _settled(self) -> None:
        self._driver.check()
        if self._driver.halted:
            self._end(self._driver.halted)
        await trio.lowlevel.checkpoint()

    def _committed(self, committed: Committed) -> None:
        head, own, checkpoint = committed.head, self._rules.own, self._rules.checkpoint
        if head.height == own.height and head.block_hash != own.block_hash:
            self._end(f"its microblock {head.height} is not the one that is final here")
        if committed.epoch is not None:
            number, keyblock = committed.epoch.number, committed.epoch.record.keyblock
            self._keyblocks[number] = keyblock
            if number == checkpoint.epoch and keyblock != checkpoint.keyblock_hash:
                self._end(f"keyblock {keyblock.hex()} at the start of epoch {number} contradicts the checkpoint")
        if trio.current_time() >= self._logged_s + LOG_INTERVAL_S:
            self._logged_s = trio.current_time()
            log.info("replaying a chain", height=head.height, epoch=self._executor.epoch.number)

    def _end(self, why: str) -> None:
        self.fault = self.fault or why
        if self._peers is not None:
            self._peers.is_stopped = True


class ReplayedChain:
    """Implements `node.sync.Asker`: what was verified, for the node's own core."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Answer from the trial's store."""
        del peer_id, timeout_s
        await trio.lowlevel.checkpoint()
        tail = self._replay.certified_tail
        found = answer(method, payload, store=self._replay.store, tail=tail, weight=self._replay.chain().weight)
        assert found is not None, f"{method} is no question about a chain"
        return found

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        """Nobody gave this but we ourselves."""
        raise AssertionError(f"{peer_id}: what one core took another refuses ({points} points): {reason}")


def remove_directory(directory: Path) -> None:
    """Remove a trial's directory; what cannot be removed now is removed at the next start."""

    def note(_function: Callable[..., object], path: str, error: tuple[object, BaseException, object]) -> None:
        log.warning("a trial's file cannot be removed", path=path, error=str(error[1]))

    shutil.rmtree(directory, onerror=note)
