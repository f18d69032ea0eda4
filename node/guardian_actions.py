# SPDX-License-Identifier: GPL-3.0-or-later
"""Guardians, each step in one call: a patient appoints them, loses the keys, asks; they approve; account and records are back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from ledger.bodies import AppointGuardians, ChangeKeys
from ledger.errors import InvalidInput, NotFound
from ledger.patients import PatientKeyblock
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed
from node.api import sharing_models as answers
from node.client import NodeClient
from node.http_client import ApiError
from node.identity import Identity
from node.key_ring import KeyRing
from node.parties import encryption_key, keyblock_of
from records.backup import OpenedBackup, decode_backup, make_backup, open_backup, open_share
from records.blob_store import address as blob_address
from records.recovery import RecoveryRequest, approve_recovery, ask_recovery, check_approvals, read_recovery

_T = TypeVar("_T")


def appoint(actor: Actor, guardians: Sequence[bytes], needed: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """As a patient, choose who can give new keys, with a backup of all generations of keys that so many can open together.

    Raises:
        InvalidInput: too few guardians, or one of them twice.
        ApiError: a guardian is neither an institution nor a patient.
        Rejection: the chain refuses.
    """
    patient, client = actor.keys.identifier, actor.client
    chosen = [(guardian, encryption_key(client, guardian)) for guardian in guardians]
    backup = make_backup(actor.keys.secret, patient, chosen, needed)
    blob_id = client.put_blob(backup)
    if blob_id != blob_address(backup):
        raise InvalidInput(f"the node at {client.url} kept another blob than the backup; use another node")
    return actor.commit(AppointGuardians(patient, tuple(sorted(guardians)), needed, blob_id), timeout_s)


def appointed(client: NodeClient, patient: bytes) -> answers.Guardians:
    """Return a patient's guardians. Raises `NotFound` when there are none."""
    try:
        return client.consent.guardians(patient)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            raise NotFound(f"patient {patient.hex()} has appointed no guardians") from error
        raise


def fetch_backup(client: NodeClient, patient: bytes, guardians: answers.Guardians) -> bytes:
    """Return a patient's backup, the one that the chain names. Raises `InvalidInput`, `ApiError`."""
    raw = client.get_blob(guardians.backup)
    if blob_address(raw) != guardians.backup:
        raise InvalidInput(f"the node gave another blob than backup {guardians.backup.hex()}; ask another node")
    if decode_backup(raw).patient != patient:
        raise InvalidInput(f"backup {guardians.backup.hex()} is not patient {patient.hex()}'s: it was made wrongly")
    return raw


def check_share(actor: Actor, patient: bytes) -> None:
    """As a guardian, make sure that the own share is there and right. Raises `InvalidInput`, `NotFound`, `ApiError`."""
    backup = fetch_backup(actor.client, patient, appointed(actor.client, patient))
    _with_some_key(actor.keys, lambda keys: open_share(backup, actor.keys.identifier, keys.reencryption))


def ask(client: NodeClient, chain_id: bytes, patient: bytes, new: Identity) -> bytes:
    """As a patient with new keys, return the request for the guardians. Raises `ApiError`, `NotFound` when there are none."""
    appointed(client, patient)
    return ask_recovery(chain_id, new.signing, _next_keyblock(client, patient, new))


def _next_keyblock(client: NodeClient, patient: bytes, new: Identity) -> PatientKeyblock:
    shown = client.patient(patient)
    return keyblock_of(new, shown.institution, patient, shown.generation + 1, shown.keyblock_hash)


def open_request(client: NodeClient, chain_id: bytes, raw: bytes) -> RecoveryRequest:
    """As a guardian, read a request and check that it would be the patient's next keyblock. Raises `InvalidInput`, `ApiError`."""
    request = read_recovery(chain_id, raw)
    keyblock = request.keyblock
    shown = client.patient(keyblock.patient)
    if (keyblock.generation, keyblock.previous) != (shown.generation + 1, shown.keyblock_hash):
        raise InvalidInput(
            f"the request is for generation {keyblock.generation}, and the patient is at {shown.generation}: "
            "it was made before another change of keys; let the patient ask anew"
        )
    if keyblock.institution != shown.institution:
        raise InvalidInput("the request names another institution than the patient's; let the patient ask anew")
    return request


def approve(actor: Actor, request: RecoveryRequest) -> bytes:
    """As a guardian who has met the patient, return the approval with the own share, sealed to the patient's new key.

    Raises:
        InvalidInput: not a guardian of this patient, or the share is not there.
    """
    patient = request.keyblock.patient
    guardians = appointed(actor.client, patient)
    if actor.keys.identifier not in guardians.guardians:
        raise InvalidInput(f"{actor.keys.identifier.hex()} is no guardian of patient {patient.hex()}")
    backup = fetch_backup(actor.client, patient, guardians)
    chain_id, own = actor.rules.chain_id, actor.keys.identifier
    return _with_some_key(
        actor.keys,
        lambda keys: approve_recovery(chain_id, actor.identity.signing, request, backup, (own, keys.reencryption)),
    )


def _with_some_key(ring: KeyRing, act: Callable[[Identity], _T]) -> _T:
    """Act with the generation of keys that the share was sealed to: the guardian may have changed keys since."""
    for keys in ring.generations[:-1]:
        try:
            return act(keys)
        except InvalidInput:
            continue
    return act(ring.generations[-1])


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery that is ready to be committed."""

    body: ChangeKeys
    """What goes on the chain."""
    ring: KeyRing
    """The new keys together with those that the backup held: to be on disk before the commit."""
    backup: OpenedBackup
    """What the backup said, with the shares that were wrong."""


def prepare_recovery(
    client: NodeClient, chain_id: bytes, patient: bytes, new: Identity, approvals: Sequence[bytes]
) -> Recovery:
    """As a patient with new keys, put the guardians' approvals together and open the backup; nothing is on the chain yet.

    Raises:
        InvalidInput: too few approvals or wrong ones; its kind `TooFewShares` names wrong shares.
    """
    guardians = appointed(client, patient)
    keyblock = _next_keyblock(client, patient, new)
    approved = check_approvals(chain_id, keyblock, list(approvals))
    if len(approved.approvals) < guardians.needed:
        raise InvalidInput(
            f"{len(approved.approvals)} guardians have approved, {guardians.needed} are needed; ask further ones: "
            + ", ".join(guardian.hex() for guardian in guardians.guardians)
        )
    opened = open_backup(fetch_backup(client, patient, guardians), approved.shares, new.reencryption)
    ring = KeyRing.from_secret(opened.secret, new.name).renewed(new)
    if ring.identifier != patient:
        raise InvalidInput(f"the backup holds the keys of {ring.identifier.hex()}, not of patient {patient.hex()}")
    signature = read_recovery(chain_id, ask_recovery(chain_id, new.signing, keyblock)).signature
    return Recovery(ChangeKeys(keyblock, signature, approved.approvals), ring, opened)


def commit_recovery(payer: Actor, recovery: Recovery, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """Commit a recovery; whoever has credits pays the fee. Raises `Rejection`."""
    return payer.commit(recovery.body, timeout_s)
