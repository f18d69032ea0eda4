# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that mine, and what everybody can work out from a chain alone: leaders, terms, reputations.

Here reputation comes from a walk through the whole chain, term by term and keyblock by keyblock, in exact fractions; nodes carry sums in
integers from keyblock to keyblock. What they tell must be the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import msgspec

from consensus.committee import CommitteeMember
from consensus.election import Schedule, next_seed, opened_term
from ledger.genesis import Genesis, decode_genesis, genesis_seed
from ledger.rules import DEVNET_PARAMETERS, REPUTATION_UNIT, ReputationRules, WorkRules
from node.actions import NetworkRules
from node.api.models import Block
from node.api.reputation_models import Epoch
from node.client import NodeClient
from node.devnet import Devnet
from tests.consensus.algorithm2 import exact
from tests.system.kit import Load, no_traceback, until

RULES = msgspec.structs.replace(
    DEVNET_PARAMETERS,
    # Short, so that leaders change often; a term that is lost shows in y2 at once.
    term_microblocks=8,
    # Four miners with 4 % of a core each find a keyblock in a second, a slow machine in ten.
    work=WorkRules((2**239 - 1).to_bytes(32, "big"), 1_500, 4),
    reputation=ReputationRules(midpoint_keyblocks=100, flatness_keyblocks=50, chunk_keyblocks=5),
)
DUTY_PERCENT = 4
TIMEOUT_MS = 10_000
"""Patience with a leader: very long, for on the busiest machine nobody but the silent shall lose a term."""
ROUNDING_NANO = 2
"""How far a reputation in integers may be from the exact one (`consensus.reputation`, R2)."""


@contextmanager
def mining_network(directory: Path, duty_percent: int = DUTY_PERCENT) -> Iterator[Devnet]:
    """Run four nodes, each with a miner."""
    network = Devnet.create(directory, 4, parameters=RULES, settings={"timeout_ms": TIMEOUT_MS})
    try:
        network.start(timeout_s=180)
        network.start_miners(duty_percent)
        yield network
        no_traceback(network)
    finally:
        network.stop()


def light_load(network: Devnet, rules: NetworkRules, nodes: Sequence[int]) -> Load:
    """Return a load that leaves the machine to the network."""
    return Load(network, rules, nodes, at_once=3, pause_s=0.1)


def epoch_of(client: NodeClient) -> int:
    """Return the running epoch."""
    return client.status().epoch


def reach_epoch(client: NodeClient, epoch: int, patience_s: float = 180.0) -> None:
    """Wait until an epoch runs at a node."""
    until(lambda: epoch_of(client) >= epoch, f"epoch {epoch}", patience_s)


@dataclass(frozen=True)
class Term:
    """A leader's term that has ended for it."""

    epoch: int
    """Epoch of the term."""
    number: int
    """Number of the term."""
    leader: bytes
    """Public key of its leader."""
    microblocks: int
    """Committed microblocks in it: all that fit, or it was lost."""


class ReadChain:
    """A chain as a client reads it from one node, up to the epoch that ran then."""

    def __init__(self, client: NodeClient) -> None:
        self.genesis: Genesis = decode_genesis(client.genesis().raw)
        self.newest = client.epoch().number
        self.epochs: list[Epoch] = [client.epoch(number) for number in range(self.newest + 1)]
        last = self.epochs[-1].root_height
        # Which votes a certificate holds is in no hash: nodes may have different ones.
        self.blocks: list[Block] = [
            client.block(height).model_copy(update={"certificate": b""}) for height in range(last + 1)
        ]
        self.miners = [member.public_key for member in self.genesis.committee]
        self.terms: list[Term] = [term for epoch in self.epochs[:-1] for term in self._terms_of(epoch)]

    def blocks_of(self, epoch: int) -> list[Block]:
        """Return the committed microblocks of an epoch, the one that pinned its end among them."""
        return [block for block in self.blocks[1:] if block.epoch == epoch]

    def positions(self, miner: bytes) -> list[int]:
        """Return which keyblocks are a miner's; the chain's first one has 0."""
        return [epoch.number - 1 for epoch in self.epochs[1:] if epoch.miner == miner]

    def reputation(self, miner: bytes, epoch: int) -> Fraction:
        """Return R of an honest miner in an epoch, by Algorithm 2 as it is printed."""
        external = next(member.external_nano for member in self.genesis.committee if member.public_key == miner)
        rules = self.genesis.parameters
        found = exact(
            [position for position in self.positions(miner) if position < epoch],
            [term.microblocks for term in self.terms if term.leader == miner and term.epoch < epoch],
            epoch,
            rules.term_microblocks,
            rules.reputation,
            Fraction(external, REPUTATION_UNIT),
        )
        return Fraction(found)

    def check_reputations(self, client: NodeClient) -> None:
        """Check what a node tells of every miner in every epoch, and who sat in the committees."""
        for miner in self.miners:
            told = [client.miner(miner, epoch).reputation_nano for epoch in range(self.newest + 1)]
            for epoch, nano in enumerate(told):
                difference = abs(nano - self.reputation(miner, epoch) * REPUTATION_UNIT)
                assert difference <= ROUNDING_NANO, (
                    f"R of {miner.hex()} in epoch {epoch}: {nano} is off by {difference}"
                )
            for epoch, nano in enumerate(told):
                seats = {seat.public_key: seat.reputation_nano for seat in self.epochs[epoch].committee}
                assert seats[miner] == nano
        for found in self.epochs:
            weights = [seat.reputation_nano for seat in found.committee]
            assert weights == sorted(weights, reverse=True)

    def check_leaders(self) -> None:
        """Check that every microblock was proposed by whom the epoch's seed draws (`consensus.election`)."""
        cap = self.genesis.parameters.term_microblocks
        for epoch in self.epochs[:-1]:
            parent: Block | None = None
            for block in self.blocks_of(epoch.number):
                index = self._leader(epoch, block.term, parent, block)
                assert index is not None
                assert block.leader == epoch.committee[index].address, f"microblock {block.height} has another leader"
                assert block.term == block.round // cap
                assert block.seed == epoch.seed
                parent = block

    def check_targets(self) -> None:
        """Check that each target follows from the times of the keyblocks before it."""
        rules = self.genesis.parameters.work
        limit = target = int.from_bytes(rules.limit, "big")
        start_ms = self.genesis.timestamp_ms
        for epoch in self.epochs:
            if epoch.number and epoch.number % rules.window_keyblocks == 0:
                span = Fraction(epoch.timestamp_ms - start_ms, rules.window_keyblocks * rules.interval_ms)
                target = max(1, min(limit, int(target * min(max(span, Fraction(1, 4)), Fraction(4)))))
                start_ms = epoch.timestamp_ms
            assert int.from_bytes(epoch.target, "big") == target, f"epoch {epoch.number} has another target"

    def _terms_of(self, epoch: Epoch) -> Iterator[Term]:
        """Yield the terms of an epoch that is over: full ones, and lost ones; not the one that its end has cut off."""
        cap = self.genesis.parameters.term_microblocks
        inside = {
            term: list(blocks) for term, blocks in groupby(self.blocks_of(epoch.number), lambda block: block.term)
        }
        opening = inside[min(inside)][0]
        last = max(inside)
        parent: Block | None = None
        first = epoch.first_round // cap
        for term in range(first, last + 1):
            blocks = inside.get(term, [])
            leader = self._leader(epoch, term, parent, opening)
            parent = blocks[-1] if blocks else parent
            is_full = parent is not None and parent.round == term * cap + cap - 1
            if term == first and epoch.number > 0 and not blocks:
                continue  # nobody's: who knows when the reveal came
            if leader is not None and (is_full or term < last):
                yield Term(epoch.number, term, epoch.committee[leader].public_key, cap if is_full else len(blocks))

    def _leader(self, epoch: Epoch, term: int, parent: Block | None, opening: Block) -> int | None:
        """Return the seat that leads a term; None when nobody can know, because its opening would have carried the reveal."""
        members = [CommitteeMember(seat.public_key, seat.address, seat.reputation_nano) for seat in epoch.committee]
        cap = self.genesis.parameters.term_microblocks
        first = epoch.first_round // cap
        if parent is not None:
            opened = opened_term(parent.round, cap)
            addresses = [member.address for member in members]
            incumbent = addresses.index(parent.leader) if parent.term == opened else None
            return Schedule(parent.seed, members).leader(term, opened, incumbent)
        if epoch.number == 0:
            return Schedule(opening.seed, members).leader(term, first, None)
        previous = self.epochs[epoch.number - 1].seed or genesis_seed(self.epochs[0].keyblock)
        fallback = Schedule(seed := next_seed(previous, epoch.keyblock, None), members)
        if term > first:
            return fallback.succession(first, fallback.drawn(first))[(term - first - 1) % len(members)]
        return None if opening.seed == seed else Schedule(opening.seed, members).drawn(first)
