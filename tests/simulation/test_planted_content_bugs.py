# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge is judged, where the content of microblocks, answers to those who catch up, and weight are concerned."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import pytest

import consensus.acting
import consensus.checks
import consensus.executor
import consensus.learning
import consensus.weight
import simulation.pool
from consensus.block_tree import BlockTree, Node
from consensus.committee import Committee
from consensus.desk import Desk
from consensus.epoch import Epoch
from consensus.events import RequestBatches
from consensus.member import Member
from consensus.messages import Certificate, Proposal
from consensus.weight import ChainWeight
from ledger.rules import REPUTATION_UNIT, WeightRules
from simulation.run import Failure, run
from simulation.scenario import Crash, Partition, Scenario

Patch = pytest.MonkeyPatch
SEEDS = 40
"""At most so many runs until a bug must have shown itself."""

LIARS = Scenario(
    seed=0,
    byzantine=1,
    newcomers=1,
    keyblock_ms=600,
    term_microblocks=3,
    transactions=30,
    loss_percent=5,
    faults_ms=6_000,
    patience_ms=40_000,
    powers=(1, 1, 1, 1, 4),
    crashes=(Crash(0, 0, 2_000), Crash(4, 2_000, 3_500)),
    partitions=(Partition((1,), 3_500, 5_000),),
)
FALSIFIERS = msgspec.structs.replace(LIARS, loss_percent=0, crashes=(), partitions=())
"""A lie is committed only if all the others, which are barely a quorum, hear and believe it, and what follows it."""
CATCHERS = msgspec.structs.replace(
    LIARS,
    transactions=60,
    faults_ms=12_000,
    crashes=(),
    partitions=tuple(Partition((step % 3,), 900 * step, 900 * step + 700) for step in range(13)),
)
"""One after the other falls behind and catches up, perhaps from the liar."""
CALM = msgspec.structs.replace(LIARS, byzantine=0, loss_percent=0, crashes=(), partitions=(), powers=(1, 2, 3, 1, 4))


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


def believing(monkeypatch: Patch, module: ModuleType, digest_of: str) -> None:
    """Let whatever a module works out the digest of count as signed."""
    original, is_signed = getattr(module, digest_of), Epoch.is_signed
    believed = set[bytes]()

    def noted(*arguments: object) -> bytes:
        digest: bytes = original(*arguments)
        believed.add(digest)
        return digest

    def gullible(epoch: Epoch, member: int, digest: bytes, signature: bytes) -> bool:
        return digest in believed or is_signed(epoch, member, digest, signature)

    monkeypatch.setattr(module, digest_of, noted)
    monkeypatch.setattr(Epoch, "is_signed", gullible)


def voting_on(monkeypatch: Patch, seen: Callable[[Desk, Node], dict[str, Any]]) -> None:
    """Let members judge a microblock as if some fields of its header were others."""
    original = consensus.acting._vote_if_right

    def vote(desk: Desk, member: Member, node: Node) -> None:
        header = msgspec.structs.replace(node.header, **seen(desk, node))
        original(desk, member, msgspec.structs.replace(node, header=header))

    monkeypatch.setattr(consensus.acting, "_vote_if_right", vote)


@pytest.mark.parametrize("trait", ["falsify", "misvote", "mislead"])
def test_the_scenarios_are_harmless_without_a_bug(trait: str) -> None:
    assert sum(run(msgspec.structs.replace(LIARS, seed=seed, traits=(trait,))).epochs for seed in range(4)) >= 8


# ---------------------------------------------------------------- microblocks and votes


def test_microblocks_from_the_future(monkeypatch: Patch) -> None:
    voting_on(monkeypatch, lambda _desk, _node: {"timestamp_ms": 0})
    assert caught(FALSIFIERS, "falsify") == "time"


def test_microblocks_earlier_than_their_parents(monkeypatch: Patch) -> None:
    original = consensus.checks.check_placed

    def lenient(epoch: Epoch, tree: BlockTree, parent: Node, proposal: Proposal) -> None:
        timeless = msgspec.structs.replace(parent.header, timestamp_ms=0)
        original(epoch, tree, msgspec.structs.replace(parent, header=timeless), proposal)

    monkeypatch.setattr(consensus.learning, "check_placed", lenient)
    assert caught(FALSIFIERS, "falsify") == "time"


def test_state_digests_taken_on_trust(monkeypatch: Patch) -> None:
    voting_on(monkeypatch, lambda desk, node: {"state_digest": desk.known.digests.get(node.header.executed_height)})
    monkeypatch.setattr(consensus.acting, "try_commit", trusting_commit)
    monkeypatch.setattr("consensus.core.try_commit", trusting_commit)
    monkeypatch.setattr(consensus.learning, "try_commit", trusting_commit)
    assert caught(FALSIFIERS, "falsify") == "I6"


def trusting_commit(desk: Desk) -> None:
    """As `try_commit`, but whatever a microblock states of the state is believed."""
    while not (desk.halted or desk.ended) and (node := desk.known.next_commit()) is not None:
        missing = desk.payload.missing(node.batches)
        if missing or node.header.executed_height not in desk.known.digests:
            desk.emit_once(RequestBatches(missing))
            return
        consensus.acting._commit(desk, node)


def test_leaders_that_nobody_drew(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.checks, "_check_led", always(None))
    assert caught(FALSIFIERS, "falsify") == "leader"


def test_microblocks_that_nobody_signed(monkeypatch: Patch) -> None:
    believing(monkeypatch, consensus.checks, "microblock_signing_digest")
    assert caught(LIARS, "falsify") in {"leader", "accusation"}


def test_batches_that_nobody_has(monkeypatch: Patch) -> None:
    monkeypatch.setattr(simulation.pool.Pool, "missing", always(()))
    assert caught(LIARS, "falsify") == "I13"


def test_votes_that_nobody_signed(monkeypatch: Patch) -> None:
    believing(monkeypatch, consensus.learning, "vote_digest")
    assert caught(LIARS, "misvote") in {"accusation", "certificates"}


def test_votes_of_one_member_that_count_for_another(monkeypatch: Patch) -> None:
    original = Committee.index_of

    def careless(committee: Committee, address: bytes) -> int | None:
        index = original(committee, address)
        return index if index is None else (index + 1) % len(committee.members)

    monkeypatch.setattr(Committee, "index_of", careless)
    assert caught(LIARS, "misvote") in {"accusation", "refusal", "I5", "I13"}


# ---------------------------------------------------------------- answers


def test_answers_believed_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.learning, "check_certified", always(None))
    assert caught(CATCHERS, "mislead") in {"I1", "I2", "I5", "I13", "certificates", "accusation"}


def test_content_that_is_not_what_the_header_states(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.checks, "is_well_formed", always(value=True))
    assert caught(FALSIFIERS, "falsify") in {"I1", "I2", "I3", "I5", "I6", "I7", "I13", "refusal"}


def test_answers_in_the_wrong_order_given_up_for_good(monkeypatch: Patch) -> None:
    original, given_up = Desk.request_chain, set[int]()

    def once(desk: Desk) -> None:
        if id(desk) not in given_up:
            given_up.add(id(desk))
            original(desk)

    monkeypatch.setattr(Desk, "request_chain", once)
    assert caught(CATCHERS, "mislead") == "I5"


# ---------------------------------------------------------------- weight


def test_microblocks_that_weigh_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(consensus.executor, "after_microblock", lambda weight, _share_nano: weight)
    assert caught(CALM) == "weight"


def test_microblocks_weighed_by_votes_instead_of_reputation(monkeypatch: Patch) -> None:
    def counted(committee: Committee, certificate: Certificate) -> int:
        return len(certificate.votes) * REPUTATION_UNIT // len(committee.members)

    monkeypatch.setattr(consensus.executor, "certified_share_nano", counted)
    assert caught(CALM) == "weight"


def test_certificates_without_a_bound(monkeypatch: Patch) -> None:
    original = consensus.weight.weight_of

    def boundless(weight: ChainWeight, rules: WeightRules) -> int:
        return original(weight, msgspec.structs.replace(rules, certified_cap=1_000))

    monkeypatch.setattr(consensus.weight, "weight_of", boundless)
    monkeypatch.setattr(consensus.executor, "weight_of", boundless)
    assert caught(CALM) == "weight"


def test_keyblocks_that_weigh_nothing(monkeypatch: Patch) -> None:
    original = consensus.weight.after_keyblock

    def idle(weight: ChainWeight, target: int, rules: WeightRules) -> ChainWeight:
        return msgspec.structs.replace(original(weight, target, rules), settled=weight.settled)

    monkeypatch.setattr(consensus.executor, "after_keyblock", idle)
    assert caught(CALM) == "weight"


def test_certificates_forgotten_when_their_epoch_ends(monkeypatch: Patch) -> None:
    original = consensus.weight.after_keyblock

    def forgetful(weight: ChainWeight, target: int, rules: WeightRules) -> ChainWeight:
        return original(msgspec.structs.replace(weight, certified_nano=0), target, rules)

    monkeypatch.setattr(consensus.executor, "after_keyblock", forgetful)
    assert caught(CALM) == "weight"
