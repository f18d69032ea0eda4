# SPDX-License-Identifier: GPL-3.0-or-later
"""A client tells whether a list of records is complete, in order and unchanged, whatever the node does to it."""

from collections.abc import Callable, Sequence

import msgspec
import pytest

from ledger import testing
from ledger.bodies import CommitRecord
from ledger.patients import Patient, Record, record_id
from ledger.state import PATIENTS, RECORDS, State, scan
from records.history import HistoryRefused, check_history
from tests.records.evidence_kit import OTHER, PATIENT, Network

List = tuple[Record, ...]


@pytest.fixture(scope="module")
def network() -> Network:
    made = Network()
    made.register()
    made.write(9)
    made.label(2)
    return made


@pytest.fixture(scope="module")
def patient(network: Network) -> Patient:
    found = State(network.store).get(PATIENTS, PATIENT.address)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def records(network: Network) -> List:
    return tuple(record for _, record in scan(network.store, RECORDS, PATIENT.address, b"", 100))


def test_the_true_list_is_accepted(patient: Patient, records: List) -> None:
    assert check_history(patient, records) == len(records) == 9


def test_of_a_list_longer_than_what_is_proved_the_beginning_is_proved_and_the_rest_linked(
    network: Network, records: List
) -> None:
    earlier = Network()
    earlier.register()
    earlier.write(4)
    proved = State(earlier.store).get(PATIENTS, PATIENT.address)
    assert proved is not None
    assert check_history(proved, records) == 4
    with pytest.raises(HistoryRefused, match="record 7 stands in place 6: one is hidden"):
        check_history(proved, (*records[:6], *records[7:]))
    assert State(network.store).get(PATIENTS, OTHER.address) is not None


def renumbered(records: Sequence[Record]) -> List:
    """Return records as a node would disguise a gap."""
    return tuple(
        msgspec.structs.replace(record, microblock=msgspec.structs.replace(record.microblock, sequence=place))
        for place, record in enumerate(records)
    )


def changed(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (lambda r: r[:8], "8 records are shown, patient .* has 9: some are hidden"),
        (lambda _: (), "0 records are shown"),
        (lambda r: (*r[:3], *r[4:], r[8]), "one is hidden, or the order was changed"),
        (lambda r: (*r[:3], r[4], r[3], *r[5:]), "the order was changed"),
        (lambda r: (*renumbered((*r[:3], *r[4:])), r[8]), "record 3 is not the one of identifier .*: it was changed"),
        (lambda r: (*r[:5], r[4], *r[5:]), "record 4 stands in place 5"),
        (
            lambda r: (changed(r[0], microblock=msgspec.structs.replace(r[0].microblock, author=bytes(20))), *r[1:]),
            "it was changed",
        ),
        (lambda r: (*r[:8], changed(r[8], record_id=bytes(32))), "it was changed"),
        (
            lambda r: (
                *r[:1],
                changed(r[1], envelope=msgspec.structs.replace(r[1].envelope, blob_id=bytes(32))),
                *r[2:],
            ),
            "record 1: its envelope is not the one that was committed",
        ),
        (
            lambda r: (
                *r[:1],
                changed(r[1], envelope=msgspec.structs.replace(r[1].envelope, status="amended")),
                *r[2:],
            ),
            "its envelope is not the one",
        ),
    ],
)
def test_a_node_that_hides_reorders_or_changes_is_caught(
    patient: Patient, records: List, lie: Callable[[List], List], match: str
) -> None:
    with pytest.raises(HistoryRefused, match=match):
        check_history(patient, lie(records))


def test_records_made_up_to_fit_each_other_are_caught_by_the_peaks(patient: Patient) -> None:
    forger = Network()
    forger.register()
    forger.maker.extend()
    # Other contents, all links right: only what is proved of the patient's entry contradicts.
    keyblock = testing.patient_keyblock(PATIENT, testing.key(0).address)
    bodies: list[CommitRecord] = []
    previous = None
    for sequence in range(9):
        body = testing.record_body(testing.key(0).address, keyblock, sequence, previous, content=100 + sequence)
        previous = record_id(body.microblock)
        bodies.append(body)
    forger.maker.extend(*(forger.maker.signed(0, body) for body in bodies))
    forged = tuple(record for _, record in scan(forger.store, RECORDS, PATIENT.address, b"", 100))
    assert len(forged) == 9
    with pytest.raises(HistoryRefused, match="one was exchanged, or all were made up"):
        check_history(patient, forged)


def test_records_of_somebody_else_are_caught(network: Network, records: List) -> None:
    other = State(network.store).get(PATIENTS, OTHER.address)
    assert other is not None
    assert check_history(other, ()) == 0
    with pytest.raises(HistoryRefused, match=f"record 0 is of patient {PATIENT.address.hex()}"):
        check_history(other, records)
