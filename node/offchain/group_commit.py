# SPDX-License-Identifier: GPL-3.0-or-later
"""One writer for the journal: what arrives while the disk is busy, or within a moment, becomes durable with one sync.

Receipts are signed in the same turn of the worker thread, right after their lines are durable: one change of threads for a whole group.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import trio

from contracts.journal import Accepted
from contracts.operator import Answer
from ledger.errors import SpchainError, StoreError
from node.offchain.journal_file import Line

LINGER_S = 0.003
"""How long a line waits for company: short against the 100 ms of a receipt, and a few requests long under load."""
GROUP_LINES = 512
"""Lines in one transaction: some 40 ms with their signatures, so that nobody waits for a group that grows and grows."""


class Write(msgspec.Struct, frozen=True):
    """Lines that one step of an operator has made."""

    contract_id: bytes
    """The contract."""
    lines: tuple[Line, ...]
    """The lines, in order."""
    sign: Callable[[Accepted], Answer]
    """Makes the answer to a request; called in a worker thread."""
    then: Callable[[Sequence[Answer]], None]
    """Told, in the event loop, when the lines are durable; gets the answers to the requests among them."""
    failed: Callable[[StoreError], None]
    """Told instead when they are not, or perhaps not: the operator that made them has to be recovered from the disk."""


class GroupCommit:
    """Queue and writer. Operators bound the queue: each says that it is busy when too many of its entries wait."""

    def __init__(self, append: Callable[[Sequence[Line]], None]) -> None:
        """`append` makes lines durable, all or none; it blocks."""
        self._append = append
        self._queue: list[Write] = []
        self._filled = trio.Event()
        self._unsettled: Counter[bytes] = Counter()
        self._settled = trio.Event()
        self._thread = trio.CapacityLimiter(1)

    def put(self, write: Write) -> None:
        """Queue lines, after all that were queued before."""
        self._queue.append(write)
        self._unsettled[write.contract_id] += 1
        self._filled.set()

    async def settled(self, contract_id: bytes) -> None:
        """Wait until nothing of a contract is queued or being written."""
        while self._unsettled[contract_id]:
            await self._settled.wait()

    async def run(self) -> None:
        """Write until cancelled; then whatever waits has failed."""
        try:
            while True:
                await self._filled.wait()
                await trio.sleep(LINGER_S)
                while self._queue:
                    await self._write(self._next_group())
                self._filled = trio.Event()
        finally:
            self._fail(self._queue, StoreError("the node stops"))
            self._queue = []

    def _next_group(self) -> list[Write]:
        lines = 0
        for count, write in enumerate(self._queue):
            lines += len(write.lines)
            if count and lines > GROUP_LINES:
                break
        else:
            count = len(self._queue)
        group, self._queue = self._queue[:count], self._queue[count:]
        return group

    async def _write(self, group: list[Write]) -> None:
        try:
            # Not abandoned when cancelled: what became durable is told to those who wait for it.
            answers = await trio.to_thread.run_sync(self._append_and_sign, group, limiter=self._thread)
        except SpchainError as error:
            failure = error if isinstance(error, StoreError) else StoreError(str(error))
            # What the same operators made since rests on lines that are not there.
            lost = {write.contract_id for write in group}
            following = [write for write in self._queue if write.contract_id in lost]
            self._queue = [write for write in self._queue if write.contract_id not in lost]
            self._fail([*group, *following], failure)
            return
        except BaseException:
            self._fail(group, StoreError("the node stops"))
            raise
        for write, signed in zip(group, answers, strict=True):
            write.then(signed)
        self._settle(group)

    def _append_and_sign(self, group: Sequence[Write]) -> list[list[Answer]]:
        self._append([line for write in group for line in write.lines])
        return [[write.sign(line.entry) for line in write.lines if isinstance(line.entry, Accepted)] for write in group]

    def _fail(self, writes: Sequence[Write], error: StoreError) -> None:
        for write in writes:
            write.failed(error)
        self._settle(writes)

    def _settle(self, writes: Sequence[Write]) -> None:
        self._unsettled.subtract(write.contract_id for write in writes)
        self._unsettled += Counter()  # without those at zero
        self._settled.set()
        self._settled = trio.Event()
