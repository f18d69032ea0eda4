# SPDX-License-Identifier: GPL-3.0-or-later
"""What a proxy writes down, signs and hands out: one entry for each request it answers, re-encrypted or refused.

An institution that reads by way of its own node has an entry about itself in its own log, too: it is no proxy there, it was the reader.

Entries are chained twice: to the proxy's entry before, and to its entry before about the same patient. The first chain is for the
operator and for auditors, who see everything. The second lets a patient, who sees only what concerns the patient, tell that
nothing was left out, changed or reordered. A signed head says how long both chains are.

A proxy could rewrite its whole log: it holds the key. But each entry was sent with the answer it is about, so the grantee has it; and
a patient who has looked once holds a signed head that a rewritten log contradicts.
"""

from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.crypto.keys import ADDRESS_BYTES, PrivateKey, address_of, verify
from ledger.errors import InvalidInput
from records.requests import MAX_REQUEST_RECORDS, Purpose, RefusalReason

MAX_ENTRY_BYTES = 2 * 1024
"""An entry has about 450 bytes, and 9 more for each record."""
MAX_PAGE_ENTRIES = 256
"""Entries of one page."""
MAX_PAGE_BYTES = 512 * 1024
"""As many entries of the largest size, and the head."""
MAX_QUERY_BYTES = 512
NO_PATIENT = bytes(ADDRESS_BYTES)
"""In place of the patient where the grant is unknown."""


class AccessEntry(Wire, frozen=True):
    """What was asked of a proxy, and what it did."""

    proxy: Address
    """The institution whose log this is."""
    number: Uint
    """Place in the proxy's log, from 0."""
    previous: Digest
    """Hash of the entry before; of the first one 32 zero bytes."""
    patient: Address
    """Whose grant it is; 20 zero bytes when the grant is unknown."""
    patient_number: Uint
    """Place among the proxy's entries about this patient, from 0."""
    patient_previous: Digest
    """Hash of the proxy's entry before about this patient; of the first one 32 zero bytes."""
    grant_id: Digest
    """The grant that the request names."""
    records: Annotated[tuple[Uint, ...], msgspec.Meta(min_length=1, max_length=MAX_REQUEST_RECORDS)]
    """Sequence numbers of the records that were asked for, rising."""
    requester: PublicKeyBytes
    """Key that the request names. It has signed the request, unless the reason is `bad_signature`."""
    purpose: Purpose
    """Purpose of use that the request names."""
    emergency: Uint | None
    """The emergency that the request names."""
    reason: RefusalReason | None
    """Nil when the records were re-encrypted; else why not."""
    request_digest: Digest
    """Digest of the request, which its requester has signed."""
    fragments_digest: Digest
    """Digest of the capsule fragments that were handed out, so that a wrong one convicts the proxy; 32 zero bytes for a refusal."""
    head_height: Uint
    """Height of the newest microblock that the proxy had committed when it decided."""
    timestamp_ms: Uint
    """Time by the proxy's clock, in milliseconds since 1970 (UTC)."""


class SignedEntry(Wire, frozen=True):
    """An entry as it is kept and handed out."""

    entry: AccessEntry
    """The entry."""
    signature: SignatureBytes
    """The proxy's signature of the entry's hash on this chain."""


class AccessHead(Wire, frozen=True):
    """How long a proxy's log is, as a patient may see it."""

    proxy: Address
    """The institution whose log this is."""
    count: Uint
    """Number of all entries."""
    last: Digest
    """Hash of the newest entry; 32 zero bytes while there is none."""
    patient: Address
    """The patient."""
    patient_count: Uint
    """Number of entries about the patient."""
    patient_last: Digest
    """Hash of the newest entry about the patient; 32 zero bytes while there is none."""
    timestamp_ms: Uint
    """Time by the proxy's clock, in milliseconds since 1970 (UTC)."""


class AccessPage(Wire, frozen=True):
    """Entries about one patient, and the signed head."""

    entries: Annotated[tuple[SignedEntry, ...], msgspec.Meta(max_length=MAX_PAGE_ENTRIES)]
    """Entries in order, from the one that was asked for."""
    head: AccessHead
    """The head when the page was made."""
    signature: SignatureBytes
    """The proxy's signature of the head on this chain."""


class AccessQuery(Wire, frozen=True):
    """A patient, or who may review for the patient, asks a proxy for its entries about the patient."""

    proxy: Address
    """The proxy that is asked."""
    patient: Address
    """The patient."""
    requester: PublicKeyBytes
    """Key that signs: the patient's present one, or that of a delegate with the power to review."""
    start: Uint
    """First `patient_number` that is wanted."""
    issued_ms: Uint
    """Time of the query by the requester's clock, in milliseconds since 1970 (UTC)."""


class SignedQuery(Wire, frozen=True):
    """A query on the wire."""

    query: AccessQuery
    """What is asked."""
    signature: SignatureBytes
    """The requester's signature of the query on this chain."""


class TrailBroken(InvalidInput):
    """What a proxy shows of its log contradicts itself, or what it showed before: the proxy lies, or its log was damaged."""


class Trail:
    """A patient's knowledge of one proxy's log: how far it was read and verified. Sans-IO; for clients."""

    def __init__(self, chain_id: bytes, proxy: bytes, proxy_key: bytes, patient: bytes) -> None:
        """Begin with nothing read; `proxy_key` is the proxy's account key from the chain."""
        self._chain_id = chain_id
        self._proxy = proxy
        self._proxy_key = proxy_key
        self._patient = patient
        self._count = 0
        self._last = ZERO_DIGEST
        self._promised = 0
        # Heads that were signed before their entries were read; each page that is read removes at least its own.
        self._heads = {0: ZERO_DIGEST}

    @property
    def next_number(self) -> int:
        """First entry that was not read yet: `start` of the next query."""
        return self._count

    def is_complete(self) -> bool:
        """Tell whether all that the newest head promises was read."""
        return self._count == self._promised

    def advance(self, page: AccessPage) -> tuple[AccessEntry, ...]:
        """Verify the next page and return its entries.

        Raises:
            TrailBroken: an entry is missing, changed, out of order, not signed or of another patient; or the log is shorter
                than it was.
        """
        head = page.head
        if (head.proxy, head.patient) != (self._proxy, self._patient):
            raise TrailBroken(f"the head is not that of patient {self._patient.hex()} at {self._proxy.hex()}")
        if not verify(self._proxy_key, head_digest(self._chain_id, head), page.signature):
            raise TrailBroken(f"the head is not signed by proxy {self._proxy.hex()}")
        if head.patient_count < self._promised:
            raise TrailBroken(f"proxy {self._proxy.hex()} shows {head.patient_count} entries, and had {self._promised}")
        heads = {head.patient_count: head.patient_last} | self._heads
        if heads[head.patient_count] != head.patient_last:
            raise TrailBroken(f"proxy {self._proxy.hex()} has signed two heads of {head.patient_count} entries")
        count, last = self._count, self._last
        for signed in page.entries:
            last = self._check(signed, count, last)
            count += 1
            if heads.get(count, last) != last:
                raise TrailBroken(f"entry {count - 1} is not the one that a head of proxy {self._proxy.hex()} names")
        if count > head.patient_count or (not page.entries and count < head.patient_count):
            raise TrailBroken(f"the head promises {head.patient_count} entries; shown are those up to {count}")
        self._count, self._last, self._promised = count, last, head.patient_count
        self._heads = {place: digest for place, digest in heads.items() if place >= count}
        return tuple(signed.entry for signed in page.entries)

    def _check(self, signed: SignedEntry, number: int, previous: bytes) -> bytes:
        entry = signed.entry
        if (entry.proxy, entry.patient) != (self._proxy, self._patient):
            raise TrailBroken(f"entry {number} is of another proxy or patient")
        if (entry.patient_number, entry.patient_previous) != (number, previous):
            raise TrailBroken(f"entry {number} does not follow the one before: something was left out or changed")
        if not is_entry_signed(self._chain_id, signed, self._proxy_key):
            raise TrailBroken(f"entry {number} is not signed by proxy {self._proxy.hex()}")
        return entry_hash(entry)


def is_own_read(entry: AccessEntry) -> bool:
    """Tell whether an institution has written down its own reading: nobody is proxy of a grant to itself, so nothing else looks so."""
    return entry.reason is None and address_of(entry.requester) == entry.proxy


def answer_of(entry: AccessEntry) -> str:
    """Return what an institution did, in a word or two."""
    if entry.reason is not None:
        return f"refused: {entry.reason.value}"
    return "read" if is_own_read(entry) else "re-encrypted"


def entry_hash(entry: AccessEntry) -> bytes:
    """Return the 32-byte hash that links entries."""
    return tagged_hash(Tag.ACCESS_ENTRY, encode(entry))


def sign_entry(chain_id: bytes, key: PrivateKey, entry: AccessEntry) -> SignedEntry:
    """Return an entry signed by its proxy."""
    return SignedEntry(entry, key.sign(tagged_hash(Tag.ACCESS_ENTRY_SIGNATURE, chain_id, entry_hash(entry))))


def is_entry_signed(chain_id: bytes, signed: SignedEntry, proxy_key: bytes) -> bool:
    """Tell whether the proxy with that key has signed an entry."""
    digest = tagged_hash(Tag.ACCESS_ENTRY_SIGNATURE, chain_id, entry_hash(signed.entry))
    return verify(proxy_key, digest, signed.signature)


def head_digest(chain_id: bytes, head: AccessHead) -> bytes:
    """Return the digest of a head that the proxy signs."""
    return tagged_hash(Tag.ACCESS_HEAD, chain_id, encode(head))


def fragments_digest(fragments: tuple[bytes, ...]) -> bytes:
    """Return the digest of capsule fragments in the order of the request's records."""
    return tagged_hash(Tag.CAPSULE_FRAGMENTS, *fragments) if fragments else ZERO_DIGEST


def sign_query(
    chain_id: bytes, key: PrivateKey, *, proxy: bytes, patient: bytes, start: int, issued_ms: int
) -> SignedQuery:
    """Return a signed query."""
    query = AccessQuery(proxy, patient, key.public_key, start, issued_ms)
    return SignedQuery(query, key.sign(tagged_hash(Tag.ACCESS_QUERY, chain_id, encode(query))))


def is_query_signed(chain_id: bytes, signed: SignedQuery) -> bool:
    """Tell whether the key that a query names has signed it."""
    digest = tagged_hash(Tag.ACCESS_QUERY, chain_id, encode(signed.query))
    return verify(signed.query.requester, digest, signed.signature)


decode_entry = decoder(SignedEntry, MAX_ENTRY_BYTES)
"""Decode an entry; raises `InvalidInput`."""
decode_page = decoder(AccessPage, MAX_PAGE_BYTES)
"""Decode a page; raises `InvalidInput`."""
decode_query = decoder(SignedQuery, MAX_QUERY_BYTES)
"""Decode a query; raises `InvalidInput`."""
