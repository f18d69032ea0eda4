# SPDX-License-Identifier: GPL-3.0-or-later
"""Chain weight against its plain formula, both attacks on it, and the choice among chains."""

import random
from fractions import Fraction
from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import weight as weighing
from consensus.committee import Committee, CommitteeMember
from consensus.messages import Certificate
from consensus.weight import ChainWeight, FinalPoint, VerifiedChain
from consensus.work import work_of
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.rules import MAIN_PARAMETERS, REPUTATION_UNIT, WeightRules
from ledger.votes import SignedIndex

UNIT = REPUTATION_UNIT
QUORUM_NANO = 2 * UNIT // 3
"""The least share that a certificate can have, rounded down."""
CAP, MICROBLOCKS = 6, 4
RULES = WeightRules(weighing.least_microblock_nano(CAP, MICROBLOCKS), CAP)
"""Exactly the condition on w, for epochs of at least four microblocks."""
START = 2**220


class Epoch(msgspec.Struct, frozen=True):
    """What an epoch contributes; epoch 0 has no keyblock of its own."""

    target: int
    """Target of the keyblock that began it."""
    shares_nano: list[int]
    """Shares that certified its microblocks."""


def weigh(epochs: list[Epoch], rules: WeightRules = RULES, state: ChainWeight | None = None) -> ChainWeight:
    """Weigh epochs on top of a state; without one, the first is epoch 0, whose target is the founding one."""
    for epoch in epochs:
        state = _begin(state, epoch.target, rules)
        for share_nano in epoch.shares_nano:
            state = weighing.after_microblock(state, share_nano)
    assert state is not None
    return state


def _begin(state: ChainWeight | None, target: int, rules: WeightRules) -> ChainWeight:
    if state is None:
        return weighing.founding_weight(target)
    return weighing.after_keyblock(state, target, rules)


def total(epochs: list[Epoch], rules: WeightRules = RULES) -> int:
    return weighing.weight_of(weigh(epochs, rules), rules)


def work(epochs: list[Epoch]) -> int:
    """Work of epochs that follow a keyblock each."""
    return sum(work_of(epoch.target) for epoch in epochs)


TARGETS = st.integers(2**200, 2**224)
EPOCHS = st.lists(
    st.builds(Epoch, TARGETS, st.lists(st.integers(QUORUM_NANO, UNIT), max_size=12)), min_size=1, max_size=8
)
FULL_EPOCH = st.builds(Epoch, TARGETS, st.lists(st.integers(QUORUM_NANO, UNIT), min_size=MICROBLOCKS, max_size=12))
FULL_EPOCHS = st.lists(FULL_EPOCH, min_size=1, max_size=8)
RULE_SETS = st.builds(WeightRules, st.integers(1, 2 * UNIT), st.integers(1, 64))


# ---------------------------------------------------------------- the formula


@given(EPOCHS, RULE_SETS)
def test_weight_is_the_formula_but_for_rounding(epochs: list[Epoch], rules: WeightRules) -> None:
    w, exact = Fraction(rules.microblock_nano, UNIT), Fraction(work(epochs[1:]))
    for epoch in epochs:
        shares = Fraction(sum(epoch.shares_nano), UNIT)
        exact += work_of(epoch.target) * min(Fraction(rules.certified_cap), w * shares)
    # Each epoch rounds down once to 10⁻⁹ of its work and once to a whole hash.
    rounding = Fraction(sum(work_of(epoch.target) for epoch in epochs), UNIT) + len(epochs)
    assert exact - rounding <= total(epochs, rules) <= exact


def test_the_encodings_are_fixed() -> None:
    state = weigh([Epoch(START, [UNIT]), Epoch(START, [QUORUM_NANO])], MAIN_PARAMETERS.weight)
    # Work 2^256/(2^220 + 1) = 2^36 − 1; settled: 1.6 times that, rounded down.
    settled, epoch_work = (2**36 - 1) + (2**36 - 1) * 6 // 10, 2**36 - 1
    assert (settled, epoch_work) == (0x1999999998, 0xFFFFFFFFF)
    assert encode(state).hex() == f"93c428{settled:080x}c420{epoch_work:064x}ce27bc86aa"
    assert encode(MAIN_PARAMETERS.weight).hex() == "92ce23c3460006"


@pytest.mark.parametrize(
    ("cap", "microblocks", "expected_nano"),
    [(6, 60, 150_000_001), (6, 4, 2_250_000_003), (1, 1, 1_500_000_002), (1, 1_500_000_000, 2)],
)
def test_the_least_w_is_three_halves_of_d_per_microblock_rounded_up(
    cap: int, microblocks: int, expected_nano: int
) -> None:
    assert weighing.least_microblock_nano(cap, microblocks) == expected_nano


@given(st.integers(1, 64), st.integers(1, 10_000))
def test_the_least_w_fills_an_epoch_and_less_does_not(cap: int, microblocks: int) -> None:
    least_nano = weighing.least_microblock_nano(cap, microblocks)
    assert microblocks * QUORUM_NANO * least_nano // UNIT >= cap * UNIT
    assert microblocks * QUORUM_NANO * (least_nano - 1) < cap * UNIT**2


@given(
    st.lists(st.integers(1, UNIT), min_size=1, max_size=7).flatmap(
        lambda weights: st.tuples(st.just(weights), st.sets(st.integers(0, len(weights) - 1)))
    )
)
def test_a_share_is_the_part_of_reputation_that_signed(drawn: tuple[list[int], set[int]]) -> None:
    weights, signers = drawn
    members = [CommitteeMember(bytes([i]) * 33, bytes([i]) * 20, weight) for i, weight in enumerate(weights)]
    votes = tuple(SignedIndex(i, bytes(64)) for i in sorted(signers))
    committee, certificate = Committee(3, members), Certificate(3, 1, bytes(32), votes)
    share_nano = weighing.certified_share_nano(committee, certificate)
    assert share_nano == UNIT * sum(weights[i] for i in signers) // sum(weights)
    if committee.is_quorum(signers):
        assert share_nano >= QUORUM_NANO


# ---------------------------------------------------------------- R1: bounds


@given(EPOCHS, RULE_SETS)
def test_r1_weight_lies_between_the_work_and_1_plus_d_times_it(epochs: list[Epoch], rules: WeightRules) -> None:
    done, d = work(epochs[1:]), rules.certified_cap
    assert done <= total(epochs, rules) <= (1 + d) * done + d * work_of(epochs[0].target)


@given(EPOCHS, TARGETS, st.integers(0, UNIT), RULE_SETS)
def test_r1_a_keyblock_adds_its_work_and_a_certificate_never_takes_any_away(
    epochs: list[Epoch], target: int, share_nano: int, rules: WeightRules
) -> None:
    state = weigh(epochs, rules)
    before = weighing.weight_of(state, rules)
    grown = weighing.after_keyblock(state, target, rules)
    assert weighing.weight_of(grown, rules) == before + work_of(target)
    assert weighing.weight_of(weighing.after_microblock(state, share_nano), rules) >= before


# ---------------------------------------------------------------- R2: attacks


@given(EPOCHS, FULL_EPOCHS, st.lists(TARGETS, max_size=60))
def test_r2_work_without_certificates_loses_up_to_1_plus_d_times_the_honest_work(
    shared: list[Epoch], honest: list[Epoch], targets: list[int]
) -> None:
    attack: list[Epoch] = []
    # As much work as is possible below 1 + d times the honest one. A chain that pins without a committee has no certificates at all.
    for target in targets:
        candidate = [*attack, Epoch(target, [])]
        if work(candidate) < (1 + CAP) * work(honest):
            attack = candidate
    assert total([*shared, *attack]) < total([*shared, *honest])


def test_r2_seven_times_the_honest_work_is_where_work_alone_starts_to_win() -> None:
    shared, honest = [Epoch(START, [])], [Epoch(START, [QUORUM_NANO] * MICROBLOCKS)] * 10
    assert total([*shared, *[Epoch(START, [])] * 70]) == total([*shared, *honest])
    assert total([*shared, *[Epoch(START, [])] * 71]) > total([*shared, *honest])


@given(EPOCHS, st.integers(0, 10**6), FULL_EPOCHS)
def test_r2_an_old_committees_rewrite_loses_once_the_honest_chain_did_its_epochs_work_again(
    shared: list[Epoch], certificates: int, honest: list[Epoch]
) -> None:
    fork_work = work_of(shared[-1].target)
    state = weigh(shared)
    # A certificate by the whole old committee for each of a great many microblocks, and no keyblock.
    forged = ChainWeight(state.settled, state.epoch_work, state.certified_nano + certificates * UNIT)
    honest_weight = weighing.weight_of(weigh(honest, RULES, state), RULES)
    if (1 + CAP) * work(honest) > CAP * fork_work:
        assert weighing.weight_of(forged, RULES) < honest_weight


@given(EPOCHS, FULL_EPOCHS, EPOCHS)
def test_r2_an_old_committee_with_less_work_of_its_own_loses_but_for_one_epoch(
    shared: list[Epoch], honest: list[Epoch], attack: list[Epoch]
) -> None:
    # Keyblocks of the attacker's own, each with as many certificates as it likes.
    stuffed = [Epoch(epoch.target, [UNIT] * 100) for epoch in attack]
    rewritten = [*shared[:-1], Epoch(shared[-1].target, [UNIT] * 100), *stuffed]
    margin = (1 + CAP) * (work(honest) - work(stuffed)) - CAP * work_of(shared[-1].target)
    if margin > 0:
        assert total(rewritten) < total([*shared, *honest])


def test_r2_cheap_keyblocks_do_not_carry_more_certificates_per_work() -> None:
    shared, honest = [Epoch(START, [])], [Epoch(START, [QUORUM_NANO] * MICROBLOCKS)] * 4
    # A sixteenth of the difficulty: sixteen times as many keyblocks from the same power, all full.
    cheap = [Epoch(16 * START, [UNIT] * 100)] * 48
    assert work(cheap) * 4 <= work(honest) * 3
    assert total([*shared, *cheap]) < total([*shared, *honest])


def test_r2_a_w_below_the_condition_lets_a_majority_of_work_win() -> None:
    # The condition is needed: with a hundredth of the least w the certificates of the honest chain count next to nothing.
    weak = WeightRules(RULES.microblock_nano // 100, CAP)
    shared, honest = [Epoch(START, [])], [Epoch(START, [QUORUM_NANO] * MICROBLOCKS)] * 49
    majority = [Epoch(START, [])] * 53
    assert total([*shared, *majority], weak) > total([*shared, *honest], weak)
    assert total([*shared, *majority]) < total([*shared, *honest])


def test_r2_the_main_profile_fills_most_of_the_bound_even_when_idle() -> None:
    dice = random.Random(4)
    epochs = [Epoch(START, [])]
    for _ in range(2_000):
        interval_s = dice.expovariate(1 / 600)
        epochs.append(Epoch(START, [QUORUM_NANO] * int(interval_s / 10)))
    filled = Fraction(
        total(epochs, MAIN_PARAMETERS.weight) - work(epochs[1:]),
        MAIN_PARAMETERS.weight.certified_cap * work(epochs[1:]),
    )
    assert Fraction(85, 100) < filled < Fraction(91, 100)


# ---------------------------------------------------------------- R3 and R4: the fork rule

GENESIS = FinalPoint(0, bytes(32))
FORKS = st.lists(st.integers(0, 1), min_size=0, max_size=5)
"""Which of two keyblocks a chain pins for each epoch."""


def keyblock_hashes(branches: list[int]) -> dict[int, bytes]:
    """Return hashes that differ from the first branch on at which two chains part."""
    path = [0, *branches]
    return {epoch: bytes([*path[: epoch + 1], *bytes(31 - epoch)]) for epoch in range(len(path))}


CHAINS = st.builds(
    VerifiedChain, st.integers(0, 3), st.integers(0, 255).map(lambda n: bytes([n]) * 32), FORKS.map(keyblock_hashes)
)


@given(CHAINS, CHAINS, st.integers(0, 5))
def test_r3_a_chain_without_the_final_keyblock_never_wins(
    ours: VerifiedChain, theirs: VerifiedChain, epoch: int
) -> None:
    """Neither one that pins another keyblock nor one that ends earlier; who holds the final one holds all before it."""
    epoch = min(epoch, max(ours.keyblocks))
    final = FinalPoint(epoch, ours.keyblocks[epoch])
    heavy = msgspec.structs.replace(theirs, weight=2**300)
    holds = all(theirs.keyblocks.get(number) == ours.keyblocks[number] for number in range(epoch + 1))
    assert weighing.choose([ours, heavy], final) is (heavy if holds else ours)


@given(CHAINS, CHAINS, CHAINS)
def test_r4_preference_is_a_strict_total_order(one: VerifiedChain, two: VerifiedChain, three: VerifiedChain) -> None:
    def better(a: VerifiedChain, b: VerifiedChain) -> bool:
        # Of equals the first one offered stays.
        return weighing.choose([b, a], GENESIS) is a

    assert not better(one, msgspec.structs.replace(one))
    assert better(one, two) + better(two, one) == ((one.weight, one.tip) != (two.weight, two.tip))
    if better(one, two) and better(two, three):
        assert better(one, three)


@given(st.lists(CHAINS, min_size=1, max_size=4, unique_by=lambda chain: (chain.weight, chain.tip)))
def test_r4_a_joining_node_chooses_the_same_chain_in_whatever_order_they_are_offered(
    offered: list[VerifiedChain],
) -> None:
    chosen = {weighing.choose(order, GENESIS).tip for order in permutations(offered)}
    assert len(chosen) == 1
    best = weighing.choose(offered, GENESIS)
    assert all(weighing.choose([other, best], GENESIS) is best for other in offered)


def test_r4_of_equally_heavy_chains_the_lower_hash_wins() -> None:
    low, high = (VerifiedChain(5, bytes([n]) * 32, keyblock_hashes([])) for n in (1, 2))
    assert weighing.choose([high, low], GENESIS) is low


@given(st.lists(CHAINS, max_size=6), FORKS)
def test_a_joining_node_never_takes_a_chain_without_its_checkpoint(
    offered: list[VerifiedChain], path: list[int]
) -> None:
    epoch, digest = list(keyblock_hashes(path).items())[-1]
    if any(chain.keyblocks.get(epoch) == digest for chain in offered):
        assert weighing.choose(offered, FinalPoint(epoch, digest)).keyblocks[epoch] == digest
    else:
        with pytest.raises(InvalidInput, match=rf"none of {len(offered)} chains offered has keyblock {digest.hex()}"):
            weighing.choose(offered, FinalPoint(epoch, digest))


def test_a_joining_node_is_fooled_neither_by_work_alone_nor_by_an_old_committee() -> None:
    shared = [Epoch(START, []), *[Epoch(START, [QUORUM_NANO] * MICROBLOCKS)] * 3]
    honest = [*shared, *[Epoch(START, [QUORUM_NANO] * MICROBLOCKS)] * 2]
    chains = {
        "honest": VerifiedChain(total(honest), b"\3" * 32, keyblock_hashes([0, 0, 0, 0, 0])),
        "work": VerifiedChain(
            total([*shared, *[Epoch(START, [])] * 8]), b"\2" * 32, keyblock_hashes([0, 0, 0, *[1] * 8])
        ),
        "old committee": VerifiedChain(
            total([*shared[:-1], Epoch(START, [UNIT] * 10_000)]), b"\1" * 32, keyblock_hashes([0, 0, 0])
        ),
    }
    assert work([*shared[1:], *[Epoch(START, [])] * 8]) > work(honest[1:])
    assert weighing.choose(list(chains.values()), GENESIS) is chains["honest"]
    checkpoint = FinalPoint(4, chains["honest"].keyblocks[4])
    heavier = msgspec.structs.replace(chains["work"], weight=2**200)
    assert weighing.choose([heavier, *chains.values()], checkpoint) is chains["honest"]
