# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing that a node hands out is believed: a client notices a record, blob or genesis that does not fit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ledger.bodies import Body, Transfer
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.rules import DEVNET_PARAMETERS
from node.actions import NONCE_ATTEMPTS, Actor, CommitTimeout, network_rules, read_record, rejection, submit_and_wait
from node.client import NodeClient
from node.genesis_file import make_genesis
from node.http_client import ApiError
from node.identity import Identity
from node.record_checks import check_record
from records.blob_store import MemoryBlobStore
from tests.node.api_kit import LoneNode, config_for, serving

HOSPITAL, PATIENT = Identity(bytes(31) + b"\x01", "hospital"), Identity(bytes(31) + b"\x02")


@pytest.fixture
def node() -> LoneNode:
    return LoneNode(make_genesis("test", [HOSPITAL.public.public_key], 1_767_225_600_000, parameters=DEVNET_PARAMETERS))


@pytest.fixture
def client(node: LoneNode, tmp_path: Path) -> Iterator[NodeClient]:
    with serving(node, config_for(tmp_path)) as url, NodeClient(url) as client:
        yield client


@pytest.fixture
def hospital(client: NodeClient) -> Actor:
    actor = Actor(client, HOSPITAL)
    actor.register_institution("Hospital", "AT")
    actor.register_patient(PATIENT, 1000)
    return actor


def test_records_are_written_many_at_a_time_and_read_back(hospital: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.actions.RECORDS_AT_ONCE", 2)
    bundles = [b"bundle %d" % number for number in range(5)]
    progress: list[int] = []
    prepared = hospital.prepare_records(PATIENT.address, bundles)
    written = hospital.commit_records(PATIENT.address, prepared, done=progress.append)
    assert [item.sequence for item in written] == [0, 1, 2, 3, 4]
    assert progress == [2, 2, 1]
    assert [read_record(hospital.client, PATIENT, n)[1] for n in range(5)] == bundles


def test_a_nonce_that_the_own_node_takes_meanwhile_is_followed_by_the_next(
    hospital: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an operator's node commits a batch from the same account."""
    sign, taken = hospital.sign, 0

    def too_late(bodies: Sequence[Body]) -> list[bytes]:
        nonlocal taken
        signed = sign(bodies)
        if taken < NONCE_ATTEMPTS - 1:
            taken += 1
            submit_and_wait(hospital.client, sign([Transfer(PATIENT.address, taken)]))
        return signed

    monkeypatch.setattr(hospital, "sign", too_late)
    before = hospital.client.account(HOSPITAL.address).next_nonce
    hospital.transfer(PATIENT.address, 7)
    assert hospital.client.account(HOSPITAL.address).next_nonce == before + NONCE_ATTEMPTS
    taken = 0
    assert hospital.put_record(PATIENT.address, b"right").sequence == 0

    taken = -1
    with pytest.raises(Rejection) as refused:
        hospital.transfer(PATIENT.address, 7)
    assert refused.value.reason is RejectionReason.NONCE_USED
    taken = 0
    several: list[Body] = [Transfer(PATIENT.address, 8), Transfer(PATIENT.address, 9)]
    with pytest.raises(Rejection):
        hospital.commit_all(several)


def test_a_status_that_only_a_label_gives_is_refused(hospital: Actor) -> None:
    with pytest.raises(InvalidInput, match="'preliminary' or 'final'"):
        hospital.put_record(PATIENT.address, b"x", "amended")


def test_another_blob_than_the_committed_one_is_noticed(
    hospital: Actor, node: LoneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.put_record(PATIENT.address, b"right")
    monkeypatch.setattr(MemoryBlobStore, "get", lambda self, blob_id: b"wrong")
    with pytest.raises(InvalidInput, match="not the blob"):
        read_record(hospital.client, PATIENT, 0)


def test_a_changed_entry_of_the_chain_is_noticed(hospital: Actor) -> None:
    hospital.put_record(PATIENT.address, b"right")
    record = hospital.client.record(PATIENT.address, 0)
    check_record(hospital.client, record)
    with pytest.raises(InvalidInput, match="does not hash"):
        check_record(hospital.client, record.model_copy(update={"sequence": 1}))
    forged = record.envelope.model_copy(update={"blob_id": bytes(32)})
    with pytest.raises(InvalidInput, match="not the committed one"):
        check_record(hospital.client, record.model_copy(update={"envelope": forged}))


def test_another_patient_cannot_open_a_record(hospital: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital.put_record(PATIENT.address, b"private")
    thief = Identity(bytes(31) + b"\x09")
    record = hospital.client.record(PATIENT.address, 0)
    monkeypatch.setattr(hospital.client, "record", lambda address, sequence: record)
    with pytest.raises(InvalidInput, match="do not open"):
        read_record(hospital.client, thief, 0)


def test_a_genesis_that_is_not_the_chains_is_noticed(client: NodeClient, node: LoneNode) -> None:
    node.chain_id = bytes(32)
    with pytest.raises(InvalidInput, match="not that of its genesis"):
        network_rules(client)


def test_a_transaction_that_had_no_effect_raises_its_reason(client: NodeClient, node: LoneNode) -> None:
    actor = Actor(client, HOSPITAL)
    with pytest.raises(Rejection) as caught:
        actor.transfer(PATIENT.address, 2**62)
    assert caught.value.reason is RejectionReason.INSUFFICIENT_BALANCE


def test_sending_again_what_is_committed_is_no_error(client: NodeClient) -> None:
    actor = Actor(client, HOSPITAL)
    raws = actor.sign([Transfer(PATIENT.address, 8), Transfer(PATIENT.address, 9)])
    first = submit_and_wait(client, raws)
    assert submit_and_wait(client, raws) == first


def test_a_commit_that_does_not_come_names_the_transaction(client: NodeClient, node: LoneNode) -> None:
    node.commits = False
    with pytest.raises(CommitTimeout) as caught:
        Actor(client, HOSPITAL).commit(Transfer(PATIENT.address, 1), timeout_s=0.1)
    assert caught.value.identifier.hex() in str(caught.value)


def test_reasons_of_newer_nodes_are_passed_on() -> None:
    error = rejection("not_yet_invented", "detail")
    assert isinstance(error, ApiError)
    assert error.reason == "not_yet_invented"
