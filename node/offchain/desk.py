# SPDX-License-Identifier: GPL-3.0-or-later
"""One contract at its operator's node, through failures of the disk and to the contract's end: recovered, served, asked about.

After a failed append the operator in memory is thrown away and recovered from the disk: its state has run ahead of what is durable.
"""

from collections.abc import Sequence
from functools import partial

import msgspec
import structlog
import trio

from contracts.execution import next_sequence, sequence_key
from contracts.journal import Accepted
from ledger.codec import Uint, decoder
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import Contract
from ledger.errors import InvalidInput, NotFound, SpchainError, StoreError
from ledger.genesis import chain_id
from ledger.offchain import ContractTerms
from node.offchain.committing import Committing
from node.offchain.recovering import OtherOperator, recover
from node.offchain.serving import WAIT_MS, DeskPorts, Ended, Serving, require_open
from node.offchain.statuses import RequestStatus, SendOutcome, long_final, refused, status_at

log = structlog.get_logger()

RECOVER_S = 1.0
"""Pause before an operator is recovered whose journal could not be written or read."""
_decode_sequence = decoder(Uint, 16, name="sequence number", own=True)


class ContractDesk:
    """Operates one contract as long as the node lives."""

    def __init__(self, terms: ContractTerms, ports: DeskPorts) -> None:
        self._terms, self._ports = terms, ports
        self._contract_id = terms.contract_id
        self._chain_id = chain_id(ports.store.genesis)
        within = ports.store.genesis.parameters.contracts.forced_batches
        # What is forced now may find one full batch open after these, and must not be late in the next (R2 in `serving`).
        most = max(1, min(ports.limits.waiting_batches, within - 2))
        self._limits = msgspec.structs.replace(ports.limits, waiting_batches=most)
        self._committing = Committing(
            contract_id=self._contract_id,
            store=ports.store,
            journal=ports.journal,
            publish=ports.publish,
            transactions=ports.transactions,
            is_behind=ports.is_behind,
            disk=ports.disk,
            most_under_way=most,
        )
        self._serving: Serving | None = None
        self._moved = trio.Event()
        self._is_closing = False
        self.trouble = ""
        """Why the contract is not operated; empty while it is."""
        self.ended = ""
        """How the contract has ended; empty while it is open."""

    # ------------------------------------------------------------ for users

    async def send(self, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Take requests; returns when each is durable or refused, in their order."""
        if not raws:
            return []
        serving = self._serving
        if serving is None or self._is_closing:
            return [self._stopped() for _ in raws]
        if self._ports.is_behind():
            detail = "this operator's node has to catch up with the chain first; try again later"
            return [refused("catching_up", detail, WAIT_MS) for _ in raws]
        return await serving.take(raws)

    def next_sequence(self, sender: bytes) -> int:
        """Return the number of a sender's next operation. Raises `NotFound` while the contract is not operated."""
        if self._serving is None:
            raise NotFound(self._stopped().detail)
        return next_sequence(self._serving.operator.state, sender)

    async def status_of(self, sender: bytes, sequence: int) -> RequestStatus | None:
        """Return how far a sender's operation has come, None for one that was not accepted. Raises `NotFound`, `StoreError`."""
        journal, store, serving = self._ports.journal, self._ports.store, self._serving
        if serving is not None:
            if sequence >= next_sequence(serving.operator.state, sender):
                return None
            found = serving.awaited.status_of(sender, sequence)
            if found is not None:
                return found

        def look() -> tuple[Accepted | None, bytes | None]:
            entry = journal.find(self._contract_id, sender, sequence)
            return entry, None if entry else journal.state_value(self._contract_id, sequence_key(sender))

        entry, value = await trio.to_thread.run_sync(look, limiter=self._ports.disk)
        if entry is None:
            # All lines since the border are there; those of final batches are gone after a while.
            is_old = value is not None and sequence < _decode_sequence(value)
            return long_final() if is_old else None
        contract = self._contract()
        batch = None if contract is None else batch_at(store, contract, entry.number)
        window = store.genesis.parameters.contracts.window_microblocks
        return status_at(entry.number, entry.index, contract, batch, height=store.head().height, window=window)

    # ------------------------------------------------------------ for the node

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is taken because the contract is about to be closed."""
        return self._is_closing

    def set_closing(self, closing: bool) -> None:
        """Take no more requests, or take them again."""
        self._is_closing = closing
        if self._serving is not None:
            self._serving.is_closing = closing
            self._serving.wake()

    def has_ended(self) -> bool:
        """Tell whether the contract is open no more."""
        return bool(self.ended)

    def is_drained(self) -> bool:
        """Tell whether all that was promised and all that was forced stands on the chain."""
        contract = self._contract()
        return self._serving is not None and contract is not None and self._serving.is_drained(contract)

    def committed(self) -> None:
        """The chain has moved."""
        if self._serving is not None:
            self._serving.wake()
        else:
            self._committing.wake()
        self._moved.set()
        self._moved = trio.Event()

    async def moved(self) -> None:
        """Wait until the chain moves."""
        await self._moved.wait()

    async def run(self) -> None:
        """Operate the contract until it ends or the node stops; recovers from failures of the disk."""
        while not self.ended:
            try:
                await self._operate()
            except StoreError as error:
                self._log_trouble("an operator's journal fails; it is recovered from the disk", error)
                await trio.sleep(RECOVER_S)
            except (OtherOperator, InvalidInput) as error:
                self._log_trouble("a contract cannot be operated here", error)
                await self._until_ended()
            except Ended as end:
                self.ended, self.trouble = str(end), ""
                log.info("a contract has ended", contract=self._contract_id.hex(), how=self.ended)
        try:
            await self._committing.run_down()
        except StoreError as error:
            # It takes room and does no harm; the next start tries again.
            log.warning("an ended contract's lines stay", contract=self._contract_id.hex(), error=str(error))

    # ------------------------------------------------------------ inside

    async def _operate(self) -> None:
        ports = self._ports
        # What an operator before this one has queued becomes durable or fails before the disk is read.
        await ports.writer.settled(self._contract_id)
        contract = self._contract()
        while contract is None:
            # The node has chosen another chain and has not come to where it opens the contract.
            await self.moved()
            contract = self._contract()
        require_open(contract)
        load = partial(
            recover,
            ports.journal,
            chain_id=self._chain_id,
            contract=contract,
            key=ports.key,
            machines=ports.machines,
            limits=self._limits,
        )
        found = await trio.to_thread.run_sync(load, limiter=ports.disk)
        self._committing.begin(found.border, found.batches)
        self._serving = serving = Serving(self._terms, ports, found, self._committing)
        serving.is_closing = self._is_closing
        self.trouble = ""
        log.info("a contract is operated", contract=self._contract_id.hex(), batch=found.operator.number)
        try:
            await serving.run()
        finally:
            self._serving = None

    async def _until_ended(self) -> None:
        while (contract := self._contract()) is None or contract.status == "open":
            await self.moved()

    def _contract(self) -> Contract | None:
        return contract_at(self._ports.store, self._contract_id)

    def _log_trouble(self, what: str, error: SpchainError) -> None:
        self.trouble = str(error)
        log.error(what, contract=self._contract_id.hex(), error=self.trouble)

    def _stopped(self) -> SendOutcome:
        identifier = self._contract_id.hex()
        if self.ended:
            return refused("contract_ended", f"contract {identifier} {self.ended}")
        if self._is_closing:
            detail = f"contract {identifier} is being closed, and goes on if that fails; try again until it is certain"
            return refused("closing", detail, WAIT_MS)
        if self.trouble:
            return refused("not_operating", f"contract {identifier} is not operated: {self.trouble}", WAIT_MS)
        return refused("stopped", f"the operator of contract {identifier} is starting; try again soon", WAIT_MS)
