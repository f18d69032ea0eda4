# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher on a node: every lie of an operator is challenged without anybody's help, and the watcher survives what happens to nodes.

R1 to R4 are those of `node.offchain.watching`. The chain is the real transition, so what is said to convict does convict.
"""

from pathlib import Path

import msgspec
import pytest
import trio

from contracts import watcher
from contracts.batch_data import prove_leaf
from contracts.execution import MACHINE_PREFIX, sequence_key
from contracts.machines.micro_fees import Pay, balance_key
from contracts.operator import Batch
from contracts.requests import Operations, SignedOperations
from ledger import testing
from ledger.bodies import Transfer
from ledger.codec import encode
from ledger.contract_bodies import ChallengeBatch, CloseContract
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput, NotFound, StoreError
from ledger.offchain import BrokenReceipt, ForcedPlace, RequestReceipt, SignedReceipt, deposit_request, sign_receipt
from ledger.state_tree import verify_state_proof
from node.offchain import challenging, promises, replaying
from node.offchain.receipt_file import ReceiptFile
from tests.contracts.kit import data_of, rebuilt, recommitted
from tests.node.kit import until
from tests.node.offchain_kit import CHAIN, CONTRACT, OPENED, OPERATOR, REFERENCE, RULES, pay
from tests.node.watching_kit import (
    OTHER,
    USERS,
    WATCHER,
    Lie,
    LyingDesk,
    WatchedWorld,
    at,
    hurry,
    opened,
    other_contract,
)

LEAVES = 7
"""Requests in a first batch: three deposits and four payments."""
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedWorld:
    hurry(monkeypatch)
    return WatchedWorld(tmp_path)


# ------------------------------------------------------------------ lies


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


@pytest.mark.parametrize("when", ["before the batch", "between batch and restart", "before the conviction"])
async def test_a_restart_frees_no_operator_of_a_receipt_that_was_handed_in(world: WatchedWorld, when: str) -> None:
    """The second watcher knows of the receipt from the disk alone."""
    promised = opened(world)
    for user in USERS:
        promised.deposit(user)
    raws = [promised.sign(user, pay()) for user in USERS]
    signed = [promised.take(raw).signed for raw in raws]
    liar = promised.twin()
    for user in USERS:
        liar.take_deposit(user)
    for raw in (raws[1], raws[0], raws[2]):
        liar.take(raw)
    # Who has no credits finds the fraud and cannot challenge it.
    async with world.node(testing.key(2_000) if when == "before the conviction" else WATCHER) as watching:
        await watching.hold_receipt(signed[1])
        if when == "before the conviction":
            world.commit(liar.cut())
            await until(watching.faults)
    if when == "between batch and restart":
        world.commit(liar.cut())
    async with world.node():
        if when == "before the batch":
            world.commit(liar.cut())
        assert "than the one promised" in (await world.convicted()).verdict


async def test_receipts_leave_the_disk_once_they_are_of_no_use(world: WatchedWorld) -> None:
    desk = opened(world)
    batch = desk.first()
    signed = [answer.signed for answer in desk.answers]
    later = sign_receipt(CHAIN, OPERATOR, replace(signed[0].receipt, number=1))
    async with world.node() as watching:
        for receipt in (*signed, later):
            await watching.hold_receipt(receipt)
        assert len(world.receipts.all()) == len(signed) + 1
        world.commit(batch)
        await until(lambda: world.receipts.all() == [later])
        assert world.chain.act(OPERATOR, CloseContract(CONTRACT)).reason == ""
        await until(lambda: world.head().stage == "ended")
        # The contract may be challenged until it is settled.
        assert world.receipts.all() == [later]
    world.pass_window()
    async with world.node():
        await until(lambda: not world.receipts.all())
        assert world.watching.faults() == ()


async def test_a_receipt_is_held_only_if_it_is_on_the_disk(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = opened(world)
    desk.first()
    async with world.node() as watching:

        def fail(_signed: SignedReceipt) -> None:
            raise StoreError("the disk fails")

        with monkeypatch.context() as broken:
            broken.setattr(world.receipts, "put", fail)
            with pytest.raises(StoreError, match="the disk fails"):
                await watching.hold_receipt(desk.answers[0].signed)
        await watching.hold_receipt(desk.answers[0].signed)
        assert world.receipts.all() == [desk.answers[0].signed]


async def test_one_operator_cannot_take_all_the_room_for_receipts(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = opened(world)
    flood.first()
    terms, identifier = other_contract()
    other = LyingDesk(world.chain, world.chain.open(terms))
    other.first()
    monkeypatch.setattr(promises, "MAX_OF_CONTRACT", 2)
    async with world.node() as watching:
        for answer in flood.answers[:2]:
            await watching.hold_receipt(answer.signed)
        with pytest.raises(InvalidInput, match="2 of them of this contract"):
            await watching.hold_receipt(flood.answers[2].signed)
        await watching.hold_receipt(other.answers[0].signed)
        kept = world.receipts.all()
        assert (len(kept), {signed.receipt.contract_id for signed in kept}) == (3, {identifier, CONTRACT})


def test_a_damaged_receipt_costs_no_other(world: WatchedWorld, tmp_path: Path) -> None:
    desk = opened(world)
    desk.first()
    signed = [answer.signed for answer in desk.answers[:3]]
    with ReceiptFile(tmp_path / "receipts", chain_id=CHAIN) as file:
        for receipt in (*signed, *signed):
            file.put(receipt)
        with file._file.transaction() as connection:
            connection.execute("UPDATE receipts SET content = x'c1' WHERE signature = ?", (signed[1].signature,))
    with ReceiptFile(tmp_path / "receipts", chain_id=CHAIN) as file:
        assert {receipt.signature for receipt in file.all()} == {signed[0].signature, signed[2].signature}
        file.remove(CONTRACT, 0)
        assert not file.all()


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
    sent = [checked.transaction.body for checked, _ in world.chain.receipts]
    assert not any(isinstance(body, ChallengeBatch) for body in sent)


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


async def test_a_watcher_rests_in_the_newest_batch_and_hurries_while_it_is_behind(
    world: WatchedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[int] = []
    monkeypatch.setattr(watcher, "REST_LEAVES", 1)
    monkeypatch.setattr(replaying._Rest, "__call__", lambda _self: rests.append(1))
    desk = opened(world)
    world.commit(desk.first())
    desk.take(desk.sign(1, pay()))
    desk.take(desk.sign(2, pay()))
    world.commit(desk.cut())
    async with world.node():
        await world.follows(2)
    assert len(rests) == 2


def test_a_rest_is_as_long_as_the_work_before_it_and_never_long(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, slept = iter([1.0, 1.002, 1.1, 9.0, 9.0]), list[float]()
    monkeypatch.setattr("time.thread_time", lambda: next(moments))
    monkeypatch.setattr("time.sleep", slept.append)
    rest = replaying._Rest()
    for _ in range(3):
        rest()
    assert slept == [pytest.approx(0.002), replaying.MAX_REST_S]
