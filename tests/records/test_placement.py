# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendezvous hashing: the requirements R1 to R3 of `records.placement` as properties."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from records.placement import holders

BLOBS = st.binary(min_size=32, max_size=32)
NODES = st.sets(st.binary(min_size=20, max_size=20), max_size=12)
COUNTS = st.integers(0, 5)


@given(BLOBS, NODES, COUNTS)
def test_the_order_of_nodes_and_repetitions_do_not_matter(blob: bytes, nodes: set[bytes], k: int) -> None:
    listed = sorted(nodes)
    chosen = holders(blob, listed, k)
    assert holders(blob, [*reversed(listed), *listed], k) == chosen
    assert len(chosen) == len(set(chosen)) == min(k, len(nodes))
    assert set(chosen) <= nodes


@given(BLOBS, NODES, COUNTS)
def test_fewer_holders_are_the_first_of_more(blob: bytes, nodes: set[bytes], k: int) -> None:
    assert holders(blob, nodes, k) == holders(blob, nodes, k + 1)[:k]


@given(BLOBS, NODES.filter(bool), COUNTS, st.data())
def test_a_node_that_leaves_moves_only_its_own_blobs(
    blob: bytes, nodes: set[bytes], k: int, data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(sorted(nodes)))
    before, after = holders(blob, nodes, k), holders(blob, nodes - {leaver}, k)
    if leaver in before:
        assert set(before) - {leaver} <= set(after)
        assert len(set(after) - set(before)) <= 1
    else:
        assert after == before


@given(BLOBS, NODES, COUNTS, st.binary(min_size=20, max_size=20))
def test_a_node_that_comes_moves_nothing_between_others(blob: bytes, nodes: set[bytes], k: int, comer: bytes) -> None:
    before, after = holders(blob, nodes, k), holders(blob, nodes | {comer}, k)
    assert set(after) - set(before) <= {comer}
    assert len(set(before) - set(after)) <= 1


def test_every_node_gets_its_share() -> None:
    nodes = [bytes([index]) * 20 for index in range(7)]
    load = dict.fromkeys(nodes, 0)
    for number in range(7000):
        for node in holders(hashlib.sha256(number.to_bytes(4, "big")).digest(), nodes, 3):
            load[node] += 1
    # 3 000 each on average; the standard deviation is 41, and the hash is fixed, so this never flickers.
    assert all(2850 < count < 3150 for count in load.values())


def test_golden_placement() -> None:
    """Nodes of different releases must agree; a change here moves every blob."""
    nodes = [bytes([index]) * 20 for index in range(10)]
    chosen = holders(bytes(range(32)), nodes, 4)
    assert [node[0] for node in chosen] == [8, 9, 3, 0]
