# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests: one stream each, answered in chunks, bounded on both sides.

A message, request or answer, is a run of CHUNK frames and one END frame that carries its length; instead of an answer one
ERROR frame may come. Over 4 MiB in one write the library's streams stand still (a write waits for credit that the reader
gives only after it has seen the whole); chunks of 128 KiB do not.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from ledger.errors import InvalidInput, NotFound, SpchainError
from p2p.errors import NotAvailable, ProtocolViolation, RequestFailed, RequestFailure, UnknownMethod
from p2p.framing import READ_BYTES, FrameReader, encode_frame
from p2p.host import proposal, read_agreement, reset_stream
from p2p.peers import PeerTable

PROTOCOL = TProtocol("/spchain/request/1")
CHUNK_BYTES = 128 * 1024
"""Payload of one frame."""
MAX_METHOD_BYTES = 64
"""Longest method name."""
MAX_DETAIL_BYTES = 512
"""Longest text of an error."""
RECEIVE_S = 20.0
"""Time for a request to arrive whole; a stream that is opened and left costs a place no longer than this."""
HANDLE_S = 60.0
"""Time for the application to answer."""
REPLY_S = 60.0
"""Time for an answer to be read by the requester."""
DRAIN_S = 2.0
"""How long a request that is answered "busy" is read to its end."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Bytes of all answers being written at once; beyond it requests are answered "busy"."""
MAX_PEER_REPLY_BYTES = MAX_REPLY_BYTES // 4
"""Of these, those to one peer: two of the longest answers. One that reads none must not make all others wait."""
STREAMS_PER_PLACE = 4
"""Request streams of one peer open at once, per request it may have at work; more are reset."""
_POINTS_UNFINISHED = 5
"""Points for a request that takes a place and does not go on: a slow line costs a few, whoever fills all places for long is banned."""

_METHOD = 1
_CHUNK = 2
_END = 3
_ERROR = 4

OnRequest = Callable[[str, str, bytes], Awaitable[bytes]]

log = structlog.get_logger("p2p.requests")


async def ask(stream: INetStream, peer_id: str, method: str, payload: bytes, max_response_bytes: int) -> bytes:
    """Write one request to a stream that was only just opened and read its answer; raises `RequestFailed`."""
    await _write_message(stream, payload, proposal(PROTOCOL) + encode_frame(_METHOD, 0, method.encode()))
    await read_agreement(stream, PROTOCOL)
    answer = bytearray()
    reader = FrameReader(stream, CHUNK_BYTES)
    while True:
        frame = await reader.next()
        if frame.kind == _CHUNK:
            answer += frame.payload
            if len(answer) > max_response_bytes:
                raise RequestFailed(RequestFailure.TOO_LARGE, peer_id, method, f"answer is over {max_response_bytes}")
        elif frame.kind == _END:
            if frame.correlation_id != len(answer):
                break
            await stream.close()
            return bytes(answer)
        elif frame.kind == _ERROR:
            raise RequestFailed(_failure(frame.correlation_id), peer_id, method, _printable(frame.payload))
        else:
            break
    raise ProtocolViolation(f"answer to {method} does not end as it should")


def _failure(code: int) -> RequestFailure:
    try:
        return RequestFailure(code)
    except ValueError:
        return RequestFailure.PROTOCOL


def _printable(text: bytes) -> str:
    decoded = text[:MAX_DETAIL_BYTES].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in decoded)


async def _write_message(stream: INetStream, payload: bytes, head: bytes = b"") -> None:
    end = encode_frame(_END, len(payload), b"")
    if len(payload) <= READ_BYTES:
        chunk = encode_frame(_CHUNK, 0, payload) if payload else b""
        await stream.write(head + chunk + end)
        return
    for offset in range(0, len(payload), CHUNK_BYTES):
        chunk = encode_frame(_CHUNK, offset // CHUNK_BYTES, payload[offset : offset + CHUNK_BYTES])
        await stream.write(head + chunk)
        head = b""
    await stream.write(end)


class RequestServer:
    """Answers the requests of admitted peers."""

    def __init__(
        self,
        peers: PeerTable,
        on_request: OnRequest,
        penalise: Callable[[str, int, str], None],
        *,
        max_request_bytes: int,
        max_response_bytes: int,
        per_peer: int,
        in_total: int,
        admission_timeout_s: float,
    ) -> None:
        self._peers = peers
        self._on_request = on_request
        self._penalise = penalise
        self._max_request_bytes = max_request_bytes
        self._max_response_bytes = max_response_bytes
        self._per_peer = per_peer
        self._in_total = in_total
        self._admission_timeout_s = admission_timeout_s
        self._streams: Counter[str] = Counter()
        self._at_work: Counter[str] = Counter()
        self._reply_bytes: Counter[str] = Counter()

    async def stream_handler(self, stream: INetStream) -> None:
        """Read one request, answer it, end the stream."""
        peer_id = str(stream.muxed_conn.peer_id)
        if self._streams[peer_id] >= STREAMS_PER_PLACE * self._per_peer:
            self._penalise(peer_id, _POINTS_UNFINISHED, "request streams left open")
            await reset_stream(stream)
            return
        self._streams[peer_id] += 1
        answered = False
        try:
            if await self._peers.wait_for(peer_id, self._admission_timeout_s) is not None:
                answered = await self._serve(stream, peer_id)
        except ProtocolViolation as error:
            self._penalise(peer_id, 50, f"request: {error}")
        finally:
            _release(self._streams, peer_id)
            if not answered:
                await reset_stream(stream)

    async def _serve(self, stream: INetStream, peer_id: str) -> bool:
        # The place is taken before the payload is read: what is buffered is bounded by places times size.
        busy = self._at_work[peer_id] >= self._per_peer or self._at_work.total() >= self._in_total
        if busy:
            await self._answer_error(stream, RequestFailure.BUSY, "as many requests as allowed are at work")
            # A reset while the requester still writes would overtake the answer: let it finish, keep nothing.
            with trio.move_on_after(DRAIN_S):
                await self._drain(stream)
            return False
        self._at_work[peer_id] += 1
        answered = False
        try:
            with trio.move_on_after(RECEIVE_S) as receiving:
                method, payload = await self._receive(stream)
                # From here on other limits hold.
                receiving.deadline = math.inf
                answered = await self._work(stream, peer_id, method, payload)
        finally:
            _release(self._at_work, peer_id)
        if receiving.cancelled_caught:
            self._penalise(peer_id, _POINTS_UNFINISHED, "request left unfinished")
        return answered

    async def _receive(self, stream: INetStream) -> tuple[str, bytes]:
        method: str | None = None
        payload = bytearray()
        reader = FrameReader(stream, CHUNK_BYTES)
        while True:
            frame = await reader.next()
            if frame.kind == _METHOD and method is None and len(frame.payload) <= MAX_METHOD_BYTES:
                method = _printable(frame.payload)
            elif frame.kind == _CHUNK and method is not None:
                payload += frame.payload
                if len(payload) > self._max_request_bytes:
                    raise ProtocolViolation(f"request is over {self._max_request_bytes} bytes")
            elif frame.kind == _END and method is not None and frame.correlation_id == len(payload):
                return method, bytes(payload)
            else:
                break
        raise ProtocolViolation("request is not METHOD, CHUNK…, END")

    async def _drain(self, stream: INetStream) -> None:
        left = self._max_request_bytes
        reader = FrameReader(stream, CHUNK_BYTES)
        while True:
            frame = await reader.next()
            left -= len(frame.payload)
            if frame.kind == _END or left < 0:
                return

    async def _work(self, stream: INetStream, peer_id: str, method: str, payload: bytes) -> bool:
        answer = b""
        failure: tuple[RequestFailure, str] | None = None
        with trio.move_on_after(HANDLE_S) as scope:
            try:
                answer = await self._on_request(peer_id, method, payload)
            except UnknownMethod as error:
                failure = RequestFailure.UNKNOWN_METHOD, str(error)
            except (NotAvailable, NotFound) as error:
                failure = RequestFailure.NOT_AVAILABLE, str(error)
            except InvalidInput as error:
                failure = RequestFailure.INVALID, str(error)
                self._penalise(peer_id, 10, f"request {method}: {error}")
            except SpchainError as error:
                failure = RequestFailure.INTERNAL, str(error)
            except Exception:
                # Our own fault, but a peer's message must never stop the node (invariant I13).
                log.exception("request handler failed", peer=peer_id, method=method)
                failure = RequestFailure.INTERNAL, "the node failed inside; its log tells more"
        if scope.cancelled_caught:
            failure = RequestFailure.TIMEOUT, f"no answer within {HANDLE_S} s"
        elif failure is None and len(answer) > self._max_response_bytes:
            failure = (
                RequestFailure.TOO_LARGE,
                f"answer has {len(answer)} bytes, {self._max_response_bytes} are allowed",
            )
        elif failure is None and not self._has_room(peer_id, len(answer)):
            failure = RequestFailure.BUSY, "too many answers are being read"
        if failure is not None:
            return await self._answer_error(stream, *failure)
        self._reply_bytes[peer_id] += len(answer)
        answered = False
        try:
            with trio.move_on_after(REPLY_S):
                await _write_message(stream, answer)
                await stream.close()
                answered = True
        finally:
            _release(self._reply_bytes, peer_id, len(answer))
        return answered

    def _has_room(self, peer_id: str, size_bytes: int) -> bool:
        return (
            self._reply_bytes.total() + size_bytes <= MAX_REPLY_BYTES
            and self._reply_bytes[peer_id] + size_bytes <= MAX_PEER_REPLY_BYTES
        )

    async def _answer_error(self, stream: INetStream, failure: RequestFailure, detail: str) -> bool:
        with trio.move_on_after(REPLY_S) as limit:
            await stream.write(encode_frame(_ERROR, failure.value, detail.encode()[:MAX_DETAIL_BYTES]))
            await stream.close()
        return not limit.cancelled_caught


def _release(counter: Counter[str], peer_id: str, count: int = 1) -> None:
    counter[peer_id] -= count
    if counter[peer_id] <= 0:
        del counter[peer_id]
