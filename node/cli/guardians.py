# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain guardian`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import Names, actor, address_in, connect, open_ring, party_in, passphrase
from node.cli.labels import YesOption, confirm
from node.cli.shell import (
    JsonOption,
    NodeOption,
    OutputOption,
    PassphraseOption,
    PatientArgument,
    TimeoutOption,
    emit,
    facts,
    note,
    table,
    warn,
)

if TYPE_CHECKING:
    from node.client import NodeClient
    from node.key_ring import KeyRing

app = typer.Typer(
    help="Choose who can give you new keys if yours are lost; be a guardian; get an account back.", no_args_is_help=True
)

PatientOption = Annotated[str, typer.Option(help="The patient's address.", metavar="PATIENT")]


@app.command()
def appoint(
    guardians: Annotated[
        list[str], typer.Argument(help="Addresses, key files or names of the guardians.", metavar="GUARDIAN…")
    ],
    key: Annotated[str, typer.Option(help="The patient's key file.", metavar="FILE")],
    needed: Annotated[int, typer.Option(help="How many of them must help.", min=2, max=16)] = 2,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient, appoint guardians and leave an encrypted backup that so many can open together, for you; replaces former ones.

    Example: spchain guardian appoint brother.json sister.json "St. Anna" --needed 2 --key maria.json
    """
    del json_output
    from node.guardian_actions import appoint as choose

    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        chosen = [party_in(client, text, "guardian") for text in guardians]
        committed = choose(signer, chosen, needed, timeout)
        answer = {
            "patient": signer.keys.identifier.hex(),
            "guardians": sorted(address.hex() for address in chosen),
            "needed": needed,
            "transaction_id": committed.id.hex(),
            "height": committed.height,
        }
        emit(
            answer,
            lambda: typer.echo(
                f"{needed} of {len(chosen)} guardians can give new keys, since height {committed.height}"
            ),
        )


@app.command()
def show(
    patient: PatientArgument,
    key: Annotated[
        str | None,
        typer.Option(help="As a guardian: check with this key file that your share is there.", metavar="FILE"),
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a patient's guardians; as a guardian also check your share of the backup.

    Example: spchain guardian show 0123…cdef --key brother.json
    """
    del json_output
    from node.guardian_actions import appointed, check_share

    with connect(node) as client:
        target, names = address_in(patient, "patient"), Names(client)
        found = appointed(client, target)
        is_right = False
        if key is not None:
            check_share(actor(client, key, passphrase_file), target)
            is_right = True

        def human() -> None:
            facts(
                {
                    "patient": target.hex(),
                    "needed": f"{found.needed} of {len(found.guardians)}",
                    "since height": found.changed_height,
                    "backup": found.backup.hex(),
                }
                | ({"your share": "is there and right"} if is_right else {})
            )
            table(("GUARDIAN",), [(names(guardian),) for guardian in found.guardians], "none")

        emit({**found.model_dump(mode="json"), "share_is_right": is_right if key is not None else None}, human)


@app.command()
def approve(
    request: Annotated[str, typer.Argument(help="File that spchain guardian recover has written.", metavar="FILE")],
    key: Annotated[str, typer.Option(help="The guardian's key file.", metavar="FILE")],
    output: OutputOption,
    yes: YesOption = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """As a guardian, after having met the patient, give the new keys your signature and your share of the backup.

    Compare the new key with what the patient's own screen shows: whoever holds it gets account and records.

    Example: spchain guardian approve request.recovery --key brother.json -o brother.approval
    """
    del json_output
    from ledger.crypto.keys import address_of
    from node.files import create_file, read_file
    from node.guardian_actions import approve as give
    from node.guardian_actions import open_request
    from records.recovery import MAX_RECOVERY_REQUEST_BYTES

    raw = read_file(Path(request).expanduser(), MAX_RECOVERY_REQUEST_BYTES, "request")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        opened = open_request(client, signer.rules.chain_id, raw)
        keyblock = opened.keyblock
        shown: dict[str, object] = {
            "patient": keyblock.patient.hex(),
            "new key": keyblock.signing_key.hex(),
            "new account": address_of(keyblock.signing_key).hex(),
            "generation": keyblock.generation,
        }
        confirm(shown, "have you met the patient, and is this the new key?", yes=yes)
        create_file(Path(output).expanduser(), give(signer, opened), mode=0o600)
    answer = {"file": output, **{name.replace(" ", "_"): value for name, value in shown.items()}}
    emit(answer, lambda: note(f"wrote {output}; give it to the patient, who alone can use it"))


@app.command()
def recover(
    file: Annotated[str, typer.Argument(help="The new key file: made when it does not exist.", metavar="FILE")],
    patient: PatientOption,
    approvals: Annotated[
        list[str] | None, typer.Argument(help="What guardians have given; without, ask them.", metavar="APPROVAL…")
    ] = None,
    request: Annotated[
        str | None, typer.Option(help="Without approvals: write the request for the guardians here.", metavar="FILE")
    ] = None,
    payer: Annotated[
        str | None, typer.Option(help="Key file that pays the fee: yours has no credits yet.", metavar="FILE")
    ] = None,
    name: Annotated[str, typer.Option(help="Name in a new key file; never leaves it.")] = "",
    light: Annotated[bool, typer.Option("--light", help="Cheap encryption of a new key file: for tests only.")] = False,
    passphrase_file: PassphraseOption = None,
    payer_passphrase_file: Annotated[
        str | None, typer.Option(help="Opens the payer's key; else as for the new one.", metavar="FILE")
    ] = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient who has lost the keys, ask the guardians; then, with enough approvals, get account and records back.

    Example: spchain guardian recover new.json --patient 0123…cdef --request request.recovery

    Then: spchain guardian recover new.json brother.approval sister.approval --patient 0123…cdef --payer brother.json
    """
    del json_output
    from node.identity import Identity
    from node.keystore import Cost, read_ring, write_key
    from node.names import check_name

    check_name(name)
    path = Path(file).expanduser()
    with connect(node) as client:
        target = address_in(patient, "patient")
        if not path.exists():
            if approvals:
                raise InvalidInput(
                    f"{path} is not there; the approvals are for the key file that the request came from"
                )
            secret = passphrase(passphrase_file, path, f"new passphrase of {path}", confirm=True)
            write_key(path, Identity.generate(name), secret, Cost.LIGHT if light else Cost.STANDARD)
            note(f"made {path}")
        else:
            secret = passphrase(passphrase_file, path, f"passphrase of {path}")
        ring = read_ring(path, secret)
        if not approvals:
            _ask(client, target, ring, request)
            return
        if payer is None:
            raise InvalidInput("name who pays the fee with --payer: the new account has no credits before the recovery")
        _recover(
            client, target, (path, ring, secret), approvals, (payer, payer_passphrase_file or passphrase_file), timeout
        )


def _ask(client: "NodeClient", patient: bytes, ring: "KeyRing", request: str | None) -> None:
    from node.actions import network_rules
    from node.files import create_file
    from node.guardian_actions import appointed, ask

    if request is None:
        raise InvalidInput("name the file for the guardians with --request, or what they have given")
    raw = ask(client, network_rules(client).chain_id, patient, ring.newest)
    create_file(Path(request).expanduser(), raw)
    found, names = appointed(client, patient), Names(client)
    answer = {
        "file": request,
        "patient": patient.hex(),
        "new_key": ring.newest.public.public_key.hex(),
        "needed": found.needed,
        "guardians": [guardian.hex() for guardian in found.guardians],
    }

    def human() -> None:
        facts({"patient": patient.hex(), "new key": answer["new_key"], "needed": f"{found.needed} guardians"})
        table(("GUARDIAN",), [(names(guardian),) for guardian in found.guardians], "none")
        note(
            f"wrote {request}; each guardian compares the new key with this screen: spchain guardian approve {request}"
        )

    emit(answer, human)


def _recover(
    client: "NodeClient",
    patient: bytes,
    new: "tuple[Path, KeyRing, bytes]",
    approvals: list[str],
    payer: tuple[str, str | None],
    timeout_s: float,
) -> None:
    from node.actions import Actor, network_rules
    from node.files import read_file
    from node.guardian_actions import commit_recovery, prepare_recovery
    from node.key_actions import adopt, pending_path, stage
    from records.recovery import MAX_APPROVAL_BYTES

    path, ring, secret = new
    height = None
    if client.patient(patient).signing_key == ring.newest.public.public_key and pending_path(path).exists():
        # It was committed before, and interrupted after that.
        recovered = stage(path, ring, secret)
    else:
        raws = [read_file(Path(name).expanduser(), MAX_APPROVAL_BYTES, "approval") for name in approvals]
        recovery = prepare_recovery(client, network_rules(client).chain_id, patient, ring.newest, raws)
        for fault in recovery.backup.faults:
            warn(f"the share of {fault.guardian.hex()} is of no use: {fault.detail}")
        recovered = stage(path, ring, secret, recovery.ring)
        height = commit_recovery(Actor(client, open_ring(*payer)), recovery, timeout_s).height
    adopt(path, recovered, secret)
    answer = {
        "patient": patient.hex(),
        "file": str(path),
        "generations": len(recovered.generations),
        "address": recovered.newest.address.hex(),
        "height": height,
    }

    def human() -> None:
        typer.echo(f"patient {patient.hex()} has new keys; {path} holds {len(recovered.generations)} generations")
        note(f"renew grants and the guardians' backup: spchain key rotate {path} --only-renew")

    emit(answer, human)
