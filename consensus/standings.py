# SPDX-License-Identifier: GPL-3.0-or-later
"""The standing of all miners, and the committee that follows from it: an index in memory over the histories that the state holds.

Requirements:
R1 (selection) the committee is the |X| eligible miners of highest R; of equal R the smaller H(PK, R) comes first, as in RepuCoin.
   Eligible is who is honest and has a pinned keyblock or Ext: f(0) > 0 gives every newcomer some R, and identities must not buy votes.
R2 (cost) a pinned keyblock changes few histories; selecting computes R for few miners, whatever the number of miners and keyblocks,
   unless nearly all are alike to within what s_k takes from them (scripts/bench/reputation measures that case too).
R3 (memory) one history of constant size per miner, about half a kilobyte; nothing per keyblock or term.
R4 (restart) the histories are the state's own (`ledger.state.MINERS`); nothing is computed again from the chain.
R5 (trial) what a keyblock would change can be asked without changing anything: the store may still refuse it.

Why few miners suffice: the chain's length changes every R at each keyblock, but only through s_k ≥ 0. So

    x = Σk · y2 / (1 + s_k) ≤ Σk · y2        and        R ≤ ceiling = min(1, Ext + f(Σk · y2)),

as f is monotone and so is each rounded step of it; and the ceiling changes with the miner's own keyblocks and terms only. Miners stand
in the order of (ceiling, H(PK, ceiling)). Selection walks down and stops at the first miner whose place, were its R equal to its
ceiling, is behind the |X| best found: nobody behind it can be better. Where R is capped at 1 this order is the final one.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from heapq import merge

from consensus.committee import CommitteeMember
from consensus.reputation import Explanation, ceiling_nano, explain, reputation_nano
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of
from ledger.miners import MinerHistory
from ledger.rules import ReputationRules

_Place = tuple[int, bytes, bytes]
"""Negated reputation (10⁻⁹), its tie-break and the public key: the best comes first."""


def tie_break(public_key: bytes, reputation: int) -> bytes:
    """Return H(PK, R), with R in 10⁻⁹: of equal reputations the smaller one comes first."""
    return tagged_hash(Tag.STANDING_TIE, public_key, reputation.to_bytes(8))


class Standings:
    """Histories of all miners, kept in the order of their ceilings; one per chain, as of its newest pinned keyblock."""

    def __init__(
        self,
        rules: ReputationRules,
        term_microblocks: int,
        keyblocks: int,
        histories: Iterable[tuple[bytes, MinerHistory]],
    ) -> None:
        """`keyblocks` is the chain's length (L); `histories` are those of all miners, by public key."""
        self._rules = rules
        self._term_microblocks = term_microblocks
        self._keyblocks = keyblocks
        self._histories = dict(histories)
        self._ceilings = {
            key: self._ceiling(key, history) for key, history in self._histories.items() if may_sit(history)
        }
        self._order = sorted(self._ceilings.values())

    @property
    def keyblocks(self) -> int:
        """Length of the chain in pinned keyblocks (L)."""
        return self._keyblocks

    def __len__(self) -> int:
        """Return the number of miners with a history."""
        return len(self._histories)

    def knows(self, public_key: bytes) -> bool:
        """Tell whether a key has a history: a founder's, or that of who has created a keyblock."""
        return public_key in self._histories

    def history(self, public_key: bytes) -> MinerHistory:
        """Return a miner's history; that of a newcomer when it is not known."""
        return self._histories.get(public_key, _NEWCOMER)

    def reputation_nano(self, public_key: bytes) -> int:
        """Return a miner's reputation in 10⁻⁹, also that of one who never mined."""
        return reputation_nano(self.history(public_key), self._keyblocks, self._term_microblocks, self._rules)

    def explain(self, public_key: bytes) -> Explanation:
        """Return a miner's reputation with everything that it comes from."""
        return explain(self.history(public_key), self._keyblocks, self._term_microblocks, self._rules)

    def committee(self, size: int) -> tuple[CommitteeMember, ...]:
        """Return the miners of highest reputation, best first: `size` of them, or all that are eligible."""
        return self.trial({}, self._keyblocks).committee(size)

    def trial(self, changes: Mapping[bytes, MinerHistory], keyblocks: int) -> "Trial":
        """Return the standings as `apply` would make them, which leaves these as they are; of use until these change."""

        def reputation_of(public_key: bytes) -> int:
            history = changes.get(public_key) or self.history(public_key)
            return reputation_nano(history, keyblocks, self._term_microblocks, self._rules)

        changed = sorted(self._ceiling(key, history) for key, history in changes.items() if may_sit(history))

        def in_order() -> Iterable[_Place]:
            return merge((place for place in self._order if place[2] not in changes), changed)

        return Trial(in_order if changes else lambda: self._order, reputation_of)

    def apply(self, changes: Mapping[bytes, MinerHistory], keyblocks: int) -> None:
        """Take over the histories that changed up to a chain of so many keyblocks."""
        assert keyblocks >= self._keyblocks, "a chain never gets shorter"
        self._keyblocks = keyblocks
        for key, history in changes.items():
            known = self._ceilings.pop(key, None)
            if known is not None:
                del self._order[bisect_left(self._order, known)]
            self._histories[key] = history
            if may_sit(history):
                self._ceilings[key] = self._ceiling(key, history)
                insort(self._order, self._ceilings[key])

    def _ceiling(self, key: bytes, history: MinerHistory) -> _Place:
        return _place(key, ceiling_nano(history, self._term_microblocks, self._rules))


class Trial:
    """Standings as they would be."""

    def __init__(self, in_order: Callable[[], Iterable[_Place]], reputation_of: Callable[[bytes], int]) -> None:
        """`in_order` yields all who may sit in the order of their ceilings."""
        self.reputation_nano = reputation_of
        """Returns a miner's reputation in 10⁻⁹, by public key."""
        self.examined = 0
        """Miners whose R the last selection computed: for measurements."""
        self._in_order = in_order

    def committee(self, size: int) -> tuple[CommitteeMember, ...]:
        """Return the miners of highest reputation, best first: `size` of them, or all that are eligible."""
        best: list[_Place] = []
        self.examined = 0
        for ceiling in self._in_order():
            if len(best) == size and best[-1] < ceiling:
                break
            key = ceiling[2]
            reputation = self.reputation_nano(key)
            self.examined += 1
            place = ceiling if reputation == -ceiling[0] else _place(key, reputation)
            if len(best) < size or place < best[-1]:
                insort(best, place)
                del best[size:]
        return tuple(CommitteeMember(key, address_of(key), -negated) for negated, _, key in best)


def may_sit(history: MinerHistory) -> bool:
    """Tell whether a miner is eligible for committees (R1)."""
    return history.is_honest and (history.keyblocks > 0 or history.external_nano > 0)


_NEWCOMER = MinerHistory()


def _place(key: bytes, reputation: int) -> _Place:
    return -reputation, tie_break(key, reputation), key
