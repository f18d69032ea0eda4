# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain epoch`."""

import re
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from ledger.errors import InvalidInput
from node.cli.access import connect
from node.cli.explained import amount, counted
from node.cli.plots import bar_column
from node.cli.reputation import SHORT_DIGITS, columns, seat_text, short_name, table_of
from node.cli.shell import JsonOption, NodeOption, emit, facts, moment, table

if TYPE_CHECKING:
    from typer._click.core import Context

    from node.api.reputation_models import Epoch


class _ShownByDefault(TyperGroup):
    """`spchain epoch 7` is `spchain epoch show 7`."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Put in the verb that is left out."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShownByDefault,
    help="Look at epochs: what lies between two pinned keyblocks, with one committee. spchain epoch shows the running one.",
)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="Number of the epoch, or latest.", metavar="EPOCH")] = "latest",
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show an epoch: its keyblock, how hard the next one is, its committee, and what it has come to if it runs.

    The running epoch, for which the word show may be left out: spchain epoch show

    An earlier one: spchain epoch show 17
    """
    del json_output
    if not re.fullmatch(r"latest|[0-9]{1,19}", reference):
        raise InvalidInput(
            f"epoch {reference!r} is neither a number of at most 19 digits nor 'latest'; spchain epoch list shows what there is"
        )
    with connect(node) as client:
        found = client.epoch(reference)
    emit(found.model_dump(mode="json"), lambda: _show(found))


@app.command("list")
def list_(
    start: Annotated[int | None, typer.Option(help="First epoch to list; else the newest are listed.", min=0)] = None,
    limit: Annotated[int, typer.Option(help="How many to list.", min=1, max=256)] = 20,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List epochs: who began them, when, and how hard the keyblock that ends them is to find.

    The newest: spchain epoch list

    Ten from the start: spchain epoch list --start 0 --limit 10
    """
    del json_output
    from ledger.crypto.keys import address_of

    with connect(node) as client:
        first = max(0, client.epoch().number + 1 - limit) if start is None else start
        found = client.epochs(first, limit).epochs
    rows = [
        (
            epoch.number,
            moment(epoch.timestamp_ms).removesuffix(" UTC"),
            interval(epoch.interval_ms),
            "–" if epoch.miner is None else address_of(epoch.miner).hex()[:SHORT_DIGITS],
            "–" if epoch.reputation_nano is None else amount(epoch.reputation_nano),
            hashes(epoch.expected_hashes),
            epoch.microblocks,
        )
        for epoch in found
    ]
    titles = ("EPOCH", "BEGAN (UTC)", "AFTER", "MINER", "ITS R", "HASHES", "BLOCKS")
    emit(
        [epoch.model_dump(mode="json") for epoch in found],
        lambda: table(titles, rows, f"epoch {first} has not begun yet"),
    )


def interval(interval_ms: int | None) -> str:
    """Return the time between two keyblocks for people."""
    return "–" if interval_ms is None else f"{interval_ms / 1000:.1f} s"


def hashes(number: int) -> str:
    """Return a number of hashes for people."""
    return f"{number:,}".replace(",", " ") if number < 10**9 else f"{number:.2e}"


def _show(found: "Epoch") -> None:
    from ledger.crypto.keys import address_of

    began: dict[str, object] = {"began": f"{moment(found.timestamp_ms)}, the genesis"}
    if found.miner is not None and found.reputation_nano is not None:
        address = address_of(found.miner)
        names = {member.address: member.institution for member in found.committee}
        began = {
            "began": f"{moment(found.timestamp_ms)}, {interval(found.interval_ms)} after the keyblock before",
            "keyblock": found.keyblock.hex(),
            "mined by": f"{short_name(names.get(address), address)}, whose R was {amount(found.reputation_nano)}",
            "public key": found.miner.hex(),
            "pinned by": f"microblock {found.root_height}",
        }
    facts(
        {
            "epoch": f"{found.number}, "
            + ("running" if found.end_height is None else f"ended with microblock {found.end_height}"),
            **began,
            "next keyblock": f"takes {hashes(found.expected_hashes)} hashes on average",
            "target": found.target.hex(),
            "microblocks": f"{found.microblocks}, from round {found.first_round} on",
            "seed": "not committed yet" if found.seed is None else found.seed.hex(),
            **_progress(found),
            "committee": f"{counted(len(found.committee), 'member')}, {found.faults} of them may be faulty",
            "a decision": f"takes {counted(found.quorum_votes, 'vote')} and more than two thirds of "
            f"{amount(found.committee_reputation_nano)}",
        }
    )
    members = found.committee
    shares = [member.reputation_nano / found.committee_reputation_nano for member in members]
    first = [
        ("SEAT", [seat_text(member.seat) for member in members]),
        ("MEMBER", [short_name(member.institution, member.address) for member in members]),
        ("R", [amount(member.reputation_nano) for member in members]),
        ("WEIGHT", [f"{share:.1%}".replace("%", " %") for share in shares]),
    ]
    table_of([*first, bar_column(first, shares, columns())])


def _progress(found: "Epoch") -> dict[str, object]:
    progress = found.progress
    if progress is None:
        return {}
    if progress.leader:
        last = f"{progress.leader.hex()[:SHORT_DIGITS]}, {counted(progress.term_microblocks, 'microblock')} in its term"
    else:
        last = "nobody yet"
    return {
        "last leader": last,
        "retarget": f"after {progress.window_size - progress.window_keyblocks} more keyblocks of {progress.window_size}",
    }
