# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy at work: takes key fragments in, answers requests, forgets what was revoked, shows patients what it did.

R1 an answer leaves only after its entry is durable in the access log; when the log cannot be written, nothing leaves.
R2 nothing is served before the first sweep: a proxy that was away deletes the fragments of grants revoked meanwhile first.
R3 a fragment that was swept does not come back: what arrives with an older view of the chain than the last sweep's has to come again.
R4 what strangers can make a proxy write is bounded: beyond that their requests are dropped without an answer.
R5 what this institution reads itself, by way of its own node, is written down here as well, before it can be decrypted.

All calls block (an answer takes a sync of the disk and 0.6 ms a record) and are safe from several worker threads.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from ledger.acts import may_act
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput
from ledger.sharing import Grant, fragment_digest
from ledger.state import GRANTS, KEY_GENERATIONS, PATIENTS, State, numbered_key
from records.access_entries import NO_PATIENT, decode_query, fragments_digest, is_query_signed
from records.access_log import Access, AccessLog
from records.answers import encode_answer
from records.fragment_store import FragmentCorrupt, FragmentStore, Sweep
from records.grants import FragmentReceipt, decode_sealed, open_fragment, sign_receipt
from records.proxy import (
    AuthenticRequest,
    ProxyView,
    ReplayWindow,
    authenticate,
    judge,
)
from records.requests import (
    FRESHNESS_MS,
    UNBOUNDED_REASONS,
    RefusalReason,
    SignedRequest,
    decode_request,
    is_signed,
    request_digest,
)

REMEMBERED_READS = 1_024
"""Own requests of which it is remembered that they are written down: each goes to several proxies, within seconds."""
STRANGERS_BURST = 256
"""Refusals of strangers that are written down at once."""
STRANGERS_INTERVAL_MS = 1_000
"""Time after which another one may be: at 600 bytes each, an attack of a day adds 50 MB to the log."""


class FragmentRefused(InvalidInput):
    """A proxy does not take a key fragment; `reason` tells why, and whether to come again (`catching_up`, `unknown_grant`)."""

    def __init__(self, reason: RefusalReason, grant_id: bytes) -> None:
        super().__init__(f"the key fragment of grant {grant_id.hex()} is refused: {reason.value}")
        self.reason = reason


class QueryRefused(InvalidInput):
    """A proxy does not show its entries; `reason` tells why."""

    def __init__(self, reason: RefusalReason) -> None:
        super().__init__(f"the query of the access log is refused: {reason.value}")
        self.reason = reason


@dataclass(slots=True)
class _Allowance:
    """A token bucket in integers, driven by the caller's clock."""

    left: int = STRANGERS_BURST
    renewed_ms: int = 0

    def take(self, clock_ms: int) -> bool:
        gained = max(0, clock_ms - self.renewed_ms) // STRANGERS_INTERVAL_MS
        if gained:
            self.left = min(STRANGERS_BURST, self.left + gained)
            self.renewed_ms += gained * STRANGERS_INTERVAL_MS
        # A clock that was set back must not stop the renewal for as long.
        self.renewed_ms = min(self.renewed_ms, clock_ms)
        if not self.left:
            return False
        self.left -= 1
        return True


class ProxyDesk:
    """One institution's proxy; the node hands it bytes from peers and its view of the chain."""

    def __init__(
        self,
        *,
        chain_id: bytes,
        key: PrivateKey,
        encryption: ReencryptionKey,
        fragments: FragmentStore,
        log: AccessLog,
        clock_ms: int,
    ) -> None:
        """Begin to work, with the memory of the last minutes from the log.

        Args:
            chain_id: the chain.
            key: the institution's account key; signs receipts and the log.
            encryption: the institution's registered encryption key.
            fragments: open store of key fragments.
            log: open access log, with the same key.
            clock_ms: the present time.

        Raises:
            StoreError: the log cannot be read.
        """
        self._chain_id = chain_id
        self._key = key
        self._encryption = encryption
        self._fragments = fragments
        self._log = log
        self._window = ReplayWindow()
        self._window.restore(log.newest(), clock_ms)
        self._strangers = _Allowance()
        self._swept_height = -1
        # Guards the window, the allowance and the order of sweeps and arrivals; re-encryption runs outside.
        self._mutex = threading.Lock()
        self._noted: OrderedDict[bytes, None] = OrderedDict()
        self._noting = threading.Lock()

    @property
    def log(self) -> AccessLog:
        """The access log."""
        return self._log

    def note_read(self, raw: bytes, view: ProxyView) -> None:
        """Write down that this institution reads: its own signed request, which a proxy has answered; once for each request.

        Raises:
            InvalidInput: no request, or none that this institution's key has signed: nobody else can make it say that it has read.
            StoreError: the log cannot be written; what was read must not be handed out.
        """
        signed = decode_request(raw)
        request = signed.request
        if request.requester != self._key.public_key or not is_signed(self._chain_id, signed):
            raise InvalidInput("the request is not signed by this institution")
        grant = State(view.reader).get(GRANTS, request.grant_id)
        digest = request_digest(self._chain_id, request)
        # Held over the write: the answers of two proxies may come at the same time.
        with self._noting:
            if digest in self._noted:
                return
            self._log.append(self._access(view, signed, grant, None, ()))
            self._noted[digest] = None
            if len(self._noted) > REMEMBERED_READS:
                self._noted.popitem(last=False)

    def take_fragment(self, raw: bytes, view: ProxyView) -> bytes:
        """Open, verify and keep a key fragment that a patient sent; return the signed receipt.

        Raises:
            FragmentRefused: the grant is not on the chain (yet), is over, or has another proxy; or this node is catching up.
            InvalidFragment: the fragment is forged, exchanged or none.
            InvalidInput: the bytes are no sealed fragment, or not sealed to this proxy.
            StorageFull: as many fragments are kept as the operator allows.
            StoreError: the disk fails.
        """
        sealed = decode_sealed(raw)
        state = State(view.reader)
        grant = state.get(GRANTS, sealed.grant_id)
        if view.is_catching_up:
            raise FragmentRefused(RefusalReason.CATCHING_UP, sealed.grant_id)
        if grant is None:
            raise FragmentRefused(RefusalReason.UNKNOWN_GRANT, sealed.grant_id)
        if sealed.proxy != self._key.address:
            raise FragmentRefused(RefusalReason.NOT_A_PROXY, sealed.grant_id)
        reason = self._why_not_to_keep(grant, view)
        if reason is not None:
            raise FragmentRefused(reason, sealed.grant_id)
        terms = grant.terms
        generation = state.get(KEY_GENERATIONS, numbered_key(terms.patient, terms.generation))
        assert generation is not None, "the chain takes no grant of keys that the patient never had"
        fragment = open_fragment(
            sealed, self._encryption, self._key.address, grant, generation.keyblock.reencryption_key
        )
        with self._mutex:
            if view.head_height < self._swept_height:
                raise FragmentRefused(RefusalReason.CATCHING_UP, sealed.grant_id)
            self._fragments.put(sealed.grant_id, fragment, terms.until_ms)
        receipt = FragmentReceipt(
            grant_id=sealed.grant_id,
            proxy=self._key.address,
            fragment_digest=fragment_digest(bytes(fragment)),
            head_height=view.head_height,
            timestamp_ms=view.clock_ms,
        )
        return sign_receipt(self._chain_id, self._key, receipt)

    def answer(self, raw: bytes, view: ProxyView) -> bytes | None:
        """Re-encrypt or refuse; return the answer, whose entry is durable. None: drop the request, strangers have asked enough.

        Raises:
            InvalidInput: the bytes are no request.
            StoreError: the log or the fragments cannot be used; nothing must be answered.
        """
        signed = decode_request(raw)
        found = self._authenticate(view, signed)
        if isinstance(found, RefusalReason):
            return self._refuse_stranger(view, signed, found)
        reason = judge(view, self._key.address, found)
        fragments = () if reason else self._reencrypt(found)
        if fragments is None:
            reason, fragments = RefusalReason.NO_FRAGMENT, ()
        entry = self._log.append(self._access(view, signed, found.grant, reason, fragments))
        return encode_answer(entry, fragments)

    def sweep(self, view: ProxyView) -> Sweep:
        """Delete the fragments of revoked and ended grants; call it at the start, and when grants were revoked or time has passed.

        The node then confirms the deletions in `owed` on the chain, and comes again while there are as many as one sweep
        works on.

        Raises:
            StoreError: the disk fails.
        """
        with self._mutex:
            sweep = self._fragments.sweep(view.reader, self._key.address, view.head_timestamp_ms)
            if not view.is_catching_up:
                self._swept_height = max(self._swept_height, view.head_height)
        return sweep

    def show_log(self, raw: bytes, view: ProxyView) -> bytes:
        """Return the page of entries about a patient that the patient, or a delegate who may review, asks for.

        Raises:
            QueryRefused: not signed by who may ask, not now, or to another proxy.
            InvalidInput: the bytes are no query.
            StoreError: the log cannot be read.
        """
        signed = decode_query(raw)
        query = signed.query
        if not is_query_signed(view.chain_id, signed):
            raise QueryRefused(RefusalReason.BAD_SIGNATURE)
        if query.proxy != self._key.address:
            raise QueryRefused(RefusalReason.NOT_A_PROXY)
        if abs(query.issued_ms - view.clock_ms) > FRESHNESS_MS:
            raise QueryRefused(RefusalReason.STALE)
        state = State(view.reader)
        patient, latest_ms = state.get(PATIENTS, query.patient), max(view.clock_ms, view.head_timestamp_ms)
        if patient is None or not may_act(state, patient, query.requester, "review", latest_ms):
            raise QueryRefused(RefusalReason.NOT_PERMITTED)
        return encode(self._log.page(query.patient, query.start, view.clock_ms))

    def _why_not_to_keep(self, grant: Grant, view: ProxyView) -> RefusalReason | None:
        if self._key.address not in grant.terms.proxies:
            return RefusalReason.NOT_A_PROXY
        if grant.revoked_height:
            return RefusalReason.REVOKED
        return RefusalReason.EXPIRED if view.head_timestamp_ms >= grant.terms.until_ms else None

    def _authenticate(self, view: ProxyView, signed: SignedRequest) -> AuthenticRequest | RefusalReason:
        found = authenticate(view, signed)
        with self._mutex:
            if isinstance(found, RefusalReason):
                return found
            if self._swept_height < 0:
                return RefusalReason.CATCHING_UP
            return self._window.admit(found, view.clock_ms) or found

    def _refuse_stranger(self, view: ProxyView, signed: SignedRequest, reason: RefusalReason) -> bytes | None:
        assert reason in UNBOUNDED_REASONS, f"{reason} takes a grantee"
        with self._mutex:
            if not self._strangers.take(view.clock_ms):
                return None
        grant = State(view.reader).get(GRANTS, signed.request.grant_id)
        return encode_answer(self._log.append(self._access(view, signed, grant, reason, ())))

    def _reencrypt(self, authentic: AuthenticRequest) -> tuple[bytes, ...] | None:
        """Return a capsule fragment for each record, or None without a key fragment that is the grant's."""
        try:
            fragment = self._fragments.get(authentic.request.grant_id)
        except FragmentCorrupt:
            return None
        if fragment is None:
            return None
        terms = authentic.grant.terms
        if fragment_digest(bytes(fragment)) != terms.fragment_digests[terms.proxies.index(self._key.address)]:
            return None
        return tuple(fragment.reencrypt(record.capsule) for record in authentic.request.records)

    def _access(
        self,
        view: ProxyView,
        signed: SignedRequest,
        grant: Grant | None,
        reason: RefusalReason | None,
        fragments: tuple[bytes, ...],
    ) -> Access:
        request = signed.request
        return Access(
            patient=NO_PATIENT if grant is None else grant.terms.patient,
            grant_id=request.grant_id,
            records=tuple(record.sequence for record in request.records),
            requester=request.requester,
            purpose=request.purpose,
            emergency=request.emergency,
            reason=reason,
            request_digest=request_digest(self._chain_id, request),
            fragments_digest=fragments_digest(fragments),
            head_height=view.head_height,
            timestamp_ms=view.clock_ms,
        )
