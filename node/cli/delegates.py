# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain delegate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect, party_in
from node.cli.grants import read_handover
from node.cli.records import write_out
from node.cli.shell import (
    JsonOption,
    NodeOption,
    PassphraseOption,
    PatientArgument,
    SequenceArgument,
    TimeoutOption,
    emit,
    moment,
    note,
    table,
)
from node.cli.times import HELP, ahead, time_in

if TYPE_CHECKING:
    from ledger.guardianship import Power

app = typer.Typer(help="Let somebody act for a patient: a parent, a carer.", no_args_is_help=True)

DelegateArgument = Annotated[str, typer.Argument(help="Address, key file or name of who may act.", metavar="DELEGATE")]
KeyOption = Annotated[str, typer.Option(help="The patient's key file.", metavar="FILE")]


@app.command()
def give(
    delegate: DelegateArgument,
    key: KeyOption,
    until: Annotated[str, typer.Option(help="End. " + HELP, metavar="WHEN")],
    power: Annotated[list[str], typer.Option(help="authorise, grant, label, review or revoke; may be repeated.")],
    handover: Annotated[
        str | None,
        typer.Option(
            help="Also write the keys to read and grant by to this file, sealed to the delegate.", metavar="FILE"
        ),
    ] = None,
    trapdoor: Annotated[
        bool, typer.Option("--trapdoor", help="With --handover: also what permitting labels takes.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient, let somebody act for you within powers and a time; replaces what you have delegated to the same account before.

    Keys that were handed over cannot be taken back: to end that, change your keys.

    Example: spchain delegate give carer.json --power grant --power revoke --until 52w --key maria.json --handover for-carer.keys
    """
    del json_output
    from node.clock import now_ms
    from node.delegation_actions import delegate as give_powers
    from node.delegation_actions import hand_over_keys, powers_in
    from node.files import create_file

    if trapdoor and handover is None:
        raise InvalidInput("--trapdoor goes into a file of keys; name it with --handover")
    powers = powers_in(power)
    until_ms = time_in(until, now_ms(), "--until")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        target = party_in(client, delegate, "delegate")
        keys = None if handover is None else hand_over_keys(signer, target, trapdoor=trapdoor)
        committed = give_powers(signer, target, powers, until_ms, timeout)
    if handover is not None and keys is not None:
        create_file(Path(handover).expanduser(), keys, mode=0o600)
        note(f"wrote {handover}; give it to the delegate, who alone can open it")
    _done(signer.keys.identifier, target, powers, until_ms, committed.id, committed.height)


@app.command()
def withdraw(
    delegate: DelegateArgument,
    key: KeyOption,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient, take all powers back. Keys that were handed over stay with the delegate: see spchain key rotate.

    Example: spchain delegate withdraw carer.json --key maria.json
    """
    del json_output
    from node.clock import now_ms
    from node.delegation_actions import delegate as give_powers

    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        target = party_in(client, delegate, "delegate")
        until_ms = now_ms()
        committed = give_powers(signer, target, (), until_ms, timeout)
    _done(signer.keys.identifier, target, (), until_ms, committed.id, committed.height)


def _done(
    patient: bytes, delegate: bytes, powers: "tuple[Power, ...]", until_ms: int, transaction_id: bytes, height: int
) -> None:
    answer = {
        "patient": patient.hex(),
        "delegate": delegate.hex(),
        "powers": list(powers),
        "until_ms": until_ms,
        "transaction_id": transaction_id.hex(),
        "height": height,
    }
    what = f"may {', '.join(powers)} until {moment(until_ms)}" if powers else "may do nothing any more"
    emit(answer, lambda: typer.echo(f"{delegate.hex()} {what}, since height {height}"))


@app.command("list")
def list_(
    patient: PatientArgument,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List who may act for a patient, in what and until when.

    Example: spchain delegate list maria.json
    """
    del json_output
    from node.clock import now_ms

    with connect(node) as client:
        found, names, now = client.consent.delegations(address_in(patient, "patient")), Names(client), now_ms()
        rows = [
            (
                names(entry.delegate),
                ", ".join(entry.powers) or "taken back",
                f"{moment(entry.until_ms)} ({ahead(entry.until_ms, now)})",
                entry.changed_height,
            )
            for entry in found
        ]
    columns = ("DELEGATE", "POWERS", "UNTIL", "SINCE HEIGHT")
    emit([entry.model_dump(mode="json") for entry in found], lambda: table(columns, rows, "nobody may act"))


@app.command()
def read(
    sequence: SequenceArgument,
    patient: Annotated[str, typer.Option(help="Address or key file of the patient.", metavar="PATIENT")],
    handover: Annotated[str, typer.Option(help="File with the keys that the patient has handed over.", metavar="FILE")],
    key: Annotated[str, typer.Option(help="The delegate's key file.", metavar="FILE")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As a delegate, read a record of the patient with the keys that were handed over.

    Example: spchain delegate read 0 --patient 0123…cdef --handover for-carer.keys --key carer.json -o visit.json
    """
    if json_output and output is None:
        raise InvalidInput("--json prints facts about the record; name a file for its content with --output")
    from node.delegation_actions import read_for

    raw = read_handover(handover)
    assert raw is not None, "the option is required"
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        record, bundle = read_for(signer, address_in(patient, "patient"), sequence, raw)
    write_out(record, bundle, output)
