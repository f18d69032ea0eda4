# SPDX-License-Identifier: GPL-3.0-or-later
"""Access log: who looked at a patient's records, in a chain for each patient that nobody can thin out.

A writer (a proxy, an institution) logs one access per operation. The state holds only the head of each patient's chain: count and a
digest over all accesses in order. The accesses themselves are in the published data; whoever has them recomputes the head, so a missing
one shows.
"""

from typing import Annotated

import msgspec

from contracts.machine import Context, EntryKind, KeyPart, Machine, Outcome, View, done, refused
from ledger.codec import Address, Digest, Uint, Wire, decoder, encode
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.crypto.keys import ADDRESS_BYTES

MAX_WRITERS = 32
"""Proxies and institutions that log into one contract; fills two thirds of the parameters' room."""


class AccessLogParameters(Wire, frozen=True):
    """Who may log."""

    writers: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_WRITERS)]
    """Accounts that may log, in ascending order; none for everybody."""


class LogAccess(Wire, frozen=True, tag=1):
    """Somebody looked, or was refused."""

    patient: Address
    """The patient whose records they are."""
    reader: Address
    """Who looked."""
    entry: Digest
    """Digest of the writer's own entry: grant, records and purpose stand there."""
    is_refused: bool
    """Whether the access was refused."""


class ReviewAccesses(Wire, frozen=True, tag=2):
    """The patient has looked through the log up to a number."""

    count: Uint
    """How many accesses."""


class AccessHead(Wire, frozen=True):
    """End of one patient's chain."""

    count: Uint
    """Accesses so far, refused ones included."""
    refused_count: Uint
    """Refused ones among them."""
    reviewed_count: Uint
    """How many the patient has looked through."""
    last_ms: Uint
    """Time of the newest, in milliseconds since 1970 (UTC)."""
    digest: Digest
    """Digest over all of them, in order."""


_NOTHING = AccessHead(0, 0, 0, 0, ZERO_DIGEST)
_decode_head = decoder(AccessHead, 128, own=True)


def head_of(view: View, patient: bytes) -> AccessHead:
    """Return the end of a patient's chain."""
    value = view.get(patient)
    return _NOTHING if value is None else _decode_head(value)


def next_digest(digest: bytes, writer: bytes, time_ms: int, access: LogAccess) -> bytes:
    """Return the digest of a chain after one more access."""
    return tagged_hash(Tag.OFFCHAIN_ACCESS, digest, writer, time_ms.to_bytes(8, "big"), encode(access))


def apply(view: View, context: Context[AccessLogParameters], operation: LogAccess | ReviewAccesses) -> Outcome:
    """Log an access, answered with its number in the patient's chain; or take note of a review."""
    if isinstance(operation, ReviewAccesses):
        return _review(view, context.sender, operation.count)
    writers = context.parameters.writers
    if context.is_chain or (writers and context.sender not in writers):
        return refused("not_a_writer")
    head = head_of(view, operation.patient)
    following = AccessHead(
        head.count + 1,
        head.refused_count + operation.is_refused,
        head.reviewed_count,
        context.time_ms,
        next_digest(head.digest, context.sender, context.time_ms, operation),
    )
    view.put(operation.patient, encode(following))
    return done(encode(following.count))


def _review(view: View, patient: bytes, count: int) -> Outcome:
    head = head_of(view, patient)
    if not head.reviewed_count < count <= head.count:
        return refused("nothing_to_review")
    view.put(patient, encode(msgspec.structs.replace(head, reviewed_count=count)))
    return done()


ACCESS_LOG: Machine[AccessLogParameters, LogAccess | ReviewAccesses] = Machine(
    "access_log",
    1,
    AccessLogParameters,
    LogAccess | ReviewAccesses,
    apply,
    entries=(EntryKind("accesses", b"", (KeyPart("patient", ADDRESS_BYTES),), AccessHead),),
)
"""The machine."""
