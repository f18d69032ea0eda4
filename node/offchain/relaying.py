# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to operators, for users of any node: this node's own operator, or another node's over the network.

What comes back is believed as far as it is proved: a receipt carries the operator's signature over this very request and these outcomes;
how far a batch has come is read from this node's chain. Concurrent calls share messages, since a message costs more than a request.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from contracts.execution import outcomes_digest
from contracts.operator import Answer
from ledger.codec import encode
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import Contract
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.genesis import chain_id
from ledger.offchain import MAX_REQUEST_BYTES, is_signed_receipt, request_digest
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.offchain.calls import Call, Pending
from node.offchain.operating import Operating
from node.offchain.relayed import (
    DETAIL_CHARACTERS,
    MAX_RELAYED,
    REQUEST_SEND,
    REQUEST_STATUS,
    RelayedOutcome,
    RelayedOutcomes,
    RelayedPlace,
    RelayedRequests,
    StatusAnswer,
    StatusQuery,
    decode_outcomes,
    decode_query,
    decode_requests,
    decode_status,
)
from node.offchain.serving import BUSY_MS, WAIT_MS
from node.offchain.statuses import RequestStatus, SendOutcome, long_final, received, refused, status_at
from node.submission import SubmitOutcome
from node.sync import Asker
from p2p.errors import NotAvailable, RequestFailed, UnknownMethod

TIMEOUT_S = 10.0
"""A receipt takes a tenth of a second; whoever waits longer is told to try again, which does no harm."""
MAX_QUEUED = 2_048
"""Requests of this node's users on their way to others' operators: as many as one operator's intake holds."""
MESSAGES_UNDER_WAY = 2
"""Messages to one contract's operator at once: one travels while the other is worked on."""
MAX_AT_WORK = 64
"""Messages of peers that this operator works on: at 64 requests each, twice its intake; further ones are answered "busy"."""
MAX_OF_PEER = 8
"""Of them those of one peer: identities cost something to keep connected, and none may take all the room."""


class _Line:
    """Requests that wait for the operator of one contract."""

    def __init__(self) -> None:
        self.queue: deque[Pending] = deque()
        self.messages = trio.CapacityLimiter(MESSAGES_UNDER_WAY)
        self.users = 0


class Relaying:
    """Operators near and far; also the side of the operator's node that answers others."""

    def __init__(
        self,
        *,
        own: Operating,
        store: Store,
        network: Asker,
        peers: Callable[[], Mapping[bytes, str]],
        checkers: trio.CapacityLimiter,
    ) -> None:
        """`peers` gives the connected nodes' peer identifiers by account address; `checkers` limits threads that check signatures."""
        self.own = own
        self._store = store
        self._chain_id = chain_id(store.genesis)
        self._network = network
        self._peers = peers
        self._checkers = checkers
        self._lines: dict[bytes, _Line] = {}
        self._queued = 0
        self._at_work: Counter[str] = Counter()

    async def run(self) -> None:
        """Do the standing work of this node's operator until cancelled."""
        await self.own.run()

    def committed(self, transactions: Sequence[CheckedTransaction]) -> None:
        """A microblock is stored."""
        self.own.committed(transactions)

    # ------------------------------------------------------------ for users

    def operates(self, contract_id: bytes) -> bool:
        """Tell whether a contract is this node's to operate, or was."""
        return self.own.operates(contract_id)

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Bring requests to the contract's operator, in their order; returns what became of each."""
        if self.own.operates(contract_id):
            return await self.own.send(contract_id, raws)
        contract = contract_at(self._store, contract_id)
        if contract is None:
            detail = f"this node knows no contract {contract_id.hex()}; it may have to catch up"
            return [refused("contract_unknown", detail) for _ in raws]
        if contract.status != "open":
            return [refused("contract_ended", f"contract {contract_id.hex()} was {contract.status}") for _ in raws]
        if self._queued + len(raws) > MAX_QUEUED:
            detail = f"{self._queued} requests wait here for other nodes; try again later"
            return [refused("busy", detail, BUSY_MS) for _ in raws]
        if not raws:
            return []
        return await self._relay(contract, raws)

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        """Return how far a sender's operation has come; None for one that was not accepted.

        Raises `NotFound` when the operator cannot be asked, and `StoreError` when this node's own journal cannot.
        """
        if self.own.operates(contract_id):
            return await self.own.status_of(contract_id, sender, sequence)
        place = (await self._ask(contract_id, sender, sequence)).place
        if place is None:
            return None
        if place.number is None or place.index is None:
            return long_final()
        if place.stage == "received":
            return received(place.number, place.index)
        contract = contract_at(self._store, contract_id)
        batch = None if contract is None else batch_at(self._store, contract, place.number)
        window = self._store.genesis.parameters.contracts.window_microblocks
        height = self._store.head().height
        return status_at(place.number, place.index, contract, batch, height=height, window=window)

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        """Return the number of a sender's next operation. Raises `NotFound` when the operator cannot be asked."""
        if self.own.operates(contract_id):
            return self.own.next_sequence(contract_id, sender)
        following = (await self._ask(contract_id, sender, 0)).next_sequence
        if following is None:
            raise NotFound(f"contract {contract_id.hex()} is not operated at present; try again later")
        return following

    async def close(self, contract_id: bytes) -> SubmitOutcome:
        """Close a contract that this node operates; see `Operating.close`."""
        return await self.own.close(contract_id)

    # ------------------------------------------------------------ to other nodes

    async def _relay(self, contract: Contract, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Have requests sent, with whatever else waits for the same operator."""
        contract_id = contract.terms.contract_id
        line = self._lines.setdefault(contract_id, _Line())
        line.users += 1
        self._queued += len(raws)
        outcomes: list[SendOutcome] = []
        try:
            # One message of a call at a time: the order would be lost between two that travel at once.
            for first in range(0, len(raws), MAX_RELAYED):
                outcomes += await self._relay_part(contract, line, raws[first : first + MAX_RELAYED])
                held_up = next((outcome for outcome in outcomes if outcome.retry_ms), None)
                if held_up is not None:
                    # What follows may rest on it.
                    outcomes += [held_up for _ in raws[len(outcomes) :]]
                    break
            return outcomes
        finally:
            self._queued -= len(raws)
            line.users -= 1
            if not line.users:
                del self._lines[contract_id]

    async def _relay_part(self, contract: Contract, line: _Line, raws: Sequence[bytes]) -> list[SendOutcome]:
        call = Call(len(raws))
        for place, raw in enumerate(raws):
            pending = Pending(call, place, raw)
            if 1 <= len(raw) <= MAX_REQUEST_BYTES:
                line.queue.append(pending)
            else:
                detail = f"a request has 1 to {MAX_REQUEST_BYTES} bytes, not {len(raw)}"
                pending.resolve(refused("invalid_request", detail))
        while line.queue and not call.is_done():
            async with line.messages:
                # Others may have taken these along while this call waited for its turn.
                if line.queue and not call.is_done():
                    await self._send_message(contract, line)
        return await call.wait()

    async def _send_message(self, contract: Contract, line: _Line) -> None:
        group = [line.queue.popleft() for _ in range(min(MAX_RELAYED, len(line.queue)))]
        try:
            outcomes = await self._exchange(contract, [pending.raw for pending in group])
            for pending, outcome in zip(group, outcomes, strict=True):
                pending.resolve(outcome)
        finally:
            # Cancelled: others' requests may be in this message, too. Sending them twice does no harm.
            for pending in group:
                pending.resolve(refused("unreachable", "the message was interrupted; send the request again", BUSY_MS))

    async def _exchange(self, contract: Contract, raws: Sequence[bytes]) -> list[SendOutcome]:
        """Send one message; returns the outcomes, checked."""
        terms = contract.terms
        try:
            peer, answer = await self._request(
                contract, REQUEST_SEND, encode(RelayedRequests(terms.contract_id, tuple(raws)))
            )
        except NotFound as error:
            return [refused("unreachable", str(error), WAIT_MS) for _ in raws]
        try:
            return await trio.to_thread.run_sync(
                _check_outcomes, self._chain_id, contract, raws, answer, limiter=self._checkers
            )
        except InvalidInput as error:
            self._network.penalise(peer, 20, f"answer to {REQUEST_SEND}: {error}")
            detail = f"operator {terms.operator.hex()} answered with something else: {error}"
            return [refused("bad_answer", detail[:DETAIL_CHARACTERS]) for _ in raws]

    async def _ask(self, contract_id: bytes, sender: bytes, sequence: int) -> StatusAnswer:
        contract = contract_at(self._store, contract_id)
        if contract is None:
            raise NotFound(f"this node knows no contract {contract_id.hex()}; it may have to catch up")
        peer, answer = await self._request(contract, REQUEST_STATUS, encode(StatusQuery(contract_id, sender, sequence)))
        try:
            return decode_status(answer)
        except InvalidInput as error:
            self._network.penalise(peer, 20, f"answer to {REQUEST_STATUS}: {error}")
            raise NotFound(f"operator {contract.terms.operator.hex()} answered with something else") from error

    async def _request(self, contract: Contract, method: str, payload: bytes) -> tuple[str, bytes]:
        """Ask the operator's node; returns its peer identifier and the answer. Raises `NotFound`."""
        operator = contract.terms.operator
        peer = self._peers().get(address_of(operator))
        if peer is None:
            raise NotFound(
                f"the node of operator {operator.hex()} is not connected to this one; try again when it is up"
            )
        try:
            return peer, await self._network.request(peer, method, payload, timeout_s=TIMEOUT_S)
        except RequestFailed as error:
            detail = f"operator {operator.hex()} does not answer: {error}"
            raise NotFound(detail[:DETAIL_CHARACTERS]) from error

    # ------------------------------------------------------------ for other nodes

    async def answer(self, peer_id: str, method: str, payload: bytes) -> bytes:
        """Answer a peer's request for this node's operator. Raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        if method == REQUEST_SEND:
            return await self._limited(peer_id, partial(self._answer_send, decode_requests(payload)))
        if method == REQUEST_STATUS:
            return await self._limited(peer_id, partial(self._answer_status, decode_query(payload)))
        raise UnknownMethod(f"{method!r} is no request to an operator")

    async def _limited(self, peer_id: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        if self._at_work.total() >= MAX_AT_WORK or self._at_work[peer_id] >= MAX_OF_PEER:
            raise NotAvailable("this operator works on as many messages as it takes; try again later")
        self._at_work[peer_id] += 1
        try:
            return await work()
        finally:
            self._at_work[peer_id] -= 1
            if not self._at_work[peer_id]:
                del self._at_work[peer_id]

    async def _answer_send(self, message: RelayedRequests) -> bytes:
        outcomes = await self.own.send(message.contract_id, message.requests)
        return encode(RelayedOutcomes(tuple(map(_as_relayed, outcomes))))

    async def _answer_status(self, query: StatusQuery) -> bytes:
        try:
            following: int | None = self.own.next_sequence(query.contract_id, query.sender)
        except NotFound:
            following = None
        try:
            status = await self.own.status_of(query.contract_id, query.sender, query.sequence)
        except (NotFound, StoreError) as error:
            raise NotAvailable(f"the operator cannot tell at present: {error}") from error
        if status is None:
            return encode(StatusAnswer(following, None))
        if status.number is None or status.index is None:
            return encode(StatusAnswer(following, RelayedPlace("final", None, None)))
        place = RelayedPlace("received" if status.status == "received" else "included", status.number, status.index)
        return encode(StatusAnswer(following, place))


def _as_relayed(outcome: SendOutcome) -> RelayedOutcome:
    answer = outcome.answer
    return RelayedOutcome(
        reason=outcome.reason,
        detail="".join(one if one.isprintable() else "?" for one in outcome.detail[:DETAIL_CHARACTERS]),
        retry_ms=outcome.retry_ms,
        signed=None if answer is None else answer.signed,
        outcomes=() if answer is None else answer.outcomes,
    )


def _check_outcomes(chain: bytes, contract: Contract, raws: Sequence[bytes], raw_answer: bytes) -> list[SendOutcome]:
    """Return an operator's outcomes, checked against the requests, in a worker thread. Raises `InvalidInput`."""
    found = decode_outcomes(raw_answer).outcomes
    if len(found) != len(raws):
        raise InvalidInput(f"{len(found)} outcomes for {len(raws)} requests")
    return [_check_outcome(chain, contract, raw, outcome) for raw, outcome in zip(raws, found, strict=True)]


def _check_outcome(chain: bytes, contract: Contract, raw: bytes, outcome: RelayedOutcome) -> SendOutcome:
    signed = outcome.signed
    if outcome.reason:
        if not (outcome.reason.isascii() and outcome.reason.isidentifier() and outcome.detail.isprintable()):
            # It goes into logs and terminals.
            raise InvalidInput(f"a refusal with the reason {outcome.reason!r}: {outcome.detail!r}")
        return refused(outcome.reason, outcome.detail, outcome.retry_ms)
    if signed is None:
        raise InvalidInput("a request is accepted without a receipt")
    receipt = signed.receipt
    wanted = (contract.terms.contract_id, request_digest(raw), outcomes_digest(outcome.outcomes))
    if (receipt.contract_id, receipt.leaf.request_digest, receipt.leaf.outcomes_digest) != wanted:
        raise InvalidInput("a receipt is about something else")
    if not is_signed_receipt(chain, contract.terms.operator, signed):
        raise InvalidInput("a receipt is not signed by the operator")
    return SendOutcome(accepted=True, answer=Answer(signed, outcome.outcomes))
