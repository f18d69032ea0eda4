# SPDX-License-Identifier: GPL-3.0-or-later
"""Data of batches between nodes: fetched as soon as a commitment is pending, checked once, made durable, given to whoever asks.

A peer is trusted in nothing: the digest says whether it sent what was asked for. Whether the commitment fits its own data is the
operator's affair, and no peer is blamed for it.
"""

from collections.abc import Callable, Collection, Mapping

import msgspec
import structlog
import trio

from contracts.batch_data import check_data
from ledger.contract_queries import contract_at
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import MAX_DATA_BYTES, BatchCommitment, data_digest
from ledger.state import StateReader
from node.offchain.data_store import DataStore, Use
from node.offchain.readiness import Owed, Readiness
from node.offchain.shares import NAMED_TIMES, Shares
from node.sync import Asker
from node.wire import REQUEST_BATCH_DATA
from p2p.errors import NotAvailable, RequestFailed
from records.placement import holders

log = structlog.get_logger()

FETCH_TIMEOUT_S = 10.0
"""For 1 MiB over a slow line (1 Mbit/s)."""
HEDGE_S = 1.0
"""After this time without an answer the next peer is asked beside: one that is silent must not hold up a vote for long."""
MAX_ASKED = 3
"""Peers asked at once for the same data."""
MAX_AT_WORK = 8
"""Fetches at once for batches that microblocks name, for others that wait, for this node's own work, and for clients: 8 MiB each."""
MAX_OF_CONTRACT = 2
"""Fetches at once for one contract."""
MAX_OF_OPERATOR = MAX_AT_WORK // 2
"""Fetches at once for all contracts of one operator: who withholds data leaves half of the places to others."""
FIRST_PAUSE_S = 0.25
"""Pause after a fetch that brought nothing; doubled each time."""
MAX_NAMED_PAUSE_S = 1.0
"""Longest pause while a microblock waits for the data."""
MAX_PAUSE_S = 30.0
"""Longest pause otherwise."""
MAX_ANSWERS = 4
"""Data read at once on behalf of peers: 4 MiB."""
SPARE_BYTES = 64 * 1024 * 1024
"""Room that is kept for what microblocks name and for what this node operates itself; what is only announced must leave it free."""
DIGEST_BYTES = 32


class _Attempts(msgspec.Struct):
    """Fetches of one commitment's data that brought nothing."""

    count: int
    """How many."""
    last_s: float
    """When the last one ended, on Trio's clock."""

    def due_s(self, *, is_named: bool) -> float:
        """Return when it may be tried again."""
        longest_s = MAX_NAMED_PAUSE_S if is_named else MAX_PAUSE_S
        return self.last_s + min(FIRST_PAUSE_S * 2.0 ** min(self.count - 1, 16), longest_s)


class Availability:
    """The data that is here together with that of the peers."""

    def __init__(
        self,
        *,
        store: StateReader,
        data: DataStore,
        readiness: Readiness,
        network: Asker,
        peers: Callable[[], Mapping[bytes, str]],
        committee: Callable[[], Collection[bytes]],
        copies: int,
        changed: Callable[[], None],
    ) -> None:
        """Take the parts; `changed` is told when batches became ready to be ordered or voted for.

        `peers` gives the connected nodes by account address, `committee` the members' addresses; `copies` nodes keep final data.
        """
        self._store = store
        self._data = data
        self._readiness = readiness
        self._network = network
        self._peers = peers
        self._committee = committee
        self._copies = copies
        self._changed = changed
        self._wake = trio.Event()
        self._shares = Shares(data)
        self._running: dict[BatchCommitment, bool] = {}
        self._attempts: dict[BatchCommitment, _Attempts] = {}
        self._for_peers = trio.CapacityLimiter(MAX_ANSWERS)
        self._fetches = trio.CapacityLimiter(MAX_AT_WORK)
        self._for_clients = trio.CapacityLimiter(MAX_AT_WORK)
        self.removing = trio.Lock()
        """Held while data is removed, and while it is judged whether it is here."""
        self._trouble = ""
        readiness.on_owed = self._look_again

    @property
    def trouble(self) -> str:
        """Why data cannot be kept, or whose; empty while all can."""
        return self._trouble or self._shares.trouble

    # ------------------------------------------------------------------ for others

    def has(self, commitment: BatchCommitment) -> bool:
        """Tell whether a batch's data is here. Raises `StoreError`."""
        return self._data.has(commitment.data_digest)

    async def fetch(self, commitment: BatchCommitment) -> bytes:
        """Return a batch's data from here or from a peer: the bytes that the commitment's digest names. Raises `NotFound`."""
        return await self._fetch_within(self._fetches, commitment)

    async def fetch_for_client(self, commitment: BatchCommitment) -> bytes:
        """Do as `fetch` does for whoever asks: what nobody has, asked for again and again, holds up no work of the node's own."""
        return await self._fetch_within(self._for_clients, commitment)

    async def _fetch_within(self, limiter: trio.CapacityLimiter, commitment: BatchCommitment) -> bytes:
        found = await self._from_here(commitment)
        if found is not None:
            return found
        async with limiter:
            return await self._fetch_from_any(commitment)

    async def keep(self, commitment: BatchCommitment) -> None:
        """Have a batch's data here, if it fits the commitment. Raises `NotFound`, `StoreError`, `InvalidInput`."""
        raw = await self.fetch(commitment)
        if not await trio.to_thread.run_sync(_fits, commitment, raw):
            raise InvalidInput(f"the data of batch {commitment.number} does not fit its commitment")
        await trio.to_thread.run_sync(self._data.put, commitment.data_digest, raw, self._use_of(commitment))

    async def holds(self, sender: bytes, commitment: BatchCommitment) -> bool:
        """Tell whether data is here and fits the commitment that the holder of a public key signed; asked before it goes out."""
        verdict = self._readiness.verdict(commitment)
        if verdict is None and sender != self._operator_of(commitment):
            # Nothing is noted for it: a stranger could make data count to an operator's share that the operator never published.
            raw = await self._from_here(commitment)
            return raw is not None and await trio.to_thread.run_sync(_fits, commitment, raw)
        if verdict is None:
            try:
                verdict = await self._judge_here(commitment)
            except StoreError:
                return False  # the operator is told; nothing may be promised now
        return bool(verdict)

    async def answer(self, payload: bytes) -> bytes:
        """Answer a peer's request for data that is here; raises `NotAvailable`, `InvalidInput`."""
        if len(payload) != DIGEST_BYTES:
            raise InvalidInput(f"a digest of data has {DIGEST_BYTES} bytes, not {len(payload)}")
        try:
            async with self._for_peers:
                data = await trio.to_thread.run_sync(self._data.get, payload)
        except StoreError as error:
            raise NotAvailable(f"data {payload.hex()} cannot be read here") from error
        if data is None:
            raise NotAvailable(f"data {payload.hex()} is not here")
        return data

    # ------------------------------------------------------------------ what pending batches wait for

    async def run(self) -> None:
        """Bring what is owed until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                next_s = self._start_due(nursery)
                with trio.move_on_at(next_s):
                    await self._wake.wait()

    def _look_again(self) -> None:
        self._wake.set()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Start the fetches that are due and find a place; returns when the next one is due."""
        owed, now_s, next_s = self._readiness.owed(), trio.current_time(), float("inf")
        wanted = {one.commitment for one in owed}
        self._attempts = {one: attempts for one, attempts in self._attempts.items() if one in wanted}
        for one in owed:
            commitment = one.commitment
            if commitment in self._running:
                continue
            attempts = self._attempts.get(commitment)
            due_s = now_s if attempts is None else attempts.due_s(is_named=one.is_named)
            if due_s > now_s:
                next_s = min(next_s, due_s)
            elif self._has_place(one):
                self._running[commitment] = one.is_named
                nursery.start_soon(self._bring, one)
        return next_s

    def _has_place(self, one: Owed) -> bool:
        alike = [commitment for commitment, is_named in self._running.items() if is_named == one.is_named]
        if len(alike) >= MAX_AT_WORK:
            return False
        operator = self._operator_of(one.commitment)
        of_contract = sum(commitment.contract_id == one.commitment.contract_id for commitment in alike)
        of_operator = sum(self._operator_of(commitment) == operator for commitment in alike)
        return of_contract < MAX_OF_CONTRACT and of_operator < MAX_OF_OPERATOR

    async def _bring(self, one: Owed) -> None:
        commitment = one.commitment
        try:
            if await self._judge_here(commitment) is None:
                await self._bring_from_peers(one)
            self._attempts.pop(commitment, None)
        except (NotFound, StoreError) as error:
            count = self._attempts[commitment].count if commitment in self._attempts else 0
            if count == 0:
                log.info("data of a batch is not to be had yet", **_named(commitment), error=str(error))
            self._attempts[commitment] = _Attempts(count + 1, trio.current_time())
        finally:
            del self._running[commitment]
            self._wake.set()

    async def _judge_here(self, commitment: BatchCommitment) -> bool | None:
        """Judge a commitment by data that is here; returns the verdict, or None when there is none."""
        async with self.removing:
            raw = await self._from_here(commitment)
            if raw is None:
                return None
            return await self._judge(commitment, raw)

    async def _from_here(self, commitment: BatchCommitment) -> bytes | None:
        try:
            return await trio.to_thread.run_sync(self._data.get, commitment.data_digest)
        except StoreError as error:
            self._is_in_trouble(str(error))
            return None

    async def _bring_from_peers(self, one: Owed) -> None:
        commitment = one.commitment
        if not (self.has_room(commitment, 0, NAMED_TIMES) if one.is_named else self.has_room(commitment, SPARE_BYTES)):
            raise StoreError(self.trouble)
        raw = await self._fetch_from_any(commitment)
        await self._judge(commitment, raw)

    async def _judge(self, commitment: BatchCommitment, raw: bytes) -> bool:
        """Check data that the digest names; keep it when it is right. Raises `StoreError`."""
        is_good = await trio.to_thread.run_sync(_fits, commitment, raw)
        if is_good:
            try:
                await trio.to_thread.run_sync(self._data.put, commitment.data_digest, raw, self._use_of(commitment))
            except StoreError as error:
                self._is_in_trouble(str(error))
                raise
            self._is_in_trouble("")
        else:
            log.warning("a commitment does not fit its own data; it will not be ordered here", **_named(commitment))
        if self._readiness.judged(commitment, is_good=is_good):
            self._changed()
        return is_good

    def has_room(self, commitment: BatchCommitment, spare: int, times: int = 1) -> bool:
        """Tell whether a batch's data would be kept, with room to spare, within its operator's share; says so in the status if not.

        `times` is how many times what is left free the operator's data may take.
        """
        if self._data.has_room(commitment.data_bytes, spare):
            operator = self._operator_of(commitment)
            return operator is None or self._shares.has_room(operator, commitment.data_bytes, spare, times)
        detail = f"{self._data.total_bytes} of {self._data.capacity_bytes} bytes are taken"
        self._is_in_trouble(f"no room for further off-chain data: {detail}; raise offchain_data_bytes")
        return False

    def _is_in_trouble(self, trouble: str) -> None:
        if trouble and not self._trouble:  # once, not per batch: the log may lie on the same full disk
            log.warning(
                "off-chain data cannot be kept; commitments that rest on it get no vote of this node", why=trouble
            )
        elif self._trouble and not trouble:
            log.info("off-chain data can be kept again")
        self._trouble = trouble

    def _operator_of(self, commitment: BatchCommitment) -> bytes | None:
        contract = contract_at(self._store, commitment.contract_id)
        return contract.terms.operator if contract is not None else None

    def _use_of(self, commitment: BatchCommitment) -> Use | None:
        operator = self._operator_of(commitment)
        return Use(commitment.contract_id, commitment.number, operator) if operator is not None else None

    # ------------------------------------------------------------------ peers

    def _ordered_peers(self, commitment: BatchCommitment) -> list[str]:
        """Return the peers: the operator, those that keep final data, other members, the rest."""
        peers, committee = self._peers(), self._committee()
        key = self._operator_of(commitment)
        operator = [address_of(key)] if key is not None else []
        keepers = holders(commitment.data_digest, committee, self._copies)
        order = dict.fromkeys([*operator, *keepers, *committee, *peers])
        return [peers[address] for address in order if address in peers]

    async def _fetch_from_any(self, commitment: BatchCommitment) -> bytes:
        """Return what the digest names; raises `NotFound` after every peer has been asked in vain."""
        peers = self._ordered_peers(commitment)
        order = iter(peers)
        found: list[bytes] = []
        all_asked = trio.Event()

        async def ask_in_turn(delay_s: float) -> None:
            with trio.move_on_after(delay_s):
                await all_asked.wait()
            for peer_id in order:
                raw = await self._try(peer_id, commitment.data_digest)
                if raw is not None:
                    found.append(raw)
                    nursery.cancel_scope.cancel()
                    return
            all_asked.set()

        async with trio.open_nursery() as nursery:
            for asker in range(min(MAX_ASKED, len(peers))):
                nursery.start_soon(ask_in_turn, asker * HEDGE_S)
        if found:
            return found[0]
        digest = commitment.data_digest.hex()
        raise NotFound(f"data {digest} is neither here nor at any of {len(peers)} connected nodes; try again later")

    async def _try(self, peer_id: str, digest: bytes) -> bytes | None:
        try:
            raw = await self._network.request(peer_id, REQUEST_BATCH_DATA, digest, timeout_s=FETCH_TIMEOUT_S)
        except RequestFailed as error:
            log.debug("peer has no data", digest=digest.hex(), peer=peer_id, error=str(error))
            return None
        if len(raw) > MAX_DATA_BYTES or await trio.to_thread.run_sync(data_digest, raw) != digest:
            self._network.penalise(peer_id, 20, f"what came for data {digest.hex()} is something else")
            return None
        return raw


def _fits(commitment: BatchCommitment, raw: bytes) -> bool:
    """Check data that the digest names; for worker threads, a few milliseconds."""
    try:
        check_data(commitment, raw)
    except InvalidInput:
        return False
    return True


def _named(commitment: BatchCommitment) -> dict[str, object]:
    return {"contract": commitment.contract_id.hex(), "batch": commitment.number}
