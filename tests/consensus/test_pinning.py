# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pinned keyblock does: fees, reward, histories, committee, target; each against a plain model."""

import random
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.epoch import Basis, Chain, Epoch
from consensus.events import Commit
from consensus.executor import Executor
from consensus.pinning import MOST_MINTED_MICROCREDIT, creator_positions, pin
from contracts.batch_data import BatchItem, commit, open_data, prove_leaf
from contracts.machines.micro_fees import MicroFeesParameters
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import Microblock, SignedKeyblock, keyblock_hash
from ledger.bodies import ReportMisbehaviour, Transfer
from ledger.codec import encode
from ledger.contract_bodies import ChallengeBatch, CommitBatch, OpenContract
from ledger.contract_state import contract_id_of
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of
from ledger.genesis import Allocation, Genesis
from ledger.memory_store import MemoryStore
from ledger.miners import MEDIAN_KEYBLOCKS, inverted
from ledger.offchain import WrongExecution
from ledger.rules import REPUTATION_UNIT, Parameters, WorkRules
from ledger.state import CONTRACTS, EPOCHS, FEES, MINER_VERSIONS, MINERS, OFFENCES, State
from ledger.transactions import CheckedTransaction
from tests.consensus.chains import EASY_WORK, PARAMETERS, ChainMaker, Step, number_of

REWARD = PARAMETERS.keyblock_reward_microcredit
PENALTY = PARAMETERS.false_evidence_microcredit


def maker(members: int = 4, parameters: Parameters = PARAMETERS) -> ChainMaker:
    return ChainMaker(MemoryStore(testing.genesis(members, parameters=parameters)))


def pinned(chain: ChainMaker) -> SignedKeyblock:
    keyblock = chain.commits[-1][0].signed.microblock.keyblock
    assert keyblock is not None
    return keyblock


def report(chain: ChainMaker, offender: int, sender: int = 5) -> bytes:
    evidence = testing.votes_evidence(chain.chain_id, offender, chain.epoch.number)
    return chain.signed(sender, ReportMisbehaviour(evidence))


def seated(chain: ChainMaker) -> set[int]:
    return {number_of(member.public_key) for member in chain.epoch.committee.members}


# ---------------------------------------------------------------- credits


class Books:
    """All balances, by a plain reading of the rules."""

    def __init__(self, genesis: Genesis) -> None:
        self.balances = defaultdict[bytes, int](int)
        for allocation in genesis.allocations:
            self.balances[allocation.account] = allocation.balance_microcredit
        self.fees: list[tuple[bytes, int]] = []
        self.creator: SignedKeyblock | None = None

    def take(self, commit: Commit, transactions: Sequence[CheckedTransaction], store: MemoryStore) -> None:
        block = commit.signed.microblock
        self.fees.append((block.header.leader, self._pay(transactions, store)))
        if block.keyblock is not None:
            self._end(block)

    def _pay(self, transactions: Sequence[CheckedTransaction], store: MemoryStore) -> int:
        fees = 0
        for checked in transactions:
            receipt, body = store.receipt(checked.id), checked.transaction.body
            assert receipt is not None
            if receipt.reason not in ("", "false_evidence"):
                continue
            fees += checked.transaction.fee_microcredit
            self.balances[checked.sender] -= checked.transaction.fee_microcredit
            if isinstance(body, Transfer):
                self.balances[checked.sender] -= body.amount_microcredit
                self.balances[body.recipient] += body.amount_microcredit
            elif receipt.reason:
                self.balances[checked.sender] -= PENALTY
        return fees

    def _end(self, block: Microblock) -> None:
        count, theirs = len(self.fees), set[int]()
        if self.creator is not None:
            start = int.from_bytes(tagged_hash(Tag.FEE_START, self.creator.signature), "big")
            share = Fraction(self.creator.keyblock.reputation_nano, REPUTATION_UNIT) * count
            theirs = {(start + k) % count for k in range(count) if k < share}
        for position, (leader, fees) in enumerate(self.fees):
            creators = self.creator is not None and position in theirs
            self.balances[address_of(self.creator.keyblock.miner) if creators and self.creator else leader] += fees
        assert block.keyblock is not None
        self.balances[address_of(block.keyblock.keyblock.miner)] += REWARD
        self.fees, self.creator = [], block.keyblock


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_every_balance_is_what_the_papers_rule_gives_and_credits_are_conserved(seed: int) -> None:
    """I7 after every microblock: minted − burnt = Σ balances + fees in flight."""
    chain, rng = maker(), random.Random(seed)
    books, accounts = Books(chain.store.genesis), {testing.key(number).address for number in range(64)}
    for _ in range(40):
        chain.take(chain.wander(rng))
        commit, transactions, _ = chain.commits[-1]
        assert isinstance(chain.store, MemoryStore)
        books.take(commit, transactions, chain.store)
        state = State(chain.store)
        balances = {account: state.account(account).balance_microcredit for account in accounts}
        assert balances == {account: books.balances[account] for account in accounts}
        supply = state.supply()
        in_flight = sum(fees for _, fees in books.fees)
        assert supply.fees_in_flight_microcredit == in_flight
        held = supply.contracts_microcredit
        assert held == sum(row.bond_microcredit + row.escrow_microcredit for _, row in state.entries(CONTRACTS))
        assert supply.minted_microcredit - supply.burnt_microcredit == sum(balances.values()) + held + in_flight


def balance(chain: ChainMaker, address: bytes) -> int:
    return State(chain.store).account(address).balance_microcredit


def begun_by(reputation_nano: int, fee_start: bytes = bytes(32)) -> Epoch:
    """An epoch whose keyblock states this reputation and whose signature hashes to this start."""
    founding = maker().epoch
    record = msgspec.structs.replace(founding.record, reputation_nano=reputation_nano, fee_start=fee_start)
    chain = Chain(founding.chain_id, founding.parameters)
    return Epoch(chain, Basis(1, record, founding.root, founding.state_root, founding.timestamps_ms), lambda _key: 0)


@settings(max_examples=200)
@given(st.integers(0, REPUTATION_UNIT), st.integers(1, 60), st.binary(min_size=64, max_size=64))
def test_the_creators_microblocks_are_those_that_the_paper_names(reputation: int, count: int, signature: bytes) -> None:
    """i' = H(K_sig) mod n, and (i' + k) mod n for every k < R · n; nothing is rounded away."""
    epoch = begun_by(reputation, tagged_hash(Tag.FEE_START, signature))
    first = int.from_bytes(tagged_hash(Tag.FEE_START, signature), "big") % count
    named = [(first + k) % count for k in range(count) if k < Fraction(reputation, REPUTATION_UNIT) * count]
    start, share = creator_positions(epoch, count)
    assert [(start + k) % count for k in range(share)] == named


@pytest.mark.parametrize(
    ("reputation", "count", "share"),
    [(0, 9, 0), (1, 9, 1), (5 * 10**8, 3, 2), (5 * 10**8, 4, 2), (333_333_334, 3, 2), (10**9, 7, 7), (10**9 - 1, 7, 7)],
)
def test_how_many_microblocks_a_creator_gets(reputation: int, count: int, share: int) -> None:
    assert creator_positions(begun_by(reputation), count)[1] == share


def test_a_creator_of_reputation_one_gets_all_fees_and_the_leaders_those_of_the_founding_epoch() -> None:
    genesis = testing.genesis(4, parameters=PARAMETERS)
    accredited = tuple(msgspec.structs.replace(member, external_nano=REPUTATION_UNIT) for member in genesis.committee)
    chain = ChainMaker(MemoryStore(msgspec.structs.replace(genesis, committee=accredited)))
    chain.extend(chain.pay(5, 6, fee_microcredit=1000))
    leader = chain.commits[-1][0].signed.microblock.header.leader
    creator = next(number for number in range(4) if testing.key(number).address != leader)
    before = balance(chain, leader)
    chain.pin(creator)
    assert balance(chain, leader) == before + 1000
    assert chain.epoch.record.reputation_nano == REPUTATION_UNIT
    for _ in range(5):
        chain.extend(chain.pay(5, 6, fee_microcredit=1000))
    before = balance(chain, testing.key(creator).address)
    chain.pin(7)
    assert balance(chain, testing.key(creator).address) == before + 5000


def test_rows_of_an_older_epoch_are_void() -> None:
    chain = maker()
    for _ in range(6):
        chain.extend(chain.pay(5, 6, fee_microcredit=1000))
    chain.pin(0)
    total = sum(balance(chain, testing.key(number).address) for number in range(64))
    for _ in range(7):
        chain.extend()
    chain.pin(0)
    assert len(dict(State(chain.store).entries(FEES))) == 6
    assert sum(balance(chain, testing.key(number).address) for number in range(64)) == total + REWARD


def test_minting_ends_before_sums_outgrow_63_bits() -> None:
    genesis = testing.genesis(4, parameters=PARAMETERS)
    known = sum(allocation.balance_microcredit for allocation in genesis.allocations)
    rest = MOST_MINTED_MICROCREDIT - known - 2 * REWARD - 1
    genesis = msgspec.structs.replace(
        genesis, allocations=(*genesis.allocations, Allocation(testing.key(40).address, rest))
    )
    chain = ChainMaker(MemoryStore(genesis))
    minted = []
    for _ in range(4):
        chain.pin(0)
        minted.append(State(chain.store).supply().minted_microcredit)
    assert minted == [MOST_MINTED_MICROCREDIT - REWARD - 1, *[MOST_MINTED_MICROCREDIT - 1] * 3]


# ---------------------------------------------------------------- the next epoch


def test_the_record_says_how_the_epoch_began() -> None:
    chain = maker()
    chain.extend()
    done = chain.pin(6)
    header, signed = chain.commits[-1][0].signed.microblock.header, pinned(chain)
    record = State(chain.store).get(EPOCHS, (1).to_bytes(8, "big"))
    assert record is not None
    assert done.epoch is not None
    assert done.epoch.record == record
    assert (record.keyblock, record.root_hash) == (keyblock_hash(signed.keyblock), done.head.block_hash)
    assert (record.root_height, record.timestamp_ms) == (header.height, signed.keyblock.timestamp_ms)
    assert (record.miner, record.reveal_key) == (testing.key(6).public_key, testing.reveal_keys(6)[1])
    assert record.reputation_nano == signed.keyblock.reputation_nano
    cap = PARAMETERS.term_microblocks
    assert record.root_round + 1 == done.epoch.first_round == (header.round // cap + 1) * cap
    progress = State(chain.store).progress()
    assert (progress.epoch, progress.microblocks, progress.round) == (1, 0, record.root_round)
    assert (progress.leader, progress.seed, progress.term_microblocks) == (bytes(20), header.seed, 0)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_the_committee_is_what_the_rows_of_all_miners_give(seed: int) -> None:
    """Seats, reputations and versions from the stored rows alone, after each keyblock."""
    parameters = msgspec.structs.replace(PARAMETERS, committee_size=3)
    chain, rng = maker(parameters=parameters), random.Random(seed)
    for _ in range(50):
        number = chain.epoch.number
        chain.take(chain.wander(rng))
        if chain.epoch.number == number:
            continue
        rows = dict(State(chain.store).entries(MINERS))
        fresh = Executor(chain.store, MACHINES).standings
        best = fresh.committee(3)
        if best:
            assert chain.epoch.committee.members == best
        for key, history in rows.items():
            assert chain.executor.standings.history(key) == history
            versions = State(chain.store).entries(MINER_VERSIONS)
            newest = next((row for at, row in versions if at.startswith(key)), None)
            assert newest == history, "versions of a key come newest first"


def test_an_offender_sits_until_the_next_epoch_and_never_again() -> None:
    chain = maker()
    offender = testing.key(1).public_key
    chain.extend(report(chain, 1))
    assert seated(chain) == {0, 1, 2, 3}
    assert chain.epoch.reputation_of(offender) > 0
    chain.pin(1)
    assert seated(chain) == {0, 2, 3}
    assert chain.epoch.reputation_of(offender) == 0
    history = State(chain.store).get(MINERS, offender)
    assert history is not None
    # Its keyblock counts, and helps nothing.
    assert (history.keyblocks, history.is_honest) == (1, False)
    for _ in range(3):
        chain.pin(1)
        assert seated(chain) == {0, 2, 3}


def test_a_report_in_the_very_microblock_that_pins_counts_at_once() -> None:
    chain = maker()
    chain.pin(0, report(chain, 2))
    assert seated(chain) == {0, 1, 3}


def convict(chain: ChainMaker, operator: int) -> None:
    """Have an operator commit a batch with a request that nobody has signed, and somebody prove it."""
    key = testing.key(operator)
    identifier = contract_id_of(key.public_key, 0)
    terms = OpenContract(
        0, "micro_fees", 1, encode(MicroFeesParameters(1)), PARAMETERS.contracts.minimum_bond_microcredit
    )
    chain.extend(chain.signed(operator, terms))
    contract = State(chain.store).get(CONTRACTS, identifier)
    assert contract is not None
    time_ms = contract.until_ms
    item = BatchItem(b"nonsense", time_ms, 1, identifier, identifier)
    commitment, raw = commit(identifier, 0, contract.root, time_ms, time_ms, [item], ())
    chain.extend(chain.signed(operator, CommitBatch(commitment)))
    proof = WrongExecution(item.request, None, prove_leaf(open_data(commitment, raw), 0), ())
    chain.extend(chain.signed(6, ChallengeBatch(identifier, 0, proof)))
    assert State(chain.store).get(OFFENCES, key.public_key) is not None


def test_a_fraudulent_operator_loses_its_seat_and_who_has_none_never_gets_one() -> None:
    chain = maker()
    for operator in (1, 9):
        convict(chain, operator)
    assert seated(chain) == {0, 1, 2, 3}
    chain.pin(9)
    assert seated(chain) == {0, 2, 3}
    for operator in (1, 9):
        history = State(chain.store).get(MINERS, testing.key(operator).public_key)
        assert history is not None
        assert not history.is_honest
        assert chain.epoch.reputation_of(testing.key(operator).public_key) == 0
    chain.pin(9)
    assert seated(chain) == {0, 2, 3}
    other = MemoryStore(chain.store.genesis)
    chain.replay(other)
    assert other.state_root() == chain.store.state_root()


def test_a_convict_that_never_mined_has_no_history_that_a_restart_would_trip_over() -> None:
    chain = maker()
    before = {key for key, _ in State(chain.store).entries(MINERS)}
    for operator in (7, 8, 9):
        convict(chain, operator)
    chain.pin(0)
    assert {key for key, _ in State(chain.store).entries(MINERS)} == before
    again = Executor(chain.store, MACHINES)
    reputations = {key: again.standings.reputation_nano(key) for key in before}
    assert reputations == {key: chain.epoch.reputation_of(key) for key in before}


def test_when_nobody_is_eligible_the_old_committee_goes_on_with_its_old_weights() -> None:
    chain = maker()
    old = chain.epoch.committee
    chain.extend(*(report(chain, number) for number in range(4)))
    for epoch in range(1, 4):
        chain.pin(0)
        assert chain.executor.standings.committee(64) == ()
        assert chain.epoch.committee.members == old.members
        assert chain.epoch.committee.epoch == epoch
    chain.pin(7)
    assert seated(chain) == {7}
    chain.extend()


def test_only_changed_histories_get_a_version() -> None:
    chain = maker()
    chain.extend()
    chain.pin(6)
    versions = [key for key, _ in State(chain.store).entries(MINER_VERSIONS)]
    founding = {testing.key(number).public_key + inverted(0) for number in range(4)}
    assert set(versions) == founding | {testing.key(6).public_key + inverted(1)}


# ---------------------------------------------------------------- targets and times


def test_targets_follow_windows_that_share_their_ends() -> None:
    parameters = msgspec.structs.replace(PARAMETERS, work=WorkRules(EASY_WORK.limit, 15_000, 3))
    chain = maker(parameters=parameters)
    start, limit = chain.store.genesis.timestamp_ms, int.from_bytes(EASY_WORK.limit, "big")
    # A fast window, one at twice the wanted speed, one far too slow, a fast one again.
    spans_ms = [9_000, 12_000, 1_000, 8_000, 9_000, 5_500, 600_000, 700_000, 900_000, 1_500, 5_000, 1_000]
    target, times = limit, [start]
    for place, span_ms in enumerate(spans_ms, 1):
        times.append(times[-1] + span_ms)
        chain.take(Step(miner=place % 4, mined_ms=times[-1], later_ms=10))
        if place % 3 == 0:
            ratio = Fraction(times[place] - times[place - 3], 3 * 15_000)
            target = min(limit, int(target * min(max(ratio, Fraction(1, 4)), Fraction(4))))
        assert int.from_bytes(chain.epoch.record.target, "big") == target
        progress = State(chain.store).progress()
        assert progress.window_keyblocks == place % 3
        assert progress.window_start_ms == times[place // 3 * 3]
    assert target < limit


def test_the_last_eleven_times_are_kept() -> None:
    chain = maker()
    times = [chain.store.genesis.timestamp_ms]
    for _ in range(15):
        chain.pin(0)
        times.append(pinned(chain).keyblock.timestamp_ms)
        assert chain.epoch.timestamps_ms == tuple(times[-MEDIAN_KEYBLOCKS:])


def test_a_microblock_that_is_not_accounted_for_is_our_own_bug() -> None:
    chain = maker()
    commit, _ = chain.next_commit(Step(miner=0))
    block = commit.signed.microblock
    assert block.keyblock is not None
    with pytest.raises(AssertionError, match="accounted for"):
        pin(State(chain.store), chain.executor.standings, chain.epoch, block.header, commit.block_hash, block.keyblock)
