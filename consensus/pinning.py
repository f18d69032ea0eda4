# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pinned keyblock does to the state: it closes its epoch's account and begins the next epoch.

**Fees** (RepuCoin, rewards). Of the n microblocks of the epoch that keyblock K began, K's creator with the reputation R that K states gets
the fees at the positions (i + k) mod n for k < R · n, where i = H(signature of K) mod n; their leaders get the others. Nobody knows i
before the signature and n before the end, so neither can leaders put dear transactions where they keep the fees, nor creators choose.
In epoch 0, which no keyblock began, the leaders get all. The new keyblock's creator gets the mining reward.

**Reputation.** Finished terms, offences and the new keyblock enter the histories of the miners, now and at no other time: a reputation is
constant during an epoch. A history that changes is also kept as of the new epoch, so that any past one can be explained.

**Committee.** The best of who is eligible now. When nobody is, all who ever were have been punished, the old committee among them: it goes
on with its old weights, because a chain that nobody may continue would be worse, and everybody can see what it is worth.
"""

from collections.abc import Mapping

import msgspec

from consensus.epoch import Epoch
from consensus.reputation import after_keyblock, after_terms
from consensus.retarget import next_target
from consensus.standings import Standings
from consensus.work import encode_target
from ledger.blocks import MicroblockHeader, SignedKeyblock, keyblock_hash
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of
from ledger.miners import MEDIAN_KEYBLOCKS, EpochProgress, EpochRecord, MinerHistory, Seat, inverted
from ledger.rules import REPUTATION_UNIT
from ledger.state import (
    ACCOUNTS,
    EPOCHS,
    FEES,
    MINER_VERSIONS,
    MINERS,
    OFFENCES,
    PROGRESS,
    SUPPLY,
    TALLIES,
    Account,
    State,
)

MOST_MINTED_MICROCREDIT = 2**62
"""Minting ends here, far beyond a network's life: sums stay within 63 bits."""


class Pinned(msgspec.Struct, frozen=True):
    """The epoch that a keyblock begins."""

    record: EpochRecord
    """How it begins."""
    timestamps_ms: tuple[int, ...]
    """Times of the newest keyblocks, oldest first."""
    histories: Mapping[bytes, MinerHistory]
    """Histories that changed, by public key."""


def pin(
    state: State,
    standings: Standings,
    epoch: Epoch,
    header: MicroblockHeader,
    block_hash: bytes,
    signed: SignedKeyblock,
) -> Pinned:
    """End `epoch` with a committed microblock that is accounted for already; `standings` are those of `epoch`, and stay so."""
    progress, parameters, keyblock = state.progress(), epoch.parameters, signed.keyblock
    assert progress.epoch == epoch.number == standings.keyblocks, "an epoch ends once"
    assert progress.round == header.round, "the microblock is accounted for"
    _distribute_fees(state, epoch, progress.microblocks)
    _mint(state, address_of(keyblock.miner), parameters.keyblock_reward_microcredit)
    number = epoch.number + 1
    histories = _close_histories(state, standings, epoch, keyblock.miner)
    for public_key in sorted(histories):
        state.put(MINERS, public_key, histories[public_key])
        state.put(MINER_VERSIONS, public_key + inverted(number), histories[public_key])
    best = standings.trial(histories, number).committee(parameters.committee_size)
    target, window_start_ms, window_keyblocks = _retarget(epoch, progress, keyblock.timestamp_ms)
    record = EpochRecord(
        keyblock=keyblock_hash(keyblock),
        root_height=header.height,
        root_hash=block_hash,
        # The epoch starts with a fresh term.
        root_round=(header.term + 1) * parameters.term_microblocks - 1,
        miner=keyblock.miner,
        reveal_key=keyblock.reveal_key,
        reputation_nano=keyblock.reputation_nano,
        fee_start=tagged_hash(Tag.FEE_START, signed.signature),
        target=encode_target(target),
        timestamp_ms=keyblock.timestamp_ms,
        seats=tuple(Seat(member.public_key, member.reputation_nano) for member in best) or epoch.record.seats,
    )
    state.put(EPOCHS, number.to_bytes(8, "big"), record)
    after = EpochProgress(
        epoch=number,
        seed=header.seed,
        microblocks=0,
        round=record.root_round,
        leader=bytes(20),
        term_microblocks=0,
        window_start_ms=window_start_ms,
        window_keyblocks=window_keyblocks,
        timestamps_ms=(*progress.timestamps_ms, keyblock.timestamp_ms)[-MEDIAN_KEYBLOCKS:],
    )
    state.put(PROGRESS, b"", after)
    return Pinned(record, after.timestamps_ms, histories)


def creator_positions(epoch: Epoch, microblocks: int) -> tuple[int, int]:
    """Return where the fees of the epoch's creator start among so many microblocks, and how many in a row (round the end) they are."""
    if epoch.number == 0:
        return 0, 0
    start = int.from_bytes(epoch.record.fee_start, "big") % microblocks
    # As many k as there are from 0 on below R · n: rounded up.
    return start, -(-epoch.record.reputation_nano * microblocks // REPUTATION_UNIT)


def _distribute_fees(state: State, epoch: Epoch, microblocks: int) -> None:
    start, share = creator_positions(epoch, microblocks)
    earned: dict[bytes, int] = {}
    for position in range(microblocks):
        row = state.get(FEES, position.to_bytes(8, "big"))
        if row is None or row.epoch != epoch.number:
            continue
        is_creators = (position - start) % microblocks < share
        receiver = address_of(epoch.record.miner) if is_creators else row.leader
        earned[receiver] = earned.get(receiver, 0) + row.fees_microcredit
    supply = state.supply()
    assert sum(earned.values()) == supply.fees_in_flight_microcredit, "fees in flight are those of the epoch"
    if earned:
        state.put(SUPPLY, b"", msgspec.structs.replace(supply, fees_in_flight_microcredit=0))
    for receiver in sorted(earned):
        _credit(state, receiver, earned[receiver])


def _mint(state: State, miner: bytes, reward_microcredit: int) -> None:
    supply = state.supply()
    minted = supply.minted_microcredit + reward_microcredit
    if reward_microcredit and minted <= MOST_MINTED_MICROCREDIT:
        state.put(SUPPLY, b"", msgspec.structs.replace(supply, minted_microcredit=minted))
        _credit(state, miner, reward_microcredit)


def _credit(state: State, address: bytes, amount_microcredit: int) -> None:
    account = state.account(address)
    state.put(ACCOUNTS, address, Account(account.nonce, account.balance_microcredit + amount_microcredit))


def _close_histories(state: State, standings: Standings, epoch: Epoch, miner: bytes) -> dict[bytes, MinerHistory]:
    """Return the histories that change: of the epoch's leaders, of new offenders, of the keyblock's creator."""
    changed: dict[bytes, MinerHistory] = {}
    # Leaders are members, so no tally lies anywhere else.
    for member in epoch.committee.members:
        tally = state.get(TALLIES, member.public_key)
        if tally is not None:
            state.delete(TALLIES, member.public_key)
            changed[member.public_key] = after_terms(standings.history(member.public_key), tally)
    for offender, _ in state.entries(OFFENCES):
        # Who operates a contract need not mine. A convict's history begins with the first keyblock, and without honesty.
        if offender != miner and not standings.knows(offender):
            continue
        history = changed.get(offender, standings.history(offender))
        if history.is_honest:
            changed[offender] = msgspec.structs.replace(history, is_honest=False)
    history = changed.get(miner, standings.history(miner))
    changed[miner] = after_keyblock(history, epoch.number, epoch.parameters.reputation)
    return changed


def _retarget(epoch: Epoch, progress: EpochProgress, timestamp_ms: int) -> tuple[int, int, int]:
    """Return the next target, and from when and how full the running window is."""
    work, target = epoch.parameters.work, int.from_bytes(epoch.record.target, "big")
    keyblocks = progress.window_keyblocks + 1
    if keyblocks < work.window_keyblocks:
        return target, progress.window_start_ms, keyblocks
    # The next window starts at this very time: windows share their ends (`consensus.retarget`, R5).
    return next_target(target, progress.window_start_ms, timestamp_ms, keyblocks, work), timestamp_ms, 0
