# SPDX-License-Identifier: GPL-3.0-or-later
"""What every committed microblock adds to its epoch's account: its place, its fees, and the terms that are over with it.

A leader's term is over when

(a) the microblock of its last round is committed: it counts as full, with m_j = m;
(b) a later term's microblock is committed first, which takes a time-out: it counts with as many microblocks as are committed in it, none
    for leaders whose whole turn was lost, but for one who may have learned too late that it was its turn (`Epoch.lost_terms`);
(c) its epoch ends first: it counts for nobody, because that was the miners' doing and not the leader's.

The terms are tallied by leader; the tallies enter the histories of the miners when the epoch ends (`consensus.pinning`).
"""

import msgspec

from consensus.epoch import Epoch
from ledger.blocks import MicroblockHeader
from ledger.miners import MicroblockFees, TermTally
from ledger.state import FEES, PROGRESS, TALLIES, State

_NO_TALLY = TermTally(0, 0, 0)


def account_microblock(state: State, epoch: Epoch, header: MicroblockHeader, fees_microcredit: int) -> None:
    """Note a committed microblock of the running epoch, with the fees that its transactions paid."""
    before, cap = state.progress(), epoch.parameters.term_microblocks
    assert before.epoch == header.epoch == epoch.number, "microblocks are accounted for in their epoch"
    assert header.round > before.round, "rounds rise"
    parent_leader = before.leader if before.microblocks else None
    same_term = parent_leader is not None and before.round // cap == header.term
    if parent_leader is not None and not same_term and not _is_last(before.round, cap):
        _count(state, _key_of(epoch, parent_leader), 1, before.term_microblocks)
    for index, terms in sorted(epoch.lost_terms(header, before.round, parent_leader).items()):
        _count(state, epoch.committee.members[index].public_key, terms, 0)
    if _is_last(header.round, cap):
        # Also the founding term counts as full, though the genesis stands in the place of its first microblock.
        _count(state, _key_of(epoch, header.leader), 1, cap)
    if fees_microcredit:
        row = MicroblockFees(epoch.number, header.leader, fees_microcredit)
        state.put(FEES, before.microblocks.to_bytes(8, "big"), row)
    after = msgspec.structs.replace(
        before,
        seed=header.seed,
        microblocks=before.microblocks + 1,
        round=header.round,
        leader=header.leader,
        term_microblocks=before.term_microblocks + 1 if same_term else 1,
    )
    state.put(PROGRESS, b"", after)


def _is_last(round_: int, term_microblocks: int) -> bool:
    """Tell whether a round is the last one of its term; the rounds of a term are committed without gaps, so the term is full."""
    return (round_ + 1) % term_microblocks == 0


def _key_of(epoch: Epoch, leader: bytes) -> bytes:
    index = epoch.committee.index_of(leader)
    assert index is not None, "a committed microblock's leader is a member"
    return epoch.committee.members[index].public_key


def _count(state: State, public_key: bytes, terms: int, microblocks: int) -> None:
    """Add terms of so many microblocks each to a leader's tally."""
    tally = state.get(TALLIES, public_key) or _NO_TALLY
    after = TermTally(
        terms=tally.terms + terms,
        microblocks=tally.microblocks + terms * microblocks,
        microblock_squares=tally.microblock_squares + terms * microblocks**2,
    )
    state.put(TALLIES, public_key, after)
