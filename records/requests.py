# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reader asks the proxies of a grant, signed, and why a proxy refuses.

One request goes to every proxy of the grant; each answers for itself. The records of a request stand or fall together.
"""

import itertools
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec

from ledger.codec import Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.reencryption import CAPSULE_BYTES
from ledger.errors import InvalidInput

MAX_REQUEST_RECORDS = 64
"""Records of one request: a proxy works about 40 ms on them, and the answer has 25 KB."""
MAX_REQUEST_BYTES = 16 * 1024
"""Twice the largest request, which is mostly capsules."""
FRESHNESS_MS = 120_000
"""How far the time of a request may lie from a proxy's clock, in milliseconds. A proxy remembers requests for twice as long."""
NONCE_BYTES = 16

CapsuleBytes = Annotated[bytes, msgspec.Meta(min_length=CAPSULE_BYTES, max_length=CAPSULE_BYTES)]
Purpose = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9]{1,16}\Z")]
"""A code of `ledger.sharing.PURPOSES`; any other is a wrong one, and is refused as such."""


class RefusalReason(StrEnum):
    """Why a proxy does not do what it is asked; the names are stable, reach clients and stand in access logs."""

    BAD_SIGNATURE = "bad_signature"
    """The request is not signed by the key that it names."""
    CATCHING_UP = "catching_up"
    """The proxy does not know the newest state yet: a grant may have been revoked meanwhile."""
    UNKNOWN_GRANT = "unknown_grant"
    """No grant of that name has been committed."""
    WRONG_GRANTEE = "wrong_grantee"
    """Signed, but not by the present key of the grant's grantee."""
    STALE = "stale"
    """The time of the request is too far from the proxy's clock."""
    REPLAYED = "replayed"
    """The same request was here before."""
    BUSY = "busy"
    """The grantee has asked more often than a proxy remembers requests for."""
    NOT_A_PROXY = "not_a_proxy"
    """The institution asked is no proxy of the grant."""
    REVOKED = "revoked"
    """The grant was revoked."""
    NOT_YET = "not_yet"
    """The grant begins later."""
    EXPIRED = "expired"
    """The grant has ended."""
    ASLEEP = "asleep"
    """The grant is for emergencies, and no approved emergency of the grantee is under way."""
    WRONG_PURPOSE = "wrong_purpose"
    """The grant does not name the purpose of use."""
    OUT_OF_SCOPE = "out_of_scope"
    """The grant is not about one of the records: not named, of other keys, or not there."""
    WRONG_CAPSULE = "wrong_capsule"
    """A capsule is not the record's."""
    NO_FRAGMENT = "no_fragment"
    """The proxy holds no key fragment of the grant: it never came, or it was deleted."""
    NOT_PERMITTED = "not_permitted"
    """For the access log: asked neither by the patient nor by a delegate who may review."""


UNBOUNDED_REASONS = frozenset(
    {
        RefusalReason.BAD_SIGNATURE,
        RefusalReason.CATCHING_UP,
        RefusalReason.UNKNOWN_GRANT,
        RefusalReason.WRONG_GRANTEE,
        RefusalReason.STALE,
        RefusalReason.REPLAYED,
        RefusalReason.BUSY,
    }
)
"""Refusals that anybody can cause as often as he likes. Each of the others takes a new signature of a grant's grantee and a place in the
proxy's memory."""


class RequestedRecord(Wire, frozen=True):
    """One record that the requester wants to read."""

    sequence: Uint
    """Its place in the patient's chain."""
    capsule: CapsuleBytes
    """Its Umbral capsule, from the blob."""


class ReencryptionRequest(Wire, frozen=True):
    """What a grantee asks of the proxies of a grant."""

    requester: PublicKeyBytes
    """Key that signs: the present account key of the grant's grantee."""
    grant_id: Digest
    """The grant."""
    emergency: Uint | None
    """For a sleeping grant, which of the patient's emergencies has woken it; else nil."""
    purpose: Purpose
    """Purpose of use."""
    records: Annotated[tuple[RequestedRecord, ...], msgspec.Meta(min_length=1, max_length=MAX_REQUEST_RECORDS)]
    """What is wanted, by rising sequence number."""
    issued_ms: Uint
    """Time of the request by the requester's clock, in milliseconds since 1970 (UTC)."""
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    """Drawn at random: no two requests are the same."""


class SignedRequest(Wire, frozen=True):
    """A request on the wire."""

    request: ReencryptionRequest
    """What is asked."""
    signature: SignatureBytes
    """The requester's signature of `request_digest`."""


def sign_request(
    chain_id: bytes,
    key: PrivateKey,
    *,
    grant_id: bytes,
    purpose: str,
    records: Iterable[tuple[int, bytes]],
    issued_ms: int,
    nonce: bytes,
    emergency: int | None = None,
) -> SignedRequest:
    """Return a signed request for records, given as sequence number and capsule in any order.

    Raises:
        InvalidInput: no record, too many, one of them twice, or something of a wrong size.
    """
    wanted = tuple(RequestedRecord(*record) for record in sorted(records))
    request = ReencryptionRequest(key.public_key, grant_id, emergency, purpose, wanted, issued_ms, nonce)
    signed = SignedRequest(request, key.sign(request_digest(chain_id, request)))
    return decode_request(encode(signed))


def request_digest(chain_id: bytes, request: ReencryptionRequest) -> bytes:
    """Return the 32-byte digest that names a request and that the requester signs."""
    return tagged_hash(Tag.REENCRYPTION_REQUEST, chain_id, encode(request))


def decode_request(raw: bytes) -> SignedRequest:
    """Decode a request; that it is authentic is for `records.proxy` to check. Raises `InvalidInput`."""
    signed = _decode(raw)
    sequences = [record.sequence for record in signed.request.records]
    if any(left >= right for left, right in itertools.pairwise(sequences)):
        raise InvalidInput(f"the records of a request rise, each once; these are {sequences}")
    return signed


def is_signed(chain_id: bytes, signed: SignedRequest) -> bool:
    """Tell whether the key that a request names has signed it."""
    return verify(signed.request.requester, request_digest(chain_id, signed.request), signed.signature)


_decode = decoder(SignedRequest, MAX_REQUEST_BYTES)
