# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do with off-chain contracts as a whole, each in one call: open, fund, claim, freeze, close. Requests: `contract_requests`."""

import time
from typing import Any

from contracts.machine import Machine
from contracts.registry import Registry
from contracts.shipped import MACHINES
from ledger.bodies import Body
from ledger.codec import decode
from ledger.contract_bodies import (
    ClaimBalance,
    CloseContract,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import contract_id_of
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import ContractTerms
from ledger.partial_tree import WitnessEntry
from ledger.state_tree import verify_state_proof
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed, rejection
from node.api import contract_models as models
from node.api.models import Hex, Model
from node.client import NodeClient
from node.contract_requests import PAUSE_S, NotFarEnough

MAX_ENTRY_BYTES = 16 * 1024
"""A state entry with its proof takes about 1 KB, at most 12."""

# ---------------------------------------------------------------- contracts


def machine_named(name: str, version: int | None = None, registry: Registry = MACHINES) -> Machine[Any, Any]:
    """Return a machine by name, the newest version unless one is given. Raises `InvalidInput`."""
    found = [each for each in registry.machines if each.name == name and version in (None, each.version)]
    if not found:
        known = ", ".join(f"{each.name} {each.version}" for each in registry.machines)
        wanted = name if version is None else f"{name} {version}"
        raise InvalidInput(f"no machine {wanted!r} here; there are: {known}")
    return max(found, key=lambda each: each.version)


def terms_of(contract: models.Contract) -> ContractTerms:
    """Return a contract's terms, as the node says them."""
    return ContractTerms(
        contract.contract_id, contract.machine, contract.version, contract.raw_parameters, contract.operator
    )


def machine_of(contract: models.Contract) -> Machine[Any, Any]:
    """Return a contract's machine. Raises `InvalidInput`."""
    return machine_named(contract.machine, contract.version)


class Opened(Model):
    """A contract that was opened."""

    contract_id: Hex
    """Its identifier."""
    transaction_id: Hex
    """The transaction that opened it."""
    height: int
    """Height of the microblock."""


def open_contract(
    actor: Actor, machine: Machine[Any, Any], parameters: bytes, bond_microcredit: int, timeout_s: float
) -> Opened:
    """Open a contract that the actor's key operates. Raises as `Actor.commit`."""
    key = actor.identity.signing
    # A nonce serves once, so it numbers what an account opens.
    number = actor.client.account(key.address).next_nonce
    body = OpenContract(number, machine.name, machine.version, parameters, bond_microcredit)
    done = actor.commit(body, timeout_s)
    return Opened(contract_id=contract_id_of(key.public_key, number), transaction_id=done.id, height=done.height)


def minimum_bond(actor: Actor) -> int:
    """Return the smallest bond that the network takes, in millionths of a credit."""
    return actor.rules.genesis.parameters.contracts.minimum_bond_microcredit


def fund(actor: Actor, contract_id: bytes, account: bytes, amount: int, timeout_s: float) -> Committed:
    """Pay credits into a contract for an account."""
    return actor.commit(FundContract(contract_id, account, amount), timeout_s)


def close(actor: Actor, contract_id: bytes, timeout_s: float) -> int:
    """As the operator, have the own node bring all that was promised to the chain and end a contract; returns the height.

    Raises `ApiError` when the node does not operate it, or is not done in time: then the contract goes on.
    """
    (order,) = actor.sign([CloseContract(contract_id)])
    client = actor.client.contracts
    deadline = time.monotonic() + timeout_s
    closing = client.close(contract_id, order, min(int(timeout_s * 1000), models.MAX_CLOSE_MS))
    if not closing.accepted:
        raise rejection(closing.reason, closing.detail)
    while True:
        found = client.contract(contract_id)
        if found.status != "open":
            return found.settles_height - found.window_microblocks
        if time.monotonic() >= deadline:
            raise NotFarEnough(f"the contract is not closed after {timeout_s:g} s; it may still be")
        time.sleep(PAUSE_S)


def close_at_once(actor: Actor, contract_id: bytes, timeout_s: float) -> int:
    """As the operator, end a contract whatever its node has promised since the last batch; returns the height."""
    return actor.commit(CloseContract(contract_id), timeout_s).height


def freeze(actor: Actor, contract_id: bytes, timeout_s: float) -> Committed:
    """End a contract whose operator leaves a forced request unanswered."""
    return actor.commit(FreezeContract(contract_id), timeout_s)


def release_bond(actor: Actor, contract_id: bytes, timeout_s: float) -> Committed:
    """Have the bond of a settled contract paid back to its operator."""
    return actor.commit(ReleaseBond(contract_id), timeout_s)


# ---------------------------------------------------------------- credits


class Claimed(Model):
    """What was paid out of a contract to an account."""

    account: Hex
    """The account, which is paid whoever asks."""
    amount_microcredit: int
    """What the state proves to be owed, and untaken deposits, in millionths of a credit."""
    heights: tuple[int, ...]
    """Heights of the microblocks that paid it."""


def claim(actor: Actor, contract: models.Contract, account: bytes, timeout_s: float = DEFAULT_TIMEOUT_S) -> Claimed:
    """Have an account paid all that a contract owes it by now. Raises `NotFound` when that is nothing."""
    client, contract_id = actor.client, contract.contract_id
    keys = MACHINES.payable_keys(terms_of(contract), account)
    if keys is None:
        raise InvalidInput(f"machine {contract.machine} takes no deposits, so nobody can claim anything")
    amount = 0
    bodies: list[Body] = []
    inside = client.contracts.account(contract_id, account)
    number = contract.final_count - 1
    if number >= 0:
        wanted = (keys.withdrawn, keys.balance) if contract.is_settled and not inside.is_settled else (keys.withdrawn,)
        entries = tuple(proved_value(client, contract, number, key) for key in wanted)
        values = [0 if entry.value is None else decode(int, entry.value, 16) for entry in entries]
        owed = values[0] - inside.claimed_microcredit + sum(values[1:])
        if owed:
            amount += owed
            bodies.append(ClaimBalance(contract_id, account, number, entries))
    deposits = [row for row in client.contracts.forced(contract_id) if row.is_reclaimable and row.account == account]
    amount += sum(row.amount_microcredit or 0 for row in deposits)
    bodies += [ReclaimDeposit(contract_id, row.number) for row in deposits]
    if not bodies:
        later = "" if contract.is_settled else "; balances are paid once it has ended and is settled"
        raise NotFound(f"the contract owes account {account.hex()} nothing that can be paid now{later}")
    heights = tuple(actor.commit(body, timeout_s).height for body in bodies)
    return Claimed(account=account, amount_microcredit=amount, heights=heights)


def proved_value(client: NodeClient, contract: models.Contract, number: int, key: bytes) -> WitnessEntry:
    """Return a state entry at the end of a batch, checked against the root that the node says it has. Raises `InvalidInput`."""
    given = client.contracts.value_proof(contract.contract_id, number, key)
    entry = decode(WitnessEntry, given.entry, MAX_ENTRY_BYTES)
    root = client.contracts.batch(contract.contract_id, number).new_root
    if entry.key != key or not verify_state_proof(root, key, entry.value, entry.proof):
        raise InvalidInput(
            f"the node's proof of state key {key.hex()} at batch {number} does not hold; use another node"
        )
    return entry
