# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge on states that no machine makes: an operator chooses its roots, so anything may lie below one."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.batch_data import BatchItem, commit, open_data, prove_leaf
from contracts.machine import Machine
from contracts.machines import SHIPPED
from contracts.requests import sign_request
from contracts.state_map import StateMap
from ledger.codec import encode
from ledger.errors import InvalidInput
from ledger.fraud import check_fraud
from ledger.offchain import Place, WrongExecution, deposit_request
from ledger.testing import key
from tests.contracts import kit

LARGEST = 2**63 - 1
extremes = st.sampled_from([0, 1, -1, 2**31 - 1, LARGEST - 1, LARGEST, 2**64 - 1])
made_up_values = st.one_of(
    st.binary(max_size=40),
    extremes.map(encode),
    st.lists(extremes | kit.digests | st.sampled_from(["free", "booked"]), max_size=6).map(tuple).map(encode),
    st.tuples(st.just(1), extremes, st.just(0), st.just(0)).map(encode),
    st.tuples(extremes, st.just(0), st.just(0), st.just(0), st.just(bytes(32))).map(encode),
)


@given(st.data(), st.sampled_from(SHIPPED))
@settings(max_examples=150)
def test_whatever_a_liar_makes_of_its_state_the_judge_has_an_answer(
    data: st.DataObject, machine: Machine[Any, Any]
) -> None:
    """Roots are the operator's to choose: a fraud that nobody has challenged may have put anything below one."""
    terms, is_chain = kit.terms_of(machine), data.draw(st.booleans())
    first = data.draw(st.sampled_from([0, 1, LARGEST]))
    operations = data.draw(st.lists(kit.OPERATIONS[machine.name], min_size=1, max_size=3))
    raw = (
        deposit_request(kit.CONTRACT, first, key(1).address, LARGEST)
        if is_chain
        else sign_request(kit.CHAIN_ID, key(1), kit.CONTRACT, first, operations)
    )
    state = StateMap()
    for _ in range(3):  # what is there leads to further keys
        place = Place(0, 0, 5_000, is_forced=is_chain)
        tree = Noted(state)
        with suppress(InvalidInput):
            kit.REGISTRY.replay(kit.CHAIN_ID, terms, place, raw, tree)
        for name in sorted(tree.keys - dict(state.entries()).keys()):
            state.put(name, data.draw(made_up_values | st.just(encode(first)), label=name.hex()))
    item = BatchItem(raw, 5_000, 1, bytes(32), bytes(32))
    commitment, published = commit(kit.CONTRACT, 0, state.root(), 0, 6_000, [item], [0] if is_chain else [])
    proved = prove_leaf(open_data(commitment, published), 0)
    proof = WrongExecution(raw, None, proved, state.witness(sorted(tree.keys)))
    with suppress(InvalidInput):
        assert check_fraud(kit.CHAIN_ID, terms, commitment, proof, kit.REGISTRY)


class Noted:
    """A state that notes what is read."""

    def __init__(self, state: StateMap) -> None:
        self.state = state
        self.keys: set[bytes] = set()

    def get(self, name: bytes) -> bytes | None:
        self.keys.add(name)
        return self.state.get(name)

    def steps(self, name: bytes) -> int:
        return self.state.steps(name)
