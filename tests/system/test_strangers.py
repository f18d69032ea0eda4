# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer that sends rubbish, huge frames or nothing at all: the network goes on committing (I13)."""

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from node.actions import NetworkRules
from node.devnet import Devnet
from tests.system.kit import Load, agree, no_traceback, settle_all

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

CONNECTIONS = 30
MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"


def _nothing(line: socket.socket) -> None:
    del line


def _rubbish(line: socket.socket) -> None:
    line.sendall(random.Random(7).randbytes(100_000))


def _huge_greeting(line: socket.socket) -> None:
    # The length of the first frame, as a varint: 2⁶³ − 1.
    line.sendall(b"\xff" * 8 + b"\x7f" + bytes(100_000))


def _huge_handshake(line: socket.socket) -> None:
    line.sendall(MULTISTREAM + NOISE + struct.pack(">H", 65535) + bytes(65535) * 4)


def _half_a_greeting(line: socket.socket) -> None:
    line.sendall(MULTISTREAM[:9])


@contextmanager
def attacked(devnet: Devnet, index: int, attack: Callable[[socket.socket], None]) -> Iterator[None]:
    """Hold connections to a node's port for other nodes, and do something odd on each."""
    port = int(devnet.manifest.nodes[index].p2p_address.split("/")[4])
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            # The node may refuse or cut the connection at any moment: that is its right.
            with suppress(OSError):
                line = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                attack(line)
        yield


@pytest.mark.parametrize("attack", [_nothing, _rubbish, _huge_greeting, _huge_handshake, _half_a_greeting])
def test_the_network_commits_while_a_stranger_misbehaves(
    devnet: Devnet, rules: NetworkRules, attack: Callable[[socket.socket], None]
) -> None:
    with attacked(devnet, 1, attack), Load(devnet, rules, (0, 1)) as load:
        load.reach(40)
    assert not load.failures
    settle_all(devnet, load)
    agree(devnet)
    devnet.wait_connected()
    no_traceback(devnet)
