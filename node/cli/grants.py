# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain grant` and `spchain revoke`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger.errors import InvalidInput, Rejection
from node.cli.access import Names, actor, address_in, connect, digest_in, party_in
from node.cli.shell import (
    ExitCode,
    GrantArgument,
    JsonOption,
    NodeOption,
    PassphraseOption,
    TimeoutOption,
    emit,
    facts,
    moment,
    note,
    table,
    warn,
)
from node.cli.times import HELP, ahead, day, time_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.actions import Actor
    from node.api.sharing_models import Grant
    from node.granting import Wish
    from node.sharing_actions import Delivery, Given

app = typer.Typer(help="Let somebody read records, by way of proxies, for a purpose and a time.", no_args_is_help=True)

PatientOption = Annotated[
    str | None,
    typer.Option(help="As a delegate: address or key file of the patient that you act for.", metavar="PATIENT"),
]
HandoverOption = Annotated[
    str | None,
    typer.Option(help="As a delegate: file with the keys that the patient has handed over.", metavar="FILE"),
]
PurposeOption = Annotated[
    list[str], typer.Option(help="Purpose of use, a code of HL7's v3-PurposeOfUse as TREAT; may be repeated.")
]
ThresholdOption = Annotated[int, typer.Option(help="How many proxies must re-encrypt.", min=2, max=16)]
ProxiesOption = Annotated[int, typer.Option(help="How many proxies to draw.", min=2, max=16)]
ProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy", help="Choose the proxies yourself: address, key file or name of an institution; may be repeated."
    ),
]
FragmentsOption = Annotated[
    str,
    typer.Option(
        "--fragments",
        help="Directory for the sealed key fragments of proxies that could not be reached.",
        metavar="DIR",
    ),
]


def add_to(root: typer.Typer) -> None:
    """Add the verb that belongs to no group."""
    root.command()(revoke)


@app.command()
def give(
    grantee: Annotated[str, typer.Argument(help="Who may read: address, key file or name.", metavar="GRANTEE")],
    key: Annotated[str, typer.Option(help="The patient's key file, or the delegate's.", metavar="FILE")],
    until: Annotated[str, typer.Option(help="End. " + HELP, metavar="WHEN")],
    record: Annotated[
        list[int] | None, typer.Option(help="Sequence number of a record; may be repeated. Else all, also later ones.")
    ] = None,
    purpose: PurposeOption = ["TREAT"],  # noqa: B006 -- typer copies it
    begin: Annotated[str | None, typer.Option("--from", help="Beginning; else now.", metavar="WHEN")] = None,
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
    """As a patient or a delegate, let somebody read records; each proxy gets its key fragment, sealed to it.

    A patient who has changed keys gives one grant for each generation of keys that the records are of.

    Example: spchain grant give "St. Anna" --key maria.json --record 0 --record 2 --purpose TREAT --until 30d
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
            records=None if record is None else tuple(record),
            purposes=tuple(dict.fromkeys(purpose)),
            # Somewhat in the past: the chain's time may lie behind the clock.
            from_ms=now - 60_000 if begin is None else time_in(begin, now, "--from"),
            until_ms=time_in(until, now, "--until"),
            threshold=threshold,
            draw=proxies,
            proxies=None if proxy is None else tuple(party_in(client, one, "proxy") for one in proxy),
        )
        carry_out(signer, wish, handover, fragments, timeout)


class Keeper:
    """Keeps sealed fragments in files until their proxies have them: they cannot be made again."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory).expanduser()
        self._newest: Path | None = None

    def path(self, grant_id: bytes) -> Path:
        """Return where the fragments of a grant lie."""
        return self._directory / f"grant-{grant_id.hex()[:16]}.fragments"

    def keep(self, grant_id: bytes, sealed: tuple[bytes, ...]) -> None:
        """Write them down; before the grant is committed."""
        from node.files import create_file
        from node.sharing_actions import pack_fragments

        create_file(self.path(grant_id), pack_fragments(sealed), mode=0o600)
        self._newest = self.path(grant_id)

    def drop(self) -> None:
        """Remove the newest, whose grant the chain has refused: nobody will ever take them."""
        if self._newest is not None:
            self._newest.unlink(missing_ok=True)

    def settle(self, given: "Given") -> str:
        """Remove what is no longer needed; returns the file's name when it is."""
        path = self.path(given.grant_id)
        if any(delivery.reason for delivery in given.deliveries):
            return str(path)
        path.unlink(missing_ok=True)
        return ""


def read_handover(file: str | None) -> bytes | None:
    """Return the content of a file of handed-over keys."""
    if file is None:
        return None
    from node.delegation_actions import MAX_HANDOVERS_BYTES
    from node.files import read_file

    return read_file(Path(file).expanduser(), MAX_HANDOVERS_BYTES, "hand-over")


def carry_out(signer: "Actor", wish: "Wish", handover: str | None, fragments: str, timeout_s: float) -> None:
    """Give the grants that a wish takes, and say what was given."""
    from node.granting import give_all

    keeper = Keeper(fragments)
    try:
        given = give_all(signer, wish, read_handover(handover), keeper.keep, timeout_s)
    except Rejection:
        keeper.drop()
        raise
    _report(given, keeper, Names(signer.client))


def _report(given: "Sequence[Given]", keeper: Keeper, names: Names) -> None:
    """Say what was given, and end with a code when too few proxies have their fragment."""
    files = [keeper.settle(grant) for grant in given]
    answer = [
        {
            "grant_id": grant.grant_id.hex(),
            "patient": grant.terms.patient.hex(),
            "generation": grant.terms.generation,
            "grantee": grant.terms.grantee.hex(),
            "records": None if grant.terms.all_records else list(grant.terms.records),
            "purposes": list(grant.terms.purposes),
            "from_ms": grant.terms.from_ms,
            "until_ms": grant.terms.until_ms,
            "threshold": grant.terms.threshold,
            "emergency_approvals": grant.terms.emergency_approvals,
            "transaction_id": grant.committed.id.hex(),
            "height": grant.committed.height,
            "proxies": deliveries_as_json(grant.deliveries),
            "is_usable": grant.is_usable,
            "fragments_file": file or None,
        }
        for grant, file in zip(given, files, strict=True)
    ]

    def human() -> None:
        for grant in given:
            some = f"record{'s' if len(grant.terms.records) > 1 else ''} {numbers(grant.terms.records)}"
            what = "all records" if grant.terms.all_records else some
            typer.echo(f"grant {grant.grant_id.hex()} committed at height {grant.committed.height}")
            asleep = grant.terms.emergency_approvals
            when = f", once {asleep} proxies approve an emergency," if asleep else ""
            typer.echo(f"{names(grant.terms.grantee)} may read {what}{when} until {moment(grant.terms.until_ms)}")
            show_deliveries(grant.deliveries, names)

    emit(answer, human)
    for grant, file in zip(given, files, strict=True):
        if file:
            enough = "enough have; " if grant.is_usable else "too few to read by; "
            warn(f"not every proxy has its key fragment ({enough}when they are up: spchain grant deliver {file})")
    if not all(grant.is_usable for grant in given):
        raise typer.Exit(ExitCode.UNREACHABLE)


def deliveries_as_json(deliveries: "Sequence[Delivery]") -> list[dict[str, Any]]:
    """Return what became of key fragments."""
    return [{"address": one.proxy.hex(), "reason": one.reason, "detail": one.detail} for one in deliveries]


def show_deliveries(deliveries: "Sequence[Delivery]", names: Names) -> None:
    """Print what became of key fragments."""
    rows = [(names(one.proxy), one.reason or "holds its key fragment", one.detail) for one in deliveries]
    table(("PROXY", "STATE", "DETAIL"), rows, "no proxies")


def numbers(sequence: "Sequence[int]") -> str:
    """Return sequence numbers for people."""
    return ", ".join(map(str, sequence))


@app.command("list")
def list_(
    of: Annotated[str, typer.Argument(help="Address, key file or name of an account.", metavar="WHOM")],
    role: Annotated[
        str, typer.Option(help="patient: grants given; grantee: grants to read by; proxy: grants to work for.")
    ] = "patient",
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List the grants that somebody has given, may read by, or is a proxy of.

    Example: spchain grant list maria.json
    """
    del json_output
    from node.clock import now_ms

    with connect(node) as client:
        who = party_in(client, of, "account")
        if role == "patient":
            found = list(client.consent.patient_grants(who))
        elif role == "grantee":
            found = list(client.consent.account_grants(who, "grantee"))
        elif role == "proxy":
            found = list(client.consent.account_grants(who, "proxy"))
        else:
            raise InvalidInput(f"role {role!r}; there are patient, grantee and proxy")
        names, now = Names(client), now_ms()
        rows = [
            (
                grant.grant_id.hex(),
                names(grant.patient if role != "patient" else grant.grantee),
                "all" if grant.all_records else numbers(grant.records),
                ", ".join(grant.purposes),
                f"{day(grant.until_ms)} ({ahead(grant.until_ms, now)})",
                f"{grant.threshold} of {len(grant.proxies)}",
                grant.state + _deletions(grant),
            )
            for grant in found
        ]
    columns = (
        "GRANT",
        "PATIENT" if role != "patient" else "GRANTEE",
        "RECORDS",
        "PURPOSES",
        "UNTIL",
        "PROXIES",
        "STATE",
    )
    emit([grant.model_dump(mode="json") for grant in found], lambda: table(columns, rows, "no grants"))


def _deletions(grant: "Grant") -> str:
    if grant.revoked_height is None:
        return ""
    deleted = sum(proxy.deleted_height is not None for proxy in grant.proxies)
    return f" ({deleted} of {len(grant.proxies)} have deleted)"


@app.command()
def show(identifier: GrantArgument, node: NodeOption = None, json_output: JsonOption = False) -> None:
    """Show a grant, and which proxies have confirmed that their key fragment is deleted.

    Example: spchain grant show 6b0c…e1
    """
    del json_output
    from node.clock import now_ms

    with connect(node) as client:
        found = client.consent.grant(grant_in(identifier))
        names, now = Names(client), now_ms()

        def human() -> None:
            facts(
                {
                    "grant": found.grant_id.hex(),
                    "state": found.state,
                    "patient": f"{found.patient.hex()} (generation {found.generation} of the keys)",
                    "grantee": names(found.grantee),
                    "records": "all, also later ones" if found.all_records else numbers(found.records),
                    "purposes": ", ".join(found.purposes),
                    "from": moment(found.from_ms),
                    "until": f"{moment(found.until_ms)} ({ahead(found.until_ms, now)})",
                    "needs": f"{found.threshold} of {len(found.proxies)} proxies",
                    "emergency": f"{found.emergency_approvals} approvals wake it"
                    if found.emergency_approvals
                    else "no",
                    "granted": f"at height {found.granted_height}, {moment(found.granted_timestamp_ms)}",
                    "revoked": "no" if found.revoked_height is None else f"at height {found.revoked_height}",
                }
            )
            rows = [
                (names(one.address), "–" if one.deleted_height is None else f"deleted, height {one.deleted_height}")
                for one in found.proxies
            ]
            table(("PROXY", "KEY FRAGMENT"), rows, "no proxies")

        emit(found.model_dump(mode="json"), human)


def grant_in(text: str) -> bytes:
    """Return the identifier of a grant. Raises `InvalidInput`."""
    return digest_in(text, "grant")


@app.command()
def deliver(
    file: Annotated[str, typer.Argument(help="Fragments that spchain grant give has kept.", metavar="FILE")],
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Bring the key fragments of a grant to proxies that could not be reached before. Needs no key; safe to repeat.

    Example: spchain grant deliver grant-6b0cd1ef00a19b3c.fragments
    """
    del json_output
    from node.files import read_file
    from node.sharing_actions import MAX_FRAGMENTS_BYTES, decode_fragments, deliver_again

    path = Path(file).expanduser()
    sealed = decode_fragments(read_file(path, MAX_FRAGMENTS_BYTES, "fragments")).sealed
    with connect(node) as client:
        grant, deliveries = deliver_again(client, sealed)
        names = Names(client)
        have = sum(not one.reason for one in deliveries)
        emit(
            {"proxies": deliveries_as_json(deliveries), "is_usable": have >= grant.terms.threshold},
            lambda: show_deliveries(deliveries, names),
        )
    if have == len(grant.terms.proxies):
        path.unlink(missing_ok=True)
        note(f"every proxy has its key fragment; removed {path}")
    if have < grant.terms.threshold:
        warn(f"{have} proxies have their key fragment, {grant.terms.threshold} are needed; try again when more are up")
        raise typer.Exit(ExitCode.UNREACHABLE)


def revoke(
    identifier: GrantArgument,
    key: Annotated[str, typer.Option(help="The patient's key file, or the delegate's.", metavar="FILE")],
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """End a grant at once and for good. What was read before cannot be unread; proxies delete their fragments and confirm it.

    Example: spchain revoke 6b0c…e1 --key maria.json
    """
    del json_output
    from node.sharing_actions import revoke as end

    grant_id = grant_in(identifier)
    with connect(node) as client:
        committed = end(actor(client, key, passphrase_file), grant_id, timeout)
    answer = {"grant_id": grant_id.hex(), "transaction_id": committed.id.hex(), "height": committed.height}
    emit(
        answer,
        lambda: typer.echo(
            f"revoked at height {committed.height}; who has deleted its fragment: spchain grant show {grant_id.hex()}"
        ),
    )
