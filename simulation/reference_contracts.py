# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts a second time: what their transactions do, by lists and plain sums, and what published batches really come to.

The judge of proofs is not repeated. What it says is believed only as far as it is true: it convicts nobody whose batch is right and whose
receipts are kept, and it convicts on every proof that an honest watcher sends. So a verdict comes in with the receipt, and is compared
with what replaying the published data shows.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

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
from ledger.contract_state import CommittedBatch, Contract, ContractStatus, contract_id_of
from ledger.crypto.hashing import ZERO_DIGEST
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
from ledger.state import CLAIMS, CONTRACT_BATCHES, CONTRACTS, FORCED_REQUESTS, State
from ledger.state_tree import verify_state_proof
from simulation.reference_batches import Entries, Replayed, replay
from simulation.violation import require

_replace = msgspec.structs.replace


class Purse(Protocol):
    """Balances outside of contracts."""

    burnt: int

    def balance(self, address: bytes) -> int:
        """Return what an account holds."""

    def credit(self, address: bytes, amount: int) -> None:
        """Add to a balance."""

    def convict(self, key: bytes) -> None:
        """Note the guilt of a key."""


class Sent(msgspec.Struct, frozen=True):
    """A transaction about a contract, as the reference needs it."""

    height: int
    """Microblock that commits it."""
    time_ms: int
    """Time of that microblock."""
    sender: bytes
    """Address of the sender."""
    public_key: bytes
    """Key of the sender."""
    spare: int
    """What the sender holds beside the fee."""
    reason: str
    """The state's verdict, as the receipt has it; of use for challenges only."""


class ForcedFacts(msgspec.Struct):
    """A request that the chain has forced."""

    digest: bytes
    """Of its bytes."""
    height: int
    """Height that forced it."""
    due_batch: int
    """Last batch that may answer for it."""
    account: bytes = b""
    """Of a deposit, its account."""
    amount: int = 0
    """Of a deposit, in millionths of a credit."""
    is_paid_back: bool = False
    """Whether a deposit has been reclaimed."""


class BatchFacts(msgspec.Struct, frozen=True):
    """A batch that was committed."""

    commitment: BatchCommitment
    """What the chain has of it."""
    height: int
    """Height that committed it."""
    answered: int
    """Forced requests answered with it."""
    replayed: Replayed
    """What its data really comes to."""


class ContractFacts(msgspec.Struct):
    """One contract."""

    terms: ContractTerms
    """Its terms."""
    opened_height: int
    """Height that opened it."""
    opened_ms: int
    """Time of that microblock."""
    bond: int
    """What fraud would burn."""
    status: ContractStatus = "open"
    """How it is."""
    escrow: int = 0
    """What was paid in and not paid out."""
    batches: list[BatchFacts] = msgspec.field(default_factory=list)
    """Batches that count."""
    forced: list[ForcedFacts] = msgspec.field(default_factory=list)
    """All that was ever forced."""
    settles: int = 0
    """Once ended, the height from which it is settled."""
    withdrawn: dict[bytes, int] = msgspec.field(default_factory=dict)
    """What accounts were paid of what they had withdrawn."""
    settled: set[bytes] = msgspec.field(default_factory=set)
    """Accounts that were paid their balance."""
    is_convicted: bool = False
    """Whether fraud has ended it."""
    is_forged: bool = False
    """Whether a wrong batch has become final, so that no sum is right any more."""

    @property
    def answered(self) -> int:
        """Forced requests that the batches answer for."""
        return self.batches[-1].answered if self.batches else 0

    @property
    def deposits(self) -> int:
        """Deposits forced so far."""
        return sum(1 for forced in self.forced if forced.account)

    @property
    def root(self) -> bytes:
        """Root of the state after the last batch."""
        return self.batches[-1].commitment.new_root if self.batches else ZERO_DIGEST

    @property
    def until_ms(self) -> int:
        """End of the last batch."""
        return self.batches[-1].commitment.until_ms if self.batches else self.opened_ms

    @property
    def last_height(self) -> int:
        """Height that committed the last batch."""
        return self.batches[-1].height if self.batches else self.opened_height

    def entries(self) -> Entries:
        """Return the true state after the last batch."""
        return self.batches[-1].replayed.entries if self.batches else {}

    def is_settled(self, height: int) -> bool:
        """Tell whether it has ended for good."""
        return self.status != "open" and height >= self.settles

    def is_over(self, height: int) -> bool:
        """Tell whether it has ended and nothing is left in it."""
        return self.is_settled(height) and not self.bond and (not self.escrow or self.is_forged)


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
        match body:
            case OpenContract():
                done = self._open(body, sent, purse)
            case FundContract():
                done = self._fund(body, sent, purse)
            case ForceOperation():
                done = self._force(body, sent)
            case CommitBatch():
                done = self._commit(body.commitment, sent)
            case ChallengeBatch():
                return self._challenge(body, sent, purse)
            case FreezeContract():
                done = self._freeze(body, sent)
            case CloseContract():
                done = self._close(body, sent)
            case ClaimBalance():
                done = self._claim(body, sent, purse)
            case ReclaimDeposit():
                done = self._reclaim(body, sent, purse)
            case ReleaseBond():
                done = self._release(body, sent, purse)
        return "done" if done else "refused"

    def advance(self, height: int) -> None:
        """A microblock has been executed: what has become final, is."""
        self.newly_forged = []
        for identifier, facts in self.contracts.items():
            for batch in facts.batches:
                if batch.height + self._rules.window_microblocks == height and batch.replayed.wrong:
                    self.newly_forged.append((identifier, batch.commitment.number))
                    facts.is_forged = True

    def held(self) -> int:
        """Return all bonds and escrows."""
        return sum(facts.bond + facts.escrow for facts in self.contracts.values())

    def final_count(self, facts: ContractFacts, height: int) -> int:
        """Return how many batches of a contract are final."""
        return sum(1 for batch in facts.batches if batch.height + self._rules.window_microblocks <= height)

    def is_overdue(self, facts: ContractFacts, height: int) -> bool:
        """Tell whether anybody may freeze a contract."""
        if facts.status != "open" or facts.answered == len(facts.forced):
            return False
        waited = max(facts.forced[facts.answered].height, facts.last_height)
        return height >= waited + self._rules.neglect_microblocks

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
        facts.forced.append(ForcedFacts(digest, sent.height, self._due(facts), body.account, amount))
        facts.escrow += amount
        purse.credit(sent.sender, -amount)
        return True

    def _force(self, body: ForceOperation, sent: Sent) -> bool:
        facts = self._living(body.contract_id)
        if facts is None:
            return False
        try:
            MACHINES.check_request(self._chain_id, body.contract_id, body.request)
        except InvalidInput:
            return False
        facts.forced.append(ForcedFacts(request_digest(body.request), sent.height, self._due(facts)))
        return True

    def _commit(self, commitment: BatchCommitment, sent: Sent) -> bool:
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
        if facts.batches and facts.batches[-1].replayed.wrong:
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

    def _freeze(self, body: FreezeContract, sent: Sent) -> bool:
        facts = self._living(body.contract_id)
        if facts is None or not self.is_overdue(facts, sent.height):
            return False
        facts.status, facts.settles = "frozen", sent.height + self._rules.window_microblocks
        return True

    def _close(self, body: CloseContract, sent: Sent) -> bool:
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
        rows = dict(state.entries(CONTRACT_BATCHES))
        forced = dict(state.entries(FORCED_REQUESTS))
        claims = dict(state.entries(CLAIMS))
        for identifier, facts in self.contracts.items():
            what = f"contract {identifier.hex()}"
            row = _replace(found[identifier], cleared_count=0)
            if row != (expected := _row(facts)):
                return f"{what} is {row}; the transactions tell {expected}"
            for number, batch in enumerate(facts.batches):
                expected_batch = CommittedBatch(batch.commitment, batch.height, batch.answered)
                if rows.get(identifier + number.to_bytes(8, "big")) != expected_batch:
                    return f"{what} has another batch {number} than was committed"
            for number, waits in enumerate(facts.forced):
                there = forced.get(identifier + number.to_bytes(8, "big"))
                if number >= facts.answered and (there is None) != waits.is_paid_back:
                    return f"{what}: forced request {number} is {there}; paid back: {waits.is_paid_back}"
                told = there and (there.request_digest, there.height, there.due_batch, there.amount_microcredit)
                if told and told != (waits.digest, waits.height, waits.due_batch, waits.amount):
                    return f"{what}: forced request {number} is {there}, not {waits}"
            for account, amount in facts.withdrawn.items():
                claimed = claims.get(identifier + account)
                told_claim = claimed and (claimed.withdrawn_microcredit, claimed.is_settled)
                if told_claim != (amount, account in facts.settled):
                    return f"{what}: account {account.hex()} has claimed {claimed}, not {amount}"
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


def _row(facts: ContractFacts) -> Contract:
    return Contract(
        terms=facts.terms,
        status=facts.status,
        opened_height=facts.opened_height,
        bond_microcredit=facts.bond,
        escrow_microcredit=facts.escrow,
        batch_count=len(facts.batches),
        root=facts.root,
        until_ms=facts.until_ms,
        last_height=facts.last_height,
        forced_count=len(facts.forced),
        answered_count=facts.answered,
        cleared_count=0,
        deposit_count=facts.deposits,
        settles_height=facts.settles,
    )
