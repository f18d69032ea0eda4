# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain read` and `spchain audit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect
from node.cli.grants import GrantArgument, grant_in, numbers
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, emit, moment, note, table, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.actions import Actor
    from node.sharing_actions import LogOfProxy, Reading

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
    """Add the verbs."""
    root.command()(read)
    root.command()(audit)


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
    try:
        reading = read_shared(reader, grant_id, wanted, purpose, emergency)
    except NotShared as error:
        if not wants_json:
            _show_outcomes(error.details, names)
        raise
    done = outcomes(reading.collection)
    if output is None:
        sys.stdout.buffer.write(reading.records[0].bundle)
        sys.stdout.buffer.flush()
        _show_outcomes(done, names)
        return
    files = _write(reading, Path(output).expanduser())
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


def _write(reading: "Reading", directory: Path) -> list[Path]:
    from node.files import create_file

    files = []
    for shared in reading.records:
        path = directory / f"{shared.record.patient.hex()[:8]}-{shared.record.sequence}.json"
        # Plaintext of a medical record: for its reader only.
        create_file(path, shared.bundle, mode=0o600)
        files.append(path)
    return files


def _show_outcomes(done: "Sequence[dict[str, str]]", names: Names) -> None:
    for one in done:
        why = ": ".join(part for part in (one["reason"], one["detail"]) if part)
        note(f"{names(bytes.fromhex(one['proxy']))} {one['outcome']}" + (f": {why}" if why else ""))


def audit(
    key: Annotated[
        str, typer.Option(help="The patient's key file, or that of a delegate who may review.", metavar="FILE")
    ],
    patient: Annotated[
        str | None, typer.Option(help="As a delegate: address or key file of the patient.", metavar="PATIENT")
    ] = None,
    fhir: Annotated[
        str | None,
        typer.Option(help="Write AuditEvent, Consent and Provenance resources (FHIR R4) there, too.", metavar="DIR"),
    ] = None,
    pages: Annotated[
        str | None,
        typer.Option(help="Write the logs as signed there, too, for spchain proof export access.", metavar="DIR"),
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show who has asked for a patient's records, which proxy has re-encrypted, and who was refused and why.

    Every proxy's log is checked: what was left out, changed or reordered is named.

    Example: spchain audit --key maria.json --fhir audit
    """
    del json_output
    from node.sharing_actions import audit as ask

    with connect(node) as client:
        viewer = actor(client, key, passphrase_file)
        concerned = viewer.keys.identifier if patient is None else address_in(patient, "patient")
        logs = ask(viewer, concerned)
        files = [] if fhir is None else _export(viewer, concerned, logs, Path(fhir).expanduser())
        signed = [] if pages is None else _keep_pages(logs, Path(pages).expanduser())
        _show_audit(logs, [*files, *signed], Names(client))
        unseen = [one for one in client.consent.emergencies(concerned) if not one.verdict]
        if unseen:
            warn(
                f"{len(unseen)} emergencies wait for your review: spchain emergency list {concerned.hex()}, then "
                "spchain emergency review"
            )


def _show_audit(logs: "Sequence[LogOfProxy]", files: list[Path], names: Names) -> None:
    from ledger.crypto.keys import address_of
    from node.readable import readable

    entries = sorted(
        (signed.entry for log in logs for signed in log.entries), key=lambda entry: (entry.timestamp_ms, entry.proxy)
    )
    answer: dict[str, Any] = {
        "entries": [{**readable(entry), "requester_address": address_of(entry.requester).hex()} for entry in entries],
        "proxies": [{"address": log.proxy.hex(), "entries": len(log.entries), "trouble": log.trouble} for log in logs],
        "files": [str(file) for file in files],
    }
    rows = [
        (
            moment(entry.timestamp_ms),
            names(address_of(entry.requester)),
            numbers(entry.records),
            entry.purpose,
            names(entry.proxy),
            "re-encrypted" if entry.reason is None else f"refused: {entry.reason.value}",
        )
        for entry in entries
    ]
    columns = ("TIME", "WHO ASKED", "RECORDS", "PURPOSE", "PROXY", "RESULT")
    emit(answer, lambda: table(columns, rows, "nobody has asked for your records"))
    for log in logs:
        if log.trouble:
            warn(f"the log of {names(log.proxy)} cannot be read to its end: {log.trouble}")
    if files:
        note(f"wrote {len(files)} files to {', '.join(sorted({str(file.parent) for file in files}))}")


def _keep_pages(logs: "Sequence[LogOfProxy]", directory: Path) -> list[Path]:
    from node.files import replace_file

    files = []
    for log in logs:
        for number, page in enumerate(log.pages):
            path = directory / f"{log.proxy.hex()}-{number}.access"
            replace_file(path, page, mode=0o600)
            files.append(path)
    return files


def _export(viewer: "Actor", patient: bytes, logs: "Sequence[LogOfProxy]", directory: Path) -> list[Path]:
    from node.audit_export import resources
    from node.files import replace_file

    files = []
    for name, content in resources(viewer, patient, logs):
        path = directory / name
        replace_file(path, content, mode=0o600)
        files.append(path)
    return files
