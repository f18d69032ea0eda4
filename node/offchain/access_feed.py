# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings this institution's access log to the network's access-log contract: every entry, each once, within a second.

    entry durable ─▶ request written down ─▶ sent to the operator ─▶ receipt ─▶ taken off

R1 No entry is lost: the cursor moves only together with a request that is written down, and the request goes only with a receipt.
R2 No entry is logged twice in one contract: after a crash the same bytes are sent, which the operator answers as it did. When it cannot,
   the published batch at the request's place tells whether it is there.
R3 What fraud has undone is owed again, to the contract that comes next.

Which contract: the one that the configuration names; else the one that was fed before, as long as it is open; else the only open one
that names this institution as a writer and is operated by a registered institution. Anybody can open a contract: one that strangers
operate is never chosen by itself, and a second one that appears later changes nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog
import trio

from contracts.batch_data import open_data
from contracts.execution import outcomes_digest
from contracts.machines.access_log import ACCESS_LOG, AccessLogParameters, LogAccess
from contracts.operator import Answer
from contracts.requests import sign_request
from ledger.bodies import RegisterInstitution
from ledger.codec import decoder
from ledger.contract_bodies import ChallengeBatch, CloseContract, FreezeContract, OpenContract
from ledger.contract_queries import batch_at, contract_at, contracts_from, final_count
from ledger.contract_state import Contract
from ledger.crypto.keys import PrivateKey, address_of
from ledger.errors import InvalidInput, SpchainError
from ledger.offchain import (
    MAX_OPERATIONS,
    MAX_PARAMETERS_BYTES,
    BatchCommitment,
    SignedReceipt,
    is_signed_receipt,
    request_digest,
)
from ledger.state import INSTITUTIONS, State
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.access_chain import MAX_LIGHT_PATIENTS
from node.clock import now_ms
from node.offchain.statuses import RequestStatus, SendOutcome
from records.access_entries import AccessEntry, entry_hash
from records.access_log import AccessLog
from records.feed_cursor import FeedState, UnderWay

log = structlog.get_logger()

POLL_S = 0.25
"""Between two looks for new entries: a log's length, in memory."""
RETRY_S = 1.0
"""First pause after a failure; it doubles up to `MAX_RETRY_S`."""
MAX_RETRY_S = 5.0
SILENT_MS = 60_000
"""An operator that has not committed what it has promised so long ago is told of in the status."""
LOOK_SHARE = 50
"""A look at all contracts is followed by a pause of so many times its length: anybody can open contracts, each an occasion to look."""
_PAGE = 256
OFF = "off"
"""In the configuration, in place of a contract: no entry leaves this node."""

_decode_parameters = decoder(AccessLogParameters, MAX_PARAMETERS_BYTES)
# What may end or begin a contract, or make its operator eligible.
_CHANGES = (OpenContract, CloseContract, FreezeContract, ChallengeBatch, RegisterInstitution)
_T = TypeVar("_T")


class Operators(Protocol):
    """The way to a contract's operator, here or at another node."""

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Hand requests in; one outcome each."""
        ...

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        """Return the number of a sender's next operation."""
        ...

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        """Return how far the request with a sender's operation has come; None for one that the operator does not know."""
        ...


class Trouble(SpchainError):
    """The feed cannot go on at present; the text says why."""


class AccessFeed:
    """The standing task. Calls other than `run` are for the thread of the event loop."""

    def __init__(
        self,
        *,
        access_log: AccessLog,
        store: Store,
        chain_id: bytes,
        key: PrivateKey,
        operators: Operators,
        fetch: Callable[[BatchCommitment], Awaitable[bytes]],
        configured: str = "",
        hold: Callable[[SignedReceipt], Awaitable[None]] | None = None,
    ) -> None:
        """Begin where the log's cursor is.

        Args:
            access_log: this institution's log.
            store: what is committed.
            chain_id: the chain.
            key: the institution's account key, which signs requests.
            operators: the way to operators.
            fetch: gives the published data of a batch; raises `NotFound`.
            configured: identifier of the contract in hexadecimal, `OFF`, or empty to find it.
            hold: takes receipts, to challenge a batch that breaks one; raises for those that it cannot watch.
        """
        self._log, self._cursor = access_log, access_log.cursor
        self._store, self._chain_id, self._key = store, chain_id, key
        self._operators, self._fetch, self._hold = operators, fetch, hold
        self._configured = configured
        self._state: FeedState | None = None
        self._contract_id: bytes | None = None
        self._looks_for_contract = self._looks_at_batches = True
        self._next_look_s = 0.0
        self._operations = MAX_OPERATIONS
        self._promised = (0, -1)
        self._trouble = ""
        self._why_off = "starting"

    # ------------------------------------------------------------------ what it tells

    def status(self) -> str:
        """Return "ok", "off" with the reason, or how many entries wait and why: for people."""
        if self._trouble:
            return f"{self.waiting} entries wait: {self._trouble}"
        if self._contract_id is None:
            return f"off: {self._why_off}"
        since_ms, batch = self._promised
        contract = contract_at(self._store, self._contract_id)
        if contract is not None and contract.batch_count <= batch and now_ms() - since_ms > SILENT_MS:
            return f"the operator has not committed batch {contract.batch_count}, which it has promised"
        return "ok"

    @property
    def contract_id(self) -> bytes | None:
        """The contract that is fed; None while there is none."""
        return self._contract_id

    @property
    def waiting(self) -> int:
        """Entries that no receipt stands for yet; those owed again are not among them."""
        state = self._state
        if state is None:
            return len(self._log)
        # A log that was put back from an older copy is shorter than what was sent of it.
        untouched = max(0, len(self._log) - state.next_number)
        return untouched + (len(state.under_way.numbers) if state.under_way else 0)

    def committed(self, transactions: tuple[CheckedTransaction, ...]) -> None:
        """A microblock is stored."""
        self._looks_at_batches = True
        if any(isinstance(checked.transaction.body, _CHANGES) for checked in transactions):
            self._looks_for_contract = True

    # ------------------------------------------------------------------ the standing task

    async def run(self) -> None:
        """Feed the contract until cancelled."""
        pause_s = RETRY_S
        while True:
            try:
                goes_on = await self.step()
            except SpchainError as error:
                if not self._trouble:
                    log.warning("accesses cannot be logged in the contract yet", why=str(error))
                self._trouble = str(error)[:512]
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_RETRY_S)
                continue
            if self._trouble:
                log.info("accesses are logged in the contract again")
            self._trouble, pause_s = "", RETRY_S
            if not goes_on:
                await trio.sleep(POLL_S)

    async def step(self) -> bool:
        """Do one thing; tells whether there is more to do at once. Raises what `run` waits for the end of."""
        if self._state is None:
            self._state = await self._in_thread(self._cursor.state)
        if self._looks_for_contract and trio.current_time() >= self._next_look_s:
            self._looks_for_contract = False
            try:
                await self._choose()
            except BaseException:
                self._looks_for_contract = True
                raise
        if self._contract_id is None:
            return False
        contract = contract_at(self._store, self._contract_id)
        if contract is None:
            # The node has chosen another chain, and has not come to where the contract was opened.
            self._contract_id, self._looks_for_contract = None, True
            return False
        if self._looks_at_batches:
            self._looks_at_batches = False
            await self._settle(contract)
        if self._state.under_way is None and not await self._begin(contract):
            return False
        await self._send(contract)
        return True

    async def _in_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await trio.to_thread.run_sync(call, *arguments)

    async def _settle(self, contract: Contract) -> None:
        rules = self._store.genesis.parameters.contracts
        final = final_count(
            contract,
            lambda number: batch_at(self._store, contract, number),
            self._store.head().height,
            rules.window_microblocks,
        )
        await self._in_thread(self._cursor.settle, final)

    # ------------------------------------------------------------------ which contract

    async def _choose(self) -> None:
        assert self._state is not None, "the cursor was read"
        if self._configured == OFF:
            self._contract_id, self._why_off = None, "the configuration says so"
            return
        found = self._configured_one() if self._configured else await self._the_only_one()
        if found is None:
            self._contract_id = None
            return
        contract_id = found.terms.contract_id
        if contract_id != self._state.contract_id:
            former = contract_at(self._store, self._state.contract_id)
            kept = 0 if former is None else former.batch_count
            self._state = await self._in_thread(self._cursor.move, self._state, contract_id, kept)
            log.info("accesses are logged in a contract", contract=contract_id.hex())
        self._contract_id = contract_id

    def _configured_one(self) -> Contract | None:
        found = contract_at(self._store, bytes.fromhex(self._configured))
        if found is None:
            self._why_off = f"contract {self._configured} is not on the chain here yet"
            return None
        writers = _writers(found)
        if writers is None or (writers and self._key.address not in writers):
            self._why_off = f"contract {self._configured} is no access log that takes entries of this institution"
            return None
        if found.status != "open":
            self._why_off = f"contract {self._configured} is {found.status}; name another one"
            return None
        return found

    async def _the_only_one(self) -> Contract | None:
        assert self._state is not None, "the cursor was read"
        former = contract_at(self._store, self._state.contract_id)
        if former is not None and former.status == "open":
            return former
        eligible: list[Contract] = []
        began_s = trio.current_time()
        start: bytes | None = b""
        while start is not None:
            page = list(contracts_from(self._store, start, _PAGE))
            eligible += filter(self._is_eligible, page)
            start = page[-1].terms.contract_id + b"\0" if len(page) == _PAGE else None
            await trio.lowlevel.checkpoint()
        self._next_look_s = trio.current_time() + LOOK_SHARE * (trio.current_time() - began_s)
        if len(eligible) == 1:
            return eligible[0]
        self._why_off = "no contract of a registered institution names this one as a writer"
        if eligible:
            named = ", ".join(one.terms.contract_id.hex() for one in eligible[:4])
            self._why_off = (
                f"{len(eligible)} contracts name this institution: set access_log_contract to one of {named}"
            )
            log.warning("accesses are not logged in a contract", why=self._why_off)
        return None

    def _is_eligible(self, contract: Contract) -> bool:
        if contract.status != "open" or self._key.address not in (_writers(contract) or ()):
            return False
        operator = address_of(contract.terms.operator)
        return operator == self._key.address or State(self._store).get(INSTITUTIONS, operator) is not None

    # ------------------------------------------------------------------ sending

    async def _begin(self, contract: Contract) -> bool:
        """Write down the next request; tells whether there is anything to log."""
        assert self._state is not None, "the cursor was read"
        entries = await self._in_thread(self._next_entries, self._state, self._operations)
        if not entries:
            return False
        contract_id = contract.terms.contract_id
        first = await self._operators.next_sequence(contract_id, self._key.address)
        operations = [operation_of(entry) for entry in entries]
        raw = sign_request(self._chain_id, self._key, contract_id, first, operations)
        under_way = UnderWay(first, tuple(entry.number for entry in entries), raw)
        self._state = await self._in_thread(self._cursor.begin, self._state, under_way)
        return True

    def _next_entries(self, state: FeedState, limit: int) -> list[AccessEntry]:
        """Return what is to be logged next, what is owed first; never more patients than one request can be challenged for."""
        owed = self._cursor.owed(limit)
        signed = [one for number in owed for one in self._log.entries(number, 1)]
        signed += self._log.entries(state.next_number, limit - len(signed)) if len(signed) < limit else ()
        entries: list[AccessEntry] = []
        patients: set[bytes] = set()
        for one in signed:
            patients.add(one.entry.patient)
            if len(patients) > MAX_LIGHT_PATIENTS:
                break
            entries.append(one.entry)
        return entries

    async def _send(self, contract: Contract) -> None:
        state = self._state
        assert state is not None, "the cursor was read"
        assert state.under_way is not None, "a request was written down"
        contract_id, under_way = contract.terms.contract_id, state.under_way
        (outcome,) = await self._operators.send(contract_id, [under_way.request])
        if outcome.answer is None or not outcome.accepted:
            if not outcome.retry_ms:
                await self._resolve(contract, under_way)
            raise Trouble(f"the operator does not take them: {outcome.reason}: {outcome.detail}")
        receipt = outcome.answer.signed.receipt
        self._check_answer(contract, under_way, outcome.answer)
        results = zip(under_way.numbers, outcome.answer.outcomes, strict=True)
        refused = [(number, result.code) for number, result in results if not result.is_done]
        self._state = await self._in_thread(
            self._cursor.accept, state, receipt.number, [number for number, _ in refused]
        )
        self._promised = (now_ms(), receipt.number)
        if self._hold is not None:
            with suppress(SpchainError):  # this node watches no contracts, or operates this one itself
                await self._hold(outcome.answer.signed)
        if not refused:
            self._operations = MAX_OPERATIONS
            return
        # Too much for one request, perhaps: what is refused on its own stays owed, and is tried again now and then.
        self._operations = max(1, len(under_way.numbers) // 2)
        raise Trouble(f"the contract has refused {len(refused)} of them: {refused[0][1]}")

    def _check_answer(self, contract: Contract, under_way: UnderWay, answer: Answer) -> None:
        receipt = answer.signed.receipt
        is_right = (
            receipt.contract_id == contract.terms.contract_id
            and receipt.leaf.request_digest == request_digest(under_way.request)
            and receipt.leaf.outcomes_digest == outcomes_digest(answer.outcomes)
            and len(answer.outcomes) == len(under_way.numbers)
            and is_signed_receipt(self._chain_id, contract.terms.operator, answer.signed)
        )
        if not is_right:
            raise Trouble("the operator's receipt is not for what was sent")

    async def _resolve(self, contract: Contract, under_way: UnderWay) -> None:
        """Find out what became of a request that the operator refuses for good: it may have it, or something else in its place."""
        state = self._state
        assert state is not None, "the cursor was read"
        contract_id, own = contract.terms.contract_id, self._key.address
        following = await self._operators.next_sequence(contract_id, own)
        if following > under_way.first_sequence:
            found = await self._operators.status_of(contract_id, own, under_way.first_sequence)
            if found is not None and found.number is not None and found.status != "voided":
                assert found.index is not None, "a batch and a place in it"
                if await self._stands_at(contract, found.number, found.index, under_way.request):
                    self._state = await self._in_thread(self._cursor.accept, state, found.number)
                    return
        self._state = await self._in_thread(self._cursor.drop, state)

    async def _stands_at(self, contract: Contract, number: int, index: int, request: bytes) -> bool:
        batch = batch_at(self._store, contract, number)
        if batch is None:
            raise Trouble(f"batch {number}, which may hold them, is not committed yet")
        # Held against what is committed, whoever gave it.
        data = await self._in_thread(open_data, batch.commitment, await self._fetch(batch.commitment))
        return index < len(data.items) and data.items[index].request == request


def operation_of(entry: AccessEntry) -> LogAccess:
    """Return the operation that logs an entry."""
    return LogAccess(entry.patient, address_of(entry.requester), entry_hash(entry), entry.reason is not None)


def _writers(contract: Contract) -> tuple[bytes, ...] | None:
    """Return who may log into a contract, none for everybody; None when it is no access log."""
    if (contract.terms.machine, contract.terms.version) != (ACCESS_LOG.name, ACCESS_LOG.version):
        return None
    try:
        return _decode_parameters(contract.terms.parameters).writers
    except InvalidInput:
        return None
