# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of peers: their one accepted form, and a bounded book of them with when to dial next."""

import ipaddress
import random
from dataclasses import dataclass
from enum import IntEnum

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from ledger.errors import InvalidInput

MAX_ENTRIES = 1024
"""Peers in the book: twenty times the peers of a node; hearsay gives way to peers met, and of these who is gone to who is there."""
MAX_ADDRESSES = 8
"""Addresses per peer."""
MAX_CHARS = 256
"""Longest address."""
HEARSAY_ATTEMPTS = 6
"""Failed dials after which a peer that was only heard of is forgotten."""
JITTER = 0.25
"""Share by which pauses vary, so that nodes that lost each other at one moment do not dial at one moment."""

_ID_PREFIX = bytes.fromhex("002408011220")
_ID_BYTES = 38
"""An identity is the Ed25519 public key itself: an identity multihash of its protobuf."""


@dataclass(frozen=True)
class Address:
    """One dialable address of one peer."""

    peer_id: str
    """Whose."""
    text: str
    """Multiaddress with the peer's identity at its end."""
    dial: Multiaddr
    """The same for the library."""
    is_loopback: bool
    """Whether it only leads to the same machine."""


def parse_address(text: str) -> Address:
    """Parse "/ip4|ip6|dns4|dns6/…/tcp/<port>/p2p/<id>"; raises `InvalidInput` for any other."""
    hint = f"address {text[:120]!r} is not /ip4|ip6|dns4|dns6/<host>/tcp/<port>/p2p/<id>"
    if len(text) > MAX_CHARS or not text.isascii():
        raise InvalidInput(hint)
    parts = text.split("/")
    if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
        raise InvalidInput(hint)
    _, kind, host, _, port, _, peer_id = parts
    try:
        if kind in ("ip4", "ip6"):
            ip = ipaddress.ip_address(host)
            if ip.version != int(kind[2]) or ip.is_unspecified or ip.is_multicast:
                raise InvalidInput(hint)
            loopback = ip.is_loopback
        elif kind in ("dns4", "dns6"):
            loopback = host == "localhost"
        else:
            raise InvalidInput(hint)
        if not 0 < int(port) < 2**16:
            raise InvalidInput(hint)
        # Only the identity of an Ed25519 key, spelled in one way: identities are compared as text.
        key = ID.from_base58(peer_id)
        raw = key.to_bytes()
        if str(key) != peer_id or len(raw) != _ID_BYTES or not raw.startswith(_ID_PREFIX):
            raise InvalidInput(hint)
        dial = Multiaddr(text)
    except InvalidInput:
        raise
    except Exception as error:
        # The parsers raise many kinds, also LookupError and their own.
        raise InvalidInput(f"{hint}: {error}") from error
    return Address(peer_id, text, dial, loopback)


def is_loopback_host(host: str) -> bool:
    """Whether a remote socket address is on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Standing(IntEnum):
    """How a peer came into the book; higher stays longer."""

    HEARSAY = 0
    """Another peer or the local network named it."""
    MET = 1
    """It was admitted once."""
    BOOTSTRAP = 2
    """The operator named it."""


@dataclass
class Entry:
    """A peer that can be dialled."""

    peer_id: str
    """Who."""
    addresses: list[Address]
    """Where, the last that worked first."""
    standing: Standing
    """How it came in."""
    failures: int = 0
    """Failed dials since it was last connected."""
    next_dial_s: float = 0.0
    """When to dial, on Trio's clock."""
    dialling: bool = False
    """Whether a dial is under way."""


class AddressBook:
    """Whom to dial, where and when."""

    def __init__(self, own_id: str, first_s: float, max_s: float, randomness: random.Random) -> None:
        self._own_id = own_id
        self._first_s = first_s
        self._max_s = max_s
        self._random = randomness
        self._entries: dict[str, Entry] = {}

    def get(self, peer_id: str) -> Entry | None:
        """Return what is known of a peer."""
        return self._entries.get(peer_id)

    def all(self) -> list[Entry]:
        """Return all entries."""
        return list(self._entries.values())

    def learn(self, address: Address, standing: Standing, now: float) -> bool:
        """Add an address; return whether there is now something new to dial."""
        if address.peer_id == self._own_id:
            return False
        entry = self._entries.get(address.peer_id)
        if entry is None:
            if len(self._entries) >= MAX_ENTRIES and not self._make_room(standing):
                return False
            # Of two that hear of each other at one moment the one with the smaller identity dials first.
            wait = 0.0 if standing == Standing.BOOTSTRAP or self._own_id < address.peer_id else 1.5
            entry = Entry(address.peer_id, [], standing, next_dial_s=now + self._jittered(wait))
            self._entries[address.peer_id] = entry
        entry.standing = max(entry.standing, standing)
        if address in entry.addresses:
            return False
        # Hearsay never pushes out an address that a peer gave of itself or the operator gave.
        if standing >= entry.standing:
            entry.addresses.insert(0, address)
            del entry.addresses[MAX_ADDRESSES:]
        elif len(entry.addresses) < MAX_ADDRESSES:
            entry.addresses.append(address)
        return True

    def _make_room(self, standing: Standing) -> bool:
        """Forget a peer of lower standing, or one of the same that cannot be reached: whom we met once may be gone for good."""
        victims = [
            entry
            for entry in self._entries.values()
            if not entry.dialling and (entry.standing < standing or (entry.standing == standing and entry.failures))
        ]
        if not victims:
            return False
        victim = min(victims, key=lambda entry: (entry.standing, -entry.failures))
        del self._entries[victim.peer_id]
        return True

    def worked(self, entry: Entry, address: Address | None) -> None:
        """Note that the peer is connected, by which address if we dialled."""
        entry.failures = 0
        if address is not None and address in entry.addresses:
            entry.addresses.remove(address)
            entry.addresses.insert(0, address)

    def failed(self, entry: Entry, now: float) -> None:
        """Note a failed dial of all addresses: the pause doubles; hearsay is forgotten after a few."""
        entry.failures += 1
        pause = min(self._first_s * 2.0 ** min(entry.failures - 1, 16), self._max_s)
        entry.next_dial_s = now + self._jittered(pause)
        if entry.standing == Standing.HEARSAY and entry.failures >= HEARSAY_ATTEMPTS:
            self._entries.pop(entry.peer_id, None)

    def lost(self, entry: Entry, now: float) -> None:
        """Note that a connected peer is gone: dial soon."""
        entry.next_dial_s = max(entry.next_dial_s, now + self._jittered(self._first_s / 2))

    def _jittered(self, pause_s: float) -> float:
        return pause_s * self._random.uniform(1 - JITTER, 1 + JITTER)
