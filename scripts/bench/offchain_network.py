# SPDX-License-Identifier: GPL-3.0-or-later
"""A micro-fees contract on a local network with users who hold credits in it, and who sees how far its batches have come."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from contracts.batch_data import BatchData, check_data, leaf_of
from contracts.execution import MACHINE_PREFIX
from contracts.machines.micro_fees import MicroFeesParameters, Pay, balance_key
from contracts.requests import sign_request
from ledger.bodies import Transfer
from ledger.codec import decoder, encode
from ledger.contract_bodies import FundContract, OpenContract
from ledger.contract_state import contract_id_of
from ledger.crypto.keys import PrivateKey
from ledger.errors import SpchainError
from ledger.offchain import BatchCommitment, is_signed_receipt
from ledger.partial_tree import WitnessEntry
from ledger.state_tree import verify_state_proof
from node.actions import Actor, submit_and_wait
from node.api import contract_models
from node.client import NodeClient
from scripts.bench.network import Bench
from scripts.bench.offchain_load import Receipted, Signed, decode_receipt

USER_MICROCREDIT = 10_000
"""What each user holds in the contract."""
PAYMENT_MICROCREDIT = 1
BOND_MICROCREDIT = 10_000_000
PAID_AT_ONCE = 16
"""Users who get their credits by one request: each payment touches two state entries, and a request must fit into a challenge."""
POLL_S = 0.1
"""Resolution of the times at which batches are seen."""
PATIENCE_S = 60.0
_decode_commitment = decoder(BatchCommitment, 4096, name="commitment", own=True)
_decode_entry = decoder(WitnessEntry, 65_536, name="state entry", own=True)


@dataclass
class User:
    """Someone with credits in the contract, who signs in advance."""

    key: PrivateKey
    """The user's key."""
    sequence: int = 0
    """Number of the next operation."""


@dataclass
class OffchainBench:
    """An open contract, operated by the first node."""

    bench: Bench
    """The network."""
    contract_id: bytes = b""
    """The contract."""
    users: list[User] = field(default_factory=list)
    """Users with credits in it."""

    @property
    def operator_url(self) -> str:
        """Base of the operator's API."""
        return self.bench.urls[0]

    @property
    def chain_id(self) -> bytes:
        """The chain."""
        return bytes.fromhex(self.bench.devnet.manifest.chain_id)

    def open(self, users: int) -> None:
        """Open the contract, pay credits in, and give each user some."""
        identity = self.bench.devnet.identity(0)
        self.users = [User(PrivateKey(secrets.token_bytes(32))) for _ in range(users)]
        total = users * USER_MICROCREDIT
        parameters = encode(MicroFeesParameters(USER_MICROCREDIT))
        with self.bench.devnet.client(0) as client:
            owner = Actor(client, identity)
            owner.commit(OpenContract(0, "micro_fees", 1, parameters, BOND_MICROCREDIT))
            self.contract_id = contract_id_of(identity.public.public_key, 0)
            owner.commit(FundContract(self.contract_id, identity.address, total))
            self._await(client, lambda contract: contract.answered_count == 1)
            sequence = last = 0
            for first in range(0, users, PAID_AT_ONCE):
                payments = [
                    Pay(user.key.address, USER_MICROCREDIT, bytes(32))
                    for user in self.users[first : first + PAID_AT_ONCE]
                ]
                raw = sign_request(self.chain_id, identity.signing, self.contract_id, sequence, payments)
                sequence += len(payments)
                (outcome,) = client.contracts.send(self.contract_id, [raw])
                assert outcome.receipt is not None, f"credits are refused: {outcome.reason}: {outcome.detail}"
                last = decode_receipt(outcome.receipt).receipt.number
            # Nothing of it is under way any more when measuring begins.
            self._await(client, lambda contract: contract.batch_count > last)

    def _await(self, client: NodeClient, reached: Callable[[contract_models.Contract], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not reached(client.contracts.contract(self.contract_id)):
            assert time.monotonic() < deadline_s, "the contract's first batches are not committed; see the nodes' logs"
            time.sleep(POLL_S)

    def sign(
        self, count: int, rate_per_s: float, operations: int, recipients: int, gateways: int
    ) -> list[list[Signed]]:
        """Sign requests, each due at its time, the users one after the other; returns those of each gateway.

        Each operation pays one of the network's institutions; the payments of a request go to so many different ones.
        """
        payees = [self.bench.devnet.identity(index).address for index in range(len(self.bench.urls))]
        by_gateway: list[list[Signed]] = [[] for _ in range(gateways)]
        for number in range(count):
            place = number % len(self.users)
            user = self.users[place]
            payments = [
                Pay(payees[(place + item % recipients) % len(payees)], PAYMENT_MICROCREDIT, secrets.token_bytes(32))
                for item in range(operations)
            ]
            raw = sign_request(self.chain_id, user.key, self.contract_id, user.sequence, payments)
            user.sequence += operations
            by_gateway[place % gateways].append(Signed(raw, number / rate_per_s))
        return by_gateway

    def keep_moving(self, watch: "BatchWatch", until: int) -> None:
        """Commit transfers, one after the other, until so many batches are final: an idle network makes a microblock every ten seconds."""
        deadline_s = time.monotonic() + PATIENCE_S
        sender, recipient = self.bench.senders[-1][0], self.bench.senders[-1][1].key.address
        with self.bench.devnet.client(len(self.bench.urls) - 1) as client:
            while watch.final_count < until and time.monotonic() < deadline_s:
                submit_and_wait(client, [self.bench.sign(sender, Transfer(recipient, 1))])
                time.sleep(POLL_S)

    # ------------------------------------------------------------ afterwards

    def data(self, batches: Sequence[BatchCommitment]) -> dict[bytes, bytes]:
        """Return the published data of batches, by its digest, from a node that is not the operator's."""
        with self.bench.devnet.client(1) as client:
            return {item.data_digest: client.contracts.data(self.contract_id, item.number) for item in batches}

    def honoured(
        self, receipted: Sequence[Receipted], batches: Sequence[BatchCommitment], data: dict[bytes, bytes]
    ) -> int:
        """Return how many receipts are signed by the operator and kept by a committed batch, to the last bit."""
        operator = self.bench.devnet.identity(0).public.public_key
        opened: dict[int, BatchData] = {item.number: check_data(item, data[item.data_digest]) for item in batches}
        count = 0
        for one in receipted:
            signed = one.signed()
            receipt, batch = signed.receipt, opened.get(signed.receipt.number)
            count += (
                receipt.contract_id == self.contract_id
                and batch is not None
                and receipt.index < len(batch.items)
                and batch.items[receipt.index].request == one.raw
                and leaf_of(batch.items[receipt.index]) == receipt.leaf
                and is_signed_receipt(self.chain_id, operator, signed)
            )
        return count

    def followed(self, last: BatchCommitment) -> int:
        """Return how many nodes prove a balance at the end of a batch: their watchers have executed all up to it."""
        key = MACHINE_PREFIX + balance_key(self.bench.devnet.identity(0).address)
        deadline_s, count = time.monotonic() + PATIENCE_S, 0
        with self.bench.devnet.clients() as clients:
            for client in clients:
                while True:
                    try:
                        answer = client.contracts.value_proof(self.contract_id, last.number, key)
                    except SpchainError:
                        if time.monotonic() > deadline_s:
                            break
                        time.sleep(POLL_S)
                    else:
                        entry = _decode_entry(answer.entry)
                        count += verify_state_proof(last.new_root, key, entry.value, entry.proof)
                        break
        return count


@dataclass(frozen=True)
class Seen:
    """A batch as an observer saw it come."""

    commitment: BatchCommitment
    """The batch."""
    height: int
    """Height that committed it."""
    committed_s: float
    """When it was first seen committed, by `time.perf_counter`."""


class BatchWatch:
    """Looks at a contract through a node that is not the operator's, and notes when batches commit and become final."""

    def __init__(self, url: str, contract_id: bytes) -> None:
        self._url, self._contract_id = url, contract_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._first = -1
        self._error: BaseException | None = None
        self.final_count = 0
        self.seen: dict[int, Seen] = {}
        self.final_s: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with NodeClient(self._url) as client:
                while not self._stop.wait(POLL_S):
                    self._look(client)
        except BaseException as error:
            self._error = error
            raise

    def _look(self, client: NodeClient) -> None:
        contract = client.contracts.contract(self._contract_id)
        now_s = time.perf_counter()
        if self._first < 0:
            # What is there already is not measured.
            self._first = contract.batch_count
        following = self._first + len(self.seen)
        if contract.batch_count > following:
            for batch in client.contracts.batches(self._contract_id, following):
                self.seen[batch.number] = Seen(_decode_commitment(batch.commitment), batch.height, now_s)
        for number in range(max(self._first, self.final_count), contract.final_count):
            self.final_s[number] = now_s
        self.final_count = contract.final_count
