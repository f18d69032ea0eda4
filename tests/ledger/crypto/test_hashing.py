# SPDX-License-Identifier: GPL-3.0-or-later
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ledger.crypto.hashing import Tag, hasher, tagged_hash


@given(st.sampled_from(list(Tag)), st.lists(st.binary(max_size=200), max_size=4))
def test_tagged_hash_is_the_construction_of_bip_340(tag: Tag, parts: list[bytes]) -> None:
    prefix = hashlib.sha256(tag.value.encode()).digest()
    expected = hashlib.sha256(prefix + prefix + b"".join(parts)).digest()
    assert tagged_hash(tag, *parts) == expected
    assert hasher(tag)(b"".join(parts)) == expected


def test_domains_are_distinct_and_named_alike() -> None:
    values = [tag.value for tag in Tag]
    assert len(set(values)) == len(values)
    assert all(value.startswith("spchain/") and value.endswith("/1") for value in values)
    assert len({tagged_hash(tag, b"same") for tag in Tag}) == len(values)


def test_tags_are_keys_of_dictionaries() -> None:
    assert {Tag.VOTE: 1}[Tag("spchain/vote/1")] == 1
