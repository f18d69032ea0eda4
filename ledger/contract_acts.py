# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts while they live: opened, funded, given requests that must be answered, committed batch by batch.

R1 Credits that a contract holds, bond and escrow, are counted in the supply's sums by `put_contract` and nowhere else (I7).
R2 Forced requests are answered in the order in which they were forced: a commitment cites exactly the next ones.
R3 A batch has one content for ever: what fraud undoes ends the contract, so no number is committed twice.
"""

import msgspec

from ledger.acts import Act
from ledger.contract_bodies import CommitBatch, ForceOperation, FundContract, OpenContract
from ledger.contract_queries import final_count
from ledger.contract_state import CommittedBatch, Contract, ForcedRequest, contract_id_of, contract_key
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.offchain import (
    MAX_FORCED,
    BatchCommitment,
    ContractTerms,
    InvalidRequest,
    deposit_request,
    request_digest,
)
from ledger.state import CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS, SUPPLY, State

MAX_CLEARED = 2 * MAX_FORCED
"""Rows of forced requests that one commitment removes: twice as many as it can add to what is answered, so they never pile up."""


def open_contract(act: Act, body: OpenContract) -> None:
    """Open a contract; what the sender leaves as its bond comes back after an honest end."""
    state, context = act.state, act.context
    identifier = contract_id_of(act.public_key, body.number)
    if state.get(CONTRACTS, identifier) is not None:
        detail = f"contract {identifier.hex()} of number {body.number} was opened already; choose another number"
        raise Rejection(RejectionReason.CONTRACT_EXISTS, detail)
    terms = ContractTerms(identifier, body.machine, body.version, body.parameters, act.public_key)
    try:
        context.machines.check_terms(terms)
    except InvalidInput as error:
        raise Rejection(RejectionReason.WRONG_TERMS, str(error)) from error
    bond, least = body.bond_microcredit, context.parameters.contracts.minimum_bond_microcredit
    if bond < least:
        raise Rejection(RejectionReason.BOND_TOO_SMALL, f"bond {bond} microcredits; at least {least} are needed")
    act.require_credits(bond, ", the bond")
    act.balance_microcredit -= bond
    entry = Contract(
        terms=terms,
        status="open",
        opened_height=context.height,
        bond_microcredit=bond,
        escrow_microcredit=0,
        batch_count=0,
        root=ZERO_DIGEST,
        until_ms=context.timestamp_ms,
        last_height=context.height,
        forced_count=0,
        answered_count=0,
        cleared_count=0,
        deposit_count=0,
        settles_height=0,
    )
    put_contract(state, None, entry)


def fund_contract(act: Act, body: FundContract) -> None:
    """Move credits to the escrow, and force their deposit."""
    state, context, amount = act.state, act.context, body.amount_microcredit
    contract = require_open(state, body.contract_id)
    if context.machines.payable_keys(contract.terms, body.account) is None:
        detail = f"contract {body.contract_id.hex()} runs {contract.terms.machine}, which takes no deposits"
        raise Rejection(RejectionReason.NO_DEPOSITS, detail)
    act.require_credits(amount)
    sequence = contract.deposit_count
    request = deposit_request(body.contract_id, sequence, body.account, amount)
    row = ForcedRequest(
        request_digest=request_digest(request),
        height=context.height,
        time_ms=context.timestamp_ms,
        due_batch=_due_batch(act, contract),
        account=body.account,
        amount_microcredit=amount,
        deposit_sequence=sequence,
    )
    act.balance_microcredit -= amount
    _force(
        state,
        contract,
        row,
        escrow_microcredit=contract.escrow_microcredit + amount,
        deposit_count=sequence + 1,
    )


def force_operation(act: Act, body: ForceOperation) -> None:
    """Put a user's request before the operator; that it is no request of the chain's own was checked before."""
    state, context = act.state, act.context
    contract = require_open(state, body.contract_id)
    try:
        context.machines.check_request(context.chain_id, body.contract_id, body.request)
    except InvalidRequest as error:
        raise Rejection(RejectionReason.WRONG_REQUEST, str(error)) from error
    row = ForcedRequest(
        request_digest=request_digest(body.request),
        height=context.height,
        time_ms=context.timestamp_ms,
        due_batch=_due_batch(act, contract),
        account=b"",
        amount_microcredit=0,
        deposit_sequence=0,
    )
    _force(state, contract, row)


def _due_batch(act: Act, contract: Contract) -> int:
    """Return the last batch that may answer for a request that is forced now.

    It never falls from one request to the next: of those that were outstanding, each batch since has answered at most `MAX_FORCED`.
    """
    outstanding = contract.forced_count - contract.answered_count
    within = act.context.parameters.contracts.forced_batches
    return contract.batch_count + within - 1 + outstanding // MAX_FORCED


def _force(state: State, contract: Contract, row: ForcedRequest, **changes: int) -> None:
    number = contract.forced_count
    state.put(FORCED_REQUESTS, contract_key(contract.terms.contract_id, number), row)
    put_contract(state, contract, msgspec.structs.replace(contract, forced_count=number + 1, **changes))


def commit_batch(act: Act, body: CommitBatch) -> None:
    """Take the next batch; that its parts fit together was checked before, and its content whoever votes and watches."""
    state, height, commitment = act.state, act.context.height, body.commitment
    identifier, number = commitment.contract_id, commitment.number
    contract = require_open(state, identifier)
    require_operator(act, contract)
    _check_follows(act, contract, commitment)
    answered = _check_forced(state, contract, commitment)
    cleared = _cleared(act, contract)
    for forced in range(contract.cleared_count, cleared):
        state.delete(FORCED_REQUESTS, contract_key(identifier, forced))
    state.put(CONTRACT_BATCHES, contract_key(identifier, number), CommittedBatch(commitment, height, answered))
    following = msgspec.structs.replace(
        contract,
        batch_count=number + 1,
        root=commitment.new_root,
        until_ms=commitment.until_ms,
        last_height=height,
        answered_count=answered,
        cleared_count=cleared,
    )
    put_contract(state, contract, following)


def _check_follows(act: Act, contract: Contract, commitment: BatchCommitment) -> None:
    number = commitment.number
    if number != contract.batch_count:
        detail = f"batch {number} of contract {commitment.contract_id.hex()}; the next is {contract.batch_count}"
        raise Rejection(RejectionReason.WRONG_BATCH, detail)
    if commitment.previous_root != contract.root:
        detail = f"batch {number} follows from root {commitment.previous_root.hex()}, the contract has"
        raise Rejection(RejectionReason.WRONG_BATCH, f"{detail} {contract.root.hex()}")
    if commitment.from_ms != contract.until_ms:
        detail = f"batch {number} begins at {commitment.from_ms} ms, the one before ended at {contract.until_ms} ms"
        raise Rejection(RejectionReason.WRONG_BATCH, detail)
    latest = act.context.timestamp_ms + act.context.parameters.timestamp_drift_ms
    if commitment.until_ms > latest:
        detail = (
            f"batch {number} ends at {commitment.until_ms} ms; at most {latest} is allowed now: send it again later"
        )
        raise Rejection(RejectionReason.WRONG_BATCH, detail)


def _check_forced(state: State, contract: Contract, commitment: BatchCommitment) -> int:
    """Check which forced requests a commitment answers for; returns how many are answered with it."""
    identifier, number, answered = commitment.contract_id, commitment.number, contract.answered_count
    for place in commitment.forced:
        row = forced_row(state, contract, answered)
        if row is None or row.request_digest != place.request_digest:
            wanted = "none is left" if row is None else f"the next one is {row.request_digest.hex()}"
            detail = f"batch {number} answers for forced request {place.request_digest.hex()} as number {answered}"
            raise Rejection(RejectionReason.WRONG_BATCH, f"{detail} of contract {identifier.hex()}; {wanted}")
        answered += 1
    owed = forced_row(state, contract, answered)
    if owed is not None and owed.due_batch <= number:
        detail = f"forced request {answered}, {owed.request_digest.hex()}, was due by batch {owed.due_batch}"
        raise Rejection(RejectionReason.WRONG_BATCH, f"{detail}; batch {number} must answer for it")
    return answered


def _cleared(act: Act, contract: Contract) -> int:
    """Return how many of the first forced requests need no row any more: final batches have answered for them."""
    final = final_batches(act, contract)
    answered = require_batch(act.state, contract, final - 1).answered_count if final else 0
    return max(contract.cleared_count, min(answered, contract.cleared_count + MAX_CLEARED))


# ---------------------------------------------------------------- what living and ended contracts share


def put_contract(state: State, before: Contract | None, after: Contract) -> None:
    """Write a contract, and what it holds more or less than before into the sums of all credits."""
    held = after.bond_microcredit + after.escrow_microcredit
    moved = held - (before.bond_microcredit + before.escrow_microcredit if before else 0)
    state.put(CONTRACTS, after.terms.contract_id, after)
    if moved:
        supply = state.supply()
        total = supply.contracts_microcredit + moved
        state.put(SUPPLY, b"", msgspec.structs.replace(supply, contracts_microcredit=total))


def require_contract(state: State, identifier: bytes) -> Contract:
    """Return a contract that was opened."""
    contract = state.get(CONTRACTS, identifier)
    if contract is None:
        raise Rejection(RejectionReason.CONTRACT_UNKNOWN, f"there is no contract {identifier.hex()}")
    return contract


def require_open(state: State, identifier: bytes) -> Contract:
    """Return a contract that has not ended."""
    contract = require_contract(state, identifier)
    if contract.status != "open":
        detail = f"contract {identifier.hex()} is {contract.status} and takes nothing more"
        raise Rejection(RejectionReason.CONTRACT_ENDED, f"{detail}; its balances can be claimed")
    return contract


def require_operator(act: Act, contract: Contract) -> None:
    """Check that the operator acts."""
    terms = contract.terms
    if act.public_key != terms.operator:
        detail = f"only operator {terms.operator.hex()} of contract {terms.contract_id.hex()} may do this"
        raise Rejection(RejectionReason.NOT_PERMITTED, f"{detail}; the sender is {act.public_key.hex()}")


def require_batch(state: State, contract: Contract, number: int) -> CommittedBatch:
    """Return a batch that counts."""
    identifier = contract.terms.contract_id
    if number >= contract.batch_count:
        detail = f"contract {identifier.hex()} has no batch {number}; {contract.batch_count} count"
        raise Rejection(RejectionReason.BATCH_UNKNOWN, detail)
    batch = state.get(CONTRACT_BATCHES, contract_key(identifier, number))
    assert batch is not None, f"batch {number} of {contract.batch_count} is in the state"
    return batch


def forced_row(state: State, contract: Contract, number: int) -> ForcedRequest | None:
    """Return a forced request by its number, None where there is no row of it."""
    return state.get(FORCED_REQUESTS, contract_key(contract.terms.contract_id, number))


def final_batches(act: Act, contract: Contract) -> int:
    """Return how many batches of a contract are final in this microblock."""
    window = act.context.parameters.contracts.window_microblocks
    return final_count(contract, lambda number: require_batch(act.state, contract, number), act.context.height, window)
