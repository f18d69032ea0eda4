# SPDX-License-Identifier: GPL-3.0-or-later
"""What a member must never forget: the safety record, on disk before any vote, proposal or time-out leaves.

The rules are those of Jolteon (Gelashvili et al., FC 2022, figure 2) with the term in the place of the round for time-outs:

S1 a member votes at most once per round, in rising rounds;
S2 after giving up on a term it votes in none of that term's rounds;
S3 it votes for a microblock whose parent is certified in the round before, or which shows that a quorum gave up on the
   term before and whose parent's certificate is at least as new as any that this quorum knew.

A time-out certificate holds bare round numbers for what its signers knew, so one liar could report a certificate that does
not exist and no leader could ever satisfy S3 again. Therefore it counts only beside a certificate at least as new as the
newest round in it (`newest_round`); whoever gave up honestly has such a certificate and sends it along.

Why two-chain commits are final: if a microblock of round r and its child of round r+1 are certified, a quorum knew the
certificate of round r when it voted in round r+1. Whoever votes in round r+1 of term t has not given up on t yet (S2), so
every later time-out certificate of a term ≥ t holds an honest member that reports a round ≥ r, and S3 admits only successors.

All of this is within one epoch: promises are tagged with it, and an epoch begins only where the microblock it starts from is final.
"""

import msgspec

from consensus.epoch import Epoch
from consensus.messages import Certificate, Proposal, TimeoutCertificate
from ledger.codec import Uint, Wire


class SafetyRecord(Wire, frozen=True):
    """What a member has promised so far."""

    epoch: Uint
    """Epoch of the promises."""
    voted_round: Uint
    """Highest round in which it voted."""
    proposed_round: Uint
    """Highest round in which it proposed."""
    timed_out_term: int
    """Highest term that it gave up on; −1 when none."""
    high_certificate: Certificate
    """The newest certificate that it knew at any of these promises."""
    entry: TimeoutCertificate | None
    """The time-out certificate by which it entered the term it gave up on, so that a restarted network agrees on the term."""


def fresh_record(epoch: Epoch) -> SafetyRecord:
    """Return the record of a member that has promised nothing in an epoch."""
    root = epoch.root_certificate
    return SafetyRecord(epoch.number, root.round, root.round, epoch.first_term - 1, root, None)


def newest_round(ended: TimeoutCertificate) -> int:
    """Return the newest round that a signer of a time-out certificate says to have a certificate of."""
    return max((part.high_round for part in ended.timeouts), default=0)


def extends_safely(proposal: Proposal, term_microblocks: int) -> bool:
    """S3: tell whether the proposal's certificates, already checked, allow a vote."""
    header = proposal.signed.microblock.header
    if header.round == proposal.certificate.round + 1:
        return True
    ended = proposal.timeout_certificate
    if ended is None or header.round != (ended.term + 1) * term_microblocks:
        return False
    return proposal.certificate.round >= newest_round(ended)


def may_vote(record: SafetyRecord, proposal: Proposal, term_microblocks: int) -> bool:
    """S1, S2 and S3 together."""
    header = proposal.signed.microblock.header
    return (
        header.epoch == record.epoch
        and header.round > record.voted_round
        and header.term > record.timed_out_term
        and extends_safely(proposal, term_microblocks)
    )


def record_vote(record: SafetyRecord, round_: int, high: Certificate) -> SafetyRecord:
    """Return the record after a vote in a round."""
    assert round_ > record.voted_round, "S1: a round is voted in once"
    return msgspec.structs.replace(record, voted_round=round_, high_certificate=_newer(record, high))


def record_proposal(record: SafetyRecord, round_: int, high: Certificate) -> SafetyRecord:
    """Return the record after a proposal in a round."""
    assert round_ > record.proposed_round, "a round is proposed in once"
    return msgspec.structs.replace(record, proposed_round=round_, high_certificate=_newer(record, high))


def record_timeout(
    record: SafetyRecord, term: int, high: Certificate, entry: TimeoutCertificate | None
) -> SafetyRecord:
    """Return the record after giving up on a term that was entered by `entry` or by a certificate."""
    assert term >= record.timed_out_term, "terms are given up in rising order"
    newest = _newer(record, high)
    return msgspec.structs.replace(record, timed_out_term=term, high_certificate=newest, entry=entry)


def _newer(record: SafetyRecord, high: Certificate) -> Certificate:
    return high if high.round >= record.high_certificate.round else record.high_certificate
