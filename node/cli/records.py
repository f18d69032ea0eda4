# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain record`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from ledger.errors import InvalidInput
from node.cli.access import actor, address_in, connect, digest_in, open_ring
from node.cli.labels import warn_of_label
from node.cli.shell import (
    JsonOption,
    NodeOption,
    PassphraseOption,
    PatientOption,
    SequenceArgument,
    TimeoutOption,
    emit,
    moment,
    note,
    table,
)

if TYPE_CHECKING:
    from node.api.models import Record
    from node.client import NodeClient

app = typer.Typer(help="Write, read and list medical records.", no_args_is_help=True)


class _Bar(Protocol):
    """What is used of typer's progress bar."""

    def update(self, n_steps: int) -> None: ...


class _Silent:
    def update(self, n_steps: int) -> None:
        del n_steps


@contextmanager
def _progress(length: int, label: str) -> Iterator[_Bar]:
    """Show progress on a terminal only."""
    if sys.stderr.isatty():
        with typer.progressbar(length=length, label=label, file=sys.stderr) as bar:
            yield bar
    else:
        yield _Silent()


@app.command()
def put(
    files: Annotated[list[str], typer.Argument(help="FHIR R4 bundles, .json or .json.gz.", metavar="FILE")],
    patient: PatientOption,
    key: Annotated[str, typer.Option(help="Key file of the writing institution.", metavar="FILE")],
    status: Annotated[str, typer.Option(help="final or preliminary.")] = "final",
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Check FHIR bundles, encrypt them to their patient, and commit them as records; all bundles are checked first.

    Example: spchain record put visit.json --patient maria.json --key hospital.json
    """
    del json_output
    from node.bundle_file import load_bundle
    from records.fhir import validate_bundle

    paths = [Path(file).expanduser() for file in files]
    # One at a time in memory: a bundle may have 16 MiB, its model ten times as much.
    with _progress(len(paths), "checking") as bar:
        for path in paths:
            try:
                validate_bundle(load_bundle(path))
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
            bar.update(1)
    target = address_in(patient, "patient")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        with _progress(len(paths), "encrypting") as bar:

            def bundles() -> Iterator[bytes]:
                for path in paths:
                    yield load_bundle(path)
                    bar.update(1)

            prepared = signer.prepare_records(target, bundles(), status)
        with _progress(len(paths), "committing") as bar:
            written = signer.commit_records(target, prepared, timeout, done=bar.update)
    rows = [
        (path.name, item.sequence, item.height, item.blob_bytes, item.record_id.hex())
        for path, item in zip(paths, written, strict=True)
    ]
    emit(
        [{"file": str(path), **item.model_dump(mode="json")} for path, item in zip(paths, written, strict=True)],
        lambda: table(("FILE", "SEQUENCE", "HEIGHT", "ENCRYPTED BYTES", "RECORD"), rows, "nothing written"),
    )


@app.command()
def get(
    sequence: SequenceArgument,
    patient: Annotated[str, typer.Option(help="The patient's key file: only it can decrypt.", metavar="KEYFILE")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Fetch a record, check it against the chain, decrypt it, and write the bundle exactly as it was received.

    Example: spchain record get 0 --patient maria.json -o visit.json
    """
    if json_output and output is None:
        raise InvalidInput("--json prints facts about the record; name a file for its content with --output")
    from node.actions import read_record

    with connect(node) as client:
        record, bundle = read_record(client, open_ring(patient, passphrase_file), sequence)
    write_out(record, bundle, output)


def write_out(record: "Record", bundle: bytes, output: str | None) -> None:
    """Write a record that was decrypted to a file, or to standard output."""
    from node.files import create_file

    if output is None:
        sys.stdout.buffer.write(bundle)
        sys.stdout.buffer.flush()
    else:
        # Plaintext of a medical record: for its owner only.
        create_file(Path(output).expanduser(), bundle, mode=0o600)
        note(f"wrote {len(bundle)} bytes to {output}")
        emit({"file": output, "bundle_bytes": len(bundle), **record.model_dump(mode="json")}, lambda: None)
    warn_of_label(record)


@app.command("list")
def list_(
    patient: PatientOption,
    check: Annotated[
        bool, typer.Option("--check", help="Check that the node hides, reorders and changes none of them.")
    ] = False,
    keyblock: Annotated[
        str | None,
        typer.Option(
            help="With --check: hash of the newest pinned keyblock from a source that you trust; else the node's own is taken.",
            metavar="HASH",
        ),
    ] = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List a patient's records; their content stays encrypted.

    Example: spchain record list --patient maria.json --check
    """
    del json_output
    target = address_in(patient, "patient")
    with connect(node) as client:
        found = _checked(client, target, keyblock) if check or keyblock is not None else list(client.records(target))
    rows = [
        (
            item.sequence,
            moment(item.committed_timestamp_ms),
            item.envelope.status,
            item.envelope.blob_bytes,
            item.author.hex(),
            item.record_id.hex(),
        )
        for item in found
    ]
    columns = ("SEQUENCE", "COMMITTED", "STATUS", "BYTES", "AUTHOR", "RECORD")
    emit([item.model_dump(mode="json") for item in found], lambda: table(columns, rows, "no records yet"))


def _checked(client: "NodeClient", patient: bytes, keyblock: str | None) -> "list[Record]":
    from node.proving import checked_history

    trusted_hash = None if keyblock is None else digest_in(keyblock, "keyblock")
    checked = checked_history(client, patient, trusted_hash)
    later = len(checked.records) - checked.proved
    note(
        f"the first {checked.proved} are complete, in order and unchanged, proved by keyblock {checked.keyblock_hash.hex()}"
        + (
            f"; the other {later} follow them without a gap, and are proved two keyblocks after they came"
            if later
            else ""
        )
    )
    return list(checked.records)
