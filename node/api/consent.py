# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that read what patients have decided: grants, labels, keys, guardians, delegations, emergencies."""

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Query

from ledger import queries
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.emergency import Emergency, is_awake
from ledger.sharing import Grant, is_within
from ledger.state import numbered_key
from ledger.store import Store
from node.api import models, views
from node.api import sharing_models as answers
from node.api.bodies import parse_hex
from node.api.served import Served

_DIGEST_BYTES = 32
_REVIEW_BYTES = ADDRESS_BYTES + 8
"""A place in the review queue: a patient and the number of an emergency."""
_MAX = 2**63 - 1
Start = Annotated[int, Query(ge=0, le=_MAX, description="First entry wanted.")]
Limit = Annotated[int, Query(ge=1, le=models.MAX_PAGE, description="Most entries wanted.")]
Sequence = Annotated[int, Path(ge=0, le=_MAX)]


def consent_routes(node: Served) -> APIRouter:
    """Return the routes about grants and emergencies."""
    router = APIRouter(tags=["consent"])
    store = node.store

    @router.get("/v1/grants/{identifier}")
    async def grant(identifier: str) -> answers.Grant:
        """A grant: who may read what, until when, through which proxies; and which of them have deleted their fragment."""
        grant_id = parse_hex(identifier, _DIGEST_BYTES, "grant")
        return _grant(store, grant_id, queries.grant(store, grant_id))

    @router.get("/v1/patients/{address}/grants")
    async def patient_grants(address: str, start: Start = 0, limit: Limit = 100) -> answers.Grants:
        """A patient's grants, in the order in which they were made; also those that are over."""
        found = list(queries.patient_grants(store, _address(address), start, limit))
        more = found[-1][1].number + 1 if len(found) == limit else None
        return answers.Grants(grants=tuple(_grant(store, *entry) for entry in found), next_start=more)

    @router.get("/v1/accounts/{address}/grants")
    async def account_grants(
        address: str, role: Literal["grantee", "proxy"] = "grantee", start: str = "", limit: Limit = 100
    ) -> answers.Grants:
        """Grants that an account may read by, or is a proxy of, in the order of their identifiers."""
        ask = queries.grantee_grants if role == "grantee" else queries.proxy_grants
        first = parse_hex(start, _DIGEST_BYTES, "grant") if start else b""
        found = list(ask(store, _address(address), first, limit))
        more = _following(found[-1][0]) if len(found) == limit else None
        return answers.Grants(grants=tuple(_grant(store, *entry) for entry in found), next_start=more)

    @router.get("/v1/patients/{address}/emergencies")
    async def emergencies(address: str, start: Start = 0, limit: Limit = 100) -> answers.Emergencies:
        """A patient's emergency accesses: who broke the glass, why, who approved, what the patient says of it."""
        patient = _address(address)
        found = [(patient, *entry) for entry in queries.emergencies(store, patient, start, limit)]
        more = found[-1][1] + 1 if len(found) == limit else None
        return answers.Emergencies(emergencies=_emergencies(store, found), next_start=more)

    @router.get("/v1/emergencies/reviews")
    async def reviews(start: str = "", limit: Limit = 100) -> answers.Emergencies:
        """Approved emergencies that no patient has called justified: the institutions' review queue."""
        first = parse_hex(start, _REVIEW_BYTES, "place in the queue") if start else bytes(_REVIEW_BYTES)
        patient, number = first[:ADDRESS_BYTES], int.from_bytes(first[ADDRESS_BYTES:], "big")
        found = list(queries.reviews(store, patient, number, limit))
        more = numbered_key(found[-1][0], found[-1][1] + 1) if len(found) == limit else None
        return answers.Emergencies(emergencies=_emergencies(store, found), next_start=more)

    return router


def record_history_routes(node: Served) -> APIRouter:
    """Return the routes about labels, keys, guardians and delegations."""
    router = APIRouter(tags=["consent"])
    store = node.store

    @router.get("/v1/patients/{address}/records/{sequence}/labels")
    async def labels(address: str, sequence: Sequence) -> answers.Labels:
        """The history of a record: every label with permission and proof, and who has erased the ciphertext."""
        patient = _address(address)
        queries.record(store, patient, sequence)
        return answers.Labels(
            labels=tuple(answers.Label.model_validate(label) for label in queries.labels(store, patient, sequence)),
            erasures=tuple(
                answers.Erasure(institution=institution, height=erasure.height)
                for institution, erasure in queries.erasures(store, patient, sequence)
            ),
        )

    @router.get("/v1/patients/{address}/keys")
    async def keys(address: str) -> answers.KeyGenerations:
        """All generations of a patient's keys."""
        patient = _address(address)
        queries.patient(store, patient)
        found = queries.key_generations(store, patient)
        return answers.KeyGenerations(
            generations=tuple(
                answers.KeyGeneration(
                    generation=entry.keyblock.generation,
                    keyblock_hash=entry.keyblock_hash,
                    signing_key=entry.keyblock.signing_key,
                    reencryption_key=entry.keyblock.reencryption_key,
                    chameleon_key=entry.keyblock.chameleon_key,
                    committed_height=entry.committed_height,
                )
                for entry in found
            )
        )

    @router.get("/v1/patients/{address}/guardians")
    async def guardians(address: str) -> answers.Guardians:
        """Who can give a patient new keys."""
        found = queries.guardians(store, _address(address))
        if found is None:
            raise views.not_found(f"patient {address} has appointed no guardians", "spchain guardian appoint does it")
        return answers.Guardians.model_validate(found)

    @router.get("/v1/patients/{address}/delegations")
    async def delegations(address: str) -> answers.Delegations:
        """Who may act for a patient, and in what; also what was taken back."""
        found = queries.delegations(store, _address(address))
        return answers.Delegations(
            delegations=tuple(
                answers.Delegation(
                    delegate=delegate,
                    powers=delegation.powers,
                    until_ms=delegation.until_ms,
                    changed_height=delegation.changed_height,
                )
                for delegate, delegation in found
            )
        )

    return router


def _following(identifier: bytes) -> bytes:
    """Return the next identifier of the same length."""
    return (int.from_bytes(identifier, "big") + 1).to_bytes(len(identifier), "big")


def _address(text: str) -> bytes:
    return parse_hex(text, ADDRESS_BYTES, "address")


def _grant(store: Store, grant_id: bytes, grant: Grant) -> answers.Grant:
    terms = msgspec.structs.asdict(grant.terms)
    digests = terms.pop("fragment_digests")
    terms["proxies"] = tuple(
        answers.Proxy(address=proxy, fragment_digest=digest, deleted_height=height or None)
        for proxy, digest, height in zip(grant.terms.proxies, digests, grant.deletions, strict=True)
    )
    return answers.Grant(
        **terms,
        grant_id=grant_id,
        number=grant.number,
        verifying_key=grant.verifying_key,
        granted_height=grant.granted_height,
        granted_timestamp_ms=grant.granted_timestamp_ms,
        revoked_height=grant.revoked_height or None,
        state=_state(store, grant),
    )


def _state(store: Store, grant: Grant) -> Literal["active", "asleep", "awake", "ended", "not yet", "revoked"]:
    time_ms = store.head().timestamp_ms
    if grant.revoked_height:
        return "revoked"
    if not is_within(grant.terms, time_ms):
        return "not yet" if time_ms < grant.terms.from_ms else "ended"
    if not grant.terms.emergency_approvals:
        return "active"
    return "awake" if queries.awake_emergency(store, grant, time_ms) is not None else "asleep"


def _emergencies(store: Store, found: Iterable[tuple[bytes, int, Emergency]]) -> tuple[answers.Emergency, ...]:
    time_ms = store.head().timestamp_ms
    return tuple(
        answers.Emergency(
            **{name: value for name, value in msgspec.structs.asdict(emergency).items() if name != "approvals"},
            approvals=tuple(answers.Approval.model_validate(approval) for approval in emergency.approvals),
            patient=patient,
            number=number,
            is_awake=is_awake(emergency, time_ms),
        )
        for patient, number, emergency in found
    )
