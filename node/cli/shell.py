# SPDX-License-Identifier: GPL-3.0-or-later
"""What all verbs share: one way to print, one way to fail.

Exit codes, stable: 0 done · 1 a fault of the program · 2 wrong usage · 3 input refused or invalid · 4 no node answers, or it cannot
serve · 5 not found · 6 not in time.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ledger.errors import InvalidInput, NotFound, RejectionReason, SpchainError

if TYPE_CHECKING:
    from typer._click.core import Context


class ExitCode(IntEnum):
    """What scripts can rely on."""

    OK = 0
    BUG = 1
    USAGE = 2
    INVALID = 3
    UNREACHABLE = 4
    NOT_FOUND = 5
    TIMEOUT = 6


_NODES_TROUBLES = (RejectionReason.STORAGE, RejectionReason.MEMPOOL_FULL)
"""Why a node refuses a transaction that has no fault of its own: another node takes it, or the same one later."""

EPILOG = (
    "Exit codes: 0 done, 1 a fault of the program, 2 wrong usage, 3 input refused or invalid, "
    "4 no node answers or it cannot serve, 5 not found, 6 not in time."
)


class _Mode:
    """Set by the option --json of the running verb."""

    json = False


def _set_json(value: bool) -> bool:
    _Mode.json = value
    return value


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on standard output, and nothing else.", callback=_set_json)
]
NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node",
        help="Base URL of the node's API. Default: the running devnet's first node, else http://127.0.0.1:8080.",
        envvar="SPCHAIN_NODE",
        metavar="URL",
    ),
]
PassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file",
        help="File whose first line opens the key. Else SPCHAIN_PASSPHRASE, the devnet's own, or a question.",
        metavar="FILE",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="How long to wait for the commit, in seconds.", min=0.0)
]
OutputOption = Annotated[str, typer.Option("--output", "-o", help="File to write.", metavar="FILE")]
PatientOption = Annotated[str, typer.Option(help="Address or key file of the patient.", metavar="PATIENT")]
PatientArgument = Annotated[str, typer.Argument(help="Address or key file of the patient.", metavar="PATIENT")]
SequenceArgument = Annotated[
    int, typer.Argument(help="The record's sequence number.", min=0, max=2**63 - 1, metavar="SEQ")
]
GrantArgument = Annotated[str, typer.Argument(help="Identifier of the grant.", metavar="GRANT")]


class Group(TyperGroup):
    """The outermost group: turns errors into a line on standard error and an exit code."""

    def invoke(self, ctx: "Context") -> Any:  # noqa: ANN401 -- what a verb returns is nobody's business
        """Run the verb."""
        _Mode.json = False
        try:
            return super().invoke(ctx)
        except SpchainError as error:
            fail(error)
        except BaseExceptionGroup as group:
            fail(_leaf(group))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader, such as `head`, has seen enough; nothing is to be flushed into it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.OK) from None
        except OSError as error:
            if error.filename is None:
                raise
            # A path of the user's: a name that is too long, a directory that may not be read, a disk that is full.
            fail(InvalidInput(f"{error.filename}: {error.strerror}; check the path, its permissions and free space"))


def fail(error: BaseException) -> NoReturn:
    """Say what went wrong and end with the error's code; a fault of ours comes with its traceback."""
    if not isinstance(error, SpchainError):
        if isinstance(error, typer.Exit | SystemExit):
            raise error
        traceback.print_exception(error)
        raise typer.Exit(ExitCode.BUG)
    code = exit_code(error)
    if _Mode.json:
        reason = getattr(error, "reason", code.name.lower())
        problem = {"error": str(error), "reason": str(reason), "exit_code": int(code)}
        details = getattr(error, "details", None)
        typer.echo(json.dumps(problem if details is None else {**problem, "details": details}), err=True)
    else:
        typer.secho(f"error: {printable(str(error), lines=True)}", fg="red", err=True)
    raise typer.Exit(code)


def exit_code(error: SpchainError) -> ExitCode:
    """Return the exit code of an error."""
    # By name: the classes live in modules that take long to import, and only what was imported can have raised.
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status", 0)
    if names & {"NodeTimeout", "CommitTimeout", "NotFarEnough"}:
        return ExitCode.TIMEOUT
    if "NodeUnreachable" in names or status in (500, 503, 507) or getattr(error, "reason", "") in _NODES_TROUBLES:
        return ExitCode.UNREACHABLE
    if isinstance(error, NotFound) or status == 404:
        return ExitCode.NOT_FOUND
    return ExitCode.INVALID


def emit(value: object, human: Callable[[], None]) -> None:
    """Print a verb's result: as JSON when asked for, else for people."""
    if _Mode.json:
        typer.echo(json.dumps(value))
    else:
        human()


def note(text: str) -> None:
    """Tell people something on standard error; silent with --json."""
    if not _Mode.json:
        typer.secho(printable(text, lines=True), fg="bright_black", err=True)


def warn(text: str) -> None:
    """Warn on standard error, also with --json."""
    if text:
        typer.secho(f"warning: {printable(text)}", fg="yellow", err=True)


def facts(pairs: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        typer.echo(f"{typer.style(name.ljust(width), fg='cyan')}  {printable(str(value))}")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print rows under headings, or a sentence when there are none; on a terminal cells are folded to its width."""
    if not rows:
        typer.echo(empty)
        return
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _table_on_terminal(columns, cells)
        return
    widths = [max(len(column), *(len(row[index]) for row in cells)) for index, column in enumerate(columns)]
    heading = "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True))
    typer.secho(heading.rstrip(), fg="cyan")
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _table_on_terminal(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    drawn = Table(box=box.SIMPLE_HEAD, header_style="cyan", pad_edge=False, show_edge=False, collapse_padding=True)
    for column, width in zip(columns, _widths(columns, cells, console.width), strict=True):
        drawn.add_column(column, overflow="fold", width=width)
    for row in cells:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> Sequence[int | None]:
    """Return the widths of columns on a terminal of so many; None where even folded headings leave too little room.

    A heading can be read in two lines; an address or a process id that is folded cannot be copied.
    """
    from rich.cells import cell_len

    needed = [max(1, *(cell_len(row[index]) for row in cells)) for index in range(len(columns))]
    chosen = [max(len(column), least) for column, least in zip(columns, needed, strict=True)]
    room = width - 2 * (len(columns) - 1)
    if sum(needed) > room:
        return [None] * len(columns)
    while sum(chosen) > room:
        longest = max(range(len(columns)), key=lambda index: chosen[index] - needed[index])
        chosen[longest] -= 1
    return chosen


def printable(text: str, *, lines: bool = False) -> str:
    """Replace control characters: names come from the network, and escape sequences could repaint the terminal."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "?" for c in text)


def moment(timestamp_ms: int) -> str:
    """Return a time for people, in UTC."""
    from node import clock

    return clock.moment(timestamp_ms)


def _leaf(group: BaseExceptionGroup) -> BaseException:
    """Return what a group is about: an error for the user if there is one, else the first that is a fault of ours."""
    wanted = group.subgroup(SpchainError) or group
    found: BaseException = wanted
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, SpchainError) else group
