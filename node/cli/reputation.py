# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain reputation`."""

import re
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput, NotFound
from node.cli.access import connect
from node.cli.explained import UNIT, amount, causes, counted, paragraphs, signed, wrapped
from node.cli.plots import bar, bar_column, bounds, curve, sparkline, svg
from node.cli.shell import JsonOption, NodeOption, emit, facts, note, printable, table

if TYPE_CHECKING:
    from node.api.reputation_models import MinerReputation, RankedMiner, Ranking, ReputationPoint
    from node.client import NodeClient

SHORT_DIGITS = 12
"""Of an address where there is little room: enough to name it."""
_MIN_PREFIX_DIGITS = 4
_NAME_CHARACTERS = 20
_WIDE = 100
"""Columns from which tables have room for more than the necessary."""
_MAX_TEXT_WIDTH = 100
"""Longer lines read badly."""
_PLOT_ROWS = 8
_PLOT_MARGIN = 12
_LISTED_POINTS = 10
_MARGIN = 12
"""Of titles beside paragraphs."""
_COMPARISON_MARGIN = 52
"""Of a row of curves: seat, miner, R and change."""
_WIDEST = 160
_LEAST_RANGE = 1e-6
"""A plot's range of R is never smaller: what is constant looks constant."""


def add_to(root: typer.Typer) -> None:
    """Add the verb, which belongs to no group."""
    root.command()(reputation)


def reputation(
    miner: Annotated[
        str | None,
        typer.Option(
            help="Whose reputation to explain: public key, address, the first digits of either, or institution.",
            metavar="MINER",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Key file of the miner, in place of --miner.", metavar="FILE")] = None,
    epoch: Annotated[
        int | None, typer.Option(help="With a miner: in which epoch; else in the running one.", min=0)
    ] = None,
    history: Annotated[
        int | None,
        typer.Option(help="Show how reputations went over so many epochs.", min=1, max=10**6, metavar="EPOCHS"),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="With --history: draw the curves into this new SVG file.", metavar="FILE.svg")
    ] = None,
    limit: Annotated[int, typer.Option(help="Without a miner: how many to list.", min=1, max=256)] = 16,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show who has which reputation, and why: everything follows from the chain alone.

    A reputation R lies between 0 and 1. It is earned by mining keyblocks, many and steadily, and by leading well; it gives a seat in the
    committee, weight to votes, the chance to lead, and a share of the fees. Proof of misbehaviour takes all of it for good.

    Who ranks where: spchain reputation

    Why a miner's reputation is what it is, and why it changed: spchain reputation --key hospital.json

    The same, in an earlier epoch: spchain reputation --miner 5f0c93ab12de --epoch 17

    How it went: spchain reputation --key hospital.json --history 200

    A picture of the ten best: spchain reputation --limit 10 --history 1000 --output reputation.svg
    """
    del json_output
    if miner is not None and key is not None:
        raise InvalidInput("both --miner and --key are given; name the miner by one of them")
    if output is not None and history is None:
        raise InvalidInput(f"--output {output} draws a history; add --history EPOCHS")
    if output is not None and not output.endswith(".svg"):
        raise InvalidInput(f"--output {output}: the picture is an SVG; give a name that ends in .svg")
    with connect(node) as client:
        if miner is None and key is None:
            if epoch is not None:
                raise InvalidInput(f"the ranking is that of now; name a miner by --miner or --key to see epoch {epoch}")
            if history is None:
                _rank(client, limit)
            else:
                _compare(client, limit, history, output)
            return
        public_key = _key_of(client, miner, key)
        if history is None:
            _explain(client.miner(public_key, epoch))
        else:
            _plot(client, public_key, epoch, history, output)


# ------------------------------------------------------------------ which miner


def _key_of(client: "NodeClient", miner: str | None, key: str | None) -> bytes:
    from node.keystore import read_public

    if key is not None:
        return read_public(Path(key).expanduser()).public_key
    assert miner is not None, "one of them is given"
    if re.fullmatch(r"[0-9a-fA-F]{66}", miner):
        return bytes.fromhex(miner)
    ranked = client.miners().miners
    digits = miner.lower()
    by_digits = len(digits) >= _MIN_PREFIX_DIGITS and re.fullmatch(r"[0-9a-f]{1,65}", digits) is not None
    found = {
        entry.public_key
        for entry in ranked
        if (by_digits and (entry.address.hex().startswith(digits) or entry.public_key.hex().startswith(digits)))
        or (entry.institution is not None and entry.institution.casefold() == miner.casefold())
    }
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} miners answer to {miner!r}; give more digits of the address or public key")
    if not found:
        raise NotFound(
            f"none of the {len(ranked)} best miners answers to {miner!r}; spchain reputation lists them. Give at least "
            f"{_MIN_PREFIX_DIGITS} digits; of others the whole public key, 66 hexadecimal digits, which spchain key show prints"
        )
    return found.pop()


def short_name(institution: str | None, address: bytes) -> str:
    """Return what a miner is called where there is little room."""
    return address.hex()[:SHORT_DIGITS] if institution is None else _cut(institution)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"


def columns() -> int:
    """Return the width of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


# ------------------------------------------------------------------ ranking


def _rank(client: "NodeClient", limit: int) -> None:
    found = client.miners(limit)
    emit(found.model_dump(mode="json"), lambda: _show_ranking(found))


def _show_ranking(found: "Ranking") -> None:
    width, miners = columns(), found.miners
    typer.echo(
        f"epoch {found.epoch} · keyblock {found.keyblock.hex()[:SHORT_DIGITS]} · "
        f"{len(miners)} of {counted(found.known_miners, 'known miner')}"
    )
    wide = width >= _WIDE
    first = [
        ("SEAT", [seat_text(entry.seat) for entry in miners]),
        ("MINER", [_miner_cell(entry, wide=wide) for entry in miners]),
    ]
    first.append(("R", [amount(entry.reputation_nano) for entry in miners]))
    rest = [
        ("KEYBLOCKS", [str(entry.keyblocks) for entry in miners]),
        ("TERMS", [str(entry.terms) for entry in miners]),
    ]
    if wide:
        rest.append(("FULL", [_fullness(entry, found.term_microblocks) for entry in miners]))
        rest.append(("EXT", [amount(entry.external_nano) for entry in miners]))
    rest.append(("HONEST", [_honesty(entry) for entry in miners]))
    rest.append(("CHANGE", ["–" if entry.change_nano is None else signed(entry.change_nano) for entry in miners]))
    bars = bar_column([*first, *rest], [entry.reputation_nano / UNIT for entry in miners], width)
    table_of([*first, bars, *rest])
    if any(entry.offence is not None and not entry.offence.is_punished for entry in miners):
        note("not honest any more: proved to misbehave; R is 0 from the next keyblock on")
    note(f"why: spchain reputation --miner {miners[0].address.hex()[:SHORT_DIGITS]}")


def table_of(columns_: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a table that is given by its columns; there is at least one row."""
    table([title for title, _ in columns_], list(zip(*(cells for _, cells in columns_), strict=True)), "")


def seat_text(seat: int | None) -> str:
    """Return a seat for people."""
    return "–" if seat is None else str(seat)


def _miner_cell(entry: "RankedMiner", *, wide: bool) -> str:
    """Return name or address of a miner; both where there is room."""
    digits = entry.address.hex()[:SHORT_DIGITS]
    name = short_name(entry.institution, entry.address)
    return f"{digits} {name}" if wide and name != digits else name


def _fullness(entry: "RankedMiner", term_microblocks: int) -> str:
    return f"{entry.microblocks / (entry.terms * term_microblocks):.0%}".replace("%", " %") if entry.terms else "–"


def _honesty(entry: "RankedMiner") -> str:
    return "yes" if entry.is_honest and entry.offence is None else "no"


# ------------------------------------------------------------------ one miner


def _explain(found: "MinerReputation") -> None:
    emit(found.model_dump(mode="json"), lambda: _show_explanation(found))


def _show_explanation(found: "MinerReputation") -> None:
    width = min(columns(), _MAX_TEXT_WIDTH)
    name = "" if found.institution is None else f" ({found.institution})"
    seat = "none"
    if found.seat is not None and found.weight_nano is not None:
        seat = f"{found.seat}, with {found.weight_nano / UNIT:.1%} of the votes' weight".replace("%", " %")
    elif not found.is_eligible:
        seat = "none: " + ("no keyblock and no Ext" if found.is_honest else "punished")
    facts(
        {
            "miner": f"{found.public_key.hex()}",
            "address": f"{found.address.hex()}{name}",
            "epoch": f"{found.epoch}, begun by keyblock {found.keyblock.hex()[:SHORT_DIGITS]}…"
            if found.epoch
            else "0, the founding one",
            "reputation": f"{amount(found.reputation_nano, 9)}  {bar(found.reputation_nano / UNIT, 30)}".rstrip(),
            "seat": seat,
        }
    )
    typer.echo("")
    for title, text in paragraphs(found).items():
        typer.echo(wrapped(title, text, width, _MARGIN))
    if found.change is None:
        return
    typer.echo("")
    rows = causes(found)
    whole = signed(found.change.reputation_nano, 9)
    typer.echo(wrapped("change", f"{whole} since epoch {found.epoch - 1}" + (":" if rows else "."), width, _MARGIN))
    for cause, part, words in rows:
        typer.echo(f"{'':{_MARGIN}}{cause:<12}  {part}  {words}")


# ------------------------------------------------------------------ over epochs


def _points(
    client: "NodeClient", public_key: bytes, last: int, epochs: int, most: int
) -> "tuple[ReputationPoint, ...]":
    """Return at most so many points, evenly over the epochs up to one, that one among them."""
    covered = min(epochs, last + 1)
    step = -(-covered // most)
    count = -(-covered // step)
    return client.reputation_history(public_key, last - (count - 1) * step, count, step).points


def _curve(points: "Sequence[ReputationPoint]") -> list[tuple[int, float]]:
    return [(point.epoch, point.reputation_nano / UNIT) for point in points]


def _plot(client: "NodeClient", public_key: bytes, epoch: int | None, epochs: int, output: str | None) -> None:
    from node.api.reputation_models import MAX_POINTS

    found = client.miner(public_key, epoch)
    most = MAX_POINTS if output else max(10, columns() - _PLOT_MARGIN)
    points = _points(client, public_key, found.epoch, epochs, most)
    name = f"{short_name(found.institution, found.address)}"
    if output:
        _draw(output, f"Reputation of {name}", {name: _curve(points)})
    answer = {
        "public_key": public_key.hex(),
        "points": [point.model_dump(mode="json") for point in points],
        "output": output,
    }

    def human() -> None:
        if output:
            typer.echo(f"drew {counted(len(points), 'point')} into {output}")
            return
        typer.echo(f"R of {printable(name)}, {found.public_key.hex()}")
        for line in curve(_curve(points), columns() - _PLOT_MARGIN, _PLOT_ROWS, _LEAST_RANGE):
            typer.echo(line)
        listed = points[-_LISTED_POINTS - 1 :]
        rows = [
            (
                point.epoch,
                amount(point.reputation_nano),
                signed(point.reputation_nano - before.reputation_nano),
                point.keyblocks,
                point.terms,
                "yes" if point.is_honest else "no",
            )
            for before, point in pairwise(listed)
        ]
        table(
            ("EPOCH", "R", "CHANGE", "KEYBLOCKS", "TERMS", "HONEST"), rows, "only one epoch so far: nothing to compare"
        )

    emit(answer, human)


def _compare(client: "NodeClient", limit: int, epochs: int, output: str | None) -> None:
    """Show how the reputations of the best miners went, on one scale."""
    from node.api.reputation_models import MAX_POINTS

    found = client.miners(limit)
    most = MAX_POINTS if output else max(10, min(columns(), _WIDEST) - _COMPARISON_MARGIN)
    curves = {entry: _points(client, entry.public_key, found.epoch, epochs, most) for entry in found.miners}
    if output:
        _draw(
            output,
            "Reputation",
            {f"{_miner_cell(entry, wide=True)}": _curve(points) for entry, points in curves.items()},
        )
    answer = {
        "epoch": found.epoch,
        "output": output,
        "miners": [
            {**entry.model_dump(mode="json"), "points": [point.model_dump(mode="json") for point in points]}
            for entry, points in curves.items()
        ],
    }

    def human() -> None:
        if output:
            typer.echo(f"drew {counted(len(curves), 'curve')} into {output}")
            return
        low, high = bounds(
            [point.reputation_nano / UNIT for points in curves.values() for point in points], _LEAST_RANGE
        )
        first = min(points[0].epoch for points in curves.values())
        typer.echo(f"R from {low:.6f} (lowest) to {high:.6f} (highest), epochs {first} to {found.epoch}")
        rows = [
            (
                seat_text(entry.seat),
                _miner_cell(entry, wide=False),
                sparkline([value for _, value in _curve(points)], low, high),
                amount(points[-1].reputation_nano),
                signed(points[-1].reputation_nano - points[0].reputation_nano),
            )
            for entry, points in curves.items()
        ]
        table(("SEAT", "MINER", f"SINCE {first}", "R", "CHANGE"), rows, "")

    emit(answer, human)


def _draw(output: str, title: str, curves: "dict[str, list[tuple[int, float]]]") -> None:
    from node.files import create_file

    create_file(Path(output).expanduser(), svg(title, curves, _LEAST_RANGE).encode())
