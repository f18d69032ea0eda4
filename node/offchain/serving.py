# SPDX-License-Identifier: GPL-3.0-or-later
"""One operator from its recovery to its failure: requests in, lines to the journal, answers out; forced requests; batches cut in time.

    take → intake → signatures checked in a thread → executed → group commit, receipts signed → answers
                                                        ↑
                            what the chain has forced, before anything that comes after

R1 Requests are executed in the order in which they came; those of one call stay together in their order.
R2 What the chain has forced is executed before a batch is noted as committed that the chain took later: with the bound on batches that
   wait for the chain, each forced request gets into a batch that is still in time for it.
R3 After a failed append nothing is answered any more: who waits is told to send again.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import trio

from contracts.execution import WRONG_SEQUENCE, next_sequence
from contracts.journal import Accepted, Cut, JournalEntry
from contracts.operator import AlreadyAccepted, Answer, Batch, Busy, OperatorLimits, Ticket
from contracts.registry import Registry
from contracts.requests import CheckedRequest, check_request
from ledger.contract_queries import contract_at
from ledger.contract_state import Contract
from ledger.crypto.keys import PrivateKey
from ledger.errors import NotFound, SpchainError, StoreError
from ledger.genesis import chain_id
from ledger.offchain import CHAIN, ContractTerms, InvalidRequest
from ledger.store import Store
from node.offchain.calls import Awaited, AwaitedRequests, Call, Pending
from node.offchain.committing import Committing, Sender
from node.offchain.forced import ForcedRequests
from node.offchain.group_commit import GroupCommit, Write
from node.offchain.journal_file import JournalFile, Line
from node.offchain.recovering import OtherOperator, Recovered
from node.offchain.senders import Senders, is_known
from node.offchain.statuses import SendOutcome, refused

MAX_INTAKE = 2_048
"""Requests that wait to be checked: about a second of work; beyond it users are told that the operator is busy."""
CHUNK_REQUESTS = 128
"""Requests whose signatures are checked in one turn of a worker thread: 8 ms."""
EXECUTED_AT_ONCE = 8
"""Requests executed before consensus gets its turn in the event loop: about 3 ms."""
BUSY_MS, WAIT_MS = 250, 2_000
"""After how long to try again: when a queue is full, and when the node has to recover or to catch up first."""
LOOK_S = 1.0
"""Between two looks at the chain when nothing tells that it has moved, such as while the node catches up."""


class DeskPorts(msgspec.Struct, frozen=True):
    """What a desk needs of the node."""

    store: Store
    """The chain; read in the event loop."""
    key: PrivateKey
    """The operator's key."""
    machines: Registry
    """The machines."""
    journal: JournalFile
    """The journal."""
    writer: GroupCommit
    """Its writer."""
    publish: Callable[[bytes, bytes], None]
    """Keeps a batch's data under its digest, durably; blocks. Raises `StoreError`."""
    transactions: Sender
    """Sends from the operator's account."""
    is_behind: Callable[[], bool]
    """Whether others may have committed what is not here."""
    clock_ms: Callable[[], int]
    """The time, in milliseconds since 1970 (UTC)."""
    threads: trio.CapacityLimiter
    """For checking signatures."""
    disk: trio.CapacityLimiter
    """For reading the journal, publishing, moving on."""
    limits: OperatorLimits
    """How much an operator takes."""
    senders: Senders
    """From whom it takes requests."""


class Ended(SpchainError):
    """The contract is open no more; the text says how it ended."""


class Serving:
    """A recovered operator, serving."""

    def __init__(self, terms: ContractTerms, ports: DeskPorts, found: Recovered, committing: Committing) -> None:
        self._terms, self._ports = terms, ports
        self._contract_id = contract_id = terms.contract_id
        self._chain_id = chain_id(ports.store.genesis)
        self._committing = committing
        self.operator = found.operator
        self.awaited = AwaitedRequests()
        self.is_closing = False
        """Whether the open batch is cut at once and nothing more is taken."""
        self._forced = found.forced
        self._forced_requests = ForcedRequests(ports.store, self._chain_id, contract_id)
        self._is_owing = False
        self._intake: deque[Pending] = deque()
        self._at_hand: deque[Pending] = deque()
        self._filled = trio.Event()
        self._news = trio.Event()
        self._scope = trio.CancelScope()
        self._failure: SpchainError | None = None

    async def take(self, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Take requests; returns when each is durable or refused, in their order."""
        if len(self._intake) + len(raws) > MAX_INTAKE:
            busy = refused("busy", f"{len(self._intake)} requests wait for this operator; try again later", BUSY_MS)
            return [busy for _ in raws]
        call = Call(len(raws))
        self._intake.extend(Pending(call, place, raw) for place, raw in enumerate(raws))
        self._filled.set()
        return await call.wait()

    def wake(self) -> None:
        """The chain has moved, or the contract is being closed."""
        self._news.set()
        self._committing.wake()

    def is_drained(self, contract: Contract) -> bool:
        """Tell whether all that was promised and all that was forced stands on the chain."""
        operator = self.operator
        is_idle = operator.open_since_ms is None and not self._intake and not self._at_hand
        on_chain = (contract.batch_count, contract.answered_count)
        return is_idle and on_chain == (operator.number, contract.forced_count)

    async def run(self) -> None:
        """Serve until something ends it. Raises `StoreError` (the disk), `Ended` (the contract), `OtherOperator` (the chain)."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._guarded, self._run_following)
                nursery.start_soon(self._guarded, self._run_intake)
                nursery.start_soon(self._guarded, self._committing.run)
        finally:
            self._failure = self._failure or StoreError("the node stops")
            stopped = refused("stopped", "this operator was interrupted: send the same request again", WAIT_MS)
            for pending in (*self._at_hand, *self._intake, *self.awaited.pop_all()):
                pending.resolve(stopped)
        raise self._failure

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (StoreError, OtherOperator, Ended) as error:
            self._fail(error)

    def _fail(self, error: SpchainError) -> None:
        self._failure = self._failure or error
        self._scope.cancel()

    # ------------------------------------------------------------ requests

    async def _run_intake(self) -> None:
        while True:
            await self._filled.wait()
            for _ in range(min(CHUNK_REQUESTS, len(self._intake))):
                self._at_hand.append(self._intake.popleft())
            if not self._intake:
                self._filled = trio.Event()
            await self._take_all()
            self._news.set()

    async def _take_all(self) -> None:
        """Check what is at hand in a thread, then execute it in its order."""
        raws = [pending.raw for pending in self._at_hand]
        checked = await trio.to_thread.run_sync(
            check_all, self._chain_id, self._contract_id, raws, limiter=self._ports.threads
        )
        older: list[tuple[Pending, CheckedRequest]] = []
        for number, item in enumerate(checked):
            if number % EXECUTED_AT_ONCE == EXECUTED_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            pending = self._at_hand.popleft()
            if isinstance(item, InvalidRequest):
                pending.resolve(refused("invalid_request", str(item)))
            elif not self._take(pending, item):
                older.append((pending, item))
        if older:
            self._at_hand.extend(pending for pending, _ in older)
            await self._answer_older(older)
            self._at_hand.clear()

    def _take(self, pending: Pending, request: CheckedRequest) -> bool:
        """Execute a request, or refuse it; False for one that was accepted longer ago than memory reaches."""
        operator = self.operator
        following = next_sequence(operator.state, request.sender)
        if request.first_sequence > following:
            detail = f"operations before number {request.first_sequence} are missing; the sender's next is {following}"
            pending.resolve(pending.call.held_up or refused("wrong_sequence", detail))
            return True
        if not (following or self._is_owing or self._admits(request.sender)):
            # What is owed may be this sender's first deposit.
            detail = f"neither the chain nor the contract knows {request.sender.hex()}, and this operator takes nothing from strangers"
            remedy = "transfer a microcredit to it, register it, or force the request on the chain, which costs a fee"
            pending.resolve(refused("sender_unknown", f"{detail}: {remedy}"))
            return True
        try:
            if self._is_owing and request.first_sequence == following:
                raise Busy("what the chain has forced comes first, and waits for the disk or the chain")
            ticket = operator.accept_checked(request, self._ports.clock_ms())
        except Busy as error:
            pending.call.held_up = refused("busy", str(error), BUSY_MS)
            pending.resolve(pending.call.held_up)
        except AlreadyAccepted:
            return False
        except InvalidRequest as error:
            pending.resolve(refused("invalid_request", str(error)))
        else:
            if ticket.answer is not None:
                pending.resolve(SendOutcome(accepted=True, answer=ticket.answer))
            elif ticket.entries:
                self._note(ticket, request, [pending])
            else:
                joined = self.awaited.join(ticket.position, pending)
                assert joined, "what is not durable is awaited"
        return True

    def _admits(self, sender: bytes) -> bool:
        """Tell whether a sender's first request is taken; once it is, the contract's state has the sender, and nobody asks again."""
        ports = self._ports
        if ports.senders == "anyone" or sender == CHAIN:
            # What the chain says comes by way of the chain: this one is no stranger's but invalid.
            return True
        return is_known(ports.store, ports.machines, self._terms, self.operator.state, sender)

    async def _answer_older(self, older: Sequence[tuple[Pending, CheckedRequest]]) -> None:
        """Give the receipts again that the journal still has."""
        operator, journal = self.operator, self._ports.journal

        def look() -> list[Answer | None]:
            found = [journal.find(self._contract_id, one.sender, one.first_sequence) for _, one in older]
            return [
                operator.answer_of(entry) if entry is not None and entry.request == request.raw else None
                for entry, (_, request) in zip(found, older, strict=True)
            ]

        answers = await trio.to_thread.run_sync(look, limiter=self._ports.disk)
        for (pending, request), answer in zip(older, answers, strict=True):
            if answer is not None:
                pending.resolve(SendOutcome(accepted=True, answer=answer))
                continue
            following = next_sequence(operator.state, request.sender)
            detail = f"operation {request.first_sequence} was accepted earlier, with another request or long ago"
            pending.resolve(refused("already_accepted", f"{detail}; the sender's next is {following}"))

    def _note(self, ticket: Ticket, request: CheckedRequest, pending: list[Pending]) -> None:
        """Have an executed request written down."""
        entry = ticket.entries[-1]
        assert isinstance(entry, Accepted), "a ticket's last entry is its request"
        # Forced beside the ordinary way: its numbers belong to the request that came first.
        sender = b"" if entry.is_forced and entry.outcomes[0].code == WRONG_SEQUENCE else request.sender
        count = len(request.operations)
        awaited = Awaited(sender, request.first_sequence, count, entry.number, entry.index, pending)
        self.awaited.add(ticket.position, awaited)
        self._put(ticket.entries, sender, request.first_sequence)

    def _put(self, entries: Sequence[JournalEntry], sender: bytes = b"", first_sequence: int = 0) -> None:
        if self._failure is not None:
            return  # what comes after a gap must not reach the disk; who waits is told to send again
        operator = self.operator
        lines = []
        for entry in entries:
            if isinstance(entry, Cut):
                changes = operator.take_changes(entry.commitment.number)
                lines.append(Line(self._contract_id, entry, changes=changes))
            elif sender:
                lines.append(Line(self._contract_id, entry, sender, first_sequence))
            else:
                lines.append(Line(self._contract_id, entry))
        self._ports.writer.put(
            Write(
                contract_id=self._contract_id,
                lines=tuple(lines),
                sign=operator.answer_of,
                then=partial(self._written, operator.appended),
                failed=self._fail,
            )
        )

    def _written(self, count: int, answers: Sequence[Answer]) -> None:
        """The first `count` entries are durable: let out what rests on them."""
        if self._failure is not None:
            return  # it is given up; who waits is told to send again
        signed = iter(answers)
        for position, what in self.operator.release(count):
            if isinstance(what, Batch):
                self._committing.add(what)
                continue
            answer = next(signed)
            for pending in self.awaited.pop(position):
                pending.resolve(SendOutcome(accepted=True, answer=answer))
        if self._is_owing:
            self._news.set()

    # ------------------------------------------------------------ the chain

    async def _run_following(self) -> None:
        while True:
            self._news = trio.Event()
            contract = contract_at(self._ports.store, self._contract_id)
            if contract is not None:
                await self._follow(contract)
            wait_s = self._cut_in_time()
            with trio.move_on_after(wait_s):
                await self._news.wait()

    async def _follow(self, contract: Contract) -> None:
        """Take over what the chain has forced, then note what it has committed (R2)."""
        require_open(contract)
        operator = self.operator
        self._committing.check(contract, operator.number)
        self._is_owing = not await self._feed(contract)
        operator.committed(contract.batch_count - 1)
        if self._is_owing:
            # It found no room, and there may be some now: nothing that comes later is taken before it.
            self._is_owing = not await self._feed(contract)

    async def _feed(self, contract: Contract) -> bool:
        """Execute what was forced and is not in the journal; False if it has to wait for the disk or the chain."""
        operator, fed = self.operator, 0
        while self._forced < contract.forced_count:
            if fed and fed % EXECUTED_AT_ONCE == 0:
                self._is_owing = True
                await trio.lowlevel.checkpoint()
            fed += 1
            try:
                raw = self._forced_requests.get(contract, self._forced)
            except NotFound as error:
                raise OtherOperator(f"{error}; this journal has not answered for it: it is an old copy") from error
            request = check_request(self._chain_id, self._contract_id, raw)
            try:
                ticket = operator.accept_checked(request, self._ports.clock_ms(), is_forced=True)
            except Busy:
                return False
            except InvalidRequest as error:
                raise OtherOperator(
                    f"forced request {self._forced} does not follow from this journal: {error}"
                ) from error
            self._forced += 1
            self._note(ticket, request, [])
        return True

    def _cut_in_time(self) -> float:
        """Cut the open batch if it is due; returns after how long to look again."""
        operator, now_ms = self.operator, self._ports.clock_ms()
        since_ms = operator.open_since_ms
        if since_ms is None or self._ports.is_behind():
            return LOOK_S
        if not (operator.is_due(now_ms) or self.is_closing):
            return max(since_ms + operator.limits.batch_age_ms - now_ms, 1) / 1000
        try:
            entry = operator.cut(now_ms)
        except Busy:
            return LOOK_S
        assert entry is not None, "the open batch has a first request"
        self._put((entry,))
        return LOOK_S


def check_all(chain_id: bytes, contract_id: bytes, raws: Sequence[bytes]) -> list[CheckedRequest | InvalidRequest]:
    """Check shape and signature of requests, in a worker thread; gives the error in place of a wrong one."""
    checked: list[CheckedRequest | InvalidRequest] = []
    for raw in raws:
        try:
            checked.append(check_request(chain_id, contract_id, raw))
        except InvalidRequest as error:
            checked.append(error)
    return checked


def require_open(contract: Contract) -> None:
    """Raise `Ended` for a contract that is open no more."""
    if contract.status != "open":
        raise Ended(f"was {contract.status} with {contract.batch_count} batches that count")
