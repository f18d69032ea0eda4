# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain devnet`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger.errors import InvalidInput
from node.cli.explained import counted
from node.cli.shell import ExitCode, JsonOption, emit, note, table

if TYPE_CHECKING:
    from node.devnet import Devnet, NodeReport

app = typer.Typer(help="A network of real nodes on this machine, for daily work.", no_args_is_help=True)

_DirOption = Annotated[
    str | None,
    typer.Option("--dir", help="The devnet's directory. Else SPCHAIN_DEVNET, else the user's.", metavar="DIR"),
]


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option(help="Number of nodes of a new devnet; 4 when not given.", min=1)] = None,
    directory: _DirOption = None,
    api_base_port: Annotated[
        int | None, typer.Option(help="First port of the HTTP APIs; else free ones.", min=1, max=65500)
    ] = None,
    mine: Annotated[
        bool | None,
        typer.Option(
            "--mine/--no-mine", help="Start a miner with each node's key, or stop the miners; else they stay."
        ),
    ] = None,
    duty: Annotated[
        int | None,
        typer.Option(
            help="With --mine: share of one core for each miner; 5 when not given.", min=1, max=100, metavar="PERCENT"
        ),
    ] = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete what is there and begin anew.")] = False,
    timeout: Annotated[float, typer.Option(help="How long to wait for all nodes, in seconds.", min=0.0)] = 90.0,
    json_output: JsonOption = False,
) -> None:
    """Start a network: each node a committee member with an accredited, funded account. What runs already stays.

    With miners keyblocks are pinned, epochs and committees change, and reputations grow: spchain epoch and spchain reputation show it.

    Example: spchain devnet up --nodes 4 --mine
    """
    del json_output
    from node.devnet import MINE_PERCENT, Devnet, discard

    if duty is not None and not mine:
        raise InvalidInput(f"--duty {duty} is for miners; add --mine")
    place = _directory(directory)
    if wipe:
        discard(place)
    if Devnet.exists(place):
        network = Devnet.load(place)
        if nodes is not None and nodes != len(network):
            raise InvalidInput(
                f"the devnet in {place} has {len(network)} nodes, not {nodes}; add --wipe, or another --dir"
            )
        if api_base_port is not None and not network.urls[0].endswith(f":{api_base_port}"):
            raise InvalidInput(f"the devnet in {place} serves at {network.urls[0]}; add --wipe to change its ports")
    else:
        network = Devnet.create(place, nodes or 4, api_base_port=api_base_port)
    network.start(timeout, told=note)
    if mine is False or duty is not None:
        network.stop_miners()
    if mine:
        network.start_miners(duty or MINE_PERCENT)
    note(f"the devnet is up; its directory is {network.directory}")
    mining = "spchain epoch · spchain reputation" if mine else "spchain devnet up --mine"
    note(f"try: spchain status · {mining} · spchain institution register --help · spchain devnet down")
    _show(network)


@app.command()
def down(
    directory: _DirOption = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete all its data, too.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Stop all miners and nodes: SIGTERM, and SIGKILL ten seconds later.

    Example: spchain devnet down --wipe
    """
    del json_output
    from node.devnet import Devnet, discard

    place = _directory(directory)
    stopped = miners = 0
    found = place.exists()
    if wipe:
        stopped, miners = discard(place)
    elif Devnet.exists(place):
        network = Devnet.load(place)
        miners = network.stop_miners()
        stopped = network.stop()
    answer = {"stopped": stopped, "miners": miners, "wiped": wipe, "directory": str(place)}
    ended = counted(stopped, "node") + (f" and {counted(miners, 'miner')} stopped" if miners else " stopped")
    told = ended + (f", {place} deleted" if wipe else "") if found else f"there is no devnet in {place}"
    emit(answer, lambda: typer.echo(told))


@app.command()
def status(directory: _DirOption = None, json_output: JsonOption = False) -> None:
    """Show each node: process, height, epoch, peers, and its miner's keyblocks. Ends with 4 when a node does not answer.

    Example: spchain devnet status --json
    """
    del json_output
    from node.devnet import Devnet

    if not _show(Devnet.load(_directory(directory))):
        raise typer.Exit(ExitCode.UNREACHABLE)


def _directory(given: str | None) -> Path:
    from node.devnet import default_directory

    return (Path(given) if given is not None else default_directory()).expanduser().resolve()


def _show(network: "Devnet") -> bool:
    """Print all nodes; tells whether each one answers."""
    reports = network.report()
    document = {
        "directory": str(network.directory),
        "network": network.manifest.network,
        "chain_id": network.manifest.chain_id,
        "passphrase_file": network.manifest.passphrase_file,
        "nodes": [_described(report) for report in reports],
    }
    mining = any(report.miner_pid is not None for report in reports)
    columns = ["NODE", "PID", "API", "HEIGHT", "PEERS", "TRANSACTIONS", "RECORDS", "EPOCH"]
    columns += ["MINER", "KEYBLOCKS", "STATE"] if mining else ["STATE"]
    rows = [_row(report, mining=mining) for report in reports]
    emit(document, lambda: table(columns, rows, "no nodes"))
    return all(report.status is not None for report in reports)


def _described(report: "NodeReport") -> dict[str, Any]:
    import msgspec

    status = None if report.status is None else report.status.model_dump(mode="json")
    processes = {"pid": report.pid, "miner_pid": report.miner_pid}
    return {**msgspec.structs.asdict(report.entry), **processes, "keyblocks": report.keyblocks, "status": status}


def _row(report: "NodeReport", *, mining: bool) -> tuple[object, ...]:
    status = report.status
    counts: tuple[object, ...] = ("–",) * 5
    state = "stopped" if report.pid is None else "starting or stuck"
    if status is not None:
        state = "catching up" if status.synchronising else "ok" if status.storage == "ok" else status.storage
        counts = (status.height, len(status.peers), status.transactions, status.records, status.epoch)
    miner = (report.miner_pid or "–", "–" if report.keyblocks is None else report.keyblocks) if mining else ()
    return (report.entry.name, report.pid or "–", report.entry.url, *counts, *miner, state)
