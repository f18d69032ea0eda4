# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's part of RepuCoin: what mining has come to, and the checks of what the summary claims about it."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from ledger.crypto.keys import address_of
from ledger.errors import SpchainError
from ledger.rules import REPUTATION_UNIT
from node.api.reputation_models import Epoch, ReputationPoint
from node.cli.plots import bounds, sparkline
from node.client import NodeClient
from node.devnet import Devnet

EPOCHS = 8
"""Keyblocks that are waited for: enough for a change of committees, leaders and reputations to be seen."""
PATIENCE_S = 60.0
_SPARKS = 24
"""Most columns of a curve; of more epochs every second or third is shown."""
_BESIDE_CURVE = 70
"""Columns of a terminal that the table of reputations takes beside the curves, and one for the newest epoch."""


class DemoFailure(SpchainError):
    """Something that the demo claims did not hold."""


def leader_index(devnet: Devnet, client: NodeClient) -> int:
    """Return the node that leads at the moment; between two epochs nobody knows for an instant."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (leader := client.status().leader):
        if time.monotonic() > deadline_s:
            raise DemoFailure(f"{client.url} knows no leader")
        time.sleep(0.05)
    return [entry.address for entry in devnet.manifest.nodes].index(leader.hex())


def tell_progress(devnet: Devnet, client: NodeClient, console: Console) -> None:
    """Print how far mining has come: one dim line."""
    mined = keyblocks_by_node(devnet, epochs_of(client))
    shares = ", ".join(f"{name} {count}" for name, count in mined.items())
    leader = devnet.manifest.nodes[leader_index(devnet, client)].name
    console.print(f"  [dim]epoch {sum(mined.values())} · keyblocks: {shares} · {leader} leads[/]", highlight=False)


def wait_for_epochs(devnet: Devnet, client: NodeClient) -> None:
    """Wait until enough keyblocks are pinned, of more than one miner. Raises `DemoFailure`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        mined = keyblocks_by_node(devnet, epochs_of(client))
        if sum(mined.values()) >= EPOCHS and sum(count > 0 for count in mined.values()) > 1:
            return
        if time.monotonic() > deadline_s:
            raise DemoFailure(f"only these keyblocks were pinned: {mined}; see the miner.log beside each node.log")
        time.sleep(0.2)


def epochs_of(client: NodeClient) -> list[Epoch]:
    """Return all epochs so far, the running one last."""
    return [client.epoch(number) for number in range(client.epoch().number + 1)]


def keyblocks_by_node(devnet: Devnet, epochs: Sequence[Epoch]) -> dict[str, int]:
    """Return the pinned keyblocks of each node's miner, by the node's name."""
    mined = Counter(epoch.miner for epoch in epochs[1:])
    return {entry.name: mined[bytes.fromhex(entry.public_key)] for entry in devnet.manifest.nodes}


def check_epochs(clients: Sequence[NodeClient]) -> list[Epoch]:
    """Check that all nodes tell the same epochs: keyblocks, committees, weights, seeds, targets. Raises `DemoFailure`."""
    told = [epochs_of(client) for client in clients]
    ended = min(map(len, told)) - 1
    if any(epochs[:ended] != told[0][:ended] for epochs in told):
        raise DemoFailure("nodes tell different epochs")
    if len({(epochs[ended].keyblock, epochs[ended].root_hash, epochs[ended].committee) for epochs in told}) != 1:
        raise DemoFailure(f"nodes tell different committees of epoch {ended}")
    return told[0][: ended + 1]


def facts(devnet: Devnet, epochs: Sequence[Epoch], leaders: Sequence[bytes]) -> list[tuple[str, str]]:
    """Return lines of the summary; `leaders` are those of the microblocks, by height."""
    names = {bytes.fromhex(entry.address): entry.name for entry in devnet.manifest.nodes}
    newest = epochs[-1]
    order = ", ".join(names[seat.address] for seat in newest.committee)
    orders = [tuple(seat.public_key for seat in epoch.committee) for epoch in epochs]
    return [
        ("mining", f"{newest.number} keyblocks pinned, each began an epoch with leaders of its own"),
        ("committee now", f"{order}, by reputation; the order changed {_changes(orders)} times"),
        ("leaders", f"{len(set(leaders))} nodes led, the lead changed {_changes(leaders)} times"),
    ]


def _changes(values: Sequence[object]) -> int:
    return sum(before != after for before, after in pairwise(values))


def reputations(
    devnet: Devnet, client: NodeClient, epochs: Sequence[Epoch], leaders: Sequence[bytes], width: int
) -> Table:
    """Return a table for a terminal of so many columns: who mined and led how much, and what that did to reputation and weight."""
    newest = epochs[-1]
    led, mined = Counter(leaders), keyblocks_by_node(devnet, epochs)
    seats = {seat.public_key: seat for seat in newest.committee}
    step = -(-len(epochs) // sparks(width))
    keys = [bytes.fromhex(entry.public_key) for entry in devnet.manifest.nodes]
    curves = {key: _points(client, key, newest.number, step) for key in keys}
    low, high = bounds([nano for points in curves.values() for nano in points], 1.0)
    table = reputation_table(newest.number)
    for entry, key in zip(devnet.manifest.nodes, keys, strict=True):
        points = curves[key]
        share = seats[key].reputation_nano / newest.committee_reputation_nano if key in seats else 0.0
        table.add_row(
            entry.name,
            str(mined[entry.name]),
            str(led[address_of(key)]),
            _fullness(client, key),
            f"{points[0] / REPUTATION_UNIT:.4f}",
            f"{points[-1] / REPUTATION_UNIT:.4f}",
            f"{share:.2%}".replace("%", " %"),
            sparkline([float(nano) for nano in points], low, high),
        )
    return table


def sparks(width: int) -> int:
    """Return how many epochs a curve can show, beside the newest one, on a terminal of so many columns."""
    return max(1, min(_SPARKS, width - _BESIDE_CURVE))


def reputation_table(newest: int) -> Table:
    """Return the table of reputations up to an epoch, without rows."""
    table = Table(
        title=f"Reputation (R) in epochs 0 to {newest}: earned by mining, kept by leading",
        title_justify="left",
        caption="led: microblocks proposed; full: share of its terms as leader",
        caption_justify="left",
    )
    for title in ("node", "keyblocks", "led", "full", "R first", "R now", "weight"):
        table.add_column(title, justify="left" if title == "node" else "right", no_wrap=True)
    table.add_column("R by epoch", no_wrap=True)
    return table


def _fullness(client: NodeClient, key: bytes) -> str:
    leading = client.miner(key).leading
    return f"{leading.mean_nano / REPUTATION_UNIT:.0%}".replace("%", " %") if leading.terms else "–"


def _points(client: NodeClient, key: bytes, newest: int, step: int) -> list[int]:
    """Return R in every so many epochs, the first and the newest one among them."""
    points: dict[int, ReputationPoint] = {point.epoch: point for point in client.reputation_history(key).points}
    wanted = sorted({0, newest, *range(newest % step, newest + 1, step)})
    return [points[epoch].reputation_nano for epoch in wanted]
