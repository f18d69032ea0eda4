# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding peers and keeping them: the exchange of addresses and the loop that dials.

The library forgets a bootstrap peer after three failed redials and never redials a peer that dropped; here bootstrap and
once admitted peers are dialled for ever.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
import structlog
import trio
from libp2p.peer.id import ID

from ledger.codec import Wire, decoder, encode
from ledger.errors import InvalidInput
from p2p.addresses import MAX_CHARS, Address, AddressBook, Entry, Standing, parse_address
from p2p.config import NetworkConfig
from p2p.errors import RequestFailed
from p2p.peers import PeerTable
from p2p.scores import Scores
from p2p.swarm import ManagedSwarm

METHOD = "p2p/peers"
"""Request method of the exchange of addresses."""
MAX_DIALS = 8
"""Dials at once; a handshake costs about 3 ms of CPU on each side."""
MAX_NAMED = 64
"""Peers named in one answer."""
MAX_ADDRESSES_NAMED = 4
"""Addresses per peer in an answer."""
MAX_ANSWER_BYTES = 128 * 1024
"""Longest answer to the exchange: 64 peers, 4 addresses of 256 characters, and their identities."""
EXCHANGE_TIMEOUT_S = 10.0
"""Time for one exchange."""
_LOOK_S = 0.25
"""How often a dialled connection that is not greeted yet is looked at."""
FREELY_ASKED = 8
"""So many peers are asked every `exchange_interval_s`; with more the same number of exchanges is spread over all."""
IDLE_S = 30.0
"""The dialling loop looks at least so often, whatever it was woken for."""

_ShortText = Annotated[str, msgspec.Meta(max_length=MAX_CHARS)]

log = structlog.get_logger("p2p.discovery")


class NamedPeer(Wire, frozen=True):
    """A peer the answering node is connected to."""

    peer_id: _ShortText
    """Who."""
    addresses: Annotated[tuple[_ShortText, ...], msgspec.Meta(max_length=MAX_ADDRESSES_NAMED)]
    """Where, with the identity at the end of each."""


class NamedPeers(Wire, frozen=True):
    """Answer to the exchange of addresses."""

    peers: Annotated[tuple[NamedPeer, ...], msgspec.Meta(max_length=MAX_NAMED)]
    """Peers that the answering node is connected to."""


_decode_answer = decoder(NamedPeers, MAX_ANSWER_BYTES)

Ask = Callable[[str, str, bytes, float], Awaitable[bytes]]


class Discovery:
    """Dials whom the book names and asks peers whom they know."""

    def __init__(
        self,
        config: NetworkConfig,
        swarm: ManagedSwarm,
        peers: PeerTable,
        scores: Scores,
        ask: Ask,
        penalise: Callable[[str, int, str], None],
        randomness: random.Random,
    ) -> None:
        self._config = config
        self._swarm = swarm
        self._peers = peers
        self._scores = scores
        self._ask = ask
        self._penalise = penalise
        self._random = randomness
        own_id = str(swarm.get_peer_id())
        self.book = AddressBook(own_id, config.redial_first_s, config.redial_max_s, randomness)
        self._wake = trio.Event()
        self._dialling = 0
        now = trio.current_time()
        for text in config.bootstrap:
            self.book.learn(parse_address(text), Standing.BOOTSTRAP, now)

    # ------------------------------------------------------------ what happens to peers

    def heard(self, addresses: list[Address]) -> None:
        """Learn addresses from hearsay."""
        now = trio.current_time()
        news = [address for address in addresses if self.book.learn(address, Standing.HEARSAY, now)]
        if news:
            self.wake()

    def admitted(self, peer_id: str, addresses: tuple[Address, ...]) -> None:
        """Note that a peer is connected and what it says of itself."""
        now = trio.current_time()
        for address in addresses:
            self.book.learn(address, Standing.MET, now)
        entry = self.book.get(peer_id)
        if entry is not None:
            self.book.worked(entry, None)

    def gone(self, peer_id: str) -> None:
        """Note that a peer is not connected any more: it is dialled again soon."""
        entry = self.book.get(peer_id)
        if entry is not None:
            self.book.lost(entry, trio.current_time())
        self.wake()

    def wake(self) -> None:
        """Let the dialling loop look at once."""
        self._wake.set()

    # ------------------------------------------------------------ dialling

    async def dial_loop(self) -> None:
        """Dial who is due until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                now = trio.current_time()
                next_s = now + IDLE_S
                for entry in sorted(self.book.all(), key=lambda entry: (-entry.standing, entry.next_dial_s)):
                    if not self._wanted(entry):
                        continue
                    if entry.next_dial_s > now:
                        next_s = min(next_s, entry.next_dial_s)
                    elif self._dialling < MAX_DIALS:
                        self._dialling += 1
                        entry.dialling = True
                        nursery.start_soon(self._dial, entry)
                with trio.move_on_at(next_s):
                    await self._wake.wait()

    def _wanted(self, entry: Entry) -> bool:
        if entry.dialling or not entry.addresses or self._peers.get(entry.peer_id) is not None:
            return False
        if len(self._peers) + self._dialling >= self._config.max_peers:
            return False
        return self._scores.ban_left_s(entry.peer_id) == 0.0

    async def _dial(self, entry: Entry) -> None:
        try:
            address = await self._dial_any(entry)
            if address is None:
                self.book.failed(entry, trio.current_time())
                # Told at the first failure and whenever their number has doubled.
                if entry.standing != Standing.HEARSAY and entry.failures & (entry.failures - 1) == 0:
                    log.warning("peer cannot be reached; still trying", peer=entry.peer_id, failures=entry.failures)
                return
            # The greeting decides; if it fails the next dial comes after a pause that grows.
            if await self._greeted(entry.peer_id):
                self.book.worked(entry, address)
            else:
                self.book.failed(entry, trio.current_time())
        finally:
            self._dialling -= 1
            entry.dialling = False
            self.wake()

    async def _greeted(self, peer_id: str) -> bool:
        key = ID.from_base58(peer_id)
        with trio.move_on_after(self._config.hello_timeout_s):
            while await self._peers.wait_for(peer_id, _LOOK_S) is None:
                if self._swarm.live_connection(key) is None:
                    return False
        return self._peers.get(peer_id) is not None

    async def _dial_any(self, entry: Entry) -> Address | None:
        key = ID.from_base58(entry.peer_id)
        for address in list(entry.addresses):
            if self._swarm.live_connection(key) is not None:
                return address
            error = "time-out"
            with trio.move_on_after(self._config.dial_timeout_s):
                try:
                    await self._swarm.dial_addr(address.dial, key)
                except Exception as failure:  # noqa: BLE001 -- the library raises many kinds when a dial fails
                    error = repr(failure)[:200]
                else:
                    return address
            log.debug("dial failed", peer=entry.peer_id, address=address.text, error=error, failures=entry.failures)
        return None

    # ------------------------------------------------------------ the exchange of addresses

    def answer(self, asker_id: str, *, asker_is_local: bool) -> bytes:
        """Return whom we are connected to; addresses on this machine are told on this machine only."""
        others = [peer for peer in self._peers.all() if peer.peer_id != asker_id]
        self._random.shuffle(others)
        named = tuple(
            NamedPeer(
                peer.peer_id,
                tuple(address.text for address in peer.addresses if asker_is_local or not address.is_loopback)[
                    :MAX_ADDRESSES_NAMED
                ],
            )
            for peer in others[:MAX_NAMED]
        )
        return encode(NamedPeers(named))

    async def exchange_loop(self, peer_id: str) -> None:
        """Ask one peer again and again until cancelled."""
        while True:
            await self.exchange(peer_id)
            # Often at first, while the network is still forming.
            fast = len(self._peers) < 3
            pause = min(1.0, self._config.exchange_interval_s) if fast else self._config.exchange_interval_s
            # Many peers are asked less often each: the cost of an idle node must not grow with them.
            pause *= max(1.0, len(self._peers) / FREELY_ASKED)
            await trio.sleep(pause * self._random.uniform(0.75, 1.25))

    async def exchange(self, peer_id: str) -> None:
        """Ask one peer once."""
        try:
            answer = _decode_answer(await self._ask(peer_id, METHOD, b"", EXCHANGE_TIMEOUT_S))
            addresses = [address for named in answer.peers for address in _understood(named)]
        except RequestFailed as error:
            log.debug("exchange of addresses failed", peer=peer_id, error=str(error)[:200])
            return
        except InvalidInput as error:
            self._penalise(peer_id, 30, f"exchange of addresses: {error}")
            return
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.neighbours = frozenset(named.peer_id for named in answer.peers)
        self.heard(addresses)


def _understood(named: NamedPeer) -> list[Address]:
    addresses = []
    for text in named.addresses:
        try:
            address = parse_address(text)
        except InvalidInput as error:
            # A newer node may speak of transports that this one does not know: no fault.
            log.debug("address not understood", error=str(error)[:200])
            continue
        if address.peer_id != named.peer_id:
            raise InvalidInput(f"address {text} is given for the peer {named.peer_id}")
        addresses.append(address)
    return addresses
