# SPDX-License-Identifier: GPL-3.0-or-later
"""What transactions ask of those who vote for them: what counts for how much, and that bounds hold for sums."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import Body, GrantAccess
from ledger.contract_bodies import ChallengeBatch, CommitBatch
from ledger.errors import InvalidInput
from ledger.guardianship import MAX_GUARDIANS
from ledger.load import (
    CHALLENGE_COST,
    LABEL_COST,
    MAX_MICROBLOCK_COST,
    MAX_MICROBLOCK_DATA_BYTES,
    RECORDS_AT_ONE_COST,
    Load,
    check_cost,
    cost_of,
    load_of,
)
from ledger.offchain import (
    MAX_DATA_BYTES,
    BatchCommitment,
    BrokenReceipt,
    RequestLeaf,
    RequestReceipt,
    SignedReceipt,
)
from ledger.sharing import MAX_GRANT_RECORDS
from ledger.testing_patients import change_keys, grant_terms, label, next_keyblock, permission
from ledger.transactions import CheckedTransaction, Transaction, check_shape
from tests.ledger.acts_kit import ALICE, CHAIN, CLINIC, HOSPITAL, KEYBLOCK, PROXIES, RECORDS

RECEIPT = RequestReceipt(bytes(32), 0, 0, RequestLeaf(bytes(32), 0, 1, bytes(32), bytes(32)))
CHALLENGE = ChallengeBatch(bytes(32), 0, BrokenReceipt(SignedReceipt(RECEIPT, bytes(64)), None))
PERMISSION = permission(RECORDS[0], HOSPITAL.address)
LABEL = label(CHAIN, RECORDS[0], KEYBLOCK, PERMISSION, ALICE)
TERMS = grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), [key.address for key in PROXIES])


def transaction(body: Body) -> Transaction:
    return check_shape(testing.signed(CHAIN, ALICE, body), CHAIN).transaction


def granting(records: int) -> GrantAccess:
    return GrantAccess(msgspec.structs.replace(TERMS, all_records=not records, records=tuple(range(records))))


def commitment(data_bytes: int) -> CheckedTransaction:
    digest = bytes(32)
    body = CommitBatch(BatchCommitment(digest, 0, digest, digest, digest, 1, 1, digest, data_bytes, 0, 0, ()))
    return CheckedTransaction(digest, b"", ALICE.address, transaction(body))


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        (RECORDS[0], 1),
        (CHALLENGE, CHALLENGE_COST),
        (LABEL, LABEL_COST),
        (change_keys(CHAIN, next_keyblock(KEYBLOCK, ALICE, 1), ALICE), 1),
        (change_keys(CHAIN, next_keyblock(KEYBLOCK, ALICE, 1), ALICE, PROXIES[:3]), 4),
        (granting(0), 1),
        (granting(RECORDS_AT_ONE_COST - 1), 1),
        (granting(MAX_GRANT_RECORDS), 1 + MAX_GRANT_RECORDS // RECORDS_AT_ONE_COST),
    ],
)
def test_what_takes_longer_than_a_transfer_counts_for_more(body: Body, cost: int) -> None:
    assert cost_of(transaction(body)) == cost


def test_every_transaction_fits_alone() -> None:
    dearest = max(CHALLENGE_COST, LABEL_COST, 1 + MAX_GUARDIANS, 1 + MAX_GRANT_RECORDS // RECORDS_AT_ONE_COST)
    assert Load(dearest, MAX_DATA_BYTES).fits


def test_only_commitments_publish_data() -> None:
    transfer = testing.check(CHAIN, [testing.transfer(CHAIN, HOSPITAL, CLINIC.address)])
    assert load_of([*transfer, commitment(700), commitment(1)]) == Load(3, 701)
    assert load_of(()) == Load()


@given(
    st.lists(
        st.builds(Load, st.integers(0, MAX_MICROBLOCK_COST), st.integers(0, MAX_MICROBLOCK_DATA_BYTES)), max_size=5
    )
)
def test_loads_fit_when_both_of_their_sums_do_and_never_again_once_they_do_not(loads: list[Load]) -> None:
    total, did_fit = Load(), True
    for number, load in enumerate(loads, 1):
        total += load
        cost = sum(one.cost for one in loads[:number])
        data_bytes = sum(one.data_bytes for one in loads[:number])
        assert total.fits == (cost <= MAX_MICROBLOCK_COST and data_bytes <= MAX_MICROBLOCK_DATA_BYTES)
        assert did_fit or not total.fits
        did_fit = total.fits


def test_a_batch_may_cost_as_much_as_a_microblock_and_no_more() -> None:
    check_cost(MAX_MICROBLOCK_COST)
    with pytest.raises(InvalidInput, match="cut it into smaller ones"):
        check_cost(MAX_MICROBLOCK_COST + 1)
