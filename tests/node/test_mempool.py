# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission, and nonces under way: whatever comes in whatever order, no sender stays blocked and nothing leaks."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from ledger import testing
from ledger.bodies import Body, RevokeAccess, Transfer
from ledger.contract_bodies import ChallengeBatch, CommitBatch, FundContract
from ledger.crypto.hashing import ZERO_DIGEST as ZERO
from ledger.errors import Rejection, RejectionReason
from ledger.memory_store import MemoryStore
from ledger.offchain import BatchCommitment, WrongForced
from ledger.state import Account, State
from ledger.transactions import CheckedTransaction, check_transaction
from ledger.transition import Receipt
from node.mempool import MAX_REQUEUES, Mempool
from tests.node.kit import CHAIN, UNFUNDED, memory_store, paid, pay


@pytest.fixture
def store() -> MemoryStore:
    return memory_store()


@pytest.fixture
def mempool(store: MemoryStore) -> Mempool:
    return Mempool(store, capacity=50)


def settle(mempool: Mempool, *outcomes: tuple[CheckedTransaction, str]) -> list[CheckedTransaction]:
    receipts = [Receipt(1, position, reason) for position, (_, reason) in enumerate(outcomes)]
    return mempool.settle([checked for checked, _ in outcomes], receipts)


def refused(call: Callable[[], object]) -> RejectionReason:
    with pytest.raises(Rejection) as raised:
        call()
    return raised.value.reason


def test_nonces_follow_those_under_way(mempool: Mempool) -> None:
    address = testing.key(0).address
    for nonce in range(4):
        assert mempool.next_nonce(address) == nonce
        assert mempool.admit(paid(0, nonce))
    assert refused(lambda: mempool.admit(paid(0, 6))) == RejectionReason.NONCE_GAP
    mempool.track([paid(0, 4), paid(0, 5)])
    assert mempool.admit(paid(0, 6))
    assert len(mempool) == 7


def test_the_same_transaction_is_taken_once_and_is_no_conflict_with_itself(mempool: Mempool) -> None:
    assert mempool.admit(paid(0, 0))
    assert not mempool.admit(paid(0, 0))
    mempool.track([paid(1, 0)])
    assert mempool.admit(paid(1, 0)), "under way from another node: it goes out from here too"
    assert refused(lambda: mempool.admit(paid(1, 0, amount=2))) == RejectionReason.NONCE_USED


def test_capacity_bounds_own_transactions_whatever_others_send(store: MemoryStore) -> None:
    mempool = Mempool(store, capacity=3)
    mempool.track([paid(1, nonce) for nonce in range(10)])
    for nonce in range(3):
        mempool.admit(paid(0, nonce))
    assert refused(lambda: mempool.admit(paid(0, 3))) == RejectionReason.MEMPOOL_FULL
    assert not mempool.admit(paid(0, 2))
    settle(mempool, (paid(0, 0), ""))
    assert refused(lambda: mempool.admit(paid(0, 5))) == RejectionReason.NONCE_GAP
    assert mempool.admit(paid(0, 3))


def test_what_depends_on_others_under_way_passes_and_the_rest_does_not(mempool: Mempool) -> None:
    poor = paid(UNFUNDED, 0)
    assert refused(lambda: mempool.admit(poor)) == RejectionReason.INSUFFICIENT_BALANCE
    mempool.admit(paid(0, 0))
    assert mempool.admit(poor), "a transfer under way may fund it"
    followers = {
        RejectionReason.FEE_TOO_LOW: testing.signed(
            CHAIN, testing.key(0), Transfer(testing.key(1).address, 1), 1, fee_microcredit=1
        ),
        RejectionReason.EXPIRY_TOO_FAR: testing.signed(
            CHAIN, testing.key(0), Transfer(testing.key(1).address, 1), 1, expiry_height=10**6
        ),
        RejectionReason.NOT_ACCREDITED: testing.register_institution(CHAIN, testing.key(9), 0),
    }
    for reason, raw in followers.items():
        assert refused(partial(mempool.admit, check_transaction(raw, testing.rules_of(CHAIN)))) == reason


def test_a_revocation_may_follow_a_grant_that_is_under_way(mempool: Mempool) -> None:
    revocation = check_transaction(
        testing.signed(CHAIN, testing.key(1), RevokeAccess(bytes(32))), testing.rules_of(CHAIN)
    )
    assert refused(lambda: mempool.admit(revocation)) == RejectionReason.GRANT_UNKNOWN
    mempool.admit(paid(0, 0))
    assert mempool.admit(revocation)


def contract_transaction(sender: int, body: Body) -> CheckedTransaction:
    return check_transaction(testing.signed(CHAIN, testing.key(sender), body), testing.rules_of(CHAIN))


def test_what_a_contract_under_way_allows_passes_but_challenges_do_not(mempool: Mempool) -> None:
    commitment = BatchCommitment(ZERO, 0, ZERO, ZERO, ZERO, 1, 1, ZERO, 1, 0, 0, ())
    waiting = [
        contract_transaction(1, FundContract(bytes(32), bytes(20), 1)),
        contract_transaction(2, CommitBatch(commitment)),
    ]
    challenge = contract_transaction(3, ChallengeBatch(bytes(32), 0, WrongForced(0, None)))
    for transaction in (*waiting, challenge):
        assert refused(partial(mempool.admit, transaction)) == RejectionReason.CONTRACT_UNKNOWN
    mempool.admit(paid(0, 0))
    for transaction in waiting:
        assert mempool.admit(transaction)
    assert refused(lambda: mempool.admit(challenge)) == RejectionReason.CONTRACT_UNKNOWN


def test_an_overtaken_transaction_is_ordered_again_until_its_sender_is_told(mempool: Mempool) -> None:
    late = paid(0, 0)
    mempool.admit(late)
    for _ in range(MAX_REQUEUES):
        assert settle(mempool, (late, "nonce_gap")) == [late]
        assert mempool.is_own(late.id)
    assert settle(mempool, (late, "nonce_gap")) == []
    assert not mempool.is_own(late.id)
    assert len(mempool) == 0
    assert mempool.admit(late)


def test_a_transaction_that_stands_twice_in_a_microblock_is_ordered_again_once(mempool: Mempool) -> None:
    own = paid(0, 0)
    mempool.admit(own)
    assert settle(mempool, (own, "nonce_gap"), (own, "nonce_gap")) == [own]
    assert settle(mempool, (own, "nonce_gap"), (paid(1, 0), ""), (own, "")) == []
    assert len(mempool) == 0
    assert not mempool._requeues


def test_payable_is_what_the_state_lets_commit_now_or_later(store: MemoryStore, mempool: Mempool) -> None:
    testing.commit(store, [pay(0, 0)])
    assert mempool.is_payable(paid(0, 1))
    assert mempool.is_payable(paid(0, 10**6))
    assert not mempool.is_payable(paid(0, 0)), "its nonce is used"
    assert not mempool.is_payable(paid(UNFUNDED, 0))
    expired = testing.signed(
        CHAIN, testing.key(1), Transfer(testing.key(0).address, 1), 0, expiry_height=store.head().height
    )
    assert not mempool.is_payable(check_transaction(expired, testing.rules_of(CHAIN)))


class _Model:
    """What is under way, remembered without any cleverness: own ones, and how often each stands somewhere."""

    def __init__(self) -> None:
        self.own: set[bytes] = set()
        self.nonces: dict[tuple[bytes, int], bytes] = {}

    def track(self, checked: CheckedTransaction) -> None:
        self.nonces.setdefault((checked.sender, checked.transaction.nonce), checked.id)

    def release(self, checked: CheckedTransaction) -> None:
        self.own.discard(checked.id)
        place = (checked.sender, checked.transaction.nonce)
        if self.nonces.get(place) == checked.id:
            del self.nonces[place]


POOL = [paid(sender, nonce, amount) for sender in range(3) for nonce in range(5) for amount in (1, 2)]


def _step(rng: random.Random, mempool: Mempool, model: _Model) -> None:
    checked = rng.choice(POOL)
    action = rng.randrange(5)
    if action == 0:
        known = checked.id in model.own
        try:
            taken = mempool.admit(checked)
        except Rejection:
            assert not known
            return
        assert taken is not known
        model.own.add(checked.id)
        model.track(checked)
    elif action == 1:
        mempool.track([checked, checked])
        model.track(checked)
    elif action == 2:
        mempool.forget([checked])
        model.release(checked)
    else:
        reason = rng.choice(["", "nonce_gap", "nonce_used", "insufficient_balance"])
        again = settle(mempool, (checked, reason))
        if again:
            assert again == [checked]
            assert checked.id in model.own
        else:
            model.release(checked)


@pytest.mark.parametrize("seed", range(60))
def test_no_interleaving_leaks_or_blocks_a_sender(store: MemoryStore, seed: int) -> None:
    rng = random.Random(seed)
    mempool, model = Mempool(store, capacity=12), _Model()
    for _ in range(300):
        _step(rng, mempool, model)
        assert len(mempool) == len(model.nonces)
        assert {checked.id for checked in POOL if mempool.is_own(checked.id)} == model.own
    # Whatever is under way ends: then nothing is left and everybody may begin afresh.
    for checked in POOL:
        mempool.forget([checked])
    assert len(mempool) == 0
    assert not mempool._nonces
    assert not mempool._requeues
    for sender in range(3):
        assert mempool.next_nonce(testing.key(sender).address) == 0
        assert mempool.admit(paid(sender, 0))


def test_the_balance_that_admission_pretends_never_reaches_the_state(store: MemoryStore, mempool: Mempool) -> None:
    mempool.admit(paid(0, 0))
    mempool.admit(paid(0, 1))
    assert State(store).account(testing.key(0).address) == Account(0, testing.BALANCE_MICROCREDIT)
