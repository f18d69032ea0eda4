# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a patient's records, as somebody lists them, are all of them, in order, and unchanged: for clients that do not trust a node.

What is trusted is the patient's entry of the state, proved under a keyblock. It binds the identifiers of all records by the peaks of a
Merkle mountain range; an identifier is the hash of the record's link, and the link binds the envelope by the chameleon hash.
"""

from collections.abc import Sequence

from ledger.crypto import mountain_range
from ledger.crypto.chameleon import check_opening
from ledger.errors import InvalidInput
from ledger.patients import Patient, Record, envelope_digest, record_id


class HistoryRefused(InvalidInput):
    """A list of records that is not the patient's: something is missing, out of order or changed."""


def check_history(patient: Patient, records: Sequence[Record]) -> int:
    """Check a patient's records from the first one on; returns how many of them `patient` proves to be complete: its `record_count`.

    The list may be longer, by records that were committed after the state of `patient`. Those are checked to follow each other, which
    says that none between them is missing, but not that the last one shown is the newest. Of a labelled record the envelope is not
    checked: what it was labelled is proved by the entry of the state alone.

    Raises:
        HistoryRefused: names the first record at fault.
    """
    address, expected = patient.keyblock.patient, patient.record_count
    if len(records) < expected:
        raise HistoryRefused(
            f"{len(records)} records are shown, patient {address.hex()} has {expected}: some are hidden"
        )
    previous: bytes | None = None
    for place, record in enumerate(records):
        _check_link(address, place, record, previous)
        previous = record.record_id
    identifiers = [record.record_id for record in records[:expected]]
    if not mountain_range.is_complete(patient.record_peaks, expected, identifiers):
        raise HistoryRefused(
            f"the records shown are not those of patient {address.hex()}: one was exchanged, or all were made up"
        )
    return expected


def _check_link(address: bytes, place: int, record: Record, previous: bytes | None) -> None:
    link = record.microblock
    if link.patient != address:
        raise HistoryRefused(f"record {place} is of patient {link.patient.hex()}, not of {address.hex()}")
    if link.sequence != place:
        raise HistoryRefused(f"record {link.sequence} stands in place {place}: one is hidden, or the order was changed")
    if record_id(link) != record.record_id:
        raise HistoryRefused(f"record {place} is not the one of identifier {record.record_id.hex()}: it was changed")
    if link.previous != (link.patient_keyblock if previous is None else previous):
        raise HistoryRefused(f"record {place} does not follow the one before it: one was exchanged")
    if not record.label_count:
        check_envelope(record)


def check_envelope(record: Record) -> None:
    """Check that an unlabelled record's envelope is the one that its author committed. Raises `HistoryRefused`."""
    link = record.microblock
    if not check_opening(link.chameleon_hash, envelope_digest(record.envelope), record.opening):
        raise HistoryRefused(f"record {link.sequence}: its envelope is not the one that was committed")
    if record.envelope.author != link.author:
        raise HistoryRefused(f"record {link.sequence}: its envelope names another author than its link")
