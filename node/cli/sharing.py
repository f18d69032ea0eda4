# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain read`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, connect
from node.cli.grants import grant_in
from node.cli.labels import warn_of_label
from node.cli.shell import GrantArgument, JsonOption, NodeOption, PassphraseOption, emit, note, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.actions import Actor
    from node.sharing_actions import Reading

MAX_RECORDS = 10_000
"""More than any patient's history; bounds what one call reads without being told which."""
SequencesArgument = Annotated[
    list[int] | None, typer.Argument(help="Sequence numbers; else all that the grant is about.", metavar="SEQ…")
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Directory to write to; else one record to standard output.", metavar="DIR"),
]
ReaderKeyOption = Annotated[str, typer.Option(help="Key file of the grantee.", metavar="FILE")]


def add_to(root: typer.Typer) -> None:
    """Add the verb."""
    root.command()(read)


def read(
    grant: GrantArgument,
    key: ReaderKeyOption,
    sequences: SequencesArgument = None,
    purpose: Annotated[str, typer.Option(help="Purpose of use that you read for, as TREAT.")] = "TREAT",
    output: OutputOption = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As a grantee, have proxies re-encrypt records, check what each of them gives, decrypt, and write the bundles as they were.

    Example: spchain read 6b0c…e1 0 2 --key clinic.json --purpose TREAT -o shared
    """
    with connect(node) as client:
        reader = actor(client, key, passphrase_file)
        read_by(reader, grant_in(grant), sequences, purpose, output, wants_json=json_output)


def read_by(
    reader: "Actor",
    grant_id: bytes,
    sequences: "Sequence[int] | None",
    purpose: str,
    output: str | None,
    *,
    wants_json: bool,
    emergency: int | None = None,
) -> None:
    """Read records and write them; also for emergencies."""
    from node.sharing_actions import NotShared, outcomes, read_shared

    names = Names(reader.client)
    wanted = list(sequences) if sequences else _covered(reader, grant_id)
    if output is None and (wants_json or len(wanted) > 1):
        raise InvalidInput(f"{len(wanted)} records and no place for them: name a directory with --output")
    paths = None if output is None else _free_paths(reader, grant_id, wanted, Path(output).expanduser())
    try:
        reading = read_shared(reader, grant_id, wanted, purpose, emergency)
    except NotShared as error:
        if not wants_json:
            _show_outcomes(error.details, names)
        raise
    done = outcomes(reading.collection)
    for shared in reading.records:
        warn_of_label(shared.record)
    if paths is None:
        sys.stdout.buffer.write(reading.records[0].bundle)
        sys.stdout.buffer.flush()
        _show_outcomes(done, names)
        return
    files = _write(reading, paths)
    answer = {
        "grant_id": grant_id.hex(),
        "records": [
            {"file": str(file), "bundle_bytes": len(shared.bundle), **shared.record.model_dump(mode="json")}
            for file, shared in zip(files, reading.records, strict=True)
        ],
        "proxies": done,
    }
    rows = [
        (shared.record.sequence, shared.record.envelope.status, len(shared.bundle), file)
        for file, shared in zip(files, reading.records, strict=True)
    ]

    def human() -> None:
        table(("SEQUENCE", "STATUS", "BYTES", "FILE"), rows, "nothing")
        _show_outcomes(done, names)

    emit(answer, human)


def _covered(reader: "Actor", grant_id: bytes) -> list[int]:
    found = reader.client.consent.grant(grant_id)
    if not found.all_records:
        return list(found.records)
    records = (item.sequence for item in reader.client.records(found.patient) if item.generation == found.generation)
    covered = [sequence for sequence, _ in zip(records, range(MAX_RECORDS), strict=False)]
    if not covered:
        raise InvalidInput(f"patient {found.patient.hex()} has no records of this grant yet")
    return covered


def _free_paths(reader: "Actor", grant_id: bytes, sequences: "Sequence[int]", directory: Path) -> dict[int, Path]:
    """Return where records will be written. Nothing is asked of proxies, and noted as an access, when a file is in the way."""
    patient = reader.client.consent.grant(grant_id).patient.hex()
    paths = {sequence: directory / f"{patient[:8]}-{sequence}.json" for sequence in sequences}
    for path in paths.values():
        if path.exists():
            raise InvalidInput(
                f"{path} exists already and is not overwritten; choose another directory or move it away"
            )
    return paths


def _write(reading: "Reading", paths: dict[int, Path]) -> list[Path]:
    from node.files import create_file

    for shared in reading.records:
        # Plaintext of a medical record: for its reader only.
        create_file(paths[shared.record.sequence], shared.bundle, mode=0o600)
    return [paths[shared.record.sequence] for shared in reading.records]


def _show_outcomes(done: "Sequence[dict[str, str]]", names: Names) -> None:
    for one in done:
        why = ": ".join(part for part in (one["reason"], one["detail"]) if part)
        note(f"{names(bytes.fromhex(one['proxy']))} {one['outcome']}" + (f": {why}" if why else ""))
