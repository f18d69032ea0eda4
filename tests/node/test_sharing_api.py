# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's routes to proxies and about patients' decisions: what clients send wrongly, and who may send at all."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from ledger import queries, testing
from ledger.bodies import GrantAccess
from ledger.sharing import MAX_PROXIES
from ledger.transactions import sign_transaction
from node.api import models
from records.grants import MAX_SEALED_FRAGMENT_BYTES, GrantChoice, prepare_grant
from records.requests import MAX_REQUEST_BYTES
from tests.node.api_kit import assert_problem, config_for, serving
from tests.node.care_cli import MARIA, node
from tests.node.care_kit import INSTITUTIONS, CareNode

__all__ = ["node"]

BINARY = {"content-type": "application/octet-stream"}
MSGPACK = {"content-type": "application/msgpack"}
ROUTES = (("/v1/fragments", MSGPACK), ("/v1/reencryptions", BINARY), ("/v1/access-log", BINARY))


@pytest.fixture
def http(node: CareNode, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(node, config_for(tmp_path / "data")) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.mark.parametrize(("route", "headers"), ROUTES)
@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x91\xc4\x01x", b"\xdd\xff\xff\xff\xff", b"[" * 500])
def test_rubbish_is_refused_with_a_reason(http: httpx.Client, route: str, headers: dict[str, str], body: bytes) -> None:
    assert_problem(http.post(route, content=body, headers=headers), 422)
    assert http.get("/v1/status").status_code == 200


@pytest.mark.parametrize(("route", "headers"), ROUTES)
def test_a_body_that_is_too_long_is_refused(http: httpx.Client, route: str, headers: dict[str, str]) -> None:
    assert_problem(http.post(route, content=bytes(1 << 20), headers=headers), 413)


@pytest.mark.parametrize(("route", "headers"), ROUTES)
def test_another_content_type_is_refused(http: httpx.Client, route: str, headers: dict[str, str]) -> None:
    del headers
    assert_problem(http.post(route, content=b"x", headers={"content-type": "text/plain"}), 415)


def test_fragments_are_bounded_in_number_and_size(http: httpx.Client) -> None:
    for wrong in ([b"x"] * (MAX_PROXIES + 1), [bytes(MAX_SEALED_FRAGMENT_BYTES + 1)], [], ["text"], [None]):
        assert_problem(http.post("/v1/fragments", content=msgspec.msgpack.encode(wrong), headers=MSGPACK), 422)


def test_proxies_in_a_query_are_addresses_and_not_too_many(http: httpx.Client) -> None:
    assert_problem(http.post("/v1/reencryptions?proxy=zz", content=b"x", headers=BINARY), 400)
    many = "&".join(f"proxy={'ab' * 20}" for _ in range(MAX_PROXIES + 1))
    assert_problem(http.post(f"/v1/reencryptions?{many}", content=bytes(MAX_REQUEST_BYTES), headers=BINARY), 422)


def test_with_a_token_only_those_who_have_it_make_the_node_work(node: CareNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-s3cret-s3cret-s3cret-s3cret\n")
    config = config_for(tmp_path / "data", api_token_file=tmp_path / "token")
    with serving(node, config) as url, httpx.Client(base_url=url) as http:
        for route, headers in ROUTES:
            assert_problem(http.post(route, content=b"\xc1", headers=headers), 401)
            wrong = {**headers, "authorization": "Bearer other"}
            assert_problem(http.post(route, content=b"\xc1", headers=wrong), 401)
            right = {**headers, "authorization": "Bearer s3cret-s3cret-s3cret-s3cret-s3cret"}
            assert_problem(http.post(route, content=b"\xc1", headers=right), 422)
        # Reading what is on the chain needs none.
        assert http.get(f"/v1/patients/{MARIA.address.hex()}/grants").json() == {"grants": [], "next_start": None}


def grant(node: CareNode, nonce: int) -> str:
    """Commit a grant of Maria's to the fifth institution; returns its identifier."""
    choice = GrantChoice(
        patient=MARIA.address,
        generation=0,
        grantee=INSTITUTIONS[4].address,
        receiving_key=INSTITUTIONS[4].public.reencryption_key,
        records=None,
        purposes=("TREAT",),
        from_ms=1,
        until_ms=2**50,
        threshold=2,
        proxies=(INSTITUTIONS[1].address, INSTITUTIONS[2].address),
    )
    prepared = prepare_grant(MARIA.reencryption, MARIA.signing, choice)
    raw = sign_transaction(
        node.chain_id,
        MARIA.signing,
        nonce=nonce,
        fee_microcredit=1_000,
        expiry_height=1_000,
        body=GrantAccess(prepared.terms),
    )
    node.commit(testing.check(node.chain_id, [raw]))
    return prepared.grant_id.hex()


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_the_largest_page_of_an_accounts_grants_tells_of_the_next_one(
    node: CareNode, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    given = sorted(grant(node, nonce) for nonce in range(4))
    for module in (models, queries):
        monkeypatch.setattr(module, "MAX_PAGE", limit)
    found: list[str] = []
    start: str | None = ""
    while start is not None:
        path = f"/v1/accounts/{INSTITUTIONS[4].address.hex()}/grants?limit={limit}&start={start}"
        page = http.get(path).json()
        assert len(page["grants"]) <= limit
        found += [one["grant_id"] for one in page["grants"]]
        start = page["next_start"]
    assert found == given


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/grants/xy", 400),
        (f"/v1/grants/{'ab' * 32}", 404),
        ("/v1/patients/xy/grants", 400),
        (f"/v1/accounts/{'ab' * 20}/grants?role=friend", 422),
        (f"/v1/accounts/{'ab' * 20}/grants?start=xy", 400),
        (f"/v1/patients/{'ab' * 20}/grants?start=-1", 422),
        (f"/v1/patients/{'ab' * 20}/grants?limit=100000", 422),
        (f"/v1/patients/{'ab' * 20}/keys", 404),
        (f"/v1/patients/{'ab' * 20}/guardians", 404),
        (f"/v1/patients/{'ab' * 20}/records/0/labels", 404),
        (f"/v1/patients/{'ab' * 20}/records/-1/labels", 422),
        (f"/v1/patients/{'ab' * 20}/records/99999999999999999999/labels", 422),
        ("/v1/emergencies/reviews?limit=0", 422),
        ("/v1/emergencies/reviews?start=xy", 400),
        (f"/v1/emergencies/reviews?start={'ab' * 20}", 400),
    ],
)
def test_wrong_questions_are_refused_and_what_is_not_there_is_not_found(
    http: httpx.Client, path: str, status: int
) -> None:
    assert_problem(http.get(path), status)


def test_what_is_there_is_shown(http: httpx.Client) -> None:
    keys = http.get(f"/v1/patients/{MARIA.address.hex()}/keys").json()["generations"]
    assert [(key["generation"], key["reencryption_key"]) for key in keys] == [(0, MARIA.public.reencryption_key.hex())]
    labels = http.get(f"/v1/patients/{MARIA.address.hex()}/records/0/labels").json()
    assert labels == {"labels": [], "erasures": []}
    assert http.get(f"/v1/accounts/{INSTITUTIONS[0].address.hex()}/grants?role=proxy").json()["grants"] == []
