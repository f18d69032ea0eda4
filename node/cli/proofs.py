# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain proof` and `spchain verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.access import address_in, connect, digest_in
from node.cli.shell import (
    GrantArgument,
    JsonOption,
    NodeOption,
    OutputOption,
    PatientOption,
    SequenceArgument,
    emit,
    facts,
    note,
    printable,
)

if TYPE_CHECKING:
    from node.client import NodeClient
    from records.claims import Claim
    from records.evidence import Findings

app = typer.Typer(help="Make evidence that anybody can check offline: see spchain verify.", no_args_is_help=True)
export_app = typer.Typer(
    help="Write a file that proves one thing against the newest pinned keyblock.", no_args_is_help=True
)
app.add_typer(export_app, name="export")

WaitOption = Annotated[
    float,
    typer.Option(
        help="How long to wait, in seconds, until it can be proved: two keyblocks after it was committed.",
        min=0.0,
        max=86_400.0,
    ),
]


def add_to(root: typer.Typer) -> None:
    """Add the verb that belongs to no group."""
    root.command()(verify)


@export_app.command()
def record(
    sequence: SequenceArgument,
    patient: PatientOption,
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove that a record stands in a patient's chain: who wrote it, when, and which ciphertext it is.

    Example: spchain proof export record 3 --patient maria.json -o record-3.evidence
    """
    del json_output
    from records.claims import RecordClaim

    _export(RecordClaim(address_in(patient, "patient"), sequence), output, wait, node)


@export_app.command()
def history(
    patient: PatientOption,
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove which records a patient has: all of them, in order, each with its status.

    Example: spchain proof export history --patient maria.json -o history.evidence
    """
    del json_output
    from records.claims import HistoryClaim

    _export(HistoryClaim(address_in(patient, "patient")), output, wait, node)


@export_app.command()
def grant(
    identifier: GrantArgument,
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove that a patient let somebody read records: which, for what, until when, by way of which proxies.

    Example: spchain proof export grant 6b0c…e1 -o grant.evidence
    """
    del json_output
    from records.claims import GrantClaim

    _export(GrantClaim(digest_in(identifier, "grant")), output, wait, node)


@export_app.command()
def revocation(
    identifier: GrantArgument,
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove that a grant was revoked, and which proxies have confirmed that their key fragment is deleted.

    Example: spchain proof export revocation 6b0c…e1 -o revocation.evidence
    """
    del json_output
    from records.claims import RevocationClaim

    _export(RevocationClaim(digest_in(identifier, "grant")), output, wait, node)


@export_app.command()
def access(
    identifier: GrantArgument,
    log: Annotated[
        list[str],
        typer.Option(
            help="Page of a proxy's access log, as the proxy signed it; may be given several times.", metavar="FILE"
        ),
    ],
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove who asked which proxy for records under a grant, and whether it re-encrypted them or why it refused.

    Example: spchain proof export access 6b0c…e1 --log linz.access --log wien.access -o access.evidence
    """
    del json_output
    from node.files import read_file
    from node.proving import access_claim
    from records.access_entries import MAX_PAGE_BYTES, decode_page

    pages = [decode_page(read_file(Path(file).expanduser(), MAX_PAGE_BYTES, "access log")) for file in log]
    _export(access_claim(digest_in(identifier, "grant"), pages), output, wait, node)


@export_app.command()
def label(
    sequence: SequenceArgument,
    patient: PatientOption,
    output: OutputOption,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prove how a record was labelled: by whom, when, with which permission of the patient, and who has erased the ciphertext.

    Example: spchain proof export label 3 --patient maria.json -o label.evidence
    """
    del json_output
    from records.claims import LabelClaim

    _export(LabelClaim(address_in(patient, "patient"), sequence), output, wait, node)


def verify(
    file: Annotated[str, typer.Argument(help="File of evidence.", metavar="FILE")],
    keyblock: Annotated[
        str,
        typer.Option(
            help="Hash of the keyblock that you trust: from your own node, or from several others. Never from who gave you the file.",
            metavar="HASH",
        ),
    ],
    json_output: JsonOption = False,
) -> None:
    """Check evidence against a keyblock's hash, without any node, and say what it proves and what it does not.

    Example: spchain verify record-3.evidence --keyblock 1f4a…09
    """
    del json_output
    from contracts.reading import Reader
    from contracts.shipped import MACHINES
    from node.files import read_file
    from records import evidence

    raw = read_file(Path(file).expanduser(), evidence.MAX_EVIDENCE_BYTES, "evidence")
    found = evidence.verify(raw, digest_in(keyblock, "keyblock"), Reader(MACHINES))
    emit(_as_json(found), lambda: _show(found))


def _export(claim: "Claim", output: str, wait_s: float, node: str | None) -> None:
    with connect(node) as client:
        export_claim(client, claim, output, wait_s)


def export_claim(client: "NodeClient", claim: "Claim", output: str, wait_s: float) -> None:
    """Write an evidence file of a claim, and say what it proves."""
    from node.files import create_file
    from node.proving import export

    raw, found = export(client, claim, wait_s)
    create_file(Path(output).expanduser(), raw)
    note(f"wrote {len(raw)} bytes to {output}")
    emit({"file": output, "file_bytes": len(raw), **_as_json(found)}, lambda: _show(found))


def _show(found: "Findings") -> None:
    from records.claims import when

    facts(
        {
            "claim": found.claim,
            "keyblock": found.keyblock.hex(),
            "mined": f"{when(found.mined_ms)}, as its miner states",
            "state": f"after microblock {found.height}, when epoch {found.epoch} began",
            "network": f"{found.network} ({found.chain_id.hex()})",
        }
    )
    for heading, colour, lines in (("proven", "green", found.proven), ("not proven", "yellow", found.not_proven)):
        typer.echo()
        typer.secho(heading, fg=colour)
        for line in lines:
            typer.echo(f"  – {printable(line)}")


def _as_json(found: "Findings") -> dict[str, object]:
    from node.readable import readable

    return {name: value for name, value in readable(found).items() if value is not None}
