# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.messages import MAX_MESSAGE_BYTES, Certified, Message, Offer, decode_message
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.votes import SignedIndex
from tests.consensus.kit import Net, batch

NET = Net()
ENDED = NET.ended(0, {0: 0, 1: 0, 2: 0})
BATCHES = (batch("a"), batch("b"))
PINNED = NET.mine()
MESSAGES: list[Message] = [
    NET.proposal(NET.header(1, batches=BATCHES), batches=BATCHES),
    NET.proposal(NET.header(4), ended=ENDED),
    NET.vote(1, 5, bytes(32)),
    NET.timeout(2, 1, entry=ENDED),
    Certified(NET.certificate(3, bytes(32)), ENDED),
    Certified(NET.root, None),
    Offer(NET.mine()),
    NET.proposal(NET.header(1, keyblock=PINNED), keyblock=PINNED),
    NET.reveal(0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode_message(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_with_one_bit_changed_is_refused_or_another(message: Message) -> None:
    raw = encode(message)
    for position in range(0, len(raw), 3):
        changed = bytes([*raw[:position], raw[position] ^ 1, *raw[position + 1 :]])
        try:
            assert decode_message(changed) != message
        except InvalidInput as error:
            assert str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_prefix_and_every_suffix_is_refused(message: Message) -> None:
    raw = encode(message)
    for cut in range(0, len(raw), 5):
        with pytest.raises(InvalidInput):
            decode_message(raw[:cut])
    with pytest.raises(InvalidInput):
        decode_message(raw + b"\0")


@given(st.binary(max_size=300))
def test_random_bytes_never_do_more_than_to_be_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_message(raw)


def test_a_second_encoding_of_a_message_is_refused() -> None:
    fields = msgspec.msgpack.decode(encode(NET.vote(1, 5, bytes(32))))
    raw = msgspec.msgpack.encode(fields)
    assert decode_message(raw) == NET.vote(1, 5, bytes(32))
    longer = raw.replace(b"\x05\xc4", b"\xcc\x05\xc4", 1)
    assert longer != raw
    with pytest.raises(InvalidInput, match="canonical"):
        decode_message(longer)


def test_unknown_kinds_extra_fields_and_numbers_out_of_range_are_refused() -> None:
    fields = msgspec.msgpack.decode(encode(NET.vote(1, 5, bytes(32))))
    kind, epoch, *rest = fields
    wrongs: list[object] = [[9, epoch, *rest], [*fields, 0], [kind, -1, *rest], [kind, 2**63, *rest], {}, 5]
    for wrong in wrongs:
        with pytest.raises(InvalidInput):
            decode_message(msgspec.msgpack.encode(wrong))


def test_certificates_of_more_members_than_a_committee_has_are_refused() -> None:
    signature = NET.vote(0, 1, bytes(32)).signature
    many = tuple(SignedIndex(0, signature) for _ in range(65))
    huge = Certified(msgspec.structs.replace(NET.certificate(1, bytes(32)), votes=many), None)
    with pytest.raises(InvalidInput):
        decode_message(encode(huge))


def test_a_message_above_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidInput, match="at most"):
        decode_message(bytes(MAX_MESSAGE_BYTES + 1))
