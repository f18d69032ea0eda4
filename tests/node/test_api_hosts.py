# SPDX-License-Identifier: GPL-3.0-or-later
"""Without a token the API answers only requests that address the node's own machine, whatever a web page in a browser there tries."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
from starlette.types import Message

from ledger import testing
from node.api.app import create_app
from tests.node.api_kit import LoneNode, assert_problem, client_of, config_for

HOSPITAL, PATIENT = testing.key(0), testing.key(20)


@pytest.fixture
def node() -> LoneNode:
    return LoneNode()


@pytest.fixture
async def client(node: LoneNode, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(node, tmp_path) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:8080", "127.8.9.10:1", "[::1]", "[::1]:8080", "localhost:"],
)
async def test_a_node_without_a_token_answers_to_the_names_of_its_own_machine(
    client: httpx.AsyncClient, host: str
) -> None:
    assert (await client.get("/v1/status", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "localhost:8080.evil.example",
        "localhost, evil.example",
        "[::1].evil.example",
        "[::1",
        "[]",
        "::1",
        "[localhost]",
        "[127.0.0.1]",
        "0.0.0.0:8080",
        "192.0.2.7",
        "[2001:db8::1]:8080",
        "x" * 10_000,
        "\xff",
    ],
)
async def test_a_page_that_renames_its_server_to_this_machine_gets_nothing(
    client: httpx.AsyncClient, node: LoneNode, host: str
) -> None:
    """DNS rebinding: the browser takes the node for the page's own server, so neither content types nor origins hold it off."""
    raw = testing.transfer(node.chain_id, HOSPITAL, PATIENT.address)
    headers = {b"Host": host.encode("latin-1")}
    for path in ("/v1/status", "/v1/events", "/v1/openapi.json", "/nowhere"):
        answer = await client.get(path, headers=headers)
        assert_problem(answer, 421, "unknown_host")
        assert "api_token_file" in answer.json()["remedy"]
        assert len(answer.content) < 1000
    answer = await client.post("/v1/transactions", json={"transactions": [raw.hex()]}, headers=headers)
    assert_problem(answer, 421, "unknown_host")
    assert node.store.head().height == 0


async def test_a_request_that_names_no_host_or_two_is_refused(node: LoneNode, tmp_path: Path) -> None:
    guard = create_app(node, config_for(tmp_path))
    for names in ([], [b"localhost", b"evil.example"], [b"evil.example", b"localhost"]):
        statuses: list[int] = []

        async def receive() -> Message:
            pytest.fail("the request was read")

        async def send(message: Message, statuses: list[int] = statuses) -> None:
            await trio.lowlevel.checkpoint()
            statuses.append(message.get("status", 0))

        headers = [(b"host", name) for name in names]
        await guard({"type": "http", "method": "GET", "path": "/v1/status", "headers": headers}, receive, send)
        assert statuses[0] == 421


async def test_a_node_with_a_token_answers_to_whatever_name_its_proxy_passes_on(node: LoneNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    async with client_of(node, tmp_path, api_token_file="token") as client:
        assert (await client.get("/v1/status", headers={"Host": "node.example"})).status_code == 200
