# SPDX-License-Identifier: GPL-3.0-or-later
"""Which round it is, how the term was entered, and who has given up on it."""

from consensus.certificates import TimeoutCollector
from consensus.messages import TimeoutCertificate
from consensus.timing import Patience, Timing


class Pacemaker:
    """The round of one member. Rounds only rise: by a certificate to the next, by a time-out certificate to the next term."""

    def __init__(self, term_microblocks: int, round_: int, timing: Timing, now_ms: int) -> None:
        self._term_microblocks = term_microblocks
        self.round = round_
        self.entry: TimeoutCertificate | None = None
        """The time-out certificate by which the current term was entered; None when a certificate did it."""
        self.patience = Patience(timing, now_ms)
        self.timeouts = TimeoutCollector()

    @property
    def term(self) -> int:
        """The current term."""
        return self.round // self._term_microblocks

    @property
    def opened_by_timeout(self) -> bool:
        """Tell whether the current round may be proposed in although the round before has no certificate."""
        return self.entry is not None and self.round % self._term_microblocks == 0

    def certified(self, round_: int, now_ms: int) -> None:
        """A certificate of a round is known: the next one begins."""
        if round_ >= self.round:
            self._enter(round_ + 1, now_ms)

    def ended(self, certificate: TimeoutCertificate, now_ms: int) -> None:
        """A quorum gave up on a term: the next one begins."""
        if certificate.term >= self.term:
            self.patience.term_lost()
            self._enter((certificate.term + 1) * self._term_microblocks, now_ms)
            self.entry = certificate

    def _enter(self, round_: int, now_ms: int) -> None:
        assert round_ > self.round, "rounds rise"
        before = self.term
        self.round = round_
        if self.term > before:
            self.entry = None
            self.timeouts.forget_through(self.term - 1)
        self.patience.progress(now_ms)
