# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain institution`."""

from typing import Annotated

import typer

from node.cli.access import actor, connect
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, TimeoutOption, emit, table

app = typer.Typer(help="Register and list institutions.", no_args_is_help=True)


@app.command()
def register(
    key: Annotated[str, typer.Option(help="Key file of the accredited account.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="Name as shown to people.")],
    country: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2 code, as AT.")],
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Register an accredited account as an institution; it may then register patients and write records.

    Example: spchain institution register --key hospital.json --name "St. Anna" --country AT
    """
    del json_output
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        committed = signer.register_institution(name, country, timeout)
        answer = {
            "address": signer.identity.address.hex(),
            "name": name,
            "country": country,
            "transaction_id": committed.id.hex(),
            "height": committed.height,
        }
        emit(answer, lambda: typer.echo(f"registered {answer['address']} at height {committed.height}"))


@app.command("list")
def list_(node: NodeOption = None, json_output: JsonOption = False) -> None:
    """List all registered institutions.

    Example: spchain institution list --json
    """
    del json_output
    with connect(node) as client:
        found = list(client.institutions())
    rows = [(item.address.hex(), item.country, item.registered_height, item.name) for item in found]
    emit(
        [item.model_dump(mode="json") for item in found],
        lambda: table(("ADDRESS", "COUNTRY", "HEIGHT", "NAME"), rows, "no institution is registered yet"),
    )
