# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain audit`: who has asked, as the institutions' logs and the access-log contracts tell it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect, digest_in
from node.cli.grants import numbers
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, emit, moment, note, table, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.access_audit import AuditResult, Memory
    from node.access_check import CheckedEntry, ContractView
    from node.actions import Actor
    from node.sharing_actions import LogOfProxy
    from records.access_entries import AccessEntry

_STATES = {"waiting": "not yet", "missing": "MISSING", "unlogged": "–"}


def add_to(root: typer.Typer) -> None:
    """Add the verb."""
    root.command()(audit)


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
    contract: Annotated[
        str | None,
        typer.Option(
            help="Access-log contract to compare with; else all that institutions operate.", metavar="CONTRACT"
        ),
    ] = None,
    seen: Annotated[
        str | None,
        typer.Option(
            help="File that keeps what was seen and final, so that old batches are not needed next time.",
            metavar="FILE",
        ),
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show who has asked for a patient's records, which proxy has re-encrypted, and who was refused and why.

    Every institution's log is checked and compared with the access-log contracts: what is left out, changed or reordered is named.

    Example: spchain audit --key maria.json --seen maria.seen
    """
    del json_output
    from node.access_audit import audit_all
    from node.access_reads import NodeReads

    memory_file = None if seen is None else Path(seen).expanduser()
    with connect(node) as client:
        viewer = actor(client, key, passphrase_file)
        concerned = viewer.keys.identifier if patient is None else address_in(patient, "patient")
        only = None if contract is None else digest_in(contract, "contract")
        memory = None if memory_file is None else _read_memory(memory_file)
        found = audit_all(viewer, concerned, NodeReads(client), only, () if memory is None else memory.known)
        files = [] if fhir is None else _export(viewer, concerned, found.logs, Path(fhir).expanduser())
        signed = [] if pages is None else _keep_pages(found.logs, Path(pages).expanduser())
        if memory_file is not None:
            _keep_memory(memory_file, memory, concerned, found.checked.contracts)
        _show_audit(found, [*files, *signed], Names(client))
        unseen = [one for one in client.consent.emergencies(concerned) if not one.verdict]
        if unseen:
            some = "1 emergency waits" if len(unseen) == 1 else f"{len(unseen)} emergencies wait"
            warn(f"{some} for your review: spchain emergency list {concerned.hex()}, then spchain emergency review")


def _show_audit(found: "AuditResult", files: list[Path], names: Names) -> None:
    from ledger.crypto.keys import address_of
    from records.access_entries import answer_of

    checked = found.checked
    entries = sorted(checked.entries, key=lambda one: (one.signed.entry.timestamp_ms, one.signed.entry.proxy))
    rows = [
        (
            moment(one.signed.entry.timestamp_ms),
            names(address_of(one.signed.entry.requester)),
            numbers(one.signed.entry.records),
            _purpose(one.signed.entry),
            names(one.signed.entry.proxy),
            answer_of(one.signed.entry),
            _STATES.get(one.state) or f"batch {one.batch}, {'final' if one.state == 'final' else 'pending'}",
        )
        for one in entries
    ]
    columns = ("TIME", "WHO ASKED", "RECORDS", "PURPOSE", "LOGGED BY", "RESULT", "IN CONTRACT")
    # What an institution does not show is not what it has not done.
    is_whole = not any(log.trouble for log in found.logs)
    empty = "nobody has asked for your records" if is_whole else "no access is shown, but not every log could be read"
    emit(_answer(found, entries, files), lambda: table(columns, rows, empty))
    if not checked.contracts:
        note("no institution operates an access-log contract here: this rests on what the institutions show alone")
    for view in checked.contracts:
        _tell_of(view)
    for log in found.logs:
        if log.trouble:
            warn(f"the log of {names(log.proxy)} cannot be read to its end: {log.trouble}")
    for fault in checked.faults:
        by = f"; {names(fault.reader)} had asked" if fault.reader else ""
        warn(f"{names(fault.institution)}: {fault.detail}{by}")
    if files:
        note(f"wrote {len(files)} files to {', '.join(sorted({str(file.parent) for file in files}))}")


def _purpose(entry: "AccessEntry") -> str:
    return entry.purpose if entry.emergency is None else f"{entry.purpose}, emergency {entry.emergency}"


def _tell_of(view: "ContractView") -> None:
    name = f"contract {view.contract_id.hex()[:16]}…"
    if view.trouble:
        warn(f"{name} cannot be checked to its end: {view.trouble}")
    if view.head is None:
        return
    where = "has no batch yet" if view.batch is None else f"proved at batch {view.batch}"
    rest = "" if view.batch is None else ", final" if view.is_final else ", which can still be challenged"
    note(f"{name} counts {view.head.count} accesses, {view.head.refused_count} of them refused; {where}{rest}")
    if view.from_ms:
        note(f"{name}: accesses before {moment(view.from_ms)} are no longer published and were not compared")


def _answer(found: "AuditResult", entries: "Sequence[CheckedEntry]", files: list[Path]) -> dict[str, Any]:
    from ledger.crypto.keys import address_of
    from node.readable import readable

    return {
        "entries": [
            {
                **readable(one.signed.entry),
                "requester_address": address_of(one.signed.entry.requester).hex(),
                "state": one.state,
                "contract_id": one.contract_id.hex() or None,
                "batch": one.batch,
            }
            for one in entries
        ],
        "proxies": [
            {"address": log.proxy.hex(), "entries": len(log.entries), "trouble": log.trouble} for log in found.logs
        ],
        "contracts": [
            {
                "contract_id": view.contract_id.hex(),
                "operator": view.operator.hex(),
                "accesses": len(view.accesses),
                "head": None if view.head is None else readable(view.head),
                "batch": view.batch,
                "is_final": view.is_final,
                "is_explained": view.is_explained,
                "from_ms": view.from_ms,
                "trouble": view.trouble,
            }
            for view in found.checked.contracts
        ],
        "faults": [readable(fault) for fault in found.checked.faults],
        "files": [str(file) for file in files],
    }


def _read_memory(file: Path) -> "Memory | None":
    from node.access_audit import MAX_MEMORY_BYTES, decode_memory
    from node.files import read_file

    if not file.exists():
        return None
    try:
        return decode_memory(read_file(file, MAX_MEMORY_BYTES, "file of accesses seen"))
    except InvalidInput as error:
        raise InvalidInput(f"{file} is no file of accesses seen, or damaged: {error}; move it away") from error


def _keep_memory(file: Path, before: "Memory | None", patient: bytes, views: "Sequence[ContractView]") -> None:
    """Write what is known now; what this look has not confirmed stays as it was."""
    from ledger.codec import encode
    from node.access_audit import Memory, remember
    from node.files import replace_file

    fresh = remember(patient, views).known
    places = {(one.contract_id, one.patient) for one in fresh}
    kept = () if before is None else (one for one in before.known if (one.contract_id, one.patient) not in places)
    replace_file(file, encode(Memory((*kept, *fresh))), mode=0o600)


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
