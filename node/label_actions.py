# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels, each step in one call: an institution asks, the patient permits, the institution proves and commits.

What passes between the two are files: a request that the institution has signed, and a permission with the trapdoor sealed to it.
"""

from pathlib import Path
from typing import Literal

from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput
from ledger.genesis import Genesis
from ledger.patients import Record
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed
from node.api import models
from node.client import NodeClient
from node.record_checks import envelope_of, link_of
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.labelling import (
    LabelProver,
    LabelRequest,
    build_label,
    decode_label_request,
    open_permission,
    permission_for,
    permit,
    read_request,
)
from records.labelling import request_label as sign_label_request

Status = Literal["amended", "entered-in-error"]
VALID_MICROBLOCKS = 10_000
"""How long a permission is asked for: an idle network makes as many in about a day."""


def record_of(shown: models.Record) -> Record:
    """Return a record as the chain has it, from what a node shows of it."""
    return Record(
        record_id=shown.record_id,
        microblock=link_of(shown),
        envelope=envelope_of(shown.envelope),
        opening=shown.opening,
        generation=shown.generation,
        label_count=shown.label_count,
        may_erase=shown.may_erase,
        committed_height=shown.committed_height,
        committed_timestamp_ms=shown.committed_timestamp_ms,
    )


def ask_for_label(
    actor: Actor,
    patient: bytes,
    sequence: int,
    *,
    status: Status,
    label: str,
    replacement: int | None = None,
    may_erase: bool = False,
    note: str = "",
) -> bytes:
    """As an institution, return the signed request for a permission to label a record. Raises `InvalidInput`, `ApiError`."""
    client = actor.client
    permission = permission_for(
        record_of(client.record(patient, sequence)),
        institution=actor.identity.address,
        status=status,
        label=label,
        replacement=None if replacement is None else record_of(client.record(patient, replacement)),
        may_erase=may_erase,
        expiry_height=client.status().height + VALID_MICROBLOCKS,
    )
    return sign_label_request(actor.rules.chain_id, actor.identity.signing, permission, note)


def open_label_request(client: NodeClient, chain_id: bytes, raw: bytes) -> LabelRequest:
    """As a patient, read a request and check who it is from and that it is about the record as it stands. Raises `InvalidInput`."""
    institution = decode_label_request(raw).permission.institution
    request = read_request(chain_id, raw, client.institution(institution).public_key)
    permission = request.permission
    shown = client.record(permission.patient, permission.sequence)
    if shown.record_id != permission.record or shown.label_count != permission.number:
        raise InvalidInput(
            f"the request is about another record, or about record {permission.sequence} before it was labelled again; "
            "let the institution ask anew"
        )
    return request


def permit_label(actor: Actor, request: LabelRequest, trapdoor: bytes | None = None) -> bytes:
    """As a patient, or a delegate who may permit labels, return the signed permission with the trapdoor sealed to the institution.

    Args:
        actor: who signs.
        request: what the institution asks for.
        trapdoor: chameleon secret of the record's generation, for a delegate; the patient's own keys hold it.

    Raises:
        InvalidInput: the keys of the record's generation are not in the patient's key ring.
    """
    permission = request.permission
    if trapdoor is None:
        generation = actor.client.record(permission.patient, permission.sequence).generation
        keys = {entry.generation: entry for entry in actor.client.consent.keys(permission.patient)}
        trapdoor = actor.keys.holding(keys[generation].reencryption_key).chameleon_secret
    institution = actor.client.institution(permission.institution)
    return permit(
        actor.rules.chain_id,
        actor.identity.signing,
        permission,
        trapdoor,
        institution.encryption_key,
    )


def prover_of(genesis: Genesis, proving_key: Path | None = None) -> LabelProver:
    """Return who makes proofs for a network; without a file the development key that ships. Raises `InvalidInput`."""
    try:
        from records.chameleon_prover import Prover  # noqa: PLC0415 -- the native library has no wheel for some platforms
    except ImportError as error:
        raise InvalidInput(
            f"proofs cannot be made on this machine ({error}): pip install groth16py where it has wheels (x86-64 and arm64), "
            "and apply the label there"
        ) from error
    if proving_key is None:
        if genesis.chameleon_verifying_key != DEVELOPMENT_VERIFYING_KEY:
            raise InvalidInput("this network has a proving key of its own ceremony; name its file with --proving-key")
        proving_key = DEVELOPMENT_PROVING_KEY
    return Prover(proving_key, genesis.chameleon_verifying_key)


def apply_label(actor: Actor, raw: bytes, prover: LabelProver, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """As the institution, prove the label that a permission allows and commit it.

    Raises:
        InvalidInput: no permission, not sealed to this institution, or for another state of the record.
        Rejection: the chain refuses the label.
    """
    client = actor.client
    opened = open_permission(actor.rules.chain_id, raw, actor.identity.reencryption)
    permission = opened.permission
    record = record_of(client.record(permission.patient, permission.sequence))
    keys = {entry.generation: entry for entry in client.consent.keys(permission.patient)}
    chameleon_key = keys[record.generation].chameleon_key
    return actor.commit(build_label(opened, record, chameleon_key, client.status().height, prover), timeout_s)
