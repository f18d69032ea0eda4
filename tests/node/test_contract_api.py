# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's routes about contracts: what they answer, what clients send wrongly, and what happens in the stream of events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contracts.batch_data import open_data
from contracts.machines.micro_fees import Pay, balance_key
from contracts.requests import sign_request
from ledger.codec import decode, encode
from ledger.contract_bodies import CloseContract, CommitBatch
from ledger.offchain import MAX_REQUEST_BYTES, LeafProof, holds_leaf
from ledger.partial_tree import WitnessEntry
from ledger.state_tree import verify_state_proof
from ledger.transactions import sign_transaction
from node.actions import Actor
from node.api.contract_models import MAX_BATCHES, MAX_SEND_REQUESTS
from node.api.contract_scan import body_tag
from node.client import NodeClient
from node.contract_actions import fund, machine_named, open_contract
from node.contract_proving import commitment_of
from node.offchain.statuses import SendOutcome
from tests.node.api_kit import assert_problem, config_for, serving
from tests.node.contract_cli import client, node, until
from tests.node.contract_kit import ALICE, BOB, OPERATOR, ContractNode

__all__ = ["client", "node"]

MSGPACK = {"content-type": "application/msgpack"}
BINARY = {"content-type": "application/octet-stream"}
REFERENCE = b"\x77" * 32


@pytest.fixture
def contract(client: NodeClient) -> bytes:
    """A contract of micro-fees that the node operates, in which Alice holds credits."""
    actor = Actor(client, OPERATOR)
    parameters = encode(machine_named("micro_fees").parameters(1_000))
    opened = open_contract(actor, machine_named("micro_fees"), parameters, 10_000, 60.0)
    until(lambda: client.contracts.account(opened.contract_id, ALICE.address).next_sequence == 0)
    fund(Actor(client, ALICE), opened.contract_id, ALICE.address, 5_000, 60.0)
    until(lambda: client.contracts.contract(opened.contract_id).answered_count == 1)
    return opened.contract_id


@pytest.fixture
def http(client: NodeClient) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=client.url) as http:
        yield http


def payment(node: ContractNode, contract: bytes, first: int, *amounts: int) -> bytes:
    payments = [Pay(BOB.address, amount, REFERENCE) for amount in amounts]
    return sign_request(node.chain_id, ALICE.signing, contract, first, payments)


# ------------------------------------------------------------------ requests


def test_requests_come_as_msgpack_or_as_json_and_keep_their_order(
    http: httpx.Client, node: ContractNode, contract: bytes
) -> None:
    path = f"/v1/contracts/{contract.hex()}/requests"
    raws = [payment(node, contract, number, 1) for number in range(3)]
    taken = http.post(path, content=msgspec.msgpack.encode(raws), headers=MSGPACK).json()["outcomes"]
    assert [outcome["accepted"] for outcome in taken] == [True] * 3
    mixed = [payment(node, contract, 3, 2, 2), b"rubbish", payment(node, contract, 9, 1), raws[0]]
    done = http.post(path, json={"requests": [raw.hex() for raw in mixed]}).json()["outcomes"]
    assert [(one["accepted"], one["reason"]) for one in done] == [
        (True, ""),
        (False, "invalid_request"),
        (False, "wrong_sequence"),
        (True, ""),
    ]
    # Sent again, it gets the receipt that it had.
    assert done[3]["receipt"] == taken[0]["receipt"]
    assert done[1]["receipt"] is done[1]["outcomes"] is None


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x90", b"\x91\xc0", b"\xdd\xff\xff\xff\xff", b"\x91\xc4\x00", b"[" * 500]
)
def test_rubbish_is_refused_with_a_reason(http: httpx.Client, contract: bytes, body: bytes) -> None:
    path = f"/v1/contracts/{contract.hex()}/requests"
    assert http.post(path, content=body, headers=MSGPACK).status_code in (400, 422)
    assert http.post(path, content=body, headers={"content-type": "application/json"}).status_code in (400, 422)
    assert_problem(http.post(path, content=body, headers={"content-type": "text/plain"}), 415)
    assert_problem(http.post(path.replace("requests", "close"), content=body, headers=BINARY), 422)
    assert http.get("/v1/status").status_code == 200


def test_bodies_are_bounded_in_number_and_size(http: httpx.Client, contract: bytes) -> None:
    path = f"/v1/contracts/{contract.hex()}/requests"
    wrong: object
    text: object
    for wrong in ([b"x"] * (MAX_SEND_REQUESTS + 1), [bytes(MAX_REQUEST_BYTES + 1)], ["text"], [None], {}):
        assert_problem(http.post(path, content=msgspec.msgpack.encode(wrong), headers=MSGPACK), 422)
    for text in ({"requests": ["x"]}, {"requests": ["0"]}, {"requests": []}, {"requests": ["00"], "more": 1}, []):
        assert_problem(http.post(path, json=text), 422)
    # A refusal before the body was read ends the connection, so each has one of its own.
    url = str(http.base_url.join(path))
    assert_problem(httpx.post(url, content=bytes(2 << 20), headers=MSGPACK), 413)
    assert_problem(httpx.post(url.replace("requests", "close"), content=bytes(2_000), headers=BINARY), 413)


def test_a_busy_operator_is_answered_with_503_and_when_to_come_back(
    http: httpx.Client, node: ContractNode, contract: bytes
) -> None:
    path = f"/v1/contracts/{contract.hex()}/requests"
    busy = SendOutcome(accepted=False, reason="busy", detail="8 batches wait for the chain", retry_ms=1_200)
    node.contracts.lie = lambda _outcome: busy
    response = http.post(path, json={"requests": ["00", "01"]})
    assert_problem(response, 503, "busy", says="8 batches wait")
    assert response.headers["retry-after"] == "2"
    # Where some were taken, each has an outcome of its own.
    taken = iter([busy, SendOutcome(accepted=False, reason="invalid_request", detail="no")])
    node.contracts.lie = lambda _outcome: next(taken)
    done = http.post(path, json={"requests": ["00", "01"]}).json()["outcomes"]
    assert [one["reason"] for one in done] == ["busy", "invalid_request"]


def test_with_a_token_only_those_who_have_it_make_the_node_work(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-s3cret-s3cret-s3cret-s3cret\n")
    (tmp_path / "node").mkdir()
    config = config_for(tmp_path / "data", api_token_file=tmp_path / "token")
    with (
        ContractNode(tmp_path / "node") as node,
        serving(node, config, beside=node.run) as url,
        httpx.Client(base_url=url) as http,
    ):
        for act, headers in (("requests", MSGPACK), ("close", BINARY)):
            path = f"/v1/contracts/{'77' * 32}/{act}"
            assert_problem(http.post(path, content=b"\xc1", headers=headers), 401)
            right = {**headers, "authorization": "Bearer s3cret-s3cret-s3cret-s3cret-s3cret"}
            assert_problem(http.post(path, content=b"\xc1", headers=right), 404)
        # To execute batches again takes seconds of a core.
        of = f"/v1/contracts/{'77' * 32}"
        for path in (f"{of}/batches/0/state/6d", f"{of}/accounts/{ALICE.address.hex()}?credits=true"):
            assert_problem(http.get(path), 401)
            assert_problem(http.get(path, headers={"authorization": right["authorization"]}), 404)
        assert http.get("/v1/contracts").json() == {"contracts": [], "next_start": None}


def test_only_the_operator_s_own_order_closes_a_contract(
    http: httpx.Client, client: NodeClient, contract: bytes
) -> None:
    path = f"/v1/contracts/{contract.hex()}/close"
    (by_other,) = Actor(client, ALICE).sign([CloseContract(contract)])
    (of_other,) = Actor(client, OPERATOR).sign([CloseContract(REFERENCE)])
    for order in (by_other, of_other):
        assert_problem(http.post(path, content=order, headers=BINARY), 422, "wrong_order")
    (order,) = Actor(client, OPERATOR).sign([CloseContract(contract)])
    assert_problem(http.post(path, content=order[:-1] + b"\0", headers=BINARY), 422)
    assert client.contracts.contract(contract).status == "open"
    done = http.post(path, content=order, headers=BINARY).json()
    assert done == {"accepted": True, "reason": "", "detail": ""}


# ------------------------------------------------------------------ reads


def test_what_is_not_there_is_404_and_what_is_no_identifier_400(http: httpx.Client, contract: bytes) -> None:
    known, stranger = contract.hex(), "77" * 32
    for path in ("", "/cost", "/batches", "/forced", f"/accounts/{'77' * 20}", f"/requests/{'77' * 20}/0"):
        assert_problem(http.get(f"/v1/contracts/{stranger}{path}"), 404, says="no contract")
        assert_problem(http.get(f"/v1/contracts/zz{path}"), 400, "bad_hex")
    for path in ("batches/999", "batches/999/data", "batches/999/requests/0/proof", "batches/999/state/6d"):
        assert_problem(http.get(f"/v1/contracts/{known}/{path}"), 404, says="does not count")
    assert_problem(http.get(f"/v1/contracts/{known}/batches/0/requests/4095/proof"), 404)
    assert_problem(http.get(f"/v1/contracts/{known}/requests/{'77' * 20}/0"), 404, says="spchain contract force")
    for path in (f"accounts/{'77' * 21}", "requests/zz/0", f"batches/0/state/{'6d' * 65}", "batches/0/state/6"):
        assert_problem(http.get(f"/v1/contracts/{known}/{path}"), 400)
    for path in ("batches/-1", f"batches/{2**63}", "batches/x", "batches?limit=0", f"batches?limit={MAX_BATCHES + 1}"):
        assert_problem(http.get(f"/v1/contracts/{known}/{path}"), 422)


def test_contracts_and_batches_come_in_pages(
    http: httpx.Client, node: ContractNode, client: NodeClient, contract: bytes
) -> None:
    actor = Actor(client, OPERATOR)
    opened = {contract}
    for _ in range(2):
        machine = machine_named("access_log")
        opened.add(open_contract(actor, machine, encode(machine.parameters(())), 10_000, 60.0).contract_id)
    first = http.get("/v1/contracts?limit=2").json()
    rest = http.get(f"/v1/contracts?limit=2&start={first['next_start']}").json()
    found = [each["contract_id"] for each in (*first["contracts"], *rest["contracts"])]
    assert (found, rest["next_start"]) == (sorted(one.hex() for one in opened), None)
    for number in range(3):
        client.contracts.send(contract, [payment(node, contract, number, 1)])
        wanted = number + 2
        until(lambda: client.contracts.contract(contract).batch_count >= wanted)  # noqa: B023 -- called at once
    page = http.get(f"/v1/contracts/{contract.hex()}/batches?limit=2").json()
    assert ([each["number"] for each in page["batches"]], page["next_start"]) == ([0, 1], 2)
    assert [batch.number for batch in client.contracts.batches(contract, 1)][:3] == [1, 2, 3]


def test_data_and_proofs_hold_against_the_commitment(
    http: httpx.Client, node: ContractNode, client: NodeClient, contract: bytes
) -> None:
    raws = [payment(node, contract, 2 * number, 3, 4) for number in range(3)]
    client.contracts.send(contract, raws)
    until(lambda: client.contracts.contract(contract).batch_count == 2)
    commitment = commitment_of(client.contracts.batch(contract, 1))
    raw = client.contracts.data(contract, 1)
    assert [item.request for item in open_data(commitment, raw).items] == raws
    for index in range(3):
        given = client.contracts.request_proof(contract, 1, index)
        assert given.request == raws[index]
        assert holds_leaf(commitment, decode(LeafProof, given.proof, 1_024))
    for key, value in ((b"mb" + BOB.address, encode(21)), (b"mx", None), (b"s" + ALICE.address, encode(6))):
        entry = decode(WitnessEntry, client.contracts.value_proof(contract, 1, key).entry, 16_384)
        assert entry.value == value
        assert verify_state_proof(commitment.new_root, key, value, entry.proof)
    assert b"m" + balance_key(BOB.address) == b"mb" + BOB.address
    node.contracts.data.remove([commitment.data_digest])
    assert_problem(http.get(f"/v1/contracts/{contract.hex()}/batches/1/data"), 404, says="not here")
    assert_problem(http.get(f"/v1/contracts/{contract.hex()}/batches/1/requests/0/proof"), 404)


def test_forced_requests_are_listed_until_they_are_long_answered(client: NodeClient, contract: bytes) -> None:
    (deposit,) = client.contracts.forced(contract)
    assert (deposit.number, deposit.account, deposit.amount_microcredit) == (0, ALICE.address, 5_000)
    assert deposit.is_answered
    assert not deposit.is_reclaimable
    assert client.contracts.contract(contract).freezable_ms is None


def test_costs_are_those_of_the_transactions_that_committed(
    client: NodeClient, node: ContractNode, contract: bytes
) -> None:
    client.contracts.send(contract, [payment(node, contract, 0, *[1] * 40)])
    until(lambda: client.contracts.contract(contract).batch_count == 2)
    batch = client.contracts.batch(contract, 1)
    raws = [
        client.transaction(one.id).raw
        for one in client.block_transactions(batch.height).transactions
        if client.transaction(one.id).kind == "commit_batch"
    ]
    assert [body_tag(raw) for raw in raws] == [20]
    until(lambda: client.contracts.status(contract, ALICE.address, 39).status in ("committed", "final"))
    cost = client.contracts.status(contract, ALICE.address, 0).cost
    assert (cost.batches, cost.operations, cost.chain_bytes) == (1, 40, len(raws[0]))
    assert cost.fee_microcredit == node.genesis.parameters.minimum_fee_microcredit
    assert client.contracts.cost(contract).operations == 41


def test_the_kind_of_a_stored_transaction_is_read_without_decoding_it(client: NodeClient, contract: bytes) -> None:
    for nonce, body in (
        (0, CloseContract(contract)),
        (2**40, CommitBatch(commitment_of(client.contracts.batch(contract, 0)))),
    ):
        for fee in (0, 127, 128, 65_536, 2**62):
            raw = sign_transaction(
                bytes(32), ALICE.signing, nonce=nonce, fee_microcredit=fee, expiry_height=300, body=body
            )
            assert body_tag(raw) == (24 if nonce == 0 else 20)


def test_credits_are_read_only_for_who_wants_them(http: httpx.Client, client: NodeClient, contract: bytes) -> None:
    until(lambda: client.contracts.contract(contract).final_count == 1)
    path = f"/v1/contracts/{contract.hex()}/accounts/{ALICE.address.hex()}"
    plain = http.get(path).json()
    assert (plain["next_sequence"], plain["batch"], plain["balance_microcredit"]) == (0, None, None)
    wanted = http.get(f"{path}?credits=true").json()
    assert (wanted["batch"], wanted["balance_microcredit"], wanted["owed_microcredit"]) == (0, 5_000, 0)
    assert_problem(http.get(f"{path}?credits=perhaps"), 422)


# ------------------------------------------------------------------ events


def test_events_tell_what_happens_to_contracts_live_and_afterwards(
    client: NodeClient, node: ContractNode, contract: bytes
) -> None:
    client.contracts.send(contract, [payment(node, contract, 0, 5)])
    (order,) = Actor(client, OPERATOR).sign([CloseContract(contract)])
    wanted = {"opened", "funded", "committed", "final", "closed"}
    live: list[tuple[str, int | None]] = []
    client.contracts.close(contract, order, 20_000)
    for event in client.events(1, contracts=True):
        assert event.contracts is not None
        live += [(news.kind, news.batch) for news in event.contracts if news.contract_id == contract]
        if ("final", 1) in live:
            break
    assert {kind for kind, _ in live} == wanted
    assert [kind for kind, _ in live if kind != "final"] == ["opened", "funded", "committed", "committed", "closed"]
    assert [batch for kind, batch in live if kind == "final"] == [0, 1]
    plain = next(client.events(1))
    assert plain.contracts is None


def test_the_openapi_document_describes_requests(http: httpx.Client) -> None:
    document: dict[str, Any] = json.loads(http.get("/v1/openapi.json").text)
    assert "Requests" in document["components"]["schemas"]
    assert "/v1/contracts/{contract}/requests" in document["paths"]
