# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose wires are tapped: `python tapped_node.py DATA_DIR TAP_DIR` runs a real one and writes down all that passes.

    TAP_DIR/socket-N-in, -out   bytes of each TCP connection as they come and go: peers' under Noise, clients' HTTP in clear
    TAP_DIR/clear               what peers say after decryption: payloads of gossip, direct messages, requests and answers

All the rest is the program that honest operators run.
"""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import trio

from node import run
from node.config import load_config
from node.handlers import NetworkHandlers
from node.keystore import passphrase_from_file, read_key
from p2p.network import Network


class Tap:
    """Files that grow by what passes."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._numbers = itertools.count(len(list(directory.iterdir())))
        self._streams: dict[int, tuple[BinaryIO, BinaryIO]] = {}
        self._clear = (directory / "clear").open("ab", buffering=0)

    def clear(self, *payloads: bytes | str) -> None:
        """Write down what was said."""
        for payload in payloads:
            self._clear.write(payload if isinstance(payload, bytes) else payload.encode())

    def socket(self, stream: object, direction: int, data: bytes) -> None:
        """Write down what came (0) or went (1) on a connection."""
        # An identity that is taken again by a later connection only makes a file longer.
        if id(stream) not in self._streams:
            name = f"socket-{next(self._numbers)}"
            files = [(self._directory / f"{name}-{way}").open("ab", buffering=0) for way in ("in", "out")]
            self._streams[id(stream)] = (files[0], files[1])
        self._streams[id(stream)][direction].write(data)


def tap_sockets(tap: Tap) -> None:
    """Write down all that TCP connections carry."""
    send, receive = trio.SocketStream.send_all, trio.SocketStream.receive_some

    async def send_all(self: trio.SocketStream, data: bytes | bytearray | memoryview) -> None:
        said = bytes(data)
        tap.socket(self, 1, said)
        await send(self, said)

    async def receive_some(self: trio.SocketStream, max_bytes: int | None = None) -> bytes:
        data = bytes(await receive(self, max_bytes))
        tap.socket(self, 0, data)
        return data

    setattr(trio.SocketStream, "send_all", send_all)  # noqa: B010 -- what every connection of the process goes through
    setattr(trio.SocketStream, "receive_some", receive_some)  # noqa: B010


def tap_peers(tap: Tap) -> None:
    """Write down what peers tell this node, and it them, in clear."""
    gossip, direct, request = NetworkHandlers.on_gossip, NetworkHandlers.on_direct, NetworkHandlers.on_request
    publish, send, ask = Network.publish, Network.send, Network.request

    async def on_gossip(self: NetworkHandlers, topic: str, origin: str, payload: bytes) -> None:
        tap.clear(topic, payload)
        await gossip(self, topic, origin, payload)

    async def on_direct(self: NetworkHandlers, peer_id: str, kind: int, payload: bytes) -> None:
        tap.clear(payload)
        await direct(self, peer_id, kind, payload)

    async def on_request(self: NetworkHandlers, peer_id: str, method: str, payload: bytes) -> bytes:
        tap.clear("asked ", method, payload)
        answer = await request(self, peer_id, method, payload)
        tap.clear(answer)
        return answer

    async def publish_tapped(self: Network, topic: str, payload: bytes) -> None:
        tap.clear(topic, payload)
        await publish(self, topic, payload)

    def send_tapped(self: Network, peer_id: str, kind: int, payload: bytes) -> bool:
        tap.clear(payload)
        return send(self, peer_id, kind, payload)

    async def ask_tapped(self: Network, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        tap.clear("asks ", method, payload)
        answer = await ask(self, peer_id, method, payload, timeout_s=timeout_s)
        tap.clear(answer)
        return answer

    replaced: tuple[tuple[type, str, Callable[..., object]], ...] = (
        (NetworkHandlers, "on_gossip", on_gossip),
        (NetworkHandlers, "on_direct", on_direct),
        (NetworkHandlers, "on_request", on_request),
        (Network, "publish", publish_tapped),
        (Network, "send", send_tapped),
        (Network, "request", ask_tapped),
    )
    for owner, name, tapped in replaced:
        setattr(owner, name, tapped)


def main(data_dir: Path, tap_dir: Path) -> int:
    """Run the node until SIGINT or SIGTERM."""
    tap = Tap(tap_dir)
    tap_sockets(tap)
    tap_peers(tap)
    config = load_config(data_dir, os.environ, {})
    assert config.passphrase_file is not None, "a devnet has one"
    return run.run_node(config, read_key(config.key_file, passphrase_from_file(config.passphrase_file)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
