# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence: what proves misbehaviour by itself, and everything that only looks like it."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.blocks import MicroblockHeader, microblock_hash, microblock_signing_digest
from ledger.bodies import ReportMisbehaviour
from ledger.codec import decode, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.evidence import (
    ConflictingMicroblocks,
    ConflictingVotes,
    Evidence,
    Guilt,
    check_evidence,
    conflicting_microblocks,
    conflicting_votes,
)
from ledger.genesis import chain_id
from ledger.votes import vote_digest

CHAIN = chain_id(testing.genesis())
OFFENDER, OTHER = testing.key(1), testing.key(2)
VOTES = testing.votes_evidence(CHAIN, 1, 3, 77)
MICROBLOCKS = testing.microblocks_evidence(CHAIN, 1, 3, 77)


@pytest.mark.parametrize("evidence", [VOTES, MICROBLOCKS])
def test_two_signatures_of_one_round_prove_who_when(evidence: Evidence) -> None:
    assert check_evidence(CHAIN, evidence) == Guilt(OFFENDER.public_key, 3, 77)


@pytest.mark.parametrize("evidence", [VOTES, MICROBLOCKS])
def test_evidence_of_one_chain_proves_nothing_on_another(evidence: Evidence) -> None:
    with pytest.raises(InvalidInput, match="has not signed both parts"):
        check_evidence(chain_id(testing.genesis(network="other")), evidence)


def votes(**changes: object) -> ConflictingVotes:
    return msgspec.structs.replace(VOTES, **changes)


def signed(header: MicroblockHeader) -> tuple[MicroblockHeader, bytes]:
    return header, OFFENDER.sign(microblock_signing_digest(CHAIN, microblock_hash(header)))


def microblocks(one: dict[str, object], other: dict[str, object]) -> ConflictingMicroblocks:
    """Return evidence of which both headers are changed and signed by the offender."""
    headers = (msgspec.structs.replace(MICROBLOCKS.first, **one), msgspec.structs.replace(MICROBLOCKS.second, **other))
    return conflicting_microblocks(OFFENDER.public_key, signed(headers[0]), signed(headers[1]))


def vote(block_hash: bytes, *, epoch: int = 3, round_: int = 77) -> bytes:
    return OFFENDER.sign(vote_digest(CHAIN, epoch, round_, block_hash))


FALSE: dict[str, tuple[Evidence, str]] = {
    "votes of another epoch": (votes(epoch=4), "has not signed"),
    "votes of another round": (votes(round=78), "has not signed"),
    "first vote of another round": (
        votes(first_signature=vote(VOTES.first_hash, round_=78)),
        "has not signed",
    ),
    "second vote of another epoch": (
        votes(second_signature=vote(VOTES.second_hash, epoch=4)),
        "has not signed",
    ),
    "somebody else's votes": (votes(offender=OTHER.public_key), "has not signed"),
    "offender that is no point": (votes(offender=b"\x02" + b"\xff" * 32), "has not signed"),
    "first vote not signed": (votes(first_signature=bytes(64)), "has not signed"),
    "second vote not signed": (votes(second_signature=b"\xff" * 64), "has not signed"),
    "signatures exchanged": (
        votes(first_signature=VOTES.second_signature, second_signature=VOTES.first_signature),
        "has not signed",
    ),
    "one vote twice": (
        votes(second_hash=VOTES.first_hash, second_signature=VOTES.first_signature),
        "both parts are one",
    ),
    "votes in the other order": (
        votes(
            first_hash=VOTES.second_hash,
            first_signature=VOTES.second_signature,
            second_hash=VOTES.first_hash,
            second_signature=VOTES.first_signature,
        ),
        "not in the order of their hashes",
    ),
    "a proposal and a vote": (
        votes(
            first_signature=OFFENDER.sign(microblock_signing_digest(CHAIN, VOTES.first_hash)),
        ),
        "has not signed",
    ),
    "microblocks of two rounds": (microblocks({}, {"round": 78}), "different rounds"),
    "microblocks of two epochs": (microblocks({}, {"epoch": 4}), "different rounds"),
    "microblocks of another leader": (
        microblocks({"leader": OTHER.address}, {"leader": OTHER.address}),
        "not both led",
    ),
    "one microblock of another leader": (microblocks({}, {"leader": OTHER.address}), "not both led"),
    "leader's microblocks under another name": (
        msgspec.structs.replace(MICROBLOCKS, offender=OTHER.public_key),
        "not both led",
    ),
    "one microblock twice": (microblocks({}, {"timestamp_ms": MICROBLOCKS.first.timestamp_ms}), "both parts are one"),
    "microblocks in the other order": (
        msgspec.structs.replace(
            MICROBLOCKS,
            first=MICROBLOCKS.second,
            first_signature=MICROBLOCKS.second_signature,
            second=MICROBLOCKS.first,
            second_signature=MICROBLOCKS.first_signature,
        ),
        "not in the order of their hashes",
    ),
    "microblock not signed": (msgspec.structs.replace(MICROBLOCKS, second_signature=bytes(64)), "has not signed"),
    "changed microblock": (
        conflicting_microblocks(
            OFFENDER.public_key,
            (msgspec.structs.replace(MICROBLOCKS.first, height=9), MICROBLOCKS.first_signature),
            (MICROBLOCKS.second, MICROBLOCKS.second_signature),
        ),
        "has not signed",
    ),
    "microblocks signed by another": (
        msgspec.structs.replace(
            MICROBLOCKS,
            first_signature=OTHER.sign(microblock_signing_digest(CHAIN, microblock_hash(MICROBLOCKS.first))),
        ),
        "has not signed",
    ),
}


@pytest.mark.parametrize(("evidence", "text"), FALSE.values(), ids=FALSE.keys())
def test_what_an_honest_miner_may_have_signed_or_never_signed_proves_nothing(evidence: Evidence, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        check_evidence(CHAIN, evidence)


digests = st.binary(min_size=32, max_size=32)


@given(digests, digests)
def test_two_votes_have_one_form_whoever_reports_them(one: bytes, other: bytes) -> None:
    parts = [(name, vote(name)) for name in (one, other)]
    evidence = conflicting_votes(OFFENDER.public_key, 3, 77, parts[0], parts[1])
    assert evidence == conflicting_votes(OFFENDER.public_key, 3, 77, parts[1], parts[0])
    if one == other:
        with pytest.raises(InvalidInput):
            check_evidence(CHAIN, evidence)
    else:
        assert check_evidence(CHAIN, evidence).offender == OFFENDER.public_key


@given(digests, digests)
def test_two_proposals_have_one_form_whoever_reports_them(one: bytes, other: bytes) -> None:
    parts = [signed(msgspec.structs.replace(MICROBLOCKS.first, parent=parent)) for parent in (one, other)]
    evidence = conflicting_microblocks(OFFENDER.public_key, parts[0], parts[1])
    assert evidence == conflicting_microblocks(OFFENDER.public_key, parts[1], parts[0])
    if one == other:
        with pytest.raises(InvalidInput):
            check_evidence(CHAIN, evidence)
    else:
        assert check_evidence(CHAIN, evidence) == Guilt(OFFENDER.public_key, 3, 77)


@given(st.sampled_from([VOTES, MICROBLOCKS]), st.data())
def test_no_changed_byte_leaves_a_proof(evidence: Evidence, data: st.DataObject) -> None:
    raw = bytearray(encode(ReportMisbehaviour(evidence)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        report = decode(ReportMisbehaviour, bytes(raw), 4096)
    except InvalidInput:
        return
    with pytest.raises(InvalidInput, match=r"^evidence: "):
        check_evidence(CHAIN, report.evidence)


Wrong = Callable[[bytes], bytes]
HOSTILE: dict[str, Wrong] = {
    "unknown kind": lambda raw: raw.replace(b"\x98\x01\xc4\x21", b"\x98\x03\xc4\x21", 1),
    "kind of the other": lambda raw: raw.replace(b"\x98\x01\xc4\x21", b"\x98\x02\xc4\x21", 1),
    "kind in a longer form": lambda raw: raw.replace(b"\x98\x01\xc4\x21", b"\x98\xcc\x01\xc4\x21", 1),
    "missing part": lambda raw: raw.replace(b"\x98\x01", b"\x97\x01", 1)[:-66],
    "extra part": lambda raw: raw.replace(b"\x98\x01", b"\x99\x01", 1) + b"\xc0",
    "short signature": lambda raw: raw[:-66] + b"\xc4\x3f" + bytes(63),
    "no evidence": lambda _: b"\x92\x06\xc0",
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_evidence_of_another_form_is_not_decoded(change: Wrong) -> None:
    raw = encode(ReportMisbehaviour(VOTES))
    assert decode(ReportMisbehaviour, raw, 4096).evidence == VOTES
    assert change(raw) != raw
    with pytest.raises(InvalidInput):
        decode(ReportMisbehaviour, change(raw), 4096)


def test_signatures_of_votes_and_proposals_can_never_be_taken_for_each_other() -> None:
    name = tagged_hash(Tag.MICROBLOCK, b"any")
    assert vote_digest(CHAIN, 0, 0, name) != microblock_signing_digest(CHAIN, name)
