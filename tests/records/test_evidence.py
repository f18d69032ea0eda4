# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence files prove what they say against a keyblock's hash, and any change of them is refused."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.blocks import SignedKeyblock, sign_keyblock
from ledger.codec import encode
from ledger.genesis import chain_id
from ledger.state import RECORDS, numbered_key
from records import evidence
from records.access_entries import SignedEntry, sign_entry
from records.claims import (
    AccessClaim,
    Claim,
    EvidenceRefused,
    Fault,
    GrantClaim,
    HistoryClaim,
    LabelClaim,
    RecordClaim,
    RevocationClaim,
)
from records.evidence import StateEntry, decode_evidence, gather, verify
from records.requests import RefusalReason
from tests.records.evidence_kit import CHAIN, GENESIS, OTHER, PATIENT, Network, entries_of, hash_of


@dataclass(frozen=True)
class Stage:
    """A settled network, and one good file of each kind."""

    network: Network
    keyblock: SignedKeyblock
    claims: dict[str, Claim]
    files: dict[str, bytes]


def logs(network: Network, grant: bytes) -> tuple[SignedEntry, ...]:
    """Return entries of two proxies, as a claim wants them."""
    found = network.access(grant, 2, (None, RefusalReason.REVOKED)) + network.access(grant, 3, (None,), first=7)
    return tuple(sorted(found, key=lambda signed: (signed.entry.proxy, signed.entry.number)))


@pytest.fixture(scope="module")
def stage() -> Stage:
    network = Network()
    network.register()
    network.write()
    granted = network.grant()
    revoked = network.grant(records=(), all_records=True)
    network.revoke(revoked, confirming=[2])
    sleeping = network.grant(
        records=(),
        all_records=True,
        emergency_approvals=1,
        fragment_digests=(bytes([1]) * 32, bytes([2]) * 32),
        purposes=("ETREAT",),
    )
    network.emergency(sleeping, approving=[3])
    network.label(1, status="amended", label="typing error", may_erase=False)
    network.label(1)
    network.confirm_erasure(1)
    keyblock = network.settle()
    claims: dict[str, Claim] = {
        "emergency": GrantClaim(sleeping),
        "record": RecordClaim(PATIENT.address, 3),
        "history": HistoryClaim(PATIENT.address),
        "grant": GrantClaim(granted),
        "revocation": RevocationClaim(revoked),
        "access": AccessClaim(granted, logs(network, granted)),
        "label": LabelClaim(PATIENT.address, 1),
    }
    files = {kind: network.gather(keyblock, claim)[0] for kind, claim in claims.items()}
    return Stage(network, keyblock, claims, files)


KINDS = ("emergency", "record", "history", "grant", "revocation", "access", "label")


def said(stage: Stage, kind: str) -> str:
    return "\n".join(verify(stage.files[kind], hash_of(stage.keyblock)).proven)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_verified_by_the_hash_alone(stage: Stage, kind: str) -> None:
    found = verify(stage.files[kind], hash_of(stage.keyblock))
    assert (found.claim, found.network, found.chain_id) == (kind.replace("emergency", "grant"), "test", CHAIN)
    assert found.keyblock == hash_of(stage.keyblock)
    assert found.epoch == 1
    root = stage.network.maker.epochs[1].record
    assert (found.height, found.mined_ms) == (root.root_height, stage.keyblock.keyblock.timestamp_ms)
    assert any("compare the hash with a source that you trust" in text for text in found.not_proven)
    assert any(f"after microblock {root.root_height}" in text for text in found.not_proven)


def test_a_record_is_proved_with_author_time_and_ciphertext(stage: Stage) -> None:
    record = stage.network.record(3)
    text = said(stage, "record")
    for expected in ("'Graz'", record.record_id.hex(), record.envelope.blob_id.hex(), "as its author committed it"):
        assert expected in text


def test_a_history_names_every_record_in_order(stage: Stage) -> None:
    found = verify(stage.files["history"], hash_of(stage.keyblock))
    assert "has 6 records and no other: the list is complete" in found.proven[0]
    identifiers = [stage.network.record(sequence).record_id.hex() for sequence in range(6)]
    assert [line.split()[2].rstrip(",") for line in found.proven[1:]] == identifiers
    assert "entered-in-error, labelled: 'wrong patient'" in found.proven[2]


def test_the_history_of_a_patient_without_records_is_empty(stage: Stage) -> None:
    raw, _ = stage.network.gather(stage.keyblock, HistoryClaim(OTHER.address))
    assert "has 0 records and no other" in verify(raw, hash_of(stage.keyblock)).proven[0]


def test_a_grant_and_a_revocation_say_how_they_stand(stage: Stage) -> None:
    grant, revocation = said(stage, "grant"), said(stage, "revocation")
    assert "let 'Wien'" in grant
    assert "read records 0, 2 for TREAT" in grant
    assert "2 of 2 proxies: 'Linz', 'Salzburg'" in grant
    assert "not revoked up to microblock" in grant
    assert "the patient's of generation 0" in grant
    assert "all records of key generation 0" in revocation
    assert "'Linz' (" in revocation
    assert [("has confirmed" in line, "has not confirmed" in line) for line in revocation.splitlines()[-2:]] == [
        (True, False),
        (False, True),
    ]


def test_a_grant_that_slept_says_who_woke_it(stage: Stage) -> None:
    text = said(stage, "emergency")
    assert "the grant sleeps, and was to be woken by one emergency" in text
    assert "because of 'stroke'" in text
    assert "1 approval of 1 needed, awake; the patient has not reviewed it" in text


def test_answers_of_proxies_are_shown_with_their_reasons(stage: Stage) -> None:
    text = said(stage, "access")
    assert "let 'Wien'" in text
    assert text.count("re-encrypted records 0, 2 for TREAT, asked for by the grantee, at") == 2
    assert "proxy 'Linz' refused records 0, 2 for TREAT" in text
    assert "because: revoked" in text
    found = verify(stage.files["access"], hash_of(stage.keyblock))
    assert any("that these are all answers" in text for text in found.not_proven)


def test_entries_that_no_proxy_wrote_or_that_contradict_each_other_are_refused(stage: Stage) -> None:
    network, claim = stage.network, stage.claims["access"]
    assert isinstance(claim, AccessClaim)
    grant, other = claim.grant_id, bytes(32)

    def fault(*entries: SignedEntry) -> Fault:
        return refusal(lambda: network.gather(stage.keyblock, AccessClaim(grant, entries))).reason

    def changed(signed: SignedEntry, **fields: object) -> SignedEntry:
        return sign_entry(CHAIN, testing.key(2), msgspec.structs.replace(signed.entry, **fields))

    first, second, third = network.access(grant, 2, (None, None, None))
    network.gather(stage.keyblock, AccessClaim(grant, (first, third)))
    network.gather(stage.keyblock, AccessClaim(grant, (first, changed(third, patient_number=7))))
    assert fault(second, first) is Fault.CONTRADICTION
    assert fault(first, first) is Fault.CONTRADICTION
    assert fault(*network.access(other)) is Fault.CONTRADICTION
    assert fault(*network.access(grant, 1)) is Fault.CONTRADICTION
    assert fault(changed(first, patient=OTHER.address)) is Fault.CONTRADICTION
    assert fault(first, changed(second, previous=other)) is Fault.CONTRADICTION
    assert fault(first, changed(second, patient_previous=other)) is Fault.CONTRADICTION
    assert fault(first, changed(second, patient_number=0)) is Fault.CONTRADICTION
    assert fault(msgspec.structs.replace(first, signature=second.signature)) is Fault.BAD_SIGNATURE
    assert fault(sign_entry(CHAIN, testing.key(3), first.entry)) is Fault.BAD_SIGNATURE
    assert fault(sign_entry(other, testing.key(2), first.entry)) is Fault.BAD_SIGNATURE


def test_labels_are_shown_one_by_one_with_permission_and_erasure(stage: Stage) -> None:
    text = said(stage, "label")
    assert "label 0: 'Graz' labelled the record amended ('typing error')" in text
    assert "label 1: 'Graz' labelled the record entered-in-error ('wrong patient')" in text
    assert text.count("permitted exactly this by a signature that is in this file and was checked") == 2
    assert "'Graz' has confirmed, in microblock" in text


# ---------------------------------------------------------------- nothing can be changed


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_is_refused_with_a_reason(stage: Stage, kind: str) -> None:
    raw, trusted = stage.files[kind], hash_of(stage.keyblock)
    chance = random.Random(kind)
    # Every byte of what frames the entries, and a sample of these, which are many and alike.
    places = {*range(min(len(raw), 2_500)), *chance.sample(range(len(raw)), 600)}
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(EvidenceRefused) as refused:
            verify(bytes(changed), trusted)
        assert isinstance(refused.value.reason, Fault)


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_else_is_done_to_a_file_it_is_refused(stage: Stage, data: st.DataObject) -> None:
    raw = stage.files[data.draw(st.sampled_from(KINDS))]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    changed = raw[:start] + data.draw(st.binary(max_size=40)) + raw[stop:]
    if changed == raw:
        return
    with pytest.raises(EvidenceRefused):
        verify(changed, hash_of(stage.keyblock))


@pytest.mark.parametrize("kind", KINDS)
def test_entries_can_neither_be_left_out_nor_exchanged_nor_added(stage: Stage, kind: str) -> None:
    file = decode_evidence(stage.files[kind])
    entries, count = file.entries, len(file.entries)
    changed: list[tuple[StateEntry, ...]] = [(*entries, entries[0]), entries[::-1], ()]
    changed += [(*entries[:place], *entries[place + 1 :]) for place in range(count)]
    changed += [(*entries[:place], entries[place], *entries[place:]) for place in range(count)]
    for other in changed:
        with pytest.raises(EvidenceRefused) as refused:
            verify(encode(msgspec.structs.replace(file, entries=other)), hash_of(stage.keyblock))
        assert refused.value.reason in {Fault.MISSING_ENTRY, Fault.SUPERFLUOUS_ENTRY}


@pytest.mark.parametrize("kind", KINDS)
def test_values_cannot_be_exchanged_even_with_the_proof_of_another_state(stage: Stage, kind: str) -> None:
    file = decode_evidence(stage.files[kind])
    network = Network()
    network.register()
    network.write()
    other = network.snapshot(network.settle())
    for place, entry in enumerate(file.entries):
        (false,) = entries_of(other, [entry.key])
        if false == entry:
            continue
        entries = (*file.entries[:place], false, *file.entries[place + 1 :])
        with pytest.raises(EvidenceRefused) as refused:
            verify(encode(msgspec.structs.replace(file, entries=entries)), hash_of(stage.keyblock))
        assert refused.value.reason is Fault.WRONG_PROOF


def refusal(act: Callable[[], object]) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        act()
    return refused.value


def test_another_keyblock_chain_or_network_is_refused_by_name(stage: Stage) -> None:
    raw, trusted = stage.files["record"], hash_of(stage.keyblock)
    file = decode_evidence(raw)
    assert refusal(lambda: verify(raw, bytes(32))).reason is Fault.WRONG_KEYBLOCK
    renamed = encode(msgspec.structs.replace(GENESIS, network="other"))
    assert (
        refusal(lambda: verify(encode(msgspec.structs.replace(file, genesis=renamed)), trusted)).reason
        is Fault.WRONG_CHAIN
    )
    # The miner itself could sign for another chain: then it is another chain that the file speaks of.
    elsewhere = chain_id(msgspec.structs.replace(GENESIS, network="other"))
    resigned = sign_keyblock(elsewhere, testing.key(1), file.keyblock.keyblock)
    assert (
        refusal(lambda: verify(encode(msgspec.structs.replace(file, keyblock=resigned)), trusted)).reason
        is Fault.WRONG_CHAIN
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Fault.MALFORMED),
        (b"no evidence", Fault.MALFORMED),
        (evidence._PREFIX, Fault.WRONG_VERSION),
        (evidence._PREFIX + b"\x02", Fault.WRONG_VERSION),
        (evidence._PREFIX + b"\x01", Fault.MALFORMED),
        (evidence._PREFIX + b"\x01" + b"\x91" * 100_000, Fault.MALFORMED),
        (evidence._PREFIX + b"\x01" + bytes(evidence.MAX_EVIDENCE_BYTES), Fault.MALFORMED),
    ],
)
def test_what_is_no_file_is_refused(raw: bytes, reason: Fault) -> None:
    assert refusal(lambda: verify(raw, bytes(32))).reason is reason


# ---------------------------------------------------------------- what is not so cannot be claimed


@pytest.mark.parametrize(
    "claim",
    [
        RecordClaim(PATIENT.address, 6),
        RecordClaim(OTHER.address, 0),
        RecordClaim(bytes(20), 0),
        HistoryClaim(bytes(20)),
        GrantClaim(bytes(32)),
        RevocationClaim(bytes(32)),
        LabelClaim(PATIENT.address, 0),
        LabelClaim(PATIENT.address, 2**63 - 1),
    ],
)
def test_what_is_not_so_cannot_be_gathered(stage: Stage, claim: Claim) -> None:
    assert refusal(lambda: stage.network.gather(stage.keyblock, claim)).reason is Fault.NOT_SO


def test_a_grant_is_no_revocation_and_a_file_cannot_claim_more_than_it_holds(stage: Stage) -> None:
    granted, patient = stage.claims["grant"], PATIENT.address
    assert isinstance(granted, GrantClaim)
    assert (
        refusal(lambda: stage.network.gather(stage.keyblock, RevocationClaim(granted.grant_id))).reason is Fault.NOT_SO
    )
    file = decode_evidence(stage.files["grant"])
    claims: tuple[Claim, ...] = (RevocationClaim(granted.grant_id), RecordClaim(patient, 0), HistoryClaim(patient))
    for claim in claims:
        with pytest.raises(EvidenceRefused) as refused:
            verify(encode(msgspec.structs.replace(file, claim=claim)), hash_of(stage.keyblock))
        assert refused.value.reason in {Fault.NOT_SO, Fault.MISSING_ENTRY}


def test_what_is_too_fresh_is_refused_until_two_keyblocks_later() -> None:
    network = Network()
    network.register()
    network.write()
    claim = RecordClaim(PATIENT.address, 0)
    first = network.pin()
    too_fresh = refusal(lambda: network.gather(first, claim))
    assert too_fresh.reason is Fault.NOT_SO
    assert "after two more keyblocks" in str(too_fresh)
    second = network.pin()
    raw, found = network.gather(second, claim)
    assert verify(raw, hash_of(second)) == found


def test_the_first_keyblock_proves_the_genesis() -> None:
    network = Network()
    first = network.pin()
    with pytest.raises(EvidenceRefused, match="there is no patient"):
        network.gather(first, HistoryClaim(PATIENT.address))
    # A keyblock that claims the state of the genesis later on is not the first one.
    second = network.pin()
    false = msgspec.structs.replace(second.keyblock, state_root=first.keyblock.state_root)
    signed = sign_keyblock(CHAIN, testing.key(1), false)
    founding = Network().snapshot(first)
    assert (
        refusal(
            lambda: gather(
                encode(GENESIS), signed, HistoryClaim(PATIENT.address), lambda keys: entries_of(founding, keys)
            )
        ).reason
        is Fault.CONTRADICTION
    )


def test_a_keyblock_with_the_state_of_another_epoch_is_refused() -> None:
    network = Network()
    network.register()
    network.settle()
    third = network.pin()
    false = msgspec.structs.replace(third.keyblock, previous=bytes(32))
    signed = sign_keyblock(CHAIN, testing.key(2), false)
    refused = refusal(
        lambda: gather(
            encode(GENESIS),
            signed,
            HistoryClaim(PATIENT.address),
            lambda keys: entries_of(network.snapshot(third), keys),
        )
    )
    assert refused.reason is Fault.CONTRADICTION


# ---------------------------------------------------------------- a node that lies


def test_a_node_that_gives_false_entries_is_caught_while_evidence_is_made(stage: Stage) -> None:
    snapshot = stage.network.snapshot(stage.keyblock)
    claim = HistoryClaim(PATIENT.address)
    hidden = RECORDS.prefix + numbered_key(PATIENT.address, 4)

    def gathered(lie: Callable[[Sequence[bytes]], list[StateEntry]]) -> Fault:
        return refusal(lambda: gather(encode(GENESIS), stage.keyblock, claim, lie)).reason

    def hides(keys: Sequence[bytes]) -> list[StateEntry]:
        return [
            msgspec.structs.replace(entry, value=None) if entry.key == hidden else entry
            for entry in entries_of(snapshot, keys)
        ]

    def shortens(keys: Sequence[bytes]) -> list[StateEntry]:
        return entries_of(snapshot, keys)[:-1]

    def reorders(keys: Sequence[bytes]) -> list[StateEntry]:
        return entries_of(snapshot, keys)[::-1]

    assert gathered(hides) is Fault.WRONG_PROOF
    assert gathered(shortens) is Fault.MISSING_ENTRY
    assert gathered(reorders) is Fault.WRONG_PROOF
