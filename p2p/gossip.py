# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip over `/meshsub/1.1.0`, wire-compatible with GossipSub, strictly signed.

libp2p 0.8.1 is used for the protocol (subscriptions, mesh, IHAVE/IWANT). Replaced is how messages flow, because there:

1. Queues hold 32 messages and drop silently, on both sides. Here a publisher waits (`p2p.outbox`), and a reader that
   cannot hand on what it read reads no further, so that back-pressure reaches the sender through the stream's window.
2. Each received message becomes a task of its own, without bound, and an exception in one (a malformed protobuf, key or
   identity) stops the service. Here a peer's stream is read by one task, which ends that stream and nothing else.
3. Replayed messages are written to a stream beside its sender task: over 64 KB the two interleave and the stream breaks.
   Here everything goes through the outbox, and nothing is replayed: what is missing is fetched by request.
4. Each message carries a signed address record, which every receiver verifies and stores. Here none is sent or read.
5. Sequence numbers start at whole seconds, so that after a quick restart messages count as seen. Here at nanoseconds.
6. A failed stream to a peer forgets the peer's subscriptions, which it never sends again on its own stream. Here all
   admitted peers take all topics of the network.
7. Seen identifiers, recent messages, back-offs per topic name grow with what peers send. Here they are bounded, and
   control messages on topics that are not ours are dropped.
8. Message ids over 1.2.0 (IDONTWANT) lose messages: 1.1.0 is spoken.

A message is forwarded after the application accepted it, so an invalid one dies at the first honest node. In a network
small enough that the origin is connected to everybody nothing is forwarded at all.
"""

import time
from collections.abc import Awaitable, Callable

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.pubsub_notifee import PubsubNotifee
from libp2p.pubsub.rpc_queue import RpcQueue

from ledger.errors import InvalidInput, SpchainError
from p2p.errors import ProtocolViolation
from p2p.framing import READ_BYTES
from p2p.host import QuietHost, reset_stream
from p2p.messages import PROTOCOL, SIGNING_PREFIX, Inbox, Router, SeenMessages, cut_frame, origin_of
from p2p.outbox import Outbox, frame_of
from p2p.peers import PeerTable

FLOOD_PEERS = 16
"""Up to so many peers own messages go to all of them; beyond that to the mesh and the mesh forwards."""
ENVELOPE_BYTES = 1024
"""Room for origin, number, topic, key and signature around a payload."""
MAX_IDS_PER_CONTROL = 2000
"""Ids looked at in an IHAVE or IWANT: two heartbeats' worth at 1 000 messages a second."""
MAX_CONTROL_ENTRIES = 64
"""GRAFT, PRUNE, IHAVE, IWANT entries looked at in one message: a few per topic."""


OnGossip = Callable[[str, str, bytes], Awaitable[None]]
Penalise = Callable[[str, int, str], None]

log = structlog.get_logger("p2p.gossip")


class Gossip(Pubsub):
    """Publishes, receives and forwards the network's topics."""

    seen_messages: SeenMessages

    def __init__(
        self,
        host: QuietHost,
        peers: PeerTable,
        topics: tuple[str, ...],
        network_id: bytes,
        max_payload_bytes: int,
        on_gossip: OnGossip,
        penalise: Penalise,
        is_banned: Callable[[str], bool],
        admission_timeout_s: float,
    ) -> None:
        self._max_payload_bytes = max_payload_bytes
        # One message with its envelope, or several shorter ones that a peer asked for together.
        self._max_frame_bytes = 2 * (max_payload_bytes + ENVELOPE_BYTES)
        network = host.swarm
        self.mesh_router = Router()
        super().__init__(host, self.mesh_router, strict_signing=True, max_inbound_rpc_size=self._max_frame_bytes)
        # Peers are told to gossip when they are admitted, not when they connect.
        # Its channels stay open (kept here): their readers are daemon tasks that must not end.
        self._notifees = [notifee for notifee in network.notifees if isinstance(notifee, PubsubNotifee)]
        for notifee in self._notifees:
            network.remove_notifee(notifee)
        self.seen_messages.stop()
        self.seen_messages = SeenMessages()
        self.counter = time.time_ns()
        self.quiet_host = host
        self._table = peers
        self._on_gossip = on_gossip
        self._penalise = penalise
        self._is_banned = is_banned
        self._admission_timeout_s = admission_timeout_s
        # The network's id in the name keeps networks apart that share a host.
        prefix = f"spchain/{network_id.hex()[:16]}/"
        self._wire_topics = {topic: prefix + topic for topic in topics}
        self._topic_names = {wire: topic for topic, wire in self._wire_topics.items()}
        self._inboxes = {topic: Inbox() for topic in topics}
        self._readers: dict[ID, set[trio.CancelScope]] = {}

    async def start_topics(self, nursery: trio.Nursery) -> None:
        """Subscribe to all topics and start handing them to the application; the service must run."""
        for topic, wire in self._wire_topics.items():
            await self.subscribe(wire)
            nursery.start_soon(self._deliver_loop, topic)

    # ------------------------------------------------------------ to others

    async def publish_payload(self, topic: str, payload: bytes) -> None:
        """Publish; waits while a peer that still reads has a full queue."""
        if topic not in self._wire_topics:
            raise InvalidInput(f"topic {topic!r} is not among {tuple(self._wire_topics)}; list it in the settings")
        if len(payload) > self._max_payload_bytes:
            raise InvalidInput(
                f"gossip payload has {len(payload)} bytes; at most {self._max_payload_bytes} are allowed"
            )
        message = rpc_pb2.Message(
            data=payload, topicIDs=[self._wire_topics[topic]], from_id=self.my_id.to_bytes(), seqno=self._next_seqno()
        )
        assert self.sign_key is not None, "strict signing needs the key"
        message.signature = self.sign_key.sign(SIGNING_PREFIX + message.SerializeToString())
        message.key = self.host.get_public_key().serialize()
        self._mark_msg_seen(message)
        frame = self._remember(message)
        full = [outbox for outbox in self._outboxes(topic, own=True) if not outbox.offer(frame)]
        for outbox in full:
            # Told at the first loss and whenever their number has doubled.
            if not await outbox.put(frame) and outbox.lost & (outbox.lost - 1) == 0:
                log.warning("gossip lost: peer does not read", topic=topic, bytes=len(payload), lost=outbox.lost)

    def _forward(self, topic: str, forwarder: ID, origin: str, message: rpc_pb2.Message) -> None:
        frame = b""
        known = self._table.get(origin)
        reached = known.neighbours if known is not None else frozenset()
        for key, outbox in self._targets(topic, own=False):
            peer_id = str(key)
            if key == forwarder or peer_id == origin or peer_id in reached:
                continue
            frame = frame or self._remember(message)
            # Forwarding never waits: a cycle of nodes waiting for each other would stand still.
            if not outbox.offer(frame):
                outbox.lost += 1

    def _remember(self, message: rpc_pb2.Message) -> bytes:
        self.mesh_router.mcache.put(message)
        return frame_of(rpc_pb2.RPC(publish=[message]))

    def _targets(self, topic: str, *, own: bool) -> list[tuple[ID, Outbox]]:
        everyone = [(key, queue) for key, queue in self.peer_queues.items() if isinstance(queue, Outbox)]
        if len(everyone) <= FLOOD_PEERS:
            return everyone
        mesh = self.mesh_router.mesh.get(self._wire_topics[topic], set())
        chosen = [(key, queue) for key, queue in everyone if key in mesh]
        return chosen or (everyone[:FLOOD_PEERS] if own else [])

    def _outboxes(self, topic: str, *, own: bool) -> list[Outbox]:
        return [outbox for _, outbox in self._targets(topic, own=own)]

    def outbox_of(self, key: ID) -> Outbox | None:
        """Return a peer's queue, for reports."""
        queue = self.peer_queues.get(key)
        return queue if isinstance(queue, Outbox) else None

    def peer_admitted(self, key: ID) -> None:
        """Open our stream to an admitted peer."""
        self.manager.run_task(self._handle_new_peer_with_retry, key)

    def peer_gone(self, key: ID) -> None:
        """Close what belongs to a peer that is gone."""
        # The library lets them go on: while the application stands still, whoever comes and goes would leave readers that wait for room.
        for scope in self._readers.pop(key, ()):
            scope.cancel()
        self._handle_dead_peer(key)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        connection = self.quiet_host.swarm.live_connection(peer_id)
        if connection is None or peer_id in self.peers or self._table.get(str(peer_id)) is None:
            return
        try:
            stream = await self.quiet_host.open_stream(connection, PROTOCOL)
        except Exception as error:
            # The library tries again on this kind only; with every other one a peer would get no gossip ever after.
            raise SwarmException(f"no gossip stream to {peer_id}: {error!r}") from error
        if peer_id in self.peers:
            await reset_stream(stream)
            return
        self.router.add_peer(peer_id, PROTOCOL)
        # The library has forgotten the subscriptions if an earlier stream failed, and the peer does not repeat them.
        for wire in self._topic_names:
            self.peer_topics.setdefault(wire, set()).add(peer_id)
        self.peers[peer_id] = stream
        outbox = Outbox(self._max_frame_bytes)
        self.peer_queues[peer_id] = outbox
        hello = rpc_pb2.RPC(
            subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=wire) for wire in self.topic_ids]
        )
        outbox.push(hello)
        self.manager.run_task(self.handle_sending_messages, peer_id, stream, outbox)

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Write a peer's outbox to its stream until either ends."""
        assert isinstance(queue, Outbox), f"queues are made here, got {type(queue)}"
        try:
            while (batch := await queue.next_batch()) is not None:
                await stream.write(batch)
                queue.wrote(batch)
        except Exception as error:  # noqa: BLE001 -- the library raises many kinds when a stream or connection ends
            log.info("gossip stream ended", peer=str(peer_id), error=repr(error)[:200], queued=len(queue))
        finally:
            await reset_stream(stream)
        if self.peer_queues.get(peer_id) is queue:
            self._handle_dead_peer(peer_id)

    def _peer_is_connected(self, peer_id: ID) -> bool:
        return self._table.get(str(peer_id)) is not None and super()._peer_is_connected(peer_id)

    # ------------------------------------------------------------ from others

    async def stream_handler(self, stream: INetStream) -> None:
        """Read an admitted peer's stream."""
        key = stream.muxed_conn.peer_id
        peer_id = str(key)
        if await self._table.wait_for(peer_id, self._admission_timeout_s) is None:
            await reset_stream(stream)
            return
        try:
            with trio.CancelScope() as scope:
                self._readers.setdefault(key, set()).add(scope)
                await self.continuously_read_stream(stream)
        except ProtocolViolation as error:
            self._penalise(peer_id, 50, f"gossip: {error}")
        finally:
            self._forget_reader(key, scope)
            await reset_stream(stream)

    def _forget_reader(self, key: ID, scope: trio.CancelScope) -> None:
        scopes = self._readers.get(key, set())
        scopes.discard(scope)
        if not scopes:
            self._readers.pop(key, None)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Cut length-prefixed messages out of the stream and take them, one after the other."""
        key = stream.muxed_conn.peer_id
        buffer = bytearray()
        while True:
            buffer += await stream.read(READ_BYTES)
            while (body := cut_frame(buffer, self._max_frame_bytes)) is not None:
                rpc = rpc_pb2.RPC()
                try:
                    rpc.ParseFromString(body)
                except DecodeError as error:
                    raise ProtocolViolation(f"a frame of {len(body)} bytes is no RPC message: {error}") from error
                await self._take(key, rpc)

    async def _take(self, key: ID, rpc: rpc_pb2.RPC) -> None:
        for message in rpc.publish:
            await self.push_msg(key, message)
        # Only our own topics, so that nothing grows with the names a peer thinks up.
        for subscription in rpc.subscriptions[:MAX_CONTROL_ENTRIES]:
            if subscription.topicid in self._topic_names:
                self.handle_subscription(key, subscription)
        if rpc.HasField("control"):
            await self.router.handle_rpc(self._cleaned(rpc.control), key)

    def _cleaned(self, control: rpc_pb2.ControlMessage) -> rpc_pb2.RPC:
        ours = self._topic_names
        clean = rpc_pb2.ControlMessage()
        clean.graft.extend(entry for entry in control.graft[:MAX_CONTROL_ENTRIES] if entry.topicID in ours)
        clean.prune.extend(
            rpc_pb2.ControlPrune(topicID=entry.topicID, backoff=min(entry.backoff, 60))
            for entry in control.prune[:MAX_CONTROL_ENTRIES]
            if entry.topicID in ours
        )
        clean.ihave.extend(
            rpc_pb2.ControlIHave(topicID=entry.topicID, messageIDs=entry.messageIDs[:MAX_IDS_PER_CONTROL])
            for entry in control.ihave[:MAX_CONTROL_ENTRIES]
            if entry.topicID in ours
        )
        # One entry only: each may ask for thousands of messages.
        clean.iwant.extend(
            rpc_pb2.ControlIWant(messageIDs=entry.messageIDs[:MAX_IDS_PER_CONTROL]) for entry in control.iwant[:1]
        )
        return rpc_pb2.RPC(control=clean)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take one message: known ones are dropped, unsigned or misplaced ones cost the forwarder points."""
        if self._is_msg_seen(msg):
            return
        if len(msg.topicIDs) != 1 or msg.topicIDs[0] not in self._topic_names:
            # A newer node may speak of topics that this one does not know: no fault.
            return
        if len(msg.data) > self._max_payload_bytes or len(msg.seqno) != 8:
            raise ProtocolViolation(f"message has {len(msg.data)} bytes and a number of {len(msg.seqno)}")
        if msg.from_id == self.my_id.to_bytes():
            return
        origin = origin_of(msg.from_id)
        if origin is None or not origin.signed(msg):
            raise ProtocolViolation("message is not signed by its origin")
        if self._is_banned(origin.peer_id):
            return
        self._mark_msg_seen(msg)
        try:
            await self._inboxes[self._topic_names[msg.topicIDs[0]]].put(msg_forwarder, msg)
        except trio.Cancelled:
            self.seen_messages.forget(self.get_message_id(msg))
            raise

    async def _deliver_loop(self, topic: str) -> None:
        inbox = self._inboxes[topic]
        while True:
            forwarder, message = await inbox.get()
            sender = origin_of(message.from_id)
            assert sender is not None, "only messages with a known kind of origin are taken"
            origin = sender.peer_id
            try:
                await self._on_gossip(topic, origin, message.data)
            except InvalidInput as error:
                # The origin signed it; the forwarder should have dropped it.
                for culprit in {origin, str(forwarder)}:
                    self._penalise(culprit, 20, f"gossip on {topic}: {error}")
            except SpchainError as error:
                log.debug("gossip not taken", topic=topic, origin=origin, error=str(error)[:200])
            except Exception:
                # Our own fault, but a peer's message must never stop the node (invariant I13).
                log.exception("gossip handler failed", topic=topic, origin=origin)
            else:
                self._forward(topic, forwarder, origin, message)
