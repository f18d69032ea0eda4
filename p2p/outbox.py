# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue of gossip to one peer, bounded in bytes, that makes a publisher wait instead of dropping.

The library's `RpcQueue` holds 32 messages and drops silently. This one has its face (`push`, `pop`, `close`,
`max_message_size`, `split_rpc`), because the library's router pushes control messages into it.
"""

from collections import deque

import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils.varint import encode_uvarint

MAX_QUEUED_BYTES = 8 * 1024 * 1024
"""Bytes waiting for one peer: a quarter of a second of a saturated core, 8 of the largest messages."""
MAX_QUEUED_MESSAGES = 4096
"""Messages waiting for one peer."""
STALLED_S = 2.0
"""A full queue that gets no shorter for this long belongs to a peer that does not read: nobody waits for it any more."""
DRIP_S = 10.0
"""Nor for a peer whose queue stays more than half full for so long, however regularly it reads a little."""
BATCH_BYTES = 64 * 1024
"""Small messages are written together up to one muxer frame."""


class Outbox(RpcQueue):
    """Encoded, length-prefixed gossip frames for one peer."""

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(max_size=MAX_QUEUED_MESSAGES, max_message_size=max_message_bytes)
        self._frames: deque[bytes] = deque()
        self.queued_bytes = 0
        self.lost = 0
        self._filled = trio.Event()
        self._room = trio.Event()
        self._stalled = False
        self._half_full_since_s: float | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        """Queue a control message; the router retries what is refused."""
        # Signed records cost a signature check at each receiver; addresses travel in the greeting instead.
        rpc.ClearField("senderRecord")
        return self.offer(frame_of(rpc))

    def offer(self, frame: bytes) -> bool:
        """Queue a frame if there is room; an empty queue takes any frame."""
        if self.closed:
            return False
        if self._frames and (
            len(self._frames) >= MAX_QUEUED_MESSAGES or self.queued_bytes + len(frame) > MAX_QUEUED_BYTES
        ):
            return False
        self._frames.append(frame)
        self.queued_bytes += len(frame)
        if self._half_full_since_s is None and self.queued_bytes > MAX_QUEUED_BYTES // 2:
            self._half_full_since_s = trio.current_time()
        self._filled.set()
        return True

    async def put(self, frame: bytes) -> bool:
        """Queue a frame as soon as there is room; False if the peer is gone or reads nothing."""
        while not self.offer(frame):
            if self.closed or self._stalled:
                break
            with trio.move_on_after(STALLED_S) as waited:
                await self._room.wait()
            since_s = self._half_full_since_s
            if waited.cancelled_caught or (since_s is not None and trio.current_time() > since_s + DRIP_S):
                self._stalled = True
        else:
            return True
        self.lost += 1
        return False

    async def next_batch(self) -> bytes | None:
        """Wait for frames and take some, joined; None when closed."""
        while not self._frames:
            if self.closed:
                return None
            self._filled = trio.Event()
            await self._filled.wait()
        if self.closed:
            return None
        first = self._frames.popleft()
        if not self._frames or len(first) >= BATCH_BYTES:
            batch = first
        else:
            parts = bytearray(first)
            while self._frames and len(parts) + len(self._frames[0]) <= BATCH_BYTES:
                parts += self._frames.popleft()
            batch = bytes(parts)
        return batch

    def wrote(self, batch: bytes) -> None:
        """Count a batch as gone to the peer: there is room again."""
        self.queued_bytes -= len(batch)
        if self.queued_bytes <= MAX_QUEUED_BYTES // 2:
            self._stalled = False
            self._half_full_since_s = None
        self._room.set()
        self._room = trio.Event()

    def close(self) -> None:
        """Wake everyone who waits: the peer is gone."""
        if not self.closed:
            self.lost += len(self._frames)
            self._frames.clear()
            self.queued_bytes = 0
        super().close()
        self._filled.set()
        self._room.set()


def frame_of(rpc: rpc_pb2.RPC) -> bytes:
    """Return a message as it stands on the stream: its length as a varint, then its bytes."""
    body = rpc.SerializeToString()
    return encode_uvarint(len(body)) + body
