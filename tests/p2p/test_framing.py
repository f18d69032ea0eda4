# SPDX-License-Identifier: GPL-3.0-or-later
import msgpack
import pytest

from p2p.errors import ProtocolViolation
from p2p.framing import READ_BYTES, Frame, FrameCutter, encode_frame


def test_frames_are_cut_whatever_the_chunks() -> None:
    frames = [Frame(1, 0, b""), Frame(7, 2**63 - 1, b"x" * 1000), Frame(2**40, 3, b"\x00\xff")]
    stream = b"".join(encode_frame(*frame) for frame in frames)
    for size in (1, 2, 7, 100, len(stream)):
        cutter = FrameCutter(1000)
        chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [frame for chunk in chunks for frame in cutter.feed(chunk)] == frames


def test_a_long_stream_of_frames_needs_no_more_than_the_bound() -> None:
    cutter = FrameCutter(1000)
    for number in range(5000):
        assert list(cutter.feed(encode_frame(1, number, b"y" * 1000))) == [Frame(1, number, b"y" * 1000)]


@pytest.mark.parametrize(
    "data",
    [
        b"\x93\x01\x02\xc6\x00\x00\x03\xe9" + bytes(1001),  # one byte over the bound
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\x00\x00\x00\x01",  # a map
        b"\xc1",  # a code that MessagePack does not have
        b"\x93" * 2000,  # nested beyond any depth
        msgpack.packb([1, 2]),
        msgpack.packb([1, 2, "text"]),
        msgpack.packb([1, 2, None]),
        msgpack.packb([-1, 2, b""]),
        msgpack.packb([1, 2**63, b""]),
        msgpack.packb([True, 2, b""]),
        msgpack.packb([1.0, 2, b""]),
        msgpack.packb([1, 2, [b""]]),
        msgpack.packb(5),
        msgpack.packb(msgpack.ExtType(5, b"abc")),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_frame_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        list(FrameCutter(1000).feed(data))


def test_a_frame_that_declares_two_gigabytes_is_refused_before_more_than_the_bound_is_stored() -> None:
    cutter = FrameCutter(1000)
    assert list(cutter.feed(b"\x93\x01\x02\xc6\x80\x00\x00\x00")) == []
    assert list(cutter.feed(bytes(READ_BYTES))) == []
    with pytest.raises(ProtocolViolation):
        list(cutter.feed(bytes(READ_BYTES)))


def test_a_violation_after_good_frames_keeps_the_good_ones() -> None:
    frames = FrameCutter(10).feed(encode_frame(1, 1, b"good") + b"\xc1")
    assert next(frames) == Frame(1, 1, b"good")
    with pytest.raises(ProtocolViolation):
        next(frames)
