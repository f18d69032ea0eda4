# SPDX-License-Identifier: GPL-3.0-or-later
"""A node without a network for tests of the shell: real store, mempool and events; each submission is a microblock at once."""

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import httpx
import trio

from consensus.executor import Executor
from consensus.standings import Standings
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import SignedKeyblock
from ledger.errors import InvalidInput, NotFound, Rejection
from ledger.genesis import Genesis, chain_id
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment, SignedReceipt
from ledger.partial_tree import WitnessEntry
from ledger.store import Store
from ledger.transactions import CheckedTransaction, check_transaction
from ledger.transition import Receipt
from node.api.app import create_app
from node.api.served import Proxies
from node.api.served_contracts import ServedContracts
from node.api.server import serve_api
from node.clock import now_ms
from node.config import NodeConfig
from node.events import BlockEvent, Events
from node.mempool import Mempool
from node.mining import MiningDesk, MiningWork, check_offer, check_reveal, work_in
from node.offchain.contract_proofs import ProvedRequest
from node.offchain.contract_states import StateHead
from node.offchain.statuses import RequestStatus, SendOutcome, refused
from node.offchain.watched import WatchedHead
from node.service import SubmitOutcome
from node.status import NodeStatus, PeerStatus
from node.wire import Relayed
from records.access_entries import decode_query
from records.blob_store import MemoryBlobStore, address
from records.grants import decode_sealed
from records.requests import decode_request

LOCAL_URL = "http://localhost"
"""Where tests without a server find a node: the API answers to no other names while it has no token."""


class QuietDesk:
    """Implements `node.mining.MiningDesk`: checks what miners hand in, and nothing is ever pinned."""

    def __init__(self, store: Store) -> None:
        self._epoch = Executor(store, MACHINES).epoch

    def work(self, miner: bytes) -> MiningWork:
        return work_in(self._epoch, miner, is_open=True)

    async def changed(self, epoch: int, wait_s: float) -> None:
        await trio.sleep(wait_s)

    def offer(self, signed: SignedKeyblock) -> None:
        check_offer(self._epoch, signed, now_ms())

    def reveal(self, epoch: int, signature: bytes) -> None:
        check_reveal(self._epoch, epoch, signature)


class NoProxies:
    """Implements `node.api.served.Proxies`: nobody is connected."""

    async def deliver(self, sealed: Sequence[bytes]) -> list[tuple[bytes, Relayed]]:
        await trio.lowlevel.checkpoint()
        return [(decode_sealed(raw).proxy, UNREACHABLE) for raw in sealed]

    async def ask_proxies(self, raw: bytes, wanted: tuple[bytes, ...]) -> list[tuple[bytes, Relayed]]:
        await trio.lowlevel.checkpoint()
        decode_request(raw)
        return [(proxy, UNREACHABLE) for proxy in wanted]

    async def ask_log(self, raw: bytes) -> tuple[bytes, Relayed]:
        await trio.lowlevel.checkpoint()
        return decode_query(raw).query.proxy, UNREACHABLE


class NoContracts:
    """Implements `node.api.served_contracts.ServedContracts` and its parts: no operator can be reached, and nothing was published."""

    @property
    def operating(self) -> "NoContracts":
        return self

    @property
    def availability(self) -> "NoContracts":
        return self

    @property
    def watching(self) -> "NoContracts":
        return self

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> Sequence[SendOutcome]:
        await trio.lowlevel.checkpoint()
        return [refused("operator_unreachable", f"nobody operates {contract_id.hex()} here") for _ in raws]

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"operation {sequence} of {sender.hex()}: nobody operates {contract_id.hex()} here")

    async def close(self, contract_id: bytes) -> SubmitOutcome:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"{contract_id.hex()} is not operated here")

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"next operation of {sender.hex()}: nobody operates {contract_id.hex()} here")

    async def fetch_for_client(self, commitment: BatchCommitment) -> bytes:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"data {commitment.data_digest.hex()} is not here")

    def head(self, contract_id: bytes) -> WatchedHead | None:
        return None

    async def hold_receipt(self, signed: SignedReceipt) -> None:
        await trio.lowlevel.checkpoint()
        raise InvalidInput(f"nobody watches {signed.receipt.contract_id.hex()} here")

    async def states(self, contract_id: bytes) -> Sequence[StateHead]:
        await trio.lowlevel.checkpoint()
        return ()

    async def state_page(self, contract_id: bytes, number: int, page: int) -> bytes:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"page {page} of state {number} of {contract_id.hex()} is not here")

    async def prove_request(self, contract_id: bytes, number: int, index: int) -> ProvedRequest:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"request {index} of batch {number} of {contract_id.hex()} is not known here")

    async def prove_key(self, contract_id: bytes, number: int, key: bytes) -> WitnessEntry:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"state key {key.hex()} of {contract_id.hex()} at batch {number} is not known here")


UNREACHABLE = Relayed("unreachable", "nobody is connected", b"")


class LoneNode:
    """Implements `node.api.served.Served`."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        self.genesis = genesis or testing.genesis()
        self.chain_id = chain_id(self.genesis)
        self.store = MemoryStore(self.genesis)
        self.blobs = MemoryBlobStore(64 << 20)
        self.mining: MiningDesk = QuietDesk(self.store)
        self.proxying: Proxies = NoProxies()
        self.offchain: ServedContracts = NoContracts()
        self.events = Events()
        self.mempool = Mempool(self.store)
        self.commits = True
        """Whether submissions are committed at once; else they stay under way."""
        self.storage = "ok"

    @property
    def standings(self) -> Standings:
        return Executor(self.store, MACHINES).standings

    def status(self) -> NodeStatus:
        head = self.store.head()
        return NodeStatus(
            node="lone",
            network=self.genesis.network,
            chain_id=self.chain_id,
            version="0",
            address=testing.key(0).address,
            peer_id="12D3KooW",
            p2p_addresses=("/ip4/127.0.0.1/tcp/4001",),
            height=head.height,
            round=head.round,
            term=0,
            epoch=0,
            keyblock=self.chain_id,
            leader=testing.key(0).address,
            block_hash=head.block_hash,
            state_digest=head.state_digest,
            committee_size=4,
            is_member=True,
            mempool_transactions=len(self.mempool),
            pending_batches=0,
            transactions=head.transaction_count,
            records=head.record_count,
            synchronising=False,
            peers=(PeerStatus("12D3KooX", "other", (), 0, 1.5),),
            started_ms=0,
            agreement="ok",
            storage=self.storage,
        )

    async def submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        await trio.lowlevel.checkpoint()
        outcomes: list[SubmitOutcome] = []
        admitted: list[CheckedTransaction] = []
        for raw in raws:
            identifier = b""
            try:
                checked = check_transaction(raw, testing.rules_of(self.chain_id))
                identifier = checked.id
                if self.mempool.admit(checked):
                    admitted.append(checked)
                outcomes.append(SubmitOutcome(identifier, accepted=True, reason="", detail=""))
            except Rejection as rejection:
                reason, detail = rejection.reason.value, rejection.detail
                outcomes.append(SubmitOutcome(identifier, accepted=False, reason=reason, detail=detail))
        if admitted and self.commits:
            self.commit(admitted)
        return outcomes

    def commit(self, transactions: Sequence[CheckedTransaction]) -> None:
        """Commit a microblock of one batch, or an empty one."""
        batches = [[checked.raw for checked in transactions]] if transactions else []
        head = testing.commit(self.store, *batches, machines=MACHINES)
        receipts: list[Receipt] = []
        for checked in transactions:
            receipt = self.store.receipt(checked.id)
            assert receipt is not None
            receipts.append(receipt)
        self.mempool.settle(transactions, receipts)
        for checked, receipt in zip(transactions, receipts, strict=True):
            self.events.resolve(checked.id, receipt)
        effective = sum(not receipt.reason for receipt in receipts)
        reasons = tuple((checked.id, receipt.reason) for checked, receipt in zip(transactions, receipts, strict=True))
        rejected = len(receipts) - effective
        event = BlockEvent(head.height, head.block_hash, head.timestamp_ms, effective, rejected, reasons)
        self.events.publish(event)

    async def wait(self, ids: Sequence[bytes], timeout_s: float) -> dict[bytes, Receipt]:
        waiter = self.events.wait_for(ids)
        for identifier in tuple(waiter.missing):
            receipt = self.store.receipt(identifier)
            if receipt is not None:
                self.events.resolve(identifier, receipt)
        with trio.move_on_after(timeout_s):
            await waiter.wait()
        self.events.forget(waiter)
        return waiter.receipts

    def next_nonce(self, address: bytes) -> int:
        return self.mempool.next_nonce(address)

    async def put_blob(self, blob: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        blob_id = address(blob)
        self.blobs.put(blob_id, blob)
        return blob_id

    async def get_blob(self, blob_id: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.blobs.get(blob_id)

    def subscribe(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[BlockEvent]]:
        return self.events.subscribe()


def config_for(directory: Path, **values: object) -> NodeConfig:
    return NodeConfig.model_validate({"data_dir": directory, "api_listen": "127.0.0.1:0", **values})


def client_of(node: LoneNode, directory: Path, **values: object) -> httpx.AsyncClient:
    app = create_app(node, config_for(directory, **values))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=LOCAL_URL)


def assert_problem(response: httpx.Response, status: int, reason: str = "", *, says: str = "") -> None:
    """Check that an answer is a problem with all its parts, for the reason given if one is, and says something."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert reason in ("", document["reason"])
    assert document["detail"]
    assert document["remedy"]
    assert says in response.text


@contextmanager
def serving(
    node: LoneNode,
    config: NodeConfig,
    send_timeout_s: float = 30,
    beside: Callable[[], Awaitable[None]] | None = None,
) -> Iterator[str]:
    """Serve a node on a port of the system's choice, in a thread; yields the URL. `beside` runs as long, in the same loop."""
    url = ""
    up = threading.Event()
    stop = trio.Event()
    token: list[trio.lowlevel.TrioToken] = []
    failures: list[BaseException] = []

    async def main() -> None:
        nonlocal url
        token.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            if beside is not None:
                nursery.start_soon(beside)
            started: str = await nursery.start(_serve)
            url = started
            up.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    async def _serve(task_status: object) -> None:
        await serve_api(node, config, task_status=task_status, send_timeout_s=send_timeout_s)  # type: ignore[arg-type]

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 -- handed to the test
            failures.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    up.wait(60)
    try:
        if failures:
            raise failures[0]
        yield url
    finally:
        if not failures:
            token[0].run_sync_soon(stop.set)
        thread.join(60)
        assert not thread.is_alive(), "the API does not stop"
