# SPDX-License-Identifier: GPL-3.0-or-later
"""Canonical MessagePack: what is refused, and that nothing else than InvalidInput ever comes out."""

from typing import Annotated

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import Transfer
from ledger.codec import Digest, Uint, Wire, decode, decoder, encode
from ledger.errors import InvalidInput
from ledger.genesis import Genesis, chain_id
from ledger.transactions import SignedTransaction


class Left(Wire, frozen=True, tag=1):
    """A struct of a union."""

    count: Uint
    """A number."""


class Right(Wire, frozen=True, tag=2):
    """The other struct."""

    text: Annotated[str, msgspec.Meta(max_length=300)]
    """A text."""
    raw: bytes
    """Bytes."""
    maybe: Digest | None
    """A digest or none."""
    flag: bool
    """A flag."""


class Holder(Wire, frozen=True):
    """Holds the union and a list."""

    either: Left | Right
    """One of two."""
    items: tuple[bytes, ...]
    """Bytes."""


def test_struct_is_the_array_of_its_fields_with_the_tag_in_front() -> None:
    value = Holder(Right("é", b"\1", None, flag=True), (b"",))
    assert encode(value) == msgpack.packb([[2, "é", b"\1", None, True], [b""]], use_bin_type=True)


@given(
    st.builds(
        Holder,
        st.builds(Left, st.integers(0, 2**63 - 1))
        | st.builds(
            Right,
            st.text(max_size=300),
            st.binary(max_size=300),
            st.none() | st.binary(min_size=32, max_size=32),
            flag=st.booleans(),
        ),
        st.lists(st.binary(max_size=40), max_size=20).map(tuple),
    )
)
def test_decoding_gives_back_what_was_encoded(value: Holder) -> None:
    assert decode(Holder, encode(value), 100_000) == value


LEFT = b"\x92\x92\x01\x05\x90"

FORGERIES = {
    "integer as uint8": b"\x92\x92\x01\xcc\x05\x90",
    "integer as uint16": b"\x92\x92\x01\xcd\x00\x05\x90",
    "integer as uint64": b"\x92\x92\x01\xcf" + bytes(7) + b"\x05\x90",
    "integer as int8": b"\x92\x92\x01\xd0\x05\x90",
    "tag as uint8": b"\x92\x92\xcc\x01\x05\x90",
    "negative integer": b"\x92\x92\x01\xff\x90",
    "integer beyond 63 bits": b"\x92\x92\x01\xcf\x80" + bytes(7) + b"\x90",
    "float that is an integer": b"\x92\x92\x01\xcb\x40\x14" + bytes(6) + b"\x90",
    "not a number": b"\x92\x92\x01\xcb\x7f\xf8" + bytes(6) + b"\x90",
    "infinity": b"\x92\x92\x01\xca\x7f\x80\x00\x00\x90",
    "boolean as integer": b"\x92\x92\x01\xc3\x90",
    "integer as text": b"\x92\x92\x01\xa15\x90",
    "outer array with array16 header": b"\xdc\x00\x02\x92\x01\x05\x90",
    "inner array with array32 header": b"\x92\xdd\x00\x00\x00\x02\x01\x05\x90",
    "empty list with array16 header": b"\x92\x92\x01\x05\xdc\x00\x00",
    "bytes with bin16 header": b"\x92\x92\x01\x05\x91\xc5\x00\x01a",
    "bytes with bin32 header": b"\x92\x92\x01\x05\x91\xc6\x00\x00\x00\x01a",
    "bytes as text": b"\x92\x92\x01\x05\x91\xa1a",
    "text with str8 header": b"\x92\x95\x02\xd9\x01a\xc4\x00\xc0\xc2\x90",
    "text as bytes": b"\x92\x95\x02\xc4\x01a\xc4\x00\xc0\xc2\x90",
    "text of invalid UTF-8": b"\x92\x95\x02\xa1\xff\xc4\x00\xc0\xc2\x90",
    "text with a surrogate": b"\x92\x95\x02\xa3\xed\xa0\x80\xc4\x00\xc0\xc2\x90",
    "digest of 31 bytes": b"\x92\x95\x02\xa0\xc4\x00\xc4\x1f" + bytes(31) + b"\xc2\x90",
    "digest of 33 bytes": b"\x92\x95\x02\xa0\xc4\x00\xc4\x21" + bytes(33) + b"\xc2\x90",
    "boolean as integer 1": b"\x92\x95\x02\xa0\xc4\x00\xc0\x01\x90",
    "extra field in the struct": b"\x93\x92\x01\x05\x90\x00",
    "extra field in the union": b"\x92\x93\x01\x05\x00\x90",
    "missing field": b"\x91\x92\x01\x05",
    "missing field in the union": b"\x92\x91\x01\x90",
    "unknown tag": b"\x92\x92\x03\x05\x90",
    "tag as text": b"\x92\x92\xa11\x05\x90",
    "no tag": b"\x92\x90\x90",
    "map in place of the struct": b"\x82\xa6either\x92\x01\x05\xa5items\x90",
    "extension type": b"\x92\x92\x01\x05\x91\xd4\x01a",
    "timestamp": b"\x92\x92\x01\xd6\xff\x00\x00\x00\x05\x90",
    "none": b"\xc0",
    "reserved byte": b"\xc1",
    "trailing byte": LEFT + b"\x00",
    "trailing second value": LEFT + LEFT,
    "truncated": LEFT[:-1],
    "nothing": b"",
    "list that claims 2^32 items": b"\x92\x92\x01\x05\xdd\xff\xff\xff\xff",
    "bytes that claim 4 GiB": b"\x92\x92\x01\x05\x91\xc6\xff\xff\xff\xff",
    "a thousand nested arrays": b"\x91" * 1000 + b"\x90",
    "nesting inside bytes' place": b"\x92\x92\x01\x05\x91" + b"\x91" * 20_000,
    "a hundred thousand nested maps": b"\x81" * 100_000,
}


def test_the_base_of_the_forgeries_is_accepted() -> None:
    assert decode(Holder, LEFT, 100) == Holder(Left(5), ())


@pytest.mark.parametrize("raw", FORGERIES.values(), ids=FORGERIES.keys())
def test_every_second_form_of_a_value_and_every_wrong_type_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="Holder"):
        decode(Holder, raw, 1 << 20)


def test_oversized_input_is_refused_before_it_is_decoded_and_the_text_names_both_sizes() -> None:
    with pytest.raises(InvalidInput, match="Holder has 101 bytes; at most 100 are allowed"):
        decode(Holder, bytes(101), 100)


def test_a_decoder_can_carry_a_name_for_its_errors() -> None:
    with pytest.raises(InvalidInput, match="batch cannot be decoded"):
        decoder(tuple[bytes, ...], 10, name="batch")(b"\xc0")


def test_own_bytes_are_not_proved_canonical_again_but_still_typed() -> None:
    trusting = decoder(Holder, 100, own=True)
    assert trusting(FORGERIES["integer as uint8"]) == Holder(Left(5), ())
    with pytest.raises(InvalidInput):
        trusting(b"\xc0")


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_invalid_input(raw: bytes) -> None:
    for kind in (Holder, SignedTransaction, Genesis):
        try:
            value = decode(kind, raw, 1 << 20)
        except InvalidInput:
            continue
        assert encode(value) == raw


@given(st.data())
def test_a_changed_byte_never_decodes_to_the_same_value(data: st.DataObject) -> None:
    chain = chain_id(testing.genesis())
    raw = testing.transfer(chain, testing.key(1), testing.key(2).address)
    index = data.draw(st.integers(0, len(raw) - 1))
    forged = raw[:index] + bytes([raw[index] ^ data.draw(st.integers(1, 255))]) + raw[index + 1 :]
    try:
        value = decode(SignedTransaction, forged, 1000)
    except InvalidInput:
        return
    assert encode(value) == forged
    assert value != decode(SignedTransaction, raw, 1000)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    )
)
def test_any_messagepack_value_is_either_refused_or_canonical(value: object) -> None:
    raw = msgpack.packb(value, use_bin_type=True)
    try:
        decoded = decode(Transfer, raw, 1 << 20)
    except InvalidInput:
        return
    assert encode(decoded) == raw
