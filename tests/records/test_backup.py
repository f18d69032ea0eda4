# SPDX-License-Identifier: GPL-3.0-or-later
"""Guardians' backup: enough of them give the keys back, one fewer learns nothing, and who hands out a wrong share is named."""

import itertools

import msgspec
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.codec import encode
from ledger.crypto.reencryption import DecryptionFailed, ReencryptionKey, encrypt
from ledger.errors import InvalidInput
from records.backup import (
    MAX_BACKUP_BYTES,
    MAX_SECRET_BYTES,
    ResealedShare,
    Share,
    TooFewShares,
    decode_backup,
    make_backup,
    open_backup,
    open_share,
    reseal_share,
)

PATIENT = testing.key(20).address
NEW = ReencryptionKey(testing.encryption_secret(99))
SECRET = b"a ring of seeds, 32 bytes each. " * 3


def guardian(number: int) -> tuple[bytes, bytes]:
    return testing.key(number).address, testing.encryption_key(number)


def key(number: int) -> ReencryptionKey:
    return ReencryptionKey(testing.encryption_secret(number))


def resealed(raw: bytes, number: int, new_key: bytes = NEW.public_key) -> bytes:
    return reseal_share(raw, testing.key(number).address, key(number), new_key)


@settings(max_examples=10)
@given(st.data(), st.binary(max_size=300))
def test_any_that_are_enough_open_it_and_fewer_do_not(data: st.DataObject, secret: bytes) -> None:
    count = data.draw(st.integers(2, 6))
    needed = data.draw(st.integers(2, count))
    raw = make_backup(secret, PATIENT, [guardian(number) for number in range(count)], needed)
    order = data.draw(st.permutations(range(count)))
    shares = [resealed(raw, number) for number in order]
    assert open_backup(raw, shares[:needed], NEW).secret == secret
    assert open_backup(raw, shares, NEW).secret == secret
    with pytest.raises(TooFewShares, match=f"{needed - 1} of the {needed} shares"):
        open_backup(raw, shares[: needed - 1], NEW)


def test_one_share_fewer_fits_every_possible_key_equally_well() -> None:
    """Whatever the key were, there is a missing share that would make it: so the shares that are there say nothing about it."""
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(5)], needed=3)
    known = [open_share(raw, testing.key(number).address, key(number)) for number in (0, 1)]
    missing = open_share(raw, testing.key(2).address, key(2))
    for half in ("first", "second"):
        points = [(share.number, getattr(share, half)) for share in known]
        for candidate in (bytes(16), b"\xff" * 16, SECRET[:16], getattr(missing, half)):
            # The polynomial through the candidate at 0 and the known shares, taken at the missing guardian's place.
            fitting = interpolate([(0, candidate), *points], missing.number)
            shares = [*points, (missing.number, fitting)]
            assert interpolate(shares, 0) == Shamir.combine(shares, ssss=False) == candidate


def interpolate(points: list[tuple[int, bytes]], at: int) -> bytes:
    """Return the value at a place of the polynomial through the points, over GF(2^128): an oracle of our own."""
    total = 0
    for place, value in points:
        term = int.from_bytes(value, "big")
        for other, _ in points:
            if other != place:
                term = multiply(multiply(term, at ^ other), inverse(place ^ other))
        total ^= term
    return total.to_bytes(16, "big")


def multiply(left: int, right: int) -> int:
    """Modulo x^128 + x^7 + x^2 + x + 1."""
    product = 0
    while right:
        if right & 1:
            product ^= left
        left, right = left << 1, right >> 1
        if left >> 128:
            left ^= (1 << 128) | 0b10000111
    return product


def inverse(element: int) -> int:
    """By Fermat: the power 2^128 - 2."""
    result = 1
    for _ in range(127):
        element = multiply(element, element)
        result = multiply(result, element)
    return result


def test_fewer_guardians_with_all_else_open_nothing() -> None:
    """Two of three guardians pool shares; the cipher refuses every key that they can put together."""
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(4)], needed=3)
    backup = decode_backup(raw)
    shares = [open_share(raw, testing.key(number).address, key(number)) for number in (0, 1)]
    halves = [
        Shamir.combine([(share.number, getattr(share, half)) for share in shares], ssss=False)
        for half in ("first", "second")
    ]
    header = encode(msgspec.structs.replace(backup, ciphertext=bytes(16)))
    with pytest.raises(InvalidTag):
        ChaCha20Poly1305(b"".join(halves)).decrypt(bytes(12), backup.ciphertext, header)


def test_one_share_taken_twice_does_not_count_twice() -> None:
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(3)], needed=2)
    with pytest.raises(TooFewShares):
        open_backup(raw, [resealed(raw, 0), resealed(raw, 0)], NEW)


def test_a_guardian_with_a_tampered_share_is_named_and_the_others_suffice() -> None:
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(3)], needed=2)
    liar = testing.key(0).address
    share = open_share(raw, liar, key(0))

    def seal(changed: Share) -> bytes:
        return encode(ResealedShare(PATIENT, liar, *encrypt(NEW.public_key, encode(changed))))

    replace = msgspec.structs.replace
    other = open_share(raw, testing.key(1).address, key(1))
    lies = [
        seal(replace(share, first=bytes(16))),
        seal(replace(share, second=bytes(16))),
        seal(replace(share, number=7)),
        seal(replace(other, guardian=liar)),
        seal(other),
        resealed(raw, 0, testing.encryption_key(5)),
    ]
    for lie in lies:
        opened = open_backup(raw, [lie, resealed(raw, 1), resealed(raw, 2)], NEW)
        assert opened.secret == SECRET
        assert [fault.guardian for fault in opened.faults] == [liar]
        with pytest.raises(TooFewShares, match=liar.hex()) as caught:
            open_backup(raw, [lie, resealed(raw, 1)], NEW)
        assert [fault.guardian for fault in caught.value.faults] == [liar]
    rubbish = open_backup(raw, [b"rubbish", resealed(raw, 1), resealed(raw, 2)], NEW)
    assert [fault.guardian for fault in rubbish.faults] == [b""]


def test_only_the_guardian_opens_its_share_and_only_the_patient_what_was_sealed_again() -> None:
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(3)], needed=2)
    with pytest.raises(DecryptionFailed):
        open_share(raw, testing.key(0).address, key(1))
    with pytest.raises(InvalidInput, match="has no share"):
        open_share(raw, testing.key(9).address, key(9))
    with pytest.raises(TooFewShares):
        open_backup(raw, [resealed(raw, 0), resealed(raw, 1)], key(98))


def test_a_guardian_notices_a_share_that_the_backup_does_not_name() -> None:
    """Another backup's share, sealed to the right guardian: nobody could put a key together with it."""
    raw, other = (decode_backup(make_backup(SECRET, PATIENT, [guardian(0), guardian(1)], needed=2)) for _ in range(2))
    own = testing.key(0).address
    for wrong in (other, decode_backup(make_backup(SECRET, testing.key(21).address, [guardian(0), guardian(1)], 2))):
        sealed = {share.guardian: share for share in wrong.shares}[own]
        shares = tuple(
            msgspec.structs.replace(share, capsule=sealed.capsule, ciphertext=sealed.ciphertext)
            if share.guardian == own
            else share
            for share in raw.shares
        )
        with pytest.raises(InvalidInput, match="not the one that the backup names"):
            open_share(encode(msgspec.structs.replace(raw, shares=shares)), own, key(0))


@pytest.mark.parametrize("bit", [0, 7])
def test_each_changed_byte_of_a_backup_shows(bit: int) -> None:
    raw = make_backup(SECRET, PATIENT, [guardian(number) for number in range(2)], needed=2)
    shares = [resealed(raw, 0), resealed(raw, 1)]
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << bit
        with pytest.raises(InvalidInput):
            open_backup(bytes(changed), shares, NEW)


def test_the_backup_shows_nothing_of_the_secret_and_keeps_to_its_bound() -> None:
    secret = b"\x5a" * MAX_SECRET_BYTES
    raw = make_backup(secret, PATIENT, [guardian(number) for number in range(16)], needed=16)
    assert secret[:8] not in raw
    assert len(raw) < MAX_BACKUP_BYTES * 3 // 4
    opened = open_backup(raw, [resealed(raw, number) for number in range(16)], NEW)
    assert opened.secret == secret
    assert "Z" * 8 not in repr(opened)


def test_choices_that_make_no_sense_are_refused() -> None:
    three = [guardian(number) for number in range(3)]
    bad = [
        (three, 1),
        (three, 4),
        (three[:1], 1),
        ([guardian(number) for number in range(17)], 2),
        ([*three, guardian(0)], 2),
        ([*three, (PATIENT, testing.encryption_key(20))], 2),
        ([*three[:2], (testing.key(5).address, b"\x04" * 33)], 2),
    ]
    for guardians, needed in bad:
        with pytest.raises(InvalidInput):
            make_backup(SECRET, PATIENT, guardians, needed)
    with pytest.raises(InvalidInput, match="at most"):
        make_backup(bytes(MAX_SECRET_BYTES + 1), PATIENT, three, 2)


def test_backups_with_guardians_out_of_order_or_too_few_are_refused() -> None:
    backup = decode_backup(make_backup(SECRET, PATIENT, [guardian(number) for number in range(3)], needed=3))
    first, second, third = backup.shares
    for shares in itertools.chain([(second, first, third), (first, first, third), (first, second)]):
        with pytest.raises(InvalidInput):
            decode_backup(encode(msgspec.structs.replace(backup, shares=shares)))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_backup(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_backup(data)
