# SPDX-License-Identifier: GPL-3.0-or-later
"""What Byzantine miners, leaders and reporters forge around keyblocks.

secretive    reveals no seed, or a wrong one, or the right one to a single replica
twice        solves for two times, or signs one solution in two ways, and offers the one to some and the other to others
stale        offers keyblocks of epochs that are over, or mined on the wrong microblock
counterfeit  offers and proposes keyblocks with wrong work, state root, reputation, target, time or signature; leaves out what it should
             pin, pins what is forged, orders or pins again behind a pin, opens an epoch with a wrong seed or reveal
slander      reports honest members with evidence that proves nothing
"""

import random
from collections.abc import Sequence

import msgspec

from consensus.messages import Message, Offer, Proposal, Reveal
from ledger import testing
from ledger.blocks import (
    Keyblock,
    Microblock,
    SignedKeyblock,
    SignedMicroblock,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
    sign_keyblock,
)
from ledger.bodies import ReportMisbehaviour
from ledger.crypto.merkle import merkle_root
from ledger.evidence import ConflictingVotes
from ledger.state import State
from ledger.transactions import encode_batch
from ledger.votes import vote_digest
from simulation.clients import expiry_after
from simulation.miner import Miner, solve
from simulation.replica import Replica
from simulation.scenario import Scenario

MOST_SLANDERS = 3
"""Each costs the slanderer a penalty and everybody a transaction."""

_replace = msgspec.structs.replace


class Counterfeiter:
    """The forger's side of a Byzantine member."""

    def __init__(self, replica: Replica, scenario: Scenario, miner: Miner | None, rng: random.Random) -> None:
        self._replica = replica
        self._key = replica.key
        self._traits = scenario.traits
        self._members = scenario.members
        self._liars = scenario.liars
        self._miner = miner
        self._rng = rng
        self._offered: list[SignedKeyblock] = []
        self._slanders = 0

    def says(self, message: Message, targets: Sequence[int]) -> list[tuple[int, Message]] | None:
        """Return what leaves instead of a message; None when this has nothing to say about it."""
        if isinstance(message, Reveal) and "secretive" in self._traits:
            return self._hide(message, targets)
        if isinstance(message, Offer):
            self._offered = [*self._offered, message.keyblock][-8:]
            if "twice" in self._traits:
                twin = Offer(self._twin(message.keyblock))
                return [(target, self._rng.choice((message, twin))) for target in targets]
            if "counterfeit" in self._traits and self._rng.randrange(2):
                forged = Offer(self._forged(message.keyblock))
                return [(target, lie) for target in targets for lie in (forged, message)]
        if isinstance(message, Proposal) and "counterfeit" in self._traits and self._rng.randrange(3) == 0:
            lie = self._proposal(message)
            return None if lie is None else [(target, lie) for target in targets]
        return None

    def hears(self, others: Sequence[int]) -> list[tuple[int, Message]]:
        """Return what leaves now and then, whatever was heard."""
        lies: list[tuple[int, Message]] = []
        if "stale" in self._traits and self._offered:
            lies.append((self._rng.choice(others), Offer(self._rng.choice(self._offered))))
        if "stale" in self._traits and self._miner is not None and self._replica.core is not None:
            lies += [(other, Offer(self._misplaced(self._miner))) for other in others]
        if "counterfeit" in self._traits and self._offered:
            lies += [(other, Offer(self._forged(self._offered[-1]))) for other in others]
        if "slander" in self._traits and self._slanders < MOST_SLANDERS and self._replica.core is not None:
            self._slanders += 1
            self._slander()
        return lies

    def _hide(self, reveal: Reveal, targets: Sequence[int]) -> list[tuple[int, Message]]:
        wrong = _replace(reveal, signature=self._rng.randbytes(len(reveal.signature)))
        lies: list[list[tuple[int, Message]]] = [
            [],
            [(target, wrong) for target in targets],
            [(self._rng.choice(targets), reveal)],
        ]
        return self._rng.choice(lies)

    def _twin(self, signed: SignedKeyblock) -> SignedKeyblock:
        """Another right keyblock, or the same one with another right signature."""
        keyblock, chain = signed.keyblock, self._replica.chain_id
        if self._rng.randrange(2):
            return testing.sign_keyblock_anew(chain, self._key, keyblock, self._rng.randbytes(32))
        return sign_keyblock(
            chain, self._key, solve(_replace(keyblock, timestamp_ms=keyblock.timestamp_ms + 1), self._rng)
        )

    def _misplaced(self, miner: Miner) -> SignedKeyblock:
        work = miner.work()
        work = _replace(
            work, **{self._rng.choice(("previous", "microblock")): self._replica.disk.store.head().block_hash}
        )
        solved = miner.solve(work, max(self._replica.clock_ms(), work.earliest_timestamp_ms))
        return sign_keyblock(work.chain_id, self._key, solved)

    def _forged(self, signed: SignedKeyblock) -> SignedKeyblock:
        """One thing is wrong with it, and it is signed all the same."""
        keyblock = signed.keyblock
        other = self._rng.choice([n for n in range(self._members) if n not in self._liars])
        lies: list[Keyblock] = [
            _replace(keyblock, state_root=self._rng.randbytes(32)),
            _replace(keyblock, reputation_nano=keyblock.reputation_nano + 1),
            _replace(keyblock, target=(2**256 - 1).to_bytes(32, "big")),
            _replace(keyblock, timestamp_ms=1),
            _replace(keyblock, timestamp_ms=keyblock.timestamp_ms + 10_000_000),
            _replace(keyblock, miner=testing.key(other).public_key),
            _replace(keyblock, reveal_key=self._rng.randbytes(48)),
        ]
        if self._rng.randrange(2):
            lie = solve(self._rng.choice(lies), self._rng)
        else:
            # As if the puzzle did not cover it.
            lies.append(_replace(keyblock, timestamp_ms=keyblock.timestamp_ms + 1))
            lies.append(_replace(keyblock, nonce=self._rng.randbytes(32)))
            lie = self._rng.choice(lies)
        if lie.timestamp_ms == keyblock.timestamp_ms and self._rng.randrange(8) == 0:
            return _replace(signed, signature=self._rng.randbytes(64))
        return sign_keyblock(self._replica.chain_id, self._key, lie)

    def _proposal(self, proposal: Proposal) -> Proposal | None:
        block = proposal.signed.microblock
        header = block.header
        candidate = self._offered[-1] if self._offered else None
        lies: list[Microblock] = []
        if block.keyblock is not None:
            lies += [_pinning(block, None), _pinning(block, self._forged(block.keyblock))]
        elif candidate is not None:
            # Perhaps of an epoch that is over, perhaps behind a pin.
            lies += [_pinning(block, candidate), _pinning(block, self._forged(candidate))]
        pending = tuple(digest for digest, _ in self._replica.disk.store.pending_batches())[:1]
        if pending and not block.batches:
            root = merkle_root(pending)
            lies.append(_replace(block, header=_replace(header, batch_count=1, batches_root=root), batches=pending))
        if header.height == self._replica.executor.epoch.root.height + 1:
            lies.append(_replace(block, reveal=None))
            lies.append(_replace(block, header=_replace(header, seed=self._rng.randbytes(32))))
            lies.append(_replace(block, reveal=self._rng.randbytes(96)))
        if not lies:
            return None
        lie = self._rng.choice(lies)
        digest = microblock_signing_digest(self._replica.chain_id, microblock_hash(lie.header))
        return _replace(proposal, signed=SignedMicroblock(lie, self._key.sign(digest)))

    def _slander(self) -> None:
        """One true vote, twice, with another one's signature, or of another round."""
        victim = self._rng.choice([n for n in range(self._members) if n not in self._liars])
        hashes = sorted(self._rng.randbytes(32) for _ in range(2))
        signatures = [self._key.sign(vote_digest(self._replica.chain_id, 0, 1, block_hash)) for block_hash in hashes]
        evidence = ConflictingVotes(
            testing.key(victim).public_key, 0, 1, hashes[0], signatures[0], hashes[1], signatures[1]
        )
        store = self._replica.disk.store
        nonce, expiry_height = State(store).account(self._key.address).nonce, expiry_after(store.head().height)
        body = ReportMisbehaviour(evidence)
        raw = testing.signed(self._replica.chain_id, self._key, body, nonce, expiry_height=expiry_height)
        self._replica.submit(encode_batch([raw]))


def _pinning(block: Microblock, keyblock: SignedKeyblock | None) -> Microblock:
    return _replace(block, header=_replace(block.header, pinned=pinned_digest(keyblock)), keyblock=keyblock)
