# SPDX-License-Identifier: GPL-3.0-or-later
"""What an epoch knows: where it starts, who sits, which seed follows from what, and which keyblock may end it.

Whose turn it is stands in `test_epoch_leaders`, what cores make of all this in `test_core_epochs…`.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import epoch as epoch_module
from consensus.certificates import check_certificate
from consensus.election import next_seed, reveal
from consensus.epoch import Basis, Epoch
from consensus.safety import fresh_record
from consensus.work import encode_target, puzzle_hash, search
from ledger import testing
from ledger.blocks import Keyblock, SignedKeyblock, keyblock_hash, sign_keyblock
from ledger.crypto import unique_signature
from ledger.errors import InvalidInput
from ledger.genesis import genesis_seed
from tests.consensus.kit import REPUTATION_NANO, Net

replace = msgspec.structs.replace


def begun(creator: int = 0) -> Net:
    """Everybody is in epoch 1, which `creator` began."""
    net = Net()
    net.withholding = {creator}
    net.turn(creator)
    return net


NET = begun()
EPOCH = NET.epoch
REVEAL = NET.reveal(0).signature


# ---------------------------------------------------------------- where it starts


def test_the_founding_epoch_starts_behind_the_genesis_and_knows_its_seed() -> None:
    epoch = Net().epoch
    assert (epoch.number, epoch.first_round, epoch.first_term) == (0, 1, 0)
    assert epoch.root.seed == epoch.fallback_seed == epoch.opening_seed(None) == genesis_seed(epoch.chain_id)
    assert epoch.opener(0, None) is not None
    assert epoch.root_certificate.votes == ()


def test_a_later_epoch_starts_with_the_first_round_of_a_term() -> None:
    assert EPOCH.number == 1
    assert EPOCH.first_round % NET.parameters.term_microblocks == 0
    assert EPOCH.first_round > EPOCH.root.round
    assert EPOCH.root_certificate.round == EPOCH.first_round - 1
    record = fresh_record(EPOCH)
    assert (record.voted_round, record.proposed_round) == (EPOCH.first_round - 1, EPOCH.first_round - 1)
    assert record.timed_out_term == EPOCH.first_term - 1


def test_the_root_certificate_needs_no_votes_in_its_own_epoch_only() -> None:
    check_certificate(EPOCH, EPOCH.root_certificate)
    with pytest.raises(InvalidInput, match="epoch 1; this is epoch 0"):
        check_certificate(NET.disks[0].epochs[0], EPOCH.root_certificate)


def test_the_committee_sits_in_the_order_of_the_record() -> None:
    assert [member.public_key for member in EPOCH.committee.members] == [s.public_key for s in EPOCH.record.seats]
    assert {member.reputation_nano for member in EPOCH.committee.members} == {REPUTATION_NANO}
    assert EPOCH.committee.epoch == EPOCH.number


def test_two_who_know_the_same_basis_know_the_same_epoch() -> None:
    epochs = [disk.epochs[1] for disk in NET.disks]
    assert len({id(epoch) for epoch in epochs}) == 4
    for epoch in epochs:
        assert epoch.record == EPOCH.record
        assert epoch.root_certificate == EPOCH.root_certificate
        for shown in (None, REVEAL):
            leaders = [epoch.opener(EPOCH.first_term + lost, shown) for lost in range(9)]
            assert leaders == [EPOCH.opener(EPOCH.first_term + lost, shown) for lost in range(9)]


# ---------------------------------------------------------------- seeds


def test_the_seed_follows_from_the_seed_before_the_keyblock_and_the_reveal() -> None:
    before, keyblock = EPOCH.root.seed, EPOCH.record.keyblock
    assert EPOCH.opening_seed(REVEAL) == next_seed(before, keyblock, REVEAL)
    assert EPOCH.opening_seed(None) == EPOCH.fallback_seed == next_seed(before, keyblock, None)
    assert len({before, EPOCH.opening_seed(REVEAL), EPOCH.fallback_seed}) == 3


def test_only_the_creators_signature_for_this_very_epoch_is_a_reveal() -> None:
    assert EPOCH.is_reveal(REVEAL)
    assert not EPOCH.is_reveal(NET.reveal(1).signature)
    assert not begun(1).epoch.is_reveal(REVEAL)
    founding = NET.disks[0].epochs[0]
    assert not founding.is_reveal(NET.reveal(0, founding).signature), "nobody creates the founding keyblock"


@given(st.binary(max_size=200) | st.integers(0, 96 * 8 - 1).map(lambda bit: flipped(REVEAL, bit)))
def test_whatever_else_is_no_reveal(raw: bytes) -> None:
    assert EPOCH.is_reveal(raw) == (raw == REVEAL)


def flipped(raw: bytes, bit: int) -> bytes:
    return (int.from_bytes(raw) ^ 1 << bit).to_bytes(len(raw))


def test_schedules_of_seeds_that_are_made_up_fill_no_memory() -> None:
    epoch = begun().epoch
    right = [epoch.opener(epoch.first_term + lost, REVEAL) for lost in range(5)]
    for number in range(200):
        epoch.schedule(number.to_bytes(32))
    assert len(epoch._schedules) <= epoch_module._SEEDS
    assert [epoch.opener(epoch.first_term + lost, REVEAL) for lost in range(5)] == right


# ---------------------------------------------------------------- keyblocks


def test_a_right_keyblock_is_accepted_from_anybody_with_a_key() -> None:
    for miner in (0, 3, 40):
        EPOCH.check_keyblock(NET.mine(miner))
    assert NET.mine(40).keyblock.reputation_nano == 0


def test_a_keyblock_must_be_later_than_the_median_of_those_before_and_than_its_microblock() -> None:
    earliest = max(sorted(EPOCH.timestamps_ms)[len(EPOCH.timestamps_ms) // 2], EPOCH.root.timestamp_ms) + 1
    EPOCH.check_keyblock(NET.mine(timestamp_ms=earliest))
    with pytest.raises(InvalidInput, match="not later than"):
        EPOCH.check_keyblock(NET.mine(timestamp_ms=earliest - 1))


def test_a_keyblocks_check_reads_no_clock_and_the_check_of_the_clock_is_apart() -> None:
    far = NET.mine(timestamp_ms=2**60)
    EPOCH.check_keyblock(far)
    limit = 2**60 - NET.parameters.timestamp_drift_ms
    EPOCH.check_not_ahead(far, limit)
    with pytest.raises(InvalidInput, match="ahead of this clock"):
        EPOCH.check_not_ahead(far, limit - 1)


def hard(bits: int = 16) -> tuple[Epoch, Keyblock]:
    """The epoch with a target that takes 2^bits hashes, and a keyblock that solves its puzzle."""
    record = replace(EPOCH.record, target=encode_target(2 ** (256 - bits)))
    epoch = Epoch(NET.chain, Basis(1, record, EPOCH.root, EPOCH.state_root, EPOCH.timestamps_ms), EPOCH.reputation_of)
    solved = search(replace(NET.mine().keyblock, target=record.target), 0, 2 ** (bits + 5))
    assert solved is not None
    return epoch, solved


HARD, SOLVED = hard()
OTHER_VALUES = {
    "previous": st.binary(min_size=32, max_size=32),
    "microblock": st.binary(min_size=32, max_size=32),
    "miner": st.integers(0, 40).map(lambda number: testing.key(number).public_key),
    "reveal_key": st.integers(0, 40).map(lambda number: testing.reveal_keys(number)[1]),
    "reputation_nano": st.integers(0, 2**63 - 1),
    "target": st.binary(min_size=32, max_size=32),
    "timestamp_ms": st.integers(0, 2**63 - 1)
    | st.integers(-(10**6), 10**6).map(lambda ms: max(0, SOLVED.timestamp_ms + ms)),
    "state_root": st.binary(min_size=32, max_size=32),
    "nonce": st.binary(min_size=32, max_size=32),
}
"""Other values of each field, also such as are right for somebody else or at another time."""


def test_every_field_of_a_keyblock_has_other_values_here() -> None:
    assert tuple(OTHER_VALUES) == Keyblock.__struct_fields__


@given(st.sets(st.sampled_from(list(OTHER_VALUES)), min_size=1), st.data())
def test_no_change_of_any_fields_of_a_solved_keyblock_makes_another_valid_one(
    fields: set[str], data: st.DataObject
) -> None:
    """What is not solved again is refused, whoever signs it: one solution is one keyblock, one hash, one seed."""
    changed = replace(SOLVED, **{field: data.draw(OTHER_VALUES[field], field) for field in sorted(fields)})
    if changed == SOLVED:
        return
    assert keyblock_hash(changed) != keyblock_hash(SOLVED)
    assert puzzle_hash(changed) != puzzle_hash(SOLVED), "the old solution says nothing about it"
    # By chance it may be a solution of its own, once in 2^16 times.
    refused = puzzle_hash(changed) >= HARD.record.target
    for number in (0, *(number for number in range(41) if testing.key(number).public_key == changed.miner)):
        signed = sign_keyblock(HARD.chain_id, testing.key(number), changed)
        if refused:
            with pytest.raises(InvalidInput):
                HARD.check_keyblock(signed)


def test_a_solution_buys_one_draw_of_the_leaders_and_not_one_per_millisecond_or_signature() -> None:
    miner = testing.key(0)
    earliest = max(sorted(HARD.timestamps_ms)[len(HARD.timestamps_ms) // 2], HARD.root.timestamp_ms) + 1
    latest = SOLVED.timestamp_ms + NET.parameters.timestamp_drift_ms
    restated = (replace(SOLVED, timestamp_ms=time_ms) for time_ms in range(earliest, latest + 1))
    variants = [sign_keyblock(HARD.chain_id, miner, keyblock) for keyblock in restated]
    variants += [testing.sign_keyblock_anew(HARD.chain_id, miner, SOLVED, bytes(31) + bytes([i])) for i in range(1, 20)]
    assert len(variants) > 2_000
    assert len({signed.signature for signed in variants}) == len(variants)
    valid = [signed for signed in variants if is_valid(HARD, signed)]
    assert sum(signed.keyblock == SOLVED for signed in valid) == 20, "one keyblock with as many signatures as one likes"
    # Another time is another puzzle: one in 65 536 has a solution there by chance, which is then a draw that was worked for.
    others = [signed for signed in valid if signed.keyblock != SOLVED]
    assert len(others) <= 3
    assert all(puzzle_hash(signed.keyblock) < HARD.record.target for signed in others)


def is_valid(epoch: Epoch, signed: SignedKeyblock) -> bool:
    try:
        epoch.check_keyblock(signed)
    except InvalidInput:
        return False
    return True


def test_the_seed_of_the_leaders_does_not_depend_on_the_keyblocks_signature() -> None:
    """The two seeds that an epoch may get rest on the keyblock's hash, its creator's BLS key and the seed before, and nothing else."""
    seeds = set()
    for entropy in (b"\1" * 32, b"\2" * 32):
        signed = testing.sign_keyblock_anew(NET.chain.id, testing.key(0), SOLVED, entropy)
        record = replace(EPOCH.record, keyblock=keyblock_hash(signed.keyblock), fee_start=signed.signature[:32])
        epoch = Epoch(
            NET.chain, Basis(1, record, EPOCH.root, EPOCH.state_root, EPOCH.timestamps_ms), EPOCH.reputation_of
        )
        secret, _ = testing.reveal_keys(0)
        seeds.add((epoch.fallback_seed, epoch.opening_seed(reveal(secret, epoch.root.seed, record.keyblock))))
    assert len(seeds) == 1


def test_each_nonce_that_does_not_solve_the_puzzle_is_refused() -> None:
    good = NET.mine().keyblock
    accepted = 0
    for number in range(200):
        changed = replace(good, nonce=number.to_bytes(32))
        signed = sign_keyblock(EPOCH.chain_id, testing.key(0), changed)
        if puzzle_hash(changed) < good.target:
            EPOCH.check_keyblock(signed)
            accepted += 1
        else:
            with pytest.raises(InvalidInput, match="is not below target"):
                EPOCH.check_keyblock(signed)
    assert 0 < accepted < 50, "a sixteenth, about"


def test_a_keyblock_is_checked_against_the_target_of_its_own_epoch() -> None:
    record = replace(EPOCH.record, target=encode_target(2**251))
    basis = Basis(1, record, EPOCH.root, EPOCH.state_root, EPOCH.timestamps_ms)
    harder = Epoch(NET.chain, basis, EPOCH.reputation_of)
    with pytest.raises(InvalidInput, match="mine with that one"):
        harder.check_keyblock(NET.mine())
    solved = search(replace(NET.mine().keyblock, target=record.target), 0, 2**16)
    assert solved is not None
    harder.check_keyblock(sign_keyblock(EPOCH.chain_id, testing.key(0), solved))


def test_a_reveal_key_that_could_be_opened_in_several_ways_is_refused() -> None:
    # Points outside the subgroup, infinity and non-canonical encodings: R1 of `ledger.crypto.unique_signature`.
    good = testing.reveal_keys(0)[1]
    for bad in (bytes(48), b"\xc0" + bytes(47), b"\xff" * 48, bytes([good[0] & 0x7F, *good[1:]])):
        assert not unique_signature.is_public_key(bad)
        with pytest.raises(InvalidInput, match="BLS12-381"):
            EPOCH.check_keyblock(NET.mine(reveal_key=bad))


def test_a_keyblock_of_another_chain_is_refused() -> None:
    signed: SignedKeyblock = sign_keyblock(bytes(32), testing.key(0), NET.mine().keyblock)
    with pytest.raises(InvalidInput, match="for this chain"):
        EPOCH.check_keyblock(signed)
