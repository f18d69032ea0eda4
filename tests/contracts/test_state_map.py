# SPDX-License-Identifier: GPL-3.0-or-later
"""The live state: whenever its root or a proof is asked for, it is that of its content by the definition of the state tree."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.state_map import StateMap
from ledger.state_tree import leaves_root, make_leaf, position_of, verify_state_proof

keys = st.integers(0, 60).map(lambda number: b"k%d" % number)
changes = st.lists(st.tuples(keys, st.none() | st.binary(max_size=5)), max_size=60).map(tuple)
asked = st.sampled_from(["nothing", "root", "proof", "undo"])


def definition(content: dict[bytes, bytes]) -> bytes:
    return leaves_root(sorted(make_leaf(position_of(key), value) for key, value in content.items()))


@given(st.dictionaries(keys, st.binary(max_size=5)), st.lists(st.tuples(changes, asked, keys), max_size=6))
def test_its_root_and_its_proofs_are_those_of_its_content_whenever_they_are_asked_for(
    content: dict[bytes, bytes], history: list[tuple[tuple[tuple[bytes, bytes | None], ...], str, bytes]]
) -> None:
    state = StateMap(content.items())
    for batch, question, key in history:
        before = dict(content)
        undo = state.apply(batch)
        for changed, value in batch:
            content.pop(changed, None)
            if value is not None:
                content[changed] = value
        assert dict(state.entries()) == content
        assert len(state) == len(content)
        if question == "root":
            assert state.root() == definition(content)
        elif question == "proof":
            proof = state.prove(key)
            assert len(proof.steps) == state.steps(key)
            assert verify_state_proof(definition(content), key, content.get(key), proof)
        elif question == "undo":
            state.apply(tuple(reversed(undo)))
            content = before
            assert state.root() == definition(content)
        assert state.steps(key) == len(StateMap(content.items()).prove(key).steps)
    assert state.root() == definition(content)
