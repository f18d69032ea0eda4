# SPDX-License-Identifier: GPL-3.0-or-later
"""Sharing on the network: this institution's own proxy at work, and the way from a client through this node to the proxies of others.

What passes through is sealed or signed by the client: this node reads no key fragment that is not for itself, and can forge no request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
import trio

from ledger import queries
from ledger.bodies import ConfirmDeletion, RevokeAccess
from ledger.codec import encode
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, StoreError
from ledger.state import StateReader
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.clock import now_ms
from node.own_transactions import OwnTransactions
from node.sync import Asker
from node.wire import (
    REQUEST_ACCESS_LOG,
    REQUEST_FRAGMENT,
    REQUEST_REENCRYPTION,
    Relayed,
    decode_relayed,
)
from p2p.errors import NotAvailable, RequestFailed
from records.access_entries import decode_query
from records.answers import decode_answer
from records.grants import decode_sealed
from records.proxy import ProxyView
from records.proxy_desk import FragmentRefused, ProxyDesk, QueryRefused
from records.requests import decode_request

log = structlog.get_logger()

PROXY_TIMEOUT_S = 10.0
"""A proxy works some 40 ms on the largest request; one that takes longer than this is as good as down."""
SWEEP_INTERVAL_S = 30.0
"""Between two looks for grants that have ended; a revocation is acted upon at once."""
RETRY_S = 3.0
"""Between two looks at whether confirmations have been committed, and after a fault of the disk."""
WORKERS = 2
"""Threads that re-encrypt: more would only take turns."""
MAX_AT_WORK = 32
"""Requests of clients and peers waiting for a thread; further ones are answered "busy"."""
_DECODERS: Mapping[str, Callable[[bytes], object]] = {
    REQUEST_FRAGMENT: decode_sealed,
    REQUEST_REENCRYPTION: decode_request,
    REQUEST_ACCESS_LOG: decode_query,
}
METHODS = tuple(_DECODERS)
_DETAIL_CHARACTERS = 512


class _LoopReader:
    """The store as a worker thread may read it: each look-up hops to the event loop, where the store lives."""

    def __init__(self, store: StateReader) -> None:
        self._store = store

    def get_state(self, key: bytes) -> bytes | None:
        return trio.from_thread.run_sync(self._store.get_state, key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        return iter(trio.from_thread.run_sync(lambda: tuple(self._store.scan_state(prefix, start, limit))))


class Proxying:
    """One institution's proxy as a part of its node."""

    def __init__(
        self,
        *,
        desk: ProxyDesk,
        store: Store,
        chain_id: bytes,
        network: Asker,
        peers: Callable[[], Mapping[bytes, str]],
        is_catching_up: Callable[[], bool],
        transactions: OwnTransactions,
    ) -> None:
        """`peers` gives the connected nodes' peer identifiers by account address."""
        self._desk = desk
        self._store = store
        self._chain_id = chain_id
        self._network = network
        self._peers = peers
        self._is_catching_up = is_catching_up
        self._transactions = transactions
        self._threads = trio.CapacityLimiter(WORKERS)
        self._at_work = 0
        self._revoked = trio.Event()
        self._has_swept = False

    def committed(self, transactions: tuple[CheckedTransaction, ...]) -> None:
        """A microblock is stored: whatever it revoked is deleted soon; it is refused from now on in any case."""
        # Before the first sweep with a present view nothing is served: each microblock may be the one that it waits for.
        if not self._has_swept or any(isinstance(checked.transaction.body, RevokeAccess) for checked in transactions):
            self._revoked.set()

    # ------------------------------------------------------------------ what a proxy does

    async def answer(self, method: str, payload: bytes) -> bytes:
        """Answer a request that a peer passes on, or makes. Raises `InvalidInput` for bytes that are none, `NotAvailable`.

        What is wrong inside is its client's fault, and answered; bytes that are no request are the peer's, who must have looked.
        """
        _DECODERS[method](payload)
        return encode(await self._work(method, payload))

    async def _work(self, method: str, payload: bytes) -> Relayed:
        if self._at_work >= MAX_AT_WORK:
            raise NotAvailable("this proxy works on as many requests as it takes; try again later")
        self._at_work += 1
        try:
            return await trio.to_thread.run_sync(self._do, method, payload, self._view(), limiter=self._threads)
        finally:
            self._at_work -= 1

    def _do(self, method: str, payload: bytes, view: ProxyView) -> Relayed:
        try:
            if method == REQUEST_FRAGMENT:
                return Relayed("", "", self._desk.take_fragment(payload, view))
            if method == REQUEST_ACCESS_LOG:
                return Relayed("", "", self._desk.show_log(payload, view))
            answer = self._desk.answer(payload, view)
        except (FragmentRefused, QueryRefused) as refused:
            return Relayed(refused.reason.value, _shown(refused), b"")
        except StoreError as error:
            log.warning("the proxy cannot use its disk", error=str(error))
            return Relayed("storage", "this proxy cannot use its disk at present; ask another one", b"")
        except InvalidInput as error:
            return Relayed("invalid_input", _shown(error), b"")
        if answer is None:
            raise NotAvailable("too many requests by strangers; try again later")
        return Relayed("", "", answer)

    def _view(self) -> ProxyView:
        head = self._store.head()
        return ProxyView(
            reader=_LoopReader(self._store),
            chain_id=self._chain_id,
            head_height=head.height,
            head_timestamp_ms=head.timestamp_ms,
            clock_ms=now_ms(),
            is_catching_up=self._is_catching_up(),
        )

    # ------------------------------------------------------------------ for this node's clients

    async def deliver(self, sealed: Sequence[bytes]) -> list[tuple[bytes, Relayed]]:
        """Bring sealed key fragments to their proxies, all at once. Raises `InvalidInput` when one is none."""
        work = [(decode_sealed(raw).proxy, raw) for raw in sealed]
        return await self._pass_all_on(REQUEST_FRAGMENT, work)

    async def ask_log(self, raw: bytes) -> tuple[bytes, Relayed]:
        """Bring a query to the proxy that it names. Raises `InvalidInput` when it is none."""
        proxy = decode_query(raw).query.proxy
        return proxy, await self._pass_on(proxy, REQUEST_ACCESS_LOG, raw)

    async def ask_proxies(self, raw: bytes, wanted: tuple[bytes, ...]) -> list[tuple[bytes, Relayed]]:
        """Bring a grantee's request to proxies of its grant, all at once; to all of them when none is `wanted`.

        Raises:
            InvalidInput: no request, or a proxy that the grant does not name.
            NotFound: no such grant has been committed here.
        """
        request = decode_request(raw).request
        terms = queries.grant(self._store, request.grant_id).terms
        for proxy in wanted:
            if proxy not in terms.proxies:
                named = ", ".join(one.hex() for one in terms.proxies)
                raise InvalidInput(f"{proxy.hex()} is no proxy of this grant; its proxies are {named}")
        answers = await self._pass_all_on(
            REQUEST_REENCRYPTION, [(proxy, raw) for proxy in dict.fromkeys(wanted or terms.proxies)]
        )
        is_own = address_of(request.requester) == self._transactions.address
        if is_own and any(_has_reencrypted(answer) for _, answer in answers):
            return await self._note_read(raw, answers)
        return answers

    async def _note_read(self, raw: bytes, answers: list[tuple[bytes, Relayed]]) -> list[tuple[bytes, Relayed]]:
        """Write this institution's own reading down before it can be decrypted; otherwise hand out refusals only."""
        try:
            await trio.to_thread.run_sync(self._desk.note_read, raw, self._view(), limiter=self._threads)
        except StoreError as error:
            log.warning("a reading cannot be written down, so it does not happen", error=str(error))
            refusal = Relayed("storage", "this node cannot write down that its institution reads; see its log", b"")
            return [(proxy, refusal if _has_reencrypted(answer) else answer) for proxy, answer in answers]
        return answers

    async def _pass_all_on(self, method: str, work: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, Relayed]]:
        answers: dict[int, Relayed] = {}

        async def ask(place: int, proxy: bytes, raw: bytes) -> None:
            answers[place] = await self._pass_on(proxy, method, raw)

        async with trio.open_nursery() as nursery:
            for place, (proxy, raw) in enumerate(work):
                nursery.start_soon(ask, place, proxy, raw)
        return [(proxy, answers[place]) for place, (proxy, _) in enumerate(work)]

    async def _pass_on(self, proxy: bytes, method: str, raw: bytes) -> Relayed:
        if proxy == self._transactions.address:
            try:
                return await self._work(method, raw)
            except NotAvailable as error:
                return Relayed("busy", _shown(error), b"")
        peer = self._peers().get(proxy)
        if peer is None:
            detail = f"the node of proxy {proxy.hex()} is not connected to this one; try again when it is up"
            return Relayed("unreachable", detail, b"")
        try:
            answer = await self._network.request(peer, method, raw, timeout_s=PROXY_TIMEOUT_S)
        except RequestFailed as error:
            return Relayed(
                "unreachable", f"proxy {proxy.hex()} does not answer: {_shown(error)}"[:_DETAIL_CHARACTERS], b""
            )
        try:
            return decode_relayed(answer)
        except InvalidInput as error:
            self._network.penalise(peer, 20, f"answer to {method}: {error}")
            return Relayed("bad_answer", f"proxy {proxy.hex()} answered with something else", b"")

    # ------------------------------------------------------------------ standing work

    async def run(self) -> None:
        """Delete what the chain no longer allows, first of all before anything is served, and confirm it; until cancelled."""
        while True:
            self._revoked = trio.Event()
            waiting = await self._sweep()
            with trio.move_on_after(RETRY_S if waiting else SWEEP_INTERVAL_S):
                await self._revoked.wait()

    async def _sweep(self) -> bool:
        """Sweep once; tell whether something is left to be done soon."""
        view = self._view()
        try:
            sweep = await trio.to_thread.run_sync(self._desk.sweep, view, limiter=self._threads)
        except StoreError as error:
            log.warning("key fragments cannot be deleted", error=str(error))
            return True
        self._has_swept = self._has_swept or not view.is_catching_up
        if sweep.revoked or sweep.expired:
            log.info("key fragments deleted", revoked=sweep.revoked, expired=sweep.expired)
        for grant_id in sweep.owed:
            if not self._transactions.is_under_way(grant_id):
                outcome = await self._transactions.send(grant_id, ConfirmDeletion(grant_id))
                if not outcome.accepted:
                    log.warning("a deletion cannot be confirmed yet", grant=grant_id.hex(), why=outcome.detail)
                    break
        return bool(sweep.owed) or self._is_catching_up()


def _has_reencrypted(answer: Relayed) -> bool:
    """Tell whether an answer may hold capsule fragments; what is none is of no use to the reader."""
    if answer.reason:
        return False
    try:
        return bool(decode_answer(answer.body).fragments)
    except InvalidInput:
        return False


def _shown(error: Exception) -> str:
    return str(error)[:_DETAIL_CHARACTERS]
