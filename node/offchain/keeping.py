# SPDX-License-Identifier: GPL-3.0-or-later
"""How long data of batches stays here, and what is fetched because it should be here and is not.

    until its batch is final     every member of the committee keeps it: anybody may still have to challenge the batch
    then, for the retention      `replicas` members keep it, chosen by rendezvous hashing, and whoever has not followed the batch yet
    after that                   nobody has to
    never committed              it goes when no transaction that commits it can be valid any more

What happens to data is decided anew at each look, from the chain alone: so it survives any crash, and the loss of this disk.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Literal

import structlog
import trio

from ledger.contract_bodies import CommitBatch
from ledger.contract_queries import batch_at, contract_at, contracts_from
from ledger.contract_state import Contract
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import BatchCommitment
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from node.offchain.availability import SPARE_BYTES, Availability
from node.offchain.data_store import DataStore, Kept, Look, Use
from node.offchain.readiness import Readiness
from records.placement import holders

log = structlog.get_logger()

SWEEP_INTERVAL_S = 60.0
"""Between two looks for data that nobody needs any more."""
WALK_INTERVAL_S = 3_600.0
"""Between two looks through all batches for data that should be here; a changed committee and a fresh start ask for one as well."""
RETRY_S = 2.0
"""Pause while the node is behind, and between the looks of a node with nothing to do."""
REPAIR_PAUSE_S = 0.1
"""Pause after each repair: it must not stand in the way of what is going on."""
PAGE = 128
"""Data or batches looked at in one go: a millisecond or two of the event loop."""
PAGE_PAUSE_S = 0.02
LOOKS = 16
"""How often data that is kept for the retention is looked at meanwhile."""
MAX_SOON = 1_024
"""Batches that were committed without their data here and are repaired one by one; when there are more, a walk finds them."""
MAX_MISSING = 8
"""Batches of one contract whose data nobody has, after which a walk goes on with the next contract."""

Fate = Literal["keep", "drop", "idle"]
"""`idle`: no committed batch rests on it, it goes unless one comes."""


class Keeping:
    """Retention and repair."""

    def __init__(
        self,
        *,
        store: Store,
        data: DataStore,
        readiness: Readiness,
        availability: Availability,
        address: bytes,
        committee: Callable[[], Collection[bytes]],
        copies: int,
        is_followed: Callable[[bytes, int], bool],
        is_behind: Callable[[], bool],
    ) -> None:
        """`address` is this node's account; `is_followed` tells whether a batch of a contract has been re-executed here, or need not be."""
        self._store = store
        self._data = data
        self._readiness = readiness
        self._availability = availability
        self._address = address
        self._committee = committee
        self._copies = copies
        self._is_followed = is_followed
        self._is_behind = is_behind
        self._rules = store.genesis.parameters.contracts
        self._idle_microblocks = store.genesis.parameters.maximum_expiry_microblocks
        self._soon: dict[tuple[bytes, int], None] = {}
        self._asked = trio.Event()
        # Batches passed while the node was behind: a look through all follows when it no longer is.
        self._has_missed_some = False
        self.lost = 0
        """Batches whose data should be here and was nowhere to be had at the last walk."""

    def committed(self, transactions: Iterable[CheckedTransaction]) -> None:
        """A microblock is stored: batches that it committed without their data here are repaired soon."""
        for checked in transactions:
            body = checked.transaction.body
            if isinstance(body, CommitBatch) and not self._readiness.verdict(body.commitment):
                if len(self._soon) < MAX_SOON and not self._is_behind():
                    self._soon[body.commitment.contract_id, body.commitment.number] = None
                    self._asked.set()
                else:
                    self._has_missed_some = True

    def should_hold(self, contract: Contract, number: int, height: int) -> bool:
        """Tell whether a batch's data should be here at a height."""
        committed = batch_at(self._store, contract, number)
        if committed is None or self._address not in self._committee():
            return False
        final = committed.height + self._rules.window_microblocks
        if height < final:
            return True
        return height < final + self._rules.retention_microblocks and self._is_keeper(committed.commitment.data_digest)

    def fate(self, kept: Kept, height: int) -> tuple[Fate, int]:
        """Tell what becomes of data that is here, and at which height to look again."""
        fates = [self._fate_for(use, kept.digest, height) for use in kept.uses]
        keeps = [look for fate, look in fates if fate == "keep"]
        if keeps:
            return "keep", min(keeps)
        if fates and all(fate == "drop" for fate, _ in fates):
            return "drop", height
        since = height if kept.since_height is None else kept.since_height
        return "idle", since + self._idle_microblocks + 1

    def _fate_for(self, use: Use, digest: bytes, height: int) -> tuple[Fate, int]:
        if self._readiness.is_pending(use.contract_id, digest):
            return "keep", height + 1
        contract = contract_at(self._store, use.contract_id)
        committed = batch_at(self._store, contract, use.number) if contract is not None else None
        if committed is None or committed.commitment.data_digest != digest:
            return "idle", height  # not committed, or undone by fraud
        final, retention = committed.height + self._rules.window_microblocks, self._rules.retention_microblocks
        if height < final:
            return "keep", final
        if height >= final + retention:
            return "drop", height
        if self._is_keeper(digest):
            # Now and then: with another committee it may be somebody else's.
            return "keep", min(final + retention, height + 1 + retention // LOOKS)
        return ("drop", height) if self._is_followed(use.contract_id, use.number) else ("keep", height + 1)

    def _is_keeper(self, digest: bytes) -> bool:
        return self._address in holders(digest, self._committee(), self._copies)

    # ------------------------------------------------------------------ standing work

    async def run(self) -> None:
        """Drop and repair until cancelled."""
        sweep_s = walk_s = trio.current_time()
        committee: set[bytes] = set()
        while True:
            self._asked = trio.Event()
            if not self._is_behind():
                await self._repair_soon()
                now_s = trio.current_time()
                if now_s >= sweep_s:
                    await self.sweep()
                    sweep_s = now_s + SWEEP_INTERVAL_S
                if self._has_missed_some or now_s >= walk_s or committee != set(self._committee()):
                    self._has_missed_some = False
                    committee = set(self._committee())
                    await self.repair()
                    walk_s = now_s + WALK_INTERVAL_S
            with trio.move_on_after(RETRY_S):
                await self._asked.wait()

    async def sweep(self) -> int:
        """Look through the data whose time has come and drop what nobody needs; returns how much of it was dropped."""
        dropped, height = 0, self._store.head().height
        while True:
            try:
                due = await trio.to_thread.run_sync(self._data.due, height, PAGE)
                dropped += await self._look_at(due, height)
            except StoreError as error:
                log.warning("off-chain data cannot be looked through; a later look tries again", error=str(error))
                return dropped
            if len(due) < PAGE:
                return dropped
            await trio.sleep(PAGE_PAUSE_S)

    async def _look_at(self, due: list[Kept], height: int) -> int:
        looks: list[Look] = []
        going: list[Kept] = []
        for kept in due:
            fate, next_height = self.fate(kept, height)
            if fate == "drop" or (fate == "idle" and next_height <= height):
                going.append(kept)
            else:
                await self._end_uses(kept, height)
                since = None if fate == "keep" else kept.since_height
                looks.append(Look(kept.digest, height if fate == "idle" and since is None else since, next_height))
        await trio.to_thread.run_sync(self._data.looked, looks)
        if not going:
            return 0
        async with self._availability.removing:
            # Meanwhile one of them may have been committed to.
            sure = [kept.digest for kept in going if self.fate(kept, height)[0] != "keep"]
            await trio.to_thread.run_sync(self._data.remove, sure)
            self._readiness.forget(sure)
            saved = {kept.digest for kept in going}.difference(sure)
            await trio.to_thread.run_sync(self._data.looked, [Look(digest, None, height + 1) for digest in saved])
        return len(sure)

    async def _end_uses(self, kept: Kept, height: int) -> None:
        """Let data that stays for one batch count no more to the operators of others that are over: it is copied by anybody."""
        over = [use for use in kept.uses if self._fate_for(use, kept.digest, height)[0] == "drop"]
        if over:
            await trio.to_thread.run_sync(self._data.end_uses, kept.digest, over)

    async def repair(self) -> int:
        """Look once through all batches, the newest of each contract first, and fetch data that should be here; returns how much came."""
        repaired = lost = 0
        start = b""
        while True:
            contracts = list(contracts_from(self._store, start, PAGE))
            for contract in contracts:
                try:
                    came, missing = await self._repair_contract(contract)
                except StoreError as error:
                    log.warning("off-chain data cannot be read; a later look tries again", error=str(error))
                    return repaired
                repaired, lost = repaired + came, lost + missing
            if len(contracts) < PAGE:
                break
            start = contracts[-1].terms.contract_id + b"\0"
        if lost and lost != self.lost:
            log.warning("data of batches should be here and nobody connected has it", batches=lost)
        self.lost = lost
        return repaired

    async def _repair_contract(self, contract: Contract) -> tuple[int, int]:
        came = missing = 0
        following = contract.batch_count
        while following > 0 and missing < MAX_MISSING:
            wanted, following = self._page_before(contract, following)
            lacking = await trio.to_thread.run_sync(self._data.lacking, [one.data_digest for one in wanted])
            for commitment in wanted:
                if commitment.data_digest in lacking and missing < MAX_MISSING:
                    outcome = await self._bring(commitment)
                    came, missing = came + (outcome is True), missing + (outcome is False)
            await trio.sleep(PAGE_PAUSE_S)
        return came, missing

    def _page_before(self, contract: Contract, following: int) -> tuple[list[BatchCommitment], int]:
        """Return the next batches before a number whose data should be here, and where to go on; 0 when nobody has to keep any more."""
        height = self._store.head().height
        kept = self._rules.window_microblocks + self._rules.retention_microblocks
        lowest = max(following - PAGE, 0)
        wanted: list[BatchCommitment] = []
        for number in range(following - 1, lowest - 1, -1):
            committed = batch_at(self._store, contract, number)
            if committed is None or height >= committed.height + kept:
                return wanted, 0
            if self.should_hold(contract, number, height):
                wanted.append(committed.commitment)
        return wanted, lowest

    async def _repair_soon(self) -> None:
        for place in list(self._soon):
            del self._soon[place]
            contract_id, number = place
            contract = contract_at(self._store, contract_id)
            committed = batch_at(self._store, contract, number) if contract is not None else None
            if contract is None or committed is None:
                continue
            if self.should_hold(contract, number, self._store.head().height):
                await self._bring(committed.commitment)

    async def _bring(self, commitment: BatchCommitment) -> bool | None:
        """Have data here; returns whether it came, None when nothing had to."""
        try:
            if await trio.to_thread.run_sync(self._data.has, commitment.data_digest):
                return None
            if not self._availability.has_room(commitment, 2 * SPARE_BYTES):
                return None
            await self._availability.keep(commitment)
        except (NotFound, StoreError, InvalidInput) as error:
            log.debug("data could not be repaired", digest=commitment.data_digest.hex(), error=str(error))
            return False
        log.info("data of a batch repaired", contract=commitment.contract_id.hex(), batch=commitment.number)
        await trio.sleep(REPAIR_PAUSE_S)
        return True
