# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain key`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.access import Names, connect, passphrase
from node.cli.grants import FragmentsOption, Keeper
from node.cli.shell import (
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

if TYPE_CHECKING:
    from node.identity import PublicIdentity
    from node.key_actions import Followed

app = typer.Typer(help="Make, show and renew key files.", no_args_is_help=True)


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="Key file to make.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="Name as shown to people.")] = "",
    light: Annotated[bool, typer.Option("--light", help="Cheap encryption (15 ms per guess): for tests only.")] = False,
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make a key file: one secret for signing, encryption and the network, encrypted with a passphrase.

    Example: spchain key new hospital.json --name "St. Anna"
    """
    del json_output
    from node.identity import Identity
    from node.keystore import Cost, write_key
    from node.names import check_name

    check_name(name)
    path = Path(file).expanduser()
    secret = passphrase(passphrase_file, path, "new passphrase", confirm=True)
    identity = Identity.generate(name)
    write_key(path, identity, secret, Cost.LIGHT if light else Cost.STANDARD)
    note(f"made {path}; keep a copy and the passphrase safe: neither can be restored")
    _show(path, identity.public)


@app.command()
def show(
    file: Annotated[str, typer.Argument(help="Key file.", metavar="FILE")], json_output: JsonOption = False
) -> None:
    """Show whose key file it is: name, address, public keys. Needs no passphrase.

    Example: spchain key show hospital.json --json
    """
    del json_output
    from node.keystore import read_public

    path = Path(file).expanduser()
    _show(path, read_public(path))


@app.command()
def rotate(
    file: Annotated[str, typer.Argument(help="The patient's key file; it will hold old and new keys.", metavar="FILE")],
    only_renew: Annotated[
        bool, typer.Option("--only-renew", help="Change no keys; renew grants and backup, as after an interruption.")
    ] = False,
    fragments: FragmentsOption = ".",
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As a patient, replace all keys at once; the identifier stays, and old records stay readable with the same file.

    Grants of all records get a grant for the new keys, guardians a new backup. When it is interrupted, do it again: it goes on.

    Example: spchain key rotate maria.json
    """
    del json_output
    from node.actions import Actor
    from node.key_actions import adopt, change_keys, follow, is_changed, stage
    from node.keystore import read_ring

    path = Path(file).expanduser()
    with connect(node) as client:
        secret = passphrase(passphrase_file, path, f"passphrase of {path}")
        ring = read_ring(path, secret)
        height = None
        if not only_renew:
            actor = Actor(client, ring)
            client.patient(ring.identifier)  # that there is such a patient is known before anything is written
            following = stage(path, ring, secret)
            if not is_changed(actor, following.newest):
                height = change_keys(actor, following.newest, timeout).height
            adopt(path, following, secret)
            ring = following
            note(f"{path} holds {len(ring.generations)} generations of keys; make a new copy of it")
        keeper = Keeper(fragments)
        followed = follow(Actor(client, ring), keeper.keep, timeout)
        files = [keeper.settle(grant) for grant in followed.grants]
        answer = {
            **described(ring.public),
            "file": str(path),
            "height": height,
            "grants": [grant.grant_id.hex() for grant in followed.grants],
            "fragments_files": [name for name in files if name],
            "failed_grants": [{"grant_id": grant.hex(), "why": why} for grant, why in followed.failed],
            "guardians_renewed": followed.guardians is not None,
            "delegates": [delegate.hex() for delegate in followed.delegates],
        }
        emit(answer, lambda: _show_followed(ring.public, followed, Names(client)))
    for grant, why in followed.failed:
        warn(f"grant {grant.hex()} has none for the new keys: {why}")
    for name in filter(None, files):
        warn(f"not every proxy has its key fragment; when they are up: spchain grant deliver {name}")
    if followed.guardians_trouble:
        warn(f"the guardians' backup lacks the new keys: {followed.guardians_trouble}; spchain guardian appoint")
    for delegate in followed.delegates:
        warn(f"delegate {delegate.hex()} has no new keys: spchain delegate give {delegate.hex()} … --handover FILE")


def _show_followed(public: "PublicIdentity", followed: "Followed", names: Names) -> None:
    facts(
        {
            "identifier": public.identifier.hex(),
            "generation": public.generation,
            "renewed grants": len(followed.grants),
            "backup for guardians": "renewed" if followed.guardians else "none",
        }
    )
    rows = [
        (grant.grant_id.hex(), names(terms.grantee), ", ".join(terms.purposes), moment(terms.until_ms))
        for grant in followed.grants
        for terms in (grant.terms,)
    ]
    if rows:
        table(("GRANT", "GRANTEE", "PURPOSES", "UNTIL"), rows, "")
        note("whom you do not know or want any more: spchain revoke GRANT, also the grant before it")


def described(public: "PublicIdentity") -> dict[str, str | int]:
    """Return what is public about a key, ready for JSON."""
    return {
        "name": public.name,
        "address": public.address.hex(),
        "public_key": public.public_key.hex(),
        "reencryption_key": public.reencryption_key.hex(),
        "chameleon_key": public.chameleon_key.hex(),
        "network_key": public.network_key.hex(),
        "reveal_key": public.reveal_key.hex(),
        "peer_id": public.peer_id,
        "identifier": public.identifier.hex(),
        "generation": public.generation,
    }


def _show(path: Path, public: "PublicIdentity") -> None:
    described_key = {"file": str(path), **described(public)}
    emit(described_key, lambda: facts(described_key))
