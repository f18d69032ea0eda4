# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain label`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect
from node.cli.grants import HandoverOption, read_handover
from node.cli.shell import (
    JsonOption,
    NodeOption,
    OutputOption,
    PassphraseOption,
    PatientOption,
    SequenceArgument,
    TimeoutOption,
    emit,
    facts,
    moment,
    note,
    table,
    warn,
)

if TYPE_CHECKING:
    from node.api.models import Record
    from records.labelling import LabelRequest

app = typer.Typer(
    help="Mark a record as wrong or amended, with the patient's permission; no hash changes.", no_args_is_help=True
)

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]


@app.command()
def ask(
    sequence: SequenceArgument,
    patient: PatientOption,
    key: Annotated[str, typer.Option(help="Key file of the asking institution.", metavar="FILE")],
    output: OutputOption,
    status: Annotated[str, typer.Option(help="entered-in-error or amended.")],
    label: Annotated[str, typer.Option(help="Why, in a code or a few words; everybody will be able to read it.")],
    replaced_by: Annotated[
        int | None, typer.Option(help="Sequence number of the record that replaces this one.", min=0)
    ] = None,
    may_erase: Annotated[
        bool, typer.Option("--may-erase", help="Ask for leave to erase the wrong record's ciphertext.")
    ] = False,
    reason: Annotated[str, typer.Option("--note", help="Explanation for the patient alone; not on the chain.")] = "",
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As an institution, write the signed request for a label, for the patient to permit. Nothing is on the chain yet.

    Example: spchain label ask 0 --patient 0123…cdef --key hospital.json --status entered-in-error --label wrong-patient -o request.label
    """
    del json_output
    from node.files import create_file
    from node.label_actions import ask_for_label, open_label_request

    chosen = _status(status)
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        target = address_in(patient, "patient")
        raw = ask_for_label(
            signer,
            target,
            sequence,
            status=chosen,
            label=label,
            replacement=replaced_by,
            may_erase=may_erase,
            note=reason,
        )
        request = open_label_request(client, signer.rules.chain_id, raw)
        create_file(Path(output).expanduser(), raw)
        names = Names(client)
        answer = {"file": output, **_as_json(request)}
        emit(answer, lambda: facts({"file": output, **_described(request, names)}))


def _status(text: str) -> Literal["amended", "entered-in-error"]:
    if text == "amended":
        return "amended"
    if text == "entered-in-error":
        return "entered-in-error"
    raise InvalidInput(f"status {text!r}; a label gives 'entered-in-error' or 'amended'")


def _as_json(request: "LabelRequest") -> dict[str, object]:
    from node.readable import readable

    return {**readable(request.permission), "note": request.note}


def _described(request: "LabelRequest", names: Names) -> dict[str, object]:
    permission = request.permission
    replacement = f"record {permission.replacement_sequence}" if permission.replaced_by else "nothing"
    return {
        "record": f"{permission.sequence} ({permission.record.hex()})",
        "asked by": names(permission.institution),
        "becomes": permission.status,
        "because": permission.label,
        "replaced by": replacement,
        "ciphertext": "may be erased" if permission.may_erase else "stays",
        "until height": permission.expiry_height,
        "note": request.note or "–",
    }


@app.command()
def permit(
    request: Annotated[str, typer.Argument(help="File that spchain label ask has written.", metavar="FILE")],
    key: Annotated[str, typer.Option(help="The patient's key file, or that of a delegate.", metavar="FILE")],
    output: OutputOption,
    handover: HandoverOption = None,
    yes: YesOption = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As a patient or a delegate, look at what an institution asks and sign the permission, for this label once.

    Example: spchain label permit request.label --key maria.json -o permission.label
    """
    del json_output
    from node.delegation_actions import of_generation, take_keys
    from node.files import create_file, read_file
    from node.label_actions import open_label_request, permit_label
    from records.labelling import MAX_LABEL_REQUEST_BYTES

    raw = read_file(Path(request).expanduser(), MAX_LABEL_REQUEST_BYTES, "request")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        opened = open_label_request(client, signer.rules.chain_id, raw)
        patient = opened.permission.patient
        trapdoor = None
        if patient != signer.keys.identifier:
            given = read_handover(handover)
            if given is None:
                raise InvalidInput(
                    f"the request is about patient {patient.hex()}: as a delegate, name the keys handed over with --handover"
                )
            record = client.record(patient, opened.permission.sequence)
            trapdoor = of_generation(take_keys(signer, patient, given), record).trapdoor
            if not trapdoor:
                raise InvalidInput(
                    "the patient has not handed over the trapdoor; ask for spchain delegate give … --trapdoor"
                )
        confirm(_described(opened, Names(client)), "permit this label?", yes=yes)
        create_file(Path(output).expanduser(), permit_label(signer, opened, trapdoor), mode=0o600)
    answer = {"file": output, **_as_json(opened)}
    emit(answer, lambda: note(f"wrote {output}; give it to the institution, which alone can open it"))


def confirm(shown: dict[str, object], question: str, *, yes: bool) -> None:
    """Show what is about to be signed and ask, on a terminal; elsewhere `--yes` is needed. Raises `InvalidInput` after a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"{question} Nobody is there to answer: look with a terminal, or say --yes")
    facts(shown)
    if not typer.confirm(question, err=True):
        raise InvalidInput("you have said no: nothing was signed or written")


@app.command("apply")
def apply_(
    permission: Annotated[str, typer.Argument(help="File that spchain label permit has written.", metavar="FILE")],
    key: Annotated[str, typer.Option(help="Key file of the institution that it is for.", metavar="FILE")],
    proving_key: Annotated[
        str | None,
        typer.Option(help="Proving key of the network's ceremony; else the development key.", metavar="FILE"),
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As the institution, prove and commit the label that a patient has permitted.

    Example: spchain label apply permission.label --key hospital.json
    """
    del json_output
    from node.files import read_file
    from node.label_actions import apply_label, prover_of
    from records.labelling import MAX_PERMISSION_BYTES

    raw = read_file(Path(permission).expanduser(), MAX_PERMISSION_BYTES, "permission")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        prover = prover_of(signer.rules.genesis, None if proving_key is None else Path(proving_key).expanduser())
        committed = apply_label(signer, raw, prover, timeout)
    answer = {"transaction_id": committed.id.hex(), "height": committed.height}
    emit(answer, lambda: typer.echo(f"labelled at height {committed.height}; no identifier and no hash has changed"))


def warn_of_label(record: "Record") -> None:
    """Tell whoever reads a labelled record that it is one."""
    if record.label_count:
        place = f"{record.sequence} --patient {record.patient.hex()}"
        warn(
            f"record {record.sequence} is {record.envelope.status}: {record.envelope.label}; spchain label history {place}"
        )


@app.command()
def history(
    sequence: SequenceArgument, patient: PatientOption, node: NodeOption = None, json_output: JsonOption = False
) -> None:
    """Show how a record was labelled, by whom, with whose permission, and who has erased its ciphertext. What is shown was checked.

    Example: spchain label history 0 --patient maria.json
    """
    del json_output
    from ledger.crypto.keys import address_of
    from node.record_checks import check_record

    with connect(node) as client:
        target = address_in(patient, "patient")
        record = client.record(target, sequence)
        check_record(client, record)
        found, names = client.consent.labels(target, sequence), Names(client)

        def human() -> None:
            original = found.labels[0].previous if found.labels else record.envelope
            facts(
                {
                    "record": f"{record.sequence} ({record.record_id.hex()})",
                    "committed": f"at height {record.committed_height}, {moment(record.committed_timestamp_ms)}",
                    "author": names(record.author),
                    "was": original.status,
                    "is": record.envelope.status,
                }
            )
            rows = [
                (
                    moment(label.committed_timestamp_ms),
                    label.envelope.status,
                    label.permission.label,
                    f"record {label.permission.replacement_sequence}" if label.permission.replaced_by else "–",
                    names(label.institution),
                    names(address_of(label.signer)),
                    "may be erased" if label.permission.may_erase else "stays",
                )
                for label in found.labels
            ]
            columns = ("TIME", "STATUS", "LABEL", "REPLACED BY", "LABELLED BY", "PERMITTED BY", "CIPHERTEXT")
            table(columns, rows, "never labelled")
            if record.may_erase:
                erased = [(names(one.institution), one.height) for one in found.erasures]
                table(("ERASED BY", "HEIGHT"), erased, "no institution has confirmed an erasure yet")

        emit({"record": record.model_dump(mode="json"), **found.model_dump(mode="json")}, human)
