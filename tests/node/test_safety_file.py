# SPDX-License-Identifier: GPL-3.0-or-later
"""What a member promised survives crashes at any byte, full disks and interrupted beginnings."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.messages import Certificate, Proposal, TimeoutCertificate, TimeoutPart
from consensus.safety import SafetyRecord
from ledger.blocks import (
    MAX_BLOCK_BATCHES,
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
)
from ledger.codec import encode
from ledger.errors import StoreError
from ledger.rules import MAX_COMMITTEE
from ledger.votes import SignedIndex
from node.safety_file import MAX_PROPOSALS, SLOT_BYTES, SafetyFile, SafetySnapshot

BIG = 2**63 - 1
DIGEST = b"\xff" * 32
CERTIFICATE = Certificate(0, 0, DIGEST, ())


def snapshot(number: int) -> SafetySnapshot:
    return SafetySnapshot(SafetyRecord(0, number, 0, -1, CERTIFICATE, None), ())


def largest_proposal() -> Proposal:
    header = MicroblockHeader(
        BIG, BIG, BIG, BIG, DIGEST, DIGEST, DIGEST, b"\xff" * 20, BIG, MAX_BLOCK_BATCHES, DIGEST, DIGEST, BIG, DIGEST
    )
    signature = b"\xff" * 64
    keyblock = Keyblock(DIGEST, DIGEST, b"\xff" * 33, b"\xff" * 48, BIG, DIGEST, BIG, DIGEST, DIGEST)
    block = Microblock(header, (DIGEST,) * MAX_BLOCK_BATCHES, SignedKeyblock(keyblock, signature), b"\xff" * 96)
    signed = SignedMicroblock(block, signature)
    votes = tuple(SignedIndex(member, signature) for member in range(MAX_COMMITTEE))
    parts = tuple(TimeoutPart(member, BIG, signature) for member in range(MAX_COMMITTEE))
    return Proposal(signed, Certificate(BIG, BIG, DIGEST, votes), TimeoutCertificate(BIG, BIG, parts))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "safety"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def voted_round(path: Path) -> int | None:
    file = SafetyFile(path)
    found = file.snapshot
    file.close()
    return None if found is None else found.record.voted_round


def saved(path: Path, *numbers: int) -> None:
    file = SafetyFile(path)
    for number in numbers:
        file.save(snapshot(number))
    file.close()


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_a_new_file_holds_nothing_and_its_room_is_taken(path: Path) -> None:
    assert voted_round(path) is None
    assert path.stat().st_size == 2 * SLOT_BYTES
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_newest_promise_is_found_again(path: Path, count: int) -> None:
    saved(path, *range(1, count + 1))
    assert voted_round(path) == count
    saved(path, 100)
    assert voted_round(path) == 100


@pytest.mark.parametrize("count", [2, 3])
def test_a_torn_promise_gives_way_to_the_one_before(path: Path, count: int) -> None:
    saved(path, *range(1, count + 1))
    size = 44 + len(encode(snapshot(count)))
    whole = path.read_bytes()
    start = (count % 2) * SLOT_BYTES
    for torn in range(0, size, 7):
        overwrite(path, start, whole[start : start + torn] + b"\xaa" * (size - torn))
        assert voted_round(path) == count - 1
    saved(path, 50)
    assert voted_round(path) == 50


def test_a_torn_first_promise_is_none_for_nothing_rests_on_it(path: Path) -> None:
    saved(path, 1)
    overwrite(path, SLOT_BYTES + 50, b"\xaa\xaa\xaa")
    assert voted_round(path) is None


def test_two_damaged_copies_are_refused_with_a_remedy(path: Path) -> None:
    saved(path, 1, 2)
    overwrite(path, 50, b"\xaa\xaa\xaa")
    overwrite(path, SLOT_BYTES + 50, b"\xaa\xaa\xaa")
    with pytest.raises(StoreError, match=r"both copies.*Restore"):
        SafetyFile(path)


@pytest.mark.parametrize("size", [0, 1, 4096, SLOT_BYTES + 5])
def test_a_creation_that_was_interrupted_is_finished(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    saved(path, 7)
    assert voted_round(path) == 7
    assert path.stat().st_size == 2 * SLOT_BYTES


def test_the_largest_snapshot_fits_into_a_slot(path: Path) -> None:
    proposal = largest_proposal()
    record = SafetyRecord(BIG, BIG, BIG, BIG, proposal.certificate, proposal.timeout_certificate)
    file = SafetyFile(path)
    file.save(SafetySnapshot(record, (proposal,) * MAX_PROPOSALS))
    file.close()
    again = SafetyFile(path)
    assert again.snapshot is not None
    assert len(again.snapshot.proposals) == MAX_PROPOSALS
    again.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        yield patch


def _no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_refuses_the_promise_and_keeps_the_one_before(
    path: Path, full_disk: pytest.MonkeyPatch, call: str
) -> None:
    saved(path, 1, 2)
    file = SafetyFile(path)
    full_disk.setattr(os, call, _no_space)
    for _ in range(3):
        with pytest.raises(StoreError, match="No space"):
            file.save(snapshot(3))
    assert file.snapshot == snapshot(2)
    full_disk.undo()
    file.save(snapshot(3))
    file.close()
    assert voted_round(path) == 3


def test_a_write_that_stops_half_way_is_no_promise(path: Path, full_disk: pytest.MonkeyPatch) -> None:
    saved(path, 1, 2)
    file = SafetyFile(path)
    write = os.pwrite
    full_disk.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[: len(data) // 2], offset))
    with pytest.raises(StoreError, match="No space"):
        file.save(snapshot(3))
    full_disk.undo()
    file.close()
    assert voted_round(path) == 2


def test_no_room_at_the_beginning_is_told_and_leaves_no_open_file(path: Path, full_disk: pytest.MonkeyPatch) -> None:
    before = open_files()
    full_disk.setattr(os, "posix_fallocate", _no_space)
    with pytest.raises(StoreError, match="check space"):
        SafetyFile(path)
    assert open_files() == before
    full_disk.undo()
    assert voted_round(path) is None


def test_what_cannot_be_opened_or_read_is_told(tmp_path: Path, path: Path, full_disk: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        SafetyFile(tmp_path)
    saved(path, 1)
    full_disk.setattr(os, "pread", _no_space)
    with pytest.raises(StoreError, match="cannot open"):
        SafetyFile(path)
