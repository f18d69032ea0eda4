# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a core starts is where it was: what the store tells is what a core that lived through the chain knows."""

from collections.abc import Callable

import pytest

from consensus.core import root_node
from consensus.events import Received
from consensus.messages import Certified
from consensus.restart import committed_head, decode_certificate, decode_closing, decode_signed
from consensus.uncommitted import Uncommitted
from ledger.codec import encode
from ledger.errors import InvalidInput, StoreError
from ledger.memory_store import MemoryStore
from tests.consensus.kit import Net, batch


def check_same(net: Net) -> None:
    """The start of each core that lives is the same as one that is read from its store."""
    for core, disk in zip(net.cores, net.disks, strict=True):
        head = committed_head(disk.store, disk.epochs[-1])
        live, restarted = core._desk.known, Uncommitted(head)
        assert restarted.root == live.root
        assert restarted.digests == live.digests
        assert restarted.tree.executed_height(restarted.root) == live.tree.executed_height(live.root)
        assert restarted.certificate_of(restarted.root.hash) is not None
        assert (restarted.root.hash == disk.epochs[-1].record.root_hash) == restarted.root.begins_epoch


@pytest.mark.parametrize("term", [2, 3, 64])
def test_at_any_moment_of_many_epochs_the_store_tells_where_the_core_is(term: int) -> None:
    net = Net(term=term, seats={2: (3, 1, 2)})
    check_same(net)
    for number in range(4):
        net.give(f"a{number}")
        net.offer(net.mine(number))
        while net.queue:
            source, target, event = net.queue.popleft()
            net.step(target, event, source)
            check_same(net)
        net.heal(lambda: len({len(disk.epochs) for disk in net.disks}) == 1)
        net.epoch = net.disks[0].epochs[-1]
        net.commit(f"b{number}", f"c{number}")
        check_same(net)
    assert net.epoch.number >= 3


def test_a_core_that_begins_an_epoch_starts_from_its_root_whatever_the_root_ordered() -> None:
    net = Net()
    for pool in net.pools:
        pool.here.append(batch("a"))
    net.withholding = {0}
    net.turn(0)
    head = committed_head(net.disks[1].store, net.epoch)
    assert head.node == root_node(net.epoch, (batch("a"),))
    assert head.certificate == net.epoch.root_certificate
    assert head.state_digests == ((net.epoch.root.height, net.state),)


def test_a_microblock_behind_the_root_has_the_round_before_the_epoch_as_its_parents() -> None:
    net = Net(term=64)
    net.turn(0)
    net.heal(lambda: net.cores[0].committed_height == net.epoch.root.height + 1, turns=90)
    node = committed_head(net.disks[0].store, net.epoch).node
    assert node.header.parent == net.epoch.record.root_hash
    assert (node.round, node.parent_round) == (net.epoch.first_round, net.epoch.record.root_round)
    assert node.parent_round > net.epoch.root.round, "the root's own round is far behind"
    assert node.commits_parent


def test_after_lost_terms_the_states_that_successors_may_refer_to_are_read_back() -> None:
    net = Net()
    net.commit("a")
    lead = net.number(net.cores[0].leader_address() or b"")
    net.dead.add(lead)
    net.commit("b", "c")
    for i in range(4):
        if i != lead:
            head = committed_head(net.disks[i].store, net.epoch)
            heights = [height for height, _ in head.state_digests]
            assert heights == list(range(head.node.header.executed_height, head.node.header.height + 1))


# ---------------------------------------------------------------- a store with holes


class Holed(MemoryStore):
    """A store that has lost something."""

    def __init__(self, net: Net, what: str) -> None:
        super().__init__(net.genesis)
        self.__dict__.update(net.disks[0].store.__dict__)
        self.what = what
        self.newest = self.head().block_hash

    def microblock(self, block_hash: bytes) -> bytes | None:
        lost = {"microblock": block_hash == self.newest, "parent": block_hash != self.newest}.get(self.what, False)
        return None if lost else super().microblock(block_hash)

    def certificate(self, block_hash: bytes) -> bytes | None:
        return None if self.what == "certificate" else super().certificate(block_hash)

    def state_digest(self, height: int) -> bytes | None:
        return None if self.what == "state digest" else super().state_digest(height)


@pytest.mark.parametrize("what", ["microblock", "parent", "certificate", "state digest"])
def test_a_store_that_lacks_something_is_told_of(what: str) -> None:
    net = Net(term=64)
    net.commit("a", "b", "c")
    assert committed_head(Holed(net, "nothing"), net.epoch).node.hash == net.final[len(net.disks[0].chain)][0]
    with pytest.raises(StoreError, match="restore it, or begin with an empty directory"):
        committed_head(Holed(net, what), net.epoch)


def test_a_store_that_lacks_the_root_of_an_epoch_is_told_of() -> None:
    net = Net()
    net.withholding = {0}
    net.turn(0)
    with pytest.raises(StoreError):
        committed_head(Holed(net, "microblock"), net.epoch)


# ---------------------------------------------------------------- what the store keeps


def test_what_ended_an_epoch_is_kept_and_convinces_who_was_not_there() -> None:
    net = Net(seats={1: (1, 2, 3)})
    away = net.order[3]
    net.dead.add(away)
    net.turn(net.order[0])
    root = net.epoch.record.root_hash
    raw = net.disks[net.order[0]].store.closing(root)
    assert raw is not None
    closing = decode_closing(raw)
    assert closing[0].signed.microblock.header.parent == root
    net.restart(away)
    net.queue.clear()
    net.step(away, Received(Certified(closing[-1].certificate, None)))
    net.serve(away, net.order[0])
    assert net.epochs()[away] == 1


@pytest.mark.parametrize("decode", [decode_signed, decode_certificate, decode_closing])
def test_what_is_damaged_is_refused(decode: Callable[[bytes], object]) -> None:
    net = Net()
    net.commit("a")
    good = {
        decode_signed: encode(net.disks[0].chain[0].signed),
        decode_certificate: encode(net.disks[0].chain[0].certificate),
        decode_closing: encode((net.disks[0].chain[0],)),
    }[decode]
    decode(good)
    for damaged in (good[:-1], good + b"\0", b""):
        with pytest.raises(InvalidInput):
            decode(damaged)
