# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs over the API, evidence made from them by client and command line, and nodes that lie."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner, Result

from ledger import testing
from ledger.blocks import SignedKeyblock, keyblock_hash
from ledger.codec import decode, encode
from ledger.errors import InvalidInput, NotFound
from ledger.state import PATIENTS, RECORDS, numbered_key
from ledger.state_tree import StateProof, verify_state_proof
from node.api import models, proof_models
from node.cli.main import app
from node.client import NodeClient
from node.proving import KeyblockChanged, NothingPinned, ProvedState, checked_history, export
from records.access_entries import AccessHead, AccessPage, entry_hash, head_digest
from records.claims import EvidenceRefused, Fault, GrantClaim, HistoryClaim, RecordClaim
from records.evidence import verify
from records.history import HistoryRefused
from tests.node.api_kit import LoneNode, config_for, serving
from tests.records.evidence_kit import CHAIN, GENESIS, OTHER, PATIENT, Network, hash_of


@pytest.fixture
def network() -> Network:
    made = Network()
    made.register()
    made.write()
    return made


@pytest.fixture
def url(network: Network, tmp_path: Path) -> Iterator[str]:
    node = LoneNode(GENESIS)
    node.store = network.store  # type: ignore[assignment] # a memory store, as the kit makes it
    with serving(node, config_for(tmp_path / "node")) as served:
        yield served


@pytest.fixture
def client(url: str) -> Iterator[NodeClient]:
    with NodeClient(url) as connected:
        yield connected


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


# ---------------------------------------------------------------- the route


def test_before_the_first_keyblock_the_node_says_when_to_come_back(url: str, client: NodeClient) -> None:
    answer = httpx.get(f"{url}/v1/proofs", params={"key": "67"})
    assert problem(answer) == (404, "no_keyblock")
    assert "about 15 s each" in answer.json()["remedy"]
    with pytest.raises(NothingPinned, match="no keyblock is pinned yet"):
        export(client, HistoryClaim(PATIENT.address))


def test_values_and_their_absence_are_proved_against_the_newest_keyblock(network: Network, client: NodeClient) -> None:
    signed = network.settle()
    # The head moves on; the proofs are of then.
    network.label(0)
    keys = [PATIENTS.prefix + PATIENT.address, RECORDS.prefix + numbered_key(PATIENT.address, 0), b"nothing"]
    page = client.proofs(keys)
    assert (page.epoch, page.keyblock_hash) == (2, hash_of(signed))
    assert page.height == network.maker.epochs[1].record.root_height
    given = decode(SignedKeyblock, page.keyblock, 1024)
    assert keyblock_hash(given.keyblock) == page.keyblock_hash
    for key, entry in zip(keys, page.entries, strict=True):
        proof = decode(StateProof, entry.proof, 4096)
        assert verify_state_proof(given.keyblock.state_root, key, entry.value, proof)
    assert [entry.value is None for entry in page.entries] == [False, False, True]
    record = RECORDS.decode(page.entries[1].value or b"")
    assert (record.label_count, network.record(0).label_count) == (0, 1)


@pytest.mark.parametrize(
    ("keys", "status", "reason"),
    [
        ([], 422, "invalid_parameter"),
        (["61"] * 65, 422, "invalid_parameter"),
        ([""], 400, "bad_key"),
        (["6"], 400, "bad_key"),
        (["zz"], 400, "bad_key"),
        (["61 "], 400, "bad_key"),
        (["61" * 65], 400, "bad_key"),
        (["61", "x" * 5000], 400, "bad_key"),
    ],
)
def test_what_cannot_be_a_key_is_refused(network: Network, url: str, keys: list[str], status: int, reason: str) -> None:
    network.settle()
    assert problem(httpx.get(f"{url}/v1/proofs", params={"key": keys})) == (status, reason)


def test_the_most_keys_fit_into_one_request(network: Network, client: NodeClient) -> None:
    network.settle()
    keys = [bytes([number]) * proof_models.MAX_KEY_BYTES for number in range(proof_models.MAX_PROOF_KEYS)]
    assert len(client.proofs(keys).entries) == len(keys)


# ---------------------------------------------------------------- evidence


def test_evidence_is_exported_and_verified_without_the_node(network: Network, client: NodeClient) -> None:
    granted = network.grant()
    signed = network.settle()
    for claim in (RecordClaim(PATIENT.address, 5), HistoryClaim(PATIENT.address), GrantClaim(granted)):
        raw, found = export(client, claim)
        assert verify(raw, hash_of(signed)) == found
    with pytest.raises(EvidenceRefused, match="there is no record 6"):
        export(client, RecordClaim(PATIENT.address, 6))


def test_long_histories_take_several_requests(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_models, "MAX_PROOF_KEYS", 4)
    signed = network.settle()
    raw, _ = export(client, HistoryClaim(PATIENT.address))
    assert "has 6 records and no other" in verify(raw, hash_of(signed)).proven[0]


def test_waiting_ends_as_soon_as_it_can_be_proved(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of the wait is what pins the next keyblock here.
    def pin(_seconds: float) -> None:
        network.pin()

    monkeypatch.setattr("node.proving.time.sleep", pin)
    raw, found = export(client, RecordClaim(PATIENT.address, 0), wait_s=60)
    assert len(network.keyblocks) == 2
    assert verify(raw, hash_of(network.keyblocks[1])) == found


def test_a_keyblock_that_comes_in_between_begins_the_file_anew(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.settle()
    real, calls = client.proofs, [0]

    def moving(keys: Sequence[bytes]) -> proof_models.Proofs:
        calls[0] += 1
        if calls[0] == 3:
            network.pin()
        return real(keys)

    monkeypatch.setattr(client, "proofs", moving)
    raw, _ = export(client, HistoryClaim(PATIENT.address))
    assert verify(raw, hash_of(network.keyblocks[2])).claim == "history"

    def restless(keys: Sequence[bytes]) -> proof_models.Proofs:
        network.pin()
        return real(keys)

    monkeypatch.setattr(client, "proofs", restless)
    with pytest.raises(KeyblockChanged, match="try again"):
        export(client, HistoryClaim(PATIENT.address))


# ---------------------------------------------------------------- a node that lies


def lying(client: NodeClient, monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any], Any]) -> None:
    real = client.proofs
    monkeypatch.setattr(client, "proofs", lambda keys: lie(real(keys)))


def test_false_proofs_are_refused(network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    network.settle()
    before = client.proofs([PATIENTS.prefix + PATIENT.address]).entries[0]

    def exchanged(page: proof_models.Proofs) -> proof_models.Proofs:
        return page.model_copy(update={"entries": (before,) * len(page.entries)})

    def dropped(page: proof_models.Proofs) -> proof_models.Proofs:
        return page.model_copy(update={"entries": page.entries[1:]})

    def absent(page: proof_models.Proofs) -> proof_models.Proofs:
        entries = tuple(entry.model_copy(update={"value": None}) for entry in page.entries)
        return page.model_copy(update={"entries": entries})

    def garbled(page: proof_models.Proofs) -> proof_models.Proofs:
        entries = tuple(entry.model_copy(update={"proof": b"\xc1"}) for entry in page.entries)
        return page.model_copy(update={"entries": entries})

    for lie in (exchanged, dropped, absent, garbled):
        with monkeypatch.context() as patched:
            lying(client, patched, lie)
            with pytest.raises(InvalidInput):
                export(client, HistoryClaim(PATIENT.address))

    def unreadable(page: proof_models.Proofs) -> proof_models.Proofs:
        return page.model_copy(update={"keyblock": b"\x00"})

    lying(client, monkeypatch, unreadable)
    with pytest.raises(InvalidInput, match="SignedKeyblock"):
        export(client, HistoryClaim(PATIENT.address))


def test_a_keyblock_of_another_chain_is_refused(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.settle()
    genesis = client.genesis()
    other = encode(msgspec.structs.replace(GENESIS, network="other"))
    monkeypatch.setattr(client, "genesis", lambda: genesis.model_copy(update={"raw": other}))
    with pytest.raises(EvidenceRefused) as refused:
        export(client, HistoryClaim(PATIENT.address))
    assert refused.value.reason is Fault.WRONG_CHAIN


def test_lists_of_records_are_checked_against_a_keyblock(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NothingPinned):
        checked_history(client, PATIENT.address)
    network.pin()
    with pytest.raises(NotFound, match="knows no patient"):
        checked_history(client, PATIENT.address)
    signed = network.pin()
    checked = checked_history(client, PATIENT.address, hash_of(signed))
    assert (checked.proved, len(checked.records), checked.keyblock_hash) == (6, 6, hash_of(signed))
    assert checked_history(client, OTHER.address).records == ()
    with pytest.raises(InvalidInput, match="newest pinned keyblock is"):
        checked_history(client, PATIENT.address, bytes(32))
    true = list(client.records(PATIENT.address))

    def shown(records: Sequence[models.Record]) -> None:
        monkeypatch.setattr(client, "records", lambda _patient: iter(records))

    for false, match in (
        (true[:-1], "some are hidden"),
        ([*true[:2], *true[3:], true[2]], "the order was changed"),
        ([*true[:5], true[5].model_copy(update={"record_id": bytes(32)})], "was changed"),
    ):
        shown(false)
        with pytest.raises(HistoryRefused, match=match):
            checked_history(client, PATIENT.address)
    for odd in ({"sequence": -1}, {"opening": b""}, {"label_count": 2**70}):
        shown([true[0].model_copy(update=odd), *true[1:]])
        with pytest.raises(EvidenceRefused, match="the node's record"):
            checked_history(client, PATIENT.address)


def test_a_list_shows_labels_and_times_as_they_are(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = client.record(PATIENT.address, 1)
    network.label(1)
    network.settle()
    true = list(checked_history(client, PATIENT.address).records)
    assert [record.label_count for record in true] == [0, 1, 0, 0, 0, 0]
    wrong = {"envelope": fresh.envelope.model_copy(update={"status": "entered-in-error"}), "label_count": 1}
    lies: dict[str, tuple[int, models.Record]] = {
        "a label is hidden": (1, fresh),
        "a label is made up": (0, true[0].model_copy(update=wrong)),
        "one more is made up": (1, true[1].model_copy(update={"label_count": 2})),
        "the time was changed": (0, true[0].model_copy(update={"committed_timestamp_ms": 1})),
        "leave to erase is made up": (1, true[1].model_copy(update={"may_erase": not true[1].may_erase})),
    }
    for place, lie in lies.values():
        shown = [*true[:place], lie, *true[place + 1 :]]
        monkeypatch.setattr(client, "records", lambda _patient, shown=shown: iter(shown))
        with pytest.raises(InvalidInput):
            checked_history(client, PATIENT.address)


def test_a_label_that_is_younger_than_the_keyblock_is_checked_by_itself(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.settle()
    network.label(1)
    checked = checked_history(client, PATIENT.address)
    assert (checked.proved, checked.records[1].envelope.status) == (6, "entered-in-error")
    envelope = checked.records[1].envelope.model_copy(update={"label": "something else"})
    false = [checked.records[0], checked.records[1].model_copy(update={"envelope": envelope}), *checked.records[2:]]
    monkeypatch.setattr(client, "records", lambda _patient: iter(false))
    with pytest.raises(InvalidInput, match="not that of its newest label"):
        checked_history(client, PATIENT.address)


def test_a_list_is_checked_anew_when_a_keyblock_comes_in_between(
    network: Network, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.settle()
    ask, asked = client.proofs, 0

    def proofs(keys: Sequence[bytes]) -> proof_models.Proofs:
        nonlocal asked
        asked += 1
        if asked == 3:
            network.pin()
        return ask(keys)

    monkeypatch.setattr(client, "proofs", proofs)
    assert checked_history(client, PATIENT.address).proved == 6
    assert asked == 6


def test_what_a_node_says_of_a_keyblock_is_computed_here(network: Network, client: NodeClient) -> None:
    signed = network.settle()
    state = ProvedState(client)
    assert (state.keyblock_hash, state.epoch) == (hash_of(signed), 2)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def spchain(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_NODE", url)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def log_page(network: Network, hospital: int, *grants: bytes) -> bytes:
    """Return a page of a proxy's access log, with entries about several grants."""
    entries = tuple(entry for grant in grants for entry in network.access(grant, hospital))
    last = entry_hash(entries[-1].entry)
    proxy = testing.key(hospital)
    head = AccessHead(proxy.address, 1, last, PATIENT.address, 1, last, network.store.head().timestamp_ms)
    return encode(AccessPage(entries, head, proxy.sign(head_digest(CHAIN, head))))


def test_evidence_from_the_command_line(network: Network, spchain: Callable[..., Result], tmp_path: Path) -> None:
    granted = network.grant()
    revoked = network.grant(records=(), all_records=True)
    network.revoke(revoked, confirming=[2])
    network.label(4)
    trusted = hash_of(network.settle()).hex()
    patient = ("--patient", PATIENT.address.hex())
    for hospital in (2, 3):
        (tmp_path / f"{hospital}.access").write_bytes(log_page(network, hospital, granted, revoked))
    kinds: dict[str, tuple[str, ...]] = {
        "record": ("3", *patient),
        "history": patient,
        "grant": (granted.hex(),),
        "revocation": (revoked.hex(),),
        "access": (granted.hex(), "--log", "2.access", "--log", "3.access"),
        "label": ("4", *patient),
    }
    for kind, arguments in kinds.items():
        file = f"{kind}.evidence"
        made = spchain("proof", "export", kind, *arguments, "-o", file)
        assert made.exit_code == 0, made.output
        assert f"wrote {(tmp_path / file).stat().st_size} bytes" in made.stderr
        shown = spchain("verify", file, "--keyblock", trusted)
        assert shown.exit_code == 0, shown.output
        assert f"claim     {kind}" in shown.stdout
        assert shown.stdout.index("\nproven\n") < shown.stdout.index("\nnot proven\n")
        found = json.loads(spchain("verify", file, "--keyblock", trusted, "--json").stdout)
        assert (found["claim"], found["keyblock"]) == (kind, trusted)
        assert found["proven"]
        again = spchain("proof", "export", kind, *arguments, "-o", file)
        assert (again.exit_code, "is not overwritten" in again.stderr) == (3, True)


def test_what_is_wrong_with_evidence_has_a_reason_and_an_exit_code(
    network: Network, spchain: Callable[..., Result], tmp_path: Path
) -> None:
    patient = ("--patient", PATIENT.address.hex())
    early = spchain("proof", "export", "history", *patient, "-o", "h.evidence")
    assert (early.exit_code, "no keyblock is pinned yet" in early.stderr) == (5, True)
    trusted = hash_of(network.settle()).hex()
    missing = spchain("proof", "export", "record", "77", *patient, "-o", "r.evidence", "--json")
    assert (missing.exit_code, missing.stdout, json.loads(missing.stderr)["reason"]) == (3, "", "not_so")
    assert spchain("proof", "export", "history", *patient, "-o", "h.evidence").exit_code == 0
    other = spchain("verify", "h.evidence", "--keyblock", "00" * 32)
    assert (other.exit_code, "wrong_keyblock" in other.stderr) == (3, True)
    raw = bytearray((tmp_path / "h.evidence").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad.evidence").write_bytes(raw)
    refused = spchain("verify", "bad.evidence", "--keyblock", trusted, "--json")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert json.loads(refused.stderr)["reason"] == "wrong_proof"
    for arguments in (
        ("verify", "absent.evidence", "--keyblock", trusted),
        ("verify", "h.evidence", "--keyblock", "12"),
        ("proof", "export", "grant", "12", "-o", "g.evidence"),
        ("proof", "export", "access", "00" * 32, "--log", "bad.evidence", "-o", "a.evidence"),
    ):
        assert spchain(*arguments).exit_code == 3
    assert spchain("verify", "h.evidence").exit_code == 2


def test_a_list_is_checked_from_the_command_line(network: Network, spchain: Callable[..., Result]) -> None:
    listing = ("record", "list", "--patient", PATIENT.address.hex())
    assert spchain(*listing, "--check").exit_code == 5
    trusted = hash_of(network.settle()).hex()
    checked = spchain(*listing, "--check", "--keyblock", trusted)
    assert checked.exit_code == 0, checked.output
    assert f"the first 6 are complete, in order and unchanged, proved by keyblock {trusted}" in checked.stderr
    assert spchain(*listing, "--keyblock", "00" * 32).exit_code == 3
    assert len(json.loads(spchain(*listing, "--check", "--json").stdout)) == 6
