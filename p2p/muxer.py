# SPDX-License-Identifier: GPL-3.0-or-later
"""Yamux of libp2p 0.8.1 with its bounds enforced, its writes cancel-safe and its dead peers found.

What the library leaves open, and what this module does about it:

1. A receive window is announced but not enforced: data beyond it is buffered without end. Here the connection ends.
2. Inbound streams are not counted: each SYN costs a task. Here the connection ends at `MAX_INBOUND_STREAMS`.
3. A cancelled write may leave half a Noise message on the socket (or a nonce without its message), which breaks the
   connection for everyone. Here a frame is written under a shield with a deadline of its own.
4. A writer with an exhausted window polls every 10 ms and gives up after 5 s. Here it is woken.
5. Each `read()` of a few bytes sends a WINDOW_UPDATE frame. Here credit returns in halves of the window.
6. The round trip is measured by a ping whose missing answer is ignored, so a peer that vanished without FIN stays
   "connected" for TCP's 15 minutes. Here a missing answer ends the connection.
7. `close()` sleeps 0.1 s and waits for a stuck writer. Here it does neither.
8. The muxer factory names its `Yamux` class itself and ignores the one passed in: hence `BoundedMuxer`.
"""

import struct
from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux import yamux as library

RECEIVE_WINDOW_BYTES = 512 * 1024
"""Window of a busy stream: 10 MB/s at a round trip of 50 ms, and what a peer can make us hold per stream."""
MAX_INBOUND_STREAMS = 128
"""Open streams a peer may hold: gossip, direct, greeting and a burst of requests, far below what would hurt."""
WRITE_DEADLINE_S = 20.0
"""A socket that takes no byte for this long is dead."""
WINDOW_DEADLINE_S = 20.0
"""A reader that returns no credit for this long is given up."""
PING_INTERVAL_S = 10.0
"""Between two measurements of the round trip."""
PING_DEADLINE_S = 10.0
"""An unanswered ping ends the connection after this: a vanished peer is noticed within 20 s."""
GO_AWAY_DEADLINE_S = 0.1
"""How long a closing connection tries to say so."""
_MAX_CHUNK_BYTES = 65519 - library.HEADER_SIZE
"""One muxer frame fits one Noise message; the library's own choice needs two."""


class PeerExceededBoundsError(trio.TooSlowError):
    """A peer went over a bound. A `TooSlowError` because `Yamux.handle_incoming` closes the connection on that only."""


class _Streams(dict[int, library.YamuxStream]):
    """Streams of a connection: counts the inbound ones and gives each the better read and write."""

    def __setitem__(self, stream_id: int, stream: library.YamuxStream) -> None:
        if not stream.is_initiator:
            inbound = sum(1 for other in self.values() if not other.is_initiator)
            if inbound >= MAX_INBOUND_STREAMS:
                raise PeerExceededBoundsError(f"peer holds {inbound} streams open; {MAX_INBOUND_STREAMS} are allowed")
        # The library creates streams by the class's global name; this is the one place that sees all of them first.
        stream.__class__ = BoundedStream
        super().__setitem__(stream_id, stream)


class _Buffer(bytearray):
    """Unread bytes of one stream."""

    def extend(self, data: Any) -> None:  # noqa: ANN401 -- the signature of bytearray
        if len(self) + len(data) > RECEIVE_WINDOW_BYTES + library.DEFAULT_WINDOW_SIZE:
            raise PeerExceededBoundsError(f"peer sent {len(self) + len(data)} bytes beyond its window")
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    """Unread bytes by stream."""

    def __setitem__(self, stream_id: int, data: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(data))


class BoundedStream(library.YamuxStream):
    """A stream with one writer at a time, woken by credit; `__init__` never runs (see `_Streams`)."""

    @property
    def send_window(self) -> int:
        """Bytes that may be sent before more credit arrives."""
        return int(self.__dict__["send_window"])

    @send_window.setter
    def send_window(self, value: int) -> None:
        self.__dict__["send_window"] = value
        credit: trio.Event | None = self.__dict__.pop("credit", None)
        if credit is not None:
            credit.set()

    async def write(self, data: bytes) -> None:
        """Write all of `data`; raises `MuxedStreamError` if the stream is closed or the reader returns no credit."""
        sent = 0
        while sent < len(data):
            if self.send_closed or self.closed:
                raise MuxedStreamError("stream is closed for sending")
            if self.send_window <= 0:
                await self._wait_for_credit()
                continue
            chunk = data[sent : sent + min(self.send_window, _MAX_CHUNK_BYTES)]
            self.send_window -= len(chunk)
            header = struct.pack(library.YAMUX_HEADER_FORMAT, 0, library.TYPE_DATA, 0, self.stream_id, len(chunk))
            await self.conn._write_frame(header + chunk)
            sent += len(chunk)

    async def _wait_for_credit(self) -> None:
        deadline = trio.current_time() + WINDOW_DEADLINE_S
        while self.send_window <= 0 and not self.closed and not self.send_closed:
            if trio.current_time() >= deadline:
                raise MuxedStreamError(f"peer returned no credit for {WINDOW_DEADLINE_S} s")
            credit = self.__dict__.setdefault("credit", trio.Event())
            # A closed stream sets no credit: look again now and then. Only stalled writers get here.
            with trio.move_on_after(0.25):
                await credit.wait()

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        self._pending_recv_release += bytes_read
        if self._pending_recv_release * 2 < self.target_recv_window:
            return
        increment = self._pending_recv_release
        self._pending_recv_release = 0
        if self.target_recv_window < RECEIVE_WINDOW_BYTES:
            increment += RECEIVE_WINDOW_BYTES - self.target_recv_window
            self.target_recv_window = RECEIVE_WINDOW_BYTES
        self.recv_window += increment
        await self.send_window_update(increment)


class BoundedYamux(library.Yamux):
    """A connection of streams; see the module's text."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=secured_conn.is_initiator)
        self.streams = _Streams()
        self.stream_buffers = _Buffers()
        self._write_scope: trio.CancelScope | None = None

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_DEADLINE_S) as scope:
                self._write_scope = scope
                try:
                    await self.secured_conn.write(data)
                finally:
                    self._write_scope = None
        if scope.cancelled_caught:
            await self.abort()
            raise MuxedStreamError("peer takes no bytes; connection closed")

    async def _measure_rtt_loop(self) -> None:
        # The library waits this long too: the other side's muxer must be up before it can answer.
        await trio.sleep(0.5)
        while not self.event_shutting_down.is_set():
            self._ping_id = (self._ping_id + 1) % 2**32
            self._ping_event = trio.Event()
            header = struct.pack(library.YAMUX_HEADER_FORMAT, 0, library.TYPE_PING, library.FLAG_SYN, 0, self._ping_id)
            self._ping_sent_time = trio.current_time()
            try:
                await self._write_frame(header)
            except Exception:  # noqa: BLE001 -- whatever broke the write has ended the connection
                return
            with trio.move_on_after(PING_DEADLINE_S) as waited:
                await self._ping_event.wait()
            if waited.cancelled_caught:
                await self.abort()
                return
            with trio.move_on_after(PING_INTERVAL_S):
                await self.event_shutting_down.wait()

    async def abort(self) -> None:
        """End the connection without a word."""
        self.event_shutting_down.set()
        if self._write_scope is not None:
            self._write_scope.cancel()
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()

    async def close(self, error_code: int = library.GO_AWAY_NORMAL) -> None:
        """End the connection, telling the peer if that is possible at once."""
        if self.event_closed.is_set():
            return
        if not self.event_shutting_down.is_set():
            self.event_shutting_down.set()
            if self._write_scope is None:
                header = struct.pack(library.YAMUX_HEADER_FORMAT, 0, library.TYPE_GO_AWAY, 0, 0, error_code)
                limit = trio.CancelScope(shield=True, deadline=trio.current_time() + GO_AWAY_DEADLINE_S)
                with limit, suppress(Exception):  # a peer that is gone already need not be told
                    await self.secured_conn.write(header)
        await self.abort()


class BoundedMuxer(MuxerMultistream):
    """Negotiates the muxer and makes it a `BoundedYamux`."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Return the multiplexed connection over `conn`."""
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        assert protocol == TProtocol(library.PROTOCOL_ID), f"only Yamux is offered, {protocol} was agreed"
        return self._annotate_connection(BoundedYamux(conn, peer_id), conn, protocol)
