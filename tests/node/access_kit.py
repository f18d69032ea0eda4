# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the access log's feed share: an institution with its log, and an operator that works on a chain in the process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from contracts.machines.access_log import AccessLogParameters, LogAccess
from ledger import testing
from ledger.codec import encode
from ledger.contract_bodies import OpenContract
from ledger.crypto.keys import PrivateKey, address_of
from ledger.errors import InvalidInput
from ledger.offchain import BatchCommitment, SignedReceipt
from ledger.transactions import CheckedTransaction
from node.offchain.access_feed import AccessFeed, Trouble, operation_of
from node.offchain.statuses import RequestStatus, SendOutcome
from records.access_entries import entry_hash
from records.access_log import Access, AccessLog
from records.requests import RefusalReason
from tests.node.offchain_kit import CHAIN, CONTRACT, World

H1, H2 = testing.key(1), testing.key(2)
PATIENTS = [testing.key(50 + number).address for number in range(40)]
READER = testing.key(3)


def access(patient: bytes, number: int = 0) -> Access:
    return Access(
        patient=patient,
        grant_id=b"g" * 32,
        records=(0,),
        requester=READER.public_key,
        purpose="TREAT",
        emergency=None,
        reason=RefusalReason.REVOKED if number % 3 == 2 else None,
        request_digest=number.to_bytes(32, "big"),
        fragments_digest=bytes(32),
        head_height=number,
        timestamp_ms=1_000 + number,
    )


def opened(number: int = 0, *writers: PrivateKey) -> OpenContract:
    listed = tuple(sorted(one.address for one in writers or (H1, H2)))
    return OpenContract(number, "access_log", 1, encode(AccessLogParameters(listed)), 20_000)


class Way:
    """The way to the operator: to the one that runs, with whatever a test does to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[bytes] = []
        self.instead: Callable[[bytes], list[SendOutcome] | None] = lambda _raw: None
        self.after: Callable[[], None] = lambda: None

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> list[SendOutcome]:
        self.sent += raws
        told = self.instead(raws[0])
        if told is not None:
            await trio.lowlevel.checkpoint()
            return told
        outcomes = await self.world.operating.send(contract_id, raws)
        self.after()
        return outcomes

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        await trio.lowlevel.checkpoint()
        return self.world.operating.next_sequence(contract_id, sender)

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        return await self.world.operating.status_of(contract_id, sender, sequence)


class Hospital:
    """An institution's log on a disk, and its feed; `restarted` is what a kill leaves."""

    def __init__(self, folder: Path, world: World, key: PrivateKey = H1) -> None:
        self.path, self.world, self.key = folder / "access-log.sqlite", world, key
        self.way = Way(world)
        self.held: list[SignedReceipt] = []
        self.log = AccessLog(self.path, chain_id=CHAIN, key=key)
        self.feed = self.start()

    def start(self, configured: str = CONTRACT.hex()) -> AccessFeed:
        self.feed = AccessFeed(
            access_log=self.log,
            store=self.world.chain.store,
            chain_id=CHAIN,
            key=self.key,
            operators=self.way,
            fetch=self.fetch,
            configured=configured,
            hold=self.hold,
        )
        self.world.chain.told[:] = [tell for tell in self.world.chain.told if tell != self._committed]
        self.world.chain.told.append(self._committed)
        return self.feed

    async def hold(self, signed: SignedReceipt) -> None:
        await trio.lowlevel.checkpoint()
        self.held.append(signed)
        raise InvalidInput("this node does not watch this contract")

    def _committed(self, transactions: Sequence[CheckedTransaction]) -> None:
        self.feed.committed(tuple(transactions))

    async def fetch(self, commitment: BatchCommitment) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.world.published.get(commitment.data_digest)

    def restarted(self) -> AccessFeed:
        self.log.close()
        self.log = AccessLog(self.path, chain_id=CHAIN, key=self.key)
        return self.start()

    def append(self, count: int, patients: int = 1) -> None:
        begin = len(self.log)
        for number in range(begin, begin + count):
            self.log.append(access(PATIENTS[number % patients], number))

    async def feed_all(self) -> None:
        """Step until nothing is left to do."""
        while await self.feed.step():
            pass

    async def persist(self) -> None:
        """As the standing task does: go on after each trouble, until nothing waits."""
        for _ in range(500):
            try:
                await self.feed_all()
            except Trouble:
                await trio.sleep(0.01)
                continue
            if not self.log.cursor.owed(1):
                return
        raise AssertionError(f"still waiting: {self.feed.status()}")

    def digests(self) -> list[bytes]:
        return [entry_hash(signed.entry) for signed in self.log.entries(0, 10_000)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.chain.open(opened())
    return made


@pytest.fixture
def hospital(tmp_path: Path, world: World) -> Iterator[Hospital]:
    made = Hospital(tmp_path, world)
    yield made
    made.log.close()


def logged(world: World, contract_id: bytes = CONTRACT) -> list[tuple[bytes, LogAccess]]:
    """All that the contract has, by its published batches: writer and operation."""
    decode = msgspec.msgpack.Decoder(LogAccess).decode
    found: list[tuple[bytes, LogAccess]] = []
    for batch in world.chain.batches(contract_id):
        for item in world.data(batch.commitment).items:
            content = msgspec.msgpack.decode(item.request)[1]
            found += [(address_of(content[1]), decode(operation)) for operation in content[3]]
    return found


async def all_logged(world: World, hospital: Hospital) -> None:
    """Every entry stands in the contract exactly once, in the order of the log, and the operator was honest."""
    await world.all_committed()
    entries = [signed.entry for signed in hospital.log.entries(0, 10_000)]
    assert logged(world) == [(hospital.key.address, operation_of(entry)) for entry in entries]
    world.check(hospital.held)
