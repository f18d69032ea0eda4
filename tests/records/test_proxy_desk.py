# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy at work: fragments come in verified, go for good, and nothing leaves that is not written down."""

import copy
import dataclasses
import sqlite3
from contextlib import suppress
from typing import SupportsBytes, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger import testing
from ledger.bodies import ConfirmDeletion, DelegatePowers, GrantAccess
from ledger.codec import encode
from ledger.crypto.reencryption import DecryptionFailed, InvalidFragment, encrypt
from ledger.errors import InvalidInput
from ledger.sharing import Grant, fragment_digest, grant_id
from records.access_entries import AccessEntry, Trail, decode_page, is_own_read, sign_query
from records.answers import decode_answer
from records.blob_store import StorageFull
from records.fragment_store import FragmentStore
from records.grants import FragmentParcel, SealedFragment, check_receipt, decode_sealed
from records.proxy import AuthenticRequest, ReplayWindow
from records.proxy_desk import STRANGERS_BURST, STRANGERS_INTERVAL_MS, FragmentRefused, QueryRefused
from records.requests import FRESHNESS_MS, ReencryptionRequest, RefusalReason, RequestedRecord, SignedRequest
from tests.records.world import GRANTEE, PATIENT, World, encryption, hospital

PROXIES = tuple(testing.key(number).address for number in (1, 2, 3))


def said(world: World, signed: SignedRequest, proxy: bytes = PROXIES[0]) -> RefusalReason | None:
    raw = world.desks[proxy].answer(encode(signed), world.view())
    assert raw is not None
    return decode_answer(raw).entry.entry.reason


# ---------------------------------------------------------------- fragments come in


def test_each_proxy_answers_with_a_receipt_for_its_own_fragment(world: World) -> None:
    prepared = world.prepare()
    world.submit(world.patient, GrantAccess(prepared.terms))
    receipts = world.deliver(prepared)
    for proxy, raw in zip(PROXIES, receipts, strict=True):
        receipt = check_receipt(world.chain, raw, prepared, proxy, testing.key(hospital(proxy)).public_key)
        assert receipt.head_height == world.store.head().height
    with pytest.raises(InvalidInput, match="another fragment"):
        check_receipt(world.chain, receipts[0], prepared, PROXIES[1], testing.key(2).public_key)
    with pytest.raises(InvalidInput, match="not signed"):
        check_receipt(world.chain, receipts[0], prepared, PROXIES[0], testing.key(2).public_key)
    with pytest.raises(InvalidInput, match="not signed"):
        check_receipt(bytes(32), receipts[0], prepared, PROXIES[0], testing.key(1).public_key)


def test_a_fragment_comes_again_without_harm(world: World) -> None:
    prepared = world.grant()
    world.deliver(prepared)
    assert len(world.fragments[PROXIES[0]]) == 1
    assert said(world, world.request(prepared)) is None


def test_no_proxy_can_open_the_fragment_of_another(world: World) -> None:
    prepared = world.prepare()
    world.submit(world.patient, GrantAccess(prepared.terms))
    raw = prepared.seal(PROXIES[0], testing.encryption_key(1))
    with pytest.raises(FragmentRefused):
        world.desks[PROXIES[1]].take_fragment(raw, world.view())
    readdressed = msgspec.structs.replace(decode_sealed(raw), proxy=PROXIES[1])
    with pytest.raises(DecryptionFailed):
        world.desks[PROXIES[1]].take_fragment(encode(readdressed), world.view())
    assert not len(world.fragments[PROXIES[1]])


def test_a_fragment_for_one_proxy_in_the_place_of_anothers_is_found_out(world: World) -> None:
    """Whoever relays them can put names outside as he likes, and a patient's client may be wrong: inside counts."""
    first, second = world.prepare(), world.prepare()
    for prepared in (first, second):
        world.submit(world.patient, GrantAccess(prepared.terms))
    place = dict(zip(PROXIES, range(3), strict=True))

    def sealed(grant_id: bytes, inside: FragmentParcel) -> bytes:
        return encode(SealedFragment(grant_id, PROXIES[0], *encrypt(testing.encryption_key(1), encode(inside))))

    def parcel(grant_id: bytes, proxy: bytes, fragment: SupportsBytes) -> FragmentParcel:
        return FragmentParcel(grant_id, proxy, bytes(fragment))

    own = first.fragments[place[PROXIES[0]]]
    cases = {
        "exchanged, grant": sealed(first.grant_id, parcel(second.grant_id, PROXIES[0], own)),
        "exchanged, proxy": sealed(first.grant_id, parcel(first.grant_id, PROXIES[1], own)),
        "anothers fragment": sealed(first.grant_id, parcel(first.grant_id, PROXIES[0], first.fragments[1])),
        "another grants fragment": sealed(first.grant_id, parcel(first.grant_id, PROXIES[0], second.fragments[0])),
        "no fragment": sealed(first.grant_id, FragmentParcel(first.grant_id, PROXIES[0], bytes(310))),
    }
    for name, raw in cases.items():
        with pytest.raises(InvalidFragment):
            world.desks[PROXIES[0]].take_fragment(raw, world.view())
        assert not len(world.fragments[PROXIES[0]]), name
    right = sealed(first.grant_id, parcel(first.grant_id, PROXIES[0], own))
    world.desks[PROXIES[0]].take_fragment(right, world.view())


def test_a_forged_fragment_that_the_chain_names_is_still_refused(world: World) -> None:
    """A patient's client that puts the digest of rubbish on the chain gets no receipt."""
    honest = world.prepare()
    # The first fragment was split with a stranger's signature.
    stranger = testing.key(30)
    split = encryption(PATIENT).split(testing.encryption_key(GRANTEE), stranger.secret, threshold=2, shares=3)
    forged = bytes(split[0])
    digests = (fragment_digest(forged), *honest.terms.fragment_digests[1:])
    terms = msgspec.structs.replace(honest.terms, fragment_digests=digests)
    world.submit(world.patient, GrantAccess(terms))
    parcel = FragmentParcel(grant_id(terms), PROXIES[0], forged)
    raw = encode(SealedFragment(grant_id(terms), PROXIES[0], *encrypt(testing.encryption_key(1), encode(parcel))))
    with pytest.raises(InvalidFragment):
        world.desks[PROXIES[0]].take_fragment(raw, world.view())


def test_fragments_come_only_for_living_grants_of_this_proxy(world: World) -> None:
    def refused(raw: bytes, proxy: bytes = PROXIES[0], *, is_catching_up: bool = False) -> RefusalReason:
        with pytest.raises(FragmentRefused) as caught:
            world.desks[proxy].take_fragment(raw, world.view(is_catching_up=is_catching_up))
        return caught.value.reason

    prepared = world.prepare(until_ms=world.now_ms() + 5_000)
    raw = prepared.seal(PROXIES[0], testing.encryption_key(1))
    assert refused(raw) is RefusalReason.UNKNOWN_GRANT
    world.submit(world.patient, GrantAccess(prepared.terms))
    assert refused(raw, is_catching_up=True) is RefusalReason.CATCHING_UP
    assert refused(raw, testing.key(4).address) is RefusalReason.NOT_A_PROXY
    world.pass_blocks(5)
    assert refused(raw) is RefusalReason.EXPIRED
    revoked = world.grant()
    world.revoke(revoked)
    assert refused(revoked.seal(PROXIES[0], testing.encryption_key(1))) is RefusalReason.REVOKED


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_sealed_fragment(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_sealed(data)


# ---------------------------------------------------------------- fragments go


def test_a_sweep_deletes_what_was_revoked_and_says_what_to_confirm(world: World) -> None:
    kept, revoked = world.grant(), world.grant()
    world.revoke(revoked)
    desk = world.desks[PROXIES[0]]
    sweep = desk.sweep(world.view())
    assert (sweep.revoked, sweep.expired, sweep.owed) == (1, 0, (revoked.grant_id,))
    assert world.fragments[PROXIES[0]].get(revoked.grant_id) is None
    assert world.fragments[PROXIES[0]].get(kept.grant_id) is not None
    # Until it is confirmed on the chain it stays owed, also when there is nothing left to delete.
    assert desk.sweep(world.view()).owed == (revoked.grant_id,)
    world.submit(testing.key(1), ConfirmDeletion(revoked.grant_id))
    assert desk.sweep(world.view()).owed == ()
    assert world.granted(revoked).deletions[0] == world.store.head().height


def test_a_sweep_deletes_what_has_ended_by_the_chains_time_only(world: World) -> None:
    prepared = world.grant(until_ms=world.now_ms() + 5_000)
    desk = world.desks[PROXIES[0]]
    assert desk.sweep(world.view(clock_ms=2**62)).expired == 0
    world.pass_blocks(5)
    assert desk.sweep(world.view()).expired == 1
    assert world.fragments[PROXIES[0]].get(prepared.grant_id) is None


def test_a_proxy_that_was_away_deletes_before_it_serves_anything(world: World) -> None:
    prepared, revoked = world.grant(), world.grant()
    world.close_desk(PROXIES[0])
    world.revoke(revoked)
    desk = world.desks[PROXIES[0]] = world.open_desk(1)
    assert said(world, world.request(prepared)) is RefusalReason.CATCHING_UP
    # What it knows it deletes at once, but it may not know all yet.
    assert desk.sweep(world.view(is_catching_up=True)).revoked == 1
    assert said(world, world.request(prepared)) is RefusalReason.CATCHING_UP
    assert world.fragments[PROXIES[0]].get(revoked.grant_id) is None
    desk.sweep(world.view())
    assert said(world, world.request(prepared)) is None


def test_a_fragment_that_was_swept_does_not_come_back(world: World) -> None:
    prepared = world.prepare()
    world.submit(world.patient, GrantAccess(prepared.terms))
    raw = prepared.seal(PROXIES[0], testing.encryption_key(1))
    before = dataclasses.replace(world.view(), reader=copy.deepcopy(world.store))
    world.revoke(prepared)
    world.desks[PROXIES[0]].sweep(world.view())
    with pytest.raises(FragmentRefused) as caught:
        world.desks[PROXIES[0]].take_fragment(raw, before)
    assert caught.value.reason is RefusalReason.CATCHING_UP
    assert not len(world.fragments[PROXIES[0]])


# ---------------------------------------------------------------- answers and the log


def test_no_answer_leaves_when_the_log_cannot_be_written(world: World) -> None:
    prepared = world.grant()
    log = world.logs[PROXIES[0]]
    with log._file.transaction() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    log._file._connection.execute(f"PRAGMA max_page_count = {pages}")  # as a full disk does
    answers: list[bytes | None] = []
    desk = world.desks[PROXIES[0]]
    with suppress(StorageFull):
        while len(answers) < 100:  # what is left of the pages takes some
            answers.append(desk.answer(encode(world.request(prepared)), world.view()))
    answered = len(answers)
    assert len(log) == answered < 100
    log._file._connection.execute("PRAGMA max_page_count = 1000000")
    assert said(world, world.request(prepared)) is None
    assert log.verify() == answered + 1


def test_the_log_survives_a_restart_and_a_replay_is_still_known(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    assert said(world, signed) is None
    world.restart_desk(PROXIES[0]).sweep(world.view())
    assert said(world, signed) is RefusalReason.REPLAYED
    assert said(world, world.request(prepared)) is None
    assert world.logs[PROXIES[0]].verify() == 3


def test_a_damaged_fragment_serves_nobody_and_can_be_sent_again(world: World) -> None:
    prepared = world.grant()
    world.close_desk(PROXIES[0])
    with sqlite3.connect(world.folder / "1" / "fragments") as connection:
        connection.execute("UPDATE fragments SET sealed = zeroblob(338)")
    connection.close()
    world.desks[PROXIES[0]] = world.open_desk(1)
    world.desks[PROXIES[0]].sweep(world.view())
    assert said(world, world.request(prepared)) is RefusalReason.NO_FRAGMENT
    world.deliver(prepared)
    assert said(world, world.request(prepared)) is None


def test_a_fragment_that_is_not_the_one_on_the_chain_serves_nobody(world: World) -> None:
    prepared, other = world.grant(), world.grant()
    store = world.fragments[PROXIES[0]]
    wrong = store.get(other.grant_id)
    assert wrong is not None
    store.put(prepared.grant_id, wrong, prepared.terms.until_ms)
    assert said(world, world.request(prepared)) is RefusalReason.NO_FRAGMENT


def test_strangers_can_make_a_proxy_write_only_so_much(world: World) -> None:
    prepared = world.prepare()  # not on the chain: nobody's
    desk, log = world.desks[PROXIES[0]], None
    raw = encode(world.request(prepared))
    answers = [desk.answer(raw, world.view()) for _ in range(STRANGERS_BURST + 20)]
    log = world.logs[PROXIES[0]]
    assert [answer is None for answer in answers] == [False] * STRANGERS_BURST + [True] * 20
    assert len(log) == STRANGERS_BURST
    later = world.view(clock_ms=world.now_ms() + 3 * STRANGERS_INTERVAL_MS)
    assert [desk.answer(raw, later) is None for _ in range(5)] == [False] * 3 + [True] * 2
    # Who has a grant is served all the while.
    granted = world.grant()
    assert said(world, world.request(granted)) is None


def test_a_patient_reads_what_a_proxy_did_and_to_whom(world: World) -> None:
    prepared, elsewhere = world.grant(), world.prepare()
    for signed in (
        world.request(prepared, [0, 2]),
        world.request(elsewhere),
        world.request(prepared, purpose="HRESCH"),
    ):
        said(world, signed)
    entries = read_log(world)
    assert [(entry.records, entry.purpose, entry.reason) for entry in entries] == [
        ((0, 2), "TREAT", None),
        ((0,), "HRESCH", RefusalReason.WRONG_PURPOSE),
    ]
    assert {entry.requester for entry in entries} == {world.grantee.public_key}
    assert {entry.patient for entry in entries} == {world.patient.address}


def read_log(world: World) -> tuple[AccessEntry, ...]:
    trail = Trail(world.chain, PROXIES[0], testing.key(1).public_key, world.patient.address)
    query = sign_query(
        world.chain,
        world.patient,
        proxy=PROXIES[0],
        patient=world.patient.address,
        start=trail.next_number,
        issued_ms=world.now_ms(),
    )
    entries = trail.advance(decode_page(world.desks[PROXIES[0]].show_log(encode(query), world.view())))
    assert trail.is_complete()
    return entries


def test_the_log_is_shown_to_the_patient_and_to_who_may_review_only(world: World) -> None:
    said(world, world.request(world.grant()))
    carer, proxy = testing.key(31), PROXIES[0]

    def refused(key: int | None = None, *, to: bytes = proxy, late_ms: int = 0, chain: bytes = b"") -> RefusalReason:
        asking = world.patient if key is None else testing.key(key)
        query = sign_query(
            chain or world.chain,
            asking,
            proxy=to,
            patient=world.patient.address,
            start=0,
            issued_ms=world.now_ms() + late_ms,
        )
        with pytest.raises(QueryRefused) as caught:
            world.desks[proxy].show_log(encode(query), world.view())
        return caught.value.reason

    assert refused(5) is RefusalReason.NOT_PERMITTED
    assert refused(31) is RefusalReason.NOT_PERMITTED
    assert refused(to=PROXIES[1]) is RefusalReason.NOT_A_PROXY
    assert refused(late_ms=-FRESHNESS_MS - 1) is RefusalReason.STALE
    assert refused(chain=bytes(32)) is RefusalReason.BAD_SIGNATURE
    world.submit(
        world.patient, DelegatePowers(world.patient.address, carer.address, ("grant",), world.now_ms() + 10_000)
    )
    assert refused(31) is RefusalReason.NOT_PERMITTED
    world.submit(
        world.patient, DelegatePowers(world.patient.address, carer.address, ("review",), world.now_ms() + 3_000)
    )
    query = sign_query(
        world.chain, carer, proxy=proxy, patient=world.patient.address, start=0, issued_ms=world.now_ms()
    )
    assert len(decode_page(world.desks[proxy].show_log(encode(query), world.view())).entries) == 1
    world.pass_blocks(3)
    assert refused(31) is RefusalReason.NOT_PERMITTED


# ---------------------------------------------------------------- the memory for replays


def authentic(grantee: int, issued_ms: int, nonce: int) -> AuthenticRequest:
    request = ReencryptionRequest(
        requester=testing.key(grantee).public_key,
        grant_id=bytes(32),
        emergency=None,
        purpose="TREAT",
        records=(RequestedRecord(0, bytes(105)),),
        issued_ms=issued_ms,
        nonce=nonce.to_bytes(16, "big"),
    )
    return AuthenticRequest(request, nonce.to_bytes(32, "big"), cast("Grant", None))  # the grant is not looked at


class Replays(RuleBasedStateMachine):
    """Against a model that never forgets: no request is admitted twice, whatever the clock does."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReplayWindow(capacity=12, per_grantee=5)
        self.clock_ms = 10**12
        self.made: list[AuthenticRequest] = []
        self.admitted: set[bytes] = set()

    @rule(by_ms=st.integers(-300_000, 300_000))
    def pass_time(self, by_ms: int) -> None:
        self.clock_ms += by_ms

    @rule(grantee=st.integers(0, 2), offset_ms=st.integers(-FRESHNESS_MS, FRESHNESS_MS))
    def ask(self, grantee: int, offset_ms: int) -> None:
        self.made.append(authentic(grantee, self.clock_ms + offset_ms, len(self.made)))
        self.admit(self.made[-1])

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        if self.made:
            request = data.draw(st.sampled_from(self.made))
            if abs(request.request.issued_ms - self.clock_ms) <= FRESHNESS_MS:  # `authenticate` refuses the others
                self.admit(request)

    def admit(self, request: AuthenticRequest) -> None:
        if self.window.admit(request, self.clock_ms) is None:
            assert request.digest not in self.admitted
            self.admitted.add(request.digest)

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.window) <= 12


TestReplays = Replays.TestCase
TestReplays.settings = settings(max_examples=60, stateful_step_count=40)


def test_one_grantee_cannot_fill_the_memory_of_a_proxy() -> None:
    window = ReplayWindow(capacity=10, per_grantee=3)
    answers = [window.admit(authentic(1, 10**12, nonce), 10**12) for nonce in range(5)]
    assert answers == [None, None, None, RefusalReason.BUSY, RefusalReason.BUSY]
    assert window.admit(authentic(2, 10**12, 9), 10**12) is None
    # Four minutes later there is room again.
    assert window.admit(authentic(1, 10**12 + 240_001, 10), 10**12 + 240_001) is None
    assert len(window) == 1


def test_a_full_store_refuses_a_fragment_and_changes_nothing(world: World) -> None:
    fragments = world.prepare().fragments
    with FragmentStore(world.folder / "small", chain_id=world.chain, key=bytes(32), capacity=2) as store:
        store.put(b"a" * 32, fragments[0], 1)
        store.put(b"b" * 32, fragments[1], 1)
        with pytest.raises(StorageFull, match="raise the capacity"):
            store.put(b"c" * 32, fragments[2], 1)
        store.put(b"b" * 32, fragments[2], 1)  # in place of another there is room
        assert len(store) == 2
        assert bytes(store.get(b"b" * 32) or b"") == bytes(fragments[2])


# ---------------------------------------------------------------- what the institution reads itself


def test_an_institution_notes_its_own_reading_once_and_nobody_elses(world: World) -> None:
    prepared = world.grant(grantee=testing.key(4).address, receiving_key=testing.encryption_key(4))
    signed = world.request(prepared, key=testing.key(4))
    reader = world.desks[testing.key(4).address]
    for _ in range(3):
        reader.note_read(encode(signed), world.view())
    log = world.logs[testing.key(4).address]
    (noted,) = log.entries(0)
    assert is_own_read(noted.entry)
    assert (noted.entry.patient, noted.entry.fragments_digest) == (world.patient.address, bytes(32))
    forged = encode(msgspec.structs.replace(signed, signature=bytes(64)))
    others = encode(world.request(prepared))
    for raw in (forged, others, b"", b"\xc1"):
        with pytest.raises(InvalidInput):
            reader.note_read(raw, world.view())
    with pytest.raises(InvalidInput):
        world.desks[PROXIES[0]].note_read(encode(signed), world.view())
    assert len(log) == 1
    log.verify()


def test_a_refusal_of_an_own_request_is_no_reading(world: World) -> None:
    """An institution asks itself, by a grant that it is no proxy of: refused, and told apart from a reading."""
    prepared = world.grant(grantee=testing.key(4).address, receiving_key=testing.encryption_key(4))
    own = testing.key(4).address
    assert said(world, world.request(prepared, key=testing.key(4)), own) is RefusalReason.NOT_A_PROXY
    (entry,) = world.logs[own].entries(0)
    assert not is_own_read(entry.entry)
