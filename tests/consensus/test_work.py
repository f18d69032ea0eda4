# SPDX-License-Identifier: GPL-3.0-or-later
"""The keyblock puzzle against its plain definition and fixed vectors."""

import hashlib
from collections.abc import Callable
from types import SimpleNamespace

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import work
from ledger.blocks import Keyblock
from ledger.errors import InvalidInput
from ledger.rules import WorkRules

EASY = 2**256 - 1
TARGETS = st.integers(1, EASY)
TEMPLATE = Keyblock(
    previous=bytes([1]) * 32,
    microblock=bytes([2]) * 32,
    miner=b"\x02" + bytes([3]) * 32,
    reveal_key=b"\x80" + bytes([4]) * 47,
    reputation_nano=5,
    target=work.encode_target(2**250),
    timestamp_ms=1_767_225_600_000,
    state_root=bytes([6]) * 32,
    nonce=bytes(32),
)
RULES = WorkRules(work.encode_target(2**250), 15_000, 20)
UINTS = st.integers(0, 2**63 - 1)
KEYBLOCKS = st.builds(
    Keyblock,
    *(st.binary(min_size=size, max_size=size) for size in (32, 32, 33, 48)),
    UINTS,
    st.binary(min_size=32, max_size=32),
    UINTS,
    *(st.binary(min_size=size, max_size=size) for size in (32, 32)),
)
"""Any values that the fields can have."""

replace = msgspec.structs.replace


def number(value: int) -> bytes:
    return value.to_bytes(32, "big")


def with_target(target: int) -> Keyblock:
    return replace(TEMPLATE, target=number(target))


def puzzle(template: Keyblock, nonce: int) -> bytes:
    return work.puzzle_hash(replace(template, nonce=number(nonce)))


def encoding(keyblock: Keyblock) -> bytes:
    """The keyblock as MessagePack, by a library that is not ours."""
    packed: bytes = msgpack.packb([getattr(keyblock, field) for field in keyblock.__struct_fields__])
    return packed


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("template", "nonce", "digest"),
    [
        # What `sha256sum` makes of the tag's hash, the same once more and the encoding; and of the result again.
        (TEMPLATE, 0, "e7717f722b305d39aae622687390049af22929c7938e0158c85a635c1754fc7b"),
        (TEMPLATE, 2**255 + 1, "8f6447e5132197a18ad53b4bdbebcb6f911c3cdeb683f5cc11c616480771cef0"),
        (
            Keyblock(bytes(32), bytes(32), bytes(33), bytes(48), 0, number(1), 0, bytes(32), bytes(32)),
            0,
            "1264b4ae62797245fb4e7a5bda0d43cc4773b9787987ccfc3bd555523798867a",
        ),
    ],
)
def test_the_puzzle_hash_is_fixed(template: Keyblock, nonce: int, digest: str) -> None:
    assert puzzle(template, nonce).hex() == digest


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Bitcoin's first block.
        (0xFFFF << 208, 0x100010001),
        (EASY, 1),
        (2**255, 1),
        (2**255 - 1, 2),
        (1, 2**255),
    ],
)
def test_work_is_counted_as_in_bitcoin(target: int, expected: int) -> None:
    assert work.work_of(target) == expected


# ---------------------------------------------------------------- requirements


@given(KEYBLOCKS)
def test_r1_the_puzzle_is_a_double_sha256_under_the_keyblocks_tag(keyblock: Keyblock) -> None:
    data = encoding(keyblock)
    assert len(data) <= 274
    tag = hashlib.sha256(b"spchain/keyblock/1").digest()
    assert work.puzzle_hash(keyblock) == hashlib.sha256(hashlib.sha256(tag + tag + data).digest()).digest()


@given(KEYBLOCKS, KEYBLOCKS, st.sets(st.sampled_from(TEMPLATE.__struct_fields__), min_size=1))
def test_r2_another_value_of_any_field_is_another_puzzle(one: Keyblock, other: Keyblock, fields: set[str]) -> None:
    changed = replace(one, **{field: getattr(other, field) for field in fields})
    assert (work.puzzle_hash(changed) == work.puzzle_hash(one)) == (changed == one)


@given(st.sampled_from(TEMPLATE.__struct_fields__), st.integers(0, 2**9))
def test_r2_not_even_one_bit_or_millisecond_is_outside_the_puzzle(field: str, place: int) -> None:
    value = getattr(TEMPLATE, field)
    if isinstance(value, int):
        changed: object = value ^ (1 << place % 63)
    else:
        changed = (int.from_bytes(value, "big") ^ (1 << place % (8 * len(value)))).to_bytes(len(value), "big")
    assert work.puzzle_hash(replace(TEMPLATE, **{field: changed})) != work.puzzle_hash(TEMPLATE)


@given(st.integers(1, 2**250))
def test_r3_a_target_has_one_encoding(target: int) -> None:
    raw = work.encode_target(target)
    assert len(raw) == 32
    assert work.decode_target(raw, RULES) == target


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "0 bytes"),
        (bytes(31) + b"", "31 bytes"),
        (bytes(32) + b"\1", "33 bytes"),
        (bytes(32), "not within 1"),
        (number(2**250 + 1), "limit 04"),
        (number(EASY), "limit 04"),
    ],
)
def test_r3_other_targets_are_refused_with_their_value(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        work.decode_target(raw, RULES)


@given(st.integers(0, EASY), st.integers(0, 300))
def test_r4_the_search_finds_the_first_solution_of_its_range(start: int, attempts: int) -> None:
    def solves(nonce: int) -> bool:
        return int.from_bytes(puzzle(TEMPLATE, nonce), "big") < 2**250

    tried = range(start, min(start + attempts, 2**256))
    first = next((replace(TEMPLATE, nonce=number(n)) for n in tried if solves(n)), None)
    assert work.search(TEMPLATE, start, attempts) == first


def test_r4_slices_join_without_a_gap() -> None:
    solved = work.search(TEMPLATE, 0, 10_000)
    assert solved is not None
    slices = (work.search(TEMPLATE, start, 7) for start in range(0, 10_000, 7))
    assert next(found for found in slices if found) == solved


def test_r4_the_search_ends_with_the_last_nonce() -> None:
    assert work.search(with_target(1), 2**256 - 3, 1_000) is None


@given(st.integers(0, 2**255), UINTS)
def test_r4_what_is_found_passes_the_check_and_differs_in_the_nonce_only(start: int, timestamp_ms: int) -> None:
    template = replace(TEMPLATE, timestamp_ms=timestamp_ms)
    solved = work.search(template, start, 10_000)
    # A chance of 1/64 each: none in 10 000 happens once in 10^68.
    assert solved is not None
    work.check_work(solved, 2**250)
    assert replace(solved, nonce=template.nonce) == template


@given(TARGETS, TARGETS)
def test_r5_work_falls_with_the_target_and_is_at_least_one(one: int, other: int) -> None:
    assert work.work_of(max(one, other)) <= work.work_of(min(one, other))
    assert work.work_of(one) >= 1


@given(st.integers(1, 2**200))
def test_r5_half_the_target_is_twice_the_work(half: int) -> None:
    twice = 2 * work.work_of(2 * half)
    # 2^256/(h+1) against 2·2^256/(2h+1): equal but for the "+1", a part of 1/h, and for rounding.
    assert -2 <= twice - work.work_of(half) <= work.work_of(half) // half + 2


# ---------------------------------------------------------------- refusals


def solved() -> Keyblock:
    found = work.search(TEMPLATE, 0, 10_000)
    assert found is not None
    return found


def _unsolved() -> Keyblock:
    return replace(TEMPLATE, nonce=number(next(n for n in range(1_000) if not work.search(TEMPLATE, n, 1))))


@pytest.mark.parametrize(
    ("made", "demanded", "says"),
    [
        (solved, 2**249, "chain demands 02"),
        (solved, 2**251, "chain demands 08"),
        (_unsolved, 2**250, "is not below target 04"),
    ],
)
def test_a_wrong_target_or_nonce_is_refused_with_the_value(
    made: Callable[[], Keyblock], demanded: int, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        work.check_work(made(), demanded)


def test_a_hash_equal_to_the_target_is_not_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # The target is part of the hash, so that no real keyblock hits it: the last step of the hash is replaced.
    keyblock = with_target(2**250)
    for hashed, passes in ((2**250, False), (2**250 - 1, True)):
        monkeypatch.setattr(work, "sha256", lambda _data, hashed=hashed: SimpleNamespace(digest=lambda: number(hashed)))
        assert (work.search(keyblock, 5, 1) == replace(keyblock, nonce=number(5))) is passes
        if passes:
            work.check_work(keyblock, 2**250)
        else:
            with pytest.raises(InvalidInput, match="is not below"):
                work.check_work(keyblock, 2**250)
