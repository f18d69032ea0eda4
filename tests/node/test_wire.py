# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say to each other is bounded, canonical and of the right type, or it is refused."""

from collections.abc import Callable

import pytest

from ledger.codec import encode
from ledger.errors import InvalidInput
from node.wire import (
    MAX_CHAIN_BLOCKS,
    MAX_DIGESTS,
    BatchesAnswer,
    ChainAnswer,
    ChainRequest,
    Digests,
    decode_batches_answer,
    decode_chain_answer,
    decode_chain_request,
    decode_digests,
)

CASES: list[tuple[Callable[[bytes], object], object]] = [
    (decode_digests, Digests((bytes(32),) * MAX_DIGESTS)),
    (decode_chain_request, ChainRequest(2**63 - 1, 2**63 - 1, MAX_CHAIN_BLOCKS)),
    (decode_chain_answer, ChainAnswer(())),
    (decode_batches_answer, BatchesAnswer((bytes(512 * 1024),) * 8)),
]


@pytest.mark.parametrize(("decode", "largest"), CASES)
def test_the_largest_of_each_kind_passes_and_rubbish_does_not(
    decode: Callable[[bytes], object], largest: object
) -> None:
    raw = encode(largest)
    assert decode(raw) == largest
    for wrong in (b"", b"\xc1", b"\x90", raw + b"\x00", raw[:-1], bytes(9 * 2**20), b"\xdd\xff\xff\xff\xff"):
        with pytest.raises(InvalidInput):
            decode(wrong)


@pytest.mark.parametrize(
    ("decode", "wrong"),
    [
        (decode_digests, ((bytes(32),) * (MAX_DIGESTS + 1),)),
        (decode_digests, ((bytes(31),),)),
        (decode_chain_request, (0, 0, 0)),
        (decode_chain_request, (0, 0, MAX_CHAIN_BLOCKS + 1)),
        (decode_chain_request, (0, -1, 1)),
        (decode_chain_request, (-1, 0, 1)),
        (decode_chain_request, (0, 1)),
        (decode_batches_answer, ((b"",) * (MAX_DIGESTS + 1),)),
    ],
)
def test_one_beyond_a_bound_is_refused(decode: Callable[[bytes], object], wrong: object) -> None:
    with pytest.raises(InvalidInput):
        decode(encode(wrong))
