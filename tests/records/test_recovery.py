# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests for new keys: guardians compare the signing key with the patient's screen, so its signature must cover all the rest."""

import msgspec
import pytest

from ledger import testing
from ledger.codec import decode, encode
from ledger.errors import InvalidInput
from records.recovery import (
    MAX_APPROVAL_BYTES,
    RecoveryApproval,
    approve_recovery,
    ask_recovery,
    check_approvals,
    read_recovery,
)
from tests.records.world import encryption

CHAIN = bytes([7]) * 32
NEW = testing.key(40)
KEYBLOCK = testing.patient_keyblock(NEW, testing.key(0).address)


def test_a_request_is_read_as_it_was_made() -> None:
    assert read_recovery(CHAIN, ask_recovery(CHAIN, NEW, KEYBLOCK)).keyblock == KEYBLOCK


@pytest.mark.parametrize(
    "changes",
    [
        {"reencryption_key": testing.encryption_key(41)},
        {"chameleon_key": testing.chameleon_trapdoor(41)[1]},
        {"signing_key": testing.key(41).public_key},
        {"patient": testing.key(41).address},
        {"generation": 7},
    ],
)
def test_whoever_carries_a_request_cannot_put_other_keys_beside_the_one_that_is_compared(
    changes: dict[str, object],
) -> None:
    request = read_recovery(CHAIN, ask_recovery(CHAIN, NEW, KEYBLOCK))
    forged = msgspec.structs.replace(request, keyblock=msgspec.structs.replace(KEYBLOCK, **changes))
    with pytest.raises(InvalidInput, match="not signed by the new key"):
        read_recovery(CHAIN, encode(forged))


def test_a_request_for_another_chain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="for this chain"):
        read_recovery(bytes(32), ask_recovery(CHAIN, NEW, KEYBLOCK))


def test_an_approval_that_its_guardian_has_not_signed_is_named_by_its_place() -> None:
    request = read_recovery(CHAIN, ask_recovery(CHAIN, NEW, KEYBLOCK))
    guardians = [testing.key(number) for number in (41, 42)]
    good = [approve_recovery(CHAIN, key, request, None, (key.address, encryption(41))) for key in guardians]
    assert len(check_approvals(CHAIN, KEYBLOCK, good).approvals) == 2
    parts = [decode(RecoveryApproval, raw, MAX_APPROVAL_BYTES) for raw in good]
    borrowed = msgspec.structs.replace(parts[1].approval, signature=parts[0].approval.signature)
    wrong = encode(msgspec.structs.replace(parts[1], approval=borrowed))
    with pytest.raises(InvalidInput, match=f"approval 2 is not signed by guardian {guardians[1].public_key.hex()}"):
        check_approvals(CHAIN, KEYBLOCK, [good[0], wrong])
