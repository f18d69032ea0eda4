# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher on a node: every lie of an operator is challenged without anybody's help, and the watcher survives what happens to nodes.

R1 to R4 are those of `node.offchain.watching`. The chain is the real transition, so what is said to convict does convict.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from contracts.batch_data import prove_leaf
from contracts.execution import MACHINE_PREFIX, sequence_key
from contracts.machines.micro_fees import Pay, balance_key
from contracts.operator import Batch
from contracts.requests import Operations, SignedOperations, deposit_request
from contracts.shipped import MACHINES
from ledger import testing
from ledger.bodies import Transfer
from ledger.codec import encode
from ledger.contract_bodies import ChallengeBatch, ClaimBalance, CloseContract, CommitBatch
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import BrokenReceipt, ForcedPlace, RequestReceipt, holds_leaf, request_digest, sign_receipt
from ledger.state_tree import verify_state_proof
from node.offchain import challenging, contract_states, following, promises, replaying, watched
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
from node.offchain.watching import Watching
from p2p.errors import NotAvailable, RequestFailed, RequestFailure, UnknownMethod
from tests.contracts.kit import Items, data_of, rebuilt, recommitted
from tests.node.kit import not_available, until
from tests.node.offchain_kit import CHAIN, CONTRACT, OPENED, OPERATOR, REFERENCE, RULES, pay
from tests.node.watching_kit import USERS, WATCHER, LyingDesk, WatchedWorld, opened, other_contract

OTHER = tagged_hash(Tag.BLOB, b"another digest")
LEAVES = 7
"""Requests in a first batch: three deposits and four payments."""
Lie = Callable[[LyingDesk, Batch], Batch]
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> WatchedWorld:
    return WatchedWorld(tmp_path)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for people here."""
    monkeypatch.setattr(challenging, "SPREAD_S", 0.01)
    monkeypatch.setattr(challenging, "RETRY_S", 0.02)
    monkeypatch.setattr(following, "RETRY_S", 0.02)
    monkeypatch.setattr(following, "PAUSE_S", 0.05)
    monkeypatch.setattr(following, "ASK_PAUSE_S", 0.1)


# ------------------------------------------------------------------ lies


def at(place: int, **changes: object) -> Lie:
    """Return a lie in one leaf."""

    def change(items: Items) -> Items:
        return [*items[:place], replace(items[place], **changes), *items[place + 1 :]]

    return lambda _desk, batch: rebuilt(batch, change)


def late(_desk: LyingDesk, batch: Batch) -> Batch:
    return at(3, time_ms=batch.commitment.until_ms + 1)(_desk, batch)


def reordered(_desk: LyingDesk, batch: Batch) -> Batch:
    return rebuilt(batch, lambda items: [*items[:4], items[5], items[4], *items[6:]])


def doubled(_desk: LyingDesk, batch: Batch) -> Batch:
    return rebuilt(batch, lambda items: [*items[:5], *items[4:]])


def dropped(_desk: LyingDesk, batch: Batch) -> Batch:
    return rebuilt(batch, lambda items: [*items[:3], *items[4:]])


def stolen(desk: LyingDesk, batch: Batch) -> Batch:
    """The operator pays itself from a user's balance, and signs for the user."""
    payment = encode(Pay(OPERATOR.address, 900, REFERENCE))
    content = Operations(desk.contract_id, testing.key(3).public_key, desk.next[3], (payment,))
    forged = encode(SignedOperations(content, OPERATOR.sign(tagged_hash(Tag.BLOB, encode(content)))))
    return rebuilt(batch, lambda items: [*items[:-1], replace(items[-1], request=forged)])


def invented_deposit(desk: LyingDesk, batch: Batch) -> Batch:
    invented = deposit_request(desk.contract_id, 3, OPERATOR.address, 10**9)
    return rebuilt(batch, lambda items: [*items[:-1], replace(items[-1], request=invented)])


def other_end(_desk: LyingDesk, batch: Batch) -> Batch:
    return recommitted(batch, new_root=OTHER)


def other_count(_desk: LyingDesk, batch: Batch) -> Batch:
    return recommitted(batch, operation_count=batch.commitment.operation_count + 1)


def forced_elsewhere(_desk: LyingDesk, batch: Batch) -> Batch:
    first, second, third = batch.commitment.forced
    return recommitted(batch, forced=(first, second, ForcedPlace(third.request_digest, 5)))


LIES: dict[str, Lie] = {
    "a wrong outcome": at(4, outcomes_digest=OTHER),
    "a wrong root in the middle": at(4, root=OTHER),
    "a wrong root at the end": at(LEAVES - 1, root=OTHER),
    "a wrong count": at(LEAVES - 1, operation_total=99),
    "a time after the batch": late,
    "a time that runs backwards": at(4, time_ms=0),
    "requests in another order": reordered,
    "a doubled request": doubled,
    "a dropped deposit": dropped,
    "a stolen balance": stolen,
    "bytes that are no request": at(5, request=b"\xc1"),
    "an invented deposit": invented_deposit,
    "a commitment that ends otherwise": other_end,
    "a commitment of more operations": other_count,
    "a forced request that is not there": forced_elsewhere,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_every_lie_in_a_batch_is_challenged_and_punished(world: WatchedWorld, lie: Lie) -> None:
    desk = opened(world)
    honest = desk.first()
    before = world.balance(WATCHER)
    async with world.node():
        world.commit(lie(desk, honest))
        fault = await world.convicted()
        assert fault.number == 0
        assert world.chain.contract().batch_count == 0
        assert world.balance(WATCHER) > before + OPENED.bond_microcredit // 2 - 10_000
    # It was challenged once, and by this node.
    offence = world.offence(OPERATOR.public_key)
    assert offence is not None
    assert [receipt.reason for checked, receipt in world.chain.receipts if checked.sender == WATCHER.address] == [""]


@pytest.mark.parametrize("what", ["a balance", "a sequence number"])
async def test_a_state_that_was_forged_in_between_is_caught_on_the_state_of_the_batches_before(
    world: WatchedWorld, what: str
) -> None:
    desk = opened(world)
    async with world.node():
        world.commit(desk.first())
        await world.follows(1)
        again = desk.sign(1, pay())
        desk.take(again)
        if what == "a balance":
            desk.operator.state.put(MACHINE_PREFIX + balance_key(OPERATOR.address), encode(10**9))
            desk.take(desk.sign(2, pay()))
        else:
            desk.operator.state.put(sequence_key(testing.key(1).address), encode(desk.next[1] - 1))
            desk.operator._remembered.clear()
            desk.take(again)
        world.commit(desk.cut())
        fault = await world.convicted()
        assert fault.number == 1
        # Nothing was final: the whole contract is taken back.
        assert world.chain.contract().batch_count == 0


@pytest.mark.parametrize("is_late", [False, True], ids=["handed in before", "handed in after"])
async def test_a_broken_receipt_that_a_user_hands_in_is_challenged(world: WatchedWorld, is_late: bool) -> None:
    promised = opened(world)
    for user in USERS:
        promised.deposit(user)
    raws = [promised.sign(user, pay()) for user in USERS]
    signed = [promised.take(raw).signed for raw in raws]
    # The same operator commits another order: nothing is wrong with it but what was promised.
    liar = promised.twin()
    for user in USERS:
        liar.take_deposit(user)
    for raw in (raws[1], raws[0], raws[2]):
        liar.take(raw)
    async with world.node() as watching:
        if not is_late:
            for receipt in signed[::-1]:
                await watching.hold_receipt(receipt)
        world.commit(liar.cut())
        if is_late:
            await world.follows(1)
            assert watching.faults() == ()
            await watching.hold_receipt(signed[1])
        fault = await world.convicted()
        assert "than the one promised" in fault.verdict


async def test_a_kept_receipt_accuses_nobody_and_one_of_no_use_is_refused(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = opened(world)
    batch = desk.first()
    signed = [answer.signed for answer in desk.answers]
    monkeypatch.setattr(promises, "MAX_HELD", len(signed))
    far = RequestReceipt(CONTRACT, promises.MAX_AHEAD + 1, 0, signed[0].receipt.leaf)
    async with world.node() as watching:
        for receipt in (*signed, *signed):
            await watching.hold_receipt(receipt)
        useless = {
            "has not signed": replace(signed[0], signature=bytes(64)),
            "no contract": replace(signed[0], receipt=replace(signed[0].receipt, contract_id=OTHER)),
            "come back later": sign_receipt(CHAIN, OPERATOR, far),
            "receipts wait": sign_receipt(CHAIN, OPERATOR, replace(far, number=1)),
        }
        for why, receipt in useless.items():
            with pytest.raises(InvalidInput, match=why):
                await watching.hold_receipt(receipt)
        world.commit(batch)
        await world.follows(1)
        # All are looked at, and there is room again.
        await watching.hold_receipt(sign_receipt(CHAIN, OPERATOR, replace(far, number=1)))
        await watching.hold_receipt(signed[3])
        world.pass_window()
        with pytest.raises(InvalidInput, match="is final"):
            await watching.hold_receipt(signed[3])
        assert watching.faults() == ()
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        with pytest.raises(InvalidInput, match="has ended without"):
            await watching.hold_receipt(sign_receipt(CHAIN, OPERATOR, replace(far, number=1)))


async def test_honest_operators_are_never_accused(world: WatchedWorld) -> None:
    desk = opened(world)
    second, second_id = other_contract()
    other = LyingDesk(world.chain, world.chain.open(second))
    async with world.node() as watching:
        for number in range(6):
            world.commit(desk.pay() if number else desk.first())
            world.commit(other.pay() if number else other.first())
        await world.follows(6)
        await world.follows(6, second_id)
        assert watching.faults() == ()
    assert WATCHER.address not in {checked.sender for checked, _ in world.chain.receipts}


# ------------------------------------------------------------------ challenges that meet with difficulties


@pytest.mark.parametrize("balance", [0, 1_000], ids=["nothing", "the fee alone"])
async def test_without_credits_it_says_so_and_challenges_as_soon_as_there_are_some(
    world: WatchedWorld, balance: int
) -> None:
    desk = opened(world)
    poor = testing.key(2_000)
    if balance:
        assert world.chain.act(testing.key(1), Transfer(poor.address, balance)).reason == ""
    async with world.node(poor) as watching:
        world.commit(at(3, root=OTHER)(desk, desk.first()))
        await until(lambda: watching.faults() and watching.faults()[0].trouble)
        (fault,) = watching.faults()
        assert fault.stage == "found"
        assert "balance" in fault.trouble
        assert world.chain.act(testing.key(1), Transfer(poor.address, 10**6)).reason == ""
        await world.convicted()
        assert watching.faults()[0].trouble == ""
    assert world.balance(poor) > OPENED.bond_microcredit // 2


async def test_a_window_that_has_passed_is_told_and_ends_the_attempts(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node(testing.key(2_000)) as watching:
        world.commit(at(3, root=OTHER)(desk, desk.first()))
        await until(watching.faults)
        world.pass_window()
        await until(lambda: watching.faults()[0].stage == "missed")
        assert world.chain.contract().status == "open"
        await until(lambda: "nobody has challenged it in time" in world.head().detail)


@pytest.mark.parametrize("passed", [RULES.window_microblocks - 2, RULES.window_microblocks - 1])
async def test_the_last_microblock_of_the_window_is_early_enough_and_the_next_one_too_late(
    world: WatchedWorld, passed: int
) -> None:
    desk = opened(world)
    world.is_behind = True
    async with world.node() as watching:
        world.commit(at(3, root=OTHER)(desk, desk.first()))
        for _ in range(passed):
            world.chain.commit()
        world.is_behind = False
        if passed == RULES.window_microblocks - 2:
            await world.convicted()
        else:
            await until(lambda: [fault.stage for fault in watching.faults()] == ["missed"])
            # Nothing was spent on what cannot succeed.
            assert WATCHER.address not in {checked.sender for checked, _ in world.chain.receipts}


async def test_a_restart_before_the_conviction_finds_the_fraud_again(world: WatchedWorld) -> None:
    desk = opened(world)
    async with world.node(testing.key(2_000)) as watching:
        world.commit(desk.first())
        world.commit(at(2, outcomes_digest=OTHER)(desk, desk.pay()))
        await until(watching.faults)
    async with world.node():
        assert (await world.convicted()).number == 1


async def test_a_node_that_the_chain_once_did_not_follow_challenges_that_contract_no_more(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = opened(world)
    honest = desk.first()
    # Its judge is another one than the chain's: a fault of this program.
    monkeypatch.setattr(challenging, "check_fraud", lambda *_: "guilty")
    async with world.node() as watching:
        world.commit(honest)
        await world.follows(1)
        proof = BrokenReceipt(desk.answers[0].signed, prove_leaf(data_of(honest), 0))
        contract, (batch,) = world.chain.contract(), world.chain.batches()
        assert await watching._following.accuse(contract, batch, proof)
        await until(lambda: [fault.stage for fault in watching.faults()] == ["refuted"])
        world.commit(desk.pay())
        await until(lambda: world.head().number == 2)
        assert await watching._following.accuse(contract, world.chain.batches()[1], proof)
        await trio.sleep(0.1)
        assert [fault.number for fault in watching.faults()] == [0]
    # Its own mempool has refused the challenge, so it has cost nothing.
    assert WATCHER.address not in {checked.sender for checked, _ in world.chain.receipts}
    assert world.chain.contract().status == "open"


async def test_of_two_watchers_one_is_enough_and_the_other_loses_nothing_but_a_fee(world: WatchedWorld) -> None:
    desk = opened(world)
    other = WatchedWorld(world.path.parent)
    other.chain, other.data, other.path = world.chain, world.data, world.path.with_name("other")
    second = testing.key(6)
    before = world.balance(WATCHER) + world.balance(second)
    async with world.node(), other.node(second):
        world.commit(at(3, root=OTHER)(desk, desk.first()))
        await until(
            lambda: [fault.stage for node in (world, other) for fault in node.watching.faults()] == ["convicted"] * 2
        )
    gain = world.balance(WATCHER) + world.balance(second) - before
    assert OPENED.bond_microcredit // 2 - 10_000 < gain < OPENED.bond_microcredit // 2
    reasons = {
        receipt.reason
        for checked, receipt in world.chain.receipts
        if checked.sender in (WATCHER.address, second.address)
    }
    assert "" in reasons
    assert "false_challenge" not in reasons


async def test_while_the_node_catches_up_nobody_is_accused(world: WatchedWorld) -> None:
    desk = opened(world)
    world.is_behind = True
    async with world.node() as watching:
        world.commit(at(3, root=OTHER)(desk, desk.first()))
        await trio.sleep(0.1)
        assert watching.faults() == ()
        world.is_behind = False
        await world.convicted()


async def test_its_own_operator_is_not_followed_and_never_challenged(world: WatchedWorld) -> None:
    desk = opened(world)
    honest = desk.first()
    async with world.node(OPERATOR) as watching:
        world.commit(honest)
        await trio.sleep(0.1)
        assert watching.heads() == ()
        assert watching.is_followed(CONTRACT, 0)
        # Proofs are made all the same.
        entry = await watching.prove_key(CONTRACT, 0, MACHINE_PREFIX + balance_key(testing.key(1).address))
        assert verify_state_proof(honest.commitment.new_root, entry.key, entry.value, entry.proof)
        with pytest.raises(InvalidInput, match="does not watch"):
            await watching.hold_receipt(desk.answers[0].signed)
    async with world.node(OPERATOR, watch_own=True) as watching:
        await world.follows(1)
        world.commit(at(1, root=OTHER)(desk, desk.pay()))
        await until(lambda: world.head().stage == "wrong")
        await trio.sleep(0.1)
        assert watching.faults() == ()
    assert OPERATOR.address not in {
        checked.sender
        for checked, _ in world.chain.receipts[5:]
        if not isinstance(checked.transaction.body, CommitBatch)
    }


async def test_where_it_is_switched_off_nothing_is_followed(world: WatchedWorld) -> None:
    desk = opened(world)
    batch = desk.first()
    async with world.node(enabled=False) as watching:
        world.commit(at(3, root=OTHER)(desk, batch))
        await trio.sleep(0.1)
        assert watching.heads() == ()
        assert watching.faults() == ()
        assert watching.is_followed(CONTRACT, 0)
        assert world.fetched == []
        with pytest.raises(InvalidInput, match="does not watch"):
            await watching.hold_receipt(desk.answers[0].signed)
        with pytest.raises(NotFound, match="is wrong"):
            await watching.prove_key(CONTRACT, 0, b"m")


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
        with world.snapshots._file.transaction() as connection:
            connection.execute("UPDATE pages SET data = ? WHERE number = 4", (GARBAGE[0],))
    world.fetched.clear()
    async with world.node():
        await world.follows(4)
        assert world.fetched == [2, 3]


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
