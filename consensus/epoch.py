# SPDX-License-Identifier: GPL-3.0-or-later
"""What one epoch rests on: its committee, its leaders, and which keyblock may end it.

An epoch begins with a microblock that pins a keyblock, its *root*; the epoch's first microblock, its *opening*, fixes the seed of the
leaders. Who opens:

    k = terms lost since the epoch began
    k = 0   drawn from the seed that the keyblock's creator reveals; the opening carries the reveal
    k ≥ 1   the (k−1)-th of the committee, in the order that follows from the fallback seed; the opening may carry the reveal

So nobody can tell the leaders before the creator reveals, after pinning; a reveal that is withheld costs one time-out; and k silent
members cost at most k+1 at an opening, because who does not know the reveal cannot know whose turn was lost. For the leaders that
follow see `consensus.election`.
"""

from collections.abc import Callable

import msgspec

from consensus.committee import Committee, CommitteeMember
from consensus.election import Schedule, is_reveal, next_seed, opened_term
from consensus.messages import Certificate
from consensus.retarget import check_not_ahead, check_not_early
from consensus.work import check_work
from ledger.blocks import MicroblockHeader, SignedKeyblock, is_signed_by_miner
from ledger.crypto.keys import address_of, verify
from ledger.crypto.unique_signature import is_public_key
from ledger.errors import InvalidInput
from ledger.miners import EpochRecord
from ledger.rules import Parameters

_SEEDS = 4
"""Schedules kept: of the fallback seed, the revealed one, and spare."""
MAX_SIGNATURES = 8192
"""Signatures remembered as right, about 3 MB: those of the largest committee in all rounds that votes are kept of, twice over."""


class Chain(msgspec.Struct, frozen=True):
    """What never changes on a chain."""

    id: bytes
    """Its identifier: the hash of the genesis."""
    parameters: Parameters
    """Its rules."""


class Basis(msgspec.Struct, frozen=True):
    """What the state says of an epoch."""

    number: int
    """Keyblocks pinned before it began."""
    record: EpochRecord
    """How it began."""
    root: MicroblockHeader
    """Header of the microblock that it begins after."""
    state_root: bytes
    """Root of the authenticated state after that microblock."""
    timestamps_ms: tuple[int, ...]
    """Times of the newest keyblocks, oldest first."""


class Epoch:
    """One epoch of a chain, as everyone who has executed its root knows it."""

    def __init__(self, chain: Chain, basis: Basis, reputation_of: Callable[[bytes], int]) -> None:
        """`reputation_of` gives a miner's reputation as of the epoch's keyblock, in 10⁻⁹, by public key."""
        record = basis.record
        self.chain_id = chain.id
        self.parameters = chain.parameters
        self.number = basis.number
        self.record = record
        self.root = basis.root
        self.state_root = basis.state_root
        self.timestamps_ms = basis.timestamps_ms
        self.reputation_of = reputation_of
        seats = (CommitteeMember(s.public_key, address_of(s.public_key), s.reputation_nano) for s in record.seats)
        self.committee = Committee(basis.number, tuple(seats))
        self.first_round = record.root_round + 1
        self.first_term = self.first_round // chain.parameters.term_microblocks
        self.root_certificate = Certificate(basis.number, record.root_round, record.root_hash, ())
        """Certifies the root in this epoch; it needs no votes, because the epoch exists only where the root is final."""
        self.fallback_seed = self._seed_of(None)
        self._schedules: dict[bytes, Schedule] = {}
        self._right: dict[tuple[int, bytes, bytes], None] = {}

    # ------------------------------------------------------------------ leaders

    def schedule(self, seed: bytes) -> Schedule:
        """Return the leaders that follow from a seed."""
        known = self._schedules.get(seed)
        if known is None:
            while len(self._schedules) >= _SEEDS:
                del self._schedules[next(iter(self._schedules))]
            known = self._schedules[seed] = Schedule(seed, self.committee.members)
        return known

    def opener(self, term: int, reveal: bytes | None) -> int | None:
        """Return the member that opens the epoch in a term; None in the first one while the reveal is not known."""
        if self.number == 0:
            return self.schedule(self.root.seed).leader(term, self.first_term, None)
        lost = term - self.first_term
        if lost > 0:
            order = self._fallback_order()
            return order[(lost - 1) % len(order)]
        return None if reveal is None else self.schedule(self._seed_of(reveal)).drawn(self.first_term)

    def successor(self, term: int, parent: MicroblockHeader) -> int:
        """Return the member that leads a term when the parent is a microblock of this epoch."""
        opened = opened_term(parent.round, self.parameters.term_microblocks)
        incumbent = self.committee.index_of(parent.leader) if parent.term == opened else None
        return self.schedule(parent.seed).leader(term, opened, incumbent)

    def next_term_leader(self, header: MicroblockHeader) -> int:
        """Return the member that leads the term after a microblock's, when that term ends well."""
        return self.schedule(header.seed).drawn(header.term + 1)

    def lost_terms(self, header: MicroblockHeader, parent_round: int, parent_leader: bytes | None) -> dict[int, int]:
        """Return how many whole terms each member lost between a microblock and its parent, by index.

        `parent_leader` is None for the opening. The parent's own term, of which a part is committed, is not among them, nor is the first
        term of an epoch that a keyblock began: only who knew the reveal could lead it, and the chain does not say when that came. Its
        creator, who alone knows whom the seed draws, could hold it back for a time-out and cost whom it likes all that it has earned.
        """
        opened = opened_term(parent_round, self.parameters.term_microblocks)
        lost = header.term - opened
        if lost == 0:
            return {}
        if parent_leader is None and self.number > 0:
            return _spread(self._fallback_order(), lost - 1)
        schedule = self.schedule(header.seed)
        in_term = parent_leader is not None and parent_round // self.parameters.term_microblocks == opened
        incumbent = self.committee.index_of(parent_leader) if parent_leader is not None and in_term else None
        counts = _spread(schedule.succession(opened, schedule.drawn(opened) if incumbent is None else incumbent), lost)
        if incumbent is not None:
            counts[incumbent] -= 1
        return {index: count for index, count in counts.items() if count}

    def _fallback_order(self) -> tuple[int, ...]:
        schedule = self.schedule(self.fallback_seed)
        return schedule.succession(self.first_term, schedule.drawn(self.first_term))

    def _seed_of(self, reveal: bytes | None) -> bytes:
        return next_seed(self.root.seed, self.record.keyblock, reveal) if self.number else self.root.seed

    # ------------------------------------------------------------------ checks

    def is_signed(self, member: int, digest: bytes, signature: bytes) -> bool:
        """Tell whether a member, by index, signed a 32-byte digest; about 50 µs, and nearly nothing if it was found right before.

        The same votes come in many certificates, and anybody may put signatures together anew and say them again.
        """
        signed = (member, digest, signature)
        if signed in self._right:
            return True
        if not verify(self.committee.members[member].public_key, digest, signature):
            return False
        self._right[signed] = None
        if len(self._right) > MAX_SIGNATURES:
            del self._right[next(iter(self._right))]
        return True

    def is_reveal(self, reveal: bytes) -> bool:
        """Tell whether this is the one signature of the keyblock's creator that the seed rests on; about 2 ms."""
        record = self.record
        return self.number > 0 and is_reveal(record.reveal_key, self.root.seed, record.keyblock, reveal)

    def opening_seed(self, reveal: bytes | None) -> bytes:
        """Return the seed that an opening with this reveal, already checked, fixes."""
        return self._seed_of(reveal)

    def check_opening(self, header: MicroblockHeader, reveal: bytes | None) -> None:
        """Check seed and reveal of the epoch's first microblock. Raises `InvalidInput`."""
        if reveal is not None and not self.is_reveal(reveal):
            raise InvalidInput(f"opening of epoch {self.number}: the reveal is not that of the keyblock's creator")
        if reveal is None and self.number and header.term == self.first_term:
            raise InvalidInput(f"opening of epoch {self.number}: in the epoch's first term it must carry the reveal")
        if header.seed != self._seed_of(reveal):
            raise InvalidInput(f"opening of epoch {self.number}: its seed is not the one that follows from the reveal")

    def check_keyblock(self, signed: SignedKeyblock) -> None:
        """Check a keyblock that is to end this epoch; constant time, the same on every node. Raises `InvalidInput`."""
        keyblock, record = signed.keyblock, self.record
        if keyblock.previous != record.keyblock or keyblock.microblock != record.root_hash:
            raise InvalidInput(
                f"keyblock is not mined on keyblock {record.keyblock.hex()} and its microblock: take a new template"
            )
        check_work(keyblock, int.from_bytes(record.target, "big"))
        check_not_early(keyblock.timestamp_ms, self.timestamps_ms, self.root.timestamp_ms)
        if keyblock.state_root != self.state_root:
            raise InvalidInput(
                f"keyblock states state root {keyblock.state_root.hex()}; here it is {self.state_root.hex()}"
            )
        reputation = self.reputation_of(keyblock.miner)
        if keyblock.reputation_nano != reputation:
            raise InvalidInput(
                f"keyblock states a reputation of {keyblock.reputation_nano}e-9; its miner has {reputation}e-9"
            )
        if not is_public_key(keyblock.reveal_key):
            raise InvalidInput(
                "keyblock's reveal_key is not a point of BLS12-381: nobody could reveal the seed with it"
            )
        if not is_signed_by_miner(self.chain_id, signed):
            raise InvalidInput(f"keyblock is not signed by {keyblock.miner.hex()} for this chain")

    def check_not_ahead(self, signed: SignedKeyblock, now_ms: int) -> None:
        """Check a keyblock's time against one's own clock, before voting. Raises `InvalidInput`."""
        check_not_ahead(signed.keyblock.timestamp_ms, now_ms, self.parameters.timestamp_drift_ms)


def _spread(order: tuple[int, ...], terms: int) -> dict[int, int]:
    """Return how many of so many terms each member has when they lead in this order again and again."""
    rounds, rest = divmod(max(0, terms), len(order))
    counts = {index: rounds + (place < rest) for place, index in enumerate(order)}
    return {index: count for index, count in counts.items() if count}
