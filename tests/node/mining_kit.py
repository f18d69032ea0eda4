# SPDX-License-Identifier: GPL-3.0-or-later
"""A node for miners without a network: real store, execution, pinning and checks; its one member commits whatever it takes at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import trio

from consensus.block_tree import CertifiedMicroblock
from consensus.events import Commit
from consensus.executor import Executor
from consensus.messages import Certificate
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import (
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    keyblock_hash,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
)
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.genesis import Genesis
from ledger.memory_store import MemoryStore
from ledger.state import State
from node.api.mining_models import KeyblockTaken, MiningWork, RevealTaken
from node.clock import now_ms
from node.http_client import ApiError
from node.identity import Identity
from node.mining import MiningWork as DeskWork
from node.mining import StaleWork, check_offer, check_reveal, work_in
from tests.node.api_kit import LoneNode
from tests.node.kit import mined

MINER = Identity(bytes(31) + b"\x07", "Miner")
RIVAL = Identity(bytes(31) + b"\x08", "Rival")
MEMBER = testing.key(0)
EASY, IMPOSSIBLE = 2**252 - 1, 1


def mining_genesis(limit: int = EASY) -> Genesis:
    """Return a genesis of the past with one member; the first target is the limit."""
    rules = testing.PARAMETERS
    work = msgspec.structs.replace(rules.work, limit=limit.to_bytes(32, "big"))
    genesis = testing.genesis(1, parameters=msgspec.structs.replace(rules, work=work))
    return msgspec.structs.replace(genesis, timestamp_ms=1_700_000_000_000)


class LoneDesk:
    """Implements `node.mining.MiningDesk`."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        self.genesis = genesis or mining_genesis()
        self.store = MemoryStore(self.genesis)
        self.executor = Executor(self.store, MACHINES)
        self.now_ms = now_ms
        self.pins = True
        """Whether the first keyblock offered is pinned as soon as the epoch is open."""
        self.opens = True
        """Whether a reveal opens the epoch at once; else it is forgotten."""
        self.offers: list[SignedKeyblock] = []
        self.reveals: list[tuple[int, bytes]] = []
        self._candidate: SignedKeyblock | None = None
        self._changed = trio.Event()

    @property
    def epoch(self) -> int:
        return self.executor.epoch.number

    @property
    def is_open(self) -> bool:
        """Whether the running epoch has its first microblock; the founding one needs none."""
        return self.epoch == 0 or self.store.head().block_hash != self.executor.epoch.record.root_hash

    def work(self, miner: bytes) -> DeskWork:
        return work_in(self.executor.epoch, miner, is_open=self.is_open)

    async def changed(self, epoch: int, wait_s: float) -> None:
        with trio.move_on_after(wait_s):
            while self.epoch == epoch:
                await self._changed.wait()

    def offer(self, signed: SignedKeyblock) -> None:
        check_offer(self.executor.epoch, signed, self.now_ms())
        self.offers.append(signed)
        if self.pins:
            self._candidate = self._candidate or signed
            self._pin_candidate()

    def reveal(self, epoch: int, signature: bytes) -> None:
        check_reveal(self.executor.epoch, epoch, signature)
        self.reveals.append((epoch, signature))
        if self.opens and not self.is_open:
            self._commit(reveal=signature)
            self._pin_candidate()

    def pin(self, signed: SignedKeyblock) -> None:
        """Commit a microblock that pins a keyblock."""
        self._commit(keyblock=signed)
        self._candidate = None
        self._changed.set()
        self._changed = trio.Event()

    def _pin_candidate(self) -> None:
        if self._candidate is not None and self.is_open:
            self.pin(self._candidate)

    def _commit(self, *, keyblock: SignedKeyblock | None = None, reveal: bytes | None = None) -> None:
        epoch, head = self.executor.epoch, self.store.head()
        progress = State(self.store).progress()
        is_opening = head.block_hash == epoch.record.root_hash
        round_ = epoch.first_round if is_opening else progress.round + 1
        header = MicroblockHeader(
            height=head.height + 1,
            epoch=epoch.number,
            term=round_ // self.genesis.parameters.term_microblocks,
            round=round_,
            parent=head.block_hash,
            keyblock=epoch.record.keyblock,
            seed=epoch.opening_seed(reveal) if is_opening else progress.seed,
            leader=MEMBER.address,
            timestamp_ms=max(self.now_ms(), head.timestamp_ms + 1),
            batch_count=0,
            batches_root=ZERO_DIGEST,
            pinned=pinned_digest(keyblock),
            executed_height=head.height,
            state_digest=head.state_digest,
        )
        block_hash = microblock_hash(header)
        signature = MEMBER.sign(microblock_signing_digest(epoch.chain_id, block_hash))
        signed = SignedMicroblock(Microblock(header, (), keyblock, reveal), signature)
        certified = CertifiedMicroblock(signed, Certificate(epoch.number, round_, block_hash, ()))
        self.executor.commit(Commit(signed, block_hash, certified), ())


def solve(desk: LoneDesk, identity: Identity = RIVAL, **changes: object) -> SignedKeyblock:
    """Return a keyblock of an identity for the running epoch; with changes, that of a miner gone wrong."""
    return mined(desk.work(identity.public.public_key), identity, desk.now_ms(), **changes)


class DirectNode:
    """Implements `node.miner.MiningNode` over a desk, without HTTP, for one thread or two; never waits."""

    def __init__(self, desk: LoneDesk) -> None:
        self.desk = desk
        self.asked: list[tuple[int | None, bool, int]] = []
        """Epoch, `reveal` and `wait_s` of all requests for work."""
        self._turn = threading.Lock()
        self.fails_with: Exception | None = None

    def mining_work(
        self, miner: bytes, epoch: int | None = None, *, reveal: bool = True, wait_s: int = 0
    ) -> MiningWork:
        self.asked.append((epoch, reveal, wait_s))
        with self._served():
            return MiningWork.model_validate(self.desk.work(miner))

    def offer_keyblock(self, signed: SignedKeyblock) -> KeyblockTaken:
        with self._served("keyblock"):
            self.desk.offer(signed)
        return KeyblockTaken(keyblock_hash=keyblock_hash(signed.keyblock))

    def reveal_seed(self, epoch: int, signature: bytes) -> RevealTaken:
        with self._served("reveal"):
            self.desk.reveal(epoch, signature)
        return RevealTaken(epoch=epoch)

    @contextmanager
    def _served(self, what: str = "") -> Iterator[None]:
        """Fail as the test wants, and refuse as the API does."""
        if self.fails_with is not None:
            raise self.fails_with
        try:
            with self._turn:
                yield
        except StaleWork as error:
            raise ApiError(409, f"stale_{what}", str(error), "") from error
        except InvalidInput as error:
            raise ApiError(422, f"bad_{what}", str(error), "") from error


def node_with(desk: LoneDesk) -> LoneNode:
    """Return a node to serve, with a desk for miners."""
    node = LoneNode(desk.genesis)
    node.store, node.mining = desk.store, desk
    return node
