# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames `[kind, correlation_id, payload]` on a byte stream, cut by a bounded streaming `msgpack.Unpacker`.

The bounds stand in the unpacker itself: a frame that declares gigabytes is refused as soon as more than the longest
allowed payload and one read are buffered, whatever it declares.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgpack

from p2p.errors import ProtocolViolation

READ_BYTES = 64 * 1024
"""How much is asked of a stream at once: one muxer frame."""
_HEADER_BYTES = 32
"""Room for the array head, two integers of 9 bytes and the head of the payload."""
_MAX_UINT = 2**63 - 1

_packer = msgpack.Packer(use_bin_type=True)


class Readable(Protocol):
    """What a stream offers to a reader."""

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes."""
        ...


class Frame(NamedTuple):
    """One frame."""

    kind: int
    """What the payload is; each protocol has its own numbers."""
    correlation_id: int
    """Sequence number or error code, by kind."""
    payload: bytes
    """The content."""


def encode_frame(kind: int, correlation_id: int, payload: bytes) -> bytes:
    """Return the bytes of one frame."""
    return _packer.pack((kind, correlation_id, payload))  # type: ignore[no-any-return]  # msgpack ships no types


class FrameCutter:
    """Cuts frames out of chunks of bytes; raises `ProtocolViolation` for whatever is not a frame."""

    def __init__(self, max_payload_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=False,
            # What was read but not yet taken plus one read: feed() is always followed by taking all whole frames.
            max_buffer_size=max_payload_bytes + _HEADER_BYTES + READ_BYTES,
            max_bin_len=max_payload_bytes,
            max_array_len=3,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Take a chunk of at most `READ_BYTES` and yield the frames that it completes."""
        try:
            self._unpacker.feed(chunk)
            for value in self._unpacker:
                yield self._check(value)
        except (msgpack.exceptions.UnpackException, ValueError) as error:
            raise ProtocolViolation(f"stream holds no frame [kind, correlation_id, payload]: {error!r}") from error

    def _check(self, value: object) -> Frame:
        match value:
            case (int(kind), int(correlation_id), bytes(payload)) if (
                not isinstance(kind, bool)
                and not isinstance(correlation_id, bool)
                and 0 <= kind <= _MAX_UINT
                and 0 <= correlation_id <= _MAX_UINT
            ):
                return Frame(kind, correlation_id, payload)
        raise ProtocolViolation(f"frame is {str(value)[:80]}; [kind, correlation_id, payload] is expected")


class FrameReader:
    """Frames of a stream one by one. A class because an async generator left early is cleaned up at an unknown time."""

    def __init__(self, stream: Readable, max_payload_bytes: int) -> None:
        self._stream = stream
        self._cutter = FrameCutter(max_payload_bytes)
        self._whole: Iterator[Frame] = iter(())

    async def next(self) -> Frame:
        """Return the next frame; raises `ProtocolViolation`, or the stream's errors at its end."""
        while True:
            for frame in self._whole:
                return frame
            self._whole = self._cutter.feed(await self._stream.read(READ_BYTES))
