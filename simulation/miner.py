# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica's miner: finds keyblocks at random times in proportion to its power, with real solutions, and reveals seeds.

It does what `node.miner` does at the desk of `node.mining_desk`, without processes: work comes from the replica's own epoch, what it
finds is offered until another epoch runs, and a seed is revealed until the epoch's first microblock is committed. How long it takes is
drawn from the run's seed; the solution itself is searched, at a target that costs a few dozen hashes.
"""

import random

from consensus.election import reveal
from consensus.epoch import Epoch
from consensus.events import Received
from consensus.messages import Message, Offer, Reveal
from consensus.work import search
from ledger import testing
from ledger.blocks import Keyblock, SignedKeyblock, sign_keyblock
from ledger.errors import InvalidInput
from node.mining import MiningWork, check_offer, work_in
from simulation.replica import Replica, World

OFFER_MS = 1_000
"""An offer is repeated after this: whoever missed it, or has restarted, hears of it then."""
REVEAL_MS = 250
"""A reveal is repeated after this, within the patience of the others."""
_ATTEMPTS = 1 << 16


def solve(unsolved: Keyblock, rng: random.Random) -> Keyblock:
    """Return a keyblock with a nonce that solves its puzzle."""
    solved = None
    while solved is None:
        solved = search(unsolved, rng.getrandbits(128), _ATTEMPTS)
    return solved


class Miner:
    """Mines for one replica."""

    def __init__(self, replica: Replica, mean_ms: float, world: World, rng: random.Random) -> None:
        """`mean_ms` is the mean time until it alone finds a keyblock; a power of zero has no miner."""
        self._replica = replica
        self._key = replica.key
        self._reveal_secret, self._reveal_key = testing.reveal_keys(replica.number)
        self._mean_ms = mean_ms
        self._world = world
        self._rng = rng
        self._epoch = -1

    def look(self) -> None:
        """Take the work of the running epoch, if it is new: after a start and whenever an epoch begins."""
        core = self._replica.core
        assert core is not None, "only a running replica's miner works"
        epoch = core.epoch.number
        self._epoch = epoch
        self._replica.later(round(self._rng.expovariate(1 / self._mean_ms)), lambda: self._find(epoch))
        self._reveal(epoch)

    def work(self) -> MiningWork:
        """Return what the replica's desk gives."""
        core = self._replica.core
        assert core is not None, "only a running replica's miner works"
        return work_in(core.epoch, self._key.public_key, is_open=not core.wants_reveal)

    def solve(self, work: MiningWork, timestamp_ms: int) -> Keyblock:
        """Return a keyblock with a real solution."""
        unsolved = Keyblock(
            previous=work.previous,
            microblock=work.microblock,
            miner=self._key.public_key,
            reveal_key=self._reveal_key,
            reputation_nano=work.reputation_nano,
            target=work.target,
            timestamp_ms=timestamp_ms,
            state_root=work.state_root,
            nonce=bytes(32),
        )
        return solve(unsolved, self._rng)

    def _runs(self, epoch: int) -> bool:
        core = self._replica.core
        return core is not None and core.epoch.number == epoch == self._epoch

    def _find(self, epoch: int) -> None:
        if self._runs(epoch):
            work = self.work()
            timestamp_ms = max(self._replica.clock_ms(), work.earliest_timestamp_ms)
            self._offer(epoch, sign_keyblock(work.chain_id, self._key, self.solve(work, timestamp_ms)))

    def _offer(self, epoch: int, signed: SignedKeyblock) -> None:
        core = self._replica.core
        if core is None or not self._runs(epoch):
            return
        if core.candidate in (None, signed) and self._is_right(core.epoch, signed):
            self._tell(Offer(signed))
        self._replica.later(OFFER_MS, lambda: self._offer(epoch, signed))

    def _is_right(self, epoch: Epoch, signed: SignedKeyblock) -> bool:
        """Check as the desk does; it may refuse because its clock was set back since."""
        try:
            check_offer(epoch, signed, self._replica.clock_ms())
        except InvalidInput:
            return False
        return True

    def _reveal(self, epoch: int) -> None:
        if not self._runs(epoch):
            return
        wanted = self.work().reveal
        if wanted is not None:
            self._tell(Reveal(epoch, reveal(self._reveal_secret, wanted.previous_seed, wanted.keyblock_hash)))
            self._replica.later(REVEAL_MS, lambda: self._reveal(epoch))

    def _tell(self, message: Message) -> None:
        if not self._replica.halted:
            self._world.say(self._replica, None, message)
            self._replica.handle(Received(message))
