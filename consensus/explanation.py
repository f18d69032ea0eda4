# SPDX-License-Identifier: GPL-3.0-or-later
"""Explains reputations, of any miner as of any keyblock, from the committed state alone; and who ranks where now.

A history is kept in the state as of each keyblock that changed it (`ledger.state.MINER_VERSIONS`, newest first), so that an old
reputation is computed again from one entry, and its change from two, whatever the length of the chain.
"""

import msgspec

from consensus.committee import Committee
from consensus.reputation import Explanation, explain, reputation_nano
from consensus.standings import Standings, may_sit
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput
from ledger.miners import MinerHistory, Offence, inverted
from ledger.rules import Parameters
from ledger.state import MINER_VERSIONS, OFFENCES, State, StateReader, scan

MAX_RANKING = 256
"""Most miners in one ranking: it costs about 10 µs for each, and more where many are alike."""


class Change(msgspec.Struct, frozen=True):
    """Why a reputation is another one than an epoch before: the causes one after the other; their parts add up to the whole."""

    reputation_nano: int
    """The whole change of R, in 10⁻⁹."""
    chain_nano: int
    """Part of it because the chain is longer by one keyblock, whoever found it: regularity is judged over more of it."""
    keyblocks: int
    """Keyblocks won in the epoch before: that which began this one, or none."""
    keyblocks_nano: int
    """Part of the change because of them."""
    terms: int
    """Terms as leader that were finished or lost in the epoch before."""
    microblocks: int
    """Committed microblocks in these terms."""
    terms_nano: int
    """Part of the change because of them."""
    is_punished: bool
    """Whether an offence took all reputation in this epoch."""
    punishment_nano: int
    """Part of the change because of it."""


class MinerExplanation(msgspec.Struct, frozen=True):
    """What a miner's reputation is as of a keyblock, and why."""

    public_key: bytes
    """Key of the miner."""
    epoch: int
    """Keyblocks pinned so far (L); the reputation holds in the epoch that the newest of them began."""
    chunks: int
    """Chunks of the chain so far (t), over which regularity is judged."""
    history: MinerHistory
    """All that the reputation rests on."""
    history_epoch: int | None
    """Epoch that began with this history; None for who never mined and is not accredited."""
    reputation: Explanation
    """The reputation with everything that it comes from."""
    is_eligible: bool
    """Whether the miner may sit in a committee: it is honest, and has a keyblock or Ext."""
    offence: Offence | None
    """What was proved against it, as far as the chain knows now; it takes all reputation from the next keyblock on."""
    change: Change | None
    """Why it is another one than in the epoch before; None for epoch 0."""


class Ranked(msgspec.Struct, frozen=True):
    """A miner's place among all that may sit in a committee."""

    public_key: bytes
    """Key of the miner."""
    reputation_nano: int
    """Its reputation, in 10⁻⁹."""
    history: MinerHistory
    """All that the reputation rests on."""
    seat: int | None
    """Its index in the running epoch's committee; None without a seat."""


def explain_miner(reader: StateReader, parameters: Parameters, public_key: bytes, epoch: int) -> MinerExplanation:
    """Explain a miner's reputation in a running or past epoch. Raises `InvalidInput` for an epoch that has not begun."""
    state = State(reader)
    newest = state.progress().epoch
    if not 0 <= epoch <= newest:
        raise InvalidInput(f"epoch {epoch} has not begun; give one from 0 to {newest}")
    version = _version(reader, public_key, epoch)
    history = version[1] if version is not None else MinerHistory()
    change = None
    if epoch > 0:
        before = _version(reader, public_key, epoch - 1)
        change = _change(before[1] if before is not None else MinerHistory(), history, epoch, parameters)
    return MinerExplanation(
        public_key=public_key,
        epoch=epoch,
        chunks=-(-epoch // parameters.reputation.chunk_keyblocks),
        history=history,
        history_epoch=version[0] if version is not None else None,
        reputation=explain(history, epoch, parameters.term_microblocks, parameters.reputation),
        is_eligible=may_sit(history),
        offence=state.get(OFFENCES, public_key),
        change=change,
    )


def ranking(standings: Standings, committee: Committee, limit: int) -> tuple[Ranked, ...]:
    """Return the miners of highest reputation, best first, with their seats. Raises `InvalidInput` for too high a limit."""
    if not 1 <= limit <= MAX_RANKING:
        raise InvalidInput(f"a ranking of {limit} miners; give a limit from 1 to {MAX_RANKING}")
    return tuple(
        Ranked(
            public_key=member.public_key,
            reputation_nano=member.reputation_nano,
            history=standings.history(member.public_key),
            seat=committee.index_of(address_of(member.public_key)),
        )
        for member in standings.committee(limit)
    )


def _version(reader: StateReader, public_key: bytes, epoch: int) -> tuple[int, MinerHistory] | None:
    """Return the newest history that is not newer than an epoch, and since when it is the miner's."""
    for key, history in scan(reader, MINER_VERSIONS, public_key, public_key + inverted(epoch), 1):
        return int.from_bytes(inverted(int.from_bytes(key[len(public_key) :], "big")), "big"), history
    return None


def _change(before: MinerHistory, after: MinerHistory, epoch: int, parameters: Parameters) -> Change:
    """Tell what made one history's reputation in an epoch of another one's in the epoch before."""
    mined = msgspec.structs.replace(
        before,
        keyblocks=after.keyblocks,
        closed_chunk_squares=after.closed_chunk_squares,
        chunk=after.chunk,
        chunk_keyblocks=after.chunk_keyblocks,
    )
    led = msgspec.structs.replace(
        mined, terms=after.terms, microblocks=after.microblocks, microblock_squares=after.microblock_squares
    )
    steps = [(before, epoch - 1), (before, epoch), (mined, epoch), (led, epoch), (after, epoch)]
    nanos = [
        reputation_nano(history, length, parameters.term_microblocks, parameters.reputation)
        for history, length in steps
    ]
    return Change(
        reputation_nano=nanos[4] - nanos[0],
        chain_nano=nanos[1] - nanos[0],
        keyblocks=after.keyblocks - before.keyblocks,
        keyblocks_nano=nanos[2] - nanos[1],
        terms=after.terms - before.terms,
        microblocks=after.microblocks - before.microblocks,
        terms_nano=nanos[3] - nanos[2],
        is_punished=before.is_honest and not after.is_honest,
        punishment_nano=nanos[4] - nanos[3],
    )
