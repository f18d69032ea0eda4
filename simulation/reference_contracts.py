# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts a second time: what their transactions do, by lists and plain sums, and what published batches really come to.

The judge of proofs is not repeated. What it says is believed only as far as it is true: it convicts nobody whose batch is right and whose
receipts are kept, and it convicts on every proof that an honest watcher sends. So a verdict comes in with the receipt, and is compared
with what replaying the published data shows.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from contracts.machines.micro_fees import MICRO_FEES, balance_key, withdrawn_key
from contracts.shipped import MACHINES
from ledger.codec import decode, encode
from ledger.contract_bodies import (
    ChallengeBatch,
    ClaimBalance,
    CloseContract,
    CommitBatch,
    ContractBody,
    ForceOperation,
    FreezeContract,
    FundContract,
    OpenContract,
    ReclaimDeposit,
    ReleaseBond,
)
from ledger.contract_state import contract_id_of
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput, RejectionReason
from ledger.genesis import Genesis, chain_id
from ledger.offchain import (
    MAX_FORCED,
    BatchCommitment,
    BrokenReceipt,
    ChainOperations,
    ContractTerms,
    Deposit,
    SignedReceipt,
    is_signed_receipt,
    request_digest,
)
from ledger.state import CONTRACTS, State
from ledger.state_tree import verify_state_proof
from simulation.contract_facts import BatchFacts, ContractFacts, ForcedFacts, Purse, Sent, expected_row, wrong_rows
from simulation.reference_batches import Replayed, replay
from simulation.violation import require

_replace = msgspec.structs.replace


class ReferenceContracts:
    """All contracts of a run. `published` grows as batches' data comes to honest disks; it outlives crashes."""

    def __init__(self, genesis: Genesis, published: Mapping[bytes, bytes]) -> None:
        self.contracts: dict[bytes, ContractFacts] = {}
        self.honest_operators: set[bytes] = set()
        """Keys of operators that never lie."""
        self.honest_watchers: set[bytes] = set()
        """Addresses of those who challenge only what is wrong."""
        self.newly_forged: list[tuple[bytes, int]] = []
        """Wrong batches that became final with the newest microblock: contract and number."""
        self.margins: list[int] = []
        """For each challenge of a batch that counted, how many microblocks were left of the window; 1 in its last one."""
        self._truths: dict[tuple[bytes, int, bytes], Replayed] = {}
        self._chain_id = chain_id(genesis)
        self._rules = genesis.parameters.contracts
        self._drift_ms = genesis.parameters.timestamp_drift_ms
        self._penalty = genesis.parameters.false_evidence_microcredit
        self._published = published

    def apply(self, body: ContractBody, sent: Sent, purse: Purse) -> str:
        """Apply one transaction; returns "done", "refused", or "false" for a false challenge."""
        if isinstance(body, ChallengeBatch):
            return self._challenge(body, sent, purse)
        rules: dict[type, Callable[[Any, Sent, Purse], bool]] = {
            OpenContract: self._open,
            FundContract: self._fund,
            ForceOperation: self._force,
            CommitBatch: self._commit,
            FreezeContract: self._freeze,
            CloseContract: self._close,
            ClaimBalance: self._claim,
            ReclaimDeposit: self._reclaim,
            ReleaseBond: self._release,
        }
        return "done" if rules[type(body)](body, sent, purse) else "refused"

    def advance(self, height: int) -> None:
        """A microblock has been executed: what has become final, is."""
        self.newly_forged = []
        for identifier, facts in self.contracts.items():
            for batch in facts.batches:
                is_final = batch.height + self._rules.window_microblocks == height
                if is_final and batch.replayed.wrong and not facts.is_forged:
                    self.newly_forged.append((identifier, batch.commitment.number))
                    facts.is_forged = True

    def held(self) -> int:
        """Return all bonds and escrows."""
        return sum(facts.bond + facts.escrow for facts in self.contracts.values())

    def final_count(self, facts: ContractFacts, height: int) -> int:
        """Return how many batches of a contract are final."""
        return sum(1 for batch in facts.batches if batch.height + self._rules.window_microblocks <= height)

    def is_overdue(self, facts: ContractFacts, time_ms: int) -> bool:
        """Tell whether anybody may freeze a contract in a microblock of this time."""
        if facts.status != "open" or facts.answered == len(facts.forced):
            return False
        waited_ms = time_ms - max(facts.forced[facts.answered].time_ms, facts.until_ms)
        return waited_ms >= self._rules.neglect_ms

    # ------------------------------------------------------------------ living contracts

    def _open(self, body: OpenContract, sent: Sent, purse: Purse) -> bool:
        identifier = contract_id_of(sent.public_key, body.number)
        terms = ContractTerms(identifier, body.machine, body.version, body.parameters, sent.public_key)
        if identifier in self.contracts or not _is_known(terms):
            return False
        if not self._rules.minimum_bond_microcredit <= body.bond_microcredit <= sent.spare:
            return False
        purse.credit(sent.sender, -body.bond_microcredit)
        self.contracts[identifier] = ContractFacts(terms, sent.height, sent.time_ms, body.bond_microcredit)
        return True

    def _living(self, identifier: bytes) -> ContractFacts | None:
        facts = self.contracts.get(identifier)
        return facts if facts is not None and facts.status == "open" else None

    def _due(self, facts: ContractFacts) -> int:
        waiting = len(facts.forced) - facts.answered
        return len(facts.batches) + self._rules.forced_batches - 1 + waiting // MAX_FORCED

    def _fund(self, body: FundContract, sent: Sent, purse: Purse) -> bool:
        facts, amount = self._living(body.contract_id), body.amount_microcredit
        if facts is None or facts.terms.machine != MICRO_FEES.name or not 0 < amount <= sent.spare:
            return False
        deposit = ChainOperations(body.contract_id, facts.deposits, (encode(Deposit(body.account, amount)),))
        digest = request_digest(encode(deposit))
        facts.forced.append(ForcedFacts(digest, sent.height, sent.time_ms, self._due(facts), body.account, amount))
        facts.escrow += amount
        purse.credit(sent.sender, -amount)
        return True

    def _force(self, body: ForceOperation, sent: Sent, _purse: Purse) -> bool:
        facts = self._living(body.contract_id)
        if facts is None:
            return False
        try:
            MACHINES.check_request(self._chain_id, body.contract_id, body.request)
        except InvalidInput:
            return False
        facts.forced.append(ForcedFacts(request_digest(body.request), sent.height, sent.time_ms, self._due(facts)))
        return True

    def _commit(self, body: CommitBatch, sent: Sent, _purse: Purse) -> bool:
        commitment = body.commitment
        facts = self._living(commitment.contract_id)
        if facts is None or sent.public_key != facts.terms.operator:
            return False
        follows = (commitment.number, commitment.previous_root, commitment.from_ms)
        if follows != (len(facts.batches), facts.root, facts.until_ms):
            return False
        if commitment.until_ms > sent.time_ms + self._drift_ms:
            return False
        answered = facts.answered + len(commitment.forced)
        cited = [place.request_digest for place in commitment.forced]
        if cited != [forced.digest for forced in facts.forced[facts.answered : answered]]:
            return False
        if any(forced.due_batch <= commitment.number for forced in facts.forced[answered:]):
            return False
        raw = self._published.get(commitment.data_digest)
        require("I12", raw is not None, f"batch {commitment.number} is committed, and no honest node has its data")
        assert raw is not None, "just required"
        replayed = replay(self._chain_id, facts.terms, commitment, raw, facts.entries())
        before = facts.batches[-1].replayed if facts.batches else replayed
        if before.wrong and not before.is_only_within:
            replayed = _replace(replayed, wrong=replayed.wrong or "rests on a wrong batch")
        honest = facts.terms.operator in self.honest_operators
        require("I12", not (honest and replayed.wrong), f"an honest operator commits what is wrong: {replayed.wrong}")
        facts.batches.append(BatchFacts(commitment, sent.height, answered, replayed))
        self._truths[commitment.contract_id, commitment.number, commitment.leaves_root] = replayed
        return True

    def truth(self, contract_id: bytes, number: int, commitment: BatchCommitment) -> Replayed:
        """Return what a batch that was committed once really comes to."""
        return self._truths[contract_id, number, commitment.leaves_root]

    # ------------------------------------------------------------------ ends

    def _challenge(self, body: ChallengeBatch, sent: Sent, purse: Purse) -> str:
        facts = self.contracts.get(body.contract_id)
        if facts is None or body.number >= len(facts.batches) or sent.spare < self._penalty:
            return "refused"
        final_height = facts.batches[body.number].height + self._rules.window_microblocks
        self.margins.append(final_height - sent.height)
        if body.number < self.final_count(facts, sent.height):
            return "refused"
        what = f"batch {body.number} of contract {body.contract_id.hex()}"
        if sent.reason:
            told = f"{what}: an honest watcher's challenge is refused as {sent.reason}"
            require("I12", sent.reason == RejectionReason.FALSE_CHALLENGE, told)
            require("I12", sent.sender not in self.honest_watchers, told)
            purse.credit(sent.sender, -self._penalty)
            purse.burnt += self._penalty
            return "false"
        require("I12", self._is_guilty(facts, body), f"{what} is right, and its operator is convicted")
        self._convict(facts, sent, purse)
        return "done"

    def _is_guilty(self, facts: ContractFacts, body: ChallengeBatch) -> bool:
        if facts.terms.operator in self.honest_operators:
            return False
        batch = facts.batches[body.number]
        if not isinstance(body.proof, BrokenReceipt):
            return bool(batch.replayed.wrong)
        signed = body.proof.receipt
        about = (signed.receipt.contract_id, signed.receipt.number) == (body.contract_id, body.number)
        return about and is_signed_receipt(self._chain_id, facts.terms.operator, signed) and not _keeps(batch, signed)

    def _convict(self, facts: ContractFacts, sent: Sent, purse: Purse) -> None:
        del facts.batches[self.final_count(facts, sent.height) :]
        facts.status, facts.settles, facts.is_convicted = "frozen", sent.height, True
        purse.credit(sent.sender, facts.bond // 2)
        purse.burnt += facts.bond - facts.bond // 2
        facts.bond = 0
        purse.convict(facts.terms.operator)

    def _freeze(self, body: FreezeContract, sent: Sent, _purse: Purse) -> bool:
        facts = self._living(body.contract_id)
        if facts is None or not self.is_overdue(facts, sent.time_ms):
            return False
        facts.status, facts.settles = "frozen", sent.height + self._rules.window_microblocks
        return True

    def _close(self, body: CloseContract, sent: Sent, _purse: Purse) -> bool:
        facts = self._living(body.contract_id)
        if facts is None or sent.public_key != facts.terms.operator or facts.answered < len(facts.forced):
            return False
        facts.status, facts.settles = "closed", sent.height + self._rules.window_microblocks
        return True

    def _claim(self, body: ClaimBalance, sent: Sent, purse: Purse) -> bool:
        facts, account = self.contracts.get(body.contract_id), body.account
        if facts is None or facts.terms.machine != MICRO_FEES.name:
            return False
        settled = facts.is_settled(sent.height)
        if body.number >= self.final_count(facts, sent.height) or account in facts.settled:
            return False
        if settled and body.number != len(facts.batches) - 1:
            return False
        batch = facts.batches[body.number]
        amounts = self._proved(body, batch, settled=settled)
        if amounts is None:
            return False
        withdrawn, balance = amounts
        paid = facts.withdrawn.get(account, 0)
        amount = withdrawn - paid + balance
        if not 0 < amount <= facts.escrow:
            require("I12", amount <= 0 or facts.is_forged, "an escrow does not cover what right batches pay")
            return False
        facts.escrow -= amount
        facts.withdrawn[account] = max(withdrawn, paid)
        if settled:
            facts.settled.add(account)
        purse.credit(account, amount)
        return True

    def _proved(self, body: ClaimBalance, batch: BatchFacts, *, settled: bool) -> tuple[int, int] | None:
        """Return what an account has withdrawn and holds, when the proofs hold; of a right batch only the truth can be proved."""
        wanted = [b"m" + withdrawn_key(body.account)] + [b"m" + balance_key(body.account)] * settled
        if [entry.key for entry in body.entries] != wanted:
            return None
        for entry in body.entries:
            if not verify_state_proof(batch.commitment.new_root, entry.key, entry.value, entry.proof):
                return None
            is_true = batch.replayed.wrong or entry.value == batch.replayed.entries.get(entry.key)
            require("I12", bool(is_true), f"state key {entry.key.hex()} is proved to be what replay does not give")
        amounts = [0 if entry.value is None else decode(int, entry.value, 16) for entry in body.entries]
        return amounts[0], sum(amounts[1:])

    def _reclaim(self, body: ReclaimDeposit, sent: Sent, purse: Purse) -> bool:
        facts = self.contracts.get(body.contract_id)
        if facts is None or not facts.is_settled(sent.height) or body.number not in range(len(facts.forced)):
            return False
        forced = facts.forced[body.number]
        if body.number < facts.answered or not forced.account or forced.is_paid_back or forced.amount > facts.escrow:
            return False
        facts.escrow -= forced.amount
        forced.is_paid_back = True
        purse.credit(forced.account, forced.amount)
        return True

    def _release(self, body: ReleaseBond, sent: Sent, purse: Purse) -> bool:
        facts = self.contracts.get(body.contract_id)
        if facts is None or not facts.is_settled(sent.height) or not facts.bond:
            return False
        purse.credit(address_of(facts.terms.operator), facts.bond)
        facts.bond = 0
        return True

    # ------------------------------------------------------------------ what the state must say

    def differs(self, state: State) -> str:
        """Return where a state has other contracts than these; empty when all is well."""
        found = dict(state.entries(CONTRACTS))
        if found.keys() != self.contracts.keys():
            return f"the state has {len(found)} contracts; the transactions tell {len(self.contracts)}"
        for identifier, facts in self.contracts.items():
            row = _replace(found[identifier], cleared_count=0)
            wrong = (
                f"{row}; the transactions tell {expected_row(facts)}"
                if row != expected_row(facts)
                else wrong_rows(state, facts)
            )
            if wrong:
                return f"contract {identifier.hex()}: {wrong}"
        return ""

    def check_end(self, watched: Collection[bytes]) -> None:
        """At the end of a run: nothing was left over, and nothing is missing, in any contract."""
        for identifier in watched:
            facts = self.contracts.get(identifier)
            if facts is None:
                continue
            left = f"contract {identifier.hex()} has ended with {facts.escrow} in escrow and a bond of {facts.bond}"
            require("I12", facts.is_forged or not (facts.escrow or facts.bond), left)


def _keeps(batch: BatchFacts, signed: SignedReceipt) -> bool:
    receipt = signed.receipt
    leaves = batch.replayed.leaves
    return receipt.index < len(leaves) and leaves[receipt.index] == receipt.leaf


def _is_known(terms: ContractTerms) -> bool:
    try:
        MACHINES.check_terms(terms)
    except InvalidInput:
        return False
    return True
