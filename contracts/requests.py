# SPDX-License-Identifier: GPL-3.0-or-later
"""What users sign: requests of one or several operations, numbered without gaps.

A sender's operations are numbered from 0 in each contract. A request names the number of its first one and counts only when that is
the next: so a request serves once, in the order that its sender meant, whoever sends it and how often.
"""

from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from ledger.codec import Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, address_of, verify
from ledger.errors import InvalidInput
from ledger.offchain import (
    CHAIN,
    MAX_OPERATION_BYTES,
    MAX_OPERATIONS,
    MAX_REQUEST_BYTES,
    ChainOperations,
    InvalidRequest,
    OperationList,
    request_digest,
)


class Operations(Wire, frozen=True):
    """What a user signs."""

    contract_id: Digest
    """The contract."""
    sender: PublicKeyBytes
    """Public key of the user."""
    first_sequence: Uint
    """Number of the user's operations in this contract before these."""
    operations: OperationList
    """The operations, in order."""


class SignedOperations(Wire, frozen=True, tag=1):
    """A user's request on the wire."""

    content: Operations
    """The signed content."""
    signature: SignatureBytes
    """The user's signature of `offchain-request-signature ‖ chain id ‖ content`."""


Request = SignedOperations | ChainOperations

# A struct of two with a tag: array byte and tag before the content; two bytes of bin header and 64 of signature after it.
_CONTENT_START, _CONTENT_END = 2, -66
_decode_request: Callable[[bytes], Request] = decoder(cast("type[Request]", Request), MAX_REQUEST_BYTES, name="request")


class CheckedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose shape and signature are right for one contract; made by `check_request` only."""

    digest: bytes
    """32-byte identifier."""
    raw: bytes
    """The bytes received."""
    sender: bytes
    """Address of the sender; `CHAIN` for the chain's own."""
    first_sequence: int
    """Number of its first operation."""
    operations: tuple[bytes, ...]
    """The operations, encoded."""

    @property
    def is_chain(self) -> bool:
        """Whether the chain made it."""
        return self.sender == CHAIN


def _signing_digest(chain_id: bytes, content: bytes) -> bytes:
    return tagged_hash(Tag.OFFCHAIN_REQUEST_SIGNATURE, chain_id, content)


def sign_request(
    chain_id: bytes, key: PrivateKey, contract_id: bytes, first_sequence: int, operations: Sequence[object]
) -> bytes:
    """Return the bytes of a request; each operation is a struct of the machine, or its encoding. Raises `InvalidInput`."""
    encoded = tuple(item if isinstance(item, bytes) else encode(item) for item in operations)
    if not 1 <= len(encoded) <= MAX_OPERATIONS:
        raise InvalidInput(f"{len(encoded)} operations; a request has 1 to {MAX_OPERATIONS}: split it")
    largest = max(map(len, encoded))
    if largest > MAX_OPERATION_BYTES:
        raise InvalidInput(f"an operation has {largest} bytes; at most {MAX_OPERATION_BYTES} are allowed")
    content = Operations(contract_id, key.public_key, first_sequence, encoded)
    raw = encode(SignedOperations(content, key.sign(_signing_digest(chain_id, encode(content)))))
    if len(raw) > MAX_REQUEST_BYTES:
        raise InvalidInput(f"the request has {len(raw)} bytes; at most {MAX_REQUEST_BYTES} are allowed: split it")
    return raw


def check_request(chain_id: bytes, contract_id: bytes, raw: bytes) -> CheckedRequest:
    """Check shape, contract and signature; raises `InvalidRequest`. About 60 µs, nearly all in C."""
    try:
        request = _decode_request(raw)
    except InvalidInput as error:
        raise InvalidRequest(str(error)) from error
    content = request.content if isinstance(request, SignedOperations) else request
    if content.contract_id != contract_id:
        raise InvalidRequest(f"request is for contract {content.contract_id.hex()}, this is {contract_id.hex()}")
    sender = CHAIN
    if isinstance(request, SignedOperations):
        digest = _signing_digest(chain_id, raw[_CONTENT_START:_CONTENT_END])
        if not verify(request.content.sender, digest, request.signature):
            raise InvalidRequest(f"request is not signed by {request.content.sender.hex()} for this chain")
        sender = address_of(request.content.sender)
    return CheckedRequest(request_digest(raw), raw, sender, content.first_sequence, content.operations)
