# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts on the chain for the golden vectors: three that end by their operator, by fraud and by neglect."""

from typing import Any

import msgspec

from contracts.machines.micro_fees import Pay, Withdraw
from ledger.codec import Wire, encode
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ForceOperation,
    FreezeContract,
    FundContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import contract_id_of
from ledger.crypto.keys import PrivateKey
from ledger.state import ACCOUNTS, CLAIMS, CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS, OFFENCES, SUPPLY, Table
from tests.ledger.contracts_kit import (
    ALICE,
    BOB,
    CHAIN,
    DIGEST,
    GENESIS,
    NEGLECT,
    OPEN,
    OPERATOR,
    RULES,
    STRANGER,
    Desk,
    World,
    lying,
)

_TABLES: tuple[Table[Any], ...] = (ACCOUNTS, CONTRACTS, CONTRACT_BATCHES, FORCED_REQUESTS, CLAIMS, OFFENCES, SUPPLY)


def _opened(world: World, number: int) -> tuple[bytes, Desk]:
    world.act(OPERATOR, msgspec.structs.replace(OPEN, number=number))
    identifier = contract_id_of(OPERATOR.public_key, number)
    return identifier, Desk(world, identifier)


def _funded(world: World, number: int) -> tuple[bytes, Desk]:
    identifier, desk = _opened(world, number)
    world.act(ALICE, FundContract(identifier, ALICE.address, 1_000))
    desk.take_deposit(0, ALICE.address, 1_000)
    return identifier, desk


def _closed(world: World) -> None:
    identifier, desk = _funded(world, 0)
    raw = desk.sign(ALICE, Pay(BOB.address, 300, DIGEST))
    world.act(STRANGER, ForceOperation(identifier, raw))
    desk.accept(raw, is_forced=True)
    desk.accept(desk.sign(BOB, Withdraw(200)))
    desk.commit()
    world.height += RULES.window_microblocks
    world.act(STRANGER, desk.claim(BOB.address, 0))
    world.act(OPERATOR, CloseContract(identifier))
    world.height += RULES.window_microblocks
    for user in (ALICE, BOB):
        world.act(user, desk.claim(user.address, 0, with_balance=True))
    world.act(STRANGER, ReleaseBond(identifier))


def _convicted(world: World) -> None:
    identifier, desk = _funded(world, 1)
    desk.accept(desk.sign(ALICE, Pay(BOB.address, 300, DIGEST)))
    lie = lying(desk.cut())
    world.act(OPERATOR, CommitBatch(lie.commitment))
    world.act(STRANGER, ChallengeBatch(identifier, 0, desk.proof(lie)))
    world.act(STRANGER, ReclaimDeposit(identifier, 0))


def _neglected(world: World) -> None:
    identifier, desk = _opened(world, 2)
    world.act(BOB, ForceOperation(identifier, desk.sign(BOB, Withdraw(1))))
    world.height += NEGLECT
    world.act(BOB, FreezeContract(identifier))


def history() -> World:
    """Return the world in which all of it has happened; `sent` tells what."""
    world = World()
    _closed(world)
    _convicted(world)
    _neglected(world)
    return world


def contract_transactions() -> list[tuple[bytes, PrivateKey, bytes]]:
    """Return chain, sender and bytes of each transaction, in order."""
    return [(CHAIN, sender, raw) for _, sender, raw in history().sent]


def contract_structs() -> list[Wire]:
    """Return an example of each body, of each state entry and of the rules."""
    world = history()
    tables: tuple[Table[Any], ...] = (CONTRACTS, CONTRACT_BATCHES, FORCED_REQUESTS, CLAIMS)
    rows = [next(iter(world.state.entries(table)))[1] for table in tables]
    claim = next(body for body in world.bodies if isinstance(body, ClaimBalance))
    return [RULES, *world.bodies, claim.entries[0], *rows]


def on_chain() -> dict[str, Any]:
    """Return the vector: a genesis, transactions with the height and time that commit them, and the state that they lead to."""
    world = history()
    entries = [
        ((table.prefix + key).hex(), encode(value).hex())
        for table in _TABLES
        for key, value in world.state.entries(table)
    ]
    return {
        "kind": "chain",
        "genesis": encode(GENESIS).hex(),
        "epoch": 2,
        "transactions": [
            {"height": height, "timestamp_ms": world.time_at(height), "encoding": raw.hex()}
            for height, _, raw in world.sent
        ],
        "state": entries,
    }
