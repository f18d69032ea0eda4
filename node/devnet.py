# SPDX-License-Identifier: GPL-3.0-or-later
"""A network of real node processes on this machine, with a miner each if wanted: for daily work, the demo, benchmarks and system tests.

Everything lies in one directory (`node.devnet_files`), with a log and a pid file per process.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from platformdirs import user_state_path

from ledger.errors import InvalidInput, SpchainError
from ledger.rules import DEVNET_PARAMETERS, Parameters
from node.api import status_models
from node.client import NodeClient
from node.config import ENVIRONMENT_PREFIX
from node.devnet_files import Manifest, NodeEntry, claim, exists, is_claimed, load, make, wipe
from node.http_client import ApiError, NodeUnreachable
from node.identity import Identity
from node.keystore import passphrase_from_file, read_key
from node.miner import miner_arguments
from node.processes import Keeper

DIRECTORY_VARIABLE = "SPCHAIN_DEVNET"
MAX_NODES = 32
"""A node takes about 100 MB and a share of a core."""
START_TIMEOUT_S = 90.0
"""Start of all nodes up to a complete mesh; on two cores four nodes take about ten seconds."""
GRACE_S = 10.0
"""Between SIGTERM and SIGKILL."""
MINE_PERCENT = 5
"""Share of a core that a node's key mines with: four of them find the first keyblocks within seconds."""
_POLL_S = 0.1
_Answer = TypeVar("_Answer")


class DevnetFailure(SpchainError):
    """The devnet cannot do what was asked: a node does not start, or not in time."""


class NodeReport(msgspec.Struct, frozen=True):
    """How one node of a devnet is."""

    entry: NodeEntry
    """Which one."""
    pid: int | None
    """Its process; None when it does not run."""
    status: status_models.Status | None
    """What it says; None when it does not answer."""
    miner_pid: int | None
    """The process that mines with its key; None when none runs."""
    keyblocks: int | None
    """Pinned keyblocks of its key; None when it does not answer."""


class Devnet:
    """A devnet that exists on the disk; its nodes may run or not. Nodes are counted from 0."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._keepers = [Keeper(Path(entry.data_dir) / "node.pid", Path(entry.log_file)) for entry in manifest.nodes]
        self._miners = [
            Keeper(Path(entry.data_dir) / "miner.pid", Path(entry.data_dir) / "miner.log") for entry in manifest.nodes
        ]

    @classmethod
    def create(
        cls,
        directory: Path,
        nodes: int = 4,
        *,
        api_base_port: int | None = None,
        network: str = "devnet",
        parameters: Parameters = DEVNET_PARAMETERS,
        settings: Mapping[str, object] | None = None,
    ) -> "Devnet":
        """Make keys, genesis and data directories; starts nothing. Raises `InvalidInput`.

        `settings` are fields of `NodeConfig` for all nodes.
        """
        if not 1 <= nodes <= MAX_NODES:
            raise InvalidInput(f"a devnet of {nodes} nodes; 1 to {MAX_NODES} are possible")
        directory = directory.expanduser().resolve()
        claim(directory)
        return cls(directory, make(directory, nodes, api_base_port, network, parameters, settings or {}))

    @classmethod
    def load(cls, directory: Path) -> "Devnet":
        """Open a devnet. Raises `InvalidInput`: there is none, or its file is damaged."""
        directory = directory.expanduser().resolve()
        return cls(directory, load(directory))

    @staticmethod
    def exists(directory: Path) -> bool:
        """Tell whether a complete devnet lies in a directory."""
        return exists(directory)

    def __len__(self) -> int:
        return len(self.manifest.nodes)

    @property
    def urls(self) -> tuple[str, ...]:
        """Bases of the nodes' HTTP APIs."""
        return tuple(entry.url for entry in self.manifest.nodes)

    @property
    def passphrase(self) -> bytes:
        """Opens all key files."""
        return passphrase_from_file(Path(self.manifest.passphrase_file))

    def identity(self, index: int) -> Identity:
        """Return the keys of a node's account."""
        return read_key(Path(self.manifest.nodes[index].key_file), self.passphrase)

    def client(self, index: int = 0, timeout_s: float = 30.0) -> NodeClient:
        """Return a client of a node; the caller closes it."""
        return NodeClient(self.urls[index], timeout_s=timeout_s)

    @contextmanager
    def clients(self, timeout_s: float = 30.0) -> Iterator[list[NodeClient]]:
        """Give clients of all nodes, and close them."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.client(index, timeout_s)) for index in range(len(self))]

    def pid(self, index: int) -> int | None:
        """Return a node's process; None when it does not run."""
        return self._keepers[index].pid

    def start(self, timeout_s: float = START_TIMEOUT_S, told: Callable[[str], None] | None = None) -> None:
        """Start the nodes that do not run, and wait until all answer and see each other. Raises `DevnetFailure`.

        `told` is called with a line for people when something changes.
        """
        with _locked(self.directory):
            for index in range(len(self)):
                self.start_node(index)
            self.wait_connected(timeout_s, told)

    def start_node(self, index: int) -> int:
        """Start one node if it does not run, without waiting for it; returns its process."""
        data_dir = self.manifest.nodes[index].data_dir
        arguments = [sys.executable, "-m", "node.cli.main", "node", "run", "--data-dir", data_dir]
        return _started(self._keepers[index], arguments, Path(data_dir))

    def start_miners(self, duty_percent: int = MINE_PERCENT) -> None:
        """Start a miner at each node that has none."""
        with _locked(self.directory):
            for index in range(len(self)):
                self.start_miner(index, duty_percent)

    def stop_miners(self) -> int:
        """Stop all miners; returns how many ran."""
        with _locked(self.directory):
            return _end(self._miners, GRACE_S)

    def start_miner(self, index: int, duty_percent: int = MINE_PERCENT) -> int:
        """Start a miner with a node's key, at that node, with so many per cent of a core, unless one runs; returns its process."""
        entry, passphrase_file = self.manifest.nodes[index], Path(self.manifest.passphrase_file)
        arguments = miner_arguments(
            Path(entry.key_file), entry.url, duty_percent=duty_percent, passphrase_file=passphrase_file
        )
        return _started(self._miners[index], arguments, Path(entry.data_dir))

    def stop_miner(self, index: int) -> bool:
        """Stop the miner at a node; tells whether one ran."""
        return bool(_end([self._miners[index]], GRACE_S))

    def restart(self, index: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start one node again and wait until it answers."""
        self.start_node(index)
        self._await(timeout_s, lambda: self._answers(index), f"{self.manifest.nodes[index].name} does not answer")

    def wait_connected(self, timeout_s: float = START_TIMEOUT_S, told: Callable[[str], None] | None = None) -> None:
        """Wait until each node answers and is connected to all others. Raises `DevnetFailure`."""
        expected = len(self) - 1
        seen: dict[int, str] = {}

        def connected() -> bool:
            peers = [self._peers(index) for index in range(len(self))]
            for index, count in enumerate(peers):
                text = "starting" if count is None else f"up, {count} of {expected} peers"
                if told is not None and seen.get(index) != text:
                    told(f"{self.manifest.nodes[index].name}: {text}")
                seen[index] = text
            return all(count is not None and count >= expected for count in peers)

        self._await(timeout_s, connected, "not all nodes see each other")

    def stop(self, grace_s: float = GRACE_S) -> int:
        """Stop all miners and nodes; returns how many nodes ran."""
        _end(self._miners, grace_s)
        return _end(self._keepers, grace_s)

    def kill(self, index: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a node and its miner a signal; after SIGKILL and SIGTERM wait for their end.

        Raises `DevnetFailure` when the node does not run, or does not end.
        """
        entry, keeper, miner = self.manifest.nodes[index], self._keepers[index], self._miners[index]
        if not keeper.signal(number):
            raise DevnetFailure(f"{entry.name} does not run; start it first: spchain devnet up")
        miner.signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM) and not (keeper.wait(GRACE_S) and miner.wait(GRACE_S)):
            raise DevnetFailure(f"{entry.name} has not ended {GRACE_S:g} s after {number.name}; see {entry.log_file}")

    def wipe(self, grace_s: float = GRACE_S) -> None:
        """Stop all nodes and delete the directory."""
        self.stop(grace_s)
        wipe(self.directory)

    def report(self) -> list[NodeReport]:
        """Return how all nodes are."""
        reports = []
        for index, entry in enumerate(self.manifest.nodes):
            pid = self.pid(index)
            status = None if pid is None else self._status(index)
            keyblocks = None if status is None else self._keyblocks(index)
            reports.append(NodeReport(entry, pid, status, self._miners[index].pid, keyblocks))
        return reports

    def _keyblocks(self, index: int) -> int | None:
        key = bytes.fromhex(self.manifest.nodes[index].public_key)
        return self._ask(index, lambda client: client.miner(key).mining.keyblocks)

    def _status(self, index: int) -> status_models.Status | None:
        status = self._ask(index, NodeClient.status)
        # Another program may have the port by now.
        is_ours = status is not None and status.address.hex() == self.manifest.nodes[index].address
        return status if is_ours else None

    def _ask(self, index: int, question: Callable[[NodeClient], _Answer]) -> _Answer | None:
        try:
            with self.client(index, timeout_s=5.0) as client:
                return question(client)
        except (NodeUnreachable, ApiError):
            return None

    def _answers(self, index: int) -> bool:
        return self._peers(index) is not None

    def _peers(self, index: int) -> int | None:
        status = self._status(index)
        return None if status is None else len(status.peers)

    def _await(self, timeout_s: float, reached: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            for index, entry in enumerate(self.manifest.nodes):
                if self.pid(index) is None and time.monotonic() < deadline:
                    tail = self._keepers[index].log_tail()
                    raise DevnetFailure(f"{entry.name} has ended; see {entry.log_file}, which ends with:\n{tail}")
            if time.monotonic() > deadline:
                raise DevnetFailure(f"{otherwise} after {timeout_s:g} s; see the logs in {self.directory}")
            time.sleep(_POLL_S)


def _started(keeper: Keeper, arguments: Sequence[str], directory: Path) -> int:
    """Start a process unless it runs; returns its number."""
    # What the operator has set for a node of his own must not reach into the devnet.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    return keeper.pid or keeper.start(arguments, environment, directory)


def _end(keepers: Sequence[Keeper], grace_s: float) -> int:
    """End processes, all at once; returns how many ran."""
    running = [keeper for keeper in keepers if keeper.signal(signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    for keeper in running:
        if not keeper.wait(max(0.0, deadline - time.monotonic())):
            keeper.signal(signal.SIGKILL)
            keeper.wait(grace_s)
    return len(running)


def discard(directory: Path, grace_s: float = GRACE_S) -> tuple[int, int]:
    """End all nodes and miners of a devnet and delete it, also a damaged one; returns how many of both ran. Raises `InvalidInput`."""
    directory = directory.expanduser().resolve()
    ended = {"node": 0, "miner": 0}
    # By their pid files: `devnet.json` may be what is damaged. In somebody else's directory nothing is ended.
    for which in ("miner", "node") if is_claimed(directory) else ():
        pid_files = sorted(directory.glob(f"*/{which}.pid"))
        ended[which] = _end([Keeper(file, file.with_suffix(".log")) for file in pid_files], grace_s)
    wipe(directory)
    return ended["node"], ended["miner"]


def default_directory() -> Path:
    """Return where the devnet lives when nobody says otherwise."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    return Path(chosen) if chosen else user_state_path("spchain", appauthor=False) / "devnet"


def running_url(directory: Path | None = None) -> str | None:
    """Return the URL of the first running node of a devnet, or None."""
    try:
        devnet = Devnet.load(directory or default_directory())
    except (SpchainError, OSError):
        return None
    return next((url for index, url in enumerate(devnet.urls) if devnet.pid(index) is not None), None)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time start or stop the devnet."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
