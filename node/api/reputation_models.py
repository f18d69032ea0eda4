# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API answers about miners, epochs, keyblocks and credits, as types (see `node.api.models`).

Reputations and shares are in 10⁻⁹; the letters are those of Algorithm 2 (`consensus.reputation`).
"""

from node.api.models import Hex, Model

MAX_MINERS = 256
"""Most miners in one ranking; as `consensus.explanation` allows."""
MAX_POINTS = 512
"""Most epochs in one history of a reputation: about 25 µs each."""
MAX_CHUNKS = 64
"""Most chunks that an explanation lists: more than two years of the main profile."""
MAX_EPOCHS = 256
"""Most epochs per page: each is a row of at most 3 KB to decode."""
MAX_SEARCHED_KEYBLOCKS = 1000
"""How far back a keyblock is looked for by its hash, for which there is no index: a week of the main profile, at most 30 ms."""


class Offence(Model):
    """Proof of misbehaviour that is on the chain."""

    public_key: Hex
    """Key of the offender."""
    address: Hex
    """Its account."""
    height: int
    """Microblock that committed the first report."""
    epoch: int
    """Epoch of the offence."""
    round: int
    """Round of the offence."""
    reporter: Hex
    """Account that reported it first."""
    contract_id: Hex | None
    """Contract that it operated as a fraud; null for what it signed as a member of a committee."""
    is_punished: bool
    """Whether H is 0 already; if not, it is from the next keyblock on, for good."""


class Offences(Model):
    """Part of all offences."""

    offences: tuple[Offence, ...]
    """In the order of the offenders' keys."""
    next_start: Hex | None
    """`start` of the next part; null at the end."""


class RankedMiner(Model):
    """A miner's place among all."""

    rank: int
    """Its place, from 1."""
    public_key: Hex
    """Its key."""
    address: Hex
    """Its account."""
    institution: str | None
    """Name of the institution that the account is registered as."""
    reputation_nano: int
    """R."""
    change_nano: int | None
    """How R has changed since the epoch before; null in epoch 0."""
    external_nano: int
    """Ext: what the genesis gave it."""
    keyblocks: int
    """Pinned keyblocks of the miner."""
    terms: int
    """Finished terms as leader, up to the newest keyblock."""
    microblocks: int
    """Committed microblocks in these terms."""
    seat: int | None
    """Its seat in the running epoch's committee; null without one."""
    is_honest: bool
    """H."""
    is_eligible: bool
    """Whether it may sit in a committee: it is honest, and has a keyblock or Ext."""
    offence: Offence | None
    """What was proved against it."""


class Ranking(Model):
    """The miners of highest reputation, as of the newest pinned keyblock; the punished, whose R is 0, come last."""

    epoch: int
    """Number of the running epoch: keyblocks pinned so far (L)."""
    keyblock: Hex
    """Hash of the newest pinned keyblock; the chain's identifier in epoch 0."""
    known_miners: int
    """Miners that ever had a keyblock or Ext."""
    term_microblocks: int
    """Most microblocks in one term (m)."""
    miners: tuple[RankedMiner, ...]
    """Best first."""


class ChunkShare(Model):
    """What a miner has found in one chunk of the chain."""

    chunk: int
    """Number of the chunk, from 0."""
    chain_keyblocks: int
    """Keyblocks of the chain in it so far."""
    keyblocks: int
    """Those of the miner (k_i)."""


class MiningPart(Model):
    """The part of a reputation that comes of keyblocks."""

    keyblocks: int
    """The miner's keyblocks (Σ k_i)."""
    squares: int
    """Σ k_i² over all chunks."""
    chain_keyblocks: int
    """The chain's keyblocks (L)."""
    chunk_keyblocks: int
    """Keyblocks per chunk (c)."""
    chunks: int
    """Chunks so far (t = ⌈L / c⌉)."""
    mean_nano: int
    """mean_k = Σ k_i / L."""
    deviation_nano: int
    """s_k: how irregular it mined, over the chunks."""
    y1_nano: int
    """y1 = mean_k / (1 + s_k)."""
    newest_chunks: tuple[ChunkShare, ...]
    """Up to 64 chunks, oldest first; the last one may still fill."""


class LeadingPart(Model):
    """The part of a reputation that comes of terms as leader."""

    terms: int
    """Finished terms (N)."""
    microblocks: int
    """Committed microblocks in them (Σ m_j)."""
    squares: int
    """Σ m_j²."""
    term_microblocks: int
    """Most microblocks in one term (m)."""
    mean_nano: int
    """mean_m: how full the terms were; 10⁹ without a term."""
    deviation_nano: int
    """s_m: how irregular they were."""
    y2_nano: int
    """y2 = mean_m / (1 + s_m); 10⁹ without a term."""


class ReputationChange(Model):
    """Why a reputation is another one than in the epoch before: causes one after the other, whose parts add up."""

    reputation_nano: int
    """The whole change of R."""
    chain_nano: int
    """Part of it because the chain is longer by one keyblock, whoever found it: regularity is judged over more of it."""
    keyblocks: int
    """Keyblocks won: the one that began this epoch, or none."""
    keyblocks_nano: int
    """Part of the change because of them."""
    terms: int
    """Terms as leader that were finished or lost in the epoch before."""
    microblocks: int
    """Committed microblocks in these terms."""
    terms_nano: int
    """Part of the change because of them."""
    is_punished: bool
    """Whether an offence took all reputation."""
    punishment_nano: int
    """Part of the change because of it."""


class MinerReputation(Model):
    """What a miner's reputation is in an epoch, and why: R = min(1, H · (Ext + f(x))), with x = y1 · y2 · L."""

    public_key: Hex
    """Key of the miner."""
    address: Hex
    """Its account."""
    institution: str | None
    """Name of the institution that the account is registered as."""
    epoch: int
    """Epoch in which the reputation holds: keyblocks pinned before it (L)."""
    keyblock: Hex
    """Hash of the keyblock that began the epoch; the chain's identifier for epoch 0."""
    history_epoch: int | None
    """Epoch that changed something of the miner last; null for who never mined and has no Ext."""
    reputation_nano: int
    """R."""
    is_eligible: bool
    """Whether it may sit in a committee: it is honest, and has a keyblock or Ext."""
    seat: int | None
    """Its seat in the epoch's committee; null without one."""
    weight_nano: int | None
    """Its share of the committee's reputation; null without a seat."""
    mining: MiningPart
    """Where y1 comes from."""
    leading: LeadingPart
    """Where y2 comes from."""
    x_nano: int
    """x = y1 · y2 · L."""
    midpoint_keyblocks: int
    """a: the x at which f is ½."""
    flatness_keyblocks: int
    """λ: the larger, the slower reputation grows."""
    earned_nano: int
    """f(x) = ½ · (1 + (x − a) / (λ + |x − a|))."""
    external_nano: int
    """Ext."""
    is_honest: bool
    """H: false is 0, true is 1."""
    offence: Offence | None
    """What was proved against the miner, as far as the chain knows now, also if the epoch asked about is older."""
    change: ReputationChange | None
    """Why R is another one than in the epoch before; null for epoch 0."""


class ReputationPoint(Model):
    """A miner's reputation in one epoch."""

    epoch: int
    """The epoch."""
    reputation_nano: int
    """R in it."""
    keyblocks: int
    """The miner's keyblocks up to the one that began it."""
    terms: int
    """Finished terms as leader."""
    is_honest: bool
    """H."""


class ReputationHistory(Model):
    """A miner's reputation over epochs."""

    public_key: Hex
    """Key of the miner."""
    points: tuple[ReputationPoint, ...]
    """Oldest first."""
    next_start: int | None
    """`start` of the next part; null when the running epoch is reached."""


class EpochSeat(Model):
    """A place in an epoch's committee."""

    seat: int
    """Its number, from 0."""
    public_key: Hex
    """Key of the member."""
    address: Hex
    """Its account."""
    institution: str | None
    """Name of the institution that the account is registered as."""
    reputation_nano: int
    """Its weight: R as of the epoch's keyblock."""


class EpochProgress(Model):
    """What the running epoch has come to."""

    round: int
    """Round of the newest committed microblock; the one before the epoch's first round while there is none."""
    leader: Hex
    """Account of that microblock's leader; empty while there is none."""
    term_microblocks: int
    """Committed microblocks of that leader's term."""
    window_keyblocks: int
    """Keyblocks since the target was last set."""
    window_size: int
    """Keyblocks after which it is set anew."""
    window_start_ms: int
    """Time from which this window is measured, in milliseconds since 1970 (UTC)."""


class EpochSummary(Model):
    """An epoch: what lies between two pinned keyblocks."""

    number: int
    """Keyblocks pinned before it."""
    keyblock: Hex
    """Hash of the keyblock that began it; the chain's identifier for epoch 0."""
    root_height: int
    """Height of the microblock that pinned the keyblock, the last one of the epoch before; 0 for epoch 0."""
    root_hash: Hex
    """Hash of that microblock."""
    first_round: int
    """Its first consensus round."""
    miner: Hex | None
    """Key of the keyblock's creator; null for epoch 0."""
    reputation_nano: int | None
    """The creator's R, as stated in the keyblock and as of the epoch before; null for epoch 0."""
    timestamp_ms: int
    """Time of the keyblock, in milliseconds since 1970 (UTC); that of the genesis for epoch 0."""
    interval_ms: int | None
    """Time since the keyblock before; it may be a little below 0, for miners' clocks differ. Null for epoch 0."""
    target: Hex
    """The hash of the keyblock that ends it must be below this number: 32 bytes, big-endian."""
    expected_hashes: int
    """The target's difficulty: hashes tried for one keyblock, on average."""
    microblocks: int
    """Committed microblocks of the epoch, so far if it runs."""
    end_height: int | None
    """Height of the microblock that pinned the next keyblock and ended the epoch; null if it runs."""
    members: int
    """Size of its committee."""


class Epoch(EpochSummary):
    """An epoch with its committee and leaders' seed."""

    committee: tuple[EpochSeat, ...]
    """The committee, best first."""
    committee_reputation_nano: int
    """Reputation of all members together."""
    quorum_votes: int
    """Votes that a decision needs, with more than two thirds of that reputation."""
    faults: int
    """Most members that may be faulty (f)."""
    seed: Hex | None
    """Seed that the leaders are drawn from; null until the epoch's first microblock is committed."""
    progress: EpochProgress | None
    """What it has come to; null unless it runs."""


class Epochs(Model):
    """Part of all epochs."""

    epochs: tuple[EpochSummary, ...]
    """Oldest first."""
    next_start: int | None
    """`start` of the next part; null when the running epoch is reached."""


class PinnedKeyblock(Model):
    """A pinned keyblock, whole."""

    keyblock_hash: Hex
    """Its hash."""
    epoch: int
    """Epoch that it began."""
    pinned_height: int
    """Height of the microblock that pinned it."""
    pinned_hash: Hex
    """Hash of that microblock."""
    previous: Hex
    """Hash of the keyblock before; the chain's identifier for the first one."""
    microblock: Hex
    """Hash of the committed microblock that it was mined on."""
    miner: Hex
    """Key of its creator."""
    address: Hex
    """The creator's account."""
    institution: str | None
    """Name of the institution that the account is registered as."""
    reveal_key: Hex
    """The creator's BLS key, for the leaders' seed."""
    reputation_nano: int
    """The creator's R as of the keyblock before."""
    target: Hex
    """The puzzle's hash is below this number: 32 bytes, big-endian."""
    expected_hashes: int
    """Its work: hashes tried for such a keyblock, on average."""
    nonce: Hex
    """What the creator searched for."""
    timestamp_ms: int
    """Time of mining, in milliseconds since 1970 (UTC)."""
    state_root: Hex
    """Root of the authenticated state after `microblock`."""
    signature: Hex
    """The creator's signature."""
    raw: Hex
    """Encoding of the `SignedKeyblock`, to check it anew."""


class Supply(Model):
    """All credits, in millionths. What came into being is somewhere: minted − burnt = balances + contracts + fees in flight (I7)."""

    height: int
    """Newest committed microblock."""
    epoch: int
    """Running epoch."""
    minted_microcredit: int
    """Ever created: opening balances and mining rewards."""
    burnt_microcredit: int
    """Ever destroyed: penalties for false evidence and false challenges, half of the bonds of fraudulent operators."""
    fees_in_flight_microcredit: int
    """Fees paid in the running epoch; its end distributes them."""
    contracts_microcredit: int
    """Bonds and escrow of all off-chain contracts together."""
    balances_microcredit: int
    """What all accounts hold together: the rest."""
