# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks whose nodes have different histories: chains with real puzzles and certificates, real nodes that keep them, peers that lie."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
import trio

from consensus.block_tree import BlockTree, CertifiedMicroblock
from consensus.events import Commit
from consensus.messages import Proposal
from consensus.restart import committed_head
from ledger import testing
from ledger.codec import encode
from ledger.genesis import chain_id
from ledger.lmdb_store import LmdbStore, open_store
from ledger.memory_store import MemoryStore
from ledger.store import Store
from node.answers import answer
from node.config import NodeConfig
from node.identity import Identity
from node.run import open_node
from node.safety_file import SafetyFile
from node.service import NodeService
from node.wire import REQUEST_SUMMARY, TOPIC_BATCHES, TOPIC_CONSENSUS, ChainSummary, make_statement
from p2p.network import Network, NetworkConfig, open_network
from records.blob_store import MemoryBlobStore
from tests.consensus.chains import ChainMaker, Step
from tests.node.kit import until

if TYPE_CHECKING:
    # The stubs of trio-typing, which libp2p brings, stand before Trio's own types.
    from trio_typing import TaskStatus

GENESIS = testing.genesis(4)
CHAIN = chain_id(GENESIS)
NO_SIGNATURE = bytes(63) + b"\1"


def made(*steps: Step) -> ChainMaker:
    """Return a chain, certified by whoever sits in its committees."""
    maker = ChainMaker(MemoryStore(GENESIS))
    for step in steps:
        maker.take(step)
    return maker


def idle(count: int) -> tuple[Step, ...]:
    """Return steps without content."""
    return (Step(),) * count


def history(*miners: int, between: int = 2) -> tuple[Step, ...]:
    """Return steps in which the miners' keyblocks are pinned one after the other."""
    steps: list[Step] = []
    for miner in miners:
        steps += (*idle(between), Step(miner=miner))
    return (*steps, *idle(between))


def uncertified(maker: ChainMaker, above_height: int = 0) -> ChainMaker:
    """Return the same work on microblocks that nobody has certified: what somebody with power and no committee can make.

    What is up to a height is as it was: the part that is everybody's.
    """
    forged = ChainMaker(MemoryStore(GENESIS))
    for commit, transactions, batches in maker.commits:
        if commit.signed.microblock.header.height <= above_height:
            forged.store.put_batches(batches)
            forged.executor.commit(commit, transactions)
            forged.commits.append((commit, transactions, batches))
            continue
        votes = tuple(msgspec.structs.replace(vote, signature=NO_SIGNATURE) for vote in commit.block.certificate.votes)
        certificate = msgspec.structs.replace(commit.block.certificate, votes=votes)
        block = CertifiedMicroblock(commit.signed, certificate)
        forged.store.put_batches(batches)
        forged.executor.commit(msgspec.structs.replace(commit, block=block), transactions)
        forged.commits.append((msgspec.structs.replace(commit, block=block), transactions, batches))
    return forged


class ClosingMaker(ChainMaker):
    """Makes chains whose epochs take many microblocks to end: each of their terms is lost, until the last one."""

    def __init__(self, store: Store, closing: int, lost: int = 1) -> None:
        """`closing` is how many microblocks make a pin final, `lost` how many terms are lost before each."""
        super().__init__(store)
        self._closing, self._lost = closing, lost

    def next_commit(self, step: Step) -> tuple[Commit, tuple[tuple[bytes, bytes], ...]]:
        """Return what a core would hand out for a step, and the batches that it names."""
        commit, batches = super().next_commit(step)
        if commit.signed.microblock.keyblock is None:
            return commit, batches
        head = committed_head(self.store, self.epoch)
        tree, digests, known = BlockTree(head.node), dict(head.state_digests), commit.block.certificate
        node = tree.add(commit.block_hash, Proposal(commit.signed, head.certificate, None))
        assert node is not None, "the pin follows the head"
        closing = []
        for place in range(self._closing):
            empty = self._microblock(tree, node, digests, Step(lost=self._lost * (place < self._closing - 1)), (), None)
            block, node = self._certify(tree, node, known, empty, None)
            known = block.certificate
            closing.append(block)
        return msgspec.structs.replace(commit, closing=tuple(closing)), batches


class JoinNode:
    """A real node, with a history or without."""

    def __init__(
        self,
        net: "JoinNet",
        name: str,
        maker: ChainMaker | None,
        dials: Sequence[str],
        meets: Sequence[str],
        settings: dict[str, object],
    ) -> None:
        self._net, self.name, self._dials, self._settings = net, name, tuple(dials), settings
        self._meets = tuple(meets)
        self.identity = identity_of(name)
        self.directory = net.directory / name
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        self.service: NodeService
        self.store: LmdbStore
        if maker is not None:
            self.directory.mkdir()
            store = open_store(self.directory / "chain", GENESIS)
            maker.replay(store)
            store.close()

    async def run(self, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Run until stopped."""
        self.directory.mkdir(exist_ok=True)
        self._scope, self.ended = trio.CancelScope(), trio.Event()
        self.store = open_store(self.directory / "chain", GENESIS)
        safety = SafetyFile(self.directory / "safety")
        values = {"p2p_bootstrap": self._dials, "timeout_ms": 400, "heartbeat_ms": 60_000, "join_wait_ms": 200}
        config = NodeConfig.model_validate(
            {"data_dir": self.directory, "p2p_listen": "127.0.0.1:0", **values, **self._settings}
        )
        try:
            with self._scope:
                blobs = MemoryBlobStore(1 << 24)
                async with open_node(config, self.identity, GENESIS, self.store, safety, blobs) as self.service:
                    if self._meets:
                        # Not by the clock: a machine under load takes any time to make a connection.
                        self.service._joining._gather = self._gather  # type: ignore[method-assign]
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self.store.close()
            safety.close()
            self.ended.set()

    async def _gather(self) -> None:
        """Wait for the peers that are to be met before chains are compared, the first time."""
        met, self._meets = self._meets, ()
        await until(lambda: self.knows(*met), 120)

    async def stop(self) -> None:
        """End at once."""
        self._scope.cancel()
        await self.ended.wait()

    @property
    def address(self) -> str:
        """Where it can be dialled."""
        return self.service.status().p2p_addresses[0]

    @property
    def height(self) -> int:
        """Newest committed microblock."""
        return self.store.head().height

    @property
    def joining(self) -> str:
        """What it does to find its chain."""
        return self.service.status().joining

    def knows(self, *names: str) -> bool:
        """Tell whether it is connected to others."""
        connected = {info.peer_id for info in self.service.status().peers}
        return {identity_of(name).peer_id for name in names} <= connected

    def has(self, maker: ChainMaker) -> bool:
        """Tell whether it has settled on a chain and has all of it but, at most, a certified tip."""
        height = maker.store.head().height - 1
        return not self.joining and self.height >= height and self.follows(maker)

    def follows(self, maker: ChainMaker) -> bool:
        """Tell whether what it has is that chain."""
        return self.store.block_hash(self.height) == maker.store.block_hash(self.height)

    def score(self, name: str) -> int:
        """Penalty points of another node here."""
        return self.service._network._scores.points(identity_of(name).peer_id)


class Liar:
    """A peer that greets properly, says to have one chain and gives another."""

    def __init__(self, name: str, says: Store, gives: Store, weight: int, claim: ChainSummary | None = None) -> None:
        self._identity = identity_of(name)
        self._says, self._gives, self._weight, self._claim = says, gives, weight, claim
        self.network: Network

    def config(self, dials: Sequence[str]) -> NetworkConfig:
        """Return the settings of its network."""
        topics = (TOPIC_BATCHES, TOPIC_CONSENSUS)
        return NetworkConfig(self._identity.network_seed, CHAIN, "127.0.0.1:0", tuple(dials), topics=topics)

    def hello(self) -> bytes:
        height = self._says.head().height
        return make_statement(CHAIN, self._identity.signing, self._identity.peer_id, "friendly", height)

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        return peer_id

    def on_peer(self, peer_id: str, connected: bool) -> None: ...

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None: ...

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None: ...

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        if method == REQUEST_SUMMARY and self._claim is not None:
            return encode(self._claim)
        store = self._gives if method in ("chain", "batches") else self._says
        found = answer(method, payload, store=store, tail=tuple, weight=self._weight)
        assert found is not None
        return found


class JoinNet:
    """Nodes by name; `async with` ends them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, traceback)

    def prepare(
        self,
        name: str,
        maker: ChainMaker | None = None,
        dials: Sequence[str] = (),
        meets: Sequence[str] = (),
        **settings: object,
    ) -> JoinNode:
        """Return a node that does not run yet, with a history or without; it compares chains once it has met some others."""
        return JoinNode(self, name, maker, dials, meets, settings)

    async def run(self, node: JoinNode) -> None:
        """Run a node."""
        await self.nursery.start(node.run)

    async def start(
        self,
        name: str,
        maker: ChainMaker | None = None,
        dials: Sequence[str] = (),
        meets: Sequence[str] = (),
        **settings: object,
    ) -> JoinNode:
        """Prepare a node and run it."""
        node = self.prepare(name, maker, dials, meets, **settings)
        await self.run(node)
        return node

    async def lie(self, liar: Liar, dials: Sequence[str] = ()) -> str:
        """Start a liar; returns where it can be dialled."""
        addresses: list[str] = []

        async def run(task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
            async with open_network(liar.config(dials), liar) as network:
                addresses.extend(network.addresses)
                task_status.started()
                await trio.sleep_forever()

        await self.nursery.start(run)
        return addresses[0]


def identity_of(name: str) -> Identity:
    """Return the keys of a node, by its name."""
    return Identity(name.encode().ljust(32, b"."), name)


__all__ = [
    "CHAIN",
    "GENESIS",
    "ClosingMaker",
    "JoinNet",
    "JoinNode",
    "Liar",
    "history",
    "identity_of",
    "idle",
    "made",
    "uncertified",
    "until",
]
