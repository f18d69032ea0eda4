# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys for a delegate: only the delegate opens them, only the patient hands them over, and they are what the keyblock says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.crypto.reencryption import DecryptionFailed, ReencryptionKey
from ledger.errors import InvalidInput
from records.envelope import open_sealed, parse_blob, seal
from records.handover import TakenKeys, hand_over, take_over

CHAIN = b"c" * 32
PATIENT, CARER = testing.key(20), testing.key(31)
KEYBLOCK = testing.patient_keyblock(PATIENT, testing.key(0).address, 20)
SECRETS = (testing.encryption_secret(20), testing.chameleon_trapdoor(20)[0])
DELEGATE = (CARER.address, testing.encryption_key(31))


def encryption(number: int) -> ReencryptionKey:
    return ReencryptionKey(testing.encryption_secret(number))


def taken(raw: bytes, chain: bytes = CHAIN, number: int = 31) -> TakenKeys:
    return take_over(chain, raw, testing.key(number).address, encryption(number), PATIENT.public_key, KEYBLOCK)


@pytest.mark.parametrize("trapdoor", [SECRETS[1], b""], ids=["with trapdoor", "without"])
def test_the_delegate_can_read_as_the_patient(trapdoor: bytes) -> None:
    keys = taken(hand_over(CHAIN, PATIENT, KEYBLOCK, (SECRETS[0], trapdoor), DELEGATE))
    assert (keys.patient, keys.generation, keys.trapdoor) == (PATIENT.address, 0, trapdoor)
    assert open_sealed(parse_blob(seal(b"a record", KEYBLOCK.reencryption_key).blob), keys.reencryption) == b"a record"
    assert SECRETS[0].hex() not in repr(keys)
    assert not trapdoor or trapdoor.hex() not in repr(keys)


def test_nobody_else_opens_them_and_nobody_else_hands_them_over() -> None:
    raw = hand_over(CHAIN, PATIENT, KEYBLOCK, SECRETS, DELEGATE)
    assert not any(secret in raw for secret in SECRETS)
    with pytest.raises(DecryptionFailed):
        taken(raw, number=30)
    with pytest.raises(InvalidInput, match="not handed over"):
        taken(raw, chain=bytes(32))
    with pytest.raises(InvalidInput, match="not handed over"):
        taken(hand_over(CHAIN, testing.key(30), KEYBLOCK, SECRETS, DELEGATE))
    for position in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(InvalidInput):
            taken(bytes(changed))


def test_keys_that_are_not_the_keyblocks_are_refused_on_both_sides() -> None:
    other = testing.patient_keyblock(PATIENT, testing.key(0).address, 21)
    with pytest.raises(InvalidInput, match="re-encryption secret is not that"):
        hand_over(CHAIN, PATIENT, other, SECRETS, DELEGATE)
    with pytest.raises(InvalidInput, match="trapdoor is not that"):
        hand_over(CHAIN, PATIENT, KEYBLOCK, (SECRETS[0], testing.chameleon_trapdoor(21)[0]), DELEGATE)
    later = msgspec.structs.replace(KEYBLOCK, generation=1)
    with pytest.raises(InvalidInput, match="inside are keys of generation 1"):
        taken(hand_over(CHAIN, PATIENT, later, SECRETS, DELEGATE))
    with pytest.raises(InvalidInput, match="inside are keys"):
        taken(hand_over(CHAIN, PATIENT, KEYBLOCK, SECRETS, (testing.key(30).address, DELEGATE[1])))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_hand_over(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        taken(data)
