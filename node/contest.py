# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of several chains a joining node follows: each is put to the test, and the heaviest that holds the checkpoint wins.

Against somebody with a founding committee's leaked keys and with power, in as many identities as they like:

- Chains are compared by a weight that was verified here. What peers claim decides only whom to try first, and on what not to spend
  time: a chain is not replayed once another one weighs more than this one's own peers say.
- Groups cost nothing to make, so their number excludes nobody, and neither does a claim's being left open: keyblocks of ten years take
  long to show. They are tried in the order of `node.chains.ranked`, so that one of those with shown work, mostly the honest one, makes
  trials of all that claim less unnecessary. The peers behind trials that fail are blamed.
- A peer that lies among honest ones is found out by them before anything of it is executed (`node.chain_peers`). Which half goes on
  with the trial is decided as between groups; the other half gets a trial of its own if it still matters.
- A trial takes time in proportion to what its peers give, and they must give it at some speed; each trial that fails costs its peers
  their place. So the number of connections bounds the whole.
"""

from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog
import trio

from consensus.weight import choose, contains
from ledger.store import Head
from node.chain_peers import ChainPeers
from node.chains import ChainGroup, PeerChain, claimed_weight, group_chains, ranked
from node.replay import Replay, TrialRules
from node.scout import LIE_POINTS, Scout, Sight
from node.sync import Asker

log = structlog.get_logger()

MAX_SECOND_LOOKS = 3
"""How often peers that came during the trials are asked before the choice; later ones have missed it."""


class Arena(msgspec.Struct, frozen=True):
    """Where chains are put to the test."""

    network: Asker
    """Whom to ask and blame."""
    scout: Scout
    """Asks for what chains are said to be."""
    rules: TrialRules
    """What they are held against."""
    named: frozenset[str]
    """Peers that the operator named."""
    directory: Path
    """Trials take place in directories whose names begin like this one."""
    checkers: trio.CapacityLimiter
    """Threads that check signatures."""
    ahead: Callable[[Collection[int]], Awaitable[Sight]]
    """Returns who is ahead now, compared at further heights, too."""
    tell: Callable[[str], None]
    """Tells the operator what goes on."""


class Contest:
    """One choice between chains."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._trials = 0
        self._asked: set[str] = set()
        self._best: Replay | None = None

    async def winner(self, groups: Collection[ChainGroup]) -> Replay | None:
        """Return the replay of the chain to be followed, for the caller to close; None when there is none."""
        self._arena.tell(f"weighing {len(groups)} chains")
        self._asked = {peer for group in groups for peer in group.peers}
        with ExitStack() as stack:
            stack.callback(self._close_best)
            await self._try_all(ranked(await self._arena.scout.weigh(groups)))
            stack.pop_all()
        return self._best

    def _close_best(self) -> None:
        if self._best is not None:
            self._best.close()

    async def _try_all(self, queue: list[ChainGroup]) -> None:
        looks = 0
        while queue or looks < MAX_SECOND_LOOKS:
            if not queue:
                looks += 1
                queue = await self._newcomers()
                continue
            group = queue.pop(0)
            if self._best is not None and group.ceiling < self._best.chain().weight:
                log.info("a chain is lighter by its own peers' word", peers=len(group.peers))
                continue
            queue = ranked([*queue, *await self._try(group)])

    async def _newcomers(self) -> list[ChainGroup]:
        """Return the chains of peers that came since and do not have the best one."""
        best = self._best
        head = None if best is None else best.store.head()
        views = (await self._arena.ahead([] if head is None else [head.height])).chains
        new = {peer: view for peer, view in views.items() if peer not in self._asked}
        self._asked.update(new)
        if best is not None and head is not None:
            new = {peer: view for peer, view in new.items() if not _has(view, head) and not best.shows(view.summary)}
        return ranked(await self._arena.scout.weigh(group_chains(new, self._arena.named)))

    async def _try(self, group: ChainGroup) -> list[ChainGroup]:
        """Replay a group's chain, and keep it if it is the best; returns those of its peers that turned out to have other chains."""
        arena = self._arena
        self._trials += 1
        arena.tell(f"replaying a chain of {group.height} microblocks that {len(group.peers)} peers offer")
        replay = Replay(
            arena.directory.with_name(f"{arena.directory.name}-{self._trials}"), arena.rules, arena.checkers
        )
        others: list[ChainGroup] = []
        with ExitStack() as stack:
            stack.callback(replay.close)
            while True:
                peers = self._peers_of(group, replay)
                await replay.run(peers)
                if peers.split is None or replay.fault:
                    break
                halves = (group.only(side, arena.named) for side in (peers.split.one, peers.split.others))
                group, other = ranked(halves)
                others.append(other)
            await self._give_verdict(replay, group, peers)
            is_shown = not replay.fault and any(map(replay.shows, group.peers.values()))
            if not is_shown or not replay.continues_own or not contains(replay.chain(), arena.rules.checkpoint):
                return others
            stack.pop_all()
        self._compare(replay)
        return others

    def _peers_of(self, group: ChainGroup, replay: Replay) -> ChainPeers:
        return ChainPeers(
            network=self._arena.network,
            scout=self._arena.scout,
            group=group,
            witnesses=group.peers.keys,
            known=replay.known,
        )

    async def _give_verdict(self, replay: Replay, group: ChainGroup, peers: ChainPeers) -> None:
        """Say how a trial ended, and blame whoever claimed more than was shown."""
        head, weight, reached = replay.store.head(), replay.chain().weight, replay.reached()
        log.info("a chain was replayed", height=head.height, weight=weight, fault=replay.fault or "none")
        if replay.fault:
            return
        await peers.blame_claimants(reached, head)
        for peer, summary in group.peers.items():
            # Certificates of one microblock differ by the votes in them: between two thirds of the reputation and all of it.
            if summary.height <= reached and 2 * claimed_weight(summary) > 3 * weight:
                reason = f"it claims a weight of {claimed_weight(summary)}; its chain weighs {weight}"
                self._arena.network.penalise(peer, LIE_POINTS, reason)

    def _compare(self, replay: Replay) -> None:
        """Keep the better one, and close the other."""
        if self._best is not None:
            ours, theirs = self._best.chain(), replay.chain()
            loser = replay if choose([ours, theirs], self._arena.rules.checkpoint) is ours else self._best
            loser.close()
            if loser is replay:
                return
        self._best = replay


def _has(view: PeerChain, head: Head) -> bool:
    return view.hashes.get(head.height) == head.block_hash
