# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounded muxer over a pipe in memory, and its patience measured on a clock that jumps."""

from typing import Any, NoReturn

import pytest
import trio
import trio.testing
from libp2p.abc import ISecureConn
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError

from p2p.muxer import (
    PING_DEADLINE_S,
    PING_INTERVAL_S,
    RECEIVE_WINDOW_BYTES,
    WINDOW_DEADLINE_S,
    WRITE_DEADLINE_S,
    BoundedYamux,
)

Sides = tuple[BoundedYamux, BoundedYamux]


class Plain(ISecureConn):
    """A "secured" connection over a stream in memory."""

    def __init__(self, stream: trio.abc.Stream, *, is_initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Any]:
        return []

    def get_connection_type(self) -> NoReturn:
        raise AssertionError("the muxer does not ask")

    def get_local_peer(self) -> NoReturn:
        raise AssertionError("the muxer does not ask")

    def get_local_private_key(self) -> NoReturn:
        raise AssertionError("the muxer does not ask")

    def get_remote_peer(self) -> NoReturn:
        raise AssertionError("the muxer does not ask")

    def get_remote_public_key(self) -> NoReturn:
        raise AssertionError("the muxer does not ask")


@pytest.fixture
async def sides(nursery: trio.Nursery) -> Sides:
    left, right = trio.testing.memory_stream_pair()
    one = BoundedYamux(Plain(left, is_initiator=True), ID(b"right"))
    two = BoundedYamux(Plain(right, is_initiator=False), ID(b"left"))
    for side in (one, two):
        nursery.start_soon(side.start)
        await side.event_started.wait()
    return one, two


async def test_bytes_many_windows_long_arrive_whole(sides: Sides, nursery: trio.Nursery) -> None:
    one, two = sides
    data = bytes(range(256)) * (20 * RECEIVE_WINDOW_BYTES // 256)
    out = await one.open_stream()
    nursery.start_soon(out.write, data)
    into = await two.accept_stream()
    got = bytearray()
    while len(got) < len(data):
        got += await into.read(100_000)
    assert got == data


async def test_a_reader_that_waits_holds_no_more_than_its_window(sides: Sides, nursery: trio.Nursery) -> None:
    one, two = sides
    out = await one.open_stream()
    nursery.start_soon(out.write, bytes(8 * RECEIVE_WINDOW_BYTES))
    await two.accept_stream()
    await trio.testing.wait_all_tasks_blocked()
    assert sum(map(len, two.stream_buffers.values())) <= RECEIVE_WINDOW_BYTES


async def test_a_stream_that_stands_still_does_not_hold_another(sides: Sides, nursery: trio.Nursery) -> None:
    one, two = sides
    stuck = await one.open_stream()
    nursery.start_soon(stuck.write, bytes(8 * RECEIVE_WINDOW_BYTES))
    await two.accept_stream()
    await trio.testing.wait_all_tasks_blocked()
    free = await one.open_stream()
    await free.write(b"hello")
    assert await (await two.accept_stream()).read(5) == b"hello"


async def test_a_writer_gives_up_a_reader_that_returns_no_credit(
    autojump_clock: trio.testing.MockClock, sides: Sides
) -> None:
    one, _ = sides
    out = await one.open_stream()
    started = trio.current_time()
    with pytest.raises(MuxedStreamError, match="credit"):
        await out.write(bytes(8 * RECEIVE_WINDOW_BYTES))
    assert trio.current_time() - started >= WINDOW_DEADLINE_S


async def test_a_connection_whose_socket_takes_nothing_ends(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    class Stuck(Plain):
        async def write(self, data: bytes) -> None:
            await trio.sleep_forever()

    left, _ = trio.testing.memory_stream_pair()
    side = BoundedYamux(Stuck(left, is_initiator=True), ID(b"right"))
    nursery.start_soon(side.start)
    await side.event_started.wait()
    with trio.fail_after(WRITE_DEADLINE_S + 5):
        await side.event_closed.wait()


async def test_a_peer_that_vanished_is_noticed(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    left, _right = trio.testing.memory_stream_pair()
    side = BoundedYamux(Plain(left, is_initiator=True), ID(b"right"))
    nursery.start_soon(side.start)
    await side.event_started.wait()
    with trio.fail_after(PING_INTERVAL_S + PING_DEADLINE_S + 5):
        await side.event_closed.wait()


async def test_a_cancelled_write_leaves_the_connection_whole(sides: Sides, nursery: trio.Nursery) -> None:
    one, two = sides
    for _ in range(5):
        stream = await one.open_stream()
        with trio.move_on_after(0):
            await stream.write(b"x" * 1000)
        await stream.reset()
        await two.accept_stream()
    last = await one.open_stream()
    await last.write(b"fine")
    assert await (await two.accept_stream()).read(4) == b"fine"


async def test_closing_does_not_wait_for_a_stuck_writer(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    class Stuck(Plain):
        async def write(self, data: bytes) -> None:
            await trio.sleep_forever()

    left, _ = trio.testing.memory_stream_pair()
    side = BoundedYamux(Stuck(left, is_initiator=True), ID(b"right"))
    nursery.start_soon(side.start)
    await side.event_started.wait()

    async def write() -> None:
        with pytest.raises(MuxedStreamError):
            await side._write_frame(bytes(12))

    nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(0.5):
        await side.close()
