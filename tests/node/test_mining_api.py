# SPDX-License-Identifier: GPL-3.0-or-later
"""Mining over HTTP: long polls, what is refused and how, the client, and `spchain miner` as people and processes use it."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message
from trio.testing import MockClock, wait_all_tasks_blocked
from typer.testing import CliRunner, Result

from consensus.election import reveal
from consensus.work import puzzle_hash, work_of
from ledger.blocks import SignedKeyblock, keyblock_hash, sign_keyblock
from ledger.codec import encode
from node.api import mining
from node.api.app import create_app
from node.cli.main import app
from node.client import NodeClient
from node.http_client import ApiError
from node.keystore import Cost, write_key
from node.miner import Miner, miner_arguments
from node.mining import NoChainYet, SeedReveal
from tests.node.api_kit import LOCAL_URL, assert_problem, config_for, serving
from tests.node.mining_kit import EASY, IMPOSSIBLE, MINER, RIVAL, LoneDesk, mining_genesis, node_with, solve

KEY = MINER.public.public_key.hex()
PASSPHRASE = "open sesame"
MSGPACK = {"Content-Type": "application/msgpack"}


@pytest.fixture
def desk() -> LoneDesk:
    return LoneDesk()


@pytest.fixture
async def client(desk: LoneDesk, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    served = create_app(node_with(desk), config_for(tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=served), base_url=LOCAL_URL) as client:
        yield client


async def ask(client: httpx.AsyncClient, **query: str | int) -> dict[str, Any]:
    answer = await client.get("/v1/mining/work", params={"miner": KEY, **query}, timeout=None)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def pin_own(desk: LoneDesk) -> SignedKeyblock:
    """Let a keyblock of the miner begin the next epoch."""
    signed = solve(desk, MINER)
    desk.pin(signed)
    return signed


def revealed(desk: LoneDesk) -> bytes:
    wanted = desk.work(MINER.public.public_key).reveal
    assert wanted is not None
    return reveal(MINER.reveal_secret, wanted.previous_seed, wanted.keyblock_hash)


# ------------------------------------------------------------------ work


async def test_work_tells_all_that_a_miner_needs(client: httpx.AsyncClient, desk: LoneDesk) -> None:
    found, epoch = await ask(client), desk.executor.epoch
    assert found == {
        "chain_id": epoch.chain_id.hex(),
        "epoch": 0,
        "previous": epoch.chain_id.hex(),
        "microblock": epoch.record.root_hash.hex(),
        "state_root": epoch.state_root.hex(),
        "target": f"{EASY:064x}",
        "reputation_nano": epoch.reputation_of(MINER.public.public_key),
        "earliest_timestamp_ms": desk.genesis.timestamp_ms + 1,
        "reveal": None,
    }


async def test_a_wait_ends_with_the_epoch(client: httpx.AsyncClient, desk: LoneDesk) -> None:
    found: list[dict[str, Any]] = []

    async def wait() -> None:
        found.append(await ask(client, epoch=0, wait_s=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert found == []
        desk.pin(solve(desk))
    assert found[0]["epoch"] == 1
    assert found[0]["previous"] == desk.executor.epoch.record.keyblock.hex()
    assert found[0]["reveal"] is None, "the keyblock is another miner's"


async def test_a_wait_ends_after_its_time(client: httpx.AsyncClient, autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    assert (await ask(client, epoch=0, wait_s=60))["epoch"] == 0
    assert trio.current_time() - began_s == pytest.approx(60)


@pytest.mark.parametrize("query", [{"wait_s": 60}, {"epoch": 7, "wait_s": 60}, {"epoch": 0}])
async def test_without_anything_to_wait_for_it_answers_at_once(
    client: httpx.AsyncClient, autojump_clock: MockClock, query: dict[str, int]
) -> None:
    began_s = trio.current_time()
    await ask(client, **query)
    assert trio.current_time() == began_s


async def test_a_wanted_reveal_is_told_at_once_unless_one_waits_for_the_epoch_only(
    client: httpx.AsyncClient, desk: LoneDesk, autojump_clock: MockClock
) -> None:
    signed = pin_own(desk)
    began_s = trio.current_time()
    found = await ask(client, epoch=1, wait_s=60)
    assert trio.current_time() == began_s
    assert found["reveal"]["keyblock_hash"] == keyblock_hash(signed.keyblock).hex()
    assert await ask(client, epoch=1, wait_s=60, reveal=False) == found
    assert trio.current_time() - began_s == pytest.approx(60)
    assert (await ask(client, miner=RIVAL.public.public_key.hex()))["reveal"] is None


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ({"miner": "xyz"}, 400, "bad_hex"),
        ({"miner": KEY[:-2]}, 400, "bad_hex"),
        ({"miner": "05" + KEY[2:]}, 400, "bad_key"),
        ({"miner": KEY, "epoch": -1}, 422, "invalid_parameter"),
        ({"miner": KEY, "epoch": 2**63}, 422, "invalid_parameter"),
        ({"miner": KEY, "wait_s": 61}, 422, "invalid_parameter"),
        ({"miner": KEY, "wait_s": -1}, 422, "invalid_parameter"),
        ({"miner": KEY, "reveal": "perhaps"}, 422, "invalid_parameter"),
        ({}, 422, "invalid_parameter"),
    ],
)
async def test_a_wrong_question_is_refused(
    client: httpx.AsyncClient, query: dict[str, str | int], status: int, reason: str
) -> None:
    assert_problem(await client.get("/v1/mining/work", params=query), status, reason)


async def test_as_many_may_wait_as_fit_and_places_come_free(
    client: httpx.AsyncClient, desk: LoneDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "MAX_WAITING", 2)
    query: dict[str, str | int] = {"miner": KEY, "epoch": 0, "wait_s": 60}
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: ask(client, epoch=0, wait_s=60))
        await wait_all_tasks_blocked()
        assert_problem(await client.get("/v1/mining/work", params=query), 503, "busy")
        assert (await ask(client))["epoch"] == 0, "who does not wait needs no place"
        desk.pin(solve(desk))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ask(client, epoch=1, wait_s=60))
        await wait_all_tasks_blocked()
        desk.pin(solve(desk))


async def test_nobody_waits_for_a_miner_that_has_gone(
    desk: LoneDesk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        return messages.pop(0)

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()

    query = f"miner={KEY}&epoch=0&wait_s=60".encode()
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/v1/mining/work", "query_string": query, "headers": headers}
    scope |= {"raw_path": b"/v1/mining/work", "root_path": "", "scheme": "http", "http_version": "1.1"}
    began_s = trio.current_time()
    await create_app(node_with(desk), config_for(tmp_path))(scope, receive, send)
    assert trio.current_time() == began_s


# ------------------------------------------------------------------ keyblocks and reveals


async def offer(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    return await client.post("/v1/mining/keyblocks", content=body, headers=MSGPACK | headers)


async def open_seed(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post("/v1/mining/reveals", content=body, headers=MSGPACK)


async def test_a_right_keyblock_is_taken_and_a_second_one_for_its_epoch_is_stale(
    client: httpx.AsyncClient, desk: LoneDesk
) -> None:
    signed = solve(desk, MINER)
    answer = await offer(client, encode(signed))
    assert answer.status_code == 202
    assert answer.json() == {"keyblock_hash": keyblock_hash(signed.keyblock).hex()}
    assert desk.epoch == 1
    assert_problem(await offer(client, encode(signed)), 409, "stale_keyblock")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": bytes([255]) * 32}, "states target"),
        ({"microblock": bytes(32)}, "not mined on"),
        ({"miner": RIVAL.public.public_key}, "is not signed by"),
        ({"reveal_key": bytes(48)}, "not a point"),
        ({"reputation_nano": 1}, "reputation"),
        ({"timestamp_ms": 5}, "not later than"),
        ({"timestamp_ms": 2**60}, "ahead of this clock"),
        ({"state_root": bytes(32)}, "state root"),
    ],
)
async def test_a_wrong_keyblock_is_refused_with_its_fault(
    client: httpx.AsyncClient, desk: LoneDesk, changes: dict[str, Any], says: str
) -> None:
    answer = await offer(client, encode(solve(desk, MINER, **changes)))
    assert_problem(answer, 422, "bad_keyblock")
    assert says in answer.json()["detail"]
    assert desk.offers == []


@pytest.mark.parametrize("field", ["nonce", "timestamp_ms", "reveal_key", "state_root", "reputation_nano"])
async def test_a_keyblock_that_was_changed_after_it_was_solved_is_refused(
    client: httpx.AsyncClient, desk: LoneDesk, field: str
) -> None:
    solved = solve(desk, MINER).keyblock
    value = getattr(solved, field)
    later = (
        value + step if isinstance(value, int) else (int.from_bytes(value, "big") + step).to_bytes(len(value), "big")
        for step in range(1, 1_000)
    )
    others = (msgspec.structs.replace(solved, **{field: other}) for other in later)
    unsolved = next(other for other in others if puzzle_hash(other) >= other.target)
    signed = sign_keyblock(desk.executor.epoch.chain_id, MINER.signing, unsolved)
    answer = await offer(client, encode(signed))
    assert_problem(answer, 422, "bad_keyblock")
    assert "not below target" in answer.json()["detail"]
    assert desk.offers == []


async def test_a_keyblock_signed_by_another_is_refused(client: httpx.AsyncClient, desk: LoneDesk) -> None:
    signed = solve(desk, MINER)
    assert_problem(await offer(client, encode(SignedKeyblock(signed.keyblock, bytes(64)))), 422, "bad_keyblock")


async def test_a_right_reveal_is_taken_until_its_epoch_is_over(client: httpx.AsyncClient, desk: LoneDesk) -> None:
    pin_own(desk)
    body = encode(SeedReveal(1, revealed(desk)))
    assert (await open_seed(client, body)).json() == {"epoch": 1}
    assert (await ask(client))["reveal"] is None
    assert (await open_seed(client, body)).status_code == 202, "a repetition does no harm"
    desk.pin(solve(desk))
    assert_problem(await open_seed(client, body), 409, "stale_reveal")


@pytest.mark.parametrize("epoch", [0, 1])
async def test_a_wrong_reveal_is_refused(client: httpx.AsyncClient, desk: LoneDesk, epoch: int) -> None:
    if epoch:
        pin_own(desk)
    signature = reveal(RIVAL.reveal_secret, bytes(32), bytes(32))
    assert_problem(await open_seed(client, encode(SeedReveal(epoch, signature))), 422, "bad_reveal")
    assert desk.reveals == []


@pytest.mark.parametrize("path", ["keyblocks", "reveals"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "application/msgpack", 400, "malformed_body"),
        (b"\xc1", "application/msgpack", 400, "malformed_body"),
        (b"\x90", "application/msgpack", 400, "malformed_body"),
        (b"\x91" * 100, "application/msgpack", 400, "malformed_body"),
        (bytes(1000), "application/msgpack", 413, "too_large"),
        (b"{}", "application/json", 415, "unsupported_media_type"),
        (b"", "", 415, "unsupported_media_type"),
    ],
)
async def test_what_is_no_message_is_refused(
    client: httpx.AsyncClient, path: str, body: bytes, kind: str, status: int, reason: str
) -> None:
    answer = await client.post(f"/v1/mining/{path}", content=body, headers={"Content-Type": kind})
    assert_problem(answer, status, reason)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.sampled_from(["keyblocks", "reveals"]), place=st.integers(0, 400), flip=st.integers(1, 255))
async def test_a_damaged_message_gets_a_typed_answer(
    client: httpx.AsyncClient, desk: LoneDesk, path: str, place: int, flip: int
) -> None:
    right = encode(solve(desk, MINER)) if path == "keyblocks" else encode(SeedReveal(0, bytes(96)))
    body = bytearray(right)
    body[place % len(body)] ^= flip
    answer = await client.post(f"/v1/mining/{path}", content=bytes(body), headers=MSGPACK)
    assert answer.status_code in {400, 409, 413, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_node_without_a_chain_gives_no_work_and_takes_none(
    client: httpx.AsyncClient, desk: LoneDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = solve(desk)

    def refuse(*_: object) -> None:
        raise NoChainYet("this node has not chosen its chain yet: replaying")

    for method in ("work", "offer", "reveal"):
        monkeypatch.setattr(desk, method, refuse)
    given = await client.get("/v1/mining/work", params={"miner": KEY})
    for answer in (
        given,
        await offer(client, encode(signed)),
        await open_seed(client, encode(SeedReveal(1, bytes(96)))),
    ):
        assert_problem(answer, 503, "joining")


async def test_what_is_handed_in_needs_the_token_and_questions_do_not(desk: LoneDesk, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    served = create_app(node_with(desk), config_for(tmp_path, api_token_file="token"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=served), base_url=LOCAL_URL) as client:
        await ask(client)
        body = encode(solve(desk, MINER))
        assert_problem(await offer(client, body), 401, "unauthorised")
        assert_problem(await open_seed(client, b""), 401, "unauthorised")
        assert (await offer(client, body, Authorization="Bearer 0123456789abcdef")).status_code == 202


# ------------------------------------------------------------------ the client


def test_the_client_goes_the_whole_way(desk: LoneDesk, tmp_path: Path) -> None:
    with serving(node_with(desk), config_for(tmp_path)) as url, NodeClient(url) as client:
        key = MINER.public.public_key
        assert client.mining_work(key).epoch == 0
        signed = solve(desk, MINER)
        assert client.offer_keyblock(signed).keyblock_hash == keyblock_hash(signed.keyblock)
        work = client.mining_work(key, 0, wait_s=60)
        assert work.epoch == 1
        assert work.reveal is not None
        assert client.reveal_seed(1, revealed(desk)).epoch == 1
        assert client.mining_work(key).reveal is None
        with pytest.raises(ApiError) as caught:
            client.offer_keyblock(signed)
        assert (caught.value.status, caught.value.reason) == (409, "stale_keyblock")


# ------------------------------------------------------------------ the command line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("SPCHAIN_DEVNET", str(tmp_path / "no-devnet"))
    write_key(tmp_path / "miner.json", MINER, PASSPHRASE.encode(), Cost.LIGHT)
    return tmp_path


@pytest.fixture
def url(desk: LoneDesk, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(node_with(desk), config_for(home / "data")) as url:
        monkeypatch.setenv("SPCHAIN_NODE", url)
        yield url


def spchain(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["miner", *arguments], catch_exceptions=False)


def answered(result: Result) -> Any:  # noqa: ANN401 -- JSON of any shape
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_run_mines_as_many_keyblocks_as_wanted(url: str, desk: LoneDesk) -> None:
    done = answered(spchain("run", "--key", "miner.json", "--keyblocks", "2", "--duty", "100", "--json"))
    assert (done["miner"], done["keyblocks_pinned"], done["epoch"]) == (KEY, 2, 2)
    assert done["hashes"] > 0
    assert [epoch for epoch, _ in desk.reveals] == [1, 2]


def test_run_tells_what_it_does(url: str, desk: LoneDesk) -> None:
    result = spchain("run", "--key", "miner.json", "--keyblocks", "1")
    found = keyblock_hash(desk.offers[0].keyblock).hex()
    assert f"mining for Miner ({MINER.address.hex()}) at {url}" in result.stderr
    assert f"found keyblock {found} in epoch 0" in result.stderr
    assert f"keyblock {found} is pinned" in result.stderr
    assert "1 keyblock found, 1 of them pinned" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_served", [True, False])
def test_a_process_ends_cleanly_on_a_signal(home: Path, number: signal.Signals, *, is_served: bool) -> None:
    desk = LoneDesk(mining_genesis(IMPOSSIBLE))
    with serving(node_with(desk), config_for(home / "data")) as url:
        command = miner_arguments(home / "miner.json", url if is_served else "http://127.0.0.1:1", duty_percent=10)
        root = Path(__file__).resolve().parents[2]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        )
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(number)
        out, rest = process.communicate(timeout=60)
    assert "mining for Miner" in first
    assert process.returncode == 0, rest
    assert "0 keyblocks found" in out
    assert "Traceback" not in rest


def test_a_lasting_fault_ends_the_miner_with_its_reason(desk: LoneDesk, home: Path) -> None:
    (home / "token").write_text("0123456789abcdef")
    with serving(node_with(desk), config_for(home, api_token_file="token")) as url:
        result = spchain("run", "--key", "miner.json", "--node", url)
    assert result.exit_code == 3
    assert "SPCHAIN_API_TOKEN_FILE" in result.stderr


def test_a_missing_token_is_told_before_the_search_and_not_when_a_keyblock_is_found(
    desk: LoneDesk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined: list[Miner] = []
    monkeypatch.setattr(Miner, "run", lambda miner, *_: mined.append(miner))
    (home / "token").write_text("0123456789abcdef")
    with serving(node_with(desk), config_for(home, api_token_file="token")) as url:
        result = spchain("run", "--key", "miner.json", "--node", url)
        assert (result.exit_code, mined) == (3, [])
        assert "SPCHAIN_API_TOKEN_FILE" in result.stderr
        monkeypatch.setenv("SPCHAIN_API_TOKEN_FILE", str(home / "token"))
        assert spchain("run", "--key", "miner.json", "--node", url).exit_code == 0
    assert len(mined) == 1


def test_whose_reputation_is_gone_for_good_is_told_so_before_the_search(
    url: str, desk: LoneDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = desk.work
    monkeypatch.setattr(Miner, "run", lambda *_: None)
    assert "misbehaviour" not in spchain("run", "--key", "miner.json").stderr
    monkeypatch.setattr(desk, "work", lambda miner: msgspec.structs.replace(work(miner), reputation_nano=0))
    assert "mine with a new key" in spchain("run", "--key", "miner.json").stderr
    assert "mine with a new key" in spchain("status", "--key", "miner.json", "--rate", "32").stderr


@pytest.mark.parametrize("option", ["--miner", "--key"])
def test_status_tells_the_outlook(url: str, desk: LoneDesk, option: str) -> None:
    given = KEY if option == "--miner" else "miner.json"
    found = answered(spchain("status", option, given, "--rate", "32", "--json"))
    assert found["miner"] == KEY
    assert found["reputation_nano"] == desk.work(MINER.public.public_key).reputation_nano
    assert (found["epoch"], found["expected_hashes"], found["expected_s"]) == (0, work_of(EASY), work_of(EASY) / 32)
    assert "one in 0.5 s on average" in spchain("status", option, given, "--rate", "32").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("status",), 3, "exactly one"),
        (("status", "--miner", KEY, "--key", "miner.json"), 3, "exactly one"),
        (("status", "--miner", "xyz"), 3, "66 hexadecimal"),
        (("status", "--miner", "05" + KEY[2:]), 3, "bad_key"),
        (("status", "--miner", KEY, "--node", "http://127.0.0.1:1"), 4, "no node answers"),
        (("status", "--key", "none.json"), 3, "No such file"),
        (("status", "--key", "miner.json", "--rate", "inf"), 2, "--rate"),
        (("status", "--key", "miner.json", "--rate", "0.1"), 2, "--rate"),
        (("run", "--key", "miner.json", "--node", "nonsense"), 4, "such as http://127.0.0.1:8080"),
        (("run", "--key", "none.json"), 3, "No such file"),
        (("run", "--key", "miner.json", "--duty", "0"), 2, "--duty"),
        (("run", "--key", "miner.json", "--keyblocks", "0"), 2, "--keyblocks"),
    ],
)
def test_errors_tell_value_and_remedy(url: str, arguments: tuple[str, ...], code: int, text: str) -> None:
    result = spchain(*arguments)
    assert result.exit_code == code, result.output
    assert text in result.stderr


def test_bench_measures_with_a_node_and_without(url: str) -> None:
    with_node = answered(spchain("bench", "--seconds", "0.05", "--json"))
    assert with_node["hashes_per_s"] > 0
    assert with_node["expected_hashes"] == work_of(EASY)
    without = answered(spchain("bench", "--seconds", "0.05", "--node", "http://127.0.0.1:1", "--json"))
    assert set(without) == {"hashes_per_s", "duty_percent"}
    assert "hashes per second" in spchain("bench", "--seconds", "0.05").stdout
