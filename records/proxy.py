# SPDX-License-Identifier: GPL-3.0-or-later
"""What a proxy decides: whether a request is authentic, and whether its grant allows what it asks, at the committed head.

Pure functions over the state; the memory for replays is the one thing that is kept. The order of the checks is the order in which
reasons are given: first those that anybody can cause, then the grant's, last the proxy's own.

A proxy re-encrypts only if
R1 it knows the newest state: it is not catching up;
R2 the request is signed by the present key of the grant's grantee, within two minutes of the proxy's clock, and new;
R3 at the committed head the grant stands unrevoked, it has begun, it has not ended (neither by the chain's time nor by the proxy's
   clock), and this institution is one of its proxies;
R4 a sleeping grant is awake: by an emergency of that grantee that enough proxies have approved and that is not over;
R5 the purpose is one of the grant's;
R6 every record is covered, exists, is of the grant's generation of keys, and its capsule is the committed one.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from ledger.emergency import is_awake
from ledger.patients import Record
from ledger.sharing import Grant, covers
from ledger.state import EMERGENCIES, GRANTS, INSTITUTIONS, PATIENTS, RECORDS, State, StateReader, numbered_key
from records.access_entries import AccessEntry
from records.envelope import capsule_digest
from records.requests import (
    FRESHNESS_MS,
    UNBOUNDED_REASONS,
    ReencryptionRequest,
    RefusalReason,
    SignedRequest,
    is_signed,
    request_digest,
)

WINDOW_REQUESTS = 32_768
"""Requests that a proxy remembers, about 8 MB: 130 a second over the four minutes that one can be fresh."""
GRANTEE_REQUESTS = 2_048
"""Of these, those of one grantee: 500 records a second, and sixteen grantees at that rate leave no room for others."""


@dataclass(frozen=True, slots=True)
class ProxyView:
    """What a proxy knows of the world when it decides."""

    reader: StateReader
    """The state at the committed head."""
    chain_id: bytes
    """The chain."""
    head_height: int
    """Height of the committed head."""
    head_timestamp_ms: int
    """Time of the committed head, in milliseconds since 1970 (UTC)."""
    clock_ms: int
    """The proxy's own clock, in milliseconds since 1970 (UTC)."""
    is_catching_up: bool
    """Whether the network may have committed more than this."""


@dataclass(frozen=True, slots=True)
class AuthenticRequest:
    """A fresh request that the present key of its grant's grantee has signed. Only `authenticate` makes them."""

    request: ReencryptionRequest
    """What is asked."""
    digest: bytes
    """Digest of the request."""
    grant: Grant
    """The grant that it names."""


def authenticate(view: ProxyView, signed: SignedRequest) -> AuthenticRequest | RefusalReason:
    """Tell whether a request comes from its grant's grantee, now (R1 and R2, but for replays)."""
    request = signed.request
    if not is_signed(view.chain_id, signed):
        return RefusalReason.BAD_SIGNATURE
    if view.is_catching_up:
        return RefusalReason.CATCHING_UP
    state = State(view.reader)
    grant = state.get(GRANTS, request.grant_id)
    if grant is None:
        return RefusalReason.UNKNOWN_GRANT
    if request.requester != signing_key_of(state, grant.terms.grantee):
        return RefusalReason.WRONG_GRANTEE
    if abs(request.issued_ms - view.clock_ms) > FRESHNESS_MS:
        return RefusalReason.STALE
    return AuthenticRequest(request, request_digest(view.chain_id, request), grant)


def judge(view: ProxyView, proxy: bytes, authentic: AuthenticRequest) -> RefusalReason | None:
    """Tell whether the grant allows what is asked (R3 to R6); None when it does. Pure."""
    request, grant = authentic.request, authentic.grant
    terms, state = grant.terms, State(view.reader)
    latest_ms = max(view.head_timestamp_ms, view.clock_ms)
    if proxy not in terms.proxies:
        return RefusalReason.NOT_A_PROXY
    if grant.revoked_height:
        return RefusalReason.REVOKED
    if view.head_timestamp_ms < terms.from_ms:
        return RefusalReason.NOT_YET
    if latest_ms >= terms.until_ms:
        return RefusalReason.EXPIRED
    if terms.emergency_approvals and not _is_awake(state, authentic, view.head_timestamp_ms, latest_ms):
        return RefusalReason.ASLEEP
    if request.purpose not in terms.purposes:
        return RefusalReason.WRONG_PURPOSE
    for wanted in request.records:
        record = state.get(RECORDS, numbered_key(terms.patient, wanted.sequence))
        if record is None or not _is_covered(grant, wanted.sequence, record):
            return RefusalReason.OUT_OF_SCOPE
        if record.envelope.capsule_digest != capsule_digest(wanted.capsule):
            return RefusalReason.WRONG_CAPSULE
    return None


def signing_key_of(state: State, party: bytes) -> bytes | None:
    """Return the key that signs for an institution or a patient at present, or None for an address that is neither's."""
    institution = state.get(INSTITUTIONS, party)
    if institution is not None:
        return institution.public_key
    patient = state.get(PATIENTS, party)
    return None if patient is None else patient.keyblock.signing_key


def _is_covered(grant: Grant, sequence: int, record: Record) -> bool:
    return covers(grant.terms, sequence) and record.generation == grant.terms.generation


def _is_awake(state: State, authentic: AuthenticRequest, head_timestamp_ms: int, latest_ms: int) -> bool:
    number, terms = authentic.request.emergency, authentic.grant.terms
    emergency = None if number is None else state.get(EMERGENCIES, numbered_key(terms.patient, number))
    if emergency is None:
        return False
    names_both = (emergency.grant_id, emergency.requester) == (authentic.request.grant_id, terms.grantee)
    return names_both and is_awake(emergency, head_timestamp_ms) and is_awake(emergency, latest_ms)


class ReplayWindow:
    """Remembers the authentic requests that can still be fresh, so that each is answered once.

    Bounded in all (`WINDOW_REQUESTS`) and for each grantee (`GRANTEE_REQUESTS`). Nobody else's requests come here: a stranger cannot
    fill it. A clock that is set back opens no door: what was forgotten stays refused.
    """

    def __init__(self, capacity: int = WINDOW_REQUESTS, per_grantee: int = GRANTEE_REQUESTS) -> None:
        self._capacity = capacity
        self._per_grantee = per_grantee
        self._seen: dict[bytes, bytes] = {}
        self._counts: dict[bytes, int] = {}
        self._by_end: list[tuple[int, bytes]] = []
        self._forgotten_ms = 0

    def __len__(self) -> int:
        return len(self._seen)

    def admit(self, authentic: AuthenticRequest, clock_ms: int) -> RefusalReason | None:
        """Take note of a request; tell why it cannot be answered, or None the first time."""
        return self._admit(authentic.digest, authentic.request.requester, authentic.request.issued_ms, clock_ms)

    def restore(self, entries: Iterable[AccessEntry], clock_ms: int) -> None:
        """Remember, after a restart, what was answered before: entries of the log, the newest first.

        The time of a request is not in the log; it was fresh then, so it is taken to be as late as it can have been.
        """
        for entry in entries:
            if entry.timestamp_ms + 2 * FRESHNESS_MS < clock_ms:
                break
            if entry.reason not in UNBOUNDED_REASONS:
                self._admit(entry.request_digest, entry.requester, entry.timestamp_ms + FRESHNESS_MS, clock_ms)

    def _admit(self, digest: bytes, grantee: bytes, issued_ms: int, clock_ms: int) -> RefusalReason | None:
        self._forget(clock_ms)
        if digest in self._seen:
            return RefusalReason.REPLAYED
        if issued_ms + FRESHNESS_MS <= self._forgotten_ms:
            return RefusalReason.STALE
        if len(self._seen) >= self._capacity or self._counts.get(grantee, 0) >= self._per_grantee:
            return RefusalReason.BUSY
        self._seen[digest] = grantee
        self._counts[grantee] = self._counts.get(grantee, 0) + 1
        heapq.heappush(self._by_end, (issued_ms + FRESHNESS_MS, digest))
        return None

    def _forget(self, clock_ms: int) -> None:
        while self._by_end and self._by_end[0][0] < clock_ms:
            end_ms, digest = heapq.heappop(self._by_end)
            self._forgotten_ms = max(self._forgotten_ms, end_ms)
            grantee = self._seen.pop(digest)
            self._counts[grantee] -= 1
            if not self._counts[grantee]:
                del self._counts[grantee]
