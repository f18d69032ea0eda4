# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxies on a network: what peers and clients send them, what they do when they or others are away, and that they forget."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from ledger.bodies import ConfirmDeletion
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import CAPSULE_BYTES, encrypt
from ledger.errors import InvalidInput, NotFound, StoreError
from node import proxying as module
from node.clock import now_ms
from node.own_transactions import OwnTransactions
from node.proxying import Proxying
from node.run import open_desk
from node.submission import SubmitOutcome
from node.wire import REQUEST_ACCESS_LOG, REQUEST_FRAGMENT, REQUEST_REENCRYPTION, Relayed, decode_relayed
from p2p.errors import NotAvailable, RequestFailed, RequestFailure
from records.access_entries import decode_page, is_own_read, sign_query
from records.access_log import AccessLog
from records.answers import decode_answer
from records.grants import FragmentParcel, SealedFragment, decode_sealed
from records.proxy_desk import ProxyDesk
from records.requests import ReencryptionRequest, SignedRequest, request_digest, sign_request
from tests.node.care_net import BUNDLE, MARIA, READER, Care, confirmations
from tests.node.kit import ScriptedNetwork, memory_store, not_available, until
from tests.node.networks import CHAIN, MEMBERS, Net

A, B, C, D = MEMBERS


async def ask_peer(net: Net, method: str, payload: bytes, to: int = 1, by: int = 0) -> Relayed:
    """Send a request as a peer does."""
    network = net.nodes[by].service._network
    return decode_relayed(await network.request(MEMBERS[to].peer_id, method, payload, timeout_s=60))


def reason_in(answer: Relayed) -> str | None:
    assert not answer.reason, answer
    reason = decode_answer(answer.body).entry.entry.reason
    return None if reason is None else reason.value


# ------------------------------------------------------------------ over real connections


async def test_fragments_go_to_their_proxies_and_after_a_revocation_each_confirms_once(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([A, B, C])
        assert await care.deliver(prepared) == {A.address: "", B.address: "", C.address: ""}
        # Again is harmless, as after a client that did not hear the answer.
        assert set((await care.deliver(prepared)).values()) == {""}
        assert await care.read(prepared) == (BUNDLE, {}, [])

        await care.revoke(prepared)
        bundle, refusals, faults = await care.read(prepared)
        assert (bundle, set(refusals.values()), faults) == (None, {"revoked"}, [])
        await until(lambda: all(care.state_of(prepared).deletions))
        assert set((await care.deliver(prepared)).values()) == {"revoked"}
        # Time enough for a second look, and a second confirmation if there were one.
        await trio.sleep(2 * module.RETRY_S)
        assert confirmations(net, ConfirmDeletion) == 3


async def test_a_proxy_that_is_down_is_named_and_the_others_serve(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([D, B, C])
        assert set((await care.deliver(prepared)).values()) == {""}
        await net.nodes[3].kill()
        bundle, refusals, faults = await care.read(prepared)
        assert (bundle, refusals, faults) == (BUNDLE, {}, [D.address])
        assert (await care.deliver(prepared))[D.address] == "unreachable"


async def test_an_institution_that_reads_by_way_of_its_own_node_has_it_in_its_own_log(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([B, C, D], grantee=A)
        await care.deliver(prepared)

        def own_log(node: int) -> AccessLog:
            return net.nodes[node].service._proxying._desk.log

        assert (await care.read(prepared, A))[0] == BUNDLE
        (noted,) = own_log(0).entries(0)
        assert is_own_read(noted.entry), "once, though two proxies have answered, each asked for itself"
        assert (noted.entry.patient, noted.entry.records) == (MARIA.address, (0,))
        served = [signed.entry for node in (1, 2, 3) for signed in own_log(node).entries(0)]
        assert {entry.request_digest for entry in served} == {noted.entry.request_digest}
        assert not any(map(is_own_read, served))
        # Refused, it has read nothing; and by way of another node its own knows nothing of it.
        refused = encode(care.request(prepared, A, purpose="HMARKT"))
        await net.nodes[0].service.proxying.ask_proxies(refused, (B.address,))
        assert (await care.read(prepared, A, node=1))[0] == BUNDLE
        assert len(own_log(0)) == 1
        query = sign_query(CHAIN, MARIA.signing, proxy=A.address, patient=MARIA.address, start=0, issued_ms=now_ms())
        _, answer = await net.nodes[1].service.proxying.ask_log(encode(query))
        assert decode_page(answer.body).entries == (noted,)


async def test_what_cannot_be_written_down_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([B, C, D], grantee=A)
        await care.deliver(prepared)
        desk = net.nodes[0].service._proxying._desk

        def fails(*_: object) -> None:
            raise StoreError("input/output error")

        monkeypatch.setattr(desk, "note_read", fails)
        asked = await net.nodes[0].service.proxying.ask_proxies(encode(care.request(prepared, A)), ())
        assert {answer.reason for _, answer in asked} == {"storage"}
        assert not any(answer.body for _, answer in asked)


async def test_a_proxy_that_was_away_deletes_before_it_serves_anybody(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([B, C, D])
        await care.deliver(prepared)
        away = net.nodes[3]
        await away.kill()
        await care.revoke(prepared)
        await net.start(away)
        # From the first moment on: it does not know of the revocation, and serves nobody until it does.
        seen: set[str | None] = set()
        while "revoked" not in seen:
            try:
                with trio.fail_after(60):
                    seen.add(reason_in(await ask_peer(net, REQUEST_REENCRYPTION, encode(care.request(prepared)), to=3)))
            except RequestFailed:
                await trio.sleep(0.05)
        assert seen <= {"catching_up", "revoked"}
        await until(lambda: all(care.state_of(prepared).deletions))


async def test_a_cut_off_proxy_takes_nothing_and_serves_nothing(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([B, C, D])
        # As when its newest microblock is older than some heartbeats.
        net.nodes[1].service._stale_ms = -1
        reasons = await care.deliver(prepared, cut_off=[B.address])
        assert reasons == {B.address: "catching_up", C.address: "", D.address: ""}
        bundle, refusals, _ = await care.read(prepared, cut_off=[B.address])
        assert (bundle, refusals) == (BUNDLE, {B.address: "catching_up"})
        net.nodes[1].service._stale_ms = 10**9
        assert set((await care.deliver(prepared)).values()) == {""}
        bundle, refusals, _ = await care.read(prepared)
        assert (bundle, refusals) == (BUNDLE, {})


async def test_hostile_requests_get_typed_refusals_and_the_proxy_goes_on(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        prepared = await care.grant([B, C, D])
        await care.deliver(prepared)
        signed = care.request(prepared)
        raw = encode(signed)

        async def refused(request: bytes) -> str | None:
            while (reason := reason_in(await ask_peer(net, REQUEST_REENCRYPTION, request))) == "catching_up":  # noqa: ASYNC110 -- a peer tells no event
                await trio.sleep(0.05)
            return reason

        forged = encode(msgspec.structs.replace(signed, signature=bytes(64)))
        assert await refused(forged) == "bad_signature"
        assert await refused(encode(care.request(prepared, identity=MARIA))) == "wrong_grantee"
        assert await refused(encode(care.request(prepared, purpose="HMARKT"))) == "wrong_purpose"
        old = msgspec.structs.replace(signed.request, issued_ms=now_ms() - 3_600_000)
        assert await refused(encode(_signed_again(old))) == "stale"
        other = msgspec.structs.replace(signed.request, grant_id=bytes(32))
        assert await refused(encode(_signed_again(other))) == "unknown_grant"
        beyond = msgspec.structs.replace(signed.request.records[0], sequence=7)
        assert await refused(encode(_signed_again(msgspec.structs.replace(signed.request, records=(beyond,))))) == (
            "out_of_scope"
        )
        assert await refused(raw) is None
        assert await refused(raw) == "replayed"

        # Fragments: changed on the way, of another proxy, and made up for a grant that is there.
        own, others = (decode_sealed(one) for one in care.sealed(prepared)[:2])
        changed = msgspec.structs.replace(own, ciphertext=own.ciphertext[:-1] + bytes([own.ciphertext[-1] ^ 1]))
        assert (await ask_peer(net, REQUEST_FRAGMENT, encode(changed))).reason == "invalid_input"
        swapped = msgspec.structs.replace(others, proxy=B.address)
        assert (await ask_peer(net, REQUEST_FRAGMENT, encode(swapped))).reason == "invalid_input"
        assert (await ask_peer(net, REQUEST_FRAGMENT, encode(others))).reason == "not_a_proxy"
        parcel = FragmentParcel(prepared.grant_id, B.address, bytes(prepared.fragments[1]))
        made_up = SealedFragment(prepared.grant_id, B.address, *encrypt(B.public.reencryption_key, encode(parcel)))
        assert (await ask_peer(net, REQUEST_FRAGMENT, encode(made_up))).reason == "invalid_input"

        # The access log: for the patient only, only its own, only now.
        def query(key: PrivateKey, proxy: bytes = B.address, issued_ms: int | None = None) -> bytes:
            when = now_ms() if issued_ms is None else issued_ms
            return encode(sign_query(CHAIN, key, proxy=proxy, patient=MARIA.address, start=0, issued_ms=when))

        assert (await ask_peer(net, REQUEST_ACCESS_LOG, query(MARIA.signing))).reason == ""
        assert (await ask_peer(net, REQUEST_ACCESS_LOG, query(READER.signing))).reason == "not_permitted"
        assert (await ask_peer(net, REQUEST_ACCESS_LOG, query(MARIA.signing, C.address))).reason == "not_a_proxy"
        assert (await ask_peer(net, REQUEST_ACCESS_LOG, query(MARIA.signing, issued_ms=5))).reason == "stale"

        assert (await care.read(prepared))[0] == BUNDLE


def _signed_again(request: ReencryptionRequest) -> SignedRequest:
    return SignedRequest(request, READER.signing.sign(request_digest(CHAIN, request)))


@pytest.mark.parametrize("method", [REQUEST_FRAGMENT, REQUEST_REENCRYPTION, REQUEST_ACCESS_LOG])
async def test_a_peer_that_passes_on_rubbish_is_penalised(tmp_path: Path, method: str) -> None:
    async with Net(tmp_path, count=2) as net:
        scores = net.nodes[1].service._network._scores
        before = scores.points(A.peer_id)
        for payload in (b"", b"\xc1", b"\x90", bytes(100), b"\xdd\xff\xff\xff\xff", bytes(64 * 1024)):
            with pytest.raises(RequestFailed):
                await ask_peer(net, method, payload)
        await until(lambda: scores.points(A.peer_id) > before)


# ------------------------------------------------------------------ one proxy alone, with a network that answers as told


class Alone:
    """Member A's proxy, and a scripted network with B's and C's nodes."""

    def __init__(self, desk: ProxyDesk) -> None:
        self.desk = desk
        self.network = ScriptedNetwork()
        self.sent: list[bytes] = []
        store = memory_store()
        transactions = OwnTransactions(store=store, key=A.signing, next_nonce=lambda _: 0, submit=self._submit)
        self.proxying = Proxying(
            desk=desk,
            store=store,
            chain_id=CHAIN,
            network=self.network,
            peers=lambda: {B.address: "b"},
            is_catching_up=lambda: False,
            transactions=transactions,
        )

    async def _submit(self, raws: object) -> list[SubmitOutcome]:
        await trio.lowlevel.checkpoint()
        raise AssertionError(f"nothing is to be sent: {raws!r}")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    with open_desk(tmp_path, A, CHAIN) as desk:
        yield Alone(desk)


def _always(error: Exception, _: bytes) -> Exception:
    return error


def query_to(proxy: bytes) -> bytes:
    return encode(sign_query(CHAIN, MARIA.signing, proxy=proxy, patient=MARIA.address, start=0, issued_ms=now_ms()))


@pytest.mark.parametrize("rubbish", [b"", b"\xc1", b"x" * 100, bytes(10**6)])
async def test_a_relay_that_answers_with_rubbish_is_penalised_and_the_client_told(alone: Alone, rubbish: bytes) -> None:
    alone.network.script("b", REQUEST_ACCESS_LOG, lambda _: rubbish)
    proxy, answer = await alone.proxying.ask_log(query_to(B.address))
    assert (proxy, answer.reason) == (B.address, "bad_answer")
    assert alone.network.blamed() == {"b"}


async def test_a_relay_that_does_not_answer_or_is_not_there_is_unreachable(alone: Alone) -> None:
    failure = RequestFailed(RequestFailure.TIMEOUT, "b", REQUEST_ACCESS_LOG, "silent")
    for error in (failure, not_available()):
        alone.network.script("b", REQUEST_ACCESS_LOG, partial(_always, error))
        assert (await alone.proxying.ask_log(query_to(B.address)))[1].reason == "unreachable"
    _, answer = await alone.proxying.ask_log(query_to(C.address))
    assert answer.reason == "unreachable"
    assert "not connected" in answer.detail
    assert alone.network.blamed() == set()


async def test_a_busy_proxy_says_so_to_peers_and_clients(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_AT_WORK", 0)
    with pytest.raises(NotAvailable, match="try again"):
        await alone.proxying.answer(REQUEST_ACCESS_LOG, query_to(A.address))
    assert (await alone.proxying.ask_log(query_to(A.address)))[1].reason == "busy"


async def test_a_proxy_whose_disk_fails_answers_nothing_else(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bytes:
        raise StoreError("input/output error")

    monkeypatch.setattr(alone.desk, "show_log", fails)
    _, answer = await alone.proxying.ask_log(query_to(A.address))
    assert (answer.reason, answer.body) == ("storage", b"")
    assert "input/output" not in answer.detail


async def test_strangers_who_ask_too_often_are_dropped(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone.desk, "answer", lambda *_: None)
    raw = encode(_some_request())
    with pytest.raises(NotAvailable, match="strangers"):
        await alone.proxying.answer(REQUEST_REENCRYPTION, raw)


def _some_request() -> SignedRequest:
    return sign_request(
        CHAIN,
        READER.signing,
        grant_id=bytes(32),
        purpose="TREAT",
        records=[(0, bytes(CAPSULE_BYTES))],
        issued_ms=now_ms(),
        nonce=bytes(16),
    )


async def test_a_client_hears_of_an_unknown_grant_and_of_rubbish(alone: Alone) -> None:
    with pytest.raises(NotFound):
        await alone.proxying.ask_proxies(encode(_some_request()), ())
    for ask in (alone.proxying.ask_log(b"x"), alone.proxying.deliver([b"x"]), alone.proxying.ask_proxies(b"x", ())):
        with pytest.raises(InvalidInput):
            await ask
