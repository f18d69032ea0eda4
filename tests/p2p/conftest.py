# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Unpack

import pytest
import structlog
import trio

from tests.p2p.kit import ConfigChanges, Node, World


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Print one short line per event: the default renderer draws whole tracebacks with every local variable."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    yield
    structlog.configure(**before)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def one(world: World) -> AsyncIterator[Node]:
    """A node with an honest peer; after each attack both must still talk."""
    async with attacked(world) as node:
        yield node


@pytest.fixture
async def hasty(world: World) -> AsyncIterator[Node]:
    """The same for strangers that say nothing: the node's patience with them ends soon. A stall of this machine may end it sooner."""
    async with attacked(world, hello_timeout_s=1.5, handshake_timeout_s=2.0) as node:
        yield node


@asynccontextmanager
async def attacked(world: World, **changes: Unpack[ConfigChanges]) -> AsyncIterator[Node]:
    one, two = await world.pair(**changes)
    yield one
    assert await two.net.request(one.net.peer_id, "echo", b"still here", timeout_s=60) == b"still here"
    await world.until(lambda: one.net.gossip_service.peer_queues and two.net.gossip_service.peer_queues)
    await two.net.publish("blocks", b"still here")
    await world.until(lambda: any(payload == b"still here" for _, _, payload in one.recorder.gossip))
    assert one.net.send(two.net.peer_id, 1, b"still here")
    await world.until(lambda: (one.net.peer_id, 1, b"still here") in two.recorder.direct)
