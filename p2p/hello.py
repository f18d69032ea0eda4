# SPDX-License-Identifier: GPL-3.0-or-later
"""The greeting: before anything else two nodes tell each other network, process and statement.

The dialler opens the stream and writes first. The other side admits it and answers, or answers with a reason and
disconnects. The dialler does the same with the answer. Without a greeting in time the connection ends.
"""

from typing import Annotated

import msgspec
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from ledger.codec import Digest, Wire, decode, encode
from ledger.errors import InvalidInput
from p2p.errors import PeerRefused, ProtocolViolation
from p2p.framing import FrameReader, encode_frame

PROTOCOL = TProtocol("/spchain/hello/1")
VERSION = 1
"""Version of all of this package's protocols; peers of another are refused."""
MAX_ADDRESSES = 8
"""Addresses a node tells of itself: a few interfaces."""
MAX_ADDRESS_CHARS = 256
"""Longest multiaddress; one with a DNS name of 253 is longer than anyone needs."""
MAX_REASON_BYTES = 256
"""Longest reason of a refusal."""

_HELLO = 1
_REFUSED = 2
_INSTANCE_BYTES = 8


class Hello(Wire, frozen=True):
    """What a node says of itself."""

    network_id: Digest
    """Genesis hash of the chain."""
    instance: Annotated[bytes, msgspec.Meta(min_length=_INSTANCE_BYTES, max_length=_INSTANCE_BYTES)]
    """Random number of the process."""
    addresses: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)], ...], msgspec.Meta(max_length=MAX_ADDRESSES)
    ]
    """Multiaddresses at which it can be dialled."""
    statement: bytes
    """The application's statement."""


def max_hello_bytes(max_statement_bytes: int) -> int:
    """Return the longest encoded greeting."""
    return max_statement_bytes + MAX_ADDRESSES * (MAX_ADDRESS_CHARS * 4 + 5) + 128


async def write_hello(stream: INetStream, hello: Hello) -> None:
    """Send the greeting."""
    await stream.write(encode_frame(_HELLO, VERSION, encode(hello)))


async def write_refusal(stream: INetStream, reason: str) -> None:
    """Send why the peer is not admitted."""
    await stream.write(encode_frame(_REFUSED, VERSION, reason.encode()[:MAX_REASON_BYTES]))


async def read_hello(stream: INetStream, max_statement_bytes: int) -> Hello:
    """Read the other side's greeting.

    Raises:
        PeerRefused: the other side sent a reason instead.
        InvalidInput: what it sent is no greeting.
    """
    limit = max_hello_bytes(max_statement_bytes)
    frame = await FrameReader(stream, limit).next()
    if frame.kind == _REFUSED:
        reason = frame.payload[:MAX_REASON_BYTES].decode(errors="replace")
        raise PeerRefused("".join(char if char.isprintable() else "?" for char in reason))
    if frame.kind != _HELLO:
        raise ProtocolViolation(f"greeting has kind {frame.kind}; {_HELLO} or {_REFUSED} is expected")
    if frame.correlation_id != VERSION:
        raise InvalidInput(f"peer speaks version {frame.correlation_id}, this node {VERSION}; update the older one")
    hello = decode(Hello, frame.payload, limit)
    if len(hello.statement) > max_statement_bytes:
        raise InvalidInput(f"statement has {len(hello.statement)} bytes; at most {max_statement_bytes} are allowed")
    return hello
