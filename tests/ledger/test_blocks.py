# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.blocks import (
    MAX_BLOCK_BATCHES,
    MAX_MICROBLOCK_BYTES,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    is_signed_by_miner,
    is_well_formed,
    keyblock_hash,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
    sign_keyblock,
)
from ledger.codec import decode, encode
from ledger.crypto import unique_signature
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.merkle import merkle_root
from ledger.errors import InvalidInput
from ledger.genesis import chain_id
from tests.vectors import generate


def header() -> MicroblockHeader:
    example = generate.structs()["MicroblockHeader"]
    assert isinstance(example, MicroblockHeader)
    return example


def pinned() -> SignedKeyblock:
    example = generate.structs()["SignedKeyblock"]
    assert isinstance(example, SignedKeyblock)
    return example


HEADER, PINNED = header(), pinned()
CHAIN = chain_id(testing.genesis())
REVEAL = unique_signature.sign(testing.reveal_keys(0)[0], b"message")
DIGESTS = tuple(tagged_hash(Tag.BATCH, bytes([number])) for number in range(5))


def block(batches: tuple[bytes, ...]) -> Microblock:
    changed = msgspec.structs.replace(HEADER, batch_count=len(batches), batches_root=merkle_root(batches))
    return Microblock(changed, batches, PINNED)


@pytest.mark.parametrize("count", range(6))
def test_block_whose_header_commits_to_its_batches_is_well_formed(count: int) -> None:
    assert is_well_formed(block(DIGESTS[:count]))


def test_block_with_another_list_count_or_repetition_is_not_well_formed() -> None:
    good = block(DIGESTS)
    assert not is_well_formed(Microblock(good.header, DIGESTS[:-1], PINNED))
    assert not is_well_formed(Microblock(good.header, DIGESTS[::-1], PINNED))
    assert not is_well_formed(Microblock(msgspec.structs.replace(good.header, batch_count=4), DIGESTS, PINNED))
    assert not is_well_formed(block((DIGESTS[0], DIGESTS[1], DIGESTS[0])))


def test_block_with_another_keyblock_or_signature_than_its_header_states_is_not_well_formed() -> None:
    good = block(DIGESTS)
    mined_later = msgspec.structs.replace(PINNED.keyblock, timestamp_ms=1)
    others = (
        None,
        msgspec.structs.replace(PINNED, signature=bytes(64)),
        sign_keyblock(CHAIN, testing.key(0), mined_later),
    )
    for other in others:
        assert not is_well_formed(Microblock(good.header, DIGESTS, other))
    empty = msgspec.structs.replace(good.header, pinned=pinned_digest(None))
    assert is_well_formed(Microblock(empty, DIGESTS))
    assert not is_well_formed(Microblock(empty, DIGESTS, PINNED))


def test_keyblock_is_signed_by_its_miner_for_one_chain() -> None:
    miner, other = testing.key(0), chain_id(testing.genesis(network="other"))
    signed = sign_keyblock(CHAIN, miner, PINNED.keyblock)
    assert is_signed_by_miner(CHAIN, signed)
    assert not is_signed_by_miner(other, signed)
    assert not is_signed_by_miner(CHAIN, sign_keyblock(CHAIN, testing.key(1), PINNED.keyblock))
    assert not is_signed_by_miner(CHAIN, msgspec.structs.replace(signed, signature=bytes(64)))
    changed = msgspec.structs.replace(PINNED.keyblock, reputation_nano=1)
    assert not is_signed_by_miner(CHAIN, msgspec.structs.replace(signed, keyblock=changed))


@given(st.sampled_from(PINNED.keyblock.__struct_fields__), st.data())
def test_hash_covers_every_field_of_a_keyblock(field: str, data: st.DataObject) -> None:
    value = getattr(PINNED.keyblock, field)
    length = len(value) if isinstance(value, bytes) else 0
    drawn = data.draw(st.binary(min_size=length, max_size=length) if length else st.integers(0, 255))
    changed = msgspec.structs.replace(PINNED.keyblock, **{field: drawn})
    assert (keyblock_hash(changed) == keyblock_hash(PINNED.keyblock)) == (drawn == value)


@given(st.sampled_from(HEADER.__struct_fields__), st.data())
def test_hash_covers_every_field_of_the_header(field: str, data: st.DataObject) -> None:
    value = getattr(HEADER, field)
    length = len(value) if isinstance(value, bytes) else 0
    drawn = data.draw(st.binary(min_size=length, max_size=length) if length else st.integers(0, 255))
    changed = msgspec.structs.replace(HEADER, **{field: drawn})
    assert (microblock_hash(changed) == microblock_hash(HEADER)) == (drawn == value)


def test_signature_of_a_block_is_for_one_chain() -> None:
    block_hash = microblock_hash(HEADER)
    chains = [chain_id(testing.genesis()), chain_id(testing.genesis(network="other"))]
    assert len({microblock_signing_digest(chain, block_hash) for chain in chains}) == 2


def test_largest_block_fits_its_bound_and_a_larger_one_is_refused() -> None:
    digests = tuple(tagged_hash(Tag.BATCH, number.to_bytes(2, "big")) for number in range(MAX_BLOCK_BATCHES + 1))
    largest = Microblock(block(digests[:-1]).header, digests[:-1], PINNED, REVEAL)
    raw = encode(SignedMicroblock(largest, bytes(64)))
    assert decode(SignedMicroblock, raw, MAX_MICROBLOCK_BYTES).microblock == largest
    too_many = Microblock(largest.header, digests)
    with pytest.raises(InvalidInput, match="length <= 256"):
        decode(SignedMicroblock, encode(SignedMicroblock(too_many, bytes(64))), MAX_MICROBLOCK_BYTES)


HOSTILE = {
    "fields for keyblock and reveal missing": lambda raw: b"\x92" + raw,
    "reveal missing": lambda raw: b"\x93" + raw + b"\xc0",
    "a fifth field": lambda raw: b"\x95" + raw + b"\xc0\xc0\xc0",
    "keyblock as text": lambda raw: b"\x94" + raw + b"\xa0\xc0",
    "keyblock without signature": lambda raw: b"\x94" + raw + encode(PINNED.keyblock) + b"\xc0",
    "short reveal": lambda raw: b"\x94" + raw + b"\xc0" + encode(bytes(95)),
    "long reveal": lambda raw: b"\x94" + raw + b"\xc0" + encode(bytes(97)),
    "false as keyblock": lambda raw: b"\x94" + raw + b"\xc2\xc0",
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_microblock_has_one_form_with_or_without_keyblock_and_reveal(make: Callable[[bytes], bytes]) -> None:
    start = encode(HEADER) + encode(DIGESTS)
    for keyblock, reveal in ((None, None), (PINNED, None), (None, REVEAL), (PINNED, REVEAL)):
        raw = b"\x94" + start + encode(keyblock) + encode(reveal)
        assert decode(Microblock, raw, MAX_MICROBLOCK_BYTES) == Microblock(HEADER, DIGESTS, keyblock, reveal)
    with pytest.raises(InvalidInput):
        decode(Microblock, make(start), MAX_MICROBLOCK_BYTES)
