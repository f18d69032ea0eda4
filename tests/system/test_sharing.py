# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariants I9, I10 and I11 on real nodes, after a patient's whole story: what is on their disks, in their logs and on their wires."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ledger.bodies import LabelRecord
from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import DecryptionFailed, VerifiedCapsuleFragment, verify_capsule_fragment
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.labels import LabelPermission, labelled, permission_digest
from ledger.patients import Record, envelope_digest
from node.access_audit import AuditResult, audit_all
from node.access_reads import NodeReads
from node.actions import Actor
from node.devnet import Devnet
from node.keystore import Cost, write_key
from node.label_actions import prover_of, record_of
from node.record_checks import check_record, fetch_blob
from records.access_entries import is_own_read
from records.envelope import unpack
from records.grants import decode_sealed
from records.labelling import open_permission, permission_for
from records.requests import RefusalReason
from tests.system.kit import PATIENCE_S, Spchain, agree, no_traceback, ran, until
from tests.system.leaks import content_of, forms_of, found_in, secrets_of, words_of
from tests.system.sharing_kit import (
    AUTHOR,
    AWAY,
    BUNDLES,
    PROXIES,
    PROXY,
    READER,
    THRESHOLD,
    TappedDevnet,
    Told,
    ask,
    fragments_at,
    label,
    tell,
)

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("sharing")]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    made = Devnet.create(tmp_path_factory.mktemp("sharing") / "devnet", 4)
    network = TappedDevnet(made.directory, made.manifest)
    try:
        network.start(timeout_s=240)
        told = tell(network)
        yield told
        agree(network)
        no_traceback(network)
    finally:
        network.stop()


# ---------------------------------------------------------------------- I10


def test_i10_a_proxy_that_was_down_serves_nothing_deletes_and_confirms(story: Told, tmp_path: Path) -> None:
    assert story.answers_since_return
    assert all(answer.fragments == () for answer in story.answers_since_return)
    reasons = [answer.entry.entry.reason for answer in story.answers_since_return]
    assert set(reasons) <= {RefusalReason.REVOKED, RefusalReason.CATCHING_UP}
    with story.network.client(READER) as client:
        until(lambda: _reason(ask(story, client, AWAY, story.revoked)) is RefusalReason.REVOKED, "refused by name")
    assert all(story.grant(story.revoked).deletions), "every proxy has confirmed"
    for index in PROXIES:
        with fragments_at(story, index, tmp_path) as fragments:
            assert fragments.get(story.revoked.grant_id) is None
            kept = fragments.get(story.living.grant_id)
            assert kept is not None, "the other grant lives on"
            assert bytes(kept) == bytes(story.living.fragments[PROXIES.index(index)])


def _reason(answer: object) -> object:
    return None if answer is None else answer.entry.entry.reason  # type: ignore[attr-defined]


def test_the_reader_and_less_than_m_proxies_together_read_nothing(story: Told, tmp_path: Path) -> None:
    reader = story.network.identity(READER)
    with story.network.client(READER) as client:
        record = client.record(story.patient.address, 0)
        blob = fetch_blob(client, record)
    grant = story.grant(story.living)
    held: list[VerifiedCapsuleFragment] = []
    for index in PROXIES:
        with fragments_at(story, index, tmp_path) as fragments:
            assert len(fragments) == 1, "a proxy holds its own fragment of the grant and no other"
            kept = fragments.get(story.living.grant_id)
        assert kept is not None
        held.append(
            verify_capsule_fragment(
                kept.reencrypt(blob.capsule),
                capsule=blob.capsule,
                verifying_key=grant.verifying_key,
                delegating_key=story.patient.public.reencryption_key,
                receiving_key=reader.public.reencryption_key,
            )
        )
    for fragment in held:
        with pytest.raises(DecryptionFailed):
            reader.reencryption.decrypt_shared([fragment] * (THRESHOLD - 1), blob.ciphertext)
        with pytest.raises(DecryptionFailed):
            reader.reencryption.decrypt_shared([fragment, fragment], blob.ciphertext)
    with pytest.raises(InvalidInput):
        reader.reencryption.decrypt(blob.capsule, blob.ciphertext)
    # m proxies are what it takes, any of them; without the reader they read nothing.
    for pair in (held[:2], held[1:]):
        assert unpack(reader.reencryption.decrypt_shared(pair, blob.ciphertext)) == BUNDLES[0]
        with pytest.raises(DecryptionFailed):
            story.network.identity(PROXY).reencryption.decrypt_shared(pair, blob.ciphertext)


# ---------------------------------------------------------------------- I11


class Forger:
    """The institution that once got the trapdoor for a permission, and tries what else it opens."""

    def __init__(self, story: Told, document: bytes) -> None:
        self.key = story.network.identity(AUTHOR)
        self._story = story
        self._opened = open_permission(story.rules.chain_id, document, self.key.reencryption)
        self._prover = prover_of(story.rules.genesis)
        with story.network.client(AUTHOR) as client:
            self.records = [record_of(client.record(story.patient.address, sequence)) for sequence in (0, 1)]
            self.height = client.status().height

    @property
    def used(self) -> LabelPermission:
        """The permission that has served."""
        return self._opened.permission

    def permission(self, record: Record, **changes: object) -> LabelPermission:
        """Return what would be permitted for the record as it stands."""
        made = permission_for(
            record,
            institution=self.key.address,
            status="amended",
            label="as it suits us",
            replacement=None,
            may_erase=False,
            expiry_height=self.height + 500,
        )
        return msgspec.structs.replace(made, **changes)

    def body(
        self, permission: LabelPermission, signer: PrivateKey, record: Record | None = None, **changes: object
    ) -> LabelRecord:
        """Return a label with a true proof that the record's hash opens to the envelope."""
        record = record or self.records[0]
        body = LabelRecord(
            permission=permission,
            signer=signer.public_key,
            signature=signer.sign(permission_digest(self._story.rules.chain_id, permission)),
            chameleon_key=self._story.patient.public.chameleon_key,
            chameleon_hash=record.microblock.chameleon_hash,
            envelope=labelled(record.envelope, permission),
            proof=b"",
        )
        changed = msgspec.structs.replace(body, **changes)
        proof = changes.get("proof") or self._prover.adapt(
            self._opened.trapdoor, changed.chameleon_key, changed.chameleon_hash, envelope_digest(changed.envelope)
        )
        return msgspec.structs.replace(changed, proof=proof)

    def replayed(self) -> LabelRecord:
        """Return the label that has taken effect, once more."""
        body = self.body(self.used, self.key.signing)
        return msgspec.structs.replace(body, signer=self._opened.signer, signature=self._opened.signature)


def test_i11_a_label_changes_no_block_and_no_identifier_and_no_abuse_of_it_passes(story: Told) -> None:
    document = label(story)
    forger = Forger(story, document)
    first, second = forger.records
    maria, hospital = story.patient.signing, forger.key.signing
    fresh, other = forger.permission(first), forger.permission(second)
    envelope = labelled(first.envelope, fresh)
    abuses: dict[str, tuple[RejectionReason, Callable[[], LabelRecord], int]] = {
        "no permission: signed by the institution": (
            RejectionReason.NOT_PERMITTED,
            lambda: forger.body(fresh, hospital),
            AUTHOR,
        ),
        "a permission that is over": (
            RejectionReason.PERMISSION_EXPIRED,
            lambda: forger.body(forger.permission(first, expiry_height=1), maria),
            AUTHOR,
        ),
        "twice": (RejectionReason.PERMISSION_USED, forger.replayed, AUTHOR),
        "a permission for another record": (RejectionReason.WRONG_PROOF, lambda: forger.body(other, maria), AUTHOR),
        "another institution's permission": (RejectionReason.SENDER_MISMATCH, lambda: forger.body(fresh, maria), PROXY),
        "another envelope than permitted": (
            RejectionReason.NOT_PERMITTED,
            lambda: forger.body(fresh, maria, envelope=msgspec.structs.replace(envelope, blob_id=bytes(32))),
            AUTHOR,
        ),
        "a proof of another statement": (
            RejectionReason.WRONG_PROOF,
            lambda: forger.body(fresh, maria, proof=forger.body(other, maria, second).proof),
            AUTHOR,
        ),
        "no proof": (RejectionReason.WRONG_PROOF, lambda: forger.body(fresh, maria, proof=bytes(256)), AUTHOR),
        "a permission that was changed after it was signed": (
            RejectionReason.BAD_SIGNATURE,
            lambda: forger.body(fresh, maria, signature=maria.sign(permission_digest(story.rules.chain_id, other))),
            AUTHOR,
        ),
    }
    for number, (what, (reason, make, sender)) in enumerate(abuses.items()):
        with story.network.client(number % len(story.network)) as client:
            actor = Actor(client, story.network.identity(sender), rules=story.rules)
            with pytest.raises(Rejection) as refused:
                actor.commit(make())
            assert refused.value.reason is reason, what
    with story.network.clients() as clients:
        agree(story.network)
        for client, hashes, ids in zip(clients, story.block_hashes, story.record_ids, strict=True):
            assert [client.block(at).block_hash for at in range(len(hashes))] == hashes == story.block_hashes[0]
            shown = list(client.records(story.patient.address))
            assert [record.record_id for record in shown] == ids == story.record_ids[0]
            assert [record.label_count for record in shown] == [1, 0]
            assert shown[0].envelope.status == "entered-in-error"
            assert shown[0].envelope.replaced_by == ids[1]
            assert shown[0].envelope.blob_id == first.envelope.blob_id
            assert len(client.consent.labels(story.patient.address, 0).labels) == 1
            check_record(client, shown[0])


# ---------------------------------------------------------------------- the access log


def _audit(story: Told, node: int = AUTHOR) -> AuditResult:
    with story.network.client(node) as client:
        maria = Actor(client, story.patient, rules=story.rules)
        return audit_all(maria, story.patient.address, NodeReads(client))


def _is_in_contract(found: AuditResult) -> bool:
    (view,) = found.checked.contracts
    states = {one.state for one in found.checked.entries}
    return bool(view.is_explained) and states <= {"final", "committed"}


def test_every_access_stands_in_the_contract_also_those_of_the_proxy_that_was_down(story: Told) -> None:
    until(lambda: _is_in_contract(_audit(story)), "all entries stand in the contract")
    for node in range(len(story.network)):
        until(lambda node=node: _is_in_contract(_audit(story, node)), "also as other nodes show it")  # type: ignore[misc]
    found = _audit(story)
    assert found.checked.faults == ()
    assert not any(log.trouble for log in found.logs)
    (view,) = found.checked.contracts
    assert view.contract_id == story.contract_id
    assert view.head is not None
    entries = [one.signed.entry for one in found.checked.entries]
    assert view.head.count == len(entries) == len(view.accesses)
    assert view.head.refused_count == sum(entry.reason is not None for entry in entries)
    reader = story.network.identity(READER).address
    own = [entry for entry in entries if is_own_read(entry)]
    assert [(entry.proxy, entry.records) for entry in own] == [(reader, (0, 1))] * 2, "one for each grant it read by"
    assert {entry.proxy for entry in entries} == {story.network.identity(index).address for index in range(4)}
    for index in range(len(story.network)):
        with story.network.client(index) as client:
            assert client.status().access_log == "ok"


def test_a_hospital_that_takes_an_access_out_of_its_log_is_named(story: Told, tmp_path: Path) -> None:
    """Its operator stops the node and deletes the newest entry: what is left is chained and signed, and a byte for byte honest log."""
    network, proxy = story.network, story.network.identity(PROXY).address
    until(lambda: _is_in_contract(_audit(story)), "all entries stand in the contract")
    with network.client(READER) as client:
        ask(story, client, PROXY, story.living)
    until(lambda: _is_in_contract(_audit(story)), "the last one, too")
    spchain, key = Spchain(tmp_path, network.directory), tmp_path / "maria.json"
    write_key(key, story.patient, b"maria", Cost.LIGHT)
    (tmp_path / "passphrase").write_bytes(b"maria")
    verb = ("audit", "--key", key, "--passphrase-file", "passphrase", "--seen", "maria.seen", "--json")
    before = json.loads(ran(spchain(*verb)))
    assert {entry["state"] for entry in before["entries"]} <= {"final", "committed"}
    assert (before["faults"], before["contracts"][0]["is_explained"]) == ([], True)
    assert (tmp_path / "maria.seen").stat().st_mode & 0o777 == 0o600
    network.kill(PROXY, signal.SIGTERM)
    with sqlite3.connect(network.disk(PROXY) / "sharing" / "access-log.sqlite") as log:
        log.execute("DELETE FROM entries WHERE number = (SELECT max(number) FROM entries)")
    log.close()
    network.start_node(PROXY)
    network.wait_connected(timeout_s=2 * PATIENCE_S)
    until(lambda: not any(log.trouble for log in _audit(story).logs), "its log can be read again")
    found = json.loads(ran(spchain(*verb)))
    assert len(found["entries"]) == len(before["entries"]) - 1
    assert [(fault["kind"], fault["institution"]) for fault in found["faults"]] == [("hidden", proxy.hex())]
    shown = spchain(*verb[:-1])
    assert "IN CONTRACT" in ran(shown).splitlines()[0]
    assert f"warning: Hospital {PROXY}" in shown.stderr
    assert "its log leaves out an access that it has signed for" in shown.stderr
    assert f"Hospital {READER}" in shown.stderr.partition("leaves out")[2]


# ---------------------------------------------------------------------- I9: last, for it looks at what all of the above has left


def test_i9_no_node_ever_sees_a_record_a_patients_secret_or_enough_fragments(story: Told) -> None:
    network = story.network
    places = [network.directory, network.taps]
    with network.client(AUTHOR) as client:
        blob = fetch_blob(client, client.record(story.patient.address, 0))
    # What must be there is found: the ciphertext on disks and wires, a sealed fragment at the node that passed it on and at its proxy,
    # and what each node logs when it begins to serve.
    parcel, served = decode_sealed(story.sealed[1]).ciphertext[:64], b"API is up"
    there = found_in(places, [blob.ciphertext[200:300], b"Hospital 2", parcel, served])
    assert [Path(path).name for path in there[served]] == ["node.log"] * len(network)
    at = {needle: {Path(path).name.split("-")[0] for path in paths} for needle, paths in there.items()}
    assert {"clear", "socket"} <= at[blob.ciphertext[200:300]]
    assert len(at[blob.ciphertext[200:300]]) > 2, "blobs lie on disks, too"
    assert {"clear", "socket"} <= at[parcel]
    assert len(there[b"Hospital 2"]) > 4

    needles: set[bytes] = set()
    for bundle in BUNDLES:
        words = words_of(json.loads(bundle))
        assert len(words) > 10
        needles |= words | content_of(bundle)
    for secret in secrets_of(story.patient).values():
        needles |= forms_of(secret)
    for fragment in _fragments(story):
        needles |= forms_of(fragment)
    assert found_in(places, needles) == {}


def test_i9_no_node_can_open_more_than_its_own_fragment_of_what_passed_through_it(story: Told) -> None:
    for index in range(len(story.network)):
        key = story.network.identity(index)
        for grant in range(0, len(story.sealed), len(PROXIES)):
            opened = 0
            for raw in story.sealed[grant : grant + len(PROXIES)]:
                parcel = decode_sealed(raw)
                try:
                    key.reencryption.decrypt(parcel.capsule, parcel.ciphertext)
                    opened += 1
                except DecryptionFailed:
                    continue
            assert opened == (index in PROXIES) < THRESHOLD


def _fragments(story: Told) -> Iterator[bytes]:
    """Yield the secret part of all key fragments: the share of the re-encryption key."""
    for prepared in (story.living, story.revoked):
        for fragment in prepared.fragments:
            _, public_identifier, share, precursor, _ = msgspec.msgpack.decode(bytes(fragment))
            assert (len(public_identifier), len(share), len(precursor)) == (32, 32, 33), "as the library frames it"
            yield share
