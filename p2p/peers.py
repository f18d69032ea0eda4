# SPDX-License-Identifier: GPL-3.0-or-later
"""The admitted peers: who has been greeted and is connected."""

from dataclasses import dataclass, field

import trio
from libp2p.peer.id import ID

from p2p.addresses import Address
from p2p.direct import DirectLink


@dataclass(eq=False)
class Peer:
    """One admitted peer; ends with its last connection."""

    key: ID
    """Its network identity, as the library has it."""
    peer_id: str
    """The same as text."""
    instance: bytes
    """Random per process: tells a restarted peer from one that opens a second connection."""
    name: str
    """Display name given by the application."""
    addresses: tuple[Address, ...]
    """Addresses at which it says it can be dialled."""
    outbound: bool
    """Whether we dialled."""
    connected_since_s: float
    """When it was admitted, on Trio's clock."""
    link: DirectLink
    """What goes to it and comes from it directly."""
    asking: trio.Semaphore
    """Places for our requests to it."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled when the peer is gone: ends its tasks."""
    neighbours: frozenset[str] = frozenset()
    """Peers it said it is connected to, at the last exchange of addresses."""


class PeerTable:
    """The admitted peers by identity."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, peer_id: str) -> Peer | None:
        """Return the peer if it is admitted."""
        return self._peers.get(peer_id)

    def all(self) -> list[Peer]:
        """Return all admitted peers."""
        return list(self._peers.values())

    def add(self, peer: Peer) -> None:
        """Admit a peer."""
        assert peer.peer_id not in self._peers, f"{peer.peer_id} is admitted already"
        self._peers[peer.peer_id] = peer
        self._notify()

    def remove(self, peer: Peer) -> bool:
        """Forget this admission of a peer; False if it is not the present one."""
        if self._peers.get(peer.peer_id) is not peer:
            return False
        del self._peers[peer.peer_id]
        self._notify()
        return True

    async def wait_for(self, peer_id: str, timeout_s: float) -> Peer | None:
        """Return the peer as soon as it is admitted, None after the time.

        The one who is greeted first opens its streams before the other has finished reading the answer.
        """
        with trio.move_on_after(timeout_s):
            while peer_id not in self._peers:
                await self._changed.wait()
        return self._peers.get(peer_id)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
