# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain patient`."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.access import actor, address_in, connect, open_key, party_in, passphrase
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, TimeoutOption, emit, facts, note, table

app = typer.Typer(help="Register and show patients; a patient's own decisions.", no_args_is_help=True)


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="The patient's key file: made when it does not exist.", metavar="FILE")],
    key: Annotated[str, typer.Option(help="Key file of the registering institution.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="Name in the key file; never leaves it.")] = "",
    allowance: Annotated[
        int, typer.Option(help="Credits for the patient's own fees, in microcredits.", min=0, max=2**63 - 1)
    ] = 1_000_000,
    patient_passphrase_file: Annotated[
        str | None, typer.Option(help="Opens the patient's key; else as for the institution's.", metavar="FILE")
    ] = None,
    light: Annotated[bool, typer.Option("--light", help="Cheap encryption of the key file: for tests only.")] = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Make a patient's keys and register the patient with the patient's own signature.

    Example: spchain patient new maria.json --key hospital.json
    """
    del json_output
    from node.identity import Identity
    from node.keystore import Cost, write_key
    from node.names import check_name

    check_name(name)
    path = Path(file).expanduser()
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        chosen = patient_passphrase_file or passphrase_file
        if path.exists():
            # As after a registration that was refused or not in time: the same patient again.
            patient = open_key(file, chosen)
        else:
            beside = path if chosen is not None else Path(key)
            secret = passphrase(chosen, beside, f"new passphrase of {path}", confirm=True)
            patient = Identity.generate(name)
            # Written before the registration: a registered patient without a key would be lost for ever.
            write_key(path, patient, secret, Cost.LIGHT if light else Cost.STANDARD)
            note(f"made {path}")
        committed = signer.register_patient(patient, allowance, timeout)
        answer = {
            "address": patient.address.hex(),
            "file": str(path),
            "institution": signer.identity.address.hex(),
            "transaction_id": committed.id.hex(),
            "height": committed.height,
        }
        emit(answer, lambda: typer.echo(f"registered {answer['address']} at height {committed.height}"))


@app.command()
def show(
    patient: Annotated[str, typer.Argument(help="Address or key file.", metavar="PATIENT")],
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a patient: keys, number of records, who may write.

    Example: spchain patient show maria.json
    """
    del json_output
    with connect(node) as client:
        found = client.patient(address_in(patient, "patient"))

    def human() -> None:
        facts(
            {
                "address": found.address.hex(),
                "generation of keys": found.generation,
                "registered by": found.institution.hex(),
                "at height": found.registered_height,
                "records": found.record_count,
                "last record": found.last_record.hex() if found.record_count else "–",
            }
        )
        rows = [(a.institution.hex(), "yes" if a.allowed else "no", a.changed_height) for a in found.authors]
        table(("INSTITUTION", "MAY WRITE", "SINCE HEIGHT"), rows, "no institution may write")

    emit(found.model_dump(mode="json"), human)


@app.command()
def authorise(
    institution: Annotated[
        str, typer.Argument(help="Address, key file or name of the institution.", metavar="INSTITUTION")
    ],
    key: Annotated[str, typer.Option(help="The patient's key file.", metavar="FILE")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the authorisation back.")] = False,
    patient: Annotated[
        str | None, typer.Option(help="As a delegate: for whom you act. Else the key's owner.", metavar="PATIENT")
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient or a delegate, let an institution append records, or no longer.

    Example: spchain patient authorise 0123…cdef --key maria.json
    """
    del json_output
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        target = party_in(client, institution, "institution")
        concerned = signer.keys.identifier if patient is None else address_in(patient, "patient")
        committed = signer.authorise(target, allowed=not withdraw, patient=concerned, timeout_s=timeout)
        answer = {
            "patient": concerned.hex(),
            "institution": target.hex(),
            "allowed": not withdraw,
            "transaction_id": committed.id.hex(),
            "height": committed.height,
        }
        done = "may no longer write" if withdraw else "may write"
        emit(answer, lambda: typer.echo(f"{target.hex()} {done} since height {committed.height}"))
