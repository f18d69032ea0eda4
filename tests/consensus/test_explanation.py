# SPDX-License-Identifier: GPL-3.0-or-later
"""Explanations from the committed state against what executors knew at the time."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.executor import Executor
from consensus.explanation import MAX_RANKING, explain_miner, ranking
from consensus.reputation import Explanation
from contracts.shipped import MACHINES
from ledger import testing
from ledger.bodies import ReportMisbehaviour
from ledger.errors import InvalidInput
from ledger.lmdb_store import open_store
from ledger.memory_store import MemoryStore
from ledger.miners import MinerHistory
from ledger.state import OFFENCES, State
from ledger.store import Store
from tests.consensus.chains import KEYS, PARAMETERS, WANDERERS, ChainMaker, Step, number_of

GENESIS = testing.genesis(4, parameters=PARAMETERS)
KNOWN = [testing.key(number).public_key for number in range(WANDERERS + 1)]
"""All that mine or lead, and one that never does."""


def maker() -> ChainMaker:
    return ChainMaker(MemoryStore(GENESIS))


class Told:
    """What an executor said in each epoch while it ran."""

    def __init__(self, chain: ChainMaker) -> None:
        self._chain = chain
        self.reputations: list[dict[bytes, Explanation]] = []
        self.histories: list[dict[bytes, MinerHistory]] = []
        self.note()

    def note(self) -> None:
        standings = self._chain.executor.standings
        self.reputations.append({key: standings.explain(key) for key in KNOWN})
        self.histories.append({key: standings.history(key) for key in KNOWN})


def told(seed: int, steps: int) -> tuple[ChainMaker, Told]:
    chain, rng = maker(), random.Random(seed)
    notes = Told(chain)
    for _ in range(steps):
        if chain.take(chain.wander(rng)).epoch is not None:
            notes.note()
    return chain, notes


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_every_past_reputation_is_explained_as_it_was(seed: int) -> None:
    chain, notes = told(seed, 60)
    for epoch, reputations in enumerate(notes.reputations):
        for key, expected in reputations.items():
            found = explain_miner(chain.store, PARAMETERS, key, epoch)
            assert (found.public_key, found.epoch) == (key, epoch)
            assert found.reputation == expected
            history = notes.histories[epoch][key]
            assert found.history == history
            assert found.is_eligible == (history.is_honest and bool(history.keyblocks or history.external_nano))
            assert found.chunks == -(-epoch // PARAMETERS.reputation.chunk_keyblocks)
            since = [at for at in range(epoch + 1) if notes.histories[at][key] == history]
            if found.history_epoch is None:
                assert history == MinerHistory()
            else:
                assert found.history_epoch == min(at for at in since if set(range(at, epoch + 1)) <= set(since))


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_the_causes_of_a_change_add_up_to_it_and_are_what_happened(seed: int) -> None:
    chain, notes = told(seed, 60)
    for epoch in range(1, len(notes.reputations)):
        for key in KNOWN:
            change = explain_miner(chain.store, PARAMETERS, key, epoch).change
            before, after = notes.histories[epoch - 1][key], notes.histories[epoch][key]
            assert change is not None
            whole = [notes.reputations[at][key].reputation_nano for at in (epoch - 1, epoch)]
            assert change.reputation_nano == whole[1] - whole[0]
            parts = (change.chain_nano, change.keyblocks_nano, change.terms_nano, change.punishment_nano)
            assert sum(parts) == change.reputation_nano
            assert change.keyblocks == int(chain.epochs[epoch].record.miner == key)
            assert change.terms == after.terms - before.terms
            assert change.microblocks == after.microblocks - before.microblocks
            assert change.is_punished == (before.is_honest and not after.is_honest)
            # Only a cause that is there has a part in the change.
            assert change.keyblocks or change.keyblocks_nano == 0
            assert change.terms or change.terms_nano == 0
            assert change.is_punished or change.punishment_nano == 0
            if change.is_punished:
                assert change.punishment_nano <= 0


def test_a_keyblock_a_lost_term_and_an_offence_show_as_such() -> None:
    chain = maker()
    chain.pin(6)
    key = testing.key(6).public_key
    mined = explain_miner(chain.store, PARAMETERS, key, 1).change
    assert mined is not None
    assert (mined.keyblocks, mined.terms, mined.is_punished) == (1, 0, False)
    assert mined.keyblocks_nano > 0
    chain.take(Step(lost=6, reveal=True))
    chain.pin(0)
    lost = explain_miner(chain.store, PARAMETERS, key, 2).change
    assert lost is not None
    assert lost.terms >= 1
    assert lost.microblocks == 0
    assert lost.terms_nano < 0
    evidence = testing.votes_evidence(chain.chain_id, 6, chain.epoch.number)
    chain.extend(chain.signed(0, ReportMisbehaviour(evidence)))
    reported = explain_miner(chain.store, PARAMETERS, key, 2)
    # Proved, and not yet in force.
    assert reported.reputation.is_honest
    assert reported.is_eligible
    assert reported.offence == State(chain.store).get(OFFENCES, key)
    assert reported.offence is not None
    chain.pin(0)
    punished = explain_miner(chain.store, PARAMETERS, key, 3)
    assert punished.change is not None
    assert punished.change.is_punished
    assert punished.change.punishment_nano < 0
    assert (punished.reputation.reputation_nano, punished.is_eligible) == (0, False)
    # What it was before stays on the record.
    assert explain_miner(chain.store, PARAMETERS, key, 1).reputation.reputation_nano > 0


def test_who_never_mined_has_what_any_newcomer_has() -> None:
    chain = maker()
    chain.pin(0)
    found = explain_miner(chain.store, PARAMETERS, testing.key(50).public_key, 1)
    assert found.reputation.reputation_nano == chain.epoch.reputation_of(testing.key(50).public_key) > 0
    assert (found.history_epoch, found.is_eligible, found.offence) == (None, False, None)


def test_the_founding_epoch_has_no_change() -> None:
    chain = maker()
    found = explain_miner(chain.store, PARAMETERS, testing.key(0).public_key, 0)
    assert (found.change, found.history_epoch, found.chunks) == (None, 0, 0)
    assert found.reputation.external_nano == GENESIS.committee[0].external_nano


@pytest.mark.parametrize("epoch", [-1, 2, 2**63])
def test_an_epoch_that_has_not_begun_is_refused(epoch: int) -> None:
    chain = maker()
    chain.pin(0)
    with pytest.raises(InvalidInput, match=rf"epoch {epoch} has not begun; give one from 0 to 1"):
        explain_miner(chain.store, PARAMETERS, testing.key(0).public_key, epoch)


class Counted:
    """Counts what is read from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.entries = 0

    def get_state(self, key: bytes) -> bytes | None:
        self.entries += 1
        return self._store.get_state(key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        for entry in self._store.scan_state(prefix, start, limit):
            self.entries += 1
            yield entry


def test_an_explanation_reads_four_entries_however_long_the_chain_is() -> None:
    chain = maker()
    for _ in range(3):
        for _ in range(30):
            chain.pin(0)
        for epoch in (1, chain.epoch.number // 2, chain.epoch.number):
            reader = Counted(chain.store)
            explain_miner(reader, PARAMETERS, testing.key(0).public_key, epoch)
            assert reader.entries == 4


def test_the_store_on_disk_explains_alike(tmp_path: Path) -> None:
    chain, notes = told(5, 40)
    disk = open_store(tmp_path, GENESIS)
    chain.replay(disk)
    for epoch in range(len(notes.reputations)):
        for key in KNOWN:
            assert explain_miner(disk, PARAMETERS, key, epoch) == explain_miner(chain.store, PARAMETERS, key, epoch)
    disk.close()


# ---------------------------------------------------------------- ranking


def test_a_ranking_lists_all_that_may_sit_with_their_seats() -> None:
    parameters = msgspec.structs.replace(PARAMETERS, committee_size=3)
    chain = ChainMaker(MemoryStore(testing.genesis(4, parameters=parameters)))
    for miner in (0, 6, 6, 7, 2, 2):
        chain.pin(miner)
    ranked = ranking(chain.executor.standings, chain.epoch.committee, MAX_RANKING)
    assert {number_of(row.public_key) for row in ranked} == {0, 1, 2, 3, 6, 7}
    assert [row.reputation_nano for row in ranked] == sorted((row.reputation_nano for row in ranked), reverse=True)
    assert [row.seat for row in ranked] == [0, 1, 2, None, None, None]
    for row in ranked:
        assert row.reputation_nano == chain.epoch.reputation_of(row.public_key)
        assert row.history == chain.executor.standings.history(row.public_key)
    assert ranking(chain.executor.standings, chain.epoch.committee, 2) == ranked[:2]
    again = Executor(chain.store, MACHINES)
    assert ranking(again.standings, again.epoch.committee, KEYS) == ranked


@pytest.mark.parametrize("limit", [0, -1, MAX_RANKING + 1])
def test_a_ranking_is_bounded(limit: int) -> None:
    chain = maker()
    with pytest.raises(InvalidInput, match=f"a ranking of {limit} miners"):
        ranking(chain.executor.standings, chain.epoch.committee, limit)
