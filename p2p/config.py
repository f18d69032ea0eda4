# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the network and what the application provides to it."""

from dataclasses import dataclass
from typing import Protocol

from ledger.errors import InvalidInput

MIB = 1024 * 1024


@dataclass(frozen=True)
class NetworkConfig:
    """All settings of `open_network`; every limit has a default that suits a node of 200 MB."""

    identity_seed: bytes
    """Ed25519 seed of the node's network identity, 32 bytes, secret."""
    network_id: bytes
    """Hash of the genesis, 32 bytes; peers of another network are refused with a reason."""
    listen: str
    """Address and port to listen on, "127.0.0.1:0"; port 0 lets the system choose, "[::]:4001" is IPv6."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddresses "/ip4/…/tcp/…/p2p/<id>" that are dialled for ever."""
    mdns: bool = False
    """Whether to announce and look for peers on the local network by multicast DNS."""
    max_peers: int = 50
    """Peers admitted at once, in both directions together."""
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of the ones listened on, for nodes behind address translation."""
    topics: tuple[str, ...] = ("batches", "blocks", "consensus", "transactions", "evidence")
    """Gossip topics; an unused one costs nothing, one that is not listed cannot be published to."""
    max_gossip_bytes: int = MIB
    """Longest gossip payload: two of the largest batches fit."""
    max_direct_bytes: int = MIB
    """Longest direct payload."""
    max_request_bytes: int = 2 * MIB
    """Longest request payload; with 32 at work at once that is 64 MiB."""
    max_response_bytes: int = 8 * MIB
    """Longest answer."""
    max_statement_bytes: int = 4096
    """Longest application statement in a greeting."""
    requests_per_peer: int = 8
    """Requests of one peer worked on at once; more are answered "busy"."""
    requests_in_total: int = 32
    """Requests of all peers worked on at once; more are answered "busy"."""
    handshake_timeout_s: float = 5.0
    """Time from the TCP connection to the encrypted, multiplexed one; a silent dialler is dropped then."""
    hello_timeout_s: float = 5.0
    """Time from the encrypted connection to a complete greeting."""
    dial_timeout_s: float = 5.0
    """Time for one dial up to the encrypted, multiplexed connection."""
    redial_first_s: float = 0.5
    """Pause after the first failed dial; it doubles up to `redial_max_s`, with 25 % jitter."""
    redial_max_s: float = 30.0
    """Longest pause between dials of a bootstrap or known peer."""
    exchange_interval_s: float = 15.0
    """Pause between two exchanges of addresses with peers, with 25 % jitter."""
    ban_points: int = 100
    """Penalty points at which a peer is disconnected and banned."""
    ban_s: float = 600.0
    """How long a ban lasts."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, each with its remedy."""
        if len(self.identity_seed) != 32:
            raise InvalidInput(f"identity_seed has {len(self.identity_seed)} bytes; an Ed25519 seed has 32")
        if len(self.network_id) != 32:
            raise InvalidInput(f"network_id has {len(self.network_id)} bytes; the genesis hash has 32")
        if self.max_peers < 1:
            raise InvalidInput(f"max_peers is {self.max_peers}; a node needs at least 1")
        if len(set(self.topics)) != len(self.topics):
            raise InvalidInput(f"topics {self.topics} names one twice; list each once")


class Handlers(Protocol):
    """What the application answers to the network. Coroutines may wait: that slows their source down, nobody else."""

    def hello(self) -> bytes:
        """Return the statement sent to each new peer, at most `max_statement_bytes`."""
        ...

    def authenticate(self, peer_id: str, hello: bytes) -> str:
        """Return a display name for the peer, or raise `InvalidInput`: it is then disconnected with a penalty."""
        ...

    def on_peer(self, peer_id: str, connected: bool) -> None:
        """Learn that a peer was admitted or is gone."""
        ...

    async def on_gossip(self, topic: str, origin: str, payload: bytes) -> None:
        """Take a gossip message; what raises `InvalidInput` is not forwarded and costs points."""
        ...

    async def on_direct(self, peer_id: str, kind: int, payload: bytes) -> None:
        """Take a direct message; one peer's messages come one at a time, in the order sent."""
        ...

    async def on_request(self, peer_id: str, method: str, payload: bytes) -> bytes:
        """Answer, or raise `NotAvailable`, `UnknownMethod` or `InvalidInput`: the requester gets it as a typed error."""
        ...


@dataclass(frozen=True)
class PeerInfo:
    """An admitted peer, as reports and metrics show it."""

    peer_id: str
    """Its network identity."""
    name: str
    """Display name given by the application's `authenticate`."""
    addresses: tuple[str, ...]
    """Addresses at which it says it can be dialled."""
    direction: str
    """"outbound" if we dialled, "inbound" if it did."""
    connected_since_s: float
    """When it was admitted, on Trio's clock."""
    score: int
    """Penalty points; 0 is spotless, at `ban_points` it is banned."""
    latency_ms: float | None
    """Smoothed round trip, or None before the first measurement."""
    queued_bytes: int
    """Gossip and direct bytes waiting to be written to it."""
    lost: int
    """Messages to it that were given up since it was admitted (stalled or broken connection)."""
