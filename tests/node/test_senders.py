# SPDX-License-Identifier: GPL-3.0-or-later
"""From whom an operator takes requests: strangers with keys that nobody knows cannot fill a contract for nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.machines.access_log import AccessLogParameters
from contracts.machines.vital_signs import Measure, VitalSignsParameters
from contracts.shipped import MACHINES
from contracts.state_map import StateMap
from ledger import testing
from ledger.bodies import Transfer
from ledger.codec import encode
from ledger.contract_bodies import FundContract, OpenContract
from ledger.contract_state import contract_id_of
from ledger.memory_store import MemoryStore
from ledger.offchain import ContractTerms
from ledger.state import ACCOUNTS, INSTITUTIONS, KEY_HOLDERS, PATIENTS, Table
from node.offchain.senders import is_known
from tests.node.offchain_kit import CONTRACT, GENESIS, OPERATOR, World, accepted, pay, request

STRANGER = 99
"""Number of a key that the genesis has no credits for."""
ADDRESS = testing.key(STRANGER).address
SIGNS = OpenContract(1, "vital_signs", 1, encode(VitalSignsParameters(60_000, 10**9)), 20_000)
SIGNS_ID = contract_id_of(OPERATOR.public_key, 1)
MEASURE = Measure(1, 0, 1_000, (71,))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_nobody_fills_an_open_contract_with_keys_that_the_chain_does_not_know(world: World) -> None:
    world.chain.open(SIGNS)
    async with world.node() as operating:
        await world.ready(SIGNS_ID)
        strangers = [request(STRANGER + number, 0, MEASURE, contract_id=SIGNS_ID) for number in range(20)]
        outcomes = await operating.send(SIGNS_ID, strangers)
        assert {(outcome.reason, outcome.retry_ms) for outcome in outcomes} == {("sender_unknown", 0)}
        assert ADDRESS.hex() in outcomes[0].detail
        assert "transfer a microcredit to it" in outcomes[0].detail
        # Whoever has an account on the chain goes on, in the same call as well.
        one, other = await operating.send(SIGNS_ID, [strangers[0], request(1, 0, MEASURE, contract_id=SIGNS_ID)])
        assert one.reason == "sender_unknown"
        accepted(other)
        assert operating.next_sequence(SIGNS_ID, ADDRESS) == 0


async def test_a_sender_is_taken_once_the_chain_knows_it(world: World) -> None:
    world.chain.open(SIGNS)
    raw = request(STRANGER, 0, MEASURE, contract_id=SIGNS_ID)
    async with world.node() as operating:
        await world.ready(SIGNS_ID)
        (before,) = await operating.send(SIGNS_ID, [raw])
        assert before.reason == "sender_unknown"
        assert world.chain.act(testing.key(1), Transfer(ADDRESS, 1)).reason == ""
        await world.answered([raw], SIGNS_ID)


async def test_what_a_stranger_forces_is_executed_and_makes_it_known(world: World) -> None:
    world.chain.open(SIGNS)
    async with world.node() as operating:
        await world.ready(SIGNS_ID)
        world.chain.force(request(STRANGER, 0, MEASURE, contract_id=SIGNS_ID), SIGNS_ID)
        await world.all_committed(SIGNS_ID)
        assert world.chain.contract(SIGNS_ID).answered_count == 1
        assert operating.next_sequence(SIGNS_ID, ADDRESS) == 1
        await world.answered([request(STRANGER, 1, MEASURE, contract_id=SIGNS_ID)], SIGNS_ID)


async def test_whoever_holds_credits_inside_or_is_named_by_the_contract_needs_no_account(world: World) -> None:
    named = encode(AccessLogParameters((ADDRESS,)))
    world.chain.open()
    world.chain.open(OpenContract(1, "access_log", 1, named, 20_000))
    async with world.node() as operating:
        await world.ready()
        await world.ready(SIGNS_ID)
        (before,) = await operating.send(CONTRACT, [request(STRANGER, 0)])
        assert before.reason == "sender_unknown"
        assert world.chain.act(testing.key(1), FundContract(CONTRACT, ADDRESS, 500)).reason == ""
        await world.all_committed()
        await world.answered([request(STRANGER, 0, pay(5, STRANGER + 1))])
        # Who is paid inside may pay in turn.
        await world.answered([request(STRANGER + 1, 0)])
        # That this is no operation of an access log makes no difference: it is executed, and refused by the machine.
        await world.answered([request(STRANGER, 0, contract_id=SIGNS_ID)], SIGNS_ID)


@pytest.mark.parametrize("table", [ACCOUNTS, PATIENTS, KEY_HOLDERS, INSTITUTIONS], ids=lambda table: table.name)
def test_the_chain_knows_patients_with_all_their_keys_and_institutions_without_credits(table: Table[Any]) -> None:
    store = MemoryStore(GENESIS)
    terms = ContractTerms(SIGNS_ID, SIGNS.machine, SIGNS.version, SIGNS.parameters, OPERATOR.public_key)

    class Chain:
        def get_state(self, key: bytes) -> bytes | None:
            return b"a row" if key == table.prefix + ADDRESS else store.get_state(key)

        def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
            return store.scan_state(prefix, start, limit)

    assert not is_known(store, MACHINES, terms, StateMap(), ADDRESS)
    assert is_known(Chain(), MACHINES, terms, StateMap(), ADDRESS)
    assert not is_known(Chain(), MACHINES, terms, StateMap(), testing.key(STRANGER + 1).address)


async def test_an_operator_may_take_requests_from_anyone(world: World) -> None:
    world.chain.open(SIGNS)
    async with world.node(senders="anyone"):
        await world.ready(SIGNS_ID)
        await world.answered([request(STRANGER, 0, MEASURE, contract_id=SIGNS_ID)], SIGNS_ID)
