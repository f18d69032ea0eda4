# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line's page, from the verbs, options and help texts that the program has."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

import typer.main

from node.cli.shell import EPILOG
from scripts.markdown import GENERATED, page, table
from simulation.cli import app


class _Parameter(Protocol):
    """What is read of an argument or option of typer's."""

    name: str
    param_type_name: str
    opts: Sequence[str]
    secondary_opts: Sequence[str]
    metavar: str | None
    envvar: str | None
    help: str | None
    default: object
    required: bool
    hidden: bool
    nargs: int
    multiple: bool


class _Command(Protocol):
    """What is read of a verb."""

    help: str | None
    params: Sequence[_Parameter]
    hidden: bool


def cli_page() -> str:
    """Return the reference of all verbs."""
    lines = [
        GENERATED,
        "",
        "# Command line reference",
        "",
        "`spchain VERB --help` says the same. Every verb but `node run` takes `--json`: it then prints one JSON value on standard",
        "output and nothing else, and an error as one JSON object on standard error.",
        "",
        EPILOG,
        "",
    ]
    for name, command in _walk(cast("_Command", typer.main.get_command(app)), "spchain"):
        lines += _section(name, command)
    return page(lines)


def _walk(command: _Command, name: str) -> Iterator[tuple[str, _Command]]:
    children = cast("Mapping[str, _Command]", getattr(command, "commands", {}))
    if not children:
        yield name, command
    for verb, child in children.items():
        if not child.hidden:
            yield from _walk(child, f"{name} {verb}")


def _section(name: str, command: _Command) -> list[str]:
    shown = [parameter for parameter in command.params if not parameter.hidden]
    usage = " ".join([name, *(_usage(parameter) for parameter in shown if _is_argument(parameter)), "[OPTIONS]"])
    lines = [f"## {name}", "", *_text(command), f"    {usage}", ""]
    rows = [[_names(parameter), _default(parameter), parameter.help or ""] for parameter in shown]
    return lines + table(["argument or option", "default", "meaning"], rows)


def _text(command: _Command) -> Iterator[str]:
    """Yield the help's paragraphs; examples, which come as "what it does: spchain …", as code."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        title, colon, example = " ".join(paragraph.split()).partition(": ")
        is_example = bool(colon) and example.lstrip().startswith("spchain ")
        yield f"{title}: `{example.strip()}`" if is_example else paragraph
        yield ""


def _is_argument(parameter: _Parameter) -> bool:
    return parameter.param_type_name == "argument"


def _usage(parameter: _Parameter) -> str:
    word = parameter.metavar or parameter.name.upper()
    return word if parameter.required else f"[{word}]"


def _names(parameter: _Parameter) -> str:
    if _is_argument(parameter):
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def _default(parameter: _Parameter) -> str:
    if parameter.required:
        return "required"
    variable = f"environment `{parameter.envvar}`" if parameter.envvar else ""
    value = parameter.default
    if value is None or value is False or value in ((), "") or callable(value):
        return variable
    return f"`{value}`"
