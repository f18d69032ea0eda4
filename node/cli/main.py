# SPDX-License-Identifier: GPL-3.0-or-later
"""The entry point `spchain`."""

from typing import Annotated

import typer

from node.cli import (
    audit,
    chain,
    contracts,
    delegates,
    devnet,
    emergencies,
    epochs,
    grants,
    guardians,
    institutions,
    keys,
    labels,
    miner,
    network,
    patients,
    proofs,
    records,
    reputation,
    run,
    sharing,
)
from node.cli.shell import EPILOG, Group

app = typer.Typer(
    name="spchain",
    epilog=EPILOG,
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        from node.version import VERSION

        typer.echo(f"spchain {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """A ledger on which hospitals keep patients' encrypted medical records together.

    Try it: spchain devnet up, then spchain status.
    """


network.add_to(app)
chain.add_to(app)
reputation.add_to(app)
proofs.add_to(app)
grants.add_to(app)
sharing.add_to(app)
audit.add_to(app)
app.add_typer(run.app, name="node")
app.add_typer(network.app, name="genesis")
app.add_typer(keys.app, name="key")
app.add_typer(devnet.app, name="devnet")
app.add_typer(miner.app, name="miner")
app.add_typer(epochs.app, name="epoch")
app.add_typer(institutions.app, name="institution")
app.add_typer(patients.app, name="patient")
app.add_typer(records.app, name="record")
app.add_typer(grants.app, name="grant")
app.add_typer(labels.app, name="label")
app.add_typer(guardians.app, name="guardian")
app.add_typer(delegates.app, name="delegate")
app.add_typer(emergencies.app, name="emergency")
app.add_typer(contracts.app, name="contract")
app.add_typer(proofs.app, name="proof")
app.add_typer(chain.block_app, name="block")
app.add_typer(chain.tx_app, name="tx")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
