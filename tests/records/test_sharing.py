# SPDX-License-Identifier: GPL-3.0-or-later
"""From grant to reading: m proxies together let the grantee read, each refuses what the grant does not allow, liars are named."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import ApproveEmergency, ChangeKeys, OpenEmergency
from ledger.codec import encode
from ledger.crypto.reencryption import DecryptionFailed, VerifiedCapsuleFragment, encrypt, verify_capsule_fragment
from ledger.errors import InvalidInput
from ledger.patients import PatientKeyblock, patient_keyblock_signing_digest
from ledger.state import PATIENTS
from records.access_entries import fragments_digest, sign_entry
from records.answers import Collection, FaultKind, ProxyAnswer, decode_answer, encode_answer
from records.envelope import open_shared, parse_blob
from records.grants import PreparedGrant
from records.requests import RefusalReason, SignedRequest, decode_request
from tests.records.world import GRANTEE, HOUR_MS, PATIENT, World, encryption, hospital

PROXIES = tuple(testing.key(number).address for number in (1, 2, 3))
BUNDLES = [b'{"resourceType":"Bundle","record":%d}' % number for number in range(3)]


def collection(world: World, prepared: PreparedGrant, signed: SignedRequest) -> Collection:
    keys = {testing.key(number).address: testing.key(number).public_key for number in range(6)}
    return Collection(world.chain, signed, world.granted(prepared), encryption(PATIENT).public_key, keys)


def ask(world: World, proxy: bytes, signed: SignedRequest) -> bytes:
    answer = world.desks[proxy].answer(encode(signed), world.view())
    assert answer is not None
    return answer


def reason(
    world: World, signed: SignedRequest, proxy: bytes = PROXIES[0], clock_ms: int | None = None
) -> RefusalReason | None:
    """What one proxy says; None when it re-encrypts. The entry that it hands out is the one in its log."""
    raw = world.desks[proxy].answer(encode(signed), world.view(clock_ms=clock_ms))
    assert raw is not None
    answer = decode_answer(raw)
    assert world.logs[proxy].entries(len(world.logs[proxy]) - 1) == (answer.entry,)
    said = answer.entry.entry.reason
    assert len(answer.fragments) == (0 if said else len(signed.request.records))
    return said


def read(world: World, prepared: PreparedGrant, signed: SignedRequest) -> dict[int, bytes]:
    """Collect answers as a client does and decrypt at home."""
    found = collection(world, prepared, signed)
    while asked := found.ask():
        for proxy in asked:
            found.add(proxy, ask(world, proxy, signed))
    assert found.is_complete(), found.explain()
    return {
        record.sequence: open_shared(
            parse_blob(world.blobs[record.sequence].blob), encryption(GRANTEE), found.fragments(record.sequence)
        )
        for record in signed.request.records
    }


# ---------------------------------------------------------------- what is allowed


def test_the_grantee_reads_through_two_of_three_proxies(world: World) -> None:
    prepared = world.grant()
    assert read(world, prepared, world.request(prepared, [0, 1, 2])) == dict(enumerate(BUNDLES))


def test_a_record_written_after_a_grant_of_all_is_readable(world: World) -> None:
    prepared = world.grant()
    later = world.add_record(b"later")
    assert read(world, prepared, world.request(prepared, [later])) == {later: b"later"}


def test_one_proxy_that_is_down_is_replaced_by_the_third(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    found = collection(world, prepared, signed)
    first, second = found.ask()
    assert found.ask() == ()
    found.fail(first, "connection refused")
    found.add(second, ask(world, second, signed))
    (third,) = found.ask()
    found.add(third, ask(world, third, signed))
    assert found.is_complete()
    assert [(fault.proxy, fault.kind) for fault in found.faults] == [(first, FaultKind.UNREACHABLE)]
    assert open_shared(parse_blob(world.blobs[0].blob), encryption(GRANTEE), found.fragments(0)) == BUNDLES[0]


def test_a_grant_lives_on_when_the_patient_changes_keys(world: World) -> None:
    prepared = world.grant()
    change_keys(world)
    assert read(world, prepared, world.request(prepared, [1])) == {1: BUNDLES[1]}


def change_keys(world: World) -> None:
    patient = world.state().get(PATIENTS, world.patient.address)
    assert patient is not None
    new = testing.key(PATIENT + 1)
    keyblock = PatientKeyblock(
        patient=world.patient.address,
        generation=1,
        previous=patient.keyblock_hash,
        signing_key=new.public_key,
        reencryption_key=testing.encryption_key(PATIENT + 1),
        chameleon_key=testing.chameleon_trapdoor(PATIENT + 1)[1],
        institution=patient.keyblock.institution,
    )
    signature = new.sign(patient_keyblock_signing_digest(world.chain, keyblock))
    world.submit(world.patient, ChangeKeys(keyblock, signature, ()))


# ---------------------------------------------------------------- what is refused, row by row


def test_a_revoked_grant_is_refused_at_once_even_before_the_fragment_is_deleted(world: World) -> None:
    prepared = world.grant()
    assert reason(world, world.request(prepared)) is None
    world.revoke(prepared)
    assert len(world.fragments[PROXIES[0]]) == 1
    assert reason(world, world.request(prepared)) is RefusalReason.REVOKED


def test_time_is_judged_by_the_chain_and_by_the_proxys_clock(world: World) -> None:
    prepared = world.grant(from_ms=world.now_ms() + 3_000, until_ms=world.now_ms() + 6_000)
    # The proxy's own clock alone begins nothing.
    assert reason(world, world.request(prepared)) is RefusalReason.NOT_YET
    assert reason(world, world.request(prepared), clock_ms=prepared.terms.from_ms) is RefusalReason.NOT_YET
    world.pass_blocks(2)
    assert reason(world, world.request(prepared)) is None
    # A clock that is past the end ends it, though the chain may stand still.
    assert reason(world, world.request(prepared), clock_ms=prepared.terms.until_ms) is RefusalReason.EXPIRED
    world.pass_blocks(4)
    assert reason(world, world.request(prepared)) is RefusalReason.EXPIRED
    # A clock that is behind does not prolong it.
    assert reason(world, world.request(prepared), clock_ms=prepared.terms.until_ms - 1) is RefusalReason.EXPIRED


def test_records_that_the_grant_does_not_name_are_out_of_scope(world: World) -> None:
    prepared = world.grant(records=(0, 2))
    assert reason(world, world.request(prepared, [0, 2])) is None
    assert reason(world, world.request(prepared, [1])) is RefusalReason.OUT_OF_SCOPE
    assert reason(world, world.request(prepared, [0, 1, 2])) is RefusalReason.OUT_OF_SCOPE


def test_a_record_that_does_not_exist_is_out_of_scope(world: World) -> None:
    prepared = world.grant()
    missing = world.request(prepared, [7], capsules=[world.capsule(0)])
    assert reason(world, missing) is RefusalReason.OUT_OF_SCOPE


def test_a_record_under_newer_keys_is_out_of_scope(world: World) -> None:
    prepared = world.grant()
    change_keys(world)
    later = world.add_record(b"under the new keys")
    assert reason(world, world.request(prepared, [later])) is RefusalReason.OUT_OF_SCOPE


def test_a_purpose_that_was_not_granted_is_wrong(world: World) -> None:
    prepared = world.grant(purposes=("TREAT", "ETREAT"))
    for allowed in ("TREAT", "ETREAT"):
        assert reason(world, world.request(prepared, purpose=allowed)) is None
    for wrong in ("HRESCH", "HMARKT", "treat", "x"):
        assert reason(world, world.request(prepared, purpose=wrong)) is RefusalReason.WRONG_PURPOSE


def test_a_replayed_request_is_refused(world: World) -> None:
    signed = world.request(world.grant())
    assert reason(world, signed) is None
    assert reason(world, signed) is RefusalReason.REPLAYED
    # Another proxy has not seen it: each answers for itself.
    assert reason(world, signed, PROXIES[1]) is None


def test_a_request_from_another_hour_is_stale(world: World) -> None:
    prepared, now_ms = world.grant(), world.now_ms()
    for issued_ms in (now_ms - 120_001, now_ms + 120_001, 0, 2**63 - 1):
        assert reason(world, world.request(prepared, issued_ms=issued_ms)) is RefusalReason.STALE
    for issued_ms in (now_ms - 120_000, now_ms + 120_000):
        assert reason(world, world.request(prepared, issued_ms=issued_ms)) is None


def test_a_forged_request_is_refused(world: World) -> None:
    signed = world.request(world.grant())
    other = world.request(world.grant(records=(0,)))
    forged = SignedRequest(signed.request, other.signature)
    assert reason(world, forged) is RefusalReason.BAD_SIGNATURE
    # The forgery has not used up the true one.
    assert reason(world, signed) is None


def test_a_request_that_was_changed_on_the_way_is_refused(world: World) -> None:
    prepared = world.grant()
    raw = encode(world.request(prepared))
    desk, refused = world.desks[PROXIES[0]], 0
    for position in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[position] ^= 1
        try:
            answer = desk.answer(bytes(changed), world.view())
        except InvalidInput:
            continue
        assert answer is not None
        assert decode_answer(answer).entry.entry.reason is RefusalReason.BAD_SIGNATURE
        refused += 1
    assert refused


def test_only_the_grantees_present_key_may_ask(world: World) -> None:
    prepared = world.grant()
    for key in (testing.key(4), testing.key(1), world.patient):
        assert reason(world, world.request(prepared, key=key)) is RefusalReason.WRONG_GRANTEE


def test_a_request_for_another_chain_is_refused(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    elsewhere = SignedRequest(signed.request, world.grantee.sign(bytes(32)))
    assert reason(world, elsewhere) is RefusalReason.BAD_SIGNATURE


def test_an_unknown_grant_is_refused_and_logged_without_a_patient(world: World) -> None:
    prepared = world.prepare()
    assert reason(world, world.request(prepared)) is RefusalReason.UNKNOWN_GRANT
    (signed,) = world.logs[PROXIES[0]].entries(0)
    assert signed.entry.patient == bytes(20)


def test_an_institution_that_is_no_proxy_refuses(world: World) -> None:
    signed = world.request(world.grant())
    assert reason(world, signed, testing.key(4).address) is RefusalReason.NOT_A_PROXY


def test_the_capsule_must_be_the_records(world: World) -> None:
    prepared = world.grant(records=(0,))
    # The capsule of a record that is not granted, in the place of one that is.
    swapped = world.request(prepared, [0], capsules=[world.capsule(1)])
    assert reason(world, swapped) is RefusalReason.WRONG_CAPSULE
    fresh, _ = encrypt(encryption(PATIENT).public_key, b"")
    assert reason(world, world.request(prepared, [0], capsules=[fresh])) is RefusalReason.WRONG_CAPSULE


def test_a_proxy_without_its_fragment_says_so(world: World) -> None:
    prepared = world.grant()
    world.fragments[PROXIES[0]].delete(prepared.grant_id)
    assert reason(world, world.request(prepared)) is RefusalReason.NO_FRAGMENT


def test_a_proxy_that_is_catching_up_serves_nobody(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    raw = world.desks[PROXIES[0]].answer(encode(signed), world.view(is_catching_up=True))
    assert raw is not None
    assert decode_answer(raw).entry.entry.reason is RefusalReason.CATCHING_UP
    assert reason(world, signed) is None


# ---------------------------------------------------------------- emergencies


def test_a_sleeping_grant_wakes_for_an_approved_emergency_of_its_grantee_and_falls_asleep_again(world: World) -> None:
    prepared = world.grant(emergency_approvals=2, purposes=("ETREAT",), grantee=world.grantee.address)

    def asked(emergency: int | None = 0) -> SignedRequest:
        return world.request(prepared, purpose="ETREAT", emergency=emergency)

    assert reason(world, asked(None)) is RefusalReason.ASLEEP
    assert reason(world, asked()) is RefusalReason.ASLEEP
    until_ms = world.now_ms() + 10_000
    world.submit(world.grantee, OpenEmergency(prepared.grant_id, "trauma", until_ms))
    world.submit(testing.key(1), ApproveEmergency(world.patient.address, 0))
    assert reason(world, asked()) is RefusalReason.ASLEEP
    world.submit(testing.key(2), ApproveEmergency(world.patient.address, 0))
    assert reason(world, asked()) is None
    assert reason(world, asked(None)) is RefusalReason.ASLEEP
    assert reason(world, asked(1)) is RefusalReason.ASLEEP
    assert reason(world, asked(), clock_ms=until_ms) is RefusalReason.ASLEEP
    world.pass_blocks(9)
    assert world.now_ms() >= until_ms
    assert reason(world, asked()) is RefusalReason.ASLEEP


def test_an_emergency_wakes_its_own_grant_only(world: World) -> None:
    woken = world.grant(emergency_approvals=1)
    other = world.grant(emergency_approvals=1)
    world.submit(world.grantee, OpenEmergency(woken.grant_id, "stroke", world.now_ms() + HOUR_MS // 2))
    world.submit(testing.key(1), ApproveEmergency(world.patient.address, 0))
    assert reason(world, world.request(woken, emergency=0)) is None
    assert reason(world, world.request(other, emergency=0)) is RefusalReason.ASLEEP


# ---------------------------------------------------------------- proxies that lie


def lie(world: World, proxy: bytes, signed: SignedRequest, fragments: tuple[bytes, ...]) -> bytes:
    """An answer that is rightly signed and wrong: what a malicious proxy can make."""
    entry = decode_answer(ask(world, proxy, signed)).entry.entry
    key = testing.key(hospital(proxy))
    wrong = msgspec.structs.replace(entry, reason=None, fragments_digest=fragments_digest(fragments))
    return encode_answer(sign_entry(world.chain, key, wrong), fragments)


def test_a_wrong_re_encryption_is_named_and_another_proxy_serves(world: World) -> None:
    prepared = world.grant()
    signed, other = world.request(prepared, [0]), world.request(prepared, [1])
    found = collection(world, prepared, signed)
    liar, second = found.ask()
    elsewhere = decode_answer(ask(world, liar, other)).fragments
    bad = lie(world, liar, signed, elsewhere)
    assert not found.add(liar, bad)
    found.add(second, ask(world, second, signed))
    (third,) = found.ask()
    found.add(third, ask(world, third, signed))
    assert open_shared(parse_blob(world.blobs[0].blob), encryption(GRANTEE), found.fragments(0)) == BUNDLES[0]
    (fault,) = found.faults
    assert (fault.proxy, fault.kind, fault.answer) == (liar, FaultKind.BAD_FRAGMENT, bad)
    assert liar.hex() in found.explain()


def test_a_fragment_of_another_grant_passes_the_proof_but_not_the_majority(world: World) -> None:
    prepared, former = world.grant(), world.grant()
    signed = world.request(prepared)
    liar = PROXIES[0]
    key_fragment = world.fragments[liar].get(former.grant_id)
    assert key_fragment is not None
    found = collection(world, prepared, signed)
    first, second = found.ask()
    assert first == liar
    found.add(first, lie(world, liar, signed, (key_fragment.reencrypt(world.capsule(0)),)))
    found.add(second, ask(world, second, signed))
    assert not found.is_complete()
    (third,) = found.ask()
    found.add(third, ask(world, third, signed))
    assert found.is_complete()
    assert [(fault.proxy, fault.kind) for fault in found.faults] == [(liar, FaultKind.OTHER_GRANT)]
    assert open_shared(parse_blob(world.blobs[0].blob), encryption(GRANTEE), found.fragments(0)) == BUNDLES[0]


def test_an_answer_made_with_two_key_fragments_is_named(world: World) -> None:
    prepared, former = world.grant(), world.grant()
    signed = world.request(prepared, [0, 1])
    liar = PROXIES[0]
    own, other = (world.fragments[liar].get(grant.grant_id) for grant in (prepared, former))
    assert own is not None
    assert other is not None
    mixed = (own.reencrypt(world.capsule(0)), other.reencrypt(world.capsule(1)))
    found = collection(world, prepared, signed)
    assert found.ask()[0] == liar
    assert not found.add(liar, lie(world, liar, signed, mixed))
    assert [(fault.proxy, fault.kind) for fault in found.faults] == [(liar, FaultKind.BAD_FRAGMENT)]


def test_an_answer_copied_from_another_proxy_counts_once(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    found = collection(world, prepared, signed)
    honest, liar = found.ask()
    answer = ask(world, honest, signed)
    found.add(honest, answer)
    assert not found.add(liar, lie(world, liar, signed, decode_answer(answer).fragments))
    assert not found.is_complete()
    assert {(fault.proxy, fault.kind) for fault in found.faults} == {
        (honest, FaultKind.SAME_FRAGMENT),
        (liar, FaultKind.SAME_FRAGMENT),
    }
    (third,) = found.ask()
    found.add(third, ask(world, third, signed))
    assert open_shared(parse_blob(world.blobs[0].blob), encryption(GRANTEE), found.fragments(0)) == BUNDLES[0]


def test_answers_that_do_not_belong_are_each_named(world: World) -> None:
    prepared = world.grant()
    signed, other = world.request(prepared, [0]), world.request(prepared, [1])
    good = ask(world, PROXIES[0], signed)
    parsed = decode_answer(good)
    cases: list[tuple[bytes, FaultKind]] = [
        (b"", FaultKind.MALFORMED),
        (b"\x93\x01\x02\x03", FaultKind.MALFORMED),
        (good + b"\x00", FaultKind.MALFORMED),
        (bytes(40_000), FaultKind.MALFORMED),
        (ask(world, PROXIES[1], signed), FaultKind.BAD_SIGNATURE),
        (ask(world, PROXIES[0], other), FaultKind.OTHER_REQUEST),
        (encode(ProxyAnswer(parsed.entry, ())), FaultKind.INCONSISTENT),
        (encode(ProxyAnswer(parsed.entry, parsed.fragments * 2)), FaultKind.INCONSISTENT),
        (lie(world, PROXIES[0], signed, ()), FaultKind.INCONSISTENT),
    ]
    for raw, kind in cases:
        found = collection(world, prepared, signed)
        assert found.ask()[0] == PROXIES[0]
        assert not found.add(PROXIES[0], raw)
        assert [(fault.proxy, fault.kind) for fault in found.faults] == [(PROXIES[0], kind)]


def test_refusals_end_the_search_when_m_cannot_be_reached(world: World) -> None:
    prepared = world.grant()
    world.revoke(prepared)
    signed = world.request(prepared)
    found = collection(world, prepared, signed)
    first, second = found.ask()
    found.add(first, ask(world, first, signed))
    found.add(second, ask(world, second, signed))
    assert found.ask() == (PROXIES[2],), "one more for each that was of no use"
    found.fail(PROXIES[2], "gone")
    assert found.ask() == ()
    assert not found.is_complete()
    assert set(found.refusals.values()) == {RefusalReason.REVOKED}
    assert "refused: revoked" in found.explain()


# ---------------------------------------------------------------- who gains nothing


def test_the_grantee_and_one_proxy_too_few_gain_nothing(world: World) -> None:
    """They pool all they have: the reader's secret, m − 1 key fragments, the grant, and fragments of an older grant."""
    prepared = world.grant(threshold=3)
    former = world.grant(threshold=3)
    capsule, grant = world.capsule(0), world.granted(prepared)
    colluding = PROXIES[:2]

    def fragment(proxy: bytes, of: PreparedGrant) -> VerifiedCapsuleFragment:
        held = world.fragments[proxy].get(of.grant_id)
        assert held is not None
        return verify_capsule_fragment(
            held.reencrypt(capsule),
            capsule=capsule,
            verifying_key=grant.verifying_key,
            delegating_key=encryption(PATIENT).public_key,
            receiving_key=grant.terms.receiving_key,
        )

    pooled = [fragment(proxy, prepared) for proxy in colluding]
    older = [fragment(proxy, former) for proxy in colluding]
    reader = encryption(GRANTEE)
    for tried in (pooled[:1], pooled, pooled + older, pooled + older[:1], pooled + pooled):
        with pytest.raises(DecryptionFailed):
            open_shared(parse_blob(world.blobs[0].blob), reader, tried)
    # With the third it opens, so the attempts failed for want of it only.
    assert open_shared(parse_blob(world.blobs[0].blob), reader, [*pooled, fragment(PROXIES[2], prepared)]) == BUNDLES[0]


def test_m_proxies_without_the_grantees_secret_gain_nothing(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    found = collection(world, prepared, signed)
    for proxy in found.ask():
        found.add(proxy, ask(world, proxy, signed))
    for number in (1, 2, 3, 4):
        with pytest.raises(DecryptionFailed):
            open_shared(parse_blob(world.blobs[0].blob), encryption(number), found.fragments(0))


def test_a_blob_with_another_capsule_is_not_opened(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared)
    found = collection(world, prepared, signed)
    for proxy in found.ask():
        found.add(proxy, ask(world, proxy, signed))
    with pytest.raises(InvalidInput, match="another record"):
        open_shared(parse_blob(world.blobs[1].blob), encryption(GRANTEE), found.fragments(0))


# ---------------------------------------------------------------- requests as bytes


def test_requests_have_one_form(world: World) -> None:
    prepared = world.grant()
    signed = world.request(prepared, [2, 0])
    assert [record.sequence for record in signed.request.records] == [0, 2]
    assert decode_request(encode(signed)) == signed
    bad: list[Callable[[], object]] = [
        lambda: world.request(prepared, []),
        lambda: world.request(prepared, [1, 1]),
        lambda: world.request(prepared, range(65), capsules=[world.capsule(0)] * 65),
        lambda: world.request(prepared, [0], capsules=[b"short"]),
        lambda: world.request(prepared, purpose=""),
        lambda: world.request(prepared, purpose="x" * 17),
        lambda: decode_request(b""),
        lambda: decode_request(encode(signed) + b"\x00"),
    ]
    for attempt in bad:
        with pytest.raises(InvalidInput):
            attempt()


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_request_and_no_answer(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with pytest.raises(InvalidInput):
            decode(data)
