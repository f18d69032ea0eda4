# SPDX-License-Identifier: GPL-3.0-or-later
"""What a replica's chain weighs, a second time: exact fractions over all its certificates, by the formula in `consensus.weight`.

Certificates of one microblock may hold other votes at other replicas, so each replica's chain is weighed by itself.
"""

from fractions import Fraction

from consensus.messages import Certificate
from consensus.weight import ChainWeight
from ledger.codec import decoder
from ledger.rules import REPUTATION_UNIT, WeightRules
from ledger.store import Store
from simulation.reference import EpochFacts

HASHES = 2**256

_decode_weight = decoder(ChainWeight, 256, own=True)


class Weighing:
    """The weight of one replica's chain."""

    def __init__(self, rules: WeightRules, founding_target: int) -> None:
        self._rules = rules
        # The founding target stands in for a keyblock, but took no work.
        self._settled = Fraction(0)
        self._work = _work_of(founding_target)
        self._shares: list[Fraction] = []
        self._epochs = 1

    def certified(self, epoch: EpochFacts, certificate: Certificate) -> None:
        """Take the certificate of the next committed microblock."""
        total = sum(member.reputation_nano for member in epoch.members)
        signed = sum(epoch.members[vote.member].reputation_nano for vote in certificate.votes)
        self._shares.append(Fraction(signed, total))

    def pinned(self, target: int) -> None:
        """The microblock has pinned a keyblock."""
        self._work, settled = _work_of(target), self._settled + self._certified()
        self._settled = settled + self._work
        self._shares = []
        self._epochs += 1

    def differs(self, store: Store, stated: int) -> str:
        """Return what is wrong with the weight that a store keeps and its replica states; empty when all is well."""
        raw = store.weight()
        if raw is None:
            return "no weight is kept"
        kept = _decode_weight(raw)
        settled, work = (int.from_bytes(number, "big") for number in (kept.settled, kept.epoch_work))
        # Each share is rounded down, and each epoch once more.
        if not 0 <= self._settled - settled <= 2 * self._epochs:
            return f"{settled} hashes are settled, not {float(self._settled)}"
        if work != self._work:
            return f"the epoch's keyblock took {work} hashes, not {self._work}"
        lost = sum(self._shares) - Fraction(kept.certified_nano, REPUTATION_UNIT)
        if not 0 <= lost * REPUTATION_UNIT <= len(self._shares):
            return f"{kept.certified_nano}e-9 of reputation is certified, not {float(sum(self._shares))}"
        whole = self._settled + self._certified()
        if not 0 <= whole - stated <= 2 * self._epochs:
            return f"the chain weighs {stated}, not {float(whole)}"
        return ""

    def _certified(self) -> Fraction:
        counted = Fraction(self._rules.microblock_nano, REPUTATION_UNIT) * sum(self._shares)
        return self._work * min(Fraction(self._rules.certified_cap), counted)


def _work_of(target: int) -> int:
    """Return the hashes that a solution takes on the mean."""
    return HASHES // (target + 1)
