# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain emergency`."""

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ledger.emergency import Reason
from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect, party_in
from node.cli.grants import (
    FragmentsOption,
    HandoverOption,
    PatientOption,
    ProxiesOption,
    ProxyOption,
    ThresholdOption,
    carry_out,
    grant_in,
)
from node.cli.sharing import OutputOption, ReaderKeyOption, SequencesArgument, read_by
from node.cli.shell import (
    GrantArgument,
    JsonOption,
    NodeOption,
    PassphraseOption,
    PatientArgument,
    TimeoutOption,
    emit,
    moment,
    note,
    table,
)
from node.cli.times import HELP, ahead, time_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.sharing_models import Emergency

app = typer.Typer(
    help="Access in an emergency: prepared by the patient, opened and approved by institutions, reviewed afterwards.",
    no_args_is_help=True,
)

_MARGIN_MS = 60_000
"""An emergency ends this much before the network's limit by default: the chain's time may lie behind the clock."""
NumberArgument = Annotated[
    int, typer.Argument(help="Which of the patient's emergencies.", min=0, max=2**63 - 1, metavar="NUMBER")
]


@app.command()
def prepare(
    grantee: Annotated[
        str, typer.Argument(help="Who may open an emergency: address, key file or name.", metavar="GRANTEE")
    ],
    key: Annotated[str, typer.Option(help="The patient's key file, or the delegate's.", metavar="FILE")],
    until: Annotated[str, typer.Option(help="End of the sleeping grant. " + HELP, metavar="WHEN")],
    approvals: Annotated[int, typer.Option(help="How many proxies must approve.", min=1, max=16)] = 2,
    threshold: ThresholdOption = 2,
    proxies: ProxiesOption = 3,
    proxy: ProxyOption = None,
    patient: PatientOption = None,
    handover: HandoverOption = None,
    fragments: FragmentsOption = ".",
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient, give a sleeping grant of all records: nobody reads by it until enough of its proxies approve an emergency.

    Example: spchain emergency prepare "St. Anna" --approvals 2 --until 52w --key maria.json
    """
    del json_output
    from node.clock import now_ms
    from node.granting import Wish

    now = now_ms()
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        wish = Wish(
            patient=None if patient is None else address_in(patient, "patient"),
            grantee=party_in(client, grantee, "grantee"),
            records=None,
            purposes=("ETREAT",),
            from_ms=now - _MARGIN_MS,
            until_ms=time_in(until, now, "--until"),
            threshold=threshold,
            draw=proxies,
            proxies=None if proxy is None else tuple(party_in(client, one, "proxy") for one in proxy),
            emergency_approvals=approvals,
        )
        carry_out(signer, wish, handover, fragments, timeout)


@app.command("open")
def open_(
    grant: GrantArgument,
    key: ReaderKeyOption,
    reason: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Reason))}.")],
    until: Annotated[
        str | None, typer.Option(help="End; else as late as the network allows. " + HELP, metavar="WHEN")
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As the grantee of a sleeping grant, declare an emergency; its proxies are to approve it. It is on the chain for good.

    Example: spchain emergency open 6b0c…e1 --reason unconscious --key hospital.json
    """
    del json_output
    from node.clock import now_ms
    from node.emergency_actions import open_emergency

    now = now_ms()
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        latest = now + signer.rules.genesis.parameters.emergency_limit_ms - _MARGIN_MS
        until_ms = latest if until is None else time_in(until, now, "--until")
        opened = open_emergency(signer, grant_in(grant), _reason(reason), until_ms, timeout)
        found, names = opened.emergency, Names(client)
        shown = client.consent.grant(found.grant_id)

        def human() -> None:
            typer.echo(
                f"emergency {found.number} of patient {found.patient.hex()} until {moment(found.until_ms)}; "
                f"{found.needed} of these are to approve it:"
            )
            for one in shown.proxies:
                typer.echo(f"  {names(one.address)}")
            note(f"they say: spchain emergency approve {found.patient.hex()} {found.number} --key FILE")

        emit({**found.model_dump(mode="json"), "transaction_id": opened.committed.id.hex()}, human)


def _reason(text: str) -> Reason:
    known: tuple[Reason, ...] = get_args(Reason)
    for reason in known:
        if reason == text:
            return reason
    raise InvalidInput(f"reason {text!r}; there are {', '.join(known)}")


@app.command()
def approve(
    patient: PatientArgument,
    number: NumberArgument,
    key: Annotated[str, typer.Option(help="Key file of a proxy of the grant.", metavar="FILE")],
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a proxy of the sleeping grant, approve an emergency. Who approved is on the chain for good.

    Example: spchain emergency approve 0123…cdef 0 --key clinic.json
    """
    del json_output
    from node.emergency_actions import approve as give
    from node.emergency_actions import emergency_of

    with connect(node) as client:
        target = address_in(patient, "patient")
        committed = give(actor(client, key, passphrase_file), target, number, timeout)
        found = emergency_of(client, target, number)
    have = len(found.approvals)
    state = "it is open" if have >= found.needed else f"{found.needed - have} more needed"
    emit(
        {**found.model_dump(mode="json"), "transaction_id": committed.id.hex()},
        lambda: typer.echo(f"approved at height {committed.height}; {have} of {found.needed} approvals: {state}"),
    )


@app.command()
def read(
    patient: PatientArgument,
    number: NumberArgument,
    key: ReaderKeyOption,
    sequences: SequencesArgument = None,
    output: OutputOption = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As the grantee, read records in an approved emergency.

    Example: spchain emergency read 0123…cdef 0 --key hospital.json -o records
    """
    from node.emergency_actions import emergency_of

    with connect(node) as client:
        reader = actor(client, key, passphrase_file)
        found = emergency_of(client, address_in(patient, "patient"), number)
        read_by(reader, found.grant_id, sequences, "ETREAT", output, wants_json=json_output, emergency=number)


@app.command()
def review(
    patient: PatientArgument,
    number: NumberArgument,
    key: Annotated[
        str, typer.Option(help="The patient's key file, or that of a delegate who may review.", metavar="FILE")
    ],
    justified: Annotated[
        bool, typer.Option("--justified/--unjustified", help="Whether it was right; --unjustified ends it at once.")
    ],
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As the patient, say whether an emergency access was right; what was not stays in the institutions' queue.

    Example: spchain emergency review maria.json 0 --justified --key maria.json
    """
    del json_output
    from node.emergency_actions import review as say

    with connect(node) as client:
        signer, target = actor(client, key, passphrase_file), address_in(patient, "patient")
        committed = say(signer, target, number, is_justified=justified, timeout_s=timeout)
    verdict = "justified" if justified else "unjustified"
    answer = {
        "patient": target.hex(),
        "number": number,
        "verdict": verdict,
        "transaction_id": committed.id.hex(),
        "height": committed.height,
    }
    emit(answer, lambda: typer.echo(f"emergency {number} is {verdict}, since height {committed.height}"))


@app.command("list")
def list_(
    patient: Annotated[
        str | None, typer.Argument(help="Address or key file of a patient; else the review queue.", metavar="PATIENT")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="Those that wait for this institution's approval.", metavar="PROXY")
    ] = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List a patient's emergencies, those that wait for a proxy's approval, or those that nobody has called justified.

    Example: spchain emergency list maria.json
    """
    del json_output
    from node.clock import now_ms
    from node.emergency_actions import waiting_for

    now = now_ms()
    with connect(node) as client:
        found: Sequence[Emergency]
        if proxy is not None:
            found = waiting_for(client, party_in(client, proxy, "proxy"), now)
        elif patient is not None:
            found = list(client.consent.emergencies(address_in(patient, "patient")))
        else:
            found = list(client.consent.reviews())
        names = Names(client)
        rows = [
            (
                one.patient.hex(),
                one.number,
                moment(one.opened_timestamp_ms),
                names(one.requester),
                one.reason,
                f"{moment(one.until_ms)} ({ahead(one.until_ms, now)})",
                f"{len(one.approvals)} of {one.needed}",
                one.verdict or "not reviewed",
            )
            for one in found
        ]
    columns = ("PATIENT", "NUMBER", "OPENED", "BY", "REASON", "UNTIL", "APPROVALS", "REVIEW")
    emit([one.model_dump(mode="json") for one in found], lambda: table(columns, rows, "no emergencies"))
