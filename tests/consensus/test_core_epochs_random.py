# SPDX-License-Identifier: GPL-3.0-or-later
"""Random plays over several epochs: lost, late, repeated and reordered messages, partitions, crashes between any two effects,
committees that change, and members whose key runs twice. What the kit checks at every step must hold, honest members never break a
rule in each other's eyes, and when the network heals everything that waits is committed everywhere (I1 to I5)."""

import random
from collections.abc import Callable

import msgspec
import pytest

from consensus.block_tree import Node
from consensus.desk import Desk
from consensus.events import Disagreement, Misbehaviour, Received, ReceivedChain, Refused, RequestChain
from consensus.messages import Certified, Message, Offer
from ledger import testing
from tests.consensus.kit import Net, batch


class Play:
    """One play; a seed replays it."""

    def __init__(self, seed: int, *, twins: bool) -> None:
        self.rng = rng = random.Random(seed)
        n, newcomers = rng.choice([4, 4, 5, 7] if twins else [1, 2, 3, 4, 4, 5]), rng.choice([0, 0, 2])
        keyed = n + newcomers
        double: tuple[int, ...] = (rng.randrange(keyed),) if twins else ()
        seats = {0: tuple(range(n))}
        for epoch in range(1, 12):
            chosen = tuple(rng.sample(range(keyed), rng.randint(1, min(keyed, 7))))
            # One of four or more members may be faulty, one of fewer may not.
            if rng.random() < 0.6 and (len(chosen) >= 4 or not set(double) & set(chosen)):
                seats[epoch] = chosen
        self.net = Net(n, rng.choice([2, 3, 4, 8]), rng.choice([0, 1]), newcomers, seats, double)
        self.miners = range(keyed)
        self.names: list[str] = []
        self.cut: set[int] = set()
        self.told = 0
        self.asked: dict[int, RequestChain] = {}
        self.drop, self.repeat, self.crash = (rng.choice([0, 0, p]) for p in (0.3, 0.05, 0.02))
        self.reorders = rng.random() < 0.5
        self.actions: list[Callable[[], None]] = [
            self.deliver,
            self.batch,
            self.offer,
            self.wait,
            self.partition,
            self.restart,
        ]
        self.weights = [85, 2, 6, 4, 1, 2]
        self.net.crashes = lambda: rng.random() < self.crash
        self.net.withholding = set(self.miners) if rng.random() < 0.3 else set()

    def run(self, turns: int) -> None:
        rng, net = self.rng, self.net
        for _ in range(turns):
            rng.choices(self.actions, self.weights)[0]()
            for i, effect in net.log[self.told :]:
                if isinstance(effect, RequestChain):
                    self.asked[i] = effect
            self.told = len(net.log)
            if self.asked and rng.random() < 0.3:
                asker, asked = self.asked.popitem()
                giver = rng.randrange(len(net.cores))
                if giver not in net.dead:
                    net.step(
                        asker,
                        ReceivedChain(net.answer(giver, asked, net.cores[asker].epoch.number)[: rng.choice([3, 100])]),
                    )

    def deliver(self) -> None:
        rng, net = self.rng, self.net
        for _ in range(min(len(net.queue), rng.randint(1, 6))):
            place = rng.randrange(len(net.queue)) if self.reorders else 0
            source, target, event = net.queue[place]
            del net.queue[place]
            if (source in self.cut) == (target in self.cut) and rng.random() >= self.drop:
                if rng.random() < self.repeat:
                    net.queue.append((source, target, event))
                net.step(target, event, source)

    def batch(self) -> None:
        self.names.append(f"b{len(self.names)}")
        for i in range(len(self.net.cores)):
            if self.rng.random() < 0.8:
                self.net.give(self.names[-1], i)

    def offer(self) -> None:
        self.net.epoch = self.rng.choice(self.net.disks).epochs[-1]
        signed = self.net.mine(self.rng.choice(self.miners))
        for i in range(len(self.net.cores)):
            if self.rng.random() < 0.8:
                self.net.step(i, Received(Offer(signed)))

    def wait(self) -> None:
        self.net.wait(ms=self.rng.choice([50, 300, 1_000, 3_000, 11_000]))

    def partition(self) -> None:
        cores = range(len(self.net.cores))
        self.cut = set(self.rng.sample(cores, self.rng.randint(0, len(cores)))) if not self.cut else set()

    def restart(self) -> None:
        if self.net.dead:
            self.net.restart(self.rng.choice(sorted(self.net.dead)))

    def heal(self) -> None:
        net = self.net
        net.crashes = lambda: False
        net.withholding = net.withholding if self.rng.random() < 0.5 else set()
        if net.dead:
            net.restart(*net.dead)
        names = [*self.names, "last"]
        for i, pool in enumerate(net.pools):
            for name in names:
                if batch(name) not in pool.here:
                    net.give(name, i)
        net.heal(lambda: all(batch(name) in pool.committed for name in names for pool in net.pools), turns=80)


class LiarsPlay(Play):
    """A play in which one member says whatever its key can sign, to whomever it likes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, twins=True)
        last = self.net.keys[-1]  # the twin
        assert last is not None
        self.liar = self.net.number(last.address)
        self.actions.append(self.lie)
        self.weights.append(20)

    def lie(self) -> None:
        rng, net = self.rng, self.net
        i = rng.randrange(len(net.cores))
        net.epoch = net.cores[i].epoch
        lie = rng.choice(
            [self.vote, self.timeout, self.certified, self.proposal, self.proposal, self.keyblock, self.reveal]
        )
        if i in net.dead or net.committee.index_of(net.address(self.liar)) is None:
            return
        desk = net.cores[i]._desk
        node = rng.choice([node for node in desk.known.tree._nodes.values() if desk.known.certificate_of(node.hash)])
        message = lie(desk, node)
        net.queue.extend((-1, j, Received(message)) for j in range(len(net.cores)) if rng.random() < 0.6)

    def vote(self, _desk: Desk, node: Node) -> Message:
        other = bytes([self.rng.randrange(256)]) * 32
        return self.net.vote(self.liar, node.round + self.rng.choice([0, 0, 1]), self.rng.choice([node.hash, other]))

    def timeout(self, desk: Desk, node: Node) -> Message:
        term = max(0, desk.pacemaker.term + self.rng.choice([-1, 0, 0, 1, 7]))
        return self.net.timeout(self.liar, term, desk.known.certificate_of(node.hash), desk.pacemaker.entry)

    def certified(self, desk: Desk, node: Node) -> Message:
        return Certified(desk.known.certificate_of(node.hash) or desk.known.high, desk.pacemaker.entry)

    def keyblock(self, _desk: Desk, _node: Node) -> Message:
        changes = self.rng.choice([{}, {"reputation_nano": 1}, {"timestamp_ms": self.net.now_ms + 3_000}])
        return Offer(self.net.mine(self.rng.choice(self.miners), **changes))

    def reveal(self, _desk: Desk, _node: Node) -> Message:
        return self.net.reveal(self.rng.choice(self.miners))

    def proposal(self, desk: Desk, node: Node) -> Message:
        """In some round after a certified microblock, by the liar whether it leads or not, with whatever it likes in it."""
        rng, net, entry = self.rng, self.net, desk.pacemaker.entry
        certificate = desk.known.certificate_of(node.hash)
        assert certificate is not None
        m, round_, ended = net.parameters.term_microblocks, certificate.round + 1, None
        if entry is not None and (entry.term + 1) * m > round_ and rng.random() < 0.4:
            round_, ended = (entry.term + 1) * m, entry
        reveal = None
        if node.begins_epoch and net.epoch.number and (ended is None or rng.random() < 0.5):
            miners = {testing.key(i).public_key: i for i in self.miners}
            reveal = net.reveal(miners[net.epoch.record.miner]).signature
        keyblock = net.mine(rng.choice(self.miners)) if rng.random() < 0.3 else None
        here = rng.choice(net.pools).here
        batches = tuple(rng.sample(here, min(len(here), rng.randint(0, 2))))
        executed = desk.known.tree.executed_height(node)
        header = net.header(
            round_,
            None if node.begins_epoch else node.header,
            executed_height=executed,
            state=desk.known.digests.get(executed) if rng.random() < 0.9 else b"?" * 32,
            batches=batches,
            later_ms=rng.randint(1, 50),
            keyblock=keyblock,
            reveal=reveal,
        )
        header = msgspec.structs.replace(header, leader=net.address(self.liar))
        return net.proposal(header, certificate, ended, batches, keyblock=keyblock, reveal=reveal)


@pytest.mark.parametrize("seed", range(20))
def test_honest_members_agree_go_on_and_blame_nobody(seed: int) -> None:
    play = Play(seed, twins=False)
    play.run(400)
    play.heal()
    assert play.net.agrees()
    assert not play.net.said(Misbehaviour)
    assert not play.net.said(Disagreement)
    assert not [e for e in play.net.said(Refused) if isinstance(e, Refused) and e.at_fault]


@pytest.mark.parametrize("seed", range(20))
def test_a_member_whose_key_runs_twice_harms_nobody(seed: int) -> None:
    play = Play(seed, twins=True)
    play.run(400)
    play.heal()
    assert play.net.agrees()
    assert not play.net.said(Disagreement)


@pytest.mark.parametrize("seed", range(20))
def test_a_member_that_says_whatever_it_likes_harms_nobody(seed: int) -> None:
    play = LiarsPlay(seed)
    play.run(400)
    play.heal()
    assert play.net.agrees()


def test_members_whose_keys_run_twice_are_found_out() -> None:
    accused = 0
    for seed in range(12):
        play = Play(seed, twins=True)
        play.run(400)
        accused += len(play.net.said(Misbehaviour))
    assert accused > 0
