# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain a second time, in plain code: balances, reputations, committees, leaders and targets, from its microblocks alone.

Nothing here is incremental, fast or in fixed point where it need not be: reputations are exact fractions over whole histories, terms are
counted one by one, fees are dealt out one by one. Only draws (`consensus.election.Schedule`) and hashes are the production's own: they
have tests of their own.
"""

from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from math import isqrt

import msgspec

from consensus.committee import CommitteeMember
from consensus.election import Schedule, is_reveal, next_seed
from consensus.messages import Certificate
from ledger.blocks import Microblock, MicroblockHeader, SignedKeyblock, is_signed_by_miner, keyblock_hash
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of
from ledger.crypto.unique_signature import is_public_key
from ledger.genesis import Genesis, chain_id
from ledger.rules import REPUTATION_UNIT, ReputationRules

ROOT_UNIT = 10**30
"""Square roots are exact to 1 / this."""


class MinerPast(msgspec.Struct):
    """All that a miner has done."""

    external: Fraction = Fraction(0)
    """Ext."""
    is_honest: bool = True
    """H, as of the newest pinned keyblock."""
    positions: list[int] = msgspec.field(default_factory=list)
    """Places of its keyblocks in the chain."""
    terms: list[int] = msgspec.field(default_factory=list)
    """Microblocks of each of its terms that has ended."""

    @property
    def may_sit(self) -> bool:
        """Whether it is eligible for committees."""
        return self.is_honest and (bool(self.positions) or self.external > 0)


class EpochFacts(msgspec.Struct):
    """One epoch."""

    number: int
    """Keyblocks pinned before it."""
    keyblock: bytes
    """Hash of the keyblock that began it."""
    pinned: SignedKeyblock | None
    """That keyblock; None for the founding epoch."""
    root_hash: bytes
    """Microblock that it begins after."""
    root_height: int
    """Height of that microblock."""
    root_round: int
    """Round before its first one."""
    root_timestamp_ms: int
    """Time of that microblock."""
    state_root: bytes
    """Root of the state after that microblock."""
    target: int
    """Of the keyblock that will end it."""
    members: tuple[CommitteeMember, ...]
    """The committee."""
    previous_seed: bytes
    """Seed of the leaders before."""
    microblocks: list[MicroblockHeader] = msgspec.field(default_factory=list)
    """Its committed microblocks so far."""
    fees: list[int] = msgspec.field(default_factory=list)
    """What their transactions paid."""
    ended: list[tuple[bytes, int]] = msgspec.field(default_factory=list)
    """Terms that are over: address of the leader, microblocks."""

    @property
    def root_certificate(self) -> Certificate:
        """What certifies its root."""
        return Certificate(self.number, self.root_round, self.root_hash, ())

    @property
    def faults(self) -> int:
        """Members that may be faulty."""
        return (len(self.members) - 1) // 3

    def is_quorum(self, indexes: Sequence[int]) -> bool:
        """Tell whether distinct members are a quorum."""
        total = sum(member.reputation_nano for member in self.members)
        weight = sum(self.members[index].reputation_nano for index in indexes)
        return 2 * len(indexes) >= len(self.members) + self.faults + 1 and 3 * weight > 2 * total

    def index_of(self, address: bytes) -> int | None:
        """Return the index of a member."""
        return next((index for index, member in enumerate(self.members) if member.address == address), None)

    def leader_of(self, term: int, header: MicroblockHeader, cap: int) -> int | None:
        """Return who leads a term, up to that of `header`, after the newest committed microblock; None when nobody can know."""
        schedule = Schedule(header.seed, self.members)
        if self.microblocks:
            parent = self.microblocks[-1]
            opened = (parent.round + 1) // cap
            incumbent = self.index_of(parent.leader) if parent.term == opened else None
            return schedule.leader(term, opened, incumbent)
        first = (self.root_round + 1) // cap
        if self.number == 0:
            return schedule.leader(term, first, None)
        fallback = next_seed(self.previous_seed, self.keyblock, None)
        if term == first:
            return None if header.seed == fallback else schedule.drawn(first)
        order = Schedule(fallback, self.members)
        return order.succession(first, order.drawn(first))[(term - first - 1) % len(self.members)]


class ReferenceChain:
    """What is committed, as the first honest replica commits it. Each method returns what is wrong, or an empty text."""

    def __init__(self, genesis: Genesis, root_hash: bytes, state_root: bytes) -> None:
        self.chain_id = chain_id(genesis)
        self._genesis = genesis
        self._parameters = genesis.parameters
        self._cap = genesis.parameters.term_microblocks
        self.miners = {
            member.public_key: MinerPast(Fraction(member.external_nano, REPUTATION_UNIT))
            for member in genesis.committee
        }
        self._offenders: set[bytes] = set()
        self._timestamps_ms = [genesis.timestamp_ms]
        seed = tagged_hash(Tag.ELECTION_SEED, self.chain_id)
        founding = EpochFacts(
            number=0,
            keyblock=self.chain_id,
            pinned=None,
            root_hash=root_hash,
            root_height=0,
            root_round=0,
            root_timestamp_ms=genesis.timestamp_ms,
            state_root=state_root,
            target=int.from_bytes(genesis.parameters.work.limit, "big"),
            members=(),
            previous_seed=seed,
        )
        self.epochs = [founding]

    @property
    def epoch(self) -> EpochFacts:
        """The newest epoch."""
        return self.epochs[-1]

    @property
    def cap(self) -> int:
        """Rounds of a term."""
        return self._cap

    # ------------------------------------------------------------------ microblocks

    def microblock(self, block: Microblock, fees: int, offenders: Sequence[bytes]) -> str:
        """Take the next committed microblock, but not yet its pin."""
        header, epoch = block.header, self.epoch
        wrong = self._wrong_leader(block)
        if wrong:
            return wrong
        self._count_terms(header)
        epoch.microblocks.append(header)
        epoch.fees.append(fees)
        self._offenders.update(offenders)
        return ""

    def wrong_time(self, header: MicroblockHeader) -> str:
        """Return why the next committed microblock cannot be of its time."""
        epoch = self.epoch
        before_ms = epoch.microblocks[-1].timestamp_ms if epoch.microblocks else epoch.root_timestamp_ms
        if header.timestamp_ms > before_ms:
            return ""
        return f"microblock {header.height} is of {header.timestamp_ms} ms, the one before of {before_ms}"

    def _wrong_leader(self, block: Microblock) -> str:
        header, epoch = block.header, self.epoch
        if header.epoch != epoch.number or header.keyblock != epoch.keyblock:
            return f"microblock {header.height} of epoch {header.epoch} is committed in epoch {epoch.number}"
        if epoch.microblocks:
            seed = epoch.microblocks[-1].seed
        elif epoch.pinned is None:
            seed = epoch.previous_seed
        else:
            key, reveal = epoch.pinned.keyblock.reveal_key, block.reveal
            if reveal is not None and not is_reveal(key, epoch.previous_seed, epoch.keyblock, reveal):
                return f"epoch {epoch.number} opens with a wrong reveal"
            seed = next_seed(epoch.previous_seed, epoch.keyblock, reveal)
        if header.seed != seed:
            return f"microblock {header.height} has another seed than its epoch"
        leader = epoch.leader_of(header.term, header, self._cap)
        if leader is None or epoch.members[leader].address != header.leader:
            return (
                f"microblock {header.height} of term {header.term} is led by {header.leader.hex()} instead of {leader}"
            )
        return ""

    def _count_terms(self, header: MicroblockHeader) -> None:
        epoch, cap = self.epoch, self._cap
        parent = epoch.microblocks[-1] if epoch.microblocks else None
        parent_round = epoch.root_round if parent is None else parent.round
        if parent is not None and parent.term != header.term and (parent.round + 1) % cap:
            committed = sum(1 for other in epoch.microblocks if other.term == parent.term)
            epoch.ended.append((parent.leader, committed))
        first = (parent_round + 1) // cap
        # The first term of an epoch needed the reveal, and nobody can tell when that came.
        for term in range(first + (parent is None and epoch.number > 0), header.term):
            leader = epoch.leader_of(term, header, cap)
            if leader is not None and (parent is None or term != parent.term):
                epoch.ended.append((epoch.members[leader].address, 0))
        if (header.round + 1) % cap == 0:
            epoch.ended.append((header.leader, cap))

    # ------------------------------------------------------------------ keyblocks

    def wrong_keyblock(self, epoch: EpochFacts, signed: SignedKeyblock) -> str:
        """Return why a keyblock cannot end an epoch; its miner's reputation is checked when it is pinned."""
        keyblock = signed.keyblock
        if (keyblock.previous, keyblock.microblock) != (epoch.keyblock, epoch.root_hash):
            return "it is mined on something else"
        digest = int.from_bytes(sha256(keyblock_hash(keyblock)).digest(), "big")
        if int.from_bytes(keyblock.target, "big") != epoch.target or digest >= epoch.target:
            return "its work is not what the chain demands"
        if not is_signed_by_miner(self.chain_id, signed) or not is_public_key(keyblock.reveal_key):
            return "it is not signed by its miner, or nobody can reveal with it"
        if keyblock.state_root != epoch.state_root:
            return "it states another state root"
        times = sorted(self._timestamps_ms[: epoch.number + 1][-11:])
        if keyblock.timestamp_ms <= max(times[len(times) // 2], epoch.root_timestamp_ms):
            return "it is too early"
        stated = Fraction(keyblock.reputation_nano, REPUTATION_UNIT)
        if epoch is self.epoch and abs(stated - self.reputation(keyblock.miner)) > Fraction(2, REPUTATION_UNIT):
            return "it states another reputation"
        return ""

    def payouts(self) -> dict[bytes, int]:
        """Return what the end of the newest epoch pays to whom, fees only."""
        epoch = self.epoch
        n = len(epoch.fees)
        start, share = 0, Fraction(0)
        creator = b""
        if epoch.pinned is not None:
            creator = address_of(epoch.pinned.keyblock.miner)
            start = int.from_bytes(tagged_hash(Tag.FEE_START, epoch.pinned.signature), "big") % n
            share = Fraction(epoch.pinned.keyblock.reputation_nano, REPUTATION_UNIT) * n
        creators = {(start + k) % n for k in range(n) if k < share}
        paid: dict[bytes, int] = {}
        for position, fees in enumerate(epoch.fees):
            receiver = creator if position in creators else epoch.microblocks[position].leader
            paid[receiver] = paid.get(receiver, 0) + fees
        return paid

    def pin(self, signed: SignedKeyblock, root_hash: bytes, state_root: bytes) -> None:
        """End the newest epoch with a keyblock that its newest microblock pins; the next one has no committee yet."""
        epoch, keyblock = self.epoch, signed.keyblock
        keys = {member.address: member.public_key for member in epoch.members}
        for leader, microblocks in epoch.ended:
            self.miners[keys[leader]].terms.append(microblocks)
        self.miners.setdefault(keyblock.miner, MinerPast()).positions.append(epoch.number)
        for offender in self._offenders.intersection(self.miners):  # operators of contracts need not mine
            self.miners[offender].is_honest = False
        self._timestamps_ms.append(keyblock.timestamp_ms)
        header = epoch.microblocks[-1]
        after = EpochFacts(
            number=epoch.number + 1,
            keyblock=keyblock_hash(keyblock),
            pinned=signed,
            root_hash=root_hash,
            root_height=header.height,
            root_round=(header.round // self._cap + 1) * self._cap - 1,
            root_timestamp_ms=header.timestamp_ms,
            state_root=state_root,
            target=self._next_target(),
            members=(),
            previous_seed=header.seed,
        )
        self.epochs.append(after)

    def seat(self, members: tuple[CommitteeMember, ...]) -> None:
        """Give the newest epoch its committee."""
        self.epoch.members = members

    def _next_target(self) -> int:
        """After each full window: times its span over the wanted one, by at most four."""
        work, target = self._parameters.work, self.epoch.target
        n = work.window_keyblocks
        pinned = len(self._timestamps_ms) - 1
        if pinned % n:
            return target
        span = Fraction(self._timestamps_ms[pinned] - self._timestamps_ms[pinned - n], n * work.interval_ms)
        scaled = target * min(max(span, Fraction(1, 4)), Fraction(4))
        return max(1, min(int.from_bytes(work.limit, "big"), scaled.numerator // scaled.denominator))

    # ------------------------------------------------------------------ reputation

    def reputation(self, public_key: bytes) -> Fraction:
        """Return a miner's reputation as of the newest pinned keyblock."""
        past = self.miners.get(public_key, MinerPast())
        return exact_reputation(past, self.epoch.number, self._cap, self._parameters.reputation)

    def best(self, reputations: dict[bytes, int]) -> list[bytes]:
        """Return who sits in the committee, given the fixed-point reputations of all miners."""
        eligible = [key for key, past in self.miners.items() if past.may_sit]

        def place(key: bytes) -> tuple[int, bytes]:
            nano = reputations[key]
            return -nano, tagged_hash(Tag.STANDING_TIE, key, nano.to_bytes(8, "big"))

        return sorted(eligible, key=place)[: self._parameters.committee_size]


def exact_reputation(past: MinerPast, length: int, cap: int, rules: ReputationRules) -> Fraction:
    """Return R by Algorithm 2 of RepuCoin, read from top to bottom."""
    if not past.is_honest:
        return Fraction(0)
    x = Fraction(0)
    if length:
        chunk = rules.chunk_keyblocks
        chunks = -(-length // chunk)
        in_chunk = [sum(1 for p in past.positions if p // chunk == i) for i in range(chunks)]
        mean_k = Fraction(len(past.positions), length)
        s_k = _root([(Fraction(k, chunk) - mean_k) ** 2 for k in in_chunk])
        y2 = Fraction(1)
        if past.terms:
            n = len(past.terms)
            mean_m = Fraction(sum(past.terms), n * cap)
            s_m = _root([(Fraction(m, cap) - mean_m) ** 2 for m in past.terms])
            y2 = mean_m / (1 + s_m)
        x = mean_k / (1 + s_k) * y2 * length
    distance = x - rules.midpoint_keyblocks
    earned = (1 + distance / (rules.flatness_keyblocks + abs(distance))) / 2
    return min(Fraction(1), past.external + earned)


def _root(squares: Sequence[Fraction]) -> Fraction:
    """Return the square root of a mean."""
    mean = sum(squares, Fraction(0)) / len(squares)
    return Fraction(isqrt(mean.numerator * ROOT_UNIT**2 // mean.denominator), ROOT_UNIT)
