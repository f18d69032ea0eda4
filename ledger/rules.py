# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that all nodes of a network share, and the profiles that networks start from. They stand in the genesis."""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from ledger.codec import Uint, Uint256, Wire
from ledger.errors import InvalidInput

MAX_COMMITTEE = 64
"""Bound on committees and certificates; RepuCoin recommends 13 and measures up to 19."""
REPUTATION_UNIT = 10**9
"""Reputation 1.0 in fixed point."""


class WorkRules(Wire, frozen=True):
    """Parameters of the puzzle and its retarget."""

    limit: Uint256
    """The easiest target that is allowed; also the first one."""
    interval_ms: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    """Wanted mean time between keyblocks, in milliseconds."""
    window_keyblocks: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    """Keyblocks per retarget window; the mean interval settles at n/(n−1) of the wanted one for a window of n."""


class ReputationRules(Wire, frozen=True):
    """Parameters of Algorithm 2 of RepuCoin."""

    midpoint_keyblocks: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    """a: the x at which f is one half."""
    flatness_keyblocks: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    """λ: the larger, the slower reputation grows and the less a burst of power gains."""
    chunk_keyblocks: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    """c: keyblocks per chunk, over which regularity is judged."""


class WeightRules(Wire, frozen=True):
    """Parameters of chain weight."""

    microblock_nano: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    """w: what a microblock adds that the whole committee certified, in 10⁻⁹ of the work of its epoch's keyblock."""
    certified_cap: Annotated[int, msgspec.Meta(ge=1, le=64)]
    """d: the most that the certificates of one epoch add, in works of its keyblock."""


class ContractRules(Wire, frozen=True):
    """Parameters of off-chain contracts."""

    minimum_bond_microcredit: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    """Smallest bond of an operator, in millionths of a credit; half of it goes to who proves fraud, the rest is burnt."""
    window_microblocks: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    """Microblocks after which a batch that nobody has challenged is final. Where it is not many times `term_microblocks`, one leader alone
    can order so many without any challenge."""
    forced_batches: Annotated[int, msgspec.Meta(ge=3, le=2**10)]
    """Batches of the operator within which a forced request must be answered for. An operator may have cut all but two of them ahead of
    the chain: what is forced then goes into the batch that is open, or, when that is full, into the next."""
    neglect_ms: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    """Time without a batch after which an operator who owes an answer counts as dead, in milliseconds."""
    retention_microblocks: Annotated[int, msgspec.Meta(ge=0, le=2**30)]
    """Microblocks for which the data of a batch is kept after it is final."""


class Parameters(Wire, frozen=True):
    """Rules that all nodes of a network share."""

    minimum_fee_microcredit: Uint
    """Smallest fee of a transaction, in millionths of a credit."""
    maximum_expiry_microblocks: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    """How far ahead of the current height a transaction's expiry may lie."""
    term_microblocks: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    """Cap of microblocks (rounds) in one leader's term (m in RepuCoin)."""
    block_batches: Annotated[int, msgspec.Meta(ge=1, le=256)]
    """Most batches that one microblock may name."""
    timestamp_drift_ms: Uint
    """How far the time of a microblock or keyblock may lie ahead of a voter's clock, in milliseconds."""
    committee_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_COMMITTEE)]
    """|X|: most members of a committee."""
    keyblock_reward_microcredit: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    """Credits minted for the creator of a pinned keyblock, in millionths. The bound keeps 2^30 rewards within 63 bits."""
    false_evidence_microcredit: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    """Credits burnt, beside the fee, of who reports a misbehaviour that was none, in millionths."""
    emergency_limit_ms: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    """Longest time that an emergency access may last, in milliseconds."""
    work: WorkRules
    """The puzzle."""
    reputation: ReputationRules
    """How reputation grows."""
    weight: WeightRules
    """How chains are compared."""
    contracts: ContractRules
    """Terms of off-chain contracts."""


MAIN_PARAMETERS = Parameters(
    minimum_fee_microcredit=10,
    maximum_expiry_microblocks=10_000,
    term_microblocks=64,
    block_batches=64,
    timestamp_drift_ms=5_000,
    committee_size=13,
    keyblock_reward_microcredit=10 * 10**6,
    false_evidence_microcredit=10**6,
    # A night and a day: whoever needs longer has had time to ask the patient or to have it approved anew.
    emergency_limit_ms=24 * 3_600_000,
    # RepuCoin's ten minutes and Bitcoin's window; the first target takes a million hashes, seconds on any machine.
    work=WorkRules((2**236 - 1).to_bytes(32, "big"), 600_000, 2_016),
    # The paper's text prints λ = 50 000, but its Table 2 and "more than two years" come out with 5 000 only.
    reputation=ReputationRules(10_000, 5_000, 2_016),
    # With a heartbeat of 10 s and keyblocks at random every 600 s, an idle network fills 4(1 − e^(−1/4)) = 88 % of the bound.
    weight=WeightRules(600_000_000, 6),
    # With a heartbeat of 10 s on an idle network: a window of a day and a month of data; under load both are shorter.
    # An hour of the chain's own time, however fast its microblocks follow each other, for an operator to be repaired.
    contracts=ContractRules(1_000 * 10**6, 8_640, 12, 3_600_000, 259_200),
)
"""RepuCoin as in the paper: reputation takes years."""
TESTNET_PARAMETERS = msgspec.structs.replace(
    MAIN_PARAMETERS,
    work=WorkRules((2**236 - 1).to_bytes(32, "big"), 60_000, 240),
    reputation=ReputationRules(1_000, 500, 240),
    weight=WeightRules(3_000_000_000, 6),
)
"""A minute per keyblock; reputation takes weeks."""
DEVNET_PARAMETERS = msgspec.structs.replace(
    MAIN_PARAMETERS,
    emergency_limit_ms=3_600_000,
    # The first target takes 2^19 hashes: five seconds of four miners with a twentieth of a core each.
    work=WorkRules((2**237 - 1).to_bytes(32, "big"), 15_000, 20),
    reputation=ReputationRules(100, 50, 20),
    # Seconds under load, minutes on an idle network: whoever tries things out sees batches become final, and neglect punished. Safe with
    # honest leaders only.
    contracts=ContractRules(10 * 10**6, 16, 12, 120_000, 1_024),
    # An idle epoch has about four microblocks: pinning, its confirmation, the opening and a heartbeat.
    weight=WeightRules(6_000_000_000, 6),
)
"""A quarter of a minute per keyblock; reputation takes an hour."""
PROFILES: Mapping[str, Parameters] = {
    "main": MAIN_PARAMETERS,
    "testnet": TESTNET_PARAMETERS,
    "devnet": DEVNET_PARAMETERS,
}
"""Parameters by name, for new networks."""


def is_for_development(parameters: Parameters) -> bool:
    """Tell whether rules are those of a network for development: keyblocks are due at least as often as in the profile devnet.

    A network that is meant to last leaves miners more time, whatever else it changes of a profile.
    """
    return parameters.work.interval_ms <= DEVNET_PARAMETERS.work.interval_ms


def check_parameters(parameters: Parameters) -> None:
    """Check what the types of the rules cannot say. Raises `InvalidInput`."""
    if int.from_bytes(parameters.work.limit, "big") < 1:
        raise InvalidInput("work rules: the limit of the target is 0, which no hash is below; give at least 1")
    rules = parameters.reputation
    midpoint, flatness = rules.midpoint_keyblocks, rules.flatness_keyblocks
    # f(0) = λ / (2 (λ + a)), rounded down.
    if flatness * REPUTATION_UNIT < 2 * (flatness + midpoint):
        raise InvalidInput(
            f"reputation rules: with a midpoint of {midpoint} keyblocks and a flatness of {flatness} a newcomer's reputation f(0) is "
            "below 10⁻⁹ and counts as 0, so that a committee of newcomers could decide nothing; give a flatness of at least "
            f"{_least_flatness(midpoint)}, or a smaller midpoint"
        )


def _least_flatness(midpoint: int) -> int:
    """Return the smallest λ with λ · 10⁹ ≥ 2 (λ + a)."""
    return -(-2 * midpoint // (REPUTATION_UNIT - 2))
