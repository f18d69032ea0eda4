# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge is judged, where keyblocks, epochs, reputation and credits are concerned: each planted bug is caught."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import msgspec
import pytest

import consensus.accounting
import consensus.acting
import consensus.checks
import consensus.core
import consensus.epoch
import consensus.pinning
import consensus.standings
import ledger.account_acts
import ledger.acts
from consensus.block_tree import Node
from consensus.certificates import SignedHash
from consensus.committee import Committee, CommitteeMember
from consensus.desk import Desk
from consensus.epoch import Epoch
from consensus.messages import Certificate
from consensus.pinning import Pinned, pin
from consensus.retarget import next_target
from consensus.safety import SafetyRecord, fresh_record
from consensus.standings import Standings, Trial
from consensus.uncommitted import Uncommitted
from consensus.weight import founding_weight
from consensus.work import check_work
from ledger import testing
from ledger.blocks import Keyblock, Microblock, MicroblockHeader, SignedKeyblock
from ledger.errors import InvalidInput
from ledger.evidence import ConflictingVotes, Evidence, Guilt, conflicting_votes
from ledger.memory_store import MemoryStore
from ledger.miners import MinerHistory
from ledger.rules import WorkRules
from ledger.state import EPOCHS, OFFENCES, State, Table, V
from ledger.store import BlockUpdate
from simulation.disk import SafetySlots
from simulation.run import Failure, run
from simulation.scenario import Crash, FullDisk, Partition, Scenario

Patch = pytest.MonkeyPatch
SEEDS = 80
"""At most so many runs until a bug must have shown itself."""

CALM = Scenario(
    seed=0,
    newcomers=1,
    keyblock_ms=500,
    term_microblocks=3,
    transactions=10,
    faults_ms=6_000,
    patience_ms=40_000,
    powers=(1, 1, 1, 1, 4),
)
STORM = msgspec.structs.replace(
    CALM,
    loss_percent=10,
    slow_percent=10,
    torn_per_mille=10,
    crashes=tuple(Crash(number, 1_500 + 300 * number, 2_500 + 300 * number) for number in range(5)),
    partitions=(Partition((0, 1), 3_500, 4_500),),
    full_disks=tuple(FullDisk(number, 800 + 900 * number, 2_000 + 900 * number, safety=False) for number in range(5)),
)
LIARS = msgspec.structs.replace(CALM, byzantine=1, powers=(1, 1, 1, 6, 1))
EQUIVOCATORS = msgspec.structs.replace(LIARS, newcomers=0, faults_ms=10_000)


def always(value: object) -> Callable[..., object]:
    return lambda *_args, **_kwargs: value


def caught(base: Scenario, *traits: str) -> str:
    """Return by which invariant the planted bug was caught."""
    for seed in range(SEEDS):
        try:
            run(msgspec.structs.replace(base, seed=seed, traits=traits))
        except Failure as failure:
            return failure.invariant
    return "nothing"


@pytest.mark.parametrize(
    ("base", "traits"),
    [
        (CALM, ()),
        (STORM, ()),
        (LIARS, ("counterfeit", "stale")),
        (LIARS, ("secretive", "twice")),
        (EQUIVOCATORS, ("equivocate",)),
        (LIARS, ("slander",)),
    ],
)
def test_the_scenarios_are_harmless_without_a_bug(base: Scenario, traits: tuple[str, ...]) -> None:
    epochs = [run(msgspec.structs.replace(base, seed=seed, traits=traits)).epochs for seed in range(4)]
    # Storms leave little time for keyblocks: more than one epoch a run on average is enough to hide a bug in.
    assert sum(epochs) > len(epochs)


# ---------------------------------------------------------------- committees and reputation


def test_a_committee_that_never_changes(monkeypatch: Patch) -> None:
    original, founders = Trial.committee, {testing.key(number).public_key for number in range(CALM.members)}

    def founding(trial: Trial, size: int) -> tuple[CommitteeMember, ...]:
        return tuple(member for member in original(trial, size) if member.public_key in founders)

    monkeypatch.setattr(Trial, "committee", founding)
    assert caught(CALM) == "committee"


def test_equal_reputations_in_the_order_of_keys(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.standings, "tie_break", lambda key, _reputation: key)
    assert caught(CALM) == "committee"


def test_offenders_that_keep_their_honesty(monkeypatch: Patch) -> None:
    original = State.entries

    def entries(state: State, table: Table[V]) -> Iterator[tuple[bytes, V]]:
        return iter(()) if table.prefix == OFFENCES.prefix else original(state, table)

    monkeypatch.setattr(State, "entries", entries)
    assert caught(EQUIVOCATORS, "equivocate") == "reputation"


def test_offenders_that_keep_their_seat(monkeypatch: Patch) -> None:
    def lenient(history: MinerHistory) -> bool:
        return history.keyblocks > 0 or history.external_nano > 0

    monkeypatch.setattr(consensus.standings, "may_sit", lenient)
    assert caught(EQUIVOCATORS, "equivocate") == "committee"


def test_lost_terms_that_cost_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Epoch, "lost_terms", always({}))
    assert caught(STORM) == "reputation"


def test_a_term_cut_short_by_its_epoch_that_counts(monkeypatch: Patch) -> None:
    original = consensus.pinning._close_histories

    def harsh(state: State, standings: Standings, epoch: Epoch, miner: bytes) -> dict[bytes, MinerHistory]:
        progress = state.progress()
        if (progress.round + 1) % epoch.parameters.term_microblocks:
            key = consensus.accounting._key_of(epoch, progress.leader)
            consensus.accounting._count(state, key, 1, progress.term_microblocks)
        return original(state, standings, epoch, miner)

    monkeypatch.setattr(consensus.pinning, "_close_histories", harsh)
    assert caught(CALM) == "reputation"


def test_a_reputation_that_grows_within_an_epoch(monkeypatch: Patch) -> None:
    original = consensus.accounting.account_microblock

    def eager(state: State, epoch: Epoch, header: MicroblockHeader, fees: int) -> None:
        original(state, epoch, header, fees)
        if header.height % 3 == 0:
            epoch.reputation_of = lambda _key: 10**9

    monkeypatch.setattr("consensus.executor.account_microblock", eager)
    assert caught(CALM) in {"I3", "I5", "refusal"}


def test_a_quorum_by_number_alone(monkeypatch: Patch) -> None:
    def counted(committee: Committee, indexes: Sequence[int]) -> bool:
        return len(indexes) >= committee.quorum_votes

    monkeypatch.setattr(Committee, "is_quorum", counted)
    mixed = msgspec.structs.replace(STORM, newcomers=5, powers=(0, 0, 0, 0, 1, 1, 1, 1, 1), faults_ms=12_000)
    assert caught(mixed) == "certificates"


# ---------------------------------------------------------------- keyblocks


def test_keyblocks_believed_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Epoch, "check_keyblock", always(None))
    assert caught(LIARS, "counterfeit") == "I3"


def test_work_that_is_not_checked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.epoch, "check_work", always(None))
    assert caught(LIARS, "counterfeit") == "I3"


def test_a_time_that_the_puzzle_does_not_cover(monkeypatch: Patch) -> None:
    def lenient(keyblock: Keyblock, target: int) -> None:
        stated_ms = keyblock.timestamp_ms
        for timestamp_ms in (stated_ms, stated_ms - 1):
            with suppress(InvalidInput):
                return check_work(msgspec.structs.replace(keyblock, timestamp_ms=timestamp_ms), target)
        raise InvalidInput("its solution is for neither time")

    monkeypatch.setattr(consensus.epoch, "check_work", lenient)
    assert caught(LIARS, "counterfeit") == "I3"


def test_keyblocks_mined_on_anything(monkeypatch: Patch) -> None:
    original = Epoch.check_keyblock

    def lenient(epoch: Epoch, signed: SignedKeyblock) -> None:
        record = epoch.record
        moved = msgspec.structs.replace(record, keyblock=signed.keyblock.previous, root_hash=signed.keyblock.microblock)
        epoch.record = moved
        try:
            original(epoch, signed)
        finally:
            epoch.record = record

    monkeypatch.setattr(Epoch, "check_keyblock", lenient)
    assert caught(LIARS, "stale") == "I3"


def test_a_target_that_never_changes(monkeypatch: Patch) -> None:
    monkeypatch.setattr("consensus.pinning.next_target", lambda target, *_: target)
    assert caught(CALM) == "I3"


def test_windows_that_do_not_share_their_ends(monkeypatch: Patch) -> None:
    def short(target: int, first_ms: int, last_ms: int, keyblocks: int, rules: WorkRules) -> int:
        return next_target(target, first_ms, last_ms, keyblocks - 1, rules)

    monkeypatch.setattr("consensus.pinning.next_target", short)
    assert caught(CALM) == "I3"


# ---------------------------------------------------------------- the change of epochs


def test_an_epoch_that_ends_before_its_last_microblock_is_final(monkeypatch: Patch) -> None:
    original = Uncommitted.take

    def rash(known: Uncommitted, certificate: Certificate) -> bool:
        here = original(known, certificate)
        node = known.tree.get(certificate.block_hash)
        if node is not None and node.proposal is not None and node.proposal.signed.microblock.keyblock is not None:
            known._target = known._proof = node.hash
        return here

    monkeypatch.setattr(Uncommitted, "take", rash)
    assert caught(CALM) == "I2"


def test_batches_behind_a_pin(monkeypatch: Patch) -> None:
    original = consensus.checks._check_content

    def lenient(epoch: Epoch, parent: Node, block: Microblock, what: str) -> None:
        original(epoch, msgspec.structs.replace(parent, ends_epoch=False), block, what)

    monkeypatch.setattr(consensus.checks, "_check_content", lenient)
    assert caught(msgspec.structs.replace(LIARS, transactions=60), "counterfeit") == "I2"


def test_promises_forgotten_at_a_restart_in_a_later_epoch(monkeypatch: Patch) -> None:
    original = SafetySlots.load

    def forgetful(slots: SafetySlots) -> None:
        original(slots)
        snapshot = slots.snapshot
        if snapshot is not None and snapshot.record.epoch > 0:
            record = msgspec.structs.replace(snapshot.record, epoch=0)
            slots.snapshot = msgspec.structs.replace(snapshot, record=record)

    monkeypatch.setattr(SafetySlots, "load", forgetful)
    assert caught(STORM) in {"I4", "I13"}


def test_promises_that_last_for_one_epoch_too_many(monkeypatch: Patch) -> None:
    def sticky(epoch: Epoch) -> SafetyRecord:
        return msgspec.structs.replace(fresh_record(epoch), epoch=max(0, epoch.number - 1))

    monkeypatch.setattr(consensus.core, "fresh_record", sticky)
    assert caught(CALM) in {"I4", "I5"}


def test_an_epoch_that_does_not_begin_a_term(monkeypatch: Patch) -> None:
    def continuing(
        state: State, standings: Standings, epoch: Epoch, header: MicroblockHeader, name: bytes, signed: SignedKeyblock
    ) -> Pinned:
        pinned = pin(state, standings, epoch, header, name, signed)
        record = msgspec.structs.replace(pinned.record, root_round=pinned.record.root_round + 1)
        state.put(EPOCHS, state.progress().epoch.to_bytes(8, "big"), record)
        return pinned

    monkeypatch.setattr("consensus.executor.pin", continuing)
    assert caught(CALM) == "I3"


def test_seeds_taken_on_trust(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Epoch, "is_reveal", always(value=True))
    assert caught(LIARS, "secretive") in {"leader", "I5"}


def test_an_opening_led_without_the_reveal(monkeypatch: Patch) -> None:
    original = Epoch.opener

    def impatient(epoch: Epoch, term: int, reveal: bytes | None) -> int | None:
        leader = original(epoch, term, reveal)
        return leader if reveal is None or leader is None else (leader + 1) % len(epoch.committee.members)

    monkeypatch.setattr(Epoch, "opener", impatient)
    assert caught(CALM) == "leader"


def test_closing_proofs_that_are_not_handed_on(monkeypatch: Patch) -> None:
    monkeypatch.setattr(MemoryStore, "closing", always(None))
    assert caught(STORM) == "I5"


def test_state_roots_that_are_wrong_everywhere(monkeypatch: Patch) -> None:
    original = MemoryStore.commit

    def rootless(store: MemoryStore, update: BlockUpdate) -> None:
        original(store, update)
        if update.keeps_root:
            store._roots[update.head.height] = bytes(32)

    monkeypatch.setattr(MemoryStore, "commit", rootless)
    assert caught(CALM) == "I6"


def test_standings_that_change_although_the_store_refuses(monkeypatch: Patch) -> None:
    original = Standings.trial

    def hasty(standings: Standings, changes: Mapping[bytes, MinerHistory], keyblocks: int) -> Trial:
        trial = original(standings, changes, keyblocks)
        if changes:
            standings.apply(changes, standings.keyblocks)
        return trial

    monkeypatch.setattr(Standings, "trial", hasty)
    assert caught(STORM) in {"reputation", "I6", "I13"}


def test_roots_that_depend_on_the_node(monkeypatch: Patch) -> None:
    original = MemoryStore.root_at

    def unsteady(store: MemoryStore, height: int) -> bytes | None:
        root = original(store, height)
        return root if root is None or height == 0 else root[:-1] + bytes([id(store) % 256])

    monkeypatch.setattr(MemoryStore, "root_at", unsteady)
    assert caught(CALM) in {"I3", "I6", "refusal"}


# ---------------------------------------------------------------- credits and evidence


def test_fees_that_all_go_to_leaders(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.pinning, "creator_positions", always((0, 0)))
    assert caught(CALM) == "I7"


def test_a_reward_out_of_nothing(monkeypatch: Patch) -> None:
    original = consensus.pinning._credit

    def generous(state: State, address: bytes, amount: int) -> None:
        original(state, address, amount + 1)

    monkeypatch.setattr(consensus.pinning, "_credit", generous)
    assert caught(CALM) == "I7"


def test_evidence_taken_on_trust(monkeypatch: Patch) -> None:
    def gullible(_chain_id: bytes, evidence: Evidence) -> Guilt:
        return Guilt(evidence.offender, 0, 1)

    monkeypatch.setattr(ledger.account_acts, "check_evidence", gullible)
    assert caught(LIARS, "slander") == "I6"


def test_false_evidence_that_costs_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ledger.acts.Act, "burn", always(None))
    assert caught(LIARS, "slander") == "I7"


def test_accusations_without_proof(monkeypatch: Patch) -> None:
    def sloppy(offender: bytes, epoch: int, round_: int, one: SignedHash, other: SignedHash) -> ConflictingVotes:
        return conflicting_votes(offender, epoch, round_ + 1, one, other)

    monkeypatch.setattr("consensus.learning.conflicting_votes", sloppy)
    assert caught(EQUIVOCATORS, "equivocate") == "accusation"


def test_an_epoch_whose_executor_forgets_its_weight(monkeypatch: Patch) -> None:
    forgotten = founding_weight(int.from_bytes(testing.PARAMETERS.work.limit, "big"))
    monkeypatch.setattr("consensus.executor._decode_weight", always(forgotten))
    assert caught(STORM) == "I8"


def test_a_network_that_pins_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Desk, "wants_keyblock", always(value=False))
    assert caught(CALM) == "I5"
