# SPDX-License-Identifier: GPL-3.0-or-later
"""A world of replicas, miners, clients and faults; everything in it is judged as it happens."""

import random
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from consensus.events import Commit, Effect, Misbehaviour
from consensus.executor import Done
from consensus.messages import Message, Vote, decode_message
from ledger import testing
from ledger.chain import chain_of
from ledger.codec import encode
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.errors import InvalidInput
from ledger.genesis import Allocation, Genesis, Member, chain_id
from ledger.rules import REPUTATION_UNIT, ReputationRules, WeightRules, WorkRules
from ledger.transactions import CheckedTransaction
from node.wire import decode_chain_answer
from simulation.adversary import Liar, Lie
from simulation.bazaar import Bazaar, contract_parties, contract_rules
from simulation.clients import FIRST_CLIENT, Clients
from simulation.invariants import Judge
from simulation.miner import Miner
from simulation.network import Kind, Network
from simulation.pool import bears_out, commitments_of
from simulation.replica import RESUME_MS, Replica
from simulation.scenario import Scenario
from simulation.scheduler import Scheduler
from simulation.trace import Trace
from simulation.twins import Twins
from simulation.violation import Violation, require

BEGIN_MS = testing.GENESIS_TIMESTAMP_MS + 60_000
"""What perfect clocks show at the beginning."""
TORN_BACK_MS = 800
"""A torn replica is back after up to this."""


def genesis_of(scenario: Scenario) -> Genesis:
    """Return the genesis of a run: small terms, windows and chunks, so that a run has several of each."""
    parameters = msgspec.structs.replace(
        testing.PARAMETERS,
        term_microblocks=scenario.term_microblocks,
        block_batches=4,
        committee_size=scenario.seats,
        work=WorkRules(testing.PARAMETERS.work.limit, max(1, scenario.keyblock_ms), 3),
        reputation=ReputationRules(10, 5, 3),
        # Some epochs fill the bound, others do not.
        weight=WeightRules(REPUTATION_UNIT // 2, 3),
    )
    if scenario.contracts:
        parameters = msgspec.structs.replace(parameters, contracts=contract_rules(scenario))
    external = REPUTATION_UNIT * scenario.external_percent // 100
    members = tuple(Member(testing.key(number).public_key, external) for number in range(scenario.members))
    funded = [*range(scenario.replicas), *range(FIRST_CLIENT, FIRST_CLIENT + scenario.transactions)]
    funded += contract_parties(scenario)
    allocations = tuple(Allocation(testing.key(number).address, testing.BALANCE_MICROCREDIT) for number in funded)
    return Genesis(
        "simulation", testing.GENESIS_TIMESTAMP_MS, parameters, members, (), allocations, DEVELOPMENT_VERIFYING_KEY
    )


class SimulatedWorld:
    """Implements `simulation.replica.World`."""

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        self.scenario = scenario
        # One source for each kind of thing, so that leaving out a fault changes little else.
        self.rng = random.Random(f"choices {scenario.seed}")
        self._tears = random.Random(f"tears {scenario.seed}")
        self.scheduler = Scheduler()
        self.trace = trace
        network_rng = random.Random(f"network {scenario.seed}")
        self._twins = Twins(scenario)
        self._network = Network(scenario, self._twins, self.scheduler, network_rng, self.trace, self._deliver)
        genesis = genesis_of(scenario)
        self._chain = chain_of(genesis)
        self._skews_ms = [self.rng.randint(-scenario.skew_ms, scenario.skew_ms) for _ in range(scenario.replicas)]
        lives = [*range(scenario.replicas), *self._twins.members]
        self._skews_ms += [self._skews_ms[member] for member in self._twins.members]
        self._replicas = [
            Replica(number, testing.key(life), genesis, self, self._skews_ms[number])
            for number, life in enumerate(lives)
        ]
        self._honest = [replica for replica in self._replicas if not self._may_lie(replica.number)]
        self._addresses = {testing.key(number).address: number for number in range(scenario.replicas)}
        liars = frozenset(testing.key(number).public_key for number in scenario.liars)
        self.published: dict[bytes, bytes] = {}
        self.judge = Judge(genesis, self._honest[0].executor.epoch, liars, self.published)
        self._bazaar = Bazaar(scenario, self._honest, self.judge.chain.contracts, self)
        self._clients = Clients(chain_id(genesis), scenario, self._honest, self)
        self._miners = self._make_miners()
        self._wanted_epoch = 0
        self._liars = {
            number: Liar(self._replicas[number], scenario, self._miners.get(number)) for number in scenario.liars
        }

    def _make_miners(self) -> dict[int, Miner]:
        scenario = self.scenario
        powers = {number: scenario.power(number) for number in range(scenario.miners)}
        total = sum(powers.values())
        if not scenario.keyblock_ms:
            return {}
        return {
            number: Miner(
                self._replicas[number],
                scenario.keyblock_ms * total / power,
                self,
                random.Random(f"miner {number} {scenario.seed}"),
            )
            for number, power in powers.items()
            if power
        }

    def _may_lie(self, number: int) -> bool:
        """Tell whether a replica is Byzantine: a liar, or the second life of one."""
        return number in self.scenario.liars or number >= self.scenario.replicas

    # ------------------------------------------------------------------ the course of a run

    def run(self) -> None:
        """Play the faults, heal, and wait until everything has committed everywhere and an epoch has begun since."""
        scenario, scheduler = self.scenario, self.scheduler
        late = {crash.replica for crash in scenario.crashes if crash.at_ms == 0}
        for replica in self._replicas:
            if replica.number not in late:
                scheduler.at(0, partial(self._start, replica))
        self._plan_faults()
        self._clients.begin()
        self._bazaar.begin()
        scheduler.at(scenario.faults_ms, self._heal)
        deadline_ms = scenario.faults_ms + scenario.patience_ms
        while scheduler.step():
            if self._network.faulty:
                continue
            if self._is_done():
                return
            if scheduler.now_ms > deadline_ms:
                heads = [(r.disk.store.head().height, r.executor.epoch.number) for r in self._replicas]
                missing = f"{self._clients.missing()}{self._bazaar.missing()}"
                raise Violation("I5", f"{missing}; heights and epochs {heads}")

    def _plan_faults(self) -> None:
        scenario, scheduler = self.scenario, self.scheduler
        for crash in scenario.crashes:
            replica = self._replicas[crash.replica]
            scheduler.at(crash.at_ms, partial(self._crash, replica))
            scheduler.at(min(crash.back_ms, scenario.faults_ms), partial(self._start, replica))
        for jump in scenario.clock_jumps:
            scheduler.at(jump.at_ms, partial(self._jump, self._replicas[jump.replica], jump.by_ms))
        for spell in scenario.full_disks:
            replica = self._replicas[spell.replica]
            scheduler.at(spell.from_ms, partial(self._fill, replica, safety=spell.safety))
            scheduler.at(min(spell.until_ms, scenario.faults_ms), partial(self._empty, replica))

    def _start(self, replica: Replica) -> None:
        if replica.core is not None:
            return
        self.trace.note(self.scheduler.now_ms, f"{replica.number} starts")
        if not replica.start():
            self.scheduler.after(RESUME_MS, partial(self._start, replica))
            return
        if not self._may_lie(replica.number):
            self.judge.restarted(replica.number, replica.disk.store, replica.executor)
        self._mine(replica)

    def _mine(self, replica: Replica) -> None:
        miner = self._miners.get(replica.number)
        if miner is not None and replica.core is not None:
            miner.look()

    def _crash(self, replica: Replica) -> None:
        self.trace.note(self.scheduler.now_ms, f"{replica.number} crashes")
        replica.crash()

    def _jump(self, replica: Replica, by_ms: int) -> None:
        if self._network.faulty:
            self.trace.note(self.scheduler.now_ms, f"the clock of {replica.number} jumps by {by_ms} ms")
            replica.skew_ms += by_ms

    def _fill(self, replica: Replica, *, safety: bool) -> None:
        if self._network.faulty:
            self.trace.note(self.scheduler.now_ms, f"the disk of {replica.number} is full")
            replica.disk.store.full, replica.disk.safety.broken = True, safety

    def _empty(self, replica: Replica) -> None:
        if replica.disk.store.full:
            self.trace.note(self.scheduler.now_ms, f"the disk of {replica.number} has room")
        replica.disk.store.full = replica.disk.safety.broken = False

    def _heal(self) -> None:
        self.trace.note(self.scheduler.now_ms, "the faults end")
        for replica, skew_ms in zip(self._replicas, self._skews_ms, strict=True):
            replica.skew_ms = skew_ms
            self._empty(replica)
            self._start(replica)
        if self._miners:
            self._wanted_epoch = self.judge.epoch + 1
        self._bazaar.healed()

    def _is_done(self) -> bool:
        if not self.judge.is_live():
            return True  # the Byzantine members weigh too much for liveness; safety was judged up to here
        if not self._clients.is_done() or not self._bazaar.is_done():
            return False
        return all(replica.executor.epoch.number >= self._wanted_epoch for replica in self._honest)

    # ------------------------------------------------------------------ what replicas see

    def now_ms(self) -> int:
        """Return the time that perfect clocks show."""
        return BEGIN_MS + self.scheduler.now_ms

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Call an action later."""
        self.scheduler.after(delay_ms, action)

    def send(self, replica: Replica, target: int | None, kind: Kind, payload: bytes) -> None:
        """Send to one or to all others."""
        liar = self._liars.get(replica.number)
        if kind == Kind.CHAIN and not self._may_lie(replica.number):
            blocks = decode_chain_answer(payload).blocks
            self.judge.answered(replica.number, replica.key.address, blocks, replica.record())
        targets = [target] if target is not None else [r.number for r in self._replicas if r is not replica]
        for number in targets:
            said = payload if liar is None else liar.answers(kind, payload)
            self._network.send(replica.number, number, kind, said)

    def say(self, replica: Replica, target: int | None, message: Message) -> None:
        """Send a consensus message to one or to all others."""
        liar = self._liars.get(replica.number)
        if target is not None:
            target = self._twins.met_by(replica.number, target)
        if self._may_lie(replica.number) and liar is None:
            self.judge.overhears(message)
            self.send(replica, target, Kind.MESSAGE, encode(message))
            return
        if liar is None:
            self._check_data_of_vote(replica, message)
            self.judge.sent(replica.number, replica.key.address, message, replica.record(), replica.clock_ms())
            self.send(replica, target, Kind.MESSAGE, encode(message))
            return
        self._lie(replica.number, liar.says(target, message))

    def _check_data_of_vote(self, replica: Replica, message: Message) -> None:
        """Members vote only for off-chain batches whose data they hold (I12): else nobody could challenge them."""
        if isinstance(message, Vote) and self.scenario.contracts:
            for digest in self.judge.batches_of(message.block_hash):
                raw = replica.disk.store.batch(digest)
                commitments = () if raw is None else commitments_of(raw, self._chain)
                for commitment in commitments:
                    data = replica.disk.data.get(commitment.data_digest)
                    held = data is not None and bears_out(commitment, data)
                    what = f"member {replica.number} votes for off-chain batch {commitment.number} without its data"
                    require("I12", held, what)

    def member(self, address: bytes) -> int:
        """Return which replica has an address."""
        return self._addresses[address]

    def someone_else(self, replica: Replica) -> int:
        """Return a random other replica, or the replica itself when it is alone."""
        others = [other.number for other in self._replicas if other is not replica]
        return self.rng.choice(others) if others else replica.number

    def committed(
        self, replica: Replica, commit: Commit, transactions: Sequence[CheckedTransaction], done: Done
    ) -> None:
        """A microblock has been stored."""
        height = commit.signed.microblock.header.height
        begins = "" if done.epoch is None else f" and begins epoch {done.epoch.number}"
        self.trace.note(self.scheduler.now_ms, f"{replica.number} commits {height}{begins}", commit.block_hash)
        if not self._may_lie(replica.number):
            self.judge.committed(replica.number, replica.disk.store, replica.executor, commit, transactions, done)
            self._clients.committed()
            self._bazaar.committed(replica, height, transactions)
        if done.epoch is not None:
            # Behind the core's own step: its desk is the next epoch's only then.
            replica.later(0, lambda: self._mine(replica))

    def told(self, replica: Replica, source: int, effect: Effect) -> None:
        """The core has judged something."""
        self.trace.note(self.scheduler.now_ms, f"{replica.number} about {source}: {effect}")
        if self._may_lie(replica.number):
            return
        self.judge.told(replica.number, self._may_lie(source), effect)
        if isinstance(effect, Misbehaviour):
            self._clients.report(replica, effect.evidence)

    def keeps_data(self, replica: Replica, digest: bytes, raw: bytes) -> None:
        """Published data of an off-chain batch is on a replica's disk."""
        if not self._may_lie(replica.number):
            self.published[digest] = raw
            self._bazaar.has_data(replica)

    @property
    def faulty(self) -> bool:
        """Whether the faults go on."""
        return self._network.faulty

    def tears(self, replica: Replica) -> bool:
        """Tell whether the replica crashes now, before its next effect."""
        if not self._network.faulty or self._tears.randrange(1000) >= self.scenario.torn_per_mille:
            return False
        self.trace.note(self.scheduler.now_ms, f"{replica.number} is torn")
        self.scheduler.after(self._tears.randint(1, TORN_BACK_MS), partial(self._start, replica))
        return True

    def _deliver(self, source: int, target: int, kind: Kind, payload: bytes) -> None:
        replica = self._replicas[target]
        liar = self._liars.get(target)
        if liar is not None and kind == Kind.MESSAGE and replica.core is not None:
            try:
                lies = liar.hears(decode_message(payload))
            except InvalidInput:
                lies = []
            self._lie(target, lies)
        replica.receive(source, kind, payload)

    def _lie(self, source: int, lies: list[Lie]) -> None:
        for target, lie in lies:
            try:
                self.judge.overhears(decode_message(lie))
            except InvalidInput:
                self.trace.note(self.scheduler.now_ms, f"{source} sends rubbish to {target}")
            self._network.send(source, target, Kind.MESSAGE, lie)
