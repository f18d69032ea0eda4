# SPDX-License-Identifier: GPL-3.0-or-later
"""What Byzantine members tell falsely about microblocks, and to those who catch up.

falsify   proposes microblocks with a wrong time, place in the chain, leader, seed, state or list of batches, or with batches that
          nobody has, or when another one leads; passes proposals on with another content under the same header
misvote   votes for what does not exist, for other rounds and epochs, in the name of others, and with invented signatures
mislead   answers those who catch up with nothing, with too little, in a wrong order, with broken certificates, other content or proofs
          that are cut short; garbles batches and requests
"""

import random
from collections.abc import Sequence

import msgspec

from consensus.acting import _microblock
from consensus.block_tree import CertifiedMicroblock
from consensus.core import Core
from consensus.messages import Message, Proposal, Vote
from ledger import testing
from ledger.blocks import (
    Microblock,
    MicroblockHeader,
    SignedMicroblock,
    microblock_hash,
    microblock_signing_digest,
)
from ledger.codec import encode
from ledger.crypto.merkle import merkle_root
from ledger.votes import vote_digest
from node.wire import BatchesAnswer, ChainAnswer, decode_batches_answer, decode_chain_answer
from simulation.network import Kind
from simulation.replica import Replica
from simulation.scenario import Scenario

FUTURE_MS = 10_000_000
"""Ahead of every clock."""

_replace = msgspec.structs.replace


def garble(rng: random.Random, raw: bytes) -> bytes:
    """Return bytes with a few of them changed, or others altogether."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return rng.choice((bytes(changed), raw[: len(raw) // 2], rng.randbytes(40), b""))


class Falsifier:
    """The side of a Byzantine member that tells what is not so."""

    def __init__(self, replica: Replica, scenario: Scenario, rng: random.Random) -> None:
        self._replica = replica
        self._key = replica.key
        self._members = scenario.members
        self._traits = scenario.traits
        self._cap = scenario.term_microblocks
        self._rng = rng
        # By round what it proposed falsely, and rounds of others in which it proposed. No round comes twice, in no epoch.
        self._lies: dict[int, bytes] = {}
        self._usurped_rounds: set[int] = set()

    def says(self, proposal: Proposal, targets: Sequence[int]) -> list[tuple[int, Message]] | None:
        """Return what leaves instead of an own proposal; None when nothing is changed."""
        # Above all at the end of its term: then another leader goes on with what it told.
        goes_on = (proposal.signed.microblock.header.round + 1) % self._cap
        if "falsify" not in self._traits or self._rng.randrange(6 if goes_on else 2):
            return None
        false = self._falsified(proposal)
        header = false.signed.microblock.header
        vote = self._vote(header.epoch, header.round, microblock_hash(header), self._key.address)
        self._lies[proposal.signed.microblock.header.round] = vote.block_hash
        told: list[tuple[int, Message]] = [(target, lie) for lie in (false, vote) for target in targets]
        if self._rng.randrange(8) == 0:  # the truth too: then two proposals for one round prove its guilt
            told += [(target, proposal) for target in targets if self._rng.randrange(2)]
            self._rng.shuffle(told)
        return told

    def contradicts(self, vote: Vote) -> bool:
        """Tell whether a vote of its core would prove that another microblock was a lie."""
        return self._lies.get(vote.round, vote.block_hash) != vote.block_hash

    def hears(self, message: Message, others: Sequence[int]) -> list[tuple[int, Message]]:
        """Return what leaves now and then because of what was heard."""
        core = self._replica.core
        lies: list[Message] = []
        if "misvote" in self._traits and core is not None:
            lies.append(self._false_vote(core.epoch.number, core.round, core.high.block_hash))
        if "falsify" in self._traits and isinstance(message, Proposal):
            lies.append(self._with_other_content(message))
        usurped = self._usurped(core) if "falsify" in self._traits and core is not None else None
        if usurped is not None:
            lies.append(usurped)
        return [(other, lie) for lie in lies for other in others]

    def answers(self, kind: Kind, payload: bytes) -> bytes:
        """Return what leaves instead of a batch, a request or an answer."""
        if "mislead" not in self._traits or self._rng.randrange(3) == 0:
            return payload
        if self._rng.randrange(4) == 0:
            return garble(self._rng, payload)
        if kind == Kind.CHAIN:
            blocks = decode_chain_answer(payload).blocks
            return encode(ChainAnswer(self._false_chain(blocks))) if blocks else payload
        if kind == Kind.BATCHES:
            batches = decode_batches_answer(payload).batches
            others = tuple(raw for _, raw in self._replica.pool.pending())
            lies = [(), others[:4], batches[1:], tuple(garble(self._rng, raw) for raw in batches)]
            return encode(BatchesAnswer(self._rng.choice(lies)))
        if kind == Kind.DATA:
            data = decode_batches_answer(payload).batches
            return encode(
                BatchesAnswer(self._rng.choice([(), data[1:], tuple(garble(self._rng, raw) for raw in data)]))
            )
        return payload

    # ------------------------------------------------------------------ proposals

    def _falsified(self, proposal: Proposal) -> Proposal:
        block, rng = proposal.signed.microblock, self._rng
        header, nobody_has = block.header, (rng.randbytes(32),)
        named = _replace(header, batch_count=1, batches_root=merkle_root(nobody_has))
        believable = [
            _replace(block, header=_replace(header, timestamp_ms=1)),
            _replace(block, header=_replace(header, timestamp_ms=header.timestamp_ms + FUTURE_MS)),
            _replace(block, header=_replace(header, state_digest=rng.randbytes(32))),
            _replace(block, header=named, batches=nobody_has),
        ]
        misplaced = [
            _replace(header, height=header.height + rng.choice((-1, 1))),
            _replace(header, epoch=header.epoch + 1),
            _replace(header, term=header.term + 1),
            _replace(header, round=header.round + 1),
            _replace(header, parent=rng.randbytes(32)),
            _replace(header, keyblock=rng.randbytes(32)),
            _replace(header, seed=rng.randbytes(32)),
            _replace(header, leader=testing.key(rng.randrange(self._members)).address),
            _replace(header, pinned=rng.randbytes(32)),
            _replace(header, batches_root=rng.randbytes(32)),
            self._with_other_state(header),
        ]
        blocks = [_replace(block, header=lie) for lie in misplaced]
        blocks.append(_replace(block, batches=nobody_has))
        lie = rng.choice(believable) if rng.randrange(2) else rng.choice(blocks)
        return _replace(proposal, signed=self._sign(lie))

    def _with_other_content(self, proposal: Proposal) -> Proposal:
        """The leader's signature covers only the header."""
        block, signed = proposal.signed.microblock, proposal.signed
        pending = tuple(digest for digest, _ in self._replica.pool.pending())[:2]
        others = [_replace(block, batches=batches) for batches in ((), pending, block.batches[::-1])]
        others += [_replace(block, batches=(self._rng.randbytes(32),)), _replace(block, keyblock=None)]
        return _replace(proposal, signed=_replace(signed, microblock=self._rng.choice(others)))

    def _with_other_state(self, header: MicroblockHeader) -> MicroblockHeader:
        """The true state, but of another height than the protocol demands."""
        height = max(0, header.executed_height + self._rng.choice((-1, 1)))
        digest = self._replica.disk.store.state_digest(height) or header.state_digest
        return _replace(header, executed_height=height, state_digest=digest)

    def _usurped(self, core: Core) -> Proposal | None:
        """What a member proposes for the current round that another one leads, in its own name or in that of the leader."""
        desk = core._desk
        parent = desk.known.tree.get(desk.known.high.block_hash)
        leader = core.leader_address()
        if parent is None or desk.member is None or not desk.may_act():
            return None
        height = desk.known.tree.executed_height(parent)
        digest = desk.known.digests.get(height)
        if digest is None or leader == self._key.address or core.round in self._usurped_rounds:
            return None
        self._usurped_rounds.add(core.round)  # a second one would prove its guilt
        block = _microblock(desk, desk.member, parent, (), (height, digest))
        leader = self._rng.choice((leader, self._key.address)) or self._key.address
        in_turn = desk.known.high.round == desk.pacemaker.round - 1
        usurped = self._sign(_replace(block, header=_replace(block.header, leader=leader)))
        return Proposal(usurped, desk.known.high, None if in_turn else desk.pacemaker.entry)

    def _sign(self, block: Microblock) -> SignedMicroblock:
        digest = microblock_signing_digest(self._replica.chain_id, microblock_hash(block.header))
        return SignedMicroblock(block, self._key.sign(digest))

    # ------------------------------------------------------------------ votes

    def _false_vote(self, epoch: int, round_: int, certified: bytes) -> Vote:
        rng, own, other = self._rng, self._key.address, testing.key(self._rng.randrange(self._members)).address
        block_hash = rng.choice((rng.randbytes(32), certified))
        # Most of the time nothing that would prove its guilt: who is expelled lies no more.
        kind = rng.randrange(8)
        if kind < 3:
            return self._vote(epoch, round_, block_hash, other)
        if kind < 5:
            return _replace(self._vote(epoch, round_, block_hash, other), signature=rng.randbytes(64))
        if kind == 5:
            return self._vote(epoch + 1, round_, block_hash, own)
        if kind == 6:
            return self._vote(max(0, epoch - 1), max(0, round_ - 1), certified, own)
        return self._vote(epoch, round_ + rng.randrange(3), block_hash, own)

    def _vote(self, epoch: int, round_: int, block_hash: bytes, voter: bytes) -> Vote:
        digest = vote_digest(self._replica.chain_id, epoch, round_, block_hash)
        return Vote(epoch, round_, block_hash, voter, self._key.sign(digest))

    # ------------------------------------------------------------------ answers

    def _false_chain(self, blocks: tuple[CertifiedMicroblock, ...]) -> tuple[CertifiedMicroblock, ...]:
        rng = self._rng
        index = rng.randrange(len(blocks))
        before, block, behind = blocks[:index], blocks[index], blocks[index + 1 :]
        certificate, inner = block.certificate, block.signed.microblock
        wrong_time = _replace(inner.header, timestamp_ms=inner.header.timestamp_ms + 1)
        lies = [
            _replace(block, certificate=_replace(certificate, votes=certificate.votes[:1])),
            _replace(block, certificate=_replace(certificate, votes=certificate.votes[:1] * len(certificate.votes))),
            _replace(block, certificate=_replace(certificate, epoch=certificate.epoch + 1)),
            _replace(block, certificate=rng.choice(blocks).certificate),
            _replace(block, signed=self._sign(_replace(inner, header=wrong_time))),
            _replace(block, signed=_replace(block.signed, microblock=_replace(inner, batches=(rng.randbytes(32),)))),
            _replace(block, signed=_replace(block.signed, microblock=_replace(inner, keyblock=None))),
        ]
        if rng.randrange(2):
            return (*before, rng.choice(lies), *behind)
        return rng.choice(((), before, behind, before + behind, blocks[::-1]))
