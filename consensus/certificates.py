# SPDX-License-Identifier: GPL-3.0-or-later
"""Checking certificates and collecting the votes that make them.

Everyone checks every certificate. Collectors keep one vote per member and round, within a window of rounds, so that no
member can make them grow.
"""

from itertools import pairwise

from consensus.committee import Committee
from consensus.epoch import Epoch
from consensus.messages import (
    Certificate,
    Timeout,
    TimeoutCertificate,
    TimeoutPart,
    timeout_digest,
)
from ledger.errors import InvalidInput
from ledger.votes import SignedIndex, vote_digest


def check_certificate(epoch: Epoch, certificate: Certificate) -> None:
    """Raise `InvalidInput` unless a quorum of the committee signed; about 50 µs per vote that is new."""
    if certificate == epoch.root_certificate:
        return
    if certificate.epoch != epoch.number:
        raise InvalidInput(f"certificate of epoch {certificate.epoch}; this is epoch {epoch.number}")
    committee = epoch.committee
    indexes = [vote.member for vote in certificate.votes]
    _check_signers(committee, indexes, "certificate")
    digest = vote_digest(epoch.chain_id, certificate.epoch, certificate.round, certificate.block_hash)
    for vote in certificate.votes:
        if not epoch.is_signed(vote.member, digest, vote.signature):
            raise InvalidInput(f"certificate of round {certificate.round}: member {vote.member} has not signed it")


def check_timeout_certificate(epoch: Epoch, certificate: TimeoutCertificate) -> None:
    """Raise `InvalidInput` unless a quorum of the committee gave up on the term."""
    if certificate.epoch != epoch.number:
        raise InvalidInput(f"time-out of epoch {certificate.epoch}; this is epoch {epoch.number}")
    committee = epoch.committee
    indexes = [part.member for part in certificate.timeouts]
    _check_signers(committee, indexes, "time-out certificate")
    for part in certificate.timeouts:
        digest = timeout_digest(epoch.chain_id, certificate.epoch, certificate.term, part.high_round)
        if not epoch.is_signed(part.member, digest, part.signature):
            raise InvalidInput(f"time-out of term {certificate.term}: member {part.member} has not signed it")


def _check_signers(committee: Committee, indexes: list[int], what: str) -> None:
    if any(later <= earlier for earlier, later in pairwise(indexes)):
        raise InvalidInput(f"{what}: members {indexes} are not in rising order; nobody counts twice")
    if indexes and indexes[-1] >= len(committee.members):
        raise InvalidInput(f"{what}: member {indexes[-1]} is not in a committee of {len(committee.members)}")
    if not committee.is_quorum(indexes):
        raise InvalidInput(f"{what}: members {indexes} are no quorum of {len(committee.members)}")


SignedHash = tuple[bytes, bytes]
"""A microblock's hash and a member's signature of its vote for it."""


class VoteCollector:
    """Votes for microblocks, by round; one vote per member and round."""

    def __init__(self, window_rounds: int) -> None:
        # A leader aggregates one round at a time; the window only absorbs reordering.
        self._window_rounds = window_rounds
        self._rounds: dict[int, dict[int, SignedHash]] = {}

    def covers(self, round_: int, current_round: int) -> bool:
        """Tell whether votes of a round are kept, also late ones: they may contradict others."""
        return abs(round_ - current_round) <= self._window_rounds

    def add(self, round_: int, index: int, vote: SignedHash, current_round: int) -> SignedHash:
        """Keep a checked vote of a round that is covered; returns the member's first vote in it, which may be another one."""
        if round_ not in self._rounds:
            self._forget_before(current_round - self._window_rounds)
            self._rounds[round_] = {}
        return self._rounds[round_].setdefault(index, vote)

    def voted_for(self, round_: int, index: int) -> bytes | None:
        """Return the hash of the microblock that a member voted for first in a round, as far as is known here."""
        known = self._rounds.get(round_, {}).get(index)
        return None if known is None else known[0]

    def certificate(self, committee: Committee, round_: int, block_hash: bytes) -> Certificate | None:
        """Return the certificate once a quorum has voted for the microblock."""
        votes = self._rounds.get(round_, {})
        signed = sorted((index, signature) for index, (voted, signature) in votes.items() if voted == block_hash)
        if not committee.is_quorum([index for index, _ in signed]):
            return None
        return Certificate(committee.epoch, round_, block_hash, tuple(SignedIndex(i, s) for i, s in signed))

    def _forget_before(self, round_: int) -> None:
        """Drop rounds whose votes nobody needs any more."""
        for old in [r for r in self._rounds if r < round_]:
            del self._rounds[old]


class TimeoutCollector:
    """Time-outs of terms: the newest term per member, so the memory is bounded by the committee."""

    def __init__(self) -> None:
        self._newest: dict[int, Timeout] = {}

    def add(self, timeout: Timeout, index: int) -> None:
        """Keep a checked time-out unless a newer one of the member is here."""
        if self.is_newer(timeout, index):
            self._newest[index] = timeout

    def is_newer(self, timeout: Timeout, index: int) -> bool:
        """Tell whether a time-out says more than what is known of its member."""
        known = self._newest.get(index)
        return known is None or _progress(known) < _progress(timeout)

    def members_at(self, term: int) -> list[int]:
        """Return who gave up on the term, by index."""
        return sorted(index for index, timeout in self._newest.items() if timeout.term == term)

    def certificate(self, committee: Committee, term: int) -> TimeoutCertificate | None:
        """Return the time-out certificate once a quorum gave up on the term."""
        members = self.members_at(term)
        if not committee.is_quorum(members):
            return None
        parts = (
            TimeoutPart(index, self._newest[index].high_certificate.round, self._newest[index].signature)
            for index in members
        )
        return TimeoutCertificate(committee.epoch, term, tuple(parts))

    def forget_through(self, term: int) -> None:
        """Drop terms that are over."""
        for index in [i for i, timeout in self._newest.items() if timeout.term <= term]:
            del self._newest[index]


def _progress(timeout: Timeout) -> tuple[int, int]:
    return timeout.term, timeout.high_certificate.round
