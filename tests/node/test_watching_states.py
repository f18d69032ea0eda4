# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watcher keeps: snapshots and restarts, data that is gone, states from peers, proofs; and its bounds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from contracts.shipped import MACHINES
from ledger import testing
from ledger.codec import encode
from ledger.contract_bodies import ClaimBalance, CommitBatch
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import holds_leaf, request_digest
from ledger.state_tree import verify_state_proof
from node.offchain import contract_states, following, replaying, watched
from node.offchain.contract_states import (
    MAX_PAGE_BYTES,
    METHODS,
    REQUEST_CONTRACT_STATE,
    REQUEST_CONTRACT_STATES,
    StateHead,
    StateRequest,
    StatesAnswer,
    decode_state_request,
    decode_states_answer,
    entries_of,
    pages_of,
)
from node.offchain.snapshots import Snapshots
from node.offchain.watched import kept
from node.offchain.watching import WORKERS, Watching
from p2p.errors import NotAvailable, RequestFailed, RequestFailure, UnknownMethod
from tests.contracts.kit import data_of, rebuilt
from tests.node.kit import not_available, until
from tests.node.offchain_kit import CONTRACT, OPERATOR, RULES
from tests.node.watching_kit import (
    OTHER,
    USERS,
    LyingDesk,
    WatchedWorld,
    at,
    hurry,
    opened,
    other_contract,
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedWorld:
    hurry(monkeypatch)
    return WatchedWorld(tmp_path)


# ------------------------------------------------------------------ snapshots, lost data, restarts


def hasty(monkeypatch: pytest.MonkeyPatch, batches: int = 2) -> None:
    """A snapshot after every few batches."""
    monkeypatch.setattr(watched, "SAVE_BATCHES", batches)


async def test_a_restart_executes_only_what_came_after_the_snapshot(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch)
    desk = opened(world)
    async with world.node():
        for number in range(5):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(5)
    world.fetched.clear()
    async with world.node():
        await world.follows(5)
        assert world.fetched == [4]
        # It has the state that the lie is caught on.
        world.commit(at(1, outcomes_digest=OTHER)(desk, desk.pay()))
        fault = await world.convicted()
        assert fault.number == 5


async def test_once_everything_is_final_a_snapshot_is_written_and_the_data_may_go(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node() as watching:
        for number in range(3):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(3)
        assert not any(watching.is_followed(CONTRACT, number) for number in range(3))
        world.pass_window()
        await until(lambda: all(watching.is_followed(CONTRACT, number) for number in range(3)))
        assert not watching.is_followed(CONTRACT, 3)
    world.data.clear()
    world.fetched.clear()
    async with world.node():
        world.commit(desk.pay())
        await world.follows(4)
        assert world.fetched == [3]


async def test_data_that_is_missing_is_asked_for_until_it_comes(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node():
        batch = at(3, root=OTHER)(desk, desk.first())
        world.commit(batch)
        del world.data[batch.commitment.data_digest]
        await until(lambda: world.head().stage == "data_missing" and len(world.fetched) > 2)
        assert "nowhere" in world.head().detail
        world.data[batch.commitment.data_digest] = batch.data
        await world.convicted()


async def test_data_of_another_batch_is_not_executed(world: WatchedWorld) -> None:
    desk = opened(world)
    batch = desk.first()
    async with world.node():
        world.commit(batch)
        world.data[batch.commitment.data_digest] = rebuilt(batch, lambda items: items[:-1]).data
        await until(lambda: world.head().stage == "unreadable")
        world.data[batch.commitment.data_digest] = batch.data
        await world.follows(1)


async def test_who_was_away_takes_a_state_from_a_peer_and_goes_on(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch)
    desk = opened(world)
    async with world.node() as serving:
        for number in range(4):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(4)
        world.pass_window()
        away = WatchedWorld(world.path.parent)
        away.chain, away.path = world.chain, world.path.with_name("away")
        away.peers = ["silent", "mute", "friend"]
        for peer in ("silent", "friend"):
            for method in METHODS:
                away.network.script(
                    peer, method, answers(serving, method) if peer == "friend" else lambda _: not_available()
                )
        for method in METHODS:
            away.network.script("mute", method, lambda _: RequestFailed(RequestFailure.TIMEOUT, "mute", "x", "silent"))
        async with away.node():
            await away.follows(4)
            assert away.network.blamed() == set()
            # From there on it judges like any other.
            lie = at(1, root=OTHER)(desk, desk.pay())
            away.data[lie.commitment.data_digest] = lie.data
            world.chain.act(OPERATOR, CommitBatch(lie.commitment))
            await away.convicted()
            assert away.chain.contract().batch_count == 4


def answers(serving: Watching, method: str) -> Callable[[bytes], bytes | Exception]:
    """Answer as a peer's watcher does, from its disk."""

    def answer(payload: bytes) -> bytes | Exception:
        exchange = serving._exchange
        if method == REQUEST_CONTRACT_STATES:
            return encode(StatesAnswer(tuple(head.head for head in exchange._snapshots.heads(payload))))
        asked = decode_state_request(payload)
        page = exchange._snapshots.page(asked.contract_id, asked.number, asked.page)
        return page if page is not None else not_available()

    return answer


GARBAGE = pages_of([(b"m" + bytes([number]), b"x") for number in range(9)])
LIARS: dict[str, tuple[StateHead, bytes]] = {
    "another state": (StateHead(1, 1, 9, len(GARBAGE[0])), GARBAGE[0]),
    "more than announced": (StateHead(1, 1, 9, 5), GARBAGE[0]),
    "more entries than announced": (StateHead(1, 1, 8, len(GARBAGE[0])), GARBAGE[0]),
    "fewer entries than announced": (StateHead(1, 1, 10, len(GARBAGE[0])), GARBAGE[0]),
    "too many pages": (StateHead(1, 50, 9, len(GARBAGE[0])), GARBAGE[0]),
    "no page": (StateHead(1, 1, 9, 100), b"\xc1"),
    "nothing in a page": (StateHead(1, 1, 9, 100), b""),
    "a page too large": (StateHead(1, 1, 9, 10**6), bytes(MAX_PAGE_BYTES + 1)),
}


@pytest.mark.parametrize("lie", LIARS.values(), ids=LIARS)
async def test_a_peer_that_gives_a_wrong_state_pays_for_it_and_the_next_one_is_asked(
    world: WatchedWorld, lie: tuple[StateHead, bytes]
) -> None:
    desk = opened(world)
    async with world.node() as serving:
        world.commit(desk.first())
        await world.follows(1)
        world.pass_window()
        await until(lambda: serving.is_followed(CONTRACT, 0))
        away = WatchedWorld(world.path.parent)
        away.chain, away.path = world.chain, world.path.with_name("away")
        away.peers = ["liar", "friend"]
        away.network.script("liar", REQUEST_CONTRACT_STATES, lambda _: encode(StatesAnswer((lie[0],))))
        away.network.script("liar", REQUEST_CONTRACT_STATE, lambda _: lie[1])
        for method in METHODS:
            away.network.script("friend", method, answers(serving, method))
        async with away.node():
            await until(lambda: away.head().number == 1)
            assert away.network.blamed() == {"liar"}


async def test_a_state_that_is_too_large_or_not_final_is_left_alone(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node():
        world.commit(desk.first())
        world.commit(desk.pay())
        await world.follows(2)
    world.pass_window()
    world.commit(desk.pay())
    world.data.clear()
    away = WatchedWorld(world.path.parent)
    away.chain, away.path, away.peers = world.chain, world.path.with_name("away"), ["huge", "early"]
    away.network.script("huge", REQUEST_CONTRACT_STATES, lambda _: encode(StatesAnswer((StateHead(1, 9, 10**9, 9),))))
    away.network.script("early", REQUEST_CONTRACT_STATES, lambda _: encode(StatesAnswer((StateHead(3, 1, 9, 99),))))
    async with away.node():
        await until(lambda: away.head().stage == "no_state" and len(away.network.asked) > 4)
        assert {method for _, method in away.network.asked} == {REQUEST_CONTRACT_STATES}
        assert away.network.blamed() == set()
        assert away.head().number == 0


async def test_far_behind_a_peers_state_comes_before_executing_everything(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch)
    desk = opened(world)
    async with world.node() as serving:
        for number in range(6):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(6)
        await until(lambda: 6 in world.saved())
        world.pass_window()
        monkeypatch.setattr(following, "JUMP_BATCHES", 3)
        away = WatchedWorld(world.path.parent)
        away.chain, away.data, away.path, away.peers = world.chain, world.data, world.path.with_name("away"), ["friend"]
        for method in METHODS:
            away.network.script("friend", method, answers(serving, method))
        async with away.node():
            await until(lambda: away.head().number == 6)
            assert away.fetched == []


async def test_a_damaged_snapshot_is_removed_and_the_next_older_one_serves(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch)
    desk = opened(world)
    async with world.node():
        for number in range(4):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(4)
        await until(lambda: 4 in world.saved())
        with world.snapshots._file.transaction() as connection:
            connection.execute("UPDATE pages SET data = ? WHERE number = 4", (GARBAGE[0],))
    world.fetched.clear()
    async with world.node():
        world.commit(desk.pay())
        await world.follows(5)
        assert world.fetched == [2, 3, 4]


async def test_after_a_conviction_the_last_final_state_is_provable_for_who_claims(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch)
    desk = opened(world)
    async with world.node() as watching:
        for number in range(3):
            world.commit(desk.pay() if number else desk.first())
        world.pass_window()
        roots = [batch.commitment.new_root for batch in world.chain.batches()]
        for _ in range(3):
            world.commit(desk.pay())
        await world.follows(6)
        world.commit(at(1, root=OTHER)(desk, desk.pay()))
        await world.convicted()
        assert world.chain.contract().batch_count == 3
        assert world.chain.contract().root == roots[2]
        world.data.clear()
        await claim_everything(world, watching)
        # Nothing is left to claim; after the retention the state may go.
        world.pass_window(RULES.retention_microblocks + 1)
        monkeypatch.setattr(following, "ENDED_PAUSE_S", 0.05)
    async with world.node():
        await until(lambda: world.head().stage == "ended" and not world.snapshots.contracts())
    # Who begins now has nothing to look for.
    world.fetched.clear()
    world.peers = ["friend"]
    async with world.node(path=world.path.with_name("new")):
        await until(lambda: world.head().stage == "ended")
        assert (world.fetched, world.network.asked) == ([], [])


async def claim_everything(world: WatchedWorld, watching: Watching) -> None:
    contract = world.chain.contract()
    for account in (*(testing.key(user).address for user in USERS), testing.key(9).address):
        keys = MACHINES.payable_keys(contract.terms, account)
        assert keys is not None
        entries = [
            await watching.prove_key(CONTRACT, contract.batch_count - 1, key) for key in (keys.withdrawn, keys.balance)
        ]
        if entries[1].value is not None:
            claim = ClaimBalance(CONTRACT, account, contract.batch_count - 1, tuple(entries))
            assert world.chain.act(testing.key(8), claim).reason == ""
    assert world.chain.contract().escrow_microcredit == 0


# ------------------------------------------------------------------ proofs


async def test_every_key_of_every_batch_is_proved_from_wherever_its_state_is_at_hand(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch, 3)
    desk = opened(world)
    states = {}
    async with world.node() as watching:
        for number in range(7):
            world.commit(desk.pay() if number else desk.first())
            states[number] = dict(desk.operator.state.entries())
        await world.follows(7)
        keys = [*states[6], b"mabsent"]
        for number in (6, 5, 2, 4, 0, 3, 1, 6):
            root = world.chain.batches()[number].commitment.new_root
            for key in keys:
                entry = await watching.prove_key(CONTRACT, number, key)
                assert (entry.key, entry.value) == (key, states[number].get(key))
                assert verify_state_proof(root, key, entry.value, entry.proof)


async def test_every_request_is_proved_with_its_place(world: WatchedWorld) -> None:
    desk = opened(world)
    batch = desk.first()
    async with world.node() as watching:
        world.commit(batch)
        for index, item in enumerate(data_of(batch).items):
            proved = await watching.prove_request(CONTRACT, 0, index)
            assert proved.request == item.request
            assert holds_leaf(batch.commitment, proved.proof)
            assert proved.proof.leaf.request_digest == request_digest(item.request)


async def test_what_is_not_there_is_not_proved_and_says_why(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = opened(world)
    async with world.node() as watching:
        for number in range(3):
            world.commit(desk.pay() if number else desk.first())
        await world.follows(3)
        for contract_id, number, why in (
            (OTHER, 0, "no contract"),
            (CONTRACT, 3, "no batch 3"),
            (CONTRACT, -1, "no batch"),
        ):
            with pytest.raises(NotFound, match=why):
                await watching.prove_key(contract_id, number, b"m")
            with pytest.raises(NotFound, match=why):
                await watching.prove_request(contract_id, number, 0)
        for index in (-1, 7):
            with pytest.raises(NotFound, match="none at place"):
                await watching.prove_request(CONTRACT, 0, index)
        for key in (b"", bytes(65)):
            with pytest.raises(InvalidInput, match="state key"):
                await watching.prove_key(CONTRACT, 0, key)
        with monkeypatch.context() as patch:
            patch.setattr(replaying, "MAX_REPLAYED_BATCHES", 1)
            with pytest.raises(NotFound, match="nearest state"):
                await watching.prove_key(CONTRACT, 1, b"m")
        world.data.clear()
        with pytest.raises(NotFound, match="nowhere"):
            await watching.prove_key(CONTRACT, 0, b"m")
        with pytest.raises(NotFound, match="nowhere"):
            await watching.prove_request(CONTRACT, 0, 0)


# ------------------------------------------------------------------ bounds and hostile peers


async def test_contracts_whose_data_does_not_come_hold_up_no_other(world: WatchedWorld) -> None:
    stuck = [LyingDesk(world.chain, world.chain.open(other_contract(number)[0])) for number in range(1, WORKERS)]
    desk = opened(world)
    world.hanging = {one.contract_id for one in stuck}
    async with world.node():
        for one in stuck:
            world.commit(one.first())
        for number in range(3):
            world.commit(desk.pay() if number else desk.first())
            await world.follows(number + 1)
        world.commit(at(1, root=OTHER)(desk, desk.pay()))
        await world.convicted()


async def test_states_beyond_the_bound_leave_memory_and_come_back_when_they_are_needed(world: WatchedWorld) -> None:
    first = opened(world)
    second_body, second_id = other_contract()
    second = LyingDesk(world.chain, world.chain.open(second_body))
    async with world.node(memory_bytes=12_000) as watching:
        for number in range(3):
            for desk, contract_id in ((first, CONTRACT), (second, second_id)):
                world.commit(desk.pay() if number else desk.first())
                await world.follows(number + 1, contract_id)
        await until(lambda: sum(one.live is not None for one in watching._watched.values()) == 1)
        world.commit(at(1, root=OTHER)(first, first.pay()))
        await world.convicted()


async def test_a_state_that_is_too_large_for_the_node_is_not_watched_and_says_so(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node(memory_bytes=2_000) as watching:
        world.commit(desk.first())
        await until(lambda: world.head().stage == "too_large")
        assert "2000 are allowed" in world.head().detail
        assert watching.is_followed(CONTRACT, 0)
        world.commit(desk.pay())
        await trio.sleep(0.1)
        assert world.fetched == [0]


async def test_a_disk_that_fails_stops_no_watching(world: WatchedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty(monkeypatch, 1)
    desk = opened(world)
    async with world.node():
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise StoreError("the disk is full")

            patch.setattr(Snapshots, "put", fail)
            world.commit(desk.first())
            world.commit(desk.pay())
            await until(lambda: world.head().number == 2)
        world.commit(at(1, root=OTHER)(desk, desk.pay()))
        await world.convicted()


async def test_what_peers_ask_is_checked(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node() as watching:
        world.commit(desk.first())
        await world.follows(1)
        assert decode_states_answer(await watching.answer(REQUEST_CONTRACT_STATES, CONTRACT)).states == ()
        world.pass_window()
        await until(lambda: watching.is_followed(CONTRACT, 0))
        (head,) = decode_states_answer(await watching.answer(REQUEST_CONTRACT_STATES, CONTRACT)).states
        page = await watching.answer(REQUEST_CONTRACT_STATE, encode(StateRequest(CONTRACT, head.number, 0)))
        assert entries_of([page], head.entries) == tuple(desk.operator.state.entries())
        for payload in (b"", bytes(31), bytes(33), bytes(10**6)):
            with pytest.raises(InvalidInput):
                await watching.answer(REQUEST_CONTRACT_STATES, payload)
            with pytest.raises(InvalidInput):
                await watching.answer(REQUEST_CONTRACT_STATE, payload)
        for number, page_number in ((0, 0), (1, 1), (2, 0), (2**63 - 1, 2**63 - 1)):
            with pytest.raises(NotAvailable):
                await watching.answer(REQUEST_CONTRACT_STATE, encode(StateRequest(CONTRACT, number, page_number)))
        with pytest.raises(UnknownMethod):
            await watching.answer("batches", b"")


@given(st.dictionaries(st.binary(min_size=1, max_size=64), st.binary(max_size=1024), max_size=40))
def test_pages_give_back_what_they_were_made_of(content: dict[bytes, bytes]) -> None:
    entries = sorted(content.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract_states, "PAGE_BYTES", 600)
        pages = pages_of(entries)
    assert entries_of(pages, len(entries)) == tuple(entries)
    if entries:
        with pytest.raises(InvalidInput):
            entries_of(pages, len(entries) - 1)
        with pytest.raises(InvalidInput):
            entries_of([*pages, pages[0]], 2 * len(entries))


@given(st.lists(st.integers(0, 1_000), unique=True, max_size=40).map(sorted), st.integers(0, 1_000), st.integers(0, 9))
def test_the_snapshots_that_are_kept_are_few_and_the_right_ones(numbers: list[int], final: int, most: int) -> None:
    chosen = kept(numbers, final, most)
    base = max((number for number in numbers if number <= final), default=0)
    assert chosen <= {number for number in numbers if number >= base}
    assert len(chosen) <= max(2, most)
    if numbers:
        assert numbers[-1] in chosen
        assert base in chosen or base not in numbers
