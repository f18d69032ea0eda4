# SPDX-License-Identifier: GPL-3.0-or-later
"""Who leads: draws in proportion to reputation, from a seed that nobody knows before the keyblock is pinned.

Requirements:
R1 (determinism) a leader is a function of the seed, the committee, the term and the parent's header; integers and hashes only.
R2 (fairness) each member's probability to be drawn is exactly its share of the committee's reputation; over 100 000 terms the counted
   share differs by less than 1 %.
R3 (unpredictability) the seed rests on the unique signature of the keyblock's creator over the keyblock's hash and the seed before.
   Until the creator reveals it, after pinning, nobody else can tell a leader; the creator cannot choose it. When it is withheld until
   a time-out, a fallback without it takes its place. So a creator chooses between two seeds at most, and a third costs a keyblock.
R4 (succession) as long as terms are lost in a row, nobody leads again before all the others have led: with k silent members at most
   k terms in a row are lost, and one silent leader costs one time-out.

**The rule.** Let q be the round of a proposal's parent, m the cap of microblocks per term and o = ⌊(q+1)/m⌋ the term in which the chain
would go on without a time-out. The terms o … t−1 are lost when a proposal of term t > o has this parent. Let `first` be the parent's
leader when q lies in term o, and a draw for term o otherwise. Let π be the committee in a weighted order without replacement, drawn
for term o, with `first` in front. Then π[(t − o) mod n] leads term t.

*R2:* a term that was not opened by a time-out has t = o at its first round, so its leader is a fresh draw; the successor of a lost
leader is drawn in proportion among the others. *R4:* o, `first` and therefore π stay while no new certificate comes into being, t rises
by one with each time-out, and π is a permutation: n terms in a row have n leaders. *Safety* is not touched: the rules of
`consensus.safety` never ask who leads. *Liveness:* members whose newest certificates differ may name different leaders of one
term, and both may propose; each time-out carries its sender's newest certificate to all, so that they come to name the same one.
A faulty leader can withhold one certificate per term that it led (the next proposal would carry it) and show it to some of them later:
that costs one more time-out.

Rejected:
- The term's number alone. If any n successive terms have n leaders, the sequence has period n and each leads 1/n of the terms: R4 then
  excludes R2 unless all weights are equal. What was lost must be known, and the parent's header is where all verifiers read it.
- Numbers that tell it, by jumping over the unused successors of a term that ends well (or is lost). Then a round between a microblock's
  and its child's may be certified on another branch, by a time-out certificate older than both, and two-chain commits are no longer
  final: the proof in `consensus.safety` needs successive numbers.
- One permutation after another: each leads equally often, whatever its reputation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from consensus.committee import CommitteeMember
from ledger.crypto.hashing import DIGEST_BYTES, Tag, tagged_hash
from ledger.crypto.unique_signature import SIGNATURE_BYTES, sign, verify

_HASH_RANGE = 1 << (8 * DIGEST_BYTES)
_WITHHELD, _REVEALED = b"\x00", b"\x01"
_MAX_ATTEMPTS = 1024
"""Draws until one falls under the limit: each fails with a chance below one half, all of them never."""
_ORDERS = 8
"""Orders of succession kept for each seed: of the last terms that began well, on the few parents that they could."""


def reveal_message(previous_seed: bytes, keyblock_hash: bytes) -> bytes:
    """Return what the creator of a pinned keyblock signs, 32 bytes."""
    return tagged_hash(Tag.ELECTION_REVEAL, previous_seed, keyblock_hash)


def reveal(secret: bytes, previous_seed: bytes, keyblock_hash: bytes) -> bytes:
    """Return the creator's unique signature; it must not leave the creator before the keyblock is pinned."""
    return sign(secret, reveal_message(previous_seed, keyblock_hash))


def is_reveal(public_key: bytes, previous_seed: bytes, keyblock_hash: bytes, signature: bytes) -> bool:
    """Tell whether this is the one signature that the creator's BLS key can reveal."""
    return verify(public_key, reveal_message(previous_seed, keyblock_hash), signature)


def next_seed(previous_seed: bytes, keyblock_hash: bytes, signature: bytes | None) -> bytes:
    """Return the 32-byte seed of the epoch that a keyblock begins; None stands for a signature that was withheld.

    The caller has checked the signature (`is_reveal`).
    """
    if signature is None:
        return tagged_hash(Tag.ELECTION_SEED, previous_seed, keyblock_hash, _WITHHELD)
    assert len(signature) == SIGNATURE_BYTES, "only a verified signature makes a seed"
    return tagged_hash(Tag.ELECTION_SEED, previous_seed, keyblock_hash, _REVEALED, signature)


def draw_below(bound: int, seed: bytes, term: int, place: int) -> int:
    """Return a number from 0 to bound − 1, each equally likely: hashes beyond the last whole multiple of the bound are drawn again."""
    assert 0 < bound <= _HASH_RANGE, "a draw needs something to draw from"
    limit = _HASH_RANGE - _HASH_RANGE % bound
    where = seed + term.to_bytes(8) + place.to_bytes(2)
    for attempt in range(_MAX_ATTEMPTS):
        number = int.from_bytes(tagged_hash(Tag.ELECTION_DRAW, where + attempt.to_bytes(2)))
        if number < limit:
            return number % bound
    raise AssertionError("a hash function that never falls under the limit")


def opened_term(parent_round: int, term_microblocks: int) -> int:
    """Return the term in which the round after the parent's lies: the first one that a later term's proposal has lost."""
    return (parent_round + 1) // term_microblocks


class Schedule:
    """The leaders of one epoch; indexes are those of its committee."""

    def __init__(self, seed: bytes, members: Sequence[CommitteeMember]) -> None:
        assert len(seed) == DIGEST_BYTES, "a seed is a hash"
        assert members, "an epoch has a committee"
        self._seed = seed
        self._weights = tuple(member.reputation_nano for member in members)
        # `ledger.rules.check_parameters` sees to it: everybody has a turn in the end.
        assert min(self._weights) > 0, "an honest member has some reputation"
        self._sums = tuple(accumulate(self._weights))
        self._orders: dict[tuple[int, int], tuple[int, ...]] = {}

    def drawn(self, term: int) -> int:
        """Return the member that opens a term when the one before ended well."""
        return self.holder(draw_below(self._sums[-1], self._seed, term, 0))

    def holder(self, number: int) -> int:
        """Return whose share of the total reputation a number falls in."""
        return bisect_right(self._sums, number)

    def leader(self, term: int, opened: int, incumbent: int | None) -> int:
        """Return the member that leads a term for a given parent.

        `opened` is `opened_term` of the parent's round; `incumbent` is the parent's leader when the parent itself lies in that term,
        None when it is the last of the term before or the end of another epoch.
        """
        assert term >= opened, "a child never lies in an earlier round than its parent"
        first = self.drawn(opened) if incumbent is None else incumbent
        if term == opened:
            return first
        return self.succession(opened, first)[(term - opened) % len(self._weights)]

    def succession(self, opened: int, first: int) -> tuple[int, ...]:
        """Return the whole committee in the order in which it leads while terms from `opened` on are lost.

        A committee of 31 takes a millisecond, and while terms are lost every message asks: the newest orders are kept.
        """
        known = self._orders.get((opened, first))
        if known is None:
            while len(self._orders) >= _ORDERS:
                del self._orders[next(iter(self._orders))]
            known = self._orders[opened, first] = self._draw_order(opened, first)
        return known

    def _draw_order(self, opened: int, first: int) -> tuple[int, ...]:
        order = [first]
        rest = [index for index in range(len(self._weights)) if index != first]
        while rest:
            sums = list(accumulate(self._weights[index] for index in rest))
            # Place 0 is the draw of the first; a committee has at most 64 members.
            order.append(rest.pop(bisect_right(sums, draw_below(sums[-1], self._seed, opened, len(order)))))
        return tuple(order)
