# SPDX-License-Identifier: GPL-3.0-or-later
"""How off-chain contracts end, and how credits leave them: by fraud, by neglect, by their operator; claims, deposits and bonds paid back.

R1 Nothing leaves the escrow but against a final batch, and nothing twice: what an account has been paid is state.
R2 After fraud the last final batch is the last one that counts; before its window had passed, nobody was paid by a later one.
R3 Whoever is paid is named by the state: anyone may send these transactions, and gains nothing by it.
"""

import msgspec

from ledger.acts import Act, current_account
from ledger.codec import Uint, decoder
from ledger.contract_acts import (
    final_batches,
    forced_row,
    put_contract,
    require_batch,
    require_contract,
    require_open,
    require_operator,
)
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    FreezeContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_queries import freezable_from
from ledger.contract_state import (
    Claimed,
    CommittedBatch,
    Contract,
    ContractStatus,
    claim_key,
    contract_key,
    is_settled,
)
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.fraud import check_fraud
from ledger.miners import Offence
from ledger.offchain import PayableKeys
from ledger.partial_tree import WitnessEntry
from ledger.state import CLAIMS, FORCED_REQUESTS, OFFENCES
from ledger.state_tree import verify_state_proof

_MAX_AMOUNT_BYTES = 16
_decode_amount = decoder(Uint, _MAX_AMOUNT_BYTES, name="amount")


def challenge_batch(act: Act, body: ChallengeBatch) -> Rejection | None:
    """End a contract whose operator is proved a fraud; a proof that proves nothing costs the sender a penalty."""
    state, context, penalty = act.state, act.context, act.context.parameters.false_evidence_microcredit
    # Before the proof is judged: a sender who could not pay for a lie would have it judged for nothing.
    act.require_credits(penalty, ", the penalty for a false challenge")
    contract = require_contract(state, body.contract_id)
    batch = require_batch(state, contract, body.number)
    final_height = _final_height(act, batch)
    if context.height >= final_height:
        detail = f"batch {body.number} of contract {body.contract_id.hex()} is final since height {final_height}"
        raise Rejection(RejectionReason.BATCH_FINAL, detail)
    try:
        check_fraud(context.chain_id, contract.terms, batch.commitment, body.proof, context.machines)
    except InvalidInput as error:
        act.lose(penalty)
        return Rejection(RejectionReason.FALSE_CHALLENGE, str(error))
    _convict(act, contract)
    return None


def _convict(act: Act, contract: Contract) -> None:
    """Set a contract back to its last final batch, for good; half of the bond to who has proved the fraud, the rest to nobody."""
    state, height, operator = act.state, act.context.height, contract.terms.operator
    final = final_batches(act, contract)
    # The fraud is in a batch that is not final, so there is a first one that is not; it begins where the last final one ended.
    undone = require_batch(state, contract, final).commitment
    last = require_batch(state, contract, final - 1) if final else None
    ended = msgspec.structs.replace(
        contract,
        status="frozen",
        bond_microcredit=0,
        batch_count=final,
        root=undone.previous_root,
        until_ms=undone.from_ms,
        last_height=last.height if last else contract.opened_height,
        answered_count=last.answered_count if last else 0,
        settles_height=height,
    )
    reward = contract.bond_microcredit // 2
    put_contract(state, contract, ended)
    act.credit(act.sender, reward)
    act.burn(contract.bond_microcredit - reward)
    if state.get(OFFENCES, operator) is None:
        state.put(OFFENCES, operator, Offence(height, act.context.epoch, 0, act.sender, contract.terms.contract_id))


def freeze_contract(act: Act, body: FreezeContract) -> None:
    """End a contract whose operator owes an answer and commits nothing; the bond comes back, for a failure is no fraud."""
    state, now_ms = act.state, act.context.timestamp_ms
    contract = require_open(state, body.contract_id)
    owed = forced_row(state, contract, contract.answered_count)
    if owed is None:
        detail = f"contract {body.contract_id.hex()} has answered all {contract.forced_count} forced requests"
        raise Rejection(RejectionReason.NOT_OVERDUE, f"{detail}; force one, and wait")
    overdue_ms = freezable_from(contract, owed, act.context.parameters.contracts)
    if now_ms < overdue_ms:
        detail = f"forced request {contract.answered_count} of contract {body.contract_id.hex()} is overdue from"
        detail += f" {overdue_ms} ms (UTC) on, if no batch comes; the time of this microblock is {now_ms} ms"
        raise Rejection(RejectionReason.NOT_OVERDUE, detail)
    _end(act, contract, "frozen")


def close_contract(act: Act, body: CloseContract) -> None:
    """End a contract in good order."""
    contract = require_open(act.state, body.contract_id)
    require_operator(act, contract)
    if contract.answered_count < contract.forced_count:
        detail = f"{contract.forced_count - contract.answered_count} forced requests of contract"
        detail += f" {body.contract_id.hex()} wait for an answer, from number {contract.answered_count} on"
        raise Rejection(RejectionReason.ANSWER_OWED, f"{detail}; commit a batch that answers, then close")
    _end(act, contract, "closed")


def _end(act: Act, contract: Contract, status: ContractStatus) -> None:
    """End a contract; its last batches can be challenged for a whole window still."""
    settles = act.context.height + act.context.parameters.contracts.window_microblocks
    put_contract(act.state, contract, msgspec.structs.replace(contract, status=status, settles_height=settles))


# ---------------------------------------------------------------- credits that leave


def claim_balance(act: Act, body: ClaimBalance) -> None:
    """Pay an account what a final batch proves that it has withdrawn, and after the end what it holds."""
    state, context, account = act.state, act.context, body.account
    contract = require_contract(state, body.contract_id)
    keys = context.machines.payable_keys(contract.terms, account)
    if keys is None:
        detail = f"contract {body.contract_id.hex()} runs {contract.terms.machine}, which holds no credits"
        raise Rejection(RejectionReason.NO_DEPOSITS, detail)
    batch = require_batch(state, contract, body.number)
    final_height, settled = _final_height(act, batch), is_settled(contract, context.height)
    if context.height < final_height:
        detail = f"batch {body.number} of contract {body.contract_id.hex()} is final from height {final_height} on"
        raise Rejection(RejectionReason.BATCH_NOT_FINAL, f"{detail}; this is {context.height}")
    if settled and body.number != contract.batch_count - 1:
        detail = f"contract {body.contract_id.hex()} has ended with batch {contract.batch_count - 1}"
        raise Rejection(RejectionReason.WRONG_BATCH, f"{detail}; prove by that one, not by batch {body.number}")
    place = claim_key(body.contract_id, account)
    claimed = state.get(CLAIMS, place) or Claimed(0, is_settled=False)
    if claimed.is_settled:
        detail = f"account {account.hex()} was paid all that it held in contract {body.contract_id.hex()}"
        raise Rejection(RejectionReason.NOTHING_TO_CLAIM, detail)
    withdrawn, balance = _proved_amounts(body, keys, batch.commitment.new_root, settled=settled)
    amount = withdrawn - claimed.withdrawn_microcredit + balance
    if amount <= 0:
        detail = f"account {account.hex()} has withdrawn {withdrawn} microcredits up to batch {body.number}"
        raise Rejection(
            RejectionReason.NOTHING_TO_CLAIM, f"{detail}, and was paid {claimed.withdrawn_microcredit} of them"
        )
    _pay_out(act, contract, account, amount)
    state.put(CLAIMS, place, Claimed(max(withdrawn, claimed.withdrawn_microcredit), is_settled=settled))


def _proved_amounts(body: ClaimBalance, keys: PayableKeys, root: bytes, *, settled: bool) -> tuple[int, int]:
    """Return what an account has withdrawn and, of a settled contract, what it holds."""
    wanted = (keys.withdrawn, keys.balance) if settled else (keys.withdrawn,)
    given = tuple(entry.key for entry in body.entries)
    if given != wanted:
        names = " and ".join(key.hex() for key in wanted)
        detail = f"proofs of state keys {', '.join(key.hex() for key in given)}"
        raise Rejection(RejectionReason.WRONG_PROOF, f"{detail}; those of {names} are needed now, in this order")
    amounts = [_proved_amount(entry, root) for entry in body.entries]
    return amounts[0], amounts[1] if settled else 0


def _proved_amount(entry: WitnessEntry, root: bytes) -> int:
    if not verify_state_proof(root, entry.key, entry.value, entry.proof):
        detail = f"the proof of state key {entry.key.hex()} does not hold under root {root.hex()}"
        raise Rejection(RejectionReason.WRONG_PROOF, f"{detail} of the batch")
    if entry.value is None:
        return 0
    try:
        return _decode_amount(entry.value)
    except InvalidInput as error:
        # Only a fraud that nobody has challenged in its window leads here.
        raise Rejection(RejectionReason.WRONG_PROOF, f"state key {entry.key.hex()} holds no amount: {error}") from error


def reclaim_deposit(act: Act, body: ReclaimDeposit) -> None:
    """Pay a deposit back that no batch that counts has taken up."""
    contract = _require_settled(act, body.contract_id)
    row = forced_row(act.state, contract, body.number)
    if row is None or not row.account or body.number < contract.answered_count:
        detail = f"forced request {body.number} of contract {body.contract_id.hex()} is no deposit that waits"
        raise Rejection(RejectionReason.NOTHING_TO_CLAIM, f"{detail}; {contract.answered_count} are answered")
    _pay_out(act, contract, row.account, row.amount_microcredit)
    act.state.delete(FORCED_REQUESTS, contract_key(body.contract_id, body.number))


def release_bond(act: Act, body: ReleaseBond) -> None:
    """Pay the bond back to the operator."""
    contract = _require_settled(act, body.contract_id)
    if not contract.bond_microcredit:
        detail = f"the bond of contract {body.contract_id.hex()} was burnt or paid back"
        raise Rejection(RejectionReason.NOTHING_TO_CLAIM, detail)
    put_contract(act.state, contract, msgspec.structs.replace(contract, bond_microcredit=0))
    act.credit(current_account(act.state, address_of(contract.terms.operator)), contract.bond_microcredit)


def _final_height(act: Act, batch: CommittedBatch) -> int:
    return batch.height + act.context.parameters.contracts.window_microblocks


def _require_settled(act: Act, identifier: bytes) -> Contract:
    contract, height = require_contract(act.state, identifier), act.context.height
    if contract.status == "open":
        detail = f"contract {identifier.hex()} is open; its operator may close it, and who waits in vain may freeze it"
        raise Rejection(RejectionReason.CONTRACT_OPEN, detail)
    if not is_settled(contract, height):
        detail = f"contract {identifier.hex()} is settled from height {contract.settles_height} on; this is {height}"
        raise Rejection(RejectionReason.NOT_SETTLED, detail)
    return contract


def _pay_out(act: Act, contract: Contract, account: bytes, amount: int) -> None:
    if amount > contract.escrow_microcredit:
        # Only a fraud that nobody has challenged in its window leads here.
        detail = f"{amount} microcredits for account {account.hex()}, but the escrow of contract"
        detail += f" {contract.terms.contract_id.hex()} holds {contract.escrow_microcredit}"
        raise Rejection(RejectionReason.INSUFFICIENT_BALANCE, detail)
    left = contract.escrow_microcredit - amount
    put_contract(act.state, contract, msgspec.structs.replace(contract, escrow_microcredit=left))
    act.credit(current_account(act.state, account), amount)
