# SPDX-License-Identifier: GPL-3.0-or-later
"""Everybody's credits a second time: what the transactions that occur in runs, rewards and fees do to balances."""

from collections.abc import Collection, Sequence
from typing import get_args

import msgspec

from ledger.blocks import microblock_hash, microblock_signing_digest
from ledger.bodies import ReportMisbehaviour, Transfer
from ledger.contract_bodies import ContractBody
from ledger.crypto.keys import address_of, verify
from ledger.evidence import ConflictingVotes, Evidence
from ledger.genesis import Genesis, chain_id
from ledger.state import ACCOUNTS, CONTRACTS, State
from ledger.transactions import CheckedTransaction
from ledger.votes import vote_digest
from simulation.contract_facts import Sent
from simulation.reference_contracts import ReferenceContracts

_CONTRACT_BODIES = get_args(ContractBody)


class Applied(msgspec.Struct):
    """What a microblock's transactions came to."""

    fees: int = 0
    """Fees paid, in millionths of a credit."""
    offenders: list[bytes] = msgspec.field(default_factory=list)
    """Keys of those whose guilt was proved."""
    effective: list[bool] = msgspec.field(default_factory=list)
    """For each transaction whether it took effect."""


class Accounts:
    """Balances and nonces by address."""

    def __init__(self, genesis: Genesis, contracts: ReferenceContracts) -> None:
        self.contracts = contracts
        self._chain_id = chain_id(genesis)
        self._parameters = genesis.parameters
        self._balances = {entry.account: entry.balance_microcredit for entry in genesis.allocations}
        self._nonces: dict[bytes, int] = {}
        self._offenders: set[bytes] = set()
        self._convicted: list[bytes] = []
        self.minted = sum(self._balances.values())
        self.burnt = 0
        self.in_flight = 0

    def apply(
        self,
        height: int,
        time_ms: int,
        transactions: Sequence[CheckedTransaction],
        miners: Collection[bytes],
        reasons: Sequence[str],
    ) -> Applied:
        """Apply a microblock's transactions; `miners` are all keys with a history, `reasons` what the receipts say."""
        applied = Applied()
        self.contracts.advance(height)
        for checked, reason in zip(transactions, reasons, strict=True):
            applied.effective.append(self._apply(height, time_ms, checked, miners, applied, reason))
        self.in_flight += applied.fees
        return applied

    def _apply(
        self,
        height: int,
        time_ms: int,
        checked: CheckedTransaction,
        miners: Collection[bytes],
        applied: Applied,
        reason: str,
    ) -> bool:
        transaction, sender, rules = checked.transaction, checked.sender, self._parameters
        fee, body = transaction.fee_microcredit, transaction.body
        if not height <= transaction.expiry_height <= height + rules.maximum_expiry_microblocks:
            return False
        balance = self._balances.get(sender, 0) - fee
        if transaction.nonce != self._nonces.get(sender, 0) or fee < rules.minimum_fee_microcredit:
            return False
        if isinstance(body, Transfer):
            if body.amount_microcredit > balance:
                return False
            self._pay(sender, fee, applied)
            self.credit(sender, -body.amount_microcredit)
            self.credit(body.recipient, body.amount_microcredit)
            return True
        if isinstance(body, _CONTRACT_BODIES):
            sent = Sent(height, time_ms, sender, transaction.sender, balance, reason)
            outcome = self.contracts.apply(body, sent, self)
            applied.offenders += self._convicted
            self._convicted.clear()
            if outcome != "refused":
                self._pay(sender, fee, applied)
            return outcome == "done"
        assert isinstance(body, ReportMisbehaviour), "runs hold transfers, reports and contracts"
        offender = body.evidence.offender
        if balance < rules.false_evidence_microcredit or offender in self._offenders:
            return False
        self._pay(sender, fee, applied)
        if offender in miners and proves_guilt(self._chain_id, body.evidence):
            self._offenders.add(offender)
            applied.offenders.append(offender)
            return True
        self.credit(sender, -rules.false_evidence_microcredit)
        self.burnt += rules.false_evidence_microcredit
        return False

    def convict(self, key: bytes) -> None:
        """Note that the operator of a contract is a fraud."""
        if key not in self._offenders:
            self._offenders.add(key)
            self._convicted.append(key)

    def _pay(self, sender: bytes, fee: int, applied: Applied) -> None:
        self.credit(sender, -fee)
        self._nonces[sender] = self._nonces.get(sender, 0) + 1
        applied.fees += fee

    def balance(self, address: bytes) -> int:
        """Return what an account holds."""
        return self._balances.get(address, 0)

    def credit(self, address: bytes, amount: int) -> None:
        """Add to a balance."""
        self._balances[address] = self._balances.get(address, 0) + amount

    def end_epoch(self, payouts: dict[bytes, int], miner: bytes) -> None:
        """Pay out an epoch's fees, and the new keyblock's reward."""
        for address, amount in payouts.items():
            self.credit(address, amount)
            self.in_flight -= amount
        reward = self._parameters.keyblock_reward_microcredit
        self.credit(miner, reward)
        self.minted += reward

    def differs(self, state: State) -> str:
        """Return where a state has other credits than these, or breaks I7; empty when all is well."""
        supply = state.supply()
        found = {address: account.balance_microcredit for address, account in state.entries(ACCOUNTS)}
        held = sum(entry.bond_microcredit + entry.escrow_microcredit for _, entry in state.entries(CONTRACTS))
        if supply.contracts_microcredit != held:
            return f"{supply.contracts_microcredit} in contracts by the sums, {held} by the contracts"
        total = sum(found.values()) + held + supply.fees_in_flight_microcredit
        if supply.minted_microcredit - supply.burnt_microcredit != total:
            return f"{supply.minted_microcredit} minted and {supply.burnt_microcredit} burnt, but there are {total}"
        if (supply.minted_microcredit, supply.burnt_microcredit) != (self.minted, self.burnt):
            return f"supply {supply}; the transactions tell {self.minted} minted and {self.burnt} burnt"
        if supply.fees_in_flight_microcredit != self.in_flight:
            return f"{supply.fees_in_flight_microcredit} in flight; the transactions tell {self.in_flight}"
        for address, balance in self._balances.items():
            if found.get(address, 0) != balance:
                return f"account {address.hex()} holds {found.get(address, 0)}; the transactions tell {balance}"
        if held != self.contracts.held():
            return f"contracts hold {held}; the transactions tell {self.contracts.held()}"
        return ""


def proves_guilt(chain_id: bytes, evidence: Evidence) -> bool:
    """Tell whether both parts are signed by the offender, for one round, and differ."""
    key = evidence.offender
    if isinstance(evidence, ConflictingVotes):
        hashes = (evidence.first_hash, evidence.second_hash)
        digests = [vote_digest(chain_id, evidence.epoch, evidence.round, block_hash) for block_hash in hashes]
    else:
        first, second = evidence.first, evidence.second
        if {(first.epoch, first.round, first.leader)} != {(second.epoch, second.round, address_of(key))}:
            return False
        hashes = (microblock_hash(first), microblock_hash(second))
        digests = [microblock_signing_digest(chain_id, block_hash) for block_hash in hashes]
    signatures = (evidence.first_signature, evidence.second_signature)
    return hashes[0] < hashes[1] and all(verify(key, *part) for part in zip(digests, signatures, strict=True))
