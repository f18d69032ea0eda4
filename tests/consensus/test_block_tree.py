# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from consensus import block_tree
from consensus.block_tree import BlockTree, Node
from consensus.core import root_node
from consensus.messages import Proposal
from consensus.uncommitted import CommittedHead, Uncommitted
from ledger.blocks import MicroblockHeader
from tests.consensus.kit import Net, batch, hash_of

NET = Net()
ROOT = root_node(NET.epoch, ())


def child(above: MicroblockHeader, round_: int, *names: str) -> Proposal:
    batches = tuple(batch(name) for name in names)
    return NET.proposal(NET.header(round_, above, batches=batches), batches=batches)


def header(proposal: Proposal) -> MicroblockHeader:
    return proposal.signed.microblock.header


A = child(NET.first, 1, "a")
B = child(header(A), 2, "b")
C = child(header(B), 5, "c")
SIBLING = child(header(A), 4, "s")


def tree(*proposals: Proposal) -> BlockTree:
    made = BlockTree(ROOT)
    for proposal in proposals:
        assert made.add(hash_of(proposal), proposal) is not None
    return made


def test_a_path_leads_from_the_root_to_a_microblock() -> None:
    made = tree(A, B, C, SIBLING)
    assert [node.hash for node in made.path(hash_of(C))] == [hash_of(A), hash_of(B), hash_of(C)]
    assert made.path(ROOT.hash) == []
    assert made.path(b"unknown") == []
    assert made.ordered_batches(hash_of(C)) == {batch("a"), batch("b"), batch("c")}
    assert made.ordered_batches(hash_of(SIBLING)) == {batch("a"), batch("s")}


def test_a_microblock_without_its_parent_stays_out_and_a_known_one_is_added_once() -> None:
    made = tree(A)
    assert made.add(hash_of(C), C) is None
    assert hash_of(C) not in made
    assert made.add(hash_of(A), A) is made.get(hash_of(A))


def test_two_rounds_in_a_row_commit_the_parent() -> None:
    made = tree(A, B, C)
    commits = [node.commits_parent for p in (A, B, C) if (node := made.get(hash_of(p))) is not None]
    assert commits == [True, True, False]
    assert not ROOT.commits_parent
    executed = [made.executed_height(node) for p in (A, B, C) if (node := made.get(hash_of(p))) is not None]
    assert [made.executed_height(ROOT), *executed] == [0, 0, 1, 0]


def test_a_new_root_drops_what_does_not_descend_from_it() -> None:
    made = tree(A, B, C, SIBLING)
    for proposal in (A, B):
        node = made.get(hash_of(proposal))
        assert node is not None
        made.advance_root(node)
    assert made.root.hash == hash_of(B)
    assert made.root.proposal is None
    assert hash_of(C) in made
    assert hash_of(SIBLING) not in made
    assert hash_of(A) not in made
    stray = Node(b"x" * 32, header(A), (), 1, 0, A)
    with pytest.raises(AssertionError, match="one by one"):
        made.advance_root(stray)


def test_a_full_tree_makes_room_by_dropping_old_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tree, "MAX_UNCOMMITTED", 5)
    made = tree(A, B, SIBLING, C)
    later = child(header(C), 6)
    assert made.add(hash_of(later), later) is None
    made.drop_siblings(hash_of(C))
    assert hash_of(SIBLING) not in made
    assert made.add(hash_of(later), later) is not None
    made.drop_siblings(ROOT.hash)
    assert hash_of(later) in made, "what is newer than the tip is kept"


def test_what_gave_way_counts_as_unknown_so_that_an_answer_can_bring_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain may go on with it all the same: behind a time-out certificate of members that have not seen the newer one."""
    monkeypatch.setattr(block_tree, "MAX_UNCOMMITTED", 5)
    known = Uncommitted(CommittedHead(ROOT, NET.root, ((0, NET.state),)))
    for proposal in (A, B, SIBLING, C):
        assert known.add(hash_of(proposal), proposal) is not None
    for proposal in (SIBLING, C):
        assert known.take(NET.certificate(header(proposal).round, hash_of(proposal)))
    later = child(header(C), 6)
    assert known.add(hash_of(later), later) is not None
    assert hash_of(SIBLING) not in known.tree
    assert known.certificate_of(hash_of(SIBLING)) is None
    assert known.certificate_of(hash_of(C)) is not None
