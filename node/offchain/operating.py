# SPDX-License-Identifier: GPL-3.0-or-later
"""All contracts that this node's key operates: found on the chain, recovered from the journal, served."""

from collections.abc import Callable, Sequence

import structlog
import trio

from contracts.operator import OperatorLimits
from contracts.registry import Registry
from ledger.bodies import Body
from ledger.contract_bodies import CloseContract, OpenContract
from ledger.contract_queries import contract_at, contracts_from
from ledger.contract_state import contract_id_of
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import ContractTerms
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.offchain.committing import Sender
from node.offchain.desk import ContractDesk
from node.offchain.group_commit import GroupCommit
from node.offchain.journal_file import JournalFile
from node.offchain.senders import Senders
from node.offchain.serving import DeskPorts
from node.offchain.statuses import RequestStatus, SendOutcome, refused
from node.submission import SubmitOutcome

log = structlog.get_logger()

THREADS = 2
"""Threads that check signatures: more would only take turns."""
DISK_THREADS = 2
"""Threads that read the journal or publish: the file takes one transaction at a time, and publishing has a file of its own."""
PAGE_CONTRACTS = 256
"""Contracts looked at before the event loop gets its turn."""


class Operating:
    """The operator's side of this node."""

    def __init__(
        self,
        *,
        store: Store,
        key: PrivateKey,
        machines: Registry,
        journal: JournalFile,
        publish: Callable[[bytes, bytes], None],
        transactions: Sender,
        is_behind: Callable[[], bool],
        clock_ms: Callable[[], int],
        limits: OperatorLimits | None = None,
        senders: Senders = "known",
    ) -> None:
        """Take what operating needs; see `DeskPorts`. `key` is the node's, and pays for the commitments."""
        self._store, self._key = store, key
        self._transactions = transactions
        self._writer = GroupCommit(journal.append)
        self._ports = DeskPorts(
            store=store,
            key=key,
            machines=machines,
            journal=journal,
            writer=self._writer,
            publish=publish,
            transactions=transactions,
            is_behind=is_behind,
            clock_ms=clock_ms,
            threads=trio.CapacityLimiter(THREADS),
            disk=trio.CapacityLimiter(DISK_THREADS),
            limits=limits or OperatorLimits(),
            senders=senders,
        )
        self._desks: dict[bytes, ContractDesk] = {}
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------ for users

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Take requests of one contract; returns when each is durable or refused, in their order."""
        desk = self._desks.get(contract_id)
        if desk is None:
            return [refused("contract_unknown", _unknown(contract_id)) for _ in raws]
        return await desk.send(raws)

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        """Return how far a sender's operation has come; None for one that was not accepted. Raises `NotFound`, `StoreError`."""
        return await self._desk(contract_id).status_of(sender, sequence)

    def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        """Return the number of a sender's next operation. Raises `NotFound` while the contract is not operated here."""
        return self._desk(contract_id).next_sequence(sender)

    def operates(self, contract_id: bytes) -> bool:
        """Tell whether a contract is this node's to operate, or was."""
        return contract_id in self._desks

    @property
    def count(self) -> int:
        """How many contracts are this node's to operate."""
        return sum(not desk.has_ended() for desk in self._desks.values())

    def troubles(self) -> dict[bytes, str]:
        """Return the contracts that are not operated though they should be, and why."""
        return {contract_id: desk.trouble for contract_id, desk in self._desks.items() if desk.trouble}

    async def close(self, contract_id: bytes) -> SubmitOutcome:
        """Take no more requests, bring all that was promised to the chain, then close the contract there; returns how it was submitted.

        Takes as long as the chain does. When it is cancelled or refused, the contract goes on. Raises `NotFound`, `InvalidInput`.
        """
        desk = self._desk(contract_id)
        if desk.has_ended() or desk.is_closing:
            raise InvalidInput(f"contract {contract_id.hex()} {desk.ended or 'is being closed already'}")
        if desk.trouble:
            raise InvalidInput(f"contract {contract_id.hex()} is not operated: {desk.trouble}")
        desk.set_closing(True)
        purpose = ("close", contract_id)
        try:
            while not desk.is_drained():
                await desk.moved()
            outcome = await self._transactions.send(purpose, CloseContract(contract_id))
            while outcome.accepted and not desk.has_ended() and self._transactions.is_under_way(purpose):
                await desk.moved()
            return outcome
        finally:
            # If the chain did not take it, something was forced in between: that is answered, and users may go on.
            desk.set_closing(False)

    # ------------------------------------------------------------ for the node

    def committed(self, transactions: Sequence[CheckedTransaction]) -> None:
        """A microblock is stored."""
        for checked in transactions:
            body: Body = checked.transaction.body
            if isinstance(body, OpenContract) and checked.transaction.sender == self._key.public_key:
                opened = contract_at(self._store, contract_id_of(self._key.public_key, body.number))
                if opened is not None:
                    self._operate(opened.terms)
        for desk in self._desks.values():
            desk.committed()

    async def run(self) -> None:
        """Operate all contracts of this key until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.run)
            self._nursery = nursery
            for desk in self._desks.values():
                nursery.start_soon(desk.run)
            await self._find()

    async def _find(self) -> None:
        """Find this key's contracts among all that the chain has."""
        start: bytes | None = b""
        while start is not None:
            page = list(contracts_from(self._store, start, PAGE_CONTRACTS))
            for contract in page:
                if contract.terms.operator == self._key.public_key:
                    self._operate(contract.terms)
            start = page[-1].terms.contract_id + b"\0" if len(page) == PAGE_CONTRACTS else None
            await trio.lowlevel.checkpoint()

    def _operate(self, terms: ContractTerms) -> None:
        if terms.contract_id in self._desks:
            return
        desk = self._desks[terms.contract_id] = ContractDesk(terms, self._ports)
        if self._nursery is not None:
            self._nursery.start_soon(desk.run)

    def _desk(self, contract_id: bytes) -> ContractDesk:
        desk = self._desks.get(contract_id)
        if desk is None:
            raise NotFound(_unknown(contract_id))
        return desk


def _unknown(contract_id: bytes) -> str:
    return f"contract {contract_id.hex()} is not operated by this node; ask the one that its terms name"
