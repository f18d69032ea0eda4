# SPDX-License-Identifier: GPL-3.0-or-later
"""A lone node that operates contracts: real operator, journal, data and chain rules; only the network between nodes is missing.

Microblocks come by themselves, so that windows pass while a test waits through the API.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
import trio

from contracts.operator import OperatorLimits
from contracts.shipped import MACHINES
from ledger import testing
from ledger.errors import NotFound
from ledger.offchain import BatchCommitment
from ledger.rules import ContractRules
from ledger.transactions import CheckedTransaction
from node.clock import now_ms
from node.genesis_file import make_genesis
from node.identity import Identity
from node.offchain.data_store import DataStore
from node.offchain.files import open_offchain
from node.offchain.operating import Operating
from node.offchain.statuses import RequestStatus, SendOutcome
from node.offchain.watching import Watching, WatchingPorts
from node.own_transactions import OwnTransactions
from node.submission import SubmitOutcome
from p2p.errors import RequestFailed, RequestFailure
from tests.node.api_kit import LoneNode

BLOCK_S = 0.03
"""Between two microblocks."""
HEAD_START_MS = 6 * 3_600_000
"""How old the chain is at first: its time goes faster than the clock, a second for each microblock, and must not overtake it."""
RULES = ContractRules(10_000, 8, 3, 12_000, 8)
"""A window of about a quarter of a second; twelve microblocks of this chain's fast time make neglect."""
OPERATOR, ALICE, BOB, CAROL = IDENTITIES = tuple(
    Identity(bytes(31) + bytes([number]), name) for number, name in enumerate(("operator", "alice", "bob", "carol"), 1)
)
"""The node's own, and users; all have credits."""
LIMITS = OperatorLimits(batch_age_ms=50)


class Contracts:
    """Implements `node.api.served_contracts.ServedContracts` and its parts, for what this node operates itself."""

    def __init__(self, operating: Operating, data: DataStore) -> None:
        self.real, self.data = operating, data
        self.watching: Watching
        self.is_ignoring = False
        """Whether the operator answers nobody."""
        self.lie: Callable[[SendOutcome], SendOutcome] = lambda outcome: outcome
        """What becomes of its answers on the way."""

    @property
    def operating(self) -> Self:
        return self

    @property
    def availability(self) -> Self:
        return self

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> Sequence[SendOutcome]:
        if self.is_ignoring:
            await trio.lowlevel.checkpoint()
            detail = "the operator does not answer"
            return [SendOutcome(accepted=False, reason="operator_unreachable", detail=detail) for _ in raws]
        return [self.lie(outcome) for outcome in await self.real.send(contract_id, raws)]

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        if self.is_ignoring:
            raise NotFound("the operator does not answer")
        return await self.real.status_of(contract_id, sender, sequence)

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        await trio.lowlevel.checkpoint()
        if self.is_ignoring:
            raise NotFound("the operator does not answer")
        return self.real.next_sequence(contract_id, sender)

    async def close(self, contract_id: bytes) -> SubmitOutcome:
        return await self.real.close(contract_id)

    async def fetch_for_client(self, commitment: BatchCommitment) -> bytes:
        await trio.lowlevel.checkpoint()
        found = self.data.get(commitment.data_digest)
        if found is None:
            raise NotFound(f"data {commitment.data_digest.hex()} is not here")
        return found


class NoPeers:
    """Implements `node.sync.Asker`: nobody is connected."""

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        raise RequestFailed(RequestFailure.NOT_CONNECTED, peer_id, method, "nobody is connected")

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        raise AssertionError(f"{peer_id} is nobody")


class ContractNode(LoneNode):
    """A lone node whose key is `OPERATOR`."""

    def __init__(self, directory: Path, *, watches: bool = False) -> None:
        parameters = msgspec.structs.replace(testing.PARAMETERS, contracts=RULES, timestamp_drift_ms=2 * HEAD_START_MS)
        members = [identity.public.public_key for identity in IDENTITIES]
        super().__init__(make_genesis("contracts", members, now_ms() - HEAD_START_MS, parameters=parameters))
        self._stack = ExitStack()
        files = self._stack.enter_context(open_offchain(directory, self.chain_id, 2**26))
        transactions = OwnTransactions(
            store=self.store, key=OPERATOR.signing, next_nonce=self.next_nonce, submit=self.submit
        )
        operating = Operating(
            store=self.store,
            key=OPERATOR.signing,
            machines=MACHINES,
            journal=files.journal,
            publish=files.data.put,
            transactions=transactions,
            is_behind=lambda: False,
            clock_ms=now_ms,
            limits=LIMITS,
        )
        self.contracts = self.offchain = Contracts(operating, files.data)
        self.snapshots = files.snapshots
        self.contracts.watching = Watching(
            store=self.store,
            own_key=OPERATOR.signing.public_key,
            machines=MACHINES,
            snapshots=files.snapshots,
            receipts=files.receipts,
            ports=WatchingPorts(
                network=NoPeers(),
                peers=tuple,
                fetch=self.contracts.fetch_for_client,
                fetch_for_client=self.contracts.fetch_for_client,
                transactions=transactions,
                checkers=trio.CapacityLimiter(2),
                is_behind=lambda: False,
            ),
            rng=random.Random(1),
            enabled=watches,
        )
        self.is_still = False
        """Whether no microblocks come by themselves."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def commit(self, transactions: Sequence[CheckedTransaction]) -> None:
        super().commit(transactions)
        self.contracts.real.committed(transactions)
        self.contracts.watching.committed(transactions)

    async def run(self) -> None:
        """Operate, and let microblocks come."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.contracts.real.run)
            nursery.start_soon(self.contracts.watching.run)
            while True:
                await trio.sleep(BLOCK_S)
                if not self.is_still:
                    self.commit(())
