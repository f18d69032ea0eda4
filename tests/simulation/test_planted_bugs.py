# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge is judged: a core or driver with one bug planted is caught within a few seeds, by the invariant that it breaks."""

import itertools
import re
from collections.abc import Callable, Sequence

import msgspec
import pytest

import consensus.acting
import consensus.block_tree
import consensus.checks
import consensus.committee
import consensus.core
import consensus.desk
import consensus.learning
import consensus.member
import consensus.safety
import consensus.uncommitted
import ledger.transition
import simulation.pool
from consensus.block_tree import Node
from consensus.events import Persist
from consensus.messages import Certificate, Proposal, Vote
from consensus.safety import SafetyRecord
from ledger.blocks import microblock_hash
from ledger.evidence import ConflictingVotes
from ledger.state import Change, next_state_digest
from simulation.disk import SafetySlots
from simulation.replica import Replica
from simulation.run import Failure, run
from simulation.scenario import Crash, FullDisk, Partition, Scenario, scenario_json

Patch = pytest.MonkeyPatch
SEEDS = 40
"""At most so many runs until a bug must have shown itself."""

LIARS = Scenario(seed=0, byzantine=1, term_microblocks=3, loss_percent=5, faults_ms=6_000, patience_ms=40_000)
STORM = Scenario(
    seed=0,
    term_microblocks=3,
    loss_percent=10,
    slow_percent=10,
    torn_per_mille=10,
    faults_ms=6_000,
    patience_ms=40_000,
    crashes=tuple(Crash(number, 1_500 + 300 * number, 2_500 + 300 * number) for number in range(4)),
    partitions=(Partition((0, 1), 3_500, 4_500),),
)
LONERS = msgspec.structs.replace(
    LIARS,
    byzantine=0,
    transactions=60,
    loss_percent=0,
    delay_ms=60,
    faults_ms=15_000,
    partitions=tuple(Partition((step % 4,), 900 * step, 900 * step + 800) for step in range(16)),
)
FORKS = msgspec.structs.replace(LIARS, transactions=80, term_microblocks=4, loss_percent=0)
SPLIT = Scenario(seed=0, faults_ms=6_000, patience_ms=40_000, partitions=(Partition((0, 1), 500, 5_000),))


SILENT = msgspec.structs.replace(LIARS, traits=("silent",), patience_ms=3_000)


def always(value: object) -> Callable[..., object]:
    return lambda *_args, **_kwargs: value


def caught(base: Scenario, traits: Sequence[str] = ()) -> str:
    """Return by which invariant the planted bug was caught."""
    for seed in range(SEEDS):
        try:
            run(msgspec.structs.replace(base, seed=seed, traits=tuple(traits)))
        except Failure as failure:
            return failure.invariant
    return "nothing"


def failed(scenario: Scenario) -> Failure | None:
    """Run a scenario and return how it failed, if it did."""
    try:
        run(scenario)
    except Failure as failure:
        return failure
    return None


@pytest.mark.parametrize("traits", [("equivocate",), ("fork",), ("forge",), ("replay", "withhold")])
def test_the_scenarios_are_harmless_without_a_bug(traits: tuple[str, ...]) -> None:
    for seed in range(3):
        run(msgspec.structs.replace(LIARS, seed=seed, traits=traits))
        run(msgspec.structs.replace(STORM, seed=seed))


def test_a_quorum_that_is_too_small(monkeypatch: Patch) -> None:
    def small(committee: consensus.committee.Committee, indexes: Sequence[int]) -> bool:
        return len(indexes) > committee.faults

    monkeypatch.setattr(consensus.committee.Committee, "is_quorum", small)
    assert caught(LIARS, ["equivocate"]) in {"certificates", "S3"}


def test_a_quorum_that_is_too_small_forks_the_chain(monkeypatch: Patch) -> None:
    def small(committee: consensus.committee.Committee, indexes: Sequence[int]) -> bool:
        return len(indexes) > committee.faults

    monkeypatch.setattr(consensus.committee.Committee, "is_quorum", small)
    monkeypatch.setattr("simulation.invariants.Judge._check_quorum", always(None))
    monkeypatch.setattr("simulation.invariants.Judge._check_vote", always(None))
    assert caught(SPLIT) == "I1"


def test_voting_twice_in_a_round(monkeypatch: Patch) -> None:
    def careless(member: consensus.member.Member, proposal: Proposal, term_microblocks: int) -> bool:
        unvoted = msgspec.structs.replace(member.record, voted_round=0)
        voted = microblock_hash(proposal.signed.microblock.header) in member._durable
        return not voted and consensus.safety.may_vote(unvoted, proposal, term_microblocks)

    def unrecorded(record: SafetyRecord, round_: int, high: Certificate) -> SafetyRecord:
        return msgspec.structs.replace(record, voted_round=max(record.voted_round, round_), high_certificate=high)

    original = consensus.learning.on_proposal

    def lenient(desk: consensus.desk.Desk, proposal: Proposal) -> None:
        header = proposal.signed.microblock.header
        desk.proposed.pop((header.round, header.leader), None)
        original(desk, proposal)

    monkeypatch.setattr(consensus.member.Member, "may_vote", careless)
    monkeypatch.setattr(consensus.member, "record_vote", unrecorded)
    monkeypatch.setattr(consensus.learning, "on_proposal", lenient)
    # Long enough for the liar's turn to come: who leads when follows from the genesis.
    assert caught(msgspec.structs.replace(LIARS, faults_ms=20_000), ["equivocate"]) == "I4"


def test_proposing_twice_in_a_round_across_a_crash(monkeypatch: Patch) -> None:
    original = SafetySlots.load

    def forgetful(slots: SafetySlots) -> None:
        original(slots)
        if slots.snapshot is not None:
            record = msgspec.structs.replace(slots.snapshot.record, proposed_round=0)
            slots.snapshot = msgspec.structs.replace(slots.snapshot, record=record)

    monkeypatch.setattr(SafetySlots, "load", forgetful)
    monkeypatch.setattr("simulation.invariants.Judge._check_durable", always(None))
    assert caught(STORM) == "I4"


def test_a_vote_that_leaves_before_it_is_durable(monkeypatch: Patch) -> None:
    original = consensus.member.Member.vote

    def hasty(member: consensus.member.Member, path: Sequence[Node], high: Certificate) -> tuple[list[Persist], Vote]:
        return [], original(member, path, high)[1]

    monkeypatch.setattr(consensus.member.Member, "vote", hasty)
    assert caught(STORM) == "I4"


def test_a_vote_told_in_an_answer_before_it_is_durable(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Replica, "certified_tail", lambda replica: replica.core.certified_tail())
    # The only member's own vote is a certificate at once, and observers that hear little ask for the chain.
    broken = tuple(FullDisk(0, 700 + 800 * spell, 1_300 + 800 * spell, safety=True) for spell in range(6))
    alone = msgspec.structs.replace(
        LONERS, members=1, observers=2, keyblock_ms=400, loss_percent=30, partitions=(), full_disks=broken
    )
    assert caught(alone) == "I4"


def test_a_disk_that_forgets_promises(monkeypatch: Patch) -> None:
    def load(slots: SafetySlots) -> None:
        slots.snapshot = None

    monkeypatch.setattr(SafetySlots, "load", load)
    assert caught(STORM) in {"I4", "S2"}


def test_votes_in_a_term_given_up(monkeypatch: Patch) -> None:
    def stubborn(record: SafetyRecord, proposal: Proposal, term_microblocks: int) -> bool:
        hopeful = msgspec.structs.replace(record, timed_out_term=-1)
        return consensus.safety.may_vote(hopeful, proposal, term_microblocks)

    monkeypatch.setattr(consensus.member, "may_vote", stubborn)
    assert caught(STORM) == "S2"


def test_parents_older_than_what_a_quorum_knew(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.checks, "extends_safely", always(value=True))
    monkeypatch.setattr(consensus.safety, "extends_safely", always(value=True))
    assert caught(FORKS, ["equivocate", "fork"]) == "S3"


def test_certificates_believed_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.learning, "check_certificate", always(None))
    assert caught(LIARS, ["forge"]) == "certificates"


def test_timeout_certificates_believed_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.learning, "check_timeout_certificate", always(None))
    assert caught(LIARS, ["forge"]) == "certificates"


def test_timeout_certificates_that_tell_of_no_certificate(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.learning, "newest_round", always(0))
    assert caught(LIARS, ["forge", "silent"]) in {"I13", "I5"}


def test_a_commit_after_one_certificate(monkeypatch: Patch) -> None:
    original = consensus.uncommitted.Uncommitted.take

    def rash(known: consensus.uncommitted.Uncommitted, certificate: Certificate) -> bool:
        here = original(known, certificate)
        node = known.tree.get(certificate.block_hash)
        if node is not None and node.header.height > known.root.header.height:
            known._target = known._proof = node.hash
        return here

    monkeypatch.setattr(consensus.uncommitted.Uncommitted, "take", rash)
    # Whoever committed on a branch that died differs from the others, or cannot go on with them.
    assert caught(LONERS) in {"I1", "I5"}


def test_batches_ordered_twice(monkeypatch: Patch) -> None:
    monkeypatch.setattr(simulation.pool.Pool, "is_committed", always(value=False))
    monkeypatch.setattr(simulation.pool.Pool, "committed", always(None))
    assert caught(STORM) == "I2"


def test_an_execution_that_depends_on_the_node(monkeypatch: Patch) -> None:
    def unsteady(previous: bytes, changes: tuple[Change, ...]) -> bytes:
        digest = next_state_digest(previous, changes)
        return bytes([next(calls) % 251]) + digest[1:] if changes and any(previous) else digest

    calls = itertools.count()
    monkeypatch.setattr(ledger.transition, "next_state_digest", unsteady)
    assert caught(STORM) == "I6"


def test_members_that_never_give_up(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.core, "give_up", always(None))
    assert caught(LIARS, ["silent"]) == "I5"


def test_replicas_that_cannot_catch_up(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.core, "on_chain", always(None))
    assert caught(STORM) == "I5"


def test_honest_members_accused(monkeypatch: Patch) -> None:
    def hasty(desk: consensus.desk.Desk, node: Node, _why: str) -> None:
        leader = desk.committee.members[desk.committee.index_of(node.header.leader) or 0]
        evidence = ConflictingVotes(leader.public_key, 0, 1, bytes(32), bytes(64), bytes(32), bytes(64))
        desk.accuse(evidence, leader.address, "is suspected")

    monkeypatch.setattr(consensus.acting, "_refuse", hasty)
    monkeypatch.setattr(simulation.pool.Pool, "is_committed", always(value=True))
    assert caught(STORM) == "accusation"


def test_a_failure_tells_the_seed_and_the_last_events(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.core, "give_up", always(None))
    failure = next(filter(None, (failed(msgspec.structs.replace(SILENT, seed=seed)) for seed in range(SEEDS))))
    scenario = failure.scenario
    text = str(failure)
    assert re.match(rf"(?s)seed {scenario.seed} violates I5: .*last events:\n +\d+ ms  .*\nreplay: ", text)
    command = text.rpartition("replay: ")[2]
    assert command == f"spchain simulate --replay '{scenario_json(scenario)}'"
