# SPDX-License-Identifier: GPL-3.0-or-later
"""Grants: a patient lets somebody read records by way of m of n proxies, until it ends or is revoked.

The chain holds who may read what, for what and how long, and the digests of the key fragments; the fragments themselves go to the proxies,
one each, encrypted. A proxy re-encrypts only while the grant is valid on its own copy of the chain.
"""

from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, Uint, Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash

MAX_PROXIES = 16
"""More than any consortium needs for one grant; a grant with as many fits into a transaction many times over."""
MIN_THRESHOLD = 2
"""One fragment alone must never be enough: no node could be trusted not to use it."""
MAX_GRANT_RECORDS = 256
"""Records that one grant can name; for more there is `all_records`."""
MAX_PURPOSES = 8
"""Purposes of one grant."""
PURPOSES = ("COVERAGE", "ETREAT", "HMARKT", "HOPERAT", "HPAYMT", "HRESCH", "PATRQT", "PUBHLTH", "TREAT")
"""Purposes of use, codes of HL7's v3-PurposeOfUse: FHIR names the same ones in `Consent` and `AuditEvent`."""

Threshold = Annotated[int, msgspec.Meta(ge=MIN_THRESHOLD, le=MAX_PROXIES)]


class GrantTerms(Wire, frozen=True):
    """What a patient agrees to."""

    patient: Address
    """Whose records."""
    generation: Uint
    """The patient's keys that the fragments are for: only records of this generation can be read with them."""
    grantee: Address
    """Who may read: a registered institution or patient."""
    receiving_key: PublicKeyBytes
    """The grantee's Umbral key, as registered, that the fragments re-encrypt to."""
    all_records: bool
    """Whether every record of the generation may be read, also later ones; `records` is then empty."""
    records: Annotated[tuple[Uint, ...], msgspec.Meta(max_length=MAX_GRANT_RECORDS)]
    """Sequence numbers of the records that may be read, rising."""
    purposes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_PURPOSES)]
    """Purposes of use that reading is allowed for, each one of `PURPOSES`, in alphabetical order."""
    from_ms: Uint
    """Beginning, in milliseconds since 1970 (UTC)."""
    until_ms: Uint
    """End, in milliseconds since 1970 (UTC): valid while from_ms ≤ time < until_ms."""
    threshold: Threshold
    """m: how many proxies must re-encrypt."""
    proxies: Annotated[tuple[Address, ...], msgspec.Meta(min_length=MIN_THRESHOLD, max_length=MAX_PROXIES)]
    """The n institutions that hold a key fragment each; the grantee is none of them."""
    fragment_digests: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=MIN_THRESHOLD, max_length=MAX_PROXIES)]
    """Digest of each proxy's key fragment, in the order of the proxies."""
    emergency_approvals: Annotated[int, msgspec.Meta(ge=0, le=MAX_PROXIES)]
    """0 for an ordinary grant. Else the grant sleeps: it holds only while so many of its proxies have approved an emergency of the
    grantee on the chain."""


class Grant(Wire, frozen=True):
    """State: a grant."""

    number: Uint
    """Place among the patient's grants, from 0."""
    terms: GrantTerms
    """What was agreed to."""
    verifying_key: PublicKeyBytes
    """Key that signed the grant (the patient's, or a delegate's) and the key fragments."""
    granted_height: Uint
    """Height of the microblock that committed the grant."""
    granted_timestamp_ms: Uint
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    revoked_height: Uint
    """Height of the microblock that committed the revocation; 0 while there is none."""
    deletions: Annotated[tuple[Uint, ...], msgspec.Meta(max_length=MAX_PROXIES)]
    """For each proxy the height at which it confirmed that its fragment is deleted; 0 while it has not."""
    emergency_count: Uint
    """Number of emergencies opened for this grant."""
    newest_emergency: Uint
    """Number, among the patient's, of the one opened last; 0 while there was none."""


class Listed(Wire, frozen=True):
    """State: an entry of an index; what it stands for is in its key."""

    grant_id: Digest
    """The grant that the entry leads to."""


def grant_id(terms: GrantTerms) -> bytes:
    """Return the 32-byte identifier of a grant; the fragments' digests make it one of its kind."""
    return tagged_hash(Tag.GRANT, encode(terms))


def fragment_digest(fragment: bytes) -> bytes:
    """Return the 32-byte digest of a key fragment's bytes."""
    return tagged_hash(Tag.KEY_FRAGMENT, fragment)


def covers(terms: GrantTerms, sequence: int) -> bool:
    """Tell whether a grant is about a record; that the record is of the grant's generation is for the caller to check."""
    return terms.all_records or sequence in terms.records


def is_within(terms: GrantTerms, time_ms: int) -> bool:
    """Tell whether a time lies within a grant's."""
    return terms.from_ms <= time_ms < terms.until_ms
