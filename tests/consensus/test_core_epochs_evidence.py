# SPDX-License-Identifier: GPL-3.0-or-later
"""Who signs a contradiction is named, with evidence that convinces the chain; who did not never is.

The kit checks each accusation against `ledger.evidence` and against those that the test signed for.
"""

import msgspec
import pytest

from consensus.block_tree import CertifiedMicroblock
from consensus.desk import VOTE_WINDOW_ROUNDS
from consensus.events import Misbehaviour, Received, ReceivedChain, Refused
from consensus.messages import Certificate, Certified, Proposal
from ledger import testing
from ledger.blocks import microblock_hash, microblock_signing_digest
from ledger.crypto.keys import PrivateKey, verify
from ledger.evidence import ConflictingMicroblocks, ConflictingVotes, check_evidence
from ledger.votes import SignedIndex, vote_digest
from tests.consensus.kit import Net, hash_of

replace = msgspec.structs.replace
A, B = b"a" * 32, b"b" * 32


def accused(net: Net, *who: int) -> list[tuple[int, type, int]]:
    """Whom cores name, with the kind of evidence and the epoch of the offence."""
    told = [effect for effect in net.said(Misbehaviour, *who) if isinstance(effect, Misbehaviour)]
    guilts = [check_evidence(net.chain.id, effect.evidence) for effect in told]
    return [(net.number(e.member), type(e.evidence), g.epoch) for e, g in zip(told, guilts, strict=True)]


def later(epochs: int) -> Net:
    """A network some epochs on, each with an opening."""
    net = Net(term=64)
    for _ in range(epochs):
        net.turn(0)
        net.run()
    return net


@pytest.mark.parametrize("epoch", [0, 1])
def test_two_votes_in_one_round_are_evidence_whichever_comes_first(epoch: int) -> None:
    for hashes in ((A, B), (B, A)):
        net = later(epoch)
        round_ = net.cores[0].round
        for block_hash in hashes:
            net.step(0, Received(net.vote(1, round_, block_hash)))
        assert accused(net, 0) == [(1, ConflictingVotes, epoch)]
        net.step(0, Received(net.vote(1, round_ + 1, A)))
        net.step(0, Received(net.vote(1, round_ + 1, B)))
        assert len(accused(net, 0)) == 1, "told once"


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_second_vote_that_comes_after_its_round_is_evidence(epoch: int) -> None:
    net = later(epoch)
    net.give("a")
    net.run()
    committed = net.disks[0].chain[-1]
    assert committed.certificate.epoch == epoch
    voter = committed.certificate.votes[-1].member
    for i in range(4):
        net.step(i, Received(net.vote(voter, committed.certificate.round, A)))
        assert accused(net, i) == [(voter, ConflictingVotes, epoch)]


def test_a_vote_from_long_ago_is_not_kept_and_not_checked() -> None:
    net = Net(term=256)
    for number in range(VOTE_WINDOW_ROUNDS + 2):
        net.give(f"b{number}")
        net.run()
    assert net.cores[0].round > VOTE_WINDOW_ROUNDS + 1
    effects = net.step(0, Received(replace(net.vote(1, 1, A), signature=bytes(64))))
    assert [e.at_fault for e in effects if isinstance(e, Refused)] == [False]
    assert len(net.cores[0]._desk.votes._rounds) <= 2 * VOTE_WINDOW_ROUNDS + 1


def test_a_vote_that_contradicts_a_certificate_is_evidence() -> None:
    net = Net()
    lead, one, two, three = net.order
    net.step(lead, Received(net.vote(one, 3, A)))
    net.step(lead, Received(Certified(net.certificate(3, B, (one, two, three)), None)))
    assert accused(net, lead) == [(one, ConflictingVotes, 0)]


def test_two_certificates_of_one_round_accuse_all_who_are_in_both() -> None:
    net = Net(n=7)
    net.step(0, Received(Certified(net.certificate(3, A, (0, 1, 2, 3, 4)), None)))
    net.step(0, Received(Certified(net.certificate(3, B, (2, 3, 4, 5, 6)), None)))
    assert sorted(accused(net)) == [(i, ConflictingVotes, 0) for i in (2, 3, 4)]
    assert len(accused(net)) > net.committee.faults, "so many that safety may be lost, and it shows"


@pytest.mark.parametrize("how", ["certified", "chain", "proposal", "time-out"])
def test_whatever_brings_the_second_certificate_it_accuses(how: str) -> None:
    net = Net(n=7)
    watcher = net.order[6]
    first = net.proposal(net.header(1))
    twin = net.proposal(net.header(1, later_ms=2))
    net.step(watcher, Received(first))
    net.step(watcher, Received(Certified(net.certificate(1, hash_of(first), (0, 1, 2, 3, 4)), None)))
    second = net.certificate(1, hash_of(twin), (2, 3, 4, 5, 6))
    if how == "certified":
        net.step(watcher, Received(Certified(second, None)))
    elif how == "chain":
        net.step(watcher, ReceivedChain((CertifiedMicroblock(twin.signed, second),)))
    elif how == "proposal":
        net.step(watcher, Received(net.proposal(net.header(2, twin.signed.microblock.header), second)))
    else:
        net.step(watcher, Received(net.timeout(5, 0, high=second)))
    named = {i for i, kind, _ in accused(net) if kind is ConflictingVotes}
    assert named == {2, 3, 4}


@pytest.mark.parametrize("epoch", [0, 1])
def test_two_proposals_in_one_round_are_evidence(epoch: int) -> None:
    net = later(epoch)
    tail = net.cores[0].certified_tail()
    above = tail[-1].signed.microblock.header if tail else net.first
    certificate = tail[-1].certificate if tail else net.root
    round_ = net.cores[0].round
    twins = [net.proposal(net.header(round_, above, later_ms=ms), certificate) for ms in (1, 2)]
    lead = net.number(twins[0].signed.microblock.header.leader)
    watcher = next(i for i in range(4) if i != lead)
    for order in (twins, twins[::-1]):
        for twin in order:
            net.step(watcher, Received(twin))
    assert accused(net, watcher) == [(lead, ConflictingMicroblocks, epoch)]


def test_twin_openings_and_twin_pins_are_evidence_too() -> None:
    net = Net()
    lead, watcher, *_ = net.order
    for miner in (0, 1):
        signed = net.mine(miner)
        net.step(watcher, Received(net.proposal(net.header(1, keyblock=signed), keyblock=signed)))
    assert accused(net) == [(lead, ConflictingMicroblocks, 0)]
    net = Net()
    net.withholding = {0}
    net.turn(0)
    reveal = net.reveal(0).signature
    twins = [
        net.proposal(net.header(net.epoch.first_round, reveal=reveal, later_ms=ms), reveal=reveal) for ms in (1, 2)
    ]
    lead = net.number(twins[0].signed.microblock.header.leader)
    watcher = next(i for i in range(4) if i != lead)
    for twin in twins:
        net.step(watcher, Received(twin))
    assert accused(net) == [(lead, ConflictingMicroblocks, 1)]


# ---------------------------------------------------------------- what is no offence


def test_another_signature_of_the_same_vote_or_proposal_is_no_offence() -> None:
    net = Net()
    lead, one, watcher, _ = net.order
    vote = net.vote(one, 1, A)
    digest = vote_digest(net.chain.id, 0, 1, A)
    again = replace(vote, signature=second_signature(one, digest))
    proposal = net.proposal(net.header(1))
    signed = proposal.signed
    block_digest = microblock_signing_digest(net.chain.id, microblock_hash(signed.microblock.header))
    resigned = replace(proposal, signed=replace(signed, signature=second_signature(lead, block_digest)))
    assert again != vote
    assert resigned != proposal
    for message, is_known in ((vote, False), (again, True), (proposal, False), (resigned, True)):
        effects = net.step(watcher, Received(message))
        assert not [e for e in effects if isinstance(e, Misbehaviour)]
        assert [e.at_fault for e in effects if isinstance(e, Refused)] == [False] * is_known


def second_signature(i: int, digest: bytes) -> bytes:
    """Another valid signature of a key: ECDSA has as many as its signer cares to draw."""
    order = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
    secret, nonce = int.from_bytes(testing.key(i).secret), 7
    r = int.from_bytes(PrivateKey(nonce.to_bytes(32)).public_key[1:]) % order
    s = pow(nonce, -1, order) * (int.from_bytes(digest) + r * secret) % order
    signature = r.to_bytes(32) + min(s, order - s).to_bytes(32)
    assert verify(testing.key(i).public_key, digest, signature)
    return signature


def test_votes_for_two_microblocks_in_two_rounds_or_epochs_are_no_offence() -> None:
    net = Net(term=16)
    old = net.vote(1, 30, A)
    for vote in (old, net.vote(1, 29, B)):
        net.step(0, Received(vote))
    net.turn(0)
    net.run()
    for vote in (net.vote(1, 30, B), old):
        net.step(0, Received(vote))
    assert accused(net) == []
    net.step(0, Received(net.vote(1, 30, A)))
    assert accused(net) == [(1, ConflictingVotes, 1)]


def test_a_false_vote_accuses_nobody() -> None:
    net = Net()
    lead, one, two, _ = net.order
    net.step(lead, Received(net.vote(one, 1, A)))
    forged = replace(net.vote(two, 1, B), voter=net.address(one))
    assert [e.at_fault for e in net.step(lead, Received(forged)) if isinstance(e, Refused)] == [True]
    assert accused(net) == []


def test_a_false_certificate_accuses_nobody() -> None:
    net = Net()
    net.step(0, Received(Certified(net.certificate(3, A, (0, 1, 2)), None)))
    good = net.certificate(3, B, (1, 2, 3))
    swapped = replace(good, votes=(*good.votes[:2], SignedIndex(3, good.votes[0].signature)))
    few = replace(good, votes=good.votes[:2])
    for wrong in (swapped, few):
        effects = net.step(0, Received(Certified(wrong, None)))
        assert [e.at_fault for e in effects if isinstance(e, Refused)] == [True]
    assert accused(net) == []


# ---------------------------------------------------------------- certificates of another committee


@pytest.mark.parametrize("label", ["old", "relabelled", "doubled", "foreign", "unsorted"])
def test_a_certificate_that_is_not_of_the_epochs_committee_counts_nothing(label: str) -> None:
    net = Net(n=4, newcomers=4, seats={1: (4, 5, 6, 7)})
    old = net.certificate(5, A, (0, 1, 2))
    net.turn(4)
    net.run()
    round_ = net.cores[0].round
    good = net.certificate(round_, A, (4, 5, 6))
    wrong: Certificate = {
        "old": old,
        "relabelled": replace(old, epoch=1),
        "doubled": replace(good, votes=(good.votes[0], good.votes[1], good.votes[1])),
        "foreign": replace(good, votes=(*good.votes[:2], SignedIndex(4, good.votes[2].signature))),
        "unsorted": replace(good, votes=good.votes[::-1]),
    }[label]
    before = net.cores[5].high
    effects = net.step(5, Received(Certified(wrong, None)))
    assert [e.at_fault for e in effects if isinstance(e, Refused)] == [label != "old"]
    assert net.cores[5].high == before
    net.step(5, Received(Certified(good, None)))
    assert net.cores[5].high == good


def test_a_root_certificate_of_another_microblock_or_with_another_round_counts_nothing() -> None:
    net = later(1)
    wrong = (replace(net.root, block_hash=A), replace(net.root, round=net.cores[1].high.round + 1))
    for certificate, is_old in zip(wrong, (True, False), strict=True):
        effects = net.step(1, Received(Certified(certificate, None)))
        assert [e.at_fault for e in effects if isinstance(e, Refused)] == [not is_old]


def test_an_old_member_has_no_voice_in_the_next_epoch() -> None:
    net = Net(n=4, newcomers=4, seats={1: (4, 5, 6, 7)})
    net.turn(4)
    net.run()
    round_ = net.cores[5].round
    header = replace(
        net.header(round_ + 1, net.cores[5].certified_tail()[-1].signed.microblock.header), leader=net.address(1)
    )
    above = net.certificate(round_, A, (4, 5, 6))
    proposal: Proposal = net.proposal(replace(header, parent=A), above)
    for message in (net.vote(1, round_, A), net.timeout(1, net.epoch.first_term), proposal):
        assert [e.at_fault for e in net.step(5, Received(message)) if isinstance(e, Refused)] == [True]


# ---------------------------------------------------------------- bounds


def test_a_leader_with_many_faces_fills_no_memory() -> None:
    net = Net()
    watcher = net.order[3]
    for ms in range(1, 200):
        net.step(watcher, Received(net.proposal(net.header(1, later_ms=ms))))
    desk = net.cores[watcher]._desk
    assert len(desk.proposed) == 1
    assert len(desk.accused) == 1
    assert len(desk.known.tree._nodes) == 2
    assert len(accused(net)) == 1


def test_what_was_proposed_is_forgotten_with_its_height_and_with_its_epoch() -> None:
    net = Net(term=64)
    net.commit(*"abcdef")
    assert max(len(core._desk.proposed) for core in net.cores) <= 3
    net.turn(0)
    net.commit("g")
    assert max(len(core._desk.proposed) for core in net.cores) <= 3
    rounds = [round_ for core in net.cores for round_, _ in core._desk.proposed]
    assert min(rounds) >= net.epoch.first_round
