# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole networks of nodes in one process, over real connections on loopback."""

from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
import trio

from ledger import testing
from ledger.bodies import Transfer
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.genesis import Allocation, Genesis, Member, chain_id
from ledger.lmdb_store import LmdbStore, open_store
from ledger.rules import REPUTATION_UNIT
from ledger.transactions import sign_transaction
from node.config import NodeConfig
from node.identity import Identity
from node.run import open_node
from node.safety_file import SafetyFile
from node.service import NodeService
from records.blob_store import MemoryBlobStore
from tests.node.kit import until

if TYPE_CHECKING:
    # The stubs of trio-typing, which libp2p brings, stand before Trio's own types.
    from trio_typing import TaskStatus

MEMBERS = [Identity(bytes([number]) * 32, f"node {number}") for number in range(1, 5)]
OUTSIDER = Identity(b"\x63" * 32, "outsider")
GENESIS = Genesis(
    "test",
    1_767_225_600_000,
    msgspec.structs.replace(
        testing.PARAMETERS,
        minimum_fee_microcredit=10,
        maximum_expiry_microblocks=100_000,
        term_microblocks=8,
        timestamp_drift_ms=5_000,
    ),
    tuple(Member(member.signing.public_key, REPUTATION_UNIT // 2) for member in MEMBERS),
    tuple(member.address for member in MEMBERS),
    tuple(Allocation(member.address, 10**12) for member in MEMBERS),
    DEVELOPMENT_VERIFYING_KEY,
)
CHAIN = chain_id(GENESIS)


def pay(sender: int, nonce: int, amount: int = 1) -> bytes:
    """Return a member's transfer to the next member."""
    return sign_transaction(
        CHAIN,
        MEMBERS[sender].signing,
        nonce=nonce,
        fee_microcredit=10,
        expiry_height=5_000,
        body=Transfer(MEMBERS[(sender + 1) % 4].address, amount),
    )


class RunningNode:
    """One node with its directory; can be stopped, killed and started again."""

    def __init__(self, net: "Net", number: int, identity: Identity) -> None:
        self._net, self.number, self.identity = net, number, identity
        self._directory = net.directory / str(number)
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self.blobs = MemoryBlobStore(1 << 28)
        self.ended = trio.Event()
        self.service: NodeService
        self.store: LmdbStore

    async def run(self, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Run until stopped or killed."""
        self._directory.mkdir(exist_ok=True)
        self._stop, self._scope, self.ended = trio.Event(), trio.CancelScope(), trio.Event()
        self.store = open_store(self._directory / "chain", self._net.genesis)
        safety = SafetyFile(self._directory / "safety")
        config = NodeConfig(
            data_dir=self._directory,
            p2p_listen="127.0.0.1:0",
            p2p_bootstrap=self._net.addresses(),
            timeout_ms=400,
            heartbeat_ms=2_000,
            erase_labelled=self._net.erase_labelled,
        )
        try:
            with self._scope:
                async with open_node(
                    config, self.identity, self._net.genesis, self.store, safety, self.blobs
                ) as self.service:
                    task_status.started()
                    await self._stop.wait()
        finally:
            self.store.close()
            safety.close()
            self.ended.set()

    async def stop(self) -> None:
        """End in peace."""
        self._stop.set()
        await self.ended.wait()

    async def kill(self) -> None:
        """End at once, wherever it is."""
        self._scope.cancel()
        await self.ended.wait()

    @property
    def height(self) -> int:
        """Newest committed microblock."""
        return self.store.head().height

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return not self.ended.is_set()


class Net:
    """Four members; `async with` runs them."""

    def __init__(
        self, directory: Path, count: int = 4, *, erase_labelled: bool = False, genesis: Genesis = GENESIS
    ) -> None:
        self.directory = directory
        self.genesis = genesis
        self.erase_labelled = erase_labelled
        self.nodes = [RunningNode(self, number, MEMBERS[number]) for number in range(count)]
        self._started: list[RunningNode] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start all and wait until each knows all others."""
        async with AsyncExitStack() as stack:
            self.nursery = await stack.enter_async_context(trio.open_nursery())
            for node in self.nodes:
                await self.start(node)
            await self.connected()
            # Until here whatever fails must end the nodes that run: nobody else would, and the test would hang.
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop all."""
        self.nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, traceback)

    async def start(self, node: RunningNode) -> None:
        """Start a node."""
        await self.nursery.start(node.run)
        if node not in self._started:
            self._started.append(node)

    def addresses(self) -> tuple[str, ...]:
        """Where a newcomer can dial."""
        return tuple(node.service.status().p2p_addresses[0] for node in self.up())[:2]

    def up(self) -> list[RunningNode]:
        """Return the nodes that run."""
        return [node for node in self._started if node.is_up]

    async def connected(self) -> None:
        """Wait until every running node knows every other."""
        await until(lambda: all(len(n.service.status().peers) == len(self.up()) - 1 for n in self.up()))

    async def agreed(self, transactions: int) -> None:
        """Wait until so many transactions took effect everywhere; then all must have one chain and one state."""
        await until(lambda: all(n.store.head().transaction_count == transactions for n in self.up()), 120)
        # Also an empty microblock changes the state.
        await until(lambda: len({node.height for node in self.up()}) == 1)
        assert len({node.store.head() for node in self.up()}) == 1
        assert len({node.store.state_root() for node in self.up()}) == 1
