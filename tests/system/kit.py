# SPDX-License-Identifier: GPL-3.0-or-later
"""What system tests share: the command line as a process, load on real nodes, and agreement between them."""

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ledger.bodies import Transfer
from ledger.errors import SpchainError
from ledger.transactions import transaction_id
from node.actions import Actor, NetworkRules
from node.api import models
from node.client import NodeClient
from node.config import ENVIRONMENT_PREFIX
from node.devnet import DIRECTORY_VARIABLE, Devnet

ROOT = Path(__file__).resolve().parents[2]
BUNDLE_FILE = ROOT / "scripts" / "data" / "fhir" / "n01.json.gz"
BUNDLE = gzip.decompress(BUNDLE_FILE.read_bytes())
PATIENCE_S = 120.0
"""Machines that run tests are busy: what must come at last may come late."""


def until(reached: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds; fails with `what` when it never does."""
    deadline_s = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < deadline_s, f"{what}: not within {patience_s:g} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Spchain:
    """The command line as a user has it: a process, a current directory, an environment."""

    directory: Path
    """Current directory."""
    devnet: Path
    """The devnet's directory, for verbs that look for one."""

    def __call__(self, *arguments: str | Path, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a verb that runs until it is told to stop."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the process's arguments."""
        return [sys.executable, "-m", "node.cli.main", *map(str, arguments)]

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees of ours: nothing that an operator has set for a node of his own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        return {**kept, "PYTHONPATH": str(ROOT), DIRECTORY_VARIABLE: str(self.devnet)}


def refused(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """Check that a verb ended with an exit code and one error for people, which holds all the texts."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    for text in texts:
        assert text in done.stderr


def ran(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a verb did its job; returns what it printed."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Load:
    """Small payments through some nodes until told to stop; keeps what the nodes have said."""

    def __init__(
        self, devnet: Devnet, rules: NetworkRules, nodes: Sequence[int], at_once: int = 40, pause_s: float = 0.0
    ) -> None:
        self._devnet, self._rules, self._at_once, self._pause_s = devnet, rules, at_once, pause_s
        self.accepted: set[bytes] = set()
        """Transactions that a node has reported as accepted."""
        self.committed: dict[bytes, int] = {}
        """Transactions that a node has reported as committed, with their height."""
        self.failures: list[tuple[int, str]] = []
        """Nodes that did not answer, with what the client said."""
        with devnet.client(nodes[0]) as client:
            self.since = client.status().height
            """Height before the load."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(node,)) for node in nodes]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Let what is under way end, and no more begin."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def reach(self, count: int) -> None:
        """Wait until so many more are reported as committed."""
        target = len(self.committed) + count
        until(lambda: len(self.committed) >= target or not self._alive, f"{count} commits under load")
        assert len(self.committed) >= target, f"the load has ended early: {self.failures}"

    @property
    def _alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _run(self, node: int) -> None:
        recipient = self._devnet.identity((node + 1) % len(self._devnet)).address
        try:
            with self._devnet.client(node) as client:
                actor = Actor(client, self._devnet.identity(node), rules=self._rules)
                while not self._stop.wait(self._pause_s):
                    self._offer(client, actor.sign([Transfer(recipient, 1)] * self._at_once))
        except SpchainError as error:
            self.failures.append((node, str(error)))

    def _offer(self, client: NodeClient, raws: Sequence[bytes]) -> None:
        for raw, outcome in zip(raws, client.submit(raws, wait_ms=400), strict=True):
            if outcome.accepted:
                self.accepted.add(transaction_id(raw))
            if outcome.receipt is not None and not outcome.receipt.reason:
                self.committed[transaction_id(raw)] = outcome.receipt.height


def effects(client: NodeClient, since: int = 0) -> dict[bytes, int]:
    """Return what has taken effect at a node after a height: transactions with the height of their microblock."""
    found = {}
    for height in range(since + 1, client.status().height + 1):
        start: int | None = 0
        while start is not None:
            page = client.block_transactions(height, start, models.MAX_PAGE)
            found.update({item.id: height for item in page.transactions if not item.reason})
            start = page.next_start
    return found


def settle_all(devnet: Devnet, load: Load) -> None:
    """Wait until what a load was told has taken effect on every node: what was committed, where it was committed."""
    with devnet.clients() as clients:
        for entry, client in zip(devnet.manifest.nodes, clients, strict=True):
            found: dict[bytes, int] = {}

            def all_there(client: NodeClient = client, found: dict[bytes, int] = found) -> bool:
                found.update(effects(client, max(found.values(), default=load.since)))
                return load.accepted <= found.keys()

            until(all_there, f"{entry.name} lacks some of {len(load.accepted)} transactions")
            assert {identifier: found[identifier] for identifier in load.committed} == load.committed


def agree(devnet: Devnet) -> None:
    """Wait until all nodes are at one height, and check that they agree on state and microblocks.

    The newest twenty are looked at one by one; hashes and digests cover all that is before them.
    """
    with devnet.clients() as clients:
        found: list[tuple[int, bytes | None, bytes]] = []

        def settled() -> bool:
            found[:] = [(at.height, at.state_root, at.state_digest) for at in (client.state() for client in clients)]
            return len({height for height, _, _ in found}) == 1

        until(settled, "nodes at one height")
        assert len(set(found)) == 1, f"different states at one height: {found}"
        assert found[0][1] is not None
        for height in range(max(0, found[0][0] - 20), found[0][0] + 1):
            here = {(client.block(height).block_hash, client.state(height).state_digest) for client in clients}
            assert len(here) == 1, f"different microblocks at height {height}"


def no_traceback(devnet: Devnet) -> None:
    """Check that no node has written a traceback: a peer's or a user's fault is one line, our own is a bug."""
    for entry in devnet.manifest.nodes:
        text = Path(entry.log_file).read_text()
        at = text.find("Traceback")
        assert at < 0, f"{entry.name} has written a traceback:\n{text[max(0, at - 1000) : at + 4000]}"
