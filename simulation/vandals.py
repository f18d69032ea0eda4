# SPDX-License-Identifier: GPL-3.0-or-later
"""Transactions about contracts that somebody sends who has no right to, or no reason: each must do what the rules say, mostly nothing."""

import random
from collections.abc import Callable, Sequence

import msgspec

from contracts.batch_data import open_data, prove_leaf
from contracts.machines.micro_fees import MICRO_FEES, balance_key, withdrawn_key
from contracts.state_map import StateMap
from ledger.bodies import Body
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import CommittedBatch, Contract
from ledger.offchain import (
    BrokenReceipt,
    FraudProof,
    SignedReceipt,
    WrongEnd,
    WrongExecution,
    WrongForced,
    deposit_request,
)
from simulation.heirs import EntriesAfter, claim_of
from simulation.operators import PARAMETERS, SimulatedOperator
from simulation.replica import Replica

_replace = msgspec.structs.replace
CHALLENGE = 3


class Vandal:
    """Draws transactions about the contracts of a run."""

    def __init__(
        self,
        operators: Sequence[SimulatedOperator],
        accounts: Sequence[bytes],
        receipts: Callable[[bytes], Sequence[SignedReceipt]],
        entries_after: EntriesAfter,
        rng: random.Random,
    ) -> None:
        """`accounts` are those for which it claims, `receipts` are those that users hold of a contract."""
        self._operators = operators
        self._accounts = accounts
        self._receipts = receipts
        self._entries_after = entries_after
        self._rng = rng

    def body(self, replica: Replica) -> Body | None:
        """Return something to send in view of a state; None when nothing comes to mind."""
        rng = self._rng
        operator = rng.choice(self._operators)
        identifier = operator.contract_id if rng.randrange(12) else rng.randbytes(32)
        if rng.randrange(11) < 5:
            return self._simple(identifier)
        contract = contract_at(replica.disk.store, operator.contract_id)
        return None if contract is None else self._about(replica, operator, contract)

    def _simple(self, identifier: bytes) -> Body:
        rng = self._rng
        number, bond = rng.choice(((0, 10**13), (0, 1), (1, 10_000), (0, 10_000)))
        return rng.choice(
            (
                OpenContract(number, rng.choice((MICRO_FEES.name, "no_machine")), 1, PARAMETERS, bond),
                FundContract(identifier, rng.choice(self._accounts), rng.choice((1, 500, 10**15))),
                CloseContract(identifier),
                FreezeContract(identifier),
                ReleaseBond(identifier),
            )
        )

    def _about(self, replica: Replica, operator: SimulatedOperator, contract: Contract) -> Body | None:
        rng, identifier = self._rng, operator.contract_id
        kind = rng.choice((0, 1, 2, CHALLENGE, CHALLENGE, 4, 5))
        if kind == 0:
            return ReclaimDeposit(identifier, rng.randrange(contract.forced_count + 2))
        if kind == 1:
            return ForceOperation(identifier, self._request(operator, contract))
        newest = max(0, contract.batch_count - 1)  # the one that can be challenged; older ones are final soon
        number = newest if kind == CHALLENGE else rng.randint(0, newest)
        row = batch_at(replica.disk.store, contract, number)
        if row is None:
            return None
        if kind == 2:
            return CommitBatch(_replace(row.commitment, number=contract.batch_count, previous_root=contract.root))
        return self._challenge(replica, row) if kind == CHALLENGE else self._claim(replica, contract, row)

    def _request(self, operator: SimulatedOperator, contract: Contract) -> bytes:
        account = self._rng.choice(self._accounts)
        false = deposit_request(operator.contract_id, contract.deposit_count, account, 10**6)
        return false if self._rng.randrange(2) else self._rng.randbytes(100)

    def _claim(self, replica: Replica, contract: Contract, row: CommittedBatch) -> ClaimBalance | None:
        rng, number = self._rng, row.commitment.number
        account = rng.choice(self._accounts)
        entries = self._entries_after(replica, contract, number)
        if entries is None:
            return None
        if rng.randrange(4) == 0:  # credits that the state does not hold
            forged = {**entries, b"m" + withdrawn_key(account): b"\xcd\x27\x10", b"m" + balance_key(account): b"\x64"}
            return claim_of(contract.terms.contract_id, account, number, forged, settled=bool(rng.randrange(2)))
        claim = claim_of(contract.terms.contract_id, account, number, entries, settled=bool(rng.randrange(2)))
        if rng.randrange(4) == 0:  # another's, or one sum twice
            key = b"m" + balance_key(rng.choice(self._accounts))
            entry = StateMap(sorted(entries.items())).witness((key,))[0]
            return _replace(claim, entries=rng.choice(((entry,), (entry, entry), claim.entries[::-1])))
        return claim

    def _challenge(self, replica: Replica, row: CommittedBatch) -> Body | None:
        commitment, rng = row.commitment, self._rng
        raw = replica.disk.data.get(commitment.data_digest)
        if raw is None:
            return None
        data = open_data(commitment, raw)
        place = rng.randrange(len(data.items))
        leaf, last = prove_leaf(data, place), prove_leaf(data, len(data.items) - 1)
        proofs: list[FraudProof] = [
            WrongEnd(last),
            WrongEnd(leaf),
            WrongForced(0, leaf),
            WrongExecution(data.items[place].request, prove_leaf(data, place - 1) if place else None, leaf, ()),
            WrongExecution(data.items[0].request, None, prove_leaf(data, 0), StateMap().witness((b"sx",))),
        ]
        receipts = self._receipts(commitment.contract_id)
        if receipts and rng.randrange(2):
            signed = rng.choice(receipts)
            other = _replace(signed.receipt, index=place, number=commitment.number)
            forged = _replace(signed, receipt=other)
            proofs = [BrokenReceipt(signed, leaf), BrokenReceipt(signed, None), BrokenReceipt(forged, leaf)]
        return ChallengeBatch(commitment.contract_id, commitment.number, rng.choice(proofs))
