# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of an epoch against a replay that walks through its terms one by one."""

import random
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.accounting import account_microblock
from consensus.epoch import Epoch
from ledger import testing
from ledger.blocks import Microblock, MicroblockHeader
from ledger.memory_store import MemoryStore
from ledger.miners import MicroblockFees, TermTally
from ledger.state import FEES, MINERS, TALLIES, State
from tests.consensus.chains import PARAMETERS, ChainMaker, Step

CAP = PARAMETERS.term_microblocks
NONE = TermTally(0, 0, 0)


def maker(cap: int = CAP, members: int = 4) -> ChainMaker:
    parameters = msgspec.structs.replace(PARAMETERS, term_microblocks=cap)
    return ChainMaker(MemoryStore(testing.genesis(members, parameters=parameters)))


def outcomes(epoch: Epoch, blocks: Sequence[Microblock]) -> dict[bytes, list[int]]:
    """Return m_j of every finished term, by the leader's key: the terms of the epoch one by one, each by its own microblocks."""
    cap = epoch.parameters.term_microblocks
    found: dict[bytes, list[int]] = defaultdict(list)
    parent: MicroblockHeader | None = None
    for term in range(epoch.first_term, blocks[-1].header.term + 1):
        inside = [block.header for block in blocks if block.header.term == term]
        if inside:
            leader = epoch.committee.index_of(inside[0].leader)
            if inside[-1].round == term * cap + cap - 1:
                count = cap
            elif term == blocks[-1].header.term:
                break  # nobody has ended it
            else:
                count = len(inside)
            parent = inside[-1]
        else:
            count = 0
            leader = epoch.successor(term, parent) if parent is not None else epoch.opener(term, None)
        if leader is not None:
            found[epoch.committee.members[leader].public_key].append(count)
    return found


def tally(counts: Sequence[int]) -> TermTally:
    return TermTally(len(counts), sum(counts), sum(count * count for count in counts))


def tallies_of(chain: ChainMaker) -> dict[bytes, TermTally]:
    state = State(chain.store)
    return dict(state.entries(TALLIES))


def blocks_of(chain: ChainMaker, number: int) -> list[Microblock]:
    blocks = [commit.signed.microblock for commit, _, _ in chain.commits]
    return [block for block in blocks if block.header.epoch == number]


def head_leader(chain: ChainMaker) -> bytes:
    return chain.commits[-1][0].signed.microblock.header.leader


def key_of(chain: ChainMaker, address: bytes) -> bytes:
    return next(m.public_key for m in chain.epoch.committee.members if m.address == address)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 7]), st.integers(1, 5))
def test_terms_are_counted_as_a_walk_through_them_counts_them(seed: int, cap: int, members: int) -> None:
    """After every microblock the tallies, and after every epoch the histories, are those of the walk."""
    chain, rng = maker(cap, members), random.Random(seed)
    total: dict[bytes, list[int]] = defaultdict(list)
    for _ in range(40):
        epoch, before = chain.epoch, State(chain.store)
        histories = dict(before.entries(MINERS))
        chain.take(chain.wander(rng))
        expected = outcomes(epoch, blocks_of(chain, epoch.number))
        if chain.epoch is epoch:
            assert tallies_of(chain) == {key: tally(counts) for key, counts in expected.items()}
            assert dict(State(chain.store).entries(MINERS)) == histories
            continue
        assert tallies_of(chain) == {}
        for key, counts in expected.items():
            total[key].extend(counts)
        for key, history in State(chain.store).entries(MINERS):
            assert TermTally(history.terms, history.microblocks, history.microblock_squares) == tally(total[key])


def test_a_full_term_counts_with_its_last_microblock_also_when_that_ends_the_epoch() -> None:
    chain = maker()
    chain.extend()
    leader = key_of(chain, head_leader(chain))
    chain.extend()
    assert tallies_of(chain) == {}
    chain.pin(0)
    # Round 3 is the last one of term 0, whose first place the genesis has.
    assert chain.commits[-1][0].signed.microblock.header.round == CAP - 1
    history = chain.executor.standings.history(leader)
    assert (history.terms, history.microblocks, history.microblock_squares) == (1, CAP, CAP**2)


def test_a_term_that_the_epochs_end_cuts_short_counts_for_nobody() -> None:
    chain = maker()
    chain.extend()
    chain.pin(0)
    assert all(history.terms == 0 for _, history in State(chain.store).entries(MINERS))
    chain.extend()
    assert tallies_of(chain) == {}


def test_a_term_that_ran_out_counts_with_what_was_committed_and_each_lost_turn_with_nothing() -> None:
    chain = maker()
    chain.extend()
    chain.extend()
    started = key_of(chain, head_leader(chain))
    # The parent's own term, and two more, run out.
    chain.take(Step(lost=3))
    counted = tallies_of(chain)
    assert counted.pop(started) == TermTally(1, 2, 4)
    assert list(counted.values()) == [TermTally(1, 0, 0)] * 2


@pytest.mark.parametrize("reveal", [True, False])
def test_a_creator_that_reveals_too_late_harms_nobody(reveal: bool) -> None:
    """Whom the seed draws could not lead without the reveal; on an idle network one lost term would take all that it has earned."""
    chain = maker()
    chain.pin(0)
    chain.take(Step(lost=1, reveal=reveal))
    assert tallies_of(chain) == {}


@pytest.mark.parametrize("reveal", [True, False])
def test_after_the_first_lost_term_of_an_epoch_each_is_that_of_who_follows_in_the_fallback_order(reveal: bool) -> None:
    chain = maker()
    chain.pin(0)
    epoch = chain.epoch
    seconds = [epoch.opener(epoch.first_term + lost, None) for lost in (1, 2)]
    chain.take(Step(lost=3, reveal=reveal))
    assert tallies_of(chain) == {
        epoch.committee.members[i].public_key: TermTally(1, 0, 0) for i in seconds if i is not None
    }


def test_progress_tells_place_seed_leader_and_round() -> None:
    chain = maker()
    chain.extend()
    chain.take(Step(lost=1))
    chain.extend()
    header = chain.commits[-1][0].signed.microblock.header
    progress = State(chain.store).progress()
    assert (progress.epoch, progress.microblocks, progress.round) == (0, 3, header.round)
    assert (progress.leader, progress.seed, progress.term_microblocks) == (header.leader, header.seed, 2)


def test_fees_are_noted_by_place_and_only_where_there_are_any() -> None:
    chain = maker()
    chain.extend(chain.pay(0, 1, fee_microcredit=500), chain.pay(1, 2, fee_microcredit=700))
    first = head_leader(chain)
    chain.extend()
    chain.take(Step((chain.pay(2, 3, fee_microcredit=900),), lost=1))
    rows = dict(State(chain.store).entries(FEES))
    assert rows == {
        (0).to_bytes(8, "big"): MicroblockFees(0, first, 1200),
        (2).to_bytes(8, "big"): MicroblockFees(0, head_leader(chain), 900),
    }


def test_a_microblock_of_another_epoch_or_an_earlier_round_is_our_own_bug() -> None:
    chain = maker()
    chain.extend()
    header = chain.commits[-1][0].signed.microblock.header
    with pytest.raises(AssertionError, match="rounds rise"):
        account_microblock(State(chain.store), chain.epoch, header, 0)
    foreign = msgspec.structs.replace(header, epoch=1, round=header.round + 1)
    with pytest.raises(AssertionError, match="in their epoch"):
        account_microblock(State(chain.store), chain.epoch, foreign, 0)
