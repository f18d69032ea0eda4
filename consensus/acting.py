# SPDX-License-Identifier: GPL-3.0-or-later
"""What a core does when it can: commit, vote, propose, give up. Each function checks by itself whether it may."""

from consensus.block_tree import CertifiedMicroblock, Node
from consensus.desk import Desk
from consensus.events import Broadcast, Commit, Disagreement, RequestBatches, Send
from consensus.member import Member
from consensus.messages import Certified
from ledger.blocks import Microblock, MicroblockHeader, pinned_digest
from ledger.crypto.merkle import merkle_root
from ledger.errors import InvalidInput


def try_commit(desk: Desk) -> None:
    """Hand out what is final, as far as its batches are here and what it refers to is executed."""
    while not (desk.halted or desk.ended) and (node := desk.known.next_commit()) is not None:
        header = node.header
        ours = desk.known.digests.get(header.executed_height)
        if ours is None:
            return  # the microblock that it refers to is being executed
        if ours != header.state_digest:
            desk.halted = True
            what = f"final microblock {header.height} states another state after {header.executed_height} than ours"
            desk.emit(Disagreement(header.leader, what))
            return
        missing = desk.payload.missing(node.batches)
        if missing:
            desk.emit_once(RequestBatches(missing))
            return
        _commit(desk, node)


def _commit(desk: Desk, node: Node) -> None:
    certificate = desk.known.certificate_of(node.hash)
    assert node.proposal is not None, "only the root has none"
    assert certificate is not None, "its child carries its certificate"
    signed = node.proposal.signed
    closing = desk.known.proof_after(node) if node.ends_epoch else ()
    if node.ends_epoch and desk.announce is not None:
        desk.emit(Broadcast(Certified(desk.announce, None)))  # no proposal will carry it any more
    desk.ended = node.ends_epoch
    desk.executing += 1
    desk.emit(Commit(signed, node.hash, CertifiedMicroblock(signed, certificate), closing))
    desk.known.advance(node)
    desk.pacemaker.patience.committed()
    _forget_old(desk)


def _forget_old(desk: Desk) -> None:
    oldest = desk.known.root.round
    if desk.member is not None:
        desk.member.keep_only(desk.known.tree)
    desk.proposed = {place: block for place, block in desk.proposed.items() if place[0] > oldest}
    desk.refused = {block_hash for block_hash in desk.refused if block_hash in desk.known.tree}


def try_vote(desk: Desk) -> None:
    """Vote for a microblock of the current round if the safety rules, the state and the payload allow it."""
    for node in list(desk.current()):
        if desk.member is None or not desk.may_act():
            return
        if node.proposal is not None and desk.member.may_vote(node.proposal, desk.parameters.term_microblocks):
            _vote_if_right(desk, desk.member, node)


def _vote_if_right(desk: Desk, member: Member, node: Node) -> None:
    header = node.header
    if header.timestamp_ms > desk.now_ms + desk.parameters.timestamp_drift_ms or _is_keyblock_ahead(desk, node):
        return  # a clock is wrong, the other's or ours; a later event tries again
    ours = desk.known.digests.get(header.executed_height)
    if ours is None:
        return  # something final is not executed here: its batches are missing
    if ours != header.state_digest:
        _refuse(desk, node, "states another state digest than ours")
        return
    if desk.payload.is_too_much(node.batches):
        _refuse(desk, node, "asks for more than a microblock may")
        return
    not_ready = desk.payload.not_ready(node.batches)
    if not_ready:
        desk.emit_once(RequestBatches(not_ready))
        return
    repeated = desk.known.tree.ordered_batches(header.parent).intersection(node.batches)
    if repeated or any(desk.payload.is_committed(digest) for digest in node.batches):
        _refuse(desk, node, "orders a batch twice")
        return
    persists, vote = member.vote(desk.known.tree.path(node.hash), desk.known.high)
    desk.effects.extend(persists)
    desk.pacemaker.patience.progress(desk.now_ms)
    collectors = {header.leader}
    if (header.round + 1) // desk.parameters.term_microblocks != header.term:
        collectors.add(desk.committee.members[desk.epoch.next_term_leader(header)].address)
    for address in sorted(collectors):
        if address == member.address:
            desk.inbox.append(vote)
        else:
            desk.emit(Send(address, vote))


def _is_keyblock_ahead(desk: Desk, node: Node) -> bool:
    assert node.proposal is not None, "only the root has none"
    keyblock = node.proposal.signed.microblock.keyblock
    if keyblock is None:
        return False
    try:
        desk.epoch.check_not_ahead(keyblock, desk.now_ms)
    except InvalidInput:
        return True
    return False


def try_propose(desk: Desk) -> None:
    """Propose in the current round as its leader, if there is something to order, to finish or to show life."""
    member, pacemaker = desk.member, desk.pacemaker
    if member is None or not desk.may_act() or not member.may_propose(pacemaker.round, pacemaker.term):
        return
    if desk.known.high.round != pacemaker.round - 1 and not pacemaker.opened_by_timeout:
        return
    parent = desk.known.tree.get(desk.known.high.block_hash)
    if parent is None or desk.leader_after(parent) != member.index:
        return  # what is certified is not here, or somebody else leads
    executed_height = desk.known.tree.executed_height(parent)
    state_digest = desk.known.digests.get(executed_height)
    if state_digest is None:
        return  # something final is not here
    ordered = desk.known.tree.ordered_batches(parent.hash)
    batches = () if parent.ends_epoch else desk.payload.select(ordered, desk.parameters.block_batches)
    idle = not batches and not ordered and not desk.must_go_on(parent)
    if idle and not pacemaker.patience.heartbeat_due(desk.now_ms):
        return
    block = _microblock(desk, member, parent, batches, (executed_height, state_digest))
    ended = pacemaker.entry if desk.known.high.round != pacemaker.round - 1 else None
    persist, proposal = member.propose(block, desk.known.high, ended)
    desk.emit(persist)
    desk.announce = None  # the proposal carries it
    desk.emit(Broadcast(proposal))
    desk.inbox.append(proposal)


def _microblock(
    desk: Desk, member: Member, parent: Node, batches: tuple[bytes, ...], executed: tuple[int, bytes]
) -> Microblock:
    reveal = desk.reveal if parent.begins_epoch else None
    keyblock = desk.candidate if desk.wants_keyblock(parent) else None
    header = MicroblockHeader(
        height=parent.header.height + 1,
        epoch=desk.epoch.number,
        term=desk.pacemaker.term,
        round=desk.pacemaker.round,
        parent=parent.hash,
        keyblock=desk.epoch.record.keyblock,
        seed=desk.epoch.opening_seed(reveal) if parent.begins_epoch else parent.header.seed,
        leader=member.address,
        timestamp_ms=max(desk.now_ms, parent.header.timestamp_ms + 1),
        batch_count=len(batches),
        batches_root=merkle_root(batches),
        pinned=pinned_digest(keyblock),
        executed_height=executed[0],
        state_digest=executed[1],
    )
    return Microblock(header, batches, keyblock, reveal)


def give_up(desk: Desk, *, repeat: bool) -> None:
    """Time out on the current term, or say so again."""
    member = desk.member
    if member is None or desk.ended or (member.has_given_up(desk.pacemaker.term) and not repeat):
        return
    persist, timeout = member.give_up(desk.epoch.number, desk.pacemaker.term, desk.known.high, desk.pacemaker.entry)
    # Also one who only joined says it again until the term is over: its first word may be lost.
    desk.pacemaker.patience.repeat(desk.now_ms)
    desk.emit(persist)
    desk.emit(Broadcast(timeout))
    desk.inbox.append(timeout)


def _refuse(desk: Desk, node: Node, why: str) -> None:
    desk.refused.add(node.hash)
    desk.emit(Disagreement(node.header.leader, f"microblock of round {node.header.round} {why}"))


def has_work(desk: Desk) -> bool:
    """Tell whether a leader is owed: something is unfinished or waits to be ordered."""
    current = next(desk.current(), None)
    tip = current if current is not None else desk.known.tree.get(desk.known.high.block_hash)
    if tip is None or desk.must_go_on(tip):
        return True
    ordered = desk.known.tree.ordered_batches(tip.hash)
    return bool(ordered) or bool(desk.payload.select(ordered, 1))
