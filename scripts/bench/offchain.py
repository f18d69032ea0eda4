# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations of an off-chain contract on a local network, against the same sent directly: speed and cost. Run `scripts/bench/offchain`."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from ledger.lmdb_store import open_store
from node.devnet import Devnet
from node.genesis_file import read_genesis
from scripts.bench.load import percentile, run_load
from scripts.bench.network import Bench
from scripts.bench.offchain_load import Sent, send_all
from scripts.bench.offchain_network import BatchWatch, OffchainBench, Seen
from scripts.bench.offchain_replay import Cost, Part, replay
from scripts.bench.throughput import SENDERS_PER_NODE, transfer_offers

SETTLE_S = 60.0
"""How long batches may take to commit and to become final after the last request."""
OBSERVER = 1
"""The node that is asked how far batches are; another one than the operator's."""


@dataclass(frozen=True)
class Stage:
    """How fast operations reach a stage, and after what time."""

    stage: str
    """"submitted", "receipted", "committed" or "final"."""
    operations: int
    """Operations that reached it."""
    per_second: float
    """Operations per second, from the first to the last that reached it; no more than came in per second."""
    p50_ms: float
    """Median time from when a request was due to be sent."""
    p99_ms: float
    """99th percentile."""


@dataclass(frozen=True)
class Used:
    """What the processes have used in one part of the run."""

    operator_cores: float
    """Mean processor use of the operator's node, in cores."""
    other_cores: float
    """Mean of the other nodes, each of which watches."""
    generator_cores: float
    """The load generator's, which runs on the same machine."""
    us_per_operation: float
    """Processor time of all nodes together per operation, in microseconds: everything is in it."""
    rss_mb_max: float
    """Largest resident memory of a node, in MB."""


class Usage:
    """Adds up processor time of the nodes between two moments."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._own = psutil.Process()
        self._begun_s = time.perf_counter()
        self._before = self._seconds()

    def _seconds(self) -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in (*self._processes, self._own)]

    def used(self, operations: int) -> Used:
        """Return what was used since the beginning, for so many operations."""
        elapsed_s = time.perf_counter() - self._begun_s
        *spent, generator = (after - before for after, before in zip(self._seconds(), self._before, strict=True))
        return Used(
            operator_cores=round(spent[0] / elapsed_s, 2),
            other_cores=round(sum(spent[1:]) / max(1, len(spent) - 1) / elapsed_s, 2),
            generator_cores=round(generator / elapsed_s, 2),
            us_per_operation=round(sum(spent) * 1e6 / max(1, operations), 1),
            rss_mb_max=round(max(process.memory_info().rss for process in self._processes) / 1e6, 1),
        )


def stages(sent: Sent, watch: BatchWatch, operations: int) -> list[Stage]:
    """Return how fast the operations came from stage to stage; all requests have so many of them."""
    due = [one.due_s for one in sent.receipted]
    numbers = [one.signed().receipt.number for one in sent.receipted]
    committed = {number: batch.committed_s for number, batch in watch.seen.items()}
    submitted = [one.sent_s for one in sent.receipted]
    reached: list[tuple[str, Sequence[float | None]]] = [
        ("submitted", submitted),
        ("receipted", [one.received_s for one in sent.receipted]),
        ("committed", [committed.get(number) for number in numbers]),
        ("final", [watch.final_s.get(number) for number in numbers]),
    ]
    # Batches may come in a rush after a pause: that does not count as faster than the users were.
    least_s = max(submitted) - min(submitted) if submitted else 0.0
    return [_stage(stage, due, moments, operations, least_s) for stage, moments in reached]


def _stage(stage: str, due: Sequence[float], moments: Sequence[float | None], operations: int, least_s: float) -> Stage:
    there = sorted(moment for moment in moments if moment is not None)
    waits = sorted((moment - due_s) * 1000 for moment, due_s in zip(moments, due, strict=True) if moment is not None)
    rates = [len(there) / least_s] if least_s else []
    # What came at the very first moment was under way before it: it does not count here.
    after_first = sum(moment > there[0] for moment in there) if there else 0
    if after_first:
        rates.append(after_first / (there[-1] - there[0]))
    return Stage(
        stage,
        len(there) * operations,
        round(min(rates, default=0.0) * operations, 1),
        round(percentile(waits, 0.5), 1),
        round(percentile(waits, 0.99), 1),
    )


@dataclass(frozen=True)
class Measured:
    """The off-chain part of a run."""

    sent: Sent
    """Requests and receipts."""
    stages: list[Stage]
    """How fast."""
    used: Used
    """At what expense."""
    batches: list[Seen]
    """The batches."""
    part: Part
    """Where they stand on the chain."""
    honoured: int
    """Receipts that a committed batch keeps."""
    followed: int
    """Nodes that have executed all of it and prove a balance at its end."""
    data: dict[bytes, bytes]
    """Data of the batches, by its digest."""


def measure_offchain(offchain: OffchainBench, arguments: argparse.Namespace, console: Console) -> Measured:
    """Send requests at the rate asked for, and follow them until they are final."""
    bench, count = offchain.bench, int(arguments.rate * arguments.seconds / arguments.operations)
    console.print(f"signing {count} requests of {arguments.operations} operations by {arguments.users} users …")
    per_s = arguments.rate / arguments.operations
    requests = offchain.sign(count, per_s, arguments.operations, arguments.recipients, arguments.gateways)
    with bench.devnet.client(OBSERVER) as client:
        before = client.status().height
    with BatchWatch(bench.urls[OBSERVER], offchain.contract_id) as watch:
        time.sleep(0.5)  # the watch begins with what is there
        usage = Usage(bench.pids())
        console.print(f"offering {arguments.rate:g} operations/s for {arguments.seconds:g} s …")
        sent = send_all(offchain.operator_url, offchain.contract_id, requests)
        used = usage.used(len(sent.receipted) * arguments.operations)
        last = max((one.signed().receipt.number for one in sent.receipted), default=-1)
        deadline_s = time.monotonic() + SETTLE_S
        while last not in watch.seen and time.monotonic() < deadline_s:
            time.sleep(0.05)
        offchain.keep_moving(watch, last + 1)
        reached = stages(sent, watch, arguments.operations)
    batches = [watch.seen[number] for number in sorted(watch.seen)]
    assert batches, "no batch was committed; see the logs of the operator's node"
    commitments = [batch.commitment for batch in batches]
    console.print("checking receipts against the batches …")
    data = offchain.data(commitments)
    return Measured(
        sent=sent,
        stages=reached,
        used=used,
        batches=batches,
        part=Part(before, batches[-1].height),
        honoured=offchain.honoured(sent.receipted, commitments, data),
        followed=offchain.followed(commitments[-1]),
        data=data,
    )


def measure_direct(bench: Bench, arguments: argparse.Namespace, console: Console) -> tuple[Part, Used]:
    """Send transfers, each a transaction of its own, on the same network."""
    count = int(arguments.direct_rate * arguments.direct_seconds)
    offers = transfer_offers(bench, count, f"{count} transfers")
    with bench.devnet.client(OBSERVER) as client:
        before = client.status().height
        console.print(f"offering {arguments.direct_rate:g} transfers/s for {arguments.direct_seconds:g} s …")
        usage = Usage(bench.pids())
        outcome = run_load(offers, arguments.direct_rate)
        used = usage.used(outcome.committed)
        return Part(before, client.status().height), used


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Measure everything on a fresh network."""
    console = Console(stderr=True)
    devnet = Devnet.create(directory / "network", arguments.nodes)
    try:
        devnet.start(told=console.print)
        bench = Bench(devnet)
        console.print("preparing accounts, a contract and its users …")
        bench.prepare(SENDERS_PER_NODE, 0)
        offchain = OffchainBench(bench)
        offchain.open(arguments.users)
        measured = measure_offchain(offchain, arguments, console)
        direct_part, direct_used = measure_direct(bench, arguments, console)
        agreed = bench.agreed()
    finally:
        devnet.stop()
    console.print("executing the chain once more, to see what it took …")
    manifest = devnet.manifest
    source = open_store(Path(manifest.nodes[OBSERVER].data_dir) / "chain", read_genesis(Path(manifest.genesis_file)))
    try:
        offchain_cost, direct_cost = replay(source, directory / "replayed", [measured.part, direct_part], measured.data)
    finally:
        source.close()
    return {
        **_figures(measured, offchain_cost, direct_cost),
        "offchain_used": asdict(measured.used),
        "direct_used": asdict(direct_used),
        "offchain_chain": asdict(offchain_cost),
        "direct_chain": asdict(direct_cost),
        "stages": [asdict(stage) for stage in measured.stages],
        "agreed": agreed,
        **_parameters(arguments),
    }


def _figures(measured: Measured, offchain: Cost, direct: Cost) -> dict[str, object]:
    by_name = {stage.stage: stage for stage in measured.stages}
    receipted = len(measured.sent.receipted)
    answers = sorted((one.received_s - one.sent_s) * 1000 for one in measured.sent.receipted)
    return {
        "operations_per_s": min(stage.per_second for stage in measured.stages),
        "receipt_p50_ms": by_name["receipted"].p50_ms,
        "receipt_p99_ms": by_name["receipted"].p99_ms,
        "answer_p50_ms": round(percentile(answers, 0.5), 1),
        "answer_p99_ms": round(percentile(answers, 0.99), 1),
        "commit_p50_ms": by_name["committed"].p50_ms,
        "final_p50_ms": by_name["final"].p50_ms,
        "refused": sum(measured.sent.refused.values()),
        "reasons": dict(measured.sent.refused),
        "put_off": measured.sent.busy,
        "broken_receipts": receipted - measured.honoured,
        "watchers_followed": measured.followed,
        "batches": len(measured.batches),
        "chain_bytes_per_operation": round(offchain.bytes_per_operation, 3),
        "direct_bytes_per_operation": round(direct.bytes_per_operation, 1),
        "bytes_ratio": round(direct.bytes_per_operation / offchain.bytes_per_operation),
        "chain_us_per_operation": round(offchain.us_per_operation, 3),
        "direct_us_per_operation": round(direct.us_per_operation, 1),
        "cpu_ratio": round(direct.us_per_operation / offchain.us_per_operation),
        "data_bytes_per_operation": round(offchain.data_bytes / offchain.operations, 1),
    }


def _parameters(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "contract": "micro_fees",
        "users": arguments.users,
        "operations_per_request": arguments.operations,
        "recipients_per_request": arguments.recipients,
        "gateways": arguments.gateways,
        "offered_per_s": arguments.rate,
        "seconds": arguments.seconds,
        "nodes": arguments.nodes,
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    console = Console(width=110)
    console.print(
        f"{result['nodes']} nodes on {result['cores']} cores, load generator included; {result['users']} users of a "
        f"{result['contract']} contract, {result['operations_per_request']} operations in a request"
    )
    rows = [[str(value) for value in stage.values()] for stage in result["stages"]]
    console.print(_table("operations", ("stage", "operations", "per s", "p50 ms", "p99 ms"), rows))
    console.print(
        f"from when a gateway sent a request to its receipt: p50 {result['answer_p50_ms']} ms, p99 {result['answer_p99_ms']} ms"
    )
    rows = [
        [label, *(str(result[name]) for name in (f"chain_{unit}_per_operation", f"direct_{unit}_per_operation", ratio))]
        for label, unit, ratio in (("bytes", "bytes", "bytes_ratio"), ("processor time, µs", "us", "cpu_ratio"))
    ]
    console.print(_table("the chain, per operation", ("", "off the chain", "directly", "ratio"), rows))
    rows = [
        [label, *(str(value) for value in result[name].values())]
        for label, name in (("off the chain", "offchain_used"), ("directly", "direct_used"))
    ]
    titles = ("cores", "operator's node", "each other", "generator", "all nodes, µs per operation", "MB, largest node")
    console.print(_table("everything that nodes do", titles, rows))
    console.print(
        f"{result['batches']} batches, {result['data_bytes_per_operation']} bytes of published data per operation, kept for a time"
    )
    console.print(
        f"requests refused: {result['refused']}, put off: {result['put_off']}; receipts broken: {result['broken_receipts']}"
    )
    console.print(
        f"nodes that have executed all batches: {result['watchers_followed']}; all at one state root: {result['agreed']}"
    )


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parsed = argparse.ArgumentParser(description=__doc__)
    parsed.add_argument("--nodes", type=int, default=4, help="node processes (default 4)")
    parsed.add_argument("--users", type=int, default=1000, help="users, each with a key of their own (default 1000)")
    parsed.add_argument("--rate", type=float, default=10_500, help="offered operations per second (default 10500)")
    parsed.add_argument("--seconds", type=float, default=25.0, help="duration (default 25)")
    parsed.add_argument("--operations", type=int, default=10, help="operations in a request (default 10)")
    parsed.add_argument("--recipients", type=int, default=1, help="institutions that a request pays (default 1)")
    parsed.add_argument("--gateways", type=int, default=4, help="connections that users come through (default 4)")
    parsed.add_argument("--direct-rate", type=float, default=1000, help="offered transfers per second (default 1000)")
    parsed.add_argument("--direct-seconds", type=float, default=5.0, help="duration of the transfers (default 5)")
    parsed.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parsed


def main() -> int:
    """Run from the command line; returns the exit code."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="spchain-bench-") as directory:
        result = run(arguments, Path(directory))
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    sound = result["agreed"] and not result["broken_receipts"] and result["watchers_followed"] == arguments.nodes
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
