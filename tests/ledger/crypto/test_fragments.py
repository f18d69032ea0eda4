# SPDX-License-Identifier: GPL-3.0-or-later
"""Sharing by re-encryption: m of n proxies open a capsule for one reader, fewer open nothing, and no fragment can be forged."""

import itertools

import pytest
import umbral_pre
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import (
    CAPSULE_FRAGMENT_BYTES,
    KEY_FRAGMENT_BYTES,
    DecryptionFailed,
    InvalidFragment,
    ReencryptionKey,
    VerifiedCapsuleFragment,
    VerifiedKeyFragment,
    encrypt,
    verify_capsule_fragment,
    verify_key_fragment,
)
from ledger.errors import InvalidInput

OWNER = ReencryptionKey.from_seed(b"\x01" * 32)
READER = ReencryptionKey.from_seed(b"\x02" * 32)
STRANGER = ReencryptionKey.from_seed(b"\x03" * 32)
SIGNER = PrivateKey(b"\x04" * 32)
PLAINTEXT = b"blood group AB, negative"


def split(threshold: int = 2, shares: int = 3) -> tuple[VerifiedKeyFragment, ...]:
    return OWNER.split(READER.public_key, SIGNER.secret, threshold=threshold, shares=shares)


def check_key(data: bytes, **other: bytes) -> VerifiedKeyFragment:
    keys = {
        "verifying_key": SIGNER.public_key,
        "delegating_key": OWNER.public_key,
        "receiving_key": READER.public_key,
    }
    return verify_key_fragment(data, **(keys | other))


def check_capsule_fragment(data: bytes, capsule: bytes, **other: bytes) -> VerifiedCapsuleFragment:
    keys = {
        "verifying_key": SIGNER.public_key,
        "delegating_key": OWNER.public_key,
        "receiving_key": READER.public_key,
    }
    return verify_capsule_fragment(data, capsule=capsule, **(keys | other))


@settings(max_examples=15)
@given(st.data(), st.binary(max_size=500))
def test_any_m_of_n_fragments_open_for_the_reader_and_fewer_do_not(data: st.DataObject, plaintext: bytes) -> None:
    shares = data.draw(st.integers(2, 7))
    threshold = data.draw(st.integers(2, shares))
    chosen = data.draw(st.permutations(range(shares)))
    capsule, ciphertext = encrypt(OWNER.public_key, plaintext)
    fragments = [check_key(bytes(fragment)) for fragment in split(threshold, shares)]
    answers = [check_capsule_fragment(fragments[place].reencrypt(capsule), capsule) for place in chosen]
    assert READER.decrypt_shared(answers[:threshold], ciphertext) == plaintext
    with pytest.raises(DecryptionFailed):
        READER.decrypt_shared(answers[: threshold - 1], ciphertext)
    with pytest.raises(DecryptionFailed):
        STRANGER.decrypt_shared(answers[:threshold], ciphertext)


def test_fragments_have_the_sizes_that_the_protocol_names() -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    for fragment in split():
        assert len(bytes(fragment)) == KEY_FRAGMENT_BYTES
        assert len(fragment.reencrypt(capsule)) == CAPSULE_FRAGMENT_BYTES


def test_one_fragment_taken_twice_does_not_count_twice() -> None:
    capsule, ciphertext = encrypt(OWNER.public_key, PLAINTEXT)
    fragment = split()[0]
    answers = [check_capsule_fragment(fragment.reencrypt(capsule), capsule) for _ in range(2)]
    assert answers[0].fragment_id == answers[1].fragment_id
    with pytest.raises(DecryptionFailed):
        READER.decrypt_shared(answers, ciphertext)


def test_fragments_of_two_splittings_do_not_mix_and_tell_by_their_precursor() -> None:
    capsule, ciphertext = encrypt(OWNER.public_key, PLAINTEXT)
    first, second = split(), split()
    answers = [
        check_capsule_fragment(fragment.reencrypt(capsule), capsule) for fragment in (first[0], first[1], second[0])
    ]
    assert answers[0].precursor == answers[1].precursor != answers[2].precursor
    assert len({answer.fragment_id for answer in answers}) == 3
    with pytest.raises(DecryptionFailed):
        READER.decrypt_shared([answers[0], answers[2]], ciphertext)


def test_fragments_of_two_capsules_are_refused_together() -> None:
    (first, ciphertext), (second, _) = encrypt(OWNER.public_key, PLAINTEXT), encrypt(OWNER.public_key, PLAINTEXT)
    fragments = split()
    answers = [
        check_capsule_fragment(fragment.reencrypt(capsule), capsule)
        for fragment, capsule in zip(fragments, (first, second), strict=False)
    ]
    with pytest.raises(InvalidInput, match="different capsules"):
        READER.decrypt_shared(answers, ciphertext)
    with pytest.raises(InvalidInput, match="no capsule fragment"):
        READER.decrypt_shared([], ciphertext)


def test_a_changed_ciphertext_does_not_open() -> None:
    capsule, ciphertext = encrypt(OWNER.public_key, PLAINTEXT)
    answers = [check_capsule_fragment(fragment.reencrypt(capsule), capsule) for fragment in split()]
    for damaged in (b"", ciphertext[:-1], ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])):
        with pytest.raises(DecryptionFailed):
            READER.decrypt_shared(answers, damaged)


@pytest.mark.parametrize(("threshold", "shares"), [(0, 3), (4, 3), (1, 0), (-1, 3), (2, 65)])
def test_thresholds_that_make_no_sense_are_refused(threshold: int, shares: int) -> None:
    with pytest.raises(InvalidInput, match="can be needed"):
        split(threshold, shares)


def test_keys_that_are_none_are_refused() -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    raw = bytes(split()[0])
    nothing = b"\x04" * 33
    with pytest.raises(InvalidInput, match="no point"):
        OWNER.split(nothing, SIGNER.secret, threshold=2, shares=3)
    with pytest.raises(InvalidInput, match="no scalar"):
        OWNER.split(READER.public_key, bytes(32), threshold=2, shares=3)
    with pytest.raises(InvalidInput, match="no point"):
        check_key(raw, verifying_key=nothing)
    with pytest.raises(InvalidInput, match="no point"):
        check_capsule_fragment(bytes(CAPSULE_FRAGMENT_BYTES), capsule, receiving_key=nothing)
    with pytest.raises(InvalidInput, match="capsule is not valid"):
        check_capsule_fragment(bytes(CAPSULE_FRAGMENT_BYTES), bytes(105))


def test_a_key_fragment_is_good_for_its_three_keys_only() -> None:
    raw = bytes(split()[0])
    assert bytes(check_key(raw)) == raw
    for wrong in ("verifying_key", "delegating_key", "receiving_key"):
        with pytest.raises(InvalidFragment):
            check_key(raw, **{wrong: STRANGER.public_key})


def test_a_capsule_fragment_is_good_for_its_capsule_and_keys_only() -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    other, _ = encrypt(OWNER.public_key, PLAINTEXT)
    raw = split()[0].reencrypt(capsule)
    check_capsule_fragment(raw, capsule)
    with pytest.raises(InvalidFragment):
        check_capsule_fragment(raw, other)
    for wrong in ("verifying_key", "delegating_key", "receiving_key"):
        with pytest.raises(InvalidFragment):
            check_capsule_fragment(raw, capsule, **{wrong: STRANGER.public_key})


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_a_key_fragment_that_does_not_name_both_keys_is_refused(flags: tuple[bool, bool]) -> None:
    """The library's own check passes over a key that the fragment says it was not signed for."""
    signs_delegating, signs_receiving = flags
    fragments = umbral_pre.generate_kfrags(
        umbral_pre.SecretKey.from_be_bytes(OWNER.secret),
        umbral_pre.PublicKey.from_compressed_bytes(READER.public_key),
        umbral_pre.Signer(umbral_pre.SecretKey.from_be_bytes(SIGNER.secret)),
        threshold=2,
        shares=3,
        sign_delegating_key=signs_delegating,
        sign_receiving_key=signs_receiving,
    )
    with pytest.raises(InvalidFragment):
        check_key(bytes(fragments[0]))


def test_each_changed_byte_of_a_key_fragment_shows() -> None:
    """Also in the signature for readers, which the library lets pass here and which would make the proxy look like a liar."""
    raw = bytes(split()[0])
    for position, bit in itertools.product(range(len(raw)), (0, 7)):
        changed = bytearray(raw)
        changed[position] ^= 1 << bit
        with pytest.raises(InvalidFragment):
            check_key(bytes(changed))


def test_each_changed_byte_of_a_capsule_fragment_shows() -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    raw = split()[0].reencrypt(capsule)
    for position, bit in itertools.product(range(len(raw)), (0, 7)):
        changed = bytearray(raw)
        changed[position] ^= 1 << bit
        with pytest.raises(InvalidFragment):
            check_capsule_fragment(bytes(changed), capsule)


@given(st.binary(max_size=500))
def test_arbitrary_bytes_are_no_fragments(data: bytes) -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    for padded in (data, data.ljust(KEY_FRAGMENT_BYTES, b"\x00"), data.ljust(CAPSULE_FRAGMENT_BYTES, b"\xc3")):
        with pytest.raises(InvalidFragment):
            check_key(padded)
        with pytest.raises(InvalidFragment):
            check_capsule_fragment(padded, capsule)


def test_cut_and_prolonged_fragments_are_refused() -> None:
    capsule, _ = encrypt(OWNER.public_key, PLAINTEXT)
    key_fragment = bytes(split()[0])
    for damaged in (key_fragment[:-1], key_fragment + b"\x00", key_fragment[:-1] + b"\xc2"):
        with pytest.raises(InvalidFragment):
            check_key(damaged)
    raw = split()[0].reencrypt(capsule)
    for damaged in (raw[:-1], raw + b"\x00"):
        with pytest.raises(InvalidFragment):
            check_capsule_fragment(damaged, capsule)


def test_a_fragment_does_not_show_itself() -> None:
    fragment = split()[0]
    assert bytes(fragment)[:40].hex() not in repr(fragment)
    assert repr(fragment) == "VerifiedKeyFragment(<withheld>)"
