# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of gossip messages, each memory bounded, and the library's router that uses it."""

from collections import OrderedDict, deque
from functools import lru_cache

import trio
from libp2p.crypto.keys import KeyType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.mcache import MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.tools.timed_cache.last_seen_cache import LastSeenCache

from ledger.errors import InvalidInput
from p2p.errors import ProtocolViolation

PROTOCOL = TProtocol("/meshsub/1.1.0")
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
"""Mesh degrees of GossipSub."""
MAX_SEEN = 1 << 16
"""Message ids remembered: a minute at 1 000 messages a second, about 12 MB."""
MAX_RECENT_BYTES = 16 * 1024 * 1024
"""Bytes of recent messages kept to answer IWANT."""
MAX_INBOX_BYTES = 16 * 1024 * 1024
"""Bytes of one topic waiting for the application; then no peer's gossip is read any further."""
MAX_INBOX_MESSAGES = 4096
"""Messages of one topic waiting for the application."""
SIGNING_PREFIX = PUBSUB_SIGNING_PREFIX.encode()
_MAX_ID_BYTES = 64


class SeenMessages(LastSeenCache):
    """Ids of messages that need not be looked at again; the oldest go first.

    Its base is for the type only: that one keeps a thread per instance and whatever it saw in two minutes.
    """

    def __init__(self) -> None:
        # Not the base's: it starts the thread.
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def has(self, message_id: bytes) -> bool:
        """Whether the message was seen."""
        return message_id in self._ids

    def add(self, message_id: bytes) -> bool:
        """Remember a message; False if it was there."""
        if message_id in self._ids:
            return False
        self._ids[message_id] = None
        if len(self._ids) > MAX_SEEN:
            self._ids.popitem(last=False)
        return True

    def forget(self, message_id: bytes) -> None:
        """Forget a message that was not taken after all."""
        self._ids.pop(message_id, None)

    def stop(self) -> None:
        """Nothing runs here."""


class RecentMessages(MessageCache):
    """The library's cache of recent messages, bounded in bytes."""

    def __init__(self) -> None:
        super().__init__(window_size=3, history_size=5)
        self._bytes = 0

    def put(self, msg: rpc_pb2.Message) -> None:
        """Keep a message while there is room; the window moves on every heartbeat."""
        if self._bytes + len(msg.data) <= MAX_RECENT_BYTES:
            self._bytes += len(msg.data)
            super().put(msg)

    def shift(self) -> None:
        """Forget the oldest heartbeat's messages."""
        super().shift()
        self._bytes = sum(len(message.data) for message in self.msgs.values())


class Router(GossipSub):
    """Mesh upkeep of the library; see `p2p.gossip` for what is not used of it."""

    def __init__(self) -> None:
        super().__init__(
            [PROTOCOL],
            DEGREE,
            DEGREE_LOW,
            DEGREE_HIGH,
            heartbeat_interval=1,
            spam_protection_enabled=False,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
            do_px=False,
        )
        self.mcache = RecentMessages()

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """Flush nothing: nothing is held back."""

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Replay nothing: what a newcomer lacks it fetches by request."""

    async def _do_px(self, px_peers: list[rpc_pb2.PeerInfo]) -> None:
        """Dial nobody on a peer's word."""


class Inbox:
    """Messages of one topic waiting for the application; whoever waits for room gets it in turn."""

    def __init__(self) -> None:
        self._messages: deque[tuple[ID, rpc_pb2.Message]] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._turn = trio.Lock()
        self._room = trio.Event()

    async def put(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        """Add a message as soon as there is room."""
        async with self._turn:
            while self._messages and (
                len(self._messages) >= MAX_INBOX_MESSAGES or self._bytes + len(message.data) > MAX_INBOX_BYTES
            ):
                self._room = trio.Event()
                await self._room.wait()
            self._messages.append((forwarder, message))
            self._bytes += len(message.data)
            self._filled.set()

    async def get(self) -> tuple[ID, rpc_pb2.Message]:
        """Wait for a message and take it."""
        while not self._messages:
            self._filled = trio.Event()
            await self._filled.wait()
        forwarder, message = self._messages.popleft()
        self._bytes -= len(message.data)
        self._room.set()
        return forwarder, message


def cut_frame(buffer: bytearray, max_bytes: int) -> bytes | None:
    """Take one whole length-prefixed frame off the front of `buffer`; None if it is not all there.

    Raises `ProtocolViolation` for a length over `max_bytes`.
    """
    length = 0
    for index, byte in enumerate(buffer[:5]):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            start = index + 1
            break
    else:
        if len(buffer) >= 5:
            raise ProtocolViolation("length of a gossip frame does not end")
        return None
    if length > max_bytes:
        raise ProtocolViolation(f"gossip frame declares {length} bytes; at most {max_bytes} are allowed")
    if len(buffer) < start + length:
        return None
    body = bytes(buffer[start : start + length])
    del buffer[: start + length]
    return body


class Origin:
    """Who signs messages: its identity as text and its key, worked out once; both cost more than a small message."""

    def __init__(self, raw: bytes) -> None:
        key = ID(raw)
        public_key = key.extract_public_key()
        if public_key is None or public_key.get_type() != KeyType.Ed25519:
            raise InvalidInput("origin is not an Ed25519 identity")
        self.peer_id = str(key)
        self._public_key = public_key

    def signed(self, message: rpc_pb2.Message) -> bool:
        """Whether the message carries this origin's signature over everything in it."""
        body = rpc_pb2.Message(
            data=message.data, topicIDs=message.topicIDs, from_id=message.from_id, seqno=message.seqno
        )
        try:
            return self._public_key.verify(SIGNING_PREFIX + body.SerializeToString(), message.signature)
        except Exception:  # noqa: BLE001 -- NaCl raises several kinds for signatures of a wrong length
            return False


@lru_cache(maxsize=1024)
def origin_of(raw: bytes) -> Origin | None:
    """Return an origin, None for bytes that are no identity of ours; remembers a few hundred kilobytes at most."""
    if len(raw) > _MAX_ID_BYTES:
        return None
    try:
        return Origin(raw)
    except Exception:  # noqa: BLE001 -- the library raises whatever its key parsers raise
        return None
