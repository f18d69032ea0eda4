# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.codec import Wire, encode
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.mountain_range import MAX_PEAKS
from ledger.emergency import Approval, Emergency
from ledger.guardianship import MAX_GUARDIANS, Guardians
from ledger.labels import Label, labelled
from ledger.memory_store import MemoryStore
from ledger.miners import EpochRecord, Seat, inverted
from ledger.patients import Patient
from ledger.rules import MAX_COMMITTEE, REPUTATION_UNIT
from ledger.sharing import MAX_GRANT_RECORDS, MAX_PROXIES, MAX_PURPOSES, PURPOSES, Grant
from ledger.state import (
    ACCOUNTS,
    ACCREDITATIONS,
    EMERGENCIES,
    EPOCHS,
    GRANTS,
    GUARDIANS,
    LABELS,
    MAX_STATE_VALUE_BYTES,
    PATIENTS,
    PROGRESS,
    SUPPLY,
    TABLES,
    Account,
    Accreditation,
    State,
    Supply,
    Table,
    next_state_digest,
    numbered_key,
    scan,
)
from ledger.testing_patients import NO_PROOF, grant_terms, permission

ADDRESS = testing.key(1).address


def test_no_key_of_one_table_begins_a_key_of_another() -> None:
    prefixes = [table.prefix for table in TABLES]
    assert all(len(prefix) == 1 for prefix in prefixes)
    assert len(set(prefixes)) == len({table.name for table in TABLES}) == len(TABLES)


def test_reads_go_through_until_a_write_covers_them() -> None:
    state = State(MemoryStore(testing.genesis()))
    assert state.account(ADDRESS).balance_microcredit == testing.BALANCE_MICROCREDIT
    state.put(ACCOUNTS, ADDRESS, Account(1, 2))
    assert state.account(ADDRESS) == Account(1, 2)
    state.delete(ACCOUNTS, ADDRESS)
    assert state.get(ACCOUNTS, ADDRESS) is None
    assert state.account(ADDRESS) == Account(0, 0)
    assert state.changes() == ((b"a" + ADDRESS, None),)


def test_entries_are_those_that_are_there_after_all_changes() -> None:
    state = State(MemoryStore(testing.genesis()))
    known = dict(state.entries(ACCOUNTS))
    assert len(known) == len(testing.genesis().allocations)
    state.delete(ACCOUNTS, ADDRESS)
    state.put(ACCOUNTS, b"b" * 20, Account(1, 1))
    state.put(ACCOUNTS, b"c" * 20, Account(1, 1))
    state.delete(ACCOUNTS, b"c" * 20)
    state.put(ACCREDITATIONS, b"d" * 20, Accreditation(1))
    del known[ADDRESS]
    known[b"b" * 20] = Account(1, 1)
    assert list(state.entries(ACCOUNTS)) == sorted(known.items())


def test_changes_come_in_the_order_of_their_keys_with_the_last_value() -> None:
    state = State(MemoryStore(testing.genesis()))
    state.put(SUPPLY, b"", Supply(1, 2, 3, 4))
    state.put(ACCREDITATIONS, b"b" * 20, Accreditation(1))
    state.put(ACCOUNTS, b"z" * 20, Account(1, 1))
    state.put(ACCOUNTS, b"a" * 20, Account(1, 1))
    state.put(ACCOUNTS, b"a" * 20, Account(2, 2))
    assert state.changes() == (
        (b"a" + b"a" * 20, encode(Account(2, 2))),
        (b"a" + b"z" * 20, encode(Account(1, 1))),
        (b"c" + b"b" * 20, encode(Accreditation(1))),
        (b"s", encode(Supply(1, 2, 3, 4))),
    )


def test_supply_is_read_or_nothing() -> None:
    store = MemoryStore(testing.genesis())
    assert State(store).supply().minted_microcredit == 16 * testing.BALANCE_MICROCREDIT
    state = State(store)
    state.delete(SUPPLY, b"")
    assert state.supply() == Supply(0, 0, 0, 0)


def test_progress_is_there_from_the_founding_on() -> None:
    state = State(MemoryStore(testing.genesis()))
    assert (state.progress().epoch, state.progress().round) == (0, 0)
    state.delete(PROGRESS, b"")
    with pytest.raises(AssertionError, match="the genesis writes"):
        state.progress()


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_versions_of_a_miner_sort_from_the_newest_epoch_on(epochs: list[int]) -> None:
    keys = sorted((inverted(epoch), epoch) for epoch in epochs)
    assert [epoch for _, epoch in keys] == sorted(epochs, reverse=True)


MOST = 2**63 - 1
DIGEST = b"\xff" * 32


def largest_epoch() -> EpochRecord:
    seats = tuple(Seat(testing.key(number).public_key, REPUTATION_UNIT) for number in range(MAX_COMMITTEE))
    reveal_key = testing.reveal_keys(0)[1]
    return EpochRecord(
        *(DIGEST, MOST, DIGEST, MOST, seats[0].public_key, reveal_key),
        *(REPUTATION_UNIT, DIGEST, DIGEST, MOST, seats),
    )


def largest_grant() -> Grant:
    proxies = [bytes([number]) * 20 for number in range(MAX_PROXIES)]
    terms = msgspec.structs.replace(
        grant_terms(bytes(20), bytes(20), testing.encryption_key(1), proxies),
        all_records=False,
        records=tuple(range(MOST - MAX_GRANT_RECORDS, MOST)),
        purposes=PURPOSES[:MAX_PURPOSES],
        **dict.fromkeys(("generation", "from_ms", "until_ms"), MOST),
    )
    return Grant(MOST, terms, bytes(33), MOST, MOST, MOST, (MOST,) * MAX_PROXIES, MOST, MOST)


def largest_label() -> Label:
    record = testing.record_body(bytes(20), testing.patient_keyblock(testing.key(20), bytes(20)))
    permitted = msgspec.structs.replace(
        permission(record, bytes(20)),
        label="🏥" * 128,
        replaced_by=DIGEST,
        **dict.fromkeys(("sequence", "number", "replacement_sequence", "expiry_height"), MOST),
    )
    envelope = msgspec.structs.replace(labelled(record.envelope, permitted), blob_bytes=MOST)
    return Label(permitted, bytes(33), bytes(64), envelope, envelope, NO_PROOF, bytes(20), MOST, MOST)


def largest_patient() -> Patient:
    keyblock = msgspec.structs.replace(testing.patient_keyblock(testing.key(20), bytes(20)), generation=MOST)
    return Patient(keyblock, DIGEST, MOST, MOST, MOST, MOST, DIGEST, (DIGEST,) * MAX_PEAKS)


def largest_emergency() -> Emergency:
    approvals = (Approval(bytes(20), MOST),) * MAX_PROXIES
    return Emergency(DIGEST, bytes(20), "cardiac-arrest", MOST, MOST, MOST, approvals, 16, "unjustified", MOST)


LARGEST: list[tuple[Table[Any], Wire]] = [
    (EPOCHS, largest_epoch()),
    (GRANTS, largest_grant()),
    (LABELS, largest_label()),
    (PATIENTS, largest_patient()),
    (EMERGENCIES, largest_emergency()),
    (GUARDIANS, Guardians(tuple(bytes([number]) * 20 for number in range(MAX_GUARDIANS)), 16, DIGEST, MOST)),
]


@pytest.mark.parametrize(("table", "entry"), LARGEST, ids=[table.name for table, _ in LARGEST])
def test_largest_entries_fit_their_bound(table: Table[Any], entry: Wire) -> None:
    assert table.decode(encode(entry)) == entry


def test_the_bound_is_not_far_above_the_largest_entry() -> None:
    assert MAX_STATE_VALUE_BYTES * 3 // 4 < max(len(encode(entry)) for _, entry in LARGEST) < MAX_STATE_VALUE_BYTES


def test_scan_yields_typed_entries_of_one_table_from_a_key_on() -> None:
    store = MemoryStore(testing.genesis())
    everything = list(scan(store, ACCOUNTS, b"", b"", 1000))
    assert [key for key, _ in everything] == sorted(testing.key(number).address for number in range(16))
    assert list(scan(store, ACCOUNTS, b"", everything[5][0], 3)) == everything[5:8]
    assert list(scan(store, ACCOUNTS, everything[5][0][:2], b"", 1000)) == [everything[5]]


@given(st.binary(min_size=20, max_size=20), st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_records_of_a_patient_sort_by_sequence(patient: bytes, numbers: list[int]) -> None:
    keys = [numbered_key(patient, number) for number in numbers]
    assert [int.from_bytes(key[20:], "big") for key in sorted(keys)] == sorted(numbers)


def test_running_digest_stands_still_without_changes_and_tells_removal_from_an_empty_value() -> None:
    assert next_state_digest(ZERO_DIGEST, ()) == ZERO_DIGEST
    digests = {next_state_digest(ZERO_DIGEST, ((b"a", value),)) for value in (None, b"", b"\xc0")}
    assert len(digests) == 3
