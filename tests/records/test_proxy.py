# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision of a proxy against its rule written down once more, dumbly; and the bytes that signatures rest on, fixed."""

from collections.abc import Iterator
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.codec import encode
from ledger.emergency import Approval, Emergency, Verdict
from ledger.patients import Record, record_id
from ledger.sharing import Grant, GrantTerms, grant_id
from ledger.state import EMERGENCIES, RECORDS, numbered_key
from records.access_entries import AccessEntry, entry_hash
from records.envelope import capsule_digest
from records.proxy import AuthenticRequest, ProxyView, judge
from records.requests import ReencryptionRequest, RefusalReason, RequestedRecord, request_digest

CHAIN = b"c" * 32
PATIENT, GRANTEE = testing.key(20), testing.key(5)
KEYBLOCK = testing.patient_keyblock(PATIENT, testing.key(0).address, 20)
CAPSULES = [bytes([number]) * 105 for number in range(5)]
PROXIES = tuple(testing.key(number).address for number in (1, 2, 3))


class Reader:
    """A state of a few records, those with an odd number under newer keys, and perhaps an emergency."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        for number, body in enumerate(testing.record_chain(testing.key(0).address, KEYBLOCK, 4)):
            envelope = body.envelope.__replace__(capsule_digest=capsule_digest(CAPSULES[number]))
            record = Record(
                record_id=record_id(body.microblock),
                generation=number % 2,
                microblock=body.microblock,
                envelope=envelope,
                opening=body.opening,
                label_count=0,
                may_erase=False,
                committed_height=1,
                committed_timestamp_ms=1,
            )
            self.put(RECORDS.prefix + numbered_key(PATIENT.address, number), encode(record))

    def put(self, key: bytes, value: bytes) -> None:
        self.entries[key] = value

    def get_state(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        raise AssertionError("a decision takes look-ups only")


T = TypeVar("T")
VERDICTS: tuple[Verdict, ...] = ("", "justified", "unjustified")
ASPECTS = (
    *("head", "clock", "from", "until", "records", "wanted", "capsule", "purpose", "proxy", "revoked"),
    *("missing", "grant", "requester", "end", "approvals", "verdict", "number"),
)


def rising(numbers: set[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))


@settings(max_examples=600)
@given(st.data())
def test_the_decision_is_the_rule(data: st.DataObject) -> None:
    odd = data.draw(st.sets(st.sampled_from(ASPECTS), max_size=2))

    def draw(aspect: str, usual: T, strange: st.SearchStrategy[T]) -> T:
        """What is usual allows; what is drawn may or may not."""
        return data.draw(strange) if aspect in odd else usual

    times = st.integers(0, 6)
    head_ms, clock_ms = draw("head", 3, times), draw("clock", 3, times)
    from_ms, until_ms = draw("from", 3, times), draw("until", 4, times)
    all_records = data.draw(st.booleans())
    records = () if all_records else draw("records", (0, 2), st.sets(st.integers(0, 4), max_size=4).map(rising))
    purposes = data.draw(st.sampled_from([("TREAT",), ("ETREAT", "TREAT")]))
    wanted = draw("wanted", (0,), st.sets(st.integers(0, 4), min_size=1, max_size=3).map(rising))
    wrong_capsule = draw("capsule", None, st.sampled_from([None, *wanted]))
    purpose = draw("purpose", "TREAT", st.sampled_from(["TREAT", "ETREAT", "HRESCH", "other"]))
    proxy = draw("proxy", PROXIES[2], st.sampled_from([*PROXIES, testing.key(4).address]))
    revoked = draw("revoked", 0, st.sampled_from([0, 7]))
    approvals_needed = data.draw(st.sampled_from([0, 2]))
    terms = GrantTerms(
        patient=PATIENT.address,
        generation=0,
        grantee=GRANTEE.address,
        receiving_key=testing.encryption_key(5),
        all_records=all_records,
        records=records,
        purposes=purposes,
        from_ms=from_ms,
        until_ms=until_ms,
        threshold=2,
        proxies=PROXIES,
        fragment_digests=(bytes(32),) * 3,
        emergency_approvals=approvals_needed,
    )
    grant = Grant(0, terms, PATIENT.public_key, 1, 1, revoked, (0, 0, 0), 0, 0)
    reader = Reader()
    emergency = None
    if approvals_needed and not draw("missing", False, st.booleans()):  # noqa: FBT003 -- a usual value, no switch
        emergency = Emergency(
            grant_id=draw("grant", grant_id(terms), st.just(bytes(32))),
            requester=draw("requester", GRANTEE.address, st.just(PROXIES[0])),
            reason="trauma",
            opened_height=1,
            opened_timestamp_ms=0,
            until_ms=draw("end", 6, times),
            approvals=tuple(Approval(address, 1) for address in PROXIES[: draw("approvals", 2, st.integers(0, 3))]),
            needed=approvals_needed,
            verdict=draw("verdict", "", st.sampled_from(VERDICTS)),
            reviewed_height=0,
        )
        reader.put(EMERGENCIES.prefix + numbered_key(PATIENT.address, 3), encode(emergency))
    number = draw("number", 3, st.sampled_from([3, 2, None]))
    request = ReencryptionRequest(
        requester=GRANTEE.public_key,
        grant_id=grant_id(terms),
        emergency=number,
        purpose=purpose,
        records=tuple(
            RequestedRecord(sequence, CAPSULES[(sequence + (sequence == wrong_capsule)) % 5]) for sequence in wanted
        ),
        issued_ms=clock_ms,
        nonce=bytes(16),
    )
    view = ProxyView(reader, CHAIN, 9, head_ms, clock_ms, is_catching_up=False)
    said = judge(view, proxy, AuthenticRequest(request, bytes(32), grant))

    awake = not approvals_needed or (
        emergency is not None
        and number == 3
        and emergency.grant_id == grant_id(terms)
        and emergency.requester == GRANTEE.address
        and len(emergency.approvals) >= 2
        and emergency.verdict != "unjustified"
        and head_ms < emergency.until_ms
        and clock_ms < emergency.until_ms
    )
    allowed = (
        proxy in PROXIES
        and not revoked
        and from_ms <= head_ms < until_ms
        and clock_ms < until_ms
        and awake
        and purpose in purposes
        and all(sequence in (0, 2) and (all_records or sequence in records) for sequence in wanted)
        and wrong_capsule is None
    )
    assert (said is None) == allowed, said
    assert said is None or said in RefusalReason


# ---------------------------------------------------------------- bytes that outlive the code


REQUEST = ReencryptionRequest(
    requester=GRANTEE.public_key,
    grant_id=bytes(range(32)),
    emergency=None,
    purpose="TREAT",
    records=(RequestedRecord(0, CAPSULES[0]), RequestedRecord(300, CAPSULES[1])),
    issued_ms=1_767_225_600_000,
    nonce=bytes(range(16)),
)
ENTRY = AccessEntry(
    proxy=PROXIES[0],
    number=7,
    previous=bytes(range(32)),
    patient=PATIENT.address,
    patient_number=3,
    patient_previous=bytes(range(32, 64)),
    grant_id=bytes(range(32)),
    records=(0, 300),
    requester=GRANTEE.public_key,
    purpose="TREAT",
    emergency=2,
    reason=RefusalReason.REVOKED,
    request_digest=bytes(range(64, 96)),
    fragments_digest=bytes(32),
    head_height=1_000,
    timestamp_ms=1_767_225_600_000,
)


def test_golden_digests_of_a_request_and_of_an_entry() -> None:
    """Signatures of grantees and proxies rest on them, also those that are kept as evidence."""
    assert request_digest(CHAIN, REQUEST).hex() == "4d7729772621a27013f4faa82917bfa7dfadc4c3ec5cfedc8d89a1f396d8abd1"
    assert entry_hash(ENTRY).hex() == "d6f23838f6d92ac58245bed7b8af63e9454fe0f572e24e585f53bd82560bc493"
