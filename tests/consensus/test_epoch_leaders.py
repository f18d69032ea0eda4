# SPDX-License-Identifier: GPL-3.0-or-later
"""Who leads an epoch, and whose turns were lost: `Epoch` against step-by-step enumeration, and the fairness of its draws."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.election import Schedule, next_seed, opened_term, reveal
from consensus.epoch import Basis, Chain, Epoch
from ledger import testing
from ledger.blocks import MicroblockHeader
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.genesis import genesis_block
from ledger.miners import EpochRecord, Seat
from ledger.rules import REPUTATION_UNIT
from tests.consensus.chains import PARAMETERS

CAP = PARAMETERS.term_microblocks
ROOT = genesis_block(testing.genesis(), ZERO_DIGEST).header
KEYBLOCK = bytes([7]) * 32
CREATOR = 3
REVEAL = reveal(testing.reveal_keys(CREATOR)[0], ROOT.seed, KEYBLOCK)
WEIGHTS = st.lists(st.integers(1, REPUTATION_UNIT), min_size=1, max_size=7)


def epoch_of(number: int, weights: list[int], root_round: int = 39) -> Epoch:
    """An epoch whose members have these reputations; `testing.key(CREATOR)` has mined its keyblock."""
    record = EpochRecord(
        keyblock=KEYBLOCK,
        root_height=5 if number else 0,
        root_hash=bytes([8]) * 32,
        root_round=root_round if number else 0,
        miner=testing.key(CREATOR).public_key if number else b"",
        reveal_key=testing.reveal_keys(CREATOR)[1] if number else b"",
        reputation_nano=weights[0],
        fee_start=ZERO_DIGEST,
        target=PARAMETERS.work.limit,
        timestamp_ms=ROOT.timestamp_ms,
        seats=tuple(Seat(testing.key(index).public_key, weight) for index, weight in enumerate(weights)),
    )
    basis = Basis(number, record, ROOT, ZERO_DIGEST, (ROOT.timestamp_ms,))
    return Epoch(Chain(bytes(32), PARAMETERS), basis, lambda _key: 0)


def header_at(epoch: Epoch, round_: int, leader: int, *, revealed: bool = True) -> MicroblockHeader:
    """A microblock of the epoch."""
    seed = epoch.opening_seed(REVEAL if revealed and epoch.number else None)
    address = epoch.committee.members[leader].address
    return msgspec.structs.replace(
        ROOT, epoch=epoch.number, term=round_ // CAP, round=round_, seed=seed, leader=address
    )


# ---------------------------------------------------------------- fairness


@pytest.mark.parametrize("weights", [[60, 20, 10, 10], [15, 10, 10, 9, 8, 7, 6, 6, 5, 4, 3, 3, 3], [10**9, 1, 10**9]])
def test_over_100_000_terms_each_member_leads_its_share_within_one_per_cent(weights: list[int]) -> None:
    epoch, led = epoch_of(4, weights), Counter[int]()
    parent = header_at(epoch, epoch.first_round + CAP - 1, 0)
    for _ in range(100_000):
        term = parent.term + 1
        leader = epoch.successor(term, parent)
        led[leader] += 1
        # The term ends well: its last microblock is the next one's parent.
        parent = msgspec.structs.replace(parent, term=term, round=term * CAP + CAP - 1)
    counted = [led[index] / 100_000 for index in range(len(weights))]
    assert counted == pytest.approx([weight / sum(weights) for weight in weights], abs=0.01)


def test_over_many_epochs_each_member_opens_its_share_within_one_per_cent() -> None:
    """The draw of an opening rests on a seed of its own: a fresh one for each reveal."""
    weights, opened = [50, 30, 15, 5], Counter[int]()
    epoch = epoch_of(4, weights)
    for number in range(100_000):
        opener = epoch.opener(epoch.first_term, number.to_bytes(96, "big"))
        assert opener is not None
        opened[opener] += 1
    counted = [opened[index] / 100_000 for index in range(len(weights))]
    assert counted == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.01)


# ---------------------------------------------------------------- openings


@given(WEIGHTS, st.integers(1, 100))
def test_an_opening_is_led_by_whom_only_the_reveal_names(weights: list[int], number: int) -> None:
    epoch = epoch_of(number, weights)
    assert epoch.opener(epoch.first_term, None) is None
    drawn = Schedule(next_seed(ROOT.seed, KEYBLOCK, REVEAL), epoch.committee.members).drawn(epoch.first_term)
    assert epoch.opener(epoch.first_term, REVEAL) == drawn


@given(WEIGHTS)
def test_after_a_lost_first_term_all_members_may_open_in_turn_with_or_without_the_reveal(weights: list[int]) -> None:
    epoch = epoch_of(2, weights)
    terms = range(epoch.first_term + 1, epoch.first_term + 1 + len(weights))
    openers = [epoch.opener(term, None) for term in terms]
    assert sorted(index for index in openers if index is not None) == list(range(len(weights)))
    assert openers == [epoch.opener(term, REVEAL) for term in terms]


@given(WEIGHTS, st.integers(0, 20))
def test_the_founding_epoch_opens_by_the_ordinary_rule(weights: list[int], term: int) -> None:
    epoch = epoch_of(0, weights)
    assert epoch.opener(term, None) == Schedule(ROOT.seed, epoch.committee.members).leader(term, 0, None)


@given(WEIGHTS, st.integers(0, 2**20))
def test_an_epoch_starts_with_a_fresh_term_behind_its_root(weights: list[int], term: int) -> None:
    epoch = epoch_of(1, weights, root_round=term * CAP + CAP - 1)
    assert (epoch.first_round, epoch.first_term) == ((term + 1) * CAP, term + 1)


# ---------------------------------------------------------------- lost terms


def lost_one_by_one(epoch: Epoch, header: MicroblockHeader, parent: MicroblockHeader | None) -> dict[int, int]:
    """Whose whole terms ran out between two microblocks: asks for each term who would have led it."""
    counts = Counter[int]()
    if parent is None:
        for term in range(epoch.first_term, header.term):
            # Without the reveal: who led the first term of an epoch that a keyblock began may have learned it too late.
            leader = epoch.opener(term, None)
            if leader is not None:
                counts[leader] += 1
        return dict(counts)
    for term in range(opened_term(parent.round, CAP), header.term):
        if term != parent.term:
            counts[epoch.successor(term, parent)] += 1
    return dict(counts)


@settings(max_examples=400)
@given(WEIGHTS, st.integers(0, 3), st.integers(0, 40), st.booleans(), st.data())
def test_lost_terms_are_those_that_a_step_by_step_enumeration_finds(
    weights: list[int], number: int, lost: int, revealed: bool, data: st.DataObject
) -> None:
    epoch = epoch_of(number, weights)
    size = len(weights)
    if data.draw(st.booleans(), label="opening"):
        parent, parent_round = None, epoch.record.root_round
        # In the first term an opening carries the reveal.
        revealed = revealed or lost == 0
    else:
        parent_round = epoch.first_round + data.draw(st.integers(0, 30), label="place")
        parent = header_at(epoch, parent_round, data.draw(st.integers(0, size - 1), label="leader"), revealed=revealed)
    opened = opened_term(parent_round, CAP)
    round_ = (opened + lost) * CAP if lost else parent_round + 1
    header = header_at(epoch, round_, 0, revealed=revealed)
    expected = lost_one_by_one(epoch, header, parent)
    found = epoch.lost_terms(header, parent_round, parent.leader if parent is not None else None)
    assert found == expected
    assert all(found.values())
    whole = lost - (parent is not None and parent.term == opened and lost > 0)
    unknown = parent is None and number > 0 and lost > 0
    assert sum(found.values()) == whole - unknown
