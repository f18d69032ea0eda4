# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against a really served API: typed answers, typed errors, streams, and a server that nobody can hold up."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ledger import testing
from ledger.errors import InvalidInput
from ledger.transactions import check_transaction, transaction_id
from node.client import NodeClient
from node.http_client import ApiError, NodeTimeout, NodeUnreachable
from records.limits import MAX_BLOB_BYTES
from tests.node.api_kit import LoneNode, config_for, serving

SENDER, RECIPIENT = testing.key(0), testing.key(5)


@pytest.fixture
def node() -> LoneNode:
    return LoneNode()


@pytest.fixture
def client(node: LoneNode, tmp_path: Path) -> Iterator[NodeClient]:
    with serving(node, config_for(tmp_path)) as url, NodeClient(url) as client:
        yield client


def transfers(node: LoneNode, count: int) -> list[bytes]:
    return [testing.transfer(node.chain_id, SENDER, RECIPIENT.address, nonce=nonce) for nonce in range(count)]


def test_reads_are_typed(client: NodeClient, node: LoneNode) -> None:
    assert client.status().chain_id == node.chain_id
    assert client.genesis().chain_id == node.chain_id
    assert client.block().height == 0
    assert client.state().state_root == node.store.state_root()
    assert client.account(SENDER.address).balance_microcredit == testing.BALANCE_MICROCREDIT
    assert list(client.institutions()) == []


def test_a_submission_comes_back_committed(client: NodeClient, node: LoneNode) -> None:
    raws = transfers(node, 3)
    outcomes = client.submit(raws, wait_ms=5000)
    assert [outcome.id for outcome in outcomes] == [transaction_id(raw) for raw in raws]
    assert all(outcome.receipt is not None and outcome.receipt.reason == "" for outcome in outcomes)
    assert client.transaction(transaction_id(raws[1])).raw == raws[1]
    assert len(client.block_transactions(1).transactions) == 3


def test_the_largest_blob_goes_there_and_back(client: NodeClient) -> None:
    blob = bytes(range(256)) * (MAX_BLOB_BYTES // 256)
    assert client.get_blob(client.put_blob(blob)) == blob
    with pytest.raises(ApiError, match="too_large"):
        client.put_blob(blob + b"x")


def test_problems_come_as_typed_errors(client: NodeClient) -> None:
    with pytest.raises(ApiError) as caught:
        client.patient(bytes(20))
    assert (caught.value.status, caught.value.reason) == (404, "not_found")
    assert caught.value.remedy in str(caught.value)


def test_the_token_opens_writes(node: LoneNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    with serving(node, config_for(tmp_path, api_token_file="token")) as url:
        with NodeClient(url) as client, pytest.raises(ApiError, match="unauthorised") as refused:
            client.put_blob(b"x")
        assert "SPCHAIN_API_TOKEN_FILE" in refused.value.remedy
        assert "--" not in refused.value.remedy, "the command line has no option for it"
        with NodeClient(url, token="0123456789abcdef") as client:
            assert client.put_blob(b"x")


def test_no_node_is_told_with_a_remedy() -> None:
    with NodeClient("http://127.0.0.1:1") as client, pytest.raises(NodeUnreachable, match="devnet status"):
        client.status()


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://[", "nonsense", "http://a b/"])
def test_what_is_no_url_is_told_before_anything_is_asked(url: str) -> None:
    """At once: what asks until a node answers would ask for ever."""
    with pytest.raises(NodeUnreachable, match=r"such as http://127\.0\.0\.1:8080"):
        NodeClient(url)


def test_a_node_that_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with NodeClient(url, timeout_s=0.2) as client, pytest.raises(NodeTimeout):
            client.status()


class Stranger(BaseHTTPRequestHandler):
    """Some other server."""

    answer = b""
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the library's name
        pass


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, b"<html>"), (200, b"[]"), (200, b"{}"), (502, b"Bad Gateway"), (500, b'{"reason": 7}'), (404, b"[" * 9999)],
)
def test_another_servers_answers_are_typed_errors(status: int, answer: bytes) -> None:
    handler = type("Handler", (Stranger,), {"status": status, "answer": answer})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with (
                NodeClient(f"http://127.0.0.1:{server.server_port}") as client,
                pytest.raises(ApiError, match="bad_answer"),
            ):
                client.status()
        finally:
            server.shutdown()
            thread.join()


def test_events_resume_from_any_height_and_go_on_live(client: NodeClient, node: LoneNode) -> None:
    first, second, third = transfers(node, 3)
    node.commit([check_transaction(first, testing.rules_of(node.chain_id))])
    node.commit([])
    events = client.events(from_height=1, receipts=True)
    one, two = next(events), next(events)
    assert (one.height, one.transactions, one.receipts) == (1, 1, ((transaction_id(first), ""),))
    assert (two.height, two.transactions, two.receipts) == (2, 0, ())
    with NodeClient(client.url) as writer:
        writer.submit([second], wait_ms=1000)
        writer.submit([third], wait_ms=1000)
    assert [next(events).height, next(events).height] == [3, 4]


def test_past_events_equal_the_live_ones(client: NodeClient, node: LoneNode) -> None:
    live = client.events(from_height=1, receipts=True)
    raws = transfers(node, 4)
    with NodeClient(client.url) as writer:
        writer.submit(raws[:2])
        writer.submit(raws[2:])
    seen = [next(live), next(live)]
    replay = client.events(from_height=1, receipts=True)
    assert [next(replay), next(replay)] == seen


def test_an_event_id_that_is_no_height_is_refused(client: NodeClient) -> None:
    address = client.url.removeprefix("http://")
    with socket.create_connection((address.split(":")[0], int(address.split(":")[1]))) as raw:
        raw.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: many\r\n\r\n")
        assert b"400" in raw.recv(100)


def test_an_open_stream_does_not_hold_up_the_end(node: LoneNode, tmp_path: Path) -> None:
    with serving(node, config_for(tmp_path)) as url, NodeClient(url) as client:
        events = client.events(from_height=1)
        client.submit(transfers(node, 1))
        assert next(events).height == 1
    # `serving` asserts that the server has stopped, though the stream was open.


def test_a_reader_that_takes_nothing_does_not_hold_up_the_end(node: LoneNode, tmp_path: Path) -> None:
    with serving(node, config_for(tmp_path), send_timeout_s=0.5) as url:
        with NodeClient(url) as client:
            blob_id = client.put_blob(bytes(MAX_BLOB_BYTES))
        host, port = url.removeprefix("http://").split(":")
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        stuck.sendall(b"GET /v1/blobs/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % blob_id.hex().encode())
        assert stuck.recv(1) == b"H"
    stuck.close()


UPGRADE = (
    b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        UPGRADE,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
    ],
)
def test_rubbish_on_the_wire_leaves_the_server_serving(client: NodeClient, request_bytes: bytes) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        answer = b""
        # The server may hang up at any point of it.
        with contextlib.suppress(OSError):
            raw.sendall(request_bytes)
            raw.shutdown(socket.SHUT_WR)
            while chunk := raw.recv(65536):
                answer += chunk
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert client.status().storage == "ok"


def test_a_port_in_use_is_told_with_a_remedy(node: LoneNode, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = config_for(tmp_path, api_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BaseExceptionGroup) as caught, serving(node, config):
            pytest.fail("it serves on a port in use")
        assert caught.group_contains(InvalidInput, match="stop what uses the port")
