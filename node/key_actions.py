# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient changes keys, and what is to go on goes on: grants of all records get one for the new keys, guardians a new backup.

The new keys are on disk, in a file beside the old one, before the change is sent, and take the old one's place after it: a crash in between
loses nothing, and doing it again goes on.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from ledger.bodies import ChangeKeys
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, NotFound, SpchainError
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed
from node.api import sharing_models as answers
from node.clock import now_ms
from node.granting import Keep
from node.guardian_actions import appoint, appointed
from node.identity import Identity
from node.key_ring import KeyRing
from node.keystore import cost_of, read_ring, replace_key, write_key
from node.parties import encryption_key, keyblock_of, sign_keyblock
from node.sharing_actions import Given, give
from records.grants import GrantChoice

_LASTING = ("active", "asleep", "awake", "not yet")
"""States of grants that are not over."""


def is_changed(actor: Actor, new: Identity) -> bool:
    """Tell whether the chain has a patient's new keys already, as after a crash in between."""
    return actor.client.patient(actor.keys.identifier).signing_key == new.public.public_key


def change_keys(actor: Actor, new: Identity, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """As a patient with the present key, put new keys in its place. Raises `Rejection`."""
    shown = actor.client.patient(actor.keys.identifier)
    keyblock = keyblock_of(new, shown.institution, shown.address, shown.generation + 1, shown.keyblock_hash)
    return actor.commit(ChangeKeys(keyblock, sign_keyblock(actor.rules.chain_id, new, keyblock), ()), timeout_s)


@dataclass(frozen=True, slots=True)
class Followed:
    """What was renewed after a change of keys."""

    grants: tuple[Given, ...]
    """Grants for the new keys."""
    failed: tuple[tuple[bytes, str], ...]
    """Grants that were not renewed, and why: the grantee has left, or a proxy; or a delegate gave it who may not grant any more."""
    guardians: Committed | None
    """The appointment with a backup of the new keys too; None when there are no guardians, or it failed."""
    guardians_trouble: str
    """Why the backup could not be renewed; empty when it was, or there is none."""
    delegates: tuple[bytes, ...]
    """Delegates whose powers go on; they need the new keys handed over to read and grant."""


def follow(actor: Actor, keep: Keep, timeout_s: float = DEFAULT_TIMEOUT_S) -> Followed:
    """As a patient with new keys, renew what is to go on. Safe to repeat: what was renewed is not renewed again.

    Args:
        actor: the patient, with the whole key ring.
        keep: see `node.sharing_actions.give`.
        timeout_s: how long to wait for each commit.
    """
    grants: list[Given] = []
    failed: list[tuple[bytes, str]] = []
    delegations = [one for one in actor.client.consent.delegations(actor.keys.identifier) if one.until_ms > now_ms()]
    own = {address_of(entry.signing_key) for entry in actor.client.consent.keys(actor.keys.identifier)}
    lasting, left = _to_renew(actor, own | {one.delegate for one in delegations if "grant" in one.powers})
    for old in left:
        giver = address_of(old.verifying_key).hex()
        failed.append((old.grant_id, f"{giver} gave it, who may not grant any more; give it yourself, or revoke it"))
    for old in lasting:
        try:
            grants.append(_renew(actor, old, keep, timeout_s))
        except SpchainError as error:
            failed.append((old.grant_id, str(error)))
    committed, trouble = None, ""
    try:
        shown = appointed(actor.client, actor.keys.identifier)
        committed = appoint(actor, shown.guardians, shown.needed, timeout_s)
    except NotFound:
        pass
    except SpchainError as error:
        trouble = str(error)
    delegates = tuple(one.delegate for one in delegations if one.powers)
    return Followed(tuple(grants), tuple(failed), committed, trouble, delegates)


def _to_renew(actor: Actor, givers: AbstractSet[bytes]) -> tuple[list[answers.Grant], list[answers.Grant]]:
    """Return a lasting grant of all records for each agreement that has none of the newest generation.

    First those that the patient gave, or a delegate who may still grant. The others are left: keys are changed to shut out who is not
    trusted any more, and what such a delegate gave must not reach new records.
    """
    newest = actor.client.patient(actor.keys.identifier).generation
    lasting = [
        grant
        for grant in actor.client.consent.patient_grants(actor.keys.identifier)
        if grant.all_records and grant.state in _LASTING
    ]
    done = {_agreement(grant) for grant in lasting if grant.generation == newest}
    found: tuple[list[answers.Grant], list[answers.Grant]] = [], []
    for is_left, chosen in enumerate(found):
        for grant in lasting:
            if (address_of(grant.verifying_key) not in givers) == is_left and _agreement(grant) not in done:
                done.add(_agreement(grant))
                chosen.append(grant)
    return found


def _agreement(grant: answers.Grant) -> tuple[bytes, tuple[str, ...], int, int]:
    return grant.grantee, grant.purposes, grant.until_ms, grant.emergency_approvals


def _renew(actor: Actor, old: answers.Grant, keep: Keep, timeout_s: float) -> Given:
    choice = GrantChoice(
        patient=old.patient,
        generation=actor.client.patient(old.patient).generation,
        grantee=old.grantee,
        receiving_key=encryption_key(actor.client, old.grantee),
        records=None,
        purposes=old.purposes,
        from_ms=old.from_ms,
        until_ms=old.until_ms,
        threshold=old.threshold,
        proxies=tuple(proxy.address for proxy in old.proxies),
        emergency_approvals=old.emergency_approvals,
    )
    return give(actor, actor.identity.reencryption, choice, timeout_s, keep)


def pending_path(path: Path) -> Path:
    """Return where the next generation of a key file waits for its commit."""
    return path.with_name(path.name + ".next")


def stage(path: Path, ring: KeyRing, passphrase: bytes, following: KeyRing | None = None) -> KeyRing:
    """Write the next generation beside a key file, or read what an interrupted change has left there; returns it.

    Args:
        path: the key file.
        ring: what is in it.
        passphrase: opens it, and will open the new one.
        following: the ring to write; without it keys are drawn afresh.

    Raises:
        InvalidInput: a file is in the way that is not the next generation of this one.
    """
    pending = pending_path(path)
    if pending.exists():
        found = read_ring(pending, passphrase)
        present = {identity.seed for identity in ring.generations}
        if not present <= {identity.seed for identity in found.generations}:
            raise InvalidInput(f"{pending} is not the next generation of {path}; move it away")
        if following is None or following.secret == found.secret:
            return found
        pending.unlink()
    chosen = following or ring.renewed(Identity.generate(ring.newest.name))
    write_key(pending, chosen, passphrase, cost_of(path))
    return chosen


def adopt(path: Path, ring: KeyRing, passphrase: bytes) -> None:
    """Put what was staged into the key file's place, after the commit."""
    replace_key(path, ring, passphrase)
    pending_path(path).unlink(missing_ok=True)
