# SPDX-License-Identifier: GPL-3.0-or-later
"""Which chain a node follows that has none yet. Until that is decided it takes part in nothing: its core has no key and hears nothing.

    nobody says to have microblocks        the network is new: a founding member takes part, others wait
    all peers that have some agree         fetch them, each compared with what the others have committed (`node.chain_peers`)
    peers contradict each other,           prove the work of each claim (`node.scout`), replay the chains from the genesis
    or the operator gave a checkpoint      (`node.replay`), choose by the weight that came out, take the chain over from the replay
    no chain holds the checkpoint          say so, wait, look again

The same is done again when a node was stopped half way (a file in its directory says so), or has a checkpoint ahead of it.

The defence against somebody with a founding committee's leaked keys, with power, and with as many identities as they like, stands in
`node.contest` and `node.chain_peers`. It needs one peer with the honest chain to be connected before `join_wait_ms` is over; a checkpoint
does not even need that.

Founding members of a network at height 0 take part at once: somebody has to begin. They stop when somebody says to have more than a
network has that is beginning just now. Who starts one with an empty directory in a network that has been running for long should give it
a checkpoint.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import structlog
import trio

from consensus.block_tree import CertifiedMicroblock
from consensus.epoch import Epoch
from consensus.restart import epoch_record
from consensus.weight import FinalPoint
from ledger.errors import InvalidInput, StoreError
from ledger.store import Store
from node.chain_peers import ChainPeers, known_of, reached_height
from node.chains import ChainGroup, PeerChain, group_chains
from node.contest import Arena, Contest
from node.files import replace_file
from node.replay import Replay, ReplayedChain, TrialRules, remove_directory
from node.scout import Scout, Sight
from node.sync import Asker, Sync

log = structlog.get_logger()

MAX_UNHEARD = 3
"""Attempts in which a peer may say nothing at all before the others are compared without it: it may be the only honest one."""
MAX_WAITS = 6
"""Attempts that are put off altogether because somebody says nothing: identities cost nothing, and new ones may come again and again."""
MAX_SILENT = 2
"""Attempts in which a peer may leave a claim open, by saying nothing, before the claim counts no more."""
LIVE_S = 10.0
"""How long a founding member takes part, after claims that nobody could show, before it listens to others: no stranger shall be able
to keep a new network from starting."""
FRESH_MICROBLOCKS = 16
"""A founding member without any believes that a network with no more than these is beginning right now, with itself in it."""
FRESH_S = 5.0
"""How long it goes on then before it listens to others; they may have committed what it is about to commit."""
RETRY_S = 2.0
"""Pause between attempts."""
MARK = "joining"
"""File in the data directory: microblocks here were not yet as far as the chain that was chosen."""


class JoinSettings(msgspec.Struct, frozen=True):
    """What the operator decides about joining."""

    directory: Path
    """The data directory."""
    wait_s: float
    """Time for further peers to come before chains are compared."""
    checkpoint: FinalPoint | None
    """A keyblock that the chain must hold."""
    named: frozenset[str]
    """Peers that the operator named."""
    limit_bytes: int
    """Room on the disk for one chain."""


class JoinPorts(msgspec.Struct, frozen=True):
    """What joining needs of its node."""

    network: Asker
    """The network."""
    peers: Callable[[], Sequence[str]]
    """Connected peers."""
    set_voting: Callable[[bool], None]
    """Give the core its key, or take it away; the core begins anew with what is stored."""
    sync_from: Callable[[Asker], Sync]
    """A `Sync` of the node's own core that asks this instead of the network."""
    certified_tail: Callable[[], Sequence[CertifiedMicroblock]]
    """Certified microblocks behind the committed ones."""
    checkers: trio.CapacityLimiter
    """Threads that check signatures."""
    at_home: Callable[[], None]
    """The node has its chain; from now on it follows that."""


class Joining:
    """One node's way to its chain."""

    def __init__(self, settings: JoinSettings, store: Store, epoch: Epoch, own_address: bytes) -> None:
        """Look at what is here. Raises `InvalidInput` when that contradicts the checkpoint."""
        self._settings = settings
        self._store = store
        self._checkpoint = settings.checkpoint or FinalPoint(0, epoch.chain_id)
        self._check_own(epoch)
        for leftover in settings.directory.glob(f"{MARK}-*"):
            remove_directory(leftover)
        self._mark = settings.directory / MARK
        is_begun = store.head().height > 0
        self._must_join = (is_begun and self._mark.exists()) or self._checkpoint.epoch > epoch.number
        self._is_founder = epoch.number == 0 and epoch.committee.index_of(own_address) is not None
        self._joined = is_begun and not self._must_join
        self.holds = not self._joined and (self._must_join or not self._is_founder)
        """Whether the node keeps out of consensus: its core has no key, and messages are dropped."""
        self.doing = "looking for peers" if self.holds else ""
        """What it does meanwhile, for people; empty when the node has its chain, or the network none yet."""
        self._live_until_s = 0.0
        self._claimed = trio.Event()
        self._silent: Counter[str] = Counter()
        self._unheard: Counter[str] = Counter()
        self._waits = 0
        self._trouble = ""

    def _check_own(self, epoch: Epoch) -> None:
        number = self._checkpoint.epoch
        if number > epoch.number:
            return
        record = epoch_record(self._store, number)
        own = epoch.chain_id if record is None else record.keyblock
        if own != self._checkpoint.keyblock_hash:
            raise InvalidInput(
                f"the checkpoint says that epoch {number} began with keyblock {self._checkpoint.keyblock_hash.hex()}; here it "
                f"was {own.hex()}: correct the checkpoint, or move {self._settings.directory / 'chain'} away to join anew"
            )

    def attach(self, ports: JoinPorts) -> None:
        """Connect what exists only when the network is open."""
        self._ports = ports
        self._scout = Scout(ports.network, self._store.genesis, self._checkpoint)

    def is_home(self) -> bool:
        """Tell whether the node has a chain, and so finality of its own, which it never leaves."""
        return self._joined or (not self.holds and self._store.head().height > 0)

    @property
    def _may_begin(self) -> bool:
        """Tell whether the node need not wait for others to have a chain."""
        return self._is_founder and not self._must_join and self._store.head().height == 0

    def peer_came(self, height: int) -> None:
        """A peer is connected and says to have so many microblocks."""
        is_live = not (self.holds or self.is_home())
        if is_live and self._is_far_ahead(height) and trio.current_time() >= self._live_until_s:
            self._hold()
        self._claimed.set()

    def behind(self) -> None:
        """The core finds others ahead of it."""
        self._claimed.set()

    async def run(self) -> None:
        """Return when the node has its chain."""
        self._claimed.set()  # peers may have come before
        while not self.is_home():
            await self._claimed.wait()
            self._claimed = trio.Event()
            await trio.sleep_until(self._live_until_s)
            if self.is_home():
                return
            if not self._ports.peers():
                if self.holds and self._may_begin:
                    self._release()
                continue
            if not self.holds and not await self._must_hold():
                await trio.sleep(RETRY_S / 4)
                continue
            if not self.holds:
                self._hold()
            self.doing = self._trouble or "waiting for more peers"
            await self._gather()
            try:
                await self._attempt()
            except (StoreError, InvalidInput) as error:
                self._say(str(error))
            if not self.is_home():
                await trio.sleep(RETRY_S)
                if self.holds and (self._ports.peers() or self._may_begin):
                    self._claimed.set()

    async def _must_hold(self) -> bool:
        """Tell whether others have a chain already, and not one that is beginning together with this node."""
        ahead = (await self._peers_ahead()).chains
        if ahead and not any(self._is_far_ahead(view.summary.height) for view in ahead.values()):
            await trio.sleep(FRESH_S)
        return bool(ahead) and not self.is_home()

    def _is_far_ahead(self, height: int) -> bool:
        return height > self._store.head().height + FRESH_MICROBLOCKS

    async def _gather(self) -> None:
        """Give further peers time to come."""
        await trio.sleep(self._settings.wait_s)

    # ------------------------------------------------------------------ one attempt

    async def _attempt(self) -> None:
        sight = await self._peers_ahead()
        ahead = sight.chains
        if self._waits_for(sight.silent):
            self._say(f"waiting for the answer of {len(sight.silent)} peers")
            return
        if not ahead:
            await self._nobody_ahead()
            return
        log.info("peers have a chain", peers=len(ahead), height=max(view.summary.height for view in ahead.values()))
        if await self._join(ahead):
            self._go_home()
        elif self._may_begin:
            # Whoever says to be ahead cannot show it: the others may be about to start.
            self._live_until_s = trio.current_time() + LIVE_S
            self._release()

    def _waits_for(self, silent: Collection[str]) -> bool:
        """Tell whether peers that have not answered may still do so."""
        connected = self._ports.peers()
        self._unheard = Counter({peer: self._unheard[peer] + (peer in silent) for peer in connected})
        waits = self._waits < MAX_WAITS and any(0 < self._unheard[peer] < MAX_UNHEARD for peer in silent)
        self._waits += waits
        return waits

    async def _nobody_ahead(self) -> None:
        own = self._store.head()
        if self._checkpoint.epoch > 0 and not self._holds_checkpoint():
            self._say(f"no peer is ahead, and the checkpoint of epoch {self._checkpoint.epoch} is not here: waiting")
        elif self._may_begin:
            self._release()
        elif own.height == 0:
            self._say("no peer has microblocks: waiting for the network's founders, or for other peers")
        elif await self._has_company():
            self._go_home()  # stopped half way, and now as far as anyone
        else:
            self._say("no peer has the chain that is final here: waiting for others")

    async def _has_company(self) -> bool:
        chains = (await self._scout.look(self._ports.peers())).chains
        return any(self._store.block_hash(view.summary.height) == view.summary.tip for view in chains.values())

    async def _peers_ahead(self, heights: Collection[int] = ()) -> Sight:
        """Return the peers that say to continue what is final here."""
        own = self._store.head()
        sight = await self._scout.look(self._ports.peers(), {own.height, *heights})
        ahead = {
            peer: view
            for peer, view in sight.chains.items()
            if view.summary.height > own.height and view.hashes.get(own.height, own.block_hash) == own.block_hash
        }
        return Sight(ahead, sight.silent)

    async def _join(self, ahead: Mapping[str, PeerChain]) -> bool:
        """Bring the chain of the peers ahead, or the one to be followed if they have several; False when there is none."""
        groups = group_chains(ahead, self._settings.named)
        if len(groups) == 1 and self._holds_checkpoint():
            peers = ChainPeers(
                network=self._ports.network,
                scout=self._scout,
                group=groups[0],
                witnesses=self._ports.peers,
                known=lambda: known_of(self._store.head().block_hash, self._ports.certified_tail()),
            )
            await self._follow(peers, groups[0])
            if peers.split is None:
                return await self._has_arrived(peers, groups[0])
            groups = group_chains((await self._peers_ahead({peers.split.height})).chains, self._settings.named)
        best = await self._winner(groups)
        if best is None:
            return False
        with closing(best):
            await self._take_over(best)
        return True

    def _holds_checkpoint(self) -> bool:
        record = epoch_record(self._store, self._checkpoint.epoch)
        return self._checkpoint.epoch == 0 or record is not None

    # ------------------------------------------------------------------ all agree

    async def _follow(self, peers: ChainPeers, group: ChainGroup) -> None:
        self.doing = f"fetching {group.height} microblocks, on which {len(group.peers)} peers agree"
        self._set_mark()
        log.info("joining a chain on which all peers agree", height=group.height, peers=len(group.peers))
        await peers.bring_all(self._ports.sync_from(peers), self._reached)

    async def _has_arrived(self, peers: ChainPeers, group: ChainGroup) -> bool:
        """Tell whether all is here that somebody has shown; blames those who claim more."""
        reached = self._reached()
        await peers.blame_claimants(reached, self._store.head())
        silent = [peer for peer, has_answered in peers.claimants(reached).items() if not has_answered]
        connected = self._ports.peers()
        self._silent = Counter({peer: self._silent[peer] + (peer in silent) for peer in connected})
        shown = [peer for peer in peers.answered if group.peers[peer].height <= reached]
        return bool(shown) and all(self._silent[peer] >= MAX_SILENT for peer in silent if peer in connected)

    def _reached(self) -> int:
        return reached_height(self._store.head().height, self._ports.certified_tail())

    # ------------------------------------------------------------------ several chains

    async def _winner(self, groups: Collection[ChainGroup]) -> Replay | None:
        log.warning("peers have different chains, or a checkpoint must be found", chains=len(groups))
        arena = Arena(
            network=self._ports.network,
            scout=self._scout,
            rules=TrialRules(
                self._store.genesis, self._store.head(), self._checkpoint, limit_bytes=self._settings.limit_bytes
            ),
            named=self._settings.named,
            directory=self._mark,
            checkers=self._ports.checkers,
            ahead=self._peers_ahead,
            tell=self._tell,
        )
        best = await Contest(arena).winner(groups)
        if best is None:
            self._say(
                f"none of {len(groups)} chains offered could be shown with keyblock {self._checkpoint.keyblock_hash.hex()} at "
                f"the start of epoch {self._checkpoint.epoch}; waiting for other peers: connect to some that you trust, or "
                "correct the checkpoint"
            )
        return best

    async def _take_over(self, best: Replay) -> None:
        """Bring the node's own chain to where the replay is; nobody else is asked."""
        goal = best.store.head()
        log.info("following the heaviest chain", height=goal.height, tip=goal.block_hash.hex())
        self._set_mark()
        sync = self._ports.sync_from(ReplayedChain(best))
        while self._store.head().height < goal.height:
            self.doing = f"taking over the chain chosen: {self._store.head().height} of {goal.height} microblocks"
            before = self._store.head().height
            await sync.catch_up()
            if self._store.head().height == before:
                await trio.sleep(RETRY_S)  # the disk is full: the operator is told by the driver

    # ------------------------------------------------------------------ phases

    def _hold(self) -> None:
        self.holds, self.doing = True, "looking for more peers"
        self._ports.set_voting(False)

    def _release(self) -> None:
        """Nobody has a chain: take part in making one."""
        log.info("no chain to join: taking part from the beginning")
        self._drop_mark()
        self.holds, self.doing, self._trouble = False, "", ""
        self._ports.set_voting(True)

    def _go_home(self) -> None:
        head = self._store.head()
        log.info("joined", height=head.height, block=head.block_hash.hex())
        self._drop_mark()
        self._joined, self.holds, self.doing = True, False, ""
        self._ports.set_voting(True)
        self._ports.at_home()

    def _set_mark(self) -> None:
        try:
            replace_file(self._mark, b"")
        except InvalidInput as error:
            raise StoreError(str(error)) from error

    def _drop_mark(self) -> None:
        try:
            self._mark.unlink(missing_ok=True)
        except OSError as error:
            # It does no harm: after a restart the node looks once more whether others are ahead.
            log.warning("the mark of joining cannot be removed", path=str(self._mark), error=str(error))

    def _tell(self, what: str) -> None:
        self.doing = what

    def _say(self, what: str) -> None:
        if what != self._trouble:
            log.warning("cannot join yet", why=what)
        self._trouble = self.doing = what
