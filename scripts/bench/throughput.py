# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput and latency of a local network of real node processes, against offered load. Run `scripts/bench/throughput`."""

import argparse
import json
import os
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ledger.bodies import CommitRecord, Transfer
from ledger.crypto.chameleon import draw_opening, hash_message
from ledger.crypto.keys import PrivateKey, verify
from ledger.patients import (
    PatientMicroblock,
    RecordEnvelope,
    envelope_digest,
    patient_keyblock_hash,
    record_id,
)
from node.devnet import Devnet
from scripts.bench.load import Offer, Outcome, percentile, run_load
from scripts.bench.network import Bench

SENDERS_PER_NODE = 16
PATIENTS_PER_NODE = 32
UNLOADED_SAMPLES = 40


@dataclass(frozen=True)
class Row:
    """One level of offered load."""

    kind: str
    """"transfers" or "records"."""
    offered_per_s: float
    """Offered load, all nodes together."""
    committed_per_s: float
    """Committed, all nodes together."""
    refused: int
    """Transactions not accepted."""
    lost: int
    """Transactions accepted and not committed within the patience."""
    latency_p50_ms: float
    """Median from submission to commit."""
    latency_p99_ms: float
    """99th percentile."""
    cpu_per_node: float
    """Mean processor use of a node, in cores."""
    rss_mb_max: float
    """Largest resident memory of a node, in MB."""
    seconds: float
    """Duration."""


def signature_rate(seconds: float) -> float:
    """Return signature checks per second on all cores, through the very function that nodes use."""
    key = PrivateKey(secrets.token_bytes(32))
    digest = secrets.token_bytes(32)
    signature = key.sign(digest)
    counts = [0] * (os.cpu_count() or 1)
    stop_s = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < stop_s:
            for _ in range(100):
                assert verify(key.public_key, digest, signature)
            counts[index] += 100

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def transfer_offers(bench: Bench, count: int, label: str) -> list[Offer]:
    """Sign `count` transfers, each sender through its own node, in an order that spreads the senders."""
    per_node: list[list[bytes]] = [[] for _ in bench.urls]
    for number in track(range(count), description=f"signing {label}", console=Console(stderr=True), transient=True):
        node = number % len(bench.urls)
        sender = bench.senders[node][number // len(bench.urls) % SENDERS_PER_NODE]
        recipient = bench.senders[node][0].key.address
        per_node[node].append(bench.sign(sender, Transfer(recipient, 1)))
    return [Offer(url, raws) for url, raws in zip(bench.urls, per_node, strict=True)]


def record_offers(bench: Bench, count: int, label: str) -> list[Offer]:
    """Sign `count` commit-record transactions with openings; each patient's records form a chain at one node."""
    per_node: list[list[bytes]] = [[] for _ in bench.urls]
    for number in track(range(count), description=f"signing {label}", console=Console(stderr=True), transient=True):
        node = number % len(bench.urls)
        author = bench.institutions[node]
        patient = bench.patients[node][number // len(bench.urls) % PATIENTS_PER_NODE]
        envelope = RecordEnvelope(
            secrets.token_bytes(32), secrets.token_bytes(32), 40_000, author.key.address, "final", "", b""
        )
        opening = draw_opening(secrets.token_bytes(32))
        link = PatientMicroblock(
            patient.address,
            patient_keyblock_hash(patient.keyblock),
            patient.last,
            patient.count,
            author.key.address,
            hash_message(envelope_digest(envelope), opening),
        )
        patient.last, patient.count = record_id(link), patient.count + 1
        per_node[node].append(bench.sign(author, CommitRecord(link, envelope, opening)))
    return [Offer(url, raws) for url, raws in zip(bench.urls, per_node, strict=True)]


def measure(bench: Bench, kind: str, rate: float, seconds: float) -> tuple[Row, Outcome]:
    """Offer one level of load and return what came of it."""
    count = int(rate * seconds)
    label = f"{count} {kind}"
    offers = transfer_offers(bench, count, label) if kind == "transfers" else record_offers(bench, count, label)
    processes = [psutil.Process(pid) for pid in bench.pids()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    start_s = time.perf_counter()
    outcome = run_load(offers, rate)
    elapsed_s = time.perf_counter() - start_s
    cpu = [sum(process.cpu_times()[:2]) - used for process, used in zip(processes, before, strict=True)]
    row = Row(
        kind=kind,
        offered_per_s=rate,
        committed_per_s=round(outcome.per_second, 1),
        refused=outcome.refused,
        lost=outcome.offered - outcome.refused - outcome.committed,
        latency_p50_ms=round(percentile(outcome.latencies_ms, 0.5), 1),
        latency_p99_ms=round(percentile(outcome.latencies_ms, 0.99), 1),
        cpu_per_node=round(sum(cpu) / len(cpu) / elapsed_s, 2),
        rss_mb_max=round(max(process.memory_info().rss for process in processes) / 1e6, 1),
        seconds=round(outcome.seconds, 1),
    )
    return row, outcome


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Measure everything on a fresh network."""
    console = Console(stderr=True)
    console.print("signature checks on all cores …")
    rate = signature_rate(2.0)
    devnet = Devnet.create(directory / "network", arguments.nodes)
    try:
        devnet.start(told=console.print)
        bench = Bench(devnet)
        console.print("preparing accounts, institutions and patients …")
        bench.prepare(SENDERS_PER_NODE, PATIENTS_PER_NODE)
        unloaded = bench.unloaded_latencies_ms(UNLOADED_SAMPLES)
        rows = []
        for kind, rates in (("transfers", arguments.rates), ("records", arguments.record_rates)):
            for offered in rates:
                row, _ = measure(bench, kind, offered, arguments.seconds)
                rows.append(row)
                console.print(f"{kind}: offered {offered:g}/s, committed {row.committed_per_s:g}/s")
        agreed = bench.agreed()
    finally:
        devnet.stop()
    best = max((row for row in rows if row.kind == "transfers"), key=lambda row: row.committed_per_s)
    return {
        "committed_tps": best.committed_per_s,
        "records_per_s": max((row.committed_per_s for row in rows if row.kind == "records"), default=0.0),
        "latency_p50_ms": best.latency_p50_ms,
        "latency_p99_ms": best.latency_p99_ms,
        "unloaded_latency_p50_ms": round(percentile(unloaded, 0.5), 1),
        "signature_limit_tps": round(rate / arguments.nodes),
        "rss_mb_max": max(row.rss_mb_max for row in rows),
        "nodes": arguments.nodes,
        "cores": os.cpu_count(),
        "agreed": agreed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "levels": [asdict(row) for row in rows],
    }


def show(result: dict[str, object], rows: Sequence[dict[str, object]]) -> None:
    """Print the result for people."""
    table = Table(title=f"{result['nodes']} nodes on {result['cores']} cores, load generator included")
    titles = ("kind", "offered/s", "committed/s", "refused", "lost", "p50 ms", "p99 ms", "CPU/node", "RSS MB", "s")
    for title in titles:
        table.add_column(title, justify="left" if title == "kind" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(width=110)
    console.print(table)
    console.print(f"unloaded commit latency, median: {result['unloaded_latency_p50_ms']} ms")
    console.print(f"signature checks alone would allow {result['signature_limit_tps']} transactions/s")
    console.print(f"all nodes at one state root: {result['agreed']}")


def rates(text: str) -> list[float]:
    """Parse a list of rates."""
    return [float(part) for part in text.split(",") if part]


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="node processes (default 4)")
    parser.add_argument(
        "--rates", type=rates, default=[500, 1500, 2500], help="offered transfers per second, as a list"
    )
    parser.add_argument("--record-rates", type=rates, default=[300, 900], help="offered records per second, as a list")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each level (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spchain-bench-") as directory:
        result = run(arguments, Path(directory))
    levels = result["levels"]
    assert isinstance(levels, list)
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result, levels)
    return 0 if result["agreed"] else 1


if __name__ == "__main__":
    sys.exit(main())
