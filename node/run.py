# SPDX-License-Identifier: GPL-3.0-or-later
"""Composition: from a configuration to a running node, and its clean end."""

import gc
import random
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import trio

from consensus.core import Core
from consensus.epoch import Epoch
from consensus.executor import Executor
from consensus.restart import committed_head
from consensus.safety import fresh_record
from consensus.timing import Timing
from contracts.shipped import MACHINES
from ledger.errors import InvalidInput, StoreError
from ledger.genesis import Genesis, chain_id
from ledger.lmdb_store import open_store
from ledger.store import Store
from node.api.server import serve_api
from node.batches import BatchPool
from node.checkpoint import parse_checkpoint
from node.clock import now_ms
from node.config import CONFIG_NAME, NodeConfig
from node.driver import Driver, Ports
from node.events import Events
from node.genesis_file import read_genesis
from node.identity import Identity
from node.joining import Joining, JoinSettings
from node.logs import configure_logs
from node.mempool import Mempool
from node.names import check_name
from node.offchain.files import open_offchain
from node.offchain.readiness import Readiness
from node.peer_book import bootstrap_addresses, keep_peers, load_peers
from node.peers import PeerDirectory
from node.safety_file import SafetyFile, SafetySnapshot
from node.service import NodeService, ServiceSettings
from node.wire import TOPIC_BATCHES, TOPIC_CONSENSUS
from p2p.network import NetworkConfig, open_network
from records.access_log import AccessLog
from records.blob_store import BlobStore
from records.disk_blob_store import DiskBlobStore
from records.fragment_store import FragmentStore
from records.proxy_desk import ProxyDesk

log = structlog.get_logger()

SHARING = "sharing"
"""Folder of the proxy's key fragments and access log, in the data directory."""
OFFCHAIN = "offchain"
"""Folder of the data of off-chain batches and of the contracts operated here, in the data directory."""
STALE_HEARTBEATS = 3
STALE_MS = 10_000
"""A head that is older than three heartbeats and ten seconds of time-outs is not the network's newest."""
PEER_BOOK = "peers.json"
"""File of the addresses of peers met, in the data directory."""


def run_node(config: NodeConfig, identity: Identity) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code.

    Raises `InvalidInput` or `StoreError` when it cannot start: wrong genesis, data of another network, in use, port taken.
    """
    configure_logs(config.log_level, config.log_format)
    shown_name(config, identity)
    genesis = read_genesis(config.genesis_file)
    with ExitStack() as stack:
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = open_store(config.data_dir / "chain", genesis, map_bound_bytes=config.store_limit_bytes)
        stack.callback(store.close)
        safety = SafetyFile(config.data_dir / "safety")
        stack.callback(safety.close)
        blobs = stack.enter_context(DiskBlobStore(config.data_dir / "blobs", config.blob_capacity_bytes))
        try:
            trio.run(_main, config, identity, genesis, store, safety, blobs)
        except ExceptionGroup as group:
            raise _innermost(group) from group
    return 0


def shown_name(config: NodeConfig, identity: Identity) -> str:
    """Return the node's name for people. Raises `InvalidInput` for one in an old key file that other nodes would not take."""
    name = config.name or identity.name
    try:
        check_name(name)
    except InvalidInput as error:
        raise InvalidInput(f"{config.key_file}: {error}, or set `name` in {config.data_dir / CONFIG_NAME}") from error
    return name


def _innermost(error: Exception) -> Exception:
    """Return what nurseries have wrapped, if it is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextmanager
def open_desk(directory: Path, identity: Identity, chain: bytes) -> Iterator[ProxyDesk]:
    """Open what this institution's proxy keeps: key fragments and the access log. Raises `StoreError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        FragmentStore(directory / "fragments.sqlite", chain_id=chain, key=identity.fragments_secret) as fragments,
        AccessLog(directory / "access-log.sqlite", chain_id=chain, key=identity.signing) as access_log,
    ):
        yield ProxyDesk(
            chain_id=chain,
            key=identity.signing,
            encryption=identity.reencryption,
            fragments=fragments,
            log=access_log,
            clock_ms=now_ms(),
        )


async def _main(
    config: NodeConfig,
    identity: Identity,
    genesis: Genesis,
    store: Store,
    safety: SafetyFile,
    blobs: BlobStore,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            open_node(config, identity, genesis, store, safety, blobs) as service,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(serve_api, service, config)
            status = service.status()
            # What a node consists of stays: a full collection would look through all of it, and stop everything for a tenth of a second.
            gc.collect()
            gc.freeze()
            log.info("node is up", name=service.name, peer_id=status.peer_id, addresses=status.p2p_addresses)
            async for number in signals:
                log.info("node stops", signal=signal.Signals(number).name)
                break
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_node(
    config: NodeConfig,
    identity: Identity,
    genesis: Genesis,
    store: Store,
    safety: SafetyFile,
    blobs: BlobStore,
) -> AsyncIterator[NodeService]:
    """Run a node without its HTTP API; leaving the block stops it."""
    chain = chain_id(genesis)
    executor = Executor(store, MACHINES)
    readiness = Readiness(store)
    pool = BatchPool(store, readiness)
    mempool = Mempool(store, config.mempool_transactions)
    for batch in pool.restore(chain):
        mempool.track(batch.transactions)
    service = NodeService(
        name=shown_name(config, identity),
        genesis=genesis,
        store=store,
        pool=pool,
        mempool=mempool,
        peers=PeerDirectory(chain, identity.signing, identity.peer_id),
        events=Events(),
        key=identity.signing,
        # Only spreads requests over peers; a seed from the system keeps nodes from moving in step.
        rng=random.Random(secrets.randbits(64)),  # noqa: S311
        readiness=readiness,
    )
    timing = Timing(timeout_ms=config.timeout_ms, heartbeat_ms=config.heartbeat_ms)
    joining = Joining(_join_settings(config), store, executor.epoch, identity.address)

    def new_core(voting: bool) -> Core:
        return build_core(executor.epoch, identity, store, safety, pool, timing, voting=voting)

    ports = Ports(
        send=service.send,
        broadcast=service.broadcast,
        request_batches=service.request_batches,
        request_chain=service.request_chain,
        committed=service.committed,
        report=service.report,
    )
    driver = Driver(
        core=new_core(voting=not joining.holds),
        executor=executor,
        pool=pool,
        safety=safety,
        ports=ports,
        clock_ms=now_ms,
    )
    with (
        open_desk(config.data_dir / SHARING, identity, chain) as desk,
        open_offchain(config.data_dir / OFFCHAIN, chain, config.offchain_data_bytes) as files,
    ):
        async with (
            open_network(_network_config(config, identity, genesis), service) as network,
            trio.open_nursery() as nursery,
        ):
            service.attach(
                driver=driver,
                network=network,
                blobs=blobs,
                files=files,
                desk=desk,
                settings=ServiceSettings(
                    copies=config.replicas,
                    erase_labelled=config.erase_labelled,
                    watches=config.watch,
                    contract_senders=config.contract_senders,
                    access_log_contract=config.access_log_contract,
                    stale_ms=STALE_HEARTBEATS * config.heartbeat_ms + STALE_MS,
                ),
                joining=joining,
                set_voting=lambda voting: driver.replace(new_core(voting)),
            )
            nursery.start_soon(service.run)
            nursery.start_soon(keep_peers, config.data_dir / PEER_BOOK, network.peers)
            yield service
            nursery.cancel_scope.cancel()


def _network_config(config: NodeConfig, identity: Identity, genesis: Genesis) -> NetworkConfig:
    return NetworkConfig(
        identity_seed=identity.network_seed,
        network_id=chain_id(genesis),
        listen=config.p2p_listen,
        bootstrap=bootstrap_addresses(config.p2p_bootstrap, load_peers(config.data_dir / PEER_BOOK), identity.peer_id),
        mdns=config.p2p_mdns,
        max_peers=config.p2p_max_peers,
        announce=config.p2p_announce,
        topics=(TOPIC_BATCHES, TOPIC_CONSENSUS),
    )


def _join_settings(config: NodeConfig) -> JoinSettings:
    return JoinSettings(
        directory=config.data_dir,
        wait_s=config.join_wait_ms / 1000,
        checkpoint=parse_checkpoint(config.checkpoint) if config.checkpoint else None,
        named=frozenset(text.rpartition("/")[2] for text in config.p2p_bootstrap),
        limit_bytes=config.store_limit_bytes,
    )


def build_core(
    epoch: Epoch,
    identity: Identity,
    store: Store,
    safety: SafetyFile,
    pool: BatchPool,
    timing: Timing,
    *,
    voting: bool = True,
) -> Core:
    """Return the core as it was when the node stopped, or one that only watches and knows what is committed.

    Raises `StoreError` when a member's safety record is gone: every node writes one when it first starts.
    """
    head = committed_head(store, epoch)
    height = store.head().height
    snapshot = safety.snapshot
    if snapshot is None:
        if height > 0 and epoch.committee.index_of(identity.address) is not None:
            raise StoreError(
                f"the safety record is gone, but microblocks up to {height} are here; voting without it could "
                "break agreement. Restore the file `safety`, or run this node as an observer with a new key"
            )
        snapshot = SafetySnapshot(fresh_record(epoch), ())
        safety.save(snapshot)
    return Core(
        epoch=epoch,
        payload=pool,
        key=identity.signing if voting else None,
        head=head,
        record=snapshot.record if voting else None,
        proposals=snapshot.proposals if voting else (),
        timing=timing,
        now_ms=now_ms(),
    )
