# SPDX-License-Identifier: GPL-3.0-or-later
"""The committed side of a chain: the same on every store, after every restart, and untouched by a write that fails."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.executor import Executor
from consensus.restart import decode_closing
from consensus.weight import certified_share_nano
from consensus.work import work_of
from contracts.shipped import MACHINES
from ledger import testing
from ledger.errors import StoreError
from ledger.genesis import Genesis, chain_id, genesis_block, genesis_seed
from ledger.lmdb_store import open_store
from ledger.memory_store import MemoryStore
from ledger.rules import DEVNET_PARAMETERS, REPUTATION_UNIT
from ledger.state import MINERS, PROGRESS, State
from ledger.store import Store
from tests.consensus.algorithm2 import exact
from tests.consensus.chains import EASY_WORK, KEYS, PARAMETERS, ChainMaker, Step, number_of

GENESIS = testing.genesis(4, parameters=PARAMETERS)
PUBLIC_KEYS = [testing.key(number).public_key for number in range(KEYS)]


def maker(genesis: Genesis = GENESIS) -> ChainMaker:
    return ChainMaker(MemoryStore(genesis))


def wandered(seed: int, steps: int, genesis: Genesis = GENESIS) -> ChainMaker:
    chain, rng = maker(genesis), random.Random(seed)
    for _ in range(steps):
        chain.take(chain.wander(rng))
    return chain


def facts(executor: Executor) -> dict[str, object]:
    """Return all that anybody asks of an executor."""
    epoch, standings = executor.epoch, executor.standings
    return {
        "epoch": (epoch.number, epoch.record, epoch.root, epoch.state_root, epoch.timestamps_ms, epoch.chain_id),
        "leaders": (epoch.first_round, epoch.first_term, epoch.fallback_seed, epoch.root_certificate),
        "committee": (epoch.committee.epoch, epoch.committee.members),
        "reputations": [(epoch.reputation_of(key), standings.explain(key)) for key in PUBLIC_KEYS],
        "standings": (standings.keyblocks, len(standings), standings.committee(KEYS)),
        "weight": executor.weight,
    }


def contents(store: Store) -> dict[bytes, bytes]:
    return dict(store.scan_state(b"", b"", 10**6))


@contextmanager
def lmdb_directory() -> Iterator[Path]:
    """A directory per example: hypothesis runs many within one test."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


# ---------------------------------------------------------------- restart


@settings(max_examples=12)
@given(st.integers(0, 2**32))
def test_killed_and_reopened_at_every_height_it_goes_on_like_one_that_lived_through(seed: int) -> None:
    """Both stores: the one in memory is taken up afresh, the one on disk is closed and opened."""
    chain, rng = maker(), random.Random(seed)
    memory = MemoryStore(GENESIS)
    with lmdb_directory() as directory:
        for _ in range(25):
            done = chain.take(chain.wander(rng))
            commit, transactions, batches = chain.commits[-1]
            disk = open_store(directory, GENESIS)
            for store in (memory, disk):
                store.put_batches(batches)
                executor = Executor(store, MACHINES)
                again = executor.commit(commit, transactions)
                assert (again.head, again.execution) == (done.head, done.execution)
                assert (again.epoch is None) == (done.epoch is None)
                assert facts(executor) == facts(chain.executor)
            disk.close()
            reopened = open_store(directory, GENESIS)
            for store in (memory, reopened):
                assert facts(Executor(store, MACHINES)) == facts(chain.executor)
            assert contents(reopened) == contents(chain.store)
            reopened.close()


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_digests_and_roots_are_equal_on_disk_and_in_memory(seed: int) -> None:
    """I6: also where an epoch began."""
    chain = wandered(seed, 30)
    with lmdb_directory() as directory:
        disk = open_store(directory, GENESIS)
        chain.replay(disk)
        assert disk.head() == chain.store.head()
        for height in range(disk.head().height + 1):
            assert disk.state_digest(height) == chain.store.state_digest(height)
            assert disk.root_at(height) == chain.store.root_at(height)
        kept = {height for height in range(disk.head().height + 1) if disk.root_at(height) is not None}
        assert kept == {epoch.record.root_height for epoch in chain.epochs}
        assert [disk.root_at(epoch.record.root_height) for epoch in chain.epochs] == [
            epoch.state_root for epoch in chain.epochs
        ]
        assert (disk.state_root(), disk.weight()) == (chain.store.state_root(), chain.store.weight())
        disk.close()


# ---------------------------------------------------------------- the founding epoch


def test_the_founding_committee_is_the_best_of_the_accredited() -> None:
    parameters = msgspec.structs.replace(PARAMETERS, committee_size=2)
    genesis = testing.genesis(4, parameters=parameters)
    ext = (3 * 10**8, 10**9, 1, 5 * 10**8)
    members = tuple(
        msgspec.structs.replace(member, external_nano=nano) for member, nano in zip(genesis.committee, ext, strict=True)
    )
    epoch = maker(msgspec.structs.replace(genesis, committee=members)).epoch
    rules = parameters.reputation
    newcomer = REPUTATION_UNIT * rules.flatness_keyblocks // (2 * (rules.flatness_keyblocks + rules.midpoint_keyblocks))
    seats = [(number_of(member.public_key), member.reputation_nano) for member in epoch.committee.members]
    assert seats == [(1, REPUTATION_UNIT), (3, 5 * 10**8 + newcomer)]


def test_the_founding_epoch_rests_on_the_genesis() -> None:
    chain = maker()
    epoch, digest = chain.epoch, chain.store.state_digest(0)
    assert digest is not None
    assert epoch.root == genesis_block(GENESIS, digest).header
    assert (epoch.number, epoch.record.root_round, epoch.first_round) == (0, 0, 1)
    assert epoch.record.keyblock == epoch.chain_id == chain_id(GENESIS)
    assert epoch.fallback_seed == genesis_seed(chain_id(GENESIS))
    assert epoch.state_root == chain.store.state_root()
    assert epoch.record.target == GENESIS.parameters.work.limit
    assert epoch.timestamps_ms == (GENESIS.timestamp_ms,)


# ---------------------------------------------------------------- checking keyblocks


def test_a_keyblock_is_checked_without_the_store_whatever_the_length_of_the_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Constant time: two hashes, two comparisons, one history of constant size, one signature; nothing of the chain is read."""
    chain, asked = wandered(5, 40), list[bytes]()
    signed, epoch = chain.mine(3), chain.epoch
    assert epoch.number > 8
    original = epoch.reputation_of

    def noted(public_key: bytes) -> int:
        asked.append(public_key)
        return original(public_key)

    monkeypatch.setattr(epoch, "reputation_of", noted)

    def deaf(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the store is read")

    for name in [name for name in vars(MemoryStore) if not name.startswith("_")]:
        monkeypatch.setattr(MemoryStore, name, deaf)
    epoch.check_keyblock(signed)
    assert asked == [testing.key(3).public_key]
    assert len(epoch.timestamps_ms) <= 11


# ---------------------------------------------------------------- failing writes


@pytest.mark.parametrize("miner", [None, 6])
def test_a_write_that_fails_changes_nothing_and_can_be_tried_again(miner: int | None) -> None:
    chain = wandered(3, 20)
    raws = (chain.pay(0, 1), chain.pay(2, 3))
    commit, batches = chain.next_commit(Step(raws, miner=miner))
    transactions = testing.check(chain.chain_id, raws)
    before, state = facts(chain.executor), contents(chain.store)
    epoch, head, weight = chain.epoch, chain.store.head(), chain.store.weight()
    for _ in range(2):
        with pytest.raises(StoreError, match="names batches that are not stored"):
            chain.executor.commit(commit, transactions)
        assert chain.epoch is epoch
        assert facts(chain.executor) == before
        assert contents(chain.store) == state
        assert (chain.store.head(), chain.store.weight()) == (head, weight)
    chain.store.put_batches(batches)
    done = chain.executor.commit(commit, transactions)
    assert done.head == chain.store.head()
    assert (done.epoch is None) == (miner is None)
    assert facts(Executor(chain.store, MACHINES)) == facts(chain.executor)


def test_a_store_without_what_its_epoch_began_with_is_refused() -> None:
    chain, state = maker(), State(MemoryStore(GENESIS))
    state.put(PROGRESS, b"", msgspec.structs.replace(state.progress(), epoch=1))
    update = testing.next_update(chain.store, [])
    chain.store.commit(msgspec.structs.replace(update, changes=state.changes()))
    with pytest.raises(StoreError, match="the store lacks how epoch 1 began"):
        Executor(chain.store, MACHINES)


@pytest.mark.parametrize(
    ("lost", "says"), [("root_at", "the root of the state after microblock"), ("microblock", "which the running epoch")]
)
def test_a_store_without_the_microblock_of_its_epoch_or_its_root_is_refused(
    monkeypatch: pytest.MonkeyPatch, lost: str, says: str
) -> None:
    chain = wandered(4, 20)
    assert chain.epoch.number > 0
    monkeypatch.setattr(MemoryStore, lost, lambda *_args: None)
    with pytest.raises(StoreError, match=f"the store lacks .*{says}.*; restore it"):
        Executor(chain.store, MACHINES)


# ---------------------------------------------------------------- what goes along


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_the_chains_weight_is_the_sum_over_its_keyblocks_and_certificates(seed: int) -> None:
    chain, rng, rules = maker(), random.Random(seed), PARAMETERS.weight
    settled, work, shares = 0, work_of(int.from_bytes(PARAMETERS.work.limit, "big")), 0

    def certified() -> int:
        counted = min(rules.certified_cap * REPUTATION_UNIT, shares * rules.microblock_nano // REPUTATION_UNIT)
        return work * counted // REPUTATION_UNIT

    assert chain.executor.weight == 0
    for _ in range(40):
        committee = chain.epoch.committee
        chain.take(chain.wander(rng))
        commit = chain.commits[-1][0]
        shares += certified_share_nano(committee, commit.block.certificate)
        keyblock = commit.signed.microblock.keyblock
        if keyblock is not None:
            own_work = work_of(int.from_bytes(keyblock.keyblock.target, "big"))
            settled, work, shares = settled + certified() + own_work, own_work, 0
        assert chain.executor.weight == settled + certified()


def test_the_weight_counts_who_really_signed() -> None:
    lazy, full = maker(), maker()
    lazy.take(Step())
    full.take(Step(voters=tuple(range(len(full.epoch.committee.members)))))
    assert full.store.head().block_hash == lazy.store.head().block_hash
    assert full.executor.weight > lazy.executor.weight


def test_what_made_the_end_of_an_epoch_final_is_kept_with_it() -> None:
    chain = wandered(11, 30)
    heights = {epoch.record.root_height for epoch in chain.epochs[1:]}
    assert heights, "the chain pins"
    for commit, _, _ in chain.commits:
        raw, header = chain.store.closing(commit.block_hash), commit.signed.microblock.header
        assert (raw is not None) == (header.height in heights)
        if raw is not None:
            assert decode_closing(raw) == commit.closing
            assert commit.closing[0].signed.microblock.header.parent == commit.block_hash


def test_the_head_counts_what_took_effect() -> None:
    chain = maker()
    member, patient = testing.key(0), testing.key(20)
    institution = testing.register_institution(chain.chain_id, member)
    registered = testing.register_patient(chain.chain_id, member, patient, 1)
    record = testing.commit_record(chain.chain_id, member, patient, member.address, 2)
    late = testing.transfer(chain.chain_id, member, patient.address, 1, nonce=9)
    chain.extend(institution, registered, record, late)
    assert (chain.store.head().transaction_count, chain.store.head().record_count) == (3, 1)
    chain.pin(0, testing.transfer(chain.chain_id, member, patient.address, 1, nonce=3))
    assert (chain.store.head().transaction_count, chain.store.head().record_count) == (4, 1)


# ---------------------------------------------------------------- how reputation grows

GROWTH = msgspec.structs.replace(DEVNET_PARAMETERS, work=EASY_WORK)
"""The devnet's rules, with keyblocks that are found at once."""


def test_sixty_per_cent_of_the_power_gain_reputation_only_as_the_formula_says() -> None:
    """300 keyblocks at random; after each one every miner's R against exact fractions, and against what keyblocks can buy."""
    chain, rng, strong = maker(testing.genesis(4, parameters=GROWTH)), random.Random(6), 3
    rules, found = GROWTH.reputation, {number: list[int]() for number in range(4)}
    start = {number: chain.epoch.reputation_of(testing.key(number).public_key) for number in range(4)}
    for position in range(300):
        miner = strong if rng.random() < 0.6 else rng.randrange(3)
        chain.pin(miner)
        found[miner].append(position)
        for number, positions in found.items():
            reputation = chain.epoch.reputation_of(testing.key(number).public_key)
            expected = exact(positions, [], position + 1, GROWTH.term_microblocks, rules, Fraction(1, 2))
            assert abs(Decimal(reputation) - expected * REPUTATION_UNIT) <= 2
            bought = Fraction(len(positions) * REPUTATION_UNIT, 2 * rules.flatness_keyblocks)
            assert reputation - start[number] <= bought + 2
    assert all(history.terms == 0 for _, history in State(chain.store).entries(MINERS)), "each epoch cut its term short"
    assert chain.epoch.committee.members[0].public_key == testing.key(strong).public_key


def test_a_stranger_with_sixty_per_cent_does_not_sit_before_its_keyblocks_weigh_up_accreditation() -> None:
    parameters = msgspec.structs.replace(GROWTH, committee_size=4)
    chain, rng, rules, won = (
        maker(testing.genesis(4, parameters=parameters)),
        random.Random(7),
        parameters.reputation,
        0,
    )
    for _ in range(40):
        chain.pin(rng.randrange(4))
    for _ in range(100):
        attacks = rng.random() < 0.6
        won += attacks
        chain.pin(9 if attacks else rng.randrange(4))
        assert chain.epoch.committee.index_of(testing.key(9).address) is None
    # f(won) in exact fractions, with no irregularity taken off; below a, so that |x − a| = a − x.
    distance = won - rules.midpoint_keyblocks
    assert 50 < won < rules.midpoint_keyblocks
    most = (1 + Fraction(distance, rules.flatness_keyblocks - distance)) / 2
    assert chain.epoch.reputation_of(testing.key(9).public_key) <= most * REPUTATION_UNIT < REPUTATION_UNIT // 2
