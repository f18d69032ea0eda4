# SPDX-License-Identifier: GPL-3.0-or-later
"""The miner: searches keyblocks for one key, offers them to a node, and reveals the seeds of the epochs that they begin.

Two threads beside the caller's, each repeating one step:

    watch   asks the node for work by long polls; reveals when the node asks for it
    search  searches a slice of nonces and rests; once it has found a keyblock, offers it until another epoch runs

They share the newest work and nothing else. A node forgets offers and reveals when it restarts, so both are repeated until the work
says that they are not needed any more. A node that does not answer is asked again and again; meanwhile the search goes on for a while.
"""

import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import msgspec

from consensus.election import reveal
from consensus.work import search
from ledger.blocks import Keyblock, SignedKeyblock, keyblock_hash, sign_keyblock
from ledger.errors import InvalidInput
from node.api.mining_models import KeyblockTaken, MiningWork, RevealTaken, RevealWanted
from node.clock import now_ms
from node.http_client import ApiError, NodeUnreachable
from node.identity import Identity

DEFAULT_DUTY_PERCENT = 25
"""Share of one core: a machine that runs a node, too, stays usable."""
SLICE_S = 0.02
"""Computing time between two looks at the clocks and at the work: short against the time that a microblock takes."""
SHORTEST_REST_S = 0.001
"""Shorter ones are added to the next: a system cannot rest for less."""
POLL_S = 30
"""Longest wait for news in one request; proxies cut connections off that are silent for longer than 60 s."""
POLL_PAUSE_S = 0.1
"""Between two requests for work, so that a node that never waits is not flooded."""
OFFER_INTERVAL_S = 2.0
"""Between two offers of one keyblock: a node has restarted and met its peers again within seconds."""
REVEAL_INTERVAL_S = 1
"""Between two reveals: the network waits for this one, until it times out."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Between two attempts to reach a node that does not answer."""
PATIENCE_S = 120.0
"""The search rests when the node has said nothing for so long: its epoch is likely to be over. Four polls."""
REFRESH_S = 0.5
"""Between two looks of the caller's thread at the progress."""
MAX_REMEMBERED = 16
"""Keyblocks of our own that are recognised when they are pinned; an epoch has one or two."""
_IDLE_S = 1.0
_JOIN_S = 0.25
_FIRST_ATTEMPTS, _FEWEST_ATTEMPTS, _MOST_ATTEMPTS = 2_000, 16, 1 << 20
_NONCES = 2**256


class MiningNode(Protocol):
    """What the miner asks of a node: a part of `node.client.NodeClient`, whose errors it raises."""

    def mining_work(
        self, miner: bytes, epoch: int | None = None, *, reveal: bool = True, wait_s: int = 0
    ) -> MiningWork:
        """Return the miner's work; waits for another epoch."""
        ...

    def offer_keyblock(self, signed: SignedKeyblock) -> KeyblockTaken:
        """Hand in a keyblock."""
        ...

    def reveal_seed(self, epoch: int, signature: bytes) -> RevealTaken:
        """Hand in a reveal."""
        ...


@dataclass(frozen=True, slots=True)
class Senses:
    """What the miner reads of the world."""

    now_ms: Callable[[], int] = now_ms
    """The time, in milliseconds since 1970 (UTC)."""
    monotonic_s: Callable[[], float] = time.monotonic
    """Seconds that pass."""
    cpu_s: Callable[[], float] = time.process_time
    """Computing time of the whole process."""
    first_nonce: Callable[[], int] = lambda: secrets.randbits(256)
    """Where the search in a new epoch begins: at random, so that two processes of one key do not repeat each other."""


class Progress(msgspec.Struct, frozen=True):
    """What a miner has come to."""

    work: MiningWork | None
    """What it works on; None before the node has answered."""
    is_connected: bool
    """Whether the node answered when it was last asked."""
    hashes: int
    """Hashes tried."""
    found: int
    """Keyblocks found."""
    pinned: int
    """Keyblocks that began an epoch."""


class Duty:
    """Keeps the computing time of the process at a share of the time that passes."""

    def __init__(self, percent: int, senses: Senses) -> None:
        if not 1 <= percent <= 100:
            raise InvalidInput(f"a duty cycle of {percent} %; give 1 to 100")
        self._percent, self._senses = percent, senses
        self._cpu_s, self._now_s = senses.cpu_s(), senses.monotonic_s()
        self._balance_s = 0.0

    def owed_s(self) -> float:
        """Return how long to rest by now, in seconds."""
        cpu_s, now_s = self._senses.cpu_s(), self._senses.monotonic_s()
        self._balance_s += (cpu_s - self._cpu_s) * 100 / self._percent - (now_s - self._now_s)
        self._cpu_s, self._now_s = cpu_s, now_s
        # What was not used for longer than a slice is lost: a miner that waited does not make up for it.
        self._balance_s = max(self._balance_s, -SLICE_S)
        return self._balance_s if self._balance_s >= SHORTEST_REST_S else 0.0


class _Job:
    """The search in one epoch; belongs to the searching thread once it is there."""

    def __init__(self, work: MiningWork, template: Keyblock, nonce: int) -> None:
        self.work, self.template, self.nonce = work, template, nonce
        self.signed: SignedKeyblock | None = None
        self.next_offer_s = 0.0
        self.was_refused = False


class Miner:
    """Mines for one identity at one node."""

    def __init__(
        self,
        identity: Identity,
        *,
        searching: MiningNode,
        watching: MiningNode,
        duty_percent: int = DEFAULT_DUTY_PERCENT,
        stop_after: int | None = None,
        told: Callable[[str], None] = lambda _text: None,
        senses: Senses | None = None,
    ) -> None:
        """Prepare; nothing runs yet. Raises `InvalidInput` for an impossible duty cycle.

        Args:
            identity: whose keys mine, sign and reveal.
            searching: the node, for the searching thread.
            watching: the same node, for the watching thread.
            duty_percent: share of one core, in per cent.
            stop_after: end when so many keyblocks are pinned and revealed.
            told: takes lines for people, from any thread.
            senses: clocks and randomness; the system's by default.
        """
        self._identity = identity
        self._searching, self._watching = searching, watching
        self._senses = senses or Senses()
        self._duty = Duty(duty_percent, self._senses)
        self._stop_after = stop_after
        self._told = told
        self._job: _Job | None = None
        self._work: MiningWork | None = None
        self._attempts = _FIRST_ATTEMPTS
        self._hashes = self._found = self._pinned = 0
        self._made: dict[bytes, int] = {}
        """Epoch in which each of our keyblocks was mined, by hash."""
        self._revealed: tuple[int, RevealWanted, bytes] | None = None
        self._has_revealed = self._was_reveal_refused = False
        self._is_connected = True
        self._pause_s = SHORTEST_PAUSE_S
        self._heard_s = self._senses.monotonic_s()
        self._stopping, self._news = threading.Event(), threading.Event()
        self._failure: Exception | None = None

    # ------------------------------------------------------------------ running

    def run(
        self, ends: Callable[[float], bool] | None = None, show: Callable[[Progress], None] = lambda _progress: None
    ) -> None:
        """Mine until stopped; raises what made that impossible.

        `ends` waits up to so many seconds and tells whether to end; `show` is called in between. Returns within half a second: a
        thread that still waits for an answer of the node ends with the process.
        """
        ends = ends or self._stopping.wait
        threads = [
            threading.Thread(target=self._repeat, args=(self.watch, self._stopping.wait), daemon=True),
            threading.Thread(target=self._repeat, args=(self.search, self._rest), daemon=True),
        ]
        for thread in threads:
            thread.start()
        while not self._stopping.is_set() and not ends(REFRESH_S):
            show(self.progress())
        self.stop()
        for thread in threads:
            thread.join(_JOIN_S)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopping.set()
        self._news.set()

    def progress(self) -> Progress:
        """Return what has been reached; from any thread."""
        return Progress(self._work, self._is_connected, self._hashes, self._found, self._pinned)

    def _repeat(self, step: Callable[[], float], rest: Callable[[float], object]) -> None:
        try:
            while not self._stopping.is_set():
                rest(step())
        except Exception as error:  # noqa: BLE001 -- raised again where the caller waits
            # While we end, the connection may be closed under the thread.
            if not self._stopping.is_set():
                self._failure = error
                self.stop()

    def _rest(self, seconds: float) -> None:
        """Rest, but not when there is other work."""
        self._news.wait(seconds)
        if not self._stopping.is_set():
            self._news.clear()

    # ------------------------------------------------------------------ the watching thread

    def watch(self) -> float:
        """Ask for work once, and reveal if that is wanted; returns how long to rest, in seconds."""
        known = None if self._work is None else self._work.epoch
        # The time until the next reveal is not slept through: another epoch may begin in it, with a keyblock of ours again.
        has_revealed, self._has_revealed = self._has_revealed, False
        wait_s = REVEAL_INTERVAL_S if has_revealed else 0 if self._has_enough() else POLL_S
        try:
            work = self._watching.mining_work(
                self._identity.public.public_key, known, reveal=not has_revealed, wait_s=wait_s
            )
            self._hear()
            self._take(work)
            if work.reveal is not None:
                self._reveal(work, work.reveal)
                self._has_revealed = True
                return POLL_PAUSE_S
        except (NodeUnreachable, ApiError) as error:
            return self._bear(error)
        if self._has_enough():
            self.stop()
        return POLL_PAUSE_S

    def _has_enough(self) -> bool:
        return self._stop_after is not None and self._pinned >= self._stop_after

    def _hear(self) -> None:
        self._heard_s = self._senses.monotonic_s()
        self._pause_s = SHORTEST_PAUSE_S
        if not self._is_connected:
            self._is_connected = True
            self._told("the node answers again")

    def _bear(self, error: NodeUnreachable | ApiError) -> float:
        """Return how long to leave a node alone that does not answer; raises what will not get better."""
        if not _passes(error):
            raise error
        if self._is_connected:
            self._is_connected = False
            self._told(f"{error}; asking again until it answers")
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s

    def _take(self, work: MiningWork) -> None:
        """Move the search over to other work."""
        before = self._work
        self._work = work
        if before is not None and _place(before) == _place(work):
            return
        if before is not None and before.chain_id != work.chain_id:
            # The node serves a new network, whose epochs are counted anew.
            self._revealed = None
        if work.previous in self._made:
            self._pinned += 1
            self._told(f"keyblock {work.previous.hex()} is pinned and began epoch {work.epoch}")
        # Who has enough keyblocks only reveals the last one: another one would want to be revealed, too.
        self._job = None if self._has_enough() else _Job(work, self._template(work), self._senses.first_nonce())
        self._was_reveal_refused = False
        self._news.set()

    def _reveal(self, work: MiningWork, wanted: RevealWanted) -> None:
        """Hand in the seed's signature, if it is due.

        Both values come from the node, and the seed before cannot be checked here. To sign them all the same is safe: the reveal key
        signs nothing else, under a domain of its own, so its signatures move no credits and cast no votes; and there is one signature
        per message only, so that nothing said twice can contradict itself. What an early signature gives away is who will lead, to
        whoever gets it before the keyblock is pinned. So it is given for the running epoch's own keyblock only, never for one that
        was mined in this very epoch (it cannot be pinned yet), and for one pair of values per epoch. A keyblock that is not known here
        may be of another process of this key, or from before a restart.
        """
        signature = None
        if self._revealed is not None and self._revealed[:2] == (work.epoch, wanted):
            signature = self._revealed[2]
        elif self._is_due(work, wanted):
            signature = reveal(self._identity.reveal_secret, wanted.previous_seed, wanted.keyblock_hash)
            self._revealed = (work.epoch, wanted, signature)
        if signature is None:
            self._complain_of_reveal("the node asks to reveal a seed that is not due; is it a node of this network?")
            return
        try:
            self._watching.reveal_seed(work.epoch, signature)
        except ApiError as error:
            if error.reason == "bad_reveal":
                self._complain_of_reveal(f"the node refuses our reveal: {error}")
            elif error.reason != "stale_reveal":
                raise

    def _is_due(self, work: MiningWork, wanted: RevealWanted) -> bool:
        if wanted.keyblock_hash != work.previous:
            return False
        if self._revealed is not None and self._revealed[0] >= work.epoch:
            return False
        return self._made.get(wanted.keyblock_hash, work.epoch - 1) == work.epoch - 1

    def _complain_of_reveal(self, text: str) -> None:
        if not self._was_reveal_refused:
            self._was_reveal_refused = True
            self._told(text)

    # ------------------------------------------------------------------ the searching thread

    def search(self) -> float:
        """Search one slice, or offer what was found; returns how long to rest, in seconds."""
        owed_s = self._duty.owed_s()
        job = self._job
        if job is None:
            return _IDLE_S
        if job.signed is not None:
            return self._offer(job, job.signed)
        if self._senses.monotonic_s() - self._heard_s > PATIENCE_S:
            return _IDLE_S
        if owed_s > 0:
            return owed_s
        keyblock = self._search_slice(job)
        if keyblock is None:
            return self._duty.owed_s()
        if self._job is job:  # else it came too late
            self._sign(job, keyblock)
        return 0.0

    def _template(self, work: MiningWork) -> Keyblock:
        public = self._identity.public
        return Keyblock(
            previous=work.previous,
            microblock=work.microblock,
            miner=public.public_key,
            reveal_key=public.reveal_key,
            reputation_nano=work.reputation_nano,
            target=work.target,
            timestamp_ms=work.earliest_timestamp_ms,
            state_root=work.state_root,
            nonce=bytes(32),
        )

    def _search_slice(self, job: _Job) -> Keyblock | None:
        attempts, began_s = self._attempts, self._senses.cpu_s()
        # The time is part of the puzzle: each slice states the one at which it begins.
        stated_ms = max(self._senses.now_ms(), job.work.earliest_timestamp_ms)
        keyblock = search(msgspec.structs.replace(job.template, timestamp_ms=stated_ms), job.nonce, attempts)
        self._hashes += attempts if keyblock is None else int.from_bytes(keyblock.nonce, "big") - job.nonce + 1
        spent_s = self._senses.cpu_s() - began_s
        job.nonce = (job.nonce + attempts) % _NONCES
        # Slowly upwards: a slice may have been short by chance.
        wanted = int(attempts * min(2.0, SLICE_S / max(spent_s, SLICE_S / 100)))
        self._attempts = max(_FEWEST_ATTEMPTS, min(wanted, _MOST_ATTEMPTS))
        return keyblock

    def _sign(self, job: _Job, keyblock: Keyblock) -> None:
        work, found = job.work, keyblock_hash(keyblock)
        # Remembered before anyone else can know of it: the other thread must recognise it when it is pinned.
        while len(self._made) >= MAX_REMEMBERED:
            del self._made[next(iter(self._made))]
        self._made[found] = work.epoch
        self._found += 1
        self._told(f"found keyblock {found.hex()} in epoch {work.epoch}")
        job.signed = sign_keyblock(work.chain_id, self._identity.signing, keyblock)

    def _offer(self, job: _Job, signed: SignedKeyblock) -> float:
        now_s = self._senses.monotonic_s()
        if now_s < job.next_offer_s:
            return job.next_offer_s - now_s
        job.next_offer_s = now_s + OFFER_INTERVAL_S
        try:
            self._searching.offer_keyblock(signed)
        except NodeUnreachable:
            pass  # the watching thread tells it
        except ApiError as error:
            # Also after a refusal it is offered again: one that is ahead of the node's clock, or came second, may do later.
            if error.reason == "bad_keyblock":
                if not job.was_refused:
                    job.was_refused = True
                    self._told(f"the node refuses our keyblock: {error}")
            elif error.reason != "stale_keyblock" and not _passes(error):
                raise
        return OFFER_INTERVAL_S


def _place(work: MiningWork) -> tuple[int, bytes, bytes]:
    return work.epoch, work.previous, work.microblock


def _passes(error: NodeUnreachable | ApiError) -> bool:
    """Tell whether a node that answered so, or not at all, may do better soon."""
    return isinstance(error, NodeUnreachable) or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def measure_rate(computing_s: float) -> float:
    """Return how many hashes this machine tries per second of computing time."""
    no_hash_is_below = bytes(32)
    template = Keyblock(bytes(32), bytes(32), bytes(33), bytes(48), 0, no_hash_is_below, now_ms(), bytes(32), bytes(32))
    nonce, tried, began_s = secrets.randbits(128), 0, time.process_time()
    while (spent_s := time.process_time() - began_s) < computing_s:
        search(template, nonce + tried, _FIRST_ATTEMPTS)
        tried += _FIRST_ATTEMPTS
    return tried / spent_s


def miner_arguments(
    key_file: Path,
    url: str,
    *,
    duty_percent: int = DEFAULT_DUTY_PERCENT,
    passphrase_file: Path | None = None,
    keyblocks: int | None = None,
) -> list[str]:
    """Return the command that starts a miner as a process of its own, such as for a devnet."""
    command = [sys.executable, "-m", "node.cli.main", "miner", "run", "--key", str(key_file), "--node", url]
    command += ["--duty", str(duty_percent)]
    if passphrase_file is not None:
        command += ["--passphrase-file", str(passphrase_file)]
    if keyblocks is not None:
        command += ["--keyblocks", str(keyblocks)]
    return command
