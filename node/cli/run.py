# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain node`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import passphrase
from node.cli.shell import warn

app = typer.Typer(help="Run a node.", no_args_is_help=True)


@app.command()
def run(
    data_dir: Annotated[
        str | None,
        typer.Option(help="Directory made by spchain init. Else SPCHAIN_DATA_DIR, else the user's.", metavar="DIR"),
    ] = None,
    p2p_listen: Annotated[str | None, typer.Option(help="Address and port for other nodes.", metavar="IP:PORT")] = None,
    api_listen: Annotated[str | None, typer.Option(help="Address and port of the HTTP API.", metavar="IP:PORT")] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Multiaddress of a node to join by; may be repeated.", metavar="ADDRESS")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per log line: --log-format json.")] = False,
    passphrase_file: Annotated[
        str | None, typer.Option(help="File whose first line opens the key.", metavar="FILE")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as in heartbeat_ms=5000.", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Run a node until SIGINT or SIGTERM.

    Settings come from config.toml in the data directory, then SPCHAIN_<FIELD>, then flags.

    Example: spchain node run --data-dir /var/lib/spchain --json
    """
    from node.config import load_config, unknown_variables
    from node.keystore import read_key, warn_if_readable

    flags: dict[str, object] = {
        "p2p_listen": p2p_listen,
        "api_listen": api_listen,
        "p2p_bootstrap": bootstrap,
        "log_level": log_level,
        "log_format": "json" if json else log_format,
        # Unlike paths in config.toml, one that somebody types is seen from where they are.
        "passphrase_file": None if passphrase_file is None else Path(passphrase_file).expanduser().absolute(),
    }
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInput(f"--set {setting!r} has no value; write it as KEY=VALUE")
        flags[key] = value
    for name, meant in unknown_variables(os.environ).items():
        warn(f"environment {name} is no setting and has no effect; did you mean {meant}?")
    config = load_config(Path(data_dir) if data_dir is not None else None, os.environ, flags)
    if not config.key_file.exists():
        raise InvalidInput(f"{config.data_dir} has no key file {config.key_file}; prepare it with spchain init")
    warn(warn_if_readable(config.key_file))
    secret = passphrase(
        None if config.passphrase_file is None else str(config.passphrase_file),
        config.key_file,
        f"passphrase of {config.key_file}",
    )
    identity = read_key(config.key_file, secret)
    # Late: the network's libraries take a second to import, and a wrong passphrase is told before.
    from node.run import run_node

    raise typer.Exit(run_node(config, identity))
