# SPDX-License-Identifier: GPL-3.0-or-later
"""The API in one process: what it answers, and that nothing a client sends gets anything but a typed answer (I13)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from ledger import testing
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput, StoreError
from ledger.patients import record_id
from ledger.transactions import check_transaction, transaction_id
from node.api.app import create_app
from node.api.bodies import read_body
from node.api.guard import Budget, Guard
from node.api.models import MAX_SUBMIT_BYTES
from records.limits import MAX_BLOB_BYTES
from tests.node.api_kit import LoneNode, assert_problem, client_of, config_for

HOSPITAL, PATIENT = testing.key(0), testing.key(20)


@pytest.fixture
def node() -> LoneNode:
    return LoneNode()


@pytest.fixture
async def client(node: LoneNode, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(node, tmp_path) as client:
        yield client


def commit(node: LoneNode, *raws: bytes) -> None:
    node.commit([check_transaction(raw, testing.rules_of(node.chain_id)) for raw in raws])


def with_records(node: LoneNode, count: int) -> list[bytes]:
    """Register a hospital and a patient with records; return the records' identifiers."""
    keyblock = testing.patient_keyblock(PATIENT, HOSPITAL.address)
    bodies = testing.record_chain(HOSPITAL.address, keyblock, count)
    commit(node, testing.register_institution(node.chain_id, HOSPITAL, 0))
    commit(node, testing.register_patient(node.chain_id, HOSPITAL, PATIENT, 1))
    commit(node, *(testing.signed(node.chain_id, HOSPITAL, body, 2 + i) for i, body in enumerate(bodies)))
    return [record_id(body.microblock) for body in bodies]


# ------------------------------------------------------------------ reading


async def test_status_tells_height_committee_and_peers(client: httpx.AsyncClient, node: LoneNode) -> None:
    status = (await client.get("/v1/status")).json()
    assert status["chain_id"] == node.chain_id.hex()
    assert status["peers"][0]["latency_ms"] == 1.5


async def test_health_follows_the_storage(client: httpx.AsyncClient, node: LoneNode) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    node.storage = "no space left on device"
    assert_problem(await client.get("/healthz"), 503, "storage")


async def test_the_genesis_comes_readable_and_as_bytes(client: httpx.AsyncClient, node: LoneNode) -> None:
    answer = (await client.get("/v1/genesis")).json()
    assert answer["chain_id"] == node.chain_id.hex()
    assert answer["genesis"]["network"] == "test"
    assert answer["genesis"]["committee"][0]["public_key"] == testing.key(0).public_key.hex()
    assert len(bytes.fromhex(answer["raw"])) > 100


async def test_a_block_is_found_by_height_hash_and_latest(client: httpx.AsyncClient, node: LoneNode) -> None:
    commit(node, testing.transfer(node.chain_id, HOSPITAL, PATIENT.address))
    latest = (await client.get("/v1/blocks/latest")).json()
    assert latest["height"] == 1
    assert len(latest["batches"]) == 1
    assert (await client.get("/v1/blocks/1")).json() == latest
    assert (await client.get(f"/v1/blocks/{latest['block_hash']}")).json() == latest
    genesis = (await client.get("/v1/blocks/0")).json()
    assert latest["parent"] == genesis["block_hash"]
    assert (await client.get(f"/v1/blocks/{genesis['block_hash']}")).json()["height"] == 0


async def test_a_blocks_transactions_come_in_pages_with_their_fate(client: httpx.AsyncClient, node: LoneNode) -> None:
    raws = [testing.transfer(node.chain_id, HOSPITAL, PATIENT.address, nonce=nonce) for nonce in (0, 1, 2, 7)]
    commit(node, *raws)
    first = (await client.get("/v1/blocks/1/transactions?limit=3")).json()
    rest = (await client.get(f"/v1/blocks/1/transactions?start={first['next_start']}")).json()
    assert rest["next_start"] is None
    listed = first["transactions"] + rest["transactions"]
    assert [item["id"] for item in listed] == [transaction_id(raw).hex() for raw in raws]
    assert [item["reason"] for item in listed] == ["", "", "", "nonce_gap"]


async def test_a_transaction_is_shown_with_its_content(client: httpx.AsyncClient, node: LoneNode) -> None:
    raw = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address, amount_microcredit=5)
    commit(node, raw)
    shown = (await client.get(f"/v1/transactions/{transaction_id(raw).hex()}")).json()
    assert shown["kind"] == "transfer"
    assert shown["sender"] == HOSPITAL.address.hex()
    assert shown["body"] == {"recipient": PATIENT.address.hex(), "amount_microcredit": 5}
    assert shown["raw"] == raw.hex()
    assert shown["receipt"] == {"height": 1, "position": 0, "reason": ""}


async def test_accounts_tell_balance_roles_and_the_next_nonce(client: httpx.AsyncClient, node: LoneNode) -> None:
    with_records(node, 0)
    hospital = (await client.get(f"/v1/accounts/{HOSPITAL.address.hex()}")).json()
    assert hospital["is_accredited"]
    assert hospital["is_institution"]
    assert (hospital["nonce"], hospital["next_nonce"]) == (2, 2)
    node.commits = False
    pending = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address, nonce=2)
    await client.post("/v1/transactions", json={"transactions": [pending.hex()]})
    hospital = (await client.get(f"/v1/accounts/{HOSPITAL.address.hex()}")).json()
    assert (hospital["nonce"], hospital["next_nonce"]) == (2, 3)
    assert (await client.get(f"/v1/accounts/{PATIENT.address.hex()}")).json()["is_patient"]
    empty = (await client.get(f"/v1/accounts/{'00' * 20}")).json()
    assert empty["balance_microcredit"] == 0


async def test_institutions_are_listed_in_pages(client: httpx.AsyncClient, node: LoneNode) -> None:
    for number in range(3):
        commit(node, testing.register_institution(node.chain_id, testing.key(number), name=f"Hospital {number}"))
    names: list[str] = []
    starts: list[str | None] = [""]
    for _ in range(3):
        page = (await client.get("/v1/institutions", params={"limit": 1, "start": starts[-1]})).json()
        names += [item["name"] for item in page["institutions"]]
        starts.append(page["next_start"])
    assert starts[-1] is None
    assert sorted(names) == ["Hospital 0", "Hospital 1", "Hospital 2"]
    assert (await client.get(f"/v1/institutions/{HOSPITAL.address.hex()}")).json()["name"] == "Hospital 0"


async def test_a_patient_and_the_records_are_shown(client: httpx.AsyncClient, node: LoneNode) -> None:
    identifiers = with_records(node, 5)
    path = f"/v1/patients/{PATIENT.address.hex()}"
    patient = (await client.get(path)).json()
    assert patient["record_count"] == 5
    assert patient["last_record"] == identifiers[-1].hex()
    assert patient["authors"] == [{"institution": HOSPITAL.address.hex(), "allowed": True, "changed_height": 2}]
    page = (await client.get(f"{path}/records?start=1&limit=3")).json()
    assert [item["sequence"] for item in page["records"]] == [1, 2, 3]
    assert page["next_start"] == 4
    record = (await client.get(f"{path}/records/4")).json()
    assert record["record_id"] == identifiers[4].hex()
    assert record["envelope"]["status"] == "final"


async def test_the_state_is_shown_with_its_root_or_at_a_past_height(client: httpx.AsyncClient, node: LoneNode) -> None:
    before = (await client.get("/v1/state")).json()
    commit(node, testing.transfer(node.chain_id, HOSPITAL, PATIENT.address))
    now = (await client.get("/v1/state")).json()
    assert now["state_root"] == node.store.state_root().hex()
    assert now["state_root"] != before["state_root"]
    past = (await client.get("/v1/state?height=0")).json()
    assert past == {**before, "state_root": None}


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/transactions/{ZERO_DIGEST.hex()}",
        f"/v1/blocks/{ZERO_DIGEST.hex()}",
        "/v1/blocks/1000000",
        "/v1/blocks/9999999999999999999",
        f"/v1/institutions/{'00' * 20}",
        f"/v1/patients/{'00' * 20}",
        f"/v1/patients/{'00' * 20}/records",
        f"/v1/patients/{'00' * 20}/records/0",
        f"/v1/blobs/{ZERO_DIGEST.hex()}",
        "/v1/state?height=1000000",
    ],
)
async def test_what_is_not_there_is_a_typed_404(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/v1/transactions/xyz", 400, "bad_hex"),
        (f"/v1/transactions/{'é' * 64}", 400, "bad_hex"),
        (f"/v1/transactions/{'00' * 31}%2000", 400, "bad_hex"),
        (f"/v1/accounts/{'00' * 21}", 400, "bad_hex"),
        (f"/v1/accounts/{'0' * 5000}", 400, "bad_hex"),
        ("/v1/blocks/-1", 400, "bad_hex"),
        ("/v1/blocks/1e3", 400, "bad_hex"),
        ("/v1/blocks/٣", 400, "bad_hex"),
        (f"/v1/blocks/{'9' * 400}", 400, "bad_hex"),
        ("/v1/institutions?limit=0", 422, "invalid_parameter"),
        ("/v1/institutions?limit=1001", 422, "invalid_parameter"),
        ("/v1/institutions?start=zz", 400, "bad_hex"),
        ("/v1/state?height=-1", 422, "invalid_parameter"),
        ("/v1/state?height=1e400", 422, "invalid_parameter"),
        (f"/v1/state?height={2**63}", 422, "invalid_parameter"),
        (f"/v1/patients/{'00' * 20}/records/{2**64}", 422, "invalid_parameter"),
        (f"/v1/patients/{'00' * 20}/records/{'9' * 5000}", 422, "invalid_parameter"),
        ("/v1/events?from_height=x", 422, "invalid_parameter"),
        ("/", 404, "no_such_route"),
        ("/v1/status/", 404, "no_such_route"),
        ("/v1/../../etc/passwd", 404, "no_such_route"),
        ("/v1/%00", 404, "no_such_route"),
        ("/docs", 404, "no_such_route"),
    ],
)
async def test_junk_in_a_path_is_a_typed_error(client: httpx.AsyncClient, path: str, status: int, reason: str) -> None:
    assert_problem(await client.get(path), status, reason)


async def test_an_unknown_method_is_a_typed_error(client: httpx.AsyncClient) -> None:
    assert_problem(await client.delete("/v1/status"), 405, "method_not_allowed")
    assert_problem(await client.get("/v1/transactions"), 405, "method_not_allowed")


async def test_the_openapi_document_describes_what_is_read_by_hand(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/openapi.json")).json()
    assert {"Submission", "Event", "Status", "Record"} <= set(document["components"]["schemas"])
    assert "/v1/transactions" in document["paths"]


# ------------------------------------------------------------------ submitting


async def test_a_submission_waits_for_its_receipts(client: httpx.AsyncClient, node: LoneNode) -> None:
    raw = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address)
    answer = await client.post("/v1/transactions", json={"transactions": [raw.hex()], "wait_ms": 1000})
    assert answer.json()["outcomes"] == [
        {
            "id": transaction_id(raw).hex(),
            "accepted": True,
            "reason": "",
            "detail": "",
            "receipt": {"height": 1, "position": 0, "reason": ""},
        }
    ]


async def test_msgpack_is_taken_and_each_item_gets_its_outcome(client: httpx.AsyncClient, node: LoneNode) -> None:
    raws = [
        testing.transfer(node.chain_id, HOSPITAL, PATIENT.address),
        b"rubbish",
        b"",
        bytes(60_000),
        testing.transfer(ZERO_DIGEST, HOSPITAL, PATIENT.address, nonce=1),
        testing.transfer(node.chain_id, HOSPITAL, PATIENT.address, nonce=9),
        testing.transfer(node.chain_id, HOSPITAL, PATIENT.address, nonce=1)[:-1] + b"\x00",
    ]
    answer = await client.post(
        "/v1/transactions?wait_ms=10",
        content=msgspec.msgpack.encode(raws),
        headers={"Content-Type": "application/msgpack"},
    )
    reasons = [outcome["reason"] for outcome in answer.json()["outcomes"]]
    expected = ["", "malformed", "malformed", "too_large", "wrong_chain", "nonce_gap", "bad_signature"]
    assert reasons == expected


async def test_what_was_committed_before_is_told_when_it_is_sent_again(
    client: httpx.AsyncClient, node: LoneNode
) -> None:
    raw = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address)
    commit(node, raw)
    outcome = (await client.post("/v1/transactions", json={"transactions": [raw.hex()]})).json()["outcomes"][0]
    assert outcome["reason"] == "nonce_used"
    assert outcome["receipt"] == {"height": 1, "position": 0, "reason": ""}


async def test_a_wait_that_is_over_leaves_the_receipt_open(client: httpx.AsyncClient, node: LoneNode) -> None:
    node.commits = False
    raw = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address)
    answer = await client.post("/v1/transactions", json={"transactions": [raw.hex()], "wait_ms": 1})
    outcome = answer.json()["outcomes"][0]
    assert outcome["accepted"]
    assert outcome["receipt"] is None


@pytest.mark.parametrize(
    ("content_type", "body", "status", "reason"),
    [
        ("application/json", b"", 400, "malformed_body"),
        ("application/json", b"{", 400, "malformed_body"),
        ("application/json", b"\xff\xfe", 400, "malformed_body"),
        ("application/json", b'{"transactions":["\xff"]}', 400, "malformed_body"),
        ("application/json", b'{"transactions":' + b"[" * 100_000, 422, "invalid_body"),
        ("application/json", b"[" * 1_000_000, 422, "invalid_body"),
        ("application/json", b'{"a":' * 200_000, 422, "invalid_body"),
        ("application/json", b"[]", 422, "invalid_body"),
        ("application/json", b"null", 422, "invalid_body"),
        ("application/json", b"{}", 422, "invalid_body"),
        ("application/json", b'{"transactions":[]}', 422, "invalid_body"),
        ("application/json", b'{"transactions":[7]}', 422, "invalid_body"),
        ("application/json", b'{"transactions":["00"],"more":1}', 422, "invalid_body"),
        ("application/json", b'{"transactions":["00"],"wait_ms":-1}', 422, "invalid_body"),
        ("application/json", b'{"transactions":["00"],"wait_ms":60001}', 422, "invalid_body"),
        ("application/json", b'{"transactions":["00"],"wait_ms":1e999}', 422, "invalid_body"),
        ("application/json", b'{"transactions":["0"]}', 422, "bad_hex"),
        ("application/json", b'{"transactions":["0 0 0"]}', 422, "bad_hex"),
        ("application/json", b'{"transactions":["0x00"]}', 422, "bad_hex"),
        ("application/json", b'{"transactions":[' + b'"",' * 4096 + b'""]}', 422, "invalid_body"),
        ("application/msgpack", b"", 400, "malformed_body"),
        ("application/msgpack", b"\xc1", 400, "malformed_body"),
        ("application/msgpack", b"\xdd\xff\xff\xff\xff", 422, "invalid_body"),
        ("application/msgpack", b"\x91" * 100_000, 422, "invalid_body"),
        ("application/msgpack", b"\x91\xc6\xff\xff\xff\xff", 400, "malformed_body"),
        ("application/msgpack", b"\x90", 422, "invalid_body"),
        ("application/msgpack", b"\x91\xa1a", 422, "invalid_body"),
        ("text/plain", b"{}", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"a=b", 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=x", b"--x--", 415, "unsupported_media_type"),
        ("", b"{}", 415, "unsupported_media_type"),
    ],
)
async def test_a_wrong_submission_is_refused_whole(
    client: httpx.AsyncClient, node: LoneNode, content_type: str, body: bytes, status: int, reason: str
) -> None:
    answer = await client.post("/v1/transactions", content=body, headers={"Content-Type": content_type})
    assert_problem(answer, status, reason)
    assert node.store.head().height == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    body=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda raw: msgspec.msgpack.encode([raw]))),
    kind=st.sampled_from(["application/json", "application/msgpack", "application/octet-stream"]),
    path=st.sampled_from(["/v1/transactions", "/v1/blobs", "/v1/status"]),
    method=st.sampled_from(["POST", "PUT", "PATCH", "GET"]),
)
async def test_any_request_gets_a_typed_answer(
    client: httpx.AsyncClient, body: bytes, kind: str, path: str, method: str
) -> None:
    answer = await client.request(method, path, content=body, headers={"Content-Type": kind})
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


# ------------------------------------------------------------------ size, time, number


async def ask(app: ASGIApp, method: str, path: str, receive: Receive, **headers: str) -> int:
    """Make a request by hand, for bodies that no client would send; return the status."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    raw_headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    raw_headers.append((b"host", b"localhost"))
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": raw_headers}
    scope |= {"raw_path": path.encode(), "root_path": "", "scheme": "http", "http_version": "1.1"}
    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    ("method", "path", "kind", "limit"),
    [
        ("POST", "/v1/transactions", "application/json", MAX_SUBMIT_BYTES),
        ("PUT", "/v1/blobs", "application/octet-stream", MAX_BLOB_BYTES),
    ],
)
async def test_a_body_that_announces_too_much_is_refused_before_it_is_read(
    node: LoneNode, tmp_path: Path, method: str, path: str, kind: str, limit: int
) -> None:
    async def receive() -> Message:
        pytest.fail("the body was read")

    app = create_app(node, config_for(tmp_path))
    assert await ask(app, method, path, receive, content_type=kind, content_length=str(limit + 1)) == 413


@pytest.mark.parametrize(
    ("method", "path", "kind", "limit"),
    [
        ("POST", "/v1/transactions", "application/msgpack", MAX_SUBMIT_BYTES),
        ("PUT", "/v1/blobs", "application/octet-stream", MAX_BLOB_BYTES),
    ],
)
async def test_a_body_that_announces_nothing_is_cut_at_the_limit(
    node: LoneNode, tmp_path: Path, method: str, path: str, kind: str, limit: int
) -> None:
    received = 0

    async def endless() -> Message:
        nonlocal received
        await trio.lowlevel.checkpoint()
        received += 65536
        return {"type": "http.request", "body": bytes(65536), "more_body": True}

    app = create_app(node, config_for(tmp_path))
    assert await ask(app, method, path, endless, content_type=kind) == 413
    assert received <= limit + 65536


async def test_a_wrong_content_length_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": "many"}
    assert_problem(await client.put("/v1/blobs", content=b"x", headers=headers), 400, "bad_content_length")


async def test_a_body_that_never_ends_times_out(node: LoneNode, autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(Request(scope, receive), 1000, Budget())

    async def receive() -> Message:
        await trio.sleep(9)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert await ask(Guard(app, body_timeout_s=60), "PUT", "/", receive) == 408
    assert 60 <= autojump_clock.current_time() < 61


async def test_a_connection_that_ends_early_changes_nothing(node: LoneNode, tmp_path: Path) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    app = create_app(node, config_for(tmp_path))
    assert await ask(app, "PUT", "/v1/blobs", receive, content_type="application/octet-stream") == 400
    assert node.blobs.usage().blobs == 0


async def test_more_requests_than_allowed_are_told_to_come_back() -> None:
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()

    guard = Guard(app, max_requests=2)
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(guard, dict(scope), receive, send)
        await wait_all_tasks_blocked()
        await guard(dict(scope), receive, send)
        release.set()
    assert answers[0]["status"] == 503
    assert (b"retry-after", b"1") in answers[0]["headers"]


async def test_memory_for_bodies_is_bounded_and_given_back(node: LoneNode, tmp_path: Path) -> None:
    async with client_of(node, tmp_path) as client:
        for _ in range(20):  # twenty times 8 MiB announced, one after the other
            answer = await client.get(f"/v1/blobs/{ZERO_DIGEST.hex()}")
            assert_problem(answer, 404, "not_found")


async def test_a_fault_of_ours_is_a_500_without_details(
    node: LoneNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise AssertionError("a secret detail")

    monkeypatch.setattr(node, "status", broken)
    with capture_logs() as logs:
        async with client_of(node, tmp_path) as client:
            answer = await client.get("/v1/status")
    assert_problem(answer, 500, "internal")
    assert [entry["event"] for entry in logs] == ["request failed"]
    assert "secret" not in answer.text


@pytest.fixture
def unreadable(node: LoneNode, monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Hashes of microblocks that the disk cannot give back."""
    lost: set[bytes] = set()
    read = node.store.microblock

    def reading(block_hash: bytes) -> bytes | None:
        if block_hash in lost:
            raise StoreError("the disk cannot read; replace it")
        return read(block_hash)

    monkeypatch.setattr(node.store, "microblock", reading)
    return lost


async def test_events_that_cannot_be_read_are_a_507(
    client: httpx.AsyncClient, node: LoneNode, unreadable: set[bytes]
) -> None:
    node.commit([])
    unreadable.add(node.store.head().block_hash)
    assert_problem(await client.get("/v1/events?from_height=1"), 507, "storage")


async def test_events_end_where_they_cannot_be_read_any_further(
    client: httpx.AsyncClient, node: LoneNode, unreadable: set[bytes]
) -> None:
    for _ in range(3):
        node.commit([])
    unreadable.add(node.store.head().block_hash)
    with capture_logs() as logs:
        answer = await client.get("/v1/events?from_height=1")
    assert [line for line in answer.text.splitlines() if line.startswith("id: ")] == ["id: 1", "id: 2"]
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [("warning", "events break off")]


# ------------------------------------------------------------------ blobs and the token


async def test_a_blob_is_kept_and_given_back(client: httpx.AsyncClient) -> None:
    answer = await client.put("/v1/blobs", content=b"sealed", headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 201
    blob = await client.get(f"/v1/blobs/{answer.json()['blob_id']}")
    assert blob.content == b"sealed"
    assert "immutable" in blob.headers["cache-control"]
    assert blob.headers["x-content-type-options"] == "nosniff"


async def test_an_empty_blob_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.put("/v1/blobs", content=b"", headers={"Content-Type": "application/octet-stream"})
    assert_problem(answer, 422, "invalid_input")


async def test_a_full_store_is_a_507(
    client: httpx.AsyncClient, node: LoneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(blob_id: bytes, blob: bytes) -> None:
        raise StoreError("no space left on device; free some")

    monkeypatch.setattr(node.blobs, "put", full)
    answer = await client.put("/v1/blobs", content=b"x", headers={"Content-Type": "application/octet-stream"})
    assert_problem(answer, 507, "storage")


async def test_writes_need_the_token_and_reads_do_not(node: LoneNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    headers = {"Content-Type": "application/octet-stream"}
    async with client_of(node, tmp_path, api_token_file="token") as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic 0123456789abcdef"}):
            answer = await client.put("/v1/blobs", content=b"x", headers={**headers, **given})
            assert_problem(answer, 401, "unauthorised")
            assert_problem(await client.post("/v1/transactions", json={}, headers=given), 401, "unauthorised")
        right = {**headers, "Authorization": "Bearer 0123456789abcdef"}
        assert (await client.put("/v1/blobs", content=b"x", headers=right)).status_code == 201
        assert (await client.get("/v1/status")).status_code == 200


@pytest.mark.parametrize("content", ["", "short", "é" * 20])
def test_a_weak_token_is_refused_at_the_start(node: LoneNode, tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(InvalidInput, match="token"):
        create_app(node, config_for(tmp_path, api_token_file="token"))
