# SPDX-License-Identifier: GPL-3.0-or-later
"""What a core learns from messages of others: checked here, then it lies in the tree, the certificates and the round.

Nothing counts unchecked: a proposal by its leader's signature and place, a vote or time-out by its signature, and a
certificate by all of its own, whoever brings it.

Anybody may say again what was once said rightly. So what nothing can follow from any more is `Untimely` before a signature is
checked: then it costs little here, and it is not passed on. What is right and known but may be new to others, because members
repeat it, is passed on once in half a time-out. Votes and certificates of the rounds that votes are kept of are looked at as
long as they hold a vote that is not known: it may convict its member.
"""

from consensus.acting import give_up, try_commit
from consensus.block_tree import CertifiedMicroblock
from consensus.certificates import SignedHash, check_certificate, check_timeout_certificate
from consensus.checks import check_certified, check_placed, check_proposal
from consensus.desk import Desk
from consensus.events import Send
from consensus.messages import (
    Certificate,
    Certified,
    Message,
    Offer,
    Proposal,
    Reveal,
    Timeout,
    TimeoutCertificate,
    Vote,
    timeout_digest,
)
from consensus.safety import newest_round
from ledger.blocks import microblock_hash
from ledger.errors import InvalidInput
from ledger.evidence import conflicting_microblocks, conflicting_votes
from ledger.votes import vote_digest


class Untimely(InvalidInput):
    """A message that comes too late or too early to be of use here; its sender is not at fault."""


def on_message(desk: Desk, message: Message) -> None:
    """Take a message of a peer, or one of our own; raises `InvalidInput`."""
    if isinstance(message, Offer):
        _on_offer(desk, message)
        return
    epoch = _epoch_of(message)
    if epoch > desk.epoch.number:
        desk.keep_early(message, epoch)
        raise Untimely(f"message of epoch {epoch}; here it is {desk.epoch.number}")
    if epoch < desk.epoch.number or desk.ended:
        raise Untimely(f"message of epoch {epoch}, which is over")
    if isinstance(message, Proposal):
        on_proposal(desk, message)
    elif isinstance(message, Vote):
        _on_vote(desk, message)
    elif isinstance(message, Timeout):
        _on_timeout(desk, message)
    elif isinstance(message, Reveal):
        _on_reveal(desk, message)
    else:
        _on_certified(desk, message)


def _epoch_of(message: Proposal | Vote | Timeout | Certified | Reveal) -> int:
    if isinstance(message, Proposal):
        return message.signed.microblock.header.epoch
    return message.certificate.epoch if isinstance(message, Certified) else message.epoch


def on_proposal(desk: Desk, proposal: Proposal) -> None:
    """Take a proposal; it waits as an orphan until its parent is here. Raises `InvalidInput`."""
    signed = proposal.signed
    header = signed.microblock.header
    block_hash = microblock_hash(header)
    if header.round <= desk.known.root.round:
        raise Untimely(f"proposal of round {header.round}; round {desk.known.root.round} is final here")
    if block_hash in desk.known.tree or desk.known.is_orphan(header):
        raise Untimely(f"the proposal of round {header.round} is here already")
    known_hash, known = desk.proposed.get((header.round, header.leader), (block_hash, signed))
    if known_hash != block_hash and header.leader in desk.accused:
        raise Untimely(f"another proposal of round {header.round}; its leader is accused already")
    beside = proposal.certificate.round < desk.known.root.round
    if known_hash == block_hash and beside and not _is_news(desk, proposal.certificate, proposal.timeout_certificate):
        raise Untimely(f"proposal of round {header.round} beside what is final here")
    check_proposal(desk.epoch, proposal, block_hash)
    if known_hash != block_hash:
        index = desk.committee.index_of(header.leader)
        assert index is not None, "a checked proposal is a member's"
        evidence = conflicting_microblocks(
            desk.committee.members[index].public_key,
            (known.microblock.header, known.signature),
            (header, signed.signature),
        )
        desk.accuse(evidence, header.leader, f"proposed two microblocks in round {header.round}")
        return
    _learn(desk, proposal.certificate, proposal.timeout_certificate)
    if beside:
        return  # it would replace what is final here: its parent will never come
    parent = desk.known.tree.get(header.parent)
    if parent is None:
        desk.known.keep_orphan(proposal)
        desk.request_chain()
        return
    check_placed(desk.epoch, desk.known.tree, parent, proposal)
    if desk.known.add(block_hash, proposal) is not None:
        desk.proposed[header.round, header.leader] = (block_hash, signed)
    if parent.begins_epoch and signed.microblock.reveal is not None:
        desk.reveal = signed.microblock.reveal  # checked with the opening


def _on_offer(desk: Desk, offer: Offer) -> None:
    keyblock = offer.keyblock.keyblock
    if keyblock.previous != desk.epoch.record.keyblock or desk.ended:
        raise Untimely(
            f"keyblock mined on {keyblock.previous.hex()}; the newest here is {desk.epoch.record.keyblock.hex()}"
        )
    if desk.candidate is not None:
        if desk.candidate != offer.keyblock:
            # One solution can be signed again and again: only the first keyblock travels on.
            raise Untimely("another keyblock is the first one here")
        _hear_again(desk, "keyblock")
        return
    try:
        desk.epoch.check_not_ahead(offer.keyblock, desk.now_ms)
    except InvalidInput as error:
        raise Untimely(str(error)) from error
    desk.epoch.check_keyblock(offer.keyblock)
    desk.candidate = offer.keyblock


def _on_reveal(desk: Desk, reveal: Reveal) -> None:
    if reveal.signature == desk.reveal:
        _hear_again(desk, "reveal")
        return
    if desk.reveal is not None or not desk.known.root.begins_epoch:
        raise Untimely(f"the seed of epoch {reveal.epoch} is fixed")
    if not desk.epoch.is_reveal(reveal.signature):
        raise InvalidInput(f"the reveal for epoch {reveal.epoch} is not that of its keyblock's creator")
    desk.reveal = reveal.signature


def _hear_again(desk: Desk, what: str) -> None:
    """What is here comes again: others may have missed it, but not every moment."""
    if desk.lately(what):
        raise Untimely(f"the {what} is here already")
    desk.heed(what)


def _on_certified(desk: Desk, message: Certified) -> None:
    certificate, ended = message.certificate, message.timeout_certificate
    if not _is_news(desk, certificate, ended) and (
        certificate.round < desk.known.high.round or desk.lately("certified")
    ):
        raise Untimely(f"certificate of round {certificate.round}; here it is round {desk.pacemaker.round}")
    _learn(desk, certificate, ended)
    desk.heed("certified")


def _on_vote(desk: Desk, vote: Vote) -> None:
    index = desk.committee.index_of(vote.voter)
    if index is None:
        raise InvalidInput(f"vote of {vote.voter.hex()}, who is not in the committee of epoch {desk.epoch.number}")
    round_ = desk.pacemaker.round
    if not desk.votes.covers(vote.round, round_) or _knows_vote(desk, vote.round, index, vote.block_hash):
        raise Untimely(f"vote in round {vote.round}, which is here already or far from round {round_}")
    digest = vote_digest(desk.epoch.chain_id, vote.epoch, vote.round, vote.block_hash)
    if not desk.epoch.is_signed(index, digest, vote.signature):
        raise InvalidInput(f"vote in round {vote.round} is not signed by {vote.voter.hex()}")
    if (
        not _keep_vote(desk, vote.round, index, (vote.block_hash, vote.signature))
        or vote.round <= desk.known.high.round
    ):
        return
    certificate = desk.votes.certificate(desk.committee, vote.round, vote.block_hash)
    if certificate is not None:
        _take_certificate(desk, certificate)  # each of its votes has been checked
        desk.announce = certificate


def _knows_vote(desk: Desk, round_: int, index: int, block_hash: bytes) -> bool:
    """Tell whether nothing can follow from a vote: it is here, or its member is accused and its first vote in the round counts."""
    first = desk.votes.voted_for(round_, index)
    return first == block_hash or (first is not None and desk.committee.members[index].address in desk.accused)


def _keep_vote(desk: Desk, round_: int, index: int, vote: SignedHash) -> bool:
    """Keep a checked vote; False when the member has voted for another microblock in the round."""
    first = desk.votes.add(round_, index, vote, desk.pacemaker.round)
    if first[0] == vote[0]:
        return True
    member = desk.committee.members[index]
    evidence = conflicting_votes(member.public_key, desk.epoch.number, round_, first, vote)
    desk.accuse(evidence, member.address, f"voted for two microblocks in round {round_}")
    return False


def _on_timeout(desk: Desk, timeout: Timeout) -> None:
    index = desk.committee.index_of(timeout.voter)
    if index is None:
        raise InvalidInput(f"time-out of {timeout.voter.hex()}, not in the committee of epoch {desk.epoch.number}")
    high_round = timeout.high_certificate.round
    late = timeout.term < desk.pacemaker.term
    news = _is_news(desk, timeout.high_certificate, timeout.entry) or (
        not late and desk.pacemaker.timeouts.is_newer(timeout, index)
    )
    if not news and desk.lately("help" if late else "time-out", index):
        raise Untimely(f"the time-out of term {timeout.term} of {timeout.voter.hex()} brings nothing new")
    digest = timeout_digest(desk.epoch.chain_id, timeout.epoch, timeout.term, high_round)
    if not desk.epoch.is_signed(index, digest, timeout.signature):
        raise InvalidInput(f"time-out of term {timeout.term} is not signed by {timeout.voter.hex()}")
    if late and not news:
        _help_up(desk, index)
        raise Untimely(f"time-out of term {timeout.term}; here it is {desk.pacemaker.term}")
    _learn(desk, timeout.high_certificate, timeout.entry)
    if timeout.term < desk.pacemaker.term or high_round < desk.known.high.round:
        _help_up(desk, index)
    if timeout.term < desk.pacemaker.term:
        return
    desk.heed("time-out", index)
    timeouts = desk.pacemaker.timeouts
    timeouts.add(timeout, index)
    ended = timeouts.certificate(desk.committee, timeout.term)
    if ended is not None:
        _learn(desk, desk.known.high, ended)
    elif timeout.term == desk.pacemaker.term and desk.committee.must_hold_honest(
        timeouts.members_at(desk.pacemaker.term)
    ):
        give_up(desk, repeat=False)


def _help_up(desk: Desk, index: int) -> None:
    """Tell a member that has fallen behind where we are; anybody may repeat its old time-outs, so not each time."""
    ours = desk.member is not None and index == desk.member.index
    if ours or desk.lately("help", index):
        return
    desk.heed("help", index)
    address = desk.committee.members[index].address
    desk.emit(Send(address, Certified(desk.known.high, desk.pacemaker.entry)))


def on_chain(desk: Desk, blocks: tuple[CertifiedMicroblock, ...]) -> None:
    """Take certified microblocks for catching up; those of later epochs have to come again. Raises `InvalidInput`."""
    for block in blocks:
        header = block.signed.microblock.header
        if desk.ended or header.epoch > desk.epoch.number:
            return
        block_hash = microblock_hash(header)
        below = header.epoch < desk.epoch.number or header.height <= desk.known.root.header.height
        if below or desk.known.certificate_of(block_hash) is not None:
            continue
        check_certified(desk.epoch, block, block_hash)
        parent = desk.known.tree.get(header.parent)
        parent_certificate = desk.known.certificate_of(header.parent)
        if parent is None or parent_certificate is None:
            return  # an answer to what we asked before, or beside what we know: nobody's fault
        proposal = Proposal(block.signed, parent_certificate, None)
        check_placed(desk.epoch, desk.known.tree, parent, proposal)
        node = desk.known.add(block_hash, proposal)
        if node is None:
            return  # no room before what is here has been committed
        desk.overtaken = desk.overtaken or node.ends_epoch
        _take_certificate(desk, block.certificate)
        try_commit(desk)


def _is_news(desk: Desk, certificate: Certificate, ended: TimeoutCertificate | None) -> bool:
    """Tell whether anything can follow from certificates here, if they are right."""
    if ended is not None and ended.term >= desk.pacemaker.term:
        return True
    known, round_ = desk.known, certificate.round
    if round_ > known.high.round or (
        round_ > known.root.round and known.certificate_of(certificate.block_hash) is None
    ):
        return True
    return desk.votes.covers(round_, desk.pacemaker.round) and not all(
        _knows_vote(desk, round_, vote.member, certificate.block_hash) for vote in certificate.votes
    )


def _learn(desk: Desk, certificate: Certificate, ended: TimeoutCertificate | None) -> None:
    """Check certificates, always; newer ones move the round, and may commit."""
    if not desk.known.knows(certificate):
        check_certificate(desk.epoch, certificate)
    if ended is not None and ended != desk.pacemaker.entry:
        check_timeout_certificate(desk.epoch, ended)
    _take_certificate(desk, certificate)
    if ended is None:
        return
    if newest_round(ended) > desk.known.high.round:
        raise InvalidInput(
            f"time-out of term {ended.term} tells of a certificate of round {newest_round(ended)}; none as "
            "new comes with it"
        )
    desk.pacemaker.ended(ended, desk.now_ms)


def _take_certificate(desk: Desk, certificate: Certificate) -> None:
    if desk.votes.covers(certificate.round, desk.pacemaker.round):
        # Who voted otherwise elsewhere, or stands in two certificates of one round, has broken the protocol.
        for part in certificate.votes:
            _keep_vote(desk, certificate.round, part.member, (certificate.block_hash, part.signature))
    here = desk.known.take(certificate)
    desk.pacemaker.certified(certificate.round, desk.now_ms)
    if not here:
        desk.request_chain()
