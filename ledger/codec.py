# SPDX-License-Identifier: GPL-3.0-or-later
"""Canonical MessagePack: one byte string per value.

Structs are arrays in field order, unions carry an integer tag in front, integers take their shortest form. Decoding
refuses whatever does not re-encode to itself, so that an identifier (a hash of bytes) names one value only.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from ledger.errors import InvalidInput

T = TypeVar("T")

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A 32-byte hash."""
Address = Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
"""An account: the first 20 bytes of the tagged hash of its public key."""
PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
"""A compressed secp256k1 point."""
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
"""A compact (r ‖ s), low-s secp256k1 signature."""
RevealKeyBytes = Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]
"""A compressed point of BLS12-381's first group."""
RevealBytes = Annotated[bytes, msgspec.Meta(min_length=96, max_length=96)]
"""A compressed point of BLS12-381's second group: a unique signature."""
Uint = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A count, amount, height or time; 63 bits, so that every language's signed 64-bit integer holds it."""
Uint256 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A 256-bit unsigned integer, big-endian."""


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of every wire and disk type: an immutable array of fields in declaration order."""


_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """Return the canonical encoding of `value`."""
    return _encoder.encode(value)


def decoder(kind: type[T], limit_bytes: int, *, name: str = "", own: bool = False) -> Callable[[bytes], T]:
    """Return a function that decodes canonical bytes of one `kind`, built once for hot paths.

    `name` stands in errors in place of the type's name. `own` is for bytes that `encode` made here, such as values of the
    store: their form is not proved again.

    The function raises `InvalidInput` for bytes that are too long, malformed, of another type, with unknown fields or
    with a second encoding. Typed decoding bounds the depth: no type of ours is recursive.
    """
    typed = msgspec.msgpack.Decoder(kind)
    name = name or getattr(kind, "__name__", str(kind))

    def run(data: bytes) -> T:
        if len(data) > limit_bytes:
            raise InvalidInput(f"{name} has {len(data)} bytes; at most {limit_bytes} are allowed")
        try:
            value = typed.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{name} cannot be decoded: {error}") from error
        if not own and _encoder.encode(value) != data:
            raise InvalidInput(f"{name} is not in canonical form: encode it with the shortest MessagePack types")
        return value

    return run


def decode(kind: type[T], data: bytes, limit_bytes: int) -> T:
    """Decode canonical `data` of at most `limit_bytes`; raises `InvalidInput` (see `decoder`)."""
    return decoder(kind, limit_bytes)(data)
