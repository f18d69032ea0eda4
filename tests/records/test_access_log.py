# SPDX-License-Identifier: GPL-3.0-or-later
"""The access log: durable before it is told, chained for operator and patient, and no change goes unseen."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.codec import encode
from ledger.errors import InvalidInput, StoreError
from records.access_entries import (
    MAX_ENTRY_BYTES,
    AccessEntry,
    AccessPage,
    SignedEntry,
    Trail,
    TrailBroken,
    decode_entry,
    decode_page,
    decode_query,
    head_digest,
    is_entry_signed,
    sign_entry,
)
from records.access_log import Access, AccessLog, LogDamaged
from records.requests import RefusalReason

CHAIN = b"c" * 32
PROXY = testing.key(1)
ALICE, BOB = testing.key(20).address, testing.key(21).address


def access(patient: bytes = ALICE, number: int = 0, records: tuple[int, ...] = (0,)) -> Access:
    return Access(
        patient=patient,
        grant_id=b"g" * 32,
        records=records,
        requester=testing.key(5).public_key,
        purpose="TREAT",
        emergency=None,
        reason=RefusalReason.REVOKED if number % 3 == 2 else None,
        request_digest=number.to_bytes(32, "big"),
        fragments_digest=bytes(32),
        head_height=number,
        timestamp_ms=1_000 + number,
    )


def open_log(path: Path) -> AccessLog:
    return AccessLog(path, chain_id=CHAIN, key=PROXY)


def filled(path: Path, count: int = 12) -> list[SignedEntry]:
    """Entries about two patients in turn."""
    with open_log(path) as log:
        return [log.append(access((ALICE, BOB)[number % 2], number)) for number in range(count)]


def trail(patient: bytes = ALICE) -> Trail:
    return Trail(CHAIN, PROXY.address, PROXY.public_key, patient)


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


# ---------------------------------------------------------------- what it promises


def test_entries_are_chained_signed_and_still_there_after_a_restart(tmp_path: Path) -> None:
    entries = filled(tmp_path / "log")
    assert [signed.entry.number for signed in entries] == list(range(12))
    assert [signed.entry.patient_number for signed in entries] == [number // 2 for number in range(12)]
    assert all(is_entry_signed(CHAIN, signed, PROXY.public_key) for signed in entries)
    with open_log(tmp_path / "log") as log:
        assert len(log) == log.verify() == 12
        assert list(log.entries(0)) == entries
        assert list(log.newest()) == [signed.entry for signed in reversed(entries)]
        following = log.append(access(ALICE, 12))
        assert (following.entry.number, following.entry.patient_number) == (12, 6)
        assert log.verify() == 13


def test_a_patient_reads_page_by_page_and_sees_only_the_own_entries(tmp_path: Path) -> None:
    entries = filled(tmp_path / "log")
    known = trail()
    read: list[AccessEntry] = []
    with open_log(tmp_path / "log") as log:
        while not known.is_complete() or not read:
            page = log.page(ALICE, known.next_number, 5_000, limit=4)
            assert len(encode(page)) < 4_000
            read += known.advance(decode_page(encode(page)))
        assert read == [signed.entry for signed in entries if signed.entry.patient == ALICE]
        # Later there is more, and the trail goes on where it was.
        log.append(access(BOB, 12))
        newest = log.append(access(ALICE, 13))
        assert known.advance(log.page(ALICE, known.next_number, 6_000)) == (newest.entry,)
        assert known.is_complete()
        assert known.advance(log.page(ALICE, known.next_number, 7_000)) == ()


def test_a_patient_without_entries_gets_an_empty_page(tmp_path: Path) -> None:
    filled(tmp_path / "log", 2)
    with open_log(tmp_path / "log") as log:
        known = trail(testing.key(22).address)
        assert known.advance(log.page(testing.key(22).address, 0, 5_000)) == ()
        assert known.is_complete()


def test_the_largest_entry_keeps_to_its_bound(tmp_path: Path) -> None:
    largest = msgspec.structs.replace
    with open_log(tmp_path / "log") as log:
        signed = log.append(access(records=tuple(range(2**63 - 64, 2**63))))
    entry = largest(
        signed.entry,
        number=2**63 - 1,
        patient_number=2**63 - 1,
        emergency=2**63 - 1,
        purpose="x" * 16,
        reason=max(RefusalReason, key=len),
        head_height=2**63 - 1,
        timestamp_ms=2**63 - 1,
    )
    raw = encode(sign_entry(CHAIN, PROXY, entry))
    assert len(raw) < MAX_ENTRY_BYTES * 2 // 3
    assert decode_entry(raw).entry == entry


# ---------------------------------------------------------------- crashes


_WRITER = """
import sys
from pathlib import Path
from tests.records.test_access_log import ALICE, BOB, access, open_log
log = open_log(Path(sys.argv[1]))
for number in range(10**6):
    log.append(access((ALICE, BOB)[number % 2], number))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_entry_that_it_told(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(30)]
    process.kill()
    told += process.stdout.read().splitlines()
    process.stdout.close()
    assert process.wait() == -9
    with open_log(tmp_path / "log") as log:
        assert log.verify() >= len(told)


def test_a_torn_write_loses_only_what_was_not_told(tmp_path: Path) -> None:
    """Cut at every so many bytes, the write-ahead log gives a whole number of entries, and the log goes on from there."""
    folder = tmp_path / "whole"
    folder.mkdir()
    log = open_log(folder / "log")
    for number in range(6):
        log.append(access(ALICE, number))
    # As a crash leaves them: copied while open, so nothing was checkpointed into the main file.
    main, ahead = (folder / "log").read_bytes(), (folder / "log-wal").read_bytes()
    log.close()
    lengths = []
    for cut in range(0, len(ahead) + 1, 1_511):
        torn = tmp_path / "torn"
        torn.mkdir()
        (torn / "log").write_bytes(main)
        (torn / "log-wal").write_bytes(ahead[:cut])
        with open_log(torn / "log") as opened:
            lengths.append(opened.verify())
            opened.append(access(ALICE, 99))
            assert opened.verify() == lengths[-1] + 1
        shutil.rmtree(torn)
    assert lengths == sorted(lengths)
    assert lengths[0] < 6
    assert lengths[-1] >= 5


# ---------------------------------------------------------------- an operator who changes things


def test_a_changed_entry_is_found_by_the_operator(tmp_path: Path) -> None:
    path = tmp_path / "log"
    entries = filled(path)
    forged = msgspec.structs.replace(entries[4].entry, reason=RefusalReason.REVOKED)
    change(path, "UPDATE entries SET raw = ? WHERE number = 4", encode(SignedEntry(forged, entries[4].signature)))
    with open_log(path) as log, pytest.raises(LogDamaged, match="entry 4"):
        log.verify()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM entries WHERE number = 5", "entry 6 does not follow|entry 5"),
        ("DELETE FROM entries WHERE number = 0", "does not follow"),
        ("UPDATE entries SET raw = (SELECT raw FROM entries WHERE number = 2) WHERE number = 4", "entry 4 does not"),
        ("UPDATE entries SET raw = zeroblob(10) WHERE number = 3", "an entry is damaged"),
    ],
    ids=["left out", "first left out", "replaced", "rubbish"],
)
def test_missing_and_moved_entries_are_found_by_the_operator(tmp_path: Path, statement: str, fault: str) -> None:
    path = tmp_path / "log"
    filled(path)
    change(path, statement)
    with open_log(path) as log, pytest.raises(LogDamaged, match=fault):
        log.verify()


def test_the_newest_entry_is_looked_at_when_the_log_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path)
    with pytest.raises(LogDamaged, match="was not signed by"):
        AccessLog(path, chain_id=CHAIN, key=testing.key(2))
    with pytest.raises(StoreError, match="another chain"):
        AccessLog(path, chain_id=b"d" * 32, key=PROXY)
    change(path, "UPDATE entries SET raw = zeroblob(10) WHERE number = 11")
    with pytest.raises(LogDamaged, match="an entry is damaged"):
        open_log(path)
    # The file was closed again: another process may open it.
    change(path, "DELETE FROM entries WHERE number = 11")
    open_log(path).close()


# ---------------------------------------------------------------- a proxy that lies to the patient


def rewritten(
    page: AccessPage, change_it: Callable[[list[SignedEntry]], object], *, patient_count: int = -1
) -> AccessPage:
    """A page that the proxy itself has signed anew, as it can."""
    entries = list(page.entries)
    change_it(entries)
    head = page.head
    if patient_count >= 0:
        head = msgspec.structs.replace(head, patient_count=patient_count)
    return AccessPage(tuple(entries), head, PROXY.sign(head_digest(CHAIN, head)))


def test_a_patient_finds_out_what_was_left_out_changed_or_added(tmp_path: Path) -> None:
    filled(tmp_path / "log")
    with open_log(tmp_path / "log") as log:
        page, others = log.page(ALICE, 0, 5_000), log.page(BOB, 0, 5_000)
    assert len(trail().advance(page)) == 6

    def resign(entries: list[SignedEntry]) -> None:
        entries[2] = sign_entry(CHAIN, PROXY, msgspec.structs.replace(entries[2].entry, reason=RefusalReason.BUSY))

    def forge(entries: list[SignedEntry]) -> None:
        entry = msgspec.structs.replace(entries[5].entry, reason=RefusalReason.BUSY)
        entries[5] = SignedEntry(entry, entries[5].signature)

    def change_last(entries: list[SignedEntry]) -> None:
        entries[5] = sign_entry(CHAIN, PROXY, msgspec.structs.replace(entries[5].entry, reason=RefusalReason.BUSY))

    lies = {
        "left out": rewritten(page, lambda entries: entries.pop(2)),
        "left out at the end": rewritten(page, lambda entries: entries.clear()),
        "reordered": rewritten(page, lambda entries: entries.reverse()),
        "signed anew": rewritten(page, resign),
        "signed anew at the end": rewritten(page, change_last),
        "forged": rewritten(page, forge),
        "of another patient": rewritten(page, lambda entries: entries.__setitem__(0, others.entries[0])),
        "more than promised": rewritten(page, lambda entries: None, patient_count=5),
        "another patient's head": AccessPage(page.entries, others.head, others.signature),
        "head not signed": AccessPage(page.entries, page.head, page.entries[0].signature),
    }
    for name, lie in lies.items():
        with pytest.raises(TrailBroken):
            trail().advance(lie)
        assert name


def test_a_proxy_that_rewrites_its_log_contradicts_a_head_that_it_signed(tmp_path: Path) -> None:
    filled(tmp_path / "one")
    with open_log(tmp_path / "two") as log:
        for number in range(20):
            log.append(access(ALICE, number + 50))
    with open_log(tmp_path / "one") as first, open_log(tmp_path / "two") as second:
        known = trail()
        known.advance(first.page(ALICE, 0, 5_000, limit=3))
        # Not read to the end yet, but six were promised, and the sixth is another one now.
        with pytest.raises(TrailBroken):
            known.advance(second.page(ALICE, 3, 6_000))
        shorter = trail()
        shorter.advance(second.page(ALICE, 0, 5_000))
        with pytest.raises(TrailBroken, match="shows 6 entries, and had 20"):
            shorter.advance(first.page(ALICE, 20, 6_000))


def test_two_heads_of_one_length_convict(tmp_path: Path) -> None:
    filled(tmp_path / "log")
    with open_log(tmp_path / "log") as log:
        page = log.page(ALICE, 0, 5_000, limit=2)
    known = trail()
    known.advance(page)
    head = msgspec.structs.replace(page.head, patient_last=bytes(32))
    with pytest.raises(TrailBroken, match="two heads"):
        known.advance(AccessPage((), head, PROXY.sign(head_digest(CHAIN, head))))


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_entry_page_or_query(data: bytes) -> None:
    for decode in (decode_entry, decode_page, decode_query):
        with pytest.raises(InvalidInput):
            decode(data)
