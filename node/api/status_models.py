# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API says of a node itself."""

from node.api.models import Hex, Model


class Peer(Model):
    """A connected peer."""

    peer_id: str
    """Its network identity."""
    name: str
    """The name it claims."""
    addresses: tuple[str, ...]
    """Where it can be dialled."""
    score: int
    """Penalty points; 0 is spotless."""
    latency_ms: float | None
    """Smoothed round trip in milliseconds; null before the first measurement."""


class OffchainSummary(Model):
    """Off-chain contracts at a node."""

    data_bytes: int = 0
    """Size of the data of batches that is kept there."""
    data: str = "ok"
    """"ok", or why the data of further batches cannot be kept: then the node votes for no commitments, or for none of an operator that
    is named there."""
    batches_lost: int = 0
    """Batches whose data should be there and was nowhere to be had when the node last looked."""
    operated: int = 0
    """Contracts that the node operates, or did."""
    watched: int = 0
    """Contracts whose batches are executed again."""
    alarms: tuple[str, ...] = ()
    """What somebody should look at: frauds, contracts that cannot be operated or watched; the first few."""


class Status(Model):
    """A node at one moment."""

    node: str
    """The node's name."""
    network: str
    """The network's name."""
    chain_id: Hex
    """Identifier of the chain: hash of its genesis."""
    version: str
    """Version of the program."""
    address: Hex
    """The node's account."""
    peer_id: str
    """The node's network identity."""
    p2p_addresses: tuple[str, ...]
    """Where other nodes can dial it."""
    height: int
    """Newest committed microblock."""
    round: int
    """Consensus round that the node is in."""
    term: int
    """Leader's term that the round belongs to."""
    epoch: int
    """Running epoch: number of keyblocks pinned so far."""
    keyblock: Hex
    """Hash of the newest pinned keyblock; the chain's identifier before the first one."""
    leader: Hex
    """Address of the leader; empty while nobody at the node can know it."""
    block_hash: Hex
    """Hash of the newest committed microblock."""
    state_digest: Hex
    """Running digest of all state changes up to it."""
    committee_size: int
    """Number of committee members."""
    is_member: bool
    """Whether this node votes."""
    mempool_transactions: int
    """Transactions under way."""
    pending_batches: int
    """Batches that wait to be ordered."""
    transactions: int
    """Transactions that took effect so far."""
    records: int
    """Records committed so far."""
    synchronising: bool
    """Whether the node is catching up."""
    peers: tuple[Peer, ...]
    """Connected peers."""
    started_ms: int
    """When the node started, in milliseconds since 1970 (UTC)."""
    agreement: str
    """"ok", or what of the network's order does not fit the node's own state."""
    storage: str
    """"ok", or why writes fail."""
    access_log: str = ""
    """Whether the institution's accesses are logged in a contract: "ok", "off" and why, or how many entries wait and why."""
    joining: str = ""
    """What a node without a chain does to find the right one; empty once it follows one."""
    offchain: OffchainSummary = OffchainSummary()
    """Off-chain contracts."""


class Health(Model):
    """A node that can serve, as load balancers ask."""

    status: str
    """"ok"."""
