# SPDX-License-Identifier: GPL-3.0-or-later
"""Chain weight: which of two chains stands on more work and more agreement, and which one a joining node follows.

    weight = Σ over epochs e of  W_e + W_e · min(d, w · Σ over the committed microblocks b of e of share_b)

W_e is the work of the keyblock that began epoch e, share_b the part of the committee's reputation that certified b (more than 2/3).
Epoch 0 has no keyblock: the founding target stands in for W_0 in the second term and the first one is empty. So microblocks count,
as SPChain demands and unlike in Bitcoin-NG. w and d are counted in works of the epoch's keyblock:

- d is the most that an epoch's certificates may count. Whoever has an old committee's keys makes certificates for nothing; without
  a bound no w would keep any number of them from outweighing everything.
- w and d are relative because an absolute w would be outgrown when difficulty rises, and would let a chain of cheap keyblocks,
  retargeted downwards, carry as many certificates as one of dear ones.

The condition on w. Let an epoch have at least μ microblocks. If

    w ≥ 3d / (2μ)                                                        (`least_microblock_nano`)

the honest chain fills the bound in each epoch and weighs (1 + d) times its work. If epochs fill only a part φ of it on the mean
(μ varies: keyblocks come at random; or w is smaller, then φ = 2μw/3d), it weighs (1 + φd) times its work. More w does no harm.

Let the honest chain have done work W since a fork in epoch e:

- Work without certificates: a chain with ρW weighs ρW, and loses while ρ < 1 + φd; 51 % of all power is ρ = 1.04.
- An old committee's rewrite, certificates without work: it gains at most d·W_e, and loses once (1 + φd) W > d·W_e; with φ = 1 after the
  next keyblock of equal work, however many certificates it has made.
- Both, with work βW: it weighs at most (1 + d) βW + d·W_e, and loses in the long run while β < (1 + φd) / (1 + d), which is about φ.

A node that was there is not in doubt: it never leaves what is final for it, and compares nothing. Weight is for those who were not.
A node that was stopped while it joined takes only chains that hold what is final for it (`node.contest`).

Requirements:
R1 (bounds) work ≤ weight ≤ (1 + d) · work + d · W_0; each keyblock and each certificate only adds.
R2 (attacks) under the condition on w, neither of the two chains above outweighs the honest one.
R3 (finality) a chain without the keyblock that is final for whoever chooses never wins, whatever it weighs.
R4 (order) preference is a strict total order on chains of different tips, so a choice does not depend on the order of offers.
R5 (cost) a keyblock or microblock changes the weight in O(1); the sum is kept in constant size.

Which votes a certificate holds is not part of any hash: two nodes may weigh one chain a little differently. Weight is thus a node's
own judgement and never part of the agreed state.
"""

from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from consensus.committee import Committee
from consensus.messages import Certificate
from consensus.work import work_of
from ledger.codec import Uint, Uint256, Wire
from ledger.errors import InvalidInput
from ledger.rules import REPUTATION_UNIT, WeightRules

_MOST_UINT = 2**63 - 1
_WEIGHT_BYTES = 40
"""A keyblock counts less than 2^255 · 65: room for 2^58 of them."""


class ChainWeight(Wire, frozen=True):
    """What a chain weighs up to some microblock; of constant size. Kept by each node for itself, not agreed."""

    settled: Annotated[bytes, msgspec.Meta(min_length=_WEIGHT_BYTES, max_length=_WEIGHT_BYTES)]
    """Weight of everything but the running epoch's certificates, in expected hashes, big-endian."""
    epoch_work: Uint256
    """Work of the keyblock that began the running epoch, in expected hashes, big-endian."""
    certified_nano: Uint
    """Σ of shares in the running epoch, in 10⁻⁹."""


class FinalPoint(msgspec.Struct, frozen=True):
    """A keyblock that is pinned for good, by its operator's word; the genesis without any."""

    epoch: int
    """Epoch that it began; the genesis began epoch 0."""
    keyblock_hash: bytes
    """Hash of the keyblock; the chain's identifier for epoch 0."""


class VerifiedChain(msgspec.Struct, frozen=True):
    """A chain whose every puzzle, time, certificate and committee the maker of this value has checked from the genesis on."""

    weight: int
    """`weight_of` what was verified, in expected hashes; never what a peer claims."""
    tip: bytes
    """Hash of its newest committed microblock."""
    keyblocks: Mapping[int, bytes]
    """Hash of the pinned keyblock that began each epoch; the chain's identifier for epoch 0."""


# ---------------------------------------------------------------- weight


def founding_weight(founding_target: int) -> ChainWeight:
    """Return the weight of a genesis: none, with the first target as the measure of epoch 0's certificates."""
    return ChainWeight(bytes(_WEIGHT_BYTES), work_of(founding_target).to_bytes(32, "big"), 0)


def after_keyblock(weight: ChainWeight, target: int, rules: WeightRules) -> ChainWeight:
    """Return the weight after a keyblock with this target is pinned: the running epoch is settled, a new one begins."""
    work = work_of(target)
    return ChainWeight(
        settled=(weight_of(weight, rules) + work).to_bytes(_WEIGHT_BYTES, "big"),
        epoch_work=work.to_bytes(32, "big"),
        certified_nano=0,
    )


def after_microblock(weight: ChainWeight, share_nano: int) -> ChainWeight:
    """Return the weight after a committed microblock of the running epoch; see `certified_share_nano`."""
    assert 0 <= share_nano <= REPUTATION_UNIT, "a share is a part of one committee"
    # Saturated only after 9 · 10⁹ microblocks in one epoch.
    certified_nano = min(_MOST_UINT, weight.certified_nano + share_nano)
    return ChainWeight(weight.settled, weight.epoch_work, certified_nano)


def weight_of(weight: ChainWeight, rules: WeightRules) -> int:
    """Return the weight in expected hashes."""
    counted_nano = min(
        rules.certified_cap * REPUTATION_UNIT, weight.certified_nano * rules.microblock_nano // REPUTATION_UNIT
    )
    certified = int.from_bytes(weight.epoch_work, "big") * counted_nano // REPUTATION_UNIT
    return int.from_bytes(weight.settled, "big") + certified


def certified_share_nano(committee: Committee, certificate: Certificate) -> int:
    """Return which part of the committee's reputation signed a certificate that was checked, in 10⁻⁹, rounded down."""
    assert certificate.epoch == committee.epoch, "a certificate is weighed by its own committee"
    signed_nano = sum(committee.members[vote.member].reputation_nano for vote in certificate.votes)
    return signed_nano * REPUTATION_UNIT // committee.total_reputation_nano


def least_microblock_nano(certified_cap: int, epoch_microblocks: int) -> int:
    """Return the least w with which so many microblocks, each certified by barely a quorum, fill an epoch's bound."""
    assert certified_cap >= 1, "the bound is at least one keyblock's work"
    assert epoch_microblocks >= 1, "only microblocks can fill it"
    # A quorum holds more than 2/3; its share is rounded down to whole 10⁻⁹.
    quorum_nano = 2 * REPUTATION_UNIT // 3
    return -(-certified_cap * REPUTATION_UNIT**2 // (epoch_microblocks * quorum_nano))


# ---------------------------------------------------------------- the fork rule


def contains(chain: VerifiedChain, point: FinalPoint) -> bool:
    """Tell whether a chain holds a keyblock, and so all before it, to which that is linked; one that ends earlier does not."""
    return chain.keyblocks.get(point.epoch) == point.keyblock_hash


def choose(advertised: Collection[VerifiedChain], checkpoint: FinalPoint) -> VerifiedChain:
    """Return the chain that a joining node follows: the heaviest of those that hold the checkpoint (by default the genesis).

    There is one per peer, so their number is bounded by the node's connections. Raises `InvalidInput` if none holds it.
    """
    best: VerifiedChain | None = None
    for chain in advertised:
        if contains(chain, checkpoint) and (best is None or _outranks(chain, best)):
            best = chain
    if best is None:
        raise InvalidInput(
            f"none of {len(advertised)} chains offered has keyblock {checkpoint.keyblock_hash.hex()} at the start of epoch "
            f"{checkpoint.epoch}: connect to other peers, or check the checkpoint with an operator you trust"
        )
    return best


def _outranks(one: VerifiedChain, other: VerifiedChain) -> bool:
    if one.weight != other.weight:
        return one.weight > other.weight
    return one.tip < other.tip
