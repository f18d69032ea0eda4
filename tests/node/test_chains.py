# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers are grouped by what they say, claims rest on work, and of an answer only one linked chain is left. Pure functions."""

import hashlib
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.block_tree import CertifiedMicroblock
from consensus.executor import Executor
from consensus.restart import epoch_record
from consensus.weight import FinalPoint
from contracts.shipped import MACHINES
from ledger import testing
from ledger.blocks import Keyblock, MicroblockHeader
from ledger.codec import encode
from ledger.errors import InvalidInput
from node.answers import answer_chain, answer_keyblocks
from node.chain_peers import known_of, reached_height
from node.chains import PeerChain, WorkProof, check_view, group_chains, ranked, stretch_of
from node.wire import ChainRequest, ChainSummary, KeyblocksRequest, decode_chain_answer, decode_keyblocks_answer
from tests.consensus.chains import ChainMaker
from tests.node.joining_kit import CHAIN, history, idle, made

GENESIS_POINT = FinalPoint(0, CHAIN)
HONEST = made(*history(0, 1, 2))
PARTED = made(*idle(12))
"""The same first two microblocks, then others."""


def hash_at(chain: str, height: int) -> bytes:
    return hashlib.sha256(f"{chain} {height}".encode()).digest()


def word(height: int, chain: str, *, fork: int = 0, heights: tuple[int, ...] = (), weight: int = 0) -> PeerChain:
    """Return what a peer says whose chain leaves the trunk above `fork`."""

    def at(where: int) -> bytes:
        return hash_at("trunk" if where <= fork else chain, where)

    asked = {where: at(where) for where in (*heights, height) if where <= height}
    return PeerChain(ChainSummary(height, at(height), 0, weight.to_bytes(40, "big")), asked)


def grouped(peers: Mapping[str, PeerChain], named: tuple[str, ...] = ()) -> list[set[str]]:
    return [set(group.peers) for group in group_chains(peers, named)]


# ---------------------------------------------------------------- grouping


def test_the_shorter_chain_belongs_to_the_taller_one_that_it_begins() -> None:
    heights = (10, 20, 30)
    peers = {name: word(height, "a", heights=heights) for name, height in zip("xyz", heights, strict=True)}
    assert grouped(peers) == [{"x", "y", "z"}]
    assert group_chains(peers)[0].height == 30


def test_chains_that_part_are_apart_and_who_ends_before_that_joins_the_tallest() -> None:
    heights = (5, 20, 30)
    peers = {
        "tall": word(30, "a", fork=10, heights=heights),
        "other": word(20, "b", fork=10, heights=heights),
        "short": word(5, "c", fork=10, heights=heights),
    }
    assert grouped(peers) == [{"tall", "short"}, {"other"}]


def test_a_tall_liar_that_agrees_with_everyone_unites_nobody_who_disagrees() -> None:
    """It has not been asked for hashes where the others part, or does not tell."""
    liar = PeerChain(word(99, "a").summary, {})
    peers = {"liar": liar, "one": word(20, "a", heights=(20,)), "two": word(20, "b", heights=(20,))}
    assert grouped(peers) == [{"liar", "one"}, {"two"}]


@given(
    st.dictionaries(
        st.text("pqrs", min_size=1, max_size=4),
        st.tuples(st.integers(1, 12), st.sampled_from("abc")),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 12),
)
def test_nobody_in_a_group_contradicts_another_and_true_chains_are_one_group_each(
    sketch: dict[str, tuple[int, str]], fork: int
) -> None:
    heights = tuple(sorted({height for height, _ in sketch.values()}))
    peers = {name: word(height, chain, fork=fork, heights=heights) for name, (height, chain) in sketch.items()}
    groups = group_chains(peers)
    assert sorted(name for group in groups for name in group.peers) == sorted(peers)
    for group in groups:
        known: dict[int, bytes] = {}
        for name in group.peers:
            assert all(known.setdefault(height, found) == found for height, found in peers[name].hashes.items())
    parted = {chain for height, chain in sketch.values() if height > fork}
    assert len(groups) == max(1, len(parted))


def test_what_a_peer_says_twice_must_be_the_same_and_all_that_it_claims() -> None:
    check_view(word(20, "a", heights=(5, 20, 30)), (5, 20, 30))
    with pytest.raises(InvalidInput, match="shows no hash of microblock 5"):
        check_view(word(20, "a"), (5, 20))
    lie = PeerChain(word(20, "a").summary, {20: hash_at("b", 20)})
    with pytest.raises(InvalidInput, match="does not change"):
        check_view(lie, (20,))


def test_named_peers_come_first_then_work_then_words_and_number_counts_least() -> None:
    claims = {"named": ("a", 1), "heavy": ("b", 50), "light": ("c", 40), "boast": ("d", 10**9)}
    claims |= {f"crowd {number}": ("e", 40) for number in range(20)}
    peers = {name: word(9, chain, weight=weight) for name, (chain, weight) in claims.items()}
    groups = group_chains(peers, ("named",))
    proven = [msgspec.structs.replace(group, proven=frozenset(group.peers.keys() - {"boast"})) for group in groups]
    assert [min(group.peers) for group in ranked(proven)] == ["named", "heavy", "crowd 0", "light", "boast"]


def test_half_a_group_claims_no_more_than_its_own_peers() -> None:
    peers = {"one": word(9, "a", weight=70), "two": word(9, "a", weight=30), "three": word(9, "a", weight=20)}
    (group,) = group_chains(peers, ("three",))
    half = group.only({"two", "stranger"}, ("three",))
    assert (set(half.peers), half.ceiling, half.named) == ({"two"}, 30, False)
    assert group.only({"one", "three"}, ("three",)).named


# ---------------------------------------------------------------- work


def keyblocks_of(maker: ChainMaker) -> tuple[Keyblock, ...]:
    return decode_keyblocks_answer(answer_keyblocks(maker.store, encode(KeyblocksRequest(0)))).keyblocks


def test_a_chain_weighs_no_more_than_its_keyblocks_allow_and_an_honest_claim_is_always_allowed() -> None:
    for maker in (HONEST, PARTED, made(*history(0, 1, 2, 3, 4, between=6))):
        proof = WorkProof(CHAIN, testing.PARAMETERS, GENESIS_POINT)
        proof.add(keyblocks_of(maker))
        assert proof.epoch == maker.epoch.number
        assert proof.most >= Executor(maker.store, MACHINES).weight
    # Microblocks without end, and no work: hardly anything may be claimed.
    proof = WorkProof(CHAIN, testing.PARAMETERS, GENESIS_POINT)
    assert proof.most < Executor(HONEST.store, MACHINES).weight


@pytest.mark.parametrize(
    "changes", [{"nonce": b"\xff" * 32}, {"target": b"\xff" * 32}, {"target": bytes(32)}, {"previous": bytes(32)}]
)
def test_keyblocks_without_work_or_out_of_order_prove_nothing(changes: dict[str, object]) -> None:
    first, second, third = keyblocks_of(HONEST)
    proof = WorkProof(CHAIN, testing.PARAMETERS, GENESIS_POINT)
    proof.add((first,))
    before = proof.most
    with pytest.raises(InvalidInput):
        proof.add((msgspec.structs.replace(second, **changes), third))
    assert proof.most == before


def test_keyblocks_tell_of_a_checkpoint_that_they_contradict() -> None:
    record = epoch_record(HONEST.store, 2)
    assert record is not None
    for point, contradicts in ((FinalPoint(2, record.keyblock), False), (FinalPoint(2, bytes(32)), True)):
        proof = WorkProof(CHAIN, testing.PARAMETERS, point)
        proof.add(keyblocks_of(HONEST))
        assert proof.contradicts is contradicts


# ---------------------------------------------------------------- stretches


def blocks_of(maker: ChainMaker, after: int = 0, epoch: int = 0) -> tuple[CertifiedMicroblock, ...]:
    return decode_chain_answer(answer_chain(maker.store, tuple, encode(ChainRequest(epoch, after, 64)))).blocks


def known_at(maker: ChainMaker, height: int) -> Mapping[bytes, MicroblockHeader | None]:
    found = maker.store.block_hash(height)
    assert found is not None
    return known_of(found, ())


def test_an_honest_answer_is_one_stretch_with_all_that_proves_its_epochs_ends() -> None:
    top, blocks = HONEST.store.head().height, blocks_of(HONEST)
    stretch = stretch_of(blocks, known_at(HONEST, 0), top)
    assert stretch.blocks == blocks
    assert dict(stretch.hashes) == {height: HONEST.store.block_hash(height) for height in range(1, top + 1)}
    assert len(blocks) > top, "there are closings among them"


def test_nothing_beyond_what_the_peer_has_committed_nothing_unlinked_and_no_branch_is_left() -> None:
    blocks = blocks_of(HONEST)
    assert max(stretch_of(blocks, known_at(HONEST, 0), 5).hashes) == 5
    assert stretch_of(blocks, {b"?" * 32: None}, 99).blocks == ()
    # The branch begins behind microblock 2, whichever way it is mixed in.
    branch = blocks_of(PARTED, 2)
    for mixed in ((*blocks, *branch), (*blocks[:2], *branch, *blocks[2:]), (*branch, *blocks)):
        hashes = set(stretch_of(mixed, known_at(HONEST, 0), 99).hashes.values())
        ours = {HONEST.store.block_hash(height) for height in range(100)}
        theirs = {PARTED.store.block_hash(height) for height in range(100)}
        assert hashes <= ours or hashes <= theirs
    # Without a link in between nothing behind the gap is left.
    assert max(stretch_of((*blocks[:1], *blocks[2:]), known_at(HONEST, 0), 99).hashes) == 1


def test_what_proves_the_end_of_an_epoch_passes_only_behind_its_own_microblock() -> None:
    blocks = blocks_of(HONEST)
    ending = next(n for n, block in enumerate(blocks) if block.signed.microblock.keyblock is not None)
    pinned, closing = blocks[ending], blocks[ending + 1]
    tail = blocks[: ending + 1]
    known = known_of(b"?" * 32, tail)
    assert stretch_of((closing,), known, 99).blocks == (closing,)
    assert stretch_of((closing,), known, 99).hashes == {}
    # To a microblock that pins nothing the same one is the chain's next, and that is compared.
    stranger = stretch_of((closing,), {pinned.certificate.block_hash: None}, 99)
    assert stranger.hashes == {closing.signed.microblock.header.height: closing.certificate.block_hash}
    height = pinned.signed.microblock.header.height
    assert reached_height(0, (*tail, closing)) == reached_height(height, ()) == height
