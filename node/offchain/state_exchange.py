# SPDX-License-Identifier: GPL-3.0-or-later
"""States of contracts between nodes: a watcher that was away gets one where data is no longer published.

Only the state after a final batch is taken, and only when its root is the one on the chain: it is then right whoever has sent it, and
what came before it can be contested no more. A peer that sends another one pays for it.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from contracts.operator import Start
from contracts.state_map import ENTRY_BYTES, StateMap
from ledger.codec import encode
from ledger.contract_state import CommittedBatch
from ledger.crypto.hashing import DIGEST_BYTES
from ledger.errors import InvalidInput, StoreError
from node.offchain.contract_states import (
    MAX_PAGE_BYTES,
    MAX_SNAPSHOTS,
    REQUEST_CONTRACT_STATE,
    REQUEST_CONTRACT_STATES,
    StateHead,
    StateRequest,
    StatesAnswer,
    decode_state_request,
    decode_states_answer,
    entries_of,
    require_full_pages,
)
from node.offchain.snapshots import Snapshots
from node.sync import Asker
from p2p.errors import NotAvailable, RequestFailed, UnknownMethod

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 10.0
"""For one page: a quarter of a megabyte."""
LIE_POINTS = 20
"""What a state costs whose root is another one than the chain's, or that is more than was announced."""


class StateExchange:
    """Gives snapshots to peers, and gets them."""

    def __init__(self, *, snapshots: Snapshots, network: Asker, peers: Callable[[], Sequence[str]]) -> None:
        """`peers` gives those that are connected, in the order in which they are asked."""
        self._snapshots = snapshots
        self._network = network
        self._peers = peers
        # Whoever asks shares one thread: they can wait, the node's own work cannot.
        self._for_others = trio.CapacityLimiter(1)

    async def heads(self, contract_id: bytes) -> tuple[StateHead, ...]:
        """Return what is kept here of a contract, the oldest first. Raises `StoreError`."""
        found = await trio.to_thread.run_sync(self._snapshots.heads, contract_id, limiter=self._for_others)
        return tuple(item.head for item in found[-MAX_SNAPSHOTS:])

    async def page(self, contract_id: bytes, number: int, page: int) -> bytes | None:
        """Return a page of what is kept here. Raises `StoreError`."""
        return await trio.to_thread.run_sync(self._snapshots.page, contract_id, number, page, limiter=self._for_others)

    async def answer(self, method: str, payload: bytes) -> bytes:
        """Answer a peer's request; raises `InvalidInput`, `NotAvailable`, `UnknownMethod`."""
        try:
            if method == REQUEST_CONTRACT_STATES:
                if len(payload) != DIGEST_BYTES:
                    raise InvalidInput(f"a contract's identifier has {DIGEST_BYTES} bytes, not {len(payload)}")
                return encode(StatesAnswer(await self.heads(payload)))
            if method == REQUEST_CONTRACT_STATE:
                asked = decode_state_request(payload)
                page = await self.page(asked.contract_id, asked.number, asked.page)
                if page is None:
                    raise NotAvailable(f"no page {asked.page} of state {asked.number} of {asked.contract_id.hex()}")
                return page
        except StoreError as error:
            raise NotAvailable("states of contracts cannot be read here at the moment") from error
        raise UnknownMethod(f"no request {method!r} is known")

    async def fetch(
        self,
        contract_id: bytes,
        *,
        after: int,
        final: int,
        room_bytes: int,
        batch: Callable[[int], CommittedBatch | None],
    ) -> Start | None:
        """Return the newest state that a peer has, not older than before batch `after + 1`, after one of the first `final` batches.

        `batch` gives those; a state that would take more than `room_bytes` in memory is left alone. None when nobody has one.
        """
        for peer_id in self._peers():
            try:
                known = await self._network.request(
                    peer_id, REQUEST_CONTRACT_STATES, contract_id, timeout_s=REQUEST_TIMEOUT_S
                )
                fitting = [head for head in decode_states_answer(known).states if after < head.number <= final]
                newest = max(fitting, key=lambda head: head.number, default=None)
                committed = None if newest is None else batch(newest.number - 1)
                if newest is None or committed is None or newest.size + ENTRY_BYTES * newest.entries > room_bytes:
                    continue
                return await self._fetch_state(peer_id, contract_id, newest, committed)
            except RequestFailed as error:
                log.debug("peer gives no state of a contract", peer=peer_id, error=str(error))
            except InvalidInput as error:
                self._network.penalise(peer_id, LIE_POINTS, str(error))
        return None

    async def _fetch_state(self, peer_id: str, contract_id: bytes, head: StateHead, committed: CommittedBatch) -> Start:
        """Return one state from one peer; raises `RequestFailed`, and `InvalidInput` when it is not what it should be."""
        require_full_pages(head.pages, head.size)
        pages: list[bytes] = []
        left = head.size
        for page in range(head.pages):
            payload = encode(StateRequest(contract_id, head.number, page))
            raw = await self._network.request(peer_id, REQUEST_CONTRACT_STATE, payload, timeout_s=REQUEST_TIMEOUT_S)
            left -= len(raw)
            if len(raw) > MAX_PAGE_BYTES or left < 0:
                raise InvalidInput(f"the state of a contract is larger than the {head.size} bytes announced")
            pages.append(raw)
        start = await trio.to_thread.run_sync(_checked, head, pages, committed)
        log.info("state of a contract taken from a peer", contract=contract_id.hex(), batch=head.number, peer=peer_id)
        return start


def _checked(head: StateHead, pages: Sequence[bytes], committed: CommittedBatch) -> Start:
    entries = entries_of(pages, head.entries)
    if len(entries) != head.entries:
        raise InvalidInput(f"{len(entries)} entries of a contract's state; {head.entries} were announced")
    root = StateMap(entries).root()
    if root != committed.commitment.new_root:
        detail = f"batch {head.number - 1} has left the root {committed.commitment.new_root.hex()}"
        raise InvalidInput(f"a state of root {root.hex()}; {detail}")
    return Start(head.number, committed.commitment.until_ms, entries)
