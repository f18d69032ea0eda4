# SPDX-License-Identifier: GPL-3.0-or-later
"""Direct messages: one persistent outbound stream per peer, a bounded queue on each side, in order, at most once.

The correlation id of a frame is its number among all that the sending process has sent, to whomever. A batch whose write failed
is sent again on the next stream; the receiver drops what it has by the number. Numbers do not begin anew with a connection: a peer
that has not noticed the end of the one before remembers them. They begin anew with a process: its greeting says that it is another
one, and whoever admits it forgets the link with the one before (`p2p.admission`).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import structlog
import trio
from libp2p.abc import INetStream

from ledger.errors import SpchainError
from p2p.framing import READ_BYTES, Frame, FrameCutter, encode_frame

MAX_QUEUED_FRAMES = 2048
"""Frames waiting for one peer: seconds of consensus messages; more means that it does not read."""
MAX_QUEUED_BYTES = 8 * 1024 * 1024
"""Bytes waiting for one peer; eight of the largest messages."""
MAX_INBOX_FRAMES = 512
"""Frames of one peer waiting for the application; then its stream is not read any further."""
MAX_INBOX_BYTES = 4 * 1024 * 1024
"""Bytes of one peer waiting for the application."""
REOPEN_FIRST_S = 0.05
"""Pause after a stream broke while the connection lives; doubles."""
REOPEN_MAX_S = 2.0
"""Longest such pause."""

log = structlog.get_logger("p2p.direct")

OpenStream = Callable[[], Awaitable[INetStream]]
Deliver = Callable[[int, bytes], Awaitable[None]]
CloseStream = Callable[[INetStream], Awaitable[None]]


class DirectLink:
    """Both directions of direct messages with one peer."""

    def __init__(self, peer_id: str, max_payload_bytes: int, numbers: Iterator[int]) -> None:
        """Take the numbers of frames, rising, from where all links of this process take them."""
        self.peer_id = peer_id
        self.lost = 0
        self._max_payload_bytes = max_payload_bytes
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._outbox_filled = trio.Event()
        self._numbers = numbers
        self._inbox: deque[Frame] = deque()
        self._inbox_bytes = 0
        self._inbox_filled = trio.Event()
        self._inbox_room = trio.Event()
        self._last_number = -1
        self._reader = trio.CancelScope()

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting to be written."""
        return self._outbox_bytes

    def send(self, kind: int, payload: bytes) -> bool:
        """Queue a message; False if the queue is full."""
        if len(self._outbox) >= MAX_QUEUED_FRAMES or self._outbox_bytes + len(payload) > MAX_QUEUED_BYTES:
            return False
        frame = encode_frame(kind, next(self._numbers), payload)
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        self._outbox_filled.set()
        return True

    async def write_loop(self, open_stream: OpenStream, close_stream: CloseStream) -> None:
        """Write what is queued until cancelled, on one stream, opened again whenever it breaks."""
        pause_s = REOPEN_FIRST_S
        while True:
            stream: INetStream | None = None
            try:
                stream = await open_stream()
                while True:
                    await self._write_batch(stream)
                    pause_s = REOPEN_FIRST_S
            except Exception as error:  # noqa: BLE001 -- the library raises many kinds when a stream or connection ends
                log.info("direct stream ended", peer=self.peer_id, error=repr(error)[:200], queued=len(self._outbox))
            finally:
                if stream is not None:
                    await close_stream(stream)
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, REOPEN_MAX_S)

    async def _write_batch(self, stream: INetStream) -> None:
        while not self._outbox:
            self._outbox_filled = trio.Event()
            await self._outbox_filled.wait()
        batch = bytearray()
        count = 0
        for frame in self._outbox:
            if count and len(batch) + len(frame) > READ_BYTES:
                break
            batch += frame
            count += 1
        await stream.write(bytes(batch))
        for _ in range(count):
            self._outbox.popleft()
        self._outbox_bytes -= len(batch)

    def give_up(self) -> int:
        """Stop reading, and count what is still queued as lost, when the peer is gone; returns how many messages that are."""
        # Nobody empties the inbox any more: who waits for room there would wait for ever.
        self._reader.cancel()
        left = len(self._outbox)
        self.lost += left
        self._outbox.clear()
        self._outbox_bytes = 0
        return left

    async def read_stream(self, stream: INetStream) -> None:
        """Read the peer's stream into the inbox; ends with the stream, when the peer opens another, or when it is gone.

        Raises `ProtocolViolation` for bytes that are no frames and the library's errors when the stream ends.
        """
        self._reader.cancel()
        with trio.CancelScope() as self._reader:
            cutter = FrameCutter(self._max_payload_bytes)
            while True:
                chunk = await stream.read(READ_BYTES)
                for frame in cutter.feed(chunk):
                    await self._take(frame)

    async def _take(self, frame: Frame) -> None:
        if frame.correlation_id <= self._last_number:
            return
        while self._inbox and (
            len(self._inbox) >= MAX_INBOX_FRAMES or self._inbox_bytes + len(frame.payload) > MAX_INBOX_BYTES
        ):
            self._inbox_room = trio.Event()
            await self._inbox_room.wait()
        self._last_number = frame.correlation_id
        self._inbox.append(frame)
        self._inbox_bytes += len(frame.payload)
        self._inbox_filled.set()

    async def deliver_loop(self, deliver: Deliver, penalise: Callable[[str], None]) -> None:
        """Hand the inbox to the application, one message after the other, until cancelled."""
        while True:
            while not self._inbox:
                self._inbox_filled = trio.Event()
                await self._inbox_filled.wait()
            frame = self._inbox.popleft()
            self._inbox_bytes -= len(frame.payload)
            self._inbox_room.set()
            try:
                await deliver(frame.kind, frame.payload)
            except SpchainError as error:
                penalise(f"direct message of kind {frame.kind}: {error}")
            except Exception:
                # Our own fault, but a peer's message must never stop the node (invariant I13).
                log.exception("direct handler failed", peer=self.peer_id, kind=frame.kind)
