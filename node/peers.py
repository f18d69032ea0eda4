# SPDX-License-Identifier: GPL-3.0-or-later
"""Who the connected peers are: accounts by network identity and back, each proved by a signed statement."""

from collections.abc import Mapping

from ledger.crypto.keys import PrivateKey
from node.wire import NodeStatement, check_statement, make_statement


class PeerDirectory:
    """Accounts of connected peers; bounded by the number of connections."""

    def __init__(self, chain_id: bytes, key: PrivateKey, peer_id: str) -> None:
        self.chain_id = chain_id
        self.own_address = key.address
        self._key = key
        self._peer_id = peer_id
        self._claims: dict[str, tuple[NodeStatement, bytes]] = {}
        self._addresses: dict[str, bytes] = {}
        self._peers: dict[bytes, str] = {}

    def statement(self, name: str, height: int) -> bytes:
        """Return the statement that this node's account runs it."""
        return make_statement(self.chain_id, self._key, self._peer_id, name, height)

    def authenticate(self, peer_id: str, raw: bytes) -> NodeStatement:
        """Check a peer's statement and remember it until the peer is admitted; raises `InvalidInput`."""
        claim = check_statement(self.chain_id, peer_id, raw)
        self._claims.pop(peer_id, None)
        self._claims[peer_id] = claim
        while len(self._claims) > _MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]
        return claim[0]

    def admit(self, peer_id: str) -> int:
        """A checked peer is connected; returns the height that it states."""
        statement, address = self._claims.pop(peer_id, (None, None))
        if statement is None or address is None:
            return 0
        self._addresses[peer_id] = address
        self._peers[address] = peer_id
        return statement.height

    def remove(self, peer_id: str) -> None:
        """A peer is gone."""
        address = self._addresses.pop(peer_id, None)
        if address is None or self._peers.get(address) != peer_id:
            return
        del self._peers[address]
        for other, same in self._addresses.items():
            if same == address:  # one account may run several nodes
                self._peers[address] = other

    def peer_ids(self) -> tuple[str, ...]:
        """Return the connected peers."""
        return tuple(self._addresses)

    def by_address(self) -> Mapping[bytes, str]:
        """Return the connected peers by account."""
        return dict(self._peers)

    def peer_of(self, address: bytes) -> str | None:
        """Return the peer that an account runs."""
        return self._peers.get(address)

    def address_of(self, peer_id: str) -> bytes | None:
        """Return the account that runs a peer."""
        return self._addresses.get(peer_id)


_MAX_CLAIMS = 64
"""Greetings between the check and the admission; they follow each other within milliseconds."""
