# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets up the libp2p host: TCP, Noise and Yamux only, identify and ping served, nothing else on.

`libp2p.new_host` is not used: besides Noise it offers TLS, SecIO and *plaintext*, over which a peer may claim any
identity, and Mplex, which has no flow control; it also attaches the resource manager (see `p2p.swarm`).
"""

import logging
import os

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect import MULTISELECT_PROTOCOL_ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils import encode_delim, read_delim

from p2p.config import NetworkConfig
from p2p.muxer import BoundedMuxer
from p2p.swarm import MAX_HANDSHAKES, ManagedSwarm

STREAM_TIMEOUT_S = 5
"""Time to agree on a stream's protocol."""

log = structlog.get_logger("p2p.host")


class ForwardLogs(logging.Handler):
    """Hands the library's warnings to structlog, shortened: they quote what peers send, in full."""

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        # The library reports peers' faults as errors and with tracebacks; to us they are everyday.
        structlog.get_logger("p2p.libp2p").warning(
            record.getMessage()[:300].split("\n", 1)[0], module=record.name, level_of_library=record.levelname
        )


def quiet_library_logs() -> None:
    """Route libp2p's logging to structlog at WARNING and above, once per process."""
    library = logging.getLogger("libp2p")
    if "LIBP2P_DEBUG" not in os.environ and not any(isinstance(handler, ForwardLogs) for handler in library.handlers):
        library.addHandler(ForwardLogs(logging.WARNING))
        library.setLevel(logging.WARNING)
        # A peer that is down is the redial loop's to report, not every dial's.
        logging.getLogger("libp2p.transport.tcp").setLevel(logging.CRITICAL)
    # `SwarmConn` calls logging.debug() on the root logger, which installs a handler on stderr if there is none at all.
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())


class QuietHost(BasicHost):
    """A host that serves identify but asks nobody: what it learns is stored without bound, and the greeting tells more."""

    @property
    def swarm(self) -> ManagedSwarm:
        """The connections."""
        assert isinstance(self._network, ManagedSwarm), f"build_host makes the swarm, got {type(self._network)}"
        return self._network

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Ask nothing."""

    async def _push_identify_to_all_peers(self) -> None:
        """Push nothing."""

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        # An exception here would run through the connection's nursery into the swarm and stop the node (invariant I13).
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:  # noqa: BLE001 -- whatever a peer sends ends its stream and nothing else
            log.info("stream failed", peer=str(net_stream.muxed_conn.peer_id), error=repr(error)[:200])
            await reset_stream(net_stream)

    async def start_stream(self, connection: SwarmConn) -> NetStream:
        """Open a stream on this very connection; the first write must begin with `proposal`."""
        return await connection.new_stream()

    async def open_stream(self, connection: SwarmConn, protocol: TProtocol) -> NetStream:
        """Open a stream for one protocol on this very connection; raises the library's errors on failure."""
        stream = await connection.new_stream()
        agreed = False
        try:
            communicator = MultiselectCommunicator(stream)
            await self.multiselect_client.select_one_of((protocol,), communicator, STREAM_TIMEOUT_S)
            stream.set_protocol(protocol)
            agreed = True
            return stream
        finally:
            if not agreed:
                await reset_stream(stream)


def proposal(protocol: TProtocol) -> bytes:
    """Return what opens a stream's negotiation; the request itself may follow without waiting: it saves two round trips."""
    return encode_delim(MULTISELECT_PROTOCOL_ID.encode()) + encode_delim(protocol.encode())


async def read_agreement(stream: INetStream, protocol: TProtocol) -> None:
    """Read the other side's consent to a `proposal`; raises `StreamFailure` if it does not speak the protocol."""
    for expected in (MULTISELECT_PROTOCOL_ID, protocol):
        said = await read_delim(stream)
        if said != expected.encode():
            raise StreamFailure(f"peer does not speak {protocol}: it said {said[:80]!r}")


async def reset_stream(stream: INetStream) -> None:
    """Reset a stream whatever happened to it; never raises, never waits for the peer."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001 -- there is nothing left to do with it
            log.debug("reset failed", error=repr(error)[:200])


def build_host(config: NetworkConfig) -> QuietHost:
    """Return a host with our identity that does not run yet."""
    quiet_library_logs()
    key_pair = create_new_key_pair(config.identity_seed)
    peer_id = ID.from_pubkey(key_pair.public_key)
    noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE: noise}, {TProtocol(YAMUX): Yamux}, int(config.handshake_timeout_s) or 1)
    upgrader.muxer_multistream = BoundedMuxer({TProtocol(YAMUX): Yamux}, int(config.handshake_timeout_s) or 1)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    # Twice: a pair that dials each other at one moment holds two connections until one ends.
    connections = 2 * config.max_peers + MAX_HANDSHAKES
    swarm = ManagedSwarm(
        peer_id,
        peerstore,
        upgrader,
        [TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=connections,
            high_watermark=connections,
            low_watermark=0,
            min_connections=0,
            inbound_upgrade_timeout=config.handshake_timeout_s,
            outbound_upgrade_timeout=config.dial_timeout_s,
            inbound_stream_protocol_negotiation_timeout=STREAM_TIMEOUT_S,
            outbound_stream_protocol_negotiation_timeout=STREAM_TIMEOUT_S,
        ),
    )
    # Two more than peers, so that a full node still has a place in which to say so.
    swarm.use(max_inbound=2 * config.max_peers + 2)
    host = QuietHost(swarm, disable_identify_address_discovery=True)
    # Pushed identify records are stored in the peerstore without bound.
    host.remove_stream_handler(ID_PUSH)
    return host
