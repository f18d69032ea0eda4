# SPDX-License-Identifier: GPL-3.0-or-later
"""Sharing, each step in one call: grant, hand out key fragments, read as a grantee, revoke, look at who has asked.

Everything secret happens here, at the caller's; see `node.actions`. What nodes and proxies hand out is verified before it is believed.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from ledger.bodies import GrantAccess, RevokeAccess
from ledger.codec import Wire, decoder, encode
from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput, SpchainError
from ledger.sharing import MAX_PROXIES, Grant, GrantTerms
from ledger.sharing import grant_id as identifier_of
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed, network_rules
from node.api import models
from node.api import sharing_models as answers
from node.client import NodeClient
from node.clock import now_ms
from node.record_checks import check_record, fetch_blob
from records.access_entries import SignedEntry, Trail, decode_page, sign_query
from records.answers import Collection
from records.envelope import Blob, open_shared
from records.grants import (
    MAX_SEALED_FRAGMENT_BYTES,
    GrantChoice,
    PreparedGrant,
    check_receipt,
    decode_sealed,
    prepare_grant,
)
from records.placement import draw_proxies
from records.requests import MAX_REQUEST_RECORDS, NONCE_BYTES, SignedRequest, sign_request

PATIENCE_S = 15.0
"""How long proxies are given to commit the grant that a fragment is for."""
_PAUSE_S = 0.3
_NOT_YET = ("unknown_grant", "catching_up", "busy")


class SealedFragments(Wire, frozen=True):
    """The key fragments of a grant in a file, each sealed to its proxy."""

    sealed: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_SEALED_FRAGMENT_BYTES)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_PROXIES),
    ]
    """Encoded `SealedFragment`s."""


MAX_FRAGMENTS_BYTES = MAX_PROXIES * (MAX_SEALED_FRAGMENT_BYTES + 8)
"""A file of as many fragments as a grant can have."""


class NotShared(SpchainError):
    """Too few proxies have re-encrypted; the text names what each of them said."""

    def __init__(self, collection: Collection) -> None:
        super().__init__(f"the records cannot be read: {collection.explain()}")
        self.collection = collection
        reasons = [reason.value for reason in collection.refusals.values()]
        self.reason = max(reasons, key=reasons.count) if reasons else "proxies_failed"
        """What most of the proxies that refused have named; for scripts."""

    @property
    def details(self) -> list[dict[str, str]]:
        """What each proxy did."""
        return outcomes(self.collection)


def outcomes(collection: Collection) -> list[dict[str, str]]:
    """Return what each proxy that was asked has done: re-encrypted, refused or failed, and why."""
    rows = [(proxy, "re-encrypted", "", "") for proxy in collection.helpers]
    rows += [(proxy, "refused", reason.value, "") for proxy, reason in collection.refusals.items()]
    rows += [(fault.proxy, "failed", fault.kind.value, fault.detail) for fault in collection.faults]
    return [
        {"proxy": proxy.hex(), "outcome": outcome, "reason": reason, "detail": detail}
        for proxy, outcome, reason, detail in rows
    ]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one key fragment."""

    proxy: bytes
    """The proxy."""
    reason: str
    """Empty when it holds its fragment, which it has signed for; else why not."""
    detail: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Given:
    """A grant that was committed."""

    grant_id: bytes
    """Its identifier."""
    terms: GrantTerms
    """What was agreed to."""
    committed: Committed
    """Where it stands."""
    deliveries: tuple[Delivery, ...]
    """Which proxies hold their fragment."""
    sealed: tuple[bytes, ...] = field(repr=False)
    """The sealed fragments, in the order of the proxies: to be delivered again to those that were away."""

    @property
    def is_usable(self) -> bool:
        """Whether enough proxies hold their fragment."""
        return sum(not delivery.reason for delivery in self.deliveries) >= self.terms.threshold


def choose_proxies(client: NodeClient, patient: bytes, grantee: bytes, count: int) -> tuple[bytes, ...]:
    """Draw proxies for a patient's next grant among the registered institutions; the grantee is none. Raises `InvalidInput`."""
    institutions = [one.address for one in client.institutions()]
    number = sum(1 for _ in client.consent.patient_grants(patient))
    return draw_proxies(patient, number, grantee, institutions, count)


def give(
    actor: Actor,
    delegating: ReencryptionKey,
    choice: GrantChoice,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    keep: Callable[[bytes, tuple[bytes, ...]], None] | None = None,
) -> Given:
    """As a patient or a delegate, commit a grant and hand each proxy its key fragment.

    Args:
        actor: who signs.
        delegating: the patient's re-encryption key of the generation that the choice names.
        choice: what is granted.
        timeout_s: how long to wait for the commit.
        keep: is told grant and sealed fragments before the commit: they cannot be made again, see `deliver_again`.

    Raises:
        InvalidInput: something that no node would accept.
        Rejection: the chain refuses the grant.
    """
    prepared = prepare_grant(delegating, actor.identity.signing, choice)
    proxies = {proxy: actor.client.institution(proxy) for proxy in prepared.terms.proxies}
    sealed = tuple(prepared.seal(proxy, found.encryption_key) for proxy, found in proxies.items())
    if keep is not None:
        keep(prepared.grant_id, sealed)
    committed = actor.commit(GrantAccess(prepared.terms), timeout_s)
    keys = {proxy: found.public_key for proxy, found in proxies.items()}
    deliveries = hand_out(actor.client, actor.rules.chain_id, prepared, sealed, keys)
    return Given(prepared.grant_id, prepared.terms, committed, deliveries, sealed)


def deliver_again(client: NodeClient, sealed: Sequence[bytes]) -> tuple[Grant, tuple[Delivery, ...]]:
    """Bring the sealed fragments of a grant to its proxies once more; anybody may, and those that have theirs say so.

    Raises:
        InvalidInput: these are not the fragments of one grant, or the node shows another one.
        NotFound: the grant was not committed.
    """
    parcels = [decode_sealed(raw) for raw in sealed]
    names = {parcel.grant_id for parcel in parcels}
    if len(names) != 1:
        raise InvalidInput(f"these are fragments of {len(names)} grants; deliver those of one at a time")
    grant = grant_of(client.consent.grant(names.pop()))
    chosen = [raw for raw, parcel in zip(sealed, parcels, strict=True) if parcel.proxy in grant.terms.proxies]
    keys = {proxy: client.institution(proxy).public_key for proxy in grant.terms.proxies}
    prepared = PreparedGrant(grant.terms, identifier_of(grant.terms), ())
    return grant, hand_out(client, network_rules(client).chain_id, prepared, chosen, keys)


def pack_fragments(sealed: Sequence[bytes]) -> bytes:
    """Return the bytes of a file with the sealed fragments of a grant."""
    return encode(SealedFragments(tuple(sealed)))


def hand_out(
    client: NodeClient,
    chain_id: bytes,
    prepared: PreparedGrant,
    sealed: Sequence[bytes],
    proxy_keys: Mapping[bytes, bytes],
) -> tuple[Delivery, ...]:
    """Bring sealed fragments to their proxies and check the receipts; a proxy that has not committed the grant yet is asked again."""
    waiting = {decode_sealed(raw).proxy: raw for raw in sealed}
    found: dict[bytes, Delivery] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while waiting:
        for answer in client.consent.deliver(list(waiting.values())):
            found[answer.proxy] = _delivery(chain_id, prepared, answer, proxy_keys)
            if found[answer.proxy].reason not in _NOT_YET:
                del waiting[answer.proxy]
        if time.monotonic() > deadline_s:
            break
        if waiting:
            time.sleep(_PAUSE_S)
    return tuple(found[proxy] for proxy in prepared.terms.proxies if proxy in found)


def _delivery(
    chain_id: bytes, prepared: PreparedGrant, answer: answers.Answer, proxy_keys: Mapping[bytes, bytes]
) -> Delivery:
    if answer.reason:
        return Delivery(answer.proxy, answer.reason, answer.detail)
    try:
        check_receipt(chain_id, answer.body, prepared, answer.proxy, proxy_keys[answer.proxy])
    except InvalidInput as error:
        return Delivery(answer.proxy, "bad_receipt", str(error))
    return Delivery(answer.proxy, "", "")


def revoke(actor: Actor, grant_id: bytes, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
    """As a patient or a delegate, end a grant. Proxies refuse from the commit on, delete their fragments and confirm it."""
    return actor.commit(RevokeAccess(grant_id), timeout_s)


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """A record that a grantee has read."""

    record: models.Record
    """What the chain says of it."""
    bundle: bytes = field(repr=False)
    """The bundle, byte for byte."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of a request."""

    records: tuple[SharedRecord, ...]
    """The records that were asked for."""
    collection: Collection
    """Which proxies have helped, refused or failed."""


def read_shared(
    actor: Actor, grant_id: bytes, sequences: Sequence[int], purpose: str, emergency: int | None = None
) -> Reading:
    """As a grantee, have the proxies re-encrypt records and decrypt them.

    Asks as many proxies as are needed, and further ones for those that refuse, fail or lie.

    Raises:
        NotShared: too few have re-encrypted; says who refused and why.
        InvalidInput: what a node handed out does not fit together.
        NotFound, ApiError: no such grant, record or blob.
    """
    client, chain_id = actor.client, actor.rules.chain_id
    shown = client.consent.grant(grant_id)
    grant = grant_of(shown)
    if grant.terms.grantee != actor.keys.identifier:
        raise InvalidInput(
            f"the grant lets {grant.terms.grantee.hex()} read, and this key file is that of {actor.keys.identifier.hex()}"
        )
    found = [_fetch(client, grant.terms.patient, sequence) for sequence in sorted(set(sequences))]
    generations = {entry.generation: entry for entry in client.consent.keys(grant.terms.patient)}
    proxy_keys = {proxy: client.institution(proxy).public_key for proxy in grant.terms.proxies}
    # A grantee who has changed keys since reads with the old ones; the request is signed with the new ones.
    receiving = actor.keys.holding(grant.terms.receiving_key).reencryption
    records: list[SharedRecord] = []
    collection: Collection | None = None
    for start in range(0, len(found), MAX_REQUEST_RECORDS):
        part = found[start : start + MAX_REQUEST_RECORDS]
        signed = sign_request(
            chain_id,
            actor.identity.signing,
            grant_id=grant_id,
            purpose=purpose,
            records=[(record.sequence, blob.capsule) for record, blob in part],
            issued_ms=now_ms(),
            nonce=secrets.token_bytes(NONCE_BYTES),
            emergency=emergency,
        )
        delegating_key = generations[grant.terms.generation].reencryption_key
        collection = Collection(chain_id, signed, grant, delegating_key, proxy_keys)
        _collect(client, signed, collection)
        for record, blob in part:
            bundle = open_shared(blob, receiving, collection.fragments(record.sequence))
            records.append(SharedRecord(record, bundle))
    if collection is None:
        raise InvalidInput("no record is named: give the sequence number of at least one")
    return Reading(tuple(records), collection)


def _fetch(client: NodeClient, patient: bytes, sequence: int) -> tuple[models.Record, Blob]:
    record = client.record(patient, sequence)
    check_record(client, record)
    return record, fetch_blob(client, record)


def _collect(client: NodeClient, signed: SignedRequest, collection: Collection) -> None:
    raw = encode(signed)
    while not collection.is_complete():
        wanted = collection.ask()
        if not wanted:
            raise NotShared(collection)
        for proxy in wanted:
            answer = client.consent.ask_proxy(raw, proxy)
            if answer.reason:
                collection.fail(proxy, answer.detail or answer.reason)
            else:
                collection.add(proxy, answer.body)


def grant_of(shown: answers.Grant) -> Grant:
    """Return a grant as the chain has it, from what a node shows of it. Raises `InvalidInput` when that contradicts itself."""
    terms = GrantTerms(
        patient=shown.patient,
        generation=shown.generation,
        grantee=shown.grantee,
        receiving_key=shown.receiving_key,
        all_records=shown.all_records,
        records=shown.records,
        purposes=shown.purposes,
        from_ms=shown.from_ms,
        until_ms=shown.until_ms,
        threshold=shown.threshold,
        proxies=tuple(proxy.address for proxy in shown.proxies),
        fragment_digests=tuple(proxy.fragment_digest for proxy in shown.proxies),
        emergency_approvals=shown.emergency_approvals,
    )
    if identifier_of(terms) != shown.grant_id:
        raise InvalidInput(f"what the node shows of grant {shown.grant_id.hex()} is not that grant; ask another node")
    return Grant(
        number=shown.number,
        terms=terms,
        verifying_key=shown.verifying_key,
        granted_height=shown.granted_height,
        granted_timestamp_ms=shown.granted_timestamp_ms,
        revoked_height=shown.revoked_height or 0,
        deletions=tuple(proxy.deleted_height or 0 for proxy in shown.proxies),
        emergency_count=0,
        newest_emergency=0,
    )


@dataclass(frozen=True, slots=True)
class LogOfProxy:
    """What one institution says of who has asked it for a patient's records, and of what it has read itself."""

    proxy: bytes
    """The institution."""
    entries: tuple[SignedEntry, ...]
    """Its entries about the patient, verified: none was left out, changed or reordered."""
    pages: tuple[bytes, ...]
    """The pages as the proxy has signed them: what `spchain proof export access` takes."""
    trouble: str
    """Why there is no more; empty when all was read."""


def audit(actor: Actor, patient: bytes, also: Iterable[bytes] = ()) -> tuple[LogOfProxy, ...]:
    """As a patient or a delegate who may review, read the access logs of all institutions that can have an entry about the patient.

    These are the proxies and the grantees of all grants there ever were; `also` names further ones.
    """
    concerned = set(also)
    institutions = {one.address for one in actor.client.institutions()}
    for grant in actor.client.consent.patient_grants(patient):
        concerned.update((grant.grantee, *(proxy.address for proxy in grant.proxies)))
    return tuple(_log_of(actor, patient, one) for one in sorted(concerned & institutions))


def _log_of(actor: Actor, patient: bytes, proxy: bytes) -> LogOfProxy:
    chain_id, client = actor.rules.chain_id, actor.client
    trail = Trail(chain_id, proxy, client.institution(proxy).public_key, patient)
    entries: list[SignedEntry] = []
    pages: list[bytes] = []
    while True:
        query = sign_query(
            chain_id,
            actor.identity.signing,
            proxy=proxy,
            patient=patient,
            start=trail.next_number,
            issued_ms=now_ms(),
        )
        answer = client.consent.ask_log(encode(query))
        if answer.reason:
            return LogOfProxy(proxy, tuple(entries), tuple(pages), f"{answer.reason}: {answer.detail}")
        try:
            page = decode_page(answer.body)
            trail.advance(page)
        except InvalidInput as error:
            return LogOfProxy(proxy, tuple(entries), tuple(pages), str(error))
        entries += page.entries
        pages.append(answer.body)
        if trail.is_complete():
            return LogOfProxy(proxy, tuple(entries), tuple(pages), "")


decode_fragments = decoder(SealedFragments, MAX_FRAGMENTS_BYTES)
"""Read a file that `pack_fragments` made; raises `InvalidInput`."""
